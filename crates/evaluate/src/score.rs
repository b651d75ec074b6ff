use burn::prelude::*;
use halfbyte_model::{Decoder, ModelError, values};
use rayon::prelude::*;
use serde::Serialize;

use crate::divergence::{TokenScore, compare, score};

/// Tokens whose logits exist at once.
const LOGIT_ROWS: usize = 128;

/// A model's scores; natural logarithms, standard errors over windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Windows scored.
    pub windows: usize,
    /// Tokens predicted: all but the first of every window.
    pub tokens: usize,
    /// `exp` of the mean negative log likelihood: the protocol of GPTQ (arXiv 2210.17323, section 4), windows
    /// without overlap.
    pub perplexity: f64,
    /// Standard error of `perplexity`.
    pub perplexity_se: f64,
    /// What the reference adds, where there is one.
    pub against: Option<Against>,
}

/// A model's distance from a reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Against {
    /// The reference's own perplexity.
    pub perplexity_float: f64,
    /// Its standard error.
    pub perplexity_float_se: f64,
    /// Mean of ln(perplexity / perplexity_float), and its standard error, paired by window.
    pub ln_ratio: f64,
    /// Standard error of `ln_ratio`.
    pub ln_ratio_se: f64,
    /// Mean over tokens of KL(float || model), in nats.
    pub kl_mean: f64,
    /// Standard error of `kl_mean`.
    pub kl_mean_se: f64,
    /// Median over tokens.
    pub kl_median: f64,
    /// 99th percentile over tokens.
    pub kl_p99: f64,
    /// Largest over tokens.
    pub kl_max: f64,
    /// Share of tokens where both models find the same next token likeliest.
    pub top1_agreement: f64,
    /// Standard error of `top1_agreement`.
    pub top1_agreement_se: f64,
}

/// Why nothing could be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The model's fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Two models that do not speak the same tokens.
    #[error(
        "the reference has a vocabulary of {reference} tokens and the model one of {model}; they cannot be compared"
    )]
    Vocabulary {
        /// The reference's.
        reference: usize,
        /// The model's.
        model: usize,
    },
    /// There is nothing to predict.
    #[error("evaluation: no window of at least 2 tokens")]
    NoWindows,
    /// A logit is not finite.
    #[error("evaluation: a logit of window {window} is not finite; the model overflows")]
    NotFinite {
        /// Which window.
        window: usize,
    },
}

/// Scores `model` on windows of token ids of equal length, against `reference` where one is given. `tick` hears how
/// many units of work of how many are done.
pub fn evaluate(
    model: &Decoder,
    reference: Option<&Decoder>,
    windows: &[Vec<u32>],
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Evaluation, EvaluateError> {
    if windows.first().is_none_or(|w| w.len() < 2) {
        return Err(EvaluateError::NoWindows);
    }
    let vocab = |d: &Decoder| d.weights().config().vocab_size;
    if let Some(reference) = reference
        && vocab(reference) != vocab(model)
    {
        return Err(EvaluateError::Vocabulary {
            reference: vocab(reference),
            model: vocab(model),
        });
    }
    let total =
        (windows.len() * (model.n_blocks() + reference.map_or(0, Decoder::n_blocks) + 2)) as u64;
    let mut done = 0;
    let mut step = |units: u64| {
        done += units;
        tick(done, total);
    };
    let judged = last_streams(model, windows, &mut step)?;
    let reference = match reference {
        Some(reference) => Some((reference, last_streams(reference, windows, &mut step)?)),
        None => None,
    };
    let mut scores = Vec::with_capacity(windows.len());
    let head = model.head()?;
    let reference_head = match &reference {
        Some((reference, _)) => Some(reference.head()?),
        None => None,
    };
    let vocab = vocab(model);
    for (index, ids) in windows.iter().enumerate() {
        let mut window = Vec::with_capacity(ids.len() - 1);
        for start in (0..ids.len() - 1).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(ids.len() - 1 - start);
            let logits = |stream: &[f32], decoder: &Decoder, head: &halfbyte_model::Head| {
                let hidden = decoder.weights().config().hidden_size;
                let h = stream[start * hidden..(start + rows) * hidden].to_vec();
                let h =
                    Tensor::<2>::from_data(TensorData::new(h, [rows, hidden]), decoder.device());
                values(head.forward(h))
            };
            let targets = &ids[start + 1..start + 1 + rows];
            let q = logits(&judged[index], model, &head)?;
            let p = match (&reference, &reference_head) {
                (Some((decoder, streams)), Some(head)) => {
                    Some(logits(&streams[index], decoder, head)?)
                }
                _ => None,
            };
            if q.iter().chain(p.iter().flatten()).any(|x| !x.is_finite()) {
                return Err(EvaluateError::NotFinite { window: index });
            }
            let part: Vec<TokenScore> = (0..rows)
                .into_par_iter()
                .map(|row| {
                    let (range, target) = (row * vocab..(row + 1) * vocab, targets[row] as usize);
                    match &p {
                        Some(p) => compare(&p[range.clone()], &q[range], target),
                        None => {
                            let nll = score(&q[range], target);
                            TokenScore {
                                nll_reference: nll,
                                nll,
                                kl: 0.0,
                                same_top: true,
                            }
                        }
                    }
                })
                .collect();
            window.extend(part);
        }
        scores.push(window);
        step(2);
    }
    Ok(summarize(&scores, reference.is_some()))
}

