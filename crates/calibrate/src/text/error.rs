//! What can be wrong with calibration or evaluation text. All of it is the user's to mend.

use std::io;
use std::path::PathBuf;

use super::Packing;

/// What is wrong with the text or with how it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The list of sources is empty.
    #[error(
        "no calibration text: the list of sources is empty; give at least one file, folder or data set"
    )]
    NoSources,
    /// An option outside its range.
    #[error("{option} is {found}, wanted {wanted}")]
    Option {
        /// The option's name in the pipeline file.
        option: &'static str,
        /// The value given.
        found: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// A weight that is zero, negative or not a number.
    #[error(
        "{name}: weight is {weight}, wanted a number above 0; remove the source to leave it out"
    )]
    Weight {
        /// The source.
        name: String,
        /// The weight given.
        weight: f64,
    },
    /// A path with nothing behind it.
    #[error("{}: no such file or folder; paths are relative to the folder halfbyte is started in", path.display())]
    Missing {
        /// The path given.
        path: PathBuf,
    },
    /// The operating system could not read it.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of which neither name nor content say how to read it.
    #[error(
        "{}: unknown kind of file, {found}; wanted text (.txt, .md), JSON Lines or JSON (.jsonl, .json), .csv, .tsv or \
         .parquet, each also as .gz or .zst",
        path.display()
    )]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: &'static str,
    },
    /// A file packed in a way that is not unpacked.
    #[error("{}: packed with {kind}, which is not read; unpack it, or pack it with gzip or zstd", path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// How it is packed.
        kind: &'static str,
    },
    /// Text in an encoding that is not decoded.
    #[error("{}: the text is {found}, which is not read; save the file as UTF-8", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The encoding.
        found: &'static str,
    },
    /// A folder without a file of a known kind.
    #[error(
        "{}: no .txt, .jsonl, .json, .csv, .tsv or .parquet file in this folder or below ({found})",
        path.display()
    )]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A table whose rows do not fit its columns.
    #[error("{place}: {problem}; wanted a table with one name a column in its first row")]
    Table {
        /// `file:line`.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A token id that the vocabulary does not have.
    #[error(
        "{place}: token id {id} is not in the model's vocabulary of {vocabulary}; the ids are another tokenizer's, give \
         the text instead"
    )]
    UnknownId {
        /// The file and the record.
        place: String,
        /// The id.
        id: u32,
        /// Ids below this are known.
        vocabulary: usize,
    },
    /// Token ids where text is wanted.
    #[error("{place}: holds token ids, wanted text; give the text that they were made from")]
    Ids {
        /// The file and the record.
        place: String,
    },
    /// Bytes that are not UTF-8.
    #[error("{place}: not UTF-8 at byte {offset} of the file; save the file as UTF-8")]
    NotUtf8 {
        /// The file, with its line where it has lines.
        place: String,
        /// Bytes from the start of the file to the first bad one.
        offset: usize,
    },
    /// A line or file that is not JSON, or not a record.
    #[error("{place}: {problem}; wanted one JSON object a line, or one array of objects")]
    Json {
        /// `file:line`.
        place: String,
        /// What the parser said.
        problem: String,
    },
    /// A record or table without the text column.
    #[error("{place}: no column {wanted}; set text_column to one of: {found}")]
    MissingColumn {
        /// The file, with its line where it has lines.
        place: String,
        /// The column or columns looked for.
        wanted: String,
        /// The columns there are.
        found: String,
    },
    /// The text column holds something else.
    #[error(
        "{place}: column {column:?} holds {found}, wanted text; set text_column to a column of strings"
    )]
    NotText {
        /// The file, with its line where it has lines.
        place: String,
        /// The column.
        column: String,
        /// What it holds.
        found: String,
    },
    /// The parquet reader failed.
    #[error("{}: cannot be read as parquet; is the download complete?", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: parquet::errors::ParquetError,
    },
    /// The tokenizer failed on this text.
    #[error("{name}: the model's tokenizer failed on this text: {problem}")]
    Tokenize {
        /// The source.
        name: String,
        /// What the tokenizer said.
        problem: String,
    },
    /// Sources without a single token.
    #[error("no calibration text: nothing in {names} ({dropped} documents dropped){told}")]
    NoText {
        /// The sources.
        names: String,
        /// Documents that were there but empty, too short, not UTF-8 or refused by the chat template.
        dropped: usize,
        /// What is to be told of how they were read, each after a semicolon.
        told: String,
    },
    /// Fewer windows than asked for.
    #[error(
        "too little calibration text: found {tokens_found} tokens in {names}, enough for {windows_found} windows of \
         {sequence_length} ({dropped} documents dropped), needed {tokens_needed} tokens for num_samples: \
         {num_samples}; {}",
        remedies(*windows_found, *sequence_length, *packing)
    )]
    TooLittle {
        /// The sources.
        names: String,
        /// Tokens in all sources.
        tokens_found: usize,
        /// `num_samples · sequence_length`.
        tokens_needed: usize,
        /// Windows the text gives.
        windows_found: usize,
        /// Windows asked for.
        num_samples: usize,
        /// Tokens per window.
        sequence_length: usize,
        /// Documents that were empty, too short or not UTF-8.
        dropped: usize,
        /// How documents become windows.
        packing: Packing,
    },
    /// Evaluation text with fewer windows than asked for.
    #[error(
        "too little evaluation text: {n_tokens} tokens are {available} windows of {sequence_length}, wanted {wanted}; \
         add text, set windows: {}, or shorten sequence_length{told}",
        if *available == 0 { "all".to_string() } else { available.to_string() }
    )]
    TooFewWindows {
        /// Tokens in the text.
        n_tokens: usize,
        /// Full windows in the text.
        available: usize,
        /// Tokens per window.
        sequence_length: usize,
        /// Windows asked for; at least 1.
        wanted: usize,
        /// What is to be told of how the text was read, each after a semicolon.
        told: String,
    },
    /// A text that was read twice and is not the same.
    #[error("the evaluation text changed while it was read; start again when nothing writes to it")]
    Changed,
    /// A window index past the end, or named twice.
    #[error("evaluation window {index} {problem}; the text has windows 0 to {last}")]
    WindowIndex {
        /// The index.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
        /// The last index there is.
        last: usize,
    },
}

/// Three ways out of [`TextError::TooLittle`].
fn remedies(windows_found: usize, sequence_length: usize, packing: Packing) -> String {
    let fewer = match windows_found {
        0 => format!("shorten sequence_length (now {sequence_length})"),
        n => format!("set num_samples: {n}, shorten sequence_length"),
    };
    match packing {
        Packing::Concat => format!("add text, {fewer}, or add a second source"),
        Packing::Truncate | Packing::Drop => {
            format!("add text, {fewer}, or set packing: concat to join short documents")
        }
    }
}
