//! The program as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use halfbyte_checkpoint::ModelFolder;
use halfbyte_model::{DeviceChoice, LinearKind, Weights, linear_shape, open_device};
use halfbyte_quant::{Codebook, Coding, QuantizedWeight};
use halfbyte_report::{RunRecord, Verdict, read_run};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

pub(crate) fn halfbyte() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
    command
        .current_dir(root())
        .env_remove("RUST_LOG")
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// Starts the program and kills it as soon as something is so.
pub(crate) fn kill_when(command: &mut Command, is_so: &dyn Fn() -> bool) {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "nothing to kill it at in two minutes"
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be killed"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Finished blocks by a state.json.
pub(crate) fn blocks_done(state: &Path) -> u64 {
    let text = std::fs::read(state).unwrap_or_default();
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    state["blocks_done"].as_u64().unwrap_or(0)
}

/// The quickstart on a few short windows: seconds.
pub(crate) fn small_run(out: &Path, more: &[&str]) -> Command {
    small_run_on("cpu", out, more)
}

fn small_run_on(device: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = halfbyte();
    command
        .args(["run", "pipelines/quickstart.yaml"])
        .args(["--device", device, "--out"])
        .arg(out);
    for set in [
        "calibration.num_samples=9",
        "calibration.sequence_length=64",
        "evaluate.windows=2",
        "evaluate.sequence_length=64",
    ] {
        command.args(["--set", set]);
    }
    command.args(more);
    command
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{stderr}",
        output.status
    );
    output
}

/// A linear's codes, scales and zero points.
fn grid(weights: &Weights, module: &str, shape: [usize; 2]) -> QuantizedWeight {
    let weight = weights.quantized(module, shape).unwrap();
    weight.into_grid().unwrap()
}

/// Everything the solver decided, without the times.
fn decisions(run: &RunRecord) -> Vec<String> {
    let line = |l: &halfbyte_report::LinearRecord| {
        let mut line = format!(
            "{} {:e} {:?} {:e} {:?}",
            l.linear, l.relative_loss, l.relative_loss_heldout, l.damp_used, l.warnings
        );
        for point in &l.calibration_curve {
            let losses = (point.relative_loss, point.relative_loss_heldout);
            line += &format!("; {} {:.12e} {:.12e}", point.tokens, losses.0, losses.1);
        }
        line
    };
    run.linears.iter().map(line).collect()
}

#[test]
fn a_budget_is_kept_to_and_goes_where_the_model_feels_it() {
    let out = tempfile::tempdir().unwrap();
    let sets = [
        "budget={bits_per_weight: 3.5, bits: [2, 3, 4, 8], floors: [{match: '*.5.mlp.down_proj', bits: 4}]}",
        "rules=[{match: '*.1.mlp.gate_proj', bits: 8}]",
    ];
    let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    succeed(&mut small_run(out.path(), &more));
    let record = read_run(out.path()).unwrap();
    let budget = record.budget.unwrap();
    assert!(budget.bits_per_weight <= 3.5 && budget.bits_per_weight > 3.4);
    assert!((record.summary.bits_per_weight - budget.bits_per_weight).abs() < 1e-9);
    let bits = |module: &str| {
        let found = record.linears.iter().find(|l| l.linear.ends_with(module));
        found.unwrap().bits
    };
    for block in 0..6 {
        let of = |kind: &str| bits(&format!("layers.{block}.{kind}"));
        let [q, k, v] = ["q", "k", "v"].map(|name| of(&format!("self_attn.{name}_proj")));
        assert!(q == k && k == v, "block {block}: {q} {k} {v}");
        assert!(block == 1 || of("mlp.gate_proj") == of("mlp.up_proj"));
    }
    assert_eq!(bits("layers.1.mlp.gate_proj"), 8);
    assert!(bits("layers.5.mlp.down_proj") >= 4);
    let widths: std::collections::BTreeSet<u8> = record.linears.iter().map(|l| l.bits).collect();
    assert!(widths.len() > 2, "{widths:?}");
    for linear in &budget.linears {
        assert!(linear.sensitivity > 0.0, "{linear:?}");
        assert!(
            linear
                .predicted_kl
                .is_sorted_by(|a, b| a.0 < b.0 && a.1 >= b.1),
            "{linear:?}"
        );
    }
    // a rule has settled one linear at 8 bits, so that is the only width all could have
    let uniform: Vec<u8> = budget.uniform.iter().map(|u| u.bits).collect();
    assert_eq!(uniform, [8]);
    let least = |l: &halfbyte_report::SensitivityRecord| l.predicted_kl[0].1;
    let narrow: f64 = budget.linears.iter().map(least).sum();
    assert!(budget.predicted_kl < 0.5 * narrow);
}

