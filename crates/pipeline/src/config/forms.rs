//! Other tools' spellings that take more than a row of a table: lists of exceptions, whole blocks, texts and models.

use regex::Regex;
use serde_json::{Map, Value, json};

use super::error::Fault;
use super::hub::{self, Kind};
use super::synonyms::{DATASETS, FORMATS, MODIFIERS, NO_SCHEMES, TOGETHER, is_empty};
use super::translate::{Here, Translator, all_of, join, path, plain_word, shown};

/// `W4A16`, `W4A16_ASYM`, `W2A16G64` and the like.
pub(super) fn scheme(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let word = plain_word(value.as_str().unwrap_or_default());
    let refused =
        (NO_SCHEMES.iter()).find(|(names, ..)| names.iter().any(|name| word.starts_with(name)));
    if let Some((_, why, instead)) = refused {
        return Err(at.fault(format!("found `{}`: {why}", shown(value)), *instead));
    }
    let form = Regex::new(r"^w(\d+)a16(?:-(asym|sym))?(?:-?g(\d+))?(?:-(asym|sym))?$")
        .expect("a fixed expression");
    let Some(parts) = form.captures(&word) else {
        return Err(at.fault(
            format!("`{}` is no scheme that is known here", shown(value)),
            "write W4A16, W8A16, W4A16_ASYM or W4A16G64, or `quant: {bits: 4, group_size: 128, sym: true}`",
        ));
    };
    let number = |index: usize| parts.get(index)?.as_str().parse::<i64>().ok();
    let bits = number(1).unwrap_or_default();
    t.read_as(at, &at.resolve(".bits"), bits.into(), true)?;
    match parts.get(2).or(parts.get(4)) {
        Some(word) => {
            let sym = Value::Bool(word.as_str() == "sym");
            t.read_as(at, &at.resolve(".sym"), sym, true)?;
        }
        None => t.unless_said(at, ".sym", Value::Bool(true)),
    }
    match number(3) {
        Some(group_size) => t.read_as(at, &at.resolve(".group_size"), group_size.into(), true)?,
        // llm-compressor's W8A16 has a scale a row, all others groups of 128.
        None => t.unless_said(
            at,
            ".group_size",
            Value::from(if bits == 8 { -1 } else { 128 }),
        ),
    }
    Ok(())
}

/// GPTQModel's exceptions: expressions by Python's `re.match`, `-:` leaves a module as it is, the first that matches wins.
pub(super) fn dynamic(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    t.list(&path("rules"), &at.written)?;
    for (index, (key, overrides)) in entries(value).enumerate() {
        let (skip, expression) = match key.strip_prefix("-:") {
            Some(expression) => (true, expression),
            None => (false, key.strip_prefix("+:").unwrap_or(key)),
        };
        let pattern = format!("re:{expression}");
        let settings = (!skip).then_some(overrides);
        rule(t, index, &at.key(key), &pattern, settings)?;
    }
    Ok(())
}

/// AutoRound's exceptions: names or parts of names, 16 bits and more for modules that stay as they are.
pub(super) fn layer_config(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    t.list(&path("rules"), &at.written)?;
    for (index, (name, settings)) in entries(value).enumerate() {
        let is_float = |key: &str, word: &str| {
            (key == "bits" && word.parse::<u32>().is_ok_and(|bits| bits >= 16))
                || (key == "data_type"
                    && ["fp", "float", "fp16", "bf16", "float16"].contains(&word))
        };
        let skip = entries(settings).any(|(key, value)| is_float(key, &shown(value)))
            || settings.as_str().is_some_and(|word| {
                ["bf16", "fp16", "float16"].contains(&plain_word(word).as_str())
            });
        let scheme = json!({"scheme": settings});
        let settings = if settings.is_string() {
            &scheme
        } else {
            settings
        };
        rule(
            t,
            index,
            &at.key(name),
            &part(name),
            (!skip).then_some(settings),
        )?;
    }
    Ok(())
}

