//! Other tools' spellings, and words of ours that this version does not do yet.

use serde_json::{Map, Value};

use super::error::Fault;

/// A spelling of another tool: read as ours where it stands in the section ours belongs to.
pub(super) struct Synonym {
    /// The section as a key path; `*` is any place of a list; empty for the root.
    pub(super) section: &'static str,
    pub(super) theirs: &'static str,
    pub(super) ours: &'static str,
    meaning: Meaning,
}

enum Meaning {
    Same,
    /// True there is false here.
    Inverse,
    /// llm-compressor's words beside true and false.
    Order,
    /// A list of names of which each may be any part of a module's name.
    Parts,
}

/// Something of ours that is planned: never ignored, answered by name.
pub(super) struct Later {
    /// The key path; `*` is any place of a list.
    path: &'static str,
    /// The values that are not there yet; empty for any value.
    values: &'static [&'static str],
    hint: &'static str,
}

const fn same(section: &'static str, theirs: &'static str, ours: &'static str) -> Synonym {
    Synonym {
        section,
        theirs,
        ours,
        meaning: Meaning::Same,
    }
}

const fn turned(section: &'static str, theirs: &'static str, ours: &'static str) -> Synonym {
    Synonym {
        section,
        theirs,
        ours,
        meaning: Meaning::Inverse,
    }
}

const fn order(theirs: &'static str) -> Synonym {
    Synonym {
        section: "quant",
        theirs,
        ours: "desc_act",
        meaning: Meaning::Order,
    }
}

const fn parts(theirs: &'static str) -> Synonym {
    Synonym {
        section: "",
        theirs,
        ours: "ignore",
        meaning: Meaning::Parts,
    }
}

#[rustfmt::skip]
pub(super) const SYNONYMS: &[Synonym] = &[
    same("quant", "w_bit", "bits"),
    same("quant", "wbits", "bits"),
    same("quant", "num_bits", "bits"),
    same("quant", "nbits", "bits"),
    same("quant", "q_group_size", "group_size"),
    same("quant", "groupsize", "group_size"),
    same("quant", "symmetric", "sym"),
    turned("quant", "zero_point", "sym"),
    turned("quant", "asym", "sym"),
    order("actorder"),
    order("act_order"),
    order("act-order"),
    same("quant", "percdamp", "damp_percent"),
    same("quant", "dampening_frac", "damp_percent"),
    same("quant", "bnb_4bit_use_double_quant", "double_quant"),
    same("quant", "use_double_quant", "double_quant"),
    same("quant", "compress_statistics", "double_quant"),
    same("rules.*", "w_bit", "bits"),
    same("rules.*", "wbits", "bits"),
    same("rules.*", "num_bits", "bits"),
    same("rules.*", "nbits", "bits"),
    same("rules.*", "q_group_size", "group_size"),
    same("rules.*", "groupsize", "group_size"),
    same("rules.*", "symmetric", "sym"),
    turned("rules.*", "zero_point", "sym"),
    turned("rules.*", "asym", "sym"),
    same("calibration", "nsamples", "num_samples"),
    same("calibration", "num_calibration_samples", "num_samples"),
    same("calibration", "max_calib_samples", "num_samples"),
    same("calibration", "max_seq_length", "sequence_length"),
    same("calibration", "max_calib_seq_len", "sequence_length"),
    same("calibration", "seqlen", "sequence_length"),
    same("calibration", "seq_len", "sequence_length"),
    same("evaluate", "max_seq_length", "sequence_length"),
    same("evaluate", "seqlen", "sequence_length"),
    same("evaluate", "seq_len", "sequence_length"),
    same("gate", "max_kld", "max_kl"),
    same("", "quant_method", "method"),
    parts("ignore_layers"),
    parts("modules_to_not_convert"),
    same("sweep", "w_bit", "bits"),
    same("sweep", "wbits", "bits"),
    same("sweep", "num_bits", "bits"),
    same("sweep", "nbits", "bits"),
    same("sweep", "q_group_size", "group_size"),
    same("sweep", "groupsize", "group_size"),
    same("sweep", "symmetric", "sym"),
    same("sweep", "quant_method", "method"),
    same("budget", "avg_bits", "bits_per_weight"),
    same("budget", "target_bits", "bits_per_weight"),
    same("budget", "target_bpw", "bits_per_weight"),
];

