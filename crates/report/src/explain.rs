//! Why a linear loses what it loses, what rule would mend it, and what that costs: from a run's record alone.

use halfbyte_quant::{GroupSize, Scheme};

use crate::curve::Curve;
use crate::enough::{Answer, NEARLY, Verdict, is_the_text_enough};
use crate::markup::{counted, short};
use crate::text::{bytes, grouped, kind};
use crate::{HessianKind, LinearRecord, RunRecord};

/// A linear that cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// No linear of that name.
    #[error("{asked}: no quantized linear has a name that ends so; the worst is {worst}")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// The linear of largest loss.
        worst: String,
    },
    /// More than one.
    #[error("{asked}: {} linears have names that end so: {}; give more of the name", found.len(), some(found))]
    Several {
        /// What was asked for.
        asked: String,
        /// Their names.
        found: Vec<String>,
    },
}

/// The first few.
fn some(names: &[String]) -> String {
    let few = names.len().min(3);
    let more = if names.len() > few { " ..." } else { "" };
    names[..few].join(", ") + more
}

/// Clipped weights, a share, that are worth a word.
const MUCH_CLIPPED: f64 = 0.01;
/// Columns over effective rank from which on few directions carry the input.
const NARROW: f64 = 50.0;
/// Gain over plain rounding below which the method found nothing to use.
const NO_GAIN: f64 = 1.2;
/// Widths that rules may have.
const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// What is known of a linear, by its name or the end of it.
///
/// # Errors
/// A name that no linear has, or several.
pub fn explain(run: &RunRecord, asked: &str) -> Result<String, ExplainError> {
    let linear = find(run, asked)?;
    let mut out = format!(
        "{}: {} bits, groups of {}, {}, {}; {:.3} bits a weight, {}\n\n",
        linear.linear,
        linear.bits,
        linear.group_size,
        if linear.sym {
            "symmetric"
        } else {
            "with zero points"
        },
        linear.method,
        linear.bits_per_weight,
        bytes(linear.bytes_after)
    );
    for (name, value) in facts(run, linear) {
        out += &format!("{name:<18} {value}\n");
    }
    out += "\nWhy\n";
    let mut reasons = reasons(run, linear);
    if reasons.is_empty() {
        reasons.push("nothing stands out: what is lost is the rounding itself".to_owned());
    }
    for reason in reasons {
        out += &format!("- {reason}\n");
    }
    let rules = rules(linear);
    if !rules.is_empty() {
        out += "\nRules that would mend it, as expected from ranges and Hessian\n";
        for rule in rules {
            out += &format!(
                "- {{match: {}, {}}}: loss x {}, {:.3} bits a weight, + {}\n",
                linear.linear,
                rule.settings,
                short(rule.loss),
                rule.bits_per_weight,
                bytes(rule.bytes)
            );
        }
    }
    Ok(out)
}

fn find<'a>(run: &'a RunRecord, asked: &str) -> Result<&'a LinearRecord, ExplainError> {
    let whole = run.linears.iter().find(|l| l.linear == asked);
    let dotted = format!(".{asked}");
    let ends: Vec<&LinearRecord> = match whole {
        Some(linear) => vec![linear],
        None => (run.linears.iter())
            .filter(|l| l.linear.ends_with(&dotted))
            .collect(),
    };
    match ends[..] {
        [linear] => Ok(linear),
        [] => {
            let by_loss =
                |a: &&LinearRecord, b: &&LinearRecord| a.relative_loss.total_cmp(&b.relative_loss);
            let worst = run.linears.iter().max_by(by_loss);
            Err(ExplainError::Unknown {
                asked: asked.to_owned(),
                worst: worst.map_or_else(|| "none".to_owned(), |l| l.linear.clone()),
            })
        }
        _ => Err(ExplainError::Several {
            asked: asked.to_owned(),
            found: ends.iter().map(|l| l.linear.clone()).collect(),
        }),
    }
}

