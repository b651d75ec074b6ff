//! Scoring a model, alone or against the float model it came from.

use std::path::PathBuf;

use anyhow::{Context, Result};
use halfbyte_calibrate::text::{EvaluationText, WindowChoice, evaluation_windows};
use halfbyte_evaluate::{Evaluation, evaluate as score};
use halfbyte_model::{Decoder, Weights, open_device};

use crate::config::{Device, Windows};
use crate::error::UserError;
use crate::event::Event;
use crate::open::{open_model, window_choice};
use crate::quantize::device_choice;

/// What to score, on what.
#[derive(Clone, Debug)]
pub struct EvalRequest {
    /// A folder, a hub id, or `embedded:tiny`; float or quantized.
    pub model: String,
    /// The float model to measure the distance from.
    pub reference: Option<String>,
    /// The text.
    pub text: PathBuf,
    /// Tokens a window.
    pub sequence_length: usize,
    /// Which windows.
    pub windows: Windows,
    /// Where to compute.
    pub device: Device,
}

/// Scores a model as asked.
pub fn evaluate(request: &EvalRequest, on_event: &mut dyn FnMut(Event)) -> Result<Evaluation> {
    let text = std::fs::read_to_string(&request.text).map_err(|error| UserError {
        message: format!(
            "{}: cannot be read as UTF-8 text: {error}",
            request.text.display()
        ),
        hint: Some("give the path of a text file after --text".to_owned()),
    })?;
    let device = open_device(device_choice(request.device))?;
    let mut open = |source: &str| -> Result<Decoder> {
        let folder = open_model(source, None, on_event)?;
        Ok(Decoder::new(
            Weights::new(folder).with_context(|| source.to_owned())?,
            device.clone(),
        ))
    };
    let model = open(&request.model)?;
    let reference = request.reference.as_deref().map(&mut open).transpose()?;
    let tokenizer = model.weights().folder().tokenizer()?;
    let choice: WindowChoice = window_choice(&request.windows);
    let text: EvaluationText =
        evaluation_windows(&text, &tokenizer, request.sequence_length, &choice)?;
    scores(&model, reference.as_ref(), &text.windows, on_event)
}

/// Scores with progress.
pub(crate) fn scores(
    model: &Decoder,
    reference: Option<&Decoder>,
    windows: &[Vec<u32>],
    on_event: &mut dyn FnMut(Event),
) -> Result<Evaluation> {
    let mut tick = |done, total| {
        on_event(Event::Phase {
            block: None,
            name: "evaluate",
            done,
            total,
            unit: "steps",
        })
    };
    Ok(score(model, reference, windows, &mut tick)?)
}
