use anyhow::Result;
use halfbyte_calibrate::text::SplitMix64;
use halfbyte_model::softmax;

use super::Sampling;
use crate::error::user_error;

/// Chooses tokens, one after the other.
pub(super) struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    /// Of the token that was chosen last.
    probabilities: Vec<f32>,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            random: SplitMix64::new(sampling.seed, 0),
            probabilities: Vec::new(),
        }
    }

    /// The next token by its logits, `[vocab_size]`.
    pub(super) fn next(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(user_error(
                "a logit is not finite; the model overflows",
                "check the model with `halfbyte eval`, or give it a shorter prompt",
            ));
        }
        let Sampling {
            temperature,
            top_p,
            top_k,
            ..
        } = self.sampling;
        let token = if temperature == 0.0 {
            likeliest(logits)
        } else {
            set_probabilities(&mut self.probabilities, logits, temperature);
            let place = self.random.unit();
            match (top_k, top_p < 1.0) {
                (0, true) => draw(nucleus(&self.probabilities, top_p).into_iter(), place),
                (0, false) => draw(numbered(&self.probabilities), place),
                _ => draw(few(&self.probabilities, top_k, top_p).into_iter(), place),
            }
        };
        Ok(token as u32)
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&x| x == largest).unwrap_or(0)
}

/// `softmax(logits / temperature)`.
fn set_probabilities(probabilities: &mut Vec<f32>, logits: &[f32], temperature: f64) {
    probabilities.clear();
    probabilities.extend(logits.iter().map(|x| (f64::from(*x) / temperature) as f32));
    softmax(probabilities);
}

fn numbered(probabilities: &[f32]) -> impl Iterator<Item = (usize, f64)> + Clone {
    probabilities.iter().map(|p| f64::from(*p)).enumerate()
}

/// The likeliest tokens, as few as have `top_p` of the probability together, likeliest first and of equals the lower id
/// first (nucleus sampling, Holtzman et al., arXiv 1904.09751, section 3.1).
fn nucleus(probabilities: &[f32], top_p: f64) -> Vec<(usize, f64)> {
    // All tokens below this bound together have less than what may be left out, so that few need sorting.
    let bound = (1.0 - top_p) / probabilities.len() as f64;
    let mut some: Vec<(usize, f64)> = numbered(probabilities)
        .filter(|(_, p)| *p >= bound)
        .collect();
    some.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut sum = 0.0;
    let enough = some.iter().position(|(_, p)| {
        sum += p;
        sum >= top_p
    });
    some.truncate(enough.map_or(some.len(), |last| last + 1));
    some
}

/// The `top_k` likeliest tokens, and of these as few as have `top_p` of what they have together.
fn few(probabilities: &[f32], top_k: usize, top_p: f64) -> Vec<(usize, f64)> {
    let likelier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut some: Vec<(usize, f64)> = numbered(probabilities).collect();
    if top_k < some.len() {
        some.select_nth_unstable_by(top_k, likelier);
        some.truncate(top_k);
    }
    some.sort_by(likelier);
    let enough = top_p * some.iter().map(|(_, p)| p).sum::<f64>();
    let mut sum = 0.0;
    let last = some.iter().position(|(_, p)| {
        sum += p;
        sum >= enough
    });
    some.truncate(last.map_or(some.len(), |last| last + 1));
    some
}

