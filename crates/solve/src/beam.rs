//! K-best search: several partial solutions a row instead of one.
//!
//! After every column each partial solution of a row is continued with its nearest and its second nearest level, and the
//! row keeps the `beam` of least loss `Σ_k D_k (t_k − ŵ_k)²` so far. They lie side by side in lanes, which trade places
//! when some are kept. Partial solutions of a row soon have the same beginning; what is the same in all of them is
//! kept, and multiplied, once.

use crate::grid::nearest;
use crate::kernel::{
    LANES, Lane, Map, PANEL, accumulate, multiversion, panel_targets, permute, pull_error,
};
use crate::strip::{Coded, Pass};

/// Improves a solved strip: rows for which the search finds less than `loss` on its scales take the codes found.
/// `beam` divides [`LANES`].
pub(crate) fn search(pass: &Pass<'_>, coded: &mut Coded, loss: &Lane, beam: usize) {
    let (codes, losses) = walk(pass, coded, beam);
    for row in 0..LANES {
        if losses.0[row] < loss.0[row] {
            for (found, &(position, _)) in codes.iter().zip(pass.places) {
                coded.v[position].0[row] = found.0[row];
            }
        }
    }
}

multiversion! {
    /// The walk over all columns; returns the best codes found, in solve order, and what they cost.
    fn walk(pass: &Pass<'_>, coded: &Coded, beam: usize) -> (Vec<Lane>, Lane) {
        match beam {
            2 => walk_with::<2>(pass, coded),
            4 => walk_with::<4>(pass, coded),
            8 => walk_with::<8>(pass, coded),
            _ => walk_with::<16>(pass, coded),
        }
    }
}

/// `LANES / BEAM` rows of a strip with `BEAM` partial solutions each, side by side.
struct Part<const BEAM: usize> {
    /// The first row.
    first: usize,
    scale: Vec<Lane>,
    zero: Vec<Lane>,
    loss: Lane,
    /// Of the columns from the first in which some row's partial solutions differ.
    errors: Vec<Lane>,
    codes: Vec<Lane>,
}

impl<const BEAM: usize> Part<BEAM> {
    const ROWS: usize = LANES / BEAM;

    #[inline(always)]
    fn new(first: usize, coded: &Coded) -> Self {
        // one empty solution a row to begin with; the others are filled as it branches
        let mut loss = Lane([f32::INFINITY; LANES]);
        loss.0.iter_mut().step_by(BEAM).for_each(|l| *l = 0.0);
        let mut part = Self {
            first,
            scale: Vec::with_capacity(coded.scale.len()),
            zero: Vec::with_capacity(coded.zero.len()),
            loss,
            errors: Vec::new(),
            codes: Vec::new(),
        };
        for lane in &coded.scale {
            part.scale.push(part.spread(lane));
        }
        for lane in &coded.zero {
            part.zero.push(part.spread(lane));
        }
        part
    }

    /// A number a row of the strip to one a partial solution.
    #[inline(always)]
    fn spread(&self, strip: &Lane) -> Lane {
        let mut spread = Lane::ZERO;
        for row in 0..Self::ROWS {
            let value = strip.0[self.first + row];
            spread.0[row * BEAM..][..BEAM].fill(value);
        }
        spread
    }

    /// Numbers of each row's first partial solution, the best one, to their places in a strip.
    #[inline(always)]
    fn gather(&self, from: &Lane, strip: &mut Lane) {
        for row in 0..Self::ROWS {
            strip.0[self.first + row] = from.0[row * BEAM];
        }
    }

    /// Whether all partial solutions of every row have the same codes in the first of the columns kept here.
    #[inline(always)]
    fn agree(&self, columns: usize) -> bool {
        self.codes[..columns].iter().all(|codes| {
            let mut rows = codes.0.chunks_exact(BEAM);
            rows.all(|row| row.iter().all(|x| x.to_bits() == row[0].to_bits()))
        })
    }

