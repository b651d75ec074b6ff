//! What a model's linears see: calibration text to token windows to input statistics, stage by stage.
//!
//! In: text sources and a decoder block. Out: [`halfbyte_quant::ActivationStats`] of each of a block's stages, on the
//! calibration windows and on held-out ones. The walk advances one stage at a call and keeps only the residual stream
//! and one stage activation, so each linear runs once a pass whatever is solved in between; the rejected alternative,
//! a forward of the whole block per group of linears, runs it four or five times.

pub mod text;

mod accumulate;
mod activation;
mod module;
mod output_gradients;
mod store;
mod walk;

pub use accumulate::Accumulator;
pub use module::{Module, ModuleReference};
pub use output_gradients::{GradientOptions, OutputGradients, sensitivities};
pub use store::{Store, StoreError};
pub use walk::{LinearStats, RowStats, StageStats, Walk, WalkError, WalkOptions};
