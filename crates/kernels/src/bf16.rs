//! Matrix products on the CPU of numbers rounded to bf16, two of them at a time where the processor can (AVX-512 BF16): up to
//! twice as quick as f32. Sums are in f32.

use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Numbers of a register.
const LANES: usize = 16;
/// Rows of a matrix that lie side by side.
const TILE: usize = 64;
/// Rows of the other matrix that meet a whole tile at once: with the tile's numbers their sums fill the registers.
const OTHERS: usize = 4;
/// Pairs of products summed in registers; so many of two tiles stay in the first-level cache.
const PAIRS: usize = 128;

/// Whether this processor multiplies bf16 numbers in pairs. Elsewhere nothing here may be asked to multiply.
pub fn is_at_hand() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The nearest bf16's bits, ties to even; NaN stays NaN.
#[inline(always)]
pub fn bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// A tile's numbers at two places of the depth, the earlier in the lower halves.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Pair([u32; TILE]);

const NONE: Pair = Pair([0; TILE]);

/// A matrix `[rows, depth]` of bf16 numbers, laid out for products that sum over the depth.
#[derive(Debug)]
pub struct Bf16Matrix {
    rows: usize,
    depth: usize,
    /// `[tiles, pairs]`; rows and places that are not there are 0.
    pairs: Vec<Pair>,
}

impl Bf16Matrix {
    /// From `[rows, depth]`, row-major.
    pub fn from_rows(values: &[f32], depth: usize) -> Self {
        let rows = values.len() / depth;
        Self::new(rows, depth, |tile, pairs| {
            Arch::new().dispatch(FromRows {
                values: &values[tile * TILE * depth..rows.min((tile + 1) * TILE) * depth],
                depth,
                pairs,
            });
        })
    }

    /// From `[depth, rows]`, row-major.
    pub fn from_columns(values: &[f32], rows: usize) -> Self {
        Self::new(rows, values.len() / rows, |tile, pairs| {
            Arch::new().dispatch(FromColumns {
                values,
                rows,
                columns: tile * TILE..rows.min((tile + 1) * TILE),
                pairs,
            });
        })
    }

    fn new(rows: usize, depth: usize, fill: impl Fn(usize, &mut [Pair]) + Sync) -> Self {
        let per_tile = depth.div_ceil(2);
        let mut pairs = vec![NONE; rows.div_ceil(TILE) * per_tile];
        let tiles = pairs.par_chunks_mut(per_tile.max(1)).enumerate();
        tiles.for_each(|(tile, pairs)| fill(tile, pairs));
        Self { rows, depth, pairs }
    }

    /// The matrix `[depth, rows]`.
    pub fn transposed(&self) -> Self {
        Self::new(self.depth, self.rows, |tile, pairs| {
            for (at, pair) in pairs.iter_mut().enumerate() {
                // two rows lie side by side in one tile, since tiles have an even number
                let row = 2 * at;
                let from = self.tile(row / TILE).iter().skip(tile * TILE / 2);
                let (places, _) = pair.0.as_chunks_mut::<2>();
                for (to, from) in places.iter_mut().zip(from) {
                    let [low, high] = [from.0[row % TILE], from.0[row % TILE + 1]];
                    *to = [low & 0xffff | high << 16, low >> 16 | high & !0xffff];
                }
            }
        })
    }

    /// Its numbers, `[rows, depth]` row-major.
    pub fn to_rows(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows * self.depth);
        for row in 0..self.rows {
            let pairs = self.tile(row / TILE).iter().map(|pair| pair.0[row % TILE]);
            let numbers = pairs.flat_map(|both| [both << 16, both & !0xffff]);
            values.extend(numbers.map(f32::from_bits).take(self.depth));
        }
        values
    }

    /// Rows, which products have as rows or columns.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What products sum over.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> u64 {
        (self.pairs.len() * size_of::<Pair>()) as u64
    }

    fn tile(&self, tile: usize) -> &[Pair] {
        let per_tile = self.depth.div_ceil(2);
        &self.pairs[tile * per_tile..][..per_tile]
    }

    /// `a bᵀ` of two matrices of equal depth, `[rows of a, rows of b]` row-major. Only where [`is_at_hand`].
    pub fn products(&self, b: &Self) -> Vec<f32> {
        let mut sum = vec![0.0; self.rows * b.rows];
        self.add_products(b, &mut sum);
        sum
    }

    /// Adds [`Self::products`] to `sum`. The same bits come out on any number of threads.
    pub fn add_products(&self, b: &Self, sum: &mut [f32]) {
        self.add(b, sum, |_| 0);
    }

    /// Adds `a aᵀ` to `sum`, `[rows, rows]` row-major, on and above the diagonal; what lies below is not kept up.
    pub fn add_square(&self, sum: &mut [f32]) {
        self.add(self, sum, |tile| tile);
    }

    /// `first` gives for a tile of `self` the first one of `b` that it meets.
    fn add(&self, b: &Self, sum: &mut [f32], first: impl Fn(usize) -> usize + Sync) {
        assert!(
            is_at_hand(),
            "the caller sees to it that the processor has AVX-512 BF16"
        );
        assert_eq!((self.depth, self.rows * b.rows), (b.depth, sum.len()));
        let tiles = sum.par_chunks_mut((TILE * b.rows).max(1)).enumerate();
        tiles.for_each(|(at, sum)| {
            for (part, others) in self.tile(at).chunks(PAIRS).enumerate() {
                for tile in first(at)..b.rows.div_ceil(TILE) {
                    let pairs = &b.tile(tile)[part * PAIRS..][..others.len()];
                    add_tile(pairs, others, sum, b.rows, tile * TILE);
                }
            }
        });
    }
}

