//! HQQ: zero points by half-quadratic splitting, from the weight alone.

use faer::MatRef;
use halfbyte_quant::{ActivationStats, QuantizedWeight, Scheme};
use rayon::prelude::*;

use crate::dense::{check, measured, row_major};
use crate::storage::Storage;
use crate::{ScaleDtype, Solution, SolveError};

/// How [`hqq`] and [`hqq_float`] search. `default()` holds the authors' numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct HqqOptions {
    /// Exponent of the error to lower, `Σ |w − ŵ|^p`, above 0 and at most 1.
    pub p: f32,
    /// Weight of the quadratic coupling in the first iteration.
    pub beta: f32,
    /// Factor on `beta` from one iteration to the next.
    pub kappa: f32,
    /// Iterations at most; the search stops before where the mean `|w − ŵ|` of the whole weight no longer falls.
    pub iterations: usize,
    /// Storage type of scales, for [`hqq`] alone.
    pub scale_dtype: ScaleDtype,
}

impl Default for HqqOptions {
    fn default() -> Self {
        Self {
            p: 0.7,
            beta: 10.0,
            kappa: 1.01,
            iterations: 20,
            scale_dtype: ScaleDtype::Portable,
        }
    }
}

/// A weight with zero points that are no codes: `w = scale * (code − zero)` with any number for `zero`.
///
/// Formats that store an offset as a float can hold it (as `−scale * zero`); gptq, compressed-tensors and awq store
/// zero points as codes and cannot.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatZeroWeight {
    /// Bits and groups of the codes; asymmetric.
    pub scheme: Scheme,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Codes `[out, in]`, row-major, one a byte.
    pub codes: Vec<u8>,
    /// Scales `[out, groups]`, row-major.
    pub scales: Vec<f32>,
    /// Zero points `[out, groups]`, row-major, in units of codes.
    pub zeros: Vec<f32>,
}

impl FloatZeroWeight {
    /// The weight the codes stand for, `[out, in]` row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let columns = self.shape[1];
        self.codes
            .chunks(columns)
            .flat_map(|row| row.chunks(self.scheme.group_len(columns)))
            .zip(self.scales.iter().zip(&self.zeros))
            .flat_map(|(codes, (&scale, &zero))| {
                codes.iter().map(move |&c| scale * (f32::from(c) - zero))
            })
            .collect()
    }
}

/// The authors' solution, zero points left as floats (Badri and Shaji, "Half-Quadratic Quantization of Large
/// Machine Learning Models", 2023). Scales are those of each group's range and never rounded.
///
/// From `ŵ = s (c − z)`, each iteration takes `e = sign(r) max(0, |r| − |r|^(p−1) / β)` of the residual `r = w − ŵ`
/// and then `z = mean(c − (w − e) / s)`; at the end the codes are chosen once more. As in the authors' program the
/// zero point of the iteration that did not lower the error is the one kept.
///
/// `e` is 0 wherever `|r| < β^(−1/(2−p))`, which is 0.17 at first. Residuals of language models' weights are far below
/// it, so there the method is a least squares fit of the zero point, whatever `p`.
///
/// # Errors
/// NaN or infinity in the weight, a symmetric scheme, options out of range.
pub fn hqq_float(
    weight: MatRef<'_, f32>,
    scheme: &Scheme,
    options: &HqqOptions,
) -> Result<FloatZeroWeight, SolveError> {
    check(weight, None)?;
    check_options(scheme, options)?;
    let groups = Groups::of(weight, scheme);
    // the authors' guards: no step below 5e-5, and step 1 for a group without spread
    let scales = groups.each(|w| {
        let (low, high) = range(w);
        let spread = high - low;
        if spread <= 1e-4 {
            1.0
        } else {
            (spread / groups.max_code).max(1.0 / 2e4)
        }
    });
    let mut zeros: Vec<f32> = groups
        .each(|w| -range(w).0)
        .iter()
        .zip(&scales)
        .map(|(offset, scale)| offset / scale)
        .collect();
    groups.search(&scales, &mut zeros, options);
    Ok(FloatZeroWeight {
        scheme: *scheme,
        shape: [weight.nrows(), weight.ncols()],
        codes: groups.codes(&scales, &zeros),
        scales,
        zeros,
    })
}

