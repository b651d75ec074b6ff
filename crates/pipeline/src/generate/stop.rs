use anyhow::Result;
use halfbyte_checkpoint::{ModelFolder, plain_json};
use serde_json::Value;

use crate::error::user_error;

/// The tokens that end a text: those of generation_config.json and of config.json.
pub(super) fn end_tokens(folder: &ModelFolder) -> Result<Vec<u32>> {
    let mut all = folder.config().eos_token_id.clone();
    if let Some(config) = json_file(folder, "generation_config.json")? {
        all.extend(token_ids(&config["eos_token_id"], folder)?);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// One number, a list of them, or none; a negative number is none.
fn token_ids(value: &Value, folder: &ModelFolder) -> Result<Vec<u32>> {
    let id = |value: &Value| match value.as_i64() {
        Some(id) if id < 0 => Some(None),
        id => Some(Some(u32::try_from(id?).ok()?)),
    };
    let found: Option<Vec<Option<u32>>> = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    let found = found.map(|ids| ids.into_iter().flatten().collect());
    found.ok_or_else(|| {
        user_error(
            format!(
                "{}: generation_config.json: eos_token_id: found {value}, wanted a token id or a list of them",
                folder.place()
            ),
            "put the number there that config.json has, or remove the key",
        )
    })
}

/// A JSON file of the folder, where there is one.
pub(super) fn json_file(folder: &ModelFolder, name: &str) -> Result<Option<Value>> {
    if !folder.other_files()?.iter().any(|file| file == name) {
        return Ok(None);
    }
    let text = folder.read_file(name)?;
    serde_json::from_slice(&plain_json(&text))
        .map(Some)
        .map_err(|error| {
            user_error(
                format!("{}: {name}: not valid JSON: {error}", folder.place()),
                "download the file again, or remove it",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_tokens_are_one_a_list_or_none() {
        let folder = ModelFolder::embedded("tiny").unwrap();
        let check = |json: &str| token_ids(&serde_json::from_str(json).unwrap(), &folder);
        assert_eq!(check("2").unwrap(), [2]);
        assert_eq!(check("[1, 128009]").unwrap(), [1, 128_009]);
        assert_eq!(check("null").unwrap(), [0; 0]);
        assert_eq!(check("-1").unwrap(), [0; 0]);
        for wrong in ["5000000000", "\"</s>\"", "[1, null]", "1.5"] {
            let message = check(wrong).unwrap_err().to_string();
            assert!(message.contains("eos_token_id: found"), "{message}");
        }
        assert_eq!(end_tokens(&folder).unwrap(), [0]);
    }
}