/// compressed-tensors' groups: those of all linears become `quant`, those of named modules rules.
pub(super) fn config_groups(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let (mut all, mut named) = (Vec::new(), Vec::new());
    for (name, group) in entries(value) {
        let here = at.key(name);
        let Some(group) = group.as_object() else {
            return Err(here.fault(
                format!("found `{}`, wanted a section", shown(group)),
                "write `{targets: [Linear], weights: {num_bits: 4, group_size: 128}}`",
            ));
        };
        let mut group = group.clone();
        let targets = words(
            group
                .shift_remove("targets")
                .as_ref()
                .unwrap_or(&Value::Null),
        );
        let weights = group.shift_remove("weights").unwrap_or(Value::Null);
        if !weights.is_object() {
            return Err(here.fault(
                "has no `weights`, and only weights are quantized",
                "take the group out, or write its `weights: {num_bits: 4, group_size: 128}`",
            ));
        }
        t.section(&here.block(), group)?;
        if is_empty(&weights) {
            t.idle(&here.key("weights"), "it is empty");
        }
        match targets.is_empty() || targets.iter().any(|target| is_all(target)) {
            true => all.push((here.key("weights"), weights)),
            false => named.push((here, targets, weights)),
        }
    }
    let some_only = all.is_empty();
    for (here, weights) in all {
        t.section(&here.block(), section(weights))?;
    }
    if named.is_empty() {
        return Ok(());
    }
    t.list(&path("rules"), &at.written)?;
    let count = named.len();
    for (index, (here, targets, weights)) in named.into_iter().enumerate() {
        let pattern = any_target(&here.key("targets"), &targets)?;
        rule_of(
            t,
            index,
            &here,
            &here.key("weights"),
            &pattern,
            Some(&weights),
        )?;
    }
    if some_only {
        // What no group names stays as it is.
        rule(t, count, at, "*", None)?;
    }
    Ok(())
}

/// Whom a scheme concerns: all linears, as everything here does, or in a rule its pattern.
pub(super) fn targets(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let targets = words(value);
    if at.is_rule() {
        let pattern = any_target(at, &targets)?;
        return t.read_as(at, &at.resolve(".match"), pattern.into(), true);
    }
    if targets.iter().all(|target| is_all(target)) {
        t.idle(at, "all linears of the decoder blocks are quantized but those that `ignore` and `rules` leave out");
        return Ok(());
    }
    let pattern = any_target(at, &targets)?;
    Err(at.fault(
        format!(
            "found `{}`: which linears are quantized is told by `rules` and `ignore`",
            shown(value)
        ),
        format!("write `rules: [{{match: '{pattern}', bits: 4}}, {{match: '*', skip: true}}]`"),
    ))
}

/// Names of which each may be any part of a module's name.
pub(super) fn parts(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    if value.is_null() {
        return Ok(());
    }
    let names = match value {
        Value::Array(list) if list.iter().all(Value::is_string) => words(value),
        Value::String(_) => words(value),
        // for the schema to refuse
        _ => return t.put(&path("ignore"), &at.written, value.clone()),
    };
    let mut changed = Vec::new();
    let patterns = names.iter().map(|name| {
        // The head's is a whole name as it stands, and patterns of ours stay what they are.
        if name == "lm_head" || name.starts_with("re:") || name.contains(['*', '?']) {
            return name.clone();
        }
        let pattern = format!("re:.*{}", regex::escape(name));
        changed.push(format!("`{name}` as `{pattern}`"));
        pattern
    });
    let mut patterns: Vec<String> = patterns.collect();
    let head = patterns.iter().any(|name| name == "lm_head");
    if !head {
        patterns.push("lm_head".to_owned());
    }
    ignored(t, at, value, &patterns)?;
    let mut text = format!("`{}` is read as `ignore`", at.written.join("."));
    if !changed.is_empty() {
        text = format!(
            "{text}, each name matching any part of a module's: {}",
            changed.join(", ")
        );
    }
    if !head {
        text = format!("{text}; `lm_head` stays as it is too");
    }
    t.note(at, text);
    Ok(())
}

/// `ignore: lm_head`, a list of one.
pub(super) fn one_name(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let names = words(value);
    ignored(t, at, value, &names)?;
    t.note(
        at,
        format!(
            "`{}: {}` is read as `ignore: [{}]`",
            at.written.join("."),
            shown(value),
            names.join(", ")
        ),
    );
    Ok(())
}

/// An expression without `re:`.
pub(super) fn regex(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let word = shown(value);
    let pattern = match word.starts_with("re:") {
        true => word,
        false => format!("re:{word}"),
    };
    t.read_as(at, &at.resolve(".match"), pattern.into(), true)
}

