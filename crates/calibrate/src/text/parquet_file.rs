//! Parquet files to records: a column of strings, or rows of which a chat or token ids are taken.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use halfbyte_checkpoint::caught;
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;

use super::TextError;
use super::decode::Unpacked;
use super::json::VisitFound;
use super::read::{all_bytes, open};
use super::record::{Columns, TEXT_COLUMNS, is_beside, is_known, is_of_pair, missing_column};

/// Rows decoded at once.
const BATCH_ROWS: usize = 256;

/// The records of a file, row group by row group. A packed one is unpacked in memory, because parquet is read from its
/// end. The parquet crate panics on some damaged files; that is an error like its others.
pub(super) fn read_records(
    unpacked: Unpacked,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    caught(|| match unpacked.packed {
        true => {
            let bytes = bytes::Bytes::from(all_bytes(unpacked, path)?);
            read(bytes, path, columns, visit)
        }
        false => read(open(path)?, path, columns, visit),
    })
    .unwrap_or_else(|panic| {
        let problem = format!("it contradicts itself ({panic})");
        Err(failed(path, ParquetError::General(problem)))
    })
}

fn read<R: ChunkReader + 'static>(
    chunks: R,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    let file = SerializedFileReader::new(chunks).map_err(|source| failed(path, source))?;
    match taken(&file, path, columns.wanted())? {
        Taken::Strings(field) => read_strings(&file, &field, path, columns, visit),
        Taken::Rows(fields) => read_rows(&file, fields, path, columns, visit),
    }
}

fn failed(path: &Path, source: ParquetError) -> TextError {
    TextError::Parquet {
        path: path.into(),
        source,
    }
}

/// What is read of a file.
enum Taken {
    /// A column of strings that is the text.
    Strings(Arc<Type>),
    /// Columns of which every row's document is chosen.
    Rows(Vec<Arc<Type>>),
}

fn taken<R: ChunkReader + 'static>(
    file: &SerializedFileReader<R>,
    path: &Path,
    column: Option<&str>,
) -> Result<Taken, TextError> {
    let fields = file.metadata().file_metadata().schema().get_fields();
    let is_strings =
        |f: &Type| f.is_primitive() && f.get_physical_type() == PhysicalType::BYTE_ARRAY;
    let names = || fields.iter().map(|f| f.name());
    let place = || path.display().to_string();
    // with it what stands beside a chat or ids
    let with_beside = |is_taken: &dyn Fn(&str) -> bool| {
        let wanted = |f: &&Arc<Type>| is_taken(f.name()) || is_beside(f.name());
        Taken::Rows(fields.iter().filter(wanted).cloned().collect())
    };
    if let Some(column) = column {
        let field = fields.iter().find(|f| f.name() == column);
        let field = field.ok_or_else(|| missing_column(Some(column), names(), place()))?;
        return match field.is_primitive() {
            true if is_strings(field) => Ok(Taken::Strings(field.clone())),
            true => Err(TextError::NotText {
                place: place(),
                column: column.into(),
                found: format!("{} values", field.get_physical_type()),
            }),
            false => Ok(with_beside(&|name| name == column)),
        };
    }
    let known: Vec<&Arc<Type>> = fields.iter().filter(|f| is_known(f.name())).collect();
    match known.as_slice() {
        [] => {}
        [one] if is_strings(one) && is_text_name(one.name()) => {
            return Ok(Taken::Strings((*one).clone()));
        }
        known => {
            let strings = || fields.iter().filter(|f| is_strings(f));
            // a question without its answer is text if it is the only text there is
            let unpaired = known.len() == 1 && is_strings(known[0]) && is_of_pair(known[0].name());
            return Ok(match unpaired && strings().count() > 1 {
                true => {
                    let names = strings().map(|f| f.name());
                    return Err(missing_column(None, names, place()));
                }
                false => with_beside(&is_known),
            });
        }
    }
    let strings: Vec<&Arc<Type>> = fields.iter().filter(|f| is_strings(f)).collect();
    match strings.as_slice() {
        [only] => Ok(Taken::Strings((*only).clone())),
        [] => Err(missing_column(None, names(), place())),
        several => Err(missing_column(
            None,
            several.iter().map(|f| f.name()),
            place(),
        )),
    }
}

/// Whether a column of this name is text whatever stands beside it.
fn is_text_name(name: &str) -> bool {
    std::iter::once(&"text")
        .chain(&TEXT_COLUMNS)
        .any(|known| name.eq_ignore_ascii_case(known))
}

