//! Sources to records, one at a time, so that a source larger than memory can be read.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;

use super::chat::{Chat, RenderChat};
use super::decode::{self, Pieces, Unpacked};
use super::record::{Columns, Found};
use super::source::{FileKind, Purpose, files_of, kind_by_content, kind_by_name};
use super::{SourceKind, TextError, TextSource, csv_file, json, parquet_file};

/// What a reader found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// One document; possibly empty.
    Text(String),
    /// One document that stands as it is, with its own marks at both ends: a chat in the model's own template.
    Marked(String),
    /// A part of a plain text file, which has no marks between its documents; whether it is the last part.
    Plain(String, bool),
    /// One document of token ids.
    Ids(Vec<u32>),
    /// One document that is not UTF-8.
    NotUtf8,
    /// A chat that the model's template refuses.
    Refused,
}

/// Takes a record and says whether to read on.
pub(super) type Visit<'a> = dyn FnMut(Record) -> Result<ControlFlow<()>, TextError> + 'a;

/// How records become documents.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The model's chat template; none joins the messages of a chat.
    pub(super) render: Option<&'a RenderChat<'a>>,
    /// Ids from here on are not in the tokenizer's vocabulary; none takes no ids.
    pub(super) vocabulary: Option<usize>,
    /// Which part of a data set is wanted.
    pub(super) purpose: Purpose,
    /// Whether plain text comes whole, one record a file, rather than in parts.
    pub(super) whole_files: bool,
}

/// What is to be counted and told of a source beside its documents.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Chats, those refused included.
    pub(super) chats: usize,
    /// Those in the model's own template.
    pub(super) templated: usize,
    /// Chats that have a message without a role, which no template can take.
    without_roles: usize,
    refused: usize,
    /// Why the first of the refused was.
    refusal: String,
    tools: usize,
    other_parts: usize,
    /// What is known before reading: which files of a folder are taken, and how.
    files: Vec<String>,
    columns: Vec<String>,
}

impl Account {
    /// What the user is to know.
    pub(super) fn told(&self, has_template: bool) -> Vec<String> {
        let mut told = self.files.clone();
        told.extend(self.columns.iter().cloned());
        let plain = self.chats - self.templated - self.refused;
        let mut tell = |count: usize, what: String| {
            if count > 0 {
                told.push(what);
            }
        };
        let why = match has_template {
            true => format!(
                "because {} of them have messages without a role, which no chat template takes",
                self.without_roles
            ),
            false => "without the model's chat template".to_owned(),
        };
        tell(
            plain,
            format!(
                "{plain} chats were read as plain text, their messages joined by blank lines {why}"
            ),
        );
        tell(
            self.refused,
            format!(
                "{} of {} chats were dropped because the model's chat template refuses them, the first with: {}; \
                 `chat_template: false` reads them as plain text",
                self.refused, self.chats, self.refusal
            ),
        );
        tell(
            self.tools,
            format!(
                "{} chats have tools or calls of tools, which are left out",
                self.tools
            ),
        );
        tell(
            self.other_parts,
            format!(
                "{} chats have parts that are no text (images and the like), which are left out",
                self.other_parts
            ),
        );
        told
    }
}

/// Hands every record of the source to `visit`, in order, until it breaks. The files come from
/// [`files_of`]; text in memory has none.
pub(super) fn read_records(
    source: &TextSource,
    reading: Reading,
    visit: &mut Visit,
) -> Result<(ControlFlow<()>, Account), TextError> {
    let mut account = Account::default();
    if let SourceKind::Texts { texts, .. } = &source.kind {
        for text in texts {
            if visit(Record::Text(text.clone()))?.is_break() {
                return Ok((ControlFlow::Break(()), account));
            }
        }
        return Ok((ControlFlow::Continue(()), account));
    }
    let files = files_of(&source.kind, reading.purpose)?;
    account.files = files.told;
    let mut columns = Columns::new(source.text_column.as_deref());
    let reading = Reading {
        render: reading.render.filter(|_| source.chat_template),
        ..reading
    };
    let mut flow = ControlFlow::Continue(());
    for path in &files.paths {
        flow = read_file(path, reading, &mut columns, &mut account, visit)?;
        if flow.is_break() {
            break;
        }
    }
    account.columns = columns.told();
    Ok((flow, account))
}

