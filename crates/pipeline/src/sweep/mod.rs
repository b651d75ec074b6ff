//! A whole grid of settings from one pass over the float model.
//!
//! The float model is walked once. For each block the statistics are in memory; every cell of the grid is solved from
//! them and written into its own work folder, and only then does the walk go on. So nothing but one block's statistics
//! is ever kept, cells whose damping and order agree share a factored Hessian, and a kill costs one block. The rejected
//! alternative, a cell at a time, would keep all blocks' statistics, or take them again for every cell. What it costs: a
//! cell's statistics never see rounded stages, so the winner is run once more, in sequence, before it is exported.
//!
//! `OUT/halfbyte/sweep/` holds a folder a cell, with the blocks as a run's work folder has them and `score.json`, and a
//! folder a shard, with the walk's state and stream and `shard.json`. No file is written by two processes, all are
//! renamed into place, so shards may run side by side, one after another, or be killed.

mod cells;
mod measure;
mod merge;
mod solve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use halfbyte_calibrate::text::{EvaluationText, Windows};
use halfbyte_checkpoint::{create_folder, remove_file, remove_folder, write_json};
use halfbyte_model::{Decoder, LinearKind, open_device};
use halfbyte_report::{
    CellRecord, SCHEMA_VERSION, SweepRecord, SweepSummaryRecord, WinnerRecord, broken_cells,
    read_cells, read_sweep, refusals, sweep_page, sweep_page_path, write_page, write_sweep,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::budget::sense;
use crate::config::{Evaluate, Measure, Pipeline, Sweep, Winner, WinnerBy, hex};
use crate::error::user_error;
use crate::event::Event;
use crate::finished::differing_keys;
use crate::memory::MemoryLimit;
use crate::open::{Inputs, Reading, open_model};
use crate::output::{Destination, Output, check_places};
use crate::quantize::{Run, RunOptions, check_float, device_choice, quantize_into};
use crate::record;
use crate::usage::{Clock, usage};
use crate::work::{Work, damaged};

pub(crate) use cells::plan_cells;
use cells::{Cell, cells};
pub use merge::merge_sweep;
use merge::{Merged, ShardFile, shard_folder, shard_name};

/// Where a sweep goes.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// The folder that `halfbyte/`, and the winner's exports, are written into.
    pub out: PathBuf,
    /// Start over instead of going on where an interrupted sweep stopped.
    pub fresh: bool,
    /// The share of the work that is this process's.
    pub shard: Shard,
}

/// One of several processes that share a sweep and its folder: it solves every `of`-th block and measures every
/// `of`-th cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Counted from 0.
    pub index: usize,
    /// Processes in all, at least 1.
    pub of: usize,
}

/// What a sweep left behind.
#[derive(Clone, Debug)]
pub struct Swept {
    /// All records, as in `sweep.json`; none while other shards' work is missing.
    pub record: Option<SweepRecord>,
    /// What is missing, in words.
    pub waiting: Option<String>,
    /// The run of the winner, where one was asked for.
    pub winner: Option<Run>,
    /// Where `halfbyte/sweep.json`, `sweep.csv`, `cells/` and `sweep.html` lie.
    pub out: PathBuf,
}

impl Shard {
    /// The only one.
    pub const ALONE: Self = Self { index: 0, of: 1 };

    /// Whether a block or a cell is this shard's.
    fn owns(self, index: usize) -> bool {
        index % self.of == self.index
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.of)
    }
}