/// Fills a tile from its rows.
struct FromRows<'a> {
    values: &'a [f32],
    depth: usize,
    pairs: &'a mut [Pair],
}

impl NullaryFnOnce for FromRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.pairs.len();
        let mut numbers = vec![0u32; LANES * width];
        for (part, rows) in self.values.chunks(LANES * self.depth).enumerate() {
            let rows = rows.chunks_exact(self.depth);
            let n_rows = rows.len();
            for (row, numbers) in rows.zip(numbers.chunks_exact_mut(width)) {
                let (both, rest) = row.as_chunks::<2>();
                for (number, [low, high]) in numbers.iter_mut().zip(both) {
                    *number = u32::from(bits(*low)) | u32::from(bits(*high)) << 16;
                }
                if let ([low], Some(number)) = (rest, numbers.last_mut()) {
                    *number = u32::from(bits(*low));
                }
            }
            for (at, pair) in self.pairs.iter_mut().enumerate() {
                let pair = &mut pair.0[part * LANES..][..LANES];
                for (row, number) in pair.iter_mut().enumerate().take(n_rows) {
                    *number = numbers[row * width + at];
                }
            }
        }
    }
}

/// Fills a tile from the columns of what it is the transpose of.
struct FromColumns<'a> {
    values: &'a [f32],
    rows: usize,
    columns: Range<usize>,
    pairs: &'a mut [Pair],
}

impl NullaryFnOnce for FromColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (pair, values) in self.pairs.iter_mut().zip(self.values.chunks(2 * self.rows)) {
            let (low, high) = values.split_at(self.rows);
            let low = pair.0.iter_mut().zip(&low[self.columns.clone()]);
            low.for_each(|(to, x)| *to = u32::from(bits(*x)));
            if let Some(high) = high.get(self.columns.clone()) {
                let high = pair.0.iter_mut().zip(high);
                high.for_each(|(to, x)| *to |= u32::from(bits(*x)) << 16);
            }
        }
    }
}

