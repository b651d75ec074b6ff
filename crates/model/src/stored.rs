use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};
use rayon::prelude::*;

/// Numbers that are multiplied and added side by side, whatever the processor has, so that results do not depend on it:
/// more than a register holds, since one sum alone would wait for itself. Nested arrays of sums stay in memory.
const LANES: usize = 32;
/// Numbers of the weight a task reads.
const TASK: usize = 1 << 14;
/// More tokens than this are taken [`ABREAST`] at a time, a register's numbers being those of as many tokens.
const SINGLE: usize = 4;
/// A multiple of what any processor's registers hold, so that all pad to the same.
const ABREAST: usize = 16;
/// Rows whose sums are in registers at once, and columns whose weights are widened for them at once.
const ROWS: usize = 8;
const COLUMNS: usize = 512;

/// A dense weight on the CPU in the type the checkpoint has it in, for products with a few tokens, whose time is that of
/// reading the weight. (burn's products take f32 alone, twice the bytes of bf16.)
#[derive(Clone, Debug)]
pub(crate) struct StoredWeight {
    values: Values,
    shape: [usize; 2],
}

#[derive(Clone, Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl StoredWeight {
    pub(crate) fn from_f32(values: Vec<f32>, shape: [usize; 2]) -> Self {
        Self {
            values: Values::F32(values),
            shape,
        }
    }

    /// From a tensor's bytes; nothing where a number is not finite.
    pub(crate) fn from_bf16(bytes: &[u8], shape: [usize; 2]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<2>();
        let values: Vec<u16> = words.iter().map(|&word| u16::from_le_bytes(word)).collect();
        let is_finite = |word: &u16| word & 0x7F80 != 0x7F80;
        values.iter().all(is_finite).then_some(Self {
            values: Values::Bf16(values),
            shape,
        })
    }

    /// `[out_features, in_features]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub(crate) fn bytes(&self) -> u64 {
        match &self.values {
            Values::F32(values) => 4 * values.len() as u64,
            Values::Bf16(values) => 2 * values.len() as u64,
        }
    }

    /// Row-major.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.clone(),
            Values::Bf16(values) => values.par_iter().map(Element::value).collect(),
        }
    }

    /// `y = x Wᵀ`: `x` `[tokens, in_features]` to `[tokens, out_features]`, both row-major.
    pub(crate) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => multiply(values, self.shape, x),
            Values::Bf16(values) => multiply(values, self.shape, x),
        }
    }
}

trait Element: Sync {
    fn value(&self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn value(&self) -> f32 {
        *self
    }
}

/// The upper half of an f32.
impl Element for u16 {
    #[inline(always)]
    fn value(&self) -> f32 {
        f32::from_bits(u32::from(*self) << 16)
    }
}

fn multiply<E: Element>(weight: &[E], [out, width]: [usize; 2], x: &[f32]) -> Vec<f32> {
    let rows = (TASK / width).max(1).next_multiple_of(ROWS);
    let tokens = x.len() / width;
    // `[out, tokens]`, so that a task's results lie together
    let mut sums = vec![0.0; out * tokens];
    let arch = Arch::new();
    let tasks = sums
        .par_chunks_mut(rows * tokens)
        .zip(weight.par_chunks(rows * width));
    if tokens <= SINGLE {
        tasks.for_each(|(sums, weight)| {
            arch.dispatch(Task {
                weight,
                width,
                x,
                sums,
            });
        });
    } else {
        let padded = tokens.next_multiple_of(ABREAST);
        let mut across = vec![0.0; width * padded];
        for (token, x) in x.chunks_exact(width).enumerate() {
            let to = across.iter_mut().skip(token).step_by(padded);
            to.zip(x).for_each(|(to, x)| *to = *x);
        }
        tasks.for_each(|(sums, weight)| {
            arch.dispatch(AbreastTask {
                weight,
                width,
                x: &across,
                tokens,
                sums,
            });
        });
    }
    let mut y = Vec::with_capacity(tokens * out);
    for token in 0..tokens {
        y.extend(sums.iter().skip(token).step_by(tokens));
    }
    y
}

/// Some rows, `[rows, width]`, by some tokens, `[tokens, width]`, to `[rows, tokens]`.
struct Task<'a, E> {
    weight: &'a [E],
    width: usize,
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl<E: Element> NullaryFnOnce for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let tokens = self.x.len() / self.width;
        let rows = self.weight.chunks_exact(self.width);
        for (row, sums) in rows.zip(self.sums.chunks_exact_mut(tokens)) {
            for (x, sum) in self.x.chunks_exact(self.width).zip(sums) {
                *sum = dot(row, x);
            }
        }
    }
}

/// The same for more tokens, `x` being `[width, tokens]` with tokens padded to whole [`ABREAST`]. Every token's products are
/// added in the order of the columns, whatever a register holds.
struct AbreastTask<'a, E> {
    weight: &'a [E],
    width: usize,
    x: &'a [f32],
    tokens: usize,
    sums: &'a mut [f32],
}

