//! `x xᵀ` of activations rounded to bf16, for processors that multiply such numbers in pairs (AVX-512 BF16), which is up to
//! twice as quick as f32. Sums are in f32. Of most inputs nothing is lost, since the walk keeps activations in bf16 anyway.

use faer::MatMut;
use rayon::prelude::*;

use crate::accumulate::panels;
use crate::store::to_bf16;

/// Features side by side.
const TILE: usize = 64;
/// Features that meet a whole tile at once: with the tile's numbers their sums fill the registers.
const COLUMNS: usize = 4;

/// Whether this processor has the instruction.
pub(crate) fn is_at_hand() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A tile's features of two tokens, the earlier token's numbers in the lower halves.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Pair([u32; TILE]);

/// Adds the lower triangle of `x xᵀ`, `rows` `[tokens, features]` row-major, to `sum` `[features, features]`; what lies above
/// the diagonal within a tile is not kept up. The same bits come out on any number of threads.
///
/// Only where [`is_at_hand`].
pub(crate) fn add_products(sum: MatMut<'_, f32>, rows: &[f32]) {
    let features = sum.nrows();
    let tiles: Vec<Vec<Pair>> = (0..features)
        .into_par_iter()
        .step_by(TILE)
        .map(|first| {
            let pairs = rows.chunks(2 * features);
            pairs.map(|rows| pair(rows, features, first)).collect()
        })
        .collect();
    panels(sum, TILE)
        .into_par_iter()
        .for_each(|(start, mut panel)| {
            let at = start / TILE;
            for (first, tile) in (0..features).step_by(TILE).zip(&tiles).skip(at) {
                for column in (0..panel.ncols()).step_by(COLUMNS) {
                    let products = products(tile, &tiles[at], column);
                    for (column, products) in (column..panel.ncols()).zip(&products) {
                        let rows = TILE.min(features - first);
                        let sums = panel.as_mut().col_mut(column).subrows_mut(first, rows);
                        let sums = sums.try_as_col_major_mut().map(|s| s.as_slice_mut());
                        let sums = sums.unwrap_or_else(|| unreachable!("a matrix is column-major"));
                        sums.iter_mut().zip(products).for_each(|(s, p)| *s += p);
                    }
                }
            }
        });
}

/// Of one or two tokens; features that are not there are 0.
fn pair(rows: &[f32], features: usize, first: usize) -> Pair {
    let of_row = |row: &[f32]| {
        let mut tile = [0u32; TILE];
        let some = TILE.min(features - first);
        let values = &row[first..first + some];
        tile.iter_mut()
            .zip(values)
            .for_each(|(to, x)| *to = u32::from(to_bf16(*x)));
        tile
    };
    let mut pair = of_row(rows);
    if rows.len() > features {
        let later = of_row(&rows[features..]);
        pair.iter_mut()
            .zip(later)
            .for_each(|(pair, x)| *pair |= x << 16);
    }
    Pair(pair)
}

/// The products of a tile's features and of a few of another tile's, from `first` on, summed over all tokens.
fn products(tile: &[Pair], others: &[Pair], first: usize) -> [[f32; TILE]; COLUMNS] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller has seen to it that the processor has the instruction.
    return unsafe { products_avx512(tile, others, first) };
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("asked for only where it is at hand: {tile:?} {others:?} {first}")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn products_avx512(tile: &[Pair], others: &[Pair], first: usize) -> [[f32; TILE]; COLUMNS] {
    use core::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };
    const LANES: usize = 16;
    // SAFETY: both are 64 bytes that may be anything.
    let numbers = |bits: __m512i| unsafe { core::mem::transmute::<__m512i, __m512bh>(bits) };
    // Nested arrays of sums stay in memory.
    let none = [_mm512_setzero_ps(); TILE / LANES];
    let (mut a, mut b, mut c, mut d) = (none, none, none, none);
    for (tile, others) in tile.iter().zip(others) {
        let other = |at: usize| numbers(_mm512_set1_epi32(others.0[first + at] as i32));
        let others = [other(0), other(1), other(2), other(3)];
        for lanes in 0..TILE / LANES {
            // SAFETY: a tile has so many lanes.
            let x = unsafe { _mm512_loadu_si512(tile.0.as_ptr().add(lanes * LANES).cast()) };
            let x = numbers(x);
            a[lanes] = _mm512_dpbf16_ps(a[lanes], x, others[0]);
            b[lanes] = _mm512_dpbf16_ps(b[lanes], x, others[1]);
            c[lanes] = _mm512_dpbf16_ps(c[lanes], x, others[2]);
            d[lanes] = _mm512_dpbf16_ps(d[lanes], x, others[3]);
        }
    }
    let mut all = [[0.0; TILE]; COLUMNS];
    let store = |to: &mut [f32; TILE], sums: [__m512; TILE / LANES]| {
        for (to, sums) in to.chunks_exact_mut(LANES).zip(sums) {
            // SAFETY: a chunk has room for a register.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sums) };
        }
    };
    for (to, sums) in all.iter_mut().zip([a, b, c, d]) {
        store(to, sums);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::stored;
    use faer::Mat;

    /// Against products of the rounded numbers in f64; odd counts of tokens and of features.
    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        if !is_at_hand() {
            println!("skipped: this processor has no AVX-512 BF16");
            return;
        }
        for (tokens, features) in [(1, 1), (2, 64), (7, 65), (256, 70), (31, 193)] {
            let number = |i: usize| ((i * 37 + i / 7) % 101) as f32 / 97.0 - 0.5;
            let rows: Vec<f32> = (0..tokens * features).map(number).collect();
            let mut sum = Mat::from_fn(features, features, |i, j| (i + j) as f32);
            add_products(sum.as_mut(), &rows);
            for i in 0..features {
                for j in 0..=i {
                    let each = rows
                        .chunks(features)
                        .map(|x| f64::from(stored(x[i])) * f64::from(stored(x[j])));
                    let wanted = (i + j) as f64 + each.sum::<f64>();
                    let found = f64::from(sum[(i, j)]);
                    assert!(
                        (found - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                        "{tokens} x {features} [{i}, {j}]: {found}, wanted {wanted}"
                    );
                }
            }
        }
    }
}
