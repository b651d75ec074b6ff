//! Products with packed low-bit weights.

mod device;
mod error;
mod kernel;
mod layout;
mod reference;
mod weight;

#[cfg(test)]
mod tests;

pub use device::Capabilities;
pub use error::{DeviceError, KernelError};
pub use layout::{PackError, PackedWeight, ScaleType};
pub use weight::{DeviceWeight, MATVEC_TOKENS};