fn facts(run: &RunRecord, linear: &LinearRecord) -> Vec<(&'static str, String)> {
    let mut alike: Vec<f64> = (run.linears.iter())
        .filter(|l| kind(l) == kind(linear))
        .map(|l| l.relative_loss)
        .collect();
    alike.sort_by(f64::total_cmp);
    let median = alike[alike.len() / 2];
    let worse = run
        .linears
        .iter()
        .filter(|l| l.relative_loss > linear.relative_loss);
    let mut facts = vec![
        (
            "loss",
            format!(
                "{} of the output{}; plain rounding {}",
                short(linear.relative_loss),
                linear
                    .relative_loss_heldout
                    .map_or_else(String::new, |held| format!(
                        ", {} on held-out text",
                        short(held)
                    )),
                short(linear.relative_loss_rtn)
            ),
        ),
        (
            "place",
            format!(
                "{} of {} are worse; {} x the median {}",
                worse.count(),
                run.linears.len(),
                short(linear.relative_loss / median),
                kind(linear)
            ),
        ),
    ];
    if linear.hessian != HessianKind::Identity {
        facts.push((
            "input",
            format!(
                "{} columns, {} tokens{}",
                grouped(linear.in_features as u64),
                grouped(linear.tokens),
                linear
                    .effective_rank
                    .map_or_else(String::new, |rank| format!(
                        ", effective rank {}",
                        short(rank)
                    ))
            ),
        ));
    }
    if let Some(kl) = linear.predicted_kl {
        facts.push(("KL", format!("{} nats a token, predicted", short(kl))));
    }
    facts
}

fn reasons(run: &RunRecord, linear: &LinearRecord) -> Vec<String> {
    let mut reasons = Vec::new();
    let columns = linear.in_features as f64;
    if let Some(channels) = linear.outlier_channels.as_ref().filter(|c| !c.is_empty()) {
        let first: Vec<String> = channels.iter().take(6).map(usize::to_string).collect();
        let more = if channels.len() > first.len() {
            " ..."
        } else {
            ""
        };
        reasons.push(format!(
            "{} more than ten times as large as the median one ({}{more}): codes of their columns decide the loss, and \
             the others pay",
            match channels.len() {
                1 => "1 input channel is".to_owned(),
                n => format!("{n} input channels are"),
            },
            first.join(", ")
        ));
    }
    if let Some(rank) = linear
        .effective_rank
        .filter(|rank| *rank * NARROW < columns)
    {
        reasons.push(format!(
            "the input's energy lies in about {} of {} directions; what is rounded in the others is hardly felt on this \
             text, and may be on another",
            short(rank),
            grouped(linear.in_features as u64)
        ));
    }
    if let Some(held) = linear.relative_loss_heldout
        && held > NEARLY * linear.relative_loss
    {
        let Verdict { answer, .. } = is_the_text_enough(run, Curve::of(run).as_ref());
        let remedy = match answer {
            // Of all linears together: more text would not mend this one either.
            Answer::Yes => "the text is enough for the model as a whole, so raise damp_percent",
            _ => "raise calibration.num_samples, or damp_percent",
        };
        reasons.push(format!(
            "{} x the loss on held-out text: {} tokens are few for {} columns; {remedy}",
            short(held / linear.relative_loss),
            grouped(linear.tokens),
            grouped(linear.in_features as u64)
        ));
    }
    if linear.clipped_share > MUCH_CLIPPED {
        reasons.push(format!(
            "{} % of the weights lie outside their group's range: a few large ones share groups with many small ones",
            short(100.0 * linear.clipped_share)
        ));
    }
    if linear.dead_columns > 0 {
        let dead = counted(linear.dead_columns, "column");
        reasons.push(format!(
            "{dead} had no input at all: the text does not use them"
        ));
    }
    if linear
        .damp_asked
        .is_some_and(|asked| linear.damp_used > asked)
    {
        reasons.push(format!(
            "the Hessian needed damping of {}",
            short(linear.damp_used)
        ));
    }
    if linear.relative_loss * NO_GAIN > linear.relative_loss_rtn && linear.method != "rtn" {
        reasons.push("the method gains next to nothing over plain rounding here".to_owned());
    }
    reasons.extend(linear.warnings.iter().cloned());
    reasons
}

