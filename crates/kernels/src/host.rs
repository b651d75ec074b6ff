//! The same products on the CPU, from the same layout: a load of the GPU's is 32 words, eight rows of four, and here
//! 32 lanes that decode and multiply together.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::layout::{LOAD_WORDS, TILE_ROWS};
use crate::{KernelError, MATVEC_TOKENS, PackedWeight};

/// Words of a load, all rows: the lanes that are worked on together.
const LANES: usize = TILE_ROWS * LOAD_WORDS;
/// Activations repeat every four lanes; they are kept twice, as wide as the registers that compilers prefer.
const REPEATED: usize = 8;
/// Steps that are decoded before they are multiplied, 8 KiB of them.
const STEPS: usize = 64;
/// Bits of 1.0.
const ONE: u32 = 0x3F80_0000;

impl PackedWeight {
    /// `y = x Wᵀ` on the CPU: `x` `[tokens, in_features]` to `[tokens, out_features]`, both row-major. Made for a few
    /// tokens; more go through in eights.
    ///
    /// # Errors
    /// [`KernelError::Features`] when `x` is not whole rows of `in_features`.
    pub fn multiply(&self, x: &[f32]) -> Result<Vec<f32>, KernelError> {
        let features = self.in_features();
        if !x.len().is_multiple_of(features) {
            return Err(KernelError::Features {
                found: x.len(),
                wanted: features,
            });
        }
        let mut y = Vec::with_capacity(x.len() / features * self.out_features());
        for x in x.chunks(MATVEC_TOKENS * features) {
            let tokens = x.len() / features;
            let x: Vec<_> = x.chunks_exact(features).map(|x| self.arranged(x)).collect();
            let arch = Arch::new();
            let mut tiles = vec![[0.0; TILE_ROWS]; self.n_tiles() * tokens];
            let tasks = tiles.par_chunks_exact_mut(tokens).enumerate();
            tasks.for_each(|(tile, sums)| {
                arch.dispatch(Task {
                    weight: self,
                    x: &x,
                    tile,
                    sums,
                });
            });
            for token in 0..tokens {
                let rows = tiles.iter().skip(token).step_by(tokens).flatten();
                y.extend(rows.take(self.out_features()));
            }
        }
        Ok(y)
    }

    /// Steps a chunk: codes of one row that share a lane.
    #[inline(always)]
    fn steps(&self) -> usize {
        self.format().chunk() / LOAD_WORDS
    }

    /// Activations in the order in which codes are decoded, `[chunks, steps, REPEATED]`: lane `l` takes the `l % 4`-th
    /// quarter of a chunk, a column a step.
    fn arranged(&self, x: &[f32]) -> Vec<f32> {
        let (steps, chunk) = (self.steps(), self.format().chunk());
        let mut out = Vec::with_capacity(self.n_chunks() * steps * REPEATED);
        for chunk in x.chunks(chunk) {
            for step in 0..steps {
                let quarter = |l| chunk.get(l % LOAD_WORDS * steps + step).copied();
                out.extend((0..REPEATED).map(|l| quarter(l).unwrap_or(0.0)));
            }
        }
        out
    }
}

/// A tile's sums, `[tokens, 8 rows]`.
struct Task<'a> {
    weight: &'a PackedWeight,
    x: &'a [Vec<f32>],
    tile: usize,
    sums: &'a mut [[f32; TILE_ROWS]],
}

impl NullaryFnOnce for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.weight.format().bits {
            2 => self.multiply::<2>(),
            3 => self.multiply::<3>(),
            4 => self.multiply::<4>(),
            _ => self.multiply::<8>(),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn multiply<const BITS: usize>(self) {
        let (weight, format) = (self.weight, self.weight.format());
        let (steps, n_chunks) = (weight.steps(), weight.n_chunks());
        let aligned = format.run() == format.chunk();
        let group_chunks = match format.group {
            0 => n_chunks,
            group => (group / format.chunk()).max(1),
        };
        let mut decoded = [[0.0; LANES]; STEPS];
        let mut first = 0;
        while first < n_chunks {
            // Chunks of one group, as many as there is room for.
            let group = first / group_chunks;
            let room = (first + STEPS / steps).min((group + 1) * group_chunks);
            let last = room.min(n_chunks);
            let (mut scale, mut zero) = ([1.0; TILE_ROWS], [0.0; LANES]);
            if aligned {
                let row = self.tile * TILE_ROWS;
                for lane in 0..TILE_ROWS {
                    scale[lane] = weight.scale(row + lane, group) * (1 << BITS) as f32;
                    let z = weight.zero(row + lane, group) << (23 - BITS);
                    zero[lane * LOAD_WORDS..][..LOAD_WORDS].fill(f32::from_bits(ONE + z));
                }
            }
            let slots = decoded.chunks_exact_mut(steps);
            for (chunk, decoded) in (first..last).zip(slots) {
                let words = (self.tile * n_chunks + chunk) * weight.chunk_words();
                let words = &weight.codes[words..][..weight.chunk_words()];
                decode::<BITS>(words, &zero, decoded);
                if !aligned {
                    self.scale_each::<BITS>(chunk, decoded);
                }
            }
            let n = (last - first) * steps;
            for (x, sums) in self.x.iter().zip(self.sums.iter_mut()) {
                let x = &x[first * steps * REPEATED..][..n * REPEATED];
                let totals = multiply_add(&decoded[..n], x);
                let rows = totals.chunks_exact(LOAD_WORDS);
                for ((sum, scale), four) in sums.iter_mut().zip(scale).zip(rows) {
                    *sum += scale * ((four[0] + four[1]) + (four[2] + four[3]));
                }
            }
            first = last;
        }
    }

