//! The workspace from outside: its architecture, its agreement with other projects, and the program as users run it.
#![allow(missing_docs, reason = "tests are documented by their names")]

mod architecture;
mod bad_input;
mod golden;
mod program;
mod snapshot;
