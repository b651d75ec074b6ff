use faer::MatRef;
use halfbyte_quant::{ActivationStats, Scheme};

use super::{
    AwqOptions, Candidate, HeadTie, InnerSolver, candidates, transform_stats, weight_mean,
};
use crate::rtn::rtn_loss;
use crate::strip::check_weight;
use crate::{Factor, GptqOptions, RtnOptions, SolveError, factor, gptq, rtn};

/// One of the linears that share an input, or rows of one that have statistics of their own (v's, by kv head).
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Weight `[out_features, in_features]`.
    pub weight: MatRef<'a, f32>,
    /// How it is to be coded.
    pub scheme: Scheme,
    /// What its error is measured by: the input's statistics, or those of the mixed input. Members that share them
    /// should hand over the same reference, which is then transformed once.
    pub stats: &'a ActivationStats,
    /// What a unit of its error counts beside the others' in the statistics-only loss; 1 for all where unknown.
    pub sensitivity: f64,
}

/// Linears that share an input, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// The linears; those that stay unquantized have no error and need not be here (fold their columns all the same).
    pub members: &'a [Member<'a>],
    /// Mean of `|x|` a channel of the shared input, [`ActivationStats::mean_abs`].
    pub mean_abs: &'a [f32],
    /// Channels that must share a scale, for o.
    pub tie: Option<HeadTie>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// `r` of the scales found.
    pub ratio: f64,
    /// Whether the weights took part in them.
    pub duo: bool,
    /// One factor a channel of the input, for the consumers' columns.
    pub scales: Vec<f32>,
    /// What the producer is divided by: the same scales, or one for each tied channel (v's rows) under a tie.
    pub source_scales: Vec<f32>,
    /// Their loss, as the search measured it.
    pub loss: f64,
    /// The loss without scaling, where the form tries that.
    pub identity_loss: Option<f64>,
    /// Every candidate in order, with its loss.
    pub tried: Vec<Tried>,
}

/// A candidate and its loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    /// `r`.
    pub ratio: f64,
    /// Whether the weights took part.
    pub duo: bool,
    /// Its loss.
    pub loss: f64,
}

/// Searches the scales of least `Σ_members sensitivity * tr(Δ H Δᵀ)`, `Δ = W − Q(W S) S⁻¹`: the error of the members'
/// own outputs, from statistics alone. AWQ, Lin et al., arXiv 2306.00978, section 3.2.
///
/// Of equal losses the first candidate's wins, the identity's first of all.
///
/// # Errors
/// No members, shapes that disagree, NaN or infinity in weights or statistics, options out of range, or no candidate
/// with a finite loss.
pub fn search(group: &Group<'_>, options: &AwqOptions) -> Result<Found, SolveError> {
    run(group, options, |scales| {
        let losses = each_scaled(group.members, scales, &options.solver, loss_of)?;
        let members = group.members.iter().zip(losses);
        Ok(members
            .map(|(member, loss)| member.sensitivity * loss)
            .sum())
    })
}

/// Searches the scales of least loss as the caller measures it: the field takes the mean squared error of a module's
/// output, attention for q, k, v, the whole feed-forward for gate and up, the linear itself for o and down.
///
/// `loss` is called once a candidate with its scales and the members' weights as rounded and scaled back,
/// `Q(W S) S⁻¹`, each `[out_features, in_features]` row-major, in the order of the group. Candidates of a loss that
/// is not finite are passed over.
///
/// # Errors
/// As [`search`], and the first error of `loss`.
pub fn search_by<E: From<SolveError>>(
    group: &Group<'_>,
    options: &AwqOptions,
    mut loss: impl FnMut(&[f32], &[Vec<f32>]) -> Result<f64, E>,
) -> Result<Found, E> {
    run(group, options, |scales| {
        let mut rounded = each_scaled(group.members, scales, &options.solver, rounded_of)?;
        for row in rounded
            .iter_mut()
            .flat_map(|w| w.chunks_exact_mut(scales.len()))
        {
            row.iter_mut().zip(scales).for_each(|(w, &s)| *w /= s);
        }
        loss(scales, &rounded)
    })
}

