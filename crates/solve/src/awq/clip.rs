use faer::MatRef;
use halfbyte_quant::{ActivationStats, Scheme};
use rayon::prelude::*;

use crate::factor::check_stats;
use crate::grid::{GridSpec, clipped_min_max, nearest};
use crate::kernel::{LANES, Lane, PANEL, accumulate, multiversion};
use crate::measure::panels_of;
use crate::storage::Storage;
use crate::strip::{Layout, Panels, check_weight, gather, strips};
use crate::{RtnOptions, SolveError};

/// Ranges for [`rtn_clipped`](crate::rtn_clipped), and what they save.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Largest magnitude each group's range may keep, `[out_features, groups]` row-major.
    pub limits: Vec<f32>,
    /// Share of the groups whose range was narrowed.
    pub narrowed_share: f64,
    /// `Σ_groups δ_g H_gg δ_gᵀ` of the whole ranges.
    pub loss_before: f64,
    /// The same of the ranges found, never above it.
    pub loss: f64,
}

/// Ranges tried, from the whole one by twentieths: AutoAWQ's `n_grid` 20 and `max_shrink` 0.5.
const STEPS: usize = 10;
const STEP: f32 = 1.0 / 20.0;

/// Searches the range of every (row, group), `max|w| * (1 - i/20)` for `i` in `0..10`, of least `δ_g H_gg δ_gᵀ`: the
/// error of the group's share of the output under min-max rounding to the range. AWQ's clip search (llm-awq,
/// AutoAWQ), from the Hessian's diagonal blocks in place of kept tokens.
///
/// AutoAWQ cuts the weights and codes what is left; here weights beyond the range take its outermost code. The two
/// differ only where a range is cut on both sides, whose ends then lie half way between two codes.
///
/// Give it the weight as it will be rounded, columns scaled, and the statistics scaled likewise. The field leaves q
/// and k alone, whose errors meet in a product; that is the caller's choice. `options.grid` and
/// `options.refine_rounds` are not read.
///
/// # Errors
/// NaN or infinity in weight or statistics, shapes that disagree.
pub fn search_clip(
    weight: MatRef<'_, f32>,
    stats: &ActivationStats,
    scheme: &Scheme,
    options: &RtnOptions,
) -> Result<Clip, SolveError> {
    check_stats(stats)?;
    check_weight(weight, stats.in_features)?;
    let layout = Layout::of(scheme, stats.in_features);
    let storage = Storage::new(options.scale_dtype);
    let spec = GridSpec::new(scheme, options.grid, false, storage);
    let plain = panels_of(stats);
    let panels = if layout.is_plain() {
        plain
    } else {
        plain.relayout(&layout)
    };
    let found: Vec<Vec<Narrowed>> = strips(weight.nrows())
        .into_par_iter()
        .map(|rows| narrow(&gather(weight, rows, &layout), &layout, &panels, &spec))
        .collect();
    let groups = weight.nrows() * layout.groups;
    let mut clip = Clip {
        limits: Vec::with_capacity(groups),
        narrowed_share: 0.0,
        loss_before: 0.0,
        loss: 0.0,
    };
    let mut narrowed = 0;
    for (rows, strip) in strips(weight.nrows()).into_iter().zip(&found) {
        for lane in 0..rows.len() {
            for group in strip {
                clip.limits.push(group.limit.0[lane]);
                clip.loss_before += f64::from(group.loss_before.0[lane]);
                clip.loss += f64::from(group.loss.0[lane]);
                narrowed += usize::from(group.limit.0[lane] < group.widest.0[lane]);
            }
        }
    }
    clip.narrowed_share = narrowed as f64 / groups as f64;
    Ok(clip)
}

/// One group of all rows of a strip.
struct Narrowed {
    widest: Lane,
    limit: Lane,
    loss_before: Lane,
    loss: Lane,
}

multiversion! {
    fn narrow(w: &[Lane], layout: &Layout, panels: &Panels, spec: &GridSpec) -> Vec<Narrowed> {
        let mut found = Vec::with_capacity(layout.groups);
        let mut error = vec![Lane::ZERO; layout.stride];
        for g in 0..layout.groups {
            let (group, whole) = (&w[layout.real(g)], layout.whole(g));
            let mut widest = Lane::ZERO;
            for w in group {
                for l in 0..LANES {
                    widest.0[l] = widest.0[l].max(w.0[l].abs());
                }
            }
            let mut best = Narrowed {
                limit: widest,
                widest,
                loss_before: Lane::ZERO,
                loss: Lane([f32::INFINITY; LANES]),
            };
            // the last group may be shorter than the one before it
            error[group.len()..].fill(Lane::ZERO);
            for step in 0..STEPS {
                let mut limit = widest;
                for limit in &mut limit.0 {
                    *limit *= 1.0 - step as f32 * STEP;
                }
                let (scale, zero) = clipped_min_max(group, &limit, spec);
                let (mut inverse, mut low, mut high) = (Lane::ZERO, Lane::ZERO, Lane::ZERO);
                for l in 0..LANES {
                    inverse.0[l] = 1.0 / scale.0[l];
                    low.0[l] = -zero.0[l];
                    high.0[l] = spec.max_code - zero.0[l];
                }
                for (error, w) in error.iter_mut().zip(group) {
                    for l in 0..LANES {
                        let v = nearest(w.0[l], inverse.0[l], low.0[l], high.0[l]);
                        error.0[l] = v.mul_add(-scale.0[l], w.0[l]);
                    }
                }
                // δ H δᵀ by half the products, since H is symmetric
                let mut loss = Lane::ZERO;
                for start in whole.clone().step_by(PANEL) {
                    let at = start - whole.start;
                    let rows = &panels.panel(start / PANEL)[whole.clone()];
                    let mut eh = [Lane::ZERO; PANEL];
                    accumulate(&mut eh, &error[..at], &rows[..at]);
                    for eh in &mut eh {
                        for eh in &mut eh.0 {
                            *eh *= 2.0;
                        }
                    }
                    accumulate(&mut eh, &error[at..at + PANEL], &rows[at..at + PANEL]);
                    for (eh, error) in eh.iter().zip(&error[at..at + PANEL]) {
                        for l in 0..LANES {
                            loss.0[l] = eh.0[l].mul_add(error.0[l], loss.0[l]);
                        }
                    }
                }
                if step == 0 {
                    best.loss_before = loss;
                }
                for l in 0..LANES {
                    if loss.0[l] < best.loss.0[l] {
                        best.loss.0[l] = loss.0[l];
                        best.limit.0[l] = limit.0[l];
                    }
                }
            }
            found.push(best);
        }
        found
    }
}
