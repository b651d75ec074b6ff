use halfbyte_quant::{CodedWeight, Coding, QuantizedWeight, Scheme};

use crate::bits::{pack_rows, to_awq_order, to_bytes, transpose, words};
use crate::tensor::scale_bytes;
use crate::{Dtype, Format, NamedTensor, Refusal, ScaleDtype, TensorLayout, bitsandbytes, int8};

/// Why a weight was not packed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PackError {
    /// The format cannot hold it.
    #[error("{name}: {refusal}")]
    Refused {
        /// Module.
        name: String,
        /// Why, and what would do.
        refusal: Refusal,
    },
    /// A scale would change on its way into the file, so the codes would mean something else than what was solved.
    #[error(
        "{name}: scale {value:e} of row {row}, group {group} is not a value of {dtype}, nearest is {nearest:e}; round scales to {dtype} before coding"
    )]
    Scale {
        /// Module.
        name: String,
        /// Output feature.
        row: usize,
        /// Group of input features.
        group: usize,
        /// The scale.
        value: f32,
        /// Type it was to be stored in.
        dtype: Dtype,
        /// What would be stored.
        nearest: f32,
    },
}

/// Packs the weight of the module `name` (its path, without `.weight`) into the tensors that stand for it in `format`.
///
/// With `O` out_features, `I` in_features, `G` groups and `b` bits:
///
/// | format | tensors |
/// |---|---|
/// | gptq, gptq_v2 | `qweight` `[I*b/32, O]`, `qzeros` `[G, O*b/32]`, `scales` `[G, O]` f16, `g_idx` `[I]` |
/// | compressed-tensors | `weight_packed` `[O, ceil(I*b/32)]`, `weight_scale` `[O, G]`, `weight_zero_point` `[ceil(O*b/32), G]` if asymmetric, `weight_shape` `[2]` |
/// | awq | `qweight` `[I, O/8]`, `qzeros` `[G, O/8]`, `scales` `[G, O]` f16 |
/// | int-quantized | `weight` i8 `[O, I]`, `weight_scale` `[O, G]` |
///
/// and for bitsandbytes, with `B` blocks:
///
/// | tensor | type, shape | holds |
/// |---|---|---|
/// | `weight` | u8 `[O*I/2, 1]` | codes of the flat weight, the first of two in the high nibble |
/// | `weight.absmax` | f32 `[B]`, or u8 `[B]` when nested | block scales |
/// | `weight.quant_map` | f32 `[16]` | level of each code |
/// | `weight.nested_absmax` | f32 `[ceil(B/256)]` | when nested |
/// | `weight.nested_quant_map` | f32 `[256]` | when nested |
/// | `weight.quant_state.bitsandbytes__nf4` (or `__fp4`) | u8 | JSON: block sizes, shape, types, offset |
///
/// `scale_dtype` is the model's own type, of which compressed-tensors' scales are, and to which bitsandbytes' readers
/// round `scale * level`; gptq's and awq's scales are f16 whatever it says.
/// The bias, if there is one, is not part of it: copy it through.
///
/// Fails when the format cannot hold the scheme or shape, and when a scale is not representable in its storage type:
/// nothing is ever rounded here. Scales below zero are written as they stand; whether a format's readers take them says
/// [`Format::usually_takes_negative_scales`].
pub fn pack(
    name: &str,
    weight: &CodedWeight,
    format: Format,
    scale_dtype: ScaleDtype,
) -> Result<Vec<NamedTensor>, PackError> {
    let layout = packed_layout(name, &weight.coding(), weight.shape(), format, scale_dtype)?;
    let bytes = match weight {
        CodedWeight::Codebook(weight) => bitsandbytes::to_bytes(weight, scale_dtype),
        CodedWeight::Grid(weight) => grid_bytes(name, weight, format, scale_dtype)?,
    };
    Ok(NamedTensor::fill(layout, bytes))
}

fn grid_bytes(
    name: &str,
    weight: &QuantizedWeight,
    format: Format,
    scale_dtype: ScaleDtype,
) -> Result<Vec<Vec<u8>>, PackError> {
    let scale_dtype = format.scale_dtype(scale_dtype);
    check_scales(name, weight, scale_dtype)?;
    Ok(match format {
        Format::Gptq => gptq(weight, 1),
        Format::GptqV2 => gptq(weight, 0),
        Format::CompressedTensors => compressed_tensors(weight, scale_dtype),
        Format::Awq => awq(weight),
        Format::IntQuantized => vec![
            int8::to_bytes(weight),
            scale_bytes(weight.scales().iter().copied(), scale_dtype),
        ],
        Format::Bitsandbytes => unreachable!("`supports` refuses it"),
    })
}

/// What [`pack`] would make of a weight of `shape` `[out_features, in_features]`, in the same order.
pub fn packed_layout(
    name: &str,
    coding: &Coding,
    shape: [usize; 2],
    format: Format,
    scale_dtype: ScaleDtype,
) -> Result<Vec<TensorLayout>, PackError> {
    format
        .supports(coding, shape)
        .map_err(|refusal| PackError::Refused {
            name: name.to_string(),
            refusal,
        })?;
    Ok(match coding {
        Coding::Codebook(scheme) => bitsandbytes::tensors(name, scheme, shape, scale_dtype),
        Coding::Grid(scheme) => grid_tensors(name, scheme, shape, format, scale_dtype),
    })
}

