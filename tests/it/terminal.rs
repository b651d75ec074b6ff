//! The program in a terminal of 80 columns and 24 lines: what a person is left to look at.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::program::{blocks_done, halfbyte, small_run, succeed};

const COLUMNS: usize = 80;
const LINES: usize = 24;

/// A program on a terminal of its own.
struct InTerminal {
    child: Child,
    reader: std::thread::JoinHandle<Vec<u8>>,
}

impl InTerminal {
    fn start(mut command: Command) -> Self {
        let size = libc::winsize {
            ws_row: LINES as u16,
            ws_col: COLUMNS as u16,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let (mut ours, mut theirs) = (0, 0);
        // SAFETY: the two numbers are written to, the size is read, and what may be left out is.
        let (ours, theirs) = unsafe {
            let made = libc::openpty(
                &mut ours,
                &mut theirs,
                std::ptr::null_mut(),
                std::ptr::null(),
                &size,
            );
            assert_eq!(made, 0, "no pseudo-terminal");
            (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
        };
        let stdio = || Stdio::from(theirs.try_clone().unwrap());
        command
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .env("TERM", "xterm-256color");
        // SAFETY: one call that may be made between fork and exec. A shell that starts the tests in the background leaves
        // SIGINT ignored, and programs inherit that; a person's terminal does not.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        // No end of theirs may stay open here, or the last read would wait for ever.
        drop((command, theirs));
        let reader = std::thread::spawn(move || {
            let (mut ours, mut all) = (File::from(ours), Vec::new());
            // Where the other end is closed, Linux says that this one fails.
            let _ = ours.read_to_end(&mut all);
            all
        });
        Self { child, reader }
    }

    fn end(mut self) -> (ExitStatus, Screen) {
        let status = self.child.wait().unwrap();
        let written = String::from_utf8(self.reader.join().unwrap()).unwrap();
        (status, Screen::after(&written))
    }
}

/// As much of a terminal as the program uses: every line that ever scrolled up stays.
#[derive(Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    is_cursor_hidden: bool,
    /// Lines with the end of one that was too long for the terminal.
    torn: BTreeSet<usize>,
}

impl Screen {
    fn after(written: &str) -> Self {
        let mut screen = Self::default();
        screen.lines.push(Vec::new());
        let mut letters = written.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '\r' => screen.column = 0,
                '\n' => screen.down(),
                '\x1b' => {
                    assert_eq!(letters.next(), Some('['), "an escape that is none we know");
                    let mut numbers = String::new();
                    let last = loop {
                        match letters.next() {
                            Some(c) if c.is_ascii_alphabetic() => break c,
                            Some(c) => numbers.push(c),
                            None => panic!("an escape without an end"),
                        }
                    };
                    screen.escape(&numbers, last);
                }
                letter => screen.write(letter),
            }
        }
        screen
    }

    /// The first line that is still on the screen, not scrolled out of it.
    fn top(&self) -> usize {
        self.lines.len().saturating_sub(LINES)
    }

    fn down(&mut self) {
        self.row += 1;
        if self.row == self.lines.len() {
            self.lines.push(Vec::new());
        }
    }

    fn write(&mut self, letter: char) {
        if self.column == COLUMNS {
            self.column = 0;
            self.down();
            self.torn.insert(self.row);
        }
        let line = &mut self.lines[self.row];
        if line.len() <= self.column {
            line.resize(self.column + 1, ' ');
        }
        line[self.column] = letter;
        self.column += 1;
    }

    fn escape(&mut self, numbers: &str, last: char) {
        let n = numbers.parse().unwrap_or(1);
        match (numbers, last) {
            (_, 'm') => {}
            ("?25", 'l') => self.is_cursor_hidden = true,
            ("?25", 'h') => self.is_cursor_hidden = false,
            (_, 'A') => self.row = self.row.saturating_sub(n).max(self.top()),
            (_, 'B') => self.row = (self.row + n).min(self.lines.len() - 1),
            (_, 'C') => self.column = (self.column + n).min(COLUMNS - 1),
            (_, 'D') => self.column = self.column.saturating_sub(n),
            ("" | "0", 'K') => self.lines[self.row].truncate(self.column),
            ("2", 'K') => {
                self.lines[self.row].clear();
                self.torn.remove(&self.row);
            }
            ("" | "0", 'J') => {
                self.lines[self.row].truncate(self.column);
                self.torn.split_off(&(self.row + 1));
                self.lines.truncate(self.row + 1);
            }
            other => panic!("an escape that is none we know: {other:?}"),
        }
    }

    /// All lines, those scrolled out of sight too.
    fn text(&self) -> String {
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| line.iter().collect::<String>().trim_end().to_owned())
            .collect();
        lines.join("\n").trim_end().to_owned()
    }

    /// Fails where a bar, or a part of one, was left behind.
    #[track_caller]
    fn is_clean(&self) {
        let text = self.text();
        assert!(!text.contains(['█', '░']), "bars are left:\n{text}");
        assert!(!self.is_cursor_hidden, "the cursor stays hidden");
    }
}

