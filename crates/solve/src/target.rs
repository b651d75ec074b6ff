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

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
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
/// Directions of a step that are told apart from its rest: one, two, four, to 64.
const DIRECTIONS: usize = 127;
/// Rounds of the iteration that finds them.
const ROUNDS: usize = 2;
/// Rows one task solves. Fixed, so that the same bits come out on any number of threads.
const ROWS: usize = 64;

/// A weight moved to where it makes good what came before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// `W*`, `[out_features, in_features]` row-major.
    pub weight: Vec<f32>,
    /// Share of the regression's step that was taken, 0 to 1: the root of its share of `tr(S H Sᵀ)`.
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
/// What a linear can make good is a few directions of output wide; the noise of so many numbers regressed on some ten
/// thousand tokens is in all of them. So there is a share for the direction that explains most of the step, one for the next
/// two, for the next four and so on, and one for the rest; the quadratic has no terms between them.
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
    let held = match held {
        Some(held) => Some((self::pull(weight, held)?, held)),
        None => None,
    };
    let damps = match held {
        Some(_) => &DAMPS[..],
        None => &[UNTRIED.0],
    };
    let mut best: Option<(f64, f64, f64, Mat<f32>)> = None;
    for &damp in damps {
        let regression = Regression::new(pull.as_ref(), seen, damp)?;
        let (gain, step) = match &held {
            Some((pull, held)) => regression.shared(pull.as_ref(), held),
            None => (0.0, regression.part(UNTRIED.1)),
        };
        if best.as_ref().is_none_or(|(most, ..)| gain > *most) {
            let whole = energy(regression.step.as_ref(), seen);
            best = Some((gain, damp, whole, step));
        }
    }
    let (_, damp, whole, step) = best.expect("some damping is tried");
    let taken = energy(step.as_ref(), seen);
    let signal = energy(weight, seen);
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    let moved = |row: usize| {
        let values = weight.row(row).iter().zip(step.row(row).iter());
        values.map(|(w, s)| w + s).collect::<Vec<f32>>()
    };
    Ok(Target {
        weight: (0..weight.nrows()).flat_map(moved).collect(),
        alpha: share(taken, whole).sqrt(),
        damp,
        shift: share(taken, signal),
    })
}

/// A ridge regression and what it is made of.
struct Regression {
    /// `pull (H + damp mean(diag H) I)⁻¹`, `[out_features, in_features]`; zero where `H` is.
    step: Mat<f32>,
    /// Orthonormal columns, `[out_features, directions]`: those that explain most of the step, the first ones most of all.
    directions: Mat<f32>,
}

impl Regression {
    /// Solved in f64.
    fn new(pull: MatRef<'_, f32>, stats: &ActivationStats, damp: f64) -> Result<Self, SolveError> {
        let columns = stats.in_features;
        let hessian = MatRef::from_row_major_slice(&stats.hessian, columns, columns);
        let mut lower = wide(hessian);
        let mean = (0..columns).map(|k| lower[(k, k)]).sum::<f64>() / columns as f64;
        if mean <= 0.0 {
            return Ok(Self {
                step: Mat::zeros(pull.nrows(), columns),
                directions: Mat::zeros(pull.nrows(), 0),
            });
        }
        for k in 0..columns {
            lower[(k, k)] += damp * mean;
        }
        if !cholesky(&mut lower) {
            return Err(SolveError::NotPositiveDefinite { damp });
        }
        let mut step = wide(pull);
        by_rows(&mut step, |_, rows| {
            solve_lower_triangular_in_place(lower.as_ref(), rows.transpose_mut(), Par::Seq);
        });
        // what the inputs explain is the squared length of this, and its directions are the step's
        let directions = directions(step.as_ref());
        by_rows(&mut step, |_, rows| {
            solve_upper_triangular_in_place(lower.transpose(), rows.transpose_mut(), Par::Seq);
        });
        Ok(Self {
            step: narrow(step.as_ref()),
            directions: narrow(directions.as_ref()),
        })
    }

    /// A share of the step.
    fn part(&self, share: f64) -> Mat<f32> {
        let share = share as f32;
        Mat::from_fn(self.step.nrows(), self.step.ncols(), |i, j| {
            share * self.step[(i, j)]
        })
    }

