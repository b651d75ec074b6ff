//! What a model folder holds, and how its successor is written.
//!
//! In: a folder, the embedded model or a hub id. Out: a checked [`ModelConfig`], tensors as views of mapped files,
//! and atomically written files. The decision: one decoder description for every family, filled from a table of plain
//! data; the rejected alternative, a type per family, repeats the same checks four times. Nothing here computes with
//! weights beyond turning F64, F32, F16 and BF16 into `f32`.

mod caught;
mod config;
mod error;
mod folder;
mod foreign;
mod growth;
mod header;
#[cfg(feature = "hub")]
mod hub;
mod json;
mod lock;
mod place;
mod source;
mod write;

pub use caught::{caught, decode, encode, encode_placed, is_caught};
pub use config::{
    Activation, AttentionBias, FAMILIES, Family, FamilyRow, HeadDimDefault, ModelConfig, Rope,
    RopeScaling, WindowRule, expected_tensors,
};
pub use error::CheckpointError;
pub use folder::{FileIdentity, Identity, ModelFolder, TensorView, goes_with_model, sha256};
pub use json::plain_json;
pub use lock::FolderLock;
pub use place::{free_bytes, is_within, real_place};
pub use safetensors::Dtype;
pub use source::{
    DatasetFiles, HubOptions, Progress, Source, resolve, resolve_dataset, resolve_with_progress,
};
pub use write::{
    AtomicFile, SafetensorsWriter, Shard, ShardPlan, TensorInfo, copy_file, create_folder,
    encode_f32, move_file, plan_shards, remove_file, remove_folder, remove_partial_files, rounding,
    write_file, write_json,
};

/// What every function here returns.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

#[cfg(test)]
mod fixture;
