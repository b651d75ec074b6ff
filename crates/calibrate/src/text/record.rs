//! One record (a JSON object, a row of a table) to the document in it.
//!
//! Without `text_column` the first of these that is filled is taken, record by record: `text`; a chat ([`CHAT_COLUMNS`]);
//! preference data (`chosen`, after `prompt` where there is one); a question and its answer ([`QUESTIONS`],
//! [`ANSWERS`]), as a chat of two messages; token ids (`input_ids`); a column of a usual name ([`TEXT_COLUMNS`]); else
//! the only column of strings. Names are found whatever their case.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::TextError;
use super::chat::{Chat, filled};

/// Columns that hold a chat, in the order they are looked for.
pub(super) const CHAT_COLUMNS: [&str; 4] = ["messages", "conversations", "conversation", "chat"];

/// What is asked, in the order looked for.
pub(super) const QUESTIONS: [&str; 6] = [
    "instruction",
    "prompt",
    "question",
    "query",
    "problem",
    "input",
];

/// What is answered, in the order looked for.
pub(super) const ANSWERS: [&str; 5] = ["completion", "output", "response", "answer", "solution"];

/// What a question may refer to; it is put after the question.
pub(super) const CONTEXTS: [&str; 2] = ["input", "context"];

/// System prompts that stand beside a chat.
pub(super) const SYSTEMS: [&str; 2] = ["system", "system_prompt"];

/// Columns of running text, in the order looked for after `text`.
pub(super) const TEXT_COLUMNS: [&str; 10] = [
    "content",
    "contents",
    "document",
    "raw_content",
    "body",
    "article",
    "passage",
    "story",
    "markdown",
    "sentence",
];

/// The document in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Text(String),
    Chat(Chat),
    Ids(Vec<u32>),
    /// A record that is there and not UTF-8.
    NotUtf8,
}

/// Which columns of a source are taken, and how often each was.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// The column asked for.
    wanted: Option<String>,
    /// The only column of strings, once a record was taken by it.
    only: Option<String>,
    /// Records by what was taken of them.
    pub(super) taken: BTreeMap<String, usize>,
}

impl Columns {
    pub(super) fn new(wanted: Option<&str>) -> Self {
        Self {
            wanted: wanted.map(str::to_owned),
            ..Self::default()
        }
    }

    /// The column asked for.
    pub(super) fn wanted(&self) -> Option<&str> {
        self.wanted.as_deref()
    }

