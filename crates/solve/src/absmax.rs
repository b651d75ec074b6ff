//! Absmax rounding to 8 bits: what users of int8 checkpoints know, and the row-wise half of LLM.int8.

use faer::MatRef;
use halfbyte_quant::{ActivationStats, GroupSize, QuantizedWeight, Scheme};

use crate::dense::{check, measured, row_major};
use crate::storage::Storage;
use crate::{ScaleDtype, Solution, SolveError};

/// Weights that share a largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// All of them. The one scale is written once a row, as every reader wants it.
    Tensor,
    /// Those of an output feature.
    Channel,
    /// This many neighbours of a row, 16 to 1024; the last group may be shorter.
    Group(usize),
}

/// Rounds a weight `[out_features, in_features]` to whole numbers from −127 to 127 of `max |w| / 127`.
///
/// The result is a symmetric weight of 8 bits whose code 0 (−128) is never used, so it may be written wherever 8-bit
/// symmetric weights may. Statistics give the losses reported and change no code; without them `H = I`. Weights that
/// are all 0 get scale 1.
///
/// # Errors
/// NaN or infinity in weight or statistics, shapes that disagree, a group size out of range.
pub fn absmax(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
    granularity: Granularity,
    scale_dtype: ScaleDtype,
) -> Result<Solution, SolveError> {
    check(weight, stats)?;
    let scheme = scheme(granularity)?;
    let storage = Storage::new(scale_dtype);
    let (rows, columns) = (weight.nrows(), weight.ncols());
    let (group, w) = (scheme.group_len(columns), row_major(weight));
    let magnitude = |w: &[f32]| w.iter().fold(0.0f32, |most, w| most.max(w.abs()));
    let largest: Vec<f32> = match granularity {
        Granularity::Tensor => vec![magnitude(&w); rows],
        _ => w
            .chunks(columns)
            .flat_map(|row| row.chunks(group).map(magnitude))
            .collect(),
    };
    let scales: Vec<f32> = largest
        .into_iter()
        .map(|most| {
            if most > 0.0 {
                storage.round(most / 127.0)
            } else {
                1.0
            }
        })
        .collect();
    let codes = w
        .chunks(columns)
        .flat_map(|row| row.chunks(group))
        .zip(&scales)
        .flat_map(|(w, &scale)| w.iter().map(move |&w| code(w / scale)))
        .collect();
    let quantized = QuantizedWeight::new(scheme, [rows, columns], codes, scales, Vec::new())?;
    Ok(measured(weight, quantized, stats, storage))
}

/// The nearest whole number, 128 standing for 0.
fn code(level: f32) -> u8 {
    (level.round_ties_even().clamp(-127.0, 127.0) + 128.0) as u8
}