/// Solves every cell of the pipeline's `sweep`, measures as it says, reports, and runs the winner.
///
/// A sweep of the same pipeline, model and text goes on where an earlier one stopped; one that is finished is not done
/// again.
///
/// # Errors
/// As [`crate::quantize`]; and a grid of which nothing can be solved, or limits that no cell keeps to.
pub fn sweep(
    pipeline: &Pipeline,
    options: &SweepOptions,
    on_event: &mut dyn FnMut(Event),
) -> Result<Swept> {
    let grid = pipeline.sweep.as_ref().ok_or_else(|| {
        user_error(
            "the pipeline has no `sweep` section",
            "add one, such as `sweep: {bits: [3, 4], group_size: [32, 64]}`",
        )
    })?;
    for notice in &pipeline.notices {
        on_event(Event::Note(notice.clone()));
    }
    let mut run = SweepRun::open(pipeline, grid, options, on_event)?;
    let mut warnings = run.windows.report.warnings.clone();
    for warning in &warnings {
        on_event(Event::Warning(warning.clone()));
    }
    let swept = |record, waiting, winner| Swept {
        record,
        waiting,
        winner,
        out: options.out.clone(),
    };
    if !options.fresh
        && let Ok(record) = read_sweep(&options.out)
        && record.fingerprint == run.fingerprint
        && record.summary.unmeasured == 0
    {
        on_event(Event::Note(
            "this sweep is finished; --fresh does it again".to_owned(),
        ));
        if options.shard.of > 1 {
            return Ok(swept(Some(record), None, None));
        }
        if pipeline.report.html && !sweep_page_path(&options.out).exists() {
            draw(&options.out, &record)?;
        }
        let (record, winner) = run.run_winner(record, on_event)?;
        run.clear()?;
        return Ok(swept(Some(record), None, winner));
    }
    run.solve(&mut warnings, on_event)?;
    let missing = merge::unsolved(&run.folder, &run.fingerprint, options.shard.of);
    if !missing.is_empty() {
        return Ok(swept(None, Some(run.is_waiting("blocks", &missing)), None));
    }
    run.measure(on_event)?;
    let Merged {
        mut record,
        linears,
    } = merge::merge(&run.folder, &run.fingerprint)?;
    if record.summary.unmeasured > 0 {
        let waiting = format!(
            "cells not measured yet: {}, which are other shards'. The last shard reports",
            record.summary.unmeasured
        );
        return Ok(swept(None, Some(waiting), None));
    }
    if !run.is_last()? {
        let waiting = format!(
            "another shard is writing the report; were it cut off, `halfbyte report {}` would do it",
            options.out.display()
        );
        return Ok(swept(None, Some(waiting), None));
    }
    if let Some(warning) = broken_cells(&record) {
        on_event(Event::Warning(warning));
    }
    write_all(&options.out, pipeline, &record, &linears)?;
    let winner;
    (record, winner) = run.run_winner(record, on_event)?;
    run.clear()?;
    Ok(swept(Some(record), None, winner))
}

/// Writes the record, the tables and, where the pipeline wants one, the page.
fn write_all(
    out: &Path,
    pipeline: &Pipeline,
    record: &SweepRecord,
    linears: &[(String, Vec<halfbyte_report::LinearRecord>)],
) -> Result<()> {
    // No page of another sweep stands beside these records, whenever this is cut off.
    remove_file(&sweep_page_path(out))?;
    write_sweep(out, record, linears)?;
    match pipeline.report.html {
        true => draw(out, record),
        false => Ok(()),
    }
}

fn draw(out: &Path, record: &SweepRecord) -> Result<()> {
    // Read back, so that the page drawn again later is the same.
    let linears = read_cells(out, record)?;
    let page = sweep_page(record, &linears, true);
    Ok(write_page(&sweep_page_path(out), &page)?)
}

/// A sweep on its way.
struct SweepRun<'a> {
    pipeline: &'a Pipeline,
    grid: &'a Sweep,
    options: &'a SweepOptions,
    decoder: Decoder,
    tokenizer: Tokenizer,
    windows: Windows,
    evaluation: Option<(&'a Evaluate, EvaluationText)>,
    cells: Vec<Cell<'a>>,
    /// Names the sweep.
    fingerprint: String,
    /// Names its blocks, whatever text they are scored on.
    solves: String,
    /// The folder that this process holds, alone or with other shards.
    output: Output,
    /// `OUT/halfbyte/sweep`.
    folder: PathBuf,
    /// All records but the figures.
    skeleton: SweepRecord,
    memory: MemoryLimit,
    clock: Clock,
    start: Instant,
    cpu_before: f64,
}

