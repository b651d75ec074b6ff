//! The same products on the CPU, from the same layout: a load of the GPU's is 32 words, eight rows of four, and here
//! 32 lanes that decode and multiply together.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::layout::{LOAD_WORDS, TILE_ROWS};
use crate::{KernelError, MATVEC_TOKENS, PackedWeight, ScaleType};

/// Words of a load, all rows: the lanes that are worked on together.
const LANES: usize = TILE_ROWS * LOAD_WORDS;
/// Activations repeat every four lanes; they are kept twice, as wide as the registers that compilers prefer.
const REPEATED: usize = 8;
/// Steps that are decoded before they are multiplied, where several tokens share them: 8 KiB.
const STEPS: usize = 64;

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
            let x: Vec<_> = x.chunks_exact(features).map(|x| self.arrange(x)).collect();
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

    /// Activations in the order in which codes are decoded: lane `l` takes the `l % 4`-th quarter of a chunk, a column a
    /// step.
    fn arrange(&self, x: &[f32]) -> Arranged {
        let (steps, format) = (self.steps(), self.format());
        let mut arranged = Arranged {
            values: Vec::with_capacity(self.n_chunks() * steps),
            sums: Vec::with_capacity(self.n_chunks()),
        };
        for chunk in x.chunks(format.chunk()) {
            let mut sums = [0.0; REPEATED];
            for step in 0..steps {
                let quarter = |l| chunk.get(l % LOAD_WORDS * steps + step).copied();
                let x: [f32; REPEATED] = std::array::from_fn(|l| quarter(l).unwrap_or(0.0));
                let place = 1.0 / (1u32 << Place::of(step, format.bits).left) as f32;
                arranged.values.push(x.map(|x| x * place));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += x;
                }
            }
            arranged.sums.push(sums);
        }
        arranged
    }
}

/// A token's activations as the lanes meet them.
struct Arranged {
    /// `[chunks * steps]`, divided by the power of two by which a step's codes are too large.
    values: Vec<[f32; REPEATED]>,
    /// `[chunks]`, the sums over a chunk's steps of what was not divided: what zero points are multiplied by.
    sums: Vec<[f32; REPEATED]>,
}

/// Where a step's code lies in the string of a lane's quarter.
#[derive(Clone, Copy)]
struct Place {
    word: usize,
    at: usize,
    /// Bits by which the code, left in its place, is shifted to the left. A code at the upper end of a word is moved
    /// down, or it would be a negative number, and so is one that ends in the next word.
    left: usize,
}

impl Place {
    #[inline(always)]
    const fn of(step: usize, bits: usize) -> Self {
        let (word, at) = (step * bits / 32, step * bits % 32);
        let left = if at + bits < 32 { at } else { 0 };
        Self { word, at, left }
    }
}

/// A tile's sums, `[tokens, 8 rows]`.
struct Task<'a> {
    weight: &'a PackedWeight,
    x: &'a [Arranged],
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

/// A number a lane, as registers hold them.
type Lanes = [[f32; REPEATED]; LANES / REPEATED];

/// Scales and zero points of the eight rows in what lies together: of all lanes, or of each quarter's.
struct Sides {
    whole: bool,
    scale: [[f32; TILE_ROWS]; LOAD_WORDS],
    zero: [[f32; TILE_ROWS]; LOAD_WORDS],
}

