//! What is written in other tools' words, put in ours: the engine behind the tables of `synonyms`.
//!
//! The value that was read is taken apart and put together anew, leaf by leaf, so that every leaf has one way in: there two
//! spellings of one key are held against each other, and there a leaf keeps the way back to the key that it was written as.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::error::{Fault, any_of};
use super::forms;
use super::schema::{is_list, keys, respell, schema};
use super::synonyms::{self, BITS_AFFIXES, BLOCK, Case, Plain, Spelling, Then, WORDS, When};

/// A key that was renamed: where it stands, as ours and as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renamed {
    pub(super) ours: Vec<String>,
    pub(super) written: Vec<String>,
}

/// Something that was understood other than written, for the user to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// The key as written.
    pub(super) written: Vec<String>,
    /// What became of it, as a sentence that begins with the key.
    pub(super) text: String,
}

/// A value in our own words, and how it came about.
#[derive(Clone, Debug, Default)]
pub(super) struct Translated {
    pub(super) value: Value,
    pub(super) renamed: Vec<Renamed>,
    pub(super) notes: Vec<Note>,
    /// Paths of what nobody said, and holds for that.
    pub(super) soft: Vec<Vec<String>>,
}

/// Puts our spelling in place of other tools', all through `value`. With `override_` the value is that of `--set`, nested as
/// in a file: list places are keys, and null takes a key away.
pub(super) fn translate(value: Value, override_: bool) -> Result<Translated, Fault> {
    let Value::Object(root) = value else {
        // For the schema to refuse.
        return Ok(Translated {
            value,
            ..Translated::default()
        });
    };
    let mut translator = Translator {
        schema: schema(),
        root: Value::Object(Map::new()),
        given: HashMap::new(),
        soft: Vec::new(),
        says: Vec::new(),
        done: Translated::default(),
        read_as: Vec::new(),
        override_,
    };
    translator.section(
        &Here {
            section: String::new(),
            ours: Vec::new(),
            base: path("quant"),
            written: Vec::new(),
            quiet: false,
        },
        root,
    )?;
    translator.settle()?;
    translator.done.value = translator.root;
    Ok(translator.done)
}

/// Where a key stands.
#[derive(Clone, Debug)]
pub(super) struct Here {
    /// The section as the tables call it, list places as `*`; [`BLOCK`] in another tool's block.
    section: String,
    /// The section in our file, for keys of ours.
    ours: Vec<String>,
    /// Where keys of the tables go that begin with a dot.
    base: Vec<String>,
    /// The key as written.
    pub(super) written: Vec<String>,
    /// Whether keys that are ours already go without a note, for the whole has one.
    quiet: bool,
}

impl Here {
    /// A section of ours, written elsewhere perhaps.
    pub(super) fn of(ours: Vec<String>, written: Vec<String>) -> Self {
        Self {
            section: pattern_of(&ours),
            base: ours.clone(),
            quiet: ours != written,
            ours,
            written,
        }
    }

    /// The same place as a block of another tool, whose keys are those of `quant` and all that go elsewhere.
    pub(super) fn block(&self) -> Self {
        Self {
            section: BLOCK.to_owned(),
            ours: path("quant"),
            base: path("quant"),
            written: self.written.clone(),
            quiet: false,
        }
    }

    /// Whether it is in an exception by module name.
    pub(super) fn is_rule(&self) -> bool {
        self.section == "rules.*"
    }

    /// Whether the key as written, its place in a list left out, has this in its name.
    pub(super) fn is_named(&self, part: &str) -> bool {
        let named = |key: &&String| key.parse::<usize>().is_err();
        let key = self.written.iter().rev().find(named);
        key.is_some_and(|key| snake(key).contains(part))
    }

    pub(super) fn key(&self, key: &str) -> Self {
        Self {
            written: join(&self.written, key),
            ..self.clone()
        }
    }

    pub(super) fn fault(&self, problem: impl Into<String>, hint: impl Into<String>) -> Fault {
        Fault {
            path: self.written.clone(),
            problem: problem.into(),
            hint: Some(hint.into()),
        }
    }

