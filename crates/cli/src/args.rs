//! What may be typed.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use halfbyte_pipeline::Shard;
use halfbyte_pipeline::config::{Device, EMBEDDED_EVALUATION, Windows, parse_bytes};

/// Quantize language models: from Hugging Face safetensors to a calibrated low-bit checkpoint.
#[derive(Debug, Parser)]
#[command(name = "halfbyte", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What holds for all commands.
const AFTER_HELP: &str = "\
MODEL is a folder with a checkpoint, the output folder of a run, a hub id `org/name[@revision]`, or `embedded:tiny`, a small \
model inside the program.

Results go to stdout, progress and logs to stderr; RUST_LOG chooses the logs.

Exit codes: 0 done; 2 something is wrong with the input, and the message says how to mend it; 3 a quality gate was not met; \
1 a bug in the program; 130 interrupted.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Quantize a model as a pipeline file says; an interrupted run goes on where it stopped
    Run(Run),
    /// Try every combination of the settings under `sweep` and report which is worth its size
    Sweep(Sweep),
    /// Show what a run would do, in seconds and without reading weights: sizes, memory, problems
    Plan(Plan),
    /// Measure a model on a text: perplexity, and KL divergence from a reference model
    Eval(Eval),
    /// Measure how much KL divergence each part of a quantized model causes by itself
    Sensitivity(Sensitivity),
    /// Generate text from a prompt
    Generate(Generate),
    /// List what a checkpoint holds: format, bits, which programs load it, every tensor
    Inspect(Inspect),
    /// Say why one linear layer of a run loses what it does, and which rule would mend it at what size
    Explain(Explain),
    /// Print the summary of a run or a sweep and draw its page again, or compare several runs
    Report(Report),
    /// List the GPUs found, what they can do, and whether they compute what the CPU does
    Devices(Devices),
    /// Print the JSON Schema of the pipeline file, for editors
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The pipeline file
    #[arg(value_name = "PIPELINE.yaml")]
    pub(crate) pipeline: PathBuf,
    /// Output folder [default: out/ and the name of the pipeline file]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Memory to use before activations go to files, such as 8GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<String>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Start over instead of going on with what an earlier run left in DIR
    #[arg(long)]
    pub(crate) fresh: bool,
    /// End with exit code 3 where the result is degraded or broken: a perplexity above 1.5 times the float model's, or a KL
    /// that comes to the same (of a sweep: where a cell is broken, or the winner degraded). Wants `evaluate`
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Sweep {
    #[command(flatten)]
    pub(crate) run: Run,
    /// Share of the work to do, such as 2/4, where N processes are given the same DIR. Start each twice: for the blocks,
    /// and for the scores once all have done theirs; the last one reports
    #[arg(long, value_name = "I/N", value_parser = shard, default_value = "1/1")]
    pub(crate) shard: Shard,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The pipeline file
    #[arg(value_name = "PIPELINE.yaml")]
    pub(crate) pipeline: PathBuf,
    /// Folder that the run would write, as `run` takes it
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// Checkpoint folder, output folder of a run, hub id or `embedded:tiny`
    pub(crate) model: String,
    /// The model to compare with, usually the unquantized one
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<String>,
    /// File of text, records or a table to measure on; the default is a short text inside the program
    #[arg(long, value_name = "FILE", default_value = EMBEDDED_EVALUATION)]
    pub(crate) text: PathBuf,
    /// Tokens per sequence
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) sequence_length: NonZeroUsize,
    /// Sequences of the text to use: a count (evenly spaced), indices from 0 such as 0,7,9 (one alone: `7,`), or all
    /// [default: 32, and all of the text inside the program]
    #[arg(long, value_name = "N|LIST|all", value_parser = windows)]
    pub(crate) windows: Option<Windows>,
    /// Compute with the quantized codes as they are stored, as `generate` does, instead of unpacked weights: the same scores
    /// up to rounding, slower on long sequences
    #[arg(long)]
    pub(crate) packed: bool,
    /// File of prompts, one per line, from which both models generate [default: the first 32 tokens of up to 8 sequences]
    #[arg(long, value_name = "FILE", requires = "reference")]
    pub(crate) prompts: Option<PathBuf>,
    /// Tokens that both models generate greedily from each prompt; 0 leaves that comparison out
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) max_new_tokens: usize,
    /// End with exit code 3 where the model is degraded or broken beside the reference: a perplexity above 1.5 times its, or
    /// a KL that comes to the same
    #[arg(long, requires = "reference")]
    pub(crate) strict: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