#[rustfmt::skip]
const LATER: &[Later] = &[
    Later { path: "export.*.format", values: &["gguf", "mlx"], hint: "use compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes" },
];

/// A key that was renamed: where it stands, as ours and as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renamed {
    pub(super) ours: Vec<String>,
    pub(super) written: Vec<String>,
    /// What else became of it, as the end of a sentence; empty for nothing.
    pub(super) note: String,
}

/// Puts our spelling in place of other tools', all through `value`.
pub(super) fn rename(value: &mut Value) -> Result<Vec<Renamed>, Fault> {
    let mut renamed = Vec::new();
    rename_in(value, &mut Vec::new(), &mut renamed)?;
    Ok(renamed)
}

/// What to answer when a value, or a key whatever its value, is planned only.
pub(super) fn later(path: &[String], value: Option<&Value>) -> Option<Fault> {
    let word = match value {
        Some(Value::String(word)) => word.to_lowercase(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let later = LATER.iter().find(|later| {
        fits(later.path, path) && (later.values.is_empty() || later.values.contains(&word.as_str()))
    })?;
    let problem = if later.values.is_empty() {
        "known, but not in this version".to_owned()
    } else {
        format!("`{word}` is known, but not in this version")
    };
    Some(Fault {
        path: path.to_vec(),
        problem,
        hint: Some(later.hint.to_owned()),
    })
}

/// Whether a path fits a pattern with `*` for list places.
pub(super) fn fits(pattern: &str, path: &[String]) -> bool {
    let pattern: Vec<&str> = pattern.split('.').filter(|p| !p.is_empty()).collect();
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(p, s)| *p == "*" || p == s)
}

fn rename_in(
    value: &mut Value,
    path: &mut Vec<String>,
    renamed: &mut Vec<Renamed>,
) -> Result<(), Fault> {
    match value {
        Value::Object(section) => {
            rename_section(section, path, renamed)?;
            for (key, value) in section {
                path.push(key.clone());
                rename_in(value, path, renamed)?;
                path.pop();
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                path.push(index.to_string());
                rename_in(value, path, renamed)?;
                path.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

fn rename_section(
    section: &mut Map<String, Value>,
    path: &[String],
    renamed: &mut Vec<Renamed>,
) -> Result<(), Fault> {
    for synonym in SYNONYMS.iter().filter(|s| fits(s.section, path)) {
        let Some(value) = section.get(synonym.theirs) else {
            continue;
        };
        let written = join(path, synonym.theirs);
        if section.contains_key(synonym.ours) {
            return Err(Fault {
                path: written,
                problem: format!("another name of `{}`, which is given as well", synonym.ours),
                hint: Some(format!("keep `{}`", synonym.ours)),
            });
        }
        let (mut also, mut note) = (None, String::new());
        let value = match (&synonym.meaning, value) {
            (Meaning::Inverse, Value::Bool(flag)) => Value::Bool(!flag),
            (Meaning::Order, Value::String(word)) => match word.as_str() {
                "weight" | "static" => Value::Bool(true),
                "group" | "dynamic" => {
                    also = Some(("static_groups", false));
                    Value::Bool(true)
                }
                "none" => Value::Bool(false),
                _ => value.clone(),
            },
            (Meaning::Parts, Value::Array(names)) => {
                let (patterns, changed) = any_part(names);
                if !changed.is_empty() {
                    note = format!(", each name matching any part of a module's: {changed}");
                }
                Value::Array(patterns)
            }
            _ => value.clone(),
        };
        // shift_remove and not remove: with ordered maps the latter would shuffle the rest.
        section.shift_remove(synonym.theirs);
        section.insert(synonym.ours.to_owned(), value);
        renamed.push(Renamed {
            ours: join(path, synonym.ours),
            written: written.clone(),
            note,
        });
        if let Some((key, flag)) = also
            && !section.contains_key(key)
        {
            section.insert(key.to_owned(), Value::Bool(flag));
            renamed.push(Renamed {
                ours: join(path, key),
                written,
                note: String::new(),
            });
        }
    }
    Ok(())
}

/// Names as patterns that find them anywhere, and in words which of them were changed. The head's is a whole name as it
/// stands, and patterns of ours stay what they are.
fn any_part(names: &[Value]) -> (Vec<Value>, String) {
    let mut changed = Vec::new();
    let patterns = names.iter().map(|name| match name.as_str() {
        Some(word)
            if word != "lm_head" && !word.starts_with("re:") && !word.contains(['*', '?']) =>
        {
            let pattern = format!("re:.*{}", regex::escape(word));
            changed.push(format!("`{word}` as `{pattern}`"));
            Value::String(pattern)
        }
        _ => name.clone(),
    });
    (patterns.collect(), changed.join(", "))
}

fn join(path: &[String], key: &str) -> Vec<String> {
    path.iter().cloned().chain([key.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(mut value: Value, expected: Value) {
        rename(&mut value).unwrap();
        assert_eq!(value, expected);
    }

    #[test]
    fn every_synonym_becomes_ours_in_its_own_section() {
        for synonym in SYNONYMS {
            let section = json!({synonym.theirs: "some"});
            let mut value = match synonym.section {
                "" => section,
                "rules.*" => json!({"rules": [section]}),
                name => json!({name: section}),
            };
            let renamed = rename(&mut value).unwrap();
            assert_eq!(renamed.len(), 1, "{}", synonym.theirs);
            assert_eq!(
                renamed[0].ours.last().map(String::as_str),
                Some(synonym.ours)
            );
            assert_eq!(
                renamed[0].written.last().map(String::as_str),
                Some(synonym.theirs)
            );
        }
    }

    #[test]
    fn zero_point_is_the_inverse_of_sym() {
        check(
            json!({"quant": {"zero_point": true}}),
            json!({"quant": {"sym": false}}),
        );
        check(
            json!({"rules": [{"zero_point": false}]}),
            json!({"rules": [{"sym": true}]}),
        );
    }

    #[test]
    fn orders_by_their_words_become_ours() {
        check(
            json!({"quant": {"actorder": "weight"}}),
            json!({"quant": {"desc_act": true}}),
        );
        check(
            json!({"quant": {"actorder": "group"}}),
            json!({"quant": {"desc_act": true, "static_groups": false}}),
        );
        check(
            json!({"quant": {"act_order": false}}),
            json!({"quant": {"desc_act": false}}),
        );
    }

    #[test]
    fn names_of_modules_left_alone_may_be_parts_of_names() {
        for theirs in ["modules_to_not_convert", "ignore_layers"] {
            let mut value =
                json!({theirs: ["lm_head", "down_proj", "layers.1.", "re:.*q_proj", "*.k_proj"]});
            let renamed = rename(&mut value).unwrap();
            let ours = json!([
                "lm_head",
                "re:.*down_proj",
                r"re:.*layers\.1\.",
                "re:.*q_proj",
                "*.k_proj"
            ]);
            assert_eq!(value, json!({"ignore": ours}));
            assert_eq!(
                renamed[0].note,
                r", each name matching any part of a module's: `down_proj` as `re:.*down_proj`, `layers.1.` as `re:.*layers\.1\.`"
            );
        }
    }

    #[test]
    fn a_synonym_in_another_section_is_left_for_the_schema_to_refuse() {
        check(
            json!({"calibration": {"w_bit": 4}}),
            json!({"calibration": {"w_bit": 4}}),
        );
    }
}