    /// The shares of the step that gain most on held-out text, and how much that is.
    fn shared(&self, pull: MatRef<'_, f32>, held: &ActivationStats) -> (f64, Mat<f32>) {
        let (step, directions) = (self.step.as_ref(), self.directions.as_ref());
        let (columns, n) = (step.ncols(), directions.ncols());
        let hessian = MatRef::from_row_major_slice(&held.hessian, columns, columns);
        let along = |of: MatRef<'_, f32>| {
            let mut along = Mat::zeros(columns, n);
            by_rows(&mut along, |first, rows| {
                let of = of.transpose().subrows(first, rows.nrows());
                matmul(rows, Accum::Replace, of, directions, 1.0, Par::Seq);
            });
            along
        };
        // a column a direction
        let (steps, pulls) = (along(step), along(pull));
        let mut curved = Mat::zeros(columns, n);
        by_rows(&mut curved, |first, rows| {
            let hessian = hessian.subrows(first, rows.nrows());
            matmul(rows, Accum::Replace, hessian, steps.as_ref(), 1.0, Par::Seq);
        });
        let one = |k: usize| {
            let column = |of: &Mat<f32>| of.as_ref().subcols(k, 1).to_owned();
            let (step, pull, curved) = (column(&steps), column(&pulls), column(&curved));
            [
                inner(step.as_ref(), pull.as_ref()),
                inner(step.as_ref(), curved.as_ref()),
            ]
        };
        let of_one: Vec<[f64; 2]> = (0..n).map(one).collect();
        let sum = |of: &[[f64; 2]]| {
            of.iter()
                .fold([0.0; 2], |sum, of| [sum[0] + of[0], sum[1] + of[1]])
        };
        let best = |[along, curvature]: [f64; 2]| {
            if along > 0.0 && curvature > 0.0 {
                let share = (along / curvature).min(1.0);
                (share * (2.0 * along - share * curvature), share)
            } else {
                (0.0, 0.0)
            }
        };
        let told_apart = sum(&of_one);
        let rest = match n < step.nrows().min(columns) {
            true => [
                inner(pull, step) - told_apart[0],
                energy(step, held) - told_apart[1],
            ],
            false => [0.0; 2],
        };
        let (mut gain, of_rest) = best(rest);
        let mut scaled = directions.to_owned();
        let (mut start, mut len) = (0, 1);
        while start < n {
            let group = start..(start + len).min(n);
            let (more, share) = best(sum(&of_one[group.clone()]));
            gain += more;
            for k in group {
                let by = (share - of_rest) as f32;
                scaled.col_mut(k).iter_mut().for_each(|u| *u *= by);
            }
            (start, len) = (start + len, 2 * len);
        }
        let mut taken = self.part(of_rest);
        by_rows(&mut taken, |first, rows| {
            let scaled = scaled.as_ref().subrows(first, rows.nrows());
            matmul(rows, Accum::Add, scaled, steps.transpose(), 1.0, Par::Seq);
        });
        (gain, taken)
    }
}

