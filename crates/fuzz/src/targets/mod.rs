//! What is fuzzed: a reader each, with valid inputs to begin from.

mod model;
mod pipeline;
mod records;
mod text;

use std::io;
use std::path::{Path, PathBuf};

use crate::mutate::Format;

/// Reads an input and says what came of it: `ok ...`, or an error's words.
pub(crate) type Reader = Box<dyn FnMut(&[u8]) -> String>;

/// One reader.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    /// Valid inputs.
    pub(crate) seeds: Vec<Vec<u8>>,
    /// Words that mean something to it beside those of the seeds.
    pub(crate) words: &'static [&'static str],
    /// Makes what is made once: a folder, a tokenizer.
    pub(crate) reader: fn() -> Reader,
}

impl Target {
    /// How many times the usual memory and time an input may cost. A chat template is a program: minijinja lets it make lists of
    /// a million entries in a step, which hold 430 MB and take seconds to print, and has no setting for less.
    pub(crate) fn allowance(&self) -> u32 {
        match self.name {
            "chat_template" => 10,
            _ => 1,
        }
    }
}

type Maker = fn() -> Target;

const TARGETS: [(&str, Maker); 19] = [
    ("config", model::config),
    ("quantization_config", model::quantization_config),
    ("safetensors", model::safetensors),
    ("index", model::index),
    ("packed_weights", model::packed_weights),
    ("tokenizer", model::tokenizer),
    ("chat_template", model::chat_template),
    ("generation_config", model::generation_config),
    ("model_folder", model::model_folder),
    ("pipeline", pipeline::pipeline),
    ("overrides", pipeline::overrides),
    ("sweep", pipeline::sweep),
    ("run_record", records::run),
    ("sweep_record", records::sweep),
    ("work_folder", records::work_folder),
    ("jsonl", text::jsonl),
    ("json", text::json),
    ("csv", text::csv),
    ("parquet", text::parquet),
];

/// All targets, by name.
pub fn names() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, _)| *name)
}

pub(crate) fn target(name: &str) -> io::Result<Target> {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, make) = found.ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        let told = format!("no target is called {name}; there are {}", known.join(", "));
        io::Error::new(io::ErrorKind::InvalidInput, told)
    })?;
    let target = make();
    debug_assert_eq!(target.name, name);
    Ok(target)
}

/// A folder to write inputs to, in memory where the system has such.
pub fn scratch() -> tempfile::TempDir {
    let in_memory = Path::new("/dev/shm");
    let folder = match in_memory.is_dir() {
        true => tempfile::tempdir_in(in_memory),
        false => tempfile::tempdir(),
    };
    folder.expect("a folder for temporary files can be made")
}

/// The project's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = made.and_then(|()| std::fs::write(&path, bytes));
    written.expect("the folder for temporary files can be written to");
}

/// `ok`, with what was found, or the error's words.
fn said<T, E: std::fmt::Display>(outcome: Result<T, E>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}