struct Mend {
    settings: String,
    /// Share of the loss that is left.
    loss: f64,
    bits_per_weight: f64,
    bytes: u64,
}

/// Wider codes and finer groups, where the method has them. A bit more halves the steps and quarters the loss.
fn rules(linear: &LinearRecord) -> Vec<Mend> {
    let is_grid = matches!(
        linear.method.as_str(),
        "rtn" | "gptq" | "awq" | "awq+gptq" | "hqq"
    );
    let (Some(group), true) = (group_of(linear), is_grid) else {
        return Vec::new();
    };
    let levels = |bits: u8| f64::from((1u16 << bits) - 1);
    let wider = WIDTHS.into_iter().find(|&bits| bits > linear.bits);
    let wider = wider.map(|bits| (bits, (levels(linear.bits) / levels(bits)).powi(2)));
    let finer = group.finer(linear.in_features).zip(linear.finer_group_loss);
    let mend = |settings: String, bits: u8, group: GroupSize, loss: f64| {
        let stored = |bits, group| {
            let scheme = Scheme::new(bits, group, linear.sym).ok()?;
            Some(scheme.bits_per_weight(linear.in_features))
        };
        let old = stored(linear.bits, group_of(linear)?)?;
        let new = stored(bits, group)?;
        let weights = (linear.out_features * linear.in_features) as f64;
        Some(Mend {
            settings,
            loss,
            bits_per_weight: new,
            bytes: ((new - old) * weights / 8.0).max(0.0) as u64,
        })
    };
    let more_bits = wider.and_then(|(bits, loss)| mend(format!("bits: {bits}"), bits, group, loss));
    let finer_groups = finer
        .and_then(|(finer, loss)| mend(format!("group_size: {finer}"), linear.bits, finer, loss));
    let both = wider.zip(finer).and_then(|((bits, a), (finer, b))| {
        mend(
            format!("bits: {bits}, group_size: {finer}"),
            bits,
            finer,
            a * b,
        )
    });
    [finer_groups, more_bits, both]
        .into_iter()
        .flatten()
        .collect()
}

