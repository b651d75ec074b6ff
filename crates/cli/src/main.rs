//! The `halfbyte` program: what is typed comes in, results go to stdout, all else to stderr.
//!
//! Nothing is computed here. The decision: flags become keys of the pipeline file, so that a setting has one name and
//! one check; the rejected alternative, options of their own beside the pipeline's, drifts apart with time.

mod args;
mod devices;
mod failure;
mod generate;
mod interrupt;
mod progress;
mod reports;
mod results;
mod wrap;

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use halfbyte_pipeline::config::{Measure, Pipeline, Windows};
use halfbyte_pipeline::report::{broken_cells, printable};
use halfbyte_pipeline::{
    EvalRequest, Inspection, NotGood, Parts, Plan, RunOptions, SensitivityRequest, SweepOptions,
    exit_code, user_error,
};
use terminal_size::{Height, Width, terminal_size_of};
use tracing_subscriber::EnvFilter;

use args::{By, Cli, Command};
use devices::Devices;
use progress::Progress;

fn main() -> ExitCode {
    halfbyte_pipeline::keep_freed_memory();
    halfbyte_pipeline::tell_of_file_limits();
    quiet_vulkan();
    failure::set_panic_hook();
    let cli = Cli::parse();
    let (mut progress, logs) = progress::start();
    interrupt::watch(progress.screen());
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .with_ansi(io::stderr().is_terminal())
        .with_writer(move || logs.clone())
        .init();
    // A panic has been told by the hook; it must still not pass for the user's fault, which Rust's own 101 would
    // leave open.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(cli.command, &mut progress)
    }));
    progress.finish();
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            print_error(&failure::describe(&error));
            ExitCode::from(exit_code(&error) as u8)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(command: Command, progress: &mut Progress) -> Result<()> {
    match command {
        Command::Run(args) => {
            let pipeline = Pipeline::load(&args.pipeline, &args.all_overrides())?;
            check_strict(args.strict, &pipeline)?;
            use_threads(pipeline.resources.threads)?;
            let options = RunOptions {
                out: args.out_folder(),
                fresh: args.fresh,
            };
            progress.keeps_blocks_of(options.out.clone(), Some(halfbyte_pipeline::blocks_kept));
            let run = halfbyte_pipeline::quantize(&pipeline, &options, &mut |event| {
                progress.event(&event);
            });
            progress.finish();
            let run = run?;
            print(&results::run(&run))?;
            run.gate
                .map_or(Ok(()), |gate| Err(anyhow::Error::from(gate)))?;
            hold_to(args.strict, run.record.verdict_warning())
        }
        Command::Sweep(args) => {
            let pipeline = Pipeline::load(&args.run.pipeline, &args.run.all_overrides())?;
            check_strict(args.run.strict, &pipeline)?;
            use_threads(pipeline.resources.threads)?;
            let options = SweepOptions {
                out: args.run.out_folder(),
                fresh: args.run.fresh,
                shard: args.shard,
            };
            progress.keeps_blocks_of(options.out.clone(), None);
            let swept = halfbyte_pipeline::sweep(&pipeline, &options, &mut |event| {
                progress.event(&event);
            });
            progress.finish();
            let swept = swept?;
            print(&results::sweep(&swept))?;
            if let Some(run) = swept.winner {
                run.gate
                    .map_or(Ok(()), |gate| Err(anyhow::Error::from(gate)))?;
                hold_to(args.run.strict, run.record.verdict_warning())?;
            }
            let broken = swept.record.as_ref().and_then(broken_cells);
            hold_to(args.run.strict, broken)
        }
        Command::Plan(args) => {
            let pipeline = Pipeline::load(&args.pipeline, &args.overrides.set)?;
            let plan = halfbyte_pipeline::plan(&pipeline, &args.out_folder())?;
            print_result(&plan, Plan::to_string, args.json)
        }
        Command::Eval(args) => {
            use_threads(args.machine.threads.map(usize::from))?;
            let request = EvalRequest {
                model: args.model,
                reference: args.reference,
                sequence_length: args.sequence_length.get(),
                windows: args
                    .windows
                    .unwrap_or_else(|| Windows::default_for(&args.text)),
                text: args.text,
                packed: args.packed,
                prompts: args.prompts,
                max_new_tokens: args.max_new_tokens,
                device: args.machine.device.unwrap_or_default(),
            };
            let evaluation = halfbyte_pipeline::evaluate(&request, &mut |event| {
                progress.event(&event);
            });
            progress.finish();
            let scored = results::Scored::new(evaluation?);
            let warning = scored.warning();
            print_result(&scored, results::evaluation, args.json)?;
            hold_to(args.strict, warning)
        }
        Command::Sensitivity(args) => {
            use_threads(args.machine.threads.map(usize::from))?;
            let request = SensitivityRequest {
                model: args.model,
                reference: args.reference,
                text: args.text,
                sequence_length: args.sequence_length.get(),
                windows: args.windows,
                by: match args.by {
                    By::Kind => Parts::Kind,
                    By::Block => Parts::Block,
                    By::Linear => Parts::Linear,
                },
                device: args.machine.device.unwrap_or_default(),
            };
            let found = halfbyte_pipeline::sensitivity(&request, &mut |event| {
                progress.event(&event);
            });
            progress.finish();
            let found = found?;
            match args.csv {
                true => print_exactly(&results::sensitivity_csv(&found)),
                false => print_result(&found, results::sensitivity, args.json),
            }
        }
        Command::Generate(args) => generate::generate(args, progress),
        Command::Inspect(args) => {
            let inspection = halfbyte_pipeline::inspect(&args.model, &mut |event| {
                progress.event(&event);
            });
            progress.finish();
            let inspection = inspection?;
            print_result(&inspection, Inspection::to_string, args.json)
        }
        Command::Explain(args) => print(&reports::explain(&args.run, &args.linear)?),
        Command::Report(args) => print(&reports::report(&args.runs, args.out.as_deref())?),
        Command::Devices(args) => print_result(&devices::find(), Devices::to_string, args.json),
        Command::Schema => print_exactly(&json(&Pipeline::schema())?),
    }
}