    /// Counts a record that was taken without a look at its other columns.
    pub(super) fn took(&mut self, what: &str) {
        match self.taken.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.taken.insert(what.to_owned(), 1)),
        }
    }

    /// The document in a cell of a column of strings, none of which is null.
    pub(super) fn cell(&self, column: &str, bytes: Option<&[u8]>) -> Found {
        match bytes.map(std::str::from_utf8) {
            None => Found::Text(String::new()),
            Some(Err(_)) => Found::NotUtf8,
            Some(Ok(text)) => string(column, text),
        }
    }

    /// The document in one record. `place` names the record in errors.
    pub(super) fn record_of(
        &mut self,
        value: &Value,
        place: &dyn Fn() -> String,
    ) -> Result<Found, TextError> {
        let fields = match value {
            Value::String(text) if self.wanted.is_none() => return Ok(Found::Text(text.clone())),
            Value::Object(fields) => fields,
            other => {
                return Err(TextError::Json {
                    place: place(),
                    problem: format!("found {}", kind(other)),
                });
            }
        };
        if let Some(column) = &self.wanted {
            let Some(value) = fields.get(column) else {
                return Err(missing_column(Some(column), fields.keys(), place()));
            };
            let found = cell(column, value, place)?;
            return with_beside(found, fields, place);
        }
        let (found, what) = self.choose(fields, place)?;
        self.took(&what);
        with_beside(found, fields, place)
    }

    /// What is taken where no column is asked for, and its name.
    fn choose(
        &mut self,
        fields: &Map<String, Value>,
        place: &dyn Fn() -> String,
    ) -> Result<(Found, String), TextError> {
        if let Some((name, value)) = get(fields, "text") {
            return Ok((cell(name, value, place)?, name.to_owned()));
        }
        for column in CHAT_COLUMNS {
            if let Some((name, value)) = get(fields, column) {
                match Chat::of(value) {
                    Some(chat) => return Ok((Found::Chat(chat), name.to_owned())),
                    None if CHAT_COLUMNS[..2].contains(&column) => {
                        return Err(not_text(name, value, place));
                    }
                    None => {}
                }
            }
        }
        if let Some(found) = preference(fields) {
            return Ok(found);
        }
        if let Some(found) = pair(fields) {
            return Ok(found);
        }
        if let Some((name, value)) = get(fields, "input_ids") {
            return Ok((cell(name, value, place)?, name.to_owned()));
        }
        for column in TEXT_COLUMNS {
            if let Some((name, Value::String(text))) = get(fields, column) {
                return Ok((Found::Text(text.clone()), name.to_owned()));
            }
        }
        self.only_text(fields, place)
    }

    /// The only column that holds words.
    fn only_text(
        &mut self,
        fields: &Map<String, Value>,
        place: &dyn Fn() -> String,
    ) -> Result<(Found, String), TextError> {
        let words: Vec<(&String, &str)> = fields
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_str()?)))
            .filter(|(_, text)| !text.trim().is_empty() && text.trim().parse::<f64>().is_err())
            .collect();
        if let Some(only) = &self.only
            && words.iter().all(|(name, _)| *name == only)
            && let Some(value) = fields.get(only)
        {
            return Ok((cell(only, value, place)?, only.clone()));
        }
        match (words.as_slice(), &self.only) {
            ([(name, text)], None) => {
                self.only = Some((*name).clone());
                Ok((Found::Text((*text).to_owned()), (*name).clone()))
            }
            ([], _) => match fields.iter().find(|(name, value)| {
                matches!(value, Value::Null | Value::String(_)) && is_known(name)
                    || value.as_str().is_some_and(|text| text.trim().is_empty())
                    || value.is_null()
            }) {
                // a document that is there and empty
                Some((name, _)) => Ok((Found::Text(String::new()), name.clone())),
                None => Err(missing_column(None, fields.keys(), place())),
            },
            (words, only) => {
                let names = words.iter().map(|(name, _)| *name);
                let other = only
                    .as_ref()
                    .filter(|only| words.iter().all(|(n, _)| n != only));
                Err(missing_column(None, names.chain(other), place()))
            }
        }
    }

    /// What the user is to know of the choice: nothing where it is the column asked for, or the usual one.
    pub(super) fn told(&self) -> Vec<String> {
        let usual = |name: &str| ["text", CHAT_COLUMNS[0], CHAT_COLUMNS[1]].contains(&name);
        if self.wanted.is_some() || (self.taken.len() < 2 && self.taken.keys().all(|n| usual(n))) {
            return Vec::new();
        }
        let counts: Vec<String> = self
            .taken
            .iter()
            .map(|(name, count)| format!("{name} of {count} records"))
            .collect();
        vec![format!(
            "took {}; set text_column to take another column",
            counts.join(", ")
        )]
    }
}

/// Whether a column of this name is looked for.
pub(super) fn is_known(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let all = ["text", "chosen", "input_ids"]
        .iter()
        .chain(&CHAT_COLUMNS)
        .chain(&QUESTIONS)
        .chain(&ANSWERS)
        .chain(&TEXT_COLUMNS);
    all.into_iter().any(|known| *known == name)
}

