use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::{Accum, MatMut, MatRef, Par};
use halfbyte_kernels::bf16::{self, Bf16Matrix};
use halfbyte_quant::ActivationStats;
use rayon::prelude::*;

/// Columns of the Hessian one task computes. Fixed, so that sums run in the same order on any number of threads.
const PANEL: usize = 192;
/// Tokens one product takes: what it reads again and again then stays in the second-level cache.
const TOKENS: usize = 256;

/// Rows and columns of a square that is mirrored at once.
const SQUARE: usize = 32;

/// Sums `x xᵀ` and `|x|` over tokens, and keeps the largest `|x|`.
#[derive(Debug)]
pub struct Accumulator {
    /// Lower triangle of the sum, column-major; what lies above is not kept up.
    sum: Vec<f32>,
    abs: Vec<f64>,
    max_abs: Vec<f32>,
    n_tokens: u64,
    weight: f64,
    /// Whether numbers are rounded to bf16 before they are multiplied.
    in_bf16: bool,
}

impl Accumulator {
    /// An empty sum for inputs of `features` channels; of bf16 numbers where the processor multiplies those quicker.
    pub fn new(features: usize) -> Self {
        Self::with(features, bf16::is_at_hand())
    }

    fn with(features: usize, in_bf16: bool) -> Self {
        Self {
            in_bf16,
            sum: vec![0.0; features * features],
            abs: vec![0.0; features],
            max_abs: vec![0.0; features],
            n_tokens: 0,
            weight: 0.0,
        }
    }

    /// Tokens seen.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Largest `|x|` a channel over all tokens added, `[features]`.
    pub fn max_abs(&self) -> &[f32] {
        &self.max_abs
    }

