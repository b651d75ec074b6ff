//! What is to be told of a model and a pipeline before any work: what is not honoured, what reaches nothing, what is longer
//! than the model was made for.
//!
//! One place for `plan`, `run`, `sweep`, `eval`, `sensitivity` and `generate`. What would give another model than the one
//! asked for is an error, all else a sentence for a warning.

use anyhow::Result;
use halfbyte_checkpoint::{ModelConfig, ModelFolder};
use halfbyte_model::LinearKind;
use halfbyte_report::UnreadRecord;

use crate::config::{Pattern, Pipeline, Treatment, nearest};
use crate::error::user_error;

/// Names that a message gives of many.
const NAMED: usize = 3;
/// Names of unread tensors that run.json has.
const RECORDED: usize = 8;

/// All that is to be told of a run or a sweep but what its text tells. `reads_text` is whether calibration text is read.
pub(crate) fn of_run(
    pipeline: &Pipeline,
    folder: &ModelFolder,
    reads_text: bool,
) -> Result<Vec<String>> {
    let mut told = of_model(folder)?;
    told.extend(of_patterns(pipeline, folder)?);
    let config = folder.config();
    if reads_text {
        let tokens = pipeline.calibration.sequence_length;
        told.extend(of_length(config, "calibration.sequence_length", tokens));
    }
    if let Some(evaluate) = &pipeline.evaluate {
        let tokens = evaluate.sequence_length;
        told.extend(of_length(config, "evaluate.sequence_length", tokens));
    }
    Ok(told)
}

/// What is to be told of a model that is read, whatever for.
///
/// # Errors
/// Tensors that the model's architecture has no place for and that would change what it computes.
pub(crate) fn of_model(folder: &ModelFolder) -> Result<Vec<String>> {
    let unread = folder.unread_tensors()?;
    let mut told = folder.notices().to_vec();
    let blocks = folder.config().num_hidden_layers;
    let (layers, others): (Vec<_>, Vec<_>) = unread
        .into_iter()
        .partition(|name| name.starts_with("model.layers."));
    if !layers.is_empty() {
        told.push(format!(
            "{} of layers past the {blocks} of num_hidden_layers ({}) take no part in the model; they are carried along as they \
             are",
            tensors(layers.len()),
            first(&layers)
        ));
    }
    if !others.is_empty() {
        told.push(format!(
            "{} that {} does not read ({}) take no part in the model; they are carried along as they are",
            tensors(others.len()),
            folder.config().row().architecture,
            first(&others)
        ));
    }
    Ok(told)
}

/// What is to be told of a sequence length, under the name that the user knows it by.
pub(crate) fn of_length(config: &ModelConfig, key: &str, tokens: usize) -> Option<String> {
    let positions = config.positions();
    (tokens > positions).then(|| {
        format!(
            "{key}: {tokens} tokens, and the model is made for {positions} (max_position_embeddings in its config.json): what it \
             predicts past them means little"
        )
    })
}

/// The names of tensors that no part of the model reads, for the record; nothing where there are none.
pub(crate) fn unread(folder: &ModelFolder) -> Option<UnreadRecord> {
    let names = folder.unread_tensors().ok()?;
    (!names.is_empty()).then(|| UnreadRecord {
        count: names.len() as u64,
        first: names.into_iter().take(RECORDED).collect(),
    })
}

/// Modules that are carried along with weights of two dimensions, which a quantized checkpoint must list as not quantized.
pub(crate) fn carried_linears(folder: &ModelFolder) -> Result<Vec<String>> {
    let mut modules = Vec::new();
    for name in folder.unread_tensors()? {
        if let Some(module) = name.strip_suffix(".weight")
            && folder.tensor(&name)?.shape.len() == 2
        {
            modules.push(module.to_owned());
        }
    }
    Ok(modules)
}

