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
                    beam: None,
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

#[cfg(test)]
mod tests {
    use halfbyte_calibrate::{LinearStats, RowStats, StageStats};
    use halfbyte_quant::{CodedWeight, GroupSize};
    use halfbyte_report::{LinearRecord, doubtful_linears};
    use halfbyte_solve::{Damp, factor, gptq};

    use super::*;
    use crate::config::Method;
    use crate::stage::{Prepared, Task, matrix};
    use crate::work::Solved;

    const OUT: usize = 24;
    const IN: usize = 64;

    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next() + next() + next()).collect()
    }

    /// Second moment of so many random tokens.
    fn seen(tokens: usize, seed: u64) -> ActivationStats {
        let x = noise(tokens * IN, seed);
        let mut stats = ActivationStats::identity(IN);
        for (at, h) in stats.hessian.iter_mut().enumerate() {
            let products = x.chunks(IN).map(|token| token[at / IN] * token[at % IN]);
            *h = products.sum::<f32>() / tokens as f32;
        }
        stats.n_tokens = tokens as u64;
        stats
    }

    fn solver(recipe: GptqOptions) -> Solver {
        Solver::Gptq {
            options: GptqOptions {
                damp: Damp::Percent(1e-4),
                ..recipe
            },
            mixed: false,
            beam: None,
        }
    }

    fn solve(
        solver: &Solver,
        rows: &[Option<Vec<usize>>],
        calibration: &ActivationStats,
        holdout: Option<&ActivationStats>,
    ) -> (Solved, LinearRecord) {
        let parts = rows.iter().map(|rows| RowStats {
            rows: rows.clone(),
            stats: StageStats {
                calibration: calibration.clone(),
                holdout: holdout.cloned(),
                max_abs: vec![1.0; IN],
                subsets: Vec::new(),
            },
        });
        let linears = LinearStats {
            kinds: vec![LinearKind::V],
            parts: parts.collect(),
        };
        let weight = noise(OUT * IN, 1);
        let task = Task {
            block: 0,
            kind: LinearKind::V,
            weight: &weight,
            shape: [OUT, IN],
            scheme: scheme(),
            method: Method::Gptq,
            row_factors: Vec::new(),
            unscaled: None,
            bytes_before: 0,
            llm_int8: false,
            peaks: None,
        };
        let prepared = Prepared::new(solver, &linears).unwrap();
        prepared.solve(solver, &task).unwrap()
    }

    fn scheme() -> Scheme {
        Scheme::new(4, GroupSize::Columns(32), true).unwrap()
    }

    /// Four tokens say next to nothing of 64 channels, and without damping they are all that counts.
    #[test]
    fn a_linear_that_loses_more_than_plain_rounding_takes_what_loses_least() {
        let (few, all) = (seen(4, 2), ActivationStats::identity(IN));
        let solver = solver(GptqOptions::default());
        let Solver::Gptq { options, .. } = &solver else {
            unreachable!("made above");
        };
        let weight = noise(OUT * IN, 1);
        let own = gptq(
            matrix(&weight, IN),
            &factor(&few, options).unwrap(),
            &scheme(),
            options,
        );
        let own = loss(matrix(&weight, IN), &own.unwrap().weight, &all).unwrap();
        let halves = [Some((0..9).collect()), Some((9..OUT).collect())];
        for rows in [&[None][..], &halves[..]] {
            let (solved, record) = solve(&solver, rows, &few, Some(&all));
            let (ours, rounding) = (
                record.relative_loss_heldout.unwrap(),
                record.relative_loss_rtn_heldout.unwrap(),
            );
            assert!(
                own.relative > rounding,
                "nothing to mend: {} {rounding}",
                own.relative
            );
            assert!(ours <= rounding, "{ours} {rounding}");
            assert!(record.fallback.is_some());
            assert!(
                record.warnings.iter().any(|w| w.starts_with(FELL_BACK)),
                "{:?}",
                record.warnings
            );
            let CodedWeight::Grid(found) = &solved.weight else {
                panic!("a grid was asked for");
            };
            let again = loss(matrix(&weight, IN), found, &all).unwrap();
            assert!(
                (again.relative / ours - 1.0).abs() < 1e-6,
                "the record is of what is kept"
            );
            let told = doubtful_linears(std::slice::from_ref(&record));
            assert!(told[0].contains("1 linear, model.layers.0.self_attn.v_proj, fell back to"));
        }
    }

    #[test]
    fn a_linear_that_loses_less_and_another_tools_recipe_are_left_alone() {
        let (few, all) = (seen(4, 2), ActivationStats::identity(IN));
        let enough = seen(2000, 3);
        for (solver, calibration, holdout) in [
            (solver(GptqOptions::default()), &enough, Some(&all)),
            (solver(GptqOptions::default()), &few, None),
            (solver(GptqOptions::reference()), &few, Some(&all)),
        ] {
            let Solver::Gptq { options, .. } = &solver else {
                unreachable!("made above");
            };
            let (solved, record) = solve(&solver, &[None], calibration, holdout);
            assert_eq!(record.fallback, None);
            assert!(!record.warnings.iter().any(|w| w.starts_with(FELL_BACK)));
            let weight = noise(OUT * IN, 1);
            let factor = factor(calibration, options).unwrap();
            let own = gptq(matrix(&weight, IN), &factor, &scheme(), options).unwrap();
            assert!(solved.weight == CodedWeight::Grid(own.weight));
        }
    }
}
