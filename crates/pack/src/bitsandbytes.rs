//! The 4-bit layout of bitsandbytes: codebook weights as `transformers` loads them ready-made.
//!
//! Its configuration names neither modules nor block sizes: a linear is quantized where its own tensors say so.

use halfbyte_quant::{
    BlockScales, Codebook, CodebookScheme, CodebookWeight, NestedScales, WeightError,
};
use serde_json::{Value, json};

use crate::tensor::{read_scales, scale_bytes};
use crate::{ConfigError, Dtype, ScaleDtype, TensorLayout, TensorView};

/// Why a codebook weight could not be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodebookError {
    /// A part is not there.
    #[error("{tensor}: missing, wanted beside the other parts of a bitsandbytes weight")]
    Missing {
        /// Tensor.
        tensor: String,
    },
    /// A part has the wrong element type or number of elements.
    #[error("{tensor}: {found}, wanted {wanted}")]
    Tensor {
        /// Tensor.
        tensor: String,
        /// Type and number of elements in the file.
        found: String,
        /// What the other parts call for.
        wanted: String,
    },
    /// The description in JSON lacks something or says what cannot be read.
    #[error("{tensor}: {key} is {found}, wanted {wanted}")]
    State {
        /// Tensor.
        tensor: String,
        /// Key of the JSON object.
        key: &'static str,
        /// What stands there, as JSON.
        found: String,
        /// What can be read.
        wanted: &'static str,
    },
    /// The levels in the file are not those of the codebook it names.
    #[error("{tensor}: level {index} is {found}, wanted {wanted}, that of {codebook}")]
    Levels {
        /// Tensor.
        tensor: String,
        /// Code.
        index: usize,
        /// Its level in the file.
        found: f32,
        /// Its level in the codebook.
        wanted: f32,
        /// Codebook named.
        codebook: &'static str,
    },
    /// The parts do not make a weight.
    #[error("{name}: {source}")]
    Weight {
        /// Module.
        name: String,
        /// Which part, and why.
        source: WeightError,
    },
}

/// The `quantization_config` object of a checkpoint of codebook weights.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CodebookConfig {
    /// Levels of every quantized module.
    pub(crate) codebook: Codebook,
    /// Whether block scales are quantized once more.
    pub(crate) double_quant: bool,
    /// Type the weights are turned back to before products.
    pub(crate) compute_dtype: ScaleDtype,
    /// Linears left as they were. Readers take every other linear of the model for quantized; where this is empty
    /// they leave out the output projection by themselves.
    pub(crate) skip: Vec<String>,
}

impl CodebookConfig {
    /// The object as config.json holds it.
    pub(crate) fn to_value(&self) -> Value {
        let skip = if self.skip.is_empty() {
            Value::Null
        } else {
            json!(self.skip)
        };
        json!({
            "quant_method": "bitsandbytes",
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_compute_dtype": torch_name(self.compute_dtype),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.codebook.as_str(),
            "bnb_4bit_use_double_quant": self.double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skip,
            "llm_int8_threshold": 6.0,
        })
    }