    /// Zero points and scales code by code, for groups that are no whole chunks.
    fn scale_each<const BITS: usize>(&self, chunk: usize, decoded: &mut [[f32; LANES]]) {
        let (weight, steps) = (self.weight, self.weight.steps());
        let last = weight.n_groups() - 1;
        for (step, values) in decoded.iter_mut().enumerate() {
            for (lane, value) in values.iter_mut().enumerate() {
                let (row, quarter) = (lane / LOAD_WORDS, lane % LOAD_WORDS);
                let column = chunk * weight.format().chunk() + quarter * steps + step;
                let (row, group) = (
                    self.tile * TILE_ROWS + row,
                    weight.group_of(column).min(last),
                );
                let zero = f32::from_bits(ONE + (weight.zero(row, group) << (23 - BITS)));
                *value = (*value - zero) * weight.scale(row, group) * (1 << BITS) as f32;
            }
        }
    }
}

/// A chunk of eight rows as `1 + code / 2^BITS - zero`, `[steps][lanes]`; the trick is the GPU kernels'.
#[inline(always)]
fn decode<const BITS: usize>(words: &[u32], zero: &[f32; LANES], decoded: &mut [[f32; LANES]]) {
    // The words of a lane's quarter: one, or three that the eight rows of three loads are gathered from.
    let mut strings = [[0; LANES]; 3];
    if BITS == 3 {
        for (lane, (row, quarter)) in lanes().enumerate() {
            for (word, string) in (3 * quarter..).zip(&mut strings) {
                let load = word / LOAD_WORDS * TILE_ROWS + row;
                string[lane] = words[load * LOAD_WORDS + word % LOAD_WORDS];
            }
        }
    } else {
        strings[0].copy_from_slice(words);
    }
    for (step, values) in decoded.iter_mut().enumerate() {
        let (word, at) = match BITS {
            3 => (step * BITS / 32, (step * BITS % 32) as u32),
            _ => (0, (step * BITS) as u32),
        };
        // A code that ends in the next word; three words hold 32 codes, so that there is one.
        let next = if BITS == 3 && at > 29 {
            strings[word + 1].map(|word| word << (32 - at))
        } else {
            [0; LANES]
        };
        let string = &strings[word];
        for lane in 0..LANES {
            let code = (string[lane] >> at | next[lane]) & ((1 << BITS) - 1);
            values[lane] = f32::from_bits(code << (23 - BITS) | ONE) - zero[lane];
        }
    }
}

/// Row in the tile and quarter of the chunk of each lane.
#[inline(always)]
fn lanes() -> impl Iterator<Item = (usize, usize)> {
    (0..LANES).map(|lane| (lane / LOAD_WORDS, lane % LOAD_WORDS))
}

/// `sum_step decoded[step] * x[step]`, lane by lane.
#[inline(always)]
fn multiply_add(decoded: &[[f32; LANES]], x: &[f32]) -> [f32; LANES] {
    // Nested as registers are, or the compiler does not see that activations repeat.
    let mut sums = [[0.0f32; REPEATED]; LANES / REPEATED];
    let (x, _) = x.as_chunks::<REPEATED>();
    for (values, x) in decoded.iter().zip(x) {
        let (values, _) = values.as_chunks::<REPEATED>();
        for (sums, values) in sums.iter_mut().zip(values) {
            for lane in 0..REPEATED {
                sums[lane] = values[lane].mul_add(x[lane], sums[lane]);
            }
        }
    }
    let mut flat = [0.0; LANES];
    flat.copy_from_slice(sums.as_flattened());
    flat
}
