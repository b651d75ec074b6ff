//! Chains of elementwise operators as one pass over memory, for the CPU device.
//!
//! burn's flex device runs every operator as a pass of its own into a new buffer, and takes exponentials one at a time:
//! a quarter of a run's time went there. On the CPU a tensor's numbers are this process's own, so they are taken out
//! (without a copy where nobody else holds them), worked on in place, and put back. Elsewhere, and where a tape is
//! recorded, burn's operators do the same; tests hold both against each other.

use std::ops::Range;

use burn::prelude::*;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Sums run over so many lanes, whatever the processor has, so that results do not depend on it.
pub(crate) const LANES: usize = 16;
/// Numbers a task works on at least.
const TASK: usize = 1 << 15;

/// Whether a tensor's numbers can be worked on here.
pub(crate) fn is_host<const D: usize>(tensor: &Tensor<D>) -> bool {
    crate::is_host(&tensor.device())
}

/// Work on the rows of a tensor, compiled once for every instruction set: `work` must be `#[inline(always)]`, or it is
/// compiled for the least one, where a fused multiply-add is a call.
trait Rows: Sync {
    /// Numbers a row.
    fn width(&self) -> usize;
    /// Changes some rows, of which `first` is the index of the first.
    fn work(&self, first: usize, rows: &mut [f32]);
}

struct Task<'a, R> {
    rows: &'a R,
    first: usize,
    values: &'a mut [f32],
}

impl<R: Rows> NullaryFnOnce for Task<'_, R> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.rows.work(self.first, self.values);
    }
}

fn in_place<const D: usize>(tensor: Tensor<D>, rows: &impl Rows) -> Tensor<D> {
    let (shape, device) = (tensor.shape(), tensor.device());
    let mut values = taken(tensor);
    let count = (TASK / rows.width()).max(1);
    let arch = Arch::new();
    let tasks = values.par_chunks_mut(count * rows.width()).enumerate();
    tasks.for_each(|(task, values)| {
        arch.dispatch(Task {
            rows,
            first: task * count,
            values,
        })
    });
    Tensor::from_data(TensorData::new(values, shape), &device)
}

/// A tensor's numbers, without a copy where nobody else holds them.
pub(crate) fn taken<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let values = tensor.try_into_vec_as::<f32>();
    values.unwrap_or_else(|e| unreachable!("the CPU device's memory is at hand: {e}"))
}

/// Softmax over the keys that each row's query sees, 0 at the others. The last axis of `scores` are keys; `seen` gives a
/// row's visible ones, never none.
pub(crate) fn softmax<const D: usize>(
    scores: Tensor<D>,
    seen: impl Fn(usize) -> Range<usize> + Sync,
) -> Tensor<D> {
    let keys = scores.dims()[D - 1];
    in_place(scores, &Softmax { keys, seen })
}

struct Softmax<F> {
    keys: usize,
    seen: F,
}

impl<F: Fn(usize) -> Range<usize> + Sync> Rows for Softmax<F> {
    fn width(&self) -> usize {
        self.keys
    }

    #[inline(always)]
    fn work(&self, first: usize, rows: &mut [f32]) {
        for (at, row) in rows.chunks_exact_mut(self.keys).enumerate() {
            let seen = (self.seen)(first + at);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            softmax_row(&mut row[seen]);
        }
    }
}

#[inline(always)]
pub(crate) fn softmax_row(row: &mut [f32]) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            max[l] = max[l].max(x[l]);
        }
    }
    for (l, x) in rest.iter().enumerate() {
        max[l] = max[l].max(*x);
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for x in whole {
        for l in 0..LANES {
            x[l] = exp(x[l] - max);
            sums[l] += x[l];
        }
    }
    for (x, sum) in rest.iter_mut().zip(&mut sums) {
        *x = exp(*x - max);
        *sum += *x;
    }
    let share = 1.0 / sums.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x *= share);
}

