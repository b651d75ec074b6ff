use anyhow::Result;
use halfbyte_calibrate::text::{SplitMix64, ordinary_ids};
use halfbyte_model::{DeviceChoice, Execution, LoadedModel, Weights, open_device};
use tokenizers::Tokenizer;

use super::Sampling;
use super::sampling::Sampler;
use crate::event::{Event, phase};

/// Texts that grow side by side: a pass over the weights serves all of them, and each has keys and values of its own.
const ABREAST: usize = 32;
/// Tokens of a text, several of which fill a window: many short texts differ more than a few long ones; see results/LOG.md.
const TEXT_TOKENS: usize = 64;

/// So many windows of so many tokens that a float model writes: texts one after another, each of which begins with an id
/// drawn evenly from the vocabulary, special tokens aside, and goes on with what the model itself draws, as it is
/// (temperature 1). So the statistics know what the model was made from, of whatever kind the user's text is (LLM-QAT, Liu
/// et al., arXiv 2305.17888, trains on such text). On the CPU whatever device the run has, so that the same run has the same
/// windows. Gives the weights back.
///
/// # Errors
/// Tensors that are missing or damaged, and a model that overflows.
pub(crate) fn written_windows(
    weights: Weights,
    tokenizer: &Tokenizer,
    [windows, tokens]: [usize; 2],
    seed: u64,
    on_event: &mut dyn FnMut(Event),
) -> Result<(Vec<Vec<u32>>, Weights)> {
    let first_ids = ordinary_ids(tokenizer);
    if first_ids.is_empty() || windows == 0 {
        return Ok((Vec::new(), weights));
    }
    let text_tokens = TEXT_TOKENS.min(tokens);
    let device = open_device(DeviceChoice::Cpu)?;
    let model = LoadedModel::load(weights, text_tokens, Execution::Packed, device, &mut |_| ())?;
    let mut random = SplitMix64::new(seed, u64::MAX);
    let mut sampler = Sampler::new(Sampling {
        temperature: 1.0,
        top_p: 1.0,
        seed,
    });
    let total = windows * tokens;
    let mut all = Vec::with_capacity(total);
    let mut tick = phase(on_event, "write text", "tokens");
    while all.len() < total {
        let count = ABREAST.min((total - all.len()).div_ceil(text_tokens));
        let mut ids: Vec<u32> = (0..count)
            .map(|_| first_ids[random.below(first_ids.len())])
            .collect();
        let mut some = vec![Vec::with_capacity(text_tokens); count];
        let mut cache = model.cache();
        loop {
            some.iter_mut().zip(&ids).for_each(|(w, id)| w.push(*id));
            tick((all.len() + count * some[0].len()) as u64, total as u64);
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
    all.truncate(total);
    drop(tick);
    let windows = all.chunks(tokens).map(<[u32]>::to_vec).collect();
    Ok((windows, model.into_weights()))
}

#[cfg(test)]
mod tests {
    use halfbyte_checkpoint::ModelFolder;

    use super::*;

    /// Against texts that grow one by one, each with a cache of its own; the last one is cut off.
    #[test]
    fn windows_are_texts_that_the_model_draws_one_after_another() {
        let folder = || ModelFolder::embedded("tiny").unwrap();
        let tokenizer = folder().tokenizer().unwrap();
        let load = || Weights::new(folder()).unwrap();
        let (windows, _) = written_windows(load(), &tokenizer, [2, 200], 3, &mut |_| ()).unwrap();
        assert_eq!(windows.iter().map(Vec::len).collect::<Vec<_>>(), [200, 200]);

        let device = open_device(DeviceChoice::Cpu).unwrap();
        let model =
            LoadedModel::load(load(), TEXT_TOKENS, Execution::Dense, device, &mut |_| ()).unwrap();
        let first_ids = ordinary_ids(&tokenizer);
        let mut random = SplitMix64::new(3, u64::MAX);
        let mut sampler = Sampler::new(Sampling {
            temperature: 1.0,
            top_p: 1.0,
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
