//! What a run writes, and what it must not: the user's files, another run's, another process's.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use halfbyte_report::read_run;

use crate::program::{halfbyte, kill_when, small_run, succeed};

/// Files below a folder with their content.
fn state(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(state(&path));
        } else {
            found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
    found
}

fn changed_at(folder: &Path) -> BTreeMap<String, SystemTime> {
    let at = |path: &String| Path::new(path).metadata().unwrap().modified().unwrap();
    state(folder)
        .keys()
        .map(|path| (path.clone(), at(path)))
        .collect()
}

/// Fails with exit code 2; what it said.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{command:?}:\n{said}");
    said
}

/// A copy of the embedded model as a user has one, and a pipeline for it.
fn model(folder: &Path) {
    let tiny = crate::program::root().join("crates/checkpoint/embedded/tiny");
    std::fs::create_dir_all(folder.join("model")).unwrap();
    for entry in std::fs::read_dir(tiny).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join("model").join(entry.file_name())).unwrap();
    }
}

fn run_in(folder: &Path, command: &str, out: &str, more: &str) -> Command {
    let text = format!(
        "model: {{source: model}}\n\
         calibration: {{num_samples: 9, sequence_length: 64, generated_samples: 0}}\n\
         report: {{html: false, calibration_curve: false}}\n{more}\n"
    );
    std::fs::write(folder.join("p.yaml"), text).unwrap();
    let mut run = halfbyte();
    run.current_dir(folder)
        .args([command, "p.yaml", "--out", out]);
    if command != "plan" {
        run.args(["--device", "cpu"]);
    }
    run
}

#[test]
fn the_source_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    model(folder);
    #[cfg(unix)]
    std::os::unix::fs::symlink("model", folder.join("link")).unwrap();
    std::fs::create_dir(folder.join("other")).unwrap();
    let two = "export: [{format: gptq, out: ../model}, {format: compressed-tensors}]";
    let tries = [
        ("model", ""),
        ("./other/../model/.", ""),
        ("link", ""),
        ("link/new", ""),
        ("model/quantized/4bit", ""),
        (".", ""),
        ("out", "export: [{format: gptq, out: ../model}]"),
        ("out", "export: [{format: gptq, out: ../link/sub}]"),
        ("out", two),
    ];
    for (out, more) in tries {
        let grid = format!("{more}\nsweep: {{bits: [3, 4], winner: {{by: predicted_kl}}}}");
        for (command, more) in [("run", more), ("plan", more), ("sweep", grid.as_str())] {
            let mut run = run_in(folder, command, out, more);
            let before = state(folder);
            let said = refused(&mut run);
            assert!(said.contains("the model's"), "{command} {out}: {said}");
            assert_eq!(state(folder), before, "{command} {out} {more}");
            assert!(!folder.join("out").exists(), "{command} {out} {more}");
        }
    }
}

#[test]
fn an_export_is_not_written_where_the_run_keeps_its_own_files_nor_over_another() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    for more in [
        "export: [{format: gptq, out: halfbyte/work}]",
        "export: [{format: gptq, out: halfbyte}]",
        "export: [{format: gptq, out: x}, {format: compressed-tensors, out: ./y/../x}]",
    ] {
        for command in ["run", "plan"] {
            refused(&mut run_in(dir.path(), command, "out", more));
            assert!(!dir.path().join("out").exists(), "{command} {more}");
        }
    }
}

#[test]
fn files_that_no_run_wrote_are_neither_replaced_nor_mixed_with_others() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    model(folder);
    let out = folder.join("out");
    for (name, told) in [
        ("model.safetensors.index.json", "index.json"),
        ("model-00001-of-00002.safetensors", "00001-of-00002"),
        ("adapter_config.json", "adapter_config.json"),
        ("README.md", "README.md"),
        ("pytorch_model.bin", "pytorch_model.bin"),
        ("tokenizer.json", "tokenizer.json"),
        ("halfbyte/work/notes.txt", "notes.txt"),
    ] {
        let path = out.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mine").unwrap();
        for command in ["run", "plan"] {
            let said = refused(&mut run_in(folder, command, "out", ""));
            assert!(said.contains(told), "{name}: {said}");
            assert_eq!(state(&out).len(), 1, "{name}");
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
    // a folder or a file in the way is told before the work
    std::fs::create_dir_all(out.join("config.json")).unwrap();
    assert!(refused(&mut run_in(folder, "run", "out", "")).contains("config.json"));
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::write(&out, "mine").unwrap();
    assert!(refused(&mut run_in(folder, "run", "out/deep", "")).contains("is a file"));
    std::fs::remove_file(&out).unwrap();
    // what is nobody's checkpoint stays beside one
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    succeed(&mut run_in(folder, "run", "out", ""));
    assert_eq!(std::fs::read(out.join("notes.txt")).unwrap(), b"mine");
}

#[test]
fn a_finished_run_is_not_done_again_and_not_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeed(&mut small_run(&out, &[]));
    let (files, before) = (state(&out), changed_at(&out));
    let again = succeed(&mut small_run(&out, &[]));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("finished"), "{said}");
    assert!(
        String::from_utf8_lossy(&again.stdout).contains("KL"),
        "the summary is told again"
    );
    assert_eq!(changed_at(&out), before);
    let said = refused(&mut small_run(&out, &["--set", "quant.bits=3"]));
    assert!(
        said.contains("quant.bits") && said.contains("--fresh"),
        "{said}"
    );
    assert_eq!(state(&out), files);
    succeed(&mut small_run(&out, &["--set", "quant.bits=3", "--fresh"]));
    assert_eq!(read_run(&out).unwrap().linears[0].bits, 3);
    // a checkpoint that was changed is not taken for the run's
    std::fs::write(out.join("gptq/model.safetensors"), "mine").unwrap();
    std::fs::write(out.join("compressed-tensors/model.safetensors"), "mine").unwrap();
    let said = refused(&mut small_run(&out, &["--set", "quant.bits=3"]));
    assert!(said.contains("were changed"), "{said}");
}