/// Attention of one window over keys and values that are kept a token after the other: `q` `[1, heads, tokens,
/// head_dim]`, `keys` and `values` `[positions, kv_heads, head_dim]`, to `[1, heads, tokens, head_dim]`. `seen` gives the
/// positions that a token's query sees, never none.
pub(crate) fn attend(
    q: Tensor<4>,
    keys: &[f32],
    values: &[f32],
    kv_heads: usize,
    seen: impl Fn(usize) -> Range<usize> + Sync,
) -> Tensor<4> {
    let (shape, device) = (q.dims(), q.device());
    let [_, heads, tokens, head_dim] = shape;
    let mut rows = taken(q);
    let arch = Arch::new();
    // the query heads that share a kv head lie together
    let groups = rows.par_chunks_mut(heads / kv_heads * tokens * head_dim);
    groups.enumerate().for_each(|(kv_head, rows)| {
        arch.dispatch(Attend {
            rows,
            keys,
            values,
            kv_heads,
            kv_head,
            head_dim,
            tokens,
            seen: &seen,
        });
    });
    Tensor::from_data(TensorData::new(rows, shape), &device)
}

/// Turns the queries that share a kv head into what they see.
struct Attend<'a, F> {
    rows: &'a mut [f32],
    keys: &'a [f32],
    values: &'a [f32],
    kv_heads: usize,
    kv_head: usize,
    head_dim: usize,
    tokens: usize,
    seen: &'a F,
}

impl<F: Fn(usize) -> Range<usize> + Sync> NullaryFnOnce for Attend<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.head_dim;
        let scale = 1.0 / (width as f32).sqrt();
        let at = |position: usize| (position * self.kv_heads + self.kv_head) * width;
        let mut weights = Vec::new();
        for (row, q) in self.rows.chunks_exact_mut(width).enumerate() {
            let seen = (self.seen)(row % self.tokens);
            weights.clear();
            weights.extend(
                seen.clone()
                    .map(|p| scale * dot(q, &self.keys[at(p)..][..width])),
            );
            softmax_row(&mut weights);
            q.fill(0.0);
            for (position, weight) in seen.zip(&weights) {
                let value = &self.values[at(position)..][..width];
                for (sum, value) in q.iter_mut().zip(value) {
                    *sum += weight * value;
                }
            }
        }
    }
}

/// `silu(gate) * up`.
pub(crate) fn silu_gated<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    in_place(gate, &SiluGated { up: taken(up) })
}

struct SiluGated {
    up: Vec<f32>,
}

impl Rows for SiluGated {
    fn width(&self) -> usize {
        1
    }

    #[inline(always)]
    fn work(&self, first: usize, gate: &mut [f32]) {
        for (gate, up) in gate.iter_mut().zip(&self.up[first..]) {
            *gate *= up / (1.0 + exp(-*gate));
        }
    }
}

/// `x / sqrt(mean(x²) + ε) * weight` over the last axis.
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let weight = taken(weight);
    in_place(x, &RmsNorm { weight, epsilon })
}

struct RmsNorm {
    weight: Vec<f32>,
    epsilon: f64,
}

impl Rows for RmsNorm {
    fn width(&self) -> usize {
        self.weight.len()
    }

    #[inline(always)]
    fn work(&self, _first: usize, rows: &mut [f32]) {
        let width = self.weight.len();
        for row in rows.chunks_exact_mut(width) {
            let mut sums = [0.0f32; LANES];
            let (whole, rest) = row.as_chunks::<LANES>();
            for x in whole {
                for l in 0..LANES {
                    sums[l] = x[l].mul_add(x[l], sums[l]);
                }
            }
            for (x, sum) in rest.iter().zip(&mut sums) {
                *sum = x.mul_add(*x, *sum);
            }
            let mean = f64::from(sums.iter().sum::<f32>()) / width as f64;
            let factor = (1.0 / (mean + self.epsilon).sqrt()) as f32;
            for (x, weight) in row.iter_mut().zip(&self.weight) {
                *x *= factor * weight;
            }
        }
    }
}

/// Back through a softmax: `weights * (d − Σ weights d)` by rows.
pub(crate) fn softmax_backward<const D: usize>(weights: Tensor<D>, d: Tensor<D>) -> Tensor<D> {
    let width = d.dims()[D - 1];
    let weights = taken(weights);
    in_place(d, &SoftmaxBackward { width, weights })
}

struct SoftmaxBackward {
    width: usize,
    weights: Vec<f32>,
}

