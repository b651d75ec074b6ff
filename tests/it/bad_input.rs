//! What is told of bad input: the whole message, exit code 2, and nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{halfbyte, root};
use crate::snapshot::assert_snapshot;

/// A folder with a copy of the embedded model to spoil, a text, and a pipeline over both.
struct Bench {
    folder: tempfile::TempDir,
}

const PIPELINE: &str = "model: {source: model}
calibration:
  sources: [{path: text.txt}]
  num_samples: 9
  sequence_length: 64
quant: {bits: 4, group_size: 64}
";

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let from = root().join("crates/checkpoint/embedded/tiny");
        fs::create_dir(bench.path("model")).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(from.join(file), bench.path("model").join(file)).unwrap();
        }
        let text = fs::read_to_string(root().join("calibration_data/en-narrative.txt")).unwrap();
        fs::write(bench.path("text.txt"), text).unwrap();
        fs::write(bench.path("pipeline.yaml"), PIPELINE).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn replace(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} holds no {from}");
        self.write(name, &text.replacen(from, to, 1));
    }

    fn run(&self) -> Command {
        let mut command = halfbyte();
        command.current_dir(self.folder.path());
        command.args(["run", "pipeline.yaml", "--device", "cpu", "--out", "out"]);
        command
    }

    /// The message of a run that must end with exit code 2 and leave no file of a model behind.
    fn message(&self) -> String {
        self.message_of(&mut self.run())
    }

    fn message_of(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(output.stdout.is_empty());
        let left = files(&self.path("out"));
        let model = |path: &&PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            !path.starts_with(self.path("out/halfbyte/work")) || name.contains("part")
        };
        assert!(left.iter().find(model).is_none(), "left behind: {left:?}");
        let folder = self.folder.path().display().to_string();
        let lines = stderr.replace(&folder, "[FOLDER]");
        let told = lines.lines().skip_while(|line| !line.starts_with("error:"));
        told.collect::<Vec<_>>().join("\n")
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|e| e.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// One test a kind of bad input; the message stands in `snapshots/`.
macro_rules! tells {
    ($($name:ident: |$bench:ident| $spoil:block)*) => {$(
        #[test]
        fn $name() {
            let $bench = Bench::new();
            $spoil
            assert_snapshot(stringify!($name), &$bench.message());
        }
    )*};
}

