//! What is told of models and patterns that are not what they seem: never silence, and never another model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use halfbyte_checkpoint::{Dtype, ModelFolder, SafetensorsWriter, TensorInfo};
use halfbyte_report::{RunRecord, read_run};
use serde_json::{Map, Value, json};

use crate::program::{halfbyte, root, succeed};

const PIPELINE: &str = "model: {source: model}
calibration: {sources: [{path: text.txt}], num_samples: 9, sequence_length: 64}
quant: {bits: 4, group_size: 64}
report: {html: false, calibration_curve: false}
";

/// A folder with a copy of the embedded model cut to two blocks, a text, and a pipeline over both.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// With more lines in the pipeline, other keys in config.json, and further tensors beside those of the two blocks.
    fn new(lines: &str, keys: Value, more: &[(&str, &[usize])]) -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let from = root().join("crates/checkpoint/embedded/tiny");
        fs::create_dir(bench.path("model")).unwrap();
        for file in ["config.json", "tokenizer.json"] {
            fs::copy(from.join(file), bench.path("model").join(file)).unwrap();
        }
        let whole = ModelFolder::open(&from).unwrap();
        let is_past = |name: &str| (2..6).any(|i| name.starts_with(&format!("model.layers.{i}.")));
        let names: Vec<&str> = whole.names().filter(|name| !is_past(name)).collect();
        let mut tensors: Vec<(TensorInfo, Vec<u8>)> = Vec::new();
        for name in names {
            let view = whole.tensor(name).unwrap();
            tensors.push((info(name, view.dtype, view.shape), view.bytes.to_vec()));
        }
        for (name, shape) in more {
            // 0.5 as BF16
            let bytes = [0, 0x3f].repeat(shape.iter().product());
            tensors.push((info(name, Dtype::BF16, shape), bytes));
        }
        let infos: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
        let path = bench.path("model/model.safetensors");
        let mut writer = SafetensorsWriter::create(&path, &infos).unwrap();
        for (info, bytes) in &tensors {
            writer.write(&info.name, bytes).unwrap();
        }
        writer.finish().unwrap();
        bench.edit("num_hidden_layers", json!(2));
        for (key, value) in keys.as_object().unwrap() {
            bench.edit(key, value.clone());
        }
        let text = root().join("calibration_data/en-narrative.txt");
        fs::copy(text, bench.path("text.txt")).unwrap();
        fs::write(bench.path("pipeline.yaml"), format!("{PIPELINE}{lines}")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edit(&self, key: &str, value: Value) {
        let path = self.path("model/config.json");
        let text = fs::read(&path).unwrap();
        let mut config: Map<String, Value> = serde_json::from_slice(&text).unwrap();
        config.insert(key.to_owned(), value);
        fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = halfbyte();
        command.current_dir(self.folder.path()).args(arguments);
        command
    }

    /// What `plan` prints, each note on a line.
    fn plan(&self) -> String {
        let output = succeed(&mut self.command(&["plan", "pipeline.yaml"]));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The record of a run, whose warnings must have stood on the screen too.
    fn run(&self) -> RunRecord {
        let output = succeed(&mut self.command(&RUN));
        let record = read_run(&self.path("out")).unwrap();
        for warning in &record.summary.warnings {
            assert!(warned(&output, warning), "{warning}");
        }
        record
    }

    /// Each of `plan`, `run` and `sweep` must tell, the first two by a sentence with all of `words` that is kept in run.json.
    fn tells(&self, words: &[&str]) {
        let has = |text: &str| words.iter().all(|word| text.contains(word));
        let plan = self.plan();
        assert!(plan.lines().any(has), "{words:?}: {plan}");
        let warnings = self.run().summary.warnings;
        assert!(warnings.iter().any(|w| has(w)), "{words:?}: {warnings:?}");
    }

    /// The message with which all of `plan`, `run` and `sweep` end, before they write anything.
    fn refused(&self) -> String {
        let mut messages: Vec<String> = Vec::new();
        for command in [&["plan", "pipeline.yaml"][..], &RUN, &SWEEP] {
            let output = self.command(command).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?}: {stderr}");
            assert!(!self.path("out").exists(), "{command:?}");
            let told = stderr
                .lines()
                .skip_while(|line| !line.starts_with("error:"));
            messages.push(told.collect::<Vec<_>>().join("\n"));
        }
        messages.dedup();
        assert_eq!(messages.len(), 1, "{messages:?}");
        messages.remove(0)
    }
}