#[derive(Debug, Args)]
pub(crate) struct Sensitivity {
    /// The quantized model: checkpoint folder, output folder of a run, or hub id
    pub(crate) model: String,
    /// The unquantized model it was made from
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: String,
    /// File of text, records or a table to measure on; the default is a short text inside the program
    #[arg(long, value_name = "FILE", default_value = EMBEDDED_EVALUATION)]
    pub(crate) text: PathBuf,
    /// What a part is: all linear layers of one name, those of one block, or each by itself
    #[arg(long, value_enum, default_value = "kind")]
    pub(crate) by: By,
    /// Tokens per sequence
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) sequence_length: NonZeroUsize,
    /// Sequences of the text to use: a count (evenly spaced), indices from 0 such as 0,7,9 (one alone: `7,`), or all
    #[arg(long, value_name = "N|LIST|all", default_value = "8", value_parser = windows)]
    pub(crate) windows: Windows,
    /// Print one JSON document
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print comma-separated values
    #[arg(long)]
    pub(crate) csv: bool,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

/// What makes a part of a model.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum By {
    Kind,
    Block,
    Linear,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Checkpoint folder, output folder of a run, hub id or `embedded:tiny`
    pub(crate) model: String,
    /// Text to start from; a model with a chat template is given it as the user's message
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Take the prompt as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value = "256", alias = "max-tokens")]
    pub(crate) max_new_tokens: NonZeroUsize,
    /// Sampling temperature; 0 = greedy [default: the model's generation_config.json, else 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Sample from the most likely tokens whose probabilities add up to P [default: likewise, else 1: from all]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Sample from the K most likely tokens [default: likewise, else 0: from all]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// Print one JSON document at the end instead of the text as it grows
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Checkpoint folder, output folder of a run, hub id or `embedded:tiny`
    pub(crate) model: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Output folders of runs, or of one sweep
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// Page to write, or for a name that ends in .md the table in markdown (of one run its model card) [default: for one run
    /// halfbyte/report.html in its folder, for several none]
    #[arg(long, value_name = "FILE.html|FILE.md")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Output folder of a run
    pub(crate) run: PathBuf,
    /// Name of a linear layer as in linears.csv, or an end of it that no other has, such as `3.mlp.down_proj`
    pub(crate) linear: String,
}

#[derive(Debug, Args)]
pub(crate) struct Devices {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// Device to compute on [default: auto, the best there is]
    #[arg(long, value_parser = PossibleValuesParser::new(Device::ALL.map(Device::as_str)).map(|word| device(&word)))]
    pub(crate) device: Option<Device>,
    /// Threads to use [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Debug, Args)]
pub(crate) struct Overrides {
    /// Set a key of the pipeline file, such as quant.bits=3; may be given several times
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) set: Vec<String>,
}

impl Run {
    /// The flags as keys of the pipeline file; they come after `--set` and so win over it.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let mut all = self.overrides.set.clone();
        if let Some(device) = &self.machine.device {
            all.push(format!("resources.device={device}"));
        }
        if let Some(threads) = self.machine.threads {
            all.push(format!("resources.threads={threads}"));
        }
        if let Some(size) = &self.max_memory {
            all.push(format!("resources.max_memory='{size}'"));
        }
        all
    }

    /// Where the run writes: `--out`, or the pipeline file's name under `out/`.
    pub(crate) fn out_folder(&self) -> PathBuf {
        out_folder(&self.pipeline, self.out.as_deref())
    }
}

impl Plan {
    /// The folder a run would write.
    pub(crate) fn out_folder(&self) -> PathBuf {
        out_folder(&self.pipeline, self.out.as_deref())
    }
}