    /// The whole path of a key in the tables.
    pub(super) fn resolve(&self, key: &str) -> Vec<String> {
        match key.strip_prefix('.') {
            Some(key) => join(&self.base, key),
            None => path(key),
        }
    }
}

pub(super) struct Translator {
    schema: Value,
    root: Value,
    /// Leaves and lists that are there, with the keys that they were written as.
    given: HashMap<Vec<String>, Vec<String>>,
    /// What holds where nothing else is said: path, value, and the key it comes from.
    soft: Vec<(Vec<String>, Value, Here)>,
    /// What must not be said otherwise.
    says: Vec<(Vec<String>, Value, Here)>,
    done: Translated,
    /// What the key at hand was read as so far: path, value, and whether the value was changed.
    read_as: Vec<(Vec<String>, Value, bool)>,
    override_: bool,
}

impl Translator {
    /// All keys of a section, ours first, so that of two names of one key the other tool's is told.
    pub(super) fn section(
        &mut self,
        here: &Here,
        section: Map<String, Value>,
    ) -> Result<(), Fault> {
        let known: Vec<String> = match keys(&self.schema, &here.ours) {
            Some(known) => known.keys().cloned().collect(),
            None => Vec::new(),
        };
        let (own, foreign): (Vec<_>, Vec<_>) =
            (section.into_iter()).partition(|(key, _)| known.contains(key));
        for (key, value) in own {
            self.own_key(here, &key, &key, value)?;
        }
        let pasted = here.section.is_empty() || here.section == BLOCK;
        let (modifiers, foreign): (Vec<_>, Vec<_>) =
            (foreign.into_iter()).partition(|(key, _)| pasted && key.ends_with("Modifier"));
        if !modifiers.is_empty() {
            forms::modifiers(self, here, modifiers)?;
        }
        for (key, value) in foreign {
            let name = snake(&key);
            let is_stage = name.ends_with("_stage") || name.ends_with("modifiers");
            if pasted && is_stage && value.is_object() {
                forms::block(self, &here.key(&key), &value)?;
            } else if let Some(spelling) = self.spelling(here, &name) {
                self.apply(&here.key(&key), spelling, value)?;
            } else if known.contains(&name) {
                self.own_key(here, &key, &name, value)?;
            } else if here.section == BLOCK {
                if value.is_null() {
                    continue;
                }
                let key = here.key(&key);
                return Err(key.fault(
                    "unknown key",
                    "take it out; what halfbyte knows is printed by `halfbyte schema`",
                ));
            } else {
                self.raw(&join(&here.ours, &key), value);
            }
        }
        Ok(())
    }

    /// A key of ours, perhaps in another shape or in a block.
    fn own_key(&mut self, here: &Here, key: &str, name: &str, value: Value) -> Result<(), Fault> {
        let at = here.key(key);
        if let Some(spelling) = self.spelling(here, name)
            && spelling.cases.iter().any(|case| fits(&case.0, &value))
        {
            return self.apply(&at, spelling, value);
        }
        let ours = join(&here.ours, name);
        let moved = ours != at.written;
        self.descend(&ours, &at.written, value)?;
        if (moved && !here.quiet) || key != name {
            self.note_moved(&at, &ours);
        }
        Ok(())
    }

    fn note_moved(&mut self, at: &Here, ours: &[String]) {
        if lookup(&self.root, ours).is_some_and(|value| !value.is_null()) {
            self.note(
                at,
                format!("`{}` is read as `{}`", at.written.join("."), ours.join(".")),
            );
        }
        if at.written != ours {
            self.remember(ours, &at.written);
        }
    }

