//! Rounding to nearest: no column pays for another.

use std::ops::Range;

use faer::MatRef;
use halfbyte_quant::{ActivationStats, Scheme};
use rayon::prelude::*;

use crate::factor::check_stats;
use crate::gptq::tiny_scales;
use crate::grid::{GridSpec, clipped_min_max, group_grid, nearest};
use crate::kernel::{LANES, Lane, multiversion};
use crate::measure::{output_loss, panels_of, strip_sums};
use crate::refine::refine;
use crate::storage::Storage;
use crate::strip::{Coded, Layout, Panels, StripResult, assemble, check_weight, gather, strips};
use crate::{RtnOptions, Solution, SolveError};

/// Rounds every weight `[out_features, in_features]` to the nearest level of its group.
///
/// Statistics weight the range search and the refinement with `H_kk` and give the losses reported; without them
/// `H = I`. With `H = I` this is exactly what [`gptq`](crate::gptq) gives under the same grid and refinement.
///
/// # Errors
/// NaN or infinity in weight or statistics, shapes that disagree.
pub fn rtn(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
    scheme: &Scheme,
    options: &RtnOptions,
) -> Result<Solution, SolveError> {
    rtn_within(weight, stats, scheme, options, None)
}

/// Rounds as [`rtn`] with `grid: MinMax`, each group's range cut to `-limit..=limit` first: what
/// [`awq::search_clip`](crate::awq::search_clip) found. Weights beyond take the outermost code; losses are those of the
/// weight as given. `options.grid` is not read.
///
/// `limits` are `[out_features, groups]`, row-major.
///
/// # Errors
/// As [`rtn`], and limits of the wrong number, or NaN or negative ones.
pub fn rtn_clipped(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
    scheme: &Scheme,
    options: &RtnOptions,
    limits: &[f32],
) -> Result<Solution, SolveError> {
    let (groups, rows) = (scheme.n_groups(weight.ncols().max(1)), weight.nrows());
    if limits.len() != rows * groups {
        return Err(SolveError::Shape {
            part: "clip limits",
            found: limits.len(),
            wanted: rows * groups,
        });
    }
    if let Some(at) = limits.iter().position(|&l| l.is_nan() || l < 0.0) {
        return Err(SolveError::Limit {
            row: at / groups,
            group: at % groups,
            value: limits[at],
        });
    }
    rtn_within(weight, stats, scheme, options, Some(limits))
}

/// `tr(Δ H Δᵀ)` of what [`rtn`] makes of the weight, and nothing else: a third of its work, for searches.
pub(crate) fn rtn_loss(
    weight: MatRef<'_, f32>,
    stats: &ActivationStats,
    scheme: &Scheme,
    options: &RtnOptions,
) -> Result<f64, SolveError> {
    let rounding = Rounding::new(weight, Some(stats), scheme, options)?;
    let panels = rounding.panels(stats);
    let losses: Vec<f64> = strips(weight.nrows())
        .into_par_iter()
        .map(|rows| {
            let w = gather(weight, rows, &rounding.layout);
            let coded = rounding.code(&w, None);
            output_loss(&coded.error(&rounding.layout, &w), &panels)
        })
        .collect();
    Ok(losses.iter().sum())
}

fn rtn_within(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
    scheme: &Scheme,
    options: &RtnOptions,
    limits: Option<&[f32]>,
) -> Result<Solution, SolveError> {
    let rounding = Rounding::new(weight, stats, scheme, options)?;
    let (layout, spec, columns) = (&rounding.layout, &rounding.spec, weight.ncols());
    let panels = stats.map(|stats| rounding.panels(stats));
    let no_ridge = vec![0.0; layout.padded];
    let solved: Vec<StripResult> = strips(weight.nrows())
        .into_par_iter()
        .map(|rows| {
            let w = gather(weight, rows.clone(), layout);
            let limits = limits.map(|limits| gather_limits(limits, rows.clone(), layout.groups));
            let coded = rounding.code(&w, limits.as_deref());
            let measured = (panels.as_ref(), &no_ridge[..], 1.0);
            let sums = strip_sums(&w, &coded, layout, rows.len(), spec.max_code, measured);
            StripResult::new(layout, &coded, rows.len(), sums)
        })
        .collect();
    let (quantized, sums) = assemble(scheme, [weight.nrows(), columns], solved)?;
    let mut solution = Solution::new(quantized, sums);
    solution
        .warnings
        .extend(tiny_scales(&solution, spec.storage));
    if let Some(stats) = stats {
        solution.dead_columns = (0..columns)
            .filter(|k| stats.hessian[k * (columns + 1)] <= 0.0)
            .count();
    }
    Ok(solution)
}

