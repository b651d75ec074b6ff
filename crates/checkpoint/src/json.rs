//! JSON as model folders hold it: editors write a byte order mark before it, and Python's `json` writes `NaN`,
//! `Infinity` and `-Infinity`, which JSON does not have.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use crate::{CheckpointError, Result};

/// Numbers that Python writes and JSON lacks, longest first.
const NO_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text without a byte order mark.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// A file's text as JSON that any parser takes: without a byte order mark, and with `NaN`, `Infinity` and `-Infinity` as
/// strings of that spelling, so that they are refused where a number is wanted and passed over elsewhere.
pub fn plain_json(text: &[u8]) -> Cow<'_, [u8]> {
    without_no_numbers(without_mark(text), &|word| format!("\"{word}\""))
}

/// Parses JSON, naming the file and the place in it.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(text: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(&plain_json(text)).map_err(|error| CheckpointError::Json {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Parses JSON to a value that can be written again, null in the place of what is no number; and each such key, dotted, with
/// what stood there.
pub(crate) fn parse_value(text: &[u8], path: &Path) -> Result<(Value, Vec<String>)> {
    let spelled: Value = parse_json(text, path)?;
    let with_null = without_no_numbers(without_mark(text), &|_| "null".to_owned());
    let written: Value = parse_json(&with_null, path)?;
    let mut found = Vec::new();
    differences(&spelled, &written, "", &mut found);
    Ok((written, found))
}

/// Where a string became null.
fn differences(spelled: &Value, written: &Value, place: &str, found: &mut Vec<String>) {
    let below = |key: &str| match place.is_empty() {
        true => key.to_owned(),
        false => format!("{place}.{key}"),
    };
    match (spelled, written) {
        (Value::String(word), Value::Null) => found.push(format!("{place} is {word}")),
        (Value::Object(a), Value::Object(b)) => {
            for ((key, a), b) in a.iter().zip(b.values()) {
                differences(a, b, &below(key), found);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &below(&index.to_string()), found);
            }
        }
        _ => {}
    }
}

/// Puts something else in the place of every word of [`NO_NUMBERS`] that stands outside of strings.
fn without_no_numbers<'a>(text: &'a [u8], instead: &dyn Fn(&str) -> String) -> Cow<'a, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while at < text.len() {
        match text[at] {
            b'\\' if in_string => at += 2,
            b'"' => {
                in_string = !in_string;
                at += 1;
            }
            _ if in_string => at += 1,
            _ => {
                let rest = &text[at..];
                let word = NO_NUMBERS
                    .into_iter()
                    .find(|w| rest.starts_with(w.as_bytes()));
                let Some(word) = word else {
                    at += 1;
                    continue;
                };
                out.extend_from_slice(&text[copied..at]);
                out.extend_from_slice(instead(word).as_bytes());
                at += word.len();
                copied = at;
            }
        }
    }
    match copied {
        0 => Cow::Borrowed(text),
        _ => {
            out.extend_from_slice(&text[copied..]);
            Cow::Owned(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(text: &str, wanted: Value, named: &[&str]) {
        let (found, names) = parse_value(text.as_bytes(), Path::new("config.json")).unwrap();
        assert_eq!(found, wanted, "{text}");
        assert_eq!(names, named, "{text}");
        // what is given back is JSON
        let written = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), wanted);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        check("\u{feff}{\"a\": 1}", json!({"a": 1}), &[]);
    }

    #[test]
    fn what_is_no_number_becomes_null_and_is_named() {
        check(
            r#"{"a": NaN, "b": [1.5, -Infinity], "c": {"d": Infinity}, "e": 2}"#,
            json!({"a": null, "b": [1.5, null], "c": {"d": null}, "e": 2}),
            &["a is NaN", "b.1 is -Infinity", "c.d is Infinity"],
        );
    }

    #[test]
    fn the_same_words_in_strings_stay() {
        let text = r#"{"NaN": "Infinity", "q": "a \" NaN \\", "n": null}"#;
        check(
            text,
            json!({"NaN": "Infinity", "q": "a \" NaN \\", "n": null}),
            &[],
        );
        assert!(matches!(
            plain_json(text.as_bytes()),
            Cow::Borrowed(same) if same == text.as_bytes()
        ));
    }

    #[test]
    fn where_a_number_is_wanted_they_are_refused() {
        let path = Path::new("config.json");
        let found = parse_json::<f64>(b"Infinity", path).unwrap_err();
        assert!(found.to_string().contains("\"Infinity\""), "{found}");
        assert!(parse_json::<Value>(b"{\"a\": Infinite}", path).is_err());
        assert!(parse_json::<Value>(b"{\"a\": \"cut \\", path).is_err());
    }
}