/// Weights of an export.
fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn other_exports_scores_and_pages_are_made_from_what_is_solved() {
    let dir = tempfile::tempdir().unwrap();
    let (one, both) = (dir.path().join("one"), dir.path().join("both"));
    for more in [
        &[][..],
        &[
            "recipe=best",
            "tune={epochs: 1, num_samples: 2}",
            "quant.bits=3",
        ],
    ] {
        let with = |extra: &[&str]| -> Vec<String> {
            let sets = more.iter().chain(extra);
            sets.flat_map(|set| ["--set".to_owned(), (*set).to_owned()])
                .collect()
        };
        let run = |out: &Path, extra: &[&str]| {
            let sets = with(extra);
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            let said = succeed(&mut small_run(out, &sets)).stderr;
            String::from_utf8_lossy(&said).into_owned()
        };
        for out in [&one, &both] {
            let _ = std::fs::remove_dir_all(out);
        }
        run(
            &both,
            &["export=[{format: compressed-tensors}, {format: gptq}]"],
        );
        let single = [
            "export=[{format: gptq}]",
            "evaluate=false",
            "report.html=false",
        ];
        run(&one, &single);
        let solved_in = read_run(&one).unwrap().summary.seconds;
        assert!(!one.join("halfbyte/report.html").exists());
        let said = run(
            &one,
            &[
                "export=[{format: gptq}, {format: compressed-tensors}]",
                "evaluate=false",
            ],
        );
        assert!(said.contains("is made from its gptq checkpoint"), "{said}");
        let record = read_run(&one).unwrap();
        assert_eq!(
            record.summary.seconds, solved_in,
            "nothing was solved again"
        );
        assert!(record.evaluation.is_none());
        for format in ["gptq", "compressed-tensors"] {
            assert!(
                weights(&one.join(format)) == weights(&both.join(format)),
                "{format}: the same bytes as when it was exported at once"
            );
        }
        assert!(one.join("halfbyte/report.html").exists());
        run(
            &one,
            &["export=[{format: compressed-tensors}, {format: gptq}]"],
        );
        let scores = |out: &Path| read_run(out).unwrap().evaluation.unwrap();
        assert_eq!(scores(&one), scores(&both));
        assert!(!one.join("halfbyte/work").exists());
    }
}

#[test]
fn two_processes_do_not_write_into_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let alone = dir.path().join("alone");
    succeed(&mut small_run(&alone, &[]));
    let mut first = small_run(&out, &[]);
    let mut first = first
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !out.join("halfbyte/work/state.json").exists() {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for mut other in [
        small_run(&out, &[]),
        small_run(&out, &["--fresh", "--set", "quant.bits=2"]),
    ] {
        let said = refused(&mut other);
        assert!(said.contains(&format!("process {}", first.id())), "{said}");
    }
    assert!(first.wait().unwrap().success());
    for format in ["gptq", "compressed-tensors"] {
        assert!(weights(&out.join(format)) == weights(&alone.join(format)));
    }
    assert!(!out.join("halfbyte/lock").exists());
}

#[test]
fn a_run_that_is_cut_off_while_it_replaces_another_leaves_one_or_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeed(&mut small_run(&out, &[]));
    let before = state(&out.join("gptq"));
    let other = ["--fresh", "--set", "quant.bits=3"];
    let stage = out.join("gptq/.halfbyte-export/model.safetensors");
    kill_when(&mut small_run(&out, &other), &|| stage.exists());
    let mut after = state(&out.join("gptq"));
    after.retain(|path, _| !path.contains(".halfbyte-"));
    assert_eq!(after, before, "the earlier checkpoint is as it was");
    assert!(read_run(&out).unwrap().linears[0].bits == 4);
    // goes on without --fresh, since it was begun with it
    succeed(&mut small_run(&out, &other[1..]));
    let record = read_run(&out).unwrap();
    assert_eq!(
        (record.linears[0].bits, record.summary.blocks_resumed),
        (3, record.model.blocks)
    );
    assert!(
        state(&out)
            .keys()
            .all(|path| !path.contains("/.halfbyte-") && !path.contains("/work/"))
    );
}

#[test]
fn a_weight_that_changed_in_place_is_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    model(folder);
    succeed(&mut run_in(folder, "run", "out", ""));
    let path = folder.join("model/model.safetensors");
    let at = path.metadata().unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(at).unwrap();
    let said = refused(&mut run_in(folder, "run", "out", ""));
    assert!(said.contains("the model's files"), "{said}");
}

#[test]
fn a_report_is_not_written_over_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeed(&mut small_run(&out, &[]));
    let report = |to: &Path| {
        let mut report = halfbyte();
        report.arg("report").arg(&out).arg("--out").arg(to);
        report
    };
    for name in ["page.html", "card.md"] {
        let page = dir.path().join(name);
        succeed(&mut report(&page));
        succeed(&mut report(&page));
    }
    let notes = dir.path().join("notes.md");
    std::fs::write(&notes, "mine").unwrap();
    refused(&mut report(&notes));
    assert_eq!(std::fs::read(&notes).unwrap(), b"mine");
    refused(&mut report(&out.join("halfbyte/run.json")));
    assert!(read_run(&out).is_ok());
}
