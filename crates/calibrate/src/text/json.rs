//! JSON Lines and JSON arrays to records.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

use super::TextError;
use super::read::{Record, Visit, open};

/// Fields that hold a chat, in the order they are looked for after `text`.
pub(super) const CHAT_COLUMNS: [&str; 2] = ["messages", "conversations"];

/// The records of a file whose first character says whether it is one array or one record a line.
pub(super) fn read_records(
    path: &Path,
    column: Option<&str>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let mut reader = BufReader::new(open(path)?);
    match first_byte(&mut reader, path)? {
        Some(b'[') => read_array(reader, path, column, visit),
        _ => read_lines(reader, path, column, visit),
    }
}

/// The document in one record. `place` names the record in errors.
pub(super) fn record_of(
    value: &Value,
    column: Option<&str>,
    place: &dyn Fn() -> String,
) -> Result<Record, TextError> {
    let fields = match value {
        Value::String(text) if column.is_none() => return Ok(Record::Text(text.clone())),
        Value::Object(fields) => fields,
        other => {
            return Err(TextError::Json {
                place: place(),
                problem: format!("found {}", kind(other)),
            });
        }
    };
    let known: Vec<&str> = match column {
        Some(column) => vec![column],
        None => std::iter::once("text").chain(CHAT_COLUMNS).collect(),
    };
    let Some((column, value)) = known
        .iter()
        .find_map(|&name| Some((name, fields.get(name)?)))
    else {
        let names = fields.keys().map(String::as_str).collect::<Vec<_>>();
        return Err(missing_column(column, &names, place()));
    };
    match value {
        Value::Null => Some(Record::Text(String::new())),
        Value::String(text) => Some(Record::Text(text.clone())),
        Value::Array(messages) => chat_text(messages).map(Record::Chat),
        _ => None,
    }
    .ok_or_else(|| TextError::NotText {
        place: place(),
        column: column.into(),
        found: kind(value).into(),
    })
}

/// The error for a record without its text column.
pub(super) fn missing_column(wanted: Option<&str>, found: &[&str], place: String) -> TextError {
    TextError::MissingColumn {
        place,
        wanted: match wanted {
            Some(column) => format!("{column:?}"),
            None => "\"text\" (nor \"messages\" nor \"conversations\")".into(),
        },
        found: if found.is_empty() {
            "(none)".into()
        } else {
            found.join(", ")
        },
    }
}

/// The contents of a chat's messages, joined by blank lines. No chat template is applied: the roles and marks of
/// a template belong to the model, and the text here is read for every model alike. `None` where an entry is no
/// message.
fn chat_text(messages: &[Value]) -> Option<String> {
    let contents = messages
        .iter()
        .map(message_text)
        .collect::<Option<Vec<String>>>()?;
    Some(
        contents
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("\n\n"),
    )
}

/// `{"content": text}`, `{"value": text}`, text alone, or parts `{"text": text}`. A message without any (a tool
/// call, an image) is empty.
fn message_text(message: &Value) -> Option<String> {
    let content = match message {
        Value::Object(fields) => fields.get("content").or_else(|| fields.get("value"))?,
        other => other,
    };
    match content {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(
            parts
                .iter()
                .filter_map(|part| part.get("text")?.as_str())
                .collect::<Vec<_>>()
                .join("\n\n"),
        ),
        _ => None,
    }
}

fn read_array(
    reader: impl Read,
    path: &Path,
    column: Option<&str>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let records: Vec<Value> =
        serde_json::from_reader(reader).map_err(|e| match e.io_error_kind() {
            Some(kind) => TextError::Read {
                path: path.into(),
                source: kind.into(),
            },
            None => TextError::Json {
                place: format!("{}:{}", path.display(), e.line()),
                problem: e.to_string(),
            },
        })?;
    for (i, value) in records.iter().enumerate() {
        let record = record_of(value, column, &|| format!("{}: record {i}", path.display()))?;
        if visit(record)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Blank lines are no records.
fn read_lines(
    mut reader: impl BufRead,
    path: &Path,
    column: Option<&str>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let (mut line, mut number, mut start) = (Vec::new(), 0usize, 0usize);
    loop {
        line.clear();
        let read = reader
            .read_until(b'\n', &mut line)
            .map_err(|source| TextError::Read {
                path: path.into(),
                source,
            })?;
        if read == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        number += 1;
        let place = || format!("{}:{number}", path.display());
        let text = std::str::from_utf8(&line).map_err(|e| TextError::NotUtf8 {
            place: place(),
            offset: start + e.valid_up_to(),
        })?;
        start += read;
        let text = text.trim_start_matches(super::read::BYTE_ORDER_MARK).trim();
        if text.is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| TextError::Json {
            place: place(),
            problem: problem_in_line(&e),
        })?;
        if visit(record_of(&value, column, &place)?)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// The parser's message with its column; its line is always 1, because it sees one line at a time.
fn problem_in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let message = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(message, _)| message);
    format!("column {}: {message}", error.column())
}

/// The first byte that is neither white space nor part of a byte order mark, left unread.
fn first_byte(reader: &mut impl BufRead, path: &Path) -> Result<Option<u8>, TextError> {
    let buffer = reader.fill_buf().map_err(|source| TextError::Read {
        path: path.into(),
        source,
    })?;
    Ok(buffer
        .iter()
        .copied()
        .find(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array that is no chat",
        Value::Object(_) => "an object",
    }
}
