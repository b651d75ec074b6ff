use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use halfbyte_calibrate::text::Message;
use halfbyte_checkpoint::ModelFolder;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

use super::stop::json_file;
use crate::error::{UserError, user_error};

/// How a model wants a conversation written: chat_template.jinja, chat_template.json, or `chat_template` of
/// tokenizer_config.json.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Where it was found.
    place: String,
    /// Special tokens by their names in tokenizer_config.json, such as `bos_token`.
    tokens: Vec<(String, Jinja)>,
}

/// What day a template is told that it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Today {
    /// The computer's day and time, in UTC.
    Clock,
    /// 1 January 2025, so that a text does not depend on when it is read.
    Fixed,
}

const FIXED_SECONDS: u64 = 1_735_689_600;

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// The folder's template, where it has one.
    pub(crate) fn of(folder: &ModelFolder, today: Today) -> Result<Option<Self>> {
        let Some((source, file)) = source(folder)? else {
            return Ok(None);
        };
        let place = format!("{}: {file}", folder.place());
        Self::new(&source, place, special_tokens(folder)?, today).map(Some)
    }

    /// Settings, names and filters are those of transformers' `apply_chat_template`.
    fn new(
        source: &str,
        place: String,
        tokens: Vec<(String, Jinja)>,
        today: Today,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| fault(&place, &e))?);
        environment.set_fuel(Some(STEPS));
        // strings' and dicts' methods as Python has them
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| {
            let refused = minijinja::Error::new(ErrorKind::InvalidOperation, reason);
            Err::<Jinja, _>(refused)
        });
        environment.add_function("strftime_now", move |format: String| {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH);
            let seconds = match today {
                Today::Clock => clock.map_or(FIXED_SECONDS, |passed| passed.as_secs()),
                Today::Fixed => FIXED_SECONDS,
            };
            strftime(&format, seconds)
        });
        environment.add_filter("tojson", tojson);
        let added = environment.add_template_owned(NAME, without_generation(source));
        added.map_err(|e| fault(&place, &e))?;
        Ok(Self {
            environment,
            place,
            tokens,
        })
    }

    /// A conversation, and, where the model is to go on, up to where its answer begins.
    pub(crate) fn render(&self, messages: &[Message], go_on: bool) -> Result<String> {
        self.write(messages, go_on)
            .map_err(|e| fault(&self.place, &e))
    }

    /// As [`Self::render`] without an answer to go on with, for texts that were said; what is wrong in words.
    pub(crate) fn render_said(&self, messages: &[Message]) -> Result<String, String> {
        self.write(messages, false)
            .map_err(|e| format!("{}: {e}", self.place))
    }

    fn write(&self, messages: &[Message], go_on: bool) -> Result<String, minijinja::Error> {
        let names = [
            (
                "messages",
                Jinja::from_iter(messages.iter().map(|message| {
                    Jinja::from_pairs([("role", &message.role), ("content", &message.content)])
                })),
            ),
            ("add_generation_prompt", Jinja::from(go_on)),
        ];
        // A token that the tokenizer lacks is undefined rather than empty: templates ask.
        let tokens = self
            .tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token.clone()));
        let names = Jinja::from_pairs(names.into_iter().chain(tokens));
        let template = self.environment.get_template(NAME)?;
        let mut text = Bounded(Vec::new());
        template.render_captured_to(names, &mut text)?;
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }
}

fn fault(place: &str, error: &minijinja::Error) -> anyhow::Error {
    user_error(
        format!("{place}: chat template: {error}"),
        "give the prompt as it stands with --raw",
    )
}