    /// Walks over the panel from column `start` on, whose targets are `base` with all before the columns kept here taken in;
    /// `rows` are those of `N` from there on.
    #[inline(always)]
    fn step(&mut self, pass: &Pass<'_>, start: usize, base: &[Lane; PANEL], rows: &[[f32; PANEL]]) {
        let before = self.errors.len();
        let mut targets = [Lane::ZERO; PANEL];
        for (target, base) in targets.iter_mut().zip(base) {
            *target = self.spread(base);
        }
        accumulate(&mut targets, &self.errors, &rows[..before]);
        let mut past: Map = [0; LANES];
        for (l, past) in past.iter_mut().enumerate() {
            *past = l as u32;
        }
        for (c, &(position, group)) in pass.panel(start).iter().enumerate() {
            let grid = (&self.scale[group], &self.zero[group], pass.max_code);
            let pivot = pass.pivots[start + c];
            let (map, found, losses) = branch::<BEAM>(&targets[c], grid, &self.loss, pivot);
            self.loss = losses;
            permute(&mut targets[c..], &map);
            permute(&mut self.errors[before..], &map);
            permute(&mut self.codes[before..], &map);
            let earlier = past;
            for (past, &from) in past.iter_mut().zip(&map) {
                *past = earlier[from as usize];
            }
            let (w, scale) = (self.spread(&pass.w[position]), &self.scale[group]);
            let mut error = Lane::ZERO;
            for l in 0..LANES {
                error.0[l] = found.0[l].mul_add(-scale.0[l], w.0[l]);
            }
            pull_error(&mut targets, c, &error, &rows[before + c]);
            self.codes.push(found);
            self.errors.push(error);
        }
        permute(&mut self.errors[..before], &past);
        permute(&mut self.codes[..before], &past);
    }
}

#[inline(always)]
fn walk_with<const BEAM: usize>(pass: &Pass<'_>, coded: &Coded) -> (Vec<Lane>, Lane) {
    let Pass { w, n, places, .. } = *pass;
    let mut parts: Vec<Part<BEAM>> = Vec::with_capacity(BEAM);
    for first in (0..LANES).step_by(LANES / BEAM) {
        parts.push(Part::new(first, coded));
    }
    // of the columns in which no row's partial solutions differ, a lane a row
    let mut errors: Vec<Lane> = Vec::with_capacity(places.len());
    let mut codes: Vec<Lane> = Vec::with_capacity(places.len());
    for start in (0..places.len()).step_by(PANEL) {
        let rows = n.panel(start / PANEL);
        let panel = pass.panel(start);
        let end = start + panel.len();
        let base = panel_targets(w, panel, &errors, &rows[..errors.len()]);
        let rows = &rows[errors.len()..];
        for part in &mut parts {
            part.step(pass, start, &base, rows);
        }
        while end - errors.len() >= PANEL && parts.iter().all(|part| part.agree(PANEL)) {
            settle(&mut parts, PANEL, &mut errors, &mut codes);
        }
    }
    let rest = places.len() - errors.len();
    settle(&mut parts, rest, &mut errors, &mut codes);
    let mut losses = Lane::ZERO;
    for part in &parts {
        part.gather(&part.loss, &mut losses);
    }
    (codes, losses)
}

/// Moves each row's best partial solution, in the first columns kept by the parts, to the common beginning.
#[inline(always)]
fn settle<const BEAM: usize>(
    parts: &mut [Part<BEAM>],
    columns: usize,
    errors: &mut Vec<Lane>,
    codes: &mut Vec<Lane>,
) {
    for column in 0..columns {
        let (mut error, mut code) = (Lane::ZERO, Lane::ZERO);
        for part in &*parts {
            part.gather(&part.errors[column], &mut error);
            part.gather(&part.codes[column], &mut code);
        }
        errors.push(error);
        codes.push(code);
    }
    for part in parts {
        part.errors.drain(..columns);
        part.codes.drain(..columns);
    }
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
    let (mut map, mut kept, mut losses) = ([0; LANES], Lane::ZERO, Lane::ZERO);
    for first in (0..LANES).step_by(BEAM) {
        let order = order::<BEAM>(&found[0].0[first..][..BEAM], &found[1].0[first..][..BEAM]);
        for (l, &index) in (first..).zip(&order[..BEAM]) {
            let (which, from) = (index as usize / BEAM, first + index as usize % BEAM);
            map[l] = from as u32;
            kept.0[l] = codes[which].0[from];
            losses.0[l] = found[which].0[from];
        }
    }
    (map, kept, losses)
}

/// Indices of `BEAM` losses and `BEAM` more, least loss first; those that agree to 18 bits stay in their order. A loss
/// stands behind as many as are less, which vectors count without a branch.
#[inline(always)]
fn order<const BEAM: usize>(near: &[f32], second: &[f32]) -> [u32; 2 * LANES] {
    // losses are not negative, so their bits are in order; the lowest five make room for the index
    let key = |loss: f32, index: usize| (loss.to_bits() & !31 | index as u32) as i32;
    let (mut keys, mut ranks) = ([0i32; 2 * LANES], [0u32; 2 * LANES]);
    for l in 0..BEAM {
        keys[l] = key(near[l], l);
        keys[BEAM + l] = key(second[l], BEAM + l);
    }
    for other in 0..2 * BEAM {
        for l in 0..2 * BEAM {
            ranks[l] += u32::from(keys[other] < keys[l]);
        }
    }
    let mut order = [0; 2 * LANES];
    for (l, &rank) in (0..).zip(&ranks[..2 * BEAM]) {
        order[rank as usize % (2 * LANES)] = l;
    }
    order
}

