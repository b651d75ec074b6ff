//! A grid from one pass, held against runs, kills and shards.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use halfbyte_report::{SweepRecord, read_run, read_sweep};

use crate::program::{DESTROYED, blocks_done, halfbyte, kill_when, sharpened, small_run, succeed};

/// Two cells that can be and two that cannot.
const GRID: &str = "sweep={bits: [3, 4], group_size: [64, 96]}";

/// A sweep of the quickstart on a few short windows: seconds.
pub(crate) fn small_sweep(out: &Path, more: &[&str]) -> Command {
    let mut command = halfbyte();
    command
        .args([
            "sweep",
            "pipelines/quickstart.yaml",
            "--device",
            "cpu",
            "--out",
        ])
        .arg(out);
    for set in [
        "calibration.num_samples=9",
        "calibration.sequence_length=64",
        "evaluate.windows=2",
        "evaluate.sequence_length=64",
        GRID,
    ] {
        command.args(["--set", set]);
    }
    command.args(more);
    command
}

/// sweep.csv without the column of times.
fn figures(out: &Path) -> String {
    let csv = std::fs::read_to_string(out.join("halfbyte/sweep.csv")).unwrap();
    let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let seconds = head.iter().position(|name| *name == "seconds").unwrap();
    let line = |line: &str| {
        let mut cells: Vec<&str> = line.split(',').collect();
        cells.remove(seconds);
        cells.join(",")
    };
    csv.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * b.abs()
}

/// What [`figures`] says of the cells that could be.
fn solved(record: &SweepRecord) -> Vec<&halfbyte_report::CellRecord> {
    let cells = record.cells.iter();
    cells.filter(|cell| cell.refused.is_none()).collect()
}

#[test]
fn a_cell_is_what_a_run_by_the_float_models_statistics_gives() {
    let (swept, halted, run) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let output = succeed(&mut small_sweep(swept.path(), &[]));
    let text = told(&output);
    assert!(
        text.contains(
            "refused: gptq-3bit-g96-sym, gptq-4bit-g96-sym: model.layers.0.self_attn.q_proj: "
        ),
        "{text}"
    );
    assert!(text.contains("2 solved, 2 refused, 2 measured"), "{text}");
    let record = read_sweep(swept.path()).unwrap();
    assert_eq!(solved(&record).len(), 2);
    assert!(swept.path().join("halfbyte/sweep.html").is_file());
    assert!(
        !swept.path().join("halfbyte/sweep").exists(),
        "work is left"
    );
    assert!(
        !swept.path().join("gptq").exists(),
        "exported without a winner"
    );

    let float = ["--set", "quant.bits=3", "--set", "propagation=float"];
    succeed(&mut small_run(run.path(), &float));
    let run = read_run(run.path()).unwrap();
    let cell = &record.cells[0];
    assert_eq!(cell.cell, "gptq-3bit-g64-sym");
    let (ours, theirs) = (cell.evaluation.as_ref().unwrap(), run.evaluation.unwrap());
    assert!(near(ours.kl_mean, theirs.kl_mean), "{ours:?} {theirs:?}");
    assert!(near(ours.perplexity, theirs.perplexity));
    assert_eq!(cell.bytes, Some(run.summary.bytes_after));
    assert!(near(
        cell.bits_per_weight.unwrap(),
        run.summary.bits_per_weight
    ));
    let losses = run.linears.iter().map(|l| l.relative_loss.ln());
    let mean = (losses.sum::<f64>() / run.linears.len() as f64).exp();
    assert!((cell.relative_loss.unwrap() / mean - 1.0).abs() < 1e-9);
    let four = &record.cells[2];
    assert!(four.predicted_kl < cell.predicted_kl && four.relative_loss < cell.relative_loss);

    // Bit for bit: one shard's blocks beside those of a run that is killed while it exports.
    succeed(&mut small_sweep(halted.path(), &["--shard", "1/2"]));
    let stopped = tempfile::tempdir().unwrap();
    let stage = stopped.path().join("gptq/.halfbyte-export");
    kill_when(&mut small_run(stopped.path(), &float), &|| stage.exists());
    for block in [0, 2, 4] {
        let name = format!("block-{block:04}.safetensors");
        let cell = halted
            .path()
            .join("halfbyte/sweep/gptq-3bit-g64-sym")
            .join(&name);
        let run = stopped.path().join("halfbyte/work").join(&name);
        assert!(tensors(&cell) == tensors(&run), "{name} differs");
    }
}

