//! Text as HTML.

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
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
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