/// Formats as a word or a list of words, by the names that other tools have for them.
pub(super) fn export(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let ours = path("export");
    let (entries, listed): (Vec<Value>, bool) = match value {
        Value::Null => return Ok(()),
        Value::Array(list) => (list.clone(), true),
        Value::String(_) => (words(value).into_iter().map(Value::from).collect(), false),
        other => (vec![other.clone()], false),
    };
    let place = |index: usize| match listed {
        true => at.key(&index.to_string()),
        false => at.clone(),
    };
    let mut exports = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        exports.push(match entry {
            Value::String(word) => json!({"format": format_of(&place(index), word)?}),
            _ => entry.clone(),
        });
    }
    // Several keys of a file of another tool tell its format.
    if at.written != ours
        && let Some(there) = t.there(&ours)
        && *there == Value::Array(exports.clone())
    {
        return Ok(());
    }
    t.list(&ours, &at.written)?;
    for (index, (entry, export)) in entries.iter().zip(&exports).enumerate() {
        let (ours, written) = (join(&ours, &index.to_string()), place(index).written);
        match entry.is_string() {
            true => t.put(&join(&ours, "format"), &written, export["format"].clone())?,
            false => t.descend(&ours, &written, export.clone())?,
        }
    }
    note_list(t, at, value, "export", exports);
    Ok(())
}

/// Tells what list of ours a value is read as.
fn note_list(t: &mut Translator, at: &Here, value: &Value, ours: &str, list: Vec<Value>) {
    let text = format!(
        "`{}: {}` is read as `{ours}: {}`",
        at.written.join("."),
        shown(value),
        shown(&Value::Array(list))
    );
    t.note(at, text);
}

/// A format's word where one of ours is wanted.
pub(super) fn format(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let word = shown(value);
    let format = format_of(at, &word)?;
    let changed = format != word;
    t.read_as(at, &at.resolve(".format"), format.into(), changed)
}

fn format_of(at: &Here, word: &str) -> Result<String, Fault> {
    let plain = plain_word(word);
    // `gguf:q4_k_m`
    let plain = plain
        .split_once(':')
        .map_or(plain.as_str(), |(name, _)| match name {
            "gguf" => name,
            _ => plain.as_str(),
        });
    match FORMATS.iter().find(|(names, _)| names.contains(&plain)) {
        Some((_, Ok(format))) => Ok((*format).to_owned()),
        Some((_, Err(instead))) => Err(at.fault(
            format!("`{word}` is no format that halfbyte writes"),
            *instead,
        )),
        // For the schema to answer.
        None => Ok(plain.to_owned()),
    }
}

/// A model as a word: a folder, a hub id or its address.
pub(super) fn model(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let word = shown(value);
    let (source, changed) = match hub::address(&word, Kind::Model) {
        None => (word, false),
        Some(Ok(id)) => (id, true),
        Some(Err(unfit)) => return Err(at.fault(unfit.problem, unfit.hint)),
    };
    t.read_as(at, &path("model.source"), source.into(), changed)
}

/// Calibration texts as a word or a list of words, some of which may be entries of ours.
pub(super) fn texts(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    if value.is_null() {
        return Ok(());
    }
    let ours = path("calibration.sources");
    let (entries, listed) = match value {
        Value::Array(list) => (list.clone(), true),
        other => (vec![other.clone()], false),
    };
    t.list(&ours, &at.written)?;
    let mut shown_entries = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let place = match listed {
            true => at.key(&index.to_string()),
            false => at.clone(),
        };
        let ours = join(&ours, &index.to_string());
        if let Value::String(word) = entry {
            let (key, text) = text_of(&place, word, at.is_named("data"))?;
            t.put(&join(&ours, key), &place.written, text.as_str().into())?;
            shown_entries.push(json!({key: text}));
        } else {
            t.descend(&ours, &place.written, entry.clone())?;
            shown_entries.push(entry.clone());
        }
    }
    note_list(t, at, value, "calibration.sources", shown_entries);
    Ok(())
}