fn read_strings<R: ChunkReader + 'static>(
    file: &SerializedFileReader<R>,
    field: &Type,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    let failed = |source| failed(path, source);
    let leaf = leaf_of(file, field.name());
    let mut row = 0;
    for group in 0..file.num_row_groups() {
        let reader = file
            .get_row_group(group)
            .and_then(|g| g.get_column_reader(leaf))
            .map_err(failed)?;
        let ColumnReader::ByteArrayColumnReader(mut reader) = reader else {
            return Err(TextError::NotText {
                place: path.display().to_string(),
                column: field.name().into(),
                found: "other values than its schema says".into(),
            });
        };
        loop {
            let rows = next_rows(&mut reader, field.is_optional()).map_err(failed)?;
            if rows.is_empty() {
                break;
            }
            for bytes in rows {
                let place = || format!("{}: row {row}", path.display());
                columns.took(field.name());
                let found = columns.cell(field.name(), bytes.as_ref().map(|b| b.data()));
                if visit(found, &place)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                row += 1;
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The index among the file's leaf columns of a primitive field at its root.
fn leaf_of<R: ChunkReader + 'static>(file: &SerializedFileReader<R>, name: &str) -> usize {
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

fn read_rows<R: ChunkReader + 'static>(
    file: &SerializedFileReader<R>,
    fields: Vec<Arc<Type>>,
    path: &Path,
    columns: &mut Columns,
    visit: &mut VisitFound,
) -> Result<ControlFlow<()>, TextError> {
    let failed = |source| failed(path, source);
    let root = file.metadata().file_metadata().schema().name();
    let projection = Type::group_type_builder(root)
        .with_fields(fields)
        .build()
        .map_err(failed)?;
    let rows = file.get_row_iter(Some(projection)).map_err(failed)?;
    for (i, row) in rows.enumerate() {
        let row = row.map_err(failed)?;
        let fields = row
            .get_column_iter()
            .map(|(name, field)| (name.clone(), json_of(field)))
            .collect();
        let place = || format!("{}: row {i}", path.display());
        let found = columns.record_of(&Value::Object(fields), &place)?;
        if visit(found, &place)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The strings, whole numbers, lists and groups of a row. Whatever else stands there (fractions, dates) is of no use for text
/// and becomes null.
fn json_of(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Bool(yes) => Value::from(u8::from(*yes)),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
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

    use super::super::decode;
    use super::super::record::Found;
    use parquet::basic::Compression;
    use parquet::data_type::Int32Type;
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

    fn read(path: &Path, column: Option<&str>) -> Result<Vec<Found>, String> {
        let mut found = Vec::new();
        let _ = read_until(path, column, &mut |record| {
            found.push(record);
            ControlFlow::Continue(())
        })
        .map_err(|e| e.to_string())?;
        Ok(found)
    }

    fn read_until(
        path: &Path,
        column: Option<&str>,
        take: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, TextError> {
        let unpacked = decode::unpack(open(path)?, path)?;
        let mut columns = Columns::new(column);
        read_records(unpacked, path, &mut columns, &mut |found, _| {
            Ok(take(found))
        })
    }

    const TWO_COLUMNS: &str =
        "message m { required binary id (STRING); optional binary text (STRING); }";

    #[test]
    fn strings_nulls_and_bad_utf8_come_in_row_order_for_every_compression() {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
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
            let text = |t: &str| Found::Text(t.into());
            assert_eq!(
                read(&path, None).unwrap(),
                [
                    text("one"),
                    text(""),
                    Found::NotUtf8,
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
        let expected: Vec<Found> = texts.into_iter().map(Found::Text).collect();
        assert_eq!(read(&path, None).unwrap(), expected);
        let mut seen = 0;
        let flow = read_until(&path, None, &mut |_| {
            seen += 1;
            match seen {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        assert!(flow.unwrap().is_break());
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_column_of_chats_keeps_its_roles() {
        let schema = "message m { optional group messages (LIST) { repeated group list { \
                      optional group element { optional binary role (STRING); optional binary content (STRING); } } } }";
        // Two chats: two messages, then one.
        let (definitions, repetitions) = (Some(vec![4, 4, 4]), Some(vec![0, 1, 0]));
        let roles = (
            vec![b"user".as_slice(), b"gpt", b"human"],
            definitions.clone(),
            repetitions.clone(),
        );
        let contents = (
            vec![b"ask".as_slice(), b"answer", b"more"],
            definitions,
            repetitions,
        );
        let (_folder, path) = file(schema, Compression::SNAPPY, &[vec![roles, contents]]);
        let chats: Vec<_> = read(&path, None)
            .unwrap()
            .into_iter()
            .map(|found| match found {
                Found::Chat(chat) => chat.messages,
                other => panic!("{other:?}"),
            })
            .collect();
        let message = |role: &str, text: &str| (Some(role.to_owned()), text.to_owned());
        assert_eq!(
            chats,
            [
                vec![message("user", "ask"), message("assistant", "answer")],
                vec![message("user", "more")]
            ]
        );
    }

    #[test]
    fn null_text_beside_a_chat_and_the_only_column_of_strings_are_found() {
        let schema = "message m { optional binary text (STRING); optional binary prompt (STRING); \
                      optional binary completion (STRING); required int32 n; }";
        let columns = "message m { required binary words (STRING); required int32 n; }";
        let (_folder, path) = file_with_numbers(
            schema,
            &[
                (vec![], Some(vec![0, 0])),
                (vec![b"ask", b"and"], Some(vec![1, 1])),
                (vec![b"answer", b"so"], Some(vec![1, 1])),
            ],
            2,
        );
        match &read(&path, None).unwrap()[..] {
            [Found::Chat(one), Found::Chat(two)] => {
                assert_eq!(
                    (one.plain(), two.plain()),
                    ("ask\n\nanswer".into(), "and\n\nso".into())
                );
            }
            other => panic!("{other:?}"),
        }
        let (_folder, path) = file_with_numbers(columns, &[(vec![b"one", b"two"], None)], 2);
        let text = |t: &str| Found::Text(t.into());
        assert_eq!(read(&path, None).unwrap(), [text("one"), text("two")]);
    }

    /// A leaf column without repetitions: values, definition levels.
    type Flat<'a> = (Vec<&'a [u8]>, Option<Vec<i16>>);

    /// One row group of columns of strings, then one of numbers.
    fn file_with_numbers(
        schema: &str,
        leaves: &[Flat<'_>],
        rows: usize,
    ) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let out = std::fs::File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(out, schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (values, definitions) in leaves {
            let values: Vec<ByteArray> = values.iter().map(|v| v.to_vec().into()).collect();
            let mut column = group.next_column().unwrap().unwrap();
            let typed = column.typed::<ByteArrayType>();
            typed
                .write_batch(&values, definitions.as_deref(), None)
                .unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        let numbers: Vec<i32> = (0..rows as i32).collect();
        column
            .typed::<Int32Type>()
            .write_batch(&numbers, None, None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        (folder, path)
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