fn read_file(
    path: &Path,
    reading: Reading,
    columns: &mut Columns,
    account: &mut Account,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let unpacked = decode::unpack(open(path)?, path)?;
    let kind = match kind_by_name(path) {
        _ if unpacked.head.starts_with(b"PAR1") => FileKind::Parquet,
        Some(kind) => kind,
        None => {
            let kind = kind_by_content(path, &unpacked.head)?;
            account.files.push(format!(
                "{} was read as {}, by its content",
                path.display(),
                kind.name()
            ));
            kind
        }
    };
    if kind == FileKind::Plain {
        return read_plain(unpacked, path, reading.whole_files, visit);
    }
    let mut take =
        |found: Found, place: &dyn Fn() -> String| visit(account.record(found, reading, place)?);
    match kind {
        FileKind::Parquet => parquet_file::read_records(unpacked, path, columns, &mut take),
        FileKind::Csv(delimiter) => csv_file::read_records(
            decode::text(unpacked, path)?,
            delimiter,
            path,
            columns,
            &mut take,
        ),
        FileKind::Json | FileKind::Plain => {
            json::read_records(decode::text(unpacked, path)?, path, columns, &mut take)
        }
    }
}

impl Account {
    /// The document of a record, counted.
    fn record(
        &mut self,
        found: Found,
        reading: Reading,
        place: &dyn Fn() -> String,
    ) -> Result<Record, TextError> {
        Ok(match found {
            Found::Text(text) => Record::Text(text),
            Found::NotUtf8 => Record::NotUtf8,
            Found::Ids(ids) => {
                let Some(vocabulary) = reading.vocabulary else {
                    return Err(TextError::Ids { place: place() });
                };
                match ids.iter().find(|&&id| id as usize >= vocabulary) {
                    Some(&id) => {
                        return Err(TextError::UnknownId {
                            place: place(),
                            id,
                            vocabulary,
                        });
                    }
                    None => Record::Ids(ids),
                }
            }
            Found::Chat(chat) => self.chat(&chat, reading),
        })
    }

    fn chat(&mut self, chat: &Chat, reading: Reading) -> Record {
        self.chats += 1;
        self.tools += usize::from(chat.tools);
        self.other_parts += usize::from(chat.other_parts);
        let Some(render) = reading.render else {
            return Record::Text(chat.plain());
        };
        let Some(messages) = chat.with_roles() else {
            self.without_roles += 1;
            return Record::Text(chat.plain());
        };
        match render(&messages) {
            Ok(text) => {
                self.templated += 1;
                Record::Marked(text)
            }
            Err(reason) => {
                if self.refused == 0 {
                    self.refusal = reason;
                }
                self.refused += 1;
                Record::Refused
            }
        }
    }
}

fn read_plain(
    unpacked: Unpacked,
    path: &Path,
    whole: bool,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let mut pieces = Pieces::new(decode::text(unpacked, path)?);
    if whole {
        let mut text = String::new();
        while let Some(piece) = pieces.next(path)? {
            text.push_str(&piece);
        }
        return visit(Record::Plain(text, true));
    }
    let mut last = pieces.next(path)?.unwrap_or_default();
    while let Some(next) = pieces.next(path)? {
        if visit(Record::Plain(std::mem::replace(&mut last, next), false))?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    visit(Record::Plain(last, true))
}

/// A whole text file: unpacked where it is gzip or zstd, decoded from UTF-16 where a byte order mark says so, without a byte
/// order mark, with `\n` for `\r\n`.
///
/// # Errors
/// [`TextError::Missing`], [`TextError::Read`], [`TextError::NotUtf8`], and other packings and encodings.
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let unpacked = decode::unpack(open(path)?, path)?;
    let mut found = String::new();
    read_plain(unpacked, path, true, &mut |record| {
        if let Record::Plain(text, _) = record {
            found = text;
        }
        Ok(ControlFlow::Continue(()))
    })
    .map(|_| found)
}

/// Opens a file; a missing one has its own message.
pub(super) fn open(path: &Path) -> Result<File, TextError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TextError::Missing { path: path.into() },
        _ => failed(path, source),
    })
}

/// What the system said of a file.
pub(super) fn failed(path: &Path, source: io::Error) -> TextError {
    TextError::Read {
        path: path.into(),
        source,
    }
}

/// All bytes of an unpacked file.
pub(super) fn all_bytes(unpacked: Unpacked, path: &Path) -> Result<Vec<u8>, TextError> {
    let mut bytes = Vec::new();
    let mut reader = unpacked.bytes;
    reader
        .read_to_end(&mut bytes)
        .map_err(|e| failed(path, e))?;
    Ok(bytes)
}