    fn spelling(&self, here: &Here, name: &str) -> Option<&'static Spelling> {
        synonyms::SPELLINGS.iter().find(|spelling| {
            spelling.at.contains(&here.section.as_str()) && spelling.theirs.contains(&name)
        })
    }

    /// A value below a key of ours: sections and lists are gone through, the rest is put as it is.
    pub(super) fn descend(
        &mut self,
        ours: &[String],
        written: &[String],
        value: Value,
    ) -> Result<(), Fault> {
        match value {
            Value::Object(section) if keys(&self.schema, ours).is_some() => {
                self.container(ours, Value::Object(Map::new()));
                self.section(&Here::of(ours.to_vec(), written.to_vec()), section)
            }
            // List places are keys in an override.
            Value::Object(list) if self.override_ && is_list(&self.schema, ours) => {
                for (place, value) in list {
                    self.descend(&join(ours, &place), &join(written, &place), value)?;
                }
                Ok(())
            }
            Value::Array(list) if is_list(&self.schema, ours) => {
                self.list(ours, written)?;
                for (index, value) in list.into_iter().enumerate() {
                    let place = index.to_string();
                    self.descend(&join(ours, &place), &join(written, &place), value)?;
                }
                Ok(())
            }
            value => self.put(ours, written, value),
        }
    }

    /// An empty list at a path of ours, where there is none yet.
    pub(super) fn list(&mut self, ours: &[String], written: &[String]) -> Result<(), Fault> {
        if let Some(before) = self.given.get(ours) {
            return Err(twice(ours, written, before, None));
        }
        self.given.insert(ours.to_vec(), written.to_vec());
        self.remember(ours, written);
        self.container(ours, Value::Array(Vec::new()));
        Ok(())
    }

    /// A leaf at a path of ours, written elsewhere perhaps.
    pub(super) fn put(
        &mut self,
        ours: &[String],
        written: &[String],
        value: Value,
    ) -> Result<(), Fault> {
        let in_list = ours.last().is_some_and(|key| key.parse::<usize>().is_ok());
        if value.is_null() && !self.override_ && !in_list {
            // A key left empty, its lines commented out perhaps, is an absent key.
            return Ok(());
        }
        let value = match respell(&self.schema, ours, &value).or_else(|| by_word(ours, &value)) {
            None => value,
            Some(respelled) => {
                if ours == written {
                    let at = Here::of(ours.to_vec(), written.to_vec());
                    let text = format!(
                        "`{}: {}` is read as `{}`",
                        written.join("."),
                        in_quotes(&value),
                        shown(&respelled)
                    );
                    self.note(&at, text);
                }
                respelled
            }
        };
        if let Some(before) = self.given.get(ours) {
            let there = lookup(&self.root, ours);
            return match there {
                Some(there) if *there == value => Ok(()),
                there => Err(twice(
                    ours,
                    written,
                    before,
                    there.map(|there| (there, &value)),
                )),
            };
        }
        self.given.insert(ours.to_vec(), written.to_vec());
        if ours != written {
            self.remember(ours, written);
        }
        self.container(ours, value);
        Ok(())
    }

    fn raw(&mut self, ours: &[String], value: Value) {
        if !value.is_null() || self.override_ {
            self.container(ours, value);
        }
    }

    /// A value at a path, sections made on the way; a section that is there stays.
    fn container(&mut self, ours: &[String], value: Value) {
        let mut target = &mut self.root;
        for key in ours {
            if target.is_null() {
                *target = Value::Object(Map::new());
            }
            target = match target {
                Value::Object(section) => section.entry(key).or_insert(Value::Null),
                Value::Array(list) => {
                    let index = key.parse::<usize>().unwrap_or(list.len()).min(list.len());
                    if index == list.len() {
                        list.push(Value::Null);
                    }
                    &mut list[index]
                }
                // The schema refuses what stands there.
                _ => return,
            };
        }
        if !(target.is_object() && value.is_object()) {
            *target = value;
        }
    }

    pub(super) fn remember(&mut self, ours: &[String], written: &[String]) {
        if ours != written || self.override_ {
            self.done.renamed.push(Renamed {
                ours: ours.to_vec(),
                written: written.to_vec(),
            });
        }
    }

    pub(super) fn note(&mut self, at: &Here, text: String) {
        self.done.notes.push(Note {
            written: at.written.clone(),
            text,
        });
    }

    /// What stands at a path of ours by now.
    pub(super) fn there(&self, ours: &[String]) -> Option<&Value> {
        lookup(&self.root, ours)
    }

    /// Something that holds where nothing else is said.
    pub(super) fn unless_said(&mut self, at: &Here, key: &str, value: Value) {
        self.soft.push((at.resolve(key), value, at.clone()));
    }

    /// A key of the first source, which another key names, before or after.
    pub(super) fn of_first_source(&mut self, at: &Here, key: &str, value: Value) {
        let ours = path(&format!("calibration.sources.0.{key}"));
        self.soft.push((ours, value, at.clone()));
    }

    /// A note that a key changes nothing.
    pub(super) fn idle(&mut self, at: &Here, why: &str) {
        let text = format!("`{}` changes nothing here: {why}", at.written.join("."));
        self.note(at, text);
    }

    fn apply(&mut self, at: &Here, spelling: &Spelling, value: Value) -> Result<(), Fault> {
        let Some(Case(_, effects)) = spelling.cases.iter().find(|case| fits(&case.0, &value))
        else {
            if value.is_null() {
                return Ok(());
            }
            return Err(at.fault(
                format!("found {}, wanted {}", quoted(&value), wanted(spelling)),
                "write one of these, or take the key out",
            ));
        };
        if value.is_null() && !effects.iter().any(|effect| matches!(effect, Then::Ours(_))) {
            let at_null = spelling
                .cases
                .iter()
                .any(|case| matches!(case.0, When::Null));
            if !at_null {
                return Ok(());
            }
        }
        let is_form = matches!(effects, [Then::Form(_)]);
        if is_form && synonyms::is_empty(&value) {
            self.idle(at, "it is empty");
            return Ok(());
        }
        for effect in *effects {
            self.effect(at, effect, &value)?;
        }
        self.tell(at, &value);
        Ok(())
    }

    fn effect(&mut self, at: &Here, effect: &Then, value: &Value) -> Result<(), Fault> {
        match effect {
            Then::Ours(key) => self.read_as(at, &at.resolve(key), value.clone(), false),
            Then::Inverse(key) => {
                let flag = respelled_flag(value);
                let changed = flag.is_some();
                let value = flag.map_or_else(|| value.clone(), |flag| Value::Bool(!flag));
                self.read_as(at, &at.resolve(key), value, changed)
            }
            Then::Sets(list) => {
                for (key, value) in *list {
                    self.read_as(at, &at.resolve(key), value.into(), true)?;
                }
                Ok(())
            }
            Then::Soft(list) => {
                for (key, value) in *list {
                    self.unless_said(at, key, value.into());
                }
                Ok(())
            }
            Then::Says(key, value) => {
                self.says.push((at.resolve(key), value.into(), at.clone()));
                Ok(())
            }
            Then::Idle(why) => {
                self.idle(at, why);
                Ok(())
            }
            Then::Wrong(why, instead) => {
                let shown = shown(value);
                let filled = |text: &str| text.replace("{value}", &shown);
                let problem = match value {
                    Value::Null => filled(why),
                    _ => format!("found {}: {}", quoted(value), filled(why)),
                };
                Err(at.fault(problem, filled(instead)))
            }
            Then::Form(form) => form(self, at, value),
        }
    }

    /// Puts a leaf or more and keeps it for the note about the key at hand.
    pub(super) fn read_as(
        &mut self,
        at: &Here,
        ours: &[String],
        value: Value,
        changed: bool,
    ) -> Result<(), Fault> {
        let before = value.clone();
        self.descend(ours, &at.written, value)?;
        let there = lookup(&self.root, ours);
        let (value, same) = match there {
            Some(there) => (there.clone(), *there == before),
            None => (before, true),
        };
        self.read_as.push((ours.to_vec(), value, changed || !same));
        Ok(())
    }

    /// One note on a key that was read as others.
    fn tell(&mut self, at: &Here, value: &Value) {
        let read_as = std::mem::take(&mut self.read_as);
        if read_as.is_empty() || value.is_null() {
            return;
        }
        if let [(ours, _, false)] = read_as.as_slice()
            && *ours == at.written
        {
            return;
        }
        let changed = read_as.iter().any(|(.., changed)| *changed);
        let plain = read_as.iter().all(|(_, value, _)| !value.is_object());
        let key = at.written.join(".");
        let ours: Vec<String> = (read_as.iter())
            .map(|(ours, value, _)| match changed && plain {
                true => format!("`{}: {}`", ours.join("."), shown(value)),
                false => format!("`{}`", ours.join(".")),
            })
            .collect();
        let written = match changed && plain {
            true => format!("`{key}: {}`", shown(value)),
            false => format!("`{key}`"),
        };
        self.note(at, format!("{written} is read as {}", all_of(&ours)));
    }

    /// What holds where nothing else is said; and what was said against what is so anyway.
    fn settle(&mut self) -> Result<(), Fault> {
        let mut told: Vec<(Here, Vec<String>)> = Vec::new();
        for (ours, value, at) in std::mem::take(&mut self.soft) {
            // said as it stands, or in its parts
            if self.given.keys().any(|given| given.starts_with(&ours)) {
                continue;
            }
            let sources = path("calibration.sources");
            if ours.starts_with(&sources) && !self.given.contains_key(&sources) {
                return Err(at.fault(
                    "there is no source that it tells about",
                    format!(
                        "write `calibration: {{sources: [{{dataset: org/name, text_column: {}}}]}}`",
                        shown(&value)
                    ),
                ));
            }
            let text = format!("`{}: {}`", ours.join("."), shown(&value));
            self.descend(&ours, &at.written, value)?;
            self.done.soft.push(ours);
            match told
                .iter_mut()
                .find(|(there, _)| there.written == at.written)
            {
                Some((_, texts)) => texts.push(text),
                None => told.push((at, vec![text])),
            }
        }
        for (at, texts) in told {
            let text = format!(
                "`{}` also means {}, since nothing else is said",
                at.written.join("."),
                all_of(&texts)
            );
            self.note(&at, text);
        }
        for (ours, value, at) in std::mem::take(&mut self.says) {
            let there = lookup(&self.root, &ours);
            if let Some(there) = there
                && *there != value
                && *there != "auto"
            {
                let key = ours.join(".");
                return Err(at.fault(
                    format!(
                        "means `{key}: {}`, and `{key}: {}` is given as well",
                        shown(&value),
                        shown(there)
                    ),
                    format!("take it out, or write `{}`", in_sections(&ours, &value)),
                ));
            }
        }
        Ok(())
    }
}

