//! Text for calibration and evaluation, and data sets.

use std::sync::Arc;

use halfbyte_calibrate::text::{
    Packing, SourceKind, TextSource, WindowChoice, WindowOptions, evaluation_windows_of,
    load_windows,
};
use halfbyte_checkpoint::ModelFolder;
use parquet::basic::{Compression, ConvertedType, Repetition, Type as PhysicalType, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde_json::json;

use super::{Reader, Target, scratch, write};
use crate::mutate::Format;

fn options() -> WindowOptions {
    WindowOptions {
        num_samples: 2,
        sequence_length: 4,
        packing: Packing::Concat,
        seed: 0,
        holdout: 0.0,
        random_samples: 0,
    }
}

/// The tokenizer of one source's windows; what went wrong otherwise. The source is one text.
pub(super) fn windows_of_text(text: &str, tokenizer: &tokenizers::Tokenizer) -> Result<(), String> {
    let source = TextSource {
        kind: SourceKind::Texts {
            name: "text".to_owned(),
            texts: vec![text.to_owned()],
        },
        weight: 1.0,
        text_column: None,
        chat_template: true,
    };
    load_windows(&[source], tokenizer, None, &options())
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Reads a file of this name as calibration text, and as evaluation text.
fn reader(name: &'static str) -> Reader {
    let folder = scratch();
    let tokenizer = ModelFolder::embedded("tiny").and_then(|model| model.tokenizer());
    let tokenizer = tokenizer.expect("the embedded model has a tokenizer");
    Box::new(move |bytes| {
        write(folder.path(), name, bytes);
        let path = folder.path().join(name);
        let source = TextSource {
            kind: SourceKind::Path(path),
            weight: 1.0,
            text_column: None,
            chat_template: true,
        };
        if bytes.len() < 4000 {
            let _ = evaluation_windows_of(&source, &tokenizer, None, 4, &WindowChoice::All);
        }
        let windows = load_windows(&[source], &tokenizer, None, &options());
        match windows {
            Ok(windows) => format!("ok {}", windows.report.warnings.join(" ")),
            Err(error) => error.to_string(),
        }
    })
}

const TEXT: &str = "Hello world, this is some text of a few words that makes windows.";

const WORDS: &[&str] = &[
    "text",
    "content",
    "messages",
    "conversations",
    "role",
    "from",
    "value",
    "user",
    "assistant",
    "system",
    "tool",
    "prompt",
    "completion",
    "instruction",
    "output",
    "chosen",
    "rejected",
    "\u{feff}",
    "NaN",
];

fn records() -> Vec<serde_json::Value> {
    vec![
        json!({"text": TEXT}),
        json!({"messages": [{"role": "system", "content": TEXT}, {"role": "user", "content": TEXT}]}),
        json!({"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}], "tools": []}),
        json!({"prompt": TEXT, "completion": TEXT}),
        json!({"instruction": TEXT, "input": "", "output": TEXT}),
        json!({"chosen": [{"role": "user", "content": TEXT}], "rejected": [{"role": "user", "content": TEXT}]}),
    ]
}

pub(super) fn jsonl() -> Target {
    let seeds = records()
        .into_iter()
        .take(4)
        .map(|record| format!("{record}\n{record}\n").into_bytes());
    Target {
        name: "jsonl",
        format: Format::Lines,
        seeds: seeds.collect(),
        words: WORDS,
        reader: || reader("text.jsonl"),
    }
}

pub(super) fn json() -> Target {
    let seeds = records()
        .into_iter()
        .take(4)
        .map(|record| json!([record, record]).to_string().into_bytes());
    Target {
        name: "json",
        format: Format::Json,
        seeds: seeds.collect(),
        words: WORDS,
        reader: || reader("text.json"),
    }
}

pub(super) fn csv() -> Target {
    let plain =
        format!("text,id\n\"{TEXT}\",1\n{TEXT} again,2\n\"{TEXT} \"\"quoted\"\"\nline\",3\n");
    Target {
        name: "csv",
        format: Format::Bytes,
        seeds: vec![
            plain.into_bytes(),
            format!("text\n{TEXT}\n{TEXT}\n")
                .replace(',', "")
                .into_bytes(),
        ],
        words: WORDS,
        // where this kind of file is not read, the text of it is
        reader: || {
            let (mut csv, mut text) = (reader("text.csv"), reader("text.txt"));
            Box::new(move |bytes| {
                let as_text = text(bytes);
                match csv(bytes) {
                    said if said.starts_with("ok") => said,
                    _ => as_text,
                }
            })
        },
    }
}

/// A parquet file with a column of texts, as data sets have it.
fn parquet_file(compression: Compression, repetition: Repetition) -> Vec<u8> {
    let text = Type::primitive_type_builder("text", PhysicalType::BYTE_ARRAY)
        .with_repetition(repetition)
        .with_converted_type(ConvertedType::UTF8)
        .build();
    let text = Arc::new(text.expect("a column of texts"));
    let schema = Type::group_type_builder("schema")
        .with_fields(vec![text])
        .build();
    let schema = Arc::new(schema.expect("a schema"));
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let mut bytes = Vec::new();
    let values: Vec<ByteArray> = (0..5)
        .map(|n| ByteArray::from(format!("{TEXT} {n}").as_str()))
        .collect();
    let levels = vec![1; values.len()];
    let written =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).and_then(|mut file| {
            let mut group = file.next_row_group()?;
            if let Some(mut column) = group.next_column()? {
                let levels = (repetition == Repetition::OPTIONAL).then_some(&levels[..]);
                column
                    .typed::<ByteArrayType>()
                    .write_batch(&values, levels, None)?;
                column.close()?;
            }
            group.close()?;
            file.close()
        });
    written.expect("a small file can be written");
    bytes
}

pub(super) fn parquet() -> Target {
    let seeds = [
        parquet_file(Compression::UNCOMPRESSED, Repetition::OPTIONAL),
        parquet_file(Compression::UNCOMPRESSED, Repetition::REQUIRED),
        parquet_file(Compression::SNAPPY, Repetition::OPTIONAL),
        parquet_file(
            Compression::ZSTD(ZstdLevel::default()),
            Repetition::OPTIONAL,
        ),
    ];
    Target {
        name: "parquet",
        format: Format::Bytes,
        seeds: seeds.to_vec(),
        words: &["text", "PAR1", "messages"],
        reader: || reader("text.parquet"),
    }
}
