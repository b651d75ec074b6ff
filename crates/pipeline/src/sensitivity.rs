//! What each part of a quantized model costs by itself: the float model with that part alone put in, beside what its
//! linears' losses predict.
//!
//! Predicted is the sum over the part's linears of sensitivity times loss `tr(Δ H Δᵀ)`, both taken from the float model on the
//! very text that the parts are measured on. What the parts cost alone adds up to what the model costs as far as their
//! errors do not meet.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use halfbyte_calibrate::text::{Window, Windows};
use halfbyte_calibrate::{Walk, WalkOptions};
use halfbyte_evaluate::{
    EvaluateError, Evaluation, Judged, Walked, evaluate_against, own_blocks, walk,
};
use halfbyte_model::{Decoder, LinearKind, Weights, linear_shape, open_device};
use serde::Serialize;

use crate::budget::sense;
use crate::config::{self, Device};
use crate::error::user_error;
use crate::event::{Event, phase};
use crate::judge::Judge;
use crate::open::{ScoredText, open_weights};
use crate::quantize::device_choice;
use crate::recipe::MIXED_WINDOWS;
use crate::told;

/// What to take apart, and how.
#[derive(Clone, Debug)]
pub struct SensitivityRequest {
    /// The quantized model: a folder or a hub id.
    pub model: String,
    /// The float model it was made from.
    pub reference: String,
    /// The text.
    pub text: std::path::PathBuf,
    /// Tokens a window.
    pub sequence_length: usize,
    /// Which windows.
    pub windows: config::Windows,
    /// What makes a part.
    pub by: Parts,
    /// Where to compute.
    pub device: Device,
}

/// What makes a part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Parts {
    /// All linears of a name, such as every `q_proj`.
    Kind,
    /// All linears of a block.
    Block,
    /// Every linear by itself.
    Linear,
}

impl Parts {
    fn of(self, block: usize, kind: LinearKind) -> String {
        match self {
            Self::Kind => kind.short().to_owned(),
            Self::Block => format!("model.layers.{block}"),
            Self::Linear => kind.module(block),
        }
    }
}

/// What the parts of a model cost. KL divergences are in nats a token, standard errors over windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// What makes a part.
    pub by: Parts,
    /// Windows scored.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: usize,
    /// The parts in the model's order.
    pub parts: Vec<PartSensitivity>,
    /// All parts together: the quantized model.
    pub whole: PartSensitivity,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartSensitivity {
    /// Its name.
    pub part: String,
    /// Quantized linears in it.
    pub linears: usize,
    /// Their weights.
    pub weights: u64,
    /// Stored bits a weight.
    pub bits_per_weight: f64,
    /// KL expected.
    pub predicted_kl: f64,
    /// Mean KL measured with this part alone quantized.
    pub kl_mean: f64,
    /// Its standard error.
    pub kl_mean_se: f64,
}

/// A linear that is quantized.
struct Member {
    block: usize,
    kind: LinearKind,
    part: usize,
    weights: u64,
    bits: f64,
    predicted_kl: f64,
}

/// Measures every part of a model alone, and predicts it.
///
/// # Errors
/// Text that cannot be read, models that do not belong together, a model without quantized linears, and one whose norms
/// were changed along with its linears, so that no part of it can stand in the float model.
pub fn sensitivity(
    request: &SensitivityRequest,
    on_event: &mut dyn FnMut(Event),
) -> Result<Sensitivity> {
    let text = ScoredText::at(&request.text);
    text.check()?;
    let device = open_device(device_choice(request.device))?;
    let model = open_weights(&request.model, on_event)?;
    let float = open_weights(&request.reference, on_event)?;
    check_same(&model, &float)?;
    let length = told::of_length(float.config(), "--sequence-length", request.sequence_length);
    if let Some(warning) = length {
        on_event(Event::Warning(warning));
    }
    let folder = float.folder();
    let text = text.windows(
        folder,
        &folder.tokenizer()?,
        request.sequence_length,
        &request.windows,
    )?;
    for warning in &text.warnings {
        on_event(Event::Warning(warning.clone()));
    }
    let (mut members, names) = members(&model, request.by)?;
    let apart = Apart {
        model,
        float: Decoder::new(float, device),
    };
    apart.predict(&mut members, &text.windows, on_event)?;
    let scores = apart.measure(&members, names.len(), &text.windows, on_event)?;
    let (whole, alone) = scores.split_last().context("scores of the parts")?;
    let parts = names.iter().zip(alone).enumerate();
    let parts = parts.map(|(part, (name, score))| {
        summed(name, members.iter().filter(|m| m.part == part), score)
    });
    Ok(Sensitivity {
        by: request.by,
        windows: whole.windows,
        tokens: whole.tokens,
        parts: parts.collect(),
        whole: summed("all", members.iter(), whole),
    })
}

