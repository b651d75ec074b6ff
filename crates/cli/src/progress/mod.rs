//! Shows events on stderr: bars on a terminal, plain lines elsewhere. Logs pass through here as well, so that they
//! do not tear the bars.

mod bars;
mod lines;
mod pace;

use std::io::{self, IsTerminal, Stderr, Write};
use std::time::Instant;

use halfbyte_pipeline::Event;
use indicatif::{MultiProgress, ProgressDrawTarget};

use bars::Bars;
use lines::Lines;

/// The place where progress and logs meet.
pub(crate) struct Progress {
    face: Face,
}

enum Face {
    Bars(Box<Bars>),
    Lines(Box<Lines<Stderr>>),
}

/// A writer for logs: above the bars where there are any.
#[derive(Clone)]
pub(crate) struct LogWriter {
    bars: Option<MultiProgress>,
}

/// Chooses by whether stderr is a terminal.
pub(crate) fn start() -> (Progress, LogWriter) {
    if io::stderr().is_terminal() {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let face = Face::Bars(Box::new(Bars::new(bars.clone())));
        (Progress { face }, LogWriter { bars: Some(bars) })
    } else {
        let face = Face::Lines(Box::new(Lines::new(io::stderr())));
        (Progress { face }, LogWriter { bars: None })
    }
}

impl Progress {
    /// Shows one event.
    pub(crate) fn event(&mut self, event: &Event) {
        match &mut self.face {
            Face::Bars(bars) => bars.event(event, Instant::now()),
            Face::Lines(lines) => lines.event(event, Instant::now()),
        }
    }

    /// Leaves the screen to what comes next.
    pub(crate) fn finish(&mut self) {
        if let Face::Bars(bars) = &mut self.face {
            bars.finish();
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.bars {
            Some(bars) => bars.suspend(|| io::stderr().write(line)),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The line that opens a run.
fn started(event: &Event) -> String {
    let Event::Started {
        model,
        blocks,
        resumed,
        linears,
        tokens,
    } = event
    else {
        return String::new();
    };
    let before = match resumed {
        0 => String::new(),
        n => format!(" ({n} done before)"),
    };
    let tokens = match tokens {
        0 => String::new(),
        n => format!(", {n} calibration tokens"),
    };
    format!("{model}: {blocks} blocks{before}, {linears} linears{tokens}")
}