/// The bytes of a file's tensors, without the header, which names the run.
fn tensors(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn two_shards_report_what_one_process_on_one_thread_does() {
    let (whole, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeed(&mut small_sweep(whole.path(), &["--threads", "1"]));
    let shard = |index: &str| succeed(&mut small_sweep(shared.path(), &["--shard", index]));
    let text = told(&shard("1/2"));
    assert!(
        text.contains("blocks of shard 2 of 2 are missing"),
        "{text}"
    );
    let early = halfbyte()
        .arg("report")
        .arg(shared.path())
        .output()
        .unwrap();
    assert_eq!(early.status.code(), Some(2));
    let early = String::from_utf8(early.stderr).unwrap();
    assert!(
        early.contains("hint: run the sweep with --shard 2/2 first"),
        "{early}"
    );

    let text = told(&shard("2/2"));
    assert!(text.contains("cells not measured yet: 1"), "{text}");
    let text = told(&succeed(halfbyte().arg("report").arg(shared.path())));
    assert!(
        text.contains("warning: cells not measured yet: 1"),
        "{text}"
    );
    let text = told(&shard("1/2"));
    assert!(text.contains("2 solved, 2 refused, 2 measured"), "{text}");
    assert_eq!(figures(shared.path()), figures(whole.path()));
    let record = read_sweep(shared.path()).unwrap();
    assert_eq!(record.summary.shards, 2);
    assert!(
        !shared.path().join("halfbyte/sweep").exists(),
        "work is left"
    );
    // What a scheduler starts once too often changes nothing.
    let output = shard("2/2");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.contains("this sweep is finished"), "{text}");
    assert_eq!(read_sweep(shared.path()).unwrap(), record);
}

#[test]
fn a_broken_cell_is_called_so_is_never_the_winner_and_fails_strict() {
    let (model, out) = (sharpened(), tempfile::tempdir().unwrap());
    let source = format!("model.source={}", model.path().display());
    let mut more = DESTROYED.to_vec();
    more.extend(["--set", &source]);
    more.extend(["--set", "sweep={bits: [2, 8], winner: {by: kl}}"]);
    let output = small_sweep(out.path(), &more)
        .arg("--strict")
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let record = read_sweep(out.path()).unwrap();
    let broken: Vec<bool> = solved(&record)
        .iter()
        .map(|cell| cell.is_broken())
        .collect();
    assert_eq!(broken, [true, false]);
    assert_eq!(record.winner.unwrap().cell, record.cells[1].cell);
    let file = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    for place in [told(&output), file("halfbyte/sweep.html")] {
        assert!(
            place.contains("1 cell is broken, no longer the model"),
            "{place}"
        );
    }
    let csv = file("halfbyte/sweep.csv");
    let ends: Vec<&str> = csv
        .lines()
        .filter_map(|line| line.rsplit(',').next())
        .collect();
    assert_eq!(ends, ["verdict", "broken", "good"]);
}

#[test]
fn two_shards_may_run_at_the_same_time() {
    let (whole, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeed(&mut small_sweep(whole.path(), &[]));
    for _ in ["solve", "measure"] {
        let spawn = |index: &str| {
            let mut command = small_sweep(shared.path(), &["--shard", index]);
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::piped());
            quiet.spawn().unwrap()
        };
        for child in ["1/2", "2/2"].map(spawn) {
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{stderr}");
        }
    }
    assert_eq!(figures(shared.path()), figures(whole.path()));
}

#[test]
fn a_killed_sweep_goes_on_where_it_stopped_and_ends_the_same() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    succeed(&mut small_sweep(whole.path(), &[]));
    let work = broken.path().join("halfbyte/sweep");
    let walked = work.join("shard-1-of-1/state.json");
    let two_blocks = || blocks_done(&walked) >= 2;
    let solved = || work.join("shard-1-of-1/shard.json").is_file();
    kill_once(broken.path(), &two_blocks);
    assert!(!broken.path().join("halfbyte/sweep.json").exists());
    kill_once(broken.path(), &solved);
    let scored = || work.join("gptq-3bit-g64-sym/score.json").is_file();
    kill_once(broken.path(), &scored);
    let output = succeed(&mut small_sweep(broken.path(), &[]));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("6 blocks (6 done before)"), "{text}");
    // Two windows through the float model's 6 blocks, and through 6 blocks and the head of the one cell left.
    assert!(text.contains("evaluate, 26 of 26 steps"), "{text}");
    assert_eq!(figures(broken.path()), figures(whole.path()));
}

fn kill_once(out: &Path, when: &dyn Fn() -> bool) {
    kill_when(&mut small_sweep(out, &[]), when);
}

