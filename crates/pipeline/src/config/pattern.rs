use std::fmt;

use regex::Regex;

/// Picks modules by their name in the checkpoint, such as `model.layers.0.mlp.down_proj`.
///
/// `re:` leads a regular expression, matched from the start of the name and free at its end, as in
/// compressed-tensors' own files; anything else is the whole name, where `*` stands for any run of characters and
/// `?` for one.
#[derive(Clone, Debug)]
pub struct Pattern {
    written: String,
    regex: Regex,
    /// Where it stands, for messages; empty where that is not known.
    pub(super) place: String,
}

/// A regular expression that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{written}` is not a regular expression: {reason}")]
pub struct PatternError {
    /// As written.
    pub written: String,
    /// What the parser says, on one line.
    pub reason: String,
}

impl Pattern {
    /// Reads a pattern as it stands in the file.
    pub fn parse(written: &str) -> Result<Self, PatternError> {
        let source = match written.strip_prefix("re:") {
            Some(expression) => format!("^(?:{expression})"),
            None => {
                let glob = regex::escape(written)
                    .replace(r"\*", ".*")
                    .replace(r"\?", ".");
                format!("^{glob}$")
            }
        };
        let regex = Regex::new(&source).map_err(|e| PatternError {
            written: written.to_owned(),
            reason: last_line(&e.to_string()),
        })?;
        Ok(Self {
            written: written.to_owned(),
            regex,
            place: String::new(),
        })
    }

    /// Where it stands in the pipeline file, such as `p.yaml:12: rules.0.match`; empty where it came from none.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether it picks the module of this name.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// The pattern as it stands in the file.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The regex crate draws the place over several lines and says the reason last.
fn last_line(message: &str) -> String {
    let line = message.lines().last().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: &str = "model.layers.11.mlp.down_proj";

    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(
            Pattern::parse(pattern).unwrap().matches(name),
            expected,
            "{pattern} on {name}"
        );
    }

    #[test]
    fn a_name_matches_itself_alone() {
        check("lm_head", "lm_head", true);
        check("lm_head", "lm_head2", false);
        check("head", "lm_head", false);
        check("model.layers.11.mlp.down_proj", DOWN, true);
        check("model-layers-11-mlp-down_proj", DOWN, false);
    }

    #[test]
    fn a_star_is_any_run_and_a_question_mark_one_character() {
        check("*.down_proj", DOWN, true);
        check("model.layers.1?.*", DOWN, true);
        check("model.layers.?.*", DOWN, false);
        check("*", DOWN, true);
    }

    #[test]
    fn a_regular_expression_is_bound_at_the_start_only() {
        check("re:.*down_proj", DOWN, true);
        check("re:down_proj", DOWN, false);
        check(r"re:model\.layers\.(1|11)\.", DOWN, true);
        check("re:model|nothing", "a nothing", false);
    }

    #[test]
    fn a_broken_regular_expression_says_why() {
        assert_eq!(
            Pattern::parse("re:(q_proj").unwrap_err().to_string(),
            "`re:(q_proj` is not a regular expression: unclosed group"
        );
    }
}