/// Two spellings of one key that do not say the same.
fn twice(
    ours: &[String],
    written: &[String],
    before: &[String],
    values: Option<(&Value, &Value)>,
) -> Fault {
    let near =
        written.len() == ours.len() && written[..written.len() - 1] == ours[..ours.len() - 1];
    let name = match (near, ours.last()) {
        (true, Some(key)) => key.clone(),
        _ => ours.join("."),
    };
    let by = match before == ours {
        true => "is given as well".to_owned(),
        false => format!("`{}` gives as well", before.join(".")),
    };
    let values = values.map_or_else(String::new, |(there, here)| {
        format!(": {} there, {} here", shown(there), shown(here))
    });
    Fault {
        path: written.to_vec(),
        problem: format!("sets `{name}`, which {by}{values}"),
        hint: Some(match before == ours {
            true => format!("keep `{name}`"),
            false => "keep one of the two".to_owned(),
        }),
    }
}

fn fits(when: &When, value: &Value) -> bool {
    match when {
        When::Any => true,
        When::Null => value.is_null(),
        When::Flag(flag) => respelled_flag(value) == Some(*flag),
        When::Words(words) => match value {
            Value::String(word) => {
                let word = plain_word(word);
                words.iter().any(|listed| plain_word(listed) == word)
            }
            Value::Number(number) => words.contains(&number.to_string().as_str()),
            _ => false,
        },
        When::Text => value.is_string(),
        When::List => value.is_array(),
        When::Section => value.is_object(),
        When::Like(like) => like(value),
    }
}

