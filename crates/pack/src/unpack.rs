use halfbyte_quant::{CodedWeight, Coding, GroupSize, QuantizedWeight, Scheme, WeightError};

use crate::bits::{from_awq_order, from_bytes, transpose, unpack_rows, words};
use crate::tensor::read_scales;
use crate::{CodebookError, Dtype, Format, TensorView, bitsandbytes, int8};

/// Why tensors could not be read as a quantized weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// A part is not there.
    #[error("{tensor}: missing, wanted beside the other {format} tensors of the module")]
    Missing {
        /// Tensor.
        tensor: String,
        /// How the weight was to be read.
        format: Format,
    },
    /// A part has the wrong shape.
    #[error(
        "{tensor}: shape {found:?}, wanted {wanted:?} for {bits} bits in groups of {group_size}; do the bits and group size of the config fit this file?"
    )]
    Shape {
        /// Tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the scheme calls for.
        wanted: Vec<usize>,
        /// Bits of the scheme.
        bits: u8,
        /// Group size of the scheme.
        group_size: GroupSize,
    },
    /// Codes of 3, 5 or 6 bits that do not cross word borders, as older compressed-tensors wrote them.
    #[error(
        "{tensor}: shape {found:?} is the older packing, {per_word} codes of {bits} bits a word with the rest wasted; write it anew with compressed-tensors 0.20 or later"
    )]
    OlderPacking {
        /// Tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Codes a word.
        per_word: usize,
        /// Bits a code.
        bits: u8,
    },
    /// A part has the wrong element type.
    #[error("{tensor}: {found}, wanted {wanted}")]
    Dtype {
        /// Tensor.
        tensor: String,
        /// Type in the file.
        found: Dtype,
        /// Types that can be read.
        wanted: &'static str,
    },
    /// A part has fewer or more bytes than its shape says.
    #[error("{tensor}: {found} bytes, wanted {wanted}")]
    Bytes {
        /// Tensor.
        tensor: String,
        /// Bytes there.
        found: usize,
        /// Bytes the shape calls for.
        wanted: usize,
    },
    /// Columns were sorted into groups of their own choosing.
    #[error(
        "{tensor}: column {column} is in group {found} and not {wanted}: groups are not contiguous (act order with groups of its own); quantize again with static groups, which keep the columns in place"
    )]
    GroupIndex {
        /// Tensor.
        tensor: String,
        /// First column out of place.
        column: usize,
        /// Group in the file.
        found: i32,
        /// Group by position.
        wanted: usize,
    },
    /// A v1 zero point one above the largest code, which readers disagree about.
    #[error(
        "{tensor}: zero point of row {row}, group {group} is {found}, above the largest code {max}; readers disagree on what that means in gptq, write gptq_v2"
    )]
    ZeroPoint {
        /// Tensor.
        tensor: String,
        /// Output feature.
        row: usize,
        /// Group of input features.
        group: usize,
        /// Stored value and one.
        found: u16,
        /// `2^bits - 1`.
        max: u8,
    },
    /// A zero point off the middle in a weight that the config calls symmetric.
    #[error(
        "{tensor}: zero point of row {row}, group {group} is {found}, a symmetric weight has {wanted}; do `sym` and the format version of the config fit this file?"
    )]
    NotSymmetric {
        /// Tensor.
        tensor: String,
        /// Output feature.
        row: usize,
        /// Group of input features.
        group: usize,
        /// Zero point in the file.
        found: u8,
        /// `2^(bits-1)`.
        wanted: u8,
    },
    /// `weight_shape` holds something that is no shape.
    #[error("{tensor}: {found:?}, wanted two positive extents")]
    WeightShape {
        /// Tensor.
        tensor: String,
        /// What stood there.
        found: [i64; 2],
    },
    /// The parts do not make a weight of this scheme.
    #[error("{name}: {source}")]
    Weight {
        /// Module.
        name: String,
        /// Which part, and why.
        source: WeightError,
    },
    /// The parts do not make a codebook weight.
    #[error(transparent)]
    Codebook(#[from] CodebookError),
}