    /// Reads the object, ours or another tool's.
    ///
    /// # Errors
    /// Another method, 8 bits, codes stored in words of another type than bytes, names of no codebook.
    pub(crate) fn from_value(config: &Value) -> Result<Self, ConfigError> {
        let wrong = |key: &str, wanted| ConfigError::Key {
            key: key.to_string(),
            found: config
                .get(key)
                .map_or_else(|| "missing".to_string(), Value::to_string),
            wanted,
        };
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        if text("quant_method") != Some("bitsandbytes") {
            return Err(wrong("quant_method", "\"bitsandbytes\""));
        }
        if config.get("load_in_4bit") != Some(&Value::Bool(true)) {
            return Err(wrong("load_in_4bit", "true: 8 bits cannot be read"));
        }
        if text("bnb_4bit_quant_storage").is_some_and(|storage| storage != "uint8") {
            return Err(wrong("bnb_4bit_quant_storage", "\"uint8\""));
        }
        let codebook = named(text("bnb_4bit_quant_type").unwrap_or("fp4"))
            .ok_or_else(|| wrong("bnb_4bit_quant_type", "\"nf4\" or \"fp4\""))?;
        let compute_dtype = match text("bnb_4bit_compute_dtype") {
            None | Some("float32") => ScaleDtype::F32,
            Some("float16") => ScaleDtype::F16,
            Some("bfloat16") => ScaleDtype::BF16,
            Some(_) => {
                let wanted = "\"float32\", \"float16\" or \"bfloat16\"";
                return Err(wrong("bnb_4bit_compute_dtype", wanted));
            }
        };
        let skip = match config.get("llm_int8_skip_modules") {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => list
                .as_array()
                .and_then(|list| {
                    list.iter()
                        .map(|name| name.as_str().map(String::from))
                        .collect()
                })
                .ok_or_else(|| wrong("llm_int8_skip_modules", "a list of names"))?,
        };
        Ok(Self {
            codebook,
            double_quant: config.get("bnb_4bit_use_double_quant") == Some(&Value::Bool(true)),
            compute_dtype,
            skip,
        })
    }
}

/// The bytes of the tensors of [`tensors`], in their order.
pub(crate) fn to_bytes(weight: &CodebookWeight, dtype: ScaleDtype) -> Vec<Vec<u8>> {
    let shape = [weight.out_features(), weight.in_features()];
    let floats = |values: &[f32]| scale_bytes(values.iter().copied(), ScaleDtype::F32);
    let codes = weight.codes().as_chunks::<2>().0.iter();
    let mut bytes = vec![codes.map(|[high, low]| high << 4 | low).collect()];
    let levels = floats(weight.codebook().levels());
    let offset = match weight.scales() {
        BlockScales::Float(scales) => {
            bytes.extend([floats(scales), levels]);
            None
        }
        BlockScales::Nested(nested) => {
            bytes.extend([
                nested.codes.clone(),
                levels,
                floats(&nested.absmax),
                floats(&nested.map),
            ]);
            Some(nested.offset)
        }
    };
    bytes.push(state(&weight.scheme(), shape, offset, dtype).into_bytes());
    bytes
}

/// Name, type and shape of the tensors of a weight of `shape` `[out_features, in_features]`.
pub(crate) fn tensors(
    name: &str,
    scheme: &CodebookScheme,
    shape: [usize; 2],
    dtype: ScaleDtype,
) -> Vec<TensorLayout> {
    let elements = shape[0] * shape[1];
    let blocks = elements.div_ceil(scheme.block_size);
    // as long for this offset as for any other
    let offset = scheme.double_quant.then_some(0.0);
    let state_bytes = state(scheme, shape, offset, dtype).len();
    let mut parts = vec![(String::new(), Dtype::U8, vec![elements / 2, 1])];
    if scheme.double_quant {
        let outer = blocks.div_ceil(NestedScales::BLOCK);
        parts.extend([
            (".absmax".to_string(), Dtype::U8, vec![blocks]),
            (".quant_map".to_string(), Dtype::F32, vec![16]),
            (".nested_absmax".to_string(), Dtype::F32, vec![outer]),
            (".nested_quant_map".to_string(), Dtype::F32, vec![256]),
        ]);
    } else {
        parts.extend([
            (".absmax".to_string(), Dtype::F32, vec![blocks]),
            (".quant_map".to_string(), Dtype::F32, vec![16]),
        ]);
    }
    let state_part = state_part(scheme.codebook);
    parts.push((state_part, Dtype::U8, vec![state_bytes]));
    parts
        .into_iter()
        .map(|(part, dtype, shape)| TensorLayout {
            name: format!("{name}.weight{part}"),
            dtype,
            shape,
        })
        .collect()
}

fn state_part(codebook: Codebook) -> String {
    format!(".quant_state.bitsandbytes__{}", codebook.as_str())
}

/// Letters of the longest f32 written as the library writes it: a sign, `0.0000` and 17 digits.
const LONGEST_NUMBER: usize = 24;