fn group_of(linear: &LinearRecord) -> Option<GroupSize> {
    match linear.group_size {
        0 => Some(GroupSize::Tensor),
        size => GroupSize::from_i64(size).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;

    fn named() -> RunRecord {
        let mut run = run();
        for linear in &mut run.linears {
            linear.linear = format!("model.layers.{}.{}", linear.block, linear.linear);
        }
        run
    }

    #[test]
    fn a_linear_is_told_with_what_would_mend_it() {
        let mut run = named();
        let linear = &mut run.linears[0];
        (linear.in_features, linear.out_features) = (1024, 512);
        linear.group_size = 64;
        assert_eq!(
            explain(&run, "0.self_attn.q_proj").unwrap(),
            "\
model.layers.0.self_attn.q_proj: 4 bits, groups of 64, symmetric, gptq; 4.500 bits a weight, 2.2 KiB

loss               0.00100 of the output, 0.00200 on held-out text; plain rounding 0.00400
place              2 of 4 are worse; 0.250 x the median q_proj
input              1 024 columns, 1 000 tokens, effective rank 12.5

Why
- 2 input channels are more than ten times as large as the median one (40, 7): codes of their columns decide the loss, \
and the others pay
- the input's energy lies in about 12.5 of 1 024 directions; what is rounded in the others is hardly felt on this text, \
and may be on another
- 2.00 x the loss on held-out text: 1 000 tokens are few for 1 024 columns; raise calibration.num_samples, or damp_percent

Rules that would mend it, as expected from ranges and Hessian
- {match: model.layers.0.self_attn.q_proj, group_size: 32}: loss x 0.800, 4.500 bits a weight, + 16.0 KiB
- {match: model.layers.0.self_attn.q_proj, bits: 5}: loss x 0.234, 5.250 bits a weight, + 64.0 KiB
- {match: model.layers.0.self_attn.q_proj, bits: 5, group_size: 32}: loss x 0.187, 5.500 bits a weight, + 80.0 KiB
"
        );
    }

    #[test]
    fn a_name_is_whole_or_an_end_that_one_linear_has() {
        let run = named();
        let message = |asked: &str| explain(&run, asked).unwrap_err().to_string();
        assert_eq!(
            message("lm_head"),
            "lm_head: no quantized linear has a name that ends so; the worst is model.layers.1.self_attn.q_proj"
        );
        assert_eq!(
            message("self_attn.q_proj"),
            "self_attn.q_proj: 2 linears have names that end so: model.layers.0.self_attn.q_proj, \
             model.layers.1.self_attn.q_proj; give more of the name"
        );
        assert!(explain(&run, "model.layers.1.mlp.down_proj").is_ok());
        // an end of a word is no end of a name
        assert!(matches!(
            explain(&run, "proj"),
            Err(ExplainError::Unknown { .. })
        ));
    }

    #[test]
    fn every_reason_is_given_where_it_holds() {
        let mut run = named();
        let mut linear = run.linears[1].clone();
        linear.outlier_channels = Some(Vec::new());
        linear.effective_rank = Some(linear.in_features as f64 / 2.0);
        linear.relative_loss_heldout = Some(linear.relative_loss);
        linear.warnings.clear();
        (linear.clipped_share, linear.dead_columns) = (0.0, 0);
        linear.damp_asked = Some(linear.damp_used);
        linear.relative_loss_rtn = 4.0 * linear.relative_loss;
        assert_eq!(reasons(&run, &linear), Vec::<String>::new());
        linear.outlier_channels = Some(vec![9, 1, 2, 3, 4, 5, 6]);
        linear.effective_rank = Some(linear.in_features as f64 / 51.0);
        linear.relative_loss_heldout = Some(1.6 * linear.relative_loss);
        (linear.clipped_share, linear.dead_columns) = (0.02, 1);
        linear.damp_asked = Some(linear.damp_used / 4.0);
        linear.relative_loss_rtn = 1.1 * linear.relative_loss;
        let told = reasons(&run, &linear);
        let starts = [
            "7 input channels are more than ten times as large as the median one (9, 1, 2, 3, 4, 5 ...)",
            "the input's energy lies in about ",
            "1.60 x the loss on held-out text",
            "2.00 % of the weights",
            "1 column had no input",
            "the Hessian needed damping of ",
            "the method gains next to nothing",
        ];
        assert_eq!(told.len(), starts.len());
        for (told, start) in told.iter().zip(starts) {
            assert!(told.starts_with(start), "{told}");
        }
        // What the page says of the whole model is not contradicted.
        assert!(told[2].ends_with("raise calibration.num_samples, or damp_percent"));
        for other in &mut run.linears {
            other.relative_loss_heldout = Some(other.relative_loss);
        }
        let told = reasons(&run, &linear);
        assert!(
            told[2].ends_with("enough for the model as a whole, so raise damp_percent"),
            "{}",
            told[2]
        );
    }

    #[test]
    fn what_rules_would_leave_is_the_quarter_of_a_bit_and_the_groups_share() {
        let mut run = named();
        let linear = &mut run.linears[0];
        (linear.in_features, linear.out_features) = (1024, 512);
        (linear.bits, linear.group_size) = (4, 64);
        linear.finer_group_loss = Some(0.75);
        let told: Vec<_> = (rules(linear).into_iter())
            .map(|r| (r.settings, r.loss, r.bits_per_weight, r.bytes))
            .collect();
        let bit = (15.0f64 / 31.0).powi(2);
        assert_eq!(
            told,
            [
                ("group_size: 32".to_owned(), 0.75, 4.5, 16 * 1024),
                ("bits: 5".to_owned(), bit, 5.25, 64 * 1024),
                (
                    "bits: 5, group_size: 32".to_owned(),
                    0.75 * bit,
                    5.5,
                    80 * 1024
                ),
            ]
        );
        linear.method = "nf4".to_owned();
        assert!(rules(linear).is_empty());
        (linear.method, linear.bits) = ("gptq".to_owned(), 8);
        assert_eq!(rules(linear).len(), 1);
    }
}
