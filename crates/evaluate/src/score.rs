use std::ops::Range;

use burn::prelude::*;
use halfbyte_model::{Block, Decoder, Execution, Head, LinearKind, ModelError, values};
use rayon::prelude::*;
use serde::Serialize;

use crate::Agreement;
use crate::divergence::{TokenScore, compare, score};

/// Tokens whose logits exist at once.
const LOGIT_ROWS: usize = 128;
/// Tokens told one by one.
const WORST_TOKENS: usize = 20;

/// A model's scores; natural logarithms, standard errors over windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Windows scored.
    pub windows: usize,
    /// Tokens predicted: all but the first of every window.
    pub tokens: usize,
    /// Tokens in the vocabulary: whoever guesses evenly has a perplexity of so many.
    pub vocab_size: usize,
    /// `exp` of the mean negative log likelihood: the protocol of GPTQ (arXiv 2210.17323, section 4), windows
    /// without overlap.
    pub perplexity: f64,
    /// Standard error of `perplexity`.
    pub perplexity_se: f64,
    /// What the reference adds, where there is one.
    pub against: Option<Against>,
    /// How far the two generate the same, where that was asked for.
    pub generation: Option<Agreement>,
    /// Whether the model's codes were multiplied as they are.
    pub packed: bool,
    /// Of these, linears that no kernel takes.
    pub kept_dense: Vec<KeptDense>,
}

/// A linear that the checkpoint has as codes and that was multiplied dense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptDense {
    /// Its module path.
    pub linear: String,
    /// Why.
    pub reason: String,
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
    /// How far the residual stream has drifted after each block: the mean over tokens of `‖h - ĥ‖² / ‖h‖²`, h the
    /// reference's. A mean over tokens, since a few tokens of huge norm would decide a quotient of sums. Empty where
    /// the two models are not of one shape.
    pub stream_error: Vec<f64>,
    /// The tokens of largest KL, largest first.
    pub worst_tokens: Vec<WorstToken>,
}

/// A token on which the two models differ much.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorstToken {
    /// Which of the windows.
    pub window: usize,
    /// Index in the window of the token predicted.
    pub position: usize,
    /// KL(float || model) of the prediction.
    pub kl: f64,
    /// `-ln p` of the token that stands there, by the reference.
    pub nll_reference: f64,
    /// The same by the model.
    pub nll: f64,
    /// The token the reference finds likeliest.
    pub top_reference: usize,
    /// The token the model finds likeliest.
    pub top: usize,
}

/// Why nothing could be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The model's fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A block could not be had from where the caller keeps it.
    #[error("block {index}")]
    Block {
        /// Which block.
        index: usize,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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

/// Gives a block by its index, ready for windows of so many tokens.
pub type LoadBlock<'a> = dyn Fn(usize, usize) -> Result<Block, EvaluateError> + 'a;

/// A model to score: a decoder, and its blocks, which may be others than those that the decoder reads.
#[derive(Clone, Copy)]
pub struct Judged<'a> {
    /// Embedding, head and shape.
    pub decoder: &'a Decoder,
    /// The blocks.
    pub block: &'a LoadBlock<'a>,
}

/// Scores `model` on windows of token ids of equal length, against `reference` where one is given. `tick` hears how
/// many units of work of how many are done.
pub fn evaluate(
    model: &Decoder,
    reference: Option<&Decoder>,
    windows: &[Vec<u32>],
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Evaluation, EvaluateError> {
    check(model, reference, windows)?;
    let block = own_blocks(model);
    let mut judged = Streams::embed(
        Judged {
            decoder: model,
            block: &block,
        },
        windows,
    )?;
    let float_block = reference.map(own_blocks);
    let mut float = match (reference, &float_block) {
        (Some(decoder), Some(block)) => Some(Streams::embed(Judged { decoder, block }, windows)?),
        _ => None,
    };
    let of_reference = reference.map_or(0, Decoder::n_blocks);
    let mut step = steps(windows, model.n_blocks() + 1 + of_reference, tick);
    let mut stream_errors = Vec::new();
    for index in 0..of_reference.max(model.n_blocks()) {
        judged.advance(index, &mut step)?;
        if let Some(float) = &mut float {
            float.advance(index, &mut step)?;
            if float.shape() == judged.shape() {
                stream_errors.push(float.distance(&judged));
            }
        }
    }
    let float = match float {
        Some(streams) => Some(Walked::new(streams)?),
        None => None,
    };
    judge(judged, float.as_ref(), stream_errors, windows, &mut step)
}

/// A reference that has walked over its windows, to score one model after another against.
pub struct Walked<'a> {
    streams: Streams<'a>,
    head: Head,
}