/// One text in an entry of ours, by the key that it has there.
pub(super) fn source(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    let word = shown(value);
    let is_path = at.is_named("path") || at.is_named("file");
    let is_own = is_path || at.is_named("dataset");
    let (key, text) = match hub::address(&word, Kind::Dataset) {
        None if is_path => ("path", word.clone()),
        // `dataset: wiki` is no hub id, and check says so.
        None if is_own && !looks_like_file(&word) && short_name(&word).is_none() => {
            ("dataset", word.clone())
        }
        _ => text_of(at, &word, true)?,
    };
    let changed = text != word;
    t.read_as(at, &at.resolve(&format!(".{key}")), text.into(), changed)
}

/// The column of the one source that another key names.
pub(super) fn text_column(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    t.of_first_source(at, "text_column", value.clone());
    Ok(())
}

/// A file, folder or data set, and the key of ours that says so; `dataset` where names without a slash are data sets.
fn text_of(at: &Here, word: &str, dataset: bool) -> Result<(&'static str, String), Fault> {
    if let Some((name, options)) = word.split_once(':')
        && options.contains('=')
    {
        return Err(at.fault(
            format!("found `{word}`: what follows the name of a text is told by keys of its own"),
            format!("write `calibration: {{sources: [{{dataset: {name}, weight: 1}}]}}`"),
        ));
    }
    match hub::address(word, Kind::Dataset) {
        Some(Ok(id)) => return Ok(("dataset", id)),
        Some(Err(unfit)) => return Err(at.fault(unfit.problem, unfit.hint)),
        None => {}
    }
    match short_name(word) {
        Some(Ok(id)) => return Ok(("dataset", (*id).to_owned())),
        Some(Err(instead)) if dataset => {
            return Err(at.fault(
                format!("`{word}` is a name that other tools have for a data set"),
                *instead,
            ));
        }
        _ => {}
    }
    let is_id = dataset && word.split('/').count() == 2 && !looks_like_file(word);
    Ok((if is_id { "dataset" } else { "path" }, word.to_owned()))
}

fn short_name(word: &str) -> Option<&'static Result<&'static str, &'static str>> {
    let plain = plain_word(word);
    let found = DATASETS
        .iter()
        .find(|(names, _)| names.contains(&plain.as_str()));
    found.map(|(_, place)| place)
}

fn looks_like_file(word: &str) -> bool {
    const ENDS: &[&str] = &[
        ".txt", ".md", ".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".gz", ".zst",
        ".text",
    ];
    word.starts_with(['.', '/', '~']) || ENDS.iter().any(|end| word.to_lowercase().ends_with(end))
}

/// A block of another tool's settings.
pub(super) fn block(t: &mut Translator, at: &Here, value: &Value) -> Result<(), Fault> {
    t.section(&at.block(), section(value.clone()))
}

/// llm-compressor's modifiers, together the method.
pub(super) fn modifiers(
    t: &mut Translator,
    here: &Here,
    modifiers: Vec<(String, Value)>,
) -> Result<(), Fault> {
    let mut methods: Vec<&str> = Vec::new();
    for (name, _) in &modifiers {
        let known = MODIFIERS.iter().find(|(known, _)| known == name);
        let Some((_, method)) = known else {
            let names: Vec<String> = MODIFIERS
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect();
            return Err(here.key(name).fault(
                "halfbyte has no such step",
                format!("take it out; {} are known", all_of(&names)),
            ));
        };
        methods.push(method);
    }
    methods.sort_unstable();
    methods.dedup();
    let method = match methods.as_slice() {
        [method] => *method,
        several => (TOGETHER.iter())
            .find(|(together, _)| *together == several)
            .map_or("gptq", |(_, method)| method),
    };
    let names: Vec<String> = (modifiers.iter())
        .map(|(name, _)| format!("`{}`", here.key(name).written.join(".")))
        .collect();
    let at = here.key(&modifiers[0].0);
    t.put(&path("method"), &at.written, method.into())?;
    t.note(
        &at,
        format!("{} is read as `method: {method}`", all_of(&names)),
    );
    for (name, body) in modifiers {
        let at = here.key(&name);
        match body {
            Value::Object(body) => t.section(&at.block(), body)?,
            Value::Null => {}
            other => {
                return Err(at.fault(
                    format!("found `{}`, wanted a section", shown(&other)),
                    "write `{scheme: W4A16, ignore: [lm_head]}`",
                ));
            }
        }
    }
    Ok(())
}

