//! Evaluation text: one string, tokenized as a whole, cut into windows that do not overlap.

use std::ops::ControlFlow;

use tokenizers::Tokenizer;

use super::chat::RenderChat;
use super::pack::SEPARATOR;
use super::read::{Account, Reading, Record, read_records};
use super::source::Purpose;
use super::token_stream::{Sizes, TakePiece, Text, tokens};
use super::{TextError, TextSource, tokenize};

/// Which windows of the evaluation text are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowChoice {
    /// That many, evenly spaced: window `⌊j·available/count⌋` for j in 0..count.
    Count(usize),
    /// These indices, in this order, each once.
    List(Vec<usize>),
    /// All of them.
    All,
}

/// Windows of evaluation text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationText {
    /// Token ids, `sequence_length` each.
    pub windows: Vec<Vec<u32>>,
    /// Where each window lies: window `i` starts at token `i · sequence_length`.
    pub indices: Vec<usize>,
    /// Full windows in the text.
    pub n_available: usize,
    /// Tokens in the text.
    pub n_tokens: usize,
    /// Tokens after the last full window, which no choice of windows covers.
    pub tokens_dropped_at_end: usize,
    /// What the user should know; each names the text.
    pub warnings: Vec<String>,
}

/// Token ids kept while a text is read, so that a text that has no more is tokenized once.
const IDS_KEPT: usize = 1 << 20;

/// Tokenizes the text as if it were one string, so that the ids are those any other tool gets from it, without special
/// tokens, and cuts it into windows of `sequence_length` that do not overlap: the perplexity protocol of GPTQ,
/// Frantar et al., arXiv 2210.17323, section 5.
///
/// # Errors
/// A `sequence_length` below 2, a tokenizer that fails, fewer windows than asked for, an index past the end or
/// named twice.
pub fn evaluation_windows(
    text: &str,
    tokenizer: &Tokenizer,
    sequence_length: usize,
    choice: &WindowChoice,
) -> Result<EvaluationText, TextError> {
    let mut pieces = |take: &mut TakePiece| {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            if take(piece)?.is_break() {
                break;
            }
            rest = after;
        }
        Ok(())
    };
    windows_of(&mut pieces, tokenizer, sequence_length, choice)
}

/// Text handed on at once.
const PIECE_BYTES: usize = 64 << 10;

/// The windows of a source, as [`evaluation_windows`] makes them of its documents joined by blank lines. The text is read as a
/// stream, so that memory does not grow with it; chats are written by `render`, the model's chat template, where there is
/// one and the source does not forbid it.
///
/// # Errors
/// As [`evaluation_windows`], and a source that cannot be read or holds token ids.
pub fn evaluation_windows_of(
    source: &TextSource,
    tokenizer: &Tokenizer,
    render: Option<&RenderChat>,
    sequence_length: usize,
    choice: &WindowChoice,
) -> Result<EvaluationText, TextError> {
    let reading = Reading {
        render,
        vocabulary: None,
        purpose: Purpose::Evaluation,
        whole_files: false,
    };
    let mut account = Account::default();
    let mut not_utf8 = 0;
    let mut pieces = |take: &mut TakePiece| {
        not_utf8 = 0;
        account = joined(source, reading, &mut not_utf8, take)?;
        Ok(())
    };
    let mut found = windows_of(&mut pieces, tokenizer, sequence_length, choice);
    let name = source.name();
    let mut told = account.told(render.is_some() && source.chat_template);
    if not_utf8 > 0 {
        told.push(format!(
            "{not_utf8} documents were dropped because they are not UTF-8"
        ));
    }
    match &mut found {
        Ok(found) => {
            found.warnings = told.iter().map(|told| format!("{name}: {told}")).collect();
        }
        Err(TextError::TooFewWindows { told: all, .. }) => {
            *all = told.iter().map(|told| format!("; {told}")).collect();
        }
        Err(_) => {}
    }
    found
}

