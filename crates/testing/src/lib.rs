//! What tests of all crates share: how one says that it could not run.
//!
//! Skipped tests count as passed, and `cargo test` holds back what those print. So a skip is written where a person sees it,
//! past the harness, and where `HALFBYTE_SKIPPED` names a file it is added there, for `.ci/run` to sum up and to judge.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// What a test does not find on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// A Vulkan driver; Debian's `mesa-vulkan-drivers` has one in software.
    Vulkan,
    /// A browser; Debian's `chromium` or `chromium-headless-shell`.
    Browser,
    /// Instructions of the processor.
    Instructions,
    /// Something that this GPU does not do.
    GpuFeature,
    /// The right to mount a file system.
    Mount,
}

impl Lacking {
    /// The word at the head of the line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Browser => "browser",
            Self::Instructions => "instructions",
            Self::GpuFeature => "gpu-feature",
            Self::Mount => "mount",
        }
    }
}

/// Says that the test that calls it is skipped, or a part of it, and why.
///
/// # Panics
/// Where the file that `HALFBYTE_SKIPPED` names cannot be written: the skip would go unseen.
pub fn skip(lacking: Lacking, why: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("{}: {test}: {why}\n", lacking.as_str());
    // The harness holds back what `println` and `eprintln` print, not what goes to the handle itself.
    let _ = io::stderr().write_all(format!("skipped: {line}").as_bytes());
    if let Some(path) = std::env::var_os("HALFBYTE_SKIPPED") {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            panic!("{}: {error}", path.display());
        }
    }
}