/// Reads the weight of the module `name` (its path, without `.weight`) back from the tensors that `lookup` finds by
/// name: the inverse of [`crate::pack`], and a reader for other tools' files.
///
/// `coding` is what the checkpoint says of the module ([`crate::QuantizedLayout::coding_for`]). gptq v1 may be
/// asymmetric here; a `g_idx` may be absent but must not sort the columns. A symmetric weight packed as awq comes back
/// asymmetric, with its middle code as zero points, since that is what the config says of it.
pub fn unpack<'a>(
    name: &str,
    lookup: impl Fn(&str) -> Option<TensorView<'a>>,
    format: Format,
    coding: &Coding,
) -> Result<CodedWeight, UnpackError> {
    let parts = Parts {
        name,
        format,
        lookup: &lookup,
    };
    let weight = match (format, coding) {
        (Format::Bitsandbytes, _) | (_, Coding::Codebook(_)) => {
            return Ok(bitsandbytes::unpack(name, &lookup)?.into());
        }
        (Format::Gptq, Coding::Grid(scheme)) => gptq(&parts, scheme, 1),
        (Format::GptqV2, Coding::Grid(scheme)) => gptq(&parts, scheme, 0),
        (Format::CompressedTensors, Coding::Grid(scheme)) => compressed_tensors(&parts, scheme),
        (Format::Awq, Coding::Grid(scheme)) => awq(&parts, scheme),
        (Format::IntQuantized, Coding::Grid(scheme)) => int_quantized(&parts, scheme),
    };
    weight.map(CodedWeight::Grid)
}

/// The tensors of one module.
struct Parts<'a, 'b> {
    name: &'b str,
    format: Format,
    lookup: &'b dyn Fn(&str) -> Option<TensorView<'a>>,
}

impl<'a> Parts<'a, '_> {
    fn tensor(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn get(&self, part: &str) -> Result<Option<TensorView<'a>>, UnpackError> {
        let tensor = self.tensor(part);
        let Some(view) = (self.lookup)(&tensor) else {
            return Ok(None);
        };
        let (found, wanted) = (
            view.bytes.len(),
            view.dtype.size() * view.shape.iter().product::<usize>(),
        );
        if found != wanted {
            return Err(UnpackError::Bytes {
                tensor,
                found,
                wanted,
            });
        }
        Ok(Some(view))
    }

    fn need(&self, part: &str) -> Result<TensorView<'a>, UnpackError> {
        self.get(part)?.ok_or_else(|| UnpackError::Missing {
            tensor: self.tensor(part),
            format: self.format,
        })
    }

    fn words(&self, part: &str) -> Result<(Vec<u32>, &'a [usize]), UnpackError> {
        let view = self.need(part)?;
        if view.dtype != Dtype::I32 {
            return Err(self.wrong_dtype(part, &view, "I32"));
        }
        Ok((from_bytes(view.bytes), view.shape))
    }

    fn scales(
        &self,
        part: &str,
        scheme: &Scheme,
        wanted: [usize; 2],
    ) -> Result<Vec<f32>, UnpackError> {
        let view = self.need(part)?;
        self.check_shape(part, view.shape, &wanted, scheme)?;
        read_scales(&view).ok_or_else(|| self.wrong_dtype(part, &view, "F16, BF16 or F32"))
    }

    fn wrong_dtype(&self, part: &str, view: &TensorView<'_>, wanted: &'static str) -> UnpackError {
        UnpackError::Dtype {
            tensor: self.tensor(part),
            found: view.dtype,
            wanted,
        }
    }

    fn check_shape(
        &self,
        part: &str,
        found: &[usize],
        wanted: &[usize],
        scheme: &Scheme,
    ) -> Result<(), UnpackError> {
        if found == wanted {
            return Ok(());
        }
        Err(UnpackError::Shape {
            tensor: self.tensor(part),
            found: found.to_vec(),
            wanted: wanted.to_vec(),
            bits: scheme.bits(),
            group_size: scheme.group_size(),
        })
    }

    /// Columns in place, `g_idx[i] = i / group_len`, or no index at all.
    fn check_groups(
        &self,
        part: &str,
        scheme: &Scheme,
        in_features: usize,
    ) -> Result<(), UnpackError> {
        let Some(view) = self.get(part)? else {
            return Ok(());
        };
        if view.dtype != Dtype::I32 {
            return Err(self.wrong_dtype(part, &view, "I32"));
        }
        self.check_shape(part, view.shape, &[in_features], scheme)?;
        let group_len = scheme.group_len(in_features);
        let out_of_place = from_bytes(view.bytes)
            .into_iter()
            .enumerate()
            .find(|&(column, group)| group as usize != column / group_len);
        match out_of_place {
            Some((column, group)) => Err(UnpackError::GroupIndex {
                tensor: self.tensor(part),
                column,
                found: group as i32,
                wanted: column / group_len,
            }),
            None => Ok(()),
        }
    }

    /// The middle code everywhere, where the scheme is symmetric. `zeros` are `[out_features, groups]`.
    fn check_symmetric(
        &self,
        part: &str,
        scheme: &Scheme,
        zeros: &[u8],
        groups: usize,
    ) -> Result<(), UnpackError> {
        let wanted = scheme.mid_code();
        match zeros.iter().position(|&zero| zero != wanted) {
            Some(index) if scheme.sym() => Err(UnpackError::NotSymmetric {
                tensor: self.tensor(part),
                row: index / groups,
                group: index % groups,
                found: zeros[index],
                wanted,
            }),
            _ => Ok(()),
        }
    }

    fn weight(
        &self,
        scheme: &Scheme,
        shape: [usize; 2],
        codes: Vec<u8>,
        scales: Vec<f32>,
        zeros: Vec<u8>,
    ) -> Result<QuantizedWeight, UnpackError> {
        QuantizedWeight::new(*scheme, shape, codes, scales, zeros).map_err(|source| {
            UnpackError::Weight {
                name: self.name.to_string(),
                source,
            }
        })
    }
}

