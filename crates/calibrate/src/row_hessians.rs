//! Which errors of a linear's output the loss feels, and feels together: one backward pass of the float model over the
//! calibration text.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::prelude::*;
use halfbyte_model::{BlockGradients, Decoder, Head, LinearKind, linear_shape, values};
use halfbyte_quant::ActivationStats;
use rayon::prelude::*;

use crate::text::Window;
use crate::text::random::SplitMix64;
use crate::{Accumulator, Store, WalkError};

/// Rows whose logits exist at once.
const LOGIT_ROWS: usize = 128;
/// Output rows whose gradients are multiplied with each other; a linear with more has several such ranges.
const MOST_ROWS: usize = 2048;

/// How the backward pass goes.
#[derive(Clone, Copy, Debug)]
pub struct RowHessianOptions<'a> {
    /// Seed of the sampled next tokens.
    pub seed: u64,
    /// Bytes of residual streams kept at once; more windows are walked together when it is larger.
    pub max_bytes: u64,
    /// Where the sums are kept; in memory without.
    pub spill_folder: Option<&'a Path>,
}

/// The row Hessians of every linear: means of `g gᵀ` over tokens, `g` the loss's gradient at its output.
///
/// The KL divergence from the float model is, to second order, `½ δᵀ F δ` with `F = E[g gᵀ]`, `g` the gradient of
/// `log p(y)` for a next token `y` drawn from the model's own prediction. Taking inputs and gradients for independent
/// leaves `½ tr(R Δ H Δᵀ)` of a linear's error `Δ`, with `R = E[g gᵀ]` at its output and `H = E[x xᵀ]` at its input
/// (K-FAC, Martens and Grosse, arXiv 1503.05671; for rounding, YAQA, Tseng et al., arXiv 2505.22988, section 3). For v,
/// whose output is seen only after attention has added up tokens, `g` is the gradient at the query heads that share
/// a kv head, and `H` the attention-mixed one.
#[derive(Debug)]
pub struct RowHessians {
    /// Sums, lower triangles of a block's linears one after another; a block is a row.
    store: Store,
    parts: Vec<Part>,
    /// Tokens added so far, by block.
    tokens: Vec<u64>,
}

/// Rows of a linear that have one Hessian.
#[derive(Clone, Debug)]
struct Part {
    kind: LinearKind,
    /// Where in the gradient they are seen: once, or for v's rows in every query head that shares them.
    features: Vec<Range<usize>>,
    /// Where its triangle is stored.
    triangle: Range<usize>,
}

impl Part {
    fn rows(&self) -> usize {
        self.features.first().map_or(0, ExactSizeIterator::len)
    }

    /// Index and place in the triangle of every diagonal element.
    fn diagonal(&self) -> impl Iterator<Item = usize> {
        let start = self.triangle.start;
        (0..self.rows()).map(move |row| start + row * (row + 3) / 2)
    }
}