#[test]
fn the_best_recipe_keeps_the_codes_it_tunes_and_gives_the_same_bytes_on_any_number_of_threads() {
    let run = |threads: &str, tune: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let sets = [
            "recipe=best",
            // so that something is left to tune on so little text
            "propagation=sequential",
            "quant.bits=2",
            "calibration.num_samples=13",
            "calibration.holdout=0.25",
            "tune.learning_rate=0.0005",
            "calibration.generated_samples=1",
        ];
        let more: Vec<&str> = sets
            .iter()
            .chain(tune)
            .flat_map(|set| ["--set", *set])
            .collect();
        succeed(small_run(out.path(), &more).args(["--threads", threads]));
        out
    };
    let seen = ["tune.epochs=2", "tune.generated_samples=0"];
    let (tuned, again, plain) = (
        run("1", &seen),
        run("3", &seen),
        run("2", &["tune.epochs=0"]),
    );
    let file = |out: &tempfile::TempDir| {
        std::fs::read(out.path().join("compressed-tensors/model.safetensors")).unwrap()
    };
    assert!(file(&tuned) == file(&again), "threads changed the result");

    let record = read_run(tuned.path()).unwrap();
    let calibration = &record.calibration;
    assert_eq!(calibration.samples, 11);
    assert_eq!(calibration.tokens_generated * 11, calibration.tokens_used);
    assert_eq!(calibration.tokens_random, 0);
    assert!(record.linears.iter().all(|l| l.row_hessian));
    let tune = record.tune.unwrap();
    assert_eq!((tune.epochs, tune.kl_heldout.len()), (2, 3));
    assert_eq!(
        tune.num_samples,
        Some(11),
        "ten of text, one that the model wrote"
    );
    let least = tune
        .kl_heldout
        .iter()
        .copied()
        .fold(f64::INFINITY, f64::min);
    assert_eq!(tune.kl_heldout[tune.epochs_kept], least);
    assert!(tune.epochs_kept > 0, "{tune:?}");
    assert_eq!(tune.generated_samples, 0);
    assert!(read_run(plain.path()).unwrap().tune.is_none());
    let few = run(
        "2",
        &[
            "tune.epochs=1",
            "tune.generated_samples=0",
            "tune.num_samples=2",
        ],
    );
    let few = read_run(few.path()).unwrap().tune.unwrap();
    assert_eq!(few.num_samples, Some(2));
    let unseen = run("2", &["tune.epochs=1", "tune.generated_samples=3"]);
    let unseen = read_run(unseen.path()).unwrap();
    assert_eq!(
        &unseen.calibration, calibration,
        "what is solved from changed"
    );
    let unseen = unseen.tune.unwrap();
    assert_eq!((unseen.generated_samples, unseen.num_samples), (3, Some(3)));
    assert_eq!(unseen.kl_heldout[0], tune.kl_heldout[0]);
    assert!(
        unseen.kl_calibration[0] > tune.kl_calibration[0],
        "{unseen:?}"
    );
    assert_ne!(few.kl_calibration[0], tune.kl_calibration[0]);

    let open = |out: &tempfile::TempDir| {
        let folder = ModelFolder::open(&out.path().join("compressed-tensors")).unwrap();
        Weights::new(folder).unwrap()
    };
    let (with, without) = (open(&tuned), open(&plain));
    let mut moved = 0;
    for block in 0..6 {
        for kind in LinearKind::ALL {
            let (module, shape) = (kind.module(block), linear_shape(with.config(), kind));
            let (a, b) = (grid(&with, &module, shape), grid(&without, &module, shape));
            assert_eq!(a.codes(), b.codes(), "{module}");
            moved += usize::from(a.scales() != b.scales());
        }
    }
    assert!(moved > 21, "only {moved} linears have other scales");
    let norm = "model.layers.2.input_layernorm.weight";
    assert_ne!(with.vector(norm).unwrap(), without.vector(norm).unwrap());
}

#[test]
fn random_tokens_stand_in_for_a_models_own_text_where_memory_does_not_hold_it_and_the_run_says_so()
{
    let run = |memory: &str| {
        let out = tempfile::tempdir().unwrap();
        let more = [
            "--set",
            "calibration.generated_samples=3",
            "--set",
            "report.calibration_curve=false",
            "--set",
            memory,
        ];
        succeed(&mut small_run(out.path(), &more));
        read_run(out.path()).unwrap()
    };
    let told = |run: &halfbyte_report::RunRecord| {
        let warnings = run.summary.warnings.iter();
        warnings.filter(|w| w.contains("generated_samples")).count()
    };
    let (small, large) = (
        run("resources.max_memory=4MiB"),
        run("resources.max_memory=1GiB"),
    );
    let added = |run: &halfbyte_report::RunRecord| {
        let calibration = &run.calibration;
        (calibration.tokens_random, calibration.tokens_generated)
    };
    let random = added(&large).0;
    assert_eq!((added(&small), told(&small)), ((random + 192, 0), 1));
    assert_eq!((added(&large), told(&large)), ((random, 192), 0));
}

#[test]
fn what_the_model_wrote_is_read_again_unless_a_fresh_start_is_wanted() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("halfbyte/generated.json");
    let run = |more: &[&str]| {
        let sets = [
            "--set",
            "calibration.generated_samples=2",
            "--set",
            "report.calibration_curve=false",
        ];
        succeed(&mut small_run(out.path(), &[&sets[..], more].concat()));
        read_run(out.path()).unwrap().calibration.sha256
    };
    let first = run(&[]);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let windows = file["windows"].as_array_mut().unwrap();
    assert_eq!(windows.len(), 2);
    assert_eq!(windows[0].as_array().unwrap().len(), 64);
    windows[1] = vec![5; 64].into();
    std::fs::write(&path, file.to_string()).unwrap();
    // as a run leaves its folder that was cut off after its exports
    let cut_off = || std::fs::remove_file(out.path().join("halfbyte/run.json")).unwrap();
    cut_off();
    assert_ne!(run(&[]), first);
    assert_eq!(run(&["--fresh"]), first);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    cut_off();
    assert_ne!(run(&["--set", "calibration.seed=1"]), first);
    assert_ne!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn asymmetric_propagation_pays_back_what_came_before_and_gives_the_same_bytes_on_any_number_of_threads()
 {
    let run = |threads: &str, propagation: &str| {
        let out = tempfile::tempdir().unwrap();
        let sets = [
            propagation,
            "quant.bits=2",
            "calibration.num_samples=24",
            "calibration.holdout=0.2",
        ];
        let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        succeed(small_run(out.path(), &more).args(["--threads", threads]));
        let file = out.path().join("compressed-tensors/model.safetensors");
        (std::fs::read(file).unwrap(), read_run(out.path()).unwrap())
    };
    let (bytes, record) = run("1", "propagation=asymmetric");
    assert!(
        bytes == run("3", "propagation=asymmetric").0,
        "threads changed the result"
    );
    let shift = |of: &str| {
        let linear = record.linears.iter().find(|l| l.linear.ends_with(of));
        linear.unwrap().target_shift.unwrap()
    };
    assert_eq!(
        shift("layers.0.self_attn.q_proj"),
        0.0,
        "nothing came before"
    );
    assert!(shift("layers.1.mlp.down_proj") > 0.0);
    let last = |record: &RunRecord| {
        let evaluation = record.evaluation.as_ref().unwrap();
        *evaluation.stream_error.last().unwrap()
    };
    let (_, sequential) = run("2", "propagation=sequential");
    assert!(sequential.linears.iter().all(|l| l.target_alpha.is_none()));
    assert!(
        last(&record) < last(&sequential),
        "{} {}",
        last(&record),
        last(&sequential)
    );
}

