//! The loop: an input made, read, judged, and kept where it led to something new.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use halfbyte_calibrate::text::SplitMix64;

use crate::allocation::Peak;
use crate::coverage::Coverage;
use crate::mutate::{Input, Mutator, smaller, words};
use crate::shared::{Shared, State};
use crate::targets::{Reader, Target, target};

/// Memory that an input may cost: this, and [`BYTES_A_BYTE`] for each of its bytes.
const BYTES: usize = 64 << 20;
const BYTES_A_BYTE: usize = 200;
/// Processor time that an input of 100 kB may cost; longer ones in proportion.
const CPU: Duration = Duration::from_secs(1);
/// Inputs kept at most.
const POOL: usize = 3000;

/// What was wrong with a reading.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Judged {
    /// It panicked: where and with what words.
    Panic(String),
    /// It held so many bytes.
    Memory(usize),
    /// It took so long.
    Time(Duration),
}

impl Judged {
    /// What counts as the same fault.
    fn kind(&self) -> String {
        match self {
            Self::Panic(text) => wording(text),
            Self::Memory(_) => "memory".to_owned(),
            Self::Time(_) => "time".to_owned(),
        }
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(text) => write!(f, "panicked: {text}"),
            Self::Memory(bytes) => write!(f, "held {} MiB", bytes >> 20),
            Self::Time(time) => write!(f, "took {:.1} s of processor time", time.as_secs_f64()),
        }
    }
}

/// What came of a target's executions.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Inputs read.
    pub executions: u64,
    /// Inputs kept for leading to something new, those at hand from the start included.
    pub kept: usize,
    /// Different outcomes, by their words.
    pub outcomes: usize,
    /// Blocks of code met, of those that are counted.
    pub blocks: (usize, usize),
    /// The most memory one held.
    pub largest: u64,
    /// The most processor time one took.
    pub slowest: Duration,
    /// Faults, each with the file that its input was written to.
    pub findings: Vec<(Judged, PathBuf)>,
}

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn set_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut last) = LAST_PANIC.lock() {
            let place = info
                .location()
                .map(|l| format!("{}:{}", short(l.file()), l.line()));
            let words = info.payload_as_str().unwrap_or("no message");
            let words: String = words.chars().take(200).collect();
            *last = format!("{}: {words}", place.unwrap_or_default());
        }
    }));
}

/// A path from the crate's own folder on.
fn short(path: &str) -> &str {
    path.rsplit_once("/src/").map_or(path, |(before, _)| {
        let start = before.rfind('/').map_or(0, |at| at + 1);
        &path[start..]
    })
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours and whole.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Judge<'a> {
    read: Reader,
    /// How many times the usual an input may cost.
    allowance: u32,
    shared: Option<&'a Shared>,
    state: State,
    coverage: Coverage,
}

impl Judge<'_> {
    /// What a reader said, and what is wrong with it.
    fn judge(&mut self, bytes: &[u8]) -> (String, Option<Judged>) {
        self.state.executions += 1;
        if let Some(shared) = self.shared {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            self.state.began = now.map_or(0, |now| now.as_millis() as u64);
            self.state.input.clear();
            self.state.input.extend_from_slice(bytes);
            // where it cannot be written the run goes on, and an abort is found without its input
            let _ = shared.write(&self.state);
        }
        self.coverage.clear();
        let (peak, began) = (Peak::start(), cpu_time());
        let said = catch_unwind(AssertUnwindSafe(|| (self.read)(bytes)));
        let (took, held) = (cpu_time() - began, peak.bytes());
        self.state.largest = self.state.largest.max(held as u64);
        self.state.slowest = self.state.slowest.max(took.as_micros() as u64);
        let allowed = self.allowance as usize * (BYTES + BYTES_A_BYTE * bytes.len());
        let time = self.allowance * CPU.mul_f64((bytes.len() as f64 / 1e5).max(1.0));
        match said {
            Err(_) => {
                let words = LAST_PANIC
                    .lock()
                    .map_or_else(|_| String::new(), |last| last.clone());
                (String::new(), Some(Judged::Panic(words)))
            }
            Ok(said) if held > allowed => (said, Some(Judged::Memory(held))),
            Ok(said) if took > time => (said, Some(Judged::Time(took))),
            Ok(said) => (said, None),
        }
    }

    /// The least input found that is judged the same.
    fn reduce(&mut self, bytes: Vec<u8>, judged: &Judged, target: &Target) -> Vec<u8> {
        let mut least = bytes;
        let until = Instant::now() + Duration::from_secs(5);
        'again: loop {
            for less in smaller(&Input::new(least.clone(), target.format), target.format) {
                if Instant::now() > until {
                    return least;
                }
                let is_less = less.len() < least.len();
                if is_less
                    && self
                        .judge(&less)
                        .1
                        .is_some_and(|j| j.kind() == judged.kind())
                {
                    least = less;
                    continue 'again;
                }
            }
            return least;
        }
    }
}

