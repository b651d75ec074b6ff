//! What a linear of the quantized model should aim at, given that its input is no longer the float model's.
//!
//! With `x` its input, `x + d` the float model's, and `e` what the residual stream that its output is added to lacks,
//! the output wanted is `W (x + d) + e`, and
//!
//! `E|W (x + d) + e − Ŵ x|² = tr((W* − Ŵ) H (W* − Ŵ)ᵀ) + const`, `W* = W + (W E[d xᵀ] + E[e xᵀ]) H⁻¹`,
//!
//! so that any solver may run on `W*` unchanged. Qronos (arXiv 2505.11695) and GPTAQ (arXiv 2504.02692) lower the first
//! term column by column; the whole regression needs no solver of its own. The stream's term lets o and down pay back
//! what all linears before them left.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use halfbyte_quant::ActivationStats;
use rayon::prelude::*;

use crate::SolveError;
use crate::dense::check;
use crate::factor::cholesky;

/// Dampings of the regression that are tried, fractions of the mean diagonal.
const DAMPS: [f64; 3] = [0.01, 0.1, 1.0];
/// Without held-out text: the damping, and the share of the step that is taken.
const UNTRIED: (f64, f64) = (0.1, 0.5);
/// Rows one task solves. Fixed, so that the same bits come out on any number of threads.
const ROWS: usize = 64;

/// A weight moved to where it makes good what came before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// `W*`, `[out_features, in_features]` row-major.
    pub weight: Vec<f32>,
    /// Share of the regression's step that was taken, 0 to 1.
    pub alpha: f64,
    /// Damping of the regression, a fraction of the mean diagonal.
    pub damp: f64,
    /// `tr(S H Sᵀ) / tr(W H Wᵀ)` of the step `S = W* − W`.
    pub shift: f64,
}

/// `W*` from statistics with [`cross`](ActivationStats::cross). Its regression is damped, and only a share of the step is
/// taken: both as the held-out statistics have it, whose quadratic in the share has its least value in closed form;
/// where they see no gain the weight stays.
///
/// The same bits come out on any number of threads.
///
/// # Errors
/// Shapes that disagree or statistics without cross moments, NaN or infinity, no positive definite Hessian.
pub fn corrected_target(
    weight: MatRef<'_, f32>,
    seen: &ActivationStats,
    held: Option<&ActivationStats>,
) -> Result<Target, SolveError> {
    let pull = pull(weight, seen)?;
    let quadratics = match held {
        Some(held) => Some((self::pull(weight, held)?, held)),
        None => None,
    };
    let mut best: Option<(f64, f64, f64, Mat<f32>)> = None;
    let damps = match held {
        Some(_) => &DAMPS[..],
        None => &[UNTRIED.0],
    };
    for &damp in damps {
        let step = regress(pull.as_ref(), seen, damp)?;
        let (gain, alpha) = match &quadratics {
            Some((held_pull, held)) => {
                let along = inner(held_pull.as_ref(), step.as_ref());
                let curvature = energy(step.as_ref(), held);
                if along > 0.0 && curvature > 0.0 {
                    let alpha = (along / curvature).min(1.0);
                    (alpha * (2.0 * along - alpha * curvature), alpha)
                } else {
                    (0.0, 0.0)
                }
            }
            None => (1.0, UNTRIED.1),
        };
        if best.as_ref().is_none_or(|(most, ..)| gain > *most) {
            best = Some((gain, alpha, damp, step));
        }
    }
    let (_, alpha, damp, step) = best.expect("some damping is tried");
    let signal = energy(weight, seen);
    let shift = match signal > 0.0 {
        true => alpha * alpha * energy(step.as_ref(), seen) / signal,
        false => 0.0,
    };
    let moved = |row: usize| {
        let step = step.row(row);
        let values = weight.row(row).iter().zip(step.iter());
        values
            .map(|(w, s)| (f64::from(*w) + alpha * f64::from(*s)) as f32)
            .collect::<Vec<f32>>()
    };
    Ok(Target {
        weight: (0..weight.nrows()).flat_map(moved).collect(),
        alpha,
        damp,
        shift,
    })
}