#[test]
fn a_gpu_chooses_the_processors_codes_until_roundings_part_them() {
    if let Err(error) = open_device(DeviceChoice::Vulkan) {
        halfbyte_testing::skip(halfbyte_testing::Lacking::Vulkan, error);
        return;
    }
    let run = |device: &str| {
        let out = tempfile::tempdir().unwrap();
        let more = ["--set", "evaluate=false"];
        succeed(&mut small_run_on(device, out.path(), &more));
        let folder = ModelFolder::open(&out.path().join("compressed-tensors")).unwrap();
        (Weights::new(folder).unwrap(), read_run(out.path()).unwrap())
    };
    let ((host, host_run), (device, device_run)) = (run("cpu"), run("vulkan"));
    // a device sums f32, a processor that can sums bf16 numbers
    let in_bf16 = halfbyte_kernels::bf16::is_at_hand();
    let bound = if in_bf16 { 0.02 } else { 0.001 };
    for kind in [LinearKind::Q, LinearKind::K] {
        let (module, shape) = (kind.module(0), linear_shape(host.config(), kind));
        let (a, b) = (grid(&host, &module, shape), grid(&device, &module, shape));
        let other = a.codes().iter().zip(b.codes()).filter(|(a, b)| a != b);
        let share = other.count() as f64 / a.codes().len() as f64;
        assert!(share < bound, "{module}: {share} of the codes differ");
    }
    // a code that differs changes what later linears see, but not how well they are solved
    for (a, b) in host_run.linears.iter().zip(&device_run.linears) {
        let ratio = b.relative_loss / a.relative_loss;
        assert!((ratio - 1.0).abs() < 0.1, "{}: {ratio}", a.linear);
    }
}

#[test]
fn the_quickstart_leaves_two_exports_that_hold_the_same_codes() {
    let out = tempfile::tempdir().unwrap();
    let output = succeed(&mut small_run(out.path(), &[]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("perplexity"), "{text}");

    let run = read_run(out.path()).unwrap();
    assert_eq!(run.linears.len(), 6 * 7);
    assert!(
        run.linears
            .iter()
            .all(|l| l.relative_loss > 0.0 && l.relative_loss < l.relative_loss_rtn)
    );
    assert!(
        run.linears
            .iter()
            .all(|l| l.relative_loss_heldout.is_some())
    );
    let mixed = run
        .linears
        .iter()
        .filter(|l| l.hessian == halfbyte_report::HessianKind::AttentionMixed);
    assert!(mixed.clone().all(|l| l.linear.ends_with("v_proj")) && mixed.count() == 6);
    let evaluation = run.evaluation.unwrap();
    assert!(
        evaluation.kl_mean > 0.0 && evaluation.kl_mean < 0.5,
        "KL {}",
        evaluation.kl_mean
    );

    let open =
        |format: &str| Weights::new(ModelFolder::open(&out.path().join(format)).unwrap()).unwrap();
    let (ours, gptq) = (open("compressed-tensors"), open("gptq"));
    for block in 0..6 {
        for kind in LinearKind::ALL {
            let (module, shape) = (kind.module(block), linear_shape(ours.config(), kind));
            assert_eq!(
                ours.quantized(&module, shape).unwrap(),
                gptq.quantized(&module, shape).unwrap(),
                "{module}"
            );
        }
    }
    for file in [
        "tokenizer.json",
        "config.json",
        "README.md",
        "generation_config.json",
    ] {
        assert!(out.path().join("gptq").join(file).exists(), "{file}");
    }
    assert!(out.path().join("halfbyte/linears.csv").exists());
    assert!(!out.path().join("halfbyte/work").exists());
}

#[test]
fn explain_tells_of_a_linear_what_the_run_found() {
    let out = tempfile::tempdir().unwrap();
    succeed(&mut small_run(out.path(), &["--set", "evaluate=false"]));
    let explain = |linear: &str| {
        let mut command = halfbyte();
        command
            .arg("explain")
            .arg(out.path())
            .arg(linear)
            .output()
            .unwrap()
    };
    let told = explain("3.mlp.down_proj");
    assert!(told.status.success());
    let told = String::from_utf8(told.stdout).unwrap();
    let record = read_run(out.path()).unwrap();
    let linear = record
        .linears
        .iter()
        .find(|l| l.linear.ends_with("3.mlp.down_proj"));
    let linear = linear.unwrap();
    let finer = linear.finer_group_loss.unwrap();
    assert!((0.3..1.0).contains(&finer), "{finer}");
    let rank = linear.effective_rank.unwrap();
    assert!((1.0..linear.in_features as f64).contains(&rank), "{rank}");
    assert!(
        told.starts_with("model.layers.3.mlp.down_proj: 4 bits"),
        "{told}"
    );
    assert!(
        told.contains("{match: model.layers.3.mlp.down_proj, bits: 5}"),
        "{told}"
    );

    let unknown = explain("gate");
    assert_eq!(unknown.status.code(), Some(2));
    let told = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        told.contains("gate: no quantized linear has a name that ends so"),
        "{told}"
    );
}

#[test]
fn results_are_the_same_bits_on_one_two_and_seven_threads() {
    let export = |threads: &str| {
        let out = tempfile::tempdir().unwrap();
        succeed(&mut small_run(
            out.path(),
            &["--threads", threads, "--set", "evaluate=false"],
        ));
        let read =
            |name: &str| std::fs::read(out.path().join(name).join("model.safetensors")).unwrap();
        (
            read("gptq"),
            read("compressed-tensors"),
            decisions(&read_run(out.path()).unwrap()),
        )
    };
    let one = export("1");
    assert!(one == export("2"), "two threads decide otherwise than one");
    assert!(
        one == export("7"),
        "seven threads decide otherwise than one"
    );
}

