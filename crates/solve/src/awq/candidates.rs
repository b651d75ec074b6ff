use super::{AwqOptions, DuoScaling, Form, Member};
use crate::SolveError;

/// Scales a search tries.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// `r`.
    pub ratio: f64,
    /// Whether the weights take part.
    pub duo: bool,
    /// One factor a channel, all above zero, `√(max * min) = 1`.
    pub scales: Vec<f32>,
}

/// What the field adds to `w_mean^(1-r)`, and the least scale before normalisation.
const LEAST: f64 = 1e-4;

/// The candidates of a search in the order they are tried: `s = x_mean^r` plain, `x_mean^r / (w_mean^(1-r) + 1e-4)`
/// duo, at least `1e-4`, over `√(max s * min s)`.
///
/// `mean_abs` is the mean of `|x|` a channel, `weight_mean` what [`weight_mean`] gives; both of one length.
///
/// # Errors
/// Lengths that differ, a mean that is not a finite number of zero or more, `n_grid` below 4, or `both` in AutoAWQ's
/// form, which has no such thing.
pub fn candidates(
    mean_abs: &[f32],
    weight_mean: &[f32],
    options: &AwqOptions,
) -> Result<Vec<Candidate>, SolveError> {
    if mean_abs.len() != weight_mean.len() || mean_abs.is_empty() {
        return Err(SolveError::Shape {
            part: "channels of mean_abs",
            found: mean_abs.len(),
            wanted: weight_mean.len().max(1),
        });
    }
    let bad = |x: &f32| !x.is_finite() || *x < 0.0;
    if let Some(channel) = mean_abs.iter().position(bad) {
        return Err(SolveError::MeanAbs {
            channel,
            value: mean_abs[channel],
        });
    }
    let candidates = grid(options)?.into_iter().map(|(ratio, duo)| Candidate {
        ratio,
        duo,
        scales: scales(ratio, duo, mean_abs, weight_mean, options.form),
    });
    Ok(candidates.collect())
}

/// Mean over all rows of `|w|` over the largest `|w|` of its group, a channel: how much of its group's range a
/// channel uses. Every member counts by its rows and its own group size.
pub fn weight_mean(members: &[Member<'_>]) -> Vec<f32> {
    let columns = members.first().map_or(0, |m| m.weight.ncols());
    let mut sums = vec![0.0f64; columns];
    let mut rows = 0;
    for member in members {
        let group = member.scheme.group_len(columns);
        rows += member.weight.nrows();
        for row in 0..member.weight.nrows() {
            let row = member.weight.row(row);
            for start in (0..columns).step_by(group) {
                let columns = start..(start + group).min(columns);
                let largest = columns.clone().fold(0.0f32, |m, c| m.max(row[c].abs()));
                // the field's guard against groups of zeros
                let inverse = 1.0 / (f64::from(largest) + 1e-6);
                for c in columns {
                    sums[c] += f64::from(row[c].abs()) * inverse;
                }
            }
        }
    }
    sums.into_iter().map(|s| (s / rows as f64) as f32).collect()
}

/// Ratios, and whether duo, in order.
fn grid(options: &AwqOptions) -> Result<Vec<(f64, bool)>, SolveError> {
    let n = options.n_grid;
    if n < 4 {
        return Err(SolveError::Option {
            option: "n_grid",
            found: n.to_string(),
            wanted: "at least 4; 20 is usual",
        });
    }
    // `count` ratios from 0 by `1 / steps`
    let line =
        |count: usize, steps: usize, duo| (0..count).map(move |i| (i as f64 / steps as f64, duo));
    let identity = std::iter::once((0.0, false));
    Ok(match (options.form, options.duo_scaling) {
        (Form::Default, DuoScaling::Off) => line(n + 1, n, false).collect(),
        (Form::Default, DuoScaling::On) => identity.chain(line(n + 1, n, true)).collect(),
        (Form::Default, DuoScaling::Both) => {
            line(n + 1, n, false).chain(line(n + 1, n, true)).collect()
        }
        (Form::AutoAwq, DuoScaling::Off) => line(n, n, false).collect(),
        (Form::AutoAwq, DuoScaling::On) => line(n, n, true).collect(),
        (Form::AutoAwq, DuoScaling::Both) => {
            return Err(SolveError::Option {
                option: "duo_scaling",
                found: "both".to_owned(),
                wanted: "true or false in AutoAWQ's form",
            });
        }
        (Form::LlmCompressor, DuoScaling::Off) => line(n, n - 1, false).collect(),
        (Form::LlmCompressor, DuoScaling::On) => identity.chain(line(n - 1, n - 2, true)).collect(),
        (Form::LlmCompressor, DuoScaling::Both) => line(n / 2, n / 2 - 1, false)
            .flat_map(|(ratio, _)| [(ratio, false), (ratio, true)])
            .collect(),
    })
}

fn scales(ratio: f64, duo: bool, x: &[f32], w: &[f32], form: Form) -> Vec<f32> {
    let raw: Vec<f64> = x
        .iter()
        .zip(w)
        .map(|(&x, &w)| {
            let x = f64::from(x).powf(ratio);
            let s = if duo {
                x / (f64::from(w).powf(1.0 - ratio) + LEAST)
            } else {
                x
            };
            s.max(LEAST)
        })
        .collect();
    let live = |k: usize| form != Form::Default || x[k] > 0.0;
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for (k, &s) in raw.iter().enumerate() {
        if live(k) {
            (least, most) = (least.min(s), most.max(s));
        }
    }
    let middle = (least * most).sqrt();
    raw.iter()
        .enumerate()
        .map(|(k, s)| {
            let s = (s / middle) as f32;
            if live(k) && s.is_finite() && s > 0.0 {
                s
            } else {
                1.0
            }
        })
        .collect()
}