/// The residual stream after the last block, one `[tokens, hidden_size]` a window.
fn last_streams(
    decoder: &Decoder,
    windows: &[Vec<u32>],
    step: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<f32>>, EvaluateError> {
    let hidden = decoder.weights().config().hidden_size;
    let mut streams = windows
        .iter()
        .map(|w| decoder.embed(w))
        .collect::<Result<Vec<_>, _>>()?;
    for index in 0..decoder.n_blocks() {
        let block = decoder.block(index, windows[0].len())?;
        decoder.release_block(index);
        for stream in &mut streams {
            let tokens = stream.len() / hidden;
            let h = TensorData::new(std::mem::take(stream), [1, tokens, hidden]);
            *stream = values(block.forward(Tensor::<3>::from_data(h, decoder.device())))?;
            step(1);
        }
    }
    Ok(streams)
}

fn summarize(scores: &[Vec<TokenScore>], against: bool) -> Evaluation {
    let per_window = |f: &dyn Fn(&TokenScore) -> f64| {
        let means: Vec<f64> = scores
            .iter()
            .map(|window| window.iter().map(f).sum::<f64>() / window.len() as f64)
            .collect();
        mean_and_error(&means)
    };
    let (nll, nll_se) = per_window(&|s| s.nll);
    let against = against.then(|| {
        let (nll_float, nll_float_se) = per_window(&|s| s.nll_reference);
        let (ln_ratio, ln_ratio_se) = per_window(&|s| s.nll - s.nll_reference);
        let (kl_mean, kl_mean_se) = per_window(&|s| s.kl);
        let (top1_agreement, top1_agreement_se) = per_window(&|s| f64::from(u8::from(s.same_top)));
        let mut kl: Vec<f64> = scores.iter().flatten().map(|s| s.kl).collect();
        kl.sort_by(f64::total_cmp);
        let quantile = |share: f64| kl[((kl.len() - 1) as f64 * share).round() as usize];
        Against {
            perplexity_float: nll_float.exp(),
            perplexity_float_se: nll_float.exp() * nll_float_se,
            ln_ratio,
            ln_ratio_se,
            kl_mean,
            kl_mean_se,
            kl_median: quantile(0.5),
            kl_p99: quantile(0.99),
            kl_max: quantile(1.0),
            top1_agreement,
            top1_agreement_se,
        }
    });
    Evaluation {
        windows: scores.len(),
        tokens: scores.iter().map(Vec::len).sum(),
        perplexity: nll.exp(),
        perplexity_se: nll.exp() * nll_se,
        against,
    }
}

/// The mean of windows of equal length and its standard error; 0 for a single window, where there is none.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(nll_reference: f64, nll: f64, kl: f64, same_top: bool) -> TokenScore {
        TokenScore {
            nll_reference,
            nll,
            kl,
            same_top,
        }
    }

    #[test]
    fn summaries_match_numbers_worked_by_hand() {
        let scores = [
            vec![token(1.0, 2.0, 0.5, true), token(3.0, 4.0, 1.5, false)],
            vec![token(1.0, 1.0, 0.0, true), token(1.0, 1.0, 0.0, true)],
        ];
        let found = summarize(&scores, true);
        assert!((found.perplexity - 2.0f64.exp()).abs() < 1e-12);
        assert!((found.perplexity_se - 2.0f64.exp() * 1.0).abs() < 1e-12);
        let against = found.against.unwrap();
        assert!((against.perplexity_float - 1.5f64.exp()).abs() < 1e-12);
        assert_eq!(
            (against.kl_mean, against.kl_max, against.top1_agreement),
            (0.5, 1.5, 0.75)
        );
        assert!(
            (against.ln_ratio - 0.5).abs() < 1e-12 && (against.ln_ratio_se - 0.5).abs() < 1e-12
        );
    }
}