/// The template without the marks around what the model is trained to say, `{% generation %}` and `{% endgeneration %}`, which
/// change no text; what they say of white space stays.
fn without_generation(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let sign = |sign: Option<char>| sign.filter(|c| "-+".contains(*c)).map(String::from);
        let (open, close) = (
            sign(inner.chars().next()).unwrap_or_default(),
            sign(inner.chars().last()).unwrap_or_default(),
        );
        match inner.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&format!("{{%{open} if true {close}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{open} endif {close}%}}")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// JSON as Python's `json.dumps` writes it, whose arguments it takes; unlike Jinja's own filter it escapes nothing for HTML.
fn tojson(value: &Jinja, indent: Option<Jinja>, args: Kwargs) -> Result<Jinja, minijinja::Error> {
    let failed =
        |reason: &str| minijinja::Error::new(ErrorKind::InvalidOperation, reason.to_owned());
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<Jinja>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none() && !indent.is_undefined()) {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(
                usize::try_from(indent)
                    .ok()
                    .filter(|spaces| *spaces <= 16)
                    .ok_or_else(|| failed("tojson: indent is 0 to 16, or a string"))?,
            ),
        }),
        None => None,
    };
    let separators = args.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(failed("tojson: separators are two")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Style {
        ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    args.assert_all_used()?;
    let value =
        serde_json::to_value(value).map_err(|_| failed("tojson: no JSON for this value"))?;
    let mut out = String::new();
    style.write(&value, 0, &mut out);
    Ok(Jinja::from_safe_string(out))
}

/// How JSON is written.
struct Style {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Array(list) => self.between(list.iter(), '[', ']', depth, out, |item, out| {
                self.write(item, depth + 1, out);
            }),
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sorted {
                    fields.sort_by_key(|(name, _)| name.as_str());
                }
                self.between(
                    fields.into_iter(),
                    '{',
                    '}',
                    depth,
                    out,
                    |(name, value), out| {
                        self.string(name, out);
                        out.push_str(&self.key);
                        self.write(value, depth + 1, out);
                    },
                );
            }
            Value::String(text) => self.string(text, out),
            other => out.push_str(&other.to_string()),
        }
    }

    fn between<T>(
        &self,
        items: impl ExactSizeIterator<Item = T>,
        open: char,
        close: char,
        depth: usize,
        out: &mut String,
        write: impl Fn(T, &mut String),
    ) {
        let line = |depth: usize| match &self.indent {
            Some(indent) => format!("\n{}", indent.repeat(depth)),
            None => String::new(),
        };
        let is_empty = items.len() == 0;
        out.push(open);
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            out.push_str(&line(depth + 1));
            write(item, out);
        }
        if !is_empty {
            out.push_str(&line(depth));
        }
        out.push(close);
    }

    fn string(&self, text: &str, out: &mut String) {
        for c in Value::from(text).to_string().chars() {
            match self.ascii && !c.is_ascii() {
                true => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                false => out.push(c),
            }
        }
    }
}

/// A time in UTC by Python's `strftime`; what it does not know stays as it is written.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(is_leap(year)) {
        rest -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let of_year = rest + 1;
    let length = |month: usize| match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    let mut month = 0;
    while rest >= length(month) {
        rest -= length(month);
        month += 1;
    }
    let (day, weekday) = (rest + 1, DAYS[(days % 7) as usize]);
    let half_day = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut code = letters.next();
        // "%-d" is a number without a zero before it
        let bare = code == Some('-');
        if bare {
            code = letters.next();
        }
        let number = |value: u64, width: usize| match bare {
            true => value.to_string(),
            false => format!("{value:0width$}"),
        };
        out.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month as u64 + 1, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(of_year, 3),
            Some('B') => MONTHS[month].to_owned(),
            Some('b' | 'h') => MONTHS[month][..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => number(hour, 2),
            Some('I') => number(half_day, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{:02}-{day:02}", month + 1),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    out
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
        let bytes = folder.read_file(FILE)?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let text = String::from_utf8(bytes.to_vec());
        let text = text.map_err(|_| UserError {
            message: format!("{}: {FILE}: not UTF-8", folder.place()),
            hint: Some("give the prompt as it stands with --raw".to_owned()),
        })?;
        return Ok(Some((text, FILE)));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let Some(config) = json_file(folder, file)? else {
            continue;
        };
        // several by name, of which this is the one for conversations
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let found = match &config["chat_template"] {
            Value::Null => continue,
            Value::Array(list) => match list.iter().find(|entry| entry["name"] == "default") {
                None if list.len() == 1 => text(&list[0]["template"]),
                found => found.and_then(|entry| text(&entry["template"])),
            },
            Value::Object(named) => named.get("default").and_then(text),
            one => text(one),
        };
        return match found {
            Some(text) => Ok(Some((text, file))),
            None => Err(user_error(
                format!(
                    "{}: {file}: chat_template: wanted a text, or a list with an entry named default",
                    folder.place()
                ),
                "give the prompt as it stands with --raw",
            )),
        };
    }
    Ok(None)
}

