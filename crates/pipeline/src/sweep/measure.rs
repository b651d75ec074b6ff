//! Cells scored as they lie in their work folders, several beside one float model.

use std::collections::HashMap;

use anyhow::Result;
use halfbyte_calibrate::text::EvaluationText;
use halfbyte_checkpoint::write_json;
use halfbyte_evaluate::{EvaluateError, Judged, LoadBlock, evaluate_all};
use halfbyte_model::{Block, LinearKind};
use halfbyte_report::EvaluationRecord;
use serde::{Deserialize, Serialize};

use super::{Cell, SweepRun, merge};
use crate::config::Evaluate;
use crate::event::{Event, phase};
use crate::record;
use crate::work::Solved;

/// Cells that walk over the text side by side: the float model is computed once for so many. Each keeps its residual
/// streams.
const SIDE_BY_SIDE: usize = 8;

/// A cell's score, as it is kept until all are there.
#[derive(Serialize, Deserialize)]
pub(super) struct ScoreFile {
    /// The sweep's.
    pub(super) fingerprint: String,
    pub(super) evaluation: EvaluationRecord,
}

/// Scores this shard's cells that are to be measured and are not yet; gives how many.
pub(super) fn measure(
    run: &mut SweepRun<'_>,
    settings: &Evaluate,
    text: &EvaluationText,
    on_event: &mut dyn FnMut(Event),
) -> Result<usize> {
    let SweepRun {
        grid,
        options,
        decoder,
        cells,
        fingerprint,
        folder,
        skeleton,
        clock,
        tokenizer,
        ..
    } = run;
    let names: Vec<&str> = cells.iter().map(|cell| cell.name).collect();
    let wanted = merge::wanted(grid.measure, skeleton, &names, folder)?;
    let own = cells.iter().filter(|cell| {
        options.shard.owns(cell.place)
            && wanted.iter().any(|name| name == cell.name)
            && merge::score(folder, cell.name, fingerprint).is_none()
    });
    let own: Vec<&Cell<'_>> = own.collect();
    for some in own.chunks(SIDE_BY_SIDE) {
        let load = |cell: &Cell<'_>, index: usize, tokens: usize| -> Result<Block, EvaluateError> {
            let mut block = decoder.block(index, tokens)?;
            let solved = cell
                .work
                .load(index)
                .map_err(|error| EvaluateError::Block {
                    index,
                    source: error.into(),
                })?;
            put(&mut block, index, solved);
            Ok(block)
        };
        let loads: Vec<Box<LoadBlock<'_>>> = some
            .iter()
            .map(|&cell| -> Box<LoadBlock<'_>> {
                Box::new(move |index, tokens| load(cell, index, tokens))
            })
            .collect();
        let models: Vec<Judged<'_>> = loads
            .iter()
            .map(|block| Judged { decoder, block })
            .collect();
        let mut tick = phase(on_event, "evaluate", "steps");
        let scores = clock.time("evaluate", || {
            evaluate_all(&models, Some(decoder), &text.windows, &mut tick)
        })?;
        for (cell, scores) in some.iter().zip(&scores) {
            let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
            let found = record::evaluation(&settings.text.written, scores, text, &decode);
            // a score against a reference always has one; the worst tokens are for the page of a run
            if let Some(evaluation) = found {
                let evaluation = EvaluationRecord {
                    worst_tokens: Vec::new(),
                    ..evaluation
                };
                let file = ScoreFile {
                    fingerprint: fingerprint.clone(),
                    evaluation,
                };
                write_json(&merge::score_path(folder, cell.name), &file)?;
            }
        }
    }
    Ok(own.len())
}

/// Puts solved linears in the place of the float ones.
fn put(block: &mut Block, index: usize, solved: Vec<Solved>) {
    let mut solved: HashMap<String, Solved> = solved
        .into_iter()
        .map(|solved| (solved.module.clone(), solved))
        .collect();
    for kind in LinearKind::ALL {
        if let Some(found) = solved.remove(&kind.module(index)) {
            block
                .linears
                .get_mut(kind)
                .set_weight(found.weight.dequantize());
        }
    }
}