/// What is to be told of the patterns of `ignore`, the rules and the budget's floors.
///
/// # Errors
/// A rule or a floor that matches no linear: what it asks for would not be done.
fn of_patterns(pipeline: &Pipeline, folder: &ModelFolder) -> Result<Vec<String>> {
    let blocks = folder.config().num_hidden_layers;
    let linears: Vec<String> = (0..blocks)
        .flat_map(|block| LinearKind::ALL.map(|kind| kind.module(block)))
        .collect();
    let modules = Modules {
        linears: &linears,
        others: folder
            .names()
            .filter_map(|name| Some(name.rsplit_once('.')?.0))
            .chain(["lm_head"])
            .collect(),
        blocks,
    };
    let mut told = Vec::new();
    for pattern in &pipeline.ignore {
        if !modules.has(pattern) {
            told.push(format!(
                "{}, so that it keeps nothing as it is; {}",
                modules.matches_none(pattern),
                modules.hint(pattern)
            ));
        }
    }
    // patterns that come before the one at hand, whose modules it does not decide on
    let mut earlier: Vec<&Pattern> = pipeline.ignore.iter().collect();
    for rule in &pipeline.rules {
        let keeps_other = rule.treatment == Treatment::Keep && modules.has(&rule.pattern);
        if !keeps_other {
            told.extend(modules.reaches(&rule.pattern, &earlier)?);
        }
        earlier.push(&rule.pattern);
    }
    let floors = pipeline.budget.iter().flat_map(|budget| &budget.floors);
    for (pattern, _) in floors {
        told.extend(modules.reaches(pattern, &earlier)?);
        earlier.push(pattern);
    }
    Ok(told)
}

/// The names that patterns are held against.
struct Modules<'a> {
    /// The linears of the blocks, which are quantized.
    linears: &'a [String],
    /// All other modules with tensors, and the head.
    others: Vec<&'a str>,
    blocks: usize,
}

impl Modules<'_> {
    /// Whether there is any module that a pattern matches.
    fn has(&self, pattern: &Pattern) -> bool {
        self.matched(pattern).next().is_some() || self.others.iter().any(|m| pattern.matches(m))
    }

    /// The linears that a pattern matches.
    fn matched(&self, pattern: &Pattern) -> impl Iterator<Item = &String> {
        self.linears.iter().filter(|linear| pattern.matches(linear))
    }

    /// Warns of a pattern that decides on nothing because of earlier ones.
    ///
    /// # Errors
    /// A pattern that matches no linear at all.
    fn reaches(&self, pattern: &Pattern, earlier: &[&Pattern]) -> Result<Option<String>> {
        let matched: Vec<&String> = self.matched(pattern).collect();
        if matched.is_empty() {
            return match self.has(pattern) {
                true => Err(user_error(
                    format!(
                        "{}: `{pattern}` matches no linear of the decoder blocks, and only those are quantized",
                        pattern.place()
                    ),
                    "take it out; all other modules stay as they are",
                )),
                false => Err(user_error(self.matches_none(pattern), self.hint(pattern))),
            };
        }
        let mut before: Vec<&Pattern> = Vec::new();
        for linear in &matched {
            match earlier.iter().find(|p| p.matches(linear)) {
                None => return Ok(None),
                Some(first) if before.iter().any(|p| p.place() == first.place()) => {}
                Some(first) => before.push(first),
            }
        }
        let named: Vec<String> = before
            .iter()
            .map(|p| format!("`{p}` ({})", p.place()))
            .collect();
        let all = match matched.len() {
            1 => "the one module it matches is".to_owned(),
            n => format!("all {n} modules it matches are"),
        };
        Ok(Some(format!(
            "{}: `{pattern}` changes nothing: {all} matched first by {}; put what is to win first",
            pattern.place(),
            named.join(", ")
        )))
    }

    fn matches_none(&self, pattern: &Pattern) -> String {
        format!("{}: `{pattern}` matches no module", pattern.place())
    }

    /// How modules are named, and what might have been meant.
    fn hint(&self, pattern: &Pattern) -> String {
        let example = LinearKind::Down.module(0);
        let named = format!("modules are named like {example}");
        if let Some((meant, count)) = self.meant(pattern.as_str()) {
            return format!("{named}; write `{meant}`, which matches {count} of them");
        }
        if let Some(block) = block_number(pattern.as_str()).filter(|&b| b >= self.blocks) {
            return format!(
                "{named}; block {block} is not there, they count from 0 to {}",
                self.blocks - 1
            );
        }
        format!(
            "{named}; a name is written in full, with `*` for any part of it, or as a regular expression after `re:`"
        )
    }

    /// A spelling that matches linears, near to one that does not, and how many.
    fn meant(&self, written: &str) -> Option<(String, usize)> {
        let bare = written.strip_prefix("re:").unwrap_or(written);
        let core = bare.trim_start_matches('^').trim_start_matches(".*");
        let is_expression = written.starts_with("re:")
            || core != bare
            || bare.contains(['\\', '|', '(', '[', '+', '$']);
        let mut tries: Vec<String> = Vec::new();
        if is_expression {
            tries.extend([format!("re:{bare}"), format!("re:.*{core}")]);
        } else if core.contains(['*', '?']) {
            let core = core.trim_start_matches('*');
            tries.extend([format!("*{core}"), format!("*{core}*")]);
        } else {
            let name = regex::escape(core);
            // a number is not to find those that it begins
            let numbered = core.ends_with(|c: char| c.is_ascii_digit());
            tries.push(match numbered {
                true => format!("re:.*{name}\\."),
                false => format!("re:.*{name}"),
            });
        }
        // a slip in the last part of the name
        let mut words = bare.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-');
        let last = words.rfind(|word| word.len() > 2);
        let short = LinearKind::ALL.map(LinearKind::short);
        if let Some(near) = last.and_then(|last| nearest(last, &short)) {
            let cut = bare.rfind(last.unwrap_or_default()).unwrap_or(0);
            let whole = format!("{}{near}", &written[..written.len() - bare.len() + cut]);
            tries.extend([whole, format!("re:.*{near}")]);
        }
        tries.into_iter().find_map(|meant| {
            let pattern = Pattern::parse(&meant).ok()?;
            let count = self.matched(&pattern).count();
            (count > 0 && meant != written).then_some((meant, count))
        })
    }
}