impl<E: Element> WithSimd for AbreastTask<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (x, _) = S::as_simd_f32s(self.x);
        let registers = x.len() / self.width;
        let mut widened = [[0.0f32; COLUMNS]; ROWS];
        let weight = self.weight.chunks(ROWS * self.width);
        for (weight, sums) in weight.zip(self.sums.chunks_mut(ROWS * self.tokens)) {
            let mut register = 0;
            while register < registers {
                // What is read of the weight serves two registers of tokens where the sums of both fit the processor's.
                let both = S::F32_LANES == ABREAST && register + 1 < registers;
                let mut in_rows = [simd.splat_f32s(0.0); ROWS];
                let mut next_in_rows = in_rows;
                for (at, x) in x.chunks(COLUMNS * registers).enumerate() {
                    let columns = x.len() / registers;
                    for (row, wide) in weight.chunks_exact(self.width).zip(&mut widened) {
                        let row = &row[at * COLUMNS..][..columns];
                        wide.iter_mut().zip(row).for_each(|(to, w)| *to = w.value());
                    }
                    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &widened[row][..columns]);
                    if both {
                        for column in 0..columns {
                            let x = &x[column * registers + register..][..2];
                            for row in 0..ROWS {
                                let w = simd.splat_f32s(rows[row][column]);
                                in_rows[row] = simd.mul_add_f32s(w, x[0], in_rows[row]);
                                next_in_rows[row] = simd.mul_add_f32s(w, x[1], next_in_rows[row]);
                            }
                        }
                    } else {
                        for column in 0..columns {
                            let x = x[column * registers + register];
                            for row in 0..ROWS {
                                let w = simd.splat_f32s(rows[row][column]);
                                in_rows[row] = simd.mul_add_f32s(w, x, in_rows[row]);
                            }
                        }
                    }
                }
                keep(simd, self.tokens, sums, register, in_rows);
                if both {
                    keep(simd, self.tokens, sums, register + 1, next_in_rows);
                }
                register += 1 + usize::from(both);
            }
        }
    }
}

/// Puts a register of tokens' sums where they belong, `[rows, tokens]`.
#[inline(always)]
fn keep<S: Simd>(
    simd: S,
    tokens: usize,
    sums: &mut [f32],
    register: usize,
    in_rows: [S::f32s; ROWS],
) {
    let first = register * S::F32_LANES;
    let real = tokens.saturating_sub(first).min(S::F32_LANES);
    for (sums, in_row) in sums.chunks_exact_mut(tokens).zip(in_rows) {
        let mut lanes = [0.0f32; ABREAST];
        simd.partial_store_f32s(&mut lanes[..S::F32_LANES], in_row);
        sums[first.min(tokens)..][..real].copy_from_slice(&lanes[..real]);
    }
}

#[inline(always)]
fn dot<E: Element>(weight: &[E], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((weight, rest), (x, x_rest)) = (weight.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (weight, x) in weight.iter().zip(x) {
        for lane in 0..LANES {
            sums[lane] = weight[lane].value().mul_add(x[lane], sums[lane]);
        }
    }
    let rest: f32 = rest.iter().zip(x_rest).map(|(w, x)| w.value() * x).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tolerance: a sum of `width` products in f32, each below 1, differs from that in f64 by less than `width` times half
    /// a unit in the last place.
    fn check(tokens: usize, out: usize, width: usize) {
        let number = |i: usize, step: usize| ((i * step + i / 3) % 31) as f32 / 31.0 - 0.5;
        let bits: Vec<u8> = (0..out * width)
            .flat_map(|i| ((number(i, 7).to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let bf16 = StoredWeight::from_bf16(&bits, [out, width]).unwrap();
        let f32 = StoredWeight::from_f32(bf16.to_f32(), [out, width]);
        assert_eq!(2 * bf16.bytes(), f32.bytes());
        let x: Vec<f32> = (0..tokens * width).map(|i| number(i, 11)).collect();
        let weight = f32.to_f32();
        let wanted = x.chunks(width).flat_map(|x| {
            weight.chunks(width).map(|row| {
                let products = x.iter().zip(row);
                products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            })
        });
        let wanted: Vec<f64> = wanted.collect();
        for weight in [bf16, f32] {
            let found = weight.multiply(&x);
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(&wanted) {
                let tolerance = width as f64 * 6e-8;
                assert!(
                    (f64::from(*found) - wanted).abs() < tolerance,
                    "{found} {wanted}"
                );
            }
        }
    }

    #[test]
    fn products_are_those_of_f64_on_odd_shapes() {
        for (tokens, out, width) in [
            (1, 1, 1),
            (1, 37, 64),
            (3, 5, 131),
            (4, 6, 33),
            (5, 11, 513),
            (9, 70, 576),
            (20, 3, 77),
            (33, 17, 1100),
        ] {
            check(tokens, out, width);
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_no_weight() {
        for word in [0x7F80u16, 0xFF80, 0x7FC0] {
            assert!(StoredWeight::from_bf16(&word.to_le_bytes(), [1, 1]).is_none());
        }
    }
}
