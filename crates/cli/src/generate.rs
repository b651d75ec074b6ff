//! `halfbyte generate`: text on stdout as it grows, what it took on stderr.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use halfbyte_pipeline::{GenerateRequest, Generator, SamplingRequest};

use crate::args::Generate;
use crate::progress::Progress;
use crate::{json, print_error, print_exactly, results, shown, use_threads};

pub(crate) fn generate(args: Generate, progress: &mut Progress) -> Result<()> {
    use_threads(args.machine.threads.map(usize::from))?;
    let request = GenerateRequest {
        model: args.model,
        prompt: args.prompt,
        raw: args.raw,
        max_new_tokens: args.max_new_tokens.get(),
        sampling: SamplingRequest {
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            seed: args.seed,
        },
        device: args.machine.device.unwrap_or_default(),
    };
    let generator = Generator::load(&request, &mut |event| progress.event(&event));
    progress.finish();
    let generator = generator?;
    let mut written = Ok(());
    let generation = generator.generate(&mut |text| {
        if args.json {
            return ControlFlow::Continue(());
        }
        let mut stdout = io::stdout().lock();
        let text = shown(text, stdout.is_terminal());
        written = write!(stdout, "{text}").and_then(|()| stdout.flush());
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    match written {
        // The reader, `head` perhaps, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        written => written.context("writing to stdout")?,
    }
    if args.json {
        print_exactly(&json(&generation)?)?;
    } else {
        print_exactly("")?;
    }
    print_error(&results::generation(&generation));
    Ok(())
}
