//! Solved blocks to tuned ones.

use anyhow::Result;
use halfbyte_calibrate::text::Windows;
use halfbyte_model::{Block, Decoder, LinearKind, ModelError, NormKind};
use halfbyte_report::TuneRecord;
use halfbyte_tune::{SolvedLinears, TuneOptions, TuneWindow};

use crate::config::{Pipeline, Recipe};
use crate::event::{Event, phase};
use crate::work::{Solved, Work};

/// What the best recipe does where the pipeline file says nothing; see results/LOG.md.
const EPOCHS: usize = 1;
/// Widths up to which the best recipe tunes; above them its row Hessians leave tuning nothing to gain.
const TUNED_BITS: u8 = 3;
/// Windows that the model writes to be tuned on in the best recipe.
const GENERATED_SAMPLES: usize = 24;
/// Calibration windows of an epoch in the best recipe where there are no such windows.
const SAMPLES: usize = 32;
/// At 3 bits and above, where there is less to mend.
const LEARNING_RATE: f64 = 1e-3;
/// At 2 bits.
const LARGE_LEARNING_RATE: f64 = 2e-3;
/// Windows a step: with a few dozen windows, more steps are worth more than smoother ones.
const BATCH_WINDOWS: usize = 1;
/// Adam's `ε`, a share of the tensor's own root mean second moment.
const DAMPING: f32 = 0.1;

/// Times the pipeline wants every calibration window to be learned from.
pub(crate) fn epochs(pipeline: &Pipeline) -> usize {
    let usual = if pipeline.recipe == Recipe::Best && pipeline.quant.scheme.bits() <= TUNED_BITS {
        EPOCHS
    } else {
        0
    };
    pipeline.tune.epochs.unwrap_or(usual)
}

/// Windows that the model is to write for tuning alone.
pub(crate) fn generated_samples(pipeline: &Pipeline) -> usize {
    let usual = match pipeline.recipe {
        Recipe::Best => GENERATED_SAMPLES,
        _ => 0,
    };
    match epochs(pipeline) {
        0 => 0,
        _ => pipeline.tune.generated_samples.unwrap_or(usual),
    }
}

/// How the pipeline wants its blocks tuned, given so many windows for that alone; none for not at all.
pub(crate) fn options(
    pipeline: &Pipeline,
    decoder: &Decoder,
    generated_samples: usize,
) -> Result<Option<TuneOptions>> {
    let epochs = epochs(pipeline);
    if epochs == 0 {
        return Ok(None);
    }
    let norm = decoder.weights().folder().tensor("model.norm.weight")?;
    let usual = match pipeline.recipe {
        Recipe::Best if generated_samples == 0 => SAMPLES,
        _ => usize::MAX,
    };
    let usual_rate = match pipeline.quant.scheme.bits() {
        ..=2 => LARGE_LEARNING_RATE,
        _ => LEARNING_RATE,
    };
    let learning_rate = pipeline.tune.learning_rate.unwrap_or(usual_rate);
    Ok(Some(TuneOptions {
        epochs,
        learning_rate,
        damping: DAMPING,
        batch_windows: BATCH_WINDOWS,
        num_samples: pipeline.tune.num_samples.unwrap_or(usual),
        seed: pipeline.calibration.seed,
        round_scale: halfbyte_solve::ScaleDtype::portable,
        round_norm: halfbyte_checkpoint::rounding(norm.dtype),
    }))
}

/// Tunes the scales of all finished blocks, and the norms, and puts them in their place: on the windows that are for tuning
/// alone or, where there are none, on the calibration windows. `float_stream` is what the float model's last block gave on
/// the latter and the held-out ones, in bf16's bits, where that is at hand.
pub(crate) fn tune(
    decoder: &Decoder,
    work: &mut Work,
    windows: &Windows,
    float_stream: Option<Vec<u16>>,
    options: &TuneOptions,
    on_event: &mut dyn FnMut(Event),
) -> Result<TuneRecord> {
    let mut blocks = Vec::with_capacity(decoder.n_blocks());
    let mut replaced = Vec::with_capacity(decoder.n_blocks());
    for index in 0..decoder.n_blocks() {
        let mut linears = SolvedLinears::new();
        for Solved { module, weight } in work.load(index)? {
            let kind = LinearKind::ALL
                .into_iter()
                .find(|kind| kind.module(index) == module);
            // only grids are tuned: methods with codebooks read no text, and tuning is refused for them
            if let (Some(kind), Some(weight)) = (kind, weight.into_grid()) {
                linears.push((kind, weight));
            }
        }
        blocks.push(linears);
        replaced.push(work.replaced(index)?);
    }
    let float = |index: usize, tokens: usize| -> Result<Block, ModelError> {
        let mut block = decoder.block(index, tokens)?;
        for (name, values) in &replaced[index] {
            replace(&mut block, index, name, values);
        }
        Ok(block)
    };
    // windows that the solvers have not seen show what the errors are elsewhere; see results/LOG.md
    let learned = match windows.tuning.is_empty() {
        true => &windows.calibration,
        false => &windows.tuning,
    };
    let texts = learned.iter().map(|w| (w, false));
    let held = windows.holdout.iter().map(|w| (w, true));
    let tokens: Vec<TuneWindow<'_>> = texts
        .chain(held)
        .map(|(window, holdout)| TuneWindow {
            ids: &window.ids,
            len: window.len,
            holdout,
        })
        .collect();
    let mut tick = phase(on_event, "tune", "windows");
    let (tuned, report) = halfbyte_tune::tune(
        decoder,
        &float,
        blocks,
        &tokens,
        float_stream,
        options,
        &mut tick,
    )?;
    let mut norms = vec![("model.norm.weight".to_owned(), tuned.final_norm)];
    let mut solved = Vec::with_capacity(tuned.blocks.len());
    for (index, block) in tuned.blocks.into_iter().enumerate() {
        norms.extend(
            block
                .norms
                .into_iter()
                .map(|(kind, values)| (kind.tensor(index), values)),
        );
        let linears = block.linears.into_iter().map(|(kind, weight)| Solved {
            module: kind.module(index),
            weight: weight.into(),
        });
        solved.push(linears.collect());
    }
    let record = TuneRecord {
        epochs: options.epochs,
        generated_samples: windows.tuning.len(),
        num_samples: Some(report.num_samples),
        epochs_kept: report.epochs_kept,
        learning_rate: options.learning_rate,
        kl_calibration: report.kl_calibration,
        kl_heldout: report.kl_heldout,
    };
    work.save_tuned(&solved, &norms, &record)?;
    Ok(record)
}

/// Puts a tensor that folding changed into its block.
fn replace(block: &mut Block, index: usize, name: &str, values: &[f32]) {
    for kind in NormKind::ALL {
        if kind.tensor(index) == name {
            block.set_norm(kind, values.to_vec());
        }
    }
    for kind in LinearKind::ALL {
        let part = name.strip_prefix(&kind.module(index));
        let linear = block.linears.get_mut(kind);
        match part {
            Some(".weight") => linear.set_weight(values.to_vec()),
            Some(".bias") => linear.set_bias(values.to_vec()),
            _ => (),
        }
    }
}
