//! Solved blocks to tuned ones.

use anyhow::Result;
use halfbyte_calibrate::text::Windows;
use halfbyte_model::{Block, Decoder, LinearKind, ModelError, NormKind};
use halfbyte_report::TuneRecord;
use halfbyte_tune::{SolvedLinears, TuneOptions, TuneWindow};

use crate::event::{Event, phase};
use crate::recipe::Tuning;
use crate::work::{Solved, Work};

/// How a run tunes its blocks, given so many windows for that alone.
pub(crate) fn options(
    tuning: &Tuning,
    seed: u64,
    decoder: &Decoder,
    own_windows: usize,
) -> Result<TuneOptions> {
    let norm = decoder.weights().folder().tensor("model.norm.weight")?;
    Ok(TuneOptions {
        epochs: tuning.epochs,
        learning_rate: tuning.learning_rate,
        damping: tuning.damping,
        batch_windows: tuning.batch_windows,
        num_samples: tuning.num_samples(own_windows),
        seed,
        round_scale: halfbyte_solve::ScaleDtype::portable,
        round_norm: halfbyte_checkpoint::rounding(norm.dtype),
    })
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
