//! Each kernel against the naive product, on whatever Vulkan adapter there is; a software one will do.

use std::sync::OnceLock;

use burn::tensor::wgpu::WgpuBackend;
use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};
use half::{bf16, f16};
use halfbyte_quant::{GroupSize, QuantizedWeight, Scheme};
use halfbyte_testing::{Lacking, skip};

use crate::self_test::judge;
use crate::{
    Capabilities, DeviceError, DeviceWeight, KernelError, PackError, PackedWeight, ScaleType,
    devices, reference, self_test,
};

/// The adapter to test on; a test says that it is skipped where there is none.
fn device() -> Option<Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    let found = DEVICE.get_or_init(|| {
        Device::wgpu_options()
            .graphics_api(WgpuBackend::Vulkan)
            .init()
            .ok()
    });
    if found.is_none() {
        skip(
            Lacking::Vulkan,
            "no adapter; mesa-vulkan-drivers has one that runs on the CPU",
        );
    }
    found.clone()
}

/// Numbers in 0..1.
fn random(seed: usize) -> impl FnMut() -> f32 {
    let mut state = seed as u64;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Bits, group size, symmetry.
type Coding = (u8, i64, bool);

/// A weight of random codes, zero points and scales of both signs; every fifth code and zero point is an extreme.
fn weight(
    (bits, group, sym): Coding,
    [out, in_]: [usize; 2],
    scales: ScaleType,
) -> QuantizedWeight {
    let scheme = Scheme::new(bits, GroupSize::from_i64(group).unwrap(), sym).unwrap();
    let mut next = random(out * 31 + in_);
    let mut codes = |n: usize| -> Vec<u8> {
        let max = scheme.max_code();
        let code = |i| match i % 10 {
            4 => 0,
            9 => max,
            _ => (next() * f32::from(max) + 0.5) as u8,
        };
        (0..n).map(code).collect()
    };
    let groups = out * scheme.n_groups(in_);
    let (codes, zeros) = (codes(out * in_), codes(if sym { 0 } else { groups }));
    let scale = |i: usize| {
        let scale = (1.0 + next()) / 64.0 * if i % 3 == 1 { -1.0 } else { 1.0 };
        match scales {
            ScaleType::Bf16 => bf16::from_f32(scale).to_f32(),
            ScaleType::F16 => f16::from_f32(scale).to_f32(),
        }
    };
    let scales = (0..groups).map(scale).collect();
    QuantizedWeight::new(scheme, [out, in_], codes, scales, zeros).unwrap()
}

/// Activations in -1..1, `[tokens, features]`, exact in f16.
fn activations(tokens: usize, features: usize) -> Vec<f32> {
    let mut next = random(tokens * 7 + features);
    let value = |_| f16::from_f32(2.0 * next() - 1.0).to_f32();
    (0..tokens * features).map(value).collect()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

fn multiply(weight: &DeviceWeight, x: &[f32], dtype: DType, device: &Device) -> Vec<f32> {
    let shape = [x.len() / weight.in_features(), weight.in_features()];
    let x = Tensor::<2>::from_data(TensorData::new(x.to_vec(), shape), device).cast(dtype);
    let y = weight.multiply(x).unwrap();
    assert_eq!(
        (y.dtype(), y.dims()),
        (dtype, [shape[0], weight.out_features()])
    );
    values(y)
}

/// Compares a product with the naive one: f32 sums may differ by a few roundings of the terms' magnitudes, an f16
/// result by one rounding of its own more.
fn compare(name: &str, found: &[f32], x: &[f32], packed: &PackedWeight, dtype: DType) {
    let wanted = reference::multiply(x, packed);
    let dense = reference::dequantize(packed);
    assert_eq!(found.len(), wanted.len(), "{name}");
    let (features, out) = (packed.in_features(), packed.out_features());
    for (at, (&found, &wanted)) in found.iter().zip(&wanted).enumerate() {
        let (token, row) = (at / out, at % out);
        let terms = x[token * features..][..features]
            .iter()
            .zip(&dense[row * features..][..features]);
        let magnitude: f64 = terms.map(|(x, w)| f64::from(x * w).abs()).sum();
        let rounding = if dtype == DType::F16 {
            1.0 / 2048.0
        } else {
            0.0
        };
        let tolerance = 1e-6 * magnitude + rounding * wanted.abs() + 1e-30;
        assert!(
            (f64::from(found) - wanted).abs() <= tolerance,
            "{name}: {found} for token {token}, row {row}, wanted {wanted} within {tolerance:e}"
        );
    }
}

/// Multiplies on the device, taken for a lesser one by `limit`, and compares.
fn check_with(
    coding: Coding,
    shape: [usize; 2],
    tokens: usize,
    dtype: DType,
    limit: impl Fn(&mut Capabilities),
) {
    let Some(device) = device() else { return };
    let scales = if shape[0].is_multiple_of(2) {
        ScaleType::Bf16
    } else {
        ScaleType::F16
    };
    let packed = PackedWeight::new(&weight(coding, shape, scales)).unwrap();
    assert_eq!(packed.scale_type(), scales);
    let mut capabilities = Capabilities::of(&device).unwrap();
    limit(&mut capabilities);
    let on_device = DeviceWeight::upload_with(&packed, &device, capabilities).unwrap();
    let x = activations(tokens, shape[1]);
    let y = multiply(&on_device, &x, dtype, &device);
    let name = format!("{coding:?} {shape:?} {tokens} tokens {dtype:?}");
    compare(&name, &y, &x, &packed, dtype);
}

fn check(coding: Coding, shape: [usize; 2], tokens: usize) {
    check_with(coding, shape, tokens, DType::F32, |_| {});
}

#[test]
fn packing_keeps_every_weight() {
    for bits in [2, 3, 4, 8] {
        for group in [-1, 16, 17, 32, 48, 100, 128] {
            for shape in [[1, 1], [8, 128], [9, 129], [13, 200], [17, 300]] {
                for (sym, scales) in [(true, ScaleType::Bf16), (false, ScaleType::F16)] {
                    let weight = weight((bits, group, sym), shape, scales);
                    let packed = PackedWeight::new(&weight).unwrap();
                    assert_eq!(
                        reference::dequantize(&packed),
                        weight.dequantize(),
                        "{bits} bits, groups of {group}, {shape:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_layout_is_the_one_in_the_books() {
    // Row r holds code r in column 0 and 15 - r in column 1; zero point r, scale 1 + r/8.
    let scheme = Scheme::new(4, GroupSize::from_i64(32).unwrap(), false).unwrap();
    let mut codes = vec![0; 8 * 33];
    for row in 0..8 {
        codes[row * 33] = row as u8;
        codes[row * 33 + 1] = 15 - row as u8;
        codes[row * 33 + 32] = 9;
    }
    let scales = (0..16).map(|i| 1.0 + (i / 2) as f32 / 8.0).collect();
    let zeros = (0..16).map(|i| i / 2).collect();
    let weight = QuantizedWeight::new(scheme, [8, 33], codes, scales, zeros).unwrap();
    let packed = PackedWeight::new(&weight).unwrap();
    assert_eq!(packed.codes.len(), 2 * 32);
    assert_eq!(packed.codes[0..4], [0xF0, 0, 0, 0]);
    assert_eq!(packed.codes[12..16], [0xC3, 0, 0, 0]);
    // The second chunk of row 3: code 9, then its zero point where the row has ended.
    assert_eq!(
        packed.codes[44..48],
        [0x3333_3339, 0x3333_3333, 0x3333_3333, 0x3333_3333]
    );
    assert_eq!(
        packed.scales[..4],
        [0x3F90_3F80, 0x3FB0_3FA0, 0x3FD0_3FC0, 0x3FF0_3FE0]
    );
    assert_eq!(packed.zeros, [0x7654_3210, 0x7654_3210]);
    assert_eq!(packed.bytes(), 4 * (64 + 8 + 2));
}

#[test]
fn bytes_a_weight_are_those_of_the_scheme_where_nothing_is_padded() {
    for (coding, wanted) in [
        ((4, 128, true), 4.125),
        ((4, 128, false), 4.156_25),
        ((3, 64, false), 3.3125),
        ((2, 32, true), 2.5),
        ((8, -1, false), 8.0 + 24.0 / 512.0),
    ] {
        let weight = weight(coding, [16, 512], ScaleType::Bf16);
        let packed = PackedWeight::new(&weight).unwrap();
        assert_eq!(PackedWeight::bits_per_weight(weight.scheme(), 512), wanted);
        assert_eq!(8.0 * packed.bytes() as f64 / (16.0 * 512.0), wanted);
    }
}

#[test]
fn what_the_layout_cannot_hold_is_refused() {
    let five = weight((5, 32, true), [2, 32], ScaleType::Bf16);
    assert_eq!(PackedWeight::new(&five), Err(PackError::Bits(5)));
    let four = weight((4, 32, true), [2, 32], ScaleType::Bf16);
    let third = four.with_scales(vec![0.5, 1.0 / 3.0]).unwrap();
    assert_eq!(
        PackedWeight::new(&third).unwrap_err().to_string(),
        "scales[1] is 0.33333334, and not all scales are exact in f16 nor all in bf16; round them to one of the two"
    );
    let none = weight((4, 32, true), [0, 32], ScaleType::Bf16);
    assert_eq!(PackedWeight::new(&none), Err(PackError::Empty(0, 32)));
}

#[test]
fn the_cpu_multiplies_every_coding() {
    for bits in [2, 3, 4, 8] {
        for group in [-1, 16, 17, 32, 48, 100, 128] {
            for shape in [[1, 1], [8, 128], [9, 129], [13, 500], [17, 1300]] {
                for (sym, tokens) in [(true, 1), (false, 3), (true, 11)] {
                    let packed =
                        PackedWeight::new(&weight((bits, group, sym), shape, ScaleType::Bf16));
                    let packed = packed.unwrap();
                    let x = activations(tokens, shape[1]);
                    let y = packed.multiply(&x).unwrap();
                    let name = format!("{bits} bits, groups of {group}, {shape:?}, {tokens}");
                    compare(&name, &y, &x, &packed, DType::F32);
                }
            }
        }
    }
    let packed = PackedWeight::new(&weight((4, 32, true), [8, 64], ScaleType::F16)).unwrap();
    assert!(matches!(
        packed.multiply(&[0.0; 65]),
        Err(KernelError::Features {
            found: 65,
            wanted: 64
        })
    ));
}

#[test]
fn dequantizes_bit_for_bit() {
    let Some(device) = device() else { return };
    for (coding, shape) in [
        ((2, 16, false), [9, 80]),
        ((3, 32, true), [16, 256]),
        ((3, 100, false), [11, 250]),
        ((4, 128, false), [24, 288]),
        ((4, -1, true), [5, 37]),
        ((8, 17, false), [10, 60]),
    ] {
        for scales in [ScaleType::F16, ScaleType::Bf16] {
            let weight = weight(coding, shape, scales);
            let packed = PackedWeight::new(&weight).unwrap();
            let on_device = DeviceWeight::upload(&packed, &device).unwrap();
            let found = values(on_device.dequantize(DType::F32).unwrap());
            assert_eq!(
                found,
                weight.dequantize(),
                "{coding:?} {shape:?} {scales:?}"
            );
        }
    }
}

#[test]
fn dequantizes_to_half_where_the_device_has_it() {
    let Some(device) = device() else { return };
    let weight = weight((4, 32, false), [12, 96], ScaleType::Bf16);
    let on_device = DeviceWeight::upload(&PackedWeight::new(&weight).unwrap(), &device).unwrap();
    match on_device.dequantize(DType::F16) {
        Ok(tensor) => {
            let wanted = weight.dequantize();
            let wanted: Vec<_> = wanted.iter().map(|&w| f16::from_f32(w).to_f32()).collect();
            assert_eq!(values(tensor), wanted);
        }
        Err(e) => {
            assert!(!on_device.capabilities().f16);
            skip(Lacking::GpuFeature, e);
        }
    }
}

#[test]
fn multiplies_a_token_by_every_width() {
    check((2, 64, true), [72, 256], 1);
    check((3, 128, true), [72, 384], 1);
    check((4, 128, true), [72, 384], 1);
    check((8, 128, true), [72, 256], 1);
    check((2, 64, false), [71, 192], 1);
    check((3, 64, false), [71, 384], 1);
    check((4, 32, false), [71, 192], 1);
    check((8, 32, false), [71, 192], 1);
}

#[test]
fn multiplies_odd_shapes() {
    // Nothing divides anything; groups straddle chunks; one row; one column; one group a row.
    check((2, 48, false), [13, 150], 1);
    check((3, 17, false), [7, 131], 2);
    check((4, 20, false), [13, 101], 1);
    check((8, 17, true), [21, 77], 3);
    check((4, -1, false), [1, 1], 1);
    check((3, -1, true), [3, 5], 1);
    check((4, 16, false), [9, 2000], 1);
}

#[test]
fn multiplies_up_to_eight_tokens() {
    for tokens in [2, 3, 5, 8] {
        check((4, 128, false), [40, 512], tokens);
    }
    check((3, 64, true), [24, 256], 8);
}

#[test]
fn multiplies_two_tiles_a_workgroup() {
    check((4, 32, true), [2049, 64], 1);
}

#[test]
fn multiplies_many_tokens() {
    check((2, 64, false), [70, 192], 33);
    check((3, 32, true), [65, 384], 9);
    check((4, 128, false), [130, 256], 131);
    check((8, 16, true), [33, 100], 17);
    check((3, 17, false), [21, 77], 12);
}

#[test]
fn multiplies_halves_where_the_device_has_them() {
    let Some(device) = device() else { return };
    if !Capabilities::of(&device).unwrap().f16 {
        skip(Lacking::GpuFeature, "the device has no f16");
        return;
    }
    for (shape, tokens) in [([40, 128], 1), ([19, 90], 4), ([70, 128], 20)] {
        check_with((4, 32, false), shape, tokens, DType::F16, |_| {});
    }
}

#[test]
fn lesser_devices_get_the_same_product() {
    // WebGPU's smallest workgroup memory, and units for two slices of 32 columns.
    let small = |c: &mut Capabilities| (c.workgroup_bytes, c.workgroup_units) = (16384, 256);
    check_with((4, 32, false), [40, 1024], 8, DType::F32, small);
    check_with((4, 32, false), [130, 128], 130, DType::F32, small);
    let least = |c: &mut Capabilities| (c.workgroup_bytes, c.workgroup_units) = (4352, 64);
    check_with((4, 32, false), [40, 1024], 8, DType::F32, least);
    check_with((4, 32, false), [40, 128], 40, DType::F32, least);
}

#[test]
fn few_workgroups_an_axis_become_a_grid() {
    let flat = |c: &mut Capabilities| c.workgroups = [3, 2, 65535];
    check_with((4, 32, false), [100, 64], 2, DType::F32, flat);
    check_with((4, 32, false), [300, 64], 70, DType::F32, flat);
}

#[test]
fn weights_beyond_a_binding_are_cut() {
    // Three tiles of 256 bytes a binding.
    let narrow = |c: &mut Capabilities| c.binding_bytes = 1000;
    check_with((4, 32, false), [77, 64], 2, DType::F32, narrow);
    let Some(device) = device() else { return };
    let mut capabilities = Capabilities::of(&device).unwrap();
    capabilities.binding_bytes = 1000;
    let weight = weight((4, 32, false), [77, 64], ScaleType::Bf16);
    let packed = PackedWeight::new(&weight).unwrap();
    let cut = DeviceWeight::upload_with(&packed, &device, capabilities).unwrap();
    let error = cut.dequantize(DType::F32).unwrap_err().to_string();
    assert!(
        error.starts_with("the dense weight takes 19712 bytes, the device binds 1000 at most"),
        "{error}"
    );
}

#[test]
fn scales_of_nothing_give_nothing() {
    let Some(device) = device() else { return };
    let mut packed = PackedWeight::new(&weight((4, 32, false), [16, 64], ScaleType::F16)).unwrap();
    // Zero, negative zero and the smallest subnormal of f16.
    packed.scales[..3].copy_from_slice(&[0, 0x8000_0000, 0x0001_8001]);
    let on_device = DeviceWeight::upload(&packed, &device).unwrap();
    let dense = values(on_device.dequantize(DType::F32).unwrap());
    assert!(dense[..32].iter().all(|&w| w == 0.0));
    assert_eq!(dense, reference::dequantize(&packed));
    let x = activations(2, 64);
    let y = multiply(&on_device, &x, DType::F32, &device);
    compare("scales of nothing", &y, &x, &packed, DType::F32);
    let y = packed.multiply(&x).unwrap();
    compare("scales of nothing on the CPU", &y, &x, &packed, DType::F32);
}

/// So that a text does not hang on how many tokens went through the model at once.
#[test]
fn on_the_cpu_a_token_gives_the_same_whatever_comes_with_it() {
    for coding in [
        (2, 64, false),
        (3, 64, false),
        (4, 32, true),
        (8, 24, false),
    ] {
        let packed = PackedWeight::new(&weight(coding, [19, 200], ScaleType::F16)).unwrap();
        let x = activations(9, 200);
        let together = packed.multiply(&x).unwrap();
        let alone = x.chunks(200).map(|x| packed.multiply(x).unwrap());
        assert_eq!(
            together,
            alone.flatten().collect::<Vec<f32>>(),
            "{coding:?}"
        );
    }
}

#[test]
fn no_token_gives_no_row() {
    let Some(device) = device() else { return };
    let packed = PackedWeight::new(&weight((4, 32, false), [16, 64], ScaleType::F16)).unwrap();
    let on_device = DeviceWeight::upload(&packed, &device).unwrap();
    let y = on_device.multiply(Tensor::zeros([0, 64], &device)).unwrap();
    assert_eq!(y.dims(), [0, 16]);
}

#[test]
fn what_cannot_be_multiplied_is_refused() {
    let Some(device) = device() else { return };
    let packed = PackedWeight::new(&weight((4, 32, false), [16, 64], ScaleType::F16)).unwrap();
    let full = Capabilities::of(&device).unwrap();
    let without_f16 = Capabilities {
        f16: false,
        ..full.clone()
    };
    let on_device = DeviceWeight::upload_with(&packed, &device, without_f16).unwrap();
    let refusal = |x| on_device.multiply(x).unwrap_err().to_string();
    assert_eq!(
        refusal(Tensor::zeros([1, 65], &device)),
        "activations of 65 features, the weight has 64"
    );
    assert_eq!(
        refusal(Tensor::zeros([1, 64], (&device, DType::F16))),
        "activations of type f16 on this device; cast them to f32"
    );
    let elsewhere = refusal(Tensor::zeros([1, 64], &Device::flex()));
    assert!(
        elsewhere.contains("move it to the wgpu device"),
        "{elsewhere}"
    );
    assert!(matches!(
        DeviceWeight::upload(&packed, &Device::flex()),
        Err(KernelError::Elsewhere(_))
    ));
    let no_memory = Capabilities {
        workgroup_bytes: 1024,
        ..full
    };
    let error = DeviceWeight::upload_with(&packed, &device, no_memory)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "the device has 1024 bytes of workgroup memory, the kernels need 4352; use another device or the CPU"
    );
}

#[test]
fn a_sound_device_passes_its_test_and_is_listed() {
    let Some(device) = device() else { return };
    let capabilities = self_test(&device).unwrap();
    assert_eq!(self_test(&device).unwrap(), capabilities);
    assert_eq!(Capabilities::of(&device).unwrap(), capabilities);
    let names = devices().unwrap();
    let names: Vec<_> = names.iter().map(|d| self_test(d).unwrap().name).collect();
    assert!(names.contains(&capabilities.name), "{names:?}");
}

#[test]
fn wrong_results_are_told_with_their_place() {
    let wanted = [1.0, 2.0, 3.0, 4.0];
    assert_eq!(judge("k", 2, &[1.0, 2.0, 3.0, 4.0], &wanted, 1e-5), Ok(()));
    for (found, at) in [
        (&[0.0, 0.0, 0.0, 0.0][..], 0),
        (&[1.0, 2.0, f32::NAN, 4.0], 2),
        (&[1.0, 2.0, 3.0, 4.001], 3),
        (&[1.0, 2.0], 2),
    ] {
        match judge("k", 2, found, &wanted, 1e-5) {
            Err(DeviceError::Wrong { row, column, .. }) => assert_eq!(row * 2 + column, at),
            other => panic!("{found:?}: {other:?}"),
        }
    }
    let error = judge(
        "matrix-vector in F32",
        2,
        &[1.0, 2.0, 3.5, 4.0],
        &wanted,
        1e-5,
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "matrix-vector in F32 gives wrong results on this device: 3.5 at [1, 0], wanted 3; \
         update the driver, or use the CPU device"
    );
}

#[test]
fn a_device_that_nothing_answers_to_is_an_error() {
    let absent = Device::wgpu(DeviceKind::DiscreteGpu(99));
    match self_test(&absent) {
        Err(KernelError::Device(DeviceError::NoAdapter(_))) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_device_is_told_from_a_broken_one() {
    let Some(device) = device() else { return };
    let (client, _) = crate::device::open(&device).unwrap();
    let beyond = client.empty(1 << 50);
    let error = DeviceError::from(client.read_one(beyond).unwrap_err());
    assert!(matches!(error, DeviceError::OutOfMemory(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with("out of device memory:") && !text.contains("ackTrace"),
        "{text}"
    );
}