/// The description as JSON, keys and spaces as the library itself writes them. Where it holds an offset, spaces follow
/// that make up for its missing digits: a file can be laid out before its weights are known.
fn state(
    scheme: &CodebookScheme,
    [out_features, in_features]: [usize; 2],
    nested_offset: Option<f32>,
    dtype: ScaleDtype,
) -> String {
    let (nested, padding) = nested_offset.map_or_else(Default::default, |offset| {
        let offset = format!("{:?}", f64::from(offset));
        let padding = LONGEST_NUMBER.saturating_sub(offset.len());
        let nested = format!(
            ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}",
            NestedScales::BLOCK
        );
        (nested, " ".repeat(padding))
    });
    format!(
        "{{\"quant_type\": \"{}\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{out_features}, {in_features}]{nested}}}{padding}",
        scheme.codebook.as_str(),
        scheme.block_size,
        torch_name(dtype),
    )
}

fn torch_name(dtype: ScaleDtype) -> &'static str {
    match dtype {
        ScaleDtype::F16 => "float16",
        ScaleDtype::BF16 => "bfloat16",
        ScaleDtype::F32 => "float32",
    }
}

fn named(name: &str) -> Option<Codebook> {
    Codebook::ALL.into_iter().find(|book| book.as_str() == name)
}

/// How the weight of the module `name` is stored by its own tensors; none where none of them says so.
pub(crate) fn scheme<'a>(
    name: &str,
    lookup: &dyn Fn(&str) -> Option<TensorView<'a>>,
) -> Result<Option<CodebookScheme>, CodebookError> {
    let parts = Parts { name, lookup };
    let is_there = |book| lookup(&parts.tensor(&state_part(book))).is_some();
    if !Codebook::ALL.into_iter().any(is_there) {
        return Ok(None);
    }
    let (codebook, state) = parts.state()?;
    Ok(Some(CodebookScheme {
        codebook,
        block_size: state.block_size,
        double_quant: state.nested_offset.is_some(),
    }))
}

/// Reads the weight of the module `name` (its path, without `.weight`) back from the tensors that `lookup` finds by
/// name.
///
/// # Errors
/// Parts that are missing or disagree, levels that are not those of the codebook named, nested blocks of other than
/// 256 scales.
pub(crate) fn unpack<'a>(
    name: &str,
    lookup: &dyn Fn(&str) -> Option<TensorView<'a>>,
) -> Result<CodebookWeight, CodebookError> {
    let parts = Parts { name, lookup };
    let (codebook, state) = parts.state()?;
    let elements = state.shape[0] * state.shape[1];
    let bytes = parts.bytes("", elements.div_ceil(2))?;
    let mut codes: Vec<u8> = bytes.iter().flat_map(|b| [b >> 4, b & 15]).collect();
    codes.truncate(elements);
    parts.check_levels(codebook)?;
    let blocks = elements.div_ceil(state.block_size);
    let scales = match state.nested_offset {
        None => BlockScales::Float(parts.floats(".absmax", blocks)?),
        Some(offset) => BlockScales::Nested(NestedScales {
            codes: parts.bytes(".absmax", blocks)?.to_vec(),
            map: parts.floats(".nested_quant_map", 256)?,
            absmax: parts.floats(".nested_absmax", blocks.div_ceil(NestedScales::BLOCK))?,
            offset,
        }),
    };
    CodebookWeight::new(codebook, state.shape, state.block_size, codes, scales).map_err(|source| {
        CodebookError::Weight {
            name: name.to_string(),
            source,
        }
    })
}

/// What the JSON of a weight says.
struct State {
    shape: [usize; 2],
    block_size: usize,
    nested_offset: Option<f32>,
}

/// The tensors of one module.
struct Parts<'a, 'b> {
    name: &'b str,
    lookup: &'b dyn Fn(&str) -> Option<TensorView<'a>>,
}