fn grid_tensors(
    name: &str,
    scheme: &Scheme,
    shape: [usize; 2],
    format: Format,
    scale_dtype: ScaleDtype,
) -> Vec<TensorLayout> {
    let [out_features, in_features] = shape;
    let (groups, bits) = (scheme.n_groups(in_features), scheme.bits());
    let scales = Dtype::from(format.scale_dtype(scale_dtype));
    let tensors = match format {
        Format::Gptq | Format::GptqV2 => vec![
            (
                "qweight",
                Dtype::I32,
                vec![words(in_features, bits), out_features],
            ),
            (
                "qzeros",
                Dtype::I32,
                vec![groups, words(out_features, bits)],
            ),
            ("scales", scales, vec![groups, out_features]),
            ("g_idx", Dtype::I32, vec![in_features]),
        ],
        Format::IntQuantized => int8::tensors(shape, groups, scales),
        Format::CompressedTensors => {
            let mut tensors = vec![
                (
                    "weight_packed",
                    Dtype::I32,
                    vec![out_features, words(in_features, bits)],
                ),
                ("weight_scale", scales, vec![out_features, groups]),
            ];
            if !scheme.sym() {
                let shape = vec![words(out_features, bits), groups];
                tensors.push(("weight_zero_point", Dtype::I32, shape));
            }
            tensors.push(("weight_shape", Dtype::I64, vec![2]));
            tensors
        }
        Format::Awq => {
            let width = words(out_features, bits);
            vec![
                ("qweight", Dtype::I32, vec![in_features, width]),
                ("qzeros", Dtype::I32, vec![groups, width]),
                ("scales", scales, vec![groups, out_features]),
            ]
        }
        Format::Bitsandbytes => unreachable!("`supports` refuses it"),
    };
    tensors
        .into_iter()
        .map(|(part, dtype, shape)| TensorLayout {
            name: format!("{name}.{part}"),
            dtype,
            shape,
        })
        .collect()
}

fn check_scales(name: &str, weight: &QuantizedWeight, dtype: ScaleDtype) -> Result<(), PackError> {
    let place = |index: usize| (index / weight.n_groups(), index % weight.n_groups());
    for (index, &value) in weight.scales().iter().enumerate() {
        let nearest = dtype.round(value);
        if nearest != value {
            let (row, group) = place(index);
            return Err(PackError::Scale {
                name: name.to_string(),
                row,
                group,
                value,
                dtype: dtype.into(),
                nearest,
            });
        }
    }
    Ok(())
}

/// `qweight`, `qzeros`, `scales`, `g_idx`. The zero points stand less `offset`, field by field, which never borrows:
/// v1 holds symmetric weights only, whose zero point is the middle code.
pub(crate) fn gptq(weight: &QuantizedWeight, offset: u8) -> Vec<Vec<u8>> {
    let (scheme, rows, cols) = (weight.scheme(), weight.out_features(), weight.in_features());
    let (bits, groups) = (scheme.bits(), weight.n_groups());
    let codes = pack_rows(weight.codes(), cols, bits);
    let zeros: Vec<u8> = transpose(weight.zeros(), rows, groups)
        .into_iter()
        .map(|zero| zero.wrapping_sub(offset) & scheme.max_code())
        .collect();
    let group_len = scheme.group_len(cols);
    let group_of: Vec<u32> = (0..cols).map(|col| (col / group_len) as u32).collect();
    vec![
        to_bytes(&transpose(&codes, rows, words(cols, bits))),
        to_bytes(&pack_rows(&zeros, rows, bits)),
        scale_bytes(
            transpose(weight.scales(), rows, groups).into_iter(),
            ScaleDtype::F16,
        ),
        to_bytes(&group_of),
    ]
}

/// `qweight`, `qzeros`, `scales`: runs along the output, eight codes a word in the order of AWQ's kernels.
fn awq(weight: &QuantizedWeight) -> Vec<Vec<u8>> {
    let (rows, cols, groups) = (
        weight.out_features(),
        weight.in_features(),
        weight.n_groups(),
    );
    let runs = |codes: &[u8], width: usize| {
        let mut codes = transpose(codes, rows, width);
        to_awq_order(&mut codes);
        to_bytes(&pack_rows(&codes, rows, weight.scheme().bits()))
    };
    vec![
        runs(weight.codes(), cols),
        runs(weight.zeros(), groups),
        scale_bytes(
            transpose(weight.scales(), rows, groups).into_iter(),
            ScaleDtype::F16,
        ),
    ]
}

/// `weight_packed`, `weight_scale`, `weight_zero_point` when asymmetric, `weight_shape`.
fn compressed_tensors(weight: &QuantizedWeight, scale_dtype: ScaleDtype) -> Vec<Vec<u8>> {
    let (scheme, rows, cols) = (weight.scheme(), weight.out_features(), weight.in_features());
    let (bits, groups) = (scheme.bits(), weight.n_groups());
    let mut bytes = vec![
        to_bytes(&pack_rows(weight.codes(), cols, bits)),
        scale_bytes(weight.scales().iter().copied(), scale_dtype),
    ];
    if !scheme.sym() {
        let zeros = pack_rows(&transpose(weight.zeros(), rows, groups), rows, bits);
        bytes.push(to_bytes(&transpose(&zeros, groups, words(rows, bits))));
    }
    let shape = [rows as i64, cols as i64];
    bytes.push(shape.iter().flat_map(|n| n.to_le_bytes()).collect());
    bytes
}