    /// Adds tokens, `rows` `[tokens, features]` row-major. Only the lower triangle is computed, in panels of columns
    /// that the threads share out; a product runs in f32 over the rows given, the sum of calls too.
    ///
    /// # Errors
    /// The index of the first row that holds a NaN or an infinity.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), usize> {
        self.add_abs(rows)?;
        let tokens = rows.len() / self.abs.len();
        self.add_products(rows);
        self.weight += tokens as f64;
        self.n_tokens += tokens as u64;
        Ok(())
    }

    /// The same with a weight of 0 or more for each token in the sum of `x xᵀ`; `|x|` is summed without.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_weighted(&mut self, rows: &[f32], weights: &[f32]) -> Result<(), usize> {
        self.add_abs(rows)?;
        let features = self.abs.len();
        let mut scaled = vec![0.0; rows.len()];
        scaled
            .par_chunks_mut(features)
            .zip(rows.par_chunks(features))
            .zip(weights.par_iter())
            .for_each(|((to, row), weight)| {
                let root = weight.sqrt();
                to.iter_mut().zip(row).for_each(|(to, x)| *to = root * x);
            });
        self.add_products(&scaled);
        self.weight += weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        self.n_tokens += weights.len() as u64;
        Ok(())
    }

    fn add_products(&mut self, rows: &[f32]) {
        let features = self.abs.len();
        if self.in_bf16 {
            Bf16Matrix::from_columns(rows, features).add_square(&mut self.sum);
            return;
        }
        let sum = MatMut::from_column_major_slice_mut(&mut self.sum, features, features);
        panels(sum, PANEL)
            .into_par_iter()
            .for_each(|(start, panel)| {
                let width = panel.ncols();
                let (mut diagonal, mut below) = panel
                    .subrows_mut(start, features - start)
                    .split_at_row_mut(width);
                for rows in rows.chunks(TOKENS * features) {
                    let x = MatRef::from_row_major_slice(rows, rows.len() / features, features);
                    let columns = x.subcols(start, width);
                    triangular_matmul(
                        diagonal.as_mut(),
                        BlockStructure::TriangularLower,
                        Accum::Add,
                        columns.transpose(),
                        BlockStructure::Rectangular,
                        columns,
                        BlockStructure::Rectangular,
                        1.0,
                        Par::Seq,
                    );
                    let rest = x.subcols(start + width, features - start - width);
                    matmul(
                        below.as_mut(),
                        Accum::Add,
                        rest.transpose(),
                        columns,
                        1.0,
                        Par::Seq,
                    );
                }
            });
    }

    /// Adds what another has summed.
    pub(crate) fn join(&mut self, other: &Self) {
        self.sum
            .iter_mut()
            .zip(&other.sum)
            .for_each(|(a, b)| *a += b);
        self.abs
            .iter_mut()
            .zip(&other.abs)
            .for_each(|(a, b)| *a += b);
        for (most, other) in self.max_abs.iter_mut().zip(&other.max_abs) {
            *most = most.max(*other);
        }
        self.n_tokens += other.n_tokens;
        self.weight += other.weight;
    }

    /// The mean over all tokens added, by weight; `H = I` when there were none or none had a weight.
    pub fn finish(self) -> ActivationStats {
        let features = self.abs.len();
        if self.n_tokens == 0 || self.weight <= 0.0 {
            return ActivationStats::identity(features);
        }
        let scale = 1.0 / self.weight;
        let mut hessian = vec![0.0; features * features];
        // in squares, since columns are far apart in memory
        for first in (0..features).step_by(SQUARE) {
            for start in (first..features).step_by(SQUARE) {
                for column in first..features.min(first + SQUARE) {
                    for row in start.max(column)..features.min(start + SQUARE) {
                        let sum = self.sum[column * features + row];
                        let value = (f64::from(sum) * scale) as f32;
                        hessian[row * features + column] = value;
                        hessian[column * features + row] = value;
                    }
                }
            }
        }
        let per_token = 1.0 / self.n_tokens as f64;
        let mean_abs = self.abs.iter().map(|a| (a * per_token) as f32).collect();
        ActivationStats {
            in_features: features,
            hessian,
            mean_abs,
            n_tokens: self.n_tokens,
            cross: None,
        }
    }

    fn add_abs(&mut self, rows: &[f32]) -> Result<(), usize> {
        let features = self.abs.len();
        let mut batch = vec![0.0f32; features];
        for chunk in rows.chunks(features * 64) {
            batch.fill(0.0);
            for row in chunk.chunks_exact(features) {
                let channels = batch.iter_mut().zip(&mut self.max_abs);
                channels.zip(row).for_each(|((sum, most), x)| {
                    *sum += x.abs();
                    *most = most.max(x.abs());
                });
            }
            self.abs
                .iter_mut()
                .zip(&batch)
                .for_each(|(sum, x)| *sum += f64::from(*x));
        }
        if self.abs.iter().all(|sum| sum.is_finite()) {
            return Ok(());
        }
        let bad = rows
            .chunks_exact(features)
            .position(|row| row.iter().any(|x| !x.is_finite()));
        Err(bad.unwrap_or(0))
    }
}

/// Sums `(left_float − left) xᵀ` over tokens: what goes with an input.
#[derive(Debug)]
pub(crate) struct CrossSum {
    left: usize,
    features: usize,
    /// `[left, features]`, column-major.
    sum: Vec<f32>,
    weight: f64,
    /// Whether numbers are rounded to bf16 before they are multiplied.
    in_bf16: bool,
}

impl CrossSum {
    /// An empty sum; of bf16 numbers where the processor multiplies those quicker.
    pub(crate) fn new(left: usize, features: usize) -> Self {
        Self::with(left, features, bf16::is_at_hand())
    }

    fn with(left: usize, features: usize, in_bf16: bool) -> Self {
        Self {
            left,
            features,
            sum: vec![0.0; left * features],
            weight: 0.0,
            in_bf16,
        }
    }

    /// Adds tokens: `float` and `own` `[tokens, left]`, `x` `[tokens, features]`, with a weight for each token if there
    /// are weights.
    pub(crate) fn add(&mut self, [float, own]: [&[f32]; 2], x: &[f32], weights: Option<&[f32]>) {
        let (left, features) = (self.left, self.features);
        let tokens = x.len() / features;
        let mut lacking: Vec<f32> = float.iter().zip(own).map(|(a, b)| a - b).collect();
        if let Some(weights) = weights {
            lacking
                .par_chunks_mut(left)
                .zip(weights)
                .for_each(|(row, weight)| row.iter_mut().for_each(|d| *d *= weight));
        }
        if self.in_bf16 {
            let x = Bf16Matrix::from_columns(x, features);
            x.add_products(&Bf16Matrix::from_columns(&lacking, left), &mut self.sum);
        } else {
            self.add_products(&lacking, x);
        }
        self.weight += match weights {
            Some(weights) => weights.iter().map(|w| f64::from(*w)).sum(),
            None => tokens as f64,
        };
    }

