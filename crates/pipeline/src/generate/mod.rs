//! Text from a model: prompt to token ids, one token after the other through a loaded model, ids to text.
//!
//! The decision: sampling, the chat template and the way from ids to text stand here and not in `model`, which knows
//! logits alone; the rejected alternative, a generator in `model`, would have it know tokenizers and templates.

mod chat;
mod defaults;
mod prompts;
mod sampling;
mod stop;
mod text;
mod windows;

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use halfbyte_calibrate::text::Message;
use halfbyte_evaluate::KeptDense;
use halfbyte_model::{Execution, LoadedModel, Weights, open_device};
use serde::Serialize;
use tokenizers::Tokenizer;

use crate::config::Device;
use crate::error::user_error;
use crate::event::{Event, phase};
use crate::open::{open_model, told_weights};
use crate::quantize::device_choice;
use crate::usage::usage;

pub(crate) use chat::{ChatTemplate, Today};
pub(crate) use prompts::{Prompts, plain_tokenizer};
use sampling::Sampler;
use text::TextStream;
pub(crate) use windows::{writing_bytes, written_windows};

/// How the next token is to be chosen; what is none is left to the model's generation_config.json, and without one it is
/// the likeliest token always.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingRequest {
    /// What logits are divided by; 0 takes the likeliest token always.
    pub temperature: Option<f64>,
    /// The share of probability that the likeliest tokens, and no others, must have to be drawn from; 1 allows all.
    pub top_p: Option<f64>,
    /// How many of the likeliest tokens are drawn from; 0 allows all.
    pub top_k: Option<usize>,
    /// Where the random numbers start.
    pub seed: u64,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the likeliest token always.
    pub temperature: f64,
    /// The share of probability that the likeliest tokens, and no others, must have to be drawn from; 1 allows all.
    pub top_p: f64,
    /// How many of the likeliest tokens are drawn from; 0 allows all.
    pub top_k: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: 0,
    };

    fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(user_error(
                format!("temperature: found {}, wanted 0 or above", self.temperature),
                "0 takes the likeliest token always, 1 draws from the model's own distribution",
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(user_error(
                format!("top_p: found {}, wanted above 0 and up to 1", self.top_p),
                "1 draws from all tokens, 0.9 from the likeliest that have 90 % of the probability",
            ));
        }
        Ok(())
    }
}

/// What to generate, by what.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// A folder, a hub id, or `embedded:tiny`; float or quantized.
    pub model: String,
    /// What the text begins with, or what the user says where there is a chat template.
    pub prompt: String,
    /// The prompt as it stands, even where the model has a chat template.
    pub raw: bool,
    /// Tokens after which to stop.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingRequest,
    /// Where to compute.
    pub device: Device,
}

/// A text and what it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// What follows the prompt.
    pub text: String,
    /// Its tokens, the one that ended it left out.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt, the template's included.
    pub prompt_tokens: usize,
    /// Whether the prompt went through the model's chat template.
    pub chat_template: bool,
    /// How tokens were chosen.
    pub sampling: Sampling,
    /// Why there is no more.
    pub stopped_by: StoppedBy,
    /// Speed and memory.
    pub cost: Cost,
    /// Linears of the blocks multiplied as codes.
    pub linears_packed: usize,
    /// Linears that the checkpoint has as codes and no kernel takes.
    pub kept_dense: Vec<KeptDense>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// The model gave one of its end tokens.
    EndToken,
    /// `max_new_tokens`, or the model's `max_position_embeddings`, is reached.
    Length,
    /// Nobody reads on.
    Reader,
}

/// Speed and memory of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Until the first token was chosen.
    pub prompt_seconds: f64,
    /// Tokens of the prompt over `prompt_seconds`.
    pub prompt_tokens_per_second: f64,
    /// For all tokens after the first.
    pub decode_seconds: f64,
    /// Those tokens over `decode_seconds`; 0 where there are none.
    pub tokens_per_second: f64,
    /// The blocks' linears and the head as they are held. Of an embedding of its own only rows are read from the file.
    pub weight_bytes: u64,
    /// Keys and values at the end.
    pub cache_bytes: u64,
    /// Peak memory of the process.
    pub memory_bytes_peak: u64,
}

/// A model loaded for one request.
#[derive(Debug)]
pub struct Generator {
    engine: Engine,
    prompt: Vec<u32>,
    chat_template: bool,
    max_new_tokens: usize,
    sampling: Sampling,
}