const RUN: [&str; 6] = ["run", "pipeline.yaml", "--device", "cpu", "--out", "out"];
const SWEEP: [&str; 8] = [
    "sweep",
    "pipeline.yaml",
    "--device",
    "cpu",
    "--out",
    "out",
    "--set",
    "sweep={bits: [4], measure: none}",
];

fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    }
}

fn warned(output: &Output, text: &str) -> bool {
    let stderr = String::from_utf8_lossy(&output.stderr);
    stderr
        .lines()
        .any(|line| line.contains("warning: ") && line.contains(text))
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn layers_past_the_model_and_towers_are_carried_along_and_told() {
    let more: [(&str, &[usize]); 3] = [
        ("model.layers.2.mlp.up_proj.weight", &[8, 4]),
        ("model.layers.2.input_layernorm.weight", &[256]),
        ("visual.merger.weight", &[4, 8]),
    ];
    let bench = Bench::new("", json!({}), &more);
    bench.tells(&[
        "2 tensors of layers past the 2 of num_hidden_layers",
        "model.layers.2.mlp.up_proj.weight",
    ]);
    assert!(bench.plan().contains(
        "1 tensor that LlamaForCausalLM does not read (visual.merger.weight) take no part"
    ));
    let unread = read_run(&bench.path("out")).unwrap().model.tensors_unread;
    let unread = unread.unwrap();
    assert_eq!(unread.count, 3);
    assert!(unread.first.contains(&"visual.merger.weight".to_owned()));
    let [source, written] =
        ["model", "out"].map(|name| ModelFolder::open(&bench.path(name)).unwrap());
    for (name, _) in more {
        let [before, after] = [&source, &written].map(|folder| folder.tensor(name).unwrap());
        assert_eq!((before.shape, before.bytes), (after.shape, after.bytes));
    }
    // readers must not look for codes of them
    let ignored = config(&bench.path("out"))["quantization_config"]["ignore"].clone();
    for module in ["model.layers.2.mlp.up_proj", "visual.merger"] {
        assert!(
            ignored.as_array().unwrap().contains(&json!(module)),
            "{ignored}"
        );
    }
    let prompt = [
        "generate",
        "out",
        "--prompt",
        "Once",
        "--max-new-tokens",
        "2",
        "--device",
        "cpu",
    ];
    let output = succeed(&mut bench.command(&prompt));
    assert!(warned(&output, "out: 2 tensors of layers past the 2"));
}

#[test]
fn an_ignore_that_matches_nothing_is_told() {
    let bench = Bench::new("ignore: [lm_head, down_proj]\n", json!({}), &[]);
    let words = [
        "pipeline.yaml:5: ignore.1: `down_proj` matches no module",
        "`re:.*down_proj`",
    ];
    bench.tells(&words);
    let other_out = SWEEP.map(|word| if word == "out" { "swept" } else { word });
    let output = succeed(&mut bench.command(&other_out));
    assert!(words.iter().all(|word| warned(&output, word)));
}

#[test]
fn names_of_awq_leave_alone_what_they_are_part_of() {
    let bench = Bench::new("modules_to_not_convert: [down_proj]\n", json!({}), &[]);
    let plan = bench.plan();
    assert!(plan.contains("`down_proj` as `re:.*down_proj`"), "{plan}");
    let kept = |line: &str| line.trim_start().starts_with("down_proj") && line.ends_with("kept");
    assert!(plan.lines().any(kept), "{plan}");
}

#[test]
fn a_rule_that_matches_nothing_and_one_that_earlier_ones_leave_nothing() {
    let none = Bench::new("rules: [{match: '.*down_proj', bits: 8}]\n", json!({}), &[]);
    assert_eq!(
        none.refused(),
        "error: pipeline.yaml:5: rules.0.match: `.*down_proj` matches no module\n\
         hint: modules are named like model.layers.0.mlp.down_proj; write `re:.*down_proj`, which matches 2 of them"
    );
    let shadowed = "rules: [{match: '*', bits: 8}, {match: '*.q_proj', bits: 3}]\n";
    let shadowed = Bench::new(shadowed, json!({}), &[]);
    shadowed.tells(&[
        "rules.1.match: `*.q_proj` changes nothing",
        "`*` (pipeline.yaml:5: rules.0.match)",
    ]);
}

#[test]
fn models_that_are_others_than_they_say_are_refused() {
    for (keys, more, words) in [
        (
            json!({"logits_scaling": 8.0}),
            vec![],
            "config.json: logits_scaling: 8.0, which LlamaForCausalLM does not have",
        ),
        (
            json!({"architectures": ["GraniteForCausalLM"]}),
            vec![],
            "config.json: architectures: 'GraniteForCausalLM' computes otherwise than LlamaForCausalLM",
        ),
        (
            json!({}),
            vec![("model.layers.0.self_attn.q_norm.weight", &[64][..])],
            "the weights hold 1 tensor that LlamaForCausalLM does not compute with: model.layers.0.self_attn.q_norm.weight",
        ),
        (
            json!({}),
            vec![("model.layers.1.mlp.down_proj.bias", &[256][..])],
            "write mlp_bias: true into config.json",
        ),
    ] {
        let bench = Bench::new("", keys, &more);
        let message = bench.refused();
        assert!(message.contains(words), "{message}");
        for command in [
            &["generate", "model", "--prompt", "Once"][..],
            &["eval", "model", "--text", "text.txt"],
        ] {
            let output = bench.command(command).args(["--device", "cpu"]).output();
            let output = output.unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(words));
        }
    }
}

