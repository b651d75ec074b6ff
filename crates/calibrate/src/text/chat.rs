//! Chats as data sets hold them, to messages with a role and a text.

use serde_json::Value;

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks, in the words of chat templates: `system`, `user`, `assistant` or `tool`; another role as the data
    /// set writes it.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Writes a chat as the model wants it written, or says why it cannot.
pub type RenderChat<'a> = dyn Fn(&[Message]) -> Result<String, String> + 'a;

/// A chat as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chat {
    /// Role and text of each message, in order.
    pub(super) messages: Vec<(Option<String>, String)>,
    /// Whether tools or calls of tools came with it, which are left out.
    pub(super) tools: bool,
    /// Whether a message had parts that are no text (an image), which are left out.
    pub(super) other_parts: bool,
}

impl Chat {
    pub(super) fn push(&mut self, role: &str, content: &str) {
        self.messages.push((Some(role.into()), content.into()));
    }

    /// Puts a system prompt first, unless there is one.
    pub(super) fn open_with_system(&mut self, prompt: &str) {
        let has_one = self
            .messages
            .first()
            .is_some_and(|(role, _)| role.as_deref() == Some("system"));
        if !has_one {
            self.messages
                .insert(0, (Some("system".into()), prompt.into()));
        }
    }

    /// This chat and then the other, whose opening is left out where it repeats this one.
    pub(super) fn then(mut self, other: Self) -> Self {
        if other.messages.starts_with(&self.messages) {
            self.messages.clear();
        }
        self.messages.extend(other.messages);
        self.tools |= other.tools;
        self.other_parts |= other.other_parts;
        self
    }

    /// The messages for a template; none where one has no role.
    pub(super) fn with_roles(&self) -> Option<Vec<Message>> {
        self.messages
            .iter()
            .map(|(role, content)| {
                Some(Message {
                    role: role.clone()?,
                    content: content.clone(),
                })
            })
            .collect()
    }

    /// The texts of the messages, joined by blank lines.
    pub(super) fn plain(&self) -> String {
        self.messages
            .iter()
            .map(|(_, text)| text.as_str())
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("\n\n")
    }

    /// A list of messages: `{"role", "content"}`, ShareGPT's `{"from", "value"}` or plain strings; the same as an object
    /// of lists, which is how some tables hold it; or any of these written as JSON in a string.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Array(messages) => Self::of_list(messages.iter().map(message)),
            Value::Object(columns) => {
                let column =
                    |names: &[&str]| names.iter().find_map(|&name| columns.get(name)?.as_array());
                let contents = column(&CONTENT_KEYS)?;
                let roles = column(&ROLE_KEYS)?;
                if roles.len() != contents.len() {
                    return None;
                }
                let pairs = roles.iter().zip(contents);
                Self::of_list(pairs.map(|(role, content)| read(Some(role), Some(content))))
            }
            Value::String(text) if text.trim_start().starts_with('[') => {
                match serde_json::from_str(text).ok()? {
                    list @ Value::Array(_) => Self::of(&list),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn of_list(messages: impl Iterator<Item = Option<(Option<String>, Content)>>) -> Option<Self> {
        let mut chat = Self::default();
        for message in messages {
            let (role, content) = message?;
            chat.tools |= content.tools;
            chat.other_parts |= content.other_parts;
            chat.messages.push((role, content.text));
        }
        (!chat.messages.is_empty()).then_some(chat)
    }

    /// A transcript in one string with `Human:` and `Assistant:` before the turns, as older preference data have it.
    pub(super) fn of_transcript(text: &str) -> Option<Self> {
        const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
        let head = text.trim_start();
        let padded = format!("\n\n{head}");
        if !padded.starts_with(MARKS[0].0) {
            return None;
        }
        let mut chat = Self::default();
        let mut rest = padded.as_str();
        while let Some((mark, role)) = MARKS.iter().find(|(mark, _)| rest.starts_with(mark)) {
            rest = &rest[mark.len()..];
            let end = MARKS.iter().filter_map(|(mark, _)| rest.find(mark)).min();
            let (turn, after) = rest.split_at(end.unwrap_or(rest.len()));
            chat.push(role, turn.trim());
            rest = after;
        }
        Some(chat)
    }
}

const ROLE_KEYS: [&str; 3] = ["role", "from", "speaker"];
const CONTENT_KEYS: [&str; 3] = ["content", "value", "text"];

struct Content {
    text: String,
    tools: bool,
    other_parts: bool,
}

/// Role and content of one message.
fn message(message: &Value) -> Option<(Option<String>, Content)> {
    match message {
        Value::Object(fields) => {
            let first = |names: &[&str]| names.iter().find_map(|&name| fields.get(name));
            let calls = ["tool_calls", "function_call"]
                .iter()
                .any(|&name| fields.get(name).is_some_and(filled));
            let content = first(&CONTENT_KEYS);
            if content.is_none() && !calls {
                return None;
            }
            let (role, mut content) = read(first(&ROLE_KEYS), content)?;
            content.tools |= calls;
            Some((role, content))
        }
        Value::String(_) => read(None, Some(message)),
        _ => None,
    }
}

/// A message without text (a call of a tool, an image) is empty.
fn read(role: Option<&Value>, content: Option<&Value>) -> Option<(Option<String>, Content)> {
    let role = role.and_then(Value::as_str).map(role_name);
    let mut other_parts = false;
    let text = match content {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| {
                let text = part.as_str().or_else(|| part.get("text")?.as_str());
                other_parts |= text.is_none();
                text
            });
            texts.collect::<Vec<_>>().join("\n\n")
        }
        _ => return None,
    };
    let tools = false;
    Some((
        role,
        Content {
            text,
            tools,
            other_parts,
        },
    ))
}