impl Generator {
    /// Checks the request and loads its model.
    ///
    /// # Errors
    /// The user's: sampling out of range, an empty prompt or one that the model's positions cannot hold, a model, tokenizer
    /// or chat template that cannot be read, a device that is not there or fails its test.
    pub fn load(request: &GenerateRequest, on_event: &mut dyn FnMut(Event)) -> Result<Self> {
        // as far as it is known before the model is
        let asked = request.sampling;
        Sampling {
            temperature: asked.temperature.unwrap_or(0.0),
            top_p: asked.top_p.unwrap_or(1.0),
            ..Sampling::GREEDY
        }
        .check()?;
        if request.prompt.is_empty() {
            return Err(user_error(
                "prompt: empty",
                "give some text after --prompt, such as --prompt \"Once upon a time\"",
            ));
        }
        let folder = open_model(&request.model, None, on_event)?;
        let sampling = defaults::sampling(&asked, &folder, on_event)?;
        if sampling.temperature == 0.0 {
            for (name, is_asked) in [
                ("top_p", asked.top_p.is_some_and(|p| p < 1.0)),
                ("top_k", asked.top_k.is_some_and(|k| k > 0)),
            ] {
                if is_asked {
                    on_event(Event::Warning(format!(
                        "{name} changes nothing at temperature 0, which takes the likeliest token always"
                    )));
                }
            }
        }
        let weights = told_weights(folder, &request.model, on_event)?;
        let tokenizer = plain_tokenizer(weights.folder())?;
        let template = match request.raw {
            true => None,
            false => ChatTemplate::of(weights.folder(), Today::Clock)?,
        };
        let prompt = match &template {
            Some(template) => {
                let said = Message {
                    role: "user".to_owned(),
                    content: request.prompt.clone(),
                };
                prompts::ids(&template.render(&[said], true)?, false, &tokenizer)?
            }
            None => prompts::opening(&request.prompt, weights.folder(), &tokenizer)?,
        };
        let positions = weights.config().max_position_embeddings;
        let max_new_tokens = prompts::room(prompt.len(), request.max_new_tokens, positions)?;
        if max_new_tokens < request.max_new_tokens {
            on_event(Event::Warning(format!(
                "max_new_tokens: {} asked for, {max_new_tokens} are left of the model's {positions} positions after a \
                 prompt of {} tokens",
                request.max_new_tokens,
                prompt.len()
            )));
        }
        let positions = prompt.len() + max_new_tokens;
        let engine = Engine::load(weights, tokenizer, positions, request.device, on_event)?;
        Ok(Self {
            engine,
            prompt,
            chat_template: template.is_some(),
            max_new_tokens,
            sampling,
        })
    }

    /// Generates; `on_text` hears every piece of text as soon as it is whole, and may stop it all.
    ///
    /// # Errors
    /// A device that fails, and a model that overflows.
    pub fn generate(
        &self,
        on_text: &mut (dyn FnMut(&str) -> ControlFlow<()> + Send),
    ) -> Result<Generation> {
        let mut stream = TextStream::new(&self.engine.tokenizer, &self.prompt);
        let mut text = String::new();
        let mut tell = |piece: String| {
            text.push_str(&piece);
            match piece.is_empty() {
                true => ControlFlow::Continue(()),
                false => on_text(&piece),
            }
        };
        let completion = self.engine.complete(
            &self.prompt,
            self.max_new_tokens,
            self.sampling,
            &mut |token| Ok(tell(stream.push(token)?)),
        )?;
        if completion.stopped_by != StoppedBy::Reader {
            // what is left of a character that never became whole
            let _ = tell(stream.finish()?);
        }
        Ok(Generation {
            text,
            tokens: completion.tokens,
            prompt_tokens: self.prompt.len(),
            chat_template: self.chat_template,
            sampling: self.sampling,
            stopped_by: completion.stopped_by,
            cost: completion.cost,
            linears_packed: self.engine.linears_packed(),
            kept_dense: self.engine.kept_dense(),
        })
    }
}

/// A loaded model with its tokenizer and the tokens it ends with.
#[derive(Debug)]
pub(crate) struct Engine {
    model: LoadedModel,
    tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
}

/// Tokens that a model gave.
pub(crate) struct Completion {
    pub(crate) tokens: Vec<u32>,
    pub(crate) stopped_by: StoppedBy,
    pub(crate) cost: Cost,
}

