//! Ctrl-C: the screen is left whole, what is kept is told, and the program ends at once.
//!
//! The signal is waited for by a thread of its own rather than handled, because a handler may neither lock nor print. What
//! a run has written is whole at every moment, so nothing has to be finished first.

use crate::progress::Screen;

/// Has SIGINT tell what is kept and end the program with exit code 130. To be called before any other thread is started:
/// threads inherit that the signal is blocked for them.
#[cfg(unix)]
pub(crate) fn watch(screen: Screen) {
    // SAFETY: all zeros is a value of these plain structures, and the calls only read or write what they are handed.
    let interrupts = unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(libc::SIGINT, std::ptr::null(), &mut now) == 0;
        // Started by `nohup` or in the background of a script: the signal is not meant for us.
        if !known || now.sa_sigaction == libc::SIG_IGN {
            return;
        }
        let mut interrupts: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut interrupts);
        libc::sigaddset(&mut interrupts, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &interrupts, std::ptr::null_mut());
        interrupts
    };
    let wait = move || {
        let mut signal = 0;
        // SAFETY: as above; the mask changed is this thread's own.
        unsafe {
            if libc::sigwait(&interrupts, &mut signal) != 0 {
                return;
            }
            // A second Ctrl-C kills, should what follows ever wait for something.
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &interrupts, std::ptr::null_mut());
        }
        screen.interrupted();
        // SAFETY: ends the process without running what other threads may be in the middle of.
        unsafe { libc::_exit(130) }
    };
    let started = std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(wait);
    if started.is_err() {
        // Without the thread Ctrl-C must still end the program.
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &interrupts, std::ptr::null_mut()) };
    }
}

/// Elsewhere the system ends the program, without a word.
#[cfg(not(unix))]
pub(crate) fn watch(_screen: Screen) {}
