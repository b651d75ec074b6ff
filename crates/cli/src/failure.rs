//! How the program fails: in words, with a remedy, by exit code.

use std::fmt::Write;
use std::panic::PanicHookInfo;

use halfbyte_pipeline::hint;

/// The error with its causes in one line, then the remedy on one of its own.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut last = String::new();
    for (index, cause) in error.chain().map(ToString::to_string).enumerate() {
        // Errors that already tell their cause would tell it twice.
        if index > 0 && last.contains(&cause) {
            continue;
        }
        let separator = if index > 0 { ": " } else { "" };
        text.push_str(separator);
        text.push_str(&cause);
        last = cause;
    }
    if let Some(hint) = hint(error) {
        text.push_str("\nhint: ");
        text.push_str(&hint);
    }
    text
}

/// Makes a panic say that it is a bug, where, and how to report it. The backtrace comes only when asked for.
pub(crate) fn set_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        // A dependency met a file it cannot read; that is told as the file's error.
        if halfbyte_pipeline::is_caught(info.location()) {
            return;
        }
        let mut text = describe_panic(info);
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            let backtrace = std::backtrace::Backtrace::force_capture();
            let _ = write!(text, "\n{backtrace}");
        }
        crate::print_error(&text);
    }));
}

fn describe_panic(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!(
        "internal error (a bug in halfbyte): {message}\n  at {place}, version {}\nhint: please report it with the \
         pipeline file and these lines; finished blocks are kept, so running again goes on from there. \
         RUST_BACKTRACE=1 shows how it came to it",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use halfbyte_pipeline::user_error;

    #[test]
    fn an_error_prints_its_causes_in_one_line_and_its_remedy_below() {
        let error = Err::<(), _>(user_error("bits: found 9, wanted 4", "use 4"))
            .context("block 3, q_proj")
            .unwrap_err();
        assert_eq!(
            describe(&error),
            "error: block 3, q_proj: bits: found 9, wanted 4\nhint: use 4"
        );
    }

    #[test]
    fn a_cause_told_already_is_not_told_twice() {
        #[derive(Debug)]
        struct Outer(std::fmt::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "outer: {}", self.0)
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = anyhow::Error::new(Outer(std::fmt::Error));
        assert_eq!(
            describe(&error),
            format!("error: outer: {}", std::fmt::Error)
        );
    }
}