impl<'a> Walked<'a> {
    fn new(streams: Streams<'a>) -> Result<Self, EvaluateError> {
        let head = streams.model.decoder.head()?;
        Ok(Self { streams, head })
    }
}

/// Takes a reference through its blocks once, for any number of [`evaluate_against`]. Kept are its last residual streams, in
/// f32.
///
/// # Errors
/// As [`evaluate`].
pub fn walk<'a>(
    reference: Judged<'a>,
    windows: &[Vec<u32>],
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Walked<'a>, EvaluateError> {
    check(reference.decoder, None, windows)?;
    let mut streams = Streams::embed(reference, windows)?;
    let mut step = steps(windows, reference.decoder.n_blocks(), tick);
    for index in 0..reference.decoder.n_blocks() {
        streams.advance(index, &mut step)?;
    }
    Walked::new(streams)
}

/// Scores `model` on the windows that `reference` has walked over; how far their streams are apart after each block is left
/// out.
///
/// # Errors
/// As [`evaluate`], and whatever the model's blocks fail with.
pub fn evaluate_against(
    model: Judged<'_>,
    reference: &Walked<'_>,
    windows: &[Vec<u32>],
    tick: &mut dyn FnMut(u64, u64),
) -> Result<Evaluation, EvaluateError> {
    check(
        model.decoder,
        Some(reference.streams.model.decoder),
        windows,
    )?;
    let mut judged = Streams::embed(model, windows)?;
    let mut step = steps(windows, model.decoder.n_blocks() + 1, tick);
    for index in 0..model.decoder.n_blocks() {
        judged.advance(index, &mut step)?;
    }
    judge(judged, Some(reference), Vec::new(), windows, &mut step)
}

/// Refuses what cannot be scored.
fn check(
    model: &Decoder,
    reference: Option<&Decoder>,
    windows: &[Vec<u32>],
) -> Result<(), EvaluateError> {
    if windows.first().is_none_or(|w| w.len() < 2) {
        return Err(EvaluateError::NoWindows);
    }
    let vocab = |d: &Decoder| d.weights().config().vocab_size;
    match reference {
        Some(reference) if vocab(reference) != vocab(model) => Err(EvaluateError::Vocabulary {
            reference: vocab(reference),
            model: vocab(model),
        }),
        _ => Ok(()),
    }
}

/// The blocks that a decoder itself has.
pub fn own_blocks(
    decoder: &Decoder,
) -> impl Fn(usize, usize) -> Result<Block, EvaluateError> + use<'_> {
    |index, tokens| Ok(decoder.block(index, tokens)?)
}

/// Counts windows through so many blocks and heads.
fn steps(windows: &[Vec<u32>], units: usize, tick: &mut dyn FnMut(u64, u64)) -> impl FnMut(u64) {
    let total = (windows.len() * units) as u64;
    let mut done = 0;
    move |units| {
        done += units;
        tick(done, total);
    }
}

/// Scores what a model predicts at the end of its blocks.
fn judge(
    judged: Streams<'_>,
    float: Option<&Walked<'_>>,
    stream_errors: Vec<f64>,
    windows: &[Vec<u32>],
    step: &mut dyn FnMut(u64),
) -> Result<Evaluation, EvaluateError> {
    let decoder = judged.model.decoder;
    // A model beside itself has its head in memory once.
    let same = float.filter(|float| std::ptr::eq(float.streams.model.decoder, decoder));
    let head = match same {
        Some(float) => float.head.clone(),
        None => decoder.head()?,
    };
    let mut scores = Vec::with_capacity(windows.len());
    for (index, ids) in windows.iter().enumerate() {
        let mut window = Vec::with_capacity(ids.len() - 1);
        for start in (0..ids.len() - 1).step_by(LOGIT_ROWS) {
            let rows = start..(start + LOGIT_ROWS).min(ids.len() - 1);
            let targets = &ids[start + 1..rows.end + 1];
            let p = match float {
                Some(Walked { streams, head }) => {
                    Some(streams.logits(head, index, rows.clone())?)
                }
                None => None,
            };
            let q = judged.logits(&head, index, rows)?;
            window.extend(compare_rows(p.as_deref(), &q, targets));
        }
        scores.push(window);
        step(1);
    }
    let mut evaluation = summarize(&scores, float.map(|_| stream_errors));
    evaluation.vocab_size = decoder.weights().config().vocab_size;
    evaluation.packed = decoder.execution() == Execution::Packed;
    evaluation.kept_dense = judged.kept_dense;
    Ok(evaluation)
}

