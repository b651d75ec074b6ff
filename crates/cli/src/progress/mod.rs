//! Shows events on stderr: bars on a terminal, plain lines elsewhere. Logs pass through here as well, so that they
//! do not tear the bars.

mod bars;
mod lines;
mod pace;

use std::io::{self, IsTerminal, Stderr, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use halfbyte_pipeline::Event;
use indicatif::{MultiProgress, ProgressDrawTarget};

use bars::Bars;
use lines::Lines;

/// The place where progress and logs meet.
pub(crate) struct Progress {
    face: Face,
    screen: Screen,
}

/// The screen and what is known of the work, for a thread that has to end it all.
#[derive(Clone)]
pub(crate) struct Screen {
    bars: Option<MultiProgress>,
    kept: Arc<Mutex<Kept>>,
}

/// What lies in a folder for the same command to go on from.
#[derive(Debug, Default)]
struct Kept {
    /// None where the command leaves nothing behind.
    folder: Option<PathBuf>,
    done: usize,
    /// 0 before the first block is begun.
    of: usize,
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
        (
            Progress::new(face, Some(bars.clone())),
            LogWriter { bars: Some(bars) },
        )
    } else {
        let face = Face::Lines(Box::new(Lines::new(io::stderr())));
        (Progress::new(face, None), LogWriter { bars: None })
    }
}

impl Progress {
    fn new(face: Face, bars: Option<MultiProgress>) -> Self {
        let kept = Arc::default();
        Self {
            face,
            screen: Screen { bars, kept },
        }
    }

    /// The screen, for another thread.
    pub(crate) fn screen(&self) -> Screen {
        self.screen.clone()
    }

    /// Says that finished blocks lie in a folder from which the same command goes on.
    pub(crate) fn keeps_blocks_in(&mut self, folder: PathBuf) {
        self.screen.kept().folder = Some(folder);
    }

    /// Shows one event.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Started {
                blocks, resumed, ..
            } => {
                let mut kept = self.screen.kept();
                (kept.done, kept.of) = (*resumed, *blocks);
            }
            Event::BlockDone { block, .. } => self.screen.kept().done = block + 1,
            _ => {}
        }
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

impl Screen {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the bars away for good and says what is kept.
    pub(crate) fn interrupted(&self) {
        if let Some(bars) = &self.bars {
            // Whatever still draws now draws nowhere.
            let _ = bars.clear();
            bars.set_draw_target(ProgressDrawTarget::hidden());
            // The cursor, should a bar have hidden it.
            let _ = write!(io::stderr(), "\x1b[?25h\r");
        }
        crate::print_error(&self.kept().told());
    }
}

impl Kept {
    fn told(&self) -> String {
        let Some(folder) = &self.folder else {
            return "interrupted".to_owned();
        };
        let blocks = match (self.done, self.of) {
            (_, 0) => {
                return "interrupted while it was starting; the same command starts again"
                    .to_owned();
            }
            (0, _) => {
                return "interrupted before the first block was done; the same command starts over"
                    .to_owned();
            }
            (done, of) if done == of => "all blocks".to_owned(),
            (done, of) => format!("{done} of {of} blocks"),
        };
        format!(
            "interrupted; {} keeps {blocks}, and the same command goes on from there",
            folder.display()
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_interrupts_is_told_what_is_kept() {
        let told = |folder: Option<&str>, done, of| {
            let folder = folder.map(PathBuf::from);
            Kept { folder, done, of }.told()
        };
        assert_eq!(told(None, 0, 0), "interrupted");
        let before = "interrupted before the first block was done; the same command starts over";
        assert_eq!(
            told(Some("out"), 0, 0),
            "interrupted while it was starting; the same command starts again"
        );
        assert_eq!(told(Some("out"), 0, 6), before);
        assert_eq!(
            told(Some("out/a"), 2, 6),
            "interrupted; out/a keeps 2 of 6 blocks, and the same command goes on from there"
        );
        assert_eq!(
            told(Some("out/a"), 6, 6),
            "interrupted; out/a keeps all blocks, and the same command goes on from there"
        );
    }
}
