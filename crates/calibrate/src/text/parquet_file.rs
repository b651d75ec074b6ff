//! Parquet files to records: a column of strings, or a column of chats.

use std::ops::ControlFlow;
use std::path::Path;

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;

use super::TextError;
use super::json::{CHAT_COLUMNS, missing_column, record_of};
use super::read::{Record, Visit, open};

/// Rows decoded at once.
const BATCH_ROWS: usize = 256;

/// The records of the text column, row group by row group.
pub(super) fn read_records(
    path: &Path,
    column: Option<&str>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let failed = |source| TextError::Parquet { path: path.into(), source };
    let file = SerializedFileReader::new(open(path)?).map_err(failed)?;
    let field = text_field(&file, path, column)?;
    if !field.is_primitive() {
        return read_chats(&file, &field, path, visit);
    }
    let place = || path.display().to_string();
    if field.get_physical_type() != PhysicalType::BYTE_ARRAY {
        let found = format!("{} values", field.get_physical_type());
        return Err(TextError::NotText { place: place(), column: field.name().into(), found });
    }
    let leaf = leaf_of(&file, field.name());
    for group in 0..file.num_row_groups() {
        let reader = file.get_row_group(group).and_then(|g| g.get_column_reader(leaf)).map_err(failed)?;
        let ColumnReader::ByteArrayColumnReader(mut reader) = reader else {
            let found = "other values than its schema says".into();
            return Err(TextError::NotText { place: place(), column: field.name().into(), found });
        };
        loop {
            let rows = next_rows(&mut reader, field.is_optional()).map_err(failed)?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                if visit(record(row))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The column asked for, or else `text`, or else a chat.
fn text_field(
    file: &SerializedFileReader<std::fs::File>,
    path: &Path,
    column: Option<&str>,
) -> Result<std::sync::Arc<Type>, TextError> {
    let fields = file.metadata().file_metadata().schema().get_fields();
    let known: Vec<&str> = match column {
        Some(column) => vec![column],
        None => std::iter::once("text").chain(CHAT_COLUMNS).collect(),
    };
    known.iter().find_map(|name| fields.iter().find(|f| f.name() == *name)).cloned().ok_or_else(|| {
        let names: Vec<&str> = fields.iter().map(|f| f.name()).collect();
        missing_column(column, &names, path.display().to_string())
    })
}

/// The index among the file's leaf columns of a primitive field at its root.
fn leaf_of(file: &SerializedFileReader<std::fs::File>, name: &str) -> usize {
    let schema = file.metadata().file_metadata().schema_descr();
    (0..schema.num_columns())
        .find(|&i| schema.column(i).path().parts() == [name])
        .expect("a primitive field of the root is a leaf of the same schema")
}

/// Up to [`BATCH_ROWS`] rows, `None` for null; empty at the end of the row group.
///
/// The crate's own row reader is not used for strings: it stops at the first one that is not UTF-8, and here
/// that is one document to be counted.
fn next_rows(
    reader: &mut ColumnReaderImpl<ByteArrayType>,
    optional: bool,
) -> Result<Vec<Option<ByteArray>>, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, _, _) = reader.read_records(BATCH_ROWS, optional.then_some(&mut levels), None, &mut values)?;
    if !optional {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    Ok(levels[..rows].iter().map(|&level| if level > 0 { values.next() } else { None }).collect())
}

fn record(row: Option<ByteArray>) -> Record {
    match row.as_ref().map(|bytes| std::str::from_utf8(bytes.data())) {
        None => Record::Text(String::new()),
        Some(Ok(text)) => Record::Text(text.into()),
        Some(Err(_)) => Record::NotUtf8,
    }
}

fn read_chats(
    file: &SerializedFileReader<std::fs::File>,
    field: &std::sync::Arc<Type>,
    path: &Path,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let failed = |source| TextError::Parquet { path: path.into(), source };
    let root = file.metadata().file_metadata().schema().name();
    let projection =
        Type::group_type_builder(root).with_fields(vec![field.clone()]).build().map_err(failed)?;
    for (i, row) in file.get_row_iter(Some(projection)).map_err(failed)?.enumerate() {
        let row = row.map_err(failed)?;
        let fields = row.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect();
        let place = || format!("{}: row {i}", path.display());
        if visit(record_of(&Value::Object(fields), Some(field.name()), &place)?)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The strings, lists and groups of a chat. Whatever else stands beside the messages (numbers, flags, dates) is
/// of no use for their text and becomes null.
fn json_of(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(json_of).collect()),
        Field::Group(row) => {
            Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect())
        }
        _ => Value::Null,
    }
}
