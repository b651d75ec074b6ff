use serde_json::Value;

/// A JSON value as YAML in block style. Words that YAML reads as themselves stand bare, all other scalars as JSON, which
/// YAML reads too.
pub(crate) fn yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                *out += &format!("{indent}{}:", word(key));
                entry(value, depth + 1, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                *out += &format!("{indent}-");
                entry(value, depth + 1, out);
            }
        }
        scalar => *out += &format!("{indent}{}\n", flow(scalar)),
    }
}

/// What follows `key:` or `-`: a scalar or a list of scalars on the line, anything else below it.
fn entry(value: &Value, depth: usize, out: &mut String) {
    let plain = |v: &Value| !v.is_object() && !v.is_array();
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, depth, out);
        }
        Value::Array(list) if !list.iter().all(plain) => {
            out.push('\n');
            block(value, depth, out);
        }
        _ => *out += &format!(" {}\n", flow(value)),
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

/// Bare where it begins with a letter, a slash or a dot and holds only letters, digits and `_-./`, and is none of YAML's
/// own words.
fn word(text: &str) -> String {
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '.')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./+".contains(c))
        && ![
            "true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan",
        ]
        .contains(&text.to_ascii_lowercase().as_str());
    // A bare `.5` would be a number.
    let number = text
        .trim_start_matches('.')
        .starts_with(|c: char| c.is_ascii_digit());
    if bare && !number {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_become_block_style() {
        let value = json!({
            "model": {"source": "./models/x"},
            "calibration": {"sources": [{"path": "a b.txt", "weight": 1.0}, {"dataset": "org/d"}]},
            "method": "awq+gptq",
            "quant": {"bits": 4, "sym": true},
            "rules": [],
            "ignore": ["lm_head", "re:.*"],
            "tune": {"epochs": "auto", "x": "true", "w": ".5", "z": null},
            "gate": {},
        });
        assert_eq!(
            yaml(&value),
            "\
model:
  source: ./models/x
calibration:
  sources:
    -
      path: \"a b.txt\"
      weight: 1.0
    -
      dataset: org/d
method: awq+gptq
quant:
  bits: 4
  sym: true
rules: []
ignore: [lm_head, \"re:.*\"]
tune:
  epochs: auto
  x: \"true\"
  w: \".5\"
  z: null
gate: {}
"
        );
    }
}
