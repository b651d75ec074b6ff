//! Calibration text to token windows, and evaluation text to token windows.
//!
//! In: text files, JSON Lines, JSON, CSV, parquet, each also packed, folders of them, or text already in memory, mixed by
//! weight.
//! Out: windows of exactly `sequence_length` token ids, a held-out share of them, and an account of every
//! document and token that was read, used, cut off or dropped.
//!
//! What a *document* is depends on the file: one record of JSON Lines, JSON, CSV or parquet; one entry of text
//! in memory; one whole text file. A chat is one document, written with the model's own chat template where it has one: the
//! roles and marks are what the model sees in use. Token ids are taken as they are. [`Packing`] then says how documents become windows.
//!
//! Special tokens are never added: the perplexity protocol of GPTQ has none either, and one token more at the
//! head of each window would move every window by one. A truncation or padding setting inside `tokenizer.json`
//! is ignored.
//!
//! The alternative to reading everything through one path, a reader per tool convention (sorting by length, concatenation
//! with separators), was rejected: every one of those choices changes the statistics, and none of them would show in the
//! pipeline file. The one convention that is followed, the chat template, has a key there.

mod chat;
mod csv_file;
mod decode;
mod error;
mod evaluation;
mod json;
mod mix;
mod pack;
mod parquet_file;
pub(crate) mod random;
mod read;
mod record;
mod report;
mod source;
mod token_stream;
mod tokenize;
mod windows;

#[cfg(test)]
mod tests;

pub use chat::{Message, RenderChat};
pub use error::TextError;
pub use evaluation::{EvaluationText, WindowChoice, evaluation_windows, evaluation_windows_of};
pub use random::SplitMix64;
pub use read::read_text;
pub use report::{DroppedDocuments, SourceReport, TextReport};
pub use source::{SourceKind, TextSource};
pub use windows::{Packing, Window, WindowOptions, Windows, load_windows, ordinary_ids};
