//! Whether a quantized model is still the model, in words that need no scale at hand.

use serde::{Deserialize, Serialize};

use crate::{EvaluationRecord, LinearRecord, RunRecord};

/// What scores say of a quantized model beside its float one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Neither of the two below.
    Good,
    /// Perplexity is more than 1.5 times the float model's, or KL above ln 1.5, which comes to the same.
    Degraded,
    /// Tokens are more than 20 times less likely than by the float model, by perplexity or KL (above ln 20 = 3.0), or no
    /// likelier than by guessing evenly from the vocabulary; or a score is no number.
    Broken,
}

impl Verdict {
    /// The spelling in records and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Degraded => "degraded",
            Self::Broken => "broken",
        }
    }
}

/// Perplexity over the float model's up to which a result is called good.
const GOOD: f64 = 1.5;
/// The same up to which it is not called broken.
const BROKEN: f64 = 20.0;

/// The scores that a verdict is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Perplexity of the float model.
    pub perplexity_float: f64,
    /// Perplexity of the quantized model.
    pub perplexity: f64,
    /// Mean of KL(float ‖ quantized) over tokens, in nats.
    pub kl_mean: f64,
    /// Tokens in the vocabulary, where that is known.
    pub vocab_size: Option<usize>,
}

impl Scores {
    /// The word for them.
    pub fn verdict(&self) -> Verdict {
        let worst = self.ratio().max(self.kl_mean.exp());
        let no_number = self.perplexity.is_nan() || self.kl_mean.is_nan();
        if no_number || worst > BROKEN || self.guesses() {
            Verdict::Broken
        } else if worst > GOOD {
            Verdict::Degraded
        } else {
            Verdict::Good
        }
    }

    /// The verdict in a sentence; none where it is good.
    pub fn warning(&self) -> Option<String> {
        let Self {
            perplexity_float,
            perplexity,
            kl_mean,
            ..
        } = *self;
        let measured = format!(
            "perplexity {perplexity:.1} where the float model has {perplexity_float:.1}, KL {kl_mean:.2}"
        );
        match self.verdict() {
            Verdict::Good => None,
            Verdict::Degraded => Some(format!(
                "degraded: {measured}; above 1.5 times the perplexity, or a KL of {:.2}, much of what the model knows is lost",
                GOOD.ln()
            )),
            Verdict::Broken if self.guesses() => Some(format!(
                "broken: {measured}; that is worse than guessing evenly among the {} tokens of the vocabulary. Do not use it: take \
                 more bits, smaller groups or zero points",
                self.vocab_size.unwrap_or_default()
            )),
            Verdict::Broken => Some(format!(
                "broken: {measured}; that is no longer the model. Do not use it: take more bits, smaller groups or zero points"
            )),
        }
    }

    fn ratio(&self) -> f64 {
        self.perplexity / self.perplexity_float
    }

    /// Whether guessing evenly would do as well: by perplexity, where the float model is better than that, or by KL, which
    /// an even guess cannot bring above the logarithm of the vocabulary.
    fn guesses(&self) -> bool {
        self.vocab_size.is_some_and(|size| {
            let size = size as f64;
            (self.perplexity >= size && self.perplexity_float < size) || self.kl_mean > size.ln()
        })
    }
}

impl EvaluationRecord {
    /// The scores that the verdict is drawn from.
    pub fn scores(&self) -> Scores {
        Scores {
            perplexity_float: self.perplexity_float,
            perplexity: self.perplexity,
            kl_mean: self.kl_mean,
            vocab_size: self.vocab_size,
        }
    }

    /// Whether these scores are of a model that is no longer the one it was made from.
    pub fn is_broken(&self) -> bool {
        self.scores().verdict() == Verdict::Broken
    }
}

impl RunRecord {
    /// What the scores say against the result, if anything.
    pub fn verdict_warning(&self) -> Option<String> {
        self.evaluation.as_ref()?.scores().warning()
    }

    /// The run's warnings with the verdict first; records of earlier versions have none of their own.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let verdict = self.verdict_warning();
        let all = self.summary.warnings.iter();
        let others = all.filter(|told| Some(*told) != verdict.as_ref()).cloned();
        verdict.iter().cloned().chain(others).collect()
    }
}

/// How the warning of a linear begins whose own solve was given up for another.
pub const FELL_BACK: &str = "fell back to ";

impl LinearRecord {
    /// Its warnings but that of a fallback, which [`doubtful_linears`] tells of all linears together.
    pub fn own_warnings(&self) -> impl Iterator<Item = &String> {
        let fell_back = self.fallback.is_some();
        let warnings = self.warnings.iter();
        warnings.filter(move |warning| !(fell_back && warning.starts_with(FELL_BACK)))
    }
}

