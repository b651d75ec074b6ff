//! What the process has used, and where the time of a run went.

use std::collections::BTreeMap;
use std::time::Instant;

use halfbyte_report::PhaseRecord;

/// Processor seconds and peak memory of this process so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// Reads the process's own accounts; zeros where the system keeps none.
pub(crate) fn usage() -> Usage {
    #[cfg(unix)]
    {
        // SAFETY: rusage is plain data for which all zeros is a value, and getrusage only writes into it.
        let (done, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::getrusage(libc::RUSAGE_SELF, &mut usage), usage)
        };
        if done == 0 {
            let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
            // Linux counts kibibytes, macOS bytes.
            let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
            return Usage {
                cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
                peak_rss_bytes: usage.ru_maxrss as u64 * unit,
            };
        }
    }
    Usage::default()
}

/// Wall and processor seconds by phase, and by how much the peak memory grew in it.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    phases: BTreeMap<&'static str, (f64, f64, u64)>,
}

impl Clock {
    /// Runs `work` and books its time under `phase`.
    pub(crate) fn time<T>(&mut self, phase: &'static str, work: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), usage());
        let result = work();
        let (seconds, after) = (start.elapsed().as_secs_f64(), usage());
        let entry = self.phases.entry(phase).or_default();
        entry.0 += seconds;
        entry.1 += after.cpu_seconds - before.cpu_seconds;
        entry.2 += after.peak_rss_bytes - before.peak_rss_bytes;
        result
    }

    /// All phases, longest first.
    pub(crate) fn phases(&self) -> Vec<PhaseRecord> {
        let mut phases: Vec<PhaseRecord> = self
            .phases
            .iter()
            .map(|(name, &(seconds, cpu_seconds, growth))| PhaseRecord {
                name: (*name).to_owned(),
                seconds,
                cpu_seconds,
                peak_rss_growth_bytes: growth,
            })
            .collect();
        phases.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        phases
    }
}

/// Has a write beyond the largest file that a limit allows (`ulimit -f`) fail with an error that can be told, instead of
/// ending the process with its files half-written.
pub fn tell_of_file_limits() {
    #[cfg(unix)]
    // SAFETY: a signal of this process is ignored; nothing else of it is changed.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Has the C library's allocator keep what is freed, where that is glibc.
///
/// Activations of a batch are some megabytes each, and glibc would fetch every one from the system and hand it back: the
/// page faults of it took 5 % of a run.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers; it is called before there are other threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
    }
}
