//! Products with packed low-bit weights.

mod device;
mod error;
mod kernel;
mod layout;
mod reference;
mod self_test;
mod weight;

#[cfg(test)]
mod tests;

pub use device::Capabilities;
pub use error::{DeviceError, KernelError};
pub use layout::{PackError, PackedWeight, ScaleType};
pub use self_test::{devices, self_test};
pub use weight::{DeviceWeight, MATVEC_TOKENS};