#[test]
fn a_killed_run_goes_on_where_it_stopped_and_ends_the_same() {
    for propagation in ["sequential", "asymmetric"] {
        kill_and_go_on(&["--set", &format!("propagation={propagation}")]);
    }
}

fn kill_and_go_on(more: &[&str]) {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeed(&mut small_run(whole.path(), more));
    let state = broken.path().join("halfbyte/work/state.json");
    kill_when(&mut small_run(broken.path(), more), &|| {
        blocks_done(&state) >= 2
    });
    assert!(
        !broken.path().join("gptq/config.json").exists(),
        "a killed run must not leave a model behind"
    );

    succeed(&mut small_run(broken.path(), more));
    let (whole, broken) = (whole.path(), broken.path());
    let (a, b) = (read_run(whole).unwrap(), read_run(broken).unwrap());
    assert!(b.summary.blocks_resumed >= 2 && a.summary.blocks_resumed == 0);
    assert_eq!(decisions(&a), decisions(&b));
    let file = |folder: &Path| std::fs::read(folder.join("gptq/model.safetensors")).unwrap();
    assert!(file(whole) == file(broken), "the files differ");
    assert_eq!(a.evaluation, b.evaluation);
}

#[test]
fn another_pipeline_does_not_go_on_from_a_killed_runs_blocks() {
    let out = tempfile::tempdir().unwrap();
    let work = out.path().join("halfbyte/work");
    std::fs::create_dir_all(&work).unwrap();
    std::fs::write(
        work.join("state.json"),
        r#"{"fingerprint": "of another run", "blocks_done": 3}"#,
    )
    .unwrap();
    let output = small_run(out.path(), &[]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("unfinished work") && text.contains("--fresh"),
        "{text}"
    );
    assert!(work.join("state.json").exists());
    succeed(&mut small_run(out.path(), &["--fresh"]));
    assert_eq!(read_run(out.path()).unwrap().summary.blocks_resumed, 0);
}

#[test]
fn a_gate_that_is_missed_ends_with_3_and_leaves_the_files() {
    let out = tempfile::tempdir().unwrap();
    let output = small_run(out.path(), &["--set", "gate.max_kl=0.0000001"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(out.path().join("gptq/config.json").exists());
}

/// The embedded model with sixteen times its logits: so sure of everything that few bits leave nothing of it.
pub(crate) fn sharpened() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tiny = root().join("crates/checkpoint/embedded/tiny");
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(tiny.join(file), folder.path().join(file)).unwrap();
    }
    let mut bytes = std::fs::read(tiny.join("model.safetensors")).unwrap();
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..head]).unwrap();
    let norm = &names["model.norm.weight"];
    assert_eq!(norm["dtype"], "BF16");
    let at = |index: usize| head + norm["data_offsets"][index].as_u64().unwrap() as usize;
    for number in bytes[at(0)..at(1)].chunks_exact_mut(2) {
        // four more in the exponent
        let bits = u16::from_le_bytes([number[0], number[1]]) + (4 << 7);
        number.copy_from_slice(&bits.to_le_bytes());
    }
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

/// Plain rounding to 2 bits with a scale a row.
pub(crate) const DESTROYED: [&str; 10] = [
    "--set",
    "method=rtn",
    "--set",
    "recipe=reference",
    "--set",
    "quant.bits=2",
    "--set",
    "quant.group_size=-1",
    "--set",
    "export=[{format: gptq}]",
];

#[test]
fn a_destroyed_model_is_told_everywhere_and_strict_ends_with_3() {
    let (model, out) = (sharpened(), tempfile::tempdir().unwrap());
    let source = format!("model.source={}", model.path().display());
    let more = [&DESTROYED[..], &["--set", &source]].concat();
    let output = succeed(&mut small_run(out.path(), &more));
    let run = read_run(out.path()).unwrap();
    let evaluation = run.evaluation.unwrap();
    assert_eq!(evaluation.verdict, Some(Verdict::Broken), "{evaluation:?}");
    let told = &run.summary.warnings[0];
    assert!(told.starts_with("broken: perplexity "), "{told}");
    let file = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    for place in [
        text(output.stdout),
        text(output.stderr),
        file("README.md"),
        file("halfbyte/report.html"),
    ] {
        assert!(place.contains("broken: perplexity "), "{place}");
    }
    let mut eval = halfbyte();
    eval.args(["eval", out.path().to_str().unwrap(), "--text"])
        .args(["tests/data/evaluation.txt", "--windows", "2"])
        .args(["--sequence-length", "64", "--max-new-tokens", "0", "--json"])
        .arg("--reference")
        .arg(model.path());
    let judged: serde_json::Value = serde_json::from_slice(&succeed(&mut eval).stdout).unwrap();
    assert_eq!(judged["verdict"], "broken");
    assert_eq!(
        eval.arg("--strict").output().unwrap().status.code(),
        Some(3)
    );

    let strict = tempfile::tempdir().unwrap();
    let output = small_run(strict.path(), &more)
        .arg("--strict")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(output.stderr).contains("error: --strict: broken: perplexity "));
    assert!(strict.path().join("halfbyte/run.json").exists());
}

