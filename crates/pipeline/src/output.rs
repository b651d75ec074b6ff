//! Where a run or a sweep writes: looked at before anything is written, and held by one process.
//!
//! Three promises. Nothing of the user's is overwritten: no output is the source, lies in it or holds it, and a file that
//! an earlier run did not write is never replaced; `halfbyte/files.json` lists those that it did. No two processes write
//! into one folder: the first holds `halfbyte/lock`. And no folder ever holds a mixture: an export is written whole into
//! a hidden folder inside its own, then config.json of the earlier one goes first, without which a folder is no model to any
//! reader, and the new one comes last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use halfbyte_checkpoint::{
    FolderLock, ModelFolder, create_folder, free_bytes, goes_with_model, is_within, move_file,
    plan_shards, real_place, remove_file, remove_folder, remove_partial_files, write_json,
};
use halfbyte_pack::Format;
use serde::{Deserialize, Serialize};

use crate::config::{ModelSource, Pipeline, TextSource};
use crate::error::user_error;
use crate::export::{MAX_SHARD_BYTES, tensor_infos};
use crate::quantize::Layout;

/// The folder of records in a run's folder.
const RECORDS: &str = "halfbyte";
/// The list of files that runs wrote.
const FILES: &str = "files.json";
/// Where an export is put together, in its own folder.
const STAGE: &str = ".halfbyte-export";
/// The card's name.
pub(crate) const CARD: &str = "README.md";
/// Entries of a folder that a message names.
const NAMED: usize = 5;

/// A folder that an export is written into.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) format: Format,
    pub(crate) folder: PathBuf,
    /// Every file that it will have, by name.
    names: BTreeSet<String>,
    /// Bytes of its tensors.
    pub(crate) bytes: u64,
}

impl Destination {
    /// The exports of a layout, in order.
    pub(crate) fn all(layout: &Layout, source: &ModelFolder, out: &Path) -> Result<Vec<Self>> {
        let of = |(format, folder): &(Format, PathBuf)| {
            let infos = tensor_infos(layout, source, *format)?;
            let plan = plan_shards(&infos, MAX_SHARD_BYTES);
            let mut names: BTreeSet<String> = source.other_files()?.into_iter().collect();
            names.extend(plan.shards.into_iter().map(|shard| shard.file));
            names.extend(plan.index.map(|_| INDEX.to_owned()));
            names.extend(format.config_file().map(str::to_owned));
            names.extend([CONFIG.to_owned(), CARD.to_owned()]);
            Ok(Self {
                format: *format,
                folder: out.join(folder),
                names,
                bytes: infos.iter().map(|info| info.bytes()).sum(),
            })
        };
        layout.formats.iter().map(of).collect()
    }

    /// Where it is put together.
    pub(crate) fn stage(&self) -> PathBuf {
        self.folder.join(STAGE)
    }
}

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

/// Files that runs wrote, by folder. Folders in the run's own are told from there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Files {
    folders: BTreeMap<String, Written>,
}

/// Files of an export's folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Written {
    format: String,
    /// By name, with their size where that was known when they were listed.
    files: BTreeMap<String, Option<u64>>,
}

impl Files {
    /// What is listed; for runs of builds that listed nothing, what those wrote.
    fn read(out: &Path) -> Self {
        let text = fs::read(out.join(RECORDS).join(FILES)).ok();
        let listed = text.and_then(|text| serde_json::from_slice(&text).ok());
        listed.unwrap_or_else(|| Self::unlisted(out))
    }

    fn unlisted(out: &Path) -> Self {
        let mut files = Self::default();
        let Ok(run) = halfbyte_report::read_run(out) else {
            return files;
        };
        for export in run.exports {
            let folder = PathBuf::from(export.path);
            let folder = match folder.is_dir() {
                true => folder,
                // the run's folder has moved
                false => out.join(folder.file_name().unwrap_or_default()),
            };
            let names = entries(&folder).into_iter().filter(|name| {
                let weights = name.starts_with("model") && name.contains(".safetensors");
                let configs = [CONFIG, CARD, "quantize_config.json"].contains(&name.as_str());
                weights || configs || goes_with_model(name)
            });
            let written = Written {
                format: export.format,
                files: names.map(|name| (name, None)).collect(),
            };
            files.folders.insert(key(&folder, out), written);
        }
        files
    }

