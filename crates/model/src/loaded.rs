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

/// What a [`LoadedModel`] keeps of the tokens of a window, or of several that grow side by side: a [`KeyValueCache`] a block.
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
        let h = self.stream(ids, 1, cache)?;
        let [_, tokens, hidden] = h.dims();
        let last = h.narrow(1, tokens - 1, 1).reshape([1, hidden]);
        values(self.head.forward(last))
    }

    /// Logits `[windows, vocab_size]` of what follows each of `ids`, the next token of one window each: the windows share a
    /// cache and grow by a token a call.
    ///
    /// # Errors
    /// As [`Self::next_logits`].
    pub fn next_logits_abreast(
        &self,
        ids: &[u32],
        cache: &mut Cache,
    ) -> Result<Vec<f32>, ModelError> {
        let h = self.stream(ids, ids.len(), cache)?;
        let [windows, _, hidden] = h.dims();
        values(self.head.forward(h.reshape([windows, hidden])))
    }

    /// The same after each of `ids`, `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// As [`Self::next_logits`].
    pub fn logits(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, ModelError> {
        let h = self.stream(ids, 1, cache)?;
        let [_, tokens, hidden] = h.dims();
        values(self.head.forward(h.reshape([tokens, hidden])))
    }

    /// Gives the weights back.
    pub fn into_weights(self) -> Weights {
        self.decoder.into_weights()
    }

    /// `ids` are those of `windows` one after another, as many of each.
    fn stream(
        &self,
        ids: &[u32],
        windows: usize,
        cache: &mut Cache,
    ) -> Result<Tensor<3>, ModelError> {
        let wanted = cache.len() + ids.len() / windows.max(1);
        if ids.is_empty() || wanted > self.positions {
            return Err(ModelError::Positions {
                wanted,
                loaded: self.positions,
            });
        }
        let h = self.decoder.embed(ids)?;
        let shape = [windows, ids.len() / windows, h.len() / ids.len()];
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
    use halfbyte_testing::{Lacking, skip};

    use super::*;
    use crate::{DeviceChoice, open_device};

    /// Logits of a window whose tokens come in as `parts` against those of all at once without a cache. Tolerance, of the
    /// largest logit: that of the golden tests, since sums run in another order.
    fn check(name: &str, choice: DeviceChoice, execution: Execution, parts: &[usize]) {
        let device = match open_device(choice) {
            Ok(device) => device,
            Err(error) => {
                skip(Lacking::Vulkan, error);
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

    /// Windows side by side against each by itself: odd counts of them, so that products take tokens by fours and one by
    /// one.
    #[test]
    fn windows_that_grow_side_by_side_are_those_of_each_alone() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for choice in [DeviceChoice::Cpu, DeviceChoice::Vulkan] {
            let device = match open_device(choice) {
                Ok(device) => device,
                Err(error) => {
                    skip(Lacking::Vulkan, error);
                    continue;
                }
            };
            for (name, windows) in MODELS.into_iter().zip([2, 3, 5, 7]) {
                let load = || {
                    let folder = ModelFolder::open(&golden.join(name)).unwrap();
                    let weights = Weights::new(folder).unwrap();
                    let device = device.clone();
                    LoadedModel::load(weights, 12, Execution::Packed, device, &mut |_| ())
                };
                let model = load().unwrap();
                let vocab = model.decoder.weights().config().vocab_size;
                let id = |window: usize, at: usize| ((window * 31 + at * 7) % vocab) as u32;
                let mut cache = model.cache();
                let mut alone = vec![model.cache(); windows];
                for at in 0..12 {
                    let ids: Vec<u32> = (0..windows).map(|window| id(window, at)).collect();
                    let found = model.next_logits_abreast(&ids, &mut cache).unwrap();
                    assert_eq!((cache.len(), found.len()), (at + 1, windows * vocab));
                    for ((found, id), alone) in found.chunks(vocab).zip(&ids).zip(&mut alone) {
                        let wanted = model.next_logits(&[*id], alone).unwrap();
                        let largest = wanted.iter().fold(1.0f32, |m, x| m.max(x.abs()));
                        let pairs = found.iter().zip(&wanted);
                        let furthest = pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                        assert!(furthest <= 1e-5 * largest, "{name}, token {at}: {furthest}");
                    }
                }
                let ids = vec![0; windows];
                assert!(
                    model.next_logits_abreast(&ids, &mut cache).is_err(),
                    "one position too many"
                );
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
