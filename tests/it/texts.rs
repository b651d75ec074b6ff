use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::program::{halfbyte, root, succeed};

/// The model inside the program as a folder, with files added.
fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(root().join("crates/checkpoint/embedded/tiny")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    for (name, value) in files {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

fn paragraphs() -> Vec<String> {
    let text = fs::read_to_string(root().join("calibration_data/en-narrative.txt")).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.chunks(60).take(60).map(|w| w.join(" ")).collect()
}

/// Runs a pipeline whose calibration and evaluation read the files of the folder; its record.
fn run(model: &Path, folder: &Path, source: &str, evaluate: &str) -> (Value, Output) {
    let pipeline = format!(
        "model: {{source: '{}'}}\ncalibration:\n  sources: [{source}]\n  num_samples: 8\n  sequence_length: 64\n\
         quant: {{bits: 4, group_size: 64, sym: true}}\nmethod: gptq\nrecipe: reference\nexport: [{{format: gptq}}]\n\
         evaluate: {evaluate}\n",
        model.display()
    );
    fs::write(folder.join("p.yaml"), pipeline).unwrap();
    let out = folder.join("out");
    let _ = fs::remove_dir_all(&out);
    let output = succeed(
        halfbyte()
            .args(["run", "--device", "cpu", "--out"])
            .arg(&out)
            .arg(folder.join("p.yaml")),
    );
    let record = fs::read(out.join("halfbyte/run.json")).unwrap();
    (serde_json::from_slice(&record).unwrap(), output)
}

fn warnings(record: &Value) -> String {
    let all = record["summary"]["warnings"].as_array().unwrap();
    let all: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
    all.join("\n")
}

#[test]
fn chats_go_through_the_models_template_in_calibration_and_evaluation() {
    let template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
                    {{ bos_token }}{{ m.role }}{{ sep_token }}{% generation %}{{ m.content }}{% endgeneration %}\
                    {{ additional_special_tokens[0] }}{% endfor %}";
    let with_template = model(&[
        (
            "tokenizer_config.json",
            json!({"bos_token": {"content": "<|endoftext|>", "special": true},
                   "chat_template": [{"name": "default", "template": template}]}),
        ),
        (
            "special_tokens_map.json",
            json!({"sep_token": ": ", "additional_special_tokens": [{"content": "\n"}]}),
        ),
    ]);
    let without = model(&[("tokenizer_config.json", json!({}))]);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let chats = |texts: &[String], role: &str| -> String {
        texts
            .iter()
            .map(|text| {
                let chat = json!({"messages": [{"role": role, "content": text}, {"role": "assistant", "content": text}]});
                format!("{chat}\n")
            })
            .collect()
    };
    let (all, system) = (paragraphs(), chats(&paragraphs()[..1], "system"));
    fs::write(
        folder.path().join("data/train-0.jsonl"),
        system + &chats(&all[..30], "user"),
    )
    .unwrap();
    fs::write(
        folder.path().join("data/test-0.jsonl"),
        chats(&all[30..], "user"),
    )
    .unwrap();

    let (record, output) = run(
        with_template.path(),
        folder.path(),
        "{path: data}",
        "{text: data, sequence_length: 64, windows: 4}",
    );
    let told = warnings(&record);
    for wanted in [
        "data: took the split train, 1 files, and left test-0.jsonl",
        "data: took the split test, 1 files, and left train-0.jsonl",
        "data: 1 of 31 chats were dropped because the model's chat template refuses them, the first with:",
        "no system",
    ] {
        assert!(told.contains(wanted), "{told}");
    }
    assert!(!told.contains("plain text,"), "{told}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("took the split train"));

    let (plain, _) = run(
        without.path(),
        folder.path(),
        "{path: data}",
        "{text: data, sequence_length: 64, windows: 4}",
    );
    let told = warnings(&plain);
    assert!(
        told.contains("31 chats were read as plain text, their messages joined by blank lines without the model's chat template"),
        "{told}"
    );
    assert_ne!(
        record["calibration"]["sha256"],
        plain["calibration"]["sha256"]
    );
    assert_ne!(
        record["evaluation"]["sha256"],
        plain["evaluation"]["sha256"]
    );

    let (switched_off, _) = run(
        with_template.path(),
        folder.path(),
        "{path: data, chat_template: false}",
        "{text: data, sequence_length: 64, windows: 4, chat_template: false}",
    );
    for part in ["calibration", "evaluation"] {
        assert_eq!(switched_off[part]["sha256"], plain[part]["sha256"]);
    }
}

#[test]
fn the_same_text_is_the_same_run_however_it_is_packed() {
    let model = model(&[]);
    let folder = tempfile::tempdir().unwrap();
    let texts = paragraphs();
    let (train, test) = texts.split_at(30);
    let lines = |texts: &[String]| -> String {
        texts
            .iter()
            .map(|text| format!("{}\n", json!({"text": text, "score": 1})))
            .collect()
    };
    let place = |name: &str| folder.path().join(name);
    fs::write(place("a.jsonl"), lines(train)).unwrap();
    fs::write(place("joined.txt"), test.join("\r\n\r\n")).unwrap();
    let packed = fs::File::create(place("a.jsonl.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::default());
    packed
        .write_all(
            lines(train)
                .replace("\"score\":1", "\"score\":NaN")
                .as_bytes(),
        )
        .unwrap();
    packed.finish().unwrap();
    let quoted: String = test
        .iter()
        .map(|text| format!("\"{}\"\r\n", text.replace('"', "\"\"")))
        .collect();
    fs::write(place("test.csv"), format!("\u{feff}body\r\n{quoted}")).unwrap();

    let (plain, _) = run(
        model.path(),
        folder.path(),
        "{path: a.jsonl}",
        "{text: joined.txt, sequence_length: 64, windows: 4}",
    );
    let (other, _) = run(
        model.path(),
        folder.path(),
        "{path: a.jsonl.gz}",
        "{text: test.csv, text_column: body, sequence_length: 64, windows: 4}",
    );
    for part in ["calibration", "evaluation"] {
        assert_eq!(plain[part]["sha256"], other[part]["sha256"], "{part}");
    }
    assert_eq!(
        plain["evaluation"]["perplexity"],
        other["evaluation"]["perplexity"]
    );
}