/// What all strips of a weight share.
struct Rounding {
    layout: Layout,
    spec: GridSpec,
    importance: Vec<f32>,
    /// The same by position.
    diagonal: Vec<f32>,
    refine_rounds: usize,
}

impl Rounding {
    fn new(
        weight: MatRef<'_, f32>,
        stats: Option<&ActivationStats>,
        scheme: &Scheme,
        options: &RtnOptions,
    ) -> Result<Self, SolveError> {
        let columns = weight.ncols();
        if let Some(stats) = stats {
            check_stats(stats)?;
        }
        check_weight(weight, stats.map_or(columns, |stats| stats.in_features))?;
        let layout = Layout::of(scheme, columns);
        let storage = Storage::new(options.scale_dtype);
        let importance = importance(stats, columns);
        let mut diagonal = vec![0.0; layout.padded];
        for (column, &u) in importance.iter().enumerate() {
            diagonal[layout.position(column)] = u;
        }
        Ok(Self {
            layout,
            spec: GridSpec::new(scheme, options.grid, options.signed_scales, storage),
            importance,
            diagonal,
            refine_rounds: options.refine_rounds,
        })
    }

    /// The bare Hessian in this layout.
    fn panels(&self, stats: &ActivationStats) -> Panels {
        let plain = panels_of(stats);
        if self.layout.is_plain() {
            plain
        } else {
            plain.relayout(&self.layout)
        }
    }

    fn code(&self, w: &[Lane], limits: Option<&[Lane]>) -> Coded {
        let (layout, spec) = (&self.layout, &self.spec);
        let mut coded = round(w, &self.importance, limits, layout, spec);
        let hessian = (None, &self.diagonal[..]);
        refine(w, &mut coded, layout, spec, hessian, self.refine_rounds);
        coded
    }
}

/// `H_kk` over its mean, so that neither the grid nor the refinement sees the unit of `H`; ones without statistics.
fn importance(stats: Option<&ActivationStats>, columns: usize) -> Vec<f32> {
    let diagonal: Vec<f64> = match stats {
        Some(stats) => stats
            .hessian
            .iter()
            .step_by(columns + 1)
            .map(|&h| f64::from(h).max(0.0))
            .collect(),
        None => vec![1.0; columns],
    };
    let mean = diagonal.iter().sum::<f64>() / columns as f64;
    if mean == 0.0 {
        return vec![1.0; columns];
    }
    diagonal.iter().map(|&h| (h / mean) as f32).collect()
}

/// Limits of a strip, a lane a group.
fn gather_limits(limits: &[f32], rows: Range<usize>, groups: usize) -> Vec<Lane> {
    let mut strip = vec![Lane::ZERO; groups];
    for (lane, row) in rows.enumerate() {
        for (group, to) in strip.iter_mut().enumerate() {
            to.0[lane] = limits[row * groups + group];
        }
    }
    strip
}

multiversion! {
    fn round(
        w: &[Lane],
        importance: &[f32],
        limits: Option<&[Lane]>,
        layout: &Layout,
        spec: &GridSpec,
    ) -> Coded {
        let mut coded = Coded::new(layout);
        for g in 0..layout.groups {
            let columns = g * layout.group..((g + 1) * layout.group).min(layout.columns);
            let group = &w[layout.real(g)];
            let (scale, zero) = match limits {
                Some(limits) => clipped_min_max(group, &limits[g], spec),
                None => group_grid(group, &importance[columns], spec),
            };
            for p in layout.real(g) {
                for l in 0..LANES {
                    coded.v[p].0[l] = nearest(
                        w[p].0[l],
                        1.0 / scale.0[l],
                        -zero.0[l],
                        spec.max_code - zero.0[l],
                    );
                }
            }
            (coded.scale[g], coded.zero[g]) = (scale, zero);
        }
        coded
    }
}
