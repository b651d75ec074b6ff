use halfbyte_checkpoint::CheckpointError;
use halfbyte_kernels::KernelError;
use halfbyte_pack::UnpackError;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder's fault.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A packed linear cannot be read.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The folder's quantization_config is not one we read.
    #[error("quantization_config: {0}")]
    QuantizationConfig(String),
    /// A packed linear of another size than the config's.
    #[error("{module}: packed weight of shape {found:?}, wanted {wanted:?} by config.json")]
    Shape {
        /// Module path.
        module: String,
        /// `[out_features, in_features]` in the file.
        found: [usize; 2],
        /// `[out_features, in_features]` by the config.
        wanted: [usize; 2],
    },
    /// A token id beyond the embedding.
    #[error(
        "token id {id} at position {position}: the model's vocabulary has {vocab_size} ids; the tokenizer does not belong to this model"
    )]
    TokenId {
        /// The id found.
        id: u32,
        /// Where in the window.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// More tokens than the model was loaded for.
    #[error("a window of {wanted} tokens; the model was loaded for windows of 1 to {loaded}")]
    Positions {
        /// Positions that would be filled.
        wanted: usize,
        /// Positions there are.
        loaded: usize,
    },
    /// A packed linear cannot be multiplied on the device.
    #[error("{module}: {source}")]
    Kernel {
        /// Module path.
        module: String,
        /// Why.
        source: KernelError,
    },
    /// No such accelerator.
    #[error("device {asked}: {reason}; use --device cpu, or install a driver for it")]
    Device {
        /// What was asked for.
        asked: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The device failed while computing.
    #[error("the device failed while computing: {0}")]
    Execution(String),
}