#[cfg(test)]
mod tests {
    use faer::MatRef;

    use super::*;
    use crate::factor::{Factor, Triangle};
    use crate::oracle::{random_stats, random_weight, scheme};
    use crate::{GptqOptions, Solution, factor, gptq};

    /// A partial solution of one row: its loss, its errors in solve order, its codes there.
    type Partial = (f64, Vec<f64>, Vec<i32>);

    /// K-best search of one row by the book, on the grid of `solved`: whole histories, everything in f64.
    fn textbook(
        row: usize,
        weight: MatRef<'_, f32>,
        factor: &Factor,
        solved: &Solution,
        beam: usize,
    ) -> Partial {
        let Triangle::Pull(n) = &factor.triangle else {
            unreachable!("the default recipe's triangle");
        };
        let grid = &solved.weight;
        let group = grid.scheme().group_len(grid.in_features());
        let top = (1 << grid.scheme().bits()) - 1;
        let mut kept: Vec<Partial> = vec![(0.0, Vec::new(), Vec::new())];
        for (k, &column) in factor.order().iter().enumerate() {
            let at = row * grid.n_groups() + column / group;
            let (scale, zero) = (f64::from(grid.scales()[at]), i32::from(grid.zeros()[at]));
            let mut next = Vec::new();
            for (loss, errors, codes) in &kept {
                let owed = errors.iter().enumerate();
                let owed = owed.map(|(i, e)| e * f64::from(n.panel(k / PANEL)[i][k % PANEL]));
                let target = f64::from(weight[(row, column)]) + owed.sum::<f64>();
                let level = |code: i32| scale * f64::from(code - zero);
                let nearest = ((target / scale).round_ties_even() as i32 + zero).clamp(0, top);
                let beyond = if target >= level(nearest) { 1 } else { -1 };
                let second = match (0..=top).contains(&(nearest + beyond)) {
                    true => nearest + beyond,
                    false => nearest - beyond,
                };
                for code in [nearest, second] {
                    let (mut errors, mut codes) = (errors.clone(), codes.clone());
                    errors.push(f64::from(weight[(row, column)]) - level(code));
                    codes.push(code);
                    let miss = target - level(code);
                    next.push((loss + factor.pivots()[column] * miss * miss, errors, codes));
                }
            }
            next.sort_by(|a, b| a.0.total_cmp(&b.0));
            next.truncate(beam);
            kept = next;
        }
        kept.swap_remove(0)
    }

    #[test]
    fn codes_are_those_of_the_textbook_search() {
        for (beam, columns, group, bits, sym, seed) in [
            (2, 20, 16, 3, true, 1),
            (4, 45, 16, 2, false, 2),
            (8, 64, 32, 4, true, 3),
            (16, 100, 32, 2, false, 4),
            (16, 33, 16, 4, false, 5),
        ] {
            let weight = random_weight(37, columns, seed);
            let options = GptqOptions {
                refine_rounds: 0,
                beam,
                ..GptqOptions::default()
            };
            let stats = random_stats(columns, 2 * columns, seed + 10);
            let factor = factor(&stats, &options).unwrap();
            let scheme = scheme(bits, group, sym);
            let solved = gptq(weight.as_ref(), &factor, &scheme, &options).unwrap();
            for row in 0..37 {
                let wanted = (1..=beam)
                    .step_by(beam - 1)
                    .map(|beam| textbook(row, weight.as_ref(), &factor, &solved, beam))
                    .reduce(|greedy, wide| if wide.0 < greedy.0 { wide } else { greedy });
                let found = &solved.weight.codes()[row * columns..][..columns];
                let found: Vec<i32> = factor.order().iter().map(|&k| found[k].into()).collect();
                assert_eq!(found, wanted.unwrap().2, "beam {beam}, row {row}");
            }
        }
    }

    #[test]
    fn losses_are_put_in_order_and_equal_ones_left_in_theirs() {
        fn check<const BEAM: usize>() {
            for seed in 0..200u64 {
                let mut state = seed;
                let mut next = || {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    match state >> 60 {
                        15 => f32::INFINITY,
                        few => few as f32 * 0.37,
                    }
                };
                let losses: Vec<f32> = (0..2 * BEAM).map(|_| next()).collect();
                let (near, second) = losses.split_at(BEAM);
                let found = order::<BEAM>(near, second);
                let mut wanted: Vec<u32> = (0..2 * BEAM as u32).collect();
                wanted.sort_by(|a, b| losses[*a as usize].total_cmp(&losses[*b as usize]));
                assert_eq!(found[..2 * BEAM], wanted, "beam {BEAM}, seed {seed}");
            }
        }
        check::<2>();
        check::<4>();
        check::<8>();
        check::<16>();
    }
}
