//! Cells scored as they lie in their work folders, one after another against one walk of the float model.

use std::collections::HashMap;

use anyhow::Result;
use halfbyte_calibrate::text::EvaluationText;
use halfbyte_checkpoint::{decode, write_json};
use halfbyte_evaluate::{EvaluateError, Judged, evaluate_against, own_blocks, walk};
use halfbyte_model::{Block, LinearKind};
use halfbyte_report::EvaluationRecord;
use serde::{Deserialize, Serialize};

use super::{Cell, SweepRun, merge};
use crate::config::Evaluate;
use crate::event::{Event, phase};
use crate::record;
use crate::work::Solved;

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
        solves,
        folder,
        skeleton,
        clock,
        tokenizer,
        ..
    } = run;
    let names: Vec<&str> = cells.iter().map(|cell| cell.name).collect();
    let wanted = merge::wanted(grid.measure, skeleton, &names, folder, solves)?;
    let own = cells.iter().filter(|cell| {
        options.shard.owns(cell.place)
            && wanted.iter().any(|name| name == cell.name)
            && merge::score(folder, cell.name, fingerprint).is_none()
    });
    let own: Vec<&Cell<'_>> = own.collect();
    if own.is_empty() {
        return Ok(0);
    }
    let float_block = own_blocks(decoder);
    let float = Judged {
        decoder,
        block: &float_block,
    };
    let (blocks, windows) = (decoder.n_blocks(), text.windows.len());
    let total = (windows * (blocks + own.len() * (blocks + 1))) as u64;
    let mut tick = phase(on_event, "evaluate", "steps");
    let reference = clock.time("evaluate", || {
        walk(float, &text.windows, &mut |done, _| tick(done, total))
    })?;
    for (before, cell) in own.iter().enumerate() {
        let block = |index, tokens| {
            let mut block = decoder.block(index, tokens)?;
            let solved = cell.work.load(index);
            let solved = solved.map_err(|error| EvaluateError::Block {
                index,
                source: error.into(),
            })?;
            put(&mut block, index, solved);
            Ok(block)
        };
        let cell_model = Judged {
            decoder,
            block: &block,
        };
        let first = (windows * (blocks + before * (blocks + 1))) as u64;
        let mut tick = |done, _| tick(first + done, total);
        let scores = clock.time("evaluate", || {
            evaluate_against(cell_model, &reference, &text.windows, &mut tick)
        })?;
        let text_of = |ids: &[u32]| decode(tokenizer, ids, false).unwrap_or_default();
        let found = record::evaluation(&settings.text.written, &scores, text, &text_of);
        // a score against a reference always has one; the worst tokens are for the page of a run
        if let Some(evaluation) = found {
            let file = ScoreFile {
                fingerprint: fingerprint.clone(),
                evaluation: EvaluationRecord {
                    worst_tokens: Vec::new(),
                    ..evaluation
                },
            };
            write_json(&merge::score_path(folder, cell.name), &file)?;
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
