//! The byte vectors in `tests/vectors/bnb_4bit.json`, made by the library itself, and random weights there and back.

use halfbyte_quant::{Coding, dynamic_map};
use proptest::prelude::*;

use super::*;
use crate::{Format, NamedTensor, PackError, pack, packed_layout};

fn vector() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/bnb_4bit.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn bytes(values: &Value) -> Vec<u8> {
    numbers(values).into_iter().map(|x| x as u8).collect()
}

fn float_bytes(values: &Value) -> Vec<u8> {
    let values = numbers(values).into_iter();
    values.flat_map(|x| (x as f32).to_le_bytes()).collect()
}

fn shape(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|x| x as usize).collect()
}

/// The tensors of one case of the vector, as the library wrote them.
fn tensors_of(case: &Value, codebook: Codebook) -> Vec<NamedTensor> {
    let tensor = |part: &str, dtype, shape, bytes| NamedTensor {
        name: format!("m.weight{part}"),
        dtype,
        shape,
        bytes,
    };
    let mut tensors = vec![tensor(
        "",
        Dtype::U8,
        shape(&case["packed_shape"]),
        bytes(&case["packed_u8"]),
    )];
    let state = format!("quant_state.bitsandbytes__{}", codebook.as_str());
    for part in [
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        &state,
    ] {
        let Some(entry) = case.get(part) else {
            continue;
        };
        let (dtype, bytes) = match entry["dtype"].as_str().unwrap() {
            "torch.uint8" => (Dtype::U8, bytes(&entry["values"])),
            "torch.float32" => (Dtype::F32, float_bytes(&entry["values"])),
            other => panic!("{other}"),
        };
        tensors.push(tensor(
            &format!(".{part}"),
            dtype,
            shape(&entry["shape"]),
            bytes,
        ));
    }
    tensors
}

fn find<'a>(tensors: &'a [NamedTensor]) -> impl Fn(&str) -> Option<TensorView<'a>> {
    move |name| {
        let tensor = tensors.iter().find(|tensor| tensor.name == name);
        tensor.map(NamedTensor::view)
    }
}

fn pack_codebook(
    weight: &CodebookWeight,
    dtype: ScaleDtype,
) -> Result<Vec<NamedTensor>, PackError> {
    pack("m", &weight.clone().into(), Format::Bitsandbytes, dtype)
}

#[test]
fn the_librarys_tensors_are_read_and_written_byte_for_byte() {
    let vector = vector();
    for book in Codebook::ALL {
        for kind in ["plain", "dq"] {
            let case = &vector[format!("{}_{kind}", book.as_str())];
            let theirs = tensors_of(case, book);
            let weight = unpack("m", &find(&theirs)).unwrap();
            assert_eq!((weight.out_features(), weight.in_features()), (8, 128));
            let mut ours = pack_codebook(&weight, ScaleDtype::F16).unwrap();
            // but for the spaces that follow our JSON
            let state = ours.last_mut().unwrap();
            state.bytes.truncate(state.bytes.trim_ascii_end().len());
            state.shape = vec![state.bytes.len()];
            assert_eq!(ours, theirs, "{} {kind}", book.as_str());
            let error = numbers(&vector["W_f32"])
                .into_iter()
                .zip(weight.dequantize())
                .map(|(w, v)| (w - f64::from(v)).abs())
                .fold(0.0, f64::max);
            // the library's weight was rounded to f16 on the way in and out
            let wanted = case["max_err_vs_W"].as_f64().unwrap();
            assert!((error - wanted).abs() < 1e-3, "{error} {wanted}");
        }
    }
}

#[test]
fn our_dynamic_map_is_the_librarys_to_the_bit() {
    let theirs = numbers(&vector()["nf4_dq"]["nested_quant_map"]["values"]);
    let theirs: Vec<f32> = theirs.into_iter().map(|x| x as f32).collect();
    assert_eq!(dynamic_map()[..], theirs);
}

fn small(block: usize) -> CodebookWeight {
    CodebookWeight::new(
        Codebook::Nf4,
        [2, 64],
        block,
        (0..128).map(|i| i % 16).collect(),
        BlockScales::Float(vec![0.5; 128usize.div_ceil(block)]),
    )
    .unwrap()
}

#[test]
fn what_readers_cannot_hold_is_refused() {
    let odd = CodebookWeight::new(
        Codebook::Fp4,
        [3, 3],
        32,
        vec![0; 9],
        BlockScales::Float(vec![1.0]),
    )
    .unwrap();
    assert_eq!(
        pack_codebook(&odd, ScaleDtype::F16)
            .unwrap_err()
            .to_string(),
        "m: bitsandbytes needs an even number of weights and 9 is odd; list the module under `ignore`"
    );
    assert_eq!(
        pack_codebook(&small(48), ScaleDtype::F16)
            .unwrap_err()
            .to_string(),
        "m: bitsandbytes has no blocks of 48 weights; use a power of two from 32 to 4096"
    );
}

