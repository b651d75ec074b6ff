//! Text and overrides in, one plain value out, with a way back from a key to its line.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};

use super::error::{ConfigError, Fault};
use super::translate::{Note, Renamed, Translated, lookup, translate};

/// A pipeline file as a plain value in our own spelling, overrides applied.
pub(super) struct Document<'a> {
    name: &'a str,
    text: &'a str,
    /// What stands in it; keys without a value are left out.
    pub(super) value: Value,
    /// What was understood other than written, in the file and by overrides.
    notes: Vec<(bool, Note)>,
    /// Keys the user wrote otherwise.
    renamed: Vec<Renamed>,
    /// Paths set by an override, as the user wrote them and as ours.
    overridden: Vec<Renamed>,
    /// Bytes that may still be looked through for lines.
    to_look_through: Cell<usize>,
}

/// Every line told costs a reading of the text up to it; where thousands are to be told of a long one, the later places go
/// without.
const LOOKED_THROUGH: usize = 4 << 20;

impl<'a> Document<'a> {
    /// Reads `text`, called `name` in messages, and applies `key.path=value` overrides in order.
    pub(super) fn read(
        name: &'a str,
        text: &'a str,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        let mut document = Self {
            name,
            text,
            value: Value::Null,
            notes: Vec::new(),
            renamed: Vec::new(),
            overridden: Vec::new(),
            to_look_through: Cell::new(LOOKED_THROUGH),
        };
        let value = parse_yaml(text).map_err(|(line, problem)| ConfigError {
            place: line.map_or_else(|| name.to_owned(), |line| format!("{name}:{line}")),
            key: String::new(),
            problem,
            hint: Some("`halfbyte schema` prints what may stand in a pipeline file".to_owned()),
        })?;
        let value = match value {
            Value::Null => Value::Object(Map::new()),
            value => value,
        };
        let translated = translate(value, false).map_err(|fault| document.error(fault))?;
        document.value = translated.value;
        document.renamed = translated.renamed;
        document.notes = translated
            .notes
            .into_iter()
            .map(|note| (false, note))
            .collect();
        for text in overrides {
            document.apply(text)?;
        }
        Ok(document)
    }

    /// The fault with its place.
    pub(super) fn error(&self, fault: Fault) -> ConfigError {
        let Fault {
            path,
            problem,
            hint,
        } = fault;
        ConfigError {
            place: self.place(&path),
            key: self.as_written(&path).join("."),
            problem,
            hint,
        }
    }

    /// What was understood other than written, one line each.
    pub(super) fn notices(&self) -> Vec<String> {
        let notes = self.notes.iter().map(|(by_override, note)| {
            let place = match by_override {
                true => format!("--set {}", note.written.join(".")),
                false => self.place_of(&note.written),
            };
            format!("{place}: {}", note.text)
        });
        notes.collect()
    }

    /// Where a key stands and how the user spelled it, as errors have it: `p.yaml:12: rules.0.match`.
    pub(super) fn whole_place(&self, path: &[&str]) -> String {
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        let (place, key) = (self.place(&path), self.as_written(&path).join("."));
        match place.ends_with(&format!(" {key}")) {
            true => place,
            false => format!("{place}: {key}"),
        }
    }

    /// `file:line` of a key, or of the nearest section around it; `--set` for what an override set.
    fn place(&self, path: &[String]) -> String {
        let by_override = |o: &&Renamed| path.starts_with(&o.ours);
        if let Some(found) = self.overridden.iter().rev().find(by_override) {
            return format!("--set {}", found.written.join("."));
        }
        let written = self.as_written(path);
        let lines = |depth: usize| {
            let left = self.to_look_through.get().checked_sub(self.text.len())?;
            self.to_look_through.set(left);
            line_of(self.text, &written[..depth])
        };
        // A section that only an override made is the override's.
        let below = |o: &&Renamed| o.ours.starts_with(path) && !path.is_empty();
        if let Some(found) = self.overridden.iter().rev().find(below)
            && lines(written.len()).is_none()
        {
            return format!("--set {}", found.written.join("."));
        }
        if let Some(line) = (1..=written.len()).rev().find_map(lines) {
            return format!("{}:{line}", self.name);
        }
        // A section that only another tool's key made is that key's.
        let below = |r: &&Renamed| r.ours.starts_with(path) && !path.is_empty();
        match self.renamed.iter().find(below) {
            Some(found) => self.place_of(&found.written),
            None => self.name.to_owned(),
        }
    }

    /// `file:line` of a key as written, or of the nearest section around it.
    fn place_of(&self, written: &[String]) -> String {
        let line = |depth: usize| line_of(self.text, &written[..depth]);
        match (1..=written.len()).rev().find_map(line) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.to_owned(),
        }
    }

    /// The path with the user's spelling.
    fn as_written(&self, path: &[String]) -> Vec<String> {
        let around = |r: &&Renamed| path.starts_with(&r.ours);
        let overridden = self.overridden.iter().rev().find(around);
        let renamed = || {
            self.renamed
                .iter()
                .filter(around)
                .max_by_key(|r| r.ours.len())
        };
        match overridden.or_else(renamed) {
            Some(renamed) => [&renamed.written, &path[renamed.ours.len()..]].concat(),
            None => path.to_vec(),
        }
    }

    fn apply(&mut self, text: &str) -> Result<(), ConfigError> {
        let wrong = |problem: String| ConfigError {
            place: format!("--set {text}"),
            key: String::new(),
            problem,
            hint: Some("write `--set key.path=value`, such as `--set quant.bits=3`".to_owned()),
        };
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("no `=` in it".to_owned()))?;
        let written: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
        if written.iter().any(String::is_empty) {
            return Err(wrong(format!("`{path}` is no key path")));
        }
        let value = parse_yaml(value).map_err(|(_, problem)| wrong(problem))?;
        // Nested as it would stand in a file, so that other tools' spellings are read by the same rules.
        let nested = written.iter().rev().fold(value, |value, key| {
            Value::Object(Map::from_iter([(key.clone(), value)]))
        });
        let translated = translate(nested, true).map_err(|fault| ConfigError {
            place: format!("--set {}", fault.path.join(".")),
            key: String::new(),
            problem: fault.problem,
            hint: fault.hint,
        })?;
        let Translated {
            value,
            renamed,
            notes,
            soft,
        } = translated;
        let respelled = |r: &Renamed| r.written == written && r.ours != written;
        if let Some(value) = lookup(&value, &written)
            && !renamed.iter().any(respelled)
        {
            set(&mut self.value, &written, without_nulls(value)).map_err(&wrong)?;
            self.overridden.push(Renamed {
                ours: written.clone(),
                written: written.clone(),
            });
        } else {
            for Renamed { ours, .. } in &renamed {
                let unsaid = soft.iter().any(|soft| ours.starts_with(soft));
                if unsaid && lookup(&self.value, ours).is_some() {
                    continue;
                }
                let value = lookup(&value, ours).map_or(Value::Null, without_nulls);
                set(&mut self.value, ours, value).map_err(&wrong)?;
            }
        }
        let respelled = renamed.into_iter().filter(|r| r.ours != r.written);
        self.overridden.extend(respelled);
        self.notes
            .extend(notes.into_iter().map(|note| (true, note)));
        Ok(())
    }
}