/// `W E[d xᵀ] + E[e xᵀ]`, `[out_features, in_features]`.
fn pull(weight: MatRef<'_, f32>, stats: &ActivationStats) -> Result<Mat<f32>, SolveError> {
    check(weight, Some(stats))?;
    let (out, columns) = (weight.nrows(), weight.ncols());
    let cross = stats.cross.as_ref();
    let input = cross.map_or(&[][..], |cross| &cross.input);
    let input = moment(input, "elements of the cross moment", [columns, columns])?;
    let mut pull = match cross.and_then(|cross| cross.stream.as_ref()) {
        Some(stream) => {
            moment(stream, "elements of the stream's moment", [out, columns])?.to_owned()
        }
        None => Mat::zeros(out, columns),
    };
    by_rows(&mut pull, |first, rows| {
        let weight = weight.subrows(first, rows.nrows());
        matmul(rows, Accum::Add, weight, input, 1.0, Par::Seq);
    });
    Ok(pull)
}

fn moment<'a>(
    values: &'a [f32],
    part: &'static str,
    [rows, columns]: [usize; 2],
) -> Result<MatRef<'a, f32>, SolveError> {
    if values.len() != rows * columns {
        return Err(SolveError::Shape {
            part,
            found: values.len(),
            wanted: rows * columns,
        });
    }
    match values.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(SolveError::HessianNotFinite {
            row: at / columns,
            column: at % columns,
            value: values[at],
        }),
        None => Ok(MatRef::from_row_major_slice(values, rows, columns)),
    }
}

/// `pull (H + damp mean(diag H) I)⁻¹`, solved in f64; no step at all where `H` is zero.
fn regress(
    pull: MatRef<'_, f32>,
    stats: &ActivationStats,
    damp: f64,
) -> Result<Mat<f32>, SolveError> {
    let columns = stats.in_features;
    let hessian = MatRef::from_row_major_slice(&stats.hessian, columns, columns);
    let mut lower = wide(hessian);
    let mean = (0..columns).map(|k| lower[(k, k)]).sum::<f64>() / columns as f64;
    if mean <= 0.0 {
        return Ok(Mat::zeros(pull.nrows(), columns));
    }
    let mut step = wide(pull);
    for k in 0..columns {
        lower[(k, k)] += damp * mean;
    }
    if !cholesky(&mut lower) {
        return Err(SolveError::NotPositiveDefinite { damp });
    }
    by_rows(&mut step, |_, rows| {
        let mut columns = rows.transpose_mut();
        solve_lower_triangular_in_place(lower.as_ref(), columns.as_mut(), Par::Seq);
        solve_upper_triangular_in_place(lower.transpose(), columns, Par::Seq);
    });
    let narrow = |i, j| step[(i, j)] as f32;
    Ok(Mat::from_fn(pull.nrows(), columns, narrow))
}

/// `tr(S H Sᵀ)`.
fn energy(step: MatRef<'_, f32>, stats: &ActivationStats) -> f64 {
    let columns = stats.in_features;
    let hessian = MatRef::from_row_major_slice(&stats.hessian, columns, columns);
    let mut product = Mat::zeros(step.nrows(), columns);
    by_rows(&mut product, |first, rows| {
        let step = step.subrows(first, rows.nrows());
        matmul(rows, Accum::Replace, step, hessian, 1.0, Par::Seq);
    });
    inner(product.as_ref(), step)
}

