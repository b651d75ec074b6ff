//! Holds a value against the schema of the mirror and says in words what is wrong where.
//!
//! A general validator would say as much in the schema's terms; the few keywords our mirror produces are read here,
//! so that the mirror stays the only list of keys and ranges.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::{Fault, any_of};
use super::file::PipelineFile;
use super::synonyms::{home, later};

/// The JSON Schema of the pipeline file.
pub(super) fn schema() -> Value {
    schemars::schema_for!(PipelineFile).to_value()
}

/// The keys of the section at `path`, by their schemas; none where there is no section.
pub(super) fn keys<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Map<String, Value>> {
    (at(schema, path).into_iter()).find_map(|schema| schema["properties"].as_object())
}

/// Whether a list may stand at `path`.
pub(super) fn is_list(schema: &Value, path: &[String]) -> bool {
    at(schema, path)
        .iter()
        .any(|schema| kind(schema) == "array")
}

/// A word or number as the schema has it at `path`, where it is written otherwise but leaves no doubt: a number or a truth
/// in quotes, a whole number with `.0`, a word in other letters. None where it fits as it is, or not at all.
pub(super) fn respell(schema: &Value, path: &[String], value: &Value) -> Option<Value> {
    let wanted = at(schema, path);
    let fits = |value: &Value| wanted.iter().any(|schema| accepts_scalar(value, schema));
    if wanted.is_empty() || fits(value) {
        return None;
    }
    let found = match value {
        Value::Number(number) => {
            let whole = number
                .as_f64()
                .filter(|n| n.fract() == 0.0 && n.abs() < 1e15)?;
            Value::from(whole as i64)
        }
        Value::String(word) => {
            let word = word.trim();
            let plain = |word: &str| word.to_lowercase().replace('_', "-");
            let mut listed = wanted.iter().flat_map(|schema| words(schema));
            let same = listed.find(|listed| plain(listed) == plain(word));
            match (same, plain(word).as_str(), word.parse::<i64>()) {
                (Some(same), ..) => Value::from(same),
                (_, "true", _) => Value::Bool(true),
                (_, "false", _) => Value::Bool(false),
                (.., Ok(whole)) => Value::from(whole),
                _ => {
                    let number = word.parse::<f64>().ok().filter(|n| n.is_finite())?;
                    match number.fract() == 0.0 && number.abs() < 1e15 {
                        true => Value::from(number as i64),
                        false => Value::from(number),
                    }
                }
            }
        }
        _ => return None,
    };
    fits(&found).then_some(found)
}

/// The schemas of which a value at `path` needs to fit one; list places are numbers or `*`.
fn at<'a>(schema: &'a Value, path: &[String]) -> Vec<&'a Value> {
    let walk = Walk { root: schema };
    path.iter().fold(walk.alternatives(schema), |schemas, key| {
        let inner = |schema: &&'a Value| match kind(schema) {
            "array" => Some(&schema["items"]),
            _ => schema["properties"].get(key),
        };
        let inner = schemas.iter().filter_map(inner);
        inner.flat_map(|schema| walk.alternatives(schema)).collect()
    })
}

/// The first thing in `value` that the schema does not allow.
pub(super) fn validate(value: &Value, schema: &Value) -> Result<(), Fault> {
    Walk { root: schema }.value(value, schema, &[])
}

struct Walk<'a> {
    root: &'a Value,
}

impl<'a> Walk<'a> {
    fn value(&self, value: &Value, schema: &'a Value, path: &[String]) -> Result<(), Fault> {
        if let Some(fault) = later(path, Some(value)) {
            return Err(fault);
        }
        let alternatives = self.alternatives(schema);
        let mut fitting = alternatives.iter().filter(|s| accepts_kind(value, s));
        match (value, fitting.next()) {
            (Value::Object(section), Some(schema)) => self.section(section, schema, path),
            (Value::Array(list), Some(schema)) => self.list(list, schema, path),
            // A word or number fits one of the alternatives of its kind, or none.
            (_, Some(_)) if alternatives.iter().any(|s| accepts_scalar(value, s)) => Ok(()),
            _ => Err(mismatch(value, &alternatives, path)),
        }
    }

