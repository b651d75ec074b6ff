//! The straight line from a pipeline file to a smaller model folder.
//!
//! In: a YAML pipeline, checked into a [`config::Pipeline`]. Out: checkpoint folders and the records of how they came
//! about. This is the only crate that sees two stages: it asks calibrate for statistics, hands them to a solver, puts
//! the codes into the block, and goes on. Nothing here prints; what happens is told through [`Event`]s.

pub mod config;

mod budget;
mod codes;
mod consumers;
mod curve;
mod error;
mod evaluate;
mod event;
mod export;
mod fallback;
mod finished;
mod generate;
mod inspect;
mod judge;
mod memory;
mod open;
mod output;
mod plan;
mod quantize;
mod recipe;
mod record;
mod scale;
mod sensitivity;
mod stage;
mod sweep;
mod told;
mod tune;
mod usage;
mod work;

pub use consumers::ConsumerLine;
pub use error::{GateFailed, NotGood, UserError, exit_code, hint, user_error};
pub use evaluate::{EvalRequest, evaluate};
pub use event::Event;
pub use generate::{
    Cost, GenerateRequest, Generation, Generator, Sampling, SamplingRequest, StoppedBy,
};
pub use halfbyte_checkpoint::is_caught;
pub use halfbyte_evaluate::{Against, Agreement, Evaluation, GenerationCost, KeptDense};
pub use halfbyte_report as report;
pub use inspect::{Inspection, TensorLine, inspect};
pub use output::clear_leftovers;
pub use plan::{Plan, PlannedExport, PlannedLinears, plan};
pub use quantize::{Run, RunOptions, quantize};
pub use record::verdict_scores;
pub use sensitivity::{PartSensitivity, Parts, Sensitivity, SensitivityRequest, sensitivity};
pub use sweep::{Shard, SweepOptions, Swept, merge_sweep, sweep};
pub use usage::{keep_freed_memory, tell_of_file_limits};
pub use work::blocks_kept;
