//! Both directions at once: the byte vectors in `tests/vectors`, made by the formats' own packers, and random weights.

use std::path::Path;

use halfbyte_quant::GroupSize;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{NamedTensor, PackError, ScaleDtype};

fn pack(
    name: &str,
    weight: &QuantizedWeight,
    format: Format,
    scale_dtype: ScaleDtype,
) -> Result<Vec<NamedTensor>, PackError> {
    crate::pack(name, &weight.clone().into(), format, scale_dtype)
}

fn unpack<'a>(
    name: &str,
    lookup: impl Fn(&str) -> Option<TensorView<'a>>,
    format: Format,
    scheme: &Scheme,
) -> Result<QuantizedWeight, UnpackError> {
    let weight = crate::unpack(name, lookup, format, &(*scheme).into())?;
    Ok(weight.into_grid().unwrap())
}

const GPTQ_VECTORS: [&str; 7] = [
    "gptq_b2_asym",
    "gptq_b2_sym",
    "gptq_b3_sym",
    "gptq_b4_asym",
    "gptq_b4_sym",
    "gptq_b8_asym",
    "gptq_b8_sym",
];
const COMPRESSED_TENSORS_VECTORS: [&str; 9] = [
    "ct_pack_b2_asym_group",
    "ct_pack_b2_sym_group",
    "ct_pack_b3_sym_group",
    "ct_pack_b4_asym_group",
    "ct_pack_b4_sym_channel",
    "ct_pack_b4_sym_group",
    "ct_pack_b8_asym_group",
    "ct_pack_b8_sym_channel",
    "ct_pack_b8_sym_group",
];
const AWQ_VECTOR: &str = "awq_gemm_b4";

fn vector(name: &str) -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/vectors/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// All numbers of a nested list, row by row.
fn numbers(value: &Value) -> Vec<i64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_i64().unwrap()],
    }
}

fn words_of(value: &Value) -> Vec<u8> {
    numbers(value)
        .into_iter()
        .flat_map(|w| (w as i32).to_le_bytes())
        .collect()
}

fn halves_of(value: &Value) -> Vec<u8> {
    numbers(value)
        .into_iter()
        .flat_map(|h| (h as u16).to_le_bytes())
        .collect()
}

fn floats_of(value: &Value) -> Vec<f32> {
    let bits = numbers(value).into_iter();
    bits.map(|h| half::f16::from_bits(h as u16).to_f32())
        .collect()
}

fn scheme(bits: u8, group_size: i64, sym: bool) -> Scheme {
    Scheme::new(bits, GroupSize::from_i64(group_size).unwrap(), sym).unwrap()
}

fn find<'a>(tensors: &'a [NamedTensor]) -> impl Fn(&str) -> Option<TensorView<'a>> {
    move |name| {
        tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .map(NamedTensor::view)
    }
}

fn packed(weight: &QuantizedWeight, format: Format) -> Vec<NamedTensor> {
    pack("m", weight, format, ScaleDtype::F16).unwrap()
}

fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> NamedTensor {
    NamedTensor {
        name: name.to_string(),
        dtype,
        shape: shape.to_vec(),
        bytes,
    }
}

/// A weight of pseudo-random parts that every storage type can hold.
fn random_weight(scheme: Scheme, [rows, cols]: [usize; 2], seed: u64) -> QuantizedWeight {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 48) as u16
    };
    let groups = rows * scheme.n_groups(cols);
    let codes = (0..rows * cols)
        .map(|_| next() as u8 & scheme.max_code())
        .collect();
    let scales = (0..groups)
        .map(|_| f32::from(128 + next() % 128) / 8192.0)
        .collect();
    let zeros = if scheme.sym() {
        Vec::new()
    } else {
        (0..groups)
            .map(|_| next() as u8 & scheme.max_code())
            .collect()
    };
    QuantizedWeight::new(scheme, [rows, cols], codes, scales, zeros).unwrap()
}

fn shape_of(shape: &Value) -> Vec<usize> {
    numbers(shape).into_iter().map(|n| n as usize).collect()
}