/// The letters of a message, without what an input puts into it.
fn wording(text: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    for c in text.chars().take(240) {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => {}
            None if matches!(c, '\'' | '"' | '`') => quote = Some(c),
            None if c.is_ascii_alphabetic() || matches!(c, ' ' | ':' | '_') => out.push(c),
            None => {}
        }
    }
    out.truncate(120);
    out
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Fuzzes a target for some time, `seed` deciding all of it but its length. Inputs of faults are written to `findings`;
/// `known` is the folder of inputs that were faults once. What is being read stands in `shared`.
///
/// # Errors
/// No target of that name, a folder that cannot be read or written.
pub fn fuzz(
    name: &str,
    seed: u64,
    time: Duration,
    known: &Path,
    findings: &Path,
    shared: Option<&Shared>,
) -> io::Result<Figures> {
    const MOST_FINDINGS: usize = 12;
    let target = target(name)?;
    set_panic_hook();
    let until = Instant::now() + time;
    let mut figures = Figures::default();
    let mut judge = Judge {
        read: (target.reader)(),
        allowance: target.allowance(),
        shared,
        state: State::default(),
        coverage: Coverage::new(),
    };
    let mut pool: Vec<Input> = Vec::new();
    let mut outcomes = HashSet::new();
    let mut kinds = HashSet::new();
    let mut find =
        |judge: &mut Judge<'_>, figures: &mut Figures, bytes: Vec<u8>, judged: Judged| {
            if !kinds.insert(judged.kind()) {
                return Ok(());
            }
            let least = judge.reduce(bytes, &judged, &target);
            std::fs::create_dir_all(findings)?;
            let path = findings.join(format!("{name}-{:016x}", hash(&judged.kind())));
            std::fs::write(&path, least)?;
            figures.findings.push((judged, path));
            io::Result::Ok(())
        };
    for bytes in target.seeds.iter().cloned().chain(corpus(known, name)?) {
        let (said, judged) = judge.judge(&bytes);
        outcomes.insert(wording(&said));
        judge.coverage.is_new();
        if let Some(judged) = judged {
            find(&mut judge, &mut figures, bytes.clone(), judged)?;
        }
        pool.push(Input::new(bytes, target.format));
    }
    let mut vocabulary: Vec<String> = pool.iter().flat_map(words).collect();
    vocabulary.extend(target.words.iter().map(|word| (*word).to_owned()));
    vocabulary.sort();
    vocabulary.dedup();
    let mut mutator = Mutator {
        random: SplitMix64::new(seed, hash(name)),
        format: target.format,
        words: &vocabulary,
    };
    let n_seeds = pool.len();
    while Instant::now() < until && figures.findings.len() < MOST_FINDINGS {
        // half of the time one of the last found, a quarter one of the first
        let one = match mutator.random.below(4) {
            0 => mutator.random.below(n_seeds),
            1 => mutator.random.below(pool.len()),
            _ => pool.len() - 1 - mutator.random.below(pool.len().min(200)),
        };
        let other = mutator.random.below(pool.len());
        let bytes = mutator.mutate(&pool[one], &pool[other]);
        let (said, judged) = judge.judge(&bytes);
        let new_block = judge.coverage.is_new();
        let new_words = outcomes.len() < 20_000 && outcomes.insert(wording(&said));
        match judged {
            Some(judged) => find(&mut judge, &mut figures, bytes, judged)?,
            None if new_block || new_words => {
                if pool.len() >= POOL {
                    pool.swap_remove(n_seeds + mutator.random.below(POOL - n_seeds));
                }
                pool.push(Input::new(bytes, target.format));
            }
            None => {}
        }
    }
    figures.executions = judge.state.executions;
    figures.kept = pool.len();
    figures.outcomes = outcomes.len();
    figures.blocks = (judge.coverage.met(), judge.coverage.blocks());
    figures.largest = judge.state.largest;
    figures.slowest = Duration::from_micros(judge.state.slowest);
    Ok(figures)
}