/// Adds up a part.
fn summed<'a>(
    name: &str,
    members: impl Iterator<Item = &'a Member>,
    score: &Evaluation,
) -> PartSensitivity {
    let mut part = PartSensitivity {
        part: name.to_owned(),
        linears: 0,
        weights: 0,
        bits_per_weight: 0.0,
        predicted_kl: 0.0,
        kl_mean: score.against.as_ref().map_or(0.0, |a| a.kl_mean),
        kl_mean_se: score.against.as_ref().map_or(0.0, |a| a.kl_mean_se),
    };
    for member in members {
        part.linears += 1;
        part.weights += member.weights;
        part.bits_per_weight += member.bits;
        part.predicted_kl += member.predicted_kl;
    }
    part.bits_per_weight /= part.weights as f64;
    part
}

/// Refuses models of which one is not the other with its linears rounded.
fn check_same(model: &Weights, float: &Weights) -> Result<()> {
    let shape = |w: &Weights| {
        let config = w.config();
        let linears = LinearKind::ALL.map(|kind| linear_shape(config, kind));
        (config.num_hidden_layers, config.vocab_size, linears)
    };
    if shape(model) != shape(float) {
        return Err(user_error(
            format!(
                "{} and {} have other shapes",
                model.folder().place(),
                float.folder().place()
            ),
            "give the float model that the quantized one was made from after --reference",
        ));
    }
    let folder = float.folder();
    for name in folder.names() {
        let small = folder.tensor(name)?.shape.len() == 1;
        if small && model.folder().has(name) && model.vector(name)? != float.vector(name)? {
            return Err(user_error(
                format!(
                    "{name} is not the reference's: channels were scaled or norms tuned together with the linears, so that \
                     no part of this model can stand in the float one"
                ),
                "take a model made by `method: gptq` or `rtn` with `tune: {epochs: 0}` apart",
            ));
        }
    }
    Ok(())
}

/// The quantized linears, and the names of their parts in the model's order.
fn members(model: &Weights, by: Parts) -> Result<(Vec<Member>, Vec<String>)> {
    let (mut members, mut names) = (Vec::new(), Vec::<String>::new());
    for block in 0..model.config().num_hidden_layers {
        for kind in LinearKind::ALL {
            let Some(coding) = model.coding(&kind.module(block))? else {
                continue;
            };
            let shape = linear_shape(model.config(), kind);
            let weights = (shape[0] * shape[1]) as u64;
            let name = by.of(block, kind);
            let known = names.iter().position(|known| *known == name);
            let part = known.unwrap_or(names.len());
            if known.is_none() {
                names.push(name);
            }
            members.push(Member {
                block,
                kind,
                part,
                weights,
                bits: coding.bits_per_weight(shape) * weights as f64,
                predicted_kl: 0.0,
            });
        }
    }
    if members.is_empty() {
        return Err(user_error(
            format!("{} has no quantized linear", model.folder().place()),
            "give a folder that `halfbyte run` has written, and the float model after --reference",
        ));
    }
    Ok((members, names))
}

/// A quantized model beside the float one.
struct Apart {
    model: Weights,
    float: Decoder,
}

