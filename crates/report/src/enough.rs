//! Is the calibration text enough? One answer for the summary, the page and `explain`.

use std::fmt;

use crate::RunRecord;
use crate::curve::{Curve, Doubling};
use crate::text::{grouped, heldout_ratio, kind, kind_figures};

/// How much larger the held-out loss may be for the text to count as enough, and for it to count as nearly enough. KL
/// follows the loss about in proportion, so a tenth is a few standard errors of a KL measured on some thousand tokens;
/// half of it is the difference between two group sizes.
const ENOUGH: f64 = 1.1;
pub(crate) const NEARLY: f64 = 1.5;
/// What twice the text may take from the held-out loss for it to count as enough, and as nearly enough: about the standard
/// error of a KL measured on some thousand tokens, and five times that.
const GAINS_LITTLE: f64 = 0.02;
const GAINS_SOME: f64 = 0.1;
/// Below it the held-out text is of another kind, as a single window may be by chance: nothing follows from it.
const UNLIKE: f64 = 0.8;
/// Held-out tokens from which on they may say that a text is enough: some kinds of text among them, not a paragraph.
const HELD_OUT: u64 = 2048;
/// Standard errors that are allowed for.
const ERRORS: f64 = 2.0;

/// The answer in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    NoText,
    Unknown,
    No,
    Nearly,
    Yes,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoText => "No text was read.",
            Self::Unknown => "Unknown.",
            Self::No => "No.",
            Self::Nearly => "Nearly.",
            Self::Yes => "Yes.",
        })
    }
}

/// The answer and the reasons for it.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) answer: Answer,
    pub(crate) reasons: String,
}

/// By what more text may gain where that was measured, else by the held-out loss beside that on the text itself; both with
/// their errors, and never yes by a few held-out tokens.
pub(crate) fn is_the_text_enough(run: &RunRecord, curve: Option<&Curve>) -> Verdict {
    let verdict = |answer, reasons: &str| Verdict {
        answer,
        reasons: reasons.to_owned(),
    };
    let calibration = &run.calibration;
    if calibration.tokens_used == 0 {
        return verdict(Answer::NoText, "The method needs none.");
    }
    let kinds = kind_figures(&run.linears);
    let Some(ratio) = kinds.last().and_then(|all| all.heldout_ratio) else {
        let remedy =
            "Nothing was held out, so this run cannot tell; set calibration.holdout to 0.1.";
        return verdict(Answer::Unknown, remedy);
    };
    let (answer, mut reasons) = match curve {
        Some(curve) => by_curve(run, curve, ratio),
        None => by_ratio(run, ratio),
    };
    let parts = if kinds.len() > 1 {
        &kinds[..kinds.len() - 1]
    } else {
        &kinds[..]
    };
    let most = parts
        .iter()
        .filter_map(|k| Some((k.heldout_ratio?, k.name.as_str())))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let tail = match most {
        Some((most, name)) if parts.len() > 1 => format!(", most for {name} ({most:.2} times)"),
        _ => String::new(),
    };
    reasons += &format!(
        " On {} held-out tokens the loss is {ratio:.2} times that on the {} tokens of the calibration text{tail}.",
        grouped(calibration.tokens_held_out),
        grouped(calibration.tokens_used)
    );
    let widest = run.linears.iter().max_by_key(|l| l.in_features);
    if let Some(widest) = widest.filter(|l| l.tokens > 0 && l.tokens < l.in_features as u64) {
        reasons += &format!(
            " {} has {} inputs and was measured on {} tokens, too few for statistics of full rank.",
            kind(widest),
            widest.in_features,
            grouped(widest.tokens)
        );
    }
    Verdict { answer, reasons }
}

/// The answer in a line of the summary; none where there was nothing to measure it by.
pub(crate) fn in_a_line(run: &RunRecord) -> Option<String> {
    let curve = Curve::of(run)?;
    let Verdict { answer, .. } = is_the_text_enough(run, Some(&curve));
    let mut line = format!("enough? {answer} {}", sentence(&may_cut(&curve.doubling())));
    if is_short(run) {
        line += &format!(
            " Only {} tokens were held out to tell.",
            grouped(run.calibration.tokens_held_out)
        );
    }
    Some(line)
}

/// `Twice the text may cut the held-out error by about 3.3 ± 0.4 %`.
fn may_cut(doubling: &Doubling) -> String {
    let error = match doubling.error {
        Some(error) => format!(" ± {:.1}", 100.0 * error),
        None => String::new(),
    };
    format!(
        "twice the text may cut the held-out error by about {:.1}{error} %",
        100.0 * doubling.share
    )
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str() + "."
}

fn is_short(run: &RunRecord) -> bool {
    run.calibration.tokens_held_out < HELD_OUT
}

/// That too little was held out to say yes, and what to do about it.
fn too_little_held_out(run: &RunRecord) -> String {
    format!(
        "{} held-out tokens are too few to say yes by: wanted are {}, by a longer text or a larger calibration.holdout.",
        grouped(run.calibration.tokens_held_out),
        grouped(HELD_OUT)
    )
}

