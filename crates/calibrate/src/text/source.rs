//! Where calibration text comes from, and which files a path stands for.

use std::fmt;
use std::path::{Path, PathBuf};

use super::TextError;

/// One source of calibration text and its share of the windows.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSource {
    /// Where the text lies.
    pub kind: SourceKind,
    /// Share of the windows relative to the other sources' weights: above zero and finite.
    pub weight: f64,
    /// The field (JSON) or column (CSV, parquet) that holds the text, a chat or token ids. `None` takes `text`, or else a
    /// chat (`messages`, `conversations`), preference data (`chosen`), a question and its answer (`prompt` and
    /// `completion`, `instruction` and `output` and their like), `input_ids`, a column of a usual name (`content`), or
    /// the only column of strings. Plain text has no columns and ignores it.
    pub text_column: Option<String>,
    /// Whether chats are written with the model's own chat template, where it has one; otherwise their messages are joined.
    pub chat_template: bool,
}

/// Where the text of a [`TextSource`] lies.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// A file (`.txt`, `.text`, `.md`, `.raw`, `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, each also packed
    /// as `.gz` or `.zst`; another one by its content), or a folder, of which such files are read in the order of their
    /// paths, those of its subfolders too. `.md` files in it and names that begin with a dot are left alone. Where names
    /// tell splits apart, calibration reads `train` and evaluation `test` or else `validation`.
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
    /// Cells between this byte.
    Csv(u8),
    Parquet,
}

impl FileKind {
    /// The kind in words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain text",
            Self::Json => "JSON",
            Self::Csv(b'\t') => "TSV",
            Self::Csv(_) => "CSV",
            Self::Parquet => "parquet",
        }
    }
}

/// Which part of a data set is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Calibration,
    Evaluation,
}

/// The files of a source, in reading order, and what is to be told of those left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) paths: Vec<PathBuf>,
    pub(super) told: Vec<String>,
}

/// What the file's extension says, that of a packing aside.
pub(super) fn kind_by_name(path: &Path) -> Option<FileKind> {
    let extension = match extension(path).as_str() {
        "gz" | "gzip" | "zst" | "zstd" => extension(Path::new(path.file_stem()?)),
        other => other.to_owned(),
    };
    match extension.as_str() {
        "txt" | "text" | "md" | "raw" => Some(FileKind::Plain),
        "jsonl" | "ndjson" | "json" => Some(FileKind::Json),
        "csv" => Some(FileKind::Csv(b',')),
        "tsv" | "tab" => Some(FileKind::Csv(b'\t')),
        "parquet" => Some(FileKind::Parquet),
        _ => None,
    }
}

/// What the first bytes say of a file whose name says nothing.
pub(super) fn kind_by_content(path: &Path, head: &[u8]) -> Result<FileKind, TextError> {
    let unknown = |found| TextError::UnknownKind {
        path: path.into(),
        found,
    };
    if head.starts_with(b"ARROW1") || head.starts_with(b"\xff\xff\xff\xff") {
        return Err(unknown("an Arrow file; write it as parquet"));
    }
    let has_mark = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    if head.contains(&0) && !has_mark {
        return Err(unknown("binary data"));
    }
    let mut text = head
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(head)
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace());
    Ok(match (text.next(), text.next()) {
        (Some(b'{'), Some(b'"')) | (Some(b'['), Some(b'{' | b'"')) => FileKind::Json,
        _ => FileKind::Plain,
    })
}

/// The files a source stands for; none for text in memory.
pub(super) fn files_of(kind: &SourceKind, purpose: Purpose) -> Result<Files, TextError> {
    match kind {
        SourceKind::Texts { .. } => Ok(Files::default()),
        SourceKind::Files { paths, .. } => {
            Ok(chosen(paths.clone(), &common_folder(paths), purpose))
        }
        SourceKind::Path(path) if path.is_dir() => files_in_folder(path, purpose),
        SourceKind::Path(path) if path.exists() => Ok(Files {
            paths: vec![path.clone()],
            told: Vec::new(),
        }),
        SourceKind::Path(path) => Err(TextError::Missing { path: path.clone() }),
    }
}

/// The innermost folder that all files lie in.
fn common_folder(paths: &[PathBuf]) -> PathBuf {
    let mut folders = paths.iter().map(|path| path.parent().unwrap_or(path));
    let Some(mut common) = folders.next() else {
        return PathBuf::new();
    };
    for folder in folders {
        while !folder.starts_with(common) {
            common = common.parent().unwrap_or(Path::new(""));
        }
    }
    common.to_path_buf()
}

