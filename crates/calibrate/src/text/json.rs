//! JSON Lines and JSON arrays to records.

use std::io::{BufRead, Read};
use std::ops::ControlFlow;
use std::path::Path;

use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde_json::Value;

use super::TextError;
use super::read::failed;
use super::record::{Columns, Found};

/// Takes the document of a record, with a name for the record, and says whether to read on.
pub(super) type VisitFound<'a> =
    dyn FnMut(Found, &dyn Fn() -> String) -> Result<ControlFlow<()>, TextError> + 'a;

/// The records of a file whose first character says whether it is one array or one record a line.
pub(super) fn read_records(
    mut reader: impl BufRead,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    match first_byte(&mut reader, path)? {
        Some(b'[') => read_array(reader, path, columns, visit),
        _ => read_lines(reader, path, columns, visit),
    }
}

/// One record at a time, so that a file larger than memory can be read.
fn read_array(
    reader: impl Read,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    let mut parser = serde_json::Deserializer::from_reader(std::io::BufReader::new(
        WithoutNoNumbers::new(reader),
    ));
    let (mut index, mut stopped) = (0, None);
    let records = Records(&mut |value| {
        let place = || format!("{}: record {index}", path.display());
        let flow = columns
            .record_of(&value, &place)
            .and_then(|found| visit(found, &place));
        index += 1;
        match flow {
            Ok(ControlFlow::Continue(())) => true,
            other => {
                stopped = Some(other);
                false
            }
        }
    });
    let read = records.deserialize(&mut parser).and_then(|()| parser.end());
    match (stopped, read) {
        (Some(flow), _) => flow,
        (None, Ok(())) => Ok(ControlFlow::Continue(())),
        (None, Err(e)) if e.is_io() => Err(failed(path, e.into())),
        (None, Err(e)) => Err(TextError::Json {
            place: format!("{}:{}", path.display(), e.line()),
            problem: e.to_string(),
        }),
    }
}

/// Hands every element of an array to a function until it says to stop, which then shows as an error of the parser.
struct Records<'a>(&'a mut dyn FnMut(Value) -> bool);

impl<'de> DeserializeSeed<'de> for Records<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Records<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(value) = array.next_element()? {
            if !(self.0)(value) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Blank lines are no records.
fn read_lines(
    mut reader: impl BufRead,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    let (mut line, mut number, mut start) = (Vec::new(), 0usize, 0usize);
    loop {
        line.clear();
        let read = reader
            .read_until(b'\n', &mut line)
            .map_err(|e| failed(path, e))?;
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
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let value = parse(text).map_err(|e| TextError::Json {
            place: place(),
            problem: problem_in_line(&e),
        })?;
        if visit(columns.record_of(&value, &place)?, &place)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// One value; `NaN` and the like are null.
fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let mut plain = Vec::new();
        match WithoutNoNumbers::new(text.as_bytes()).read_to_end(&mut plain) {
            Ok(_) if plain != text.as_bytes() => serde_json::from_slice(&plain),
            _ => Err(error),
        }
    })
}

/// The parser's message with its column; its line is always 1, because it sees one line at a time.
fn problem_in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let message = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(message, _)| message);
    format!("column {}: {message}", error.column())
}

/// The first byte that is no white space, left unread.
fn first_byte(reader: &mut impl BufRead, path: &Path) -> Result<Option<u8>, TextError> {
    loop {
        let buffer = reader.fill_buf().map_err(|e| failed(path, e))?;
        if buffer.is_empty() {
            return Ok(None);
        }
        match buffer.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(at) => return Ok(Some(buffer[at])),
            None => {
                let blank = buffer.len();
                reader.consume(blank);
            }
        }
    }
}

/// JSON with null in the place of `NaN`, `Infinity` and `-Infinity`, which Python writes and JSON lacks.
struct WithoutNoNumbers<R> {
    inner: R,
    in_string: bool,
    escaped: bool,
    /// What may be the head of such a word.
    word: Vec<u8>,
    ready: Vec<u8>,
    taken: usize,
}

impl<R: Read> WithoutNoNumbers<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            in_string: false,
            escaped: false,
            word: Vec::new(),
            ready: Vec::new(),
            taken: 0,
        }
    }

    fn end_word(&mut self) {
        let no_number = [&b"NaN"[..], b"Infinity", b"-Infinity"].contains(&self.word.as_slice());
        match no_number {
            true => self.ready.extend_from_slice(b"null"),
            false => self.ready.extend_from_slice(&self.word),
        }
        self.word.clear();
    }

    fn take(&mut self, byte: u8) {
        if self.in_string {
            self.ready.push(byte);
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return;
        }
        if !self.word.is_empty() {
            // "-Infinity" is the longest of them
            if byte.is_ascii_alphabetic() && self.word.len() < 10 {
                return self.word.push(byte);
            }
            self.end_word();
        }
        match byte {
            b'N' | b'I' | b'-' => self.word.push(byte),
            _ => {
                self.in_string = byte == b'"';
                self.ready.push(byte);
            }
        }
    }
}

impl<R: Read> Read for WithoutNoNumbers<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let mut buffer = [0; 8192];
        while self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
            let read = self.inner.read(&mut buffer)?;
            if read == 0 {
                if self.word.is_empty() {
                    return Ok(0);
                }
                self.end_word();
            }
            for &byte in &buffer[..read] {
                self.take(byte);
            }
        }
        let count = out.len().min(self.ready.len() - self.taken);
        out[..count].copy_from_slice(&self.ready[self.taken..][..count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_writes_for_no_number_is_null_wherever_it_stands() {
        for (text, wanted) in [
            (
                r#"{"a": NaN, "b": [-Infinity, Infinity, -1e-5, NaN]}"#,
                json!({"a": null, "b": [null, null, -1e-5, null]}),
            ),
            (
                r#"{"NaN": "-Infinity \" NaN \\", "c": true}"#,
                json!({"NaN": "-Infinity \" NaN \\", "c": true}),
            ),
            ("NaN", Value::Null),
        ] {
            assert_eq!(parse(text).unwrap(), wanted, "{text}");
        }
        for text in ["Nan", "{\"a\": Infinit}", "-", "[NaNN]", "--Infinity"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
