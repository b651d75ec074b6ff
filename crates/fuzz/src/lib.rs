//! Fuzzing of everything that reads a file: valid inputs are spoiled, read, and the reading judged.
//!
//! In: the name of a target, a seed and a time. Out: counts, and every input on which a reader panicked, aborted, took
//! longer or held more memory than it may. An input that has a reader say something new, an error of another wording
//! or a branch not taken before, is kept and spoiled further.
//!
//! Everything runs on the stable toolchain. The rejected alternatives, cargo-fuzz and bolero with libFuzzer, want a
//! nightly one or a build of all dependencies of its own, and know nothing of memory or of a tree's nodes. Where the
//! workspace's crates are compiled with `coverage.sh` as their wrapper, branches are counted as well.

mod allocation;
mod coverage;
mod mutate;
mod run;
mod shared;
mod targets;

pub use run::{Figures, Judged, fuzz, replay};
pub use shared::{Shared, State};
pub use targets::{names, scratch};
