//! Progress where someone watches: a bar for all blocks, one for what is being done, one for a download.

use std::io;
use std::time::{Duration, Instant};

use halfbyte_pipeline::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::pace::{BlockPace, PhasePace, amount, spoken};

/// Draws events as bars on stderr.
pub(super) struct Bars {
    all: MultiProgress,
    blocks: Option<(ProgressBar, BlockPace)>,
    phase: Option<Phase>,
    download: Option<(String, ProgressBar, PhasePace)>,
}

struct Phase {
    block: Option<usize>,
    name: &'static str,
    bar: ProgressBar,
    pace: PhasePace,
}

impl Bars {
    pub(super) fn new(all: MultiProgress) -> Self {
        Self {
            all,
            blocks: None,
            phase: None,
            download: None,
        }
    }

    pub(super) fn event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Started {
                blocks, resumed, ..
            } => {
                self.print(&super::started(event));
                self.clear_phase();
                let bar = self.add("blocks", *blocks as u64);
                bar.set_position(*resumed as u64);
                bar.enable_steady_tick(Duration::from_millis(500));
                self.blocks = Some((bar, BlockPace::new(*resumed, *blocks, now)));
            }
            Event::Phase {
                block,
                name,
                done,
                total,
                unit,
            } => self.phase((*block, name), (*done, *total), unit, now),
            Event::LinearDone {
                linear,
                relative_loss,
                relative_loss_rtn,
                ..
            } => {
                if let Some(phase) = &self.phase {
                    let name = linear.rsplit('.').next().unwrap_or(linear);
                    phase.bar.set_message(format!(
                        "{name} {relative_loss:.1e}, rounded {relative_loss_rtn:.1e}"
                    ));
                }
            }
            Event::BlockDone { block, of, seconds } => {
                self.clear_phase();
                if let Some((bar, pace)) = &mut self.blocks {
                    pace.block_done(*block, *seconds, now);
                    bar.set_position(pace.done as u64);
                    if block + 1 == *of {
                        bar.finish_with_message("done");
                    }
                }
            }
            Event::Download { file, bytes, total } => self.downloaded(file, *bytes, *total, now),
            Event::Warning(text) => self.print(&format!("warning: {text}")),
            Event::Note(text) => self.print(text),
        }
        self.tell_time_left(now);
    }

    /// Takes the bars away, so that what is printed next stands alone.
    pub(super) fn finish(&mut self) {
        self.clear_phase();
        if let Some((bar, _)) = self.blocks.take() {
            bar.finish_and_clear();
        }
        if let Some((_, bar, _)) = self.download.take() {
            bar.finish_and_clear();
        }
    }

    fn phase(
        &mut self,
        (block, name): (Option<usize>, &'static str),
        (done, total): (u64, u64),
        unit: &str,
        now: Instant,
    ) {
        let same = |p: &Phase| (p.block, p.name) == (block, name) && p.pace.done <= done;
        if !self.phase.as_ref().is_some_and(same) {
            self.clear_phase();
            self.phase = Some(Phase {
                block,
                name,
                bar: self.add(name, total),
                pace: PhasePace::new(done, total, now),
            });
        }
        let Some(phase) = &mut self.phase else { return };
        phase.pace.update(done, total);
        phase.bar.set_length(total);
        phase.bar.set_position(done);
        if let Some(rate) = phase.pace.rate(now) {
            phase.bar.set_message(told(&phase.pace, rate, unit, now));
        }
        // Outside the blocks nothing else would end it.
        if block.is_none() && total > 0 && done >= total {
            self.clear_phase();
        }
    }

    fn downloaded(&mut self, file: &str, bytes: u64, total: Option<u64>, now: Instant) {
        let shown = crate::for_terminal(None, file);
        if self
            .download
            .as_ref()
            .is_none_or(|(name, ..)| *name != shown)
        {
            if let Some((_, bar, _)) = self.download.take() {
                bar.finish_and_clear();
            }
            let bar = self.add("download", total.unwrap_or(0));
            let pace = PhasePace::new(bytes, total.unwrap_or(0), now);
            self.download = Some((shown.into_owned(), bar, pace));
        }
        let Some((file, bar, pace)) = &mut self.download else {
            return;
        };
        pace.update(bytes, total.unwrap_or(0));
        bar.set_position(bytes);
        match pace.rate(now) {
            Some(rate) => bar.set_message(format!("{file}, {}", told(pace, rate, "bytes", now))),
            None => bar.set_message(file.clone()),
        }
        if total == Some(bytes)
            && let Some((_, bar, _)) = self.download.take()
        {
            bar.finish_and_clear();
        }
    }

    fn tell_time_left(&self, now: Instant) {
        if let Some((bar, pace)) = &self.blocks
            && let Some(left) = pace.eta(now)
        {
            bar.set_message(format!("about {} left", spoken(left)));
        }
    }

    fn clear_phase(&mut self) {
        if let Some(phase) = self.phase.take() {
            phase.bar.finish_and_clear();
        }
    }

    fn add(&self, name: &str, total: u64) -> ProgressBar {
        // Added before anything is set: a bar that stands alone draws itself on the terminal for every change, and nobody
        // takes such lines away.
        let bar = self.all.add(ProgressBar::new(total));
        bar.set_style(style());
        bar.set_prefix(name.to_owned());
        bar
    }

    fn print(&self, text: &str) {
        // Nobody reads stderr any more: that is no reason to stop the work.
        let size = terminal_size::terminal_size_of(io::stderr());
        let _ = self.all.println(crate::for_terminal(size, text));
    }
}

