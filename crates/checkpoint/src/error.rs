//! Everything that can be wrong with a model folder, a download or a write, said to the person who must mend it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

/// What went wrong, where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused a read or a write.
    #[error("cannot {action} {}: {source}{}", path.display(), io_hint(source.kind()))]
    Io {
        /// `read`, `write`, `create` ...: completes "cannot".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Another process writes into an output folder.
    #[error(
        "{}: another halfbyte{} is writing here{}; wait until it has ended, or choose another output folder",
        folder.display(),
        process.map_or_else(String::new, |pid| format!(" (process {pid})")),
        host.as_ref().map_or_else(String::new, |host| format!(" on {host}"))
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The other's process id, where it left word.
        process: Option<u32>,
        /// The machine it runs on, where that is another.
        host: Option<String>,
    },
    /// A model source that is none of the three forms.
    #[error(
        "model source '{0}' is neither an existing folder, nor embedded:tiny, nor a hub id such as org/name or \
         org/name@revision"
    )]
    Source(String),
    /// No such model in this program.
    #[error("no embedded model is called '{0}'; use embedded:tiny")]
    Embedded(String),
    /// The folder lacks config.json.
    #[error(
        "{} holds no config.json; name the folder that has config.json and model.safetensors side by side",
        .0.display()
    )]
    NoConfig(PathBuf),
    /// The folder lacks weights.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json{}; weights must be safetensors",
        folder.display(),
        found_list(others)
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Weight files of other kinds that are there.
        others: Vec<String>,
    },
    /// Text that is not JSON, or JSON of another form.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A field of config.json that cannot be.
    #[error("{}: {field}: {problem}", path.display())]
    ConfigField {
        /// The file.
        path: PathBuf,
        /// The field, dotted.
        field: &'static str,
        /// Found and wanted.
        problem: String,
    },
    /// A model of an architecture that cannot be read.
    #[error("{}: model_type: '{found}' is not supported; known are {known}", path.display())]
    ModelType {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: String,
        /// Every known one, comma separated.
        known: String,
    },
    /// The index names a weight file that is not there.
    #[error(
        "{} names {shard}, which is not in the folder; it holds {n_tensors} tensors, {first} among them, download it \
         again",
        index.display()
    )]
    ShardMissing {
        /// The index file.
        index: PathBuf,
        /// The missing file.
        shard: String,
        /// Tensors the index puts there.
        n_tensors: usize,
        /// One of them.
        first: String,
    },
    /// A weight file that is no safetensors file at all.
    #[error("{}: not a safetensors file: {reason}", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// What was found instead, and what to do.
        reason: &'static str,
    },
    /// The header's length passes the end of the file.
    #[error(
        "{}: header of {header} bytes in a file of {bytes} bytes; the file is cut short, copy or download it again",
        path.display()
    )]
    HeaderBeyondFile {
        /// The file.
        path: PathBuf,
        /// Length the first eight bytes give.
        header: u64,
        /// Length of the file.
        bytes: u64,
    },
    /// The tensors pass the end of the file.
    #[error(
        "{}: {bytes} bytes, but the header wants {wanted}; the file is cut short, copy or download it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Length of the file.
        bytes: u64,
        /// Length the header asks for.
        wanted: u64,
    },
    /// A header that contradicts itself or the file.
    #[error("{}: damaged safetensors header: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor asked for by name.
    #[error("{place}: no tensor {name}")]
    NoTensor {
        /// Folder or embedded model.
        place: String,
        /// The tensor.
        name: String,
    },
    /// Tensors that the config requires.
    #[error(
        "{place}: {count} of the tensors that config.json calls for are missing: {}{}; \
         {}",
        first.join(", "),
        if *count > first.len() { ", ..." } else { "" },
        match first[..] == ["lm_head.weight"] {
            true => "where the head is the embedding, config.json must say tie_word_embeddings: true",
            false => "the folder is incomplete or of another architecture",
        }
    )]
    TensorsMissing {
        /// Folder or embedded model.
        place: String,
        /// How many.
        count: usize,
        /// The first few.
        first: Vec<String>,
    },
    /// Tensors that the architecture has no place for and that change what a model computes.
    #[error(
        "{place}: the weights hold {count} tensor{} that {architecture} does not compute with: {}{}; the result would be of \
         another model; {hint}",
        if *count == 1 { "" } else { "s" },
        first.join(", "),
        if *count > first.len() { ", ..." } else { "" }
    )]
    AnotherModel {
        /// Folder or embedded model.
        place: String,
        /// The architecture that the folder is read as.
        architecture: &'static str,
        /// How many.
        count: usize,
        /// The first few.
        first: Vec<String>,
        /// What may mend it.
        hint: &'static str,
    },
    /// A tensor of another shape than the config says.
    #[error("{place}: {name} has shape {found:?}, wanted {wanted:?} by config.json")]
    Shape {
        /// Folder or embedded model.
        place: String,
        /// The tensor.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the config.
        wanted: Vec<usize>,
    },
    /// A tensor that is not of a floating-point type we read.
    #[error(
        "{place}: {name} is {found:?}, wanted F64, F32, F16 or BF16; take a checkpoint that is not quantized yet"
    )]
    ElementType {
        /// Folder or embedded model.
        place: String,
        /// The tensor.
        name: String,
        /// In the file.
        found: Dtype,
    },
    /// A value that is NaN or infinite.
    #[error(
        "{place}: {name} holds {value} at flat index {index}{}; the checkpoint is damaged",
        match row_column { Some((row, column)) => format!(" (row {row}, column {column})"), None => String::new() }
    )]
    NotFinite {
        /// Folder or embedded model.
        place: String,
        /// The tensor.
        name: String,
        /// NaN, inf or -inf.
        value: f32,
        /// Place in row-major order.
        index: usize,
        /// The same for a matrix.
        row_column: Option<(usize, usize)>,
    },
    /// No usable tokenizer.
    #[error("{place}: tokenizer.json: {reason}")]
    Tokenizer {
        /// Folder or embedded model.
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A hub id, in a program built without the hub.
    #[error(
        "'{0}' is no folder here, and this program was built without the `hub` feature; \
         download the model yourself and give its folder"
    )]
    HubDisabled(String),
    /// The hub answered with an error status.
    #[error(
        "{repo}: {file}: the hub answered {status}{}; {}",
        match words { Some(words) => format!(", \"{words}\""), None => String::new() },
        status_hint(*status)
    )]
    HubStatus {
        /// `org/name@revision`.
        repo: String,
        /// File, or `file list`.
        file: String,
        /// HTTP status.
        status: u16,
        /// What the hub says beside it, where it refuses.
        words: Option<String>,
    },
    /// The hub could not be reached, or the connection broke.
    #[error(
        "{repo}: {file}: download from {endpoint} failed: {reason}; run again to go on where it stopped, or set \
         HF_HUB_OFFLINE=1 to use the cache alone"
    )]
    HubTransport {
        /// `org/name@revision`.
        repo: String,
        /// File, or `file list`.
        file: String,
        /// The endpoint asked.
        endpoint: String,
        /// What the connection says.
        reason: String,
    },
    /// Not in the cache, and no network wanted.
    #[error(
        "{repo}: {what} in the cache {}, and offline mode is on; unset HF_HUB_OFFLINE to download it, or point \
         HF_HUB_CACHE to the cache that has it",
        cache.display()
    )]
    HubOffline {
        /// `org/name@revision`.
        repo: String,
        /// What is not there.
        what: String,
        /// The cache.
        cache: PathBuf,
    },
    /// A downloaded file that is not what the hub announced; it has been removed.
    #[error("{repo}: {file}: {reason}; the file was removed, run again to download it")]
    HubDamaged {
        /// `org/name@revision`.
        repo: String,
        /// The file.
        file: String,
        /// Found and wanted.
        reason: String,
    },
    /// A repository without the files needed.
    #[error("{repo}: {reason}")]
    HubContent {
        /// `org/name@revision`.
        repo: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// Tensors were written otherwise than announced.
    #[error("{}: {reason}", path.display())]
    WriteOrder {
        /// The file being written.
        path: PathBuf,
        /// Found and wanted.
        reason: String,
    },
}

