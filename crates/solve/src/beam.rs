//! K-best search: several partial solutions a row instead of one.
//!
//! A strip's lanes hold `beam` partial solutions each of a few rows. After every column each partial solution is
//! continued with its nearest and its second nearest level, and a row keeps the `beam` of least loss
//! `Σ_k D_k (t_k − ŵ_k)²` so far. Lanes trade places when they are kept; what lies behind the panel follows once a
//! panel. Costs `beam` times the greedy pass.

use crate::grid::nearest;
use crate::kernel::{LANES, Lane, Map, PANEL, multiversion, panel_targets, permute, pull_error};
use crate::strip::{Coded, Panels};

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
        match beam {
            2 => walk_with::<2>(w, coded, n, pivots, places, max_code),
            4 => walk_with::<4>(w, coded, n, pivots, places, max_code),
            8 => walk_with::<8>(w, coded, n, pivots, places, max_code),
            _ => walk_with::<16>(w, coded, n, pivots, places, max_code),
        }
    }
}

#[inline(always)]
fn walk_with<const BEAM: usize>(
    w: &[Lane],
    coded: &mut Coded,
    n: &Panels,
    pivots: &[f32],
    places: &[(usize, usize)],
    max_code: f32,
) -> Lane {
    let (mut errors, mut codes) = (
        vec![Lane::ZERO; places.len()],
        vec![Lane::ZERO; places.len()],
    );
    // one empty solution a row to begin with; the others are filled as it branches
    let mut loss = Lane([f32::INFINITY; LANES]);
    loss.0.iter_mut().step_by(BEAM).for_each(|l| *l = 0.0);
    for start in (0..places.len()).step_by(PANEL) {
        let rows = n.panel(start / PANEL);
        let panel = &places[start..(start + PANEL).min(places.len())];
        let mut targets = panel_targets(w, panel, &errors[..start], &rows[..start]);
        let mut past: Map = [0; LANES];
        for (l, past) in past.iter_mut().enumerate() {
            *past = l as u32;
        }
        for (c, &(position, group)) in panel.iter().enumerate() {
            let grid = (&coded.scale[group], &coded.zero[group], max_code);
            let (map, found, losses) = branch::<BEAM>(&targets[c], grid, &loss, pivots[start + c]);
            loss = losses;
            permute(&mut targets[c..], &map);
            permute(&mut errors[start..start + c], &map);
            permute(&mut codes[start..start + c], &map);
            let before = past;
            for (past, &from) in past.iter_mut().zip(&map) {
                *past = before[from as usize];
            }
            let mut error = Lane::ZERO;
            for l in 0..LANES {
                error.0[l] = found.0[l].mul_add(-coded.scale[group].0[l], w[position].0[l]);
            }
            codes[start + c] = found;
            pull_error(&mut targets, c, &error, &rows[start + c]);
            errors[start + c] = error;
        }
        permute(&mut errors[..start], &past);
        permute(&mut codes[..start], &past);
    }
    for (code, &(position, _)) in codes.iter().zip(places) {
        coded.v[position] = *code;
    }
    loss
}

/// Two continuations of every lane at one column, the best `BEAM` of each row kept, least loss first; equal losses keep
/// their order, so that every machine finds the same.
#[inline(always)]
fn branch<const BEAM: usize>(
    target: &Lane,
    (scale, zero, max_code): (&Lane, &Lane, f32),
    loss: &Lane,
    pivot: f32,
) -> (Map, Lane, Lane) {
    let rows = LANES / BEAM;
    let mut codes = [Lane::ZERO; 2];
    let mut found = [Lane::ZERO; 2];
    for l in 0..LANES {
        let (target, scale) = (target.0[l], scale.0[l]);
        let (low, high) = (-zero.0[l], max_code - zero.0[l]);
        let code = nearest(target, 1.0 / scale, low, high);
        let beyond = 1f32.copysign(target / scale - code);
        let inside = code + beyond >= low && code + beyond <= high;
        let second = if inside { code + beyond } else { code - beyond };
        let cost = |code: f32| {
            let miss = target - scale * code;
            loss.0[l] + pivot * miss * miss
        };
        (codes[0].0[l], found[0].0[l]) = (code, cost(code));
        (codes[1].0[l], found[1].0[l]) = (second, cost(second));
    }
    // a continuation as one number, its loss above its index: losses are not negative, so their bits are in order
    let mut keys = [0u64; 2 * LANES];
    for row in 0..rows {
        for index in 0..2 * BEAM {
            let loss = found[index % 2].0[row * BEAM + index / 2];
            keys[index * rows + row] = u64::from(loss.to_bits()) << 32 | index as u64;
        }
    }
    sort::<BEAM>(&mut keys);
    let (mut map, mut kept, mut losses) = ([0; LANES], Lane::ZERO, Lane::ZERO);
    for row in 0..rows {
        for at in 0..BEAM {
            let (key, l) = (keys[at * rows + row], row * BEAM + at);
            let index = (key & 0xff) as usize;
            let from = row * BEAM + index / 2;
            map[l] = from as u32;
            kept.0[l] = codes[index % 2].0[from];
            losses.0[l] = f32::from_bits((key >> 32) as u32);
        }
    }
    (map, kept, losses)
}

/// Sorts each row's `2 BEAM` keys, all rows side by side (Batcher's odd-even merge).
#[inline(always)]
fn sort<const BEAM: usize>(keys: &mut [u64; 2 * LANES]) {
    let (n, rows) = (2 * BEAM, LANES / BEAM);
    let mut run = 1;
    while run < n {
        let mut step = run;
        while step > 0 {
            for first in (step % run..n - step).step_by(2 * step) {
                for a in first..(first + step).min(n - step) {
                    let b = a + step;
                    if a / (2 * run) == b / (2 * run) {
                        let (low, high) = keys.split_at_mut(b * rows);
                        let low = &mut low[a * rows..][..rows];
                        for (low, high) in low.iter_mut().zip(&mut high[..rows]) {
                            (*low, *high) = ((*low).min(*high), (*low).max(*high));
                        }
                    }
                }
            }
            step /= 2;
        }
        run *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_row_by_row() {
        fn check<const BEAM: usize>() {
            let rows = LANES / BEAM;
            for seed in 0..200u64 {
                let mut keys = [0u64; 2 * LANES];
                let mut state = seed;
                for key in &mut keys {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *key = state >> 60;
                }
                let column = |keys: &[u64], row: usize| -> Vec<u64> {
                    keys.iter().skip(row).step_by(rows).copied().collect()
                };
                let before = keys;
                sort::<BEAM>(&mut keys);
                for row in 0..rows {
                    let mut wanted = column(&before, row);
                    wanted.sort_unstable();
                    assert_eq!(column(&keys, row), wanted, "beam {BEAM}, seed {seed}");
                }
            }
        }
        check::<2>();
        check::<4>();
        check::<8>();
        check::<16>();
    }
}