/// The value without keys that have none, all through; null itself stays.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(section) => {
            let full = section.iter().filter(|(_, value)| !value.is_null());
            let section = full.map(|(key, value)| (key.clone(), without_nulls(value)));
            Value::Object(section.collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        plain => plain.clone(),
    }
}

/// The line of a key, from 1: the parser is sent down the path and made to stop there, since it knows its lines and
/// tells them with an error only.
fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let parser = serde_yaml::Deserializer::from_str(text);
    match (Finder { path }).deserialize(parser) {
        Err(error) if error.to_string().contains(FOUND) => error.location().map(|l| l.line()),
        _ => None,
    }
}

const FOUND: &str = "halfbyte key found";

struct Finder<'p> {
    path: &'p [String],
}

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.path.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        let stop = rest.is_empty();
        while let Some(here) = map.next_key_seed(Key { wanted, stop })? {
            if here {
                map.next_value_seed(Finder { path: rest })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.path.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        for index in 0.. {
            let more = if *wanted == index.to_string() {
                list.next_element_seed(Finder { path: rest })?
            } else {
                list.next_element::<IgnoredAny>()?.map(drop)
            };
            if more.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

impl Finder<'_> {
    fn scalar<E: serde::de::Error>(self) -> Result<(), E> {
        match self.path {
            [] => Err(E::custom(FOUND)),
            _ => Ok(()),
        }
    }
}

/// Answers whether a key is the wanted one, or stops at it.
struct Key<'p> {
    wanted: &'p str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.stop) {
            (true, true) => Err(E::custom(FOUND)),
            (here, _) => Ok(here),
        }
    }
}

/// YAML to plain values, or the line and the problem.
fn parse_yaml(text: &str) -> Result<Value, (Option<usize>, String)> {
    guard(text)?;
    let parse = || {
        let mut value: serde_yaml::Value = serde_yaml::from_str(text)?;
        value.apply_merge()?;
        Ok(value)
    };
    let value = parse().map_err(|error: serde_yaml::Error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        (
            error.location().map(|l| l.line()),
            format!("not YAML: {message}"),
        )
    })?;
    plain(value).map_err(|problem| (None, problem))
}

