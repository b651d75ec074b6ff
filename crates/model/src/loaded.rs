use burn::prelude::*;

use crate::{
    Block, Decoder, Execution, Head, KeyValueCache, Linear, LinearKind, ModelError, Weights, values,
};

/// A model all of whose blocks stay in memory, for generating.
#[derive(Debug)]
pub struct LoadedModel {
    decoder: Decoder,
    blocks: Vec<Block>,
    head: Head,
    positions: usize,
}

/// What a [`LoadedModel`] keeps of a window's tokens, a [`KeyValueCache`] a block.
#[derive(Clone, Debug, Default)]
pub struct Cache(Vec<KeyValueCache>);

impl Cache {
    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.0.first().map_or(0, KeyValueCache::len)
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(KeyValueCache::bytes).sum()
    }
}

impl LoadedModel {
    /// Loads everything for windows of up to `positions` tokens; `loaded` hears how many blocks are in. Rotary
    /// frequencies that depend on the length (dynamic scaling) are those of `positions`.
    ///
    /// # Errors
    /// Tensors that are missing or damaged, and a device that fails its test.
    pub fn load(
        weights: Weights,
        positions: usize,
        execution: Execution,
        device: Device,
        loaded: &mut dyn FnMut(usize),
    ) -> Result<Self, ModelError> {
        let decoder = Decoder::new(weights, device).with_execution(execution);
        let rope = decoder.rope(positions);
        let mut blocks = Vec::with_capacity(decoder.n_blocks());
        for index in 0..decoder.n_blocks() {
            blocks.push(decoder.block_with(index, rope.clone())?);
            decoder.release_block(index);
            loaded(index + 1);
        }
        let head = decoder.head_with(execution)?;
        // what was read of the file is held a second time now
        decoder.weights().release("");
        Ok(Self {
            decoder,
            blocks,
            head,
            positions,
        })
    }

    /// The weights it was loaded from.
    pub fn weights(&self) -> &Weights {
        self.decoder.weights()
    }

    /// Tokens that a window may have.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The linears of all blocks with their module paths.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear)> {
        self.blocks.iter().enumerate().flat_map(|(index, block)| {
            let linear = move |kind: LinearKind| (kind.module(index), block.linears.get(kind));
            LinearKind::ALL.into_iter().map(linear)
        })
    }

    /// Bytes of all linears and the head as they are held.
    pub fn bytes(&self) -> u64 {
        let linears: u64 = self.linears().map(|(_, linear)| linear.bytes()).sum();
        linears + self.head.linear.bytes()
    }

    /// A window without tokens.
    pub fn cache(&self) -> Cache {
        Cache(vec![KeyValueCache::default(); self.blocks.len()])
    }

    /// Logits `[vocab_size]` of what follows the last of `ids`, which follow those in the cache and join them.
    ///
    /// # Errors
    /// Ids that the model does not have, more tokens than it was loaded for, and a device that fails.
    pub fn next_logits(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, ModelError> {
        let h = self.stream(ids, cache)?;
        let [_, tokens, hidden] = h.dims();
        let last = h.narrow(1, tokens - 1, 1).reshape([1, hidden]);
        values(self.head.forward(last))
    }

    /// The same after each of `ids`, `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// As [`Self::next_logits`].
    pub fn logits(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, ModelError> {
        let h = self.stream(ids, cache)?;
        let [_, tokens, hidden] = h.dims();
        values(self.head.forward(h.reshape([tokens, hidden])))
    }

    fn stream(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor<3>, ModelError> {
        let wanted = cache.len() + ids.len();
        if ids.is_empty() || wanted > self.positions {
            return Err(ModelError::Positions {
                wanted,
                loaded: self.positions,
            });
        }
        let h = self.decoder.embed(ids)?;
        let shape = [1, ids.len(), h.len() / ids.len()];
        let mut h = Tensor::<3>::from_data(TensorData::new(h, shape), self.decoder.device());
        for (block, cache) in self.blocks.iter().zip(&mut cache.0) {
            h = block.forward_cached(h, cache);
        }
        Ok(h)
    }
}
