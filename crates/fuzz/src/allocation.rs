//! Every allocation of the process, counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// More than this held at once ends the process: a machine that runs out of memory ends others too.
const HARD_LIMIT: usize = 2 << 30;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts `more` bytes if they may be had.
fn take(more: usize) -> bool {
    let held = HELD.fetch_add(more, Relaxed) + more;
    if held > HARD_LIMIT {
        HELD.fetch_sub(more, Relaxed);
        return false;
    }
    PEAK.fetch_max(held, Relaxed);
    true
}

// SAFETY: all memory is the system's; nothing but a count is added, and a refusal is the null pointer that the trait names.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && !take(size - layout.size()) {
            return std::ptr::null_mut();
        }
        if size < layout.size() {
            HELD.fetch_sub(layout.size() - size, Relaxed);
        }
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What a piece of work held at most, above what was held before it.
pub(crate) struct Peak {
    before: usize,
}

impl Peak {
    pub(crate) fn start() -> Self {
        let before = HELD.load(Relaxed);
        PEAK.store(before, Relaxed);
        Self { before }
    }

    pub(crate) fn bytes(&self) -> usize {
        PEAK.load(Relaxed).saturating_sub(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_held_at_once() {
        let peak = Peak::start();
        for _ in 0..10 {
            std::hint::black_box(vec![1u8; 5 << 20]);
        }
        // other tests of this process allocate too
        let found = peak.bytes();
        assert!((5 << 20..HARD_LIMIT).contains(&found), "{found}");
    }

    #[test]
    fn what_passes_the_limit_is_refused() {
        let mut much = Vec::<u8>::new();
        assert!(much.try_reserve_exact(HARD_LIMIT + 1).is_err());
        assert!(HELD.load(Relaxed) < HARD_LIMIT);
    }
}
