//! Slow, plain f64 versions of what the solvers do, and random problems to try them on. Tests only.

use faer::{Mat, MatRef};
use halfbyte_quant::{ActivationStats, GroupSize, QuantizedWeight, Scheme};

/// A small congruential generator: the same problems on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Near enough to normal: twelve uniforms.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// What `work` gives on a pool of so many threads.
pub(crate) fn on_threads<T: Send>(threads: usize, work: impl Fn() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(work)
}

pub(crate) fn scheme(bits: u8, group: i64, sym: bool) -> Scheme {
    Scheme::new(bits, GroupSize::from_i64(group).unwrap(), sym).unwrap()
}

pub(crate) fn random_weight(rows: usize, columns: usize, seed: u64) -> Mat<f32> {
    let mut random = Random::new(seed);
    Mat::from_fn(rows, columns, |_, _| (random.normal() * 0.05) as f32)
}

/// Statistics of inputs that share a few directions and differ in size from channel to channel.
pub(crate) fn random_stats(columns: usize, tokens: usize, seed: u64) -> ActivationStats {
    let mut random = Random::new(seed);
    let shared = columns.div_ceil(4);
    let mix: Vec<f64> = (0..shared * columns).map(|_| random.normal()).collect();
    let size: Vec<f64> = (0..columns)
        .map(|_| (0.7 * random.normal()).exp())
        .collect();
    let mut hessian = vec![0.0; columns * columns];
    let mut mean_abs = vec![0.0; columns];
    for _ in 0..tokens {
        let z: Vec<f64> = (0..shared).map(|_| random.normal()).collect();
        let x: Vec<f64> = (0..columns)
            .map(|k| {
                let common: f64 = (0..shared).map(|s| z[s] * mix[s * columns + k]).sum();
                size[k] * (common / (shared as f64).sqrt() + 0.3 * random.normal())
            })
            .collect();
        for a in 0..columns {
            mean_abs[a] += x[a].abs() / tokens as f64;
            for b in 0..columns {
                hessian[a * columns + b] += x[a] * x[b] / tokens as f64;
            }
        }
    }
    ActivationStats {
        in_features: columns,
        hessian: hessian.into_iter().map(|h| h as f32).collect(),
        mean_abs: mean_abs.into_iter().map(|m: f64| m as f32).collect(),
        n_tokens: tokens as u64,
        cross: None,
    }
}

/// `H + damp * mean(diag) I` in f64.
pub(crate) fn damped(stats: &ActivationStats, damp: f64) -> Vec<f64> {
    let k = stats.in_features;
    let mut h: Vec<f64> = stats.hessian.iter().map(|&h| f64::from(h)).collect();
    let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
    (0..k).for_each(|i| h[i * k + i] += damp * mean);
    h
}

/// `Δ H Δᵀ` summed over rows, term by term.
pub(crate) fn quadratic(weight: MatRef<'_, f32>, quantized: &QuantizedWeight, h: &[f64]) -> f64 {
    let (rows, k) = (weight.nrows(), weight.ncols());
    let values = quantized.dequantize();
    let mut sum = 0.0;
    for r in 0..rows {
        let d: Vec<f64> = (0..k)
            .map(|c| f64::from(weight[(r, c)]) - f64::from(values[r * k + c]))
            .collect();
        for a in 0..k {
            sum += d[a] * (0..k).map(|b| h[a * k + b] * d[b]).sum::<f64>();
        }
    }
    sum
}

/// Inverse by elimination without pivoting: the matrices here are positive definite.
pub(crate) fn inverse(h: &[f64], k: usize) -> Vec<f64> {
    let mut a = h.to_vec();
    let mut b: Vec<f64> = (0..k * k)
        .map(|i| f64::from(u8::from(i / k == i % k)))
        .collect();
    for p in 0..k {
        let pivot = a[p * k + p];
        for c in 0..k {
            a[p * k + c] /= pivot;
            b[p * k + c] /= pivot;
        }
        for r in (0..k).filter(|&r| r != p) {
            let factor = a[r * k + p];
            for c in 0..k {
                a[r * k + c] -= factor * a[p * k + c];
                b[r * k + c] -= factor * b[p * k + c];
            }
        }
    }
    b
}

/// Textbook optimal brain quantization of one row in a given order: quantize a column, spread its error over the
/// columns left by the explicit inverse, take the column out of the inverse.
pub(crate) fn obq(
    row: &[f64],
    h: &[f64],
    order: &[usize],
    nearest: impl Fn(usize, f64) -> f64,
) -> Vec<f64> {
    let k = row.len();
    let (mut w, mut inv) = (row.to_vec(), inverse(h, k));
    let mut out = vec![0.0; k];
    for &c in order {
        out[c] = nearest(c, w[c]);
        let pivot = inv[c * k + c];
        let error = (w[c] - out[c]) / pivot;
        let line: Vec<f64> = inv[c * k..(c + 1) * k].to_vec();
        for j in 0..k {
            w[j] -= error * line[j];
        }
        for a in 0..k {
            let factor = inv[a * k + c] / pivot;
            for b in 0..k {
                inv[a * k + b] -= factor * line[b];
            }
        }
    }
    out
}

/// The value of the level nearest to `x` on the grid a solved weight has at `(row, column)`.
pub(crate) fn on_grid(q: &QuantizedWeight, row: usize, column: usize, x: f64) -> f64 {
    let at = row * q.n_groups() + column / q.scheme().group_len(q.in_features());
    let (scale, zero) = (f64::from(q.scales()[at]), f64::from(q.zeros()[at]));
    let code = ((x / scale).round_ties_even() + zero).clamp(0.0, f64::from(q.scheme().max_code()));
    scale * (code - zero)
}
