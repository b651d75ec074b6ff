//! Figures of error for weights whose values are at hand, whatever coded them.

use faer::MatRef;
use halfbyte_quant::{ActivationStats, QuantizedWeight};
use rayon::prelude::*;

use crate::factor::check_stats;
use crate::gptq::tiny_scales;
use crate::measure::{Loss, output_sums, panels_of};
use crate::solution::Sums;
use crate::storage::Storage;
use crate::strip::{Layout, check_weight, gather, strips};
use crate::{Solution, SolveError};

/// Measures a rounded weight given as values, `[out_features, in_features]` row-major: for codings that are no
/// [`QuantizedWeight`]. Without statistics `H = I`.
///
/// # Errors
/// Shapes that disagree, NaN or infinity in the weight or the statistics.
pub fn dense_loss(
    weight: MatRef<'_, f32>,
    values: &[f32],
    stats: Option<&ActivationStats>,
) -> Result<Loss, SolveError> {
    check(weight, stats)?;
    let wanted = weight.nrows() * weight.ncols();
    if values.len() != wanted {
        return Err(SolveError::Shape {
            part: "elements of the rounded weight",
            found: values.len(),
            wanted,
        });
    }
    let sums = value_sums(weight, values, stats);
    Ok(Loss {
        absolute: sums.loss,
        relative: sums.relative_loss(),
    })
}

/// Refuses a weight or statistics that cannot be solved.
pub(crate) fn check(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
) -> Result<(), SolveError> {
    if let Some(stats) = stats {
        check_stats(stats)?;
    }
    check_weight(weight, stats.map_or(weight.ncols(), |s| s.in_features))
}

/// The weight as rows in a line, whatever its strides.
pub(crate) fn row_major(weight: MatRef<'_, f32>) -> Vec<f32> {
    (0..weight.nrows())
        .flat_map(|row| weight.row(row).iter().copied())
        .collect()
}

/// All sums but the clipped weights, of `values` that have been checked to fit.
pub(crate) fn value_sums(
    weight: MatRef<'_, f32>,
    values: &[f32],
    stats: Option<&ActivationStats>,
) -> Sums {
    let (rows, columns) = (weight.nrows(), weight.ncols());
    let layout = Layout::plain(columns);
    let panels = stats.map(panels_of);
    let no_ridge = vec![0.0; layout.padded];
    let values = MatRef::from_row_major_slice(values, rows, columns);
    let parts: Vec<Sums> = strips(rows)
        .into_par_iter()
        .map(|rows| {
            let w = gather(weight, rows.clone(), &layout);
            let mut error = gather(values, rows.clone(), &layout);
            let mut energies = Sums::default();
            for (w, error) in w.iter().zip(&mut error) {
                for (&w, error) in w.0.iter().zip(&mut error.0) {
                    *error = w - *error;
                    energies.weight_energy += f64::from(w) * f64::from(w);
                    energies.weight_noise += f64::from(*error) * f64::from(*error);
                }
            }
            let mut sums = output_sums(&w, &error, panels.as_ref(), &no_ridge);
            sums.weights = rows.len() * columns;
            sums.weight_energy = energies.weight_energy;
            sums.weight_noise = energies.weight_noise;
            sums
        })
        .collect();
    let mut sums = Sums::default();
    parts.iter().for_each(|part| sums.add(part));
    sums
}

/// The figures of codes that were chosen without the strips.
pub(crate) fn measured(
    weight: MatRef<'_, f32>,
    quantized: QuantizedWeight,
    stats: Option<&ActivationStats>,
    storage: Storage,
) -> Solution {
    let mut sums = value_sums(weight, &quantized.dequantize(), stats);
    sums.clipped = clipped(weight, &quantized);
    let mut solution = Solution::new(quantized, sums);
    solution.warnings.extend(tiny_scales(&solution, storage));
    if let Some(stats) = stats {
        let diagonal = stats.hessian.iter().step_by(stats.in_features + 1);
        solution.dead_columns = diagonal.filter(|&&h| h <= 0.0).count();
    }
    solution
}

/// Weights farther than half a step outside the levels of their group.
fn clipped(weight: MatRef<'_, f32>, quantized: &QuantizedWeight) -> usize {
    let scheme = quantized.scheme();
    let (group, groups) = (
        scheme.group_len(quantized.in_features()),
        quantized.n_groups(),
    );
    let high = f32::from(scheme.max_code()) + 0.5;
    (0..weight.nrows())
        .map(|row| {
            let levels = weight.row(row).iter().enumerate().map(|(column, &w)| {
                let at = row * groups + column / group;
                w / quantized.scales()[at] + f32::from(quantized.zeros()[at])
            });
            levels.filter(|&x| x < -0.5 || x > high).count()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{random_stats, random_weight, scheme};
    use crate::{RtnOptions, loss, rtn};

    #[test]
    fn values_are_measured_as_codes_are() {
        let (weight, stats) = (random_weight(37, 52, 1), random_stats(52, 200, 2));
        let solved = rtn(
            weight.as_ref(),
            Some(&stats),
            &scheme(3, 16, false),
            &RtnOptions::default(),
        )
        .unwrap();
        let storage = Storage::new(crate::ScaleDtype::Portable);
        let again = measured(
            weight.as_ref(),
            solved.weight.clone(),
            Some(&stats),
            storage,
        );
        assert!((again.loss / solved.loss - 1.0).abs() < 1e-5);
        assert!((again.sqnr_db - solved.sqnr_db).abs() < 1e-4);
        assert!((again.cosine - solved.cosine).abs() < 1e-6);
        assert_eq!(again.clipped_share, solved.clipped_share);
        let values = solved.weight.dequantize();
        let dense = dense_loss(weight.as_ref(), &values, Some(&stats)).unwrap();
        let coded = loss(weight.as_ref(), &solved.weight, &stats).unwrap();
        assert!((dense.absolute / coded.absolute - 1.0).abs() < 1e-6);
        assert_eq!(
            dense_loss(weight.as_ref(), &values[1..], None)
                .unwrap_err()
                .to_string(),
            "elements of the rounded weight: 1923, wanted 1924 for this weight"
        );
    }
}
