use std::ops::Range;

use burn::prelude::*;
use burn::tensor::activation::softmax;

use crate::host;

/// Query rows taken at once: keys beyond a chunk's last row are never touched, which halves causal attention, and
/// the scores of a chunk stay small.
const CHUNK: usize = 128;

/// Mixes `values` by causal attention: `softmax(q kᵀ / √d + mask) values`, per query head.
///
/// `q` `[windows, heads, tokens, head_dim]`, `k` `[windows, kv_heads, positions, head_dim]`, `values`
/// `[windows, kv_heads, positions, features]` to `[windows, heads, tokens, features]`; the queries are those of the last
/// positions. `sliding_window` keys, the query's own included, are seen when it is set. Keys and values are never
/// repeated: the query heads that share a kv head are stacked as rows of one product.
pub(crate) fn attention_mix(
    q: Tensor<4>,
    k: Tensor<4>,
    values: Tensor<4>,
    sliding_window: Option<usize>,
) -> Tensor<4> {
    let [windows, heads, tokens, head_dim] = q.dims();
    let [_, kv_heads, positions, _] = k.dims();
    debug_assert_eq!(heads % kv_heads, 0, "kv heads divide heads");
    let shared = heads / kv_heads;
    let q = q.mul_scalar(1.0 / (head_dim as f32).sqrt());
    let mixed = chunks(positions - tokens..positions, sliding_window).map(|chunk| {
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
    first_row: usize,
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
            .narrow(2, self.first_row, self.n_queries)
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
        let keys = seen(self.first_query + row % self.n_queries, self.sliding_window);
        keys.start - self.first_key..keys.end - self.first_key
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

/// The positions that the query at a position sees.
pub(crate) fn seen(query: usize, sliding_window: Option<usize>) -> Range<usize> {
    sliding_window.map_or(0, |w| (query + 1).saturating_sub(w))..query + 1
}

/// The queries at some positions, chunk by chunk.
pub(crate) fn chunks(
    queries: Range<usize>,
    sliding_window: Option<usize>,
) -> impl Iterator<Item = Chunk> {
    queries.clone().step_by(CHUNK).map(move |first_query| {
        let n_queries = CHUNK.min(queries.end - first_query);
        let first_key = seen(first_query, sliding_window).start;
        Chunk {
            first_row: first_query - queries.start,
            first_query,
            n_queries,
            first_key,
            n_keys: first_query + n_queries - first_key,
            sliding_window,
        }
    })
}
