use std::str::FromStr;
use std::sync::Mutex;

use burn::prelude::*;
use burn::tensor::Device;
#[cfg(feature = "gpu")]
use burn::tensor::{DeviceKind, wgpu::WgpuBackend};

use crate::ModelError;

/// Where tensors live: `auto`, `cpu`, `vulkan`, `metal`, `dx12` or `webgpu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A hardware GPU where wgpu finds one, else the CPU. A software driver counts as none: it computes on the same
    /// cores some 30 times slower.
    #[default]
    Auto,
    /// burn's CPU device.
    Cpu,
    /// wgpu through Vulkan, software drivers included.
    Vulkan,
    /// wgpu through Metal.
    Metal,
    /// wgpu through Direct3D 12.
    Dx12,
    /// wgpu through WebGPU.
    WebGpu,
}

impl DeviceChoice {
    const NAMES: [(&'static str, Self); 6] = [
        ("auto", Self::Auto),
        ("cpu", Self::Cpu),
        ("vulkan", Self::Vulkan),
        ("metal", Self::Metal),
        ("dx12", Self::Dx12),
        ("webgpu", Self::WebGpu),
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, choice)| *choice == self)
            .map_or("auto", |(name, _)| name)
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            format!(
                "device: {name:?} is not one; use {}",
                Self::NAMES.map(|(known, _)| known).join(", ")
            )
        })
    }
}

/// Opens a device once a process; a second call for the same choice gives the same device.
///
/// # Errors
/// [`ModelError::Device`] when a GPU was asked for by name and none answers. `Auto` never fails.
pub fn open_device(choice: DeviceChoice) -> Result<Device, ModelError> {
    // wgpu's runtime registers for good at its first use, so what was opened is kept.
    static OPENED: Mutex<Vec<(DeviceChoice, Device)>> = Mutex::new(Vec::new());
    let mut opened = OPENED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, device)) = opened.iter().find(|(c, _)| *c == choice) {
        return Ok(device.clone());
    }
    let device = match choice {
        DeviceChoice::Cpu => Device::flex(),
        DeviceChoice::Auto => hardware_gpu().unwrap_or_else(Device::flex),
        _ => gpu(choice)?,
    };
    opened.push((choice, device.clone()));
    Ok(device)
}

#[cfg(feature = "gpu")]
fn gpu(choice: DeviceChoice) -> Result<Device, ModelError> {
    let options = Device::wgpu_options();
    let options = match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => options,
        DeviceChoice::Vulkan => options.graphics_api(WgpuBackend::Vulkan),
        DeviceChoice::Metal => options.graphics_api(WgpuBackend::Metal),
        DeviceChoice::Dx12 => options.graphics_api(WgpuBackend::Dx12),
        DeviceChoice::WebGpu => options.graphics_api(WgpuBackend::WebGpu),
    };
    options.init().map_err(|e| ModelError::Device {
        asked: choice.as_str(),
        reason: e.to_string(),
    })
}

#[cfg(not(feature = "gpu"))]
fn gpu(choice: DeviceChoice) -> Result<Device, ModelError> {
    Err(ModelError::Device {
        asked: choice.as_str(),
        reason: halfbyte_kernels::DeviceError::NotBuilt.to_string(),
    })
}

#[cfg(not(feature = "gpu"))]
fn hardware_gpu() -> Option<Device> {
    None
}

#[cfg(feature = "gpu")]
fn hardware_gpu() -> Option<Device> {
    let kinds = [DeviceKind::DiscreteGpu(0), DeviceKind::IntegratedGpu(0)];
    kinds
        .into_iter()
        .find_map(|kind| Device::wgpu_options().device_kind(kind).init().ok())
}

/// Whether a device's tensors lie in the processor's memory, with no gradients recorded.
pub fn is_host(device: &Device) -> bool {
    // equality is the hardware's alone
    !device.is_autodiff() && *device == Device::flex()
}

/// A tensor's numbers on the host, row-major.
///
/// # Errors
/// What went wrong on the device since the last reading.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, ModelError> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|e| ModelError::Execution(e.to_string()))
}
