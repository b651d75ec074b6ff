use std::fmt;

/// Why a pipeline file cannot be: the place, the key, what was found, what was wanted, and how to mend it.
///
/// Prints as `pipelines/x.yaml:12: quant.bits: found 9, wanted 2, 3, 4, 5, 6 or 8`; the remedy is in
/// [`ConfigError::hint`], which the program prints on a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `file:line`, the file alone where no line is to blame, or `--set key.path` for an override.
    pub place: String,
    /// The key path, such as `rules.0.match`; empty for the file as a whole.
    pub key: String,
    /// What was found and what was wanted.
    pub problem: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl ConfigError {
    /// How to mend it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        // `--set quant.bits` has named the key.
        if !self.key.is_empty() && !self.place.ends_with(&format!(" {}", self.key)) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong at a key, before the key's line is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Keys from the root; list places as numbers from 0.
    pub(super) path: Vec<String>,
    pub(super) problem: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(path: &[&str], problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            path: path.iter().map(ToString::to_string).collect(),
            problem: problem.into(),
            hint: Some(hint.into()),
        }
    }
}

/// Lists words as a sentence does: `a`, `a or b`, `a, b or c`.
pub(super) fn any_of(words: &[String]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [word] => word.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