tells! {
    a_model_that_is_not_there: |bench| {
        bench.replace("pipeline.yaml", "source: model", "source: ./no-such-model");
    }
    a_model_without_safetensors: |bench| {
        fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    }
    a_model_without_config: |bench| {
        fs::remove_file(bench.path("model/config.json")).unwrap();
    }
    a_model_without_tokenizer: |bench| {
        fs::remove_file(bench.path("model/tokenizer.json")).unwrap();
    }
    truncated_safetensors: |bench| {
        let file = fs::OpenOptions::new().write(true).open(bench.path("model/model.safetensors")).unwrap();
        file.set_len(5_000_000).unwrap();
    }
    a_tensor_of_the_wrong_shape: |bench| {
        bench.replace("model/config.json", "\"intermediate_size\": 768", "\"intermediate_size\": 512");
    }
    a_missing_tensor: |bench| {
        bench.replace("model/config.json", "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7");
    }
    nan_in_a_weight: |bench| {
        let path = bench.path("model/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let index: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let start = index["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
        let at = 8 + header + start + 2 * (3 * 256 + 5);
        bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        fs::write(path, bytes).unwrap();
    }
    an_unknown_architecture: |bench| {
        bench.replace("model/config.json", "\"model_type\": \"llama\"", "\"model_type\": \"gpt_neox\"");
    }
    a_model_that_is_quantized_already: |bench| {
        bench.replace(
            "model/config.json",
            "\"model_type\"",
            "\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64, \
             \"desc_act\": false, \"sym\": true}, \"model_type\"",
        );
        // no weight where one is wanted, as where there are codes
        let path = bench.path("model/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let (name, other) = (b"q_proj.weight", b"q_proj.scales");
        let at = bytes.windows(name.len()).position(|part| part == name).unwrap();
        bytes[at..at + name.len()].copy_from_slice(other);
        fs::write(path, bytes).unwrap();
    }
    a_group_size_that_does_not_divide: |bench| {
        bench.replace("pipeline.yaml", "group_size: 64", "group_size: 96");
    }
    an_empty_text: |bench| {
        bench.write("text.txt", " \n\n");
    }
    too_little_text: |bench| {
        bench.write("text.txt", "A few words are no calibration text.\n");
    }
    a_text_that_is_not_there: |bench| {
        bench.replace("pipeline.yaml", "path: text.txt", "path: no-text.txt");
    }
    an_unknown_key: |bench| {
        bench.replace("pipeline.yaml", "num_samples", "num_sample");
    }
    a_word_that_is_no_method: |bench| {
        bench.write("pipeline.yaml", &format!("{PIPELINE}method: gtpq\n"));
    }
    an_output_folder_that_cannot_be: |bench| {
        bench.write("out", "a file stands where the folder should\n");
    }
    an_evaluation_text_that_is_not_there: |bench| {
        bench.write("pipeline.yaml", &format!("{PIPELINE}evaluate: {{text: no-evaluation.txt}}\n"));
    }
    every_linear_ignored: |bench| {
        bench.write("pipeline.yaml", &format!("{PIPELINE}ignore: ['*']\n"));
    }
}

/// The same of `halfbyte sweep`.
fn check_sweep(name: &str, sections: &str) {
    let bench = Bench::new();
    bench.write("pipeline.yaml", &format!("{PIPELINE}{sections}"));
    let mut command = halfbyte();
    command.current_dir(bench.path(""));
    command.args(["sweep", "pipeline.yaml", "--device", "cpu", "--out", "out"]);
    assert_snapshot(name, &bench.message_of(&mut command));
}

#[test]
fn a_sweep_without_its_section() {
    check_sweep("a_sweep_without_its_section", "");
}

#[test]
fn a_sweep_of_which_no_cell_can_be() {
    check_sweep(
        "a_sweep_of_which_no_cell_can_be",
        "sweep: {group_size: [96, 160]}\n",
    );
}

#[test]
fn a_sweep_whose_winner_would_be_too_large() {
    check_sweep(
        "a_sweep_whose_winner_would_be_too_large",
        "sweep: {bits: [3, 4], winner: {max_bits_per_weight: 2.5}}\n",
    );
}

#[test]
fn a_sweep_of_awq() {
    check_sweep("a_sweep_of_awq", "sweep: {method: [gptq, awq]}\n");
}

#[test]
fn a_full_disk() {
    let bench = Bench::new();
    fs::create_dir(bench.path("out")).unwrap();
    let mount = |program: &str, arguments: &[&str]| {
        let done = Command::new(program)
            .args(arguments)
            .arg(bench.path("out"))
            .output();
        done.is_ok_and(|output| output.status.success())
    };
    if !mount("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs"]) {
        halfbyte_testing::skip(
            halfbyte_testing::Lacking::Mount,
            "no small file system could be mounted, which needs root",
        );
        return;
    }
    let output = bench.run().output().unwrap();
    let left = files(&bench.path("out"));
    assert!(mount("umount", &[]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("out: ")
            && stderr.contains(" are free, this needs ")
            && stderr.contains("free space"),
        "{stderr}"
    );
    let written = |path: &&PathBuf| !path.ends_with("generated.json") && path.is_file();
    assert_eq!(left.iter().find(written), None, "{left:?}");
}

#[test]
fn a_pipeline_file_that_is_not_there() {
    let bench = Bench::new();
    let mut command = halfbyte();
    let message = bench.message_of(
        command
            .current_dir(bench.path(""))
            .args(["run", "no-pipeline.yaml"]),
    );
    assert_snapshot("a_pipeline_file_that_is_not_there", &message);
}