impl<'a> SweepRun<'a> {
    /// Opens and checks all that is read; no weight yet.
    fn open(
        pipeline: &'a Pipeline,
        grid: &'a Sweep,
        options: &'a SweepOptions,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Self> {
        let (start, cpu_before) = (Instant::now(), usage().cpu_seconds);
        let mut clock = Clock::default();
        let memory = MemoryLimit::of(&pipeline.resources);
        if let Some(notice) = memory.notice() {
            on_event(Event::Note(notice));
        }
        let folder = open_model(
            &pipeline.model.source.location(),
            pipeline.model.revision.clone(),
            on_event,
        )?;
        check_float(&folder)?;
        let work = options.out.join("halfbyte").join("sweep");
        let (mut cells, cell_records) = cells(grid, &folder, &work)?;
        check_limits(grid, &cell_records)?;
        // All cells are exported into the same folders.
        let destinations = match &grid.winner {
            Some(_) => Destination::all(&cells[0].layout, &folder, &options.out)?,
            None => Vec::new(),
        };
        check_places(pipeline, &folder, &options.out, &destinations)?;
        let output = if options.shard.of > 1 {
            Output::open_shared(&options.out, &shard_name(options.shard))?
        } else {
            let (output, note) = Output::open(&options.out, &destinations)?;
            if let Some(note) = note {
                on_event(Event::Note(note));
            }
            output
        };
        for (names, reason) in refusals(&cell_records) {
            on_event(Event::Warning(format!("{}: {reason}", names.join(", "))));
        }
        check_settings(pipeline, options, &work)?;
        let identity = folder.identity()?;
        let reading = Reading {
            pipeline,
            reads_text: true,
            tuning_samples: 0,
            memory,
            out: &options.out,
            fresh: options.fresh,
            identity: &identity,
        };
        let Inputs {
            tokenizer,
            windows,
            evaluation,
            weights,
        } = reading.inputs(folder, &mut clock, on_event)?;
        let evaluation = pipeline.evaluate.as_ref().zip(evaluation);
        let mut digest = Sha256::new();
        for cell in &cells {
            digest.update(cell.name);
            digest.update(cell.settings.fingerprint(cell.pipeline));
        }
        digest.update(&identity.fingerprint);
        digest.update(&windows.report.windows_sha256);
        let solves = hex(&digest.clone().finalize());
        for cell in &mut cells {
            cell.work.belong_to(&solves);
        }
        if let Some((_, text)) = evaluation
            .as_ref()
            .filter(|_| grid.measure != Measure::None)
        {
            digest.update(grid.measure.to_string());
            for id in text.windows.iter().flatten() {
                digest.update(id.to_le_bytes());
            }
        }
        let fingerprint = hex(&digest.finalize());
        check_earlier(grid, options, &fingerprint, &work, &solves)?;
        let decoder = Decoder::new(
            weights,
            open_device(device_choice(pipeline.resources.device))?,
        );
        let skeleton = SweepRecord {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: fingerprint.clone(),
            pipeline: pipeline.to_value(),
            model: record::model(pipeline, &decoder),
            calibration: record::calibration(&windows.report),
            cells: cell_records,
            winner: None,
            summary: SweepSummaryRecord::default(),
        };
        Ok(Self {
            pipeline,
            grid,
            options,
            decoder,
            tokenizer,
            windows,
            evaluation,
            cells,
            fingerprint,
            solves,
            output,
            folder: work,
            skeleton,
            memory,
            clock,
            start,
            cpu_before,
        })
    }

    /// Solves this shard's blocks for all cells, from where it stopped.
    fn solve(&mut self, warnings: &mut Vec<String>, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        let shard = self.options.shard;
        let place = shard_folder(&self.folder, shard);
        if self.options.fresh {
            merge::forget(&self.folder, &self.fingerprint, shard, &self.cells)?;
        }
        let open = |fresh: bool| {
            let solves = self.solves.clone();
            Work::open_in(&self.options.out, place.clone(), solves, fresh)
        };
        let mut opened = open(self.options.fresh)?;
        if let Err(error) = self.check_blocks(opened.done) {
            let text = damaged(&error);
            on_event(Event::Warning(text.clone()));
            warnings.push(text);
            opened = open(true)?;
        }
        let (mut walked, done) = (opened.work, opened.done);
        let blocks = self.decoder.n_blocks();
        on_event(Event::Started {
            model: self.pipeline.model.source.to_string(),
            blocks,
            resumed: done,
            linears: self.cells.iter().map(Cell::n_linears).sum(),
            tokens: self.windows.report.tokens_calibration as u64,
        });
        if done < blocks {
            let sensitivities = self.sensitivities(walked.folder(), on_event)?;
            solve::blocks(self, &mut walked, done, &sensitivities, on_event)?;
        }
        let finished = ShardFile::read(&self.folder, shard)
            .is_some_and(|file| file.record.fingerprint == self.fingerprint);
        if !finished {
            self.save_shard(warnings)?;
        }
        Ok(())
    }

