//! Digests the sources that decide codes into `HALFBYTE_RECIPE_VERSION`, so that no build takes blocks of another one for its
//! own. Comments, blank lines and tests at a file's end do not count; of the lock file the crates that multiply and factor do.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

/// Crates all of whose sources count.
const CRATES: [&str; 6] = ["quant", "solve", "calibrate", "model", "kernels", "tune"];
/// What counts of this crate.
const OWN: [&str; 11] = [
    "recipe.rs",
    "quantize.rs",
    "stage.rs",
    "scale.rs",
    "fallback.rs",
    "tune.rs",
    "budget.rs",
    "judge.rs",
    "sweep",
    "generate/windows.rs",
    "generate/sampling.rs",
];
/// Beginnings of the names of crates whose arithmetic is in the codes.
const ARITHMETIC: [&str; 9] = [
    "burn",
    "cubecl",
    "faer",
    "gemm",
    "half",
    "nano-gemm",
    "private-gemm",
    "pulp",
    "tokenizers",
];

fn main() {
    let mut digest = DefaultHasher::new();
    let mut places: Vec<PathBuf> = OWN.iter().map(|name| Path::new("src").join(name)).collect();
    places.extend(
        CRATES
            .iter()
            .map(|name| Path::new("..").join(name).join("src")),
    );
    for place in &places {
        println!("cargo::rerun-if-changed={}", place.display());
        let mut files = Vec::new();
        sources(place, &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let code = text.split("\n#[cfg(test)]\nmod tests").next();
            for line in code.unwrap_or_default().lines().map(str::trim) {
                if !line.is_empty() && !line.starts_with("//") {
                    digest.write(line.as_bytes());
                    digest.write_u8(b'\n');
                }
            }
        }
    }
    let lock = Path::new("../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let lock = fs::read_to_string(lock).unwrap_or_default();
    for package in lock.split("[[package]]") {
        let mut lines = package.trim().lines();
        let name = lines
            .next()
            .unwrap_or_default()
            .trim_start_matches("name = \"");
        if ARITHMETIC.iter().any(|start| name.starts_with(start)) {
            digest.write(name.as_bytes());
            digest.write(lines.next().unwrap_or_default().as_bytes());
        }
    }
    println!(
        "cargo::rustc-env=HALFBYTE_RECIPE_VERSION={:016x}",
        digest.finish()
    );
}

/// The files of a place by name, folders within it too; a package that stands alone has not all of them.
fn sources(place: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(place) else {
        files.extend(place.is_file().then(|| place.to_owned()));
        return;
    };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries.iter().filter(|entry| !entry.ends_with("tests.rs")) {
        sources(entry, files);
    }
}