fn told(pace: &PhasePace, rate: f64, unit: &str, now: Instant) -> String {
    let mut text = format!("{}/s", amount(rate, unit));
    if let Some(left) = pace.eta(now) {
        text += &format!(", about {} left", spoken(left));
    }
    text
}

/// One line whatever the terminal's width: the message is cut to what is left, and at 80 columns that is enough for a rate
/// and the time left.
fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:<14.14} {bar:16} {human_pos}/{human_len} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    /// A terminal that remembers all that was ever written to it.
    #[derive(Clone, Debug, Default)]
    struct Paper(Arc<Mutex<String>>);

    impl Paper {
        fn take(&self) -> String {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            100
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bars_show_blocks_phase_rate_and_time_left() {
        let paper = Paper::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(paper.clone()), 255);
        let all = MultiProgress::with_draw_target(target);
        let mut bars = Bars::new(all);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        bars.event(
            &Event::Started {
                model: "embedded:tiny".to_owned(),
                blocks: 4,
                resumed: 0,
                linears: 28,
                tokens: 16384,
            },
            start,
        );
        bars.event(
            &Event::BlockDone {
                block: 0,
                of: 4,
                seconds: 10.0,
            },
            after(10),
        );
        for (second, done) in [(10, 0), (12, 500)] {
            bars.event(
                &Event::Phase {
                    block: Some(1),
                    name: "statistics",
                    done,
                    total: 1000,
                    unit: "tokens",
                },
                after(second),
            );
        }
        if let Some((bar, _)) = &bars.blocks {
            bar.force_draw();
        }
        let shown = paper.take();
        for wanted in [
            "embedded:tiny: 4 blocks, 28 linears, 16384 calibration tokens",
            "1/4 about 28 s left",
            "statistics",
            "500/1,000 250 tokens/s, about 2.0 s left",
        ] {
            assert!(shown.contains(wanted), "lacks {wanted:?}:\n{shown}");
        }
        bars.finish();
        paper.take();
        bars.event(&Event::Note("all is well".to_owned()), after(13));
        let shown = paper.take();
        assert!(
            shown.contains("all is well") && !shown.contains("statistics"),
            "bars remain:\n{shown}"
        );
    }
}
