//! Solved blocks to tuned ones.

use anyhow::Result;
use halfbyte_calibrate::text::Windows;
use halfbyte_model::{Decoder, LinearKind};
use halfbyte_tune::{TuneOptions, TuneReport, TuneWindow, TunedBlock};

use crate::event::Event;
use crate::work::{Solved, Work};

/// Tunes the scales of all finished blocks, and the norms, on the calibration windows, and puts them in their place.
pub(crate) fn tune(
    decoder: &Decoder,
    work: &mut Work,
    windows: &Windows,
    options: &TuneOptions,
    on_event: &mut dyn FnMut(Event),
) -> Result<TuneReport> {
    let mut blocks = Vec::with_capacity(decoder.n_blocks());
    for index in 0..decoder.n_blocks() {
        let mut linears = Vec::new();
        for Solved { module, weight } in work.load(index)? {
            let kind = LinearKind::ALL
                .into_iter()
                .find(|kind| kind.module(index) == module);
            if let Some(kind) = kind {
                linears.push((kind, weight));
            }
        }
        blocks.push(TunedBlock {
            linears,
            norms: Vec::new(),
        });
    }
    let texts = windows.calibration.iter().map(|w| (w, false));
    let held = windows.holdout.iter().map(|w| (w, true));
    let tokens: Vec<TuneWindow<'_>> = texts
        .chain(held)
        .map(|(window, holdout)| TuneWindow {
            ids: &window.ids,
            len: window.len,
            holdout,
        })
        .collect();
    let mut tick = |done, total| {
        on_event(Event::Phase {
            block: None,
            name: "tune",
            done,
            total,
            unit: "windows",
        })
    };
    let (tuned, report) = halfbyte_tune::tune(decoder, blocks, &tokens, options, &mut tick)?;
    let mut replaced = vec![("model.norm.weight".to_owned(), tuned.final_norm)];
    let mut solved = Vec::with_capacity(tuned.blocks.len());
    for (index, block) in tuned.blocks.into_iter().enumerate() {
        replaced.extend(
            block
                .norms
                .into_iter()
                .map(|(kind, values)| (kind.tensor(index), values)),
        );
        let linears = block.linears.into_iter().map(|(kind, weight)| Solved {
            module: kind.module(index),
            weight,
        });
        solved.push(linears.collect());
    }
    work.save_tuned(&solved, &replaced)?;
    Ok(report)
}
