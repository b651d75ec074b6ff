//! What else a linear can be solved by, for one whose own solve loses more than plain rounding.

use anyhow::Result;
use faer::MatRef;
use halfbyte_model::LinearKind;
use halfbyte_quant::{ActivationStats, Scheme};
use halfbyte_report::FELL_BACK;
use halfbyte_solve::{
    Factor, GptqOptions, RtnOptions, Solution, SolveError, coupled_loss, loss, rtn,
};

use crate::stage::Solver;

/// The names of attempts, as records have them.
const PLAIN: &str = "plain rounding";
const SEARCHED: &str = "rounding on a searched grid";
const UNREFINED: &str = "the greedy solve without refinement";
const BY_THEMSELVES: &str = "rows solved by themselves";

/// What rows were solved from, so that they can be solved otherwise.
pub(crate) struct Attempts<'a> {
    pub(crate) solver: &'a Solver,
    pub(crate) seen: Option<&'a ActivationStats>,
    pub(crate) factor: Option<&'a Factor>,
    /// Of the Hessians of consecutive ranges of the rows; none where rows were solved by themselves.
    pub(crate) row_factors: &'a [Factor],
    pub(crate) kind: LinearKind,
    pub(crate) scheme: &'a Scheme,
}

impl Attempts<'_> {
    /// The attempt of least loss by `judging`, with its name; none where `ours` is no worse.
    pub(crate) fn better(
        &self,
        weight: MatRef<'_, f32>,
        ours: &Solution,
        judging: &ActivationStats,
    ) -> Result<Option<(&'static str, Solution)>> {
        let mut attempts: Vec<(&'static str, Solution)> = Vec::new();
        let mut signed_scales = false;
        let solve = |solver: &Solver| {
            let (seen, factor) = (self.seen, self.factor);
            solver.solve(weight, seen, factor, &[], self.kind, self.scheme)
        };
        match self.solver {
            Solver::Gptq { options, mixed, .. } => {
                signed_scales = options.signed_scales;
                if !self.row_factors.is_empty() {
                    attempts.push((BY_THEMSELVES, solve(&self.solver.ordinary())?));
                }
                let unrefined = Solver::Gptq {
                    options: GptqOptions {
                        refine_rounds: 0,
                        beam: 1,
                        ..options.clone()
                    },
                    mixed: *mixed,
                    best: false,
                };
                attempts.push((UNREFINED, solve(&unrefined)?));
            }
            Solver::Awq { rounding, .. } => signed_scales = rounding.signed_scales,
            _ => {}
        }
        if !matches!(self.solver, Solver::Rtn(_)) {
            let searched = RtnOptions {
                signed_scales,
                ..RtnOptions::search()
            };
            let searched = rtn(weight, self.seen, self.scheme, &searched)?;
            attempts.push((SEARCHED, searched));
        }
        let plain = rtn(weight, self.seen, self.scheme, &RtnOptions::default())?;
        attempts.push((PLAIN, plain));
        let mut least = self.loss(weight, ours, judging)?;
        let mut best = None;
        for (name, solution) in attempts {
            let found = self.loss(weight, &solution, judging)?;
            if found < least || (least.is_nan() && !found.is_nan()) {
                (least, best) = (found, Some((name, solution)));
            }
        }
        Ok(best)
    }

    /// `tr(Δ H Δᵀ)`, or where rows know of each other `tr(R Δ H Δᵀ)`, which is what those are solved by.
    fn loss(
        &self,
        weight: MatRef<'_, f32>,
        solution: &Solution,
        judging: &ActivationStats,
    ) -> Result<f64, SolveError> {
        if self.row_factors.is_empty() {
            return Ok(loss(weight, &solution.weight, judging)?.absolute);
        }
        coupled_loss(weight, &solution.weight, judging, self.row_factors)
    }
}

/// A linear whose own solve lost more than plain rounding, or more than all it gives.
pub(crate) struct FellBack {
    /// What took its place; none where nothing that was tried is better.
    pub(crate) to: Option<String>,
    /// Relative loss of its own solve, of what took its place, and of plain rounding.
    pub(crate) before: f64,
    pub(crate) after: f64,
    pub(crate) rounding: f64,
    /// Whether those are of held-out text.
    pub(crate) heldout: bool,
}

impl FellBack {
    /// In words, for the record.
    pub(crate) fn warning(&self) -> String {
        let text = match self.heldout {
            true => "held-out",
            false => "calibration",
        };
        match &self.to {
            Some(to) => format!(
                "{FELL_BACK}{to}: {text} loss {:.2e} in place of {:.2e}, plain rounding has {:.2e}",
                self.after, self.before, self.rounding
            ),
            None => format!(
                "{text} loss {:.2e}, plain rounding has {:.2e}, and nothing that was tried has less",
                self.before, self.rounding
            ),
        }
    }
}