    fn add_products(&mut self, lacking: &[f32], x: &[f32]) {
        let (left, features) = (self.left, self.features);
        let tokens = x.len() / features;
        let lacking = MatRef::from_row_major_slice(lacking, tokens, left);
        let x = MatRef::from_row_major_slice(x, tokens, features);
        let sum = MatMut::from_column_major_slice_mut(&mut self.sum, left, features);
        panels(sum, PANEL)
            .into_par_iter()
            .for_each(|(start, mut panel)| {
                let width = panel.ncols();
                for first in (0..tokens).step_by(TOKENS) {
                    let some = TOKENS.min(tokens - first);
                    matmul(
                        panel.as_mut(),
                        Accum::Add,
                        lacking.subrows(first, some).transpose(),
                        x.submatrix(first, start, some, width),
                        1.0,
                        Par::Seq,
                    );
                }
            });
    }

    /// The mean over all tokens added, by weight, `[left, features]` row-major.
    pub(crate) fn finish(self) -> Vec<f32> {
        let scale = if self.weight > 0.0 {
            1.0 / self.weight
        } else {
            0.0
        };
        let row = |i| self.sum[i..].iter().step_by(self.left.max(1));
        (0..self.left)
            .flat_map(|i| row(i).map(|x| (f64::from(*x) * scale) as f32))
            .collect()
    }
}

