//! What a linear would lose had there been less calibration text: solves from subsets of the windows, held out against the
//! same text as the whole.

use std::borrow::Cow;

use anyhow::Result;
use halfbyte_model::LinearKind;
use halfbyte_quant::{ActivationStats, Scheme};
use halfbyte_report::CurvePointRecord;
use halfbyte_solve::loss;
use rayon::prelude::*;

use crate::stage::{Factors, Part, Prepared, Solver, matrix, pick, together};

/// Rows that stand for a linear. Rows are solved by themselves, so that the others change nothing; it is what keeps the
/// curve to a few percent of a run.
const ROWS: usize = 128;
/// Up to so many blocks all have a curve; of more the first, the middle and the last.
const BLOCKS: usize = 3;

/// The blocks of `n` whose linears have a curve.
pub(crate) fn curve_blocks(n: usize) -> Vec<usize> {
    match n {
        0..=BLOCKS => (0..n).collect(),
        _ => vec![0, n / 2, n - 1],
    }
}

/// A linear whose curve is wanted; the weight is `[out_features, in_features]` row-major.
pub(crate) struct Curved<'a> {
    pub(crate) kind: LinearKind,
    pub(crate) weight: Cow<'a, [f32]>,
    pub(crate) columns: usize,
    pub(crate) scheme: Scheme,
}

/// The curves of linears that share their statistics, in their order; empty where there are no statistics of subsets, or
/// none of held-out text.
pub(crate) fn curves(
    solver: &Solver,
    prepared: &Prepared<'_>,
    linears: &[Curved<'_>],
) -> Result<Vec<Vec<CurvePointRecord>>> {
    let mut curves: Vec<Vec<CurvePointRecord>> = vec![Vec::new(); linears.len()];
    let solver = solver.ordinary();
    let subsets = |part: &Part<'_>| part.stats.map_or(0, |stats| stats.subsets.len());
    let n_subsets = prepared.parts.iter().map(subsets).min().unwrap_or(0);
    if n_subsets == 0 {
        return Ok(curves);
    }
    let mut before = 0;
    for subset in 0..=n_subsets {
        let Some(sources) = sources(&solver, &prepared.parts, subset)? else {
            return Ok(curves);
        };
        let tokens = sources.iter().map(|source| source.seen.n_tokens).min();
        // A short text may have no window for a subset, or none more than the one before.
        let Some(tokens) = tokens.filter(|tokens| *tokens > before) else {
            continue;
        };
        before = tokens;
        for (linear, curve) in linears.iter().zip(&mut curves) {
            let losses = sources
                .par_iter()
                .map(|source| source.losses(&solver, linear));
            let (fitted, heldout): (Vec<_>, Vec<_>) =
                losses.collect::<Result<Vec<_>>>()?.into_iter().unzip();
            curve.push(CurvePointRecord {
                tokens,
                relative_loss: together(&fitted).unwrap_or(0.0),
                relative_loss_heldout: together(&heldout).unwrap_or(0.0),
            });
        }
    }
    Ok(curves)
}

/// What some rows, or all, are solved from and judged by.
struct Source<'a> {
    rows: Option<&'a [usize]>,
    seen: &'a ActivationStats,
    held: &'a ActivationStats,
    factors: Cow<'a, Factors>,
}

/// Of every row part its statistics of a subset, or behind the last one of the whole; none where nothing is held out.
fn sources<'a>(
    solver: &Solver,
    parts: &'a [Part<'a>],
    subset: usize,
) -> Result<Option<Vec<Source<'a>>>> {
    let of = |part: &'a Part<'a>| -> Result<Option<Source<'a>>> {
        let Some((stats, held)) = part.stats.and_then(|s| Some((s, s.holdout.as_ref()?))) else {
            return Ok(None);
        };
        let (seen, factors) = match stats.subsets.get(subset) {
            Some(seen) => (seen, Cow::Owned(Factors::new(solver, seen)?)),
            None => (&stats.calibration, Cow::Borrowed(&part.factors)),
        };
        Ok(Some(Source {
            rows: part.rows,
            seen,
            held,
            factors,
        }))
    };
    parts.par_iter().map(of).collect()
}

impl Source<'_> {
    /// On what was fitted to, and held out.
    fn losses(
        &self,
        solver: &Solver,
        linear: &Curved<'_>,
    ) -> Result<(halfbyte_solve::Loss, halfbyte_solve::Loss)> {
        let columns = linear.columns;
        let rows: Vec<usize> = match self.rows {
            Some(rows) => rows.to_vec(),
            None => (0..linear.weight.len() / columns).collect(),
        };
        let few = sample(&rows);
        let weight = pick(&linear.weight, Some(&few), columns);
        let weight = matrix(&weight, columns);
        let solution = solver.solve(
            weight,
            Some(self.seen),
            self.factors.of(solver, Some(self.seen), &linear.scheme)?,
            &[],
            linear.kind,
            &linear.scheme,
        )?;
        Ok((
            loss(weight, &solution.weight, self.seen)?,
            loss(weight, &solution.weight, self.held)?,
        ))
    }
}

/// At most [`ROWS`], evenly spaced.
fn sample(rows: &[usize]) -> Vec<usize> {
    let n = rows.len().min(ROWS);
    (0..n).map(|i| rows[i * rows.len() / n]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_the_middle_and_the_last_block_have_a_curve() {
        assert_eq!(curve_blocks(1), [0]);
        assert_eq!(curve_blocks(3), [0, 1, 2]);
        assert_eq!(curve_blocks(4), [0, 2, 3]);
        assert_eq!(curve_blocks(30), [0, 15, 29]);
    }

    #[test]
    fn rows_are_sampled_evenly_where_there_are_many() {
        let rows: Vec<usize> = (10..310).collect();
        let few = sample(&rows);
        assert_eq!((few.len(), few[0], few[127]), (128, 10, 10 + 297));
        assert!(few.windows(2).all(|w| (2..=3).contains(&(w[1] - w[0]))));
        assert_eq!(sample(&rows[..5]), rows[..5]);
    }
}
