//! Branches taken, where the workspace was compiled with counters (`coverage.sh`); otherwise there are none.
//!
//! LLVM's pass gives every block a byte that it counts up, and names each run of such bytes to the function below when the
//! program starts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

static COUNTERS: Mutex<Vec<&'static [AtomicU8]>> = Mutex::new(Vec::new());

/// What LLVM's pass has every object file call before the program starts.
///
/// # Safety
/// `start` and `stop` are the ends of an array of bytes that lasts as long as the program, and only counters touch it.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "the linker reaches it")]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(
    start: *const AtomicU8,
    stop: *const AtomicU8,
) {
    let length = (stop as usize).saturating_sub(start as usize);
    if start.is_null() || length == 0 {
        return;
    }
    // SAFETY: the caller's promise; an atomic byte has a byte's size and alignment.
    let counters = unsafe { std::slice::from_raw_parts(start, length) };
    if let Ok(mut all) = COUNTERS.lock()
        && !all.iter().any(|known| known.as_ptr() == counters.as_ptr())
    {
        all.push(counters);
    }
}

/// Which counts of which blocks were met so far.
pub(crate) struct Coverage {
    /// A bit for each of eight sizes of a count.
    seen: Vec<u8>,
}

impl Coverage {
    pub(crate) fn new() -> Self {
        let all = COUNTERS.lock();
        let length = all.map_or(0, |all| all.iter().map(|c| c.len()).sum());
        Self {
            seen: vec![0; length],
        }
    }

    /// Blocks with a counter.
    pub(crate) fn blocks(&self) -> usize {
        self.seen.len()
    }

    /// Blocks met.
    pub(crate) fn met(&self) -> usize {
        self.seen.iter().filter(|&&seen| seen != 0).count()
    }

    /// Sets all counts to 0.
    pub(crate) fn clear(&self) {
        let Ok(all) = COUNTERS.lock() else { return };
        for counter in all.iter().flat_map(|counters| counters.iter()) {
            counter.store(0, Relaxed);
        }
    }

    /// Whether a block was met, or was met as often, for the first time since the beginning.
    pub(crate) fn is_new(&mut self) -> bool {
        let Ok(all) = COUNTERS.lock() else {
            return false;
        };
        let counters = all.iter().flat_map(|counters| counters.iter());
        let mut new = false;
        for (counter, seen) in counters.zip(&mut self.seen) {
            let count = counter.load(Relaxed);
            if count == 0 {
                continue;
            }
            let bit = 1u8 << (7 - count.leading_zeros());
            if *seen & bit == 0 {
                *seen |= bit;
                new = true;
            }
        }
        new
    }
}
