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
    let kv_heads = values.dims()[1];
    let shared = heads / kv_heads;
    let q = q.mul_scalar(1.0 / (head_dim as f32).sqrt());
    let mixed = chunks(tokens, sliding_window).map(|chunk| {
        let q = chunk.queries(&q, kv_heads);
        let scores = q.matmul(chunk.keys(&k).swap_dims(2, 3));
        let weights = if host::is_host(&scores) {
            host::softmax(scores, |row| chunk.seen(row))
        } else {
            let shape = scores.dims();
            let mask = chunk.hidden(&scores.device());
            let scores = scores
                .reshape([windows * kv_heads, shared, chunk.n_queries, chunk.n_keys])
                .mask_fill(mask.unsqueeze::<4>(), f32::NEG_INFINITY)
                .reshape(shape);
            softmax(scores, 3)
        };
        chunk.per_head(weights.matmul(chunk.keys(&values)), heads)
    });
    Tensor::cat(mixed.collect(), 2)
}

/// Some queries in a row and the keys that any of them may see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    first_query: usize,
    n_queries: usize,
    pub(crate) first_key: usize,
    n_keys: usize,
    sliding_window: Option<usize>,
}

impl Chunk {
    /// The chunk's part of `[windows, heads, tokens, features]`, the heads that share a kv head stacked:
    /// `[windows, kv_heads, heads / kv_heads * queries, features]`.
    pub(crate) fn queries(&self, all: &Tensor<4>, kv_heads: usize) -> Tensor<4> {
        let [windows, heads, _, features] = all.dims();
        let rows = heads / kv_heads * self.n_queries;
        all.clone()
            .narrow(2, self.first_query, self.n_queries)
            .reshape([windows, kv_heads, rows, features])
    }

    /// Stacked queries by heads again, `[windows, heads, queries, features]`.
    pub(crate) fn per_head(&self, stacked: Tensor<4>, heads: usize) -> Tensor<4> {
        let [windows, _, _, features] = stacked.dims();
        stacked.reshape([windows, heads, self.n_queries, features])
    }

    /// The chunk's part of all keys or values, `[windows, kv_heads, tokens, features]`.
    pub(crate) fn keys(&self, all: &Tensor<4>) -> Tensor<4> {
        all.clone().narrow(2, self.first_key, self.n_keys)
    }

    /// The chunk's keys that a row of stacked queries sees; `row` counts on over windows and heads.
    pub(crate) fn seen(&self, row: usize) -> Range<usize> {
        let query = self.first_query + row % self.n_queries;
        first_seen(query, self.sliding_window) - self.first_key..query + 1 - self.first_key
    }

    /// True where a query may not look, `[queries, keys]`: at later tokens, and at those the sliding window has passed.
    fn hidden(&self, device: &Device) -> Tensor<2, Bool> {
        let row = |row: usize| {
            let seen = self.seen(row);
            (0..self.n_keys).map(move |key| !seen.contains(&key))
        };
        let mask: Vec<bool> = (0..self.n_queries).flat_map(row).collect();
        Tensor::from_data(TensorData::new(mask, [self.n_queries, self.n_keys]), device)
    }
}

/// The first key that a query sees.
fn first_seen(query: usize, sliding_window: Option<usize>) -> usize {
    sliding_window.map_or(0, |w| (query + 1).saturating_sub(w))
}

/// All queries, chunk by chunk.
pub(crate) fn chunks(tokens: usize, sliding_window: Option<usize>) -> impl Iterator<Item = Chunk> {
    (0..tokens).step_by(CHUNK).map(move |first_query| {
        let n_queries = CHUNK.min(tokens - first_query);
        let first_key = first_seen(first_query, sliding_window);
        Chunk {
            first_query,
            n_queries,
            first_key,
            n_keys: first_query + n_queries - first_key,
            sliding_window,
        }
    })
}
