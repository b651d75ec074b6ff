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
        return Err(TextError::Option { option: "sequence_length", found, wanted: "2 or more" });
    }
    let ids = tokenize::ids("evaluation text", text, tokenize::plain(tokenizer)?.as_ref())?;
    let n_available = ids.len() / sequence_length;
    let indices = chosen(choice, n_available, ids.len(), sequence_length)?;
    Ok(EvaluationText {
        windows: indices.iter().map(|&i| ids[i * sequence_length..][..sequence_length].to_vec()).collect(),
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
            return Err(TextError::Option { option: "windows", found: "0".into(), wanted: "1 or more" });
        }
        WindowChoice::List(list) if list.is_empty() => {
            return Err(TextError::Option { option: "windows", found: "[]".into(), wanted: "at least one index" });
        }
        WindowChoice::Count(count) => *count,
        WindowChoice::List(_) | WindowChoice::All => 1,
    };
    if available < wanted {
        return Err(TextError::TooFewWindows { n_tokens, available, sequence_length, wanted });
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
                return Err(TextError::WindowIndex { index, problem, last: available - 1 });
            }
            Ok(list.clone())
        }
    }
}