impl RowHessians {
    /// Runs the float model forward and back over `windows`, all of the same length. `tick` hears how many of how many
    /// block passes are done.
    ///
    /// # Errors
    /// As [`crate::Walk`], and gradients that are not finite.
    pub fn take(
        windows: &[&Window],
        decoder: &Decoder,
        options: &RowHessianOptions<'_>,
        tick: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, WalkError> {
        let mut hessians = Self::empty(decoder, options.spill_folder)?;
        let tokens = windows.first().map_or(0, |w| w.ids.len());
        let pass = Pass {
            decoder,
            seed: options.seed,
            windows,
            tokens,
            hidden: decoder.weights().config().hidden_size,
            head: decoder.head()?,
        };
        let blocks = decoder.n_blocks();
        let per_window = blocks as u64 * Store::bytes(1, tokens * pass.hidden);
        let chunk =
            ((options.max_bytes / per_window.max(1)) as usize).clamp(1, windows.len().max(1));
        let total = 2 * (blocks * windows.len()) as u64;
        let mut done = 0;
        for first in (0..windows.len()).step_by(chunk) {
            let range = first..(first + chunk).min(windows.len());
            pass.run(range, &mut hessians, &mut || {
                done += 1;
                tick(done, total);
            })?;
        }
        Ok(hessians)
    }

    fn empty(decoder: &Decoder, spill_folder: Option<&Path>) -> Result<Self, WalkError> {
        let mut parts: Vec<Part> = Vec::new();
        let mut start = 0;
        for kind in LinearKind::ALL {
            for features in features(decoder, kind) {
                let rows = features.first().map_or(0, ExactSizeIterator::len);
                let triangle = start..start + rows * (rows + 1) / 2;
                start = triangle.end;
                parts.push(Part {
                    kind,
                    features,
                    triangle,
                });
            }
        }
        let blocks = decoder.n_blocks();
        let store = match spill_folder {
            Some(folder) => Store::in_file(blocks, start, &folder.join("row_hessians.spill"))?,
            None => Store::in_memory(blocks, start),
        };
        Ok(Self {
            store,
            parts,
            tokens: vec![0; blocks],
        })
    }

    /// The row Hessians of a linear, one after another for all its rows: one for all but very many rows, for v one a kv
    /// head.
    ///
    /// # Errors
    /// The file that holds them cannot be read.
    pub fn of(&self, block: usize, kind: LinearKind) -> Result<Vec<ActivationStats>, WalkError> {
        let all = self.store.read(block, 1)?;
        let tokens = self.tokens[block];
        let per_token = 1.0 / tokens.max(1) as f32;
        let expand = |part: &Part| {
            let rows = part.rows();
            let mut stats = ActivationStats::identity(rows);
            let mut from = all[part.triangle.clone()].iter();
            for row in 0..rows {
                for (column, x) in (0..=row).zip(&mut from) {
                    stats.hessian[row * rows + column] = x * per_token;
                    stats.hessian[column * rows + row] = x * per_token;
                }
            }
            stats.n_tokens = tokens;
            stats
        };
        let parts = self.parts.iter().filter(|part| part.kind == kind);
        Ok(parts.map(expand).collect())
    }

    /// Mean over a linear's rows of `g²`, summed over the query heads that share a row of v.
    fn mean_square(&self, block: usize) -> Result<BTreeMap<LinearKind, f64>, WalkError> {
        let all = self.store.read(block, 1)?;
        let mut sums = BTreeMap::new();
        for part in &self.parts {
            let (sum, rows) = sums.entry(part.kind).or_insert((0.0, 0));
            *sum += part.diagonal().map(|at| f64::from(all[at])).sum::<f64>();
            *rows += part.rows();
        }
        let tokens = self.tokens[block].max(1) as f64;
        let mean =
            |(kind, (sum, rows)): (LinearKind, (f64, usize))| (kind, sum / (rows as f64 * tokens));
        Ok(sums.into_iter().map(mean).collect())
    }

    fn add(&mut self, block: usize, sums: RowSums) -> Result<(), WalkError> {
        let mut all = self.store.read(block, 1)?;
        for (part, sum) in self.parts.iter().zip(sums.of_parts) {
            let (rows, count) = (part.rows(), sum.n_tokens() as f32);
            let mean = sum.finish().hessian;
            let mut to = all[part.triangle.clone()].iter_mut();
            for row in 0..rows {
                for (x, to) in mean[row * rows..=row * rows + row].iter().zip(&mut to) {
                    *to += count * x;
                }
            }
        }
        self.tokens[block] += sums.tokens;
        Ok(self.store.write(block, &all)?)
    }
}

/// What a unit of each linear's loss `tr(Δ H Δᵀ)` costs in KL divergence from the float model, in nats a token: half the
/// mean of `g²` over its rows, in the notation of [`RowHessians`]. v's loss is that by the attention-mixed Hessian, the
/// mean over the query heads that share a kv head, so it counts as often as there are such heads.
///
/// A value a linear of every block, from `windows` alone: a few are enough for means over thousands of rows. `tick` as
/// in [`RowHessians::take`].
///
/// # Errors
/// As [`RowHessians::take`].
pub fn sensitivities(
    windows: &[&Window],
    decoder: &Decoder,
    options: &RowHessianOptions<'_>,
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Vec<BTreeMap<LinearKind, f64>>, WalkError> {
    let hessians = RowHessians::take(windows, decoder, options, tick)?;
    let half = |block: usize| {
        let mut means = hessians.mean_square(block)?;
        means.values_mut().for_each(|mean| *mean *= 0.5);
        Ok(means)
    };
    (0..decoder.n_blocks()).map(half).collect()
}

/// Where the rows of a linear's Hessians are seen: runs of its output; for v the query heads of every kv head.
fn features(decoder: &Decoder, kind: LinearKind) -> Vec<Vec<Range<usize>>> {
    let config = decoder.weights().config();
    if kind != LinearKind::V {
        let [out, _] = linear_shape(config, kind);
        let run = |start: usize| start..(start + MOST_ROWS).min(out);
        let starts = (0..out).step_by(MOST_ROWS);
        return starts
            .map(|start| std::iter::once(run(start)).collect())
            .collect();
    }
    let dim = config.head_dim;
    let shared = config.num_attention_heads / config.num_key_value_heads;
    let head = |h: usize| h * dim..(h + 1) * dim;
    (0..config.num_key_value_heads)
        .map(|kv| (kv * shared..(kv + 1) * shared).map(head).collect())
        .collect()
}

/// The sums of one block over some windows.
struct RowSums {
    of_parts: Vec<Accumulator>,
    tokens: u64,
}

impl RowSums {
    fn new(parts: &[Part]) -> Self {
        Self {
            of_parts: parts
                .iter()
                .map(|part| Accumulator::new(part.rows()))
                .collect(),
            tokens: 0,
        }
    }

    /// Adds a window's gradients, the first `len` tokens of them; false when one is not finite.
    fn add(
        &mut self,
        parts: &[Part],
        gradients: &BlockGradients,
        len: usize,
    ) -> Result<bool, WalkError> {
        let mut finite = true;
        for kind in LinearKind::ALL {
            let tensor = gradients.of(kind).unwrap_or(&gradients.attention);
            let [_, _, width] = tensor.dims();
            let all = values(tensor.clone())?;
            let of_kind = parts.iter().zip(&mut self.of_parts);
            for (part, sum) in of_kind.filter(|(part, _)| part.kind == kind) {
                for features in &part.features {
                    let mut rows = Vec::with_capacity(len * part.rows());
                    for token in all.chunks_exact(width).take(len) {
                        rows.extend_from_slice(&token[features.clone()]);
                    }
                    finite &= sum.add(&rows).is_ok();
                }
            }
        }
        self.tokens += len as u64;
        Ok(finite)
    }
}

struct Pass<'a> {
    decoder: &'a Decoder,
    seed: u64,
    windows: &'a [&'a Window],
    tokens: usize,
    hidden: usize,
    head: Head,
}