/// Hands on the text of a source and counts its documents that are not UTF-8.
fn joined(
    source: &TextSource,
    reading: Reading,
    not_utf8: &mut usize,
    take: &mut TakePiece,
) -> Result<Account, TextError> {
    let mut joined = Joined::default();
    let (_, account) = read_records(source, reading, &mut |record| match record {
        Record::Text(text) => joined.document(&text, true, take),
        Record::Marked(text) => joined.document(&text, false, take),
        Record::Plain(text, is_last) => {
            let flow = joined.part(&text, take);
            joined.ends |= is_last;
            flow
        }
        Record::NotUtf8 => {
            *not_utf8 += 1;
            Ok(ControlFlow::Continue(()))
        }
        Record::Refused | Record::Ids(_) => Ok(ControlFlow::Continue(())),
    })?;
    joined.end(take)?;
    Ok(account)
}

/// The pieces of a source's text, as they come.
#[cfg(test)]
pub(super) fn text_of(source: &TextSource, take: &mut dyn FnMut(&str)) -> Result<(), TextError> {
    let reading = Reading {
        render: None,
        vocabulary: None,
        purpose: Purpose::Evaluation,
        whole_files: false,
    };
    joined(source, reading, &mut 0, &mut |piece| {
        take(piece);
        Ok(ControlFlow::Continue(()))
    })
    .map(drop)
}

/// Documents to one text: a blank line between two, instead of the line ends that the first has, but where it has marks of its
/// own.
#[derive(Default)]
struct Joined {
    /// Line ends after the last document's text.
    held: String,
    /// Whether a document has ended that a blank line parts from the next.
    ends: bool,
}

impl Joined {
    /// A whole document; one without text is none.
    fn document(
        &mut self,
        text: &str,
        parted: bool,
        take: &mut TakePiece,
    ) -> Result<ControlFlow<()>, TextError> {
        if text.trim().is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let flow = self.part(text, take);
        self.ends = parted;
        flow
    }

    /// A part of a document.
    fn part(&mut self, text: &str, take: &mut TakePiece) -> Result<ControlFlow<()>, TextError> {
        let between = match std::mem::take(&mut self.ends) {
            true => {
                self.held.clear();
                SEPARATOR.to_owned()
            }
            false => std::mem::take(&mut self.held),
        };
        let body = text.trim_end_matches(['\n', '\r']);
        if body.is_empty() {
            self.held = format!("{between}{text}");
            return Ok(ControlFlow::Continue(()));
        }
        self.held = text[body.len()..].to_owned();
        match between.is_empty() {
            true => take(body),
            false => take(&format!("{between}{body}")),
        }
    }

    fn end(self, take: &mut TakePiece) -> Result<(), TextError> {
        match self.held.is_empty() {
            true => Ok(()),
            false => take(&self.held).map(drop),
        }
    }
}

fn windows_of(
    text: &mut Text,
    tokenizer: &Tokenizer,
    sequence_length: usize,
    choice: &WindowChoice,
) -> Result<EvaluationText, TextError> {
    if sequence_length < 2 {
        let found = sequence_length.to_string();
        return Err(TextError::Option {
            option: "sequence_length",
            found,
            wanted: "2 or more",
        });
    }
    let tokenizer = tokenize::plain(tokenizer)?;
    let keep = match choice {
        // the windows hold them all
        WindowChoice::All => usize::MAX,
        WindowChoice::Count(_) | WindowChoice::List(_) => IDS_KEPT,
    };
    let tokens = tokens(text, &tokenizer, Sizes::DEFAULT, keep)?;
    let n_available = tokens.total / sequence_length;
    let indices = chosen(choice, n_available, tokens.total, sequence_length)?;
    let mut rising = indices.clone();
    rising.sort_unstable();
    let ranges: Vec<_> = rising
        .iter()
        .map(|i| i * sequence_length..(i + 1) * sequence_length)
        .collect();
    let mut in_order = tokens.ranges(&ranges, text, &tokenizer)?;
    if in_order
        .iter()
        .any(|window| window.len() != sequence_length)
    {
        return Err(TextError::Changed);
    }
    let windows = indices
        .iter()
        .map(|i| {
            let at = rising.partition_point(|r| r < i);
            std::mem::take(&mut in_order[at])
        })
        .collect();
    Ok(EvaluationText {
        windows,
        indices,
        n_available,
        n_tokens: tokens.total,
        tokens_dropped_at_end: tokens.total % sequence_length,
        warnings: Vec::new(),
    })
}

