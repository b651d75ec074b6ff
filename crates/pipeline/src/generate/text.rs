use anyhow::Result;
use tokenizers::Tokenizer;

use crate::error::UserError;

/// Tokens of the prompt that stand before the first piece: what a token means can hang on those before it.
const CONTEXT: usize = 5;

/// Token ids to text, piece by piece. Both the bytes of a character and the spaces between words can be spread over
/// tokens, so a piece is what a few tokens say more than the same tokens without the last, and it waits until it does not
/// end in half a character (as vLLM and text-generation-inference do it).
#[derive(Debug)]
pub(super) struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Where the tokens begin that are decoded.
    from: usize,
    /// Tokens whose text was given.
    given: usize,
}

impl<'a> TextStream<'a> {
    /// A stream of what follows `prompt`.
    pub(super) fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            tokenizer,
            from: 0,
            given: ids.len(),
            ids,
        }
    }

    /// The text that a token makes whole; empty where it makes none.
    pub(super) fn push(&mut self, token: u32) -> Result<String> {
        self.ids.push(token);
        let piece = self.rest()?;
        if piece.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        (self.from, self.given) = (self.given, self.ids.len());
        Ok(piece)
    }

    /// What never became whole.
    pub(super) fn finish(self) -> Result<String> {
        self.rest()
    }

    /// The text of the tokens not given.
    fn rest(&self) -> Result<String> {
        let before = decode(self.tokenizer, &self.ids[self.from..self.given])?;
        let all = decode(self.tokenizer, &self.ids[self.from..])?;
        let same = before.chars().zip(all.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(a, _)| a.len_utf8()).sum();
        Ok(all[same..].to_owned())
    }
}

/// The text of some tokens, special ones left out.
pub(super) fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let text = halfbyte_checkpoint::decode(tokenizer, ids, true);
    text.map_err(|problem| UserError {
        message: format!("tokenizer.json: cannot decode token ids: {problem}"),
        hint: None,
    })
    .map_err(anyhow::Error::from)
}

#[cfg(test)]
mod tests {
    use halfbyte_checkpoint::ModelFolder;

    use super::*;

    #[test]
    fn pieces_are_whole_characters_and_make_up_the_text() {
        let tokenizer = ModelFolder::embedded("tiny").unwrap().tokenizer().unwrap();
        let text = "A word, «ein Wörtchen», 一个词 and 🙂🏽 end; \u{FFFD} too.";
        let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        for prompt in [0, 3, 9] {
            let mut stream = TextStream::new(&tokenizer, &ids[..prompt]);
            let mut told = decode(&tokenizer, &ids[..prompt]).unwrap();
            for &id in &ids[prompt..] {
                told.push_str(&stream.push(id).unwrap());
                assert!(text.starts_with(&told), "{told:?}");
            }
            assert_eq!(told + &stream.finish().unwrap(), text);
        }
    }

    #[test]
    fn half_a_character_is_told_at_the_end_alone() {
        let tokenizer = ModelFolder::embedded("tiny").unwrap().tokenizer().unwrap();
        let ids = tokenizer.encode("词", false).unwrap().get_ids().to_vec();
        assert!(ids.len() > 1, "the vocabulary has it whole");
        let mut stream = TextStream::new(&tokenizer, &[]);
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert!(
            stream
                .finish()
                .unwrap()
                .contains(char::REPLACEMENT_CHARACTER)
        );
    }

    /// Llama's tokenizers put a space before every word but the first of a text.
    #[test]
    fn the_space_after_the_prompt_is_kept() {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
            "normalizer":null,"pre_tokenizer":null,"post_processor":null,
            "decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
            "model":{"type":"WordLevel","vocab":{"▁one":0,"▁two":1,"▁three":2},"unk_token":"▁one"}}"#;
        let tokenizer = Tokenizer::from_bytes(json).unwrap();
        let mut stream = TextStream::new(&tokenizer, &[0]);
        let told: Vec<String> = [1, 2].map(|id| stream.push(id).unwrap()).to_vec();
        assert_eq!(told, [" two", " three"]);
        let mut alone = TextStream::new(&tokenizer, &[]);
        assert_eq!(alone.push(1).unwrap(), "two");
    }
}
