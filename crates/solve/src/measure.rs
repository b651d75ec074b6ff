//! What codes cost: every figure of error, from the weight, its codes as stored and the undamped Hessian.

use faer::MatRef;
use halfbyte_quant::{ActivationStats, QuantizedWeight};

use crate::SolveError;
use crate::dense::value_sums;
use crate::factor::check_stats;
use crate::kernel::{LANES, Lane, PANEL, accumulate, multiversion};
use crate::solution::Sums;
use crate::strip::{Coded, Layout, Panels, check_weight};

/// Error of a quantized weight under some Hessian, for instance one of held-out text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// `tr(Δ H Δᵀ)`, `Δ = W − Ŵ`.
    pub absolute: f64,
    /// `absolute / tr(W H Wᵀ)`; 0 when both are.
    pub relative: f64,
}

/// Measures a quantized weight, whoever made it, under the given statistics.
///
/// # Errors
/// Shapes that disagree, NaN or infinity in the weight or the statistics.
pub fn loss(
    weight: MatRef<'_, f32>,
    quantized: &QuantizedWeight,
    hessian: &ActivationStats,
) -> Result<Loss, SolveError> {
    check_stats(hessian)?;
    check_weight(weight, hessian.in_features)?;
    let shape = [quantized.out_features(), quantized.in_features()];
    for (part, found, wanted) in [
        ("rows of the quantized weight", shape[0], weight.nrows()),
        (
            "input features of the quantized weight",
            shape[1],
            weight.ncols(),
        ),
    ] {
        if found != wanted {
            return Err(SolveError::Shape {
                part,
                found,
                wanted,
            });
        }
    }
    let sums = value_sums(weight, &quantized.dequantize(), Some(hessian));
    Ok(Loss {
        absolute: sums.loss,
        relative: sums.relative_loss(),
    })
}

/// The bare Hessian in the plain layout.
pub(crate) fn panels_of(stats: &ActivationStats) -> Panels {
    let columns = stats.in_features;
    let mut panels = Panels::full(Layout::plain(columns).padded);
    for (row, values) in stats.hessian.chunks_exact(columns).enumerate() {
        for (panel, values) in values.chunks(PANEL).enumerate() {
            panels.panel_mut(panel)[row][..values.len()].copy_from_slice(values);
        }
    }
    panels
}

/// All sums of one strip. `panels` of `None` is `H = I`; `ridge` is what its diagonal has too much, and `unit` what
/// it was divided by.
pub(crate) fn strip_sums(
    w: &[Lane],
    coded: &Coded,
    layout: &Layout,
    rows: usize,
    max_code: f32,
    (panels, ridge, unit): (Option<&Panels>, &[f32], f64),
) -> Sums {
    let error = coded.error(layout, w);
    let mut sums = output_sums(w, &error, panels, ridge);
    sums.loss *= unit;
    sums.signal *= unit;
    sums.cross *= unit;
    sums.weights = rows * layout.columns;
    for (w, error) in w.iter().zip(&error) {
        for (&w, &error) in w.0.iter().zip(&error.0) {
            sums.weight_energy += f64::from(w) * f64::from(w);
            sums.weight_noise += f64::from(error) * f64::from(error);
        }
    }
    for g in 0..layout.groups {
        let (scale, zero) = (&coded.scale[g].0, &coded.zero[g].0);
        for w in &w[layout.real(g)] {
            for row in 0..rows {
                let level = w.0[row] / scale[row] + zero[row];
                sums.clipped += usize::from(level < -0.5 || level > max_code + 0.5);
            }
        }
    }
    sums
}

multiversion! {
    /// `tr(Δ H Δᵀ)` alone, a third of what [`output_sums`] computes.
    pub(crate) fn output_loss(error: &[Lane], panels: &Panels) -> f64 {
        let mut loss = [0.0f64; LANES];
        for start in (0..error.len()).step_by(PANEL) {
            let (rows, end) = (panels.panel(start / PANEL), start + PANEL);
            let mut eh = [Lane::ZERO; PANEL];
            accumulate(&mut eh, &error[..start], &rows[..start]);
            for eh in &mut eh {
                for eh in &mut eh.0 {
                    *eh *= 2.0;
                }
            }
            accumulate(&mut eh, &error[start..end], &rows[start..end]);
            for (eh, error) in eh.iter().zip(&error[start..end]) {
                for (loss, (eh, error)) in loss.iter_mut().zip(eh.0.iter().zip(&error.0)) {
                    *loss += f64::from(error * eh);
                }
            }
        }
        loss.iter().sum::<f64>().max(0.0)
    }
}

multiversion! {
    /// `tr(Δ H Δᵀ)`, by half the products since `H` is symmetric, and `w H` once for `tr(W H Wᵀ)` and `tr(W H Δᵀ)`.
    pub(crate) fn output_sums(w: &[Lane], error: &[Lane], panels: Option<&Panels>, ridge: &[f32]) -> Sums {
        let (mut loss, mut signal, mut cross) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
        for start in (0..w.len()).step_by(PANEL) {
            let (mut wh, mut eh) = ([Lane::ZERO; PANEL], [Lane::ZERO; PANEL]);
            if let Some(panels) = panels {
                let rows = panels.panel(start / PANEL);
                accumulate(&mut wh, w, rows);
                accumulate(&mut eh, &error[..start], &rows[..start]);
                for eh in &mut eh {
                    for eh in &mut eh.0 {
                        *eh *= 2.0;
                    }
                }
                let end = start + PANEL;
                accumulate(&mut eh, &error[start..end], &rows[start..end]);
            } else {
                wh.copy_from_slice(&w[start..start + PANEL]);
                eh.copy_from_slice(&error[start..start + PANEL]);
            }
            for c in 0..PANEL {
                let (w, error, ridge) = (&w[start + c].0, &error[start + c].0, ridge[start + c]);
                for l in 0..LANES {
                    let wh = (-ridge).mul_add(w[l], wh[c].0[l]);
                    let eh = (-ridge).mul_add(error[l], eh[c].0[l]);
                    loss[l] += f64::from(error[l] * eh);
                    signal[l] += f64::from(w[l] * wh);
                    cross[l] += f64::from(error[l] * wh);
                }
            }
        }
        Sums {
            // rounding may leave a zero loss a hair below it
            loss: loss.iter().sum::<f64>().max(0.0),
            signal: signal.iter().sum::<f64>().max(0.0),
            cross: cross.iter().sum(),
            ..Sums::default()
        }
    }
}
