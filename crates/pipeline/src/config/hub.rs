//! Addresses of the hub, as browsers and other tools have them, to the `org/name@revision` that is ours.

/// What an address names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

/// Why an address cannot be what is wanted, and what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    pub(super) problem: String,
    pub(super) hint: String,
}

/// Leads an address of the hub.
const HOSTS: &[&str] = &[
    "https://huggingface.co/",
    "http://huggingface.co/",
    "https://www.huggingface.co/",
    "https://hf.co/",
    "huggingface.co/",
    "hf.co/",
    "hf://",
];

/// Follows `org/name` in an address, before a revision.
const BEFORE_REVISION: &[&str] = &["tree", "resolve", "blob", "raw", "commit"];

/// The id in an address of the hub, revision included; none where the text is no address.
pub(super) fn address(text: &str, wanted: Kind) -> Option<Result<String, Unfit>> {
    let text = text.trim();
    let Some(rest) = (HOSTS.iter()).find_map(|host| strip_prefix_ignoring_case(text, host)) else {
        return text.contains("://").then(|| {
            Err(Unfit {
                problem: format!("`{text}` is an address, and of those only the hub's are known"),
                hint: "download it and give its path, or write a hub id `org/name`".to_owned(),
            })
        });
    };
    Some(of_hub(text, rest, wanted))
}

fn of_hub(text: &str, rest: &str, wanted: Kind) -> Result<String, Unfit> {
    let unfit = |problem: String, hint: String| Err(Unfit { problem, hint });
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let mut parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let kind = match parts.first() {
        Some(&"datasets") => Kind::Dataset,
        Some(&"spaces") => {
            return unfit(
                format!("`{text}` is a space, wanted a model or a data set"),
                "write a hub id `org/name`".to_owned(),
            );
        }
        Some(&"models") | Some(_) | None => Kind::Model,
    };
    if matches!(parts.first(), Some(&"datasets" | &"models")) {
        parts.remove(0);
    }
    let [org, name, rest @ ..] = parts.as_slice() else {
        return unfit(
            format!("`{text}` names no repository"),
            "write a hub id `org/name`".to_owned(),
        );
    };
    let mut id = format!("{org}/{}", name.strip_suffix(".git").unwrap_or(name));
    let file = match rest {
        [] => None,
        [word, revision, file @ ..] if BEFORE_REVISION.contains(word) => {
            id = format!("{id}@{}", revision.replace("%2F", "/").replace("%2f", "/"));
            Some(file.join("/")).filter(|file| !file.is_empty())
        }
        file => Some(file.join("/")),
    };
    match (kind, wanted) {
        (Kind::Dataset, Kind::Model) => {
            return unfit(
                format!("`{text}` is a data set, wanted a model"),
                format!("for calibration write `calibration: {{sources: [{{dataset: {id}}}]}}`"),
            );
        }
        // Addresses of data sets are often cut down to `hf://org/name`.
        (Kind::Model, Kind::Dataset) if !text.to_ascii_lowercase().starts_with("hf://") => {
            return unfit(
                format!("`{text}` is a model, wanted a data set"),
                "a data set's address has `datasets/` in it; its id is `org/name`".to_owned(),
            );
        }
        _ => {}
    }
    match file {
        None => Ok(id),
        Some(file) => unfit(
            format!("`{text}` names one file of a repository, `{file}`, and whole ones are read"),
            match wanted {
                Kind::Model => format!("write `{id}`"),
                Kind::Dataset => format!(
                    "write `dataset: {id}`, or download the file and give its path, `path: FILE`"
                ),
            },
        ),
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let start = text.get(..prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix)
        .then(|| &text[prefix.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, wanted: Kind, expected: Option<Result<&str, &str>>) {
        let found = address(text, wanted);
        let found = found.map(|found| found.map_err(|unfit| unfit.problem));
        let expected = expected.map(|e| e.map(str::to_owned).map_err(str::to_owned));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn an_address_becomes_its_id_and_revision() {
        for (text, id) in [
            ("https://huggingface.co/org/name", "org/name"),
            ("https://huggingface.co/org/name/", "org/name"),
            ("https://HuggingFace.co/org/name.git", "org/name"),
            ("https://huggingface.co/org/name?library=x#use", "org/name"),
            ("https://huggingface.co/org/name/tree/v1.0", "org/name@v1.0"),
            (
                "https://huggingface.co/org/name/tree/refs%2Fpr%2F1",
                "org/name@refs/pr/1",
            ),
            ("https://huggingface.co/org/name/commit/abc", "org/name@abc"),
            ("hf://org/name", "org/name"),
            ("hf://models/org/name", "org/name"),
            ("hf://org/name@main", "org/name@main"),
            ("hf.co/org/name", "org/name"),
        ] {
            check(text, Kind::Model, Some(Ok(id)));
        }
        for (text, id) in [
            ("https://huggingface.co/datasets/org/name", "org/name"),
            (
                "https://huggingface.co/datasets/org/name/tree/main",
                "org/name@main",
            ),
            ("hf://datasets/org/name@v1", "org/name@v1"),
            ("hf://org/name", "org/name"),
        ] {
            check(text, Kind::Dataset, Some(Ok(id)));
        }
    }

    #[test]
    fn what_is_no_address_is_left_alone() {
        for text in [
            "org/name",
            "org/name@v1",
            "./folder",
            "embedded:tiny",
            "",
            "é",
        ] {
            check(text, Kind::Model, None);
        }
    }

    #[test]
    fn what_an_address_cannot_be_is_told() {
        for (text, wanted, problem) in [
            (
                "https://example.com/model",
                Kind::Model,
                "`https://example.com/model` is an address, and of those only the hub's are known",
            ),
            (
                "https://huggingface.co/datasets/org/name",
                Kind::Model,
                "`https://huggingface.co/datasets/org/name` is a data set, wanted a model",
            ),
            (
                "https://huggingface.co/org/name",
                Kind::Dataset,
                "`https://huggingface.co/org/name` is a model, wanted a data set",
            ),
            (
                "https://huggingface.co/org",
                Kind::Model,
                "`https://huggingface.co/org` names no repository",
            ),
            (
                "https://huggingface.co/spaces/org/name",
                Kind::Model,
                "`https://huggingface.co/spaces/org/name` is a space, wanted a model or a data set",
            ),
            (
                "https://huggingface.co/org/name/resolve/main/model.safetensors",
                Kind::Model,
                "`https://huggingface.co/org/name/resolve/main/model.safetensors` names one file of a repository, `model.safetensors`, and whole ones are read",
            ),
        ] {
            check(text, wanted, Some(Err(problem)));
        }
    }
}