/// Orthonormal columns that span most of a matrix's, by falling length of what they hold of it: the range finder with power
/// iteration of Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4. Where there are fewer, the last ones are zero.
fn directions(of: MatRef<'_, f64>) -> Mat<f64> {
    let (rows, columns) = (of.nrows(), of.ncols());
    let n = DIRECTIONS.min(rows).min(columns);
    let sign = |i: usize, j: usize| {
        let mixed = ((i * n + j) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        1.0 - 2.0 * ((mixed >> 60) & 1) as f64
    };
    let mut found = orthonormal(product(of, Mat::from_fn(columns, n, sign).as_ref()));
    for _ in 0..ROUNDS {
        let back = orthonormal(product(of.transpose(), found.as_ref()));
        found = orthonormal(product(of, back.as_ref()));
    }
    let held = product(of.transpose(), found.as_ref());
    let gram = product(held.transpose(), held.as_ref());
    let mut rotation = Mat::zeros(n, n);
    let mut lengths = Mat::<f64>::zeros(n, 1);
    let scratch =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let found_all = self_adjoint_evd(
        gram.as_ref(),
        lengths.as_mut().col_mut(0).as_diagonal_mut(),
        Some(rotation.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    match found_all {
        // eigenvalues rise
        Ok(()) => product(found.as_ref(), rotation.as_ref().reverse_cols()),
        Err(_) => found,
    }
}

/// An orthonormal basis of what columns span, by two rounds of Cholesky QR; a basis of more than that where they are dependent,
/// and zeros where they are zero.
fn orthonormal(mut of: Mat<f64>) -> Mat<f64> {
    let n = of.ncols();
    for _ in 0..2 {
        let mut gram = product(of.transpose(), of.as_ref());
        let mean = (0..n).map(|k| gram[(k, k)]).sum::<f64>() / n.max(1) as f64;
        for k in 0..n {
            gram[(k, k)] += 1e-13 * mean;
        }
        if !cholesky(&mut gram) {
            return Mat::zeros(of.nrows(), n);
        }
        by_rows(&mut of, |_, rows| {
            solve_lower_triangular_in_place(gram.as_ref(), rows.transpose_mut(), Par::Seq);
        });
    }
    of
}

fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    by_rows(&mut product, |first, rows| {
        let left = left.subrows(first, rows.nrows());
        matmul(rows, Accum::Replace, left, right, 1.0, Par::Seq);
    });
    product
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

fn narrow(of: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(of.nrows(), of.ncols(), |i, j| of[(i, j)] as f32)
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

    /// Eigenvectors as rows, by falling eigenvalue: Jacobi's rotations.
    fn eigenvectors(mut a: [[f64; OUT]; OUT]) -> [[f64; OUT]; OUT] {
        let mut v: [[f64; OUT]; OUT] =
            std::array::from_fn(|i| std::array::from_fn(|j| f64::from(u8::from(i == j))));
        for _ in 0..50 {
            for p in 0..OUT {
                for q in p + 1..OUT {
                    let (s, c) = (0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p])).sin_cos();
                    for k in 0..OUT {
                        let (x, y) = (a[k][p], a[k][q]);
                        (a[k][p], a[k][q]) = (c * x - s * y, s * x + c * y);
                    }
                    for k in 0..OUT {
                        let (x, y) = (a[p][k], a[q][k]);
                        (a[p][k], a[q][k]) = (c * x - s * y, s * x + c * y);
                        let (x, y) = (v[p][k], v[q][k]);
                        (v[p][k], v[q][k]) = (c * x - s * y, s * x + c * y);
                    }
                }
            }
        }
        let mut order: Vec<usize> = (0..OUT).collect();
        order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
        std::array::from_fn(|i| v[order[i]])
    }

    #[test]
    fn every_group_of_directions_has_the_share_of_least_error() {
        let (weight, seen, held) = (random_weight(OUT, IN, 12), tokens(24, 13), tokens(40, 14));
        let target = corrected_target(weight.as_ref(), &stats(&seen), Some(&stats(&held))).unwrap();
        let none = between(&weight, &[0.0; OUT * IN], 0.0);
        let mean = |a: usize, b: usize| seen.x.iter().map(|x| x[a] * x[b]).sum::<f64>() / 24.0;
        let trace = (0..IN).map(|k| mean(k, k)).sum::<f64>() / IN as f64;
        let of_damp = |damp: f64| {
            let to = textbook(&seen, &weight, damp);
            let step: Vec<f64> = to.iter().zip(&none).map(|(to, w)| to - w).collect();
            // S (H + λ) Sᵀ, whose eigenvectors are the directions
            let mut gram = [[0.0; OUT]; OUT];
            for (i, row) in gram.iter_mut().enumerate() {
                for (j, gram) in row.iter_mut().enumerate() {
                    for a in 0..IN {
                        for b in 0..IN {
                            let ridge = if a == b { damp * trace } else { 0.0 };
                            *gram += step[i * IN + a] * (mean(a, b) + ridge) * step[j * IN + b];
                        }
                    }
                }
            }
            let directions = eigenvectors(gram);
            // one, two and what is left of five
            let mut moved = none.clone();
            for group in [0..1, 1..3, 3..5] {
                let part: Vec<f64> = (0..OUT * IN)
                    .map(|at| {
                        let (i, k) = (at / IN, at % IN);
                        let along = |u: &[f64; OUT]| {
                            u[i] * (0..OUT).map(|j| u[j] * step[j * IN + k]).sum::<f64>()
                        };
                        directions[group.clone()].iter().map(along).sum()
                    })
                    .collect();
                let with = |share: f64| -> Vec<f64> {
                    moved
                        .iter()
                        .zip(&part)
                        .map(|(w, s)| w + share * s)
                        .collect()
                };
                let least = (0..=2000)
                    .map(|i| f64::from(i) / 2000.0)
                    .min_by(|a, b| {
                        let of = |share: &f64| error(&held, &weight, &with(*share));
                        of(a).total_cmp(&of(b))
                    })
                    .unwrap();
                moved = with(least);
            }
            moved
        };
        let wanted = DAMPS
            .map(of_damp)
            .into_iter()
            .min_by(|a, b| error(&held, &weight, a).total_cmp(&error(&held, &weight, b)))
            .unwrap();
        for ((found, wanted), before) in target.weight.iter().zip(&wanted).zip(&none) {
            let near = (f64::from(*found) - wanted).abs();
            assert!(
                near < 1e-3 * (wanted - before).abs().max(1e-2),
                "{found} {wanted}"
            );
        }
        let one_share = DAMPS
            .iter()
            .flat_map(|&damp| {
                let to = textbook(&seen, &weight, damp);
                (0..=100).map(move |i| (to.clone(), f64::from(i) / 100.0))
            })
            .map(|(to, alpha)| error(&held, &weight, &between(&weight, &to, alpha)))
            .fold(f64::INFINITY, f64::min);
        assert!(
            error(&held, &weight, &wanted) < 0.999 * one_share,
            "shares do not differ"
        );
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
