//! A decoder on burn, one block at a time: load a block, run its stages, swap its weights. Or all blocks at once, for
//! generating: [`LoadedModel`], with weights as small as they are stored and a cache of keys and values.
//!
//! In: a model folder's tensors. Out: activations as `Tensor<3>` `[windows, tokens, features]`. A block offers its
//! stages as plain functions, so that statistics can be taken between them and each linear runs once a pass; the
//! rejected alternative, hooks on one `forward`, makes the peers run a block four or five times.
//!
//! Llama, Mistral, Qwen2 and Qwen3 are one block: what differs between them is data in
//! [`halfbyte_checkpoint::ModelConfig`]. The code is the same on the CPU and on wgpu.

mod attention;
mod backward;
mod block;
mod cache;
mod decoder;
mod device;
mod error;
mod gradient;
mod host;
mod linear;
mod loaded;
mod logits;
mod rope;
mod stored;
mod weights;

pub use block::{Block, Linears, Stage, linear_shape};
pub use cache::KeyValueCache;
pub use decoder::{Decoder, Head};
pub use device::{DeviceChoice, is_host, open_device, values};
pub use error::ModelError;
pub use gradient::{BlockGradients, NormKind, ParameterGradients};
pub use linear::{Execution, Linear, LinearKind};
pub use loaded::{Cache, LoadedModel};
pub use logits::{divergence, fisher_probe, softmax};
pub use rope::rope_frequencies;
pub use weights::Weights;