    /// Whether all cells have this shard's blocks below `done`.
    fn check_blocks(&self, done: usize) -> Result<()> {
        for block in (0..done).filter(|&block| self.options.shard.owns(block)) {
            for cell in &self.cells {
                cell.work.check_block(block)?;
            }
        }
        Ok(())
    }

    /// What a unit of every linear's loss costs the model, kept for a process that goes on later.
    fn sensitivities(
        &mut self,
        folder: &Path,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Vec<BTreeMap<LinearKind, f64>>> {
        #[derive(Serialize, Deserialize)]
        struct File {
            fingerprint: String,
            blocks: Vec<Vec<f64>>,
        }
        let path = folder.join("sensitivity.json");
        let known = std::fs::read(&path).ok();
        let known = known.and_then(|text| serde_json::from_slice::<File>(&text).ok());
        if let Some(file) = known.filter(|file| file.fingerprint == self.fingerprint) {
            let of = |values: Vec<f64>| LinearKind::ALL.into_iter().zip(values).collect();
            return Ok(file.blocks.into_iter().map(of).collect());
        }
        let (decoder, windows) = (&self.decoder, &self.windows);
        let seed = self.pipeline.calibration.seed;
        self.clock
            .time("sensitivity", || {
                sense(&windows.calibration, decoder, seed, folder, on_event)
            })
            .and_then(|found| {
                let of = |block: &BTreeMap<LinearKind, f64>| block.values().copied().collect();
                let file = File {
                    fingerprint: self.fingerprint.clone(),
                    blocks: found.iter().map(of).collect(),
                };
                write_json(&path, &file)?;
                Ok(found)
            })
    }

    /// Scores this shard's cells among those that are to be measured.
    fn measure(&mut self, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        let Some((settings, text)) = self.evaluation.take() else {
            return Ok(());
        };
        let measured = measure::measure(self, settings, &text, on_event);
        self.evaluation = Some((settings, text));
        if measured? > 0 {
            let before = ShardFile::read(&self.folder, self.options.shard);
            let warnings = before.map_or_else(Vec::new, |file| file.record.summary.warnings);
            self.save_shard(&warnings)?;
        }
        Ok(())
    }

    /// Says that this shard has solved its blocks, and what that took: this process on top of those before it.
    fn save_shard(&mut self, warnings: &[String]) -> Result<()> {
        let shard = self.options.shard;
        let before = ShardFile::read(&self.folder, shard)
            .filter(|file| file.record.fingerprint == self.fingerprint)
            .map(|file| file.record.summary)
            .unwrap_or_default();
        let now = usage();
        let mut summary = SweepSummaryRecord {
            shards: shard.of,
            seconds: before.seconds + self.start.elapsed().as_secs_f64(),
            cpu_seconds: before.cpu_seconds + now.cpu_seconds - self.cpu_before,
            peak_rss_bytes: before
                .peak_rss_bytes
                .max(Some(now.peak_rss_bytes).filter(|bytes| *bytes > 0)),
            phases: self.clock.phases(),
            warnings: warnings.to_vec(),
            ..SweepSummaryRecord::default()
        };
        merge::add_phases(&mut summary.phases, &before.phases);
        // What comes next counts from here.
        (self.start, self.cpu_before) = (Instant::now(), now.cpu_seconds);
        self.clock = Clock::default();
        let file = ShardFile {
            shard,
            solves: self.solves.clone(),
            record: SweepRecord {
                summary,
                ..self.skeleton.clone()
            },
        };
        let folder = shard_folder(&self.folder, shard);
        create_folder(&folder)?;
        Ok(write_json(&folder.join("shard.json"), &file)?)
    }

    fn is_waiting(&self, what: &str, missing: &[usize]) -> String {
        let list: Vec<String> = missing
            .iter()
            .map(|index| (index + 1).to_string())
            .collect();
        format!(
            "shard {} has solved its blocks; {what} of shard {} of {} are missing. The same command, run again when they are there, measures",
            self.options.shard,
            list.join(", "),
            self.options.shard.of
        )
    }

    /// Removes the work once all is reported.
    fn clear(&self) -> Result<()> {
        Ok(remove_folder(&self.folder)?)
    }

    /// Whether this process is the one that reports: of several shards that see all work done, the first to ask.
    fn is_last(&self) -> Result<bool> {
        if self.options.shard.of == 1 {
            return Ok(true);
        }
        let path = merge::reported(&self.folder, &self.fingerprint);
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(true),
            // taken, or all is done and cleared away
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotFound
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| format!("{}: cannot be made", path.display())),
        }
    }

    /// Runs the best cell within the limits as a run of its own, in the order of propagation that the pipeline asks for.
    fn run_winner(
        &mut self,
        mut record: SweepRecord,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(SweepRecord, Option<Run>)> {
        let Some(limits) = &self.grid.winner else {
            return Ok((record, None));
        };
        let best = best(&record.cells, limits).with_context(|| {
            user_error(
                "sweep.winner: no cell within the limits has a score of a model that is not broken",
                "raise the limits, have all cells measured, or add larger widths to `sweep.bits`",
            )
        })?;
        let cell = self.cells.iter().find(|cell| cell.name == best);
        let cell = cell.with_context(|| best.clone())?;
        on_event(Event::Note(format!(
            "{best} is the winner by {}; it is run by itself",
            limits.by
        )));
        let pipeline = Pipeline {
            propagation: self.pipeline.propagation,
            ..cell.pipeline.clone()
        };
        let options = RunOptions {
            out: self.options.out.clone(),
            fresh: false,
        };
        let location = pipeline.model.source.location();
        let folder = open_model(&location, pipeline.model.revision.clone(), on_event)?;
        let run = quantize_into(
            &pipeline,
            &options,
            true,
            &mut self.output,
            folder,
            on_event,
        )?;
        let score = run.record.evaluation.as_ref();
        record.winner = Some(WinnerRecord {
            cell: best,
            by: limits.by.to_string(),
            kl_mean: score.map(|e| e.kl_mean),
            kl_mean_se: score.map(|e| e.kl_mean_se),
        });
        write_all(&self.options.out, self.pipeline, &record, &[])?;
        Ok((record, Some(run)))
    }
}