/// HQQ for formats whose zero points are codes: the same search on ranges that hold 0 and scales as stored, then
/// each zero point rounded into `0..2^bits` and the codes chosen once more.
///
/// Rounding gives back all that the search had gained, because the scale stays that of the range: relative error of
/// the weight in groups of 64, mean of the 42 linears of the embedded model (random normal weights are alike),
///
/// | bits | min-max, integer zero ([`rtn`](crate::rtn)) | min-max, float zero | hqq, float zero | hqq, integer zero | `rtn` with range search |
/// |---|---|---|---|---|---|
/// | 4 | 0.00824 | 0.00798 | 0.00736 | 0.00827 | 0.00750 |
/// | 3 | 0.0379 | 0.0368 | 0.0339 | 0.0380 | 0.0307 |
/// | 2 | 0.207 | 0.201 | 0.185 | 0.208 | 0.123 |
///
/// The authors' own program reaches the float column to three digits. Where zero points must be codes, a search over
/// ranges serves better than one over zero points.
///
/// Statistics give the losses reported and change no code; without them `H = I`.
///
/// # Errors
/// NaN or infinity in weight or statistics, shapes that disagree, a symmetric scheme, options out of range.
pub fn hqq(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
    scheme: &Scheme,
    options: &HqqOptions,
) -> Result<Solution, SolveError> {
    check(weight, stats)?;
    check_options(scheme, options)?;
    let storage = Storage::new(options.scale_dtype);
    let groups = Groups::of(weight, scheme);
    let with_zero = |w: &[f32]| {
        let (low, high) = range(w);
        (low.min(0.0), high.max(0.0))
    };
    let scales = groups.each(|w| {
        let (low, high) = with_zero(w);
        if high > low {
            storage.round((high - low) / groups.max_code)
        } else {
            1.0
        }
    });
    let mut zeros: Vec<f32> = groups
        .each(|w| -with_zero(w).0)
        .iter()
        .zip(&scales)
        .map(|(offset, scale)| offset / scale)
        .collect();
    groups.search(&scales, &mut zeros, options);
    for zero in &mut zeros {
        *zero = zero.round_ties_even().clamp(0.0, groups.max_code);
    }
    let codes = groups.codes(&scales, &zeros);
    let zeros = zeros.into_iter().map(|zero| zero as u8).collect();
    let shape = [weight.nrows(), weight.ncols()];
    let quantized = QuantizedWeight::new(*scheme, shape, codes, scales, zeros)?;
    Ok(measured(weight, quantized, stats, storage))
}

fn check_options(scheme: &Scheme, options: &HqqOptions) -> Result<(), SolveError> {
    let refuse = |option, found: String, wanted| {
        Err(SolveError::Option {
            option,
            found,
            wanted,
        })
    };
    if scheme.sym() {
        let wanted = "false: the zero point is all that hqq chooses";
        return refuse("sym", "true".to_owned(), wanted);
    }
    if options.p.is_nan() || options.p <= 0.0 || options.p > 1.0 {
        return refuse("p", options.p.to_string(), "above 0 and at most 1");
    }
    if options.beta.is_nan() || options.beta <= 0.0 {
        return refuse("beta", options.beta.to_string(), "above 0");
    }
    if options.kappa.is_nan() || options.kappa < 1.0 {
        return refuse("kappa", options.kappa.to_string(), "1 or more");
    }
    Ok(())
}

fn range(w: &[f32]) -> (f32, f32) {
    let start = (f32::INFINITY, f32::NEG_INFINITY);
    w.iter()
        .fold(start, |(low, high), &w| (low.min(w), high.max(w)))
}

/// The rows of a weight, cut into groups.
struct Groups {
    w: Vec<f32>,
    columns: usize,
    group: usize,
    max_code: f32,
}

