use std::ops::Range;

use burn::prelude::*;
use burn::tensor::activation::softmax;

use crate::host;

/// Query rows taken at once: keys beyond a chunk's last row are never touched, which halves causal attention, and
/// the scores of a chunk stay small.
const CHUNK: usize = 128;

/// Mixes `values` by causal attention: `softmax(q kᵀ / √d + mask) values`, per query head.
///
/// `q` `[windows, heads, tokens, head_dim]`, `k` `[windows, kv_heads, tokens, head_dim]`, `values`
/// `[windows, kv_heads, tokens, features]` to `[windows, heads, tokens, features]`. `sliding_window` keys, the
/// query's own included, are seen when it is set. Keys and values are never repeated: the query heads that share a
/// kv head are stacked as rows of one product.
pub(crate) fn attention_mix(
    q: Tensor<4>,
    k: Tensor<4>,
    values: Tensor<4>,
    sliding_window: Option<usize>,
) -> Tensor<4> {
    let [windows, heads, tokens, head_dim] = q.dims();
    let [_, kv_heads, _, features] = values.dims();
    let shared = heads / kv_heads;
    let q = q.mul_scalar(1.0 / (head_dim as f32).sqrt());
    let mixed = chunks(tokens, sliding_window).map(|chunk| {
        let Chunk {
            start,
            rows,
            first,
            keys,
        } = chunk;
        let q =
            q.clone()
                .narrow(2, start, rows)
                .reshape([windows, kv_heads, shared * rows, head_dim]);
        let scores = q.matmul(k.clone().narrow(2, first, keys).swap_dims(2, 3));
        let weights = if host::is_host(&scores) {
            host::softmax(scores, |row| chunk.seen(row, sliding_window))
        } else {
            let mask = hidden_keys(start, rows, first, keys, sliding_window, &scores.device());
            let scores = scores
                .reshape([windows * kv_heads, shared, rows, keys])
                .mask_fill(mask.unsqueeze::<4>(), f32::NEG_INFINITY)
                .reshape([windows, kv_heads, shared * rows, keys]);
            softmax(scores, 3)
        };
        weights
            .matmul(values.clone().narrow(2, first, keys))
            .reshape([windows, heads, rows, features])
    });
    Tensor::cat(mixed.collect(), 2)
}

/// Queries `start..start + rows` and the keys they may see, `first..first + keys`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) first: usize,
    pub(crate) keys: usize,
}

impl Chunk {
    /// The chunk's keys that a row of stacked queries sees; `row` counts on over windows and heads.
    pub(crate) fn seen(&self, row: usize, sliding_window: Option<usize>) -> Range<usize> {
        let query = self.start + row % self.rows;
        let earliest = sliding_window.map_or(0, |w| (query + 1).saturating_sub(w));
        earliest - self.first..query + 1 - self.first
    }
}

/// All queries, chunk by chunk.
pub(crate) fn chunks(tokens: usize, sliding_window: Option<usize>) -> impl Iterator<Item = Chunk> {
    (0..tokens).step_by(CHUNK).map(move |start| {
        let rows = CHUNK.min(tokens - start);
        let first = sliding_window.map_or(0, |w| (start + 1).saturating_sub(w));
        Chunk {
            start,
            rows,
            first,
            keys: start + rows - first,
        }
    })
}

/// True where a query may not look, `[rows, keys]`: at later tokens, and at those the sliding window has passed.
fn hidden_keys(
    start: usize,
    rows: usize,
    first: usize,
    keys: usize,
    sliding_window: Option<usize>,
    device: &Device,
) -> Tensor<2, Bool> {
    let hidden =
        |row: usize, key: usize| key > row || sliding_window.is_some_and(|w| row - key >= w);
    let mask: Vec<bool> = (start..start + rows)
        .flat_map(|row| (first..first + keys).map(move |key| hidden(row, key)))
        .collect();
    Tensor::from_data(TensorData::new(mask, [rows, keys]), device)
}
