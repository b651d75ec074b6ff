//! The token ids of a text that comes in pieces, exactly those of the whole, in memory that does not grow with it.
//!
//! The text is tokenized in stretches that overlap. Where two neighbours agree on a run of tokens inside their overlap, far
//! from the end of the one and the start of the other, the first is left and the second gone on with. In byte pair encoding
//! that is no approximation: a sequence of tokens is the one that a text is encoded to if each two neighbours in it are, and
//! all neighbours in the joined sequence are neighbours in one of the two. Rules that look at the text around (words, runs
//! of white space, an added token) reach over a cut only as far as such a rule goes, which the distance covers; where they go
//! further, nothing agrees, and the stretches are tokenized as one.

use std::ops::ControlFlow;

use halfbyte_checkpoint::encode_placed;
use tokenizers::Tokenizer;

use super::{TextError, tokenize};

/// Bytes of text that are tokenized at once, and by how many stretches overlap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) stretch: usize,
    pub(super) overlap: usize,
}

impl Sizes {
    pub(super) const DEFAULT: Self = Self {
        stretch: 64 << 10,
        overlap: 8 << 10,
    };

    /// How far from either end tokens must lie, and how many bytes of them must agree.
    fn margin(self) -> usize {
        self.overlap / 4
    }
}

/// Hands a text to a function piece by piece, until it says to stop; it may be asked to more than once.
pub(super) type Text<'a> = dyn FnMut(&mut TakePiece) -> Result<(), TextError> + 'a;

/// Takes a piece of text and says whether to go on.
pub(super) type TakePiece<'a> = dyn FnMut(&str) -> Result<ControlFlow<()>, TextError> + 'a;

/// Tokens of the text that one stretch gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Where the stretch starts in the text and how long it is, in bytes.
    start: usize,
    len: usize,
    /// Its tokens before those.
    skipped: usize,
    /// Where its first token lies among those of the whole text.
    first: usize,
    count: usize,
}

/// Where the tokens of a text come from.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    parts: Vec<Part>,
    /// Tokens in all.
    pub(super) total: usize,
    /// All ids, while there are not more than were to be kept.
    pub(super) ids: Option<Vec<u32>>,
}

/// A token and the bytes of the text it stands for.
type Token = (u32, usize, usize);

fn tokens_of(text: &str, tokenizer: &Tokenizer) -> Result<Vec<Token>, TextError> {
    let encoding = encode_placed(tokenizer, text)
        .map_err(|problem| tokenize::failed("evaluation text", problem))?;
    let offsets = encoding.get_offsets().iter();
    let ids = encoding.get_ids().iter();
    Ok(ids.zip(offsets).map(|(&id, &(a, b))| (id, a, b)).collect())
}