    fn section(
        &self,
        section: &Map<String, Value>,
        schema: &'a Value,
        path: &[String],
    ) -> Result<(), Fault> {
        let empty = Map::new();
        let known = schema["properties"].as_object().unwrap_or(&empty);
        for (key, value) in section {
            let path = join(path, key);
            match schema["properties"].get(key) {
                Some(schema) => self.value(value, schema, &path)?,
                None => {
                    return Err(later(&path, Some(value))
                        .unwrap_or_else(|| self.unknown(key, known, &path)));
                }
            }
        }
        let required = schema["required"].as_array().into_iter().flatten();
        match required
            .filter_map(Value::as_str)
            .find(|key| !section.contains_key(*key))
        {
            None => Ok(()),
            Some(key) => Err(Fault {
                path: join(path, key),
                problem: "missing".to_owned(),
                hint: schema["properties"][key]["description"]
                    .as_str()
                    .map(|description| format!("`{key}`: {}", lowered(description))),
            }),
        }
    }

    fn list(&self, list: &[Value], schema: &'a Value, path: &[String]) -> Result<(), Fault> {
        if (list.len() as u64) < schema["minItems"].as_u64().unwrap_or(0) {
            return Err(Fault {
                path: path.to_vec(),
                problem: "found an empty list, wanted at least one entry".to_owned(),
                hint: Some("leave the key out to have its default".to_owned()),
            });
        }
        for (index, value) in list.iter().enumerate() {
            self.value(value, &schema["items"], &join(path, &index.to_string()))?;
        }
        Ok(())
    }

    /// The schemas of which a value needs to fit one, references followed, null left out: an empty key is an absent one.
    fn alternatives(&self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(name) = schema["$ref"].as_str() {
            let pointer = name.trim_start_matches('#');
            return self
                .root
                .pointer(pointer)
                .map_or_else(Vec::new, |target| self.alternatives(target));
        }
        let several = schema.get("anyOf").or_else(|| schema.get("oneOf"));
        match several.and_then(Value::as_array) {
            None => vec![schema],
            Some(several) => several
                .iter()
                .flat_map(|schema| self.alternatives(schema))
                .filter(|schema| schema["type"] != "null")
                .collect(),
        }
    }

    fn unknown(&self, key: &str, known: &Map<String, Value>, path: &[String]) -> Fault {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let hint = if let Some(home) = self.elsewhere(key) {
            match later(&split(&home), None) {
                Some(_) => format!("`{key}` is `{home}` here, known but not in this version"),
                None => format!("`{key}` is `{home}` here"),
            }
        } else if let Some(near) = nearest(key, &names) {
            format!("did you mean `{near}`?")
        } else {
            format!("known here: {}", names.join(", "))
        };
        Fault {
            path: path.to_vec(),
            problem: "unknown key".to_owned(),
            hint: Some(hint),
        }
    }

    /// Where a key belongs that stands in a section that does not know it.
    fn elsewhere(&self, key: &str) -> Option<String> {
        if let Some(home) = home(key) {
            return Some(home);
        }
        let mut homes = BTreeMap::new();
        self.homes(self.root, "", &mut homes);
        homes.remove(key)
    }

    /// Every key of the sections that are no lists, with its whole path; the outermost, first section wins.
    fn homes(&self, schema: &'a Value, prefix: &str, homes: &mut BTreeMap<String, String>) {
        let properties = schema["properties"].as_object().into_iter().flatten();
        for (key, _) in properties.clone() {
            homes
                .entry(key.clone())
                .or_insert_with(|| format!("{prefix}{key}"));
        }
        for (key, schema) in properties {
            for schema in self.alternatives(schema) {
                self.homes(schema, &format!("{prefix}{key}."), homes);
            }
        }
    }
}

fn mismatch(value: &Value, alternatives: &[&Value], path: &[String]) -> Fault {
    let wanted: Vec<String> = alternatives.iter().flat_map(|s| describe(s)).collect();
    let words: Vec<&str> = alternatives.iter().flat_map(|s| words(s)).collect();
    let hint = match value {
        Value::String(word) if ["yes", "no", "on", "off"].contains(&word.as_str()) => {
            Some("YAML 1.2 has no yes and no; write true or false".to_owned())
        }
        Value::String(word) => match (nearest(word, &words), sole_required(alternatives)) {
            (Some(near), _) => Some(format!("did you mean `{near}`?")),
            (None, Some(key)) => Some(format!("write `{{{key}: {word}}}`")),
            (None, None) if word.parse::<f64>().is_ok() => Some("leave the quotes away".to_owned()),
            _ => None,
        },
        Value::Number(_) | Value::Bool(_)
            if alternatives.iter().any(|s| kind(s) == "string") && words.is_empty() =>
        {
            Some("put it in quotes".to_owned())
        }
        _ => None,
    };
    Fault {
        path: path.to_vec(),
        problem: format!("found {}, wanted {}", show(value), any_of(&wanted)),
        hint,
    }
}