fn run<E: From<SolveError>>(
    group: &Group<'_>,
    options: &AwqOptions,
    mut measure: impl FnMut(&[f32]) -> Result<f64, E>,
) -> Result<Found, E> {
    let channels = check(group)?;
    let mut weights = weight_mean(group.members);
    let tied_mean;
    let mut inputs = group.mean_abs;
    if let Some(tie) = &group.tie {
        weights = tie.mean(&weights)?;
        tied_mean = tie.mean(inputs)?;
        inputs = &tied_mean;
    }
    let mut tried = Vec::new();
    let mut best: Option<(f64, Candidate, Vec<f32>)> = None;
    for candidate in candidates(inputs, &weights, options)? {
        let scales = match &group.tie {
            Some(tie) => tie.expand(&candidate.scales)?,
            None => candidate.scales.clone(),
        };
        let loss = measure(&scales)?;
        let Candidate { ratio, duo, .. } = candidate;
        tried.push(Tried { ratio, duo, loss });
        if loss.is_finite() && best.as_ref().is_none_or(|(least, ..)| loss < *least) {
            best = Some((loss, candidate, scales));
        }
    }
    let Some((loss, candidate, scales)) = best else {
        return Err(SolveError::NoFiniteLoss {
            tried: tried.len(),
            channels,
        }
        .into());
    };
    let identity = tried.iter().find(|t| t.ratio == 0.0 && !t.duo);
    Ok(Found {
        ratio: candidate.ratio,
        duo: candidate.duo,
        scales,
        source_scales: candidate.scales,
        loss,
        identity_loss: identity.map(|t| t.loss),
        tried,
    })
}

/// Channels of the input.
fn check(group: &Group<'_>) -> Result<usize, SolveError> {
    let channels = group.mean_abs.len();
    if group.members.is_empty() {
        return Err(SolveError::Shape {
            part: "members of the group",
            found: 0,
            wanted: 1,
        });
    }
    for member in group.members {
        check_weight(member.weight, channels)?;
        if !member.sensitivity.is_finite() || member.sensitivity < 0.0 {
            return Err(SolveError::Option {
                option: "sensitivity",
                found: member.sensitivity.to_string(),
                wanted: "a finite number of zero or more; 1 where unknown",
            });
        }
    }
    Ok(channels)
}

/// What members that share statistics share, ready for the solver.
enum Prepared<'a> {
    Rtn(ActivationStats, &'a RtnOptions),
    Gptq(Box<Factor>, &'a GptqOptions),
}

/// Has `solve` do `W S` on the statistics of `x / s`, member by member.
fn each_scaled<T>(
    members: &[Member<'_>],
    scales: &[f32],
    solver: &InnerSolver,
    solve: impl Fn(MatRef<'_, f32>, &Prepared<'_>, &Scheme) -> Result<T, SolveError>,
) -> Result<Vec<T>, SolveError> {
    let mut prepared: Vec<(&ActivationStats, Prepared<'_>)> = Vec::new();
    let mut solved = Vec::with_capacity(members.len());
    for member in members {
        let known = prepared
            .iter()
            .position(|(stats, _)| std::ptr::eq(*stats, member.stats));
        let at = match known {
            Some(at) => at,
            None => {
                let stats = transform_stats(member.stats, scales)?;
                let ready = match solver {
                    InnerSolver::Rtn(options) => Prepared::Rtn(stats, options),
                    InnerSolver::Gptq(options) => {
                        Prepared::Gptq(Box::new(factor(&stats, options)?), options)
                    }
                };
                prepared.push((member.stats, ready));
                prepared.len() - 1
            }
        };
        let (rows, columns) = (member.weight.nrows(), member.weight.ncols());
        let mut scaled = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            let row = member.weight.row(row);
            scaled.extend((0..columns).map(|c| row[c] * scales[c]));
        }
        let scaled = MatRef::from_row_major_slice(&scaled, rows, columns);
        solved.push(solve(scaled, &prepared[at].1, &member.scheme)?);
    }
    Ok(solved)
}

fn loss_of(
    scaled: MatRef<'_, f32>,
    prepared: &Prepared<'_>,
    scheme: &Scheme,
) -> Result<f64, SolveError> {
    match prepared {
        Prepared::Rtn(stats, options) => rtn_loss(scaled, stats, scheme, options),
        Prepared::Gptq(factor, options) => Ok(gptq(scaled, factor, scheme, options)?.loss),
    }
}

fn rounded_of(
    scaled: MatRef<'_, f32>,
    prepared: &Prepared<'_>,
    scheme: &Scheme,
) -> Result<Vec<f32>, SolveError> {
    let solution = match prepared {
        Prepared::Rtn(stats, options) => rtn(scaled, Some(stats), scheme, options)?,
        Prepared::Gptq(factor, options) => gptq(scaled, factor, scheme, options)?,
    };
    Ok(solution.weight.dequantize())
}
