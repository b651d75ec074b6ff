//! By how much a tokenizer may lengthen a text before it looks for tokens.

use serde::Deserialize;
use serde_json::Value;

/// More than any tokenizer in use: those that write spaces as `▁` come to three, and bytes as letters to two.
pub(crate) const MOST: f64 = 1000.0;

/// The parts of tokenizer.json that rewrite text.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// The factor by which tokenizer.json may lengthen a text: steps follow each other, so that their factors multiply, and thirty
/// harmless ones fill any memory. 1 where it cannot be read, which is told by who reads all of it.
pub(crate) fn growth(text: &[u8]) -> f64 {
    let Ok(parts) = serde_json::from_slice::<Parts>(text) else {
        return 1.0;
    };
    let before = of(&parts.normalizer) * of(&parts.pre_tokenizer);
    before.max(of(&parts.decoder))
}

/// The factor of a step, or of a sequence of them.
fn of(step: &Value) -> f64 {
    let all: f64 = ["normalizers", "pretokenizers", "decoders"]
        .iter()
        .filter_map(|list| step.get(*list)?.as_array())
        .flatten()
        .map(of)
        .product();
    let bytes = |key: &str| step.get(key).and_then(Value::as_str).map(str::len);
    let own = match step.get("type").and_then(Value::as_str) {
        // a byte as a letter of two
        Some("ByteLevel") => 2.0,
        Some("Replace") => {
            let from = step
                .get("pattern")
                .and_then(|pattern| pattern.get("String"));
            // a regular expression may match nothing, before every letter
            let from = from.and_then(Value::as_str).map_or(0, str::len);
            let to = bytes("content").unwrap_or(0) as f64;
            match from {
                0 => 1.0 + to,
                from => to / from as f64,
            }
        }
        Some("Prepend") => 1.0 + bytes("prepend").unwrap_or(0) as f64 / 64.0,
        Some("Metaspace") => bytes("replacement").unwrap_or(1) as f64,
        _ => 1.0,
    };
    all * own.max(1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn factors_of_steps_multiply() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let byte_level = json!({"type": "ByteLevel"});
        let of_parts = |normalizer: Value, pre_tokenizer: Value| {
            let file =
                json!({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": {}});
            growth(file.to_string().as_bytes())
        };
        assert_eq!(of_parts(json!(null), json!(null)), 1.0);
        assert_eq!(of_parts(replace.clone(), byte_level.clone()), 6.0);
        let shorter = json!({"type": "Replace", "pattern": {"String": "``"}, "content": "\""});
        assert_eq!(of_parts(shorter, json!(null)), 1.0);
        let many = json!({"type": "Sequence", "pretokenizers": vec![byte_level; 30]});
        assert!(of_parts(json!(null), many) > MOST);
        let nested = json!({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replace.clone(), replace]}]});
        assert_eq!(of_parts(nested, json!(null)), 9.0);
        assert_eq!(growth(b"no JSON"), 1.0);
    }
}