/// Every row's score: of `q`, `[rows, vocab_size]`, against `p` where there is one.
fn compare_rows(p: Option<&[f32]>, q: &[f32], targets: &[u32]) -> Vec<TokenScore> {
    let vocab = q.len() / targets.len();
    (0..targets.len())
        .into_par_iter()
        .map(|row| {
            let (range, target) = (row * vocab..(row + 1) * vocab, targets[row] as usize);
            match p {
                Some(p) => compare(&p[range.clone()], &q[range], target),
                None => {
                    let nll = score(&q[range], target);
                    TokenScore {
                        nll_reference: nll,
                        nll,
                        kl: 0.0,
                        top_reference: 0,
                        top: 0,
                    }
                }
            }
        })
        .collect()
}

/// A model's residual streams on their way through its blocks, one `[tokens, hidden_size]` a window.
struct Streams<'a> {
    model: Judged<'a>,
    windows: Vec<Vec<f32>>,
    tokens: usize,
    kept_dense: Vec<KeptDense>,
}

impl<'a> Streams<'a> {
    fn embed(model: Judged<'a>, windows: &[Vec<u32>]) -> Result<Self, EvaluateError> {
        Ok(Self {
            model,
            tokens: windows[0].len(),
            kept_dense: Vec::new(),
            windows: windows
                .iter()
                .map(|window| model.decoder.embed(window))
                .collect::<Result<_, _>>()?,
        })
    }

    fn hidden_size(&self) -> usize {
        self.model.decoder.weights().config().hidden_size
    }

    fn shape(&self) -> (usize, usize) {
        (self.model.decoder.n_blocks(), self.hidden_size())
    }

    /// Through block `index`, where there is one.
    fn advance(&mut self, index: usize, step: &mut dyn FnMut(u64)) -> Result<(), EvaluateError> {
        let Judged { decoder, block } = self.model;
        if index >= decoder.n_blocks() {
            return Ok(());
        }
        let hidden = self.hidden_size();
        let block = block(index, self.tokens)?;
        decoder.release_block(index);
        let kept = LinearKind::ALL.into_iter().filter_map(|kind| {
            Some(KeptDense {
                linear: kind.module(index),
                reason: block.linears.get(kind).kept_dense()?.to_owned(),
            })
        });
        self.kept_dense.extend(kept);
        for stream in &mut self.windows {
            let tokens = stream.len() / hidden;
            let h = TensorData::new(std::mem::take(stream), [1, tokens, hidden]);
            *stream = values(block.forward(Tensor::<3>::from_data(h, decoder.device())))?;
            step(1);
        }
        Ok(())
    }

    /// What the head makes of some tokens of a window, `[tokens, vocab_size]`.
    fn logits(
        &self,
        head: &Head,
        window: usize,
        tokens: Range<usize>,
    ) -> Result<Vec<f32>, EvaluateError> {
        let hidden = self.hidden_size();
        let h = self.windows[window][tokens.start * hidden..tokens.end * hidden].to_vec();
        let h = TensorData::new(h, [tokens.len(), hidden]);
        let h = Tensor::<2>::from_data(h, self.model.decoder.device());
        let logits = values(head.forward(h))?;
        match logits.iter().all(|x| x.is_finite()) {
            true => Ok(logits),
            false => Err(EvaluateError::NotFinite { window }),
        }
    }

    /// The mean over tokens of `‖h - ĥ‖² / ‖h‖²`, h our own.
    fn distance(&self, other: &Self) -> f64 {
        let hidden = self.hidden_size();
        let windows = self.windows.par_iter().zip(&other.windows);
        let sums: Vec<f64> = windows
            .map(|(ours, theirs)| {
                let tokens = ours.chunks_exact(hidden).zip(theirs.chunks_exact(hidden));
                tokens.map(|(h, other)| relative_distance(h, other)).sum()
            })
            .collect();
        sums.iter().sum::<f64>() / (self.windows.len() * self.tokens) as f64
    }
}