impl CheckpointError {
    /// Wraps what the system said: `action` completes "cannot".
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// What happened, without the remedy, where something will be tried first.
    #[cfg(feature = "hub")]
    pub(crate) fn brief(&self) -> String {
        match self {
            Self::HubTransport {
                repo,
                file,
                endpoint,
                reason,
            } => format!("{repo}: {file}: download from {endpoint} failed: {reason}"),
            Self::HubStatus {
                repo, file, status, ..
            } => format!("{repo}: {file}: the hub answered {status}"),
            other => other.to_string(),
        }
    }
}

/// How to mend what the system refuses.
fn io_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; free space or choose another output folder"
        }
        ErrorKind::FileTooLarge => {
            "; the file is larger than the file system or a limit (`ulimit -f`) allows, raise it or choose another output folder"
        }
        ErrorKind::PermissionDenied => {
            "; choose a folder that you may use, or change its permissions"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "; the disk is mounted read-only, choose another output folder"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "; a file stands where a folder is needed, choose another name"
        }
        _ => "",
    }
}

fn status_hint(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "a private or gated repository wants HF_TOKEN, the token of an account that may read it, and a gated one that \
             its licence was accepted on its page; or check the id"
        }
        404 => "check the id, the revision and the file, or name a folder that exists",
        429 => "too many requests, wait a little and run again",
        _ => "run again later, or set HF_HUB_OFFLINE=1 to use the cache alone",
    }
}

fn found_list(others: &[String]) -> String {
    if others.is_empty() {
        return String::new();
    }
    format!(" (found {})", others.join(", "))
}