/// The columns of a matrix so many at a time, each with the first one's index.
fn panels(mut sum: MatMut<'_, f32>, width: usize) -> Vec<(usize, MatMut<'_, f32>)> {
    let (mut panels, mut start) = (Vec::new(), 0);
    while sum.ncols() > 0 {
        let width = width.min(sum.ncols());
        let (panel, rest) = sum.split_at_col_mut(width);
        panels.push((start, panel));
        start += width;
        sum = rest;
    }
    panels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::stored;

    fn rows(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    }

    type Rounding = fn(f32) -> f32;

    /// In f32, and in bf16 where the processor can, each with what becomes of a number before it is multiplied.
    fn forms() -> Vec<(bool, Rounding)> {
        let mut forms: Vec<(bool, Rounding)> = vec![(false, |x| x), (true, stored)];
        if !bf16::is_at_hand() {
            halfbyte_testing::skip(
                halfbyte_testing::Lacking::Instructions,
                "AVX-512 BF16, for sums of bf16 numbers",
            );
            forms.pop();
        }
        forms
    }

    #[test]
    fn means_match_a_naive_sum_in_f64() {
        let sizes = [1, 17, 192, 193, 400];
        let all = || {
            sizes
                .into_iter()
                .flat_map(|size| forms().into_iter().map(move |form| (size, form)))
        };
        for (features, (in_bf16, of)) in all() {
            let (a, b) = (rows(31 * features, 1), rows(8 * features, 2));
            let mut accumulator = Accumulator::with(features, in_bf16);
            accumulator.add(&a).unwrap();
            accumulator.add(&b).unwrap();
            let all: Vec<f32> = a.into_iter().chain(b).collect();
            for (i, &found) in accumulator.max_abs().iter().enumerate() {
                let magnitudes = all.chunks(features).map(|r| r[i].abs());
                assert_eq!(found, magnitudes.fold(0.0, f32::max));
            }
            let stats = accumulator.finish();
            assert_eq!(stats.n_tokens, 39);
            for i in 0..features {
                let mean_abs: f64 = all
                    .chunks(features)
                    .map(|r| f64::from(r[i].abs()))
                    .sum::<f64>()
                    / 39.0;
                assert!((f64::from(stats.mean_abs[i]) - mean_abs).abs() < 1e-6);
                for j in (0..features).step_by(7) {
                    let mean: f64 = all
                        .chunks(features)
                        .map(|r| f64::from(of(r[i])) * f64::from(of(r[j])))
                        .sum::<f64>()
                        / 39.0;
                    let found = f64::from(stats.hessian[i * features + j]);
                    assert!(
                        (found - mean).abs() < 1e-6,
                        "{features}, bf16 {in_bf16}: [{i}, {j}] is {found}, wanted {mean}"
                    );
                }
            }
        }
    }

    #[test]
    fn weighted_means_match_a_naive_sum_in_f64() {
        let (features, x) = (21, rows(40 * 21, 5));
        let weights: Vec<f32> = rows(40, 6).iter().map(|w| 4.0 * (w + 0.5)).collect();
        for (in_bf16, of) in forms() {
            let mut accumulator = Accumulator::with(features, in_bf16);
            accumulator.add_weighted(&x, &weights).unwrap();
            let stats = accumulator.finish();
            assert_eq!(stats.n_tokens, 40);
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for i in 0..features {
                for j in 0..features {
                    let sum: f64 = x
                        .chunks(features)
                        .zip(&weights)
                        .map(|(r, w)| {
                            let scaled = |x: f32| f64::from(of(w.sqrt() * x));
                            scaled(r[i]) * scaled(r[j])
                        })
                        .sum();
                    let found = f64::from(stats.hessian[i * features + j]);
                    assert!((found - sum / total).abs() < 1e-6, "[{i}, {j}]: {found}");
                }
                let mean_abs = x
                    .chunks(features)
                    .map(|r| f64::from(r[i].abs()))
                    .sum::<f64>()
                    / 40.0;
                assert!((f64::from(stats.mean_abs[i]) - mean_abs).abs() < 1e-6);
            }
        }
        let mut unfelt = Accumulator::new(2);
        unfelt.add_weighted(&[1.0, 2.0], &[0.0]).unwrap();
        assert_eq!(unfelt.finish().hessian, [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn cross_means_match_a_naive_sum_in_f64() {
        let (left, features, tokens) = (5, 201, 300);
        let (float, own, x) = (
            rows(tokens * left, 7),
            rows(tokens * left, 8),
            rows(tokens * features, 9),
        );
        let weights: Vec<f32> = rows(tokens, 6).iter().map(|w| 4.0 * (w + 0.5)).collect();
        let forms = forms();
        let each = [None, Some(&weights[..])].into_iter();
        for (weights, (in_bf16, of)) in each.flat_map(|w| forms.iter().map(move |f| (w, f))) {
            let mut sum = CrossSum::with(left, features, *in_bf16);
            let cut = 130;
            for part in [0..cut, cut..tokens] {
                let few = part.start * left..part.end * left;
                sum.add(
                    [&float[few.clone()], &own[few]],
                    &x[part.start * features..part.end * features],
                    weights.map(|w| &w[part]),
                );
            }
            let found = sum.finish();
            let weight = |t: usize| weights.map_or(1.0, |w| f64::from(w[t]));
            let total: f64 = (0..tokens).map(weight).sum();
            for i in 0..left {
                for k in (0..features).step_by(3) {
                    let wanted: f64 = (0..tokens)
                        .map(|t| {
                            let lacking = float[t * left + i] - own[t * left + i];
                            let lacking = of(lacking * weights.map_or(1.0, |w| w[t]));
                            f64::from(lacking) * f64::from(of(x[t * features + k]))
                        })
                        .sum::<f64>()
                        / total;
                    let near = f64::from(found[i * features + k]);
                    assert!((near - wanted).abs() < 1e-6, "[{i}, {k}]: {near} {wanted}");
                }
            }
        }
    }

    #[test]
    fn sums_are_the_same_bits_on_any_number_of_threads() {
        let (features, x) = (500, rows(64 * 500, 3));
        let sum = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut accumulator = Accumulator::new(features);
                accumulator.add(&x).unwrap();
                accumulator.finish()
            })
        };
        let one = sum(1);
        assert_eq!(one, sum(2));
        assert_eq!(one, sum(7));
    }

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        let mut x = rows(5 * 20, 4);
        x[3 * 20 + 7] = f32::NAN;
        assert_eq!(Accumulator::new(20).add(&x), Err(3));
    }

    #[test]
    fn no_token_at_all_means_white_input() {
        assert_eq!(Accumulator::new(2).finish().hessian, [1.0, 0.0, 0.0, 1.0]);
    }
}