fn out_folder(pipeline: &Path, out: Option<&Path>) -> PathBuf {
    let usual = || Path::new("out").join(pipeline.file_stem().unwrap_or_default());
    out.map_or_else(usual, Path::to_owned)
}

/// The device of one of [`Device::ALL`]'s words.
fn device(word: &str) -> Device {
    let named = Device::ALL
        .into_iter()
        .find(|device| device.as_str() == word);
    named.unwrap_or_default()
}

fn shard(text: &str) -> Result<Shard, String> {
    let wrong = || "wanted I/N with I from 1 to N, such as 2/4".to_owned();
    let (index, of) = text.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
    match (number(index)?, number(of)?) {
        (index, of) if (1..=of).contains(&index) => Ok(Shard {
            index: index - 1,
            of,
        }),
        _ => Err(wrong()),
    }
}

fn size(text: &str) -> Result<String, String> {
    match parse_bytes(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("wanted a size such as 8GiB or 512MiB".to_owned()),
    }
}

fn windows(text: &str) -> Result<Windows, String> {
    let wrong = || "wanted a count from 1, indices such as 0,7,9, or all".to_owned();
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    if text == "all" {
        return Ok(Windows::All);
    }
    if !text.contains(',') {
        return match number(text)? {
            0 => Err(wrong()),
            count => Ok(Windows::Count(count)),
        };
    }
    let list = text.trim_start_matches('[').trim_end_matches(']');
    let list = list.strip_suffix(',').unwrap_or(list);
    list.split(',')
        .map(number)
        .collect::<Result<_, _>>()
        .map(Windows::List)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &str) -> Run {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_keys_that_win_over_set() {
        let run = run(
            "halfbyte run p.yaml --threads 2 --device cpu --max-memory 8GiB --set quant.bits=3 --set a=b",
        );
        assert_eq!(
            run.all_overrides(),
            [
                "quant.bits=3",
                "a=b",
                "resources.device=cpu",
                "resources.threads=2",
                "resources.max_memory='8GiB'"
            ]
        );
        assert!(!run.fresh);
    }

    #[test]
    fn a_run_writes_under_the_name_of_its_pipeline() {
        assert_eq!(
            run("halfbyte run pipelines/quickstart.yaml").out_folder(),
            PathBuf::from("out/quickstart")
        );
        assert_eq!(
            run("halfbyte run p.yaml --out d").out_folder(),
            PathBuf::from("d")
        );
    }

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!(shard("1/1"), Ok(Shard::ALONE));
        assert_eq!(shard("4/4"), Ok(Shard { index: 3, of: 4 }));
        for wrong in ["0/4", "5/4", "1", "a/b", "1/0", "/", "1/2/3", "-1/2"] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn windows_are_a_count_indices_or_all() {
        assert_eq!(windows("32"), Ok(Windows::Count(32)));
        assert_eq!(windows("all"), Ok(Windows::All));
        assert_eq!(windows("0,7, 9"), Ok(Windows::List(vec![0, 7, 9])));
        assert_eq!(windows("[0,7]"), Ok(Windows::List(vec![0, 7])));
        assert_eq!(windows("7,"), Ok(Windows::List(vec![7])));
        for wrong in ["0", "", "some", "1,x", "-1", ",", "1,,2"] {
            assert!(windows(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bad_flags_are_refused_before_anything_starts() {
        for line in [
            "halfbyte run p.yaml --device cuda",
            "halfbyte run p.yaml --threads 0",
            "halfbyte run p.yaml --max-memory much",
            "halfbyte sweep p.yaml --shard 3/2",
            "halfbyte eval m --text t --windows 0",
            "halfbyte report",
            "halfbyte generate m",
            "halfbyte generate m --prompt p --max-new-tokens 0",
            "halfbyte generate m --prompt p --temperature warm",
            "halfbyte generate m --prompt p --top-k -1",
            "halfbyte eval m --text t --prompts p",
            "halfbyte eval m --text t --strict",
            "halfbyte frob",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