/// What the held-out loss says alone.
fn by_ratio(run: &RunRecord, ratio: f64) -> (Answer, String) {
    let error = error_of_mean(run.linears.iter().filter_map(heldout_ratio).map(f64::ln));
    // As large as it may well be.
    let at_most = ratio * error.map_or(1.0, |error| (ERRORS * error).exp());
    let (answer, advice) = if ratio < UNLIKE {
        (
            Answer::Unknown,
            "The held-out text is much easier than the calibration text, so the two do not compare; hold out more \
             windows.",
        )
    } else if ratio > NEARLY {
        (
            Answer::No,
            "The solver has fitted its text; raise calibration.num_samples, or add text nearer to what the model will read.",
        )
    } else if is_short(run) {
        return (Answer::Unknown, too_little_held_out(run));
    } else if at_most <= ENOUGH {
        (Answer::Yes, "More text would gain little.")
    } else {
        (
            Answer::Nearly,
            "More text of the same kind would lower the loss somewhat.",
        )
    };
    (answer, advice.to_owned())
}

/// What more text may gain says, and what to set.
fn by_curve(run: &RunRecord, curve: &Curve, ratio: f64) -> (Answer, String) {
    let doubling = curve.doubling();
    let share = doubling.share;
    // As large as it may well be; without an error nothing is known of that.
    let at_most = doubling.error.map(|error| share + ERRORS * error);
    let answer = if share > GAINS_SOME {
        Answer::No
    } else if is_short(run) {
        Answer::Unknown
    } else if at_most.is_some_and(|at_most| at_most <= GAINS_LITTLE) && ratio <= NEARLY {
        Answer::Yes
    } else {
        Answer::Nearly
    };
    let samples = run.pipeline.pointer("/calibration/num_samples");
    let samples = samples.and_then(serde_json::Value::as_u64);
    let advice = match (answer, samples) {
        (Answer::Yes, Some(samples)) => {
            format!("calibration.num_samples can stay at {samples}.")
        }
        (Answer::Yes, None) => "More text would gain little.".to_owned(),
        (_, Some(samples)) => format!(
            "Set calibration.num_samples to {} (now {samples}), with more text if there is not that much.",
            2 * samples
        ),
        (_, None) => "Raise calibration.num_samples.".to_owned(),
    };
    let short = match answer {
        Answer::Unknown => format!("{} ", too_little_held_out(run)),
        _ => String::new(),
    };
    let told = halved_and_doubled(curve);
    (answer, format!("{short}{told} {advice}"))
}

/// What less calibration text costs, and what more of it may gain.
fn halved_and_doubled(curve: &Curve) -> String {
    let [half, whole] = curve.ends();
    let halved = match curve.halving() {
        more if more > 0.0 => format!("{:.1} % more", 100.0 * more),
        _ => "no more".to_owned(),
    };
    let doubling = curve.doubling();
    let told = match doubling.error {
        Some(_) => " (± the standard error over the linears measured)",
        None => "",
    };
    format!(
        "Solved from {} tokens instead of {}, linears lose {halved} on held-out text; {}{told}.",
        grouped(half.tokens),
        grouped(whole.tokens),
        may_cut(&doubling)
    )
}