    fn of(&self, folder: &Path, out: &Path) -> Option<&Written> {
        self.folders.get(&key(folder, out))
    }

    fn write(&self, out: &Path) -> Result<()> {
        Ok(write_json(&out.join(RECORDS).join(FILES), self)?)
    }
}

/// How the list names a folder.
fn key(folder: &Path, out: &Path) -> String {
    let (folder, out) = (real_place(folder), real_place(out));
    let place = folder.strip_prefix(&out).unwrap_or(&folder);
    match place.as_os_str().is_empty() {
        true => ".".to_owned(),
        false => place.display().to_string(),
    }
}

/// Whether two paths lead to one place.
pub(crate) fn is_same_place(a: &Path, b: &Path) -> bool {
    is_within(a, b) && is_within(b, a)
}

/// Names of what is directly in a folder.
fn entries(folder: &Path) -> Vec<String> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = found
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Whether a file is part of some checkpoint, by its name.
fn is_of_checkpoint(name: &str) -> bool {
    const ENDS: [&str; 9] = [
        ".safetensors",
        ".index.json",
        ".bin",
        ".pt",
        ".pth",
        ".gguf",
        ".h5",
        ".msgpack",
        ".onnx",
    ];
    const NAMES: [&str; 6] = [
        CONFIG,
        "adapter_config.json",
        "quantize_config.json",
        "quant_config.json",
        "quantization_config.json",
        "params.json",
    ];
    ENDS.iter().any(|end| name.ends_with(end)) || NAMES.contains(&name)
}

/// Refuses places that a run must not write into; nothing is written by this.
///
/// # Errors
/// An output that is the source, lies in it or holds it; one that holds another checkpoint, or files that would be replaced
/// though no run wrote them; two exports in one folder.
pub(crate) fn check_places(
    pipeline: &Pipeline,
    source: &ModelFolder,
    out: &Path,
    destinations: &[Destination],
) -> Result<()> {
    let mut outputs = vec![("the output folder".to_owned(), out.to_owned())];
    outputs.extend(destinations.iter().map(|to| {
        let what = format!("the folder of the {} export", to.format);
        (what, to.folder.clone())
    }));
    for (what, folder) in &outputs {
        check_sources(pipeline, source, what, folder)?;
        check_is_folder(what, folder)?;
    }
    let records = out.join(RECORDS);
    for (index, to) in destinations.iter().enumerate() {
        if is_within(&to.folder, &records) {
            return Err(user_error(
                format!(
                    "export: the folder of the {} export, {}, is where a run keeps its own files",
                    to.format,
                    to.folder.display()
                ),
                "choose an `out` outside of `halfbyte`",
            ));
        }
        let earlier = destinations[..index]
            .iter()
            .find(|other| is_same_place(&to.folder, &other.folder));
        if let Some(other) = earlier {
            return Err(user_error(
                format!(
                    "export: {} and {} would both be written into {}",
                    other.format,
                    to.format,
                    to.folder.display()
                ),
                "give each export an `out` of its own",
            ));
        }
    }
    check_records(&records)?;
    let files = Files::read(out);
    for to in destinations {
        check_foreign(to, &files, out)?;
    }
    let own = |folder: &Path| key(folder, out) == ".";
    if !destinations.iter().any(|to| own(&to.folder)) && !files.folders.contains_key(".") {
        refuse_foreign(
            out,
            entries(out)
                .into_iter()
                .filter(|name| name == CONFIG || name.ends_with(".safetensors")),
        )?;
    }
    Ok(())
}