/// The number that a pattern has after `layers`.
fn block_number(written: &str) -> Option<usize> {
    let (_, rest) = written.split_once("layers")?;
    let digits = rest.trim_start_matches(['\\', '.', '[', ']', '(']);
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

fn tensors(count: usize) -> String {
    match count {
        1 => "1 tensor".to_owned(),
        n => format!("{n} tensors"),
    }
}

/// The first few names.
fn first(names: &[String]) -> String {
    let mut text = names[..names.len().min(NAMED)].join(", ");
    if names.len() > NAMED {
        text.push_str(", ...");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn pipeline(rest: &str) -> Pipeline {
        let text = format!("model: {{source: embedded:tiny}}\n{rest}");
        Pipeline::parse(&text, "p.yaml", Path::new("")).unwrap()
    }

    fn of(rest: &str) -> Result<Vec<String>> {
        of_patterns(&pipeline(rest), &ModelFolder::embedded("tiny").unwrap())
    }

    /// The message of a rule's pattern that matches nothing, without its place, and its hint without how modules are named.
    fn hint_for(pattern: &str) -> String {
        let error = of(&format!("rules: [{{match: '{pattern}', bits: 8}}]\n")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("p.yaml:2: rules.0.match: `{pattern}` matches no module")
        );
        let hint = crate::hint(&error).unwrap();
        let rest = hint.strip_prefix("modules are named like model.layers.0.mlp.down_proj; ");
        rest.unwrap().to_owned()
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_told_with_the_spelling_that_would() {
        for (written, meant) in [
            (
                "down_proj",
                "write `re:.*down_proj`, which matches 6 of them",
            ),
            (
                ".*down_proj",
                "write `re:.*down_proj`, which matches 6 of them",
            ),
            (
                "re:down_proj",
                "write `re:.*down_proj`, which matches 6 of them",
            ),
            (
                "re:^down_proj$",
                "write `re:.*down_proj$`, which matches 6 of them",
            ),
            (
                "re:^layers.0",
                "write `re:.*layers.0`, which matches 7 of them",
            ),
            (
                "layers.1",
                "write `re:.*layers\\.1\\.`, which matches 7 of them",
            ),
            (
                "layers.*.q_proj",
                "write `*layers.*.q_proj`, which matches 6 of them",
            ),
            ("*.mlp", "write `*.mlp*`, which matches 18 of them"),
            (
                "(q_proj|k_proj)",
                "write `re:.*(q_proj|k_proj)`, which matches 12 of them",
            ),
            (
                "*.dwon_proj",
                "write `*.down_proj`, which matches 6 of them",
            ),
            (
                "re:.*downproj",
                "write `re:.*down_proj`, which matches 6 of them",
            ),
            (
                "Gate_Proj",
                "write `re:.*gate_proj`, which matches 6 of them",
            ),
            (
                "model.layers.6.*",
                "block 6 is not there, they count from 0 to 5",
            ),
            (
                "re:.*experts.*",
                "a name is written in full, with `*` for any part of it, or as a regular expression after `re:`",
            ),
        ] {
            assert_eq!(hint_for(written), meant, "{written}");
        }
    }

    #[test]
    fn an_ignore_that_matches_nothing_is_warned_of_and_one_of_any_module_is_not() {
        assert_eq!(
            of("ignore: [lm_head, down_proj]\n").unwrap(),
            [
                "p.yaml:2: ignore.1: `down_proj` matches no module, so that it keeps nothing as it is; modules are named like \
                 model.layers.0.mlp.down_proj; write `re:.*down_proj`, which matches 6 of them"
            ]
        );
        let known =
            "ignore: [lm_head, 're:.*lm_head', 're:.*norm', model.embed_tokens, '*.q_proj']\n";
        assert_eq!(of(known).unwrap(), [""; 0]);
        // no pattern of a file: the default
        assert_eq!(of("").unwrap(), [""; 0]);
    }

    #[test]
    fn a_rule_that_earlier_ones_leave_nothing_is_warned_of() {
        assert_eq!(
            of("rules:\n  - {match: '*.q_proj', bits: 8}\n  - {match: '*.1.*', bits: 3}\n  - {match: 're:.*q_proj', bits: 2}\n")
                .unwrap(),
            [
                "p.yaml:5: rules.2.match: `re:.*q_proj` changes nothing: all 6 modules it matches are matched first by `*.q_proj` \
                 (p.yaml:3: rules.0.match); put what is to win first"
            ]
        );
        assert_eq!(
            of("ignore: [lm_head, '*.o_proj', '*.0.*.v_proj']\nrules: [{match: 're:.*0.*[vo]_proj', bits: 8}]\n").unwrap(),
            [
                "p.yaml:3: rules.0.match: `re:.*0.*[vo]_proj` changes nothing: all 2 modules it matches are matched first by \
                 `*.0.*.v_proj` (p.yaml:2: ignore.2), `*.o_proj` (p.yaml:2: ignore.1); put what is to win first"
            ]
        );
        // the rest is left to the later rule
        let partly = "rules: [{match: '*.0.*', bits: 8}, {match: '*.q_proj', bits: 3}]\n";
        assert_eq!(of(partly).unwrap(), [""; 0]);
    }

    #[test]
    fn floors_are_held_against_the_model_too() {
        let floors = |list: &str| {
            of(&format!(
                "budget: {{bits_per_weight: 4.5, floors: [{list}]}}\n"
            ))
        };
        assert_eq!(floors("{match: '*.down_proj', bits: 4}").unwrap(), [""; 0]);
        let error = floors("{match: down_proj, bits: 4}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "p.yaml:2: budget.floors.0.match: `down_proj` matches no module"
        );
        let shadowed = floors("{match: '*', bits: 3}, {match: '*.q_proj', bits: 4}").unwrap();
        assert!(
            shadowed[0].starts_with("p.yaml:2: budget.floors.1.match: `*.q_proj` changes nothing"),
            "{shadowed:?}"
        );
    }

    #[test]
    fn a_rule_for_what_is_never_quantized_is_refused_unless_it_keeps_it() {
        let error = of("rules: [{match: lm_head, bits: 8}]\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "p.yaml:2: rules.0.match: `lm_head` matches no linear of the decoder blocks, and only those are quantized"
        );
        assert_eq!(
            of("rules: [{match: lm_head, skip: true}]\n").unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn sequences_longer_than_the_model_are_told_with_both_numbers() {
        let folder = ModelFolder::embedded("tiny").unwrap();
        let told = |reads_text| {
            let long = pipeline("calibration: {sequence_length: 2049}\n");
            of_run(&long, &folder, reads_text).unwrap()
        };
        assert_eq!(
            told(true),
            [
                "calibration.sequence_length: 2049 tokens, and the model is made for 2048 (max_position_embeddings in its \
                 config.json): what it predicts past them means little"
            ]
        );
        assert_eq!(told(false), [""; 0]);
        assert_eq!(of_length(folder.config(), "--sequence-length", 2048), None);
    }
}
