//! Text to token ids, with nothing added, cut or padded.

use std::borrow::Cow;

use halfbyte_checkpoint::{caught, encode};
use tokenizers::Tokenizer;

use super::TextError;

/// Text handed to the tokenizer at once when many pieces are tokenized: its working memory is tens of times
/// the text.
const BATCH_BYTES: usize = 512 << 10;

/// The tokenizer without the truncation and padding that a `tokenizer.json` may carry: files saved after
/// training often cut at 512 tokens, in silence.
pub(super) fn plain(tokenizer: &Tokenizer) -> Result<Cow<'_, Tokenizer>, TextError> {
    if tokenizer.get_truncation().is_none() && tokenizer.get_padding().is_none() {
        return Ok(Cow::Borrowed(tokenizer));
    }
    let mut plain = tokenizer.clone();
    plain
        .with_padding(None)
        .with_truncation(None)
        .map_err(|e| TextError::Tokenize {
            name: "tokenizer.json".into(),
            problem: e.to_string(),
        })?;
    Ok(Cow::Owned(plain))
}

/// Ids from here on are not in the vocabulary.
pub(super) fn vocabulary(tokenizer: &Tokenizer) -> usize {
    let ids = tokenizer.get_vocab(true).into_values();
    ids.max().map_or(0, |id| id as usize + 1)
}

/// The ids of one text, which is tokenized as one string.
pub(super) fn ids(name: &str, text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
    encode(tokenizer, text, false).map_err(|problem| failed(name, problem))
}

/// The ids of each text, on all cores, in order.
pub(super) fn ids_of_each(
    name: &str,
    texts: &[&str],
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>, TextError> {
    let mut all = Vec::with_capacity(texts.len());
    let mut rest = texts;
    while !rest.is_empty() {
        let (mut bytes, mut count) = (0, 0);
        while count < rest.len() && bytes < BATCH_BYTES {
            bytes += rest[count].len();
            count += 1;
        }
        let (batch, after) = rest.split_at(count);
        let encodings = caught(|| tokenizer.encode_batch_fast(batch.to_vec(), false))
            .and_then(|encodings| encodings.map_err(|error| error.to_string()))
            .map_err(|problem| failed(name, problem))?;
        all.extend(encodings.iter().map(|encoding| encoding.get_ids().to_vec()));
        rest = after;
    }
    Ok(all)
}

pub(super) fn failed(name: &str, problem: String) -> TextError {
    TextError::Tokenize {
        name: name.to_string(),
        problem,
    }
}
