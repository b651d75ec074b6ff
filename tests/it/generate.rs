//! `halfbyte generate`, and models run as they are packed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use halfbyte_checkpoint::ModelFolder;
use halfbyte_model::{Decoder, DeviceChoice, Execution, LoadedModel, Weights, open_device, values};
use serde_json::{Value, json};

use crate::program::{halfbyte, root, small_run, succeed};
use crate::snapshot::assert_snapshot;

const PROMPT: &str = "The river was";

/// The embedded model rounded to 4 bits.
fn four_bits() -> PathBuf {
    static RUN: OnceLock<tempfile::TempDir> = OnceLock::new();
    let run = RUN.get_or_init(|| quantized(&[]));
    run.path().join("gptq")
}

/// The embedded model rounded as asked.
fn quantized(sets: &[&str]) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let all = ["method=rtn", "evaluate=false"].into_iter();
    let more: Vec<&str> = all
        .chain(sets.iter().copied())
        .flat_map(|set| ["--set", set])
        .collect();
    succeed(&mut small_run(out.path(), &more));
    out
}

fn generate(model: &Path, more: &[&str]) -> Command {
    let mut command = halfbyte();
    command
        .arg("generate")
        .arg(model)
        .args(["--prompt", PROMPT]);
    command.args(["--max-new-tokens", "24"]).args(more);
    if !more.contains(&"--device") {
        command.args(["--device", "cpu"]);
    }
    command
}

fn generated(model: &Path, more: &[&str]) -> Value {
    let output = succeed(generate(model, more).arg("--json"));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn weights(folder: &Path) -> Weights {
    Weights::new(ModelFolder::open(folder).unwrap()).unwrap()
}

/// A copy of the embedded model to spoil.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(root().join("crates/checkpoint/embedded/tiny")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn edit(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn greedy_tokens_are_the_same_packed_on_both_devices_and_dense_without_a_cache() {
    let model = four_bits();
    let packed = generated(&model, &[]);
    assert_eq!(packed["linears_packed"], 42);
    let tokens: Vec<u32> = serde_json::from_value(packed["tokens"].clone()).unwrap();
    assert_eq!(tokens.len(), 24);

    let decoder = Decoder::new(weights(&model), open_device(DeviceChoice::Cpu).unwrap());
    let vocab = decoder.weights().config().vocab_size;
    let tokenizer = decoder.weights().folder().tokenizer().unwrap();
    let mut ids = tokenizer.encode(PROMPT, true).unwrap().get_ids().to_vec();
    for &token in &tokens {
        let logits = values(decoder.logits(std::slice::from_ref(&ids)).unwrap()).unwrap();
        let last = &logits[logits.len() - vocab..];
        let likeliest = (0..vocab).reduce(|a, b| if last[b] > last[a] { b } else { a });
        assert_eq!(
            likeliest,
            Some(token as usize),
            "after {} tokens",
            ids.len()
        );
        ids.push(token);
    }

    if let Err(error) = open_device(DeviceChoice::Vulkan) {
        halfbyte_testing::skip(halfbyte_testing::Lacking::Vulkan, error);
        return;
    }
    let on_wgpu = generated(&model, &["--device", "vulkan"]);
    assert_eq!(on_wgpu["tokens"], packed["tokens"]);
    assert_eq!(on_wgpu["linears_packed"], 42);
}

