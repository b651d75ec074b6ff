//! GPTQ: one greedy pass over columns, every error paid back by the columns still to come.

use std::borrow::Cow;

use faer::MatRef;
use halfbyte_quant::{QuantizedWeight, Scheme};
use rayon::prelude::*;

use crate::beam;
use crate::factor::{Factor, Triangle};
use crate::grid::{GridSpec, group_grid, nearest};
use crate::kernel::{LANES, Lane, PANEL, multiversion, panel_targets, pull_error};
use crate::measure::strip_sums;
use crate::reference::push;
use crate::refine::refine;
use crate::solution::Sums;
use crate::storage::Storage;
use crate::strip::{
    Coded, Layout, Panels, Pass, StripResult, assemble, check_weight, gather, strips,
};
use crate::{GptqOptions, Recipe, Solution, SolveError};

/// Solves `weight` `[out_features, in_features]` on the factor of its input's statistics.
/// GPTQ, Frantar et al., arXiv 2210.17323, section 3; pull form, grid and refinement are described at the crate's head.
///
/// Rows are independent: strips of 32 run on all of rayon's threads and give the same bits on any number of them.
///
/// # Errors
/// NaN or infinity in the weight, shapes or options that do not fit each other or the factor.
pub fn gptq(
    weight: MatRef<'_, f32>,
    factor: &Factor,
    scheme: &Scheme,
    options: &GptqOptions,
) -> Result<Solution, SolveError> {
    check_options(factor, options)?;
    check_weight(weight, factor.columns)?;
    let problem = Problem::new(factor, scheme, options);
    let solved: Vec<StripResult> = strips(weight.nrows())
        .into_par_iter()
        .map(|rows| {
            let w = gather(weight, rows.clone(), &problem.layout);
            let coded = problem.solve(&w);
            problem.result(&w, &coded, rows.len())
        })
        .collect();
    let (quantized, sums) = assemble(scheme, [weight.nrows(), weight.ncols()], solved)?;
    Ok(problem.solution(quantized, sums))
}

/// A warning when scales had to be clamped to the smallest number their type stores well.
pub(crate) fn tiny_scales(solution: &Solution, storage: Storage) -> Option<String> {
    let scales = solution.weight.scales();
    let tiny = scales.iter().filter(|s| s.abs() <= storage.least).count();
    (tiny > 0).then(|| {
        format!(
            "{tiny} of {} scales clamped to {:e}, the smallest normal number of their type",
            scales.len(),
            storage.least
        )
    })
}

pub(crate) fn check_options(factor: &Factor, options: &GptqOptions) -> Result<(), SolveError> {
    if options.desc_act && !options.static_groups {
        return Err(SolveError::NeedsStaticGroups);
    }
    if options.recipe == Recipe::Default && !options.static_groups {
        return Err(SolveError::DynamicGroups);
    }
    if factor.recipe != options.recipe {
        return Err(SolveError::FactorMismatch { option: "recipe" });
    }
    if factor.desc_act != options.desc_act {
        return Err(SolveError::FactorMismatch { option: "desc_act" });
    }
    let wrong = |option, found: usize, wanted| {
        Err(SolveError::Option {
            option,
            found: found.to_string(),
            wanted,
        })
    };
    if options.block_size == 0 {
        return wrong("block_size", 0, "at least 1; 128 is usual");
    }
    if !matches!(options.beam, 1 | 2 | 4 | 8 | 16) {
        return wrong("beam", options.beam, "1, 2, 4, 8 or 16");
    }
    if options.recipe == Recipe::Reference && options.beam > 1 {
        return wrong("beam", options.beam, "1 with recipe: reference");
    }
    if options.recipe == Recipe::Reference && options.refine_rounds > 0 {
        return wrong(
            "refine_rounds",
            options.refine_rounds,
            "0 with recipe: reference",
        );
    }
    Ok(())
}

