use std::sync::Mutex;

use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use halfbyte_quant::{GroupSize, QuantizedWeight, Scheme};

use crate::{Capabilities, DeviceError, DeviceWeight, KernelError, PackedWeight, reference};

/// Adapters of a kind that are looked for.
const ADAPTERS_OF_A_KIND: usize = 16;

/// Every adapter that wgpu finds, hardware first, software drivers included. Opens each of them.
///
/// # Errors
/// [`DeviceError::NoAdapter`] when there is none.
pub fn devices() -> Result<Vec<Device>, DeviceError> {
    let kinds = [
        DeviceKind::DiscreteGpu,
        DeviceKind::IntegratedGpu,
        DeviceKind::VirtualGpu,
        |_| DeviceKind::Cpu,
    ];
    let (mut found, mut last) = (Vec::new(), String::new());
    for kind in kinds {
        for index in 0..ADAPTERS_OF_A_KIND {
            match Device::wgpu_options().device_kind(kind(index)).init() {
                // There is one software adapter at most, whatever the index.
                Ok(device) if found.contains(&device) => break,
                Ok(device) => found.push(device),
                Err(error) => {
                    last = error.to_string();
                    break;
                }
            }
        }
    }
    if found.is_empty() {
        return Err(DeviceError::NoAdapter(last));
    }
    Ok(found)
}

/// Runs each kernel once on small data and compares with the CPU, for drivers that compile a kernel wrongly, or lose it and
/// give back zeros. Once a device and process: a second call gives the first answer.
///
/// # Errors
/// [`KernelError::Elsewhere`] for a device that is no GPU device, [`KernelError::Missing`] for one too small, and
/// [`KernelError::Device`] with what is wrong with it.
pub fn self_test(device: &Device) -> Result<Capabilities, KernelError> {
    static TESTED: Mutex<Vec<(Device, Result<Capabilities, DeviceError>)>> = Mutex::new(Vec::new());
    let mut tested = TESTED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, outcome)) = tested.iter().find(|(known, _)| known == device) {
        return Ok(outcome.clone()?);
    }
    let capabilities = Capabilities::of(device)?;
    capabilities.check()?;
    let outcome = match run(device, &capabilities) {
        Ok(()) => Ok(capabilities),
        Err(KernelError::Device(error)) => Err(error),
        Err(error) => return Err(error),
    };
    tested.push((device.clone(), outcome.clone()));
    Ok(outcome?)
}

fn run(device: &Device, capabilities: &Capabilities) -> Result<(), KernelError> {
    let packed = PackedWeight::new(&sample())?;
    let weight = DeviceWeight::upload_with(&packed, device, capabilities.clone())?;
    let (out, features) = (packed.out_features(), packed.in_features());
    let types: &[DType] = match capabilities.f16 {
        true => &[DType::F32, DType::F16],
        false => &[DType::F32],
    };
    for &dtype in types {
        // A step of the result's type at the largest result below 2.
        let tolerance = if dtype == DType::F16 { 2e-3 } else { 1e-5 };
        let dense = read(weight.dequantize(dtype)?)?;
        let wanted: Vec<f64> = reference::dequantize(&packed)
            .into_iter()
            .map(f64::from)
            .collect();
        judge(
            &format!("dequantize to {dtype:?}"),
            features,
            &dense,
            &wanted,
            tolerance,
        )?;
        for (kernel, tokens) in [("matrix-vector", 2), ("matrix-matrix", 9)] {
            // Multiples of 1/16 in -1/2..1/2: exact in f16.
            let x: Vec<f32> = (0..tokens * features)
                .map(|i| ((i * 7 + i / 13) % 17) as f32 / 16.0 - 0.5)
                .collect();
            let wanted = reference::multiply(&x, &packed);
            let x = Tensor::<2>::from_data(TensorData::new(x, [tokens, features]), device);
            let y = read(weight.multiply(x.cast(dtype))?)?;
            judge(
                &format!("{kernel} in {dtype:?}"),
                out,
                &y,
                &wanted,
                tolerance,
            )?;
        }
    }
    Ok(())
}

/// 4 bits, groups of 32, 19 rows of 76 columns: nothing divides evenly.
fn sample() -> QuantizedWeight {
    let (out, features) = (19, 76);
    let weight = GroupSize::from_i64(32)
        .and_then(|group| Scheme::new(4, group, false))
        .map(|scheme| {
            let groups = out * scheme.n_groups(features);
            let codes = (0..out * features).map(|i| ((i * 11 + i / 7) % 16) as u8);
            let scales = (0..groups).map(|i| (1 + i % 5) as f32 / 256.0);
            let zeros = (0..groups).map(|i| (i % 16) as u8);
            QuantizedWeight::new(
                scheme,
                [out, features],
                codes.collect(),
                scales.collect(),
                zeros.collect(),
            )
        });
    weight
        .expect("4 bits in groups of 32 is a scheme")
        .expect("codes and zero points below 16, scales above zero")
}

/// A tensor's numbers, with the device's errors by kind.
fn read(tensor: Tensor<2>) -> Result<Vec<f32>, DeviceError> {
    let tensor = tensor
        .cast(DType::F32)
        .try_into_primitive::<CubeBackend>()
        .map_err(|e| DeviceError::Failed(format!("{e:?}")))?;
    let bytes = tensor.client.read_one(tensor.handle)?;
    let (values, _) = bytes.as_chunks::<4>();
    Ok(values.iter().map(|&v| f32::from_ne_bytes(v)).collect())
}

/// The first number that is off, or not a number.
pub(crate) fn judge(
    kernel: &str,
    columns: usize,
    found: &[f32],
    wanted: &[f64],
    tolerance: f64,
) -> Result<(), DeviceError> {
    let near = |(found, wanted): (&f32, &f64)| {
        (f64::from(*found) - wanted).abs() <= tolerance * wanted.abs().max(1.0)
    };
    let wrong = (found.iter().zip(wanted)).position(|pair| !near(pair));
    match wrong.or_else(|| (found.len() < wanted.len()).then_some(found.len())) {
        None => Ok(()),
        Some(at) => Err(DeviceError::Wrong {
            kernel: kernel.to_owned(),
            row: at / columns,
            column: at % columns,
            found: found.get(at).copied().unwrap_or(f32::NAN),
            wanted: wanted[at] as f32,
        }),
    }
}