impl Groups {
    fn of(weight: MatRef<'_, f32>, scheme: &Scheme) -> Self {
        Self {
            w: row_major(weight),
            columns: weight.ncols(),
            group: scheme.group_len(weight.ncols()),
            max_code: f32::from(scheme.max_code()),
        }
    }

    /// One number a group, `[out, groups]`.
    fn each(&self, of: impl Fn(&[f32]) -> f32 + Sync) -> Vec<f32> {
        self.w
            .chunks(self.columns)
            .flat_map(|row| row.chunks(self.group).map(&of))
            .collect()
    }

    /// Moves zero points from those of the range to those of the search.
    fn search(&self, scales: &[f32], zeros: &mut [f32], options: &HqqOptions) {
        let per_row = self.columns.div_ceil(self.group);
        let mut beta = options.beta;
        let mut least = f64::INFINITY;
        for _ in 0..options.iterations {
            let shrink = Shrink::new(options.p, beta);
            // summed in the order of rows: the same bits on any number of threads
            let errors: Vec<f64> = self
                .w
                .par_chunks(self.columns)
                .zip(scales.par_chunks(per_row))
                .zip(zeros.par_chunks_mut(per_row))
                .map(|((row, scales), zeros)| {
                    let groups = row.chunks(self.group).zip(scales).zip(zeros);
                    groups
                        .map(|((w, &scale), zero)| step(w, scale, zero, self.max_code, &shrink))
                        .sum()
                })
                .collect();
            let error: f64 = errors.iter().sum();
            if error >= least {
                break;
            }
            least = error;
            beta *= options.kappa;
        }
    }

    /// Codes on the grids found.
    fn codes(&self, scales: &[f32], zeros: &[f32]) -> Vec<u8> {
        self.w
            .chunks(self.columns)
            .flat_map(|row| row.chunks(self.group))
            .zip(scales.iter().zip(zeros))
            .flat_map(|(w, (&scale, &zero))| {
                w.iter()
                    .map(move |&w| nearest(w / scale, zero, self.max_code) as u8)
            })
            .collect()
    }
}

#[inline]
fn nearest(level: f32, zero: f32, max_code: f32) -> f32 {
    (level + zero).round_ties_even().max(0.0).min(max_code)
}

/// One iteration of one group; the sum of `|r|` under the zero point it found.
fn step(w: &[f32], scale: f32, zero: &mut f32, max_code: f32, shrink: &Shrink) -> f64 {
    let (mut error, mut sum) = (0.0f64, 0.0f64);
    for &w in w {
        let code = nearest(w / scale, *zero, max_code);
        let residual = w - scale * (code - *zero);
        error += f64::from(residual.abs());
        sum += f64::from(code - (w - shrink.of(residual)) / scale);
    }
    *zero = (sum / w.len() as f64) as f32;
    error
}

/// The proximal step of `Σ |e|^p`, as generalised soft thresholding.
struct Shrink {
    p: f32,
    beta: f32,
    threshold: f32,
}

impl Shrink {
    fn new(p: f32, beta: f32) -> Self {
        Self {
            p,
            beta,
            // where |r| = |r|^(p−1) / β; a hair less, so that rounding decides nothing
            threshold: 0.999 * beta.powf(-1.0 / (2.0 - p)),
        }
    }

    #[inline]
    fn of(&self, residual: f32) -> f32 {
        let size = residual.abs();
        if size < self.threshold {
            return 0.0;
        }
        (size - size.powf(self.p - 1.0) / self.beta)
            .max(0.0)
            .copysign(residual)
    }
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use proptest::prelude::*;

    use super::*;
    use crate::oracle::{Random, quadratic, random_stats, random_weight, scheme};
    use crate::{RtnOptions, rtn};