fn gptq(
    parts: &Parts<'_, '_>,
    scheme: &Scheme,
    offset: u8,
) -> Result<QuantizedWeight, UnpackError> {
    let bits = scheme.bits();
    let (packed, shape) = parts.words("qweight")?;
    let (height, out_features) = match *shape {
        [height, out_features] => (height, out_features),
        _ => (0, 0),
    };
    let in_features = height * 32 / usize::from(bits);
    let groups = scheme.n_groups(in_features);
    let wanted = [words(in_features, bits), out_features];
    parts.check_shape("qweight", shape, &wanted, scheme)?;
    let (packed_zeros, shape) = parts.words("qzeros")?;
    let wanted = [groups, words(out_features, bits)];
    parts.check_shape("qzeros", shape, &wanted, scheme)?;
    let scales = parts.scales("scales", scheme, [groups, out_features])?;
    parts.check_groups("g_idx", scheme, in_features)?;

    let codes = unpack_rows(&transpose(&packed, height, out_features), in_features, bits);
    let mut zeros = transpose(
        &unpack_rows(&packed_zeros, out_features, bits),
        groups,
        out_features,
    );
    for (index, zero) in zeros.iter_mut().enumerate() {
        let (row, group) = (index / groups, index % groups);
        let value = u16::from(*zero) + u16::from(offset);
        if value > u16::from(scheme.max_code()) {
            return Err(UnpackError::ZeroPoint {
                tensor: parts.tensor("qzeros"),
                row,
                group,
                found: value,
                max: scheme.max_code(),
            });
        }
        *zero = value as u8;
    }
    parts.check_symmetric("qzeros", scheme, &zeros, groups)?;
    let scales = transpose(&scales, groups, out_features);
    parts.weight(scheme, [out_features, in_features], codes, scales, zeros)
}

