//! Scoring a model, alone or against the float model it came from.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use halfbyte_evaluate::{
    Agreement, Continuation, Evaluation, GenerationCost, agreement, evaluate as score,
};
use halfbyte_model::{Decoder, Execution, open_device};
use tokenizers::Tokenizer;

use crate::config::{Device, Windows};
use crate::event::{Event, phase};
use crate::generate::{Engine, Prompts, Sampling, kept_dense_warning, plain_tokenizer};
use crate::open::{ScoredText, open_weights};
use crate::quantize::device_choice;
use crate::told;

/// What to score, on what.
#[derive(Clone, Debug)]
pub struct EvalRequest {
    /// A folder, a hub id, or `embedded:tiny`; float or quantized.
    pub model: String,
    /// The float model to measure the distance from.
    pub reference: Option<String>,
    /// The text: a file, or [`crate::config::EMBEDDED_EVALUATION`].
    pub text: PathBuf,
    /// Tokens a window.
    pub sequence_length: usize,
    /// Which windows.
    pub windows: Windows,
    /// Whether the model's codes are multiplied as they are, rather than the dense weights they stand for.
    pub packed: bool,
    /// A file of prompts, one a line, that both models go on from; the first tokens of some windows where not given.
    pub prompts: Option<PathBuf>,
    /// Tokens that both models give for each prompt; 0 leaves that out.
    pub max_new_tokens: usize,
    /// Where to compute.
    pub device: Device,
}

/// Prompts where none are given, and their tokens.
const PROMPTS: usize = 8;
const PROMPT_TOKENS: usize = 32;

/// Scores a model as asked.
pub fn evaluate(request: &EvalRequest, on_event: &mut dyn FnMut(Event)) -> Result<Evaluation> {
    let text = ScoredText::at(&request.text);
    text.check()?;
    let device = open_device(device_choice(request.device))?;
    let mut open = |source: &str| -> Result<Decoder> {
        Ok(Decoder::new(
            open_weights(source, on_event)?,
            device.clone(),
        ))
    };
    let mut model = open(&request.model)?;
    if request.packed {
        model = model.with_execution(Execution::Packed);
    }
    let reference = request.reference.as_deref().map(&mut open).transpose()?;
    let length = told::of_length(
        model.weights().config(),
        "--sequence-length",
        request.sequence_length,
    );
    if let Some(warning) = length {
        on_event(Event::Warning(warning));
    }
    let folder = model.weights().folder();
    let tokenizer = folder.tokenizer()?;
    let text = text.windows(
        folder,
        &tokenizer,
        request.sequence_length,
        &request.windows,
    )?;
    for warning in &text.warnings {
        on_event(Event::Warning(warning.clone()));
    }
    let comparison = match &reference {
        Some(reference) if request.max_new_tokens > 0 => Some(Comparison::plan(
            &model,
            reference,
            &text.windows,
            request,
            on_event,
        )?),
        _ => None,
    };
    let mut evaluation = scores(&model, reference.as_ref(), &text.windows, on_event)?;
    if let Some(warning) = kept_dense_warning(&evaluation.kept_dense) {
        on_event(Event::Warning(warning));
    }
    if let (Some(comparison), Some(reference)) = (comparison, reference) {
        let generation = comparison.run(model, reference, request.device, on_event)?;
        evaluation.generation = Some(generation);
    }
    Ok(evaluation)
}

/// What both models go on from, and how far.
struct Comparison {
    prompts: Prompts,
    max_new_tokens: usize,
}

impl Comparison {
    fn plan(
        model: &Decoder,
        reference: &Decoder,
        windows: &[Vec<u32>],
        request: &EvalRequest,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let positions = |decoder: &Decoder| decoder.weights().config().max_position_embeddings;
        let positions = positions(reference).min(positions(model));
        let prompts = match &request.prompts {
            Some(path) => Prompts::read(path, model.weights().folder(), &plain(model)?)?,
            None => Prompts::of_windows(windows, PROMPTS, PROMPT_TOKENS.min(positions / 2).max(1)),
        };
        let max_new_tokens = prompts.room(request.max_new_tokens, positions)?;
        if max_new_tokens < request.max_new_tokens {
            on_event(Event::Warning(format!(
                "max_new_tokens: {} asked for, {max_new_tokens} are left of the models' {positions} positions",
                request.max_new_tokens
            )));
        }
        Ok(Self {
            prompts,
            max_new_tokens,
        })
    }

    /// One model after the other, so that one of them is in memory at a time.
    fn run(
        &self,
        model: Decoder,
        reference: Decoder,
        device: Device,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Agreement> {
        let mut run = |decoder: Decoder| -> Result<(Vec<Continuation>, GenerationCost)> {
            let tokenizer = plain(&decoder)?;
            let positions = self.prompts.longest() + self.max_new_tokens;
            let weights = decoder.into_weights();
            let engine = Engine::load(weights, tokenizer, positions, device, on_event)?;
            continuations(&engine, &self.prompts.ids, self.max_new_tokens, on_event)
        };
        let (float, cost_float) = run(reference)?;
        let (ours, cost) = run(model)?;
        let pairs: Vec<_> = float.into_iter().zip(ours).collect();
        Ok(agreement(&pairs, self.max_new_tokens, cost_float, cost))
    }
}

fn continuations(
    engine: &Engine,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    on_event: &mut dyn FnMut(Event),
) -> Result<(Vec<Continuation>, GenerationCost)> {
    let mut tick = phase(on_event, "generate", "prompts");
    let mut cost = GenerationCost::default();
    let (mut all, mut tokens, mut seconds) = (Vec::new(), 0.0, 0.0);
    for (index, prompt) in prompts.iter().enumerate() {
        let mut on_token = |_| Ok(ControlFlow::Continue(()));
        let done = engine.complete(prompt, max_new_tokens, Sampling::GREEDY, &mut on_token)?;
        tokens += done.cost.tokens_per_second * done.cost.decode_seconds;
        seconds += done.cost.decode_seconds;
        cost.weight_bytes = done.cost.weight_bytes;
        cost.cache_bytes = cost.cache_bytes.max(done.cost.cache_bytes);
        all.push(Continuation {
            text: engine.text(&done.tokens)?,
            tokens: done.tokens,
        });
        tick(index as u64 + 1, prompts.len() as u64);
    }
    if seconds > 0.0 {
        cost.tokens_per_second = tokens / seconds;
    }
    Ok((all, cost))
}

fn plain(decoder: &Decoder) -> Result<Tokenizer> {
    plain_tokenizer(decoder.weights().folder())
}

/// Scores with progress.
pub(crate) fn scores(
    model: &Decoder,
    reference: Option<&Decoder>,
    windows: &[Vec<u32>],
    on_event: &mut dyn FnMut(Event),
) -> Result<Evaluation> {
    let mut tick = phase(on_event, "evaluate", "steps");
    Ok(score(model, reference, windows, &mut tick)?)
}
