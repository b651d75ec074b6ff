//! CSV and TSV files, with names in their first row, to records.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use super::TextError;
use super::json::VisitFound;
use super::read::failed;
use super::record::Columns;

/// The rows below the names, one document each. A cell may hold line breaks and the delimiter inside quotes.
pub(super) fn read_records(
    reader: impl Read,
    delimiter: u8,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    let mut rows = ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .from_reader(reader);
    let mut row = ByteRecord::new();
    if !rows
        .read_byte_record(&mut row)
        .map_err(|e| problem(path, e))?
    {
        return Ok(ControlFlow::Continue(()));
    }
    let names = texts(&row, path)?;
    if let Some(name) =
        (1..names.len()).find_map(|i| names[..i].contains(&names[i]).then_some(&names[i]))
    {
        return Err(TextError::Table {
            place: format!("{}: the first row", path.display()),
            problem: format!("two columns are named {name:?}"),
        });
    }
    while rows
        .read_byte_record(&mut row)
        .map_err(|e| problem(path, e))?
    {
        let line = row.position().map_or(0, csv::Position::line);
        let place = || format!("{}:{line}", path.display());
        let cells = texts(&row, path)?.into_iter().map(Value::String);
        let fields: Map<String, Value> = names.iter().cloned().zip(cells).collect();
        let found = columns.record_of(&Value::Object(fields), &place)?;
        if visit(found, &place)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The cells of a row.
fn texts(row: &ByteRecord, path: &Path) -> Result<Vec<String>, TextError> {
    let place = row.position();
    row.iter()
        .map(|cell| {
            let text = std::str::from_utf8(cell).map_err(|_| TextError::NotUtf8 {
                place: format!(
                    "{}:{}",
                    path.display(),
                    place.map_or(1, csv::Position::line)
                ),
                offset: place.map_or(0, |p| p.byte() as usize),
            })?;
            Ok(text.to_owned())
        })
        .collect()
}

fn problem(path: &Path, error: csv::Error) -> TextError {
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        ErrorKind::Io(source) => failed(path, source),
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => TextError::Table {
            place: format!("{}:{line}", path.display()),
            problem: format!("{len} cells, and the first row has {expected_len}"),
        },
        other => TextError::Table {
            place: format!("{}:{line}", path.display()),
            problem: format!("{other:?}"),
        },
    }
}