#[test]
fn a_run_leaves_its_summary_and_no_bar_on_the_screen() {
    let out = tempfile::tempdir().unwrap();
    let (status, screen) = InTerminal::start(small_run(out.path(), &[])).end();
    let text = screen.text();
    assert!(status.success(), "{text}");
    screen.is_clean();
    let place = out.path().display();
    for wanted in [
        "embedded:tiny: 6 blocks, 42 linears, ",
        "model           embedded:tiny: LlamaForCausalLM, 6 blocks, ",
        &format!("page            {place}/halfbyte/report.html\n"),
        &format!("try it          halfbyte generate {place} --prompt Hello"),
    ] {
        assert!(text.contains(wanted), "lacks {wanted:?}:\n{text}");
    }
    assert_eq!(screen.torn, BTreeSet::new(), "lines are torn:\n{text}");
}

#[test]
fn help_stays_within_the_terminal() {
    for command in [
        "",
        "run",
        "sweep",
        "plan",
        "eval",
        "sensitivity",
        "generate",
        "inspect",
        "explain",
        "report",
        "devices",
        "schema",
    ] {
        let mut help = halfbyte();
        help.args(command.split_whitespace()).arg("--help");
        let (status, screen) = InTerminal::start(help).end();
        let text = screen.text();
        assert!(status.success(), "{text}");
        assert_eq!(
            screen.torn,
            BTreeSet::new(),
            "{command}: lines are torn:\n{text}"
        );
    }
}

#[test]
fn who_interrupts_a_run_is_told_what_is_kept_and_it_goes_on_from_there() {
    let out = tempfile::tempdir().unwrap();
    // Enough text for a block to take a while.
    let more = ["--set", "calibration.num_samples=64"];
    let run = InTerminal::start(small_run(out.path(), &more));
    let state = out.path().join("halfbyte/work/state.json");
    let start = Instant::now();
    while blocks_done(&state) == 0 {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no block is done"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: a signal to a child that has not been waited for.
    let sent = unsafe { libc::kill(run.child.id() as i32, libc::SIGINT) };
    assert_eq!(sent, 0);
    let (status, screen) = run.end();
    let text = screen.text();
    assert_eq!(status.code(), Some(130), "{text}");
    screen.is_clean();
    let told = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = format!(
        " of 6 blocks are kept in {}/halfbyte/work, and the same command goes on from there",
        out.path().display()
    );
    let kept = told
        .strip_suffix(&end)
        .and_then(|rest| rest.rsplit("interrupted; ").next())
        .unwrap_or_else(|| panic!("{text}"));
    let again = succeed(&mut small_run(out.path(), &more));
    let told = String::from_utf8(again.stderr).unwrap();
    // One more may have come while the sentence was written.
    let kept: usize = kept.parse().unwrap();
    let resumed = |n: usize| told.contains(&format!("6 blocks ({n} done before)"));
    assert!(
        kept > 0 && (resumed(kept) || resumed(kept + 1)),
        "{kept} were kept:\n{told}"
    );
}