#[test]
fn damaged_files_are_refused_with_the_tensor_at_fault() {
    let sound = pack_codebook(&small(64), ScaleDtype::BF16).unwrap();
    let broken = |change: &dyn Fn(&mut Vec<NamedTensor>)| {
        let mut tensors = sound.clone();
        change(&mut tensors);
        unpack("m", &find(&tensors)).unwrap_err().to_string()
    };
    assert_eq!(
        broken(&|t| drop(t.remove(1))),
        "m.weight.absmax: missing, wanted beside the other parts of a bitsandbytes weight"
    );
    assert_eq!(
        broken(&|t| t[2].bytes[0..4].copy_from_slice(&2.0f32.to_le_bytes())),
        "m.weight.quant_map: level 0 is 2, wanted -1, that of nf4"
    );
    assert_eq!(
        broken(&|t| t[1].shape = vec![3]),
        "m.weight.absmax: F32 [3] in 8 bytes, wanted 2 elements of F32"
    );
    assert_eq!(
        broken(&|t| t[3].bytes = b"{\"quant_type\": \"nf4\", \"blocksize\": 0}".to_vec()),
        "m.weight.quant_state.bitsandbytes__nf4: blocksize is 0, wanted a number of weights"
    );
    assert_eq!(
        broken(&|t| t[3].name.push('?')),
        "m.weight.quant_state.bitsandbytes__nf4: missing, wanted beside the other parts of a bitsandbytes weight"
    );
    assert_eq!(
        broken(&|t| t[1].bytes[2..4].fill(0xff)),
        "m: block scales[0] is NaN, wanted a finite number"
    );
}

#[test]
fn the_configuration_is_read_as_it_was_written() {
    for skip in [vec![], vec!["lm_head".to_string()]] {
        let config = CodebookConfig {
            codebook: Codebook::Nf4,
            double_quant: true,
            compute_dtype: ScaleDtype::BF16,
            skip,
        };
        assert_eq!(CodebookConfig::from_value(&config.to_value()), Ok(config));
    }
    let refused = |value: Value| CodebookConfig::from_value(&value).unwrap_err().to_string();
    assert_eq!(
        refused(json!({"quant_method": "gptq"})),
        "quantization_config.quant_method: \"gptq\", wanted \"bitsandbytes\""
    );
    assert_eq!(
        refused(json!({"quant_method": "bitsandbytes", "load_in_8bit": true})),
        "quantization_config.load_in_4bit: missing, wanted true: 8 bits cannot be read"
    );
}

fn any_weight() -> impl Strategy<Value = CodebookWeight> {
    (1usize..6, 1usize..40, 5u32..8, any::<bool>(), any::<bool>()).prop_flat_map(
        |(rows, half, exponent, nested, fp4)| {
            let (columns, block) = (2 * half, 1usize << exponent);
            let blocks = (rows * columns).div_ceil(block);
            let codes = prop::collection::vec(0u8..16, rows * columns);
            let floats = prop::collection::vec(0.0f32..2.0, blocks);
            let bytes = prop::collection::vec(any::<u8>(), blocks);
            let offset = prop_oneof![-0.1f32..3.0, prop::num::f32::NORMAL, -2e-5f32..2e-5];
            (codes, floats, bytes, offset).prop_map(move |(codes, floats, bytes, offset)| {
                let book = if fp4 { Codebook::Fp4 } else { Codebook::Nf4 };
                let scales = if nested {
                    BlockScales::Nested(NestedScales {
                        codes: bytes,
                        map: dynamic_map().to_vec(),
                        absmax: floats[..blocks.div_ceil(256)].to_vec(),
                        offset,
                    })
                } else {
                    BlockScales::Float(floats)
                };
                CodebookWeight::new(book, [rows, columns], block, codes, scales).unwrap()
            })
        },
    )
}

proptest! {
    #[test]
    fn what_is_packed_is_read_back_and_fits_the_plan(weight in any_weight()) {
        let tensors = pack_codebook(&weight, ScaleDtype::BF16).unwrap();
        prop_assert_eq!(&unpack("m", &find(&tensors)).unwrap(), &weight);
        let scheme = weight.scheme();
        prop_assert_eq!(super::scheme("m", &find(&tensors)), Ok(Some(scheme)));
        let plan = packed_layout(
            "m",
            &Coding::Codebook(scheme),
            [weight.out_features(), weight.in_features()],
            Format::Bitsandbytes,
            ScaleDtype::BF16,
        )
        .unwrap();
        prop_assert_eq!(plan.len(), tensors.len());
        for (plan, tensor) in plan.iter().zip(&tensors) {
            prop_assert_eq!((&plan.name, plan.dtype), (&tensor.name, tensor.dtype));
            prop_assert_eq!((&plan.shape, plan.bytes()), (&tensor.shape, tensor.bytes.len() as u64));
        }
    }
}