/// Bytes, brackets within brackets, and values once its aliases are followed, that a pipeline file has at most: hundreds of
/// times what any use has, and little enough that the parser, whose time grows with the square of the nesting, and whose
/// memory grows with every alias of an alias, is soon done.
const MOST_BYTES: usize = 1 << 20;
const MOST_NESTED: usize = 100;
const MOST_VALUES: usize = 100_000;

/// Refuses what the parser would take all time or memory for.
fn guard(text: &str) -> Result<(), (Option<usize>, String)> {
    if text.len() > MOST_BYTES {
        let problem = format!("{} bytes, wanted {MOST_BYTES} or fewer", text.len());
        return Err((None, problem));
    }
    // Brackets in texts and comments are counted too: those of a pattern are closed, and a hundred are many.
    let mut open = 0usize;
    for (line, words) in text.lines().enumerate() {
        for mark in words.bytes() {
            match mark {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            if open > MOST_NESTED {
                let problem =
                    format!("brackets stand more than {MOST_NESTED} deep within each other");
                return Err((Some(line + 1), problem));
            }
        }
    }
    let mut left = MOST_VALUES;
    let parser = serde_yaml::Deserializer::from_str(text);
    match (Counter { left: &mut left }).deserialize(parser) {
        Err(error) if error.to_string().contains(MANY) => Err((
            None,
            format!("more than {MOST_VALUES} values, those that aliases repeat included"),
        )),
        // other errors are told with their place by who parses
        _ => Ok(()),
    }
}

const MANY: &str = "halfbyte too many values";

/// Visits all values and stops at one too many.
struct Counter<'n> {
    left: &'n mut usize,
}

impl Counter<'_> {
    fn one<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.many(1)
    }

    fn many<E: serde::de::Error>(&mut self, values: usize) -> Result<(), E> {
        *self.left = self
            .left
            .checked_sub(values)
            .ok_or_else(|| E::custom(MANY))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Counter<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counter<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.one()?;
        while map.next_key_seed(Counter { left: self.left })?.is_some() {
            map.next_value_seed(Counter { left: self.left })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        self.one()?;
        while list
            .next_element_seed(Counter { left: self.left })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(mut self, _: A) -> Result<(), A::Error> {
        self.one()
    }

    fn visit_bool<E: serde::de::Error>(mut self, _: bool) -> Result<(), E> {
        self.one()
    }

    fn visit_i64<E: serde::de::Error>(mut self, _: i64) -> Result<(), E> {
        self.one()
    }

    fn visit_u64<E: serde::de::Error>(mut self, _: u64) -> Result<(), E> {
        self.one()
    }

    fn visit_f64<E: serde::de::Error>(mut self, _: f64) -> Result<(), E> {
        self.one()
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        // a long text is as many values as its memory is
        self.many(1 + text.len() / 16)
    }

    fn visit_unit<E: serde::de::Error>(mut self) -> Result<(), E> {
        self.one()
    }
}

fn plain(value: serde_yaml::Value) -> Result<Value, String> {
    use serde_yaml::Value as Yaml;
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => Value::Bool(flag),
        Yaml::String(word) => Value::String(word),
        Yaml::Number(number) => number
            .as_i64()
            .map(Number::from)
            .or_else(|| number.as_u64().map(Number::from))
            .or_else(|| number.as_f64().and_then(Number::from_f64))
            .map(Value::Number)
            .ok_or_else(|| format!("found {number}, wanted a finite number"))?,
        Yaml::Sequence(list) => {
            Value::Array(list.into_iter().map(plain).collect::<Result<_, _>>()?)
        }
        Yaml::Mapping(mapping) => {
            let mut section = Map::new();
            for (key, value) in mapping {
                let Yaml::String(key) = key else {
                    return Err(format!("found the key {key:?}, wanted a word"));
                };
                section.insert(key, plain(value)?);
            }
            Value::Object(section)
        }
        Yaml::Tagged(tagged) => return Err(format!("found the tag {}, wanted none", tagged.tag)),
    })
}

/// Puts a value at a path, making sections and lists on the way; null takes the key away.
fn set(target: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        *target = value;
        return Ok(());
    };
    let index = key.parse::<usize>().ok();
    if target.is_null() {
        *target = match index {
            Some(_) => Value::Array(Vec::new()),
            None => Value::Object(Map::new()),
        };
    }
    match (target, index) {
        (Value::Object(section), _) if rest.is_empty() && value.is_null() => {
            section.shift_remove(key);
            Ok(())
        }
        (Value::Object(section), _) => set(section.entry(key).or_insert(Value::Null), rest, value),
        (Value::Array(list), Some(index)) if index <= list.len() => {
            if index == list.len() {
                list.push(Value::Null);
            }
            set(&mut list[index], rest, value)
        }
        (Value::Array(list), _) => Err(format!(
            "`{key}` is no place in a list; it has {}, and the next free place is {}",
            list.len(),
            list.len()
        )),
        (_, _) => Err(format!("nothing can be set below a plain value at `{key}`")),
    }
}
