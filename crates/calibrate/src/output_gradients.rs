//! Which errors of a linear's output the loss feels, and feels together: one backward pass of the float model over the
//! calibration text.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::prelude::*;
use halfbyte_model::{
    BlockGradients, Decoder, Head, LinearKind, fisher_probe, linear_shape, values,
};
use halfbyte_quant::ActivationStats;
use rayon::prelude::*;

use crate::store::stored;
use crate::text::Window;
use crate::text::random::SplitMix64;
use crate::{Accumulator, Store, WalkError};

/// Rows whose logits exist at once.
const LOGIT_ROWS: usize = 128;
/// Output rows whose gradients are multiplied with each other; a linear with more has several such ranges.
const MOST_ROWS: usize = 2048;

/// How the backward pass goes.
#[derive(Clone, Copy, Debug)]
pub struct GradientOptions<'a> {
    /// Seed of the random signs.
    pub seed: u64,
    /// Bytes of residual streams kept at once; more windows are walked together when it is larger.
    pub max_bytes: u64,
    /// Of the calibration windows one in so many is walked, from the first on; tokens of the others count alike.
    pub every: usize,
    /// Where the sums are kept; in memory without.
    pub spill_folder: Option<&'a Path>,
}

/// What the loss's gradient `g` at every linear's output says: its row Hessian, the mean of `g gᵀ` over tokens, and how
/// much each token counts.
///
/// The KL divergence from the float model is, to second order, `½ δᵀ F δ` with `F = E[g gᵀ]`, `g` the gradient of
/// `e · z`, where the logits `z` are met by a random vector `e` of their Fisher information ([`fisher_probe`]). Taking
/// inputs and gradients for independent leaves `½ tr(R Δ H Δᵀ)` of a linear's error `Δ`, with `R = E[g gᵀ]` at its output
/// and `H = E[x xᵀ]` at its input (K-FAC, Martens and Grosse, arXiv 1503.05671; for rounding, YAQA, Tseng et al., arXiv
/// 2505.22988, section 3). For v, whose output is seen only after attention has added up tokens, `g` is the gradient at the
/// query heads that share a kv head, and `H` the attention-mixed one.
///
/// They are not quite independent, so `H` counts a token by the mean over rows of `g²`, each row's brought to 1 on
/// average over the window (GuidedQuant, arXiv 2505.07004, section 3, has such weights row by row).
#[derive(Debug)]
pub struct OutputGradients {
    hessians: Triangles,
    parts: Vec<Part>,
    /// Tokens added so far, by block.
    tokens: Vec<u64>,
    /// Weights of tokens: a row for each of `weighted`, of every walked window, of every block.
    weights: Store,
    /// The walked windows, in rising order.
    walked: Vec<usize>,
    tokens_per_window: usize,
    weighted: Vec<Weighted>,
}

/// Gradients from which weights of tokens are taken.
#[derive(Debug)]
struct Weighted {
    kind: LinearKind,
    /// Output features; for a query head those of o's input.
    features: Range<usize>,
}

/// Sums of `g gᵀ`, lower triangles of all blocks' linears one after another; each triangle's numbers, then what rounding
/// took from them, since a sum over many windows is too fine for bf16.
#[derive(Debug)]
struct Triangles {
    store: Store,
    /// Numbers of all triangles of a block.
    per_block: usize,
}

impl Triangles {
    fn new(
        blocks: usize,
        per_block: usize,
        spill_folder: Option<&Path>,
    ) -> Result<Self, WalkError> {
        let len = 2 * blocks * per_block;
        let store = match spill_folder {
            Some(folder) => Store::in_file(len, 1, &folder.join("row_hessians.spill"))?,
            None => Store::in_memory(len, 1),
        };
        Ok(Self { store, per_block })
    }

    fn place(&self, block: usize, part: &Part) -> usize {
        2 * (block * self.per_block + part.triangle.start)
    }

