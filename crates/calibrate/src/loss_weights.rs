//! How much of each token's error the loss feels: one backward pass of the float model over the calibration text.

use std::collections::BTreeMap;

use burn::prelude::*;
use halfbyte_model::{Block, BlockGradients, Decoder, Head, LinearKind, values};
use rayon::prelude::*;

use crate::cluster::cluster;
use crate::text::random::SplitMix64;
use crate::text::{Window, Windows};
use crate::{Store, WalkError};

/// Rows whose logits exist at once.
const LOGIT_ROWS: usize = 128;
/// Windows from which rows are grouped, and enough for [`sensitivities`].
pub const GROUPING_WINDOWS: usize = 4;

/// How the weights are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeightOptions {
    /// Groups of output rows of gate and up, whose rows are felt at different tokens.
    pub mlp_groups: usize,
    /// Groups of output rows of q, k, o and down.
    pub other_groups: usize,
    /// Seed of the sampled next tokens.
    pub seed: u64,
    /// Bytes of residual streams kept at once; more windows are walked together when it is larger.
    pub max_bytes: u64,
}

/// Weights of tokens in the Hessians of every linear, one set for each group of its output rows.
///
/// The KL divergence from the float model is, to second order, `½ δᵀ F δ` with `F = E[g gᵀ]` and `g` the gradient of
/// `log p(y)` for a next token `y` drawn from the model's own prediction. For row `j` of a linear that leaves
/// `H_j = Σ_t g_tj² x_t x_tᵀ` (GuidedQuant, arXiv 2505.07004, section 3, with the data's own next token there). Rows
/// are grouped by where in the text they are felt, and a group shares the mean of its rows' normalized `g²`.
#[derive(Debug)]
pub struct LossWeights {
    blocks: Vec<BlockWeights>,
}

#[derive(Debug)]
struct BlockWeights {
    linears: Vec<Groups>,
    /// `[windows * groups of all linears, tokens]`.
    store: Store,
    /// Mean over the real calibration tokens, a value a group.
    means: Vec<f64>,
}

/// The row groups of one linear; for v, its query heads.
#[derive(Clone, Debug)]
struct Groups {
    kind: LinearKind,
    /// Index of its first group among the block's.
    first: usize,
    /// Output rows; for v the columns of o's input that belong to a query head.
    rows: Vec<Vec<usize>>,
    /// What a row's `g²` is multiplied by, `[rows]`.
    scale: Vec<f32>,
}

impl BlockWeights {
    fn linear(&self, kind: LinearKind) -> Option<&Groups> {
        self.linears.iter().find(|linear| linear.kind == kind)
    }
}