/// The model's folder, and the texts' where they are folders.
fn check_sources(
    pipeline: &Pipeline,
    source: &ModelFolder,
    what: &str,
    folder: &Path,
) -> Result<()> {
    let mut model = match &pipeline.model.source {
        ModelSource::Embedded(_) => None,
        _ => Some(PathBuf::from(source.place())),
    };
    if let (ModelSource::Hub(_), Some(place)) = (&pipeline.model.source, &model) {
        // CACHE/models--ORG--NAME/snapshots/COMMIT links into CACHE/models--ORG--NAME/blobs
        let repository = place.parent().and_then(Path::parent);
        model = repository.map(Path::to_owned).or(model);
    }
    let hint = "choose another --out, beside the model and not in it";
    if let Some(model) = model {
        let (inside, holds) = (is_within(folder, &model), is_within(&model, folder));
        let how = match (inside, holds) {
            (true, true) => "is the model's own folder",
            (true, false) => "lies in the model's folder",
            (false, true) => "holds the model's folder",
            (false, false) => "",
        };
        if !how.is_empty() {
            let place = match folder == model {
                true => String::new(),
                false => format!(", {}", model.display()),
            };
            return Err(user_error(
                format!(
                    "{}: {what} {how}{place}; nothing was written",
                    folder.display()
                ),
                hint,
            ));
        }
    }
    let texts = pipeline.calibration.sources.iter();
    let texts = texts.filter_map(|source| match &source.text {
        TextSource::Path(located) => Some(located.path.as_path()),
        _ => None,
    });
    let scored = pipeline.evaluate.iter().map(|e| e.text.path.as_path());
    let texts = texts.map(|text| (text, "calibration"));
    for (text, of) in texts.chain(scored.map(|text| (text, "evaluation"))) {
        if is_same_place(folder, text) {
            return Err(user_error(
                format!(
                    "{}: {what} is the folder of the {of} text, whose files would then be read as text; nothing was \
                     written",
                    folder.display()
                ),
                "choose another --out",
            ));
        }
    }
    Ok(())
}

/// A file on the way to a folder is told before the work and not after it.
fn check_is_folder(what: &str, folder: &Path) -> Result<()> {
    let place = real_place(folder);
    let existing = place.ancestors().find(|place| place.exists());
    match existing.filter(|place| !place.is_dir()) {
        Some(file) => Err(user_error(
            format!(
                "{}: {what} cannot be made, {} is a file",
                folder.display(),
                file.display()
            ),
            "choose another name, or move the file",
        )),
        None => Ok(()),
    }
}

/// Folders where a run's own files are to be, files where its folders are to be, and a `work` that is not a run's.
fn check_records(records: &Path) -> Result<()> {
    let files = [
        "run.json",
        "linears.csv",
        "report.html",
        "generated.json",
        "sweep.json",
        "sweep.csv",
        "sweep.html",
        FILES,
    ];
    for name in files {
        in_the_way(&records.join(name), false)?;
    }
    for name in ["work", "sweep", "cells"] {
        in_the_way(&records.join(name), true)?;
    }
    let work = records.join("work");
    let starts = [
        "block-",
        "stream-",
        "tuned",
        "changed",
        "float-",
        "budget.json",
        "state.json",
        ".halfbyte-",
    ];
    let is_ours =
        |name: &String| starts.iter().any(|s| name.starts_with(s)) || name.ends_with(".spill");
    refuse_foreign(
        &work,
        entries(&work).into_iter().filter(|name| !is_ours(name)),
    )
}

fn in_the_way(path: &Path, wants_folder: bool) -> Result<()> {
    if !path.exists() || path.is_dir() == wants_folder {
        return Ok(());
    }
    let (is, wanted) = match wants_folder {
        true => ("a file", "folder"),
        false => ("a folder", "file"),
    };
    Err(user_error(
        format!(
            "{}: is {is}, where a run writes a {wanted} of this name",
            path.display()
        ),
        "choose another --out, or move it away",
    ))
}

/// What stands in an export's folder that no run wrote.
fn check_foreign(to: &Destination, files: &Files, out: &Path) -> Result<()> {
    let ours = files.of(&to.folder, out);
    let foreign = entries(&to.folder).into_iter().filter(|name| {
        let listed = ours.is_some_and(|ours| ours.files.contains_key(name));
        !listed && (to.names.contains(name) || is_of_checkpoint(name))
    });
    refuse_foreign(&to.folder, foreign)?;
    for name in &to.names {
        in_the_way(&to.folder.join(name), false)?;
    }
    Ok(())
}

