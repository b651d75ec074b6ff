use anyhow::Result;
use halfbyte_calibrate::text::{SplitMix64, ordinary_ids};
use halfbyte_checkpoint::{Dtype, ModelFolder};
use halfbyte_model::{DeviceChoice, Execution, LoadedModel, Weights, open_device};
use tokenizers::Tokenizer;

use super::Sampling;
use super::sampling::Sampler;
use crate::event::{Event, phase};

/// Texts that grow side by side: a pass over the weights serves all of them, and each has keys and values of its own.
const ABREAST: usize = 32;
/// Tokens of a text, several of which fill a window: many short texts differ more than a few long ones; see results/LOG.md.
const TEXT_TOKENS: usize = 64;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// So many windows of so many `tokens`, for each of two purposes, that a float model writes: texts one after another, each of which begins with an id
/// drawn evenly from the vocabulary, special tokens aside, and goes on with what the model itself draws, as it is
/// (temperature 1). So the statistics know what the model was made from, of whatever kind the user's text is (LLM-QAT, Liu
/// et al., arXiv 2305.17888, trains on such text). On the CPU whatever device the run has, so that the same run has the same
/// windows; those of the first purpose do not hang on how many the second wants. Gives the weights back.
///
/// # Errors
/// Tensors that are missing or damaged, and a model that overflows.
pub(crate) fn written_windows(
    weights: Weights,
    tokenizer: &Tokenizer,
    windows: [usize; 2],
    tokens: usize,
    seed: u64,
    on_event: &mut dyn FnMut(Event),
) -> Result<([Vec<Vec<u32>>; 2], Weights)> {
    let first_ids = ordinary_ids(tokenizer);
    let total = windows.iter().sum::<usize>() * tokens;
    if first_ids.is_empty() || total == 0 {
        return Ok(([Vec::new(), Vec::new()], weights));
    }
    let text_tokens = TEXT_TOKENS.min(tokens);
    let device = open_device(DeviceChoice::Cpu)?;
    let model = LoadedModel::load(weights, text_tokens, Execution::Packed, device, &mut |_| ())?;
    let mut random = SplitMix64::new(seed, u64::MAX);
    let mut sampler = Sampler::new(Sampling {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        seed,
    });
    let mut done = 0;
    let mut tick = phase(on_event, "write text", "tokens");
    let mut write = |windows: usize| -> Result<Vec<Vec<u32>>> {
        let len = windows * tokens;
        let mut all = Vec::with_capacity(len);
        while all.len() < len {
            let count = ABREAST.min((len - all.len()).div_ceil(text_tokens));
            let mut ids: Vec<u32> = (0..count)
                .map(|_| first_ids[random.below(first_ids.len())])
                .collect();
            let mut some = vec![Vec::with_capacity(text_tokens); count];
            let mut cache = model.cache();
            loop {
                some.iter_mut().zip(&ids).for_each(|(w, id)| w.push(*id));
                tick(
                    (done + all.len() + count * some[0].len()) as u64,
                    total as u64,
                );
                if some[0].len() == text_tokens {
                    break;
                }
                let logits = model.next_logits_abreast(&ids, &mut cache)?;
                let each = logits.chunks(logits.len() / count);
                ids = each
                    .map(|logits| sampler.next(logits))
                    .collect::<Result<_>>()?;
            }
            all.extend(some.into_iter().flatten());
        }
        all.truncate(len);
        done += len;
        Ok(all.chunks(tokens).map(<[u32]>::to_vec).collect())
    };
    let [first, second] = windows;
    let windows = [write(first)?, write(second)?];
    drop(tick);
    Ok((windows, model.into_weights()))
}

/// Bytes that [`written_windows`] holds at most, roughly: all linears and the head as they are multiplied, the keys and values of
/// the texts that grow side by side, and their logits. Of the embedding only rows are read.
///
/// # Errors
/// A tensor that cannot be read.
pub(crate) fn writing_bytes(folder: &ModelFolder) -> Result<u64> {
    let config = folder.config();
    let own_head = folder.has(HEAD);
    let mut bytes = 0;
    for name in folder.names() {
        if name == EMBEDDING && own_head {
            continue;
        }
        let tensor = folder.tensor(name)?;
        let values = tensor.shape.iter().product::<usize>() as u64;
        // only bf16 matrices are multiplied as they are stored
        let as_stored = tensor.dtype == Dtype::BF16 && tensor.shape.len() == 2;
        bytes += values * if as_stored { 2 } else { 4 };
    }
    let keys_and_values = 2 * TEXT_TOKENS * config.num_key_value_heads * config.head_dim;
    let cache = config.num_hidden_layers * keys_and_values;
    // once more while the next token is drawn from them
    let logits = 2 * config.vocab_size;
    Ok(bytes + 4 * (ABREAST * (cache + logits)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against what a loaded model says of itself once its texts have grown.
    #[test]
    fn what_writing_holds_is_known_beforehand() {
        let folder = ModelFolder::embedded("tiny").unwrap();
        let (config, foretold) = (folder.config().clone(), writing_bytes(&folder).unwrap());
        let device = open_device(DeviceChoice::Cpu).unwrap();
        let weights = Weights::new(folder).unwrap();
        let execution = Execution::Packed;
        let model =
            LoadedModel::load(weights, TEXT_TOKENS, execution, device, &mut |_| ()).unwrap();
        let mut cache = model.cache();
        for id in 0..TEXT_TOKENS as u32 {
            model
                .next_logits_abreast(&[id; ABREAST], &mut cache)
                .unwrap();
        }
        let logits = 4 * (ABREAST * config.vocab_size) as u64;
        let held = model.bytes() + cache.bytes() + 2 * logits;
        assert!(
            held <= foretold && foretold < held + held / 50,
            "{held} of {foretold}"
        );
    }

    /// Against texts that grow one by one, each with a cache of its own; the last one is cut off.
    #[test]
    fn windows_are_texts_that_the_model_draws_one_after_another() {
        let folder = || ModelFolder::embedded("tiny").unwrap();
        let tokenizer = folder().tokenizer().unwrap();
        let load = || Weights::new(folder()).unwrap();
        let written = |windows: [usize; 2]| {
            let (windows, _) =
                written_windows(load(), &tokenizer, windows, 200, 3, &mut |_| ()).unwrap();
            windows
        };
        let [windows, none] = written([2, 0]);
        assert!(none.is_empty());
        let [same, others] = written([2, 3]);
        assert_eq!((same == windows, others.len()), (true, 3));
        assert!(others.iter().all(|w| w.len() == 200 && !same.contains(w)));
        assert_eq!(windows.iter().map(Vec::len).collect::<Vec<_>>(), [200, 200]);

        let device = open_device(DeviceChoice::Cpu).unwrap();
        let model =
            LoadedModel::load(load(), TEXT_TOKENS, Execution::Dense, device, &mut |_| ()).unwrap();
        let first_ids = ordinary_ids(&tokenizer);
        let mut random = SplitMix64::new(3, u64::MAX);
        let mut sampler = Sampler::new(Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            seed: 3,
        });
        let mut first = || vec![first_ids[random.below(first_ids.len())]];
        let mut texts: Vec<Vec<u32>> = (0..7).map(|_| first()).collect();
        let mut caches = vec![model.cache(); texts.len()];
        for _ in 1..TEXT_TOKENS {
            for (text, cache) in texts.iter_mut().zip(&mut caches) {
                let logits = model.next_logits(&text[text.len() - 1..], cache).unwrap();
                text.push(sampler.next(&logits).unwrap());
            }
        }
        assert_eq!(windows.concat(), texts.concat()[..400]);
    }
}