impl<'a> Parts<'a, '_> {
    fn tensor(&self, part: &str) -> String {
        format!("{}.weight{part}", self.name)
    }

    /// A part of one type and this many elements, however they are shaped.
    fn need(
        &self,
        part: &str,
        dtype: Dtype,
        elements: usize,
    ) -> Result<TensorView<'a>, CodebookError> {
        let tensor = self.tensor(part);
        let Some(view) = (self.lookup)(&tensor) else {
            return Err(CodebookError::Missing { tensor });
        };
        let found = view.shape.iter().product::<usize>();
        if view.dtype != dtype || found != elements || view.bytes.len() != elements * dtype.size() {
            return Err(CodebookError::Tensor {
                tensor,
                found: format!(
                    "{} {:?} in {} bytes",
                    view.dtype,
                    view.shape,
                    view.bytes.len()
                ),
                wanted: format!("{elements} elements of {dtype}"),
            });
        }
        Ok(view)
    }

    fn bytes(&self, part: &str, elements: usize) -> Result<&'a [u8], CodebookError> {
        Ok(self.need(part, Dtype::U8, elements)?.bytes)
    }

    fn floats(&self, part: &str, elements: usize) -> Result<Vec<f32>, CodebookError> {
        let view = self.need(part, Dtype::F32, elements)?;
        Ok(read_scales(&view).unwrap_or_default())
    }

    fn state(&self) -> Result<(Codebook, State), CodebookError> {
        let found = Codebook::ALL.into_iter().find_map(|book| {
            let tensor = self.tensor(&state_part(book));
            (self.lookup)(&tensor).map(|view| (book, tensor, view))
        });
        let Some((codebook, tensor, view)) = found else {
            return Err(CodebookError::Missing {
                tensor: self.tensor(&state_part(Codebook::Nf4)),
            });
        };
        let json: Value = serde_json::from_slice(view.bytes).unwrap_or(Value::Null);
        let wrong = |key: &'static str, wanted| CodebookError::State {
            tensor: tensor.clone(),
            key,
            found: json
                .get(key)
                .map_or_else(|| "missing".to_string(), Value::to_string),
            wanted,
        };
        let count = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        if json.get("quant_type").and_then(Value::as_str) != Some(codebook.as_str()) {
            return Err(wrong("quant_type", "the codebook of the tensor's name"));
        }
        let block_size = json.get("blocksize").and_then(count).filter(|&n| n > 0);
        let block_size = block_size.ok_or_else(|| wrong("blocksize", "a number of weights"))?;
        let extents: Option<Vec<usize>> = json
            .get("shape")
            .and_then(Value::as_array)
            .and_then(|extents| extents.iter().map(count).collect());
        let shape = extents
            .and_then(|extents| <[usize; 2]>::try_from(extents).ok())
            .filter(|[rows, columns]| rows.checked_mul(*columns).is_some_and(|n| n > 0))
            .ok_or_else(|| wrong("shape", "two positive extents"))?;
        let nested_offset = match json.get("nested_offset") {
            None | Some(Value::Null) => None,
            Some(offset) => {
                let offset = offset
                    .as_f64()
                    .ok_or_else(|| wrong("nested_offset", "a number"))?;
                if json.get("nested_blocksize").and_then(count) != Some(NestedScales::BLOCK) {
                    return Err(wrong("nested_blocksize", "256"));
                }
                Some(offset as f32)
            }
        };
        let state = State {
            shape,
            block_size,
            nested_offset,
        };
        Ok((codebook, state))
    }

    /// Levels may differ in their last bits: they were computed in other places.
    fn check_levels(&self, codebook: Codebook) -> Result<(), CodebookError> {
        let levels = self.floats(".quant_map", 16)?;
        let pairs = levels.iter().zip(codebook.levels()).enumerate();
        for (index, (&found, &wanted)) in pairs {
            if (found - wanted).abs() > 1e-6 || found.is_nan() {
                return Err(CodebookError::Levels {
                    tensor: self.tensor(".quant_map"),
                    index,
                    found,
                    wanted,
                    codebook: codebook.as_str(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
