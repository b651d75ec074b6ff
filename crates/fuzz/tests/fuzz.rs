//! Every target for some seconds, `HALFBYTE_FUZZ_SECONDS` of them (2), in a process of its own that may abort.
//!
//! The inputs at hand and those of `corpus/`, which were faults once, are read first, so that they are read in any case.
//! Inputs follow from the seed alone; how many there are hangs on the machine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests end at what they do not expect, and figures are for who asks with --nocapture"
)]

use std::process::Command;

fn fuzz(target: &str) {
    let seconds = std::env::var("HALFBYTE_FUZZ_SECONDS").unwrap_or_else(|_| "2".to_owned());
    let findings = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_halfbyte-fuzz"))
        .args(["--seconds", &seconds, "--findings"])
        .arg(findings.path())
        .arg(target)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    if !output.status.success() {
        // the folder stays, for the inputs in it are what the message names
        let kept = findings.keep();
        panic!("{told}\ninputs are in {}", kept.display());
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        #[test]
        fn no_target_is_left_out() {
            let tested = [$(stringify!($name)),*];
            assert!(halfbyte_fuzz::names().eq(tested));
        }
    };
}

targets! {
    config
    quantization_config
    safetensors
    index
    packed_weights
    tokenizer
    chat_template
    generation_config
    model_folder
    pipeline
    overrides
    sweep
    run_record
    sweep_record
    work_folder
    jsonl
    json
    csv
    parquet
}

/// A driver that finds nothing would find nothing whatever it ran: an unknown target is an error, and a known fault is told.
#[test]
fn what_is_wrong_is_told() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte-fuzz"));
        command.args(arguments).output().unwrap()
    };
    assert!(!run(&["no_such_target"]).status.success());
    let listed = String::from_utf8(run(&["--list"]).stdout).unwrap();
    assert!(listed.lines().eq(halfbyte_fuzz::names()));
}