/// The standard error of the mean; none of fewer than two values.
pub(crate) fn error_of_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    let n = values.len() as f64;
    if n < 2.0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (n - 1.0) / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::tests::run_with;
    use crate::fixture;
    use crate::text::kind;
    use serde_json::json;

    fn answer(run: &RunRecord) -> (Answer, String) {
        let Verdict { answer, reasons } = is_the_text_enough(run, Curve::of(run).as_ref());
        (answer, reasons)
    }

    /// Without a curve: every linear loses so many times as much on the held-out text.
    fn with_ratio(ratio: f64) -> RunRecord {
        let mut run = fixture::run();
        for linear in &mut run.linears {
            linear.relative_loss_heldout = Some(ratio * linear.relative_loss);
        }
        run
    }

    /// With a curve of these held-out losses, and held-out losses not far above the others.
    fn with_curve(heldout: &[f64]) -> RunRecord {
        let mut run = with_ratio(1.2);
        run.pipeline = json!({"calibration": {"num_samples": 64}});
        for (linear, curved) in run.linears.iter_mut().zip(run_with(heldout).linears) {
            linear.calibration_curve = curved.calibration_curve;
        }
        run
    }

    #[test]
    fn without_a_curve_the_held_out_loss_decides() {
        let word = |ratio: f64| answer(&with_ratio(ratio)).0;
        assert_eq!(
            [0.5, 1.0, 1.05, 1.3, 2.0].map(word),
            [
                Answer::Unknown,
                Answer::Yes,
                Answer::Yes,
                Answer::Nearly,
                Answer::No
            ]
        );
        let reasons = answer(&with_ratio(1.3)).1;
        assert!(
            reasons.contains("1.30 times that on the 29 491 tokens"),
            "{reasons}"
        );
        assert!(!reasons.contains("full rank"));
        // linears of which some lose less held out and others more: the mean is known to a fifth
        let mut run = with_ratio(1.0);
        for (i, linear) in run.linears.iter_mut().enumerate() {
            let ratio = if i % 2 == 0 { 0.8 } else { 1.3 };
            linear.relative_loss_heldout = Some(ratio * linear.relative_loss);
        }
        assert_eq!(answer(&run).0, Answer::Nearly);
        let mut run = fixture::run();
        run.linears[2].tokens = 60;
        run.linears[2].in_features = 65;
        let reasons = answer(&run).1;
        assert!(
            reasons.contains("q_proj has 65 inputs and was measured on 60 tokens"),
            "{reasons}"
        );
    }

    #[test]
    fn a_curve_says_what_half_costs_what_twice_may_gain_and_what_to_set() {
        let (word, reasons) = answer(&with_curve(&[2.0, 1.5, 1.2, 1.1]));
        assert_eq!(word, Answer::Nearly);
        for part in [
            "Solved from 500 tokens instead of 1 000, linears lose 9.1 % more on held-out text; twice the text may cut \
             the held-out error by about 4.3 ± 0.0 %",
            "Set calibration.num_samples to 128 (now 64)",
            "On 3 277 held-out tokens the loss is",
        ] {
            assert!(reasons.contains(part), "{part}: {reasons}");
        }
        assert_eq!(answer(&with_curve(&[4.0, 2.0, 1.0])).0, Answer::No);
        let (yes, reasons) = answer(&with_curve(&[1.2, 1.1, 1.09]));
        assert_eq!(yes, Answer::Yes);
        assert!(
            reasons.contains("calibration.num_samples can stay at 64."),
            "{reasons}"
        );
        let (_, reasons) = answer(&with_curve(&[1.0, 1.1]));
        assert!(reasons.contains("lose no more on held-out"), "{reasons}");
    }

    #[test]
    fn yes_needs_held_out_text_a_small_error_and_no_fitting() {
        let enough = with_curve(&[1.2, 1.1, 1.09]);
        let mut short = enough.clone();
        short.calibration.tokens_held_out = 256;
        let (word, reasons) = answer(&short);
        assert_eq!(word, Answer::Unknown);
        assert!(
            reasons.starts_with("256 held-out tokens are too few to say yes by: wanted are 2 048"),
            "{reasons}"
        );
        assert!(reasons.contains("num_samples to 128"), "{reasons}");
        // That it is not enough a few tokens may say.
        let mut short = with_curve(&[4.0, 2.0, 1.0]);
        short.calibration.tokens_held_out = 256;
        assert_eq!(answer(&short).0, Answer::No);
        let mut short = with_ratio(1.0);
        short.calibration.tokens_held_out = 256;
        assert_eq!(answer(&short).0, Answer::Unknown);
        // One kind gains from more text and the other loses by it: nothing is known.
        let mut uneven = enough.clone();
        for linear in uneven.linears.iter_mut().filter(|l| kind(l) == "q_proj") {
            for (point, factor) in linear.calibration_curve.iter_mut().zip([1.0, 1.15, 1.0]) {
                point.relative_loss_heldout *= factor;
            }
        }
        for linear in uneven.linears.iter_mut().filter(|l| kind(l) != "q_proj") {
            for (point, factor) in linear.calibration_curve.iter_mut().zip([1.0, 1.0, 1.14]) {
                point.relative_loss_heldout *= factor;
            }
        }
        assert_eq!(answer(&uneven).0, Answer::Nearly);
        // Fitted to its text, whatever the curve says.
        let mut fitted = enough;
        for linear in &mut fitted.linears {
            linear.relative_loss_heldout = Some(2.0 * linear.relative_loss);
        }
        assert_eq!(answer(&fitted).0, Answer::Nearly);
    }

    #[test]
    fn the_summary_has_it_in_a_line() {
        assert_eq!(in_a_line(&with_ratio(1.0)), None);
        let mut run = with_curve(&[2.0, 1.5, 1.2, 1.1]);
        let line =
            "enough? Nearly. Twice the text may cut the held-out error by about 4.3 ± 0.0 %.";
        assert_eq!(in_a_line(&run).unwrap(), line);
        run.calibration.tokens_held_out = 256;
        assert_eq!(
            in_a_line(&run).unwrap(),
            line.replace("Nearly", "Unknown") + " Only 256 tokens were held out to tell."
        );
    }

    #[test]
    fn the_error_of_a_mean_is_the_spread_over_the_root_of_the_count() {
        assert_eq!(error_of_mean([1.0].into_iter()), None);
        // squares add up to 2, over n - 1 = 2 and over n = 3
        let error = error_of_mean([1.0, 2.0, 3.0].into_iter()).unwrap();
        assert!((error - (1.0f64 / 3.0).sqrt()).abs() < 1e-15);
    }
}
