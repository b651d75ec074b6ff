//! The workspace from outside: its architecture, its agreement with other projects, and the program as users run it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "tests are documented by their names and end at what they do not expect"
)]

mod architecture;
mod bad_input;
mod consumers;
mod damaged;
mod generate;
mod geometry;
mod golden;
mod output;
mod page;
mod program;
mod snapshot;
mod sweep;
mod terminal;
mod texts;
mod told;