/// A part of a data set, as file and folder names tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Split {
    Train,
    Validation,
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// The split that a path below the data set's folder names, the innermost name first.
fn split_of(path: &Path, folder: &Path) -> Option<Split> {
    let below = path.strip_prefix(folder).unwrap_or(path);
    below.components().rev().find_map(|part| {
        let name = part.as_os_str().to_string_lossy().to_ascii_lowercase();
        name.split(|c: char| !c.is_ascii_alphabetic())
            .find_map(|word| match word {
                "train" | "training" => Some(Split::Train),
                "validation" | "valid" | "val" | "dev" | "eval" | "evaluation" => {
                    Some(Split::Validation)
                }
                "test" | "testing" => Some(Split::Test),
                _ => None,
            })
    })
}

/// The files of the split that is wanted: for calibration `train`, or what is of no split, or whatever there is; for
/// evaluation `test`, else `validation`, else what is of no split, else all.
fn chosen(paths: Vec<PathBuf>, folder: &Path, purpose: Purpose) -> Files {
    let splits: Vec<Option<Split>> = paths.iter().map(|path| split_of(path, folder)).collect();
    let order: &[Option<Split>] = match purpose {
        Purpose::Calibration => &[Some(Split::Train), None],
        Purpose::Evaluation => &[Some(Split::Test), Some(Split::Validation), None],
    };
    let wanted = order.iter().find(|wanted| splits.contains(wanted));
    let found = splits.iter().flatten().min();
    let (Some(wanted), Some(_)) = (wanted, found) else {
        // no file is of a split, or none of the wanted ones
        let told = match found {
            Some(split) if !paths.is_empty() => vec![format!(
                "took the split {split} and what there is beside it, because there is no other"
            )],
            _ => Vec::new(),
        };
        return Files { paths, told };
    };
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for (path, split) in paths.into_iter().zip(&splits) {
        match split == wanted {
            true => taken.push(path),
            false => left.push(path),
        }
    }
    let told = match left.is_empty() {
        true => Vec::new(),
        false => {
            let what = match wanted {
                Some(split) => format!("the split {split}"),
                None => "what is of no split".to_owned(),
            };
            vec![format!(
                "took {what}, {} files, and left {}",
                taken.len(),
                names(&left, folder)
            )]
        }
    };
    Files { paths: taken, told }
}

/// Folders inside one another that are searched.
const DEPTH: usize = 8;

/// Files of data sets that describe them.
const DESCRIPTIONS: [&str; 5] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "dataset-metadata.json",
    "state.json",
];

fn files_in_folder(folder: &Path, purpose: Purpose) -> Result<Files, TextError> {
    let (mut files, mut others) = (Vec::new(), Vec::new());
    walk(folder, DEPTH, &mut files, &mut others)?;
    files.sort();
    others.sort();
    if files.is_empty() {
        return Err(TextError::EmptyFolder {
            path: folder.into(),
            found: match others.is_empty() {
                true => "it is empty".into(),
                false => format!("it holds {}", names(&others, folder)),
            },
        });
    }
    let mut chosen = chosen(files, folder, purpose);
    // what goes with every data set need not be told
    others.retain(|path| {
        let is_note = matches!(extension(path).as_str(), "md" | "py" | "");
        !is_note && !is_description(path) && !is_hidden(path)
    });
    if !others.is_empty() {
        chosen.told.push(format!(
            "left what is no text file by its name: {}",
            names(&others, folder)
        ));
    }
    Ok(chosen)
}

/// Files below a folder whose names tell that they are text, and the others. Links to folders are not followed.
fn walk(
    folder: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
    others: &mut Vec<PathBuf>,
) -> Result<(), TextError> {
    let failed = |source| TextError::Read {
        path: folder.into(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let is_notes = extension(&path) == "md" || is_description(&path);
        match is_hidden(&path) {
            false if is_folder && depth > 0 => walk(&path, depth - 1, files, others)?,
            false if kind_by_name(&path).is_some() && !is_notes && path.is_file() => {
                files.push(path);
            }
            _ => others.push(path),
        }
    }
    Ok(())
}

/// Names that begin with a dot are other programs' files.
fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn is_description(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| DESCRIPTIONS.iter().any(|known| name == *known))
}

/// The first of some files below a folder, and how many there are more.
fn names(paths: &[PathBuf], folder: &Path) -> String {
    const NAMED: usize = 4;
    let first: Vec<String> = paths
        .iter()
        .take(NAMED)
        .map(|path| {
            path.strip_prefix(folder)
                .unwrap_or(path)
                .display()
                .to_string()
        })
        .collect();
    let more = match paths.len() > NAMED {
        true => format!(" and {} more", paths.len() - NAMED),
        false => String::new(),
    };
    format!("{}{more}", first.join(", "))
}

fn extension(path: &Path) -> String {
    path.extension()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase()
}
