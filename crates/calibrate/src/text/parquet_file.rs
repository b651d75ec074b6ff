//! Parquet files to records: a column of strings, or a column of chats.

use std::ops::ControlFlow;
use std::path::Path;

use halfbyte_checkpoint::caught;
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

/// The records of the text column, row group by row group. The parquet crate panics on some damaged files; that is an error
/// like its others.
pub(super) fn read_records(
    path: &Path,
    column: Option<&str>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    caught(|| read_unguarded(path, column, visit)).unwrap_or_else(|panic| {
        Err(TextError::Parquet {
            path: path.into(),
            source: ParquetError::General(format!("it contradicts itself ({panic})")),
        })
    })
}

fn read_unguarded(
    path: &Path,
    column: Option<&str>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>, TextError> {
    let failed = |source| TextError::Parquet {
        path: path.into(),
        source,
    };
    let file = SerializedFileReader::new(open(path)?).map_err(failed)?;
    let field = text_field(&file, path, column)?;
    if !field.is_primitive() {
        return read_chats(&file, &field, path, visit);
    }
    let place = || path.display().to_string();
    if field.get_physical_type() != PhysicalType::BYTE_ARRAY {
        let found = format!("{} values", field.get_physical_type());
        return Err(TextError::NotText {
            place: place(),
            column: field.name().into(),
            found,
        });
    }
    let leaf = leaf_of(&file, field.name());
    for group in 0..file.num_row_groups() {
        let reader = file
            .get_row_group(group)
            .and_then(|g| g.get_column_reader(leaf))
            .map_err(failed)?;
        let ColumnReader::ByteArrayColumnReader(mut reader) = reader else {
            let found = "other values than its schema says".into();
            return Err(TextError::NotText {
                place: place(),
                column: field.name().into(),
                found,
            });
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
    known
        .iter()
        .find_map(|name| fields.iter().find(|f| f.name() == *name))
        .cloned()
        .ok_or_else(|| {
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
    let (rows, _, _) = reader.read_records(
        BATCH_ROWS,
        optional.then_some(&mut levels),
        None,
        &mut values,
    )?;
    if !optional {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    Ok(levels[..rows]
        .iter()
        .map(|&level| if level > 0 { values.next() } else { None })
        .collect())
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
    let failed = |source| TextError::Parquet {
        path: path.into(),
        source,
    };
    let root = file.metadata().file_metadata().schema().name();
    let projection = Type::group_type_builder(root)
        .with_fields(vec![field.clone()])
        .build()
        .map_err(failed)?;
    for (i, row) in file
        .get_row_iter(Some(projection))
        .map_err(failed)?
        .enumerate()
    {
        let row = row.map_err(failed)?;
        let fields = row
            .get_column_iter()
            .map(|(name, field)| (name.clone(), json_of(field)))
            .collect();
        let place = || format!("{}: row {i}", path.display());
        if visit(record_of(
            &Value::Object(fields),
            Some(field.name()),
            &place,
        )?)?
        .is_break()
        {
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
        Field::Group(row) => Value::Object(
            row.get_column_iter()
                .map(|(name, field)| (name.clone(), json_of(field)))
                .collect(),
        ),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    /// One leaf column: values, definition levels, repetition levels.
    type Leaf<'a> = (Vec<&'a [u8]>, Option<Vec<i16>>, Option<Vec<i16>>);

    /// A file with the schema and, for each row group, its leaf columns of byte arrays.
    fn file(
        schema: &str,
        compression: Compression,
        groups: &[Vec<Leaf>],
    ) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(
            WriterProperties::builder()
                .set_compression(compression)
                .build(),
        );
        let out = std::fs::File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(out, schema, properties).unwrap();
        for leaves in groups {
            let mut group = writer.next_row_group().unwrap();
            for (values, definitions, repetitions) in leaves {
                let values: Vec<ByteArray> = values.iter().map(|v| v.to_vec().into()).collect();
                let mut column = group.next_column().unwrap().unwrap();
                column
                    .typed::<ByteArrayType>()
                    .write_batch(&values, definitions.as_deref(), repetitions.as_deref())
                    .unwrap();
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        (folder, path)
    }

    fn read(path: &Path, column: Option<&str>) -> Result<Vec<Record>, String> {
        let mut found = Vec::new();
        let _ = read_records(path, column, &mut |record| {
            found.push(record);
            Ok(ControlFlow::Continue(()))
        })
        .map_err(|e| e.to_string())?;
        Ok(found)
    }

    const TWO_COLUMNS: &str =
        "message m { required binary id (STRING); optional binary text (STRING); }";

    #[test]
    fn strings_nulls_and_bad_utf8_come_in_row_order_for_every_compression() {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(Default::default()),
        ] {
            let ids = || (vec![b"x".as_slice(), b"y", b"z"], None, None);
            let texts = (vec![b"one".as_slice(), b"\xff"], Some(vec![1, 0, 1]), None);
            let more = (
                vec![b"two".as_slice(), b"", "drei ü".as_bytes()],
                Some(vec![1, 1, 1]),
                None,
            );
            let (_folder, path) = file(
                TWO_COLUMNS,
                compression,
                &[vec![ids(), texts], vec![ids(), more]],
            );
            let text = |t: &str| Record::Text(t.into());
            assert_eq!(
                read(&path, None).unwrap(),
                [
                    text("one"),
                    text(""),
                    Record::NotUtf8,
                    text("two"),
                    text(""),
                    text("drei ü")
                ]
            );
            assert_eq!(
                read(&path, Some("id")).unwrap()[..3],
                [text("x"), text("y"), text("z")]
            );
        }
    }

    #[test]
    fn more_rows_than_one_batch_are_all_read_and_a_break_stops() {
        let texts: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        let leaf: Leaf = (texts.iter().map(|t| t.as_bytes()).collect(), None, None);
        let (_folder, path) = file(
            "message m { required binary text (STRING); }",
            Compression::SNAPPY,
            &[vec![leaf]],
        );
        let expected: Vec<Record> = texts.into_iter().map(Record::Text).collect();
        assert_eq!(read(&path, None).unwrap(), expected);
        let mut seen = 0;
        let flow = read_records(&path, None, &mut |_| {
            seen += 1;
            Ok(if seen == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        });
        assert!(flow.unwrap().is_break());
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_column_of_chats_is_joined() {
        let schema = "message m { optional group messages (LIST) { repeated group list { \
                      optional group element { optional binary role (STRING); optional binary content (STRING); } } } }";
        // Two chats: two messages, then one.
        let (definitions, repetitions) = (Some(vec![4, 4, 4]), Some(vec![0, 1, 0]));
        let roles = (
            vec![b"u".as_slice(), b"a", b"u"],
            definitions.clone(),
            repetitions.clone(),
        );
        let contents = (
            vec![b"ask".as_slice(), b"answer", b"more"],
            definitions,
            repetitions,
        );
        let (_folder, path) = file(schema, Compression::SNAPPY, &[vec![roles, contents]]);
        assert_eq!(
            read(&path, None).unwrap(),
            [
                Record::Chat("ask\n\nanswer".into()),
                Record::Chat("more".into())
            ]
        );
    }

    #[test]
    fn a_missing_or_wrong_column_and_a_broken_file_say_so() {
        let schema = "message m { required binary body (STRING); required int32 n; }";
        let (folder, path) = file(schema, Compression::SNAPPY, &[]);
        let message = |column| {
            let error = read(&path, column).unwrap_err();
            error.replace(&folder.path().display().to_string(), "DIR")
        };
        assert_eq!(
            message(Some("text")),
            "DIR/a.parquet: no column \"text\"; set text_column to one of: body, n"
        );
        assert_eq!(
            message(Some("n")),
            "DIR/a.parquet: column \"n\" holds INT32 values, wanted text; set text_column to a column of strings"
        );
        std::fs::write(&path, "PAR1 cut off").unwrap();
        assert_eq!(
            message(None),
            "DIR/a.parquet: cannot be read as parquet; is the download complete?"
        );
    }
}