#[test]
fn a_name_that_is_not_the_models_own_is_told() {
    let keys = json!({"architectures": ["SomethingElseForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_x.LlamaForCausalLM"}});
    let bench = Bench::new("", keys, &[]);
    bench.tells(&[
        "architectures names SomethingElseForCausalLM",
        "computed as LlamaForCausalLM",
    ]);
    assert!(
        bench
            .plan()
            .contains("modeling_x.LlamaForCausalLM, which is not run")
    );
}

#[test]
fn a_quantization_config_beside_float_weights_is_told_and_replaced() {
    let stale = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    let bench = Bench::new("", json!({"quantization_config": stale}), &[]);
    bench.tells(&["quantization_config is passed over"]);
    let written = config(&bench.path("out"))["quantization_config"].clone();
    assert_eq!(written["quant_method"], "compressed-tensors");
    assert!(written.get("load_in_4bit").is_none());
}

#[test]
fn a_head_beside_a_tied_config_is_used_and_written_as_untied() {
    let head: [(&str, &[usize]); 1] = [("lm_head.weight", &[4096, 256])];
    let bench = Bench::new("", json!({}), &head);
    bench.tells(&[
        "tie_word_embeddings is true",
        "lm_head.weight that is not the embedding",
    ]);
    assert_eq!(config(&bench.path("out"))["tie_word_embeddings"], false);
    let score = |model: &str| {
        let mut command = bench.command(&["eval", model, "--text", "text.txt", "--device", "cpu"]);
        command.args(["--sequence-length", "64", "--windows", "2", "--json"]);
        let found: Value = serde_json::from_slice(&succeed(&mut command).stdout).unwrap();
        found["perplexity"].as_f64().unwrap()
    };
    // a head of equal rows knows nothing
    assert!((score("out") - 4096.0).abs() < 1.0 && (score("model") - 4096.0).abs() < 1.0);
}

#[test]
fn a_config_with_a_byte_order_mark_and_infinity_is_read() {
    let bench = Bench::new("", json!({"extra": "HERE"}), &[]);
    let path = bench.path("model/config.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"HERE\"", "Infinity");
    fs::write(&path, format!("\u{feff}{text}")).unwrap();
    bench.tells(&["extra is Infinity, which JSON does not have"]);
    assert_eq!(config(&bench.path("out"))["extra"], Value::Null);
}

#[test]
fn sequences_past_the_models_positions_are_told_by_every_command() {
    let evaluate = "evaluate: {text: text.txt, sequence_length: 48, windows: 1}\n";
    let bench = Bench::new(evaluate, json!({"max_position_embeddings": 32}), &[]);
    bench.tells(&[
        "calibration.sequence_length: 64 tokens",
        "made for 32 (max_position_embeddings",
    ]);
    let plan = bench.plan();
    assert!(
        plan.contains("evaluate.sequence_length: 48 tokens"),
        "{plan}"
    );
    let scored = [
        "--text",
        "text.txt",
        "--sequence-length",
        "40",
        "--windows",
        "1",
        "--device",
        "cpu",
    ];
    for command in [
        &["eval", "model"][..],
        &["sensitivity", "out", "--reference", "model"],
    ] {
        let output = succeed(bench.command(command).args(scored));
        let told = warned(
            &output,
            "--sequence-length: 40 tokens, and the model is made for 32",
        );
        assert!(
            told,
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let prompt = [
        "generate",
        "model",
        "--prompt",
        "Once",
        "--max-new-tokens",
        "40",
        "--device",
        "cpu",
    ];
    let output = succeed(&mut bench.command(&prompt));
    assert!(warned(&output, "are left of the model's 32 positions"));
}