/// Tolerance, of the largest logit: codes, scales and zero points are the same numbers in both, but the packed product sums
/// in another order and takes zero points off at the end of a group, each at the cost of f32's rounding (6e-8) a step.
#[test]
fn packed_logits_are_those_of_the_dense_weights_and_what_stays_dense_is_told() {
    let widths = "rules=[{match: '*up_proj', bits: 2, sym: false}, {match: '*gate_proj', bits: 3}, \
                  {match: '*down_proj', bits: 8}, {match: '*o_proj', bits: 5}, {match: '*v_proj', group_size: -1}]";
    let run = quantized(&[widths, "export=[{format: compressed-tensors}]"]);
    let folder = run.path().join("compressed-tensors");
    let folder = if folder.exists() {
        folder
    } else {
        run.path().to_owned()
    };
    let ids: Vec<u32> = (0..40).map(|i| (i * 97 + 5) % 4096).collect();
    let load = |execution| {
        let device = open_device(DeviceChoice::Cpu).unwrap();
        LoadedModel::load(weights(&folder), 40, execution, device, &mut |_| ()).unwrap()
    };
    let (packed, dense) = (load(Execution::Packed), load(Execution::Dense));
    assert!(3 * packed.bytes() < dense.bytes());
    let logits = |model: &LoadedModel| {
        let mut cache = model.cache();
        let mut all = model.logits(&ids[..30], &mut cache).unwrap();
        for id in &ids[30..] {
            all.extend(model.logits(&[*id], &mut cache).unwrap());
        }
        all
    };
    let (found, wanted) = (logits(&packed), logits(&dense));
    let largest = wanted.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!((found - wanted).abs() < 1e-4 * largest, "{found} {wanted}");
    }

    for (name, linear) in packed.linears() {
        let is_five_bits = name.ends_with("o_proj");
        assert_eq!(linear.is_packed(), !is_five_bits, "{name}");
        assert_eq!(linear.kept_dense().is_some(), is_five_bits, "{name}");
    }
    assert!(dense.linears().all(|(_, linear)| !linear.is_packed()));
    let output = succeed(generate(&folder, &[]).arg("--json"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("6 quantized linears are multiplied dense: model.layers.0.self_attn.o_proj: bits: no kernel for 5"),
        "{stderr}"
    );
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["kept_dense"].as_array().unwrap().len(), 6);
    assert_eq!(told["linears_packed"], 36);
}

#[test]
fn text_comes_on_stdout_and_figures_on_stderr() {
    let model = PathBuf::from("embedded:tiny");
    let output = succeed(&mut generate(&model, &[]));
    let told = generated(&model, &[]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        stdout,
        format!("{}\n", told["text"].as_str().unwrap())
            .trim_end()
            .to_owned()
            + "\n"
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("24 new") && stderr.contains("tokens/s"),
        "{stderr}"
    );
    assert!(stderr.contains("MiB of weights"), "{stderr}");
    assert_eq!(
        (&told["stopped_by"], &told["chat_template"]),
        (&json!("length"), &json!(false))
    );
    // 6 blocks of 2 kv heads of 64 numbers; the last token has not gone through the model
    let positions = told["prompt_tokens"].as_u64().unwrap() + 23;
    assert_eq!(told["cost"]["cache_bytes"], 6 * 2 * 2 * 64 * 4 * positions);
}

#[test]
fn a_seed_gives_the_same_text_on_any_number_of_threads() {
    let model = four_bits();
    let text = |seed, threads| {
        let more = [
            "--temperature",
            "0.9",
            "--top-p",
            "0.95",
            "--seed",
            seed,
            "--threads",
            threads,
        ];
        generated(&model, &more)["text"].clone()
    };
    let first = text("1", "1");
    assert_eq!(first, text("1", "3"));
    assert_ne!(first, text("2", "1"));
}

#[test]
fn a_text_ends_with_the_tokens_that_either_config_names() {
    let model = copy();
    let tokens = generated(model.path(), &[])["tokens"].clone();
    for file in ["generation_config.json", "config.json"] {
        let model = copy();
        edit(model.path(), file, "eos_token_id", json!([4000, tokens[3]]));
        let found = generated(model.path(), &[]);
        assert_eq!(found["stopped_by"], "end_token", "{file}");
        let kept = tokens
            .as_array()
            .unwrap()
            .iter()
            .take_while(|t| **t != tokens[3]);
        assert_eq!(found["tokens"], kept.cloned().collect::<Value>(), "{file}");
    }
}