/// A role in the words of chat templates.
fn role_name(role: &str) -> String {
    let known = match role.trim().to_ascii_lowercase().as_str() {
        "human" | "user" | "prompter" => "user",
        "gpt" | "assistant" | "chatgpt" | "bard" | "bing" | "bot" => "assistant",
        "system" => "system",
        "tool" | "function" | "function_response" | "observation" => "tool",
        _ => role,
    };
    known.to_owned()
}

/// Whether there is something: no null, no blank string, no empty list or object.
pub(super) fn filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Value, wanted: &[(&str, &str)]) {
        let chat = Chat::of(&value).unwrap();
        let found: Vec<(&str, &str)> = chat
            .messages
            .iter()
            .map(|(role, text)| (role.as_deref().unwrap_or("-"), text.as_str()))
            .collect();
        assert_eq!(found, wanted, "{value}");
    }

    #[test]
    fn every_way_of_writing_messages_gives_the_same() {
        let wanted = [("system", "s"), ("user", "q"), ("assistant", "a")];
        check(
            json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                   {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]),
            &wanted,
        );
        check(
            json!([{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]),
            &wanted,
        );
        check(
            json!({"role": ["system", "user", "assistant"], "content": ["s", "q", "a"]}),
            &wanted,
        );
        let text = json!([{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
        check(json!(text.to_string()), &wanted);
        check(json!(["q", "a"]), &[("-", "q"), ("-", "a")]);
    }

    #[test]
    fn what_is_no_chat_is_none() {
        for value in [
            json!([1, 2]),
            json!([{"role": "user"}]),
            json!([]),
            json!("[1, 2"),
            json!("text"),
            json!({"role": ["user"], "content": []}),
        ] {
            assert_eq!(Chat::of(&value), None, "{value}");
        }
    }

    #[test]
    fn tools_and_images_are_left_out_and_marked() {
        let chat = Chat::of(&json!([
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"name": "look"}]}
        ]))
        .unwrap();
        assert!(chat.tools && chat.other_parts);
        assert_eq!(chat.plain(), "what is it");
    }

    #[test]
    fn a_transcript_is_cut_at_its_marks() {
        let chat = Chat::of_transcript("\n\nHuman: one\n\nand two\n\nAssistant: three").unwrap();
        let mut wanted = Chat::default();
        wanted.push("user", "one\n\nand two");
        wanted.push("assistant", "three");
        assert_eq!(chat, wanted);
        assert_eq!(Chat::of_transcript("Humans are"), None);
    }
}