    fn read(&self, block: usize, part: &Part) -> Result<Vec<f32>, WalkError> {
        let len = part.triangle.len();
        let mut sums = self.store.read(self.place(block, part), 2 * len)?;
        let (near, rest) = sums.split_at_mut(len);
        near.iter_mut().zip(rest).for_each(|(x, rest)| *x += *rest);
        sums.truncate(len);
        Ok(sums)
    }

    fn write(&mut self, block: usize, part: &Part, mut sums: Vec<f32>) -> Result<(), WalkError> {
        let len = sums.len();
        sums.extend_from_within(..);
        for x in &mut sums[len..] {
            *x -= stored(*x);
        }
        Ok(self.store.write(self.place(block, part), &sums)?)
    }
}

/// Rows of a linear that have one Hessian.
#[derive(Debug)]
struct Part {
    kind: LinearKind,
    /// Where in the gradient they are seen: once, or for v's rows in every query head that shares them.
    features: Vec<Range<usize>>,
    /// Where its triangle is among those of a block.
    triangle: Range<usize>,
}

impl Part {
    fn rows(&self) -> usize {
        self.features.first().map_or(0, ExactSizeIterator::len)
    }

    /// Where in the triangle the diagonal is.
    fn diagonal(&self) -> impl Iterator<Item = usize> {
        (0..self.rows()).map(|row| row * (row + 3) / 2)
    }
}