#[test]
fn a_model_that_samples_is_sampled_from_unless_something_else_is_asked_for() {
    let model = copy();
    let greedy = generated(model.path(), &[]);
    assert_eq!(greedy["sampling"]["temperature"], 0.0);
    let file = "generation_config.json";
    edit(model.path(), file, "do_sample", json!(true));
    edit(model.path(), file, "temperature", json!(1.5));
    edit(model.path(), file, "top_k", json!(40));
    let sampled = generated(model.path(), &[]);
    let wanted = json!({"temperature": 1.5, "top_p": 1.0, "top_k": 40, "seed": 0});
    assert_eq!(sampled["sampling"], wanted);
    assert_ne!(sampled["tokens"], greedy["tokens"]);
    let stderr = succeed(&mut generate(model.path(), &[])).stderr;
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(
        stderr.contains(
            "sampling with the model's own temperature 1.5, top_k 40 (generation_config.json)"
        ),
        "{stderr}"
    );
    let flags = ["--temperature", "1.5", "--top-k", "40"];
    let asked = generated(copy().path(), &flags);
    assert_eq!(asked["tokens"], sampled["tokens"]);
    for more in [&["--temperature", "0"][..], &["--top-k", "1"]] {
        assert_eq!(generated(model.path(), more)["tokens"], greedy["tokens"]);
    }
}

#[test]
fn a_chat_template_is_used_unless_the_prompt_is_to_stand_as_it_is() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if \
                    add_generation_prompt %}assistant:{% endif %}";
    let count = |model: &Path, more: &[&str]| {
        let found = generated(model, more);
        (
            found["chat_template"] == true,
            found["prompt_tokens"].as_u64().unwrap(),
        )
    };
    let tokenizer = ModelFolder::embedded("tiny").unwrap().tokenizer().unwrap();
    let tokens = |text: &str| tokenizer.encode(text, false).unwrap().len() as u64;
    let rendered = format!("<|endoftext|>user: {PROMPT}\nassistant:");
    let model = copy();
    edit(
        model.path(),
        "tokenizer_config.json",
        "chat_template",
        json!(template),
    );
    assert_eq!(count(model.path(), &[]), (true, tokens(&rendered)));
    assert_eq!(count(model.path(), &["--raw"]), (false, tokens(PROMPT)));
    // a file of its own goes before it
    fs::write(
        model.path().join("chat_template.jinja"),
        "{{ messages[0].content }}",
    )
    .unwrap();
    assert_eq!(count(model.path(), &[]), (true, tokens(PROMPT)));
    let named =
        json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]);
    let model = copy();
    edit(
        model.path(),
        "tokenizer_config.json",
        "chat_template",
        named,
    );
    assert_eq!(count(model.path(), &[]), (true, tokens(&rendered)));
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let mut command = halfbyte()
        .args([
            "generate",
            "embedded:tiny",
            "--prompt",
            PROMPT,
            "--temperature",
            "1",
        ])
        .args(["--max-new-tokens", "1500", "--device", "cpu"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 4];
    let mut stdout = command.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = command.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && !stderr.contains("error"),
        "{stderr}"
    );
}

#[test]
fn a_prompt_that_leaves_less_room_than_asked_for_is_told() {
    let model = copy();
    edit(
        model.path(),
        "config.json",
        "max_position_embeddings",
        json!(20),
    );
    let output = succeed(generate(model.path(), &[]).arg("--json"));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tokens = found["tokens"].as_array().unwrap().len() as u64;
    assert_eq!(tokens + found["prompt_tokens"].as_u64().unwrap(), 20);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("warning: max_new_tokens: 24 asked for"),
        "{stderr}"
    );
}

