//! Faults told apart: the user's, a gate's, and ours.

use crate::config::ConfigError;

/// A fault of the input that no library crate names: what is wrong, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UserError {
    /// The place, what was found, what was wanted; a lowercase fragment.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// The result is written but scores below what the pipeline demands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("gate.{name}: {found:.4} is above {limit}; the files are written all the same")]
pub struct GateFailed {
    /// The gate's key, such as `max_kl`.
    pub name: &'static str,
    /// What was measured.
    pub found: f64,
    /// What was allowed.
    pub limit: f64,
}

/// A fault of the input with its remedy, ready for `?`.
pub fn user_error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    UserError {
        message: message.into(),
        hint: Some(hint.into()),
    }
    .into()
}

/// The program's exit code: 2 for the user's input, 3 for a gate, 1 for us.
pub fn exit_code(error: &anyhow::Error) -> i32 {
    if error.chain().any(|e| e.is::<GateFailed>()) {
        3
    } else if error
        .chain()
        .any(|e| e.is::<UserError>() || e.is::<ConfigError>())
    {
        2
    } else {
        1
    }
}