impl Task<'_> {
    /// `Σ scale (code - zero) x` as `Σ scale (Σ code x - zero Σ x)`, the inner sums over what shares a scale: a code costs
    /// a mask, a conversion and a multiply-add, and nothing for its zero point.
    #[inline(always)]
    fn multiply<const BITS: usize>(self) {
        let (weight, format) = (self.weight, self.weight.format());
        let (steps, n_chunks) = (weight.steps(), weight.n_chunks());
        if !format.run().is_multiple_of(steps) {
            return self.multiply_code_by_code();
        }
        let group_chunks = match format.group {
            0 => n_chunks,
            group if group.is_multiple_of(format.chunk()) => group / format.chunk(),
            _ => 1,
        };
        let chunk_words = |chunk: usize| {
            let first = (self.tile * n_chunks + chunk) * weight.chunk_words();
            &weight.codes[first..][..weight.chunk_words()]
        };
        let mut sums = [Lanes::default(); MATVEC_TOKENS];
        let mut decoded = [[0.0; LANES]; STEPS];
        let mut first = 0;
        while first < n_chunks {
            // Chunks of one group, as many as there is room for.
            let room = (first + STEPS / steps).min((first / group_chunks + 1) * group_chunks);
            let last = room.min(n_chunks);
            let sides = self.sides(first);
            if let ([x], true) = (self.x, BITS != 3) {
                let n = weight.chunk_words();
                let words = (self.tile * n_chunks + first) * n;
                let words = &weight.codes[words..][..(last - first) * n];
                let x_values = &x.values[first * steps..last * steps];
                let totals = decode_multiply::<BITS>(words, x_values);
                sides.add(&totals, &x.sums[first..last], &mut sums[0]);
            } else {
                let slots = decoded.chunks_exact_mut(steps);
                for (chunk, decoded) in (first..last).zip(slots) {
                    decode::<BITS>(chunk_words(chunk), decoded);
                }
                let decoded = &decoded[..(last - first) * steps];
                for (x, sums) in self.x.iter().zip(&mut sums) {
                    let values = &x.values[first * steps..][..decoded.len()];
                    let totals = multiply_add(decoded, values);
                    sides.add(&totals, &x.sums[first..last], sums);
                }
            }
            first = last;
        }
        for (lanes, rows) in sums.iter().zip(self.sums) {
            let lanes = lanes.as_flattened().chunks_exact(LOAD_WORDS);
            for (row, four) in rows.iter_mut().zip(lanes) {
                *row = (four[0] + four[1]) + (four[2] + four[3]);
            }
        }
    }

    /// Scales and zero points of a chunk's lanes. All codes of a lane share them, and so do the next chunks' where groups
    /// are whole chunks.
    #[inline(always)]
    fn sides(&self, chunk: usize) -> Sides {
        let (weight, format) = (self.weight, self.weight.format());
        let column = chunk * format.chunk();
        let whole = format.group == 0 || format.group.is_multiple_of(format.chunk());
        let mut sides = Sides {
            whole,
            scale: [[0.0; TILE_ROWS]; LOAD_WORDS],
            zero: [[0.0; TILE_ROWS]; LOAD_WORDS],
        };
        for quarter in 0..if whole { 1 } else { LOAD_WORDS } {
            let group = weight.group_of(column + quarter * weight.steps());
            let at = self.tile * weight.n_groups() + group.min(weight.n_groups() - 1);
            sides.scale[quarter] = weight.tile_scales(at);
            sides.zero[quarter] = weight.tile_zeros(at);
        }
        sides
    }

    /// The same for groups that end within a lane's quarter of a chunk, which no usual size does.
    fn multiply_code_by_code(self) {
        let (weight, format) = (self.weight, self.weight.format());
        let rows = self.tile * TILE_ROWS..weight.out_features().min((self.tile + 1) * TILE_ROWS);
        for row in rows {
            for column in 0..weight.in_features() {
                let group = weight.group_of(column);
                let steps = weight.code(row, column) as f32 - weight.zero(row, group) as f32;
                let w = weight.scale(row, group) * steps;
                let (chunk, in_chunk) = (column / format.chunk(), column % format.chunk());
                let (quarter, step) = (in_chunk / weight.steps(), in_chunk % weight.steps());
                let place = (1u32 << Place::of(step, format.bits).left) as f32;
                for (x, sums) in self.x.iter().zip(self.sums.iter_mut()) {
                    let x = x.values[chunk * weight.steps() + step][quarter] * place;
                    sums[row % TILE_ROWS] += w * x;
                }
            }
        }
    }
}

impl Sides {
    /// `sums += scale (totals - zero Σ x)`, lane by lane.
    #[inline(always)]
    fn add(&self, totals: &Lanes, x: &[[f32; REPEATED]], sums: &mut Lanes) {
        let mut x_sum = [0.0; REPEATED];
        for x in x {
            for lane in 0..REPEATED {
                x_sum[lane] += x[lane];
            }
        }
        if self.whole {
            self.add_by::<true>(totals, &x_sum, sums);
        } else {
            self.add_by::<false>(totals, &x_sum, sums);
        }
    }

    #[inline(always)]
    fn add_by<const WHOLE: bool>(&self, totals: &Lanes, x: &[f32; REPEATED], sums: &mut Lanes) {
        for register in 0..LANES / REPEATED {
            for lane in 0..REPEATED {
                let row = register * REPEATED / LOAD_WORDS + lane / LOAD_WORDS;
                let quarter = if WHOLE { 0 } else { lane % LOAD_WORDS };
                let (scale, zero) = (self.scale[quarter][row], self.zero[quarter][row]);
                let above_zero = zero.mul_add(-x[lane], totals[register][lane]);
                sums[register][lane] = scale.mul_add(above_zero, sums[register][lane]);
            }
        }
    }
}

impl PackedWeight {
    /// Scales of a tile's eight rows, `at` counting tiles and their groups.
    #[inline(always)]
    fn tile_scales(&self, at: usize) -> [f32; TILE_ROWS] {
        let words = &self.scales[at * TILE_ROWS / 2..][..TILE_ROWS / 2];
        let bits: [u32; TILE_ROWS] =
            std::array::from_fn(|row| words[row / 2] >> (row % 2 * 16) & 0xFFFF);
        match self.scale_type() {
            ScaleType::Bf16 => bits.map(|bits| f32::from_bits(bits << 16)),
            // The exponent in place, short by the difference of both types' biases; scales are finite.
            ScaleType::F16 => bits.map(|bits| {
                let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits(239 << 23);
                f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
            }),
        }
    }

