//! What LLM.int8 would keep in 16 bits, and what that buys. A report; it solves nothing.

use faer::MatRef;
use halfbyte_quant::ActivationStats;

use crate::dense::{check, dense_loss, row_major};
use crate::{Loss, SolveError};

/// Where the largest magnitude of each input channel is known from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChannelPeaks<'a> {
    /// `max |x|` over tokens, `[in_features]`.
    Measured(&'a [f32]),
    /// What normal inputs of the channel's second moment would reach in as many tokens, `√(2 H_kk ln n)`. Real
    /// outliers have longer tails, so this names too few channels rather than too many.
    Normal,
}

/// Input channels split into those kept in 16 bits and those rounded to 8, with the cost of both choices.
///
/// Losses are those of the weight alone, by absmax over each row to −127..127. LLM.int8 rounds the inputs too, token
/// by token, and it is there that outliers hurt: `input_noise_*` bounds that part in the same unit.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierSplit {
    /// Magnitude from which on a channel is an outlier.
    pub threshold: f32,
    /// Channels kept in 16 bits, rising.
    pub channels: Vec<usize>,
    /// `channels` over all input channels.
    pub share: f64,
    /// Peak of each channel as used, `[in_features]`.
    pub peaks: Vec<f32>,
    /// `tr(Δ H Δᵀ)` when every channel is rounded.
    pub loss_whole: Loss,
    /// `tr(Δ H Δᵀ)` when the kept channels are exact and take no part in a row's scale.
    pub loss_split: Loss,
    /// `Σ_k min(s²/12, H_kk) ‖W_k‖²`, `s` the step of a token whose largest input is the largest peak: what rounding
    /// inputs to 8 bits adds at most to the output's mean square, channels rounded as if independent.
    pub input_noise_whole: f64,
    /// The same over the channels that are rounded when the others are kept.
    pub input_noise_split: f64,
    /// Stored bits per weight of the split, with a 32-bit scale a row.
    pub bits_per_weight: f64,
}

/// Splits the input channels of a weight `[out_features, in_features]` at a magnitude, 6.0 in the paper
/// (LLM.int8(), Dettmers et al., arXiv 2208.07339, section 3).
///
/// # Errors
/// NaN or infinity in weight or statistics, shapes that disagree, a threshold that is not positive.
pub fn outlier_split(
    weight: MatRef<'_, f32>,
    stats: &ActivationStats,
    peaks: ChannelPeaks<'_>,
    threshold: f32,
) -> Result<OutlierSplit, SolveError> {
    check(weight, Some(stats))?;
    if threshold.is_nan() || threshold <= 0.0 {
        return Err(SolveError::Option {
            option: "threshold",
            found: threshold.to_string(),
            wanted: "a magnitude above 0; 6.0 is usual",
        });
    }
    let columns = weight.ncols();
    let peaks = peaks_of(stats, peaks)?;
    let kept: Vec<bool> = peaks.iter().map(|&peak| peak >= threshold).collect();
    let channels: Vec<usize> = (0..columns).filter(|&k| kept[k]).collect();
    let w = row_major(weight);
    let whole = rounded_rows(&w, &vec![false; columns]);
    let split = rounded_rows(&w, &kept);
    let energies = column_energies(&w, columns);
    let share = channels.len() as f64 / columns as f64;
    Ok(OutlierSplit {
        threshold,
        share,
        loss_whole: dense_loss(weight, &whole, Some(stats))?,
        loss_split: dense_loss(weight, &split, Some(stats))?,
        input_noise_whole: input_noise(stats, &energies, &peaks, &vec![false; columns]),
        input_noise_split: input_noise(stats, &energies, &peaks, &kept),
        bits_per_weight: 8.0 + 8.0 * share + 32.0 / columns as f64,
        channels,
        peaks,
    })
}

fn peaks_of(stats: &ActivationStats, peaks: ChannelPeaks<'_>) -> Result<Vec<f32>, SolveError> {
    match peaks {
        ChannelPeaks::Measured(peaks) if peaks.len() == stats.in_features => Ok(peaks.to_vec()),
        ChannelPeaks::Measured(peaks) => Err(SolveError::Shape {
            part: "peaks of the input channels",
            found: peaks.len(),
            wanted: stats.in_features,
        }),
        ChannelPeaks::Normal => {
            let reach = (2.0 * (stats.n_tokens.max(2) as f64).ln()).sqrt();
            let diagonal = stats.hessian.iter().step_by(stats.in_features + 1);
            Ok(diagonal
                .map(|&h| (f64::from(h).max(0.0).sqrt() * reach) as f32)
                .collect())
        }
    }
}

/// Each row rounded to −127..127 of its largest magnitude, columns that are `kept` left out and as they were.
fn rounded_rows(w: &[f32], kept: &[bool]) -> Vec<f32> {
    let mut rounded = Vec::with_capacity(w.len());
    for row in w.chunks(kept.len()) {
        let most = row
            .iter()
            .zip(kept)
            .filter(|(_, kept)| !**kept)
            .fold(0.0f32, |most, (w, _)| most.max(w.abs()));
        let scale = if most > 0.0 { most / 127.0 } else { 1.0 };
        rounded.extend(row.iter().zip(kept).map(|(&w, &kept)| {
            if kept {
                w
            } else {
                scale * (w / scale).round_ties_even().clamp(-127.0, 127.0)
            }
        }));
    }
    rounded
}