#[test]
fn the_winner_is_run_and_exported_and_a_finished_sweep_is_not_done_again() {
    let out = tempfile::tempdir().unwrap();
    let grid = "sweep={bits: [2, 3, 4], winner: {by: kl, max_bits_per_weight: 3.9}}";
    let output = succeed(&mut small_sweep(out.path(), &["--set", grid]));
    let text = told(&output);
    assert!(
        text.contains("winner          gptq-3bit-g64-sym by kl, exported"),
        "{text}"
    );
    let (sweep, run) = (
        read_sweep(out.path()).unwrap(),
        read_run(out.path()).unwrap(),
    );
    assert!(run.linears.iter().all(|linear| linear.bits == 3));
    assert_eq!(run.pipeline["propagation"], "sequential");
    let winner = sweep.winner.as_ref().unwrap();
    assert!(near(
        winner.kl_mean.unwrap(),
        run.evaluation.unwrap().kl_mean
    ));
    for file in [
        "gptq/config.json",
        "halfbyte/report.html",
        "halfbyte/sweep.html",
    ] {
        assert!(out.path().join(file).is_file(), "{file}");
    }
    let page = std::fs::read_to_string(out.path().join("halfbyte/sweep.html")).unwrap();
    assert!(page.contains("href=\"report.html\""));
    assert_eq!(sweep.summary.spearman, Some(1.0));

    let again = succeed(&mut small_sweep(out.path(), &["--set", grid]));
    let text = String::from_utf8(again.stderr).unwrap();
    assert!(text.contains("this sweep is finished"), "{text}");
    assert_eq!(read_sweep(out.path()).unwrap(), sweep);

    // Drawn again, with the winner's page.
    for name in ["halfbyte/report.html", "halfbyte/sweep.html"] {
        std::fs::remove_file(out.path().join(name)).unwrap();
    }
    let text = told(&succeed(halfbyte().arg("report").arg(out.path())));
    assert!(
        text.contains("sweep.html") && text.contains("report.html"),
        "{text}"
    );
    assert!(out.path().join("halfbyte/sweep.html").is_file());
}

#[test]
fn methods_recipes_and_rules_stand_side_by_side() {
    let out = tempfile::tempdir().unwrap();
    let sets = [
        "sweep={method: [gptq, rtn, hqq, absmax], recipe: [default, reference], sym: [true, false], measure: pareto}",
        "export=[{format: compressed-tensors}]",
        "rules=[{match: '*.1.mlp.*', bits: 8}, {match: '*.0.self_attn.q_proj', skip: true}]",
    ];
    let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    let output = succeed(&mut small_sweep(out.path(), &more));
    assert!(
        told(&output).contains("hqq-4bit-g64-sym, hqq-reference-4bit-g64-sym: "),
        "{}",
        told(&output)
    );
    let record = read_sweep(out.path()).unwrap();
    let of = |name: &str| record.cells.iter().find(|cell| cell.cell == name).unwrap();
    assert_eq!(record.cells.len(), 16);
    // hqq has no symmetric form, absmax needs 8 bits
    assert_eq!(
        record.cells.iter().filter(|c| c.refused.is_some()).count(),
        6
    );
    let loss = |name: &str| of(name).relative_loss_heldout.unwrap();
    assert!(loss("gptq-4bit-g64-asym") < loss("rtn-reference-4bit-g64-asym"));
    assert!(loss("rtn-4bit-g64-asym") < loss("rtn-reference-4bit-g64-asym"));
    assert!(loss("hqq-4bit-g64-asym") < 1.0 && of("hqq-4bit-g64-asym").predicted_kl > Some(0.0));
    let measured = solved(&record)
        .into_iter()
        .filter(|c| c.evaluation.is_some());
    let measured = measured.count();
    assert!((1..10).contains(&measured), "{measured} cells on the front");
    assert_eq!(record.summary.unmeasured, 0);
    let csv = std::fs::read_to_string(out.path().join("halfbyte/cells/gptq-4bit-g64-sym.csv"));
    let csv = csv.unwrap();
    assert_eq!(csv.lines().count(), 1 + 6 * 7 - 1);
    let line = csv
        .lines()
        .find(|l| l.contains("layers.1.mlp.up_proj"))
        .unwrap();
    assert!(line.contains(",8,64,true,gptq,"), "{line}");
}

#[test]
fn plan_shows_the_cells_and_a_run_leaves_them_alone() {
    let plan = ["plan", "pipelines/quickstart.yaml", "--set", GRID];
    let text = told(&succeed(halfbyte().args(plan)));
    assert!(text.contains("sweep of 4 cells:"), "{text}");
    assert!(text.contains("gptq-3bit-g96-sym: refused: "), "{text}");
    let out = tempfile::tempdir().unwrap();
    let output = succeed(&mut small_run(out.path(), &["--set", GRID]));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("`sweep` is left alone by a run"), "{text}");
    assert!(
        read_run(out.path())
            .unwrap()
            .linears
            .iter()
            .all(|l| l.bits == 4)
    );
}