#[test]
fn strict_lets_a_good_model_pass_and_wants_something_measured() {
    let out = tempfile::tempdir().unwrap();
    succeed(&mut small_run(out.path(), &["--strict"]));
    let evaluation = read_run(out.path()).unwrap().evaluation.unwrap();
    assert_eq!(evaluation.verdict, Some(Verdict::Good));
    let output = small_run(out.path(), &["--strict", "--set", "evaluate=null"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--strict: nothing is measured"), "{text}");
}

#[test]
fn float_propagation_spilling_and_every_scheme_run() {
    for more in [
        &["--set", "propagation=float", "--set", "quant.bits=3"][..],
        &["--max-memory", "64KiB", "--set", "quant.bits=8"],
        &["--set", "method=rtn", "--set", "quant.group_size=-1"],
        &[
            "--set",
            "recipe=reference",
            "--set",
            "quant.desc_act=false",
            "--set",
            "quant.static_groups=false",
        ],
        &[
            "--set",
            "quant.sym=false",
            "--set",
            "quant.bits=2",
            "--set",
            "export=[{format: gptq_v2}]",
        ],
        &[
            "--set",
            "rules=[{match: '*down_proj', bits: 8, group_size: 32}]",
            "--set",
            "ignore=['*.layers.0.*']",
        ],
    ] {
        let out = tempfile::tempdir().unwrap();
        succeed(&mut small_run(out.path(), more));
        assert!(
            read_run(out.path())
                .unwrap()
                .evaluation
                .unwrap()
                .perplexity
                .is_finite(),
            "{more:?}"
        );
    }
}

#[test]
fn scales_by_either_loss_are_the_same_bits_on_any_number_of_threads() {
    let by = |loss: &str| {
        let run = |threads: &str| {
            let out = tempfile::tempdir().unwrap();
            let loss = format!("awq.loss={loss}");
            let more = [
                "--threads",
                threads,
                "--set",
                "method=awq",
                "--set",
                &loss,
                "--set",
                "evaluate=false",
            ];
            succeed(&mut small_run(out.path(), &more));
            read_run(out.path()).unwrap()
        };
        let one = run("1");
        assert_eq!(one.pipeline["awq"]["loss"], loss);
        let one = decisions(&one);
        assert!(
            one == decisions(&run("3")),
            "{loss}: threads changed the result"
        );
        one
    };
    assert!(
        by("module") != by("hessian"),
        "both choose alike everywhere"
    );
}

#[test]
fn scaled_channels_run_and_both_exports_hold_the_same_model() {
    for method in ["method=awq", "method=awq+gptq"] {
        let out = tempfile::tempdir().unwrap();
        let exports = "export=[{format: compressed-tensors}, {format: awq}]";
        let more = [
            "--set",
            method,
            "--set",
            exports,
            "--set",
            "quant.sym=false",
        ];
        succeed(&mut small_run(out.path(), &more));
        let run = read_run(out.path()).unwrap();
        assert!(run.linears.iter().all(|l| method.ends_with(&l.method)));
        let kl = run.evaluation.unwrap().kl_mean;
        assert!(kl > 0.0 && kl < 0.05, "{method}: KL {kl}");
        let open = |format: &str| {
            Weights::new(ModelFolder::open(&out.path().join(format)).unwrap()).unwrap()
        };
        let (tensors, awq) = (open("compressed-tensors"), open("awq"));
        let float = ModelFolder::open(&root().join("crates/checkpoint/embedded/tiny")).unwrap();
        let float = Weights::new(float).unwrap();
        let mut changed = 0;
        for block in 0..6 {
            for kind in LinearKind::ALL {
                let (module, shape) = (kind.module(block), linear_shape(awq.config(), kind));
                assert_eq!(
                    tensors.quantized(&module, shape).unwrap(),
                    awq.quantized(&module, shape).unwrap(),
                    "{method}: {module}"
                );
            }
            let norm = format!("model.layers.{block}.input_layernorm.weight");
            let folded = awq.vector(&norm).unwrap();
            assert_eq!(folded, tensors.vector(&norm).unwrap());
            changed += usize::from(folded != float.vector(&norm).unwrap());
        }
        assert!(changed > 0, "{method}: no norm was folded into");
    }
}

#[test]
fn methods_that_read_no_text_run_without_any() {
    let out = tempfile::tempdir().unwrap();
    let more = ["--set", "method=hqq", "--set", "quant.sym=false"];
    let exports = "export=[{format: awq}]";
    let missing = "calibration.num_samples=1000000";
    let more = [&more[..], &["--set", exports, "--set", missing]].concat();
    succeed(&mut small_run(out.path(), &more));
    let run = read_run(out.path()).unwrap();
    assert_eq!(run.calibration.tokens_used, 0);
    assert!(
        run.linears
            .iter()
            .all(|l| l.hessian == halfbyte_report::HessianKind::Identity && l.relative_loss > 0.0)
    );
    assert!(run.evaluation.unwrap().kl_mean < 0.05);

    let out = tempfile::tempdir().unwrap();
    let more = ["--set", "method=absmax", "--set", "quant.bits=8"];
    let exports = "export=[{format: int-quantized}]";
    let more = [&more[..], &["--set", exports]].concat();
    succeed(&mut small_run(out.path(), &more));
    let kl = read_run(out.path()).unwrap().evaluation.unwrap().kl_mean;
    assert!(kl < 1e-3, "KL {kl}");
}

#[test]
fn codebooks_are_written_as_bitsandbytes_has_them_and_read_back() {
    let exports = "export=[{format: bitsandbytes}]";
    for (method, codebook, double_quant) in [
        ("nf4", Codebook::Nf4, true),
        ("nf4", Codebook::Nf4, false),
        ("fp4", Codebook::Fp4, true),
    ] {
        let out = tempfile::tempdir().unwrap();
        let (method_set, nested) = (
            format!("method={method}"),
            format!("quant.double_quant={double_quant}"),
        );
        let ruled =
            "rules=[{match: '*.1.mlp.up_proj', group_size: 128}, {match: '*.2.*', skip: true}]";
        let sets = [method_set.as_str(), &nested, exports, ruled];
        let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        succeed(&mut small_run(out.path(), &more));
        let run = read_run(out.path()).unwrap();
        let kl = run.evaluation.unwrap().kl_mean;
        assert!(kl > 0.0 && kl < 0.05, "{method}: KL {kl}");

        let weights = Weights::new(ModelFolder::open(out.path()).unwrap()).unwrap();
        for block in 0..6 {
            for kind in LinearKind::ALL {
                let (module, shape) = (kind.module(block), linear_shape(weights.config(), kind));
                let Some(coding) = weights.coding(&module).unwrap() else {
                    assert_eq!(block, 2, "{module}");
                    continue;
                };
                let Coding::Codebook(scheme) = coding else {
                    panic!("{module} is on a grid")
                };
                let block_size = if module.ends_with("1.mlp.up_proj") {
                    128
                } else {
                    64
                };
                assert_eq!((scheme.codebook, scheme.block_size), (codebook, block_size));
                assert_eq!(scheme.double_quant, double_quant);
                let record = run.linears.iter().find(|l| l.linear == module).unwrap();
                assert_eq!(record.bits_per_weight, coding.bits_per_weight(shape));
                assert!(record.relative_loss < 1.5 * record.relative_loss_rtn);
            }
        }
        let config = std::fs::read_to_string(out.path().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let skipped = &config["quantization_config"]["llm_int8_skip_modules"];
        assert_eq!(skipped.as_array().unwrap().len(), 8, "{skipped}");

        let inspection = succeed(halfbyte().arg("inspect").arg(out.path()).arg("--json"));
        let inspection: serde_json::Value = serde_json::from_slice(&inspection.stdout).unwrap();
        assert_eq!(inspection["format"], "bitsandbytes");
        assert_eq!(inspection["parameters"], 5_770_496);
    }
}

#[test]
fn a_run_of_codebooks_goes_on_from_its_blocks() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sets = ["method=nf4", "export=[{format: bitsandbytes}]"];
    let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    succeed(&mut small_run(whole.path(), &more));
    let stage = broken.path().join(".halfbyte-export");
    kill_when(&mut small_run(broken.path(), &more), &|| stage.exists());
    succeed(&mut small_run(broken.path(), &more));
    let run = read_run(broken.path()).unwrap();
    assert_eq!(run.summary.blocks_resumed, 6);
    assert_eq!(decisions(&run), decisions(&read_run(whole.path()).unwrap()));
    let file =
        |out: &tempfile::TempDir| std::fs::read(out.path().join("model.safetensors")).unwrap();
    assert!(file(&whole) == file(&broken), "the files differ");
}

#[test]
fn one_scale_for_a_whole_weight_is_the_same_in_every_format() {
    let out = tempfile::tempdir().unwrap();
    let sets = [
        "method=absmax",
        "quant={bits: 8, group_size: 0}",
        "rules=[{match: '*.v_proj', group_size: 64}]",
        "export=[{format: int-quantized}, {format: compressed-tensors}, {format: gptq}]",
    ];
    let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    succeed(&mut small_run(out.path(), &more));
    let run = read_run(out.path()).unwrap();
    assert!(run.evaluation.unwrap().kl_mean < 1e-3);
    let open =
        |format: &str| Weights::new(ModelFolder::open(&out.path().join(format)).unwrap()).unwrap();
    let formats = ["int-quantized", "compressed-tensors", "gptq"].map(open);
    for record in &run.linears {
        let shape = [record.out_features, record.in_features];
        let [first, others @ ..] = &formats;
        let weight = grid(first, &record.linear, shape);
        for other in others {
            assert_eq!(grid(other, &record.linear, shape), weight);
        }
        let one = weight.scales().iter().all(|s| *s == weight.scales()[0]);
        assert_eq!(one, !record.linear.ends_with("v_proj"), "{}", record.linear);
        assert_eq!(record.group_size, if one { 0 } else { 64 });
    }
}

#[test]
fn a_run_says_what_llm_int8_would_keep_if_asked() {
    let records = |sets: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        let output = succeed(&mut small_run(out.path(), &more));
        let told = String::from_utf8(output.stdout).unwrap();
        let linears = read_run(out.path()).unwrap().linears;
        assert_eq!(
            told.contains("LLM.int8()"),
            linears[0].int8_outlier_columns.is_some()
        );
        linears
    };
    let linears = records(&["method=rtn", "report.llm_int8=true"]);
    let mut kept = 0;
    for linear in &linears {
        let columns = linear.int8_outlier_columns.as_ref().unwrap();
        let width = linear.in_features as f64;
        assert!(columns.is_sorted() && columns.iter().all(|&c| c < linear.in_features));
        let bits = 8.0 + 8.0 * columns.len() as f64 / width + 32.0 / width;
        assert!((linear.int8_bits_per_weight.unwrap() - bits).abs() < 1e-12);
        let (whole, split) = (
            linear.int8_relative_loss.unwrap(),
            linear.int8_relative_loss_split.unwrap(),
        );
        assert!(
            whole > 0.0 && split <= whole,
            "{}: {whole} {split}",
            linear.linear
        );
        assert_eq!(columns.is_empty(), split == whole, "{}", linear.linear);
        kept += columns.len();
    }
    assert!(kept > 0, "no column of the model reaches 6");
    // v is solved by other statistics than those of its input in the default recipe, q is not
    let default = records(&["report.llm_int8=true"]);
    let columns = |linears: &[halfbyte_report::LinearRecord], name: &str| {
        let of = |l: &halfbyte_report::LinearRecord| l.int8_outlier_columns.clone().unwrap();
        let named = linears.iter().filter(|l| l.linear.ends_with(name));
        named.map(of).collect::<Vec<_>>()
    };
    assert_eq!(columns(&default, "v_proj"), columns(&default, "q_proj"));
    let unasked = records(&["method=rtn"]);
    assert!(unasked.iter().all(|l| l.int8_outlier_columns.is_none()));
}

#[test]
fn a_run_says_what_less_text_would_cost_and_decides_the_same() {
    let run = |sets: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        let output = succeed(&mut small_run(out.path(), &more));
        let told = String::from_utf8(output.stdout).unwrap();
        let file = std::fs::read(out.path().join("gptq/model.safetensors")).ok();
        let record = read_run(out.path()).unwrap();
        let curved = record
            .linears
            .iter()
            .filter(|l| !l.calibration_curve.is_empty());
        let curved: Vec<halfbyte_report::LinearRecord> = curved.cloned().collect();
        assert_eq!(
            told.contains("Twice the text may cut"),
            !curved.is_empty(),
            "{told}"
        );
        for linear in &curved {
            let curve = &linear.calibration_curve;
            assert!(
                curve.windows(2).all(|w| w[0].tokens < w[1].tokens),
                "{linear:?}"
            );
            assert_eq!(curve.last().unwrap().tokens, linear.tokens);
        }
        (file, record, curved)
    };
    let (file, record, curved) = run(&["resources.threads=1"]);
    let names: Vec<&str> = curved.iter().map(|l| l.linear.as_str()).collect();
    for linear in &record.linears {
        // v's too: its statistics are of all these windows.
        let wanted = [0, 3, 5].contains(&linear.block);
        assert_eq!(
            names.contains(&linear.linear.as_str()),
            wanted,
            "{}",
            linear.linear
        );
    }
    for linear in curved
        .iter()
        .filter(|l| l.out_features <= 128 && !l.linear.contains("v_proj"))
    {
        // Few rows enough to be solved whole.
        let last = linear.calibration_curve.last().unwrap();
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
        assert!(near(last.relative_loss, linear.relative_loss), "{linear:?}");
        assert!(near(
            last.relative_loss_heldout,
            linear.relative_loss_heldout.unwrap()
        ));
    }
    let threads = run(&["resources.threads=7"]);
    assert_eq!(decisions(&threads.1), decisions(&record));
    let without = run(&["report.calibration_curve=false"]);
    assert!(without.2.is_empty() && without.0 == file && file.is_some());

    let (_, _, sampled) = run(&["calibration.num_samples=24"]);
    assert_eq!(sampled.len(), 3 * 6, "v's windows are 16 of 22");
    assert_eq!(sampled[0].calibration_curve.len(), 4);
    for sets in [
        &["method=rtn"][..],
        &["propagation=float"],
        &["propagation=asymmetric"],
        &["method=awq", "export=[{format: awq}]", "quant.sym=false"],
        &["method=awq+gptq"],
        &["recipe=best", "tune.epochs=0"],
        &["recipe=reference"],
    ] {
        assert_eq!(run(sets).2.len(), 3 * 7, "{sets:?}");
    }
    for sets in [
        &["calibration.holdout=0"][..],
        &["method=rtn", "recipe=reference"],
        &[
            "method=hqq",
            "quant.sym=false",
            "export=[{format: gptq_v2}]",
        ],
    ] {
        assert!(run(sets).2.is_empty(), "{sets:?}");
    }
}

