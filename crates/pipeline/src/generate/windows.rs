use anyhow::{Context, Result};
use halfbyte_calibrate::text::{SplitMix64, ordinary_ids};
use halfbyte_model::{DeviceChoice, Execution, LoadedModel, Weights, open_device};
use tokenizers::Tokenizer;

use super::Sampling;
use super::sampling::Sampler;
use crate::config::Calibration;
use crate::event::{Event, phase};

/// Windows that grow side by side: a pass over the weights serves all of them, and each has keys and values of its own.
const ABREAST: usize = 16;

/// Windows of text that a float model writes: each begins with an id drawn evenly from the vocabulary, special tokens aside,
/// and goes on with what the model itself draws, as it is (temperature 1). So the statistics know what the model was made
/// from, of whatever kind the user's text is (LLM-QAT, Liu et al., arXiv 2305.17888, trains on such text). On the CPU whatever
/// device the run has, so that the same run has the same windows. Gives the weights back.
///
/// # Errors
/// Tensors that are missing or damaged, and a model that overflows.
pub(crate) fn written_windows(
    weights: Weights,
    tokenizer: &Tokenizer,
    calibration: &Calibration,
    on_event: &mut dyn FnMut(Event),
) -> Result<(Vec<Vec<u32>>, Weights)> {
    let first_ids = ordinary_ids(tokenizer);
    let (windows, tokens) = (calibration.generated_samples, calibration.sequence_length);
    if first_ids.is_empty() || windows == 0 {
        return Ok((Vec::new(), weights));
    }
    let device = open_device(DeviceChoice::Cpu)?;
    let model = LoadedModel::load(weights, tokens, Execution::Packed, device, &mut |_| ())
        .context("calibration.generated_samples")?;
    let mut random = SplitMix64::new(calibration.seed, u64::MAX);
    let mut sampler = Sampler::new(Sampling {
        temperature: 1.0,
        top_p: 1.0,
        seed: calibration.seed,
    });
    let mut all: Vec<Vec<u32>> = Vec::with_capacity(windows);
    let mut tick = phase(on_event, "write text", "tokens");
    while all.len() < windows {
        let count = ABREAST.min(windows - all.len());
        let (done, total) = (all.len() * tokens, (windows * tokens) as u64);
        let mut ids: Vec<u32> = (0..count)
            .map(|_| first_ids[random.below(first_ids.len())])
            .collect();
        let mut some = vec![Vec::with_capacity(tokens); count];
        let mut cache = model.cache();
        loop {
            some.iter_mut().zip(&ids).for_each(|(w, id)| w.push(*id));
            tick((done + count * some[0].len()) as u64, total);
            if some[0].len() == tokens {
                break;
            }
            let logits = model.next_logits_abreast(&ids, &mut cache)?;
            let each = logits.chunks(logits.len() / count);
            ids = each
                .map(|logits| sampler.next(logits))
                .collect::<Result<_>>()?;
        }
        all.extend(some);
    }
    drop(tick);
    Ok((all, model.into_weights()))
}