impl Rows for SoftmaxBackward {
    fn width(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn work(&self, first: usize, rows: &mut [f32]) {
        let weights = self.weights[first * self.width..].chunks_exact(self.width);
        for (row, weights) in rows.chunks_exact_mut(self.width).zip(weights) {
            let sum = dot(row, weights);
            for (d, weight) in row.iter_mut().zip(weights) {
                *d = weight * (*d - sum);
            }
        }
    }
}

/// Back through [`silu_gated`], from `d` to the gate and to what it multiplies.
pub(crate) fn silu_gated_backward<const D: usize>(
    gate: Tensor<D>,
    up: Tensor<D>,
    d: Tensor<D>,
) -> (Tensor<D>, Tensor<D>) {
    let (shape, device) = (gate.shape(), gate.device());
    let (mut gate, up, mut d) = (taken(gate), taken(up), taken(d));
    let arch = Arch::new();
    let tasks = gate.par_chunks_mut(TASK).zip(d.par_chunks_mut(TASK));
    tasks
        .zip(up.par_chunks(TASK))
        .for_each(|((gate, d), up)| arch.dispatch(SiluBackward { gate, up, d }));
    let tensor = |values| Tensor::from_data(TensorData::new(values, shape.clone()), &device);
    (tensor(gate), tensor(d))
}

/// Changes `gate` and `d` into the derivatives with regard to `gate` and `up`.
struct SiluBackward<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
    d: &'a mut [f32],
}

impl NullaryFnOnce for SiluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((gate, up), d) in self.gate.iter_mut().zip(self.up).zip(self.d) {
            let sum = 1.0 + exp(-*gate);
            let share = 1.0 / sum;
            (*gate, *d) = (
                *d * up * share * (1.0 + *gate * (1.0 - share)),
                *gate * (*d / sum),
            );
        }
    }
}

/// Back through [`rms_norm`], from `dy` to `x` and to the weight.
pub(crate) fn rms_norm_backward<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    epsilon: f64,
    dy: Tensor<D>,
) -> (Tensor<D>, Tensor<1>) {
    let device = weight.device();
    let (x, weight) = (taken(x.clone()), taken(weight));
    let width = weight.len();
    let factors: Vec<f32> = x
        .par_chunks_exact(width)
        .map(|row| {
            let mean = f64::from(dot(row, row)) / width as f64;
            (1.0 / (mean + epsilon).sqrt()) as f32
        })
        .collect();
    // tasks of a fixed size, so that sums run in the same order on any number of threads
    let gradient = taken(dy.clone());
    let d_weight = gradient
        .par_chunks(256 * width)
        .zip(x.par_chunks(256 * width))
        .zip(factors.par_chunks(256))
        .map(|((dy, x), factors)| {
            let mut sums = vec![0.0f32; width];
            let rows = dy.chunks_exact(width).zip(x.chunks_exact(width));
            for ((dy, x), factor) in rows.zip(factors) {
                for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
                    *sum += dy * x * factor;
                }
            }
            sums
        })
        .collect::<Vec<_>>();
    let mut total = vec![0.0f32; width];
    for sums in d_weight {
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
    }
    let rows = NormBackward { x, weight, factors };
    let d_weight = Tensor::from_data(TensorData::new(total, [width]), &device);
    (in_place(dy, &rows), d_weight)
}

struct NormBackward {
    x: Vec<f32>,
    weight: Vec<f32>,
    factors: Vec<f32>,
}

impl Rows for NormBackward {
    fn width(&self) -> usize {
        self.weight.len()
    }

    #[inline(always)]
    fn work(&self, first: usize, rows: &mut [f32]) {
        let width = self.weight.len();
        let x = self.x[first * width..].chunks_exact(width);
        let rows = rows.chunks_exact_mut(width).zip(x);
        for ((row, x), &factor) in rows.zip(&self.factors[first..]) {
            for (d, weight) in row.iter_mut().zip(&self.weight) {
                *d *= weight;
            }
            let along = dot(row, x) * factor * factor / width as f32;
            for (d, x) in row.iter_mut().zip(x) {
                *d = factor * (*d - along * x);
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            sums[l] += a[l] * b[l];
        }
    }
    for ((a, b), sum) in a_rest.iter().zip(b_rest).zip(&mut sums) {
        *sum += a * b;
    }
    sums.iter().sum()
}

/// A sum over pieces of the third axis.
pub(crate) struct Sum {
    shape: [usize; 4],
    values: Vec<f32>,
}

impl Sum {
    pub(crate) fn new(shape: [usize; 4]) -> Self {
        Self {
            shape,
            values: vec![0.0; shape.iter().product()],
        }
    }