/// The tensors that gptq and awq share, from a vector; `zeros` is where it has the zero points' words.
fn words_and_scales(v: &Value, zeros: &str, scales_shape: &[usize]) -> [NamedTensor; 3] {
    let words = |name: &str, shape: &str, key: &str| {
        tensor(name, Dtype::I32, &shape_of(&v[shape]), words_of(&v[key]))
    };
    let scales = halves_of(&v["scales_f16_bits_group_by_out"]);
    [
        words("m.qweight", "qweight_shape", "qweight_i32"),
        words("m.qzeros", "qzeros_shape", zeros),
        tensor("m.scales", Dtype::F16, scales_shape, scales),
    ]
}

fn weight_of(v: &Value, sym: bool) -> QuantizedWeight {
    let group_size = v["group_size"].as_i64().unwrap();
    let bytes = |key: &str| numbers(&v[key]).into_iter().map(|n| n as u8).collect();
    QuantizedWeight::new(
        scheme(v["bits"].as_u64().unwrap() as u8, group_size, sym),
        [32, 64],
        bytes("codes_out_by_in"),
        floats_of(&v["scales_f16_bits_out_by_group"]),
        bytes("zero_points_out_by_group"),
    )
    .unwrap()
}

#[test]
fn gptq_tensors_equal_the_vectors_byte_for_byte_and_read_back() {
    for name in GPTQ_VECTORS {
        let v = vector(name);
        let weight = weight_of(&v, v["sym"].as_bool().unwrap());
        for (format, zeros) in [
            (Format::Gptq, "qzeros_v1_i32"),
            (Format::GptqV2, "qzeros_v2_i32"),
        ] {
            let [qweight, qzeros, scales] =
                words_and_scales(&v, zeros, &shape_of(&v["scales_shape"]));
            let g_idx = tensor("m.g_idx", Dtype::I32, &[64], words_of(&v["g_idx"]));
            let wanted = [qweight, qzeros, scales, g_idx];
            if weight.scheme().sym() || format == Format::GptqV2 {
                assert_eq!(packed(&weight, format), wanted, "{name} as {format}");
            } else {
                // `pack` refuses it, yet the bytes are those that other tools write.
                let bytes = wanted.iter().map(|tensor| tensor.bytes.clone());
                assert_eq!(
                    crate::pack::gptq(&weight, 1),
                    bytes.collect::<Vec<_>>(),
                    "{name} as {format}"
                );
            }
            let read = unpack("m", find(&wanted), format, &weight.scheme());
            assert_eq!(read.as_ref(), Ok(&weight), "{name} as {format}");
            let without_index = unpack("m", find(&wanted[..3]), format, &weight.scheme());
            assert_eq!(without_index.as_ref(), Ok(&weight), "{name} as {format}");
        }
    }
}

#[test]
fn compressed_tensors_equal_the_vectors_byte_for_byte_and_read_back() {
    for name in COMPRESSED_TENSORS_VECTORS {
        let v = vector(name);
        let bits = v["bits"].as_u64().unwrap() as u8;
        let group_size = if v["strategy"] == "channel" {
            -1
        } else {
            v["group_size"].as_i64().unwrap()
        };
        let unsigned = |key: &str| {
            let middle = 1i64 << (bits - 1);
            numbers(&v[key])
                .into_iter()
                .map(|n| (n + middle) as u8)
                .collect()
        };
        let weight = QuantizedWeight::new(
            scheme(bits, group_size, v["symmetric"].as_bool().unwrap()),
            [32, 64],
            unsigned("codes_signed_out_by_in"),
            floats_of(&v["scales_f16_bits_out_by_group"]),
            unsigned("zero_points_signed_out_by_group"),
        )
        .unwrap();
        let shape = |key: &str| {
            let shape = numbers(&v["shapes"][key][0]).into_iter();
            shape.map(|n| n as usize).collect::<Vec<_>>()
        };
        let mut wanted = vec![
            tensor(
                "m.weight_packed",
                Dtype::I32,
                &shape("weight_packed"),
                words_of(&v["weight_packed_i32"]),
            ),
            tensor(
                "m.weight_scale",
                Dtype::F16,
                &shape("weight_scale"),
                halves_of(&v["scales_f16_bits_out_by_group"]),
            ),
        ];
        if !weight.scheme().sym() {
            let zeros = words_of(&v["weight_zero_point_i32"]);
            wanted.push(tensor(
                "m.weight_zero_point",
                Dtype::I32,
                &shape("weight_zero_point"),
                zeros,
            ));
        }
        let extents = numbers(&v["weight_shape"])
            .into_iter()
            .flat_map(i64::to_le_bytes)
            .collect();
        wanted.push(tensor("m.weight_shape", Dtype::I64, &[2], extents));
        assert_eq!(packed(&weight, Format::CompressedTensors), wanted, "{name}");
        let read = unpack(
            "m",
            find(&wanted),
            Format::CompressedTensors,
            &weight.scheme(),
        );
        assert_eq!(read, Ok(weight), "{name}");
    }
}

