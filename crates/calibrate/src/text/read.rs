//! Sources to records, one at a time, so that a source larger than memory can be read.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use super::source::{FileKind, files_of, kind_of};
use super::{SourceKind, TextError, TextSource, json, parquet_file};

/// What a reader found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// One document; possibly empty.
    Text(String),
    /// One document, made of the messages of a chat.
    Chat(String),
    /// A plain text file, which has no marks between its documents.
    Plain(String),
    /// One document that is not UTF-8.
    NotUtf8,
}

/// Takes a record and says whether to read on.
pub(super) type Visit<'a> = dyn FnMut(Record) -> Result<ControlFlow<()>, TextError> + 'a;

/// Hands every record of the source to `visit`, in order, until it breaks. The files come from
/// [`files_of`]; text in memory has none.
pub(super) fn read_records(
    source: &TextSource,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    if let SourceKind::Texts { texts, .. } = &source.kind {
        for text in texts {
            if visit(Record::Text(text.clone()))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        return Ok(ControlFlow::Continue(()));
    }
    let column = source.text_column.as_deref();
    for path in files_of(&source.kind)? {
        let flow = match kind_of(&path)? {
            FileKind::Plain => visit(Record::Plain(read_text(&path)?))?,
            FileKind::Json => json::read_records(&path, column, visit)?,
            FileKind::Parquet => parquet_file::read_records(&path, column, visit)?,
        };
        if flow.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// A whole text file, checked to be UTF-8, without a byte order mark at its head.
///
/// # Errors
/// [`TextError::Missing`], [`TextError::Read`] or [`TextError::NotUtf8`].
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .map_err(|source| TextError::Read {
            path: path.into(),
            source,
        })?;
    let mut text = String::from_utf8(bytes).map_err(|e| TextError::NotUtf8 {
        place: path.display().to_string(),
        offset: e.utf8_error().valid_up_to(),
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// Opens a file; a missing one has its own message.
pub(super) fn open(path: &Path) -> Result<File, TextError> {
    File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => TextError::Missing { path: path.into() },
        _ => TextError::Read {
            path: path.into(),
            source,
        },
    })
}

pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';