/// Reads one input as a target does: what the reader said, and what is wrong with that.
///
/// # Errors
/// No target of that name.
pub fn replay(name: &str, bytes: &[u8]) -> io::Result<(String, Option<Judged>)> {
    set_panic_hook();
    let target = target(name)?;
    let mut judge = Judge {
        read: (target.reader)(),
        allowance: target.allowance(),
        shared: None,
        state: State::default(),
        coverage: Coverage::new(),
    };
    // what is made once is not the input's
    judge.judge(b"");
    Ok(judge.judge(bytes))
}

/// The inputs in a target's folder, sorted by name; none where there is no folder.
fn corpus(folder: &Path, name: &str) -> io::Result<Vec<Vec<u8>>> {
    let folder = folder.join(name);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder)?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(std::fs::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wording_forgets_what_an_input_put_into_it() {
        let a = "/tmp/x1/config.json: hidden_size: 12, wanted 'a'";
        let b = "/tmp/x2/config.json: hidden_size: -7, wanted 'bcd'";
        assert_eq!(wording(a), wording(b));
        assert_ne!(
            wording(a),
            wording("/tmp/x1/config.json: vocab_size: 12, wanted 'a'")
        );
    }

    #[test]
    fn panics_memory_and_time_are_told_apart() {
        set_panic_hook();
        let judged = |read: Reader, bytes: &[u8]| {
            let mut judge = Judge {
                read,
                allowance: 1,
                shared: None,
                state: State::default(),
                coverage: Coverage::new(),
            };
            judge.judge(bytes).1
        };
        assert_eq!(judged(Box::new(|_| String::new()), b"x"), None);
        let panics = judged(Box::new(|_| panic!("so it went")), b"x");
        assert!(matches!(panics, Some(Judged::Panic(words)) if words.ends_with("so it went")));
        let large = |_: &[u8]| std::hint::black_box(vec![1u8; 80 << 20]).len().to_string();
        assert!(matches!(
            judged(Box::new(large), b"x"),
            Some(Judged::Memory(_))
        ));
        let slow = |_: &[u8]| {
            let began = cpu_time();
            while cpu_time() - began < Duration::from_millis(1100) {}
            String::new()
        };
        assert!(matches!(
            judged(Box::new(slow), b"x"),
            Some(Judged::Time(_))
        ));
    }

    #[test]
    fn every_target_reads_its_own_seeds_and_lives() {
        for name in crate::targets::names() {
            let target = target(name).unwrap();
            let mut read = (target.reader)();
            assert!(!target.seeds.is_empty(), "{name} has no seeds");
            let said: Vec<String> = target.seeds.iter().map(|seed| read(seed)).collect();
            let good = said.iter().filter(|said| said.starts_with("ok")).count();
            assert!(good > 0, "{name}: {said:#?}");
        }
    }
}
