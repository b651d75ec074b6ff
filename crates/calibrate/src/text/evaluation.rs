//! Evaluation text: one string, tokenized whole, cut into windows that do not overlap.

use tokenizers::Tokenizer;

use super::{TextError, tokenize};

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
}

/// Tokenizes the text as one string, so that the ids are those any other tool gets from it, without special
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
    if sequence_length < 2 {
        let found = sequence_length.to_string();
        return Err(TextError::Option {
            option: "sequence_length",
            found,
            wanted: "2 or more",
        });
    }
    let ids = tokenize::ids(
        "evaluation text",
        text,
        tokenize::plain(tokenizer)?.as_ref(),
    )?;
    let n_available = ids.len() / sequence_length;
    let indices = chosen(choice, n_available, ids.len(), sequence_length)?;
    Ok(EvaluationText {
        windows: indices
            .iter()
            .map(|&i| ids[i * sequence_length..][..sequence_length].to_vec())
            .collect(),
        indices,
        n_available,
        n_tokens: ids.len(),
        tokens_dropped_at_end: ids.len() % sequence_length,
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