#[test]
fn eval_scores_an_export_as_the_run_did() {
    let out = tempfile::tempdir().unwrap();
    succeed(&mut small_run(out.path(), &[]));
    let run = read_run(out.path()).unwrap().evaluation.unwrap();
    let output = succeed(halfbyte().arg("eval").arg(out.path().join("gptq")).args([
        "--reference",
        "embedded:tiny",
        "--text",
        "tests/data/evaluation.txt",
        "--sequence-length",
        "64",
        "--windows",
        "2",
        "--json",
        "--device",
        "cpu",
    ]));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["against"]["kl_mean"].as_f64().unwrap(), run.kl_mean);
    assert_eq!(json["perplexity"].as_f64().unwrap(), run.perplexity);
}

#[test]
fn the_text_inside_the_program_is_the_file_it_is_made_from() {
    let kl = |evaluate: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let sets = [&["method=rtn"], evaluate].concat();
        let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        succeed(&mut small_run(out.path(), &more));
        let found = read_run(out.path()).unwrap().evaluation.unwrap();
        (found.kl_mean, found.text)
    };
    let (of_file, file) = kl(&[]);
    assert!(file.ends_with("evaluation.txt"), "{file}");
    let embedded = kl(&["evaluate={sequence_length: 64, windows: 2}"]);
    assert_eq!(embedded, (of_file, "embedded:evaluation".to_owned()));
    // and it is no part of what models are calibrated on
    let text = std::fs::read_to_string(root().join("tests/data/evaluation.txt")).unwrap();
    let mut seen = String::new();
    for entry in std::fs::read_dir(root().join("calibration_data")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "txt") {
            seen += &std::fs::read_to_string(path).unwrap();
        }
    }
    for line in text.lines().filter(|line| line.len() > 60) {
        assert!(!seen.contains(line), "{line}");
    }
}