/// Refuses to write over a sweep of other settings, as far as the settings alone say, before any text is read or written.
fn check_settings(pipeline: &Pipeline, options: &SweepOptions, folder: &Path) -> Result<()> {
    if options.fresh || folder.exists() {
        return Ok(());
    }
    let Ok(known) = read_sweep(&options.out) else {
        return Ok(());
    };
    let mut keys = differing_keys(&known.pipeline, &pipeline.to_value());
    keys.retain(|key| {
        !["gate", "report", "resources"]
            .iter()
            .any(|s| key.starts_with(s))
    });
    match keys.is_empty() {
        true => Ok(()),
        false => Err(user_error(
            format!(
                "{}: holds a finished sweep with other settings (other: {}); the codes of its cells are not kept",
                options.out.display(),
                keys.join(", ")
            ),
            "choose another --out, or take --fresh to replace it",
        )),
    }
}

/// Refuses to write over what is finished in the folder and not this sweep's, unless that was asked for.
fn check_earlier(
    grid: &Sweep,
    options: &SweepOptions,
    fingerprint: &str,
    folder: &Path,
    solves: &str,
) -> Result<()> {
    // What was begun with --fresh goes on without it, in all shards.
    if options.fresh || merge::has_begun(folder, solves) {
        return Ok(());
    }
    let place = options.out.display();
    let hint = "choose another --out, or take --fresh to replace it";
    let known = read_sweep(&options.out).ok();
    if let Some(known) = known
        .as_ref()
        .filter(|known| known.fingerprint != fingerprint)
    {
        let what = match known.summary.unmeasured {
            0 => "a finished sweep with other settings, another model or another text",
            _ => "another sweep",
        };
        let text = format!("{place}: holds {what}; the codes of its cells are not kept");
        return Err(user_error(text, hint));
    }
    let wins = grid.winner.is_some() && known.is_none_or(|known| known.winner.is_none());
    match wins && halfbyte_report::read_run(&options.out).is_ok() {
        true => Err(user_error(
            format!("{place}: holds a finished run, which the winner of the sweep would replace"),
            hint,
        )),
        false => Ok(()),
    }
}