impl LossWeights {
    /// Runs the float model forward and back over all windows, held-out ones included. `tick` hears how many of how
    /// many block passes are done.
    ///
    /// # Errors
    /// As [`crate::Walk`].
    pub fn take(
        windows: &Windows,
        decoder: &Decoder,
        options: &LossWeightOptions,
        tick: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, WalkError> {
        let all: Vec<&Window> = windows.calibration.iter().chain(&windows.holdout).collect();
        Self::over(&all, windows.calibration.len(), decoder, options, tick)
    }

    /// The same over some windows, of which the first `n_calibration` set the averages.
    fn over(
        all: &[&Window],
        n_calibration: usize,
        decoder: &Decoder,
        options: &LossWeightOptions,
        tick: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, WalkError> {
        let tokens = all.first().map_or(0, |w| w.ids.len());
        let hidden = decoder.weights().config().hidden_size;
        let blocks = decoder.n_blocks();
        let mut pass = Pass {
            decoder,
            options,
            windows: all,
            n_calibration,
            tokens,
            hidden,
            weights: (0..blocks).map(|_| None).collect(),
        };
        let per_window = blocks as u64 * Store::bytes(1, tokens * hidden);
        let chunk = ((options.max_bytes / per_window.max(1)) as usize).clamp(1, all.len().max(1));
        let total = 2 * (blocks * all.len()) as u64;
        let mut done = 0;
        let head = decoder.head()?;
        for first in (0..all.len()).step_by(chunk) {
            let end = (first + chunk).min(all.len());
            pass.run(&head, first..end, &mut |n| {
                done += n;
                tick(done, total);
            })?;
        }
        let real: usize = all[..pass.n_calibration].iter().map(|w| w.len).sum();
        let mut blocks: Vec<BlockWeights> = pass.weights.into_iter().flatten().collect();
        for block in &mut blocks {
            for mean in &mut block.means {
                *mean /= real.max(1) as f64;
            }
        }
        Ok(Self { blocks })
    }

    /// Mean of `g²` over a linear's output rows and the windows that rows were grouped on; for v over the features of
    /// o's input.
    fn mean_square(&self, block: usize, kind: LinearKind) -> f64 {
        let block = &self.blocks[block];
        let Some(linear) = block.linear(kind) else {
            return 0.0;
        };
        if kind == LinearKind::V {
            let means = &block.means[linear.first..][..linear.rows.len()];
            return means.iter().sum::<f64>() / means.len().max(1) as f64;
        }
        let felt = linear.scale.iter().filter(|scale| **scale > 0.0);
        let sum: f64 = felt.map(|scale| 1.0 / f64::from(*scale)).sum();
        sum / linear.scale.len().max(1) as f64
    }

    /// The output rows of every group of a linear. For v: the features of o's input that belong to each query head.
    pub fn rows(&self, block: usize, kind: LinearKind) -> &[Vec<usize>] {
        self.blocks[block].linear(kind).map_or(&[], |l| &l.rows)
    }

    /// A group's weights for a window's tokens, `[tokens]`, 1 on average over the calibration text.
    pub fn window(
        &self,
        block: usize,
        kind: LinearKind,
        group: usize,
        window: usize,
    ) -> Result<Vec<f32>, WalkError> {
        let block = &self.blocks[block];
        let group = block.linear(kind).map_or(0, |l| l.first) + group;
        let mean = block.means[group];
        let scale = if mean > 0.0 { (1.0 / mean) as f32 } else { 0.0 };
        // a group of a window is a row of the store
        let mut weights = block.store.read(window * block.means.len() + group, 1)?;
        weights.iter_mut().for_each(|w| *w *= scale);
        Ok(weights)
    }
}

/// What a unit of each linear's loss `tr(Δ H Δᵀ)` costs in KL divergence from the float model, in nats a token: half the
/// mean of `g²` over its rows and tokens, in the notation of [`LossWeights`] (K-FAC's assumption that inputs and
/// gradients vary independently, Martens and Grosse, arXiv 1503.05671). v's loss is that by the attention-mixed
/// Hessian, the mean over the query heads that share a kv head, so it counts as often as there are such heads.
///
/// One map a block, with a value for each of its linears, from `windows` alone: a few are enough for means over
/// thousands of rows. `tick` as in [`LossWeights::take`].
///
/// # Errors
/// As [`LossWeights::take`].
pub fn sensitivities(
    windows: &[&Window],
    decoder: &Decoder,
    seed: u64,
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Vec<BTreeMap<LinearKind, f64>>, WalkError> {
    let options = LossWeightOptions {
        mlp_groups: 1,
        other_groups: 1,
        seed,
        max_bytes: u64::MAX,
    };
    let weights = LossWeights::over(windows, windows.len(), decoder, &options, tick)?;
    let config = decoder.weights().config();
    let shared = config.num_attention_heads / config.num_key_value_heads;
    let of = |block: usize| {
        let cost = |kind: LinearKind| {
            let heads = if kind == LinearKind::V { shared } else { 1 };
            0.5 * heads as f64 * weights.mean_square(block, kind)
        };
        let pairs = LinearKind::ALL.map(|kind| (kind, cost(kind)));
        BTreeMap::from(pairs)
    };
    Ok((0..decoder.n_blocks()).map(of).collect())
}

struct Pass<'a> {
    decoder: &'a Decoder,
    options: &'a LossWeightOptions,
    windows: &'a [&'a Window],
    n_calibration: usize,
    tokens: usize,
    hidden: usize,
    weights: Vec<Option<BlockWeights>>,
}

impl Pass<'_> {
    /// Forward and back for some of the windows.
    fn run(
        &mut self,
        head: &Head,
        range: std::ops::Range<usize>,
        tick: &mut dyn FnMut(u64),
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
                    None => gradients.push(self.head_gradient(head, range.start + at, h)?),
                }
                tick(1);
            }
            streams.extend(next);
        }
        for index in (0..blocks).rev() {
            let block = self.decoder.block(index, self.tokens)?;
            self.decoder.release_block(index);
            let mut waiting = Vec::new();
            for (at, gradient) in gradients.iter_mut().enumerate() {
                let h = self.tensor(streams[index].read(at, 1)?);
                let found = block.gradients(h, self.tensor(std::mem::take(gradient)));
                *gradient = values(found.input.clone())?;
                waiting.push((range.start + at, Squares::of(&found)?));
                if self.weights[index].is_none() && waiting.len() < GROUPING_WINDOWS && at + 1 < n {
                    continue;
                }
                if self.weights[index].is_none() {
                    self.weights[index] = Some(self.group(&block, &waiting));
                }
                for (window, squares) in waiting.drain(..) {
                    self.note(index, window, &squares)?;
                }
                tick(1);
            }
            streams.pop();
        }
        Ok(())
    }

    /// The derivative of `Σ_t log p(y_t)` with regard to the last residual stream, `y_t` drawn from `p`.
    fn head_gradient(
        &self,
        head: &Head,
        window: usize,
        h: Vec<f32>,
    ) -> Result<Vec<f32>, WalkError> {
        let mut gradient = Vec::with_capacity(h.len());
        let real = self.windows[window].len;
        for (chunk, rows) in h.chunks(LOGIT_ROWS * self.hidden).enumerate() {
            let n = rows.len() / self.hidden;
            let rows = Tensor::<2>::from_data(
                TensorData::new(rows.to_vec(), [n, self.hidden]),
                self.decoder.device(),
            );
            let mut logits = values(head.forward(rows.clone()))?;
            let vocab = logits.len() / n;
            logits
                .par_chunks_mut(vocab)
                .enumerate()
                .for_each(|(row, logits)| {
                    let token = chunk * LOGIT_ROWS + row;
                    if token >= real {
                        return logits.fill(0.0);
                    }
                    let seed = self.options.seed.wrapping_add((window as u64) << 32);
                    surprise(logits, SplitMix64::new(seed, token as u64).unit());
                });
            let logits =
                Tensor::from_data(TensorData::new(logits, [n, vocab]), self.decoder.device());
            gradient.extend(values(head.gradient(rows, logits))?);
        }
        Ok(gradient)
    }

    /// Groups the rows of every linear by the tokens at which these windows feel them.
    fn group(&self, block: &Block, seen: &[(usize, Squares)]) -> BlockWeights {
        let mut linears = Vec::new();
        let mut first = 0;
        for kind in LinearKind::ALL {
            let (rows, scale) = if kind == LinearKind::V {
                let dim = block.head_dim();
                let heads = (0..block.heads()).map(|h| (h * dim..(h + 1) * dim).collect());
                (heads.collect(), vec![1.0; block.heads() * dim])
            } else {
                let wanted = match kind {
                    LinearKind::Gate | LinearKind::Up => self.options.mlp_groups,
                    _ => self.options.other_groups,
                };
                group_rows(kind, seen, wanted)
            };
            linears.push(Groups {
                kind,
                first,
                rows,
                scale,
            });
            first += linears.last().map_or(0, |l| l.rows.len());
        }
        BlockWeights {
            store: Store::in_memory(self.windows.len() * first, self.tokens),
            means: vec![0.0; first],
            linears,
        }
    }

    /// Writes a window's weights.
    fn note(&mut self, block: usize, window: usize, squares: &Squares) -> Result<(), WalkError> {
        let Some(block) = &mut self.weights[block] else {
            return Ok(());
        };
        let mut all = vec![0.0f32; block.means.len() * self.tokens];
        for linear in &block.linears {
            let (features, squares) = squares.of_kind(linear.kind);
            for (group, rows) in linear.rows.iter().enumerate() {
                let to = &mut all[(linear.first + group) * self.tokens..][..self.tokens];
                for (to, squares) in to.iter_mut().zip(squares.chunks_exact(features)) {
                    let sum: f32 = rows.iter().map(|&r| squares[r] * linear.scale[r]).sum();
                    *to = sum / rows.len() as f32;
                }
            }
        }
        if window < self.n_calibration {
            for (mean, weights) in block.means.iter_mut().zip(all.chunks(self.tokens)) {
                *mean += weights.iter().map(|w| f64::from(*w)).sum::<f64>();
            }
        }
        Ok(block.store.write(window * block.means.len(), &all)?)
    }

    fn tensor(&self, values: Vec<f32>) -> Tensor<3> {
        Tensor::from_data(
            TensorData::new(values, [1, self.tokens, self.hidden]),
            self.decoder.device(),
        )
    }
}