fn scheme(granularity: Granularity) -> Result<Scheme, SolveError> {
    let group_size = match granularity {
        Granularity::Tensor | Granularity::Channel => GroupSize::Channel,
        Granularity::Group(columns) => GroupSize::Columns(columns),
    };
    Scheme::new(8, group_size, true).map_err(|_| SolveError::Option {
        option: "group_size",
        found: group_size.to_string(),
        wanted: "16 to 1024",
    })
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use proptest::prelude::*;

    use super::*;
    use crate::oracle::{quadratic, random_stats, random_weight};

    /// Scale and whole numbers of one group, in f64.
    fn naive(w: &[f64]) -> (f64, Vec<f64>) {
        let most = w.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let scale = if most > 0.0 { most / 127.0 } else { 1.0 };
        (
            scale,
            w.iter().map(|w| (w / scale).round_ties_even()).collect(),
        )
    }

    fn whole_numbers(solution: &Solution) -> Vec<i32> {
        let codes = solution.weight.codes().iter();
        codes.map(|&c| i32::from(c) - 128).collect()
    }

    /// Compares every code and scale with the naive rounding of the weights `members` names for a position.
    fn check_against_naive(rows: usize, columns: usize, granularity: Granularity) {
        let weight = random_weight(rows, columns, 7);
        let solved = absmax(weight.as_ref(), None, granularity, ScaleDtype::F32).unwrap();
        let flat: Vec<f64> = row_major(weight.as_ref())
            .into_iter()
            .map(f64::from)
            .collect();
        let runs: Vec<&[f64]> = match granularity {
            Granularity::Tensor => vec![&flat],
            Granularity::Channel => flat.chunks(columns).collect(),
            Granularity::Group(n) => flat.chunks(columns).flat_map(|row| row.chunks(n)).collect(),
        };
        let mut wanted = Vec::new();
        for (index, run) in runs.into_iter().enumerate() {
            let (scale, whole) = naive(run);
            let found = f64::from(solved.weight.scales()[index]);
            assert!((found / scale - 1.0).abs() < 1e-6);
            wanted.extend(whole);
        }
        for (found, wanted) in whole_numbers(&solved).into_iter().zip(wanted) {
            // f32 may turn a tie
            assert!((f64::from(found) - wanted).abs() <= 1.0);
        }
        assert!(whole_numbers(&solved).iter().any(|c| c.abs() == 127));
        assert_eq!(solved.clipped_share, 0.0);
    }

    #[test]
    fn every_granularity_is_the_naive_rounding() {
        check_against_naive(9, 40, Granularity::Tensor);
        check_against_naive(9, 40, Granularity::Channel);
        check_against_naive(9, 40, Granularity::Group(16));
    }

    #[test]
    fn a_finer_granularity_never_costs_more_on_uneven_rows() {
        let plain = random_weight(64, 256, 11);
        let weight = Mat::from_fn(64, 256, |r, c| plain[(r, c)] * (1.0 + (r % 8) as f32));
        let stats = random_stats(256, 600, 12);
        let of = |granularity| {
            absmax(weight.as_ref(), Some(&stats), granularity, ScaleDtype::F32).unwrap()
        };
        let (tensor, channel, group) = (
            of(Granularity::Tensor),
            of(Granularity::Channel),
            of(Granularity::Group(64)),
        );
        assert!(group.loss < channel.loss && channel.loss < tensor.loss);
        let h: Vec<f64> = stats.hessian.iter().map(|&h| f64::from(h)).collect();
        let wanted = quadratic(weight.as_ref(), &channel.weight, &h);
        assert!((channel.loss / wanted - 1.0).abs() < 1e-4);
    }

    #[test]
    fn zeros_are_exact_and_wrong_groups_are_refused() {
        let zeros = Mat::<f32>::zeros(3, 20);
        let solved = absmax(zeros.as_ref(), None, Granularity::Channel, ScaleDtype::F16).unwrap();
        assert!(solved.weight.scales().iter().all(|&s| s == 1.0));
        assert_eq!((solved.loss, solved.sqnr_db), (0.0, f64::INFINITY));
        let refused = absmax(zeros.as_ref(), None, Granularity::Group(8), ScaleDtype::F16);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "group_size: 8, wanted 16 to 1024"
        );
    }

    proptest! {
        #[test]
        fn no_weight_moves_by_more_than_half_a_step(
            values in prop::collection::vec(-3.0f32..3.0, 60),
            portable: bool,
        ) {
            let weight = Mat::from_fn(3, 20, |r, c| values[r * 20 + c]);
            let dtype = if portable { ScaleDtype::Portable } else { ScaleDtype::F32 };
            let solved = absmax(weight.as_ref(), None, Granularity::Channel, dtype).unwrap();
            for (i, rounded) in solved.weight.dequantize().into_iter().enumerate() {
                let scale = solved.weight.scales()[i / 20];
                // a scale rounded down leaves the largest weight a quarter of a step outside
                prop_assert!((rounded - values[i]).abs() <= 0.5001 * scale);
            }
            prop_assert!(solved.weight.codes().iter().all(|&c| c > 0));
        }
    }
}