fn refuse_foreign(folder: &Path, foreign: impl Iterator<Item = String>) -> Result<()> {
    let names: Vec<String> = foreign.collect();
    if names.is_empty() {
        return Ok(());
    }
    let more = match names.len() > NAMED {
        true => format!(" and {} more", names.len() - NAMED),
        false => String::new(),
    };
    let list = names[..names.len().min(NAMED)].join(", ");
    Err(user_error(
        format!(
            "{}: holds files that no run of halfbyte wrote and that would be replaced or mixed with its own: {list}{more}",
            folder.display()
        ),
        "choose another --out, or move them away; they are never overwritten",
    ))
}

/// An output folder that this process holds.
#[derive(Debug)]
pub(crate) struct Output {
    out: PathBuf,
    files: Files,
    _locks: Vec<FolderLock>,
}

impl Output {
    /// Locks an output folder, and export folders outside of it, and clears what killed processes left half-written there.
    /// Gives a note where the file system has no locks.
    ///
    /// # Errors
    /// Another process that writes here; a folder that cannot be written.
    pub(crate) fn open(out: &Path, destinations: &[Destination]) -> Result<(Self, Option<String>)> {
        let mut locks = vec![FolderLock::exclusive(&lock_path(out))?];
        for to in destinations {
            if !is_within(&to.folder, out) {
                locks.push(FolderLock::exclusive(&to.folder.join(".halfbyte-lock"))?);
            }
        }
        let note = locks.iter().any(|lock| !lock.is_real()).then(|| {
            format!(
                "{}: this file system has no locks; see to it that no other process writes here",
                out.display()
            )
        });
        clear_records(out)?;
        for to in destinations {
            if to.folder.is_dir() {
                remove_partial_files(&to.folder)?;
                remove_folder(&to.stage())?;
            }
        }
        let output = Self {
            out: out.to_owned(),
            files: Files::read(out),
            _locks: locks,
        };
        Ok((output, note))
    }

    /// Locks an output folder together with the other shards of a sweep, and this shard's part of it alone.
    ///
    /// # Errors
    /// A process that holds the folder alone; another one with the same shard.
    pub(crate) fn open_shared(out: &Path, shard: &str) -> Result<Self> {
        let shared = FolderLock::shared(&lock_path(out))?;
        let own = FolderLock::exclusive(&out.join(RECORDS).join(format!("lock-{shard}")))?;
        Ok(Self {
            out: out.to_owned(),
            files: Files::read(out),
            _locks: vec![own, shared],
        })
    }

    /// The run's folder.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Whether an export is there as a run left it, by the names and sizes of its files.
    pub(crate) fn has(&self, to: &Destination) -> bool {
        let listed = self.files.of(&to.folder, &self.out);
        listed.is_some_and(|written| {
            written.format == to.format.to_string() && is_intact(&to.folder, &written.files)
        })
    }

    /// All exports that are there as runs left them: format and folder.
    pub(crate) fn intact(&self) -> Vec<(String, PathBuf)> {
        let all = self.files.folders.iter().map(|(key, written)| {
            let folder = match key.as_str() {
                "." => self.out.clone(),
                key => self.out.join(key),
            };
            (written, folder)
        });
        all.filter(|(written, folder)| {
            !written.format.is_empty() && is_intact(folder, &written.files)
        })
        .map(|(written, folder)| (written.format.clone(), folder))
        .collect()
    }

    /// Takes the word away that a run is finished, before its exports are replaced.
    pub(crate) fn forget_finished(&self) -> Result<()> {
        for name in ["run.json", "linears.csv", "report.html"] {
            remove_file(&self.out.join(RECORDS).join(name))?;
        }
        Ok(())
    }