    /// Adds `piece` from place `first` of the third axis on.
    pub(crate) fn add(&mut self, first: usize, piece: Tensor<4>) {
        let [_, _, all, width] = self.shape;
        let some = piece.dims()[2];
        let piece = taken(piece);
        let matrices = self.values.chunks_exact_mut(all * width);
        for (matrix, piece) in matrices.zip(piece.chunks_exact(some * width)) {
            let matrix = &mut matrix[first * width..][..some * width];
            matrix.iter_mut().zip(piece).for_each(|(sum, x)| *sum += x);
        }
    }

    pub(crate) fn tensor(self, device: &Device) -> Tensor<4> {
        Tensor::from_data(TensorData::new(self.values, self.shape), device)
    }
}

/// `x cos + rotate_half(x) sin` for `x` `[windows, heads, tokens, head_dim]`, tables `[tokens, head_dim]` whose halves
/// are equal.
pub(crate) fn rotate(x: Tensor<4>, cos: &[f32], sin: &[f32]) -> Tensor<4> {
    let [_, _, tokens, width] = x.dims();
    let rows = Rotate {
        tokens,
        width,
        cos,
        sin,
    };
    in_place(x, &rows)
}

struct Rotate<'a> {
    tokens: usize,
    width: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Rows for Rotate<'_> {
    fn width(&self) -> usize {
        self.width
    }

    #[inline(always)]
    fn work(&self, first: usize, rows: &mut [f32]) {
        let half = self.width / 2;
        for (at, row) in rows.chunks_exact_mut(self.width).enumerate() {
            let start = (first + at) % self.tokens * self.width;
            let cos = &self.cos[start..start + half];
            let sin = &self.sin[start..start + half];
            let (low, high) = row.split_at_mut(half);
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

/// `e^x` to 2 units in the last place, without branches: Cody and Waite's reduction and a polynomial of degree 6
/// (the Cephes library's coefficients). Beyond ±87 the result stays at that of ±87.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "as published")]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_375, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_15e-4f32;
    for c in [
        1.398_199_95e-3,
        8.333_451_9e-3,
        4.166_579_6e-2,
        1.666_666_55e-1,
        5.000_000_1e-1,
    ] {
        p = p.mul_add(r, c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    f32::from_bits(y.to_bits().wrapping_add_signed((n as i32) << 23))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use halfbyte_checkpoint::ModelFolder;

    use super::*;
    use crate::{Decoder, Weights};

    #[test]
    fn exponentials_are_those_of_f64_to_two_units_in_the_last_place() {
        for i in -870_000..870_000 {
            let x = i as f32 * 1e-4;
            let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (found / wanted - 1.0).abs() < 2.4e-7,
                "{x}: {found} {wanted}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) > 0.0 && exp(-1e9) < 1e-37);
    }

    /// Where gradients are recorded burn's operators run. 150 tokens are more than one chunk of queries.
    #[test]
    fn blocks_give_what_burns_operators_give() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for name in ["llama", "mistral_sliding_window", "qwen2", "qwen3"] {
            let folder = ModelFolder::open(&golden.join(name)).unwrap();
            let decoder = Decoder::new(Weights::new(folder).unwrap(), Device::flex());
            let block = decoder.block(0, 150).unwrap();
            let shape = [2, 150, decoder.weights().config().hidden_size];
            let count = shape.iter().product::<usize>();
            let h: Vec<f32> = (0..count).map(|i| (i as f32 * 0.731).sin()).collect();
            let h = Tensor::<3>::from_data(TensorData::new(h, shape), decoder.device());
            let found = taken(block.forward(h.clone()));
            let wanted = block.forward(h.autodiff()).without_autodiff();
            let wanted = taken(wanted);
            let largest = wanted.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!(
                    (found - wanted).abs() < 1e-5 * largest,
                    "{name}: {found} {wanted}"
                );
            }
        }
    }
}