fn chosen(
    choice: &WindowChoice,
    available: usize,
    n_tokens: usize,
    sequence_length: usize,
) -> Result<Vec<usize>, TextError> {
    let wanted = match choice {
        WindowChoice::Count(0) => {
            return Err(TextError::Option {
                option: "windows",
                found: "0".into(),
                wanted: "1 or more",
            });
        }
        WindowChoice::List(list) if list.is_empty() => {
            return Err(TextError::Option {
                option: "windows",
                found: "[]".into(),
                wanted: "at least one index",
            });
        }
        WindowChoice::Count(count) => *count,
        WindowChoice::List(_) | WindowChoice::All => 1,
    };
    if available < wanted {
        return Err(TextError::TooFewWindows {
            n_tokens,
            available,
            sequence_length,
            wanted,
            told: String::new(),
        });
    }
    match choice {
        WindowChoice::All => Ok((0..available).collect()),
        WindowChoice::Count(count) => Ok((0..*count).map(|j| j * available / count).collect()),
        WindowChoice::List(list) => {
            for (i, &index) in list.iter().enumerate() {
                let problem = match index {
                    _ if index >= available => "is past the end",
                    _ if list[..i].contains(&index) => "is named twice",
                    _ => continue,
                };
                return Err(TextError::WindowIndex {
                    index,
                    problem,
                    last: available - 1,
                });
            }
            Ok(list.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of single characters' bytes: `a` is 0, `b` is 1.
    fn tokenizer() -> Tokenizer {
        let vocab: serde_json::Map<String, serde_json::Value> = ('a'..='z')
            .enumerate()
            .map(|(i, c)| (c.to_string(), i.into()))
            .collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}
        });
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn check(choice: WindowChoice, expected: Result<&[usize], &str>) {
        // 23 tokens: 5 windows of 4 and 3 left over.
        let text = &"abcdefghijklmnopqrstuvwxyz"[..23];
        match evaluation_windows(text, &tokenizer(), 4, &choice) {
            Ok(evaluation) => {
                assert_eq!(Ok(evaluation.indices.as_slice()), expected);
                assert_eq!(
                    (
                        evaluation.n_available,
                        evaluation.n_tokens,
                        evaluation.tokens_dropped_at_end
                    ),
                    (5, 23, 3)
                );
                assert_eq!(evaluation.windows.len(), evaluation.indices.len());
                for (window, &i) in evaluation.windows.iter().zip(&evaluation.indices) {
                    assert_eq!(
                        *window,
                        (4 * i as u32..4 * i as u32 + 4).collect::<Vec<_>>()
                    );
                }
            }
            Err(error) => assert_eq!(Err(error.to_string().as_str()), expected),
        }
    }

    #[test]
    fn windows_lie_where_their_indices_say() {
        check(WindowChoice::All, Ok(&[0, 1, 2, 3, 4]));
        check(WindowChoice::Count(5), Ok(&[0, 1, 2, 3, 4]));
        check(WindowChoice::Count(2), Ok(&[0, 2]));
        check(WindowChoice::Count(1), Ok(&[0]));
        check(WindowChoice::List(vec![4, 0]), Ok(&[4, 0]));
    }

    #[test]
    fn a_choice_that_cannot_be_met_says_what_there_is() {
        check(
            WindowChoice::Count(6),
            Err(
                "too little evaluation text: 23 tokens are 5 windows of 4, wanted 6; add text, set windows: 5, or \
                 shorten sequence_length",
            ),
        );
        check(
            WindowChoice::List(vec![0, 5]),
            Err("evaluation window 5 is past the end; the text has windows 0 to 4"),
        );
        check(
            WindowChoice::List(vec![2, 2]),
            Err("evaluation window 2 is named twice; the text has windows 0 to 4"),
        );
        check(
            WindowChoice::Count(0),
            Err("windows is 0, wanted 1 or more"),
        );
        check(
            WindowChoice::List(vec![]),
            Err("windows is [], wanted at least one index"),
        );
    }

    #[test]
    fn a_text_shorter_than_one_window_is_refused() {
        let error = evaluation_windows("abc", &tokenizer(), 4, &WindowChoice::All).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("too little evaluation text: 3 tokens are 0 windows of 4, wanted 1;")
        );
    }
}