impl OutputGradients {
    /// Runs the float model forward and back over `windows`, all of the same length; the first `n_calibration` of them are
    /// the calibration windows, which row Hessians are of. `tick` hears how many of how many block passes are done.
    ///
    /// # Errors
    /// As [`crate::Walk`], and gradients that are not finite.
    pub fn take(
        windows: &[&Window],
        n_calibration: usize,
        decoder: &Decoder,
        options: &GradientOptions<'_>,
        tick: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, WalkError> {
        let tokens = windows.first().map_or(0, |w| w.ids.len());
        let is_walked = |w: &usize| *w >= n_calibration || w.is_multiple_of(options.every);
        let walked: Vec<usize> = (0..windows.len()).filter(is_walked).collect();
        let n_walked = walked.len();
        let mut taken = Self::empty(decoder, walked, tokens, options.spill_folder)?;
        let pass = Pass {
            decoder,
            seed: options.seed,
            windows,
            n_calibration,
            tokens,
            hidden: decoder.weights().config().hidden_size,
            head: decoder.head()?.rounded(),
        };
        let blocks = decoder.n_blocks();
        let per_window = blocks as u64 * Store::bytes(1, tokens * pass.hidden);
        let chunk = ((options.max_bytes / per_window.max(1)) as usize).clamp(1, n_walked.max(1));
        let total = 2 * (blocks * n_walked) as u64;
        let mut done = 0;
        for first in (0..n_walked).step_by(chunk) {
            let range = first..(first + chunk).min(n_walked);
            pass.run(range, &mut taken, &mut || {
                done += 1;
                tick(done, total);
            })?;
        }
        Ok(taken)
    }

    fn empty(
        decoder: &Decoder,
        walked: Vec<usize>,
        tokens_per_window: usize,
        spill_folder: Option<&Path>,
    ) -> Result<Self, WalkError> {
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
        let config = decoder.weights().config();
        let mut weighted = Vec::new();
        for kind in LinearKind::ALL {
            let [out, _] = linear_shape(config, kind);
            let (count, width) = match kind {
                LinearKind::V => (config.num_attention_heads, config.head_dim),
                _ => (1, out),
            };
            weighted.extend((0..count).map(|i| Weighted {
                kind,
                features: i * width..(i + 1) * width,
            }));
        }
        Ok(Self {
            hessians: Triangles::new(blocks, start, spill_folder)?,
            parts,
            tokens: vec![0; blocks],
            weights: Store::in_memory(blocks * walked.len() * weighted.len(), tokens_per_window),
            walked,
            tokens_per_window,
            weighted,
        })
    }

    /// The first row of the weights of a walked window.
    fn weights_row(&self, block: usize, at: usize) -> usize {
        (block * self.walked.len() + at) * self.weighted.len()
    }

    /// How much the tokens of some windows count in a linear's `H`, one after another, 1 on average over each window;
    /// for v in what query head `head` mixes, for others `head` is 0. All 1 in a window that was not walked.
    ///
    /// # Errors
    /// None as long as the weights lie in memory.
    pub fn weights(
        &self,
        block: usize,
        kind: LinearKind,
        head: usize,
        windows: Range<usize>,
    ) -> Result<Vec<f32>, WalkError> {
        let mut heads = (0..self.weighted.len()).filter(|&at| self.weighted[at].kind == kind);
        let at = heads.nth(head).expect("every kind and head is weighted");
        let mut weights = Vec::with_capacity(windows.len() * self.tokens_per_window);
        for window in windows {
            match self.walked.binary_search(&window) {
                Ok(walked) => {
                    weights.extend(self.weights.read(self.weights_row(block, walked) + at, 1)?);
                }
                Err(_) => weights.resize(weights.len() + self.tokens_per_window, 1.0),
            }
        }
        Ok(weights)
    }

    /// The row Hessians of a linear, one after another for all its rows: one for all but very many rows, for v one a kv
    /// head.
    ///
    /// # Errors
    /// The file that holds them cannot be read.
    pub fn row_hessians(
        &self,
        block: usize,
        kind: LinearKind,
    ) -> Result<Vec<ActivationStats>, WalkError> {
        let tokens = self.tokens[block];
        let per_token = 1.0 / tokens.max(1) as f32;
        let expand = |part: &Part| {
            let rows = part.rows();
            let mut stats = ActivationStats::identity(rows);
            let triangle = self.hessians.read(block, part)?;
            let mut from = triangle.iter();
            for row in 0..rows {
                for (column, x) in (0..=row).zip(&mut from) {
                    stats.hessian[row * rows + column] = x * per_token;
                    stats.hessian[column * rows + row] = x * per_token;
                }
            }
            stats.n_tokens = tokens;
            Ok(stats)
        };
        let parts = self.parts.iter().filter(|part| part.kind == kind);
        parts.map(expand).collect()
    }

    /// Mean over a linear's rows of `g²`, summed over the query heads that share a row of v.
    fn mean_square(&self, block: usize) -> Result<BTreeMap<LinearKind, f64>, WalkError> {
        let mut sums = BTreeMap::new();
        for part in &self.parts {
            let triangle = self.hessians.read(block, part)?;
            let (sum, rows) = sums.entry(part.kind).or_insert((0.0, 0));
            *sum += part
                .diagonal()
                .map(|at| f64::from(triangle[at]))
                .sum::<f64>();
            *rows += part.rows();
        }
        let tokens = self.tokens[block].max(1) as f64;
        let mean =
            |(kind, (sum, rows)): (LinearKind, (f64, usize))| (kind, sum / (rows as f64 * tokens));
        Ok(sums.into_iter().map(mean).collect())
    }

    /// Adds what some windows of a block gave.
    fn add(&mut self, block: usize, sums: RowSums) -> Result<(), WalkError> {
        for (part, sum) in self.parts.iter().zip(sums.of_parts) {
            let (rows, count) = (part.rows(), sum.n_tokens() as f32);
            let mean = sum.finish().hessian;
            let mut triangle = self.hessians.read(block, part)?;
            let mut to = triangle.iter_mut();
            for row in 0..rows {
                for (x, to) in mean[row * rows..=row * rows + row].iter().zip(&mut to) {
                    *to += count * x;
                }
            }
            self.hessians.write(block, part, triangle)?;
        }
        self.tokens[block] += sums.tokens;
        Ok(())
    }
}

/// What a unit of each linear's loss `tr(Δ H Δᵀ)` costs in KL divergence from the float model, in nats a token: half the
/// mean of `g²` over its rows, in the notation of [`OutputGradients`]. v's loss is that by the attention-mixed Hessian, the
/// mean over the query heads that share a kv head, so it counts as often as there are such heads.
///
/// A value a linear of every block, from `windows` alone: a few are enough for means over thousands of rows. `tick` as
/// in [`OutputGradients::take`].
///
/// # Errors
/// As [`OutputGradients::take`].
pub fn sensitivities(
    windows: &[&Window],
    decoder: &Decoder,
    options: &GradientOptions<'_>,
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Vec<BTreeMap<LinearKind, f64>>, WalkError> {
    let gradients = OutputGradients::take(windows, windows.len(), decoder, options, tick)?;
    let half = |block: usize| {
        let mut means = gradients.mean_square(block)?;
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
    fn add(&mut self, parts: &[Part], gradients: &Gradients, len: usize) -> bool {
        let mut finite = true;
        for (part, sum) in parts.iter().zip(&mut self.of_parts) {
            let (width, all) = gradients.of(part.kind);
            for features in &part.features {
                if *features == (0..width) {
                    finite &= sum.add(&all[..len * width]).is_ok();
                    continue;
                }
                let mut rows = Vec::with_capacity(len * part.rows());
                for token in all.chunks_exact(width).take(len) {
                    rows.extend_from_slice(&token[features.clone()]);
                }
                finite &= sum.add(&rows).is_ok();
            }
        }
        self.tokens += len as u64;
        finite
    }
}

/// Gradients of one window on the host, `[tokens, width]` for every linear; for v at o's input.
struct Gradients(BTreeMap<LinearKind, (usize, Vec<f32>)>);

impl Gradients {
    fn new(gradients: &BlockGradients) -> Result<Self, WalkError> {
        let read = |kind: LinearKind| {
            let tensor = gradients.of(kind).unwrap_or(&gradients.attention).clone();
            let [_, _, width] = tensor.dims();
            Ok((kind, (width, values(tensor)?)))
        };
        let all = LinearKind::ALL.into_iter().map(read);
        Ok(Self(all.collect::<Result<_, WalkError>>()?))
    }

    fn of(&self, kind: LinearKind) -> (usize, &[f32]) {
        let (width, values) = &self.0[&kind];
        (*width, values)
    }

    /// The mean over features of `g²`, each feature's brought to 1 on average over the first `len` tokens; 0 after them.
    fn weights(&self, of: &Weighted, len: usize) -> Vec<f32> {
        let (width, all) = self.of(of.kind);
        let tokens = || all.chunks_exact(width).map(|g| &g[of.features.clone()]);
        let mut scale = vec![0.0f32; of.features.len()];
        for g in tokens().take(len) {
            scale.iter_mut().zip(g).for_each(|(sum, g)| *sum += g * g);
        }
        let felt = scale.iter().filter(|&&sum| sum > 0.0).count();
        for scale in &mut scale {
            if *scale > 0.0 {
                *scale = len as f32 / (*scale * felt as f32);
            }
        }
        let mut weights: Vec<f32> = tokens().map(|g| weighted_square(g, &scale)).collect();
        weights[len..].fill(0.0);
        weights
    }
}

/// `Σ scale g²`, in lanes.
fn weighted_square(g: &[f32], scale: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (g, g_rest) = g.as_chunks::<LANES>();
    let (scale, scale_rest) = scale.as_chunks::<LANES>();
    for (g, scale) in g.iter().zip(scale) {
        for l in 0..LANES {
            sums[l] += g[l] * g[l] * scale[l];
        }
    }
    let rest = g_rest.iter().zip(scale_rest);
    sums.iter().sum::<f32>() + rest.map(|(g, scale)| g * g * scale).sum::<f32>()
}

struct Pass<'a> {
    decoder: &'a Decoder,
    seed: u64,
    windows: &'a [&'a Window],
    n_calibration: usize,
    tokens: usize,
    hidden: usize,
    head: Head,
}

impl Pass<'_> {
    /// Forward and back for some of the walked windows.
    fn run(
        &self,
        range: Range<usize>,
        taken: &mut OutputGradients,
        tick: &mut dyn FnMut(),
    ) -> Result<(), WalkError> {
        let n = range.len();
        let blocks = self.decoder.n_blocks();
        let mut streams = Vec::with_capacity(blocks);
        let window_of = taken.walked[range.clone()].to_vec();
        let mut first = Store::in_memory(n, self.tokens * self.hidden);
        for (at, &window) in window_of.iter().enumerate() {
            first.write(at, &self.decoder.embed(&self.windows[window].ids)?)?;
        }
        streams.push(first);
        let mut gradients = Vec::with_capacity(n);
        for index in 0..blocks {
            let block = self.decoder.block(index, self.tokens)?.rounded();
            self.decoder.release_block(index);
            let last = index + 1 == blocks;
            let mut next = (!last).then(|| Store::in_memory(n, self.tokens * self.hidden));
            for (at, &window) in window_of.iter().enumerate() {
                let h = values(block.forward(self.tensor(streams[index].read(at, 1)?)))?;
                match &mut next {
                    Some(next) => next.write(at, &h)?,
                    None => gradients.push(self.head_gradient(window, h)?),
                }
                tick();
            }
            streams.extend(next);
        }
        for index in (0..blocks).rev() {
            let block = self.decoder.block(index, self.tokens)?.rounded();
            self.decoder.release_block(index);
            let mut sums = RowSums::new(&taken.parts);
            for (at, gradient) in gradients.iter_mut().enumerate() {
                let window = window_of[at];
                let h = self.tensor(streams[index].read(at, 1)?);
                let found = block.gradients(h, self.tensor(std::mem::take(gradient)));
                let read = Gradients::new(&found)?;
                let len = self.windows[window].len;
                if window < self.n_calibration && !sums.add(&taken.parts, &read, len) {
                    return Err(WalkError::Gradient {
                        block: index,
                        window,
                    });
                }
                let weights = taken.weighted.iter().flat_map(|of| read.weights(of, len));
                let weights: Vec<f32> = weights.collect();
                let row = taken.weights_row(index, range.start + at);
                taken.weights.write(row, &weights)?;
                *gradient = values(found.input)?;
                tick();
            }
            taken.add(index, sums)?;
            streams.pop();
        }
        Ok(())
    }