/// Whether a column of this name is a question or an answer, which are read together.
pub(super) fn is_of_pair(name: &str) -> bool {
    let mut all = QUESTIONS.iter().chain(&ANSWERS);
    all.any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether a column of this name may say something of the document in another one.
pub(super) fn is_beside(name: &str) -> bool {
    let all = ["attention_mask", "tools", "functions"]
        .iter()
        .chain(&CONTEXTS)
        .chain(&SYSTEMS);
    all.into_iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

/// A filled field by its name, whatever its case, and the name as it is written.
fn get<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<(&'a str, &'a Value)> {
    let found = fields.get_key_value(name).or_else(|| {
        fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
    });
    found
        .filter(|(_, value)| filled(value))
        .map(|(name, value)| (name.as_str(), value))
}

/// The first filled of some fields.
fn first<'a>(fields: &'a Map<String, Value>, names: &[&str]) -> Option<(&'a str, &'a Value)> {
    names.iter().find_map(|name| get(fields, name))
}

/// What a column holds: text, a chat, token ids, or nothing.
fn cell(column: &str, value: &Value, place: &dyn Fn() -> String) -> Result<Found, TextError> {
    match value {
        Value::Null => Ok(Found::Text(String::new())),
        Value::String(text) => Ok(string(column, text)),
        Value::Array(list) if list.is_empty() => Ok(Found::Text(String::new())),
        Value::Array(list) if list.iter().all(Value::is_number) => {
            let ids = list.iter().map(|id| {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                id.ok_or_else(|| TextError::NotText {
                    place: place(),
                    column: column.into(),
                    found: "numbers that are no token ids".into(),
                })
            });
            Ok(Found::Ids(ids.collect::<Result<_, _>>()?))
        }
        _ => match Chat::of(value) {
            Some(chat) => Ok(Found::Chat(chat)),
            None => Err(not_text(column, value, place)),
        },
    }
}

/// A string is text, but in a column for chats one may be written as JSON.
fn string(column: &str, text: &str) -> Found {
    let is_chat = CHAT_COLUMNS
        .iter()
        .any(|name| column.eq_ignore_ascii_case(name));
    let chat = is_chat.then(|| Chat::of(&Value::from(text))).flatten();
    chat.map_or_else(|| Found::Text(text.to_owned()), Found::Chat)
}

/// What stands beside the document: the mask of padded ids, a system prompt, tools.
fn with_beside(
    found: Found,
    fields: &Map<String, Value>,
    place: &dyn Fn() -> String,
) -> Result<Found, TextError> {
    match found {
        Found::Ids(mut ids) => {
            let Some((name, mask)) = get(fields, "attention_mask") else {
                return Ok(Found::Ids(ids));
            };
            match mask.as_array() {
                Some(mask) if mask.len() == ids.len() => {
                    let mut kept = mask.iter().map(|m| m.as_u64() != Some(0));
                    ids.retain(|_| kept.next().unwrap_or(true));
                    Ok(Found::Ids(ids))
                }
                _ => Err(TextError::NotText {
                    place: place(),
                    column: name.into(),
                    found: "no mask as long as the token ids".into(),
                }),
            }
        }
        Found::Chat(mut chat) => {
            if let Some((_, Value::String(system))) = first(fields, &SYSTEMS) {
                chat.open_with_system(system);
            }
            chat.tools |= first(fields, &["tools", "functions"]).is_some();
            Ok(Found::Chat(chat))
        }
        text => Ok(text),
    }
}

/// A side of a pair: a string, or messages.
fn side(value: &Value, role: &str) -> Option<Chat> {
    match value {
        Value::String(text) => {
            let mut chat = Chat::default();
            chat.push(role, text);
            Some(chat)
        }
        other => Chat::of(other),
    }
}

/// The preferred answer, after its prompt.
fn preference(fields: &Map<String, Value>) -> Option<(Found, String)> {
    let (name, chosen) = get(fields, "chosen")?;
    let prompt = first(fields, &QUESTIONS);
    let what = match prompt {
        Some((prompt, _)) => format!("{prompt} and {name}"),
        None => name.to_owned(),
    };
    let prompt_text = prompt.and_then(|(_, value)| value.as_str()).unwrap_or("");
    if let Some(text) = chosen.as_str() {
        let whole = format!("{prompt_text}{text}");
        let transcript = Chat::of_transcript(text).or_else(|| Chat::of_transcript(&whole));
        if let Some(chat) = transcript {
            return Some((Found::Chat(chat), what));
        }
        if prompt.is_none() {
            return Some((Found::Text(text.to_owned()), what));
        }
    }
    let answer = side(chosen, "assistant")?;
    let chat = match prompt {
        // the messages may open with the prompt, after a system prompt
        Some((_, Value::String(text))) => {
            let opens = |(role, content): &(Option<String>, String)| {
                role.as_deref() == Some("user") && content == text
            };
            match answer.messages.iter().any(opens) {
                true => answer,
                false => side(&Value::String(text.clone()), "user")?.then(answer),
            }
        }
        Some((_, prompt)) => side(prompt, "user")?.then(answer),
        None => answer,
    };
    Some((Found::Chat(chat), what))
}

/// A question and its answer.
fn pair(fields: &Map<String, Value>) -> Option<(Found, String)> {
    let (question_name, question) = first(fields, &QUESTIONS)?;
    let (answer_name, answer) = first(fields, &ANSWERS)?;
    let mut names = vec![question_name];
    let mut asked = side(question, "user")?;
    let context = CONTEXTS
        .iter()
        .filter(|name| !question_name.eq_ignore_ascii_case(name))
        .find_map(|name| get(fields, name));
    if let (Some((name, Value::String(context))), Value::String(question)) = (context, question) {
        asked.messages[0].1 = format!("{question}\n\n{context}");
        names.push(name);
    }
    let what = format!("{} and {answer_name}", names.join(", "));
    Some((Found::Chat(asked.then(side(answer, "assistant")?)), what))
}

/// The error for a record without its text column.
pub(super) fn missing_column(
    wanted: Option<&str>,
    found: impl IntoIterator<Item = impl AsRef<str>>,
    place: String,
) -> TextError {
    let found: Vec<String> = found
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .collect();
    TextError::MissingColumn {
        place,
        wanted: match wanted {
            Some(column) => format!("{column:?}"),
            None => {
                "\"text\" (nor a chat, a question and its answer, input_ids, or one column of strings alone)"
                    .into()
            }
        },
        found: if found.is_empty() {
            "(none)".into()
        } else {
            found.join(", ")
        },
    }
}

fn not_text(column: &str, value: &Value, place: &dyn Fn() -> String) -> TextError {
    TextError::NotText {
        place: place(),
        column: column.into(),
        found: kind(value).into(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array that is no chat",
        Value::Object(_) => "an object",
    }
}