/// A rule whose settings stand below its pattern; none leaves the module as it is.
fn rule(
    t: &mut Translator,
    index: usize,
    at: &Here,
    pattern: &str,
    settings: Option<&Value>,
) -> Result<(), Fault> {
    rule_of(t, index, at, at, pattern, settings)
}

/// A rule at a place of the list, its settings at a place of their own, and the note about it.
fn rule_of(
    t: &mut Translator,
    index: usize,
    at: &Here,
    settings_at: &Here,
    pattern: &str,
    settings: Option<&Value>,
) -> Result<(), Fault> {
    let ours = join(&path("rules"), &index.to_string());
    t.remember(&ours, &at.written);
    t.put(&join(&ours, "match"), &at.written, pattern.into())?;
    match settings {
        None => t.put(&join(&ours, "skip"), &at.written, Value::Bool(true))?,
        Some(Value::Object(settings)) => {
            t.section(
                &Here::of(ours.clone(), settings_at.written.clone()),
                settings.clone(),
            )?;
        }
        Some(Value::Null) => {}
        Some(other) => {
            return Err(at.fault(
                format!("found `{}`, wanted a section", shown(other)),
                "write `{bits: 8, group_size: 64}`, or `{}` for the settings of `quant`",
            ));
        }
    }
    let changes = |rule: &Value| rule.as_object().is_some_and(|rule| rule.len() > 1);
    if !t.there(&ours).is_some_and(changes) {
        // It stands before others, which would match as well.
        t.put(&join(&ours, "skip"), &at.written, Value::Bool(false))?;
    }
    let rule = t.there(&ours).map(shown).unwrap_or_default();
    t.note(
        at,
        format!(
            "`{}` is read as `{}: {rule}`",
            at.written.join("."),
            ours.join(".")
        ),
    );
    Ok(())
}

/// A list of names as `ignore`.
fn ignored(t: &mut Translator, at: &Here, value: &Value, patterns: &[String]) -> Result<(), Fault> {
    let ours = path("ignore");
    t.list(&ours, &at.written)?;
    for (index, pattern) in patterns.iter().enumerate() {
        let place = index.to_string();
        let written = match value.get(index) {
            Some(_) => join(&at.written, &place),
            None => at.written.clone(),
        };
        t.put(&join(&ours, &place), &written, pattern.as_str().into())?;
    }
    Ok(())
}

/// One pattern of ours for targets of compressed-tensors: names, or `re:` and an expression.
fn any_target(at: &Here, targets: &[String]) -> Result<String, Fault> {
    if let Some(class) = targets
        .iter()
        .find(|target| target.starts_with(char::is_uppercase))
    {
        return Err(at.fault(
            format!("`{class}` is a class of modules, and of those only `Linear` is quantized"),
            "write `Linear` for all linears, a module's name, or `re:` and a regular expression",
        ));
    }
    match targets {
        [] => Err(at.fault(
            "found an empty list, wanted at least one name",
            "write `[Linear]` for all linears",
        )),
        [target] => Ok(target.clone()),
        several => {
            let each = several
                .iter()
                .map(|target| match target.strip_prefix("re:") {
                    Some(expression) => format!("(?:{expression})"),
                    None => format!("{}$", regex::escape(target)),
                });
            Ok(format!("re:(?:{})", each.collect::<Vec<_>>().join("|")))
        }
    }
}

fn is_all(target: &str) -> bool {
    ["Linear", "*", "re:.*", "all-linear"].contains(&target)
}

/// A name as a pattern that finds it anywhere: an expression where it looks like one, else a part.
fn part(name: &str) -> String {
    match name.contains(['*', '+', '?', '[', ']', '(', ')', '|', '^', '$', '\\']) {
        true => format!("re:.*(?:{})", name.trim_start_matches('^')),
        false => format!("*{name}*"),
    }
}

/// The words of a list, or of a text with commas.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => {
            let words = text
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty());
            words.map(str::to_owned).collect()
        }
        Value::Array(list) => list.iter().map(shown).collect(),
        _ => Vec::new(),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let section = value.as_object().into_iter().flatten();
    section.map(|(key, value)| (key.as_str(), value))
}

fn section(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(section) => section,
        _ => Map::new(),
    }
}
