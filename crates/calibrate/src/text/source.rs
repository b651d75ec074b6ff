//! Where calibration text comes from, and which files a path stands for.

use std::path::{Path, PathBuf};

use super::TextError;

/// One source of calibration text and its share of the windows.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSource {
    /// Where the text lies.
    pub kind: SourceKind,
    /// Share of the windows relative to the other sources' weights: above zero and finite.
    pub weight: f64,
    /// The field (JSON) or column (parquet) that holds the text. `None` takes `text`, or else a chat under
    /// `messages` or `conversations`. Plain text has no columns and ignores it.
    pub text_column: Option<String>,
}

/// Where the text of a [`TextSource`] lies.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// A file (`.txt`, `.text`, `.md`, `.raw`, `.jsonl`, `.ndjson`, `.json`, `.parquet`), or a folder, of which
    /// the `.txt`, `.jsonl`, `.json` and `.parquet` files at its top level are read in the order of their
    /// names; everything else in it (README.md, subfolders) is left alone.
    Path(PathBuf),
    /// Several files that form one source, read in the order given: a hub data set after its download.
    Files {
        /// The name shown in messages and reports, for example the data set's id.
        name: String,
        /// The files, of the kinds [`SourceKind::Path`] lists.
        paths: Vec<PathBuf>,
    },
    /// Text in memory, one document an entry: embedded in the program, or read by the caller.
    Texts {
        /// The name shown in messages and reports.
        name: String,
        /// The documents.
        texts: Vec<String>,
    },
}

impl TextSource {
    /// The name shown in messages and reports.
    pub fn name(&self) -> String {
        match &self.kind {
            SourceKind::Path(path) => path.display().to_string(),
            SourceKind::Files { name, .. } | SourceKind::Texts { name, .. } => name.clone(),
        }
    }
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Plain,
    /// JSON Lines or one JSON array: told apart by the first character, because both come under both names.
    Json,
    Parquet,
}

/// What the file's extension says.
pub(super) fn kind_of(path: &Path) -> Result<FileKind, TextError> {
    match extension(path).as_str() {
        "txt" | "text" | "md" | "raw" => Ok(FileKind::Plain),
        "jsonl" | "ndjson" | "json" => Ok(FileKind::Json),
        "parquet" => Ok(FileKind::Parquet),
        _ => Err(TextError::UnknownKind { path: path.into() }),
    }
}

/// The files a source stands for, in reading order; none for text in memory.
pub(super) fn files_of(kind: &SourceKind) -> Result<Vec<PathBuf>, TextError> {
    match kind {
        SourceKind::Texts { .. } => Ok(Vec::new()),
        SourceKind::Files { paths, .. } => Ok(paths.clone()),
        SourceKind::Path(path) if path.is_dir() => files_in_folder(path),
        SourceKind::Path(path) if path.exists() => Ok(vec![path.clone()]),
        SourceKind::Path(path) => Err(TextError::Missing { path: path.clone() }),
    }
}

fn files_in_folder(folder: &Path) -> Result<Vec<PathBuf>, TextError> {
    let failed = |source| TextError::Read {
        path: folder.into(),
        source,
    };
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // Names that begin with a dot are other programs' files.
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let wanted = matches!(
            extension(&path).as_str(),
            "txt" | "jsonl" | "json" | "parquet"
        );
        if wanted && !hidden && path.is_file() {
            files.push(path)
        } else {
            others.push(path)
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(TextError::EmptyFolder {
            path: folder.into(),
            found: listing(&mut others),
        });
    }
    Ok(files)
}

/// The first names of what is in a folder, for the message that nothing in it can be read.
fn listing(paths: &mut [PathBuf]) -> String {
    if paths.is_empty() {
        return "it is empty".into();
    }
    paths.sort();
    let names = paths
        .iter()
        .take(4)
        .map(|p| p.file_name().unwrap_or_default().to_string_lossy());
    let more = if paths.len() > 4 {
        format!(" and {} more", paths.len() - 4)
    } else {
        String::new()
    };
    format!("it holds {}{more}", names.collect::<Vec<_>>().join(", "))
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase()
}