#[test]
fn awq_tensors_equal_the_vector_byte_for_byte_and_read_back() {
    let v = vector(AWQ_VECTOR);
    let weight = weight_of(&v, false);
    let wanted = words_and_scales(&v, "qzeros_i32", &[4, 32]);
    assert_eq!(packed(&weight, Format::Awq), wanted);
    let read = unpack("m", find(&wanted), Format::Awq, &weight.scheme());
    assert_eq!(read, Ok(weight));
    assert_eq!(
        unpack("m", find(&wanted), Format::Awq, &scheme(4, 16, true))
            .unwrap_err()
            .to_string(),
        "m.qzeros: zero point of row 0, group 0 is 13, a symmetric weight has 8; do `sym` and the format version of the config fit this file?"
    );
    assert_eq!(
        unpack("m", find(&wanted), Format::Awq, &scheme(4, 32, false))
            .unwrap_err()
            .to_string(),
        "m.qzeros: shape [4, 4], wanted [2, 4] for 4 bits in groups of 32; do the bits and group size of the config fit this file?"
    );
    assert_eq!(
        unpack("m", find(&wanted[1..]), Format::Awq, &scheme(4, 16, false))
            .unwrap_err()
            .to_string(),
        "m.qweight: missing, wanted beside the other awq tensors of the module"
    );
}

#[test]
fn a_symmetric_weight_goes_into_awq_with_its_middle_code_written_out() {
    let weight = random_weight(scheme(4, 32, true), [16, 64], 5);
    let tensors = packed(&weight, Format::Awq);
    assert!(tensors[1].bytes.iter().all(|&byte| byte == 0x88));
    let read = unpack("m", find(&tensors), Format::Awq, &scheme(4, 32, false)).unwrap();
    assert_eq!(read.dequantize(), weight.dequantize());
    assert_eq!(
        (read.codes(), read.zeros()),
        (weight.codes(), weight.zeros())
    );
    let symmetric = unpack("m", find(&tensors), Format::Awq, &scheme(4, 32, true));
    assert_eq!(symmetric, Ok(weight));
}

#[test]
fn every_vector_file_is_tested() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = name.strip_suffix(".json") else {
            continue;
        };
        if name.starts_with("gptq_b") {
            assert!(GPTQ_VECTORS.contains(&name), "{name}");
        } else if name.starts_with("ct_pack_") {
            assert!(COMPRESSED_TENSORS_VECTORS.contains(&name), "{name}");
        } else if name.starts_with("awq_") {
            assert_eq!(name, AWQ_VECTOR);
        }
    }
}

#[test]
fn a_sorted_group_index_is_refused_and_says_what_to_do() {
    let weight = random_weight(scheme(4, 32, true), [32, 64], 7);
    for (format, name) in [
        (Format::Gptq, "m.g_idx"),
        (Format::CompressedTensors, "m.weight_g_idx"),
    ] {
        let mut tensors = packed(&weight, format);
        tensors.retain(|tensor| tensor.name != name);
        let sorted = (0..64u32)
            .flat_map(|column| (column % 2).to_le_bytes())
            .collect();
        tensors.push(tensor(name, Dtype::I32, &[64], sorted));
        assert_eq!(
            unpack("m", find(&tensors), format, &weight.scheme())
                .unwrap_err()
                .to_string(),
            format!(
                "{name}: column 1 is in group 1 and not 0: groups are not contiguous (act order with groups of its own); quantize again with static groups, which keep the columns in place"
            )
        );
    }
}

