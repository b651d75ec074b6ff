//! What may be typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use halfbyte_pipeline::Shard;
use halfbyte_pipeline::config::{Device, Windows, parse_bytes};

/// From Hugging Face safetensors to a calibrated low-bit checkpoint: one pipeline file, one program, no Python.
///
/// MODEL is a folder, a hub id `org/name[@revision]`, or `embedded:tiny`.
/// Results go to stdout, progress and logs to stderr; RUST_LOG chooses the logs.
/// Exit codes: 0 done; 2 the input is at fault; 3 a gate or --strict failed; 1 a fault of the program.
#[derive(Debug, Parser)]
#[command(name = "halfbyte", version, verbatim_doc_comment)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Quantize as the pipeline file says; a run that was cut off is taken up where it stood
    Run(Run),
    /// Solve every combination of the settings under `sweep` from one pass, and report which is worth its size
    Sweep(Sweep),
    /// Say what would be done, in seconds, reading no weights: sizes, memory, problems found
    Plan(Plan),
    /// Score a model on a text: perplexity, and divergence from a reference model
    Eval(Eval),
    /// Measure what each part of a quantized model costs by itself, beside what its losses predict
    Sensitivity(Sensitivity),
    /// Go on from a prompt; the text comes on stdout as it grows, speed and memory on stderr at the end
    Generate(Generate),
    /// Say what a model holds, tensor by tensor
    Inspect(Inspect),
    /// Say why a linear of a run loses what it does, what rule would mend it, and what that costs
    Explain(Explain),
    /// Draw the page of a run or a sweep again and print its summary, or compare several runs
    Report(Report),
    /// List the adapters that wgpu finds, what they can do, and whether they compute what the CPU does
    Devices(Devices),
    /// Print the JSON Schema of the pipeline file, for editors
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The pipeline file
    #[arg(value_name = "PIPELINE.yaml")]
    pub(crate) pipeline: PathBuf,
    /// Folder to write; the name of the pipeline file under `out/` where not given
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// What the run may hold before it spills to files, such as 8GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<String>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Start anew whatever an earlier run left in DIR
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
    /// Do this share of the work, such as 2/4; all N processes are given the same DIR. Once for the blocks, once more,
    /// when all have done theirs, for the scores; the last one reports
    #[arg(long, value_name = "I/N", value_parser = shard, default_value = "1/1")]
    pub(crate) shard: Shard,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The pipeline file
    #[arg(value_name = "PIPELINE.yaml")]
    pub(crate) pipeline: PathBuf,
    /// One JSON document on stdout
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// Folder, hub id or `embedded:tiny`
    pub(crate) model: String,
    /// The model to hold it against, the float one as a rule
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<String>,
    /// A plain text file
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens a window
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) sequence_length: NonZeroUsize,
    /// A count (evenly spaced), indices from 0 with commas such as 0,7,9 (one alone: `7,`), or all
    #[arg(long, value_name = "N|LIST|all", default_value = "32", value_parser = windows)]
    pub(crate) windows: Windows,
    /// Multiply the model's codes as they are, rather than the dense weights they stand for: the same scores but for
    /// rounding, slower on long windows
    #[arg(long)]
    pub(crate) packed: bool,
    /// Prompts that both models go on from, one a line; the first 32 tokens of up to 8 windows where not given
    #[arg(long, value_name = "FILE", requires = "reference")]
    pub(crate) prompts: Option<PathBuf>,
    /// Tokens that both models give for each prompt, the likeliest always; 0 leaves that comparison out
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) max_new_tokens: usize,
    /// End with exit code 3 where the model is degraded or broken beside the reference: a perplexity above 1.5 times its, or
    /// a KL that comes to the same
    #[arg(long, requires = "reference")]
    pub(crate) strict: bool,
    /// One JSON document on stdout
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

#[derive(Debug, Args)]
pub(crate) struct Sensitivity {
    /// The quantized model: a folder or a hub id
    pub(crate) model: String,
    /// The float model it was made from
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: String,
    /// A plain text file
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// What makes a part: the linears of a name, those of a block, or each by itself
    #[arg(long, value_enum, default_value = "kind")]
    pub(crate) by: By,
    /// Tokens a window
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) sequence_length: NonZeroUsize,
    /// A count (evenly spaced), indices from 0 with commas such as 0,7,9 (one alone: `7,`), or all
    #[arg(long, value_name = "N|LIST|all", default_value = "8", value_parser = windows)]
    pub(crate) windows: Windows,
    /// One JSON document on stdout
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Comma-separated values on stdout
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
    /// Folder, hub id or `embedded:tiny`
    pub(crate) model: String,
    /// What the text begins with. A model that has a chat template is given it as the user's message in a conversation,
    /// as mlx-lm does; --raw turns that off
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// The prompt as it stands, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Tokens after which to stop, where the model does not end the text before
    #[arg(long, value_name = "N", default_value = "256", alias = "max-tokens")]
    pub(crate) max_new_tokens: NonZeroUsize,
    /// What logits are divided by; 0 takes the likeliest token always
    #[arg(
        long,
        value_name = "T",
        default_value = "0",
        allow_negative_numbers = true
    )]
    pub(crate) temperature: f64,
    /// Draw from the likeliest tokens that have this share of the probability together
    #[arg(
        long,
        value_name = "P",
        default_value = "1",
        allow_negative_numbers = true
    )]
    pub(crate) top_p: f64,
    /// Where the random numbers start
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// One JSON document on stdout at the end, in place of the text as it grows
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Folder, hub id or `embedded:tiny`
    pub(crate) model: String,
    /// One JSON document on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Folders that runs, or a sweep, have written
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// The page to write, or the table in markdown where the name ends in .md (one run's model card); where not given, one
    /// run's page goes to halfbyte/report.html in its folder, and several get none
    #[arg(long, value_name = "FILE.html|FILE.md")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Folder that a run has written
    pub(crate) run: PathBuf,
    /// A linear's name as in linears.csv, or the end of it that no other has, such as `3.mlp.down_proj`
    pub(crate) linear: String,
}

#[derive(Debug, Args)]
pub(crate) struct Devices {
    /// One JSON document on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// Where tensors live
    #[arg(long, value_parser = PossibleValuesParser::new(Device::ALL.map(Device::as_str)).map(|word| device(&word)))]
    pub(crate) device: Option<Device>,
    /// Threads; all cores where not given
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

#[derive(Debug, Args)]
pub(crate) struct Overrides {
    /// Set a key of the pipeline file, such as --set quant.bits=3; may be repeated
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
        self.out.clone().unwrap_or_else(|| {
            let name = self.pipeline.file_stem().unwrap_or_default();
            PathBuf::from("out").join(name)
        })
    }
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
            "halfbyte eval m",
            "halfbyte eval m --text t --windows 0",
            "halfbyte report",
            "halfbyte generate m",
            "halfbyte generate m --prompt p --max-new-tokens 0",
            "halfbyte generate m --prompt p --temperature warm",
            "halfbyte eval m --text t --prompts p",
            "halfbyte eval m --text t --strict",
            "halfbyte frob",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