/// `‖W_k‖²` of every column.
fn column_energies(w: &[f32], columns: usize) -> Vec<f64> {
    let mut energies = vec![0.0; columns];
    for row in w.chunks(columns) {
        for (energy, &w) in energies.iter_mut().zip(row) {
            *energy += f64::from(w) * f64::from(w);
        }
    }
    energies
}

fn input_noise(stats: &ActivationStats, energies: &[f64], peaks: &[f32], kept: &[bool]) -> f64 {
    let rounded = || (0..energies.len()).filter(|&k| !kept[k]);
    let most = rounded().map(|k| f64::from(peaks[k])).fold(0.0, f64::max);
    let step = most / 127.0;
    rounded()
        .map(|k| {
            let square = f64::from(stats.hessian[k * (energies.len() + 1)]).max(0.0);
            (step * step / 12.0).min(square) * energies[k]
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use crate::oracle::{random_stats, random_weight};

    /// `Δ H Δᵀ` by definition, the kept columns exact.
    fn naive_loss(weight: &Mat<f32>, stats: &ActivationStats, kept: &[usize]) -> f64 {
        let columns = weight.ncols();
        let mut sum = 0.0;
        for r in 0..weight.nrows() {
            let row: Vec<f64> = (0..columns).map(|c| f64::from(weight[(r, c)])).collect();
            let free = |c: &usize| !kept.contains(c);
            let most = (0..columns)
                .filter(free)
                .map(|c| row[c].abs())
                .fold(0.0, f64::max);
            let delta: Vec<f64> = (0..columns)
                .map(|c| {
                    if free(&c) {
                        row[c] - most / 127.0 * (row[c] * 127.0 / most).round_ties_even()
                    } else {
                        0.0
                    }
                })
                .collect();
            for a in 0..columns {
                for b in 0..columns {
                    sum += delta[a] * f64::from(stats.hessian[a * columns + b]) * delta[b];
                }
            }
        }
        sum
    }

    #[test]
    fn channels_at_the_threshold_are_kept_and_both_costs_are_the_naive_ones() {
        let (plain, stats) = (random_weight(12, 30, 3), random_stats(30, 100, 4));
        // a column of large weights stretches every row's scale
        let weight = Mat::from_fn(12, 30, |r, c| {
            plain[(r, c)] * if c == 5 { 20.0 } else { 1.0 }
        });
        let mut peaks = vec![1.0; 30];
        (peaks[5], peaks[17], peaks[18]) = (6.0, 40.0, 5.999);
        let split =
            outlier_split(weight.as_ref(), &stats, ChannelPeaks::Measured(&peaks), 6.0).unwrap();
        assert_eq!(split.channels, [5, 17]);
        assert!((split.share - 2.0 / 30.0).abs() < 1e-12);
        assert!((split.bits_per_weight - (8.0 + 16.0 / 30.0 + 32.0 / 30.0)).abs() < 1e-12);
        let (whole, kept) = (
            naive_loss(&weight, &stats, &[]),
            naive_loss(&weight, &stats, &[5, 17]),
        );
        assert!((split.loss_whole.absolute / whole - 1.0).abs() < 1e-3);
        assert!((split.loss_split.absolute / kept - 1.0).abs() < 1e-3);
        assert!(kept < 0.1 * whole);
        assert!(split.input_noise_split < 0.1 * split.input_noise_whole);
    }

    #[test]
    fn nothing_is_kept_of_calm_inputs_and_everything_of_loud_ones() {
        let (weight, mut stats) = (random_weight(8, 16, 5), random_stats(16, 100, 6));
        let of = |stats: &ActivationStats, threshold| {
            outlier_split(weight.as_ref(), stats, ChannelPeaks::Normal, threshold).unwrap()
        };
        let calm = of(&stats, 1e6);
        assert!(calm.channels.is_empty() && calm.loss_split == calm.loss_whole);
        assert_eq!(calm.input_noise_split, calm.input_noise_whole);
        stats.hessian.iter_mut().for_each(|h| *h *= 1e6);
        let loud = of(&stats, 6.0);
        assert_eq!(loud.share, 1.0);
        assert_eq!(
            (loud.loss_split.absolute, loud.input_noise_split),
            (0.0, 0.0)
        );
        // √(2 H ln 100)
        let wanted = (2.0 * f64::from(stats.hessian[17]) * 100f64.ln()).sqrt();
        assert!((f64::from(loud.peaks[1]) / wanted - 1.0).abs() < 1e-6);
    }

    #[test]
    fn peaks_of_another_width_and_thresholds_of_nothing_are_refused() {
        let (weight, stats) = (random_weight(2, 16, 5), random_stats(16, 20, 6));
        let of = |peaks, threshold| {
            outlier_split(weight.as_ref(), &stats, peaks, threshold)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            of(ChannelPeaks::Measured(&[1.0; 15]), 6.0),
            "peaks of the input channels: 15, wanted 16 for this weight"
        );
        assert_eq!(
            of(ChannelPeaks::Normal, f32::NAN),
            "threshold: NaN, wanted a magnitude above 0; 6.0 is usual"
        );
    }
}
