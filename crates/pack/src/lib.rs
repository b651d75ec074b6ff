//! What comes in: codes, scales and zero points, or codes of a codebook. What goes out: the tensors and the configuration of a checkpoint
//! format, and the way back.
//!
//! One bitstream serves every format: code `n` of a run occupies bits `[n * bits, (n + 1) * bits)` of little-endian
//! words filled from their lowest bit, and may cross from one word into the next. A format only says along which
//! axis the runs go and which tensors stand beside them. The rejected alternative, a hand-written shuffle per
//! format and width as most readers have, needs special cases for 3 bits and proves nothing about the others.
//!
//! This crate touches no file: tensors come and go as bytes.

mod bits;
mod bitsandbytes;
mod config;
mod consumers;
mod format;
mod int8;
mod layout;
mod pack;
mod tensor;
mod unpack;

pub use bitsandbytes::CodebookError;
pub use config::{ConfigNotes, quantization_config};
pub use consumers::{
    Consumer, Evidence, Finding, SplitLinears, Verdict, consumers, listed, split_linears,
    split_refuses,
};
pub use format::{Format, Refusal, UnknownFormat};
pub use layout::{ConfigError, QuantizedLayout, read_quantization_config};
pub use pack::{PackError, pack, packed_layout};
pub use tensor::{Dtype, NamedTensor, ScaleDtype, TensorLayout, TensorView, UnknownDtype};
pub use unpack::{UnpackError, unpack};