/// One weight's worth of what all strips share, with columns laid out for the scheme's groups.
pub(crate) struct Problem<'a> {
    pub(crate) factor: &'a Factor,
    pub(crate) options: &'a GptqOptions,
    pub(crate) layout: Layout,
    pub(crate) spec: GridSpec,
    pub(crate) hessian: Cow<'a, Panels>,
    diagonal: Vec<f32>,
    ridge: Vec<f32>,
    /// Position and group of each column in solve order.
    pub(crate) places: Vec<(usize, usize)>,
    /// Pivot of each column in solve order.
    pivots: Vec<f32>,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(factor: &'a Factor, scheme: &Scheme, options: &'a GptqOptions) -> Self {
        let layout = Layout::of(scheme, factor.columns);
        let hessian = if layout.is_plain() {
            Cow::Borrowed(&factor.hessian)
        } else {
            Cow::Owned(factor.hessian.relayout(&layout))
        };
        let mut ridge = vec![0.0; layout.padded];
        for (column, &value) in factor.ridge.iter().enumerate() {
            ridge[layout.position(column)] = value;
        }
        let diagonal = (0..layout.padded)
            .map(|p| hessian.panel(p / PANEL)[p][p % PANEL])
            .collect();
        let places = factor
            .order
            .iter()
            .map(|&column| (layout.position(column), column / layout.group))
            .collect();
        let storage = Storage::new(options.scale_dtype);
        Self {
            factor,
            options,
            layout,
            spec: GridSpec::new(scheme, options.grid, options.signed_scales, storage),
            hessian,
            diagonal,
            ridge,
            places,
            pivots: factor
                .order
                .iter()
                .map(|&column| factor.pivots[column])
                .collect(),
        }
    }

    /// The codes nearest to a strip's rows under `H`.
    pub(crate) fn solve(&self, w: &[Lane]) -> Coded {
        match &self.factor.triangle {
            Triangle::Push(u) => push(self, w, u),
            Triangle::Pull(n) => {
                let mut coded = self.static_grid(w);
                let pass = Pass {
                    w,
                    n,
                    pivots: &self.pivots,
                    places: &self.places,
                    max_code: self.spec.max_code,
                };
                let hessian = (Some(&*self.hessian), &self.diagonal[..]);
                let rounds = self.options.refine_rounds;
                pull(&pass, &mut coded, true);
                refine(w, &mut coded, &self.layout, &self.spec, hessian, rounds);
                if self.options.beam > 1 {
                    // on refined scales, which a search before the refinement would not have had
                    let loss = pull(&pass, &mut coded, false);
                    beam::search(&pass, &mut coded, &loss, self.options.beam);
                    refine(w, &mut coded, &self.layout, &self.spec, hessian, rounds);
                }
                coded
            }
        }
    }

    /// A strip's codes and what they cost against its rows `w`.
    pub(crate) fn result(&self, w: &[Lane], coded: &Coded, rows: usize) -> StripResult {
        let hessian = (Some(&*self.hessian), &self.ridge[..], self.factor.unit);
        let mut sums = strip_sums(w, coded, &self.layout, rows, self.spec.max_code, hessian);
        if self.factor.balance > 0.0 {
            self.leave_balance_out(w, coded, &mut sums);
        }
        StripResult::new(&self.layout, coded, rows, sums)
    }

    /// Takes out of a strip's sums what the sum of a row's errors weighs in the factor's Hessian.
    fn leave_balance_out(&self, w: &[Lane], coded: &Coded, sums: &mut Sums) {
        let error = coded.error(&self.layout, w);
        let (mut of_w, mut of_error) = ([0.0f64; LANES], [0.0f64; LANES]);
        for column in (0..self.layout.columns).filter(|&column| !self.factor.dead[column]) {
            let position = self.layout.position(column);
            for l in 0..LANES {
                of_w[l] += f64::from(w[position].0[l]);
                of_error[l] += f64::from(error[position].0[l]);
            }
        }
        let weight = f64::from(self.factor.balance) * self.factor.unit;
        for (of_w, of_error) in of_w.iter().zip(of_error) {
            sums.loss -= weight * of_error * of_error;
            sums.signal -= weight * of_w * of_w;
            sums.cross -= weight * of_w * of_error;
        }
        sums.loss = sums.loss.max(0.0);
        sums.signal = sums.signal.max(0.0);
    }

    /// The whole weight with what a user should hear of its solve.
    pub(crate) fn solution(&self, quantized: QuantizedWeight, sums: Sums) -> Solution {
        let mut solution = Solution::new(quantized, sums);
        solution.damp_asked = self.factor.damp_asked();
        solution.damp_used = self.factor.damp_used();
        solution.dead_columns = self.factor.dead_columns();
        solution.condition = self.factor.condition();
        solution.warnings = self.factor.warnings().to_vec();
        let tiny = tiny_scales(&solution, self.spec.storage);
        solution.warnings.extend(tiny);
        solution
    }

    /// Grids of all groups from the weights as given, each column weighted with its pivot.
    pub(crate) fn static_grid(&self, w: &[Lane]) -> Coded {
        let mut coded = Coded::new(&self.layout);
        for g in 0..self.layout.groups {
            let columns =
                g * self.layout.group..((g + 1) * self.layout.group).min(self.layout.columns);
            let pivots = &self.factor.pivots[columns];
            (coded.scale[g], coded.zero[g]) =
                group_grid(&w[self.layout.real(g)], pivots, &self.spec);
        }
        coded
    }
}

multiversion! {
    /// The greedy pass in pull form: `t_k = w_k + Σ_{i<k} e_i N_ik`, `e_k = w_k - nearest(t_k)`; the codes at hand stay where
    /// `choose` is false. Returns the rows' damped losses, `Σ_k D_k (t_k - ŵ_k)²`.
    fn pull(pass: &Pass<'_>, coded: &mut Coded, choose: bool) -> Lane {
        let Pass { w, n, pivots, places, max_code } = *pass;
        let mut loss = Lane::ZERO;
        let mut inverse_scale = coded.scale.clone();
        for lane in &mut inverse_scale {
            for inverse in &mut lane.0 {
                *inverse = 1.0 / *inverse;
            }
        }
        let mut errors = vec![Lane::ZERO; places.len()];
        for start in (0..places.len()).step_by(PANEL) {
            let rows = n.panel(start / PANEL);
            let panel = pass.panel(start);
            let mut targets = panel_targets(w, panel, &errors[..start], &rows[..start]);
            for (c, &(position, group)) in panel.iter().enumerate() {
                let (scale, zero) = (&coded.scale[group].0, &coded.zero[group].0);
                let inverse = &inverse_scale[group].0;
                let (v, w) = (&mut coded.v[position].0, &w[position].0);
                let mut error = Lane::ZERO;
                for l in 0..LANES {
                    if choose {
                        v[l] = nearest(targets[c].0[l], inverse[l], -zero[l], max_code - zero[l]);
                    }
                    error.0[l] = v[l].mul_add(-scale[l], w[l]);
                    let miss = v[l].mul_add(-scale[l], targets[c].0[l]);
                    loss.0[l] = (pivots[start + c] * miss).mul_add(miss, loss.0[l]);
                }
                pull_error(&mut targets, c, &error, &rows[start + c]);
                errors[start + c] = error;
            }
        }
        loss
    }
}