#[test]
fn the_folder_of_a_run_stands_for_its_first_export() {
    let out = tempfile::tempdir().unwrap();
    let run = out.path().join("run");
    succeed(&mut small_run(&run, &["--set", "method=rtn"]));
    // moved as a whole
    let moved = out.path().join("moved");
    std::fs::rename(&run, &moved).unwrap();
    let first = moved.join("compressed-tensors");
    let note = format!(
        "{} holds 2 checkpoints (compressed-tensors, gptq); taking compressed-tensors, {}\n",
        moved.display(),
        first.display()
    );
    let short = [
        "--sequence-length",
        "64",
        "--windows",
        "2",
        "--device",
        "cpu",
    ];
    let generate = [
        "--prompt",
        "The",
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    ];
    let reference = ["--reference", "embedded:tiny", "--max-new-tokens", "0"];
    for (command, more) in [
        ("inspect", vec!["--json"]),
        (
            "generate",
            [&generate[..], &["--temperature", "0"]].concat(),
        ),
        ("eval", [&short[..], &reference[..], &["--json"]].concat()),
        (
            "sensitivity",
            [&short[..], &reference[..2], &["--csv"]].concat(),
        ),
    ] {
        let of = |model: &Path| succeed(halfbyte().arg(command).arg(model).args(&more));
        let (named, found) = (of(&first), of(&moved));
        assert_eq!(found.stdout, named.stdout, "{command}");
        let stderr = String::from_utf8(found.stderr).unwrap();
        assert!(stderr.contains(&note), "{command}: {stderr}");
    }
    let refused = |model: &Path| {
        let output = halfbyte().arg("inspect").arg(model).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    std::fs::remove_dir_all(&first).unwrap();
    std::fs::remove_dir_all(moved.join("gptq")).unwrap();
    assert!(refused(&moved).contains("the checkpoints it wrote are gone: "));
    std::fs::remove_file(moved.join("halfbyte/run.json")).unwrap();
    assert!(
        refused(&moved)
            .contains("holds no checkpoint, only a run or a sweep that has not finished")
    );
}

#[test]
fn best_takes_negative_scales_where_the_usual_readers_do() {
    let negative = |sets: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let mut more = vec!["--set", "recipe=best"];
        sets.iter().for_each(|set| more.extend(["--set", set]));
        succeed(&mut small_run(out.path(), &more));
        let run = read_run(out.path()).unwrap();
        let warned = run.summary.warnings.iter();
        let warned = warned.filter(|w| w.starts_with("signed_scales:")).count();
        let folder = ModelFolder::open(&out.path().join("compressed-tensors")).unwrap();
        let name = "model.layers.2.mlp.up_proj.weight_scale";
        let shape = folder.tensor(name).unwrap().shape.to_vec();
        let scales = folder.f32(name, &shape).unwrap();
        (scales.iter().any(|scale| *scale < 0.0), warned)
    };
    assert_eq!(negative(&[]), (true, 2));
    assert_eq!(negative(&["quant.signed_scales=false"]), (false, 0));
    // an export whose readers may not takes them from all, and the run says so
    let unknown = "export=[{format: compressed-tensors}, {format: gptq_v2}]";
    assert_eq!(negative(&[unknown]), (false, 1));
}

