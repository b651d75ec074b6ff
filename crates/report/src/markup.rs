//! Text from files as what shows it takes it: HTML, a terminal, Markdown.

use std::borrow::Cow;

/// Whether a character commands what shows it instead of being shown: control characters but for line ends and tabs, and
/// those that turn the direction of what follows.
fn commands(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// Text as it may go to a terminal or into a file that is shown on one: an escape byte in a tensor's name, say, stands there as
/// `\u{1b}` and does nothing. Line ends and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match commands(c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Text as the content of an element or the value of a quoted attribute: whatever a name or a token holds shows as
/// itself and does nothing.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no way to write the other control characters.
            c if commands(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A value with as many digits as a person reads: three significant ones, as a power of ten where it is small.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "no number".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    if size < 0.001 {
        return format!("{value:.2e}");
    }
    let digits = (2 - size.log10().floor() as i32).clamp(0, 5) as usize;
    format!("{value:.digits$}")
}

/// `3 linears`, `1 linear`.
pub(crate) fn counted(n: usize, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(
            escape("<a href=\"x\" id='y'>&\u{7}\n"),
            "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;\u{fffd}\n"
        );
    }

    #[test]
    fn no_text_commands_a_terminal() {
        let plain = "model.layers.0\n\tµ ± 日本 \u{1f680}";
        assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
        assert_eq!(
            printable("a\u{1b}[2J\u{7}\r\u{9b}1m\u{202e}b"),
            "a\\u{1b}[2J\\u{7}\\u{d}\\u{9b}1m\\u{202e}b"
        );
    }

    #[test]
    fn values_have_three_digits() {
        let shown = [
            0.0,
            0.000_355_1,
            0.0355,
            1.2345,
            93.94,
            1234.5,
            -0.5,
            f64::NAN,
        ]
        .map(short);
        assert_eq!(
            shown,
            [
                "0",
                "3.55e-4",
                "0.0355",
                "1.23",
                "93.9",
                "1234",
                "-0.500",
                "no number"
            ]
        );
        assert_eq!(counted(1, "linear") + &counted(2, "run"), "1 linear2 runs");
    }

    /// The elements of a page in order, as `name attributes`, after checking that every one is closed where it should
    /// be. Style and script are passed over.
    pub(crate) fn elements(page: &str) -> Vec<String> {
        let (mut open, mut found) = (Vec::new(), Vec::new());
        let mut rest = page;
        while let Some(start) = rest.find('<') {
            assert!(
                !rest[..start].contains('>'),
                "loose > in {:?}",
                &rest[..start]
            );
            let end = rest[start..].find('>').expect("a tag that does not end") + start;
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            assert!(!tag.contains('<'), "loose < before {tag:?}");
            if tag.starts_with('!') {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name.to_owned()), "closing {name}");
                continue;
            }
            let name = tag.split([' ', '\n', '/']).next().unwrap_or_default();
            found.push(tag.to_owned());
            if !tag.ends_with('/') {
                open.push(name.to_owned());
            }
            if matches!(name, "style" | "script") {
                let close = format!("</{name}>");
                rest = &rest[rest.find(&close).expect("an end of style or script")..];
            }
        }
        assert!(open.is_empty(), "not closed: {open:?}");
        found
    }
}
