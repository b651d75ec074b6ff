use serde::Serialize;

/// What a device says of itself, as far as the kernels care.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capabilities {
    /// The adapter's name.
    pub name: String,
    /// The runtime and shader language, such as `wgpu<wgsl>`.
    pub runtime: String,
    /// Whether f16 can be stored and computed with.
    pub f16: bool,
    /// Whether subgroup operations exist. No kernel uses them.
    pub subgroups: bool,
    /// Smallest and largest subgroup.
    pub subgroup_size: [u32; 2],
    /// Whether matrix units (cooperative matrices) can be used through this runtime. No kernel uses them.
    pub matrix_units: bool,
    /// Workgroup memory.
    pub workgroup_bytes: usize,
    /// Units a workgroup.
    pub workgroup_units: usize,
    /// Workgroups along x, y and z.
    pub workgroups: [u32; 3],
    /// Storage buffers that can be bound at once.
    pub bindings: u64,
    /// Bytes that one binding may hold.
    pub binding_bytes: u64,
}