/// Limits that no cell keeps to are told before the work.
fn check_limits(grid: &Sweep, cells: &[CellRecord]) -> Result<()> {
    let Some(winner) = &grid.winner else {
        return Ok(());
    };
    let solved = || cells.iter().filter(|cell| cell.refused.is_none());
    if solved().any(|cell| within(cell, winner)) {
        return Ok(());
    }
    let bits = solved().filter_map(|cell| cell.bits_per_weight);
    let bytes = solved().filter_map(|cell| cell.bytes).min();
    Err(user_error(
        format!(
            "sweep.winner: no cell keeps to the limits; the smallest has {:.3} bits a weight and {} bytes",
            bits.fold(f64::INFINITY, f64::min),
            bytes.unwrap_or(0)
        ),
        "raise the limits, or add smaller widths to `sweep.bits`",
    ))
}

fn within(cell: &CellRecord, winner: &Winner) -> bool {
    let bits = winner.max_bits_per_weight.zip(cell.bits_per_weight);
    let bytes = winner.max_bytes.zip(cell.bytes);
    bits.is_none_or(|(most, bits)| bits <= most) && bytes.is_none_or(|(most, bytes)| bytes <= most)
}

/// The name of the best cell within the limits that is not broken; none where no such cell has a score.
fn best(cells: &[CellRecord], winner: &Winner) -> Option<String> {
    let score = |cell: &CellRecord| match winner.by {
        WinnerBy::Kl => cell.evaluation.as_ref().map(|e| e.kl_mean),
        WinnerBy::Perplexity => cell.evaluation.as_ref().map(|e| e.perplexity),
        WinnerBy::PredictedKl => cell.predicted_kl,
    };
    let candidates = (cells.iter()).filter(|cell| within(cell, winner) && !cell.is_broken());
    let scored = candidates.filter_map(|cell| Some((cell, score(cell).filter(|s| !s.is_nan())?)));
    let best = scored.min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(best.0.cell.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_winner_is_the_best_that_keeps_to_the_limits() {
        let cell = |name: &str, bits: f64, bytes: u64, predicted: f64| CellRecord {
            cell: name.to_owned(),
            bits_per_weight: Some(bits),
            bytes: Some(bytes),
            predicted_kl: Some(predicted),
            ..CellRecord::default()
        };
        let cells = [
            cell("small", 2.5, 25, 0.9),
            cell("middle", 4.25, 42, 0.1),
            cell("large", 8.5, 85, 0.001),
            cell("broken", 2.0, 20, f64::NAN),
        ];
        let winner = |bits, bytes| {
            let limits = Winner {
                by: WinnerBy::PredictedKl,
                max_bits_per_weight: bits,
                max_bytes: bytes,
            };
            best(&cells, &limits)
        };
        assert_eq!(winner(None, None).as_deref(), Some("large"));
        assert_eq!(winner(Some(4.25), None).as_deref(), Some("middle"));
        assert_eq!(winner(Some(8.5), Some(41)).as_deref(), Some("small"));
        assert_eq!(winner(Some(2.0), None), None);
        let mut measured = cells.clone();
        let evaluation = serde_json::json!({
            "text": "", "sequence_length": 2, "windows": 1, "tokens": 1, "perplexity_float": 20.0,
            "perplexity_float_se": 1.0, "perplexity": 20_000_000.0, "perplexity_se": 1.0, "kl_mean": 13.8,
            "kl_mean_se": 0.1, "kl_median": 13.0, "kl_p99": 20.0, "top1_agreement": 0.0
        });
        measured[2].evaluation = serde_json::from_value(evaluation).unwrap();
        let limits = Winner {
            by: WinnerBy::PredictedKl,
            max_bits_per_weight: None,
            max_bytes: None,
        };
        assert_eq!(best(&measured, &limits).as_deref(), Some("middle"));
    }

    #[test]
    fn shards_share_out_every_block_once() {
        for index in 0..7 {
            let owners = (0..3).filter(|&i| Shard { index: i, of: 3 }.owns(index));
            assert_eq!(owners.count(), 1);
        }
        assert_eq!(Shard { index: 1, of: 3 }.to_string(), "2/3");
    }
}
