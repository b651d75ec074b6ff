//! ARCHITECTURE.md's invariants, read off the dependency graph and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Ordinary dependencies of every workspace crate, without the `halfbyte-` prefix for our own.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let short = |name: &Value| {
        let name = name.as_str().unwrap();
        name.strip_prefix("halfbyte-").unwrap_or(name).to_owned()
    };
    let crates = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap();
            // The kind of an ordinary dependency is null.
            let normal = all.iter().filter(|d| d["kind"].is_null());
            (
                short(&package["name"]),
                normal.map(|d| short(&d["name"])).collect(),
            )
        });
    crates.collect()
}

#[test]
fn crates_see_only_what_the_architecture_allows() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("quant", &[][..]),
        ("checkpoint", &[]),
        ("solve", &["quant"]),
        ("pack", &["quant"]),
        ("kernels", &["quant"]),
        ("report", &["quant"]),
        ("model", &["quant", "checkpoint", "pack", "kernels"]),
        ("calibrate", &["quant", "checkpoint", "model", "kernels"]),
        ("tune", &["quant", "model"]),
        ("evaluate", &["quant", "model"]),
        (
            "pipeline",
            &[
                "quant",
                "checkpoint",
                "solve",
                "pack",
                "report",
                "model",
                "calibrate",
                "tune",
                "evaluate",
            ],
        ),
        ("cli", &["kernels", "pipeline"]),
        // of tests alone
        ("testing", &[]),
        (
            "fuzz",
            &[
                "quant",
                "checkpoint",
                "pack",
                "report",
                "model",
                "calibrate",
                "pipeline",
            ],
        ),
    ]);
    let found = dependencies();
    let ours: BTreeSet<&str> = allowed.keys().copied().collect();
    assert_eq!(
        found.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        ours,
        "crates of the workspace"
    );
    for (name, dependencies) in &found {
        for dependency in dependencies.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(
                allowed[name.as_str()].contains(&dependency.as_str()),
                "{name} must know nothing of {dependency}"
            );
        }
    }
}

#[test]
fn the_crates_of_pure_data_and_algebra_know_nothing_of_burn() {
    let found = dependencies();
    for name in ["quant", "checkpoint", "solve", "pack", "report"] {
        let burn: Vec<_> = found[name]
            .iter()
            .filter(|d| d.starts_with("burn"))
            .collect();
        assert!(burn.is_empty(), "{name} depends on {burn:?}");
    }
}

#[test]
fn every_crate_is_described_in_the_architecture() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for name in dependencies().keys() {
        assert!(
            text.contains(&format!("`{name}`")),
            "ARCHITECTURE.md says nothing of {name}"
        );
    }
}

#[test]
fn only_checkpoint_and_report_write_files() {
    // The spill file of activations and the removal of the work folder are the two exceptions the document names.
    let writers = ["fs::write", "File::create", "fs::rename", "OpenOptions"];
    let all = dependencies();
    let may_write = ["checkpoint", "report", "calibrate", "testing", "fuzz"];
    for name in all
        .keys()
        .filter(|name| !may_write.contains(&name.as_str()))
    {
        for file in sources(&root().join("crates").join(name).join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let is_test = file.file_name().is_some_and(|n| n == "tests.rs");
            for writer in writers {
                assert!(
                    is_test || !code.contains(writer),
                    "{} uses {writer}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn the_calibration_text_is_the_text_whose_sums_are_listed() {
    use std::io::Read;
    let folder = root().join("calibration_data");
    let listed = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let mut names = BTreeSet::new();
    for line in listed.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let mut bytes = Vec::new();
        std::fs::File::open(folder.join(name))
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(
            halfbyte_checkpoint::sha256(&bytes),
            sum,
            "{name} has changed; make SHA256SUMS again"
        );
        names.insert(name.to_owned());
    }
    let files = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let texts: BTreeSet<String> = files.filter(|n| n.ends_with(".txt")).collect();
    assert_eq!(
        texts, names,
        "texts in calibration_data and names in SHA256SUMS"
    );
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