/// Tokenizes a text from its start to its end, once; keeps the ids while there are not more than `keep`.
pub(super) fn tokens(
    text: &mut Text,
    tokenizer: &Tokenizer,
    sizes: Sizes,
    keep: usize,
) -> Result<Tokens, TextError> {
    let mut joiner = Joiner {
        tokenizer,
        sizes,
        keep,
        buffer: String::new(),
        start: 0,
        len: 0,
        tokens: Vec::new(),
        skipped: 0,
        found: Tokens {
            ids: Some(Vec::new()),
            ..Tokens::default()
        },
    };
    text(&mut |piece| {
        joiner.buffer.push_str(piece);
        while joiner.buffer.len() >= joiner.len + sizes.stretch {
            joiner.go_on(
                joiner
                    .buffer
                    .floor_char_boundary(joiner.len + sizes.stretch),
            )?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if joiner.buffer.len() > joiner.len {
        joiner.go_on(joiner.buffer.len())?;
    }
    let all = joiner.tokens.len();
    joiner.give(all);
    Ok(joiner.found)
}

struct Joiner<'a> {
    tokenizer: &'a Tokenizer,
    sizes: Sizes,
    keep: usize,
    /// The text from the start of the last stretch on.
    buffer: String,
    /// Where that lies in the text.
    start: usize,
    /// How much of the buffer is tokenized.
    len: usize,
    tokens: Vec<Token>,
    /// Tokens of the stretch that the one before it gave.
    skipped: usize,
    found: Tokens,
}

impl Joiner<'_> {
    /// Tokenizes the buffer up to `end`.
    fn go_on(&mut self, end: usize) -> Result<(), TextError> {
        let margin = self.sizes.margin();
        let from = self
            .buffer
            .floor_char_boundary(self.len.saturating_sub(self.sizes.overlap));
        if from > 0 {
            let next = tokens_of(&self.buffer[from..end], self.tokenizer)?;
            let until = self.len.saturating_sub(margin);
            if let Some((i, j)) = agreement(&self.tokens, &next, from, until, margin)
                && i >= self.skipped
            {
                self.give(i);
                self.buffer.drain(..from);
                self.start += from;
                self.len = end - from;
                self.skipped = j;
                self.tokens = next;
                return Ok(());
            }
        }
        self.tokens = tokens_of(&self.buffer[..end], self.tokenizer)?;
        self.len = end;
        Ok(())
    }

    /// Gives the stretch's tokens before the index.
    fn give(&mut self, until: usize) {
        let count = until - self.skipped;
        self.found.parts.push(Part {
            start: self.start,
            len: self.len,
            skipped: self.skipped,
            first: self.found.total,
            count,
        });
        self.found.total += count;
        if self.found.total > self.keep {
            self.found.ids = None;
        }
        if let Some(ids) = &mut self.found.ids {
            ids.extend(self.tokens[self.skipped..until].iter().map(|token| token.0));
        }
    }
}

/// The middle of a run of tokens that both stretches have, the second of which starts at byte `from` of the first: the run lies
/// `margin` after that and before byte `until`, and is `margin` bytes long or longer.
fn agreement(
    one: &[Token],
    next: &[Token],
    from: usize,
    until: usize,
    margin: usize,
) -> Option<(usize, usize)> {
    let at = |token: &Token| (token.0, token.1 + from, token.2 + from);
    let mut i = one.partition_point(|token| token.1 < from + margin);
    let mut j = 0;
    while i < one.len() && j < next.len() && one[i].2 <= until {
        let (a, b) = (one[i], at(&next[j]));
        if a.1 != b.1 {
            match a.1 < b.1 {
                true => i += 1,
                false => j += 1,
            }
            continue;
        }
        // of the tokens of one character the first, so that both begin with the same
        let run = one[i..]
            .iter()
            .zip(&next[j..])
            .take_while(|(a, b)| **a == at(b) && a.2 <= until)
            .count();
        let whole = |tokens: &[Token], k: usize| k == 0 || tokens[k - 1].2 <= tokens[k].1;
        if run > 0 && whole(one, i) && whole(next, j) && one[i + run - 1].2 - a.1 >= margin {
            return Some((i + run / 2, j + run / 2));
        }
        i += run.max(1);
        j += run.max(usize::from(a.1 == b.1));
    }
    None
}

impl Tokens {
    /// The ids of some ranges of the whole text's tokens, read again where they are not kept. The ranges rise and do not
    /// overlap.
    pub(super) fn ranges(
        &self,
        ranges: &[std::ops::Range<usize>],
        text: &mut Text,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Vec<u32>>, TextError> {
        if let Some(ids) = &self.ids {
            return Ok(ranges.iter().map(|r| ids[r.clone()].to_vec()).collect());
        }
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); ranges.len()];
        let is_wanted = |part: &&Part| {
            let next = ranges.partition_point(|r| r.end <= part.first);
            ranges
                .get(next)
                .is_some_and(|r| r.start < part.first + part.count)
        };
        let mut wanted = self.parts.iter().filter(is_wanted).peekable();
        let (mut buffer, mut start) = (String::new(), 0);
        text(&mut |piece| {
            buffer.push_str(piece);
            while let Some(part) = wanted.peek() {
                if start + buffer.len() < part.start + part.len {
                    // what no wanted part needs
                    let gone = buffer.floor_char_boundary((part.start - start).min(buffer.len()));
                    buffer.drain(..gone);
                    start += gone;
                    return Ok(ControlFlow::Continue(()));
                }
                let tokens = tokens_of(&buffer[part.start - start..][..part.len], tokenizer)?;
                for (range, ids) in ranges.iter().zip(&mut found) {
                    let a = range.start.max(part.first);
                    let b = range.end.min(part.first + part.count);
                    if a < b {
                        let own = part.skipped + a - part.first..part.skipped + b - part.first;
                        ids.extend(tokens[own].iter().map(|token| token.0));
                    }
                }
                wanted.next();
            }
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A tokenizer that learned its merges from a text, of the kind that the settings name.
    fn learned(pre_tokenizer: Value, normalizer: Value, byte_level: bool) -> Tokenizer {
        let mut vocab: Vec<String> = match byte_level {
            true => {
                let mut all: Vec<String> =
                    tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet()
                        .into_iter()
                        .map(String::from)
                        .collect();
                all.sort();
                all
            }
            false => (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect(),
        };
        let space = if byte_level { "Ġ" } else { "▁" };
        let letters: Vec<String> = ["a", "b", "c", "d", "1", "2", "ü", "漢", space]
            .iter()
            .map(|s| (*s).to_owned())
            .collect();
        if !byte_level {
            vocab.extend(letters.iter().cloned());
        }
        let merges: Vec<(String, String)> = [
            ("a", "b"),
            (space, "a"),
            ("b", "c"),
            ("ab", "c"),
            (space, "ab"),
            ("c", "d"),
            ("1", "2"),
            (space, space),
            ("abc", "d"),
            ("a", "a"),
            ("aa", "aa"),
            ("b", space),
            ("d", "a"),
            ("12", "12"),
        ]
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect();
        for (a, b) in &merges {
            vocab.push(format!("{a}{b}"));
        }
        vocab.push("<unk>".into());
        let vocab: serde_json::Map<String, Value> = vocab
            .into_iter()
            .enumerate()
            .map(|(i, token)| (token, i.into()))
            .collect();
        let special = vocab.len();
        let added = json!([
            {"id": special, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": special + 1, "content": "<|a b|>", "single_word": false, "lstrip": true, "rstrip": true,
             "normalized": false, "special": true}
        ]);
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": !byte_level,
                      "unk_token": "<unk>", "fuse_unk": true}
        });
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
        let prepend = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]});
        vec![
            ("byte level", learned(byte_level, Value::Null, true)),
            ("metaspace", learned(metaspace, Value::Null, false)),
            ("no pre-tokenizer", learned(Value::Null, prepend, false)),
        ]
    }

    fn pieces<'a>(
        text: &'a str,
        size: usize,
    ) -> impl FnMut(&mut TakePiece) -> Result<(), TextError> + 'a {
        move |take| {
            let mut rest = text;
            while !rest.is_empty() {
                let at = rest
                    .floor_char_boundary(size)
                    .max(rest.chars().next().map_or(0, char::len_utf8));
                if take(&rest[..at])?.is_break() {
                    break;
                }
                rest = &rest[at..];
            }
            Ok(())
        }
    }

    fn check(text: &str, stretch: usize, overlap: usize, piece: usize) -> usize {
        let mut joined = 0;
        for (name, tokenizer) in tokenizers() {
            let wanted = tokenizer
                .encode_fast(text, false)
                .unwrap()
                .get_ids()
                .to_vec();
            let sizes = Sizes { stretch, overlap };
            let mut source = pieces(text, piece);
            let kept = tokens(&mut source, &tokenizer, sizes, usize::MAX).unwrap();
            assert_eq!(kept.ids.as_ref(), Some(&wanted), "{name}: {text:?}");
            let found = tokens(&mut source, &tokenizer, sizes, 0).unwrap();
            assert_eq!(found.total, wanted.len());
            if found.total == 0 {
                continue;
            }
            let n = found.total;
            let ranges = [0..n / 3, n / 3..n / 3 + n / 5, n - n / 4..n];
            let again = found.ranges(&ranges, &mut source, &tokenizer).unwrap();
            for (range, ids) in ranges.into_iter().zip(again) {
                assert_eq!(ids, wanted[range], "{name}: {text:?}");
            }
            joined += found.parts.len() - 1;
        }
        joined
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn ids_are_those_of_the_whole_wherever_the_cuts_fall(
            parts in prop::collection::vec(prop_oneof![
                10 => "[abcd]{1,6} ?", 2 => "[12]{1,4}", 2 => "[ \n]{1,4}", 1 => "[ü漢é]{1,3}",
                1 => Just("<|end|>".to_owned()), 1 => Just(" <|a b|> ".to_owned()), 1 => Just("'s ".to_owned()),
                1 => "a{20,60}", 1 => " {20,40}",
            ], 0..120),
            stretch in 24usize..90, overlap in 48usize..80, piece in 1usize..50
        ) {
            check(&parts.concat(), stretch, overlap, piece);
        }
    }

    #[test]
    fn long_texts_are_joined_many_times_and_runs_without_an_end_are_taken_whole() {
        let words: String = (0..4000)
            .map(|i| ["abc ", "dab ", "12 ", "aab\n", "<|end|>", "c漢 "][i * i % 6])
            .collect();
        assert!(check(&words, 64, 64, 1000) > 300);
        check(&"a".repeat(500), 64, 64, 50);
        check(&" ".repeat(500), 64, 64, 50);
    }
}