/// A truth, in quotes too.
fn respelled_flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(word) => match word.to_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// The words that a spelling knows, as a message lists them.
fn wanted(spelling: &Spelling) -> String {
    let words = spelling.cases.iter().filter(|case| {
        let refused = |then: &Then| matches!(then, Then::Wrong(..));
        !case.1.iter().any(refused)
    });
    let words: Vec<String> = words
        .flat_map(|case| match &case.0 {
            When::Words(words) => words.iter().map(|w| (*w).to_owned()).collect(),
            When::Flag(flag) => vec![flag.to_string()],
            When::Text => vec!["text".to_owned()],
            When::List => vec!["a list".to_owned()],
            When::Section => vec!["a section".to_owned()],
            _ => Vec::new(),
        })
        .collect();
    any_of(&words)
}

/// Words that stand for a number, by the key.
fn by_word(ours: &[String], value: &Value) -> Option<Value> {
    let word = plain_word(value.as_str()?);
    let key = ours
        .iter()
        .rev()
        .find(|key| key.parse::<usize>().is_err())?;
    if let Some((.., value)) = (WORDS.iter())
        .find(|(keys, words, _)| keys.contains(&key.as_str()) && words.contains(&word.as_str()))
    {
        return Some(value.into());
    }
    if key != "bits" {
        return None;
    }
    let (before, after) = BITS_AFFIXES;
    let number = |before: &str, after: &str| {
        let digits = word.strip_prefix(before)?.strip_suffix(after)?;
        digits.parse::<u8>().ok()
    };
    let affixes = before
        .iter()
        .flat_map(|b| after.iter().map(move |a| (b, a)));
    affixes
        .filter_map(|(before, after)| number(before, after))
        .next()
        .map(Value::from)
}