impl Pass<'_> {
    /// Forward and back for some of the windows.
    fn run(
        &self,
        range: Range<usize>,
        hessians: &mut RowHessians,
        tick: &mut dyn FnMut(),
    ) -> Result<(), WalkError> {
        let n = range.len();
        let blocks = self.decoder.n_blocks();
        let mut streams = Vec::with_capacity(blocks);
        let mut first = Store::in_memory(n, self.tokens * self.hidden);
        for (at, window) in self.windows[range.clone()].iter().enumerate() {
            first.write(at, &self.decoder.embed(&window.ids)?)?;
        }
        streams.push(first);
        let mut gradients = Vec::with_capacity(n);
        for index in 0..blocks {
            let block = self.decoder.block(index, self.tokens)?;
            let last = index + 1 == blocks;
            let mut next = (!last).then(|| Store::in_memory(n, self.tokens * self.hidden));
            for at in 0..n {
                let h = values(block.forward(self.tensor(streams[index].read(at, 1)?)))?;
                match &mut next {
                    Some(next) => next.write(at, &h)?,
                    None => gradients.push(self.head_gradient(range.start + at, h)?),
                }
                tick();
            }
            streams.extend(next);
        }
        for index in (0..blocks).rev() {
            let block = self.decoder.block(index, self.tokens)?;
            self.decoder.release_block(index);
            let mut sums = RowSums::new(&hessians.parts);
            for (at, gradient) in gradients.iter_mut().enumerate() {
                let window = range.start + at;
                let h = self.tensor(streams[index].read(at, 1)?);
                let found = block.gradients(h, self.tensor(std::mem::take(gradient)));
                if !sums.add(&hessians.parts, &found, self.windows[window].len)? {
                    return Err(WalkError::Gradient {
                        block: index,
                        window,
                    });
                }
                *gradient = values(found.input)?;
                tick();
            }
            hessians.add(index, sums)?;
            streams.pop();
        }
        Ok(())
    }

    /// The derivative of `Σ_t log p(y_t)` with regard to the last residual stream, `y_t` drawn from `p`.
    fn head_gradient(&self, window: usize, h: Vec<f32>) -> Result<Vec<f32>, WalkError> {
        let mut gradient = Vec::with_capacity(h.len());
        let real = self.windows[window].len;
        for (chunk, rows) in h.chunks(LOGIT_ROWS * self.hidden).enumerate() {
            let n = rows.len() / self.hidden;
            let rows = Tensor::<2>::from_data(
                TensorData::new(rows.to_vec(), [n, self.hidden]),
                self.decoder.device(),
            );
            let mut logits = values(self.head.forward(rows.clone()))?;
            let vocab = logits.len() / n;
            logits
                .par_chunks_mut(vocab)
                .enumerate()
                .for_each(|(row, logits)| {
                    let token = chunk * LOGIT_ROWS + row;
                    if token >= real {
                        return logits.fill(0.0);
                    }
                    let seed = self.seed.wrapping_add((window as u64) << 32);
                    surprise(logits, SplitMix64::new(seed, token as u64).unit());
                });
            let logits =
                Tensor::from_data(TensorData::new(logits, [n, vocab]), self.decoder.device());
            gradient.extend(values(self.head.gradient(rows, logits))?);
        }
        Ok(gradient)
    }

    fn tensor(&self, values: Vec<f32>) -> Tensor<3> {
        Tensor::from_data(
            TensorData::new(values, [1, self.tokens, self.hidden]),
            self.decoder.device(),
        )
    }
}