/// The one key a section must have, where a section is all that is wanted.
fn sole_required<'a>(alternatives: &[&'a Value]) -> Option<&'a str> {
    match alternatives {
        [section] => match section["required"].as_array()?.as_slice() {
            [key] => key.as_str(),
            _ => None,
        },
        _ => None,
    }
}

fn accepts_kind(value: &Value, schema: &Value) -> bool {
    match value {
        Value::Object(_) => kind(schema) == "object",
        Value::Array(_) => kind(schema) == "array",
        _ => accepts_scalar(value, schema),
    }
}

fn accepts_scalar(value: &Value, schema: &Value) -> bool {
    if let Some(constant) = schema.get("const") {
        return value == constant;
    }
    if let Some(several) = schema["enum"].as_array() {
        return several.contains(value);
    }
    match (kind(schema), value) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) => true,
        ("integer", Value::Number(number)) => {
            (number.is_i64() || number.is_u64()) && in_range(number.as_f64(), schema)
        }
        ("number", Value::Number(number)) => in_range(number.as_f64(), schema),
        _ => false,
    }
}

fn in_range(number: Option<f64>, schema: &Value) -> bool {
    number.is_some_and(|n| {
        n >= schema["minimum"].as_f64().unwrap_or(f64::NEG_INFINITY)
            && n <= schema["maximum"].as_f64().unwrap_or(f64::INFINITY)
    })
}

/// The schema's type; of an optional one, the type it has when it is there.
fn kind(schema: &Value) -> &str {
    match &schema["type"] {
        Value::String(kind) => kind,
        Value::Array(kinds) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
            .unwrap_or_default(),
        _ => "",
    }
}

/// What a schema wants, in words.
fn describe(schema: &Value) -> Vec<String> {
    if let Some(constant) = schema.get("const") {
        return vec![bare(constant)];
    }
    if let Some(several) = schema["enum"].as_array() {
        return several.iter().map(bare).collect();
    }
    let range = match (&schema["minimum"], &schema["maximum"]) {
        (Value::Null, _) => String::new(),
        (min, Value::Null) => format!(" from {}", bare(min)),
        (min, max) => format!(" from {} to {}", bare(min), bare(max)),
    };
    vec![match kind(schema) {
        "boolean" => return vec!["true".to_owned(), "false".to_owned()],
        "integer" => format!("a whole number{range}"),
        "number" => format!("a number{range}"),
        "string" => "text".to_owned(),
        "array" => "a list".to_owned(),
        _ => "a section".to_owned(),
    }]
}

/// The words a schema accepts.
fn words(schema: &Value) -> Vec<&str> {
    let constant = schema["const"].as_str();
    let several = schema["enum"].as_array().into_iter().flatten();
    constant
        .into_iter()
        .chain(several.filter_map(Value::as_str))
        .collect()
}

/// A value as a message shows it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(word) => format!("`{word}`"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a section".to_owned(),
    }
}

/// A constant without quotes, a whole number without its `.0`.
fn bare(value: &Value) -> String {
    match (value, value.as_f64()) {
        (Value::String(word), _) => word.clone(),
        (_, Some(number)) => number.to_string(),
        _ => value.to_string(),
    }
}

/// The word meant, when one is near enough: two slips, or a third of the letters of a short word.
pub(crate) fn nearest<'a>(found: &str, words: &[&'a str]) -> Option<&'a str> {
    let found = found.to_lowercase().replace('-', "_");
    let distance =
        |word: &str| strsim::damerau_levenshtein(&found, &word.to_lowercase().replace('-', "_"));
    let (word, distance) = words
        .iter()
        .map(|word| (*word, distance(word)))
        .min_by_key(|(_, distance)| *distance)?;
    (distance <= (word.len() / 3).clamp(1, 3)).then_some(word)
}

fn lowered(description: &str) -> String {
    let mut letters = description.trim_end_matches('.').chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

fn split(path: &str) -> Vec<String> {
    path.split('.').map(str::to_owned).collect()
}

fn join(path: &[String], key: &str) -> Vec<String> {
    path.iter().cloned().chain([key.to_owned()]).collect()
}