impl Apart {
    fn weight(&self, block: usize, kind: LinearKind) -> Result<Vec<f32>> {
        let shape = linear_shape(self.model.config(), kind);
        Ok(self.model.weight(&kind.module(block), shape)?)
    }

    /// Sensitivity times loss, on the float model's way over `windows`.
    fn predict(
        &self,
        members: &mut [Member],
        windows: &[Vec<u32>],
        on_event: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let window = |ids: &Vec<u32>| Window {
            ids: ids.clone(),
            len: ids.len(),
        };
        let windows = Windows {
            calibration: windows.iter().map(window).collect(),
            holdout: Vec::new(),
            tuning: Vec::new(),
            report: Default::default(),
        };
        let spill_folder = std::env::temp_dir();
        let sensitivities = sense(
            &windows.calibration,
            &self.float,
            0,
            &spill_folder,
            on_event,
        )?;
        let options = WalkOptions {
            max_bytes: u64::MAX,
            spill_folder,
            mixed_windows: MIXED_WINDOWS,
            gradients: None,
            float_path: false,
            subset_blocks: Vec::new(),
        };
        let mut walk = Walk::new(&windows, &self.float, options)?;
        let (blocks, tokens) = (self.float.n_blocks(), walk.tokens_per_window());
        let mut tick = phase(on_event, "losses", "blocks");
        for (index, sensitivity) in sensitivities.iter().enumerate() {
            let block = self.float.block(index, tokens)?;
            let stats = walk.survey_and_finish(&block, &mut |_| ())?;
            for member in members.iter_mut().filter(|m| m.block == index) {
                let of_kind = stats.iter().find(|s| s.kinds.contains(&member.kind));
                let of_kind = of_kind.context("statistics of a linear")?;
                let shape = linear_shape(self.model.config(), member.kind);
                let module = member.kind.module(index);
                let float = self.float.weights().weight(&module, shape)?;
                let judge = Judge::new(of_kind, &float, shape[1])?;
                let loss = judge.loss(&self.weight(index, member.kind)?)?;
                member.predicted_kl = sensitivity[&member.kind] * loss;
            }
            self.float.release_block(index);
            tick(index as u64 + 1, blocks as u64);
        }
        Ok(())
    }

    /// Scores the float model with each of `parts` parts put in, and with all of them last.
    fn measure(
        &self,
        members: &[Member],
        parts: usize,
        windows: &[Vec<u32>],
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Vec<Evaluation>> {
        let block = own_blocks(&self.float);
        let float = Judged {
            decoder: &self.float,
            block: &block,
        };
        let reference = walk(float, windows, &mut |_, _| ())?;
        let mut tick = phase(on_event, "measure", "parts");
        let total = parts as u64 + 1;
        let mut scores = Vec::with_capacity(parts + 1);
        for part in (0..parts).map(Some).chain([None]) {
            let put = members
                .iter()
                .filter(|member| part.is_none_or(|part| member.part == part));
            let mut by_block = BTreeMap::<usize, Vec<LinearKind>>::new();
            for member in put {
                by_block.entry(member.block).or_default().push(member.kind);
            }
            scores.push(self.score(&by_block, &reference, windows)?);
            tick(scores.len() as u64, total);
        }
        Ok(scores)
    }

    /// The float model with some linears put in.
    fn score(
        &self,
        put: &BTreeMap<usize, Vec<LinearKind>>,
        reference: &Walked<'_>,
        windows: &[Vec<u32>],
    ) -> Result<Evaluation> {
        let block = |index: usize, tokens: usize| {
            let mut block = self.float.block(index, tokens)?;
            for &kind in put.get(&index).into_iter().flatten() {
                let weight = self.weight(index, kind);
                let weight = weight.map_err(|error| EvaluateError::Block {
                    index,
                    source: error.into(),
                })?;
                block.linears.get_mut(kind).set_weight(weight);
            }
            Ok(block)
        };
        let judged = Judged {
            decoder: &self.float,
            block: &block,
        };
        Ok(evaluate_against(
            judged,
            reference,
            windows,
            &mut |_, _| {},
        )?)
    }
}