/// `Σ a_ij b_ij`.
fn inner(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f64 {
    let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
    let columns = a.col_iter().zip(b.col_iter());
    columns
        .map(|(a, b)| a.iter().zip(b.iter()).map(product).sum::<f64>())
        .sum()
}

fn wide(of: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(of.nrows(), of.ncols(), |i, j| f64::from(of[(i, j)]))
}

/// Hands out rows of `to`, with the index of the first.
fn by_rows<T: Send>(to: &mut Mat<T>, work: impl Fn(usize, MatMut<'_, T>) + Sync) {
    to.par_row_chunks_mut(ROWS)
        .enumerate()
        .for_each(|(chunk, rows)| work(chunk * ROWS, rows));
}

#[cfg(test)]
mod tests {
    use halfbyte_quant::CrossStats;

    use super::*;
    use crate::oracle::{Random, on_threads, random_weight};

    const OUT: usize = 5;
    const IN: usize = 7;

    /// Tokens on both paths: inputs of the quantized and of the float model, and what the stream lacks.
    struct Tokens {
        x: Vec<[f64; IN]>,
        float: Vec<[f64; IN]>,
        lacking: Vec<[f64; OUT]>,
    }

    /// Inputs that err along with what they are, so that a regression finds something.
    fn tokens(n: usize, seed: u64) -> Tokens {
        let mut random = Random::new(seed);
        let mut all = Tokens {
            x: Vec::new(),
            float: Vec::new(),
            lacking: Vec::new(),
        };
        for _ in 0..n {
            let x: [f64; IN] = std::array::from_fn(|k| (1.0 + k as f64) * random.normal());
            let float =
                std::array::from_fn(|k| x[k] + 0.1 * x[(k + 1) % IN] + 0.02 * random.normal());
            all.lacking.push(std::array::from_fn(|i| {
                0.03 * x[i % IN] - 0.02 * x[(i + 3) % IN] + 0.05 * random.normal()
            }));
            all.x.push(x);
            all.float.push(float);
        }
        all
    }

    fn stats(tokens: &Tokens) -> ActivationStats {
        let n = tokens.x.len() as f64;
        let mean =
            |of: &dyn Fn(usize) -> f64| ((0..tokens.x.len()).map(of).sum::<f64>() / n) as f32;
        let x = |t: usize, k: usize| tokens.x[t][k];
        let square = |of: &dyn Fn(usize, usize) -> f64, rows: usize| -> Vec<f32> {
            (0..rows * IN)
                .map(|at| mean(&|t| of(t, at / IN) * x(t, at % IN)))
                .collect()
        };
        ActivationStats {
            in_features: IN,
            hessian: square(&x, IN),
            mean_abs: (0..IN).map(|k| mean(&|t| x(t, k).abs())).collect(),
            n_tokens: tokens.x.len() as u64,
            cross: Some(CrossStats {
                input: square(&|t, k| tokens.float[t][k] - x(t, k), IN),
                stream: Some(square(&|t, i| tokens.lacking[t][i], OUT)),
            }),
        }
    }

    /// `Σ_t |W x_float + e − V x|²`.
    fn error(tokens: &Tokens, weight: &Mat<f32>, v: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (t, x) in tokens.x.iter().enumerate() {
            for i in 0..OUT {
                let wanted: f64 = (0..IN)
                    .map(|k| f64::from(weight[(i, k)]) * tokens.float[t][k])
                    .sum();
                let found: f64 = (0..IN).map(|k| v[i * IN + k] * x[k]).sum();
                sum += (wanted + tokens.lacking[t][i] - found).powi(2);
            }
        }
        sum
    }

    /// The ridge regression of the wanted outputs on `x`, row by row by Gaussian elimination; the ridge pulls to `W`.
    fn textbook(tokens: &Tokens, weight: &Mat<f32>, damp: f64) -> Vec<f64> {
        let mut normal = [[0.0; IN]; IN];
        for x in &tokens.x {
            for a in 0..IN {
                for b in 0..IN {
                    normal[a][b] += x[a] * x[b];
                }
            }
        }
        let ridge = damp * (0..IN).map(|k| normal[k][k]).sum::<f64>() / IN as f64;
        (0..IN).for_each(|k| normal[k][k] += ridge);
        let mut solved = Vec::new();
        for i in 0..OUT {
            let mut a = normal;
            let mut b: [f64; IN] = std::array::from_fn(|k| ridge * f64::from(weight[(i, k)]));
            for (t, x) in tokens.x.iter().enumerate() {
                let wanted: f64 = (0..IN)
                    .map(|k| f64::from(weight[(i, k)]) * tokens.float[t][k])
                    .sum();
                (0..IN).for_each(|k| b[k] += (wanted + tokens.lacking[t][i]) * x[k]);
            }
            for p in 0..IN {
                for r in p + 1..IN {
                    let f = a[r][p] / a[p][p];
                    (p..IN).for_each(|c| a[r][c] -= f * a[p][c]);
                    b[r] -= f * b[p];
                }
            }
            let mut row = [0.0; IN];
            for p in (0..IN).rev() {
                let rest: f64 = (p + 1..IN).map(|c| a[p][c] * row[c]).sum();
                row[p] = (b[p] - rest) / a[p][p];
            }
            solved.extend(row);
        }
        solved
    }

    fn between(weight: &Mat<f32>, to: &[f64], alpha: f64) -> Vec<f64> {
        let from = |at: usize| f64::from(weight[(at / IN, at % IN)]);
        (0..OUT * IN)
            .map(|at| from(at) + alpha * (to[at] - from(at)))
            .collect()
    }

    #[test]
    fn the_step_is_that_of_a_textbook_regression() {
        let (weight, seen) = (random_weight(OUT, IN, 3), tokens(90, 1));
        let target = corrected_target(weight.as_ref(), &stats(&seen), None).unwrap();
        let wanted = between(&weight, &textbook(&seen, &weight, UNTRIED.0), UNTRIED.1);
        for (found, wanted) in target.weight.iter().zip(&wanted) {
            assert!(
                (f64::from(*found) - wanted).abs() < 1e-5,
                "{found} {wanted}"
            );
        }
        assert!(target.shift > 0.0);
    }

    #[test]
    fn damping_and_share_are_those_of_least_error_on_held_out_text() {
        let (weight, seen, held) = (random_weight(OUT, IN, 4), tokens(20, 5), tokens(40, 6));
        let target = corrected_target(weight.as_ref(), &stats(&seen), Some(&stats(&held))).unwrap();
        let found: Vec<f64> = target.weight.iter().map(|w| f64::from(*w)).collect();
        let least = DAMPS
            .iter()
            .flat_map(|&damp| {
                let to = textbook(&seen, &weight, damp);
                (0..=100).map(move |i| (to.clone(), f64::from(i) / 100.0))
            })
            .map(|(to, alpha)| error(&held, &weight, &between(&weight, &to, alpha)))
            .fold(f64::INFINITY, f64::min);
        let found = error(&held, &weight, &found);
        assert!(found <= least * (1.0 + 1e-4), "{found} {least}");
        let still = error(&held, &weight, &between(&weight, &[0.0; OUT * IN], 0.0));
        assert!(least < 0.9 * still, "nothing to find: {least} {still}");
    }

    #[test]
    fn what_held_out_text_contradicts_is_left_alone() {
        let (weight, seen) = (random_weight(OUT, IN, 7), tokens(60, 8));
        let mut held = stats(&seen);
        let cross = held.cross.as_mut().unwrap();
        cross.input.iter_mut().for_each(|d| *d = -*d);
        cross
            .stream
            .as_mut()
            .unwrap()
            .iter_mut()
            .for_each(|d| *d = -*d);
        let target = corrected_target(weight.as_ref(), &stats(&seen), Some(&held)).unwrap();
        assert_eq!((target.alpha, target.shift), (0.0, 0.0));
        let same = (0..OUT).flat_map(|i| weight.row(i).iter().copied());
        assert!(target.weight.iter().copied().eq(same));
    }

    #[test]
    fn threads_change_no_bit() {
        let (weight, seen) = (random_weight(200, IN, 9), tokens(60, 10));
        let mut stats = stats(&seen);
        stats.cross.as_mut().unwrap().stream = None;
        let solve = || corrected_target(weight.as_ref(), &stats, Some(&stats)).unwrap();
        assert_eq!(on_threads(1, solve), on_threads(3, solve));
    }

    #[test]
    fn statistics_without_or_with_broken_cross_moments_are_refused() {
        let weight = random_weight(OUT, IN, 11);
        let good = stats(&tokens(30, 12));
        let mut none = good.clone();
        none.cross = None;
        let mut broken = good.clone();
        broken.cross.as_mut().unwrap().input[8] = f32::NAN;
        let mut short = good;
        short.cross.as_mut().unwrap().stream = Some(vec![0.0; 3]);
        let message = |stats: &ActivationStats| {
            corrected_target(weight.as_ref(), stats, None)
                .unwrap_err()
                .to_string()
        };
        assert!(message(&none).contains("elements of the cross moment: 0, wanted 49"));
        assert!(message(&broken).contains("row 1, column 1"));
        assert!(message(&short).contains("elements of the stream's moment: 3, wanted 35"));
    }
}