/// What is to be told of linears that lose more than they should, a line for each kind of fault: those whose own solve lost
/// more than plain rounding and was given up, and those that lose as much as they give.
pub fn doubtful_linears(linears: &[LinearRecord]) -> Vec<String> {
    let mut all = Vec::new();
    let names = |of: &[&LinearRecord]| match of {
        [one] => format!("1 linear, {},", one.linear),
        many => format!("{} linears", many.len()),
    };
    let fallen: Vec<&LinearRecord> = linears.iter().filter(|l| l.fallback.is_some()).collect();
    let mut ways: Vec<&str> = fallen
        .iter()
        .filter_map(|l| l.fallback.as_deref())
        .collect();
    ways.sort_unstable();
    ways.dedup();
    if !fallen.is_empty() {
        all.push(format!(
            "{} fell back to {}, because the method's own solve lost more than plain rounding, or than there is to lose; see \
             `fallback` in linears.csv",
            names(&fallen),
            ways.join(" or ")
        ));
    }
    let lost = |l: &&LinearRecord| l.relative_loss_heldout.unwrap_or(l.relative_loss) > 1.0;
    let lost: Vec<&LinearRecord> = linears.iter().filter(lost).collect();
    if !lost.is_empty() {
        all.push(format!(
            "{} lost more than the output itself (a loss above 1): expect a broken model, and set `evaluate` to know",
            names(&lost)
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;

    fn scores(perplexity_float: f64, perplexity: f64, kl_mean: f64) -> Scores {
        Scores {
            perplexity_float,
            perplexity,
            kl_mean,
            vocab_size: Some(1000),
        }
    }

    #[test]
    fn a_result_is_good_degraded_or_broken_by_either_score() {
        for (perplexity, kl, wanted) in [
            (20.0, 0.0, Verdict::Good),
            (30.0, 0.40, Verdict::Good),
            (30.1, 0.40, Verdict::Degraded),
            (20.0, 0.41, Verdict::Degraded),
            (190.0, 2.25, Verdict::Degraded),
            (400.0, 2.99, Verdict::Degraded),
            (401.0, 0.1, Verdict::Broken),
            (20.0, 3.01, Verdict::Broken),
            (20.0, f64::NAN, Verdict::Broken),
            (f64::INFINITY, 0.1, Verdict::Broken),
        ] {
            let found = scores(20.0, perplexity, kl);
            assert_eq!(found.verdict(), wanted, "{perplexity} {kl}");
            assert_eq!(found.warning().is_none(), wanted == Verdict::Good);
        }
    }

    #[test]
    fn what_guessing_would_do_as_well_is_broken_however_bad_the_float_model() {
        let bad = scores(700.0, 1000.0, 0.2);
        assert_eq!(bad.verdict(), Verdict::Broken);
        assert!(
            bad.warning()
                .unwrap()
                .contains("worse than guessing evenly among the 1000 tokens")
        );
        // The float model guesses too: quantizing is not what broke it.
        assert_eq!(scores(1200.0, 1201.0, 0.1).verdict(), Verdict::Good);
        let far = scores(500.0, 900.0, 7.0);
        assert!(far.warning().unwrap().contains("worse than guessing"));
        let unknown = Scores {
            vocab_size: None,
            ..bad
        };
        assert_eq!(unknown.verdict(), Verdict::Good);
    }

    #[test]
    fn the_verdict_stands_first_once() {
        let mut run = run();
        let before = run.warnings();
        assert_eq!(before, run.summary.warnings);
        if let Some(e) = &mut run.evaluation {
            e.kl_mean = 13.8;
        }
        let verdict = run.verdict_warning().unwrap();
        assert!(verdict.starts_with("broken: "), "{verdict}");
        run.summary.warnings.push(verdict.clone());
        let all = run.warnings();
        assert_eq!(all[0], verdict);
        assert_eq!(all[1..], before);
    }

    #[test]
    fn linears_that_fell_back_are_told_together() {
        let mut linears = run().linears;
        assert!(doubtful_linears(&linears).is_empty());
        linears[0].fallback = Some("plain rounding".into());
        linears[0].warnings = vec![format!("{FELL_BACK}plain rounding: ..."), "3 dead".into()];
        let own: Vec<_> = linears[0].own_warnings().collect();
        assert_eq!(own, ["3 dead"]);
        let one = doubtful_linears(&linears);
        assert!(
            one[0].starts_with("1 linear, self_attn.q_proj, fell back to plain rounding, because")
        );
        linears[1].fallback = Some("rounding on a searched grid".into());
        linears[2].relative_loss_heldout = Some(1.5);
        let both = doubtful_linears(&linears);
        assert!(both[0].starts_with("2 linears fell back to plain rounding or rounding on a"));
        assert!(both[1].starts_with("1 linear, self_attn.q_proj, lost more than the output"));
    }
}
