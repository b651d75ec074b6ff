use halfbyte_quant::{ActivationStats, CrossStats};

use super::check_scales;
use crate::SolveError;
use crate::factor::check_stats;

/// How a norm applies its weight to the normalised input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormGain {
    /// `x * w`.
    Plain,
    /// `x * (1 + w)`, as in Gemma.
    OnePlus,
}

/// A norm that gives `1/s` of what it gave.
#[derive(Clone, Debug, PartialEq)]
pub struct FoldedNorm {
    /// Weight as stored.
    pub weight: Vec<f32>,
    /// Bias as stored.
    pub bias: Option<Vec<f32>>,
    /// The scales that the stored weight stands for, `gain before / gain stored`: multiply the columns of every
    /// consumer with these, not with the scales asked for, and the product is what it was.
    pub scales: Vec<f32>,
}

/// Folds `1/s` into a norm whose output several linears read. All of them must be scaled by
/// [`fold_into_columns`], those that stay unquantized too.
///
/// `store` rounds a number to the type the norm is kept in; rounding moves the scales a little (up to 2⁻⁹ for bf16),
/// and [`FoldedNorm::scales`] are the moved ones. A channel that rounding would silence (`1 + w` near zero) keeps its
/// weight, with scale 1. A bias is stored as `b / s` rounded, which nothing can make up for.
///
/// # Errors
/// Lengths that differ, scales that are not finite numbers above zero.
pub fn fold_into_norm(
    weight: &[f32],
    bias: Option<&[f32]>,
    gain: NormGain,
    scales: &[f32],
    store: impl Fn(f32) -> f32,
) -> Result<FoldedNorm, SolveError> {
    check_scales(scales, weight.len())?;
    check_len("elements of the norm's bias", bias, weight.len())?;
    let offset = match gain {
        NormGain::Plain => 0.0,
        NormGain::OnePlus => 1.0,
    };
    let (mut stored, mut moved) = (Vec::new(), Vec::new());
    for (&w, &s) in weight.iter().zip(scales) {
        let before = f64::from(w) + offset;
        let folded = store((before / f64::from(s) - offset) as f32);
        let after = f64::from(folded) + offset;
        let stands_for = (before / after) as f32;
        let (folded, s) = if before == 0.0 && after == 0.0 {
            // a silent channel is silent under any scale
            (folded, s)
        } else if stands_for.is_finite() && stands_for > 0.0 {
            (folded, stands_for)
        } else {
            (w, 1.0)
        };
        stored.push(folded);
        moved.push(s);
    }
    let bias = bias.map(|bias| {
        bias.iter()
            .zip(&moved)
            .map(|(&b, &s)| store((f64::from(b) / f64::from(s)) as f32))
            .collect()
    });
    Ok(FoldedNorm {
        weight: stored,
        bias,
        scales: moved,
    })
}

/// Divides the rows of a producing linear, `weight` `[out_features, in_features]` row-major, and its bias by `s`: v's
/// rows before o (the tied scales under grouped heads), up's before down (exact where up is multiplied with an
/// activation of gate, not where an activation of up itself stands between).
///
/// Weight and bias stay f32: quantize the weight from here, and no rounding stands between fold and codes. A grid of
/// its own a row makes the division invisible to the solvers.
///
/// # Errors
/// Lengths that differ, scales that are not finite numbers above zero.
pub fn fold_into_rows(
    weight: &mut [f32],
    bias: Option<&mut [f32]>,
    scales: &[f32],
) -> Result<(), SolveError> {
    check_scales(scales, scales.len())?;
    check_len(
        "elements of the linear's bias",
        bias.as_deref(),
        scales.len(),
    )?;
    let columns = weight.len().checked_div(scales.len()).unwrap_or(0);
    check_elements(weight.len(), columns * scales.len())?;
    for (row, &s) in weight.chunks_exact_mut(columns.max(1)).zip(scales) {
        row.iter_mut().for_each(|w| *w /= s);
    }
    if let Some(bias) = bias {
        bias.iter_mut().zip(scales).for_each(|(b, &s)| *b /= s);
    }
    Ok(())
}

/// Multiplies the columns of a consuming linear, `weight` `[out_features, in_features]` row-major, with `s`.
///
/// # Errors
/// A weight that is not whole rows, scales that are not finite numbers above zero.
pub fn fold_into_columns(weight: &mut [f32], scales: &[f32]) -> Result<(), SolveError> {
    check_scales(scales, scales.len())?;
    let rows = weight.len().checked_div(scales.len()).unwrap_or(0);
    check_elements(weight.len(), rows * scales.len())?;
    for row in weight.chunks_exact_mut(scales.len().max(1)) {
        row.iter_mut().zip(scales).for_each(|(w, &s)| *w *= s);
    }
    Ok(())
}

/// The statistics of `x / s`: `S⁻¹ H S⁻¹` and `mean|x| / s`. Solving `W S` on them is solving `W` on the given ones,
/// loss for loss; statistics of mixed inputs (v's) transform alike.
///
/// # Errors
/// Lengths that differ, scales that are not finite numbers above zero, statistics that are not finite.
pub fn transform_stats(
    stats: &ActivationStats,
    scales: &[f32],
) -> Result<ActivationStats, SolveError> {
    check_stats(stats)?;
    check_scales(scales, stats.in_features)?;
    if stats.mean_abs.len() != stats.in_features {
        return Err(SolveError::Shape {
            part: "channels of mean_abs",
            found: stats.mean_abs.len(),
            wanted: stats.in_features,
        });
    }
    let inverse: Vec<f64> = scales.iter().map(|&s| 1.0 / f64::from(s)).collect();
    // products in f64 and in one order, so that the result is as symmetric as what came in
    let row = |(row, a): (&[f32], f64)| -> Vec<f32> {
        let scaled = row.iter().zip(&inverse);
        scaled
            .map(|(&h, &b)| (f64::from(h) * (a * b)) as f32)
            .collect()
    };
    let square = |of: &[f32]| -> Vec<f32> {
        let rows = of.chunks_exact(stats.in_features);
        rows.zip(inverse.iter().copied()).flat_map(row).collect()
    };
    let cross = stats.cross.as_ref().map(|cross| CrossStats {
        input: square(&cross.input),
        stream: cross.stream.as_ref().map(|stream| {
            let rows = stream.chunks_exact(stats.in_features);
            rows.zip(std::iter::repeat(1.0)).flat_map(row).collect()
        }),
    });
    let mean_abs = stats.mean_abs.iter().zip(&inverse);
    Ok(ActivationStats {
        in_features: stats.in_features,
        hessian: square(&stats.hessian),
        mean_abs: mean_abs.map(|(&m, &i)| (f64::from(m) * i) as f32).collect(),
        n_tokens: stats.n_tokens,
        cross,
    })
}

fn check_len(part: &'static str, found: Option<&[f32]>, wanted: usize) -> Result<(), SolveError> {
    match found {
        Some(found) if found.len() != wanted => Err(SolveError::Shape {
            part,
            found: found.len(),
            wanted,
        }),
        _ => Ok(()),
    }
}

fn check_elements(found: usize, wanted: usize) -> Result<(), SolveError> {
    if found == wanted {
        return Ok(());
    }
    Err(SolveError::Shape {
        part: "elements of the weight",
        found,
        wanted,
    })
}
