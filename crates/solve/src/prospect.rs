//! Why a linear loses what it loses, in figures that need no solve. A report; it solves nothing.

use faer::MatRef;
use halfbyte_quant::{ActivationStats, Scheme};

/// A channel is an outlier when its mean square is so many times the median channel's: its magnitude ten times.
const OUTLIER: f64 = 100.0;

/// How the energy of an input spreads over channels and directions.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpread {
    /// `(tr H)² / ‖H‖²`, the directions that the energy would spread over if all had the same: from 1 to `in_features`.
    /// 0 for an input of zeros.
    pub effective_rank: f64,
    /// Channels whose mean square is over a hundred times the median's, the largest first.
    pub outlier_channels: Vec<usize>,
}

/// Reads the spread off a Hessian.
pub fn input_spread(stats: &ActivationStats) -> InputSpread {
    let columns = stats.in_features;
    let diagonal: Vec<f64> = (stats.hessian.iter().step_by(columns + 1))
        .map(|d| f64::from(*d))
        .collect();
    let trace: f64 = diagonal.iter().sum();
    let square: f64 = stats.hessian.iter().map(|h| f64::from(*h).powi(2)).sum();
    let mut sorted = diagonal.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[columns / 2];
    let mut outlier_channels: Vec<usize> = (0..columns)
        .filter(|&k| median > 0.0 && diagonal[k] > OUTLIER * median)
        .collect();
    outlier_channels.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    InputSpread {
        effective_rank: if square > 0.0 {
            trace * trace / square
        } else {
            0.0
        },
        outlier_channels,
    }
}

/// The loss to expect before a weight `[out_features, in_features]` is solved: `Σ s² D / 12`, `s` the step of the group's
/// whole range and `D`, `[in_features]`, the [pivots](crate::Factor::pivots) of the columns. Searched ranges are
/// narrower than the whole, by about as much in every scheme: it is good for the ratio of two schemes.
pub fn expected_loss(weight: MatRef<'_, f32>, pivots: &[f64], scheme: &Scheme) -> f64 {
    let group = scheme.group_len(weight.ncols());
    let levels = f64::from(scheme.max_code());
    let mut sum = 0.0;
    for start in (0..weight.ncols()).step_by(group) {
        let end = (start + group).min(weight.ncols());
        let variance: f64 = pivots[start..end].iter().sum();
        for row in 0..weight.nrows() {
            let (mut low, mut high) = (0.0f32, 0.0f32);
            for column in start..end {
                let w = weight[(row, column)];
                (low, high) = (low.min(w), high.max(w));
            }
            let range = match scheme.sym() {
                true => 2.0 * low.abs().max(high),
                false => high - low,
            };
            let step = f64::from(range) / levels;
            sum += step * step * variance;
        }
    }
    sum / 12.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Random, random_stats, random_weight, scheme};
    use crate::{GptqOptions, factor, gptq};

    #[test]
    fn white_input_has_full_rank_and_one_direction_has_one() {
        let white = input_spread(&ActivationStats::identity(24));
        assert!((white.effective_rank - 24.0).abs() < 1e-9);
        assert!(white.outlier_channels.is_empty());

        let x: Vec<f32> = (0..5)
            .map(|k| if k == 3 { 40.0 } else { 1.0 + k as f32 / 9.0 })
            .collect();
        let mut one = ActivationStats::identity(5);
        for (at, h) in one.hessian.iter_mut().enumerate() {
            *h = x[at / 5] * x[at % 5];
        }
        let one = input_spread(&one);
        assert!((one.effective_rank - 1.0).abs() < 1e-6);
        assert_eq!(one.outlier_channels, [3]);
    }

    #[test]
    fn what_is_expected_is_the_mean_over_random_roundings() {
        let (weight, mut random) = (random_weight(6, 40, 1), Random::new(2));
        let pivots: Vec<f64> = (0..40).map(|_| random.uniform() + 0.1).collect();
        for sym in [true, false] {
            let scheme = scheme(4, 16, sym);
            let expected = expected_loss(weight.as_ref(), &pivots, &scheme);
            // steps by definition, errors uniform over them
            let (mut sum, draws) = (0.0, 4000);
            for _ in 0..draws {
                for row in 0..6 {
                    for (k, pivot) in pivots.iter().enumerate() {
                        let group = k / 16 * 16..(k / 16 * 16 + 16).min(40);
                        let values: Vec<f64> = group.map(|c| f64::from(weight[(row, c)])).collect();
                        let high = values.iter().copied().fold(0.0, f64::max);
                        let low = values.iter().copied().fold(0.0, f64::min);
                        let range = if sym {
                            2.0 * high.max(-low)
                        } else {
                            high - low
                        };
                        let error = range / 15.0 * (random.uniform() - 0.5);
                        sum += error * error * pivot;
                    }
                }
            }
            let mean = sum / f64::from(draws);
            assert!((expected / mean - 1.0).abs() < 0.02, "{expected} {mean}");
        }
    }

    #[test]
    fn ratios_are_near_those_of_solves() {
        let (weight, stats) = (random_weight(32, 128, 3), random_stats(128, 600, 4));
        let options = GptqOptions::default();
        let factor = factor(&stats, &options).unwrap();
        let loss = |s| gptq(weight.as_ref(), &factor, &s, &options).unwrap().loss;
        let expected = |s| expected_loss(weight.as_ref(), &factor.pivots(), &s);
        for (a, b) in [
            (scheme(4, 64, true), scheme(3, 64, true)),
            (scheme(4, 64, false), scheme(4, 32, false)),
        ] {
            let (solved, told) = (loss(b) / loss(a), expected(b) / expected(a));
            assert!((told / solved).ln().abs() < 0.35, "{solved} {told}");
        }
    }
}