    /// The whole method in f64, term by term: codes, scales, zero points.
    fn naive(
        weight: &Mat<f32>,
        bits: u8,
        group: usize,
        options: &HqqOptions,
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let max = f64::from((1u32 << bits) - 1);
        let mut groups: Vec<Vec<f64>> = Vec::new();
        for r in 0..weight.nrows() {
            let row: Vec<f64> = (0..weight.ncols())
                .map(|c| f64::from(weight[(r, c)]))
                .collect();
            groups.extend(row.chunks(group).map(<[f64]>::to_vec));
        }
        let low = |g: &Vec<f64>| g.iter().copied().fold(f64::INFINITY, f64::min);
        let high = |g: &Vec<f64>| g.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scales: Vec<f64> = groups
            .iter()
            .map(|g| {
                let spread = high(g) - low(g);
                if spread <= 1e-4 {
                    1.0
                } else {
                    (spread / max).max(5e-5)
                }
            })
            .collect();
        let mut zeros: Vec<f64> = groups
            .iter()
            .zip(&scales)
            .map(|(g, s)| -low(g) / s)
            .collect();
        let code = |w: f64, s: f64, z: f64| (w / s + z).round_ties_even().clamp(0.0, max);
        let (p, mut beta) = (f64::from(options.p), f64::from(options.beta));
        let mut least = f64::INFINITY;
        for _ in 0..options.iterations {
            let mut error = 0.0;
            for (g, (s, z)) in groups.iter().zip(scales.iter().zip(&mut zeros)) {
                let mut sum = 0.0;
                for w in g {
                    let c = code(*w, *s, *z);
                    let r = w - s * (c - *z);
                    error += r.abs();
                    let e = r.signum() * (r.abs() - r.abs().powf(p - 1.0) / beta).max(0.0);
                    sum += c - (w - e) / s;
                }
                *z = sum / g.len() as f64;
            }
            if error >= least {
                break;
            }
            least = error;
            beta *= f64::from(options.kappa);
        }
        let codes = groups
            .iter()
            .zip(scales.iter().zip(&zeros))
            .flat_map(|(g, (&s, &z))| g.iter().map(move |&w| code(w, s, z)).collect::<Vec<_>>())
            .collect();
        (codes, scales, zeros)
    }

    /// Weights with a long tail and a mean of their own in each row, as trained ones have.
    fn trained_looking(rows: usize, columns: usize, size: f64, seed: u64) -> Mat<f32> {
        let mut random = Random::new(seed);
        let offset: Vec<f64> = (0..rows).map(|_| 0.1 * random.normal()).collect();
        Mat::from_fn(rows, columns, |r, _| {
            let x = random.normal();
            (size * (x * (0.7 + 0.15 * x * x) + offset[r])) as f32
        })
    }

    fn check_against_naive(weight: &Mat<f32>, bits: u8, group: usize, options: &HqqOptions) {
        let found =
            hqq_float(weight.as_ref(), &scheme(bits, group as i64, false), options).unwrap();
        let (codes, scales, zeros) = naive(weight, bits, group, options);
        for (found, wanted) in found.scales.iter().zip(&scales) {
            assert!((f64::from(*found) / wanted - 1.0).abs() < 1e-5);
        }
        let far = |(found, wanted): &(&f32, &f64)| (f64::from(**found) - **wanted).abs() > 1e-3;
        let moved = found.zeros.iter().zip(&zeros).filter(far).count();
        // a code on the edge turns in f32 and moves its group's mean
        assert!(moved * 20 <= zeros.len(), "{moved} of {}", zeros.len());
        let differ = found
            .codes
            .iter()
            .zip(&codes)
            .filter(|(f, w)| f64::from(**f) != **w)
            .count();
        assert!(differ * 100 <= codes.len(), "{differ} of {}", codes.len());
    }

    #[test]
    fn the_float_solution_is_the_naive_one() {
        let options = HqqOptions::default();
        check_against_naive(&trained_looking(12, 100, 0.02, 1), 4, 32, &options);
        check_against_naive(&trained_looking(9, 96, 0.02, 2), 3, 24, &options);
        check_against_naive(&trained_looking(9, 96, 0.02, 3), 2, 96, &options);
    }

    #[test]
    fn weights_large_enough_to_be_shrunk_are_solved_alike() {
        let options = HqqOptions {
            kappa: 1.2,
            ..HqqOptions::default()
        };
        check_against_naive(&trained_looking(12, 96, 3.0, 4), 2, 32, &options);
        let small = HqqOptions { p: 0.3, ..options };
        check_against_naive(&trained_looking(12, 96, 3.0, 5), 3, 32, &small);
    }

