//! The GPU's part in a build without the feature `gpu`: a weight on a device is a type without values, so that code which takes
//! one is the same in both builds, and whatever would make one says why there is none.

use burn::tensor::{DType, Device, Tensor};

use crate::{Capabilities, DeviceError, KernelError, PackedWeight};

/// A packed weight in a device's memory; this build has none.
#[derive(Clone, Debug)]
pub enum DeviceWeight {}

impl DeviceWeight {
    /// # Errors
    /// Always [`DeviceError::NotBuilt`].
    pub fn upload(_: &PackedWeight, _: &Device) -> Result<Self, KernelError> {
        Err(DeviceError::NotBuilt.into())
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        match *self {}
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        match *self {}
    }

    /// Bytes one product reads of the weight.
    pub fn bytes(&self) -> u64 {
        match *self {}
    }

    /// The device as the kernels see it.
    pub fn capabilities(&self) -> &Capabilities {
        match *self {}
    }

    /// `y = x Wᵀ`.
    ///
    /// # Errors
    /// None: there is no such weight.
    pub fn multiply(&self, _: Tensor<2>) -> Result<Tensor<2>, KernelError> {
        match *self {}
    }

    /// The weight in full.
    ///
    /// # Errors
    /// None: there is no such weight.
    pub fn dequantize(&self, _: DType) -> Result<Tensor<2>, KernelError> {
        match *self {}
    }
}

impl Capabilities {
    /// # Errors
    /// Always [`DeviceError::NotBuilt`].
    pub fn of(_: &Device) -> Result<Self, KernelError> {
        Err(DeviceError::NotBuilt.into())
    }
}

/// # Errors
/// Always [`DeviceError::NotBuilt`].
pub fn devices() -> Result<Vec<Device>, DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// # Errors
/// Always [`DeviceError::NotBuilt`].
pub fn self_test(_: &Device) -> Result<Capabilities, KernelError> {
    Err(DeviceError::NotBuilt.into())
}