#[test]
fn scores_are_the_same_packed_and_both_models_go_on_from_prompts() {
    let model = four_bits();
    let prompts = tempfile::NamedTempFile::new().unwrap();
    fs::write(&prompts, "Once upon a time\n\nThe old man said\n").unwrap();
    let eval = |more: &[&str]| -> Value {
        let mut command = halfbyte();
        command
            .arg("eval")
            .arg(&model)
            .args(["--device", "cpu", "--json", "--windows", "2"]);
        command.args([
            "--sequence-length",
            "96",
            "--text",
            "calibration_data/en-narrative.txt",
        ]);
        serde_json::from_slice(&succeed(command.args(more)).stdout).unwrap()
    };
    let float = ["--reference", "embedded:tiny"];
    let [dense, packed] = [
        &["--max-new-tokens", "12"][..],
        &["--packed", "--max-new-tokens", "0"],
    ]
    .map(|more| eval(&[&float[..], more].concat()));
    assert_eq!(
        (&dense["packed"], &packed["packed"]),
        (&json!(false), &json!(true))
    );
    for score in ["perplexity", "/against/kl_mean"] {
        let of = |scores: &Value| match scores.pointer(score) {
            Some(found) => found.as_f64().unwrap(),
            None => scores[score].as_f64().unwrap(),
        };
        let (a, b) = (of(&dense), of(&packed));
        // scores are means of some 200 tokens' logarithms; logits differ by their 1e-5th
        assert!((a / b - 1.0).abs() < 1e-4, "{score}: {a} {b}");
    }
    assert_eq!(packed["generation"], Value::Null);
    assert_eq!(dense["generation"]["prompts"], 2);

    let path = prompts.path().to_str().unwrap();
    let given = eval(&[&float[..], &["--prompts", path, "--max-new-tokens", "12"]].concat());
    let generation = &given["generation"];
    assert_eq!(
        (&generation["prompts"], &generation["max_new_tokens"]),
        (&json!(2), &json!(12))
    );
    let number = |key: &str| generation[key].as_f64().unwrap();
    assert!((0.0..=12.0).contains(&number("agreement_length")));
    assert!((0.0..=1.0).contains(&number("rouge_l")));
    let bytes = |key: &str| generation[key]["weight_bytes"].as_u64().unwrap();
    assert!(bytes("cost") < bytes("cost_float"));

    let itself = halfbyte()
        .args([
            "eval",
            "embedded:tiny",
            "--device",
            "cpu",
            "--json",
            "--windows",
            "1",
        ])
        .args([
            "--sequence-length",
            "64",
            "--text",
            "calibration_data/en-narrative.txt",
        ])
        .args(float)
        .output()
        .unwrap();
    let itself: Value = serde_json::from_slice(&itself.stdout).unwrap();
    let generation = &itself["generation"];
    assert_eq!(
        (&generation["identical"], &generation["rouge_l"]),
        (&json!(1.0), &json!(1.0))
    );
}

/// The message, with exit code 2 and nothing on stdout.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty());
    let told = stderr
        .lines()
        .skip_while(|line| !line.starts_with("error:"));
    told.collect::<Vec<_>>().join("\n")
}

#[test]
fn bad_requests_are_refused_by_name_with_a_remedy() {
    let tiny = Path::new("embedded:tiny");
    let ask = |more: &[&str]| refused(&mut generate(tiny, more));
    let mut told = vec![
        ask(&["--top-p", "0"]),
        ask(&["--top-p", "1.5"]),
        ask(&["--temperature", "-1"]),
        ask(&["--temperature", "nan"]),
        refused(halfbyte().args(["generate", "embedded:tiny", "--prompt", ""])),
        refused(
            halfbyte()
                .args(["generate", "embedded:tiny", "--device", "cpu", "--prompt"])
                .arg("word ".repeat(3000)),
        ),
        refused(&mut generate(Path::new("no-such-folder"), &[])),
    ];
    let spoiled = |file: &str, key: &str, value: Value| {
        let model = copy();
        edit(model.path(), file, key, value);
        let place = model.path().display().to_string();
        refused(&mut generate(model.path(), &[])).replace(&place, "[FOLDER]")
    };
    told.push(spoiled("config.json", "model_type", json!("gpt_neox")));
    told.push(spoiled(
        "generation_config.json",
        "eos_token_id",
        json!("</s>"),
    ));
    told.push(spoiled(
        "tokenizer_config.json",
        "chat_template",
        json!("{% for m in messages %}"),
    ));
    told.push(spoiled(
        "tokenizer_config.json",
        "chat_template",
        json!("{{ raise_exception('no user role') }}"),
    ));
    assert_snapshot("bad_requests_to_generate", &told.join("\n\n"));
}
