//! What shards left in the sweep's folder, put together: by files alone, without the model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use halfbyte_checkpoint::{remove_file, remove_folder};
use halfbyte_report::{
    CellRecord, EvaluationRecord, LinearRecord, PhaseRecord, SweepRecord, doubtful_linears,
    geometric_means, is_beaten, is_cell_name, write_sweep,
};
use serde::{Deserialize, Serialize};

use super::Shard;
use super::cells::Cell;
use super::measure::ScoreFile;
use crate::config::Measure;
use crate::error::user_error;
use crate::work::Work;

/// What a shard says of itself once its blocks are solved.
#[derive(Serialize, Deserialize)]
pub(super) struct ShardFile {
    pub(super) shard: Shard,
    /// Names the blocks, as the cells' files do.
    pub(super) solves: String,
    /// The sweep's record without the cells' figures, and what this shard used.
    pub(super) record: SweepRecord,
}

/// Shards of a sweep at most: more than anyone has machines.
const MOST_SHARDS: usize = 10_000;

impl ShardFile {
    /// Whether its numbers and names can be those of a shard: files and folders are called by them.
    fn is_sound(&self) -> bool {
        let cells = &self.record.cells;
        self.shard.index < self.shard.of
            && self.shard.of <= MOST_SHARDS
            && cells.iter().all(|cell| is_cell_name(&cell.cell))
    }

    pub(super) fn read(sweep: &Path, shard: Shard) -> Option<Self> {
        let text = std::fs::read(shard_folder(sweep, shard).join("shard.json")).ok()?;
        let file: Self = serde_json::from_slice(&text).ok()?;
        file.is_sound().then_some(file)
    }
}

/// A finished sweep, with every cell's linears.
pub(super) struct Merged {
    pub(super) record: SweepRecord,
    pub(super) linears: Vec<(String, Vec<LinearRecord>)>,
}

/// Where a shard's walk lies.
pub(super) fn shard_folder(sweep: &Path, shard: Shard) -> PathBuf {
    sweep.join(shard_name(shard))
}

/// What its files are called by.
pub(super) fn shard_name(shard: Shard) -> String {
    format!("shard-{}-of-{}", shard.index + 1, shard.of)
}

/// Whether some shard has begun to solve these blocks.
pub(super) fn has_begun(sweep: &Path, solves: &str) -> bool {
    let entries = std::fs::read_dir(sweep).into_iter().flatten().flatten();
    let mut folders = entries.map(|entry| entry.path());
    folders.any(|folder| Work::stateless(folder).has_state_of(solves))
}

pub(super) fn score_path(sweep: &Path, cell: &str) -> PathBuf {
    sweep.join(cell).join("score.json")
}

/// A cell's score in this sweep, if it is there.
pub(super) fn score(sweep: &Path, cell: &str, fingerprint: &str) -> Option<EvaluationRecord> {
    let text = std::fs::read(score_path(sweep, cell)).ok()?;
    let file: ScoreFile = serde_json::from_slice(&text).ok()?;
    (file.fingerprint == fingerprint).then_some(file.evaluation)
}

/// A folder that only one shard can make: it is the one that reports.
pub(super) fn reported(sweep: &Path, fingerprint: &str) -> PathBuf {
    sweep.join(format!("reported-{}", &fingerprint[..16]))
}

