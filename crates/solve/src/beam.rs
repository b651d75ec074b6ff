//! K-best search: several partial solutions a row instead of one.
//!
//! A strip's lanes hold `beam` partial solutions each of a few rows. After every column each partial solution is
//! continued with its nearest and its second nearest level, and a row keeps the `beam` of least loss
//! `Σ_k D_k (t_k − ŵ_k)²` so far. Lanes trade places when they are kept; what lies behind the panel follows once a
//! panel. Costs `beam` times the greedy pass.

use crate::grid::nearest;
use crate::kernel::{LANES, Lane, PANEL, multiversion, panel_targets, pull_error};
use crate::strip::{Coded, Panels};

/// Where lanes take their past from.
type Map = [usize; LANES];

/// Improves a greedily solved strip: rows for which the search finds less than `loss` take its codes.
/// `beam` divides [`LANES`].
pub(crate) fn search(
    w: &[Lane],
    coded: &mut Coded,
    loss: &Lane,
    (n, pivots): (&Panels, &[f32]),
    places: &[(usize, usize)],
    max_code: f32,
    beam: usize,
) {
    let rows = LANES / beam;
    for first in (0..LANES).step_by(rows) {
        let spread = |lanes: &[Lane]| -> Vec<Lane> {
            let lane = |from: &Lane| Lane(std::array::from_fn(|l| from.0[first + l / beam]));
            lanes.iter().map(lane).collect()
        };
        let (wide, mut found) = (
            spread(w),
            Coded {
                v: vec![Lane::ZERO; w.len()],
                scale: spread(&coded.scale),
                zero: spread(&coded.zero),
            },
        );
        let losses = walk(&wide, &mut found, n, pivots, places, max_code, beam);
        for row in 0..rows {
            // a row's partial solutions end sorted, the best one first
            let best = row * beam;
            if losses.0[best] < loss.0[first + row] {
                for (v, found) in coded.v.iter_mut().zip(&found.v) {
                    v.0[first + row] = found.0[best];
                }
            }
        }
    }
}

multiversion! {
    /// The walk over all columns; returns the loss of every lane.
    fn walk(
        w: &[Lane],
        coded: &mut Coded,
        n: &Panels,
        pivots: &[f32],
        places: &[(usize, usize)],
        max_code: f32,
        beam: usize,
    ) -> Lane {
        let mut errors = vec![Lane::ZERO; places.len()];
        // one empty solution a row to begin with; the others are filled as it branches
        let mut loss = Lane(std::array::from_fn(|l| {
            if l % beam == 0 { 0.0 } else { f32::INFINITY }
        }));
        for start in (0..places.len()).step_by(PANEL) {
            let rows = n.panel(start / PANEL);
            let panel = &places[start..(start + PANEL).min(places.len())];
            let mut targets = panel_targets(w, panel, &errors[..start], &rows[..start]);
            let mut past: Map = std::array::from_fn(|l| l);
            for (c, &(position, group)) in panel.iter().enumerate() {
                let (scale, zero) = (&coded.scale[group].0, &coded.zero[group].0);
                let (map, codes, losses) = branch(
                    &targets[c],
                    scale,
                    zero,
                    &loss,
                    pivots[start + c],
                    max_code,
                    beam,
                );
                loss = losses;
                for target in &mut targets {
                    *target = take(target, &map);
                }
                for (k, &(position, _)) in panel[..c].iter().enumerate() {
                    errors[start + k] = take(&errors[start + k], &map);
                    coded.v[position] = take(&coded.v[position], &map);
                }
                past = std::array::from_fn(|l| past[map[l]]);
                coded.v[position] = codes;
                let mut error = Lane::ZERO;
                for l in 0..LANES {
                    error.0[l] = codes.0[l].mul_add(-coded.scale[group].0[l], w[position].0[l]);
                }
                pull_error(&mut targets, c, &error, &rows[start + c]);
                errors[start + c] = error;
            }
            for (error, &(position, _)) in errors[..start].iter_mut().zip(places) {
                *error = take(error, &past);
                coded.v[position] = take(&coded.v[position], &past);
            }
        }
        loss
    }
}

#[inline(always)]
fn take(lane: &Lane, map: &Map) -> Lane {
    Lane(std::array::from_fn(|l| lane.0[map[l]]))
}

/// Two continuations of every lane at one column, the best `beam` of each row kept, least loss first.
#[inline(always)]
fn branch(
    target: &Lane,
    scale: &[f32; LANES],
    zero: &[f32; LANES],
    loss: &Lane,
    pivot: f32,
    max_code: f32,
    beam: usize,
) -> (Map, Lane, Lane) {
    let (mut map, mut codes, mut losses) = ([0; LANES], Lane::ZERO, Lane::ZERO);
    for first in (0..LANES).step_by(beam) {
        let mut branches = [(f32::INFINITY, 0, 0.0); 2 * LANES];
        let branches = &mut branches[..2 * beam];
        for (index, l) in (first..first + beam).enumerate() {
            let (low, high) = (-zero[l], max_code - zero[l]);
            let code = nearest(target.0[l], 1.0 / scale[l], low, high);
            let beyond = (target.0[l] / scale[l] - code).signum();
            let second = if (low..=high).contains(&(code + beyond)) {
                code + beyond
            } else {
                code - beyond
            };
            for (at, code) in [(2 * index, code), (2 * index + 1, second)] {
                let miss = target.0[l] - scale[l] * code;
                branches[at] = (loss.0[l] + pivot * miss * miss, l, code);
            }
        }
        // stable: equal losses keep their order, on every machine
        branches.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (l, &(found, from, code)) in (first..).zip(branches[..beam].iter()) {
            (losses.0[l], map[l], codes.0[l]) = (found, from, code);
        }
    }
    (map, codes, losses)
}
