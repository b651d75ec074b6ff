//! The account of the text: every document and token that was read is used, cut off, dropped or left over.

use serde::Serialize;

use super::Packing;

/// What [`super::load_windows`] read, used and dropped, over all sources.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TextReport {
    /// How documents became windows.
    pub packing: Packing,
    /// Tokens per window, padding included.
    pub sequence_length: usize,
    /// Windows that the statistics are taken from.
    pub windows_calibration: usize,
    /// Windows kept out of the statistics.
    pub windows_holdout: usize,
    /// Windows with padding, held-out ones included.
    pub windows_padded: usize,
    /// Real tokens in the calibration windows.
    pub tokens_calibration: usize,
    /// Real tokens in the held-out windows.
    pub tokens_holdout: usize,
    /// Tokens drawn at random, among those of the calibration windows.
    pub tokens_random: usize,
    /// Tokens that the model wrote, among those of the calibration windows.
    pub tokens_generated: usize,
    /// SHA-256 of the windows: calibration then held-out, of each its number of real tokens and then those
    /// tokens, all as little-endian u32.
    pub windows_sha256: String,
    /// One account per source, in the order given.
    pub sources: Vec<SourceReport>,
    /// What the user should know; each names its source.
    pub warnings: Vec<String>,
}

/// The account of one source.
///
/// The counts add up: `documents_read` is `documents_used` + `documents_unused` + `documents_dropped`, and
/// `tokens_available` is `tokens_used` + `tokens_truncated` + `tokens_dropped` + `tokens_unused`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SourceReport {
    /// Path, data set id or given name.
    pub name: String,
    /// The weight asked for.
    pub weight: f64,
    /// Files the source stands for, in reading order; empty for text in memory.
    pub files: Vec<String>,
    /// SHA-256 of the text of the documents read, in order, with one byte 0xFF (which UTF-8 never holds)
    /// between two: for one text file read whole, the sha256 of that file.
    pub text_sha256: String,
    /// Bytes of text read.
    pub bytes_read: u64,
    /// Bytes of text passed over because the source holds far more than was asked for (`Concat` only: evenly
    /// spaced stretches of a large source are tokenized, the rest is not).
    pub bytes_skipped: u64,
    /// Documents read. `Truncate` and `Drop` stop reading when there are enough windows.
    pub documents_read: usize,
    /// Documents of which at least one token is in a window.
    pub documents_used: usize,
    /// Documents that no chosen window touches (`Concat` only).
    pub documents_unused: usize,
    /// Documents dropped, by reason.
    pub documents_dropped: DroppedDocuments,
    /// Documents that were chats, those that the chat template refused included.
    pub documents_chat: usize,
    /// Chats written with the model's own chat template; the other ones' messages are joined by blank lines.
    pub documents_templated: usize,
    /// Tokens of the text that was tokenized.
    pub tokens_available: usize,
    /// Tokens in the windows.
    pub tokens_used: usize,
    /// Tokens past `sequence_length`, cut from documents that were used.
    pub tokens_truncated: usize,
    /// Tokens in dropped documents.
    pub tokens_dropped: usize,
    /// Tokens in windows not chosen, and those left at the end that do not fill a window (`Concat` only).
    pub tokens_unused: usize,
    /// Windows this source's weight asks for.
    pub windows_wanted: usize,
    /// Windows this source gave.
    pub windows_used: usize,
    /// Windows with padding.
    pub windows_padded: usize,
    /// What the user should know of how it was read; among the warnings of [`TextReport`].
    #[serde(skip)]
    pub(super) told: Vec<String>,
}

/// Documents dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DroppedDocuments {
    /// No text, only white space, or null.
    pub empty: usize,
    /// Fewer tokens than the packing needs.
    pub too_short: usize,
    /// Not UTF-8 (parquet records; a text or JSON file that is not UTF-8 is an error).
    pub not_utf8: usize,
    /// Chats that the model's chat template refuses.
    pub refused: usize,
}

impl DroppedDocuments {
    /// All reasons together.
    pub fn total(&self) -> usize {
        self.empty + self.too_short + self.not_utf8 + self.refused
    }
}
