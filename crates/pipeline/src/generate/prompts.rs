use std::path::Path;

use anyhow::{Result, anyhow};
use halfbyte_calibrate::text::read_text;
use halfbyte_checkpoint::{ModelFolder, encode};
use tokenizers::Tokenizer;

use super::chat::special_token;
use crate::error::{UserError, user_error};

/// Token ids of a folder's tokenizer without the truncation and padding that its file may carry.
pub(crate) fn plain_tokenizer(folder: &ModelFolder) -> Result<Tokenizer> {
    let mut tokenizer = folder.tokenizer()?;
    let plain = tokenizer.with_padding(None).with_truncation(None);
    plain.map_err(|e| anyhow!("{}: tokenizer.json: {e}", folder.place()))?;
    Ok(tokenizer)
}

/// The ids of a text; `special` has the tokenizer add what it opens texts with.
pub(super) fn ids(text: &str, special: bool, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let ids = encode(tokenizer, text, special).map_err(|problem| UserError {
        message: format!("prompt: cannot be tokenized: {problem}"),
        hint: None,
    })?;
    if ids.is_empty() {
        return Err(user_error(
            "prompt: the tokenizer makes no token of it",
            "give a prompt with some words",
        ));
    }
    Ok(ids)
}

/// The ids of a prompt that opens a text, with the tokenizer's opening token unless the prompt brings it.
pub(super) fn opening(
    prompt: &str,
    folder: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let bos = special_token(folder, "bos_token")?;
    let brings_it = bos.is_some_and(|bos| !bos.is_empty() && prompt.starts_with(&bos));
    ids(prompt, !brings_it, tokenizer)
}

/// How many of `wanted` tokens fit after a prompt.
pub(super) fn room(prompt_tokens: usize, wanted: usize, positions: usize) -> Result<usize> {
    if prompt_tokens >= positions {
        return Err(user_error(
            format!(
                "prompt: {prompt_tokens} tokens, and the model has {positions} positions (max_position_embeddings)"
            ),
            format!(
                "shorten it to {} tokens or fewer",
                positions.saturating_sub(1)
            ),
        ));
    }
    Ok(wanted.min(positions - prompt_tokens))
}

/// What two models are to go on from, as token ids.
pub(crate) struct Prompts {
    pub(crate) ids: Vec<Vec<u32>>,
}

impl Prompts {
    /// One prompt a line; empty lines are none.
    pub(crate) fn read(path: &Path, folder: &ModelFolder, tokenizer: &Tokenizer) -> Result<Self> {
        let text = read_text(path)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let ids = lines.map(|line| opening(line, folder, tokenizer));
        let ids: Vec<_> = ids.collect::<Result<_>>()?;
        if ids.is_empty() {
            return Err(user_error(
                format!("{}: no prompt in it", path.display()),
                "write one prompt a line",
            ));
        }
        Ok(Self { ids })
    }

    /// The first tokens of some windows, evenly spaced.
    pub(crate) fn of_windows(windows: &[Vec<u32>], count: usize, tokens: usize) -> Self {
        let count = count.min(windows.len());
        let chosen = (0..count).map(|j| &windows[j * windows.len() / count]);
        Self {
            ids: chosen.map(|w| w[..tokens.min(w.len())].to_vec()).collect(),
        }
    }

    /// How many of `wanted` tokens fit after the longest.
    pub(crate) fn room(&self, wanted: usize, positions: usize) -> Result<usize> {
        room(self.longest(), wanted, positions)
    }

    pub(crate) fn longest(&self) -> usize {
        self.ids.iter().map(Vec::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_must_leave_room_for_a_token() {
        assert_eq!(room(5, 10, 100).unwrap(), 10);
        assert_eq!(room(95, 10, 100).unwrap(), 5);
        for tokens in [100, 101] {
            let message = room(tokens, 1, 100).unwrap_err().to_string();
            assert!(message.contains("max_position_embeddings"), "{message}");
        }
    }

    #[test]
    fn prompts_of_windows_are_their_first_tokens() {
        let windows: Vec<Vec<u32>> = (0..10).map(|i| vec![i; 6]).collect();
        let prompts = Prompts::of_windows(&windows, 3, 4);
        assert_eq!(prompts.ids, [vec![0; 4], vec![3; 4], vec![6; 4]]);
        assert_eq!(Prompts::of_windows(&windows[..2], 8, 9).ids.len(), 2);
    }
}