    /// Zero points of a tile's eight rows.
    #[inline(always)]
    fn tile_zeros(&self, at: usize) -> [f32; TILE_ROWS] {
        let format = self.format();
        if format.sym {
            return [(1 << (format.bits - 1)) as f32; TILE_ROWS];
        }
        let words = &self.zeros[at * format.zero_words()..][..format.zero_words()];
        if let [word] = *words {
            std::array::from_fn(|row| (word >> (4 * row) & 0xF) as f32)
        } else {
            std::array::from_fn(|row| (words[row / 4] >> (row % 4 * 8) & 0xFF) as f32)
        }
    }
}

/// The words of each lane's quarter of a chunk: one, or three that the eight rows of three loads are gathered from.
#[inline(always)]
fn strings<const BITS: usize>(words: &[u32]) -> [[u32; LANES]; 3] {
    let mut strings = [[0; LANES]; 3];
    if BITS == 3 {
        let (loads, _) = words.as_chunks::<LANES>();
        // of known size, so that the compiler moves registers rather than words
        let loads = [loads[0], loads[1], loads[2]];
        for (word, string) in strings.iter_mut().enumerate() {
            for row in 0..TILE_ROWS {
                for quarter in 0..LOAD_WORDS {
                    let word = 3 * quarter + word;
                    let from = row * LOAD_WORDS + word % LOAD_WORDS;
                    string[row * LOAD_WORDS + quarter] = loads[word / LOAD_WORDS][from];
                }
            }
        }
    } else {
        strings[0].copy_from_slice(words);
    }
    strings
}

/// A step's code in one lane, too large by `2^left` of its [`Place`].
#[inline(always)]
fn code<const BITS: usize>(strings: &[[u32; LANES]; 3], place: Place, lane: usize) -> f32 {
    let (mask, string) = ((1u32 << BITS) - 1, strings[place.word][lane]);
    let code = if place.left == place.at {
        string & mask << place.at
    } else if place.at + BITS > 32 {
        // three words hold 32 codes of three bits, so that there is a next one
        let next = strings[(place.word + 1).min(2)][lane];
        (string >> place.at | next << (32 - place.at)) & mask
    } else {
        string >> place.at
    };
    // never negative: as a signed number it is converted by one instruction
    code as i32 as f32
}

/// A chunk of eight rows, `[steps][lanes]`.
#[inline(always)]
fn decode<const BITS: usize>(words: &[u32], decoded: &mut [[f32; LANES]]) {
    let strings = strings::<BITS>(words);
    for (step, values) in decoded.iter_mut().enumerate() {
        let place = Place::of(step, BITS);
        for (lane, value) in values.iter_mut().enumerate() {
            *value = code::<BITS>(&strings, place, lane);
        }
    }
}

/// `Σ_step code x[step]` of some chunks, lane by lane, for codes that end within their word.
#[inline(always)]
fn decode_multiply<const BITS: usize>(chunks: &[u32], x: &[[f32; REPEATED]]) -> Lanes {
    let mut totals = Lanes::default();
    let (chunks, _) = chunks.as_chunks::<LANES>();
    for (words, x) in chunks.iter().zip(x.chunks_exact(32 / BITS)) {
        let (words, _) = words.as_chunks::<REPEATED>();
        // A register of lanes after the other, each with all steps of the chunk: so the compiler unrolls them.
        for (words, totals) in words.iter().zip(&mut totals) {
            let mut sums = *totals;
            for (step, x) in x.iter().enumerate() {
                let Place { at, left, .. } = Place::of(step, BITS);
                let mask = (1u32 << BITS) - 1;
                for lane in 0..REPEATED {
                    let code = words[lane] >> (at - left) & mask << left;
                    sums[lane] = (code as i32 as f32).mul_add(x[lane], sums[lane]);
                }
            }
            *totals = sums;
        }
    }
    totals
}

/// `Σ_step decoded[step] x[step]`, lane by lane.
#[inline(always)]
fn multiply_add(decoded: &[[f32; LANES]], x: &[[f32; REPEATED]]) -> Lanes {
    // Nested as registers are, or the compiler does not see that activations repeat.
    let mut sums = Lanes::default();
    for (values, x) in decoded.iter().zip(x) {
        let (values, _) = values.as_chunks::<REPEATED>();
        for (sums, values) in sums.iter_mut().zip(values) {
            for lane in 0..REPEATED {
                sums[lane] = values[lane].mul_add(x[lane], sums[lane]);
            }
        }
    }
    sums
}
