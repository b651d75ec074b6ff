//! The words every stage shares: what a quantized weight is, and what was seen of its inputs.
//!
//! Plain data with checked construction. No file format, no solver, no tensor library: a scheme means the same
//! thing whoever made the codes and wherever they are written. The rejected alternative, a trait per format,
//! would have every stage know every format.
//!
//! Weights are always `[out_features, in_features]`, row-major, as in checkpoints and papers.

mod codebook;
mod coding;
mod scheme;
mod stats;
mod weight;

pub use codebook::{BlockScales, Codebook, CodebookWeight, NestedScales, dynamic_map};
pub use coding::{CodebookScheme, CodedWeight, Coding};
pub use scheme::{GroupSize, Scheme, SchemeError};
pub use stats::{ActivationStats, CrossStats};
pub use weight::{QuantizedWeight, WeightError};