/// Adds the products of a tile and of all rows of another one, summed over the depth, to `sum`, whose rows have `width`
/// numbers, from column `first` on.
fn add_tile(tile: &[Pair], others: &[Pair], sum: &mut [f32], width: usize, first: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller has seen to it that the processor has the instruction.
    unsafe {
        add_tile_avx512(tile, others, sum, width, first);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{tile:?} {others:?} {sum:?} {width} {first}: only where it is at hand");
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_tile_avx512(tile: &[Pair], others: &[Pair], sum: &mut [f32], width: usize, first: usize) {
    use core::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    // SAFETY: both are 64 bytes that may be anything.
    let numbers = |bits: __m512i| unsafe { core::mem::transmute::<__m512i, __m512bh>(bits) };
    let add = |to: &mut [f32], sums: [__m512; TILE / LANES]| {
        let mut to = to.chunks_mut(LANES);
        for sums in sums {
            match to.next() {
                // SAFETY: a whole chunk is a register's numbers.
                Some(to) if to.len() == LANES => unsafe {
                    let sums = _mm512_add_ps(_mm512_loadu_ps(to.as_ptr()), sums);
                    _mm512_storeu_ps(to.as_mut_ptr(), sums);
                },
                Some(to) => {
                    let mut all = [0.0; LANES];
                    // SAFETY: it has room for a register's numbers.
                    unsafe { _mm512_storeu_ps(all.as_mut_ptr(), sums) };
                    to.iter_mut().zip(all).for_each(|(s, p)| *s += p);
                }
                None => break,
            }
        }
    };
    let last = width.min(first + TILE);
    for (group, sum) in sum.chunks_mut(OTHERS * width).enumerate() {
        // Nested arrays of sums stay in memory.
        let none = [_mm512_setzero_ps(); TILE / LANES];
        let (mut a, mut b, mut c, mut d) = (none, none, none, none);
        for (tile, others) in tile.iter().zip(others) {
            let other = |at: usize| {
                let both = others.0[group * OTHERS + at];
                numbers(_mm512_set1_epi32(both as i32))
            };
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
        for (row, sums) in sum.chunks_exact_mut(width).zip([a, b, c, d]) {
            add(&mut row[first..last], sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(i: usize) -> f32 {
        ((i * 37 + i / 7) % 101) as f32 / 97.0 - 0.5
    }

    fn rounded(x: f32) -> f64 {
        f64::from(f32::from_bits(u32::from(bits(x)) << 16))
    }

    #[test]
    fn numbers_are_rounded_as_the_half_crate_does() {
        for x in [
            0.0,
            -0.0,
            1.0,
            1.003_906_2,
            1.011_718_8,
            -3.25,
            1e-40,
            3.4e38,
            f32::INFINITY,
        ] {
            assert_eq!(bits(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(half::bf16::from_bits(bits(f32::NAN)).is_nan());
    }

    /// Against products of the rounded numbers in f64, from both layouts; odd counts of everything.
    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        if !is_at_hand() {
            halfbyte_testing::skip(halfbyte_testing::Lacking::Instructions, "AVX-512 BF16");
            return;
        }
        let shapes = [
            (1, 1, 1),
            (1, 64, 2),
            (7, 65, 7),
            (70, 3, 256),
            (193, 17, 259),
            (64, 130, 600),
        ];
        for (m, n, depth) in shapes {
            let a: Vec<f32> = (0..m * depth).map(number).collect();
            let b: Vec<f32> = (0..n * depth).map(|i| number(3 * i + 5)).collect();
            let turned = |x: &[f32], rows: usize| -> Vec<f32> {
                let at = |i: usize| x[i % rows * depth + i / rows];
                (0..x.len()).map(at).collect()
            };
            let wanted = |i: usize, j: usize| -> f64 {
                let each = a[i * depth..][..depth].iter().zip(&b[j * depth..][..depth]);
                each.map(|(x, y)| rounded(*x) * rounded(*y)).sum()
            };
            let forms = |x: &[f32], rows: usize| {
                [
                    Bf16Matrix::from_rows(x, depth),
                    Bf16Matrix::from_columns(&turned(x, rows), rows),
                    Bf16Matrix::from_rows(&turned(x, rows), rows).transposed(),
                ]
            };
            let (a_forms, b_forms) = (forms(&a, m), forms(&b, n));
            for form in &a_forms {
                let found = form.to_rows();
                let wanted = a.iter().map(|x| rounded(*x) as f32);
                assert!(found.into_iter().eq(wanted), "{m} rows, depth {depth}");
            }
            for (a, b) in a_forms
                .iter()
                .flat_map(|a| b_forms.iter().map(move |b| (a, b)))
            {
                let mut sum = a.products(b);
                a.add_products(b, &mut sum);
                for (at, found) in sum.iter().enumerate() {
                    let wanted = 2.0 * wanted(at / n, at % n);
                    assert!(
                        (f64::from(*found) - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                        "{m} x {n}, depth {depth} [{at}]: {found}, wanted {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn squares_are_right_on_and_above_the_diagonal() {
        if !is_at_hand() {
            halfbyte_testing::skip(halfbyte_testing::Lacking::Instructions, "AVX-512 BF16");
            return;
        }
        for (depth, rows) in [(1, 1), (2, 64), (7, 65), (256, 70), (31, 193)] {
            let values: Vec<f32> = (0..depth * rows).map(number).collect();
            let mut sum: Vec<f32> = (0..rows * rows).map(|i| i as f32).collect();
            Bf16Matrix::from_columns(&values, rows).add_square(&mut sum);
            for i in 0..rows {
                for j in i..rows {
                    let each = values.chunks(rows);
                    let each = each.map(|x| rounded(x[i]) * rounded(x[j]));
                    let wanted = (i * rows + j) as f64 + each.sum::<f64>();
                    let found = f64::from(sum[i * rows + j]);
                    assert!(
                        (found - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                        "{depth} x {rows} [{i}, {j}]: {found}, wanted {wanted}"
                    );
                }
            }
        }
    }
}