/// Turns logits into the derivative of `log p(y)`, `onehot(y) − p`, with `y` the token at which the cumulative
/// probability passes `unit`.
fn surprise(logits: &mut [f32], unit: f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    let mut passed = 0.0;
    let mut drawn = None;
    for (index, x) in logits.iter_mut().enumerate() {
        let p = f64::from((*x - max).exp()) / total;
        passed += p;
        *x = -p as f32;
        if drawn.is_none() && passed > unit {
            drawn = Some(index);
        }
    }
    let last = logits.len() - 1;
    logits[drawn.unwrap_or(last)] += 1.0;
}

#[cfg(test)]
mod tests {
    use halfbyte_checkpoint::ModelFolder;
    use halfbyte_model::Weights;

    use super::*;

    #[test]
    fn a_drawn_token_pulls_and_all_others_push() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        for (unit, drawn) in [(0.0, 0), (0.2, 1), (0.5, 2), (0.999, 3)] {
            let mut found = logits;
            surprise(&mut found, unit);
            for (index, g) in found.iter().enumerate() {
                let wanted = f32::from(u8::from(index == drawn)) - logits[index].exp() / total;
                assert!((g - wanted).abs() < 1e-6, "{unit}, {index}: {g} {wanted}");
            }
        }
    }

    fn tiny() -> Decoder {
        let folder = ModelFolder::embedded("tiny").unwrap();
        Decoder::new(Weights::new(folder).unwrap(), Device::flex())
    }

    fn window(first: u32, len: usize) -> Window {
        let id = |i: u32| if i < len as u32 { first + 13 * i } else { 0 };
        Window {
            ids: (0..24).map(id).collect(),
            len,
        }
    }

    #[test]
    fn they_are_means_of_the_gradients_products_however_windows_are_shared_out() {
        let decoder = tiny();
        let windows = [window(20, 24), window(31, 15), window(57, 24)];
        let windows: Vec<&Window> = windows.iter().collect();
        let folder = tempfile::tempdir().unwrap();
        let take = |max_bytes: u64, spill_folder: Option<&Path>| {
            let options = RowHessianOptions {
                seed: 1,
                max_bytes,
                spill_folder,
            };
            RowHessians::take(&windows, &decoder, &options, &mut |_, _| ()).unwrap()
        };
        let (whole, pieces) = (take(u64::MAX, None), take(0, Some(folder.path())));

        // by hand for one block: the gradients of all three windows, by the same path
        let pass = Pass {
            decoder: &decoder,
            seed: 1,
            windows: &windows,
            tokens: 24,
            hidden: decoder.weights().config().hidden_size,
            head: decoder.head().unwrap(),
        };
        let last = decoder.n_blocks() - 1;
        let block = decoder.block(last, 24).unwrap();
        let mut of_gate: Vec<Vec<f32>> = Vec::new();
        let mut of_attention: Vec<Vec<f32>> = Vec::new();
        for (index, window) in windows.iter().enumerate() {
            let mut h = pass.tensor(decoder.embed(&window.ids).unwrap());
            for before in 0..last {
                h = decoder.block(before, 24).unwrap().forward(h);
            }
            let out = values(block.forward(h.clone())).unwrap();
            let gradient = pass.tensor(pass.head_gradient(index, out).unwrap());
            let found = block.gradients(h, gradient);
            for (to, tensor) in [
                (&mut of_gate, found.of(LinearKind::Gate).unwrap().clone()),
                (&mut of_attention, found.attention.clone()),
            ] {
                let width = tensor.dims()[2];
                let all = values(tensor).unwrap();
                to.extend(all.chunks(width).take(window.len).map(<[f32]>::to_vec));
            }
        }
        let mean = |rows: &[Vec<f32>], a: usize, b: usize| {
            let sum: f64 = rows.iter().map(|g| f64::from(g[a]) * f64::from(g[b])).sum();
            sum / 63.0
        };
        for found in [&whole, &pieces] {
            let gate = &found.of(last, LinearKind::Gate).unwrap()[0];
            let scale = mean(&of_gate, 0, 0);
            for (a, b) in [(0, 0), (3, 3), (5, 40), (40, 5), (17, 90)] {
                let wanted = mean(&of_gate, a, b);
                let near = f64::from(gate.hessian[a * gate.in_features + b]);
                assert!(
                    (near - wanted).abs() < 0.02 * scale,
                    "{a}, {b}: {near} {wanted}"
                );
            }
            let dim = block.head_dim();
            let shared = block.heads() / block.kv_heads();
            let v = found.of(last, LinearKind::V).unwrap();
            assert_eq!(v.len(), block.kv_heads());
            let wanted: f64 = (0..shared)
                .map(|h| {
                    mean(
                        &of_attention,
                        (shared + h) * dim + 2,
                        (shared + h) * dim + 7,
                    )
                })
                .sum();
            let scale: f64 = (0..shared)
                .map(|h| {
                    mean(
                        &of_attention,
                        (shared + h) * dim + 2,
                        (shared + h) * dim + 2,
                    )
                })
                .sum();
            let near = f64::from(v[1].hessian[2 * dim + 7]);
            assert!((near - wanted).abs() < 0.02 * scale, "v: {near} {wanted}");
            let diagonal: f64 = (0..gate.in_features).map(|a| mean(&of_gate, a, a)).sum();
            let square = found.mean_square(last).unwrap()[&LinearKind::Gate];
            assert!((square * gate.in_features as f64 / diagonal - 1.0).abs() < 0.01);
        }
        drop(pieces);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the file goes with them"
        );
    }
}
