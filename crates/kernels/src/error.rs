#[cfg(feature = "gpu")]
use cubecl::server::{IoError, LaunchError, ServerError};

use crate::PackError;

/// Why a product with a packed weight cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The weight does not fit the layout.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Activations of the wrong width.
    #[error("activations of {found} features, the weight has {wanted}")]
    Features {
        /// Columns of the activations.
        found: usize,
        /// Columns of the weight.
        wanted: usize,
    },
    /// Activations of a type that the kernels or the device do not take.
    #[error("activations of type {0} on this device; cast them to f32{f16}", f16 = if *.1 { " or f16" } else { "" })]
    Type(String, bool),
    /// The tensor lives elsewhere.
    #[error("{0}; move it to the wgpu device that the weight was uploaded to")]
    Elsewhere(String),
    /// The device cannot run the kernels at all.
    #[error(
        "the device has {found} {what}, the kernels need {wanted}; use another device or the CPU"
    )]
    Missing {
        /// The capability.
        what: &'static str,
        /// What the device has.
        found: u64,
        /// What is needed.
        wanted: u64,
    },
    /// A buffer beyond what one binding may hold.
    #[error(
        "{what} takes {bytes} bytes, the device binds {limit} at most; use fewer tokens at a time or another device"
    )]
    TooLarge {
        /// Which buffer.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The device's limit.
        limit: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What is wrong with a device, found when it was opened, tested or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The program was built for the processor alone.
    #[error("this build has no GPU in it; use the CPU device, or build with the feature `gpu`")]
    NotBuilt,
    /// wgpu found none.
    #[error(
        "no adapter: {0}; install a Vulkan driver (mesa-vulkan-drivers has one that runs on the CPU), or use the CPU device"
    )]
    NoAdapter(String),
    /// It is gone: reset by the driver, unplugged or poisoned by a fault.
    #[error(
        "the device was lost: {0}; start the program again, and if it happens again update the driver or use the CPU device"
    )]
    Lost(String),
    /// Its memory is full.
    #[error(
        "out of device memory: {0}; end other programs that use it, take fewer tokens at a time, or use the CPU device"
    )]
    OutOfMemory(String),
    /// A kernel cannot be built or launched there.
    #[error("the device refused a kernel: {0}; update the driver or use the CPU device")]
    Refused(String),
    /// It computes something else than the CPU.
    #[error(
        "{kernel} gives wrong results on this device: {found} at [{row}, {column}], wanted {wanted}; update the driver, or use the CPU device"
    )]
    Wrong {
        /// The kernel and its settings.
        kernel: String,
        /// Row of the first wrong number.
        row: usize,
        /// Column of the first wrong number.
        column: usize,
        /// What the device gave.
        found: f32,
        /// What the reference gives.
        wanted: f32,
    },
    /// Anything else.
    #[error("the device failed: {0}; update the driver or use the CPU device")]
    Failed(String),
}

#[cfg(feature = "gpu")]
impl From<ServerError> for DeviceError {
    fn from(error: ServerError) -> Self {
        // Messages carry backtraces; the first line says what happened, the cause stands in the second or third.
        let text = error.to_string();
        let cause = text
            .lines()
            .map(str::trim)
            .take_while(|line| !line.starts_with("Backtrace"))
            .filter(|line| !line.is_empty() && *line != "Caused by:")
            .collect::<Vec<_>>()
            .join(": ");
        match error {
            ServerError::DevicePoisoned(_)
            | ServerError::Launch(LaunchError::DevicePoisoned(_)) => Self::Lost(cause),
            ServerError::Launch(LaunchError::OutOfMemory { .. })
            | ServerError::Io(IoError::BufferTooBig { .. } | IoError::OutOfMemory { .. }) => {
                Self::OutOfMemory(cause)
            }
            ServerError::Launch(_) => Self::Refused(cause),
            ServerError::Unwritten { root, .. } => (*root).into(),
            ServerError::Several { mut errors, .. } if !errors.is_empty() => {
                errors.swap_remove(0).into()
            }
            _ => Self::Failed(cause),
        }
    }
}