/// Squared gradients of one window, `[tokens, out_features]` a linear.
struct Squares(Vec<(LinearKind, usize, Vec<f32>)>);

impl Squares {
    fn of(gradients: &BlockGradients) -> Result<Self, WalkError> {
        let square = |kind: LinearKind| {
            let g = gradients.of(kind).unwrap_or(&gradients.attention).clone();
            let [_, _, features] = g.dims();
            Ok((kind, features, values(g.clone() * g)?))
        };
        let all = LinearKind::ALL.into_iter().map(square);
        Ok(Self(all.collect::<Result<_, WalkError>>()?))
    }

    /// Width and values.
    fn of_kind(&self, kind: LinearKind) -> (usize, &[f32]) {
        self.0
            .iter()
            .find(|(k, _, _)| *k == kind)
            .map_or((1, &[]), |(_, features, squares)| (*features, squares))
    }
}

/// Row groups of a linear, and what brings every row's mean `g²` to 1.
fn group_rows(
    kind: LinearKind,
    seen: &[(usize, Squares)],
    wanted: usize,
) -> (Vec<Vec<usize>>, Vec<f32>) {
    let features = seen.first().map_or(0, |(_, s)| s.of_kind(kind).0);
    let mut profiles: Vec<Vec<f32>> = vec![Vec::new(); features];
    for (_, squares) in seen {
        for token in squares.of_kind(kind).1.chunks_exact(features) {
            for (profile, g2) in profiles.iter_mut().zip(token) {
                profile.push(g2.sqrt());
            }
        }
    }
    let mut scale = Vec::with_capacity(features);
    for profile in &mut profiles {
        let energy: f64 = profile.iter().map(|g| f64::from(*g).powi(2)).sum();
        let per_token = energy / profile.len().max(1) as f64;
        scale.push(if per_token > 0.0 {
            (1.0 / per_token) as f32
        } else {
            0.0
        });
        let norm = if energy > 0.0 {
            (1.0 / energy.sqrt()) as f32
        } else {
            0.0
        };
        profile.iter_mut().for_each(|g| *g *= norm);
    }
    (cluster(&profiles, wanted), scale)
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
    use crate::text::{Packing, TextReport, Window};

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

    #[test]
    fn weights_average_one_over_real_tokens_and_rows_come_once() {
        let folder = ModelFolder::embedded("tiny").unwrap();
        let decoder = Decoder::new(Weights::new(folder).unwrap(), Device::flex());
        let window = |first: u32, len: usize| Window {
            ids: (0..24)
                .map(|i| if i < len as u32 { first + 13 * i } else { 0 })
                .collect(),
            len,
        };
        let windows = Windows {
            calibration: vec![window(20, 24), window(31, 15), window(57, 24)],
            holdout: vec![window(44, 24)],
            report: TextReport {
                packing: Packing::Truncate,
                sequence_length: 24,
                windows_calibration: 3,
                windows_holdout: 1,
                windows_padded: 1,
                tokens_calibration: 63,
                tokens_holdout: 24,
                windows_sha256: String::new(),
                sources: Vec::new(),
                warnings: Vec::new(),
            },
        };
        let options = LossWeightOptions {
            mlp_groups: 3,
            other_groups: 2,
            seed: 1,
            max_bytes: 0,
        };
        let weights = LossWeights::take(&windows, &decoder, &options, &mut |_, _| ()).unwrap();
        let block = decoder.block(0, 24).unwrap();
        for index in [0, decoder.n_blocks() - 1] {
            for kind in LinearKind::ALL {
                let groups = weights.rows(index, kind);
                let mut rows: Vec<usize> = groups.iter().flatten().copied().collect();
                rows.sort_unstable();
                let features = match kind {
                    LinearKind::V => block.heads() * block.head_dim(),
                    _ => block.linears.get(kind).out_features(),
                };
                assert_eq!(rows, (0..features).collect::<Vec<_>>(), "{kind:?}");
                for group in 0..groups.len() {
                    let all: Vec<Vec<f32>> = (0..4)
                        .map(|w| weights.window(index, kind, group, w).unwrap())
                        .collect();
                    assert!(all.iter().flatten().all(|w| *w >= 0.0));
                    assert!(all[1][15..].iter().all(|w| *w == 0.0), "padding is felt");
                    let sum: f64 = all[..3].iter().flatten().map(|w| f64::from(*w)).sum();
                    assert!((sum / 63.0 - 1.0).abs() < 0.01, "{kind:?} {group}: {sum}");
                }
            }
        }
    }
}