/// All special tokens that tokenizer_config.json names, and special_tokens_map.json where that one does not: a string, or an
/// object with `content`; `additional_special_tokens` are a list of these.
fn special_tokens(folder: &ModelFolder) -> Result<Vec<(String, Jinja)>> {
    const MORE: &str = "additional_special_tokens";
    let mut found: Vec<(String, Jinja)> = Vec::new();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(Value::Object(fields)) = json_file(folder, file)? else {
            continue;
        };
        for (name, value) in &fields {
            let token = match value {
                Value::Array(list) if name == MORE => {
                    let texts: Vec<&str> = list.iter().filter_map(token_text).collect();
                    Some(Jinja::from_iter(texts))
                }
                value if name.ends_with("_token") => token_text(value).map(Jinja::from),
                _ => None,
            };
            if let Some(token) = token
                && !found.iter().any(|(known, _)| known == name)
            {
                found.push((name.clone(), token));
            }
        }
    }
    Ok(found)
}

/// A token's text: a string, or an object with `content`.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// A special token's text by tokenizer_config.json, or else by special_tokens_map.json.
pub(super) fn special_token(folder: &ModelFolder, name: &str) -> Result<Option<String>> {
    let tokens = special_tokens(folder)?;
    let token = tokens.iter().find(|(known, _)| known == name);
    Ok(token.and_then(|(_, token)| Some(token.as_str()?.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<ChatTemplate> {
        let bos = ("bos_token".to_owned(), Jinja::from("<s>"));
        ChatTemplate::new(
            source,
            "model: chat_template.jinja".to_owned(),
            vec![bos],
            Today::Fixed,
        )
    }

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    fn render(source: &str) -> Result<String> {
        template(source)?.render(&[message("user", " Hello ")], true)
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

    /// What Python's json and datetime, and jinja2 with the extension of transformers, give.
    #[test]
    fn what_transformers_adds_to_jinja2_is_there() {
        for (source, wanted) in [
            (
                "{% for m in messages %}[{%- generation -%} {{ m.content }} {%- endgeneration %}]\n{% endfor %}",
                "[ Hello ]\n",
            ),
            ("{% generation %}\na\n{% endgeneration %}\nb", "a\nb"),
            (
                "{{ strftime_now('%d %b %Y, %A %-d. %B %y %H:%M %j %%') }}",
                "01 Jan 2025, Wednesday 1. January 25 00:00 001 %",
            ),
            ("{{ 'ü<&\\'' | tojson }}", "\"ü<&'\""),
            (
                "{{ 'ü😀' | tojson(ensure_ascii=true) }}",
                "\"\\u00fc\\ud83d\\ude00\"",
            ),
            ("{{ 'ü' | tojson(ensure_ascii=False) }}", "\"ü\""),
            (
                "{{ {'b': [1, 2.5, none], 'a': {}} | tojson }}",
                "{\"b\": [1, 2.5, null], \"a\": {}}",
            ),
            (
                "{{ {'b': [1], 'a': []} | tojson(indent=2, sort_keys=true) }}",
                "{\n  \"a\": [],\n  \"b\": [\n    1\n  ]\n}",
            ),
            (
                "{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}",
                "[1,{\"a\":2}]",
            ),
            (
                "{{ messages[0] | tojson }}",
                "{\"role\": \"user\", \"content\": \" Hello \"}",
            ),
        ] {
            assert_eq!(render(source).unwrap(), wanted, "{source}");
        }
    }

    #[test]
    fn days_are_counted_as_calendars_do() {
        for (seconds, wanted) in [
            (0, "1970-01-01 Thursday 001"),
            (951_782_400, "2000-02-29 Tuesday 060"),
            (1_709_164_800, "2024-02-29 Thursday 060"),
            (1_767_139_200, "2025-12-31 Wednesday 365"),
            (4_107_542_400, "2100-03-01 Monday 060"),
        ] {
            assert_eq!(strftime("%F %A %j", seconds), wanted);
        }
        assert_eq!(strftime("%I:%M:%S %p %T", 86_399), "11:59:59 PM 23:59:59");
        assert_eq!(strftime("%Q %", 0), "%Q %");
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
