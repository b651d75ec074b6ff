//! Shows events on stderr: bars on a terminal, plain lines elsewhere. Logs pass through here as well, so that they
//! do not tear the bars.

mod bars;
mod lines;
mod pace;

use std::io::{self, IsTerminal, Stderr, Write};
use std::path::{Path, PathBuf};
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

/// What lies in an output folder for the same command to go on from.
#[derive(Debug, Default)]
struct Kept {
    /// None where the command leaves nothing behind.
    out: Option<PathBuf>,
    /// Counts the blocks kept there, where that is known.
    count: Option<fn(&Path) -> usize>,
    /// Blocks in all; 0 before the first is begun.
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

    /// Says that finished blocks are kept in an output folder, from which the same command goes on, and how to count them.
    pub(crate) fn keeps_blocks_of(&mut self, out: PathBuf, count: Option<fn(&Path) -> usize>) {
        let mut kept = self.screen.kept();
        (kept.out, kept.count) = (Some(out), count);
    }

    /// Shows one event.
    pub(crate) fn event(&mut self, event: &Event) {
        if let Event::Started { blocks, .. } = event {
            self.screen.kept().of = *blocks;
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
        let Some(out) = &self.out else {
            return "interrupted".to_owned();
        };
        let place = out.join("halfbyte");
        match (self.count.map(|count| count(out)), self.of) {
            (None, _) => format!(
                "interrupted; the same command goes on from what is kept in {}",
                place.display()
            ),
            (_, 0) => "interrupted while it was starting; the same command starts again".to_owned(),
            (Some(0), _) => {
                "interrupted before a block was kept; the same command starts over".to_owned()
            }
            (Some(done), of) => format!(
                "interrupted; {done} of {of} blocks are kept in {}/work, and the same command goes on from there",
                place.display()
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_interrupts_is_told_what_is_kept() {
        let told = |out: Option<&str>, count: Option<fn(&Path) -> usize>, of| {
            let out = out.map(PathBuf::from);
            Kept { out, count, of }.told()
        };
        assert_eq!(told(None, None, 0), "interrupted");
        assert_eq!(
            told(Some("out/a"), Some(|_| 2), 0),
            "interrupted while it was starting; the same command starts again"
        );
        assert_eq!(
            told(Some("out/a"), Some(|_| 0), 6),
            "interrupted before a block was kept; the same command starts over"
        );
        assert_eq!(
            told(Some("out/a"), Some(|_| 2), 6),
            "interrupted; 2 of 6 blocks are kept in out/a/halfbyte/work, and the same command goes on from there"
        );
        assert_eq!(
            told(Some("out/a"), None, 6),
            "interrupted; the same command goes on from what is kept in out/a/halfbyte"
        );
    }
}