/// Takes away what says that this shard's work is done.
pub(super) fn forget(
    sweep: &Path,
    fingerprint: &str,
    shard: Shard,
    cells: &[Cell<'_>],
) -> Result<()> {
    let own = cells.iter().filter(|cell| shard.owns(cell.place));
    let mut paths: Vec<PathBuf> = own.map(|cell| score_path(sweep, cell.name)).collect();
    paths.push(shard_folder(sweep, shard).join("shard.json"));
    for path in paths {
        remove_file(&path)?;
    }
    Ok(remove_folder(&reported(sweep, fingerprint))?)
}

/// Shards whose blocks are not all solved, counted from 0.
pub(super) fn unsolved(sweep: &Path, fingerprint: &str, of: usize) -> Vec<usize> {
    let solved = |index: usize| {
        let file = ShardFile::read(sweep, Shard { index, of });
        file.is_some_and(|file| file.record.fingerprint == fingerprint)
    };
    (0..of).filter(|&index| !solved(index)).collect()
}

/// The cells that are to be measured, by name.
pub(super) fn wanted(
    measure: Measure,
    skeleton: &SweepRecord,
    solved: &[&str],
    sweep: &Path,
    solves: &str,
) -> Result<Vec<String>> {
    let blocks = skeleton.model.blocks;
    let names = || solved.iter().map(|name| (*name).to_owned());
    match measure {
        Measure::None => Ok(Vec::new()),
        Measure::All => Ok(names().collect()),
        Measure::Pareto => {
            let predicted = |name: &str| -> Result<(u64, f64)> {
                let linears = linears(sweep, solves, name, blocks)?;
                let cell = skeleton.cells.iter().find(|cell| cell.cell == name);
                let bytes = cell.and_then(|cell| cell.bytes).unwrap_or(u64::MAX);
                Ok((bytes, predicted_kl(&linears)))
            };
            let all = solved.iter().map(|name| predicted(name));
            let all = all.collect::<Result<Vec<_>>>()?;
            let each = names().zip(&all);
            let front = each.filter(|(_, one)| !is_beaten(**one, &all));
            Ok(front.map(|(name, _)| name).collect())
        }
    }
}

/// The sum over linears.
fn predicted_kl(linears: &[LinearRecord]) -> f64 {
    linears
        .iter()
        .filter_map(|linear| linear.predicted_kl)
        .sum()
}

fn linears(sweep: &Path, solves: &str, cell: &str, blocks: usize) -> Result<Vec<LinearRecord>> {
    let mut work = Work::stateless(sweep.join(cell));
    work.belong_to(solves);
    let mut all = Vec::new();
    for block in 0..blocks {
        all.extend(work.records(block)?);
    }
    Ok(all)
}

/// Fills in the cells of a sweep whose blocks are all solved; what is not measured yet is counted.
pub(super) fn merge(sweep: &Path, fingerprint: &str) -> Result<Merged> {
    let shards = shards(sweep, fingerprint);
    let first = shards.first().context("no shard has solved its blocks")?;
    let mut record = first.record.clone();
    let solves = &first.solves;
    let mut all_linears = Vec::new();
    let mut names = Vec::new();
    for cell in record
        .cells
        .iter_mut()
        .filter(|cell| cell.refused.is_none())
    {
        let linears = linears(sweep, solves, &cell.cell, record.model.blocks)?;
        fill(cell, &linears);
        cell.evaluation = score(sweep, &cell.cell, fingerprint);
        names.push(cell.cell.clone());
        all_linears.push((cell.cell.clone(), linears));
    }
    let summary = &mut record.summary;
    for ShardFile { record: other, .. } in &shards[1..] {
        let other = &other.summary;
        summary.seconds += other.seconds;
        summary.cpu_seconds += other.cpu_seconds;
        summary.peak_rss_bytes = summary.peak_rss_bytes.max(other.peak_rss_bytes);
        add_phases(&mut summary.phases, &other.phases);
        for warning in &other.warnings {
            if !summary.warnings.contains(warning) {
                summary.warnings.push(warning.clone());
            }
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wanted = wanted(measure_of(&record), &record, &names, sweep, solves)?;
    let scored = |name: &String| {
        let cell = record.cells.iter().find(|cell| cell.cell == *name);
        cell.is_some_and(|cell| cell.evaluation.is_some())
    };
    record.summary.unmeasured = wanted.iter().filter(|name| !scored(name)).count();
    record.conclude();
    Ok(Merged {
        record,
        linears: all_linears,
    })
}

/// What the sweep's own pipeline says is to be measured.
fn measure_of(record: &SweepRecord) -> Measure {
    let written = record.pipeline.pointer("/sweep/measure").cloned();
    let scored = record.pipeline.pointer("/evaluate/text").is_some();
    let usual = if scored { Measure::All } else { Measure::None };
    written.map_or(usual, |word| serde_json::from_value(word).unwrap_or(usual))
}

fn fill(cell: &mut CellRecord, linears: &[LinearRecord]) {
    [cell.relative_loss, cell.relative_loss_heldout] = geometric_means(linears);
    cell.predicted_kl = Some(predicted_kl(linears));
    cell.seconds = Some(linears.iter().map(|linear| linear.seconds).sum());
    for linear in linears {
        let told = linear.own_warnings();
        cell.warnings
            .extend(told.map(|warning| format!("{}: {warning}", linear.linear)));
    }
    cell.warnings.extend(doubtful_linears(linears));
}

/// The shards of a sweep that have solved their blocks, in order.
fn shards(sweep: &Path, fingerprint: &str) -> Vec<ShardFile> {
    let mut found = all_shards(sweep);
    found.retain(|(file, _)| file.record.fingerprint == fingerprint);
    let of = found.iter().map(|(file, _)| file.shard.of).next();
    found.retain(|(file, _)| Some(file.shard.of) == of);
    found.sort_by_key(|(file, _)| file.shard.index);
    found.into_iter().map(|(file, _)| file).collect()
}

/// Every shard's word, with the time it was written.
fn all_shards(sweep: &Path) -> Vec<(ShardFile, Option<std::time::SystemTime>)> {
    let entries = std::fs::read_dir(sweep).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let path = entry.path().join("shard.json");
        let file: ShardFile = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        if !file.is_sound() {
            return None;
        }
        let written = path.metadata().and_then(|data| data.modified()).ok();
        Some((file, written))
    });
    files.collect()
}

/// Adds phases of the same name up, longest first.
pub(super) fn add_phases(phases: &mut Vec<PhaseRecord>, others: &[PhaseRecord]) {
    for other in others {
        match phases.iter_mut().find(|phase| phase.name == other.name) {
            Some(phase) => {
                phase.seconds += other.seconds;
                phase.cpu_seconds += other.cpu_seconds;
                phase.peak_rss_growth_bytes =
                    phase.peak_rss_growth_bytes.max(other.peak_rss_growth_bytes);
            }
            None => phases.push(other.clone()),
        }
    }
    phases.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
}

/// Puts together what the shards of the sweep in `out` left, as far as they are, and writes sweep.json and the tables;
/// none where no sweep is under way there.
///
/// # Errors
/// A shard whose blocks are missing, by its number.
pub fn merge_sweep(out: &Path) -> Result<Option<SweepRecord>> {
    let sweep = out.join("halfbyte").join("sweep");
    let mut found = all_shards(&sweep);
    found.sort_by_key(|(_, written)| *written);
    let Some((newest, _)) = found.last() else {
        return Ok(None);
    };
    let (fingerprint, of) = (newest.record.fingerprint.clone(), newest.shard.of);
    let missing = unsolved(&sweep, &fingerprint, of);
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().map(|i| format!("{}/{of}", i + 1)).collect();
        return Err(user_error(
            format!("{}: blocks are missing", sweep.display()),
            format!(
                "run the sweep with --shard {} first",
                list.join(" and --shard ")
            ),
        ));
    }
    let Merged { record, linears } = merge(&sweep, &fingerprint)?;
    write_sweep(out, &record, &linears)?;
    Ok(Some(record))
}
