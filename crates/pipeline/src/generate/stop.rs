use anyhow::Result;
use halfbyte_checkpoint::ModelFolder;
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

/// One number, a list of them, or none.
fn token_ids(value: &Value, folder: &ModelFolder) -> Result<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let found = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
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
    serde_json::from_slice(&text).map(Some).map_err(|error| {
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
        for wrong in ["-1", "\"</s>\"", "[1, null]", "1.5"] {
            let message = check(wrong).unwrap_err().to_string();
            assert!(message.contains("eos_token_id: found"), "{message}");
        }
        assert_eq!(end_tokens(&folder).unwrap(), [0]);
    }
}
