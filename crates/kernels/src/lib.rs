//! Products with packed low-bit weights on any GPU that wgpu reaches, and on the CPU ([`PackedWeight::multiply`]):
//! dequantize, matrix-vector for decoding (1 to 8 tokens), matrix-matrix for prefill. Weights of 2, 3, 4 or 8 bits with any
//! group size come in as [`QuantizedWeight`](halfbyte_quant::QuantizedWeight), are packed once, and meet activations as burn
//! tensors in f32 or f16 (f32 numbers on the CPU); sums are f32. A product never has the dense weight in device memory.
//!
//! ```text
//! QuantizedWeight -> PackedWeight::new -> DeviceWeight::upload -> multiply(x) = x Wᵀ
//! ```
//!
//! # Layout
//!
//! Rows lie in tiles of 8, columns in chunks of as few 16-byte loads as hold whole codes:
//!
//! | bits | codes a chunk | loads a chunk |
//! |---|---|---|
//! | 2 | 64 | 1 |
//! | 3 | 128 | 3 |
//! | 4 | 32 | 1 |
//! | 8 | 16 | 1 |
//!
//! ```text
//! codes   [tiles][chunks][loads][8 rows][4 words]    a row's chunk is one string of bits, lowest first
//! scales  [tiles][groups][4 words]                   two rows a word, f16 or bf16
//! zeros   [tiles][groups][1 word, 2 for 8 bits]      a nibble a row, a byte for 8 bits; none if symmetric
//! ```
//!
//! Eight neighbouring units load the same chunk of a tile's eight rows, 128 bytes side by side, whatever the width and
//! the subgroup size; the next eight units load the next chunk. A unit stays with its row, so sums need no exchange until
//! the end, and the units of a load share their activations. Rows past the last are zero; codes past a row's end are the
//! zero point of its last group, and so decode to nothing.
//!
//! Groups may have any size and may straddle chunks: a chunk is cut into runs of `gcd(group, chunk)` codes that share a
//! scale, which is the whole chunk for the usual sizes.
//!
//! **Bytes a weight**, where 8 divides the rows and a chunk the columns: `bits/8 + 2/group` symmetric,
//! `bits/8 + 2.5/group` asymmetric, `1 + 3/group` for 8 bits asymmetric. At groups of 128: 0.516 for 4 bits symmetric and
//! 0.520 asymmetric, 0.391 and 0.395 for 3 bits, 0.266 and 0.270 for 2 bits; bf16 has 2. Each is read once a product of up
//! to 8 tokens.
//!
//! # What devices must have
//!
//! Everything is asked of the device ([`Capabilities`]), and the launches are cut to fit. f16 is needed only for f16
//! activations: f16 scales are decoded from their bits. Weights beyond the device's limit on a binding are kept in parts;
//! workgroups beyond its limit an axis become a grid; less workgroup memory or fewer units mean smaller tiles. Subgroup
//! operations are not used, since the layout leaves little to exchange: one path runs and is tested everywhere. Neither are
//! matrix units: burn's wgpu runtime offers them only through SPIR-V and Metal compilers that this build does not have
//! (WGSL has none), so that such a path could not run here, let alone be tested.
//!
//! The decision: the layout is interleaved by rows rather than row after row. The rejected alternative, a subgroup to a row
//! with a reduction by subgroup operations, wants a second path where those are missing and decodes scales once per lane
//! rather than once per row.

//! # Without a GPU
//! A build without the feature `gpu` has the processor's products alone, and none of the GPU's stack is compiled.

pub mod bf16;
mod capabilities;
#[cfg(feature = "gpu")]
mod device;
mod error;
mod host;
#[cfg(feature = "gpu")]
mod kernel;
mod layout;
mod reference;
#[cfg(feature = "gpu")]
mod self_test;
#[cfg(feature = "gpu")]
mod weight;
#[cfg(not(feature = "gpu"))]
mod without_gpu;

#[cfg(test)]
#[cfg(feature = "gpu")]
mod tests;

pub use capabilities::Capabilities;
pub use error::{DeviceError, KernelError};
pub use layout::{PackError, PackedWeight, ScaleType};
#[cfg(feature = "gpu")]
pub use self_test::{devices, self_test};
#[cfg(feature = "gpu")]
pub use weight::DeviceWeight;
#[cfg(not(feature = "gpu"))]
pub use without_gpu::{DeviceWeight, devices, self_test};

/// Tokens up to which the matrix-vector kernel runs; the matrix-matrix kernel takes more.
pub const MATVEC_TOKENS: usize = 8;