/// A word in small letters, `_` and spaces as `-`.
pub(super) fn plain_word(word: &str) -> String {
    word.trim().to_lowercase().replace(['_', ' '], "-")
}

/// A key in small letters and `_`, camel case and dashes undone.
pub(super) fn snake(key: &str) -> String {
    let mut snake = String::with_capacity(key.len() + 4);
    let mut before = ' ';
    for letter in key.chars() {
        if letter.is_uppercase() && (before.is_lowercase() || before.is_ascii_digit()) {
            snake.push('_');
        }
        before = letter;
        match letter {
            '-' | ' ' => snake.push('_'),
            _ => snake.extend(letter.to_lowercase()),
        }
    }
    snake
}

/// A value as YAML has it on one line.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(word) => word.clone(),
        Value::Array(list) => {
            let list: Vec<String> = list.iter().map(shown).collect();
            format!("[{}]", list.join(", "))
        }
        Value::Object(section) => {
            let section: Vec<String> = (section.iter())
                .map(|(key, value)| format!("{key}: {}", shown(value)))
                .collect();
            format!("{{{}}}", section.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// A value below its sections, as YAML has it on one line.
fn in_sections(ours: &[String], value: &Value) -> String {
    match ours {
        [] => shown(value),
        [key] => format!("{key}: {}", shown(value)),
        [key, rest @ ..] => format!("{key}: {{{}}}", in_sections(rest, value)),
    }
}

/// A value as YAML has it, a number or a truth that is a text in its quotes.
fn in_quotes(value: &Value) -> String {
    match value.as_str() {
        Some(word) if word.parse::<f64>().is_ok() || respelled_flag(value).is_some() => {
            format!("'{word}'")
        }
        _ => shown(value),
    }
}

/// A value as a message has it in a sentence.
fn quoted(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a section".to_owned(),
        Value::String(word) => format!("`{word}`"),
        plain => shown(plain),
    }
}

/// Lists words as a sentence does: `a`, `a and b`, `a, b and c`.
pub(super) fn all_of(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

pub(super) fn lookup<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| match value {
        Value::Object(section) => section.get(key),
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

fn pattern_of(ours: &[String]) -> String {
    let parts: Vec<&str> = (ours.iter())
        .map(|key| match key.parse::<usize>() {
            Ok(_) => "*",
            Err(_) => key.as_str(),
        })
        .collect();
    parts.join(".")
}

pub(super) fn path(key: &str) -> Vec<String> {
    key.split('.')
        .filter(|k| !k.is_empty())
        .map(str::to_owned)
        .collect()
}

pub(super) fn join(path: &[String], key: &str) -> Vec<String> {
    path.iter().cloned().chain([key.to_owned()]).collect()
}

impl From<&Plain> for Value {
    fn from(plain: &Plain) -> Self {
        match plain {
            Plain::Bool(flag) => Self::Bool(*flag),
            Plain::Int(number) => Self::from(*number),
            Plain::Word(word) => Self::from(*word),
            Plain::Exports(format) => serde_json::json!([{"format": format}]),
        }
    }
}