    /// The derivative with regard to the last residual stream of `Σ_t z_t · e_t`, `z_t` a token's logits, `e_t` the
    /// [`fisher_probe`] of its prediction.
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
                    let mut random = SplitMix64::new(seed, token as u64);
                    fisher_probe(logits, || random.next());
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

#[cfg(test)]
pub(crate) mod tests {
    use halfbyte_checkpoint::ModelFolder;
    use halfbyte_model::Weights;

    use super::*;

    pub(crate) fn tiny() -> Decoder {
        let folder = ModelFolder::embedded("tiny").unwrap();
        Decoder::new(Weights::new(folder).unwrap(), Device::flex())
    }

    /// Of 24 tokens, the first `len` of them real.
    pub(crate) fn window(first: u32, len: usize) -> Window {
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
        let take_of = |n_calibration, every, max_bytes: u64, spill_folder: Option<&Path>| {
            let options = GradientOptions {
                seed: 1,
                max_bytes,
                every,
                spill_folder,
            };
            let tick = &mut |_, _| ();
            OutputGradients::take(&windows, n_calibration, &decoder, &options, tick).unwrap()
        };
        let take = |max_bytes, spill_folder| take_of(3, 1, max_bytes, spill_folder);
        let (whole, pieces) = (take(u64::MAX, None), take(0, Some(folder.path())));

        // by hand for one block: the gradients of all three windows, by the same path
        let pass = Pass {
            decoder: &decoder,
            seed: 1,
            windows: &windows,
            n_calibration: 3,
            tokens: 24,
            hidden: decoder.weights().config().hidden_size,
            head: decoder.head().unwrap().rounded(),
        };
        let last = decoder.n_blocks() - 1;
        let block = decoder.block(last, 24).unwrap().rounded();
        let mut of_gate: Vec<Vec<f32>> = Vec::new();
        let mut of_attention: Vec<Vec<f32>> = Vec::new();
        for (index, window) in windows.iter().enumerate() {
            // streams are kept in bf16
            let kept = |h: Vec<f32>| {
                let round = |x| half::bf16::from_f32(x).to_f32();
                pass.tensor(h.into_iter().map(round).collect())
            };
            let mut h = kept(decoder.embed(&window.ids).unwrap());
            for before in 0..last {
                let block = decoder.block(before, 24).unwrap().rounded();
                h = kept(values(block.forward(h)).unwrap());
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
        // the sums may be of gradients rounded to bf16, each by up to a 512th
        for found in [&whole, &pieces] {
            let gate = &found.row_hessians(last, LinearKind::Gate).unwrap()[0];
            for (a, b) in [(0, 0), (3, 3), (5, 40), (40, 5), (17, 90)] {
                let wanted = mean(&of_gate, a, b);
                let scale = (mean(&of_gate, a, a) * mean(&of_gate, b, b)).sqrt();
                let near = f64::from(gate.hessian[a * gate.in_features + b]);
                assert!(
                    (near - wanted).abs() < 0.004 * scale,
                    "{a}, {b}: {near} {wanted}"
                );
            }
            let dim = block.head_dim();
            let shared = block.heads() / block.kv_heads();
            let v = found.row_hessians(last, LinearKind::V).unwrap();
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
            assert!((near - wanted).abs() < 0.004 * scale, "v: {near} {wanted}");
            let diagonal: f64 = (0..gate.in_features).map(|a| mean(&of_gate, a, a)).sum();
            let square = found.mean_square(last).unwrap()[&LinearKind::Gate];
            assert!((square * gate.in_features as f64 / diagonal - 1.0).abs() < 0.01);

            // the second window is the fifteen tokens after the first one's 24
            let of_window = &of_gate[24..39];
            let norm = |row: usize| {
                of_window
                    .iter()
                    .map(|g| f64::from(g[row]).powi(2))
                    .sum::<f64>()
            };
            let norms: Vec<f64> = (0..gate.in_features).map(norm).collect();
            let weights = found.weights(last, LinearKind::Gate, 0, 1..2).unwrap();
            for (token, g) in of_window.iter().enumerate() {
                let each = g
                    .iter()
                    .zip(&norms)
                    .map(|(g, norm)| f64::from(*g).powi(2) / norm);
                let wanted = 15.0 * each.sum::<f64>() / gate.in_features as f64;
                let near = f64::from(weights[token]);
                assert!(
                    (near / wanted - 1.0).abs() < 0.01,
                    "{token}: {near} {wanted}"
                );
            }
            assert!(weights[15..].iter().all(|w| *w == 0.0), "padding is felt");
            for head in 0..block.heads() {
                let weights = found.weights(last, LinearKind::V, head, 0..3).unwrap();
                for (weights, window) in weights.chunks(24).zip(&windows) {
                    let sum: f32 = weights.iter().sum();
                    assert!(
                        (sum / window.len as f32 - 1.0).abs() < 0.01,
                        "{head}: {sum}"
                    );
                }
            }
        }

        // the second window left out, the third one held out
        let some = take_of(2, 2, u64::MAX, None);
        let gate = &some.row_hessians(last, LinearKind::Gate).unwrap()[0];
        let first = &of_gate[..24];
        let wanted = mean(first, 5, 40) * 63.0 / 24.0;
        let scale = (mean(first, 5, 5) * mean(first, 40, 40)).sqrt() * 63.0 / 24.0;
        let near = f64::from(gate.hessian[5 * gate.in_features + 40]);
        assert!((near - wanted).abs() < 0.004 * scale, "{near} {wanted}");
        let weights = |of: &OutputGradients, windows| of.weights(0, LinearKind::Up, 0, windows);
        let (all, some) = (
            weights(&whole, 0..3).unwrap(),
            weights(&some, 0..3).unwrap(),
        );
        assert_eq!((&all[..24], &all[48..]), (&some[..24], &some[48..]));
        assert!(some[24..48].iter().all(|w| *w == 1.0));
        drop(pieces);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the file goes with them"
        );
    }
}