/// `halfbyte sensitivity` of a folder on the windows of [`small_run`].
fn sensitivity(model: &Path, more: &[&str]) -> Command {
    let mut command = halfbyte();
    command.arg("sensitivity").arg(model).args([
        "--reference",
        "embedded:tiny",
        "--text",
        "tests/data/evaluation.txt",
        "--sequence-length",
        "64",
        "--windows",
        "2",
        "--device",
        "cpu",
    ]);
    command.args(more);
    command
}

#[test]
fn parts_by_themselves_make_up_the_model() {
    let out = tempfile::tempdir().unwrap();
    succeed(&mut small_run(out.path(), &["--set", "propagation=float"]));
    let run = read_run(out.path()).unwrap();
    let model = out.path().join("gptq");
    let output = succeed(&mut sensitivity(&model, &["--json"]));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kl = |part: &serde_json::Value| part["kl_mean"].as_f64().unwrap();
    let predicted = |part: &serde_json::Value| part["predicted_kl"].as_f64().unwrap();
    assert_eq!(kl(&json["whole"]), run.evaluation.unwrap().kl_mean);
    let parts = json["parts"].as_array().unwrap();
    let names: Vec<_> = parts.iter().map(|p| p["part"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj"
        ]
    );
    let sum: f64 = parts.iter().map(kl).sum();
    assert!((0.5..2.0).contains(&(sum / kl(&json["whole"]))), "{json}");
    let all: f64 = parts.iter().map(predicted).sum();
    assert!((all - predicted(&json["whole"])).abs() < 1e-12, "{json}");
    // Predicted from the windows that are scored: within an order of magnitude, and the MLP before q and k.
    for part in parts {
        let ratio = kl(part) / predicted(part);
        assert!((0.2..20.0).contains(&ratio), "{part}");
    }
    assert!(kl(&parts[5]) > kl(&parts[1]) && predicted(&parts[5]) > predicted(&parts[1]));

    let csv = succeed(&mut sensitivity(&model, &["--by", "linear", "--csv"]));
    let csv = String::from_utf8(csv.stdout).unwrap();
    assert_eq!(csv.lines().count(), 1 + 42 + 1);
    assert!(
        csv.contains("\nmodel.layers.3.mlp.down_proj,1,196608,4.25,"),
        "{csv}"
    );
    let text = succeed(&mut sensitivity(&model, &["--by", "block"]));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("\nmodel.layers.5        7  4.250"), "{text}");
}

#[test]
fn a_model_whose_norms_moved_cannot_be_taken_apart() {
    let out = tempfile::tempdir().unwrap();
    succeed(&mut small_run(out.path(), &["--set", "method=awq"]));
    let output = sensitivity(&out.path().join("gptq"), &[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("model.layers.0.input_layernorm.weight is not the reference's")
            && text.contains("`method: gptq`"),
        "{text}"
    );
    let output = {
        let mut command = halfbyte();
        command.args([
            "sensitivity",
            "embedded:tiny",
            "--reference",
            "embedded:tiny",
        ]);
        command.args(["--text", "tests/data/evaluation.txt", "--device", "cpu"]);
        command.output().unwrap()
    };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("has no quantized linear"), "{text}");
}

#[test]
fn devices_lists_what_it_finds_or_says_what_is_missing() {
    let mut command = halfbyte();
    // As on a machine without a desktop, where Mesa has much to say.
    for name in [
        "XDG_RUNTIME_DIR",
        "NODEVICE_SELECT",
        "MESA_VK_DEVICE_SELECT",
    ] {
        command.env_remove(name);
    }
    let output = succeed(command.args(["devices", "--json"]));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let devices: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let adapters = devices["adapters"].as_array().unwrap();
    for adapter in adapters {
        assert!(adapter["capabilities"]["name"].is_string(), "{adapter}");
        assert!(adapter["fault"].is_null(), "{adapter}");
    }
    if adapters.is_empty() {
        let error = devices["errors"][0].as_str().unwrap();
        assert!(error.starts_with("no adapter: "), "{error}");
    }
}

#[test]
fn plan_inspect_and_schema_print_results_on_stdout() {
    let plan = succeed(halfbyte().args(["plan", "pipelines/quickstart.yaml", "--json"]));
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["blocks"], 6);
    assert_eq!(plan["exports"][1]["format"], "gptq");
    let inspection = succeed(halfbyte().args(["inspect", "embedded:tiny", "--json"]));
    let inspection: serde_json::Value = serde_json::from_slice(&inspection.stdout).unwrap();
    assert_eq!(inspection["parameters"], 5_770_496);
    let schema = succeed(halfbyte().arg("schema"));
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["calibration"].is_object());
}
