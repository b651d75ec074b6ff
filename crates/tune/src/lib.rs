//! Scales and norms of a quantized model, tuned by gradient until its predictions are closest to the float model's.
//!
//! In: the float decoder, the codes and scales of every block, windows of token ids. Out: new scales and norm weights
//! for the same codes. The loss is the KL divergence itself, taken over the whole model; the codes stay, so any
//! format that holds the solved model holds the tuned one (the second phase of EfficientQAT, arXiv 2407.11062, trains
//! scales alone too, on the data's next tokens). A batch walks forward block by block, keeping the blocks' inputs,
//! and back again, so only one block's weights are in memory as floats.

mod adam;
mod parameters;
mod tune;

pub use parameters::{FloatBlocks, SolvedLinears, TunedBlock, TunedModel};
pub use tune::{TuneError, TuneOptions, TuneReport, TuneWindow, tune};
