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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use halfbyte_checkpoint::ModelFolder;

    use super::*;
    use crate::{DeviceChoice, open_device};

    /// Logits of a window whose tokens come in as `parts` against those of all at once without a cache. Tolerance, of the
    /// largest logit: that of the golden tests, since sums run in another order.
    fn check(name: &str, choice: DeviceChoice, execution: Execution, parts: &[usize]) {
        let device = match open_device(choice) {
            Ok(device) => device,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let weights = || Weights::new(ModelFolder::open(&golden.join(name)).unwrap()).unwrap();
        let tokens: usize = parts.iter().sum();
        let vocab = weights().config().vocab_size;
        let ids: Vec<u32> = (0..tokens)
            .map(|i| ((i * 29 + i / 5) % vocab) as u32)
            .collect();
        let whole = Decoder::new(weights(), device.clone());
        let wanted = values(whole.logits(std::slice::from_ref(&ids)).unwrap()).unwrap();

        let model = LoadedModel::load(weights(), tokens, execution, device, &mut |_| ()).unwrap();
        let mut cache = model.cache();
        let mut found = Vec::new();
        for &part in parts {
            let first = cache.len();
            found.extend(model.logits(&ids[first..first + part], &mut cache).unwrap());
        }
        assert_eq!((cache.len(), found.len()), (tokens, wanted.len()));
        let largest = wanted.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        for (at, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let difference = (found - wanted).abs();
            assert!(
                difference <= 1e-4 * largest,
                "{name} on {}: {found} for {wanted} at token {}",
                choice.as_str(),
                at / vocab
            );
        }
        let next = model.next_logits(&ids[..1], &mut model.cache()).unwrap();
        let first = found[..vocab].iter().zip(&next);
        assert!(
            first
                .into_iter()
                .all(|(a, b)| (a - b).abs() <= 1e-4 * largest)
        );
        assert!(
            model.next_logits(&ids[..1], &mut cache).is_err(),
            "one position too many"
        );
    }

    const MODELS: [&str; 4] = ["llama", "mistral_sliding_window", "qwen2", "qwen3"];

    #[test]
    fn with_a_cache_logits_are_those_of_the_whole_window() {
        for name in MODELS {
            for execution in [Execution::Dense, Execution::Packed] {
                // more than a chunk of queries, then single tokens, a few, and a single one again
                check(name, DeviceChoice::Cpu, execution, &[140, 1, 1, 7, 1]);
                check(name, DeviceChoice::Cpu, execution, &[1, 1, 30]);
            }
        }
    }

    #[test]
    fn with_a_cache_on_wgpu_too_which_grows_in_steps() {
        for name in MODELS {
            check(
                name,
                DeviceChoice::Vulkan,
                Execution::Dense,
                &[253, 1, 4, 1],
            );
        }
    }
}