/// Keeps Mesa's layer that chooses between adapters away where there is no desktop for it to ask: it complains to stderr
/// each time adapters are listed, and the program chooses by itself.
fn quiet_vulkan() {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if ![
        "NODEVICE_SELECT",
        "MESA_VK_DEVICE_SELECT",
        "XDG_RUNTIME_DIR",
    ]
    .into_iter()
    .any(is_set)
    {
        // SAFETY: called before there are other threads.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Refuses to hold a result to what is not measured.
fn check_strict(strict: bool, pipeline: &Pipeline) -> Result<()> {
    let measured = pipeline
        .sweep
        .as_ref()
        .is_none_or(|sweep| sweep.measure != Measure::None);
    match strict && !(pipeline.evaluate.is_some() && measured) {
        true => Err(user_error(
            "--strict: nothing is measured to hold the result against",
            "add `evaluate: {text: FILE}` to the pipeline file",
        )),
        false => Ok(()),
    }
}

/// Fails where the result was to be good and is not.
fn hold_to(strict: bool, warning: Option<String>) -> Result<()> {
    match warning {
        Some(warning) if strict => Err(NotGood(warning).into()),
        _ => Ok(()),
    }
}

/// Sets how many threads all that follows takes; none leaves it at all cores.
fn use_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .with_context(|| format!("starting {threads} threads"))
}

fn print_result<T: serde::Serialize>(
    result: &T,
    in_words: fn(&T) -> String,
    as_json: bool,
) -> Result<()> {
    if as_json {
        print_exactly(&json(result)?)
    } else {
        print(&in_words(result))
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).context("writing the result as JSON")
}

/// Writes a result to stdout, with one line end behind it; on a terminal long lines are broken at its width.
fn print(text: &str) -> Result<()> {
    print_exactly(&for_terminal(terminal_size_of(io::stdout()), text))
}

/// What a person reads: names and words that come from files command nothing, and where it goes to a terminal of this size
/// long lines are broken. All that is printed but a result for programs passes through here.
fn for_terminal(size: Option<(Width, Height)>, text: &str) -> Cow<'_, str> {
    let text = printable(text);
    match size {
        Some((width, _)) => Cow::Owned(wrap::wrap(&text, usize::from(width.0)).into_owned()),
        None => text,
    }
}

/// The same for what a program or another file takes: no line is broken, and only on a terminal anything is replaced.
fn print_exactly(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let text = shown(text.trim_end(), stdout.is_terminal());
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        // The reader, `head` perhaps, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to stdout"),
    }
}

/// Text of a model or for a program: exact, but that it commands no terminal.
fn shown(text: &str, on_terminal: bool) -> Cow<'_, str> {
    match on_terminal {
        true => printable(text),
        false => Cow::Borrowed(text),
    }
}

/// Writes to stderr; where that fails there is nobody left to tell.
fn print_error(text: &str) {
    let _ = writeln!(
        io::stderr(),
        "{}",
        for_terminal(terminal_size_of(io::stderr()), text)
    );
}
