//! Lines broken at spaces where they are longer than the terminal is wide.

use std::borrow::Cow;

/// Columns of a summary's label, the space behind it included.
const LABEL: usize = 16;
/// Narrower terminals are left to break lines themselves.
const NARROWEST: usize = 40;

/// The text with no line longer than `width` where a space allows it. What follows in a summary stands below its text, and
/// elsewhere two columns further in than the line began.
pub(crate) fn wrap(text: &str, width: usize) -> Cow<'_, str> {
    let is_long = |line: &str| line.chars().count() > width;
    if width < NARROWEST || !text.lines().any(is_long) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<String> = text
        .lines()
        .map(|line| match is_long(line) {
            true => wrap_line(line, width),
            false => line.to_owned(),
        })
        .collect();
    Cow::Owned(lines.join("\n"))
}

fn wrap_line(line: &str, width: usize) -> String {
    let indent = " ".repeat(indent(line));
    let mut out = String::new();
    let mut rest = line;
    loop {
        let room = width - if out.is_empty() { 0 } else { indent.len() };
        // Where the room ends, in bytes, and one character more: a space may stand right behind the last one that fits.
        let fits = |text: &str, n: usize| text.char_indices().nth(n).map(|(at, _)| at);
        let Some(end) = fits(rest, room) else {
            break;
        };
        let begin = rest.len() - rest.trim_start().len();
        // In a summary the label's own spaces are no place to break.
        let first = match out.is_empty() {
            true => fits(rest, indent.len()).unwrap_or(begin).max(begin),
            false => begin,
        };
        let space = rest[..end + rest[end..].chars().next().map_or(0, char::len_utf8)]
            .rfind(' ')
            .filter(|&at| at > first)
            // A word too long for a line of its own, such as a path, stays whole.
            .or_else(|| rest[end..].find(' ').map(|at| end + at));
        let Some(space) = space else {
            break;
        };
        out += rest[..space].trim_end();
        out += "\n";
        out += &indent;
        rest = rest[space..].trim_start();
    }
    out + rest
}

/// Where the following lines begin.
fn indent(line: &str) -> usize {
    let mut label = line.chars().skip(LABEL - 2);
    if [label.next(), label.next()] == [Some(' '); 2] && label.next() != Some(' ') {
        return LABEL;
    }
    line.len() - line.trim_start().len() + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_broken_below_its_text_and_other_lines_two_columns_in() {
        assert_eq!(
            wrap(
                "calibration     29 491 tokens, 3 584 of them random\nshort\n\
                 warning: a long line of words that goes on\n  vLLM: loads it, and this goes on and on",
                40
            ),
            "calibration     29 491 tokens, 3 584 of\n                them random\nshort\n\
             warning: a long line of words that goes\n  on\n  vLLM: loads it, and this goes on and\n    on"
        );
    }

    #[test]
    fn what_fits_and_what_has_no_space_stays_as_it_is() {
        let exact = "a".repeat(20) + " " + &"b".repeat(19);
        let path = format!("written         /{}", "long/".repeat(10));
        for text in ["", "one\ntwo\n", &exact, &path] {
            assert_eq!(wrap(text, 40), text);
        }
        // too narrow to be read either way
        assert_eq!(wrap("a b c d", 3), "a b c d");
        assert_eq!(
            wrap(&format!("{path} (awq, 4.0 MiB)"), 40),
            format!("{path}\n                (awq, 4.0 MiB)")
        );
    }

    #[test]
    fn no_line_is_longer_than_asked_and_no_word_is_lost() {
        let words: Vec<String> = (1..120).map(|n| "ä".repeat(n % 13 + 1)).collect();
        let text = words.join(" ");
        for width in 40..100 {
            let wrapped = wrap(&text, width);
            assert!(wrapped.lines().all(|line| line.chars().count() <= width));
            assert!(wrapped.split_whitespace().eq(text.split_whitespace()));
        }
    }
}
