use serde::Serialize;

use crate::score::mean_and_error;

/// How far a model and its reference go on from the same prompts in the same way, both taking the likeliest token always;
/// standard errors over prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Prompts.
    pub prompts: usize,
    /// Tokens after which both stop.
    pub max_new_tokens: usize,
    /// Mean number of tokens before the first that differs.
    pub agreement_length: f64,
    /// Standard error of `agreement_length`.
    pub agreement_length_se: f64,
    /// Share of prompts that both go on from with the same tokens to the end.
    pub identical: f64,
    /// Mean ROUGE-L of the model's text by the reference's.
    pub rouge_l: f64,
    /// Standard error of `rouge_l`.
    pub rouge_l_se: f64,
    /// What the reference took.
    pub cost_float: GenerationCost,
    /// What the model took.
    pub cost: GenerationCost,
}

/// Speed and memory of generating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GenerationCost {
    /// Tokens after each prompt's first, over the time they took.
    pub tokens_per_second: f64,
    /// Weights as they are held.
    pub weight_bytes: u64,
    /// Keys and values at the end of the longest.
    pub cache_bytes: u64,
}

/// What one model gave for a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Tokens, the one that ended the text left out.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
}

/// Compares continuations of the same prompts, the reference's first in each pair. There must be one at least.
pub fn agreement(
    pairs: &[(Continuation, Continuation)],
    max_new_tokens: usize,
    cost_float: GenerationCost,
    cost: GenerationCost,
) -> Agreement {
    let mean = |f: &dyn Fn(&Continuation, &Continuation) -> f64| {
        let values: Vec<f64> = pairs.iter().map(|(float, model)| f(float, model)).collect();
        mean_and_error(&values)
    };
    let (agreement_length, agreement_length_se) =
        mean(&|float, model| agreement_length_of(&float.tokens, &model.tokens) as f64);
    let (rouge_l, rouge_l_se) = mean(&|float, model| rouge_l_of(&float.text, &model.text));
    let (identical, _) = mean(&|float, model| f64::from(u8::from(float.tokens == model.tokens)));
    Agreement {
        prompts: pairs.len(),
        max_new_tokens,
        agreement_length,
        agreement_length_se,
        identical,
        rouge_l,
        rouge_l_se,
        cost_float,
        cost,
    }
}

/// Tokens before the first that differs.
fn agreement_length_of(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// ROUGE-L: the F1 of precision and recall by the longest common subsequence of words (Lin, "ROUGE: A Package for Automatic
/// Evaluation of Summaries", 2004, section 3.1, with β = 1). Words are runs of letters and digits in lower case; 1 for two
/// texts without any.
fn rouge_l_of(reference: &str, candidate: &str) -> f64 {
    let (reference, candidate) = (words(reference), words(candidate));
    if reference.is_empty() && candidate.is_empty() {
        return 1.0;
    }
    let common = longest_common_subsequence(&reference, &candidate) as f64;
    // 2PR / (P + R) with P = common / candidate, R = common / reference
    2.0 * common / (reference.len() + candidate.len()) as f64
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Its length, row by row of the usual table.
fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for a in a {
        let mut diagonal = 0;
        for (j, b) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if a == b {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every subsequence of `a`, the longest that is one of `b` too.
    fn brute_force(a: &[String], b: &[String]) -> usize {
        let is_in = |some: &[&String]| {
            let mut rest = b.iter();
            some.iter().all(|word| rest.any(|other| other == *word))
        };
        let all = (0..1u32 << a.len()).map(|chosen| {
            let some: Vec<&String> = (0..a.len())
                .filter(|i| chosen >> i & 1 == 1)
                .map(|i| &a[i])
                .collect();
            if is_in(&some) { some.len() } else { 0 }
        });
        all.max().unwrap_or(0)
    }

    #[test]
    fn the_longest_common_subsequence_is_that_of_trying_all() {
        let mut state = 1u32;
        let mut word = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ["a", "b", "c", "d"][(state >> 24) as usize % 4].to_owned()
        };
        for n in 0..11 {
            for m in [0, 1, 4, 9, 14] {
                let a: Vec<String> = (0..n).map(|_| word()).collect();
                let b: Vec<String> = (0..m).map(|_| word()).collect();
                let found = longest_common_subsequence(&a, &b);
                assert_eq!(found, brute_force(&a, &b), "{a:?} {b:?}");
            }
        }
    }

    /// The example of Lin 2004, section 3.1: sentence-level F1 of 3/4 and 1/2.
    #[test]
    fn rouge_l_is_that_of_the_paper() {
        let reference = "police killed the gunman";
        assert_eq!(rouge_l_of(reference, "Police kill the gunman."), 0.75);
        assert_eq!(rouge_l_of(reference, "the gunman kill police"), 0.5);
        assert_eq!(rouge_l_of(reference, "nobody"), 0.0);
        assert_eq!(rouge_l_of(reference, ""), 0.0);
        assert_eq!(rouge_l_of("...", ""), 1.0);
    }

    #[test]
    fn agreement_counts_tokens_before_the_first_difference() {
        let continuation = |tokens: &[u32], text: &str| Continuation {
            tokens: tokens.to_vec(),
            text: text.to_owned(),
        };
        let pairs = [
            (
                continuation(&[1, 2, 3], "a b c"),
                continuation(&[1, 2, 4], "a b d"),
            ),
            (continuation(&[1], "a"), continuation(&[1, 2], "a b")),
            (continuation(&[5, 6, 7], "x"), continuation(&[5, 6, 7], "x")),
        ];
        let cost = GenerationCost::default();
        let found = agreement(&pairs, 3, cost, cost);
        assert_eq!((found.prompts, found.agreement_length), (3, 2.0));
        assert!((found.identical - 1.0 / 3.0).abs() < 1e-12);
        let rouge_l = (2.0 / 3.0 + 2.0 / 3.0 + 1.0) / 3.0;
        assert!((found.rouge_l - rouge_l).abs() < 1e-12);
        assert!((found.agreement_length_se - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
