//! Rounding to nearest: no column pays for another.

use faer::MatRef;
use halfbyte_quant::{ActivationStats, Scheme};
use rayon::prelude::*;

use crate::factor::check_stats;
use crate::gptq::tiny_scales;
use crate::grid::{GridSpec, group_grid, nearest};
use crate::kernel::{LANES, Lane};
use crate::measure::{panels_of, strip_sums};
use crate::refine::refine;
use crate::storage::Storage;
use crate::strip::{Coded, Layout, StripResult, assemble, check_weight, gather, strips};
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
    let columns = weight.ncols();
    if let Some(stats) = stats {
        check_stats(stats)?;
    }
    check_weight(weight, stats.map_or(columns, |stats| stats.in_features))?;
    let layout = Layout::of(scheme, columns);
    let storage = Storage::new(options.scale_dtype);
    let spec = GridSpec::new(scheme, options.grid, options.signed_scales, storage);
    let importance = importance(stats, columns);
    let mut diagonal = vec![0.0; layout.padded];
    for (column, &u) in importance.iter().enumerate() {
        diagonal[layout.position(column)] = u;
    }
    let panels = stats.map(|stats| {
        let plain = panels_of(stats);
        if layout.is_plain() {
            plain
        } else {
            plain.relayout(&layout)
        }
    });
    let no_ridge = vec![0.0; layout.padded];
    let solved: Vec<StripResult> = strips(weight.nrows())
        .into_par_iter()
        .map(|rows| {
            let w = gather(weight, rows.clone(), &layout);
            let mut coded = round(&w, &importance, &layout, &spec);
            let hessian = (None, &diagonal[..]);
            refine(
                &w,
                &mut coded,
                &layout,
                &spec,
                hessian,
                options.refine_rounds,
            );
            let measured = (panels.as_ref(), &no_ridge[..], 1.0);
            let sums = strip_sums(&w, &coded, &layout, rows.len(), spec.max_code, measured);
            StripResult::new(&layout, &coded, rows.len(), sums)
        })
        .collect();
    let (quantized, sums) = assemble(scheme, [weight.nrows(), columns], solved)?;
    let mut solution = Solution::new(quantized, sums);
    solution.warnings.extend(tiny_scales(&solution, storage));
    if let Some(stats) = stats {
        solution.dead_columns = (0..columns)
            .filter(|k| stats.hessian[k * (columns + 1)] <= 0.0)
            .count();
    }
    Ok(solution)
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

fn round(w: &[Lane], importance: &[f32], layout: &Layout, spec: &GridSpec) -> Coded {
    let mut coded = Coded::new(layout);
    for g in 0..layout.groups {
        let columns = g * layout.group..((g + 1) * layout.group).min(layout.columns);
        let (scale, zero) = group_grid(&w[layout.real(g)], &importance[columns], spec);
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