    #[test]
    fn p_has_no_effect_on_weights_of_usual_size() {
        let p_tells = |size, bits| {
            let weight = trained_looking(16, 128, size, 6);
            let of = |p| {
                let options = HqqOptions {
                    p,
                    ..HqqOptions::default()
                };
                hqq_float(weight.as_ref(), &scheme(bits, 64, false), &options).unwrap()
            };
            of(0.7) != of(1.0)
        };
        assert!(!p_tells(0.02, 4));
        assert!(p_tells(20.0, 2));
    }

    #[test]
    fn the_integer_solution_is_measured_by_definition_and_rounding_costs_little() {
        let (weight, stats) = (trained_looking(24, 192, 0.02, 7), random_stats(192, 400, 8));
        let s = scheme(3, 64, false);
        let solved = hqq(weight.as_ref(), Some(&stats), &s, &HqqOptions::default()).unwrap();
        let h: Vec<f64> = stats.hessian.iter().map(|&h| f64::from(h)).collect();
        let wanted = quadratic(weight.as_ref(), &solved.weight, &h);
        assert!((solved.loss / wanted - 1.0).abs() < 1e-4);
        let float = hqq_float(weight.as_ref(), &s, &HqqOptions::default()).unwrap();
        let float = crate::dense_loss(weight.as_ref(), &float.dequantize(), None).unwrap();
        let whole = hqq(weight.as_ref(), None, &s, &HqqOptions::default()).unwrap();
        let plain = rtn(weight.as_ref(), None, &s, &RtnOptions::default()).unwrap();
        assert!(float.relative < whole.relative_loss);
        assert!(whole.relative_loss < 1.02 * plain.relative_loss);
    }

    #[test]
    fn groups_without_spread_are_exact_as_floats_and_fit_as_codes() {
        let weight = Mat::from_fn(2, 32, |r, _| if r == 0 { 0.3 } else { 0.0 });
        let s = scheme(4, 16, false);
        let float = hqq_float(weight.as_ref(), &s, &HqqOptions::default()).unwrap();
        assert!(
            float.dequantize()[..32]
                .iter()
                .all(|w| (w - 0.3).abs() < 1e-6)
        );
        let whole = hqq(weight.as_ref(), None, &s, &HqqOptions::default()).unwrap();
        // the step is stored with 8 significant bits
        assert!(whole.relative_loss < 1e-5);
        assert!(whole.weight.dequantize()[32..].iter().all(|&w| w == 0.0));
    }

    #[test]
    fn symmetric_schemes_and_options_out_of_range_are_refused() {
        let weight = random_weight(2, 32, 1);
        let of = |s, options: HqqOptions| {
            hqq(weight.as_ref(), None, &s, &options)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            of(scheme(4, 32, true), HqqOptions::default()),
            "sym: true, wanted false: the zero point is all that hqq chooses"
        );
        let options = HqqOptions {
            p: f32::NAN,
            ..HqqOptions::default()
        };
        assert_eq!(
            of(scheme(4, 32, false), options),
            "p: NaN, wanted above 0 and at most 1"
        );
    }

    proptest! {
        #[test]
        fn codes_and_zero_points_fit_whatever_the_weight(
            values in prop::collection::vec(-2.0f32..5.0, 48),
            bits in 2u8..=4,
            exponent in -12i32..6,
        ) {
            let size = 2f32.powi(exponent);
            let weight = Mat::from_fn(2, 24, |r, c| size * values[r * 24 + c]);
            let s = scheme(bits, 16, false);
            let options = HqqOptions { scale_dtype: ScaleDtype::F32, ..HqqOptions::default() };
            let solved = hqq(weight.as_ref(), None, &s, &options).unwrap();
            // QuantizedWeight::new has checked the ranges; 0 is a level, so no weight loses more than itself
            prop_assert!(solved.relative_loss <= 1.0 && solved.relative_loss.is_finite());
        }
    }
}