    /// Puts an export that was written into [`Destination::stage`] in its place.
    pub(crate) fn place(&mut self, to: &Destination) -> Result<()> {
        let stage = to.stage();
        let mut new: BTreeMap<String, Option<u64>> = BTreeMap::new();
        for name in entries(&stage) {
            let bytes = stage
                .join(&name)
                .metadata()
                .with_context(|| name.clone())?
                .len();
            new.insert(name, Some(bytes));
        }
        new.insert(CARD.to_owned(), None);
        let key = key(&to.folder, &self.out);
        let old = self
            .files
            .folders
            .get(&key)
            .cloned()
            .unwrap_or_default()
            .files;
        // Both are listed until only one is there; a folder listed so is never taken for whole, having no format.
        let mut both = old.clone();
        both.extend(new.keys().map(|name| (name.clone(), None)));
        let unfinished = Written {
            format: String::new(),
            files: both,
        };
        self.files.folders.insert(key.clone(), unfinished);
        self.files.write(&self.out)?;

        remove_file(&to.folder.join(CONFIG))?;
        for name in old
            .keys()
            .filter(|name| !new.contains_key(*name) || *name == CARD)
        {
            remove_file(&to.folder.join(name))?;
        }
        let config_last = new.keys().filter(|name| *name != CONFIG && *name != CARD);
        for name in config_last.map(String::as_str).chain([CONFIG]) {
            move_file(&stage.join(name), &to.folder.join(name))?;
        }
        remove_folder(&stage)?;
        let written = Written {
            format: to.format.to_string(),
            files: new,
        };
        self.files.folders.insert(key, written);
        self.files.write(&self.out)
    }
}

/// Removes half-written records; nobody else may be writing them.
fn clear_records(out: &Path) -> Result<()> {
    let records = out.join(RECORDS);
    for folder in [records.join("cells"), records] {
        if folder.is_dir() {
            remove_partial_files(&folder)?;
        }
    }
    Ok(())
}

/// Removes what killed processes left half-written among a run's records, unless another process writes there; what is given
/// keeps others out until it is dropped.
pub fn clear_leftovers(out: &Path) -> Option<FolderLock> {
    let records = out.join(RECORDS);
    if !records.is_dir() {
        return None;
    }
    let lock = FolderLock::exclusive(&lock_path(out)).ok()?;
    // a folder that may only be read has nothing to be cleared
    let _ = clear_records(out);
    Some(lock)
}

fn is_intact(folder: &Path, files: &BTreeMap<String, Option<u64>>) -> bool {
    let there = |(name, bytes): (&String, &Option<u64>)| {
        let found = folder.join(name).metadata();
        found.is_ok_and(|data| data.is_file() && bytes.is_none_or(|b| b == data.len()))
    };
    // the card comes later, and its owner may do with it as they like
    let mut wanted = files.iter().filter(|(name, _)| *name != CARD);
    files.contains_key(CONFIG) && wanted.all(there)
}

fn lock_path(out: &Path) -> PathBuf {
    out.join(RECORDS).join("lock")
}

/// Makes the empty folder that an export is put together in.
pub(crate) fn clear_stage(to: &Destination) -> Result<PathBuf> {
    let stage = to.stage();
    remove_folder(&stage)?;
    create_folder(&stage)?;
    Ok(stage)
}

/// Refuses a run that the disk has no room for: the exports, and the finished blocks that lie beside them until the end.
///
/// # Errors
/// Fewer bytes free than that.
pub(crate) fn check_room(out: &Path, destinations: &[Destination], work_bytes: u64) -> Result<()> {
    let exports: u64 = destinations.iter().map(|to| to.bytes).sum();
    let needed = exports + work_bytes;
    match free_bytes(out) {
        Some(free) if free < needed => Err(user_error(
            format!(
                "{}: {} are free, this needs {}: {} for what is exported, {} for finished blocks until then",
                out.display(),
                halfbyte_report::bytes(free),
                halfbyte_report::bytes(needed),
                halfbyte_report::bytes(exports),
                halfbyte_report::bytes(work_bytes)
            ),
            "free space, export fewer formats, or choose an --out on another disk",
        )),
        _ => Ok(()),
    }
}