impl Engine {
    /// Loads all of a model; tells which of its codes no kernel takes.
    pub(crate) fn load(
        weights: Weights,
        tokenizer: Tokenizer,
        positions: usize,
        device: Device,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let end_tokens = stop::end_tokens(weights.folder())?;
        let device = open_device(device_choice(device))?;
        let total = weights.config().num_hidden_layers as u64;
        let mut tick = phase(on_event, "load", "blocks");
        let mut loaded = |blocks: usize| tick(blocks as u64, total);
        loaded(0);
        let model = LoadedModel::load(weights, positions, Execution::Packed, device, &mut loaded)?;
        drop(tick);
        let engine = Self {
            model,
            tokenizer,
            end_tokens,
        };
        if let Some(warning) = kept_dense_warning(&engine.kept_dense()) {
            on_event(Event::Warning(warning));
        }
        Ok(engine)
    }

    /// Gives up to `max_new_tokens` tokens after `prompt`, telling `on_token` of each but the one that ends the text.
    pub(crate) fn complete(
        &self,
        prompt: &[u32],
        max_new_tokens: usize,
        sampling: Sampling,
        on_token: &mut (dyn FnMut(u32) -> Result<ControlFlow<()>> + Send),
    ) -> Result<Completion> {
        // Inside the pool, where work too small to be shared costs no message to another thread.
        rayon::scope(|_| self.complete_here(prompt, max_new_tokens, sampling, on_token))
    }

    fn complete_here(
        &self,
        prompt: &[u32],
        max_new_tokens: usize,
        sampling: Sampling,
        on_token: &mut (dyn FnMut(u32) -> Result<ControlFlow<()>> + Send),
    ) -> Result<Completion> {
        let mut sampler = Sampler::new(sampling);
        let mut cache = self.model.cache();
        let mut tokens = Vec::new();
        let (start, mut first) = (Instant::now(), None);
        let mut next = prompt;
        let mut steps = 0;
        let stopped_by = loop {
            if tokens.len() == max_new_tokens {
                break StoppedBy::Length;
            }
            let logits = self.model.next_logits(next, &mut cache)?;
            let token = sampler.next(&logits)?;
            steps += 1;
            first.get_or_insert_with(Instant::now);
            if self.end_tokens.contains(&token) {
                break StoppedBy::EndToken;
            }
            tokens.push(token);
            if on_token(token)?.is_break() {
                break StoppedBy::Reader;
            }
            next = &tokens[tokens.len() - 1..];
        };
        let end = Instant::now();
        let first = first.unwrap_or(end);
        let (prompt_seconds, decode_seconds) =
            ((first - start).as_secs_f64(), (end - first).as_secs_f64());
        let speed = |tokens: usize, seconds: f64| match seconds > 0.0 {
            true => tokens as f64 / seconds,
            false => 0.0,
        };
        Ok(Completion {
            cost: Cost {
                prompt_seconds,
                prompt_tokens_per_second: speed(prompt.len(), prompt_seconds),
                decode_seconds,
                tokens_per_second: speed(usize::saturating_sub(steps, 1), decode_seconds),
                weight_bytes: self.model.bytes(),
                cache_bytes: cache.bytes(),
                memory_bytes_peak: usage().peak_rss_bytes,
            },
            tokens,
            stopped_by,
        })
    }

    /// The text that some tokens stand for, special tokens left out.
    pub(crate) fn text(&self, tokens: &[u32]) -> Result<String> {
        text::decode(&self.tokenizer, tokens)
    }

    fn linears_packed(&self) -> usize {
        let linears = self.model.linears();
        linears.filter(|(_, linear)| linear.is_packed()).count()
    }

    fn kept_dense(&self) -> Vec<KeptDense> {
        let linears = self.model.linears();
        let kept = linears.filter_map(|(name, linear)| {
            Some(KeptDense {
                reason: linear.kept_dense()?.to_owned(),
                linear: name,
            })
        });
        kept.collect()
    }
}

/// What is told of linears whose codes no kernel takes.
pub(crate) fn kept_dense_warning(kept: &[KeptDense]) -> Option<String> {
    let first = kept.first()?;
    Some(format!(
        "{} quantized linears are multiplied dense: {}: {}",
        kept.len(),
        first.linear,
        first.reason
    ))
}
