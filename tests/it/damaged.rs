//! Files damaged in ways that once made the program panic, hang or fill the memory: each is refused in words and at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{halfbyte, root};

/// What a command says; it must end in a few seconds, on however slow a machine.
fn ends(command: &mut Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// The message of a command that must be refused as the user's fault.
fn refused(command: &mut Command) -> String {
    let output = ends(command);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(!stderr.contains("internal error"), "{stderr}");
    stderr
}

/// A copy of the embedded model.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = root().join("crates/checkpoint/embedded/tiny");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn change(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn generate(model: &Path) -> Command {
    let mut command = halfbyte();
    command.arg("generate").arg(model);
    command.args([
        "--prompt",
        "Hello",
        "--max-new-tokens",
        "2",
        "--device",
        "cpu",
    ]);
    command
}

#[test]
fn a_false_width_is_told_before_anything_is_allocated_by_it() {
    for (key, value, named) in [
        (
            "hidden_size",
            1u32 << 30,
            "model.embed_tokens.weight has shape [4096, 256]",
        ),
        (
            "vocab_size",
            1u32 << 31,
            "model.embed_tokens.weight has shape [4096, 256]",
        ),
        ("head_dim", 1u32 << 30, "q_proj.weight has shape [256, 256]"),
        (
            "intermediate_size",
            1u32 << 30,
            "gate_proj.weight has shape [768, 256]",
        ),
    ] {
        let model = model();
        change(model.path().join("config.json"), |config| {
            config[key] = json!(value);
        });
        let told = refused(&mut generate(model.path()));
        assert!(told.contains(named), "{key}: {told}");
    }
}

#[test]
fn a_tokenizer_that_contradicts_itself_is_no_bug_of_ours() {
    let model = model();
    let path = model.path().join("tokenizer.json");
    let whole = fs::read(&path).unwrap();
    // merges of pieces that are shorter than what each is said to begin with
    change(path.clone(), |tokenizer| {
        tokenizer["model"]["continuing_subword_prefix"] = json!("a long beginning");
    });
    let told = refused(&mut generate(model.path()));
    assert!(told.contains("tokenizer.json: cannot be read"), "{told}");

    // steps that double a text each
    fs::write(&path, whole).unwrap();
    change(path, |tokenizer| {
        let step = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": vec![step; 40]});
    });
    let told = refused(&mut generate(model.path()));
    assert!(told.contains("would lengthen a text"), "{told}");
}

#[test]
fn yaml_that_nests_or_repeats_itself_without_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    let nine = |of: &str| [of; 9].join(", ");
    let mut laughs = format!("a0: &a0 [{}]\n", nine("x"));
    for level in 1..9 {
        laughs += &format!(
            "a{level}: &a{level} [{}]\n",
            nine(&format!("*a{}", level - 1))
        );
    }
    let long = format!(
        "a: &a [{}]\nb: [{}]\n",
        vec!["x"; 1500].join(", "),
        vec!["*a"; 90].join(", ")
    );
    for (text, wanted) in [
        ("[".repeat(100_000), "100 deep"),
        ("{a: ".repeat(20_000), "100 deep"),
        ("- ".repeat(50_000), "recursion limit"),
        (laughs, "repetition limit"),
        (long, "more than 100000 values"),
        ("#\n".repeat(600_000), "1048576 or fewer"),
    ] {
        fs::write(&path, text).unwrap();
        let told = refused(halfbyte().arg("plan").arg(&path));
        assert!(told.contains(wanted), "{told}");
    }
    // of thousands of places that could be told only the first are looked for
    let rules = "- {match: a, wbits: 4}\n".repeat(4000);
    fs::write(
        &path,
        format!("model: {{source: embedded:tiny}}\nrules:\n{rules}"),
    )
    .unwrap();
    let told = refused(halfbyte().arg("plan").arg(&path));
    assert!(told.contains("pipeline.yaml:3: rules.0.match"), "{told}");
}

/// A run's folder with this change to a record that a run left.
fn record(change_it: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("halfbyte/run.json");
    fs::create_dir(folder.path().join("halfbyte")).unwrap();
    fs::copy(root().join("crates/fuzz/seeds/run.json"), &path).unwrap();
    change(path, change_it);
    folder
}

#[test]
fn a_record_of_any_numbers_is_shown() {
    for loss in [0.0, 5e-324, 1e-308, 1e308, -1.0] {
        let run = record(|record| {
            for linear in record["linears"].as_array_mut().unwrap() {
                linear["relative_loss"] = json!(loss);
                linear["relative_loss_heldout"] = json!(loss);
            }
        });
        let output = ends(halfbyte().arg("report").arg(run.path()));
        assert!(output.status.success(), "{loss}: {output:?}");
        assert!(run.path().join("halfbyte/report.html").is_file());
    }
    let run = record(|record| record["model"]["blocks"] = json!(100_663_296));
    let told = refused(halfbyte().arg("report").arg(run.path()));
    assert!(told.contains("100663296 blocks, wanted 4096"), "{told}");
}

#[test]
fn no_file_commands_the_terminal_that_shows_it() {
    const ESCAPE: &str = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}";
    let quiet = |output: &Output| {
        for bytes in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(bytes);
            let commands =
                |c: char| c == '\u{202e}' || (c.is_control() && !matches!(c, '\n' | '\t'));
            assert!(!text.contains(commands), "{text:?}");
        }
    };
    // in a record: the terminal, the page, the card
    let run = record(|record| {
        record["model"]["source"] = json!(ESCAPE);
        record["linears"][0]["linear"] = json!(format!("model.layers.0.{ESCAPE}"));
        record["linears"][0]["warnings"] = json!([ESCAPE]);
        record["evaluation"]["worst_tokens"][0]["token"] = json!(ESCAPE);
    });
    let output = ends(halfbyte().arg("report").arg(run.path()));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("\\u{1b}]0;title\\u{7}"));
    quiet(&output);
    let card = run.path().join("card.md");
    quiet(&ends(
        halfbyte()
            .arg("report")
            .arg(run.path())
            .arg("--out")
            .arg(&card),
    ));
    for written in [run.path().join("halfbyte/report.html"), card] {
        let text = fs::read_to_string(written).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']));
    }
    // in the name of a tensor, a key of the pipeline file, and a message of a parser
    let model = model();
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = bytes.len() - 8 - length;
    header[ESCAPE] = json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]});
    let text = header.to_string();
    let length_now = (text.len() as u64).to_le_bytes();
    fs::write(
        &path,
        [&length_now[..], text.as_bytes(), &bytes[8 + length..]].concat(),
    )
    .unwrap();
    let output = ends(&mut generate(model.path()));
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("\\u{1b}"));
    quiet(&output);
    quiet(&ends(halfbyte().arg("inspect").arg(model.path())));
    let pipeline = model.path().join("pipeline.yaml");
    fs::write(&pipeline, "model: {source: embedded:tiny}\n\"\\e[2J\": 1\n").unwrap();
    quiet(&ends(halfbyte().arg("plan").arg(&pipeline)));
    change(model.path().join("config.json"), |config| {
        config["model_type"] = json!(ESCAPE)
    });
    quiet(&ends(&mut generate(model.path())));
}
