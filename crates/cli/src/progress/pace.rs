//! How fast the work goes and how long it still takes; no drawing, no clock of its own.

use std::time::{Duration, Instant};

/// Blocks done and to do, timed.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockPace {
    pub(super) done: usize,
    pub(super) of: usize,
    seconds: f64,
    timed: usize,
    last: Option<Instant>,
}

/// Units of one phase done and to do, timed.
#[derive(Clone, Debug)]
pub(super) struct PhasePace {
    began: Instant,
    at_start: u64,
    pub(super) done: u64,
    pub(super) total: u64,
}

impl BlockPace {
    /// `done` blocks were there before; only those done from `now` on tell the pace.
    pub(super) fn new(done: usize, of: usize, now: Instant) -> Self {
        Self {
            done,
            of,
            last: Some(now),
            ..Self::default()
        }
    }

    pub(super) fn block_done(&mut self, block: usize, seconds: f64, now: Instant) {
        self.done = block + 1;
        self.seconds += seconds;
        self.timed += 1;
        self.last = Some(now);
    }

    /// Mean time of a block for each that is left, less what the present one has had; unknown before the first.
    pub(super) fn eta(&self, now: Instant) -> Option<Duration> {
        if self.timed == 0 || self.done >= self.of {
            return None;
        }
        let mean = self.seconds / self.timed as f64;
        let present = self
            .last
            .map_or(0.0, |last| now.duration_since(last).as_secs_f64());
        let left = mean * (self.of - self.done) as f64 - present.min(mean);
        Duration::try_from_secs_f64(left).ok()
    }
}

impl PhasePace {
    pub(super) fn new(done: u64, total: u64, now: Instant) -> Self {
        Self {
            began: now,
            at_start: done,
            done,
            total,
        }
    }

    pub(super) fn update(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
    }

    /// Units a second since the phase began.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.began).as_secs_f64();
        let units = self.done.saturating_sub(self.at_start);
        (units > 0 && seconds > 0.0).then(|| units as f64 / seconds)
    }

    pub(super) fn eta(&self, now: Instant) -> Option<Duration> {
        let left = self.total.checked_sub(self.done)?;
        Duration::try_from_secs_f64(left as f64 / self.rate(now)?).ok()
    }
}

/// A time as a person says it: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn spoken(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    match seconds.round() as u64 {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// A count of units: `480 tokens`, `12.5k tokens`, `1.20 GiB`.
pub(super) fn amount(count: f64, unit: &str) -> String {
    if unit == "bytes" {
        return halfbyte_pipeline::report::bytes(count as u64);
    }
    let (value, letter) = match count {
        c if c >= 1e9 => (c / 1e9, "G"),
        c if c >= 1e6 => (c / 1e6, "M"),
        c if c >= 1e4 => (c / 1e3, "k"),
        c => (c, ""),
    };
    let digits = if letter.is_empty() && (value >= 100.0 || value.fract() == 0.0) {
        0
    } else {
        1
    };
    match unit {
        "" => format!("{value:.digits$}{letter}"),
        unit => format!("{value:.digits$}{letter} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_left_are_reckoned_from_those_done_in_this_run() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pace = BlockPace::new(2, 6, start);
        assert_eq!(pace.eta(after(3)), None);
        pace.block_done(2, 10.0, after(10));
        assert_eq!(pace.eta(after(10)), Some(Duration::from_secs(30)));
        assert_eq!(pace.eta(after(14)), Some(Duration::from_secs(26)));
        assert_eq!(
            pace.eta(after(99)),
            Some(Duration::from_secs(20)),
            "a late block counts as due now"
        );
        for (block, end) in [(3, 20), (4, 30), (5, 40)] {
            pace.block_done(block, 10.0, after(end));
        }
        assert_eq!(pace.eta(after(40)), None);
    }

    #[test]
    fn a_phase_has_a_rate_once_something_is_done() {
        let start = Instant::now();
        let mut pace = PhasePace::new(100, 1100, start);
        let later = start + Duration::from_secs(2);
        assert_eq!(pace.eta(later), None);
        pace.update(300, 1100);
        assert_eq!(pace.rate(later), Some(100.0));
        assert_eq!(pace.eta(later), Some(Duration::from_secs(8)));
    }

    #[test]
    fn times_and_counts_are_said_as_a_person_would() {
        let said = |seconds| spoken(Duration::from_secs_f64(seconds));
        assert_eq!(
            [0.44, 9.97, 59.4, 200.0, 7500.0].map(said),
            ["0.4 s", "10 s", "59 s", "3 min 20 s", "2 h 5 min"]
        );
        assert_eq!(amount(480.0, "tokens"), "480 tokens");
        assert_eq!(amount(3.25, "windows"), "3.2 windows");
        assert_eq!(amount(12_500.0, "tokens"), "12.5k tokens");
        assert_eq!(amount(1.25e9, "bytes"), "1.16 GiB");
    }
}