/// The token at a place in [0, 1) of the tokens' probabilities laid end to end.
fn draw(tokens: impl Iterator<Item = (usize, f64)> + Clone, place: f64) -> usize {
    let whole: f64 = tokens.clone().map(|(_, p)| p).sum();
    let mut left = place * whole;
    let mut last = 0;
    for (token, p) in tokens {
        left -= p;
        last = token;
        if left < 0.0 {
            break;
        }
    }
    // the last one where rounding has left a hair
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37) % 101) as f32 / 12.0).collect()
    }

    /// Sorts everything and cuts where the sum is reached.
    fn textbook(logits: &[f32], temperature: f64, top_p: f64) -> Vec<(usize, f64)> {
        let sum: f64 = logits
            .iter()
            .map(|x| (f64::from(*x) / temperature).exp())
            .sum();
        let p = |x: f32| (f64::from(x) / temperature).exp() / sum;
        let mut all: Vec<(usize, f64)> = logits.iter().map(|x| p(*x)).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut kept = Vec::new();
        while kept.iter().map(|(_, p)| p).sum::<f64>() < top_p && kept.len() < all.len() {
            kept.push(all[kept.len()]);
        }
        kept
    }

    #[test]
    fn the_nucleus_is_the_textbooks() {
        let logits = logits(997);
        for temperature in [0.3, 1.0, 2.5] {
            for top_p in [0.001, 0.2, 0.5, 0.9, 0.999] {
                let mut probabilities = Vec::new();
                set_probabilities(&mut probabilities, &logits, temperature);
                let found = nucleus(&probabilities, top_p);
                let wanted = textbook(&logits, temperature, top_p);
                assert_eq!(found.len(), wanted.len(), "{temperature} {top_p}");
                for (found, wanted) in found.iter().zip(&wanted) {
                    assert_eq!(found.0, wanted.0);
                    // f32, from logits divided in f32: the exponent is off by 1e-6 of itself at most
                    assert!((found.1 / wanted.1 - 1.0).abs() < 1e-5);
                }
            }
        }
    }

    /// All sorted, cut to the first, and the nucleus of what is left.
    #[test]
    fn the_few_likeliest_are_the_textbooks() {
        let logits = logits(997);
        let mut probabilities = Vec::new();
        set_probabilities(&mut probabilities, &logits, 0.8);
        for top_k in [1, 2, 20, 996, 997, 5000] {
            for top_p in [0.001, 0.5, 0.95, 1.0] {
                let mut wanted = textbook(&logits, 0.8, 1.1);
                wanted.truncate(top_k);
                let whole: f64 = wanted.iter().map(|(_, p)| p).sum();
                let mut sum = 0.0;
                wanted.retain(|(_, p)| {
                    let is_in = sum < top_p * whole * (1.0 - 1e-9);
                    sum += p;
                    is_in
                });
                let found = few(&probabilities, top_k, top_p);
                let tokens = |of: &[(usize, f64)]| of.iter().map(|(t, _)| *t).collect::<Vec<_>>();
                // rounding of all of them may cut the last one off, or not
                let close = found.len().abs_diff(wanted.len()) <= usize::from(top_p == 1.0);
                assert!(close, "{top_k} {top_p}: {} {}", found.len(), wanted.len());
                let n = found.len().min(wanted.len());
                assert_eq!(tokens(&found[..n]), tokens(&wanted[..n]), "{top_k} {top_p}");
            }
        }
    }

    /// 40 000 draws: the standard error of a share is 0.0025 at most, and five of them are allowed.
    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits = [1.0, 2.0, 0.0, 2.5, -1.0];
        for (temperature, top_p) in [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)] {
            let sampling = Sampling {
                temperature,
                top_p,
                top_k: 0,
                seed: 3,
            };
            let mut sampler = Sampler::new(sampling);
            let mut seen = [0.0; 5];
            for _ in 0..40_000 {
                seen[sampler.next(&logits).unwrap() as usize] += 1.0 / 40_000.0;
            }
            let kept = textbook(&logits, temperature, top_p);
            let whole: f64 = kept.iter().map(|(_, p)| p).sum();
            for (token, seen) in seen.into_iter().enumerate() {
                let wanted = kept.iter().find(|(kept, _)| *kept == token);
                let wanted = wanted.map_or(0.0, |(_, p)| p / whole);
                assert!((seen - wanted).abs() < 0.0125, "{token}: {seen} {wanted}");
                assert!(wanted > 0.0 || seen == 0.0);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_tokens_and_another_one_others() {
        let tokens = |seed| {
            let mut sampler = Sampler::new(Sampling {
                temperature: 1.0,
                top_p: 0.95,
                top_k: 0,
                seed,
            });
            let logits = logits(300);
            (0..20)
                .map(|_| sampler.next(&logits).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(tokens(7), tokens(7));
        assert_ne!(tokens(7), tokens(8));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_nothing_that_is_no_number() {
        let mut sampler = Sampler::new(Sampling::GREEDY);
        assert_eq!(sampler.next(&[0.0, 3.0, -1.0, 3.0]).unwrap(), 1);
        assert!(sampler.next(&[0.0, f32::NAN]).is_err());
        assert!(sampler.next(&[f32::INFINITY, 0.0]).is_err());
    }
}
