//! Panics of dependencies that read what others wrote, turned into errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokenizers::{Encoding, Tokenizer};

thread_local! {
    /// How many calls of [`caught`] this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}
/// The same of all threads.
static ANYWHERE: AtomicUsize = AtomicUsize::new(0);

/// Runs what a dependency does with a file that may be damaged in ways it does not foresee: its panic comes back as an error
/// with the panic's words. A panic hook that asks [`is_caught`] keeps silent about it.
///
/// What `work` was about to change must not be used after an error.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
            ANYWHERE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    ANYWHERE.fetch_add(1, Ordering::SeqCst);
    let inside = Inside;
    let outcome = catch_unwind(AssertUnwindSafe(work));
    drop(inside);
    outcome.map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        words.unwrap_or("no reason given").to_owned()
    })
}

/// Whether a panic at this place is one that [`caught`] makes an error of: this thread is in it, or another one is and the
/// panic is a dependency's, which may have spread its work over threads.
pub fn is_caught(at: Option<&Location<'_>>) -> bool {
    let of_dependency = at.is_some_and(|at| at.file().contains("/registry/src/"));
    DEPTH.get() > 0 || (of_dependency && ANYWHERE.load(Ordering::SeqCst) > 0)
}

/// The ids of a text; `special` has the tokenizer add what it opens and closes texts with.
///
/// # Errors
/// The tokenizer's own, and its panic on a tokenizer.json that contradicts itself, which shows only with some texts.
pub fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, String> {
    match caught(|| tokenizer.encode_fast(text, special)) {
        Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(contradicts(&panic)),
    }
}

/// A text's tokens together with the bytes that each stands for, without special ones.
///
/// # Errors
/// As [`encode`].
pub fn encode_placed(tokenizer: &Tokenizer, text: &str) -> Result<Encoding, String> {
    match caught(|| tokenizer.encode(text, false)) {
        Ok(encoding) => encoding.map_err(|error| error.to_string()),
        Err(panic) => Err(contradicts(&panic)),
    }
}

/// The text of some ids, special tokens left out where `skip_special`.
///
/// # Errors
/// As [`encode`].
pub fn decode(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Result<String, String> {
    match caught(|| tokenizer.decode(ids, skip_special)) {
        Ok(text) => text.map_err(|error| error.to_string()),
        Err(panic) => Err(contradicts(&panic)),
    }
}

/// What a tokenizer's panic means.
fn contradicts(panic: &str) -> String {
    format!("tokenizer.json contradicts itself ({panic}); copy or download it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        let found = caught(|| {
            assert!(is_caught(None));
            let list = [1];
            list[std::hint::black_box(3)]
        });
        assert!(found.unwrap_err().contains("index is 3"));
        assert_eq!(caught(|| 7), Ok(7));
        assert!(!is_caught(None));
        // one inside the other
        let outer = caught(|| caught(|| panic!("inner")).map(|()| 1));
        assert_eq!(outer, Ok(Err("inner".to_owned())));
        assert!(!is_caught(None));
    }
}
