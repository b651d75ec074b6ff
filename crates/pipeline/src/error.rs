//! Faults told apart: the user's, a gate's, and ours.

use std::error::Error;

use halfbyte_calibrate::text::TextError;
use halfbyte_calibrate::{StoreError, WalkError};
use halfbyte_checkpoint::CheckpointError;
use halfbyte_evaluate::EvaluateError;
use halfbyte_model::ModelError;
use halfbyte_pack::{Refusal, UnpackError};
use halfbyte_quant::SchemeError;
use halfbyte_report::{ExplainError, ReportError};
use halfbyte_solve::SolveError;

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
#[error(
    "quality gate not met (`gate.{name}`): found {found:.4}, allowed is {limit}; the files are written all the same"
)]
pub struct GateFailed {
    /// The gate's key, such as `max_kl`.
    pub name: &'static str,
    /// What was measured.
    pub found: f64,
    /// What was allowed.
    pub limit: f64,
}

/// The result is written, scores as degraded or broken, and was to be good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--strict: {0}; the files are written all the same")]
pub struct NotGood(
    /// The verdict in words.
    pub String,
);

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
    let failed = |e: &(dyn Error + 'static)| e.is::<GateFailed>() || e.is::<NotGood>();
    if error.chain().any(failed) {
        3
    } else if error.chain().any(is_users) {
        2
    } else {
        1
    }
}

/// Whether an error of the chain names a fault of files, settings or disk. Wrapped ones are looked into by hand:
/// a `transparent` error stands in the chain in place of what it wraps.
fn is_users(e: &(dyn Error + 'static)) -> bool {
    let plain = e.is::<UserError>()
        || e.is::<ConfigError>()
        || e.is::<SchemeError>()
        || e.is::<CheckpointError>()
        || e.is::<TextError>()
        || e.is::<StoreError>()
        || e.is::<ReportError>()
        || e.is::<ExplainError>()
        || e.is::<halfbyte_pack::ConfigError>()
        || e.is::<Refusal>()
        || e.is::<UnpackError>();
    plain
        || e.downcast_ref().is_some_and(is_users_model)
        || e.downcast_ref().is_some_and(|e| match e {
            WalkError::Model(e) => is_users_model(e),
            WalkError::Store(_) | WalkError::NotFinite { .. } | WalkError::Gradient { .. } => true,
        })
        || e.downcast_ref().is_some_and(|e| match e {
            EvaluateError::Model(e) => is_users_model(e),
            _ => true,
        })
        || matches!(
            e.downcast_ref(),
            Some(SolveError::WeightNotFinite { .. } | SolveError::HessianNotFinite { .. })
        )
}

/// All but a device that fails while it computes.
fn is_users_model(error: &ModelError) -> bool {
    !matches!(error, ModelError::Execution(_))
}

/// The first remedy the chain offers, from the outside in.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|e| {
        if let Some(error) = e.downcast_ref::<UserError>() {
            error.hint.clone()
        } else if let Some(error) = e.downcast_ref::<ConfigError>() {
            error.hint.clone()
        } else if let Some(ReportError::Io { action: "read", .. }) = e.downcast_ref() {
            Some(
                "give the folder a finished run has written: it holds halfbyte/run.json".to_owned(),
            )
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn check(error: anyhow::Error, code: i32, remedy: Option<&str>) {
        let error = Err::<(), _>(error).context("block 3").unwrap_err();
        assert_eq!((exit_code(&error), hint(&error).as_deref()), (code, remedy));
    }

    #[test]
    fn faults_of_the_user_a_gate_and_ours_have_their_own_codes() {
        check(user_error("bad", "mend it"), 2, Some("mend it"));
        let config = crate::config::Pipeline::parse("", "p.yaml", std::path::Path::new(""));
        let hint = "`model`: what is quantized; the only section that must be there";
        check(config.unwrap_err().into(), 2, Some(hint));
        let gate = GateFailed {
            name: "max_kl",
            found: 0.2,
            limit: 0.1,
        };
        check(gate.into(), 3, None);
        check(NotGood("broken".to_owned()).into(), 3, None);
        check(anyhow::anyhow!("a bug"), 1, None);
        let weight = SolveError::WeightNotFinite {
            row: 0,
            column: 1,
            value: f32::NAN,
        };
        check(weight.into(), 2, None);
        let shape = SolveError::Shape {
            part: "hessian",
            found: 1,
            wanted: 2,
        };
        check(shape.into(), 1, None);
        let device = || ModelError::Execution("lost".to_owned());
        check(device().into(), 1, None);
        check(WalkError::Model(device()).into(), 1, None);
        check(EvaluateError::Model(device()).into(), 1, None);
        let bits = SchemeError::Bits(7);
        check(bits.into(), 2, None);
        let model = ModelError::QuantizationConfig("no bits".to_owned());
        check(WalkError::Model(model).into(), 2, None);
    }
}