fn awq(parts: &Parts<'_, '_>, scheme: &Scheme) -> Result<QuantizedWeight, UnpackError> {
    let bits = scheme.bits();
    let (packed, shape) = parts.words("qweight")?;
    let (in_features, width) = match *shape {
        [in_features, width] => (in_features, width),
        _ => (0, 0),
    };
    let out_features = width * 32 / usize::from(bits);
    let groups = scheme.n_groups(in_features);
    let wanted = [in_features, words(out_features, bits)];
    parts.check_shape("qweight", shape, &wanted, scheme)?;
    let (packed_zeros, shape) = parts.words("qzeros")?;
    parts.check_shape("qzeros", shape, &[groups, width], scheme)?;
    let scales = parts.scales("scales", scheme, [groups, out_features])?;

    let runs = |packed: &[u32], height: usize| {
        let mut codes = unpack_rows(packed, out_features, bits);
        from_awq_order(&mut codes);
        transpose(&codes, height, out_features)
    };
    let (codes, zeros) = (runs(&packed, in_features), runs(&packed_zeros, groups));
    parts.check_symmetric("qzeros", scheme, &zeros, groups)?;
    let scales = transpose(&scales, groups, out_features);
    parts.weight(scheme, [out_features, in_features], codes, scales, zeros)
}

fn compressed_tensors(
    parts: &Parts<'_, '_>,
    scheme: &Scheme,
) -> Result<QuantizedWeight, UnpackError> {
    let bits = scheme.bits();
    let [out_features, in_features] = weight_shape(parts)?;
    let groups = scheme.n_groups(in_features);
    let (packed, shape) = parts.words("weight_packed")?;
    let per_word = 32 / usize::from(bits);
    let wanted = [out_features, words(in_features, bits)];
    if shape != wanted && *shape == [out_features, in_features.div_ceil(per_word)] {
        return Err(UnpackError::OlderPacking {
            tensor: parts.tensor("weight_packed"),
            found: shape.to_vec(),
            per_word,
            bits,
        });
    }
    parts.check_shape("weight_packed", shape, &wanted, scheme)?;
    let scales = parts.scales("weight_scale", scheme, [out_features, groups])?;
    parts.check_groups("weight_g_idx", scheme, in_features)?;
    let codes = unpack_rows(&packed, in_features, bits);
    let zeros = if scheme.sym() {
        Vec::new()
    } else {
        let (packed, shape) = parts.words("weight_zero_point")?;
        let wanted = [words(out_features, bits), groups];
        parts.check_shape("weight_zero_point", shape, &wanted, scheme)?;
        let runs = transpose(&packed, wanted[0], groups);
        transpose(
            &unpack_rows(&runs, out_features, bits),
            groups,
            out_features,
        )
    };
    parts.weight(scheme, [out_features, in_features], codes, scales, zeros)
}

/// `weight`, a signed byte a code, and `weight_scale`.
fn int_quantized(parts: &Parts<'_, '_>, scheme: &Scheme) -> Result<QuantizedWeight, UnpackError> {
    let view = parts.need("weight")?;
    if view.dtype != Dtype::I8 {
        return Err(parts.wrong_dtype("weight", &view, "I8"));
    }
    let shape = match *view.shape {
        [out_features, in_features] => [out_features, in_features],
        _ => [0, 0],
    };
    parts.check_shape("weight", view.shape, &shape, scheme)?;
    let wanted = [shape[0], scheme.n_groups(shape[1])];
    let scales = parts.scales("weight_scale", scheme, wanted)?;
    let codes = int8::from_bytes(view.bytes, scheme);
    parts.weight(scheme, shape, codes, scales, Vec::new())
}

fn weight_shape(parts: &Parts<'_, '_>) -> Result<[usize; 2], UnpackError> {
    let part = "weight_shape";
    let view = parts.need(part)?;
    let extents: Vec<i64> = match view.dtype {
        Dtype::I64 => view
            .bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&b| i64::from_le_bytes(b))
            .collect(),
        Dtype::I32 => view
            .bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| i64::from(i32::from_le_bytes(b)))
            .collect(),
        _ => return Err(parts.wrong_dtype(part, &view, "I64 or I32")),
    };
    match extents[..] {
        // The bound keeps every later product of extents and bits within usize.
        [rows, cols] if (1..1 << 31).contains(&rows) && (1..1 << 31).contains(&cols) => {
            Ok([rows as usize, cols as usize])
        }
        _ => Err(UnpackError::WeightShape {
            tensor: parts.tensor(part),
            found: [
                extents.first().copied().unwrap_or(0),
                extents.get(1).copied().unwrap_or(0),
            ],
        }),
    }
}

#[cfg(test)]
mod tests;