#[test]
fn a_file_that_does_not_fit_its_config_is_refused() {
    let weight = random_weight(scheme(4, 32, true), [32, 64], 7);
    let gptq = packed(&weight, Format::Gptq);
    let error = |tensors: &[NamedTensor], format, scheme: Scheme| {
        unpack("m", find(tensors), format, &scheme)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(&gptq, Format::Gptq, scheme(4, 16, true)),
        "m.qzeros: shape [2, 4], wanted [4, 4] for 4 bits in groups of 16; do the bits and group size of the config fit this file?"
    );
    assert_eq!(
        error(&gptq, Format::GptqV2, scheme(4, 32, true)),
        "m.qzeros: zero point of row 0, group 0 is 7, a symmetric weight has 8; do `sym` and the format version of the config fit this file?"
    );
    assert_eq!(
        error(&gptq[1..], Format::Gptq, scheme(4, 32, true)),
        "m.qweight: missing, wanted beside the other gptq tensors of the module"
    );
    let mut cut = gptq.clone();
    cut[2].bytes.pop();
    assert_eq!(
        error(&cut, Format::Gptq, scheme(4, 32, true)),
        "m.scales: 127 bytes, wanted 128"
    );
    let mut retyped = gptq;
    retyped[2].dtype = Dtype::I32;
    retyped[2].bytes.resize(256, 0);
    assert_eq!(
        error(&retyped, Format::Gptq, scheme(4, 32, true)),
        "m.scales: I32, wanted F16, BF16 or F32"
    );
    let mut full = packed(
        &random_weight(scheme(4, 32, false), [32, 64], 7),
        Format::GptqV2,
    );
    full[1].bytes.fill(0xff);
    assert_eq!(
        error(&full, Format::Gptq, scheme(4, 32, false)),
        "m.qzeros: zero point of row 0, group 0 is 16, above the largest code 15; readers disagree on what that means in gptq, write gptq_v2"
    );
}

#[test]
fn the_older_three_bit_packing_is_told_apart() {
    let weight = random_weight(scheme(3, 32, true), [2, 64], 7);
    let mut tensors = packed(&weight, Format::CompressedTensors);
    tensors[0] = tensor("m.weight_packed", Dtype::I32, &[2, 7], vec![0; 56]);
    assert_eq!(
        unpack(
            "m",
            find(&tensors),
            Format::CompressedTensors,
            &weight.scheme()
        )
        .unwrap_err()
        .to_string(),
        "m.weight_packed: shape [2, 7] is the older packing, 10 codes of 3 bits a word with the rest wasted; write it anew with compressed-tensors 0.20 or later"
    );
}

#[test]
fn scales_that_the_file_cannot_hold_are_refused() {
    let with_scale = |scale: f32| {
        QuantizedWeight::new(
            scheme(4, 32, true),
            [32, 64],
            vec![8; 2048],
            vec![scale; 64],
            vec![],
        )
        .unwrap()
    };
    let third = with_scale(1.0 / 3.0);
    assert_eq!(
        pack("m", &third, Format::Gptq, ScaleDtype::F32)
            .unwrap_err()
            .to_string(),
        "m: scale 3.3333334e-1 of row 0, group 0 is not a value of F16, nearest is 3.3325195e-1; round scales to F16 before coding"
    );
    assert!(matches!(
        pack("m", &third, Format::CompressedTensors, ScaleDtype::BF16),
        Err(PackError::Scale { .. })
    ));
    assert!(pack("m", &third, Format::CompressedTensors, ScaleDtype::F32).is_ok());
    let overflow = pack("m", &with_scale(1e6), Format::Gptq, ScaleDtype::F16);
    assert!(overflow.unwrap_err().to_string().contains("nearest is inf"));
    let underflow = pack("m", &with_scale(1e-9), Format::Gptq, ScaleDtype::F16);
    assert!(
        underflow
            .unwrap_err()
            .to_string()
            .contains("nearest is 0e0")
    );
    let negative = with_scale(-0.5);
    for format in [Format::Gptq, Format::CompressedTensors] {
        let tensors = packed(&negative, format);
        let read = unpack("m", find(&tensors), format, &negative.scheme()).unwrap();
        assert_eq!(read, negative, "{format}");
    }
}

