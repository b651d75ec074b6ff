//! Progress where nobody watches: a line a block, and one every few seconds in between.

use std::io::Write;
use std::time::{Duration, Instant};

use halfbyte_pipeline::Event;

use super::pace::{BlockPace, PhasePace, amount, spoken};

/// The least time between two lines about the same thing.
const QUIET: Duration = Duration::from_secs(5);

/// Writes events as plain lines.
pub(super) struct Lines<W> {
    to: W,
    blocks: BlockPace,
    phase: Option<(Option<usize>, &'static str, PhasePace)>,
    last_line: Option<Instant>,
}

impl<W: Write> Lines<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            blocks: BlockPace::default(),
            phase: None,
            last_line: None,
        }
    }

    pub(super) fn event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Started {
                blocks, resumed, ..
            } => {
                self.blocks = BlockPace::new(*resumed, *blocks, now);
                self.line(&super::started(event), now);
            }
            Event::Phase {
                block,
                name,
                done,
                total,
                unit,
            } => self.phase((*block, name), (*done, *total), unit, now),
            Event::BlockDone { block, of, seconds } => {
                self.blocks.of = *of;
                self.blocks.block_done(*block, *seconds, now);
                self.phase = None;
                let took = spoken(Duration::from_secs_f64(seconds.max(0.0)));
                let mut text = format!("block {}/{of} done in {took}", block + 1);
                if let Some(left) = self.blocks.eta(now) {
                    text += &format!(", about {} left", spoken(left));
                }
                self.line(&text, now);
            }
            Event::Download { file, bytes, total } => {
                if self.quiet_enough(now) || *total == Some(*bytes) {
                    let of = total.map_or_else(String::new, |total| {
                        format!(" of {}", amount(total as f64, "bytes"))
                    });
                    self.line(
                        &format!("download {file}: {}{of}", amount(*bytes as f64, "bytes")),
                        now,
                    );
                }
            }
            Event::Warning(text) => self.line(&format!("warning: {text}"), now),
            Event::Note(text) => self.line(text, now),
            Event::LinearDone { .. } => {}
        }
    }

    fn phase(
        &mut self,
        (block, name): (Option<usize>, &'static str),
        (done, total): (u64, u64),
        unit: &str,
        now: Instant,
    ) {
        match &mut self.phase {
            Some((b, n, pace)) if (*b, *n) == (block, name) && pace.done <= done => {
                pace.update(done, total);
            }
            _ => self.phase = Some((block, name, PhasePace::new(done, total, now))),
        }
        let Some((_, _, pace)) = &self.phase else {
            return;
        };
        // A phase of its own, outside the blocks, has no other line to tell that it began or ended.
        let edge = block.is_none() && (done == 0 || done == total);
        if !edge && !self.quiet_enough(now) {
            return;
        }
        let mut text = match block {
            Some(block) => format!("block {}/{}: {name}", block + 1, self.blocks.of),
            None => name.to_owned(),
        };
        if done > 0 {
            text += &format!(", {done}");
            if total > 0 {
                text += &format!(" of {total}");
            }
            text += &format!(" {unit}");
            if let Some(rate) = pace.rate(now) {
                text += &format!(", {}/s", amount(rate, ""));
            }
            if done < total
                && let Some(left) = pace.eta(now)
            {
                text += &format!(", about {} left", spoken(left));
            }
        }
        self.line(&text, now);
    }

    fn quiet_enough(&self, now: Instant) -> bool {
        self.last_line
            .is_none_or(|last| now.duration_since(last) >= QUIET)
    }

    fn line(&mut self, text: &str, now: Instant) {
        self.last_line = Some(now);
        // Nobody reads stderr any more: that is no reason to stop the work.
        let _ = writeln!(self.to, "{}", crate::for_terminal(None, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(block: Option<usize>, done: u64) -> Event {
        Event::Phase {
            block,
            name: if block.is_some() {
                "statistics"
            } else {
                "evaluate"
            },
            done,
            total: 1000,
            unit: "tokens",
        }
    }

    /// What stands on stderr after events at given seconds.
    fn check(events: &[(u64, Event)], expected: &str) {
        let start = Instant::now();
        let mut lines = Lines::new(Vec::new());
        for (second, event) in events {
            lines.event(event, start + Duration::from_secs(*second));
        }
        assert_eq!(String::from_utf8(lines.to).unwrap(), expected);
    }

    fn started(resumed: usize) -> Event {
        Event::Started {
            model: "embedded:tiny".to_owned(),
            blocks: 4,
            resumed,
            linears: 28,
            tokens: 16384,
        }
    }

    #[test]
    fn a_block_has_its_line_and_a_long_phase_one_every_five_seconds() {
        let done = |block| Event::BlockDone {
            block,
            of: 4,
            seconds: 12.0,
        };
        check(
            &[
                (0, started(1)),
                (0, phase(Some(1), 0)),
                (1, phase(Some(1), 100)),
                (5, phase(Some(1), 500)),
                (6, phase(Some(1), 600)),
                (12, done(1)),
                (24, done(2)),
                (36, done(3)),
            ],
            "embedded:tiny: 4 blocks (1 done before), 28 linears, 16384 calibration tokens\n\
             block 2/4: statistics, 500 of 1000 tokens, 100/s, about 5.0 s left\n\
             block 2/4 done in 12 s, about 24 s left\n\
             block 3/4 done in 12 s, about 12 s left\n\
             block 4/4 done in 12 s\n",
        );
    }

    #[test]
    fn a_phase_outside_the_blocks_tells_its_start_and_end() {
        check(
            &[
                (0, phase(None, 0)),
                (1, phase(None, 500)),
                (2, phase(None, 1000)),
            ],
            "evaluate\nevaluate, 1000 of 1000 tokens, 500/s\n",
        );
    }

    #[test]
    fn warnings_and_notes_are_never_held_back() {
        check(
            &[
                (0, Event::Note("resuming".to_owned())),
                (0, Event::Warning("q_proj: damping raised".to_owned())),
                (0, Event::Warning("k_proj: damping raised".to_owned())),
            ],
            "resuming\nwarning: q_proj: damping raised\nwarning: k_proj: damping raised\n",
        );
    }

    #[test]
    fn a_download_tells_how_far_it_is_and_when_it_is_whole() {
        let download = |bytes| Event::Download {
            file: "model.safetensors".to_owned(),
            bytes,
            total: Some(20_000_000),
        };
        check(
            &[
                (0, download(0)),
                (1, download(5_000_000)),
                (2, download(20_000_000)),
            ],
            "download model.safetensors: 0 B of 19.1 MiB\n\
             download model.safetensors: 19.1 MiB of 19.1 MiB\n",
        );
    }
}