/// `‖h - other‖² / ‖h‖²`; 0 where both are zero.
fn relative_distance(h: &[f32], other: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let lost: f64 = h.iter().zip(other).map(|(a, b)| square(a - b)).sum();
    let whole: f64 = h.iter().map(|x| square(*x)).sum();
    if lost == 0.0 { 0.0 } else { lost / whole }
}

/// `stream_error` is there where there was a reference.
fn summarize(scores: &[Vec<TokenScore>], stream_error: Option<Vec<f64>>) -> Evaluation {
    let per_window = |f: &dyn Fn(&TokenScore) -> f64| {
        let means: Vec<f64> = scores
            .iter()
            .map(|window| window.iter().map(f).sum::<f64>() / window.len() as f64)
            .collect();
        mean_and_error(&means)
    };
    let (nll, nll_se) = per_window(&|s| s.nll);
    let against = stream_error.map(|stream_error| {
        let (nll_float, nll_float_se) = per_window(&|s| s.nll_reference);
        let (ln_ratio, ln_ratio_se) = per_window(&|s| s.nll - s.nll_reference);
        let (kl_mean, kl_mean_se) = per_window(&|s| s.kl);
        let (top1_agreement, top1_agreement_se) =
            per_window(&|s| f64::from(u8::from(s.same_top())));
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
            stream_error,
            worst_tokens: worst_tokens(scores),
        }
    });
    Evaluation {
        windows: scores.len(),
        tokens: scores.iter().map(Vec::len).sum(),
        vocab_size: 0,
        perplexity: nll.exp(),
        perplexity_se: nll.exp() * nll_se,
        against,
        generation: None,
        packed: false,
        kept_dense: Vec::new(),
    }
}

fn worst_tokens(scores: &[Vec<TokenScore>]) -> Vec<WorstToken> {
    let mut all: Vec<WorstToken> = scores
        .iter()
        .enumerate()
        .flat_map(|(window, scores)| {
            scores.iter().enumerate().map(move |(row, s)| WorstToken {
                window,
                position: row + 1,
                kl: s.kl,
                nll_reference: s.nll_reference,
                nll: s.nll,
                top_reference: s.top_reference,
                top: s.top,
            })
        })
        .collect();
    // Stable, so that ties stay in the order of the text.
    all.sort_by(|a, b| b.kl.total_cmp(&a.kl));
    all.truncate(WORST_TOKENS);
    all
}

/// The mean of windows of equal length, or of prompts, and its standard error; 0 for a single one, where there is none.
pub(crate) fn mean_and_error(values: &[f64]) -> (f64, f64) {
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
            top_reference: 7,
            top: if same_top { 7 } else { 8 },
        }
    }

    #[test]
    fn summaries_match_numbers_worked_by_hand() {
        let scores = [
            vec![token(1.0, 2.0, 0.5, true), token(3.0, 4.0, 1.5, false)],
            vec![token(1.0, 1.0, 0.0, true), token(1.0, 1.0, 0.0, true)],
        ];
        let found = summarize(&scores, Some(vec![0.25]));
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
        assert_eq!(against.stream_error, [0.25]);
        let worst = &against.worst_tokens;
        let places: Vec<_> = worst.iter().map(|t| (t.window, t.position)).collect();
        assert_eq!(places, [(0, 2), (0, 1), (1, 1), (1, 2)]);
        assert_eq!((worst[0].kl, worst[0].nll, worst[0].top), (1.5, 4.0, 8));
    }

    #[test]
    fn only_the_worst_tokens_are_kept() {
        let window: Vec<_> = (0..50)
            .map(|kl| token(1.0, 1.0, f64::from(kl), true))
            .collect();
        let worst = worst_tokens(&[window]);
        assert_eq!(worst.len(), WORST_TOKENS);
        assert_eq!((worst[0].position, worst[19].position), (50, 31));
    }

    #[test]
    fn drift_is_relative_to_the_reference() {
        assert_eq!(relative_distance(&[3.0, 4.0], &[3.0, 3.0]), 0.04);
        assert_eq!(relative_distance(&[0.0], &[0.0]), 0.0);
    }
}