#[test]
fn a_refusal_names_the_module() {
    let weight = random_weight(scheme(4, 32, true), [30, 64], 1);
    assert_eq!(
        pack(
            "model.layers.0.mlp.up_proj",
            &weight,
            Format::Gptq,
            ScaleDtype::F16
        )
        .unwrap_err()
        .to_string(),
        "model.layers.0.mlp.up_proj: gptq packs out_features in blocks of 32 and 30 is not a multiple of it; list the module under `ignore`, or use compressed-tensors"
    );
}

#[test]
fn the_planned_bytes_are_the_packed_bytes() {
    for (format, bits) in [
        (Format::GptqV2, 3),
        (Format::CompressedTensors, 3),
        (Format::Awq, 4),
    ] {
        let weight = random_weight(scheme(bits, 32, false), [32, 64], 3);
        let planned = crate::packed_layout(
            "m",
            &weight.scheme().into(),
            [32, 64],
            format,
            ScaleDtype::BF16,
        )
        .unwrap();
        let made = pack("m", &weight, format, ScaleDtype::BF16).unwrap();
        assert_eq!(planned.len(), made.len());
        for (planned, made) in planned.iter().zip(&made) {
            assert_eq!(planned.name, made.name);
            assert_eq!(planned.bytes(), made.bytes.len() as u64, "{}", made.name);
        }
    }
}

proptest! {
    #[test]
    fn gptq_reads_back_what_it_wrote(
        bits in prop::sample::select(vec![2u8, 3, 4, 8]), rows in 1usize..4, cols in 1usize..6,
        group in prop::sample::select(vec![-1i64, 16, 32, 48, 100, 1024]), sym in any::<bool>(), seed in any::<u64>(),
    ) {
        let weight = random_weight(scheme(bits, group, sym), [rows * 32, cols * 32], seed);
        let format = if sym { Format::Gptq } else { Format::GptqV2 };
        prop_assert_eq!(unpack("m", find(&packed(&weight, format)), format, &weight.scheme()), Ok(weight));
    }

    #[test]
    fn awq_reads_back_what_it_wrote(
        rows in 1usize..6, groups in 1usize..5, group in prop::sample::select(vec![-1i64, 16, 17, 128]),
        sym: bool, seed in any::<u64>(),
    ) {
        let cols = if group < 0 { groups * 13 } else { groups * group as usize };
        let weight = random_weight(scheme(4, group, sym), [rows * 8, cols], seed);
        prop_assert_eq!(unpack("m", find(&packed(&weight, Format::Awq)), Format::Awq, &weight.scheme()), Ok(weight));
    }

    #[test]
    fn compressed_tensors_read_back_what_they_wrote_at_any_shape(
        bits in prop::sample::select(vec![2u8, 3, 4, 5, 6, 8]), rows in 1usize..40, groups in 1usize..4,
        group in prop::sample::select(vec![-1i64, 16, 17, 40]), sym in any::<bool>(), seed in any::<u64>(),
        dtype in prop::sample::select(vec![ScaleDtype::F16, ScaleDtype::BF16, ScaleDtype::F32]),
    ) {
        let cols = if group < 0 { groups * 13 } else { groups * group as usize };
        let weight = random_weight(scheme(bits, group, sym), [rows, cols], seed);
        let tensors = pack("m", &weight, Format::CompressedTensors, dtype).unwrap();
        prop_assert_eq!(unpack("m", find(&tensors), Format::CompressedTensors, &weight.scheme()), Ok(weight));
    }
}
