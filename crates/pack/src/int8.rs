//! The unpacked 8 bits of compressed-tensors, `int-quantized`: whole numbers from −128 to 127, a byte each.

use halfbyte_quant::{QuantizedWeight, Scheme};

use crate::{Dtype, Format, Refusal};

/// Whether the scheme has the width and the zero points that a signed byte stands for.
pub(crate) fn supports(scheme: &Scheme) -> Result<(), Refusal> {
    if scheme.bits() != 8 {
        return Err(Refusal::Bits {
            format: Format::IntQuantized,
            bits: scheme.bits(),
            known: "8, or compressed-tensors",
        });
    }
    if !scheme.sym() {
        return Err(Refusal::SymmetricOnly {
            format: Format::IntQuantized,
        });
    }
    Ok(())
}

/// Name, type and shape of the tensors; `scales` is the model's type.
pub(crate) fn tensors(
    [out_features, in_features]: [usize; 2],
    groups: usize,
    scales: Dtype,
) -> Vec<(&'static str, Dtype, Vec<usize>)> {
    vec![
        ("weight", Dtype::I8, vec![out_features, in_features]),
        ("weight_scale", scales, vec![out_features, groups]),
    ]
}

/// Bytes of `weight`: codes less the middle one.
pub(crate) fn to_bytes(weight: &QuantizedWeight) -> Vec<u8> {
    let zero = weight.scheme().mid_code();
    let codes = weight.codes().iter();
    codes.map(|code| code.wrapping_sub(zero)).collect()
}

/// Codes of the bytes of `weight`. Other tools keep narrower numbers in bytes too; one that does not fit the width
/// becomes a code above the largest.
pub(crate) fn from_bytes(bytes: &[u8], scheme: &Scheme) -> Vec<u8> {
    let zero = scheme.mid_code();
    bytes.iter().map(|byte| byte.wrapping_add(zero)).collect()
}

#[cfg(test)]
mod tests {
    use halfbyte_quant::GroupSize;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{NamedTensor, ScaleDtype, TensorView, UnpackError, pack};

    fn unpack<'a>(
        lookup: impl Fn(&str) -> Option<TensorView<'a>>,
        scheme: Scheme,
    ) -> Result<QuantizedWeight, UnpackError> {
        let weight = crate::unpack("m", lookup, Format::IntQuantized, &scheme.into())?;
        Ok(weight.into_grid().unwrap())
    }

    fn channel(bits: u8, sym: bool) -> Scheme {
        Scheme::new(bits, GroupSize::Channel, sym).unwrap()
    }

    fn find<'a>(tensors: &'a [NamedTensor]) -> impl Fn(&str) -> Option<TensorView<'a>> {
        move |name| {
            let tensor = tensors.iter().find(|tensor| tensor.name == name);
            tensor.map(NamedTensor::view)
        }
    }

    /// All numbers of a nested list, row by row.
    fn numbers(value: &Value) -> Vec<i64> {
        match value {
            Value::Array(items) => items.iter().flat_map(numbers).collect(),
            number => vec![number.as_i64().unwrap()],
        }
    }

    #[test]
    fn the_formats_own_tensors_are_read_and_written_byte_for_byte() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/vectors/ct_int8_channel.json"
        );
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let whole = numbers(&vector["weight_i8"]);
        let scales = numbers(&vector["weight_scale_f16_bits"]);
        let theirs = [
            NamedTensor {
                name: "m.weight".into(),
                dtype: Dtype::I8,
                shape: vec![8, 16],
                bytes: whole.iter().map(|&n| n as u8).collect(),
            },
            NamedTensor {
                name: "m.weight_scale".into(),
                dtype: Dtype::F16,
                shape: vec![8, 1],
                bytes: scales
                    .iter()
                    .flat_map(|&s| (s as u16).to_le_bytes())
                    .collect(),
            },
        ];
        let weight = unpack(find(&theirs), channel(8, true)).unwrap();
        for (index, value) in weight.dequantize().into_iter().enumerate() {
            let scale = half::f16::from_bits(scales[index / 16] as u16).to_f32();
            assert_eq!(value, whole[index] as f32 * scale);
        }
        let ours = pack("m", &weight.into(), Format::IntQuantized, ScaleDtype::F16).unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn only_symmetric_bytes_are_written() {
        for (scheme, wanted) in [
            (
                channel(4, true),
                "int-quantized has no layout for 4 bits; use 8, or compressed-tensors",
            ),
            (
                channel(8, false),
                "int-quantized holds symmetric weights only; use compressed-tensors",
            ),
        ] {
            let refusal = Format::IntQuantized
                .supports(&scheme.into(), [8, 16])
                .unwrap_err();
            assert_eq!(refusal.to_string(), wanted);
        }
    }

    #[test]
    fn narrower_numbers_in_bytes_are_read_and_must_fit() {
        let read = |bytes: [i8; 4]| {
            let tensors = [
                NamedTensor {
                    name: "m.weight".into(),
                    dtype: Dtype::I8,
                    shape: vec![1, 4],
                    bytes: bytes.map(|b| b as u8).to_vec(),
                },
                NamedTensor {
                    name: "m.weight_scale".into(),
                    dtype: Dtype::F32,
                    shape: vec![1, 1],
                    bytes: 0.5f32.to_le_bytes().to_vec(),
                },
            ];
            unpack(find(&tensors), channel(4, true))
        };
        assert_eq!(
            read([-8, 0, 1, 7]).unwrap().dequantize(),
            [-4.0, 0.0, 0.5, 3.5]
        );
        assert_eq!(
            read([0, 0, -9, 0]).unwrap_err().to_string(),
            "m: codes[2] is 255, above the largest code 15"
        );
    }

    proptest! {
        #[test]
        fn what_is_packed_is_read_back(
            (rows, codes) in (1usize..6, 1usize..20).prop_flat_map(|(rows, columns)| {
                (Just(rows), prop::collection::vec(any::<u8>(), rows * columns))
            }),
        ) {
            let columns = codes.len() / rows;
            let weight = QuantizedWeight::new(
                channel(8, true),
                [rows, columns],
                codes,
                vec![0.25; rows],
                Vec::new(),
            )
            .unwrap();
            let tensors = pack("m", &weight.clone().into(), Format::IntQuantized, ScaleDtype::BF16).unwrap();
            let back = unpack(find(&tensors), channel(8, true));
            prop_assert_eq!(back.unwrap(), weight);
        }
    }
}
