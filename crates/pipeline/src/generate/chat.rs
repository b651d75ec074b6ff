use std::io;

use anyhow::Result;
use halfbyte_checkpoint::ModelFolder;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value as Jinja;
use minijinja::{Environment, ErrorKind, context};
use serde_json::Value;

use super::stop::json_file;
use crate::error::{UserError, user_error};

/// How a model wants a conversation written: chat_template.jinja, or `chat_template` of tokenizer_config.json.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    source: String,
    /// Where it was found.
    place: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// The folder's template, where it has one.
    pub(super) fn of(folder: &ModelFolder) -> Result<Option<Self>> {
        let Some((source, file)) = source(folder)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            source,
            place: format!("{}: {file}", folder.place()),
            bos_token: special_token(folder, "bos_token")?,
            eos_token: special_token(folder, "eos_token")?,
        }))
    }

    /// A conversation of one user's message, up to where the model's answer begins. Settings and names are those of
    /// transformers' `apply_chat_template`.
    pub(super) fn render(&self, message: &str) -> Result<String> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| self.fault(&e))?);
        environment.set_fuel(Some(STEPS));
        // strings' and dicts' methods as Python has them
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| {
            let refused = minijinja::Error::new(ErrorKind::InvalidOperation, reason);
            Err::<Jinja, _>(refused)
        });
        let messages = [context! { role => "user", content => message }];
        let mut names = vec![
            ("messages", Jinja::from_iter(messages)),
            ("add_generation_prompt", Jinja::from(true)),
        ];
        // A token that the tokenizer lacks is undefined rather than empty: templates ask.
        for (name, token) in [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
        ] {
            names.extend(token.as_deref().map(|token| (name, Jinja::from(token))));
        }
        let template = environment.template_from_named_str("chat_template", &self.source);
        let mut text = Bounded(Vec::new());
        template
            .and_then(|template| template.render_captured_to(Jinja::from_pairs(names), &mut text))
            .map_err(|e| self.fault(&e))?;
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }

    fn fault(&self, error: &minijinja::Error) -> anyhow::Error {
        user_error(
            format!("{}: chat template: {error}", self.place),
            "give the prompt as it stands with --raw",
        )
    }
}

/// Steps of a template and bytes of its text at most: a conversation takes thousands, a loop within loops all time and memory.
const STEPS: u64 = 2_000_000;
const MOST_BYTES: usize = 16 << 20;

/// A text that does not grow past [`MOST_BYTES`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::Error::other(format!(
                "its text passes {MOST_BYTES} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template's text and the file it stands in.
fn source(folder: &ModelFolder) -> Result<Option<(String, &'static str)>> {
    const FILE: &str = "chat_template.jinja";
    if folder.other_files()?.iter().any(|name| name == FILE) {
        let text = String::from_utf8(folder.read_file(FILE)?.into_owned());
        let text = text.map_err(|_| UserError {
            message: format!("{}: {FILE}: not UTF-8", folder.place()),
            hint: Some("give the prompt as it stands with --raw".to_owned()),
        })?;
        return Ok(Some((text, FILE)));
    }
    const CONFIG: &str = "tokenizer_config.json";
    let Some(config) = json_file(folder, CONFIG)? else {
        return Ok(None);
    };
    let found = match &config["chat_template"] {
        Value::Null => return Ok(None),
        Value::String(text) => Some(text.clone()),
        // several by name, of which this is the one for conversations
        Value::Array(list) => list
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| Some(entry["template"].as_str()?.to_owned())),
        _ => None,
    };
    match found {
        Some(text) => Ok(Some((text, CONFIG))),
        None => Err(user_error(
            format!(
                "{}: {CONFIG}: chat_template: wanted a text, or a list with an entry named default",
                folder.place()
            ),
            "give the prompt as it stands with --raw",
        )),
    }
}

/// A special token's text by tokenizer_config.json: a string, or an object with `content`.
pub(super) fn special_token(folder: &ModelFolder, name: &str) -> Result<Option<String>> {
    let Some(config) = json_file(folder, "tokenizer_config.json")? else {
        return Ok(None);
    };
    let token = &config[name];
    let text = token.as_str().or_else(|| token["content"].as_str());
    Ok(text.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let template = ChatTemplate {
            source: source.to_owned(),
            place: "model: chat_template.jinja".to_owned(),
            bos_token: Some("<s>".to_owned()),
            eos_token: None,
        };
        template.render(" Hello ")
    }

    #[test]
    fn a_template_without_end_is_refused() {
        let range = "range(3000)";
        let loops = format!(
            "{{% for a in {range} %}}{{% for b in {range} %}}{{% set x = a %}}{{% endfor %}}{{% endfor %}}"
        );
        let found = render(&loops).unwrap_err().to_string();
        assert!(found.contains("chat template"), "{found}");
        let long = "{% for a in range(3000) %}{{ 'a' * 9000 }}{% endfor %}";
        assert!(render(long).is_err());
    }

    /// What jinja2 3.1 gives with `trim_blocks` and `lstrip_blocks`, as transformers sets them.
    #[test]
    fn templates_are_read_as_jinja2_reads_them() {
        for (source, wanted) in [
            (
                "{{ bos_token }}\n{% for m in messages %}\n    {% if m['role'] == 'user' %}\n[{{ m.content | trim }}]\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}ASSISTANT:{% endif %}",
                "<s>\n[Hello]\nASSISTANT:",
            ),
            (
                "{{ messages[0].content.strip().upper() }}{{ messages[0]['content'].startswith(' H') }}",
                "HELLOTrue",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{{ loop.first }}{% endfor %}{{ ns.n }}",
                "True1",
            ),
            (
                "{{ tools is defined }}{{ eos_token is defined }}{{ messages[-1].content | tojson }}",
                "FalseFalse\" Hello \"",
            ),
        ] {
            assert_eq!(render(source).unwrap(), wanted, "{source}");
        }
    }

    #[test]
    fn a_template_that_refuses_or_is_broken_says_so_and_how_to_do_without() {
        let refused = render("{{ raise_exception('no system role') }}").unwrap_err();
        assert!(refused.to_string().contains("no system role"), "{refused}");
        assert!(render("{% for %}").is_err());
        assert_eq!(
            crate::hint(&refused).as_deref(),
            Some("give the prompt as it stands with --raw")
        );
    }
}
