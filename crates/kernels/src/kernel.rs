//! The three kernels, in CubeCL. Codes become floats without a conversion instruction: a code put into the upper bits
//! of the mantissa of 1.0 reads `1 + code / 2^bits`, exactly, and taking `1 + zero / 2^bits` from it leaves
//! `(code - zero) / 2^bits`, exactly; the scale is multiplied by `2^bits` to match.

use cubecl::prelude::*;

use crate::layout::{Format, LOAD_WORDS, ScaleType, TILE_ROWS};

/// Bits of 1.0.
const ONE: u32 = 0x3F80_0000;

/// How a matrix-vector launch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatvecPlan {
    /// Parts that a row's chunks are dealt to, one unit each and row.
    pub(crate) slices: usize,
    /// Tiles of eight rows a workgroup.
    pub(crate) tiles: usize,
    /// Tokens the kernel is compiled for.
    pub(crate) batch: usize,
    /// Whether the last chunk reaches past the row's end.
    pub(crate) ragged: bool,
}

impl MatvecPlan {
    /// Workgroup memory.
    pub(crate) fn shared_bytes(self) -> usize {
        self.tiles * self.batch * self.slices * TILE_ROWS * 4
    }
}

/// How a matrix-matrix launch is cut: a workgroup of `side * side` units makes a square of `side * per_unit` rows and
/// tokens, `depth` columns at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatmatPlan {
    /// Units along rows and along tokens.
    pub(crate) side: usize,
    /// Rows and tokens a unit.
    pub(crate) per_unit: usize,
    /// Columns a step.
    pub(crate) depth: usize,
}

impl MatmatPlan {
    /// Rows and tokens a workgroup.
    pub(crate) fn span(self) -> usize {
        self.side * self.per_unit
    }

    /// Fours of columns a step.
    pub(crate) fn quads(self) -> usize {
        self.depth / 4
    }

    /// Fours from one quad of columns to the next in workgroup memory: padded so that the eight units which write
    /// neighbouring quads of neighbouring lines hit different banks.
    pub(crate) fn stride(self) -> usize {
        self.span() + 8 / self.quads()
    }

    /// Workgroup memory.
    pub(crate) fn shared_bytes(self) -> usize {
        2 * self.quads() * self.stride() * 16
    }
}

/// `(code of bits `at..at + bits`) / 2^bits + 1`, of a word.
#[cube]
fn one_plus(word: u32, #[comptime] at: usize, #[comptime] bits: usize) -> f32 {
    let up = comptime!(23 - bits);
    let moved = if comptime!(at < up) {
        word << comptime!((up - at) as u32)
    } else if comptime!(at > up) {
        word >> comptime!((at - up) as u32)
    } else {
        word
    };
    f32::from_bits((moved & comptime!(((1u32 << bits) - 1) << up)) | ONE)
}

/// The same of a code that begins in `low` and ends in `high`.
#[cube]
fn one_plus_split(low: u32, high: u32, #[comptime] at: usize, #[comptime] bits: usize) -> f32 {
    let code = (low >> comptime!(at as u32)) | (high << comptime!(32 - at as u32));
    one_plus(code, 0usize, bits)
}

/// A scale times `2^bits`, from the word that holds those of rows `lane` and its neighbour.
#[cube]
fn read_scale(word: u32, lane: u32, #[comptime] format: Format) -> f32 {
    let half = (word >> (lane % 2 * 16)) & 0xFFFF;
    let power = f32::cast_from(comptime!(1u32 << format.bits));
    let scale = match comptime!(format.scale) {
        ScaleType::Bf16 => f32::from_bits(half << 16),
        ScaleType::F16 => {
            // Decoded by hand: no f16 asked of the device, and subnormals survive where it flushes them.
            let sign = (half & 0x8000) << 16;
            let exponent = (half >> 10) & 31;
            let mantissa = half & 0x3FF;
            let normal = f32::from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
            let tiny = f32::cast_from(mantissa) * 5.960_464_5e-8;
            let tiny = f32::from_bits(u32::reinterpret(tiny) | sign);
            select(exponent == 0, tiny, normal)
        }
    };
    scale * power
}

/// Scale times `2^bits` of a row and group.
#[cube]
fn scale_of(scales: &[u32], tile_group: usize, lane: u32, #[comptime] format: Format) -> f32 {
    let word = scales[tile_group * (TILE_ROWS / 2) + (lane / 2) as usize];
    read_scale(word, lane, format)
}

/// `1 + zero / 2^bits` of a row and group.
#[cube]
fn zero_of(zeros: &[u32], tile_group: usize, lane: u32, #[comptime] format: Format) -> f32 {
    if comptime!(format.sym) {
        f32::new(1.5)
    } else {
        let bit = lane * comptime!(format.zero_bits() as u32);
        let word = zeros[tile_group * comptime!(format.zero_words()) + (bit / 32) as usize];
        let zero = (word >> (bit % 32)) & comptime!((1u32 << format.zero_bits()) - 1);
        f32::from_bits(ONE + (zero << comptime!(23 - format.bits as u32)))
    }
}

/// Group of a column; padded columns count to the last one.
#[cube]
fn group_of(column: usize, groups: usize, #[comptime] format: Format) -> usize {
    if comptime!(format.group == 0) {
        0usize.runtime()
    } else {
        let group = column / comptime!(format.group);
        select(group < groups, group, groups - 1)
    }
}

/// Matrix-vector: `out[m, first_row + row] = sum_k x[m, k] w[row, k]` for up to `plan.batch` tokens.
///
/// A unit keeps one row a tile and every `slices`-th chunk of it; the eight units of a slice read 128 bytes side by side.
#[cube(launch_unchecked)]
pub(crate) fn matvec<F: Float>(
    x: &[Vector<F, Const<4>>],
    codes: &[Vector<u32, Const<4>>],
    scales: &[u32],
    zeros: &[u32],
    out: &mut [F],
    tokens: u32,
    quads: u32,
    chunks: u32,
    groups: u32,
    rows: u32,
    first_row: u32,
    out_features: u32,
    #[comptime] format: Format,
    #[comptime] plan: MatvecPlan,
    #[define(F)] _dtype: ElemType,
) {
    let bits = comptime!(format.bits);
    let run = comptime!(format.run());
    let per_group = comptime!(run.is_multiple_of(4));
    let n_runs = comptime!(if per_group { format.chunk() / run } else { 1 });
    let run_quads = comptime!(format.chunk() / n_runs / 4);
    let loads = comptime!(format.loads());
    let batch = comptime!(plan.batch);
    let tiles = comptime!(plan.tiles);

    let lane = UNIT_POS % 8;
    let slice = UNIT_POS / 8;
    let last_tile = (rows as usize - 1) / TILE_ROWS;
    let first_tile = CUBE_POS * tiles;

    let mut sums = Array::<f32>::new(comptime!(tiles * batch));
    #[unroll]
    for i in 0..tiles * batch {
        sums[i] = 0.0;
    }
    for chunk in range_stepped(slice, chunks, comptime!(plan.slices as u32)) {
        let chunk = chunk as usize;
        let mut words = Array::<Vector<u32, Const<4>>>::new(comptime!(tiles * loads));
        #[unroll]
        for t in 0..tiles {
            let tile = select(first_tile + t < last_tile, first_tile + t, last_tile);
            #[unroll]
            for l in 0..loads {
                let load = (tile * chunks as usize + chunk) * loads + l;
                words[t * loads + l] = codes[load * TILE_ROWS + lane as usize];
            }
        }
        #[unroll]
        for r in 0..n_runs {
            let column = chunk * comptime!(format.chunk()) + r * run_quads * 4;
            let mut partial = Array::<f32>::new(comptime!(tiles * batch));
            let mut zero = Array::<f32>::new(tiles);
            let mut scale = Array::<f32>::new(tiles);
            #[unroll]
            for i in 0..tiles * batch {
                partial[i] = 0.0;
            }
            #[unroll]
            for t in 0..tiles {
                let tile = select(first_tile + t < last_tile, first_tile + t, last_tile);
                if comptime!(per_group) {
                    let at = tile * groups as usize + group_of(column, groups as usize, format);
                    zero[t] = zero_of(zeros, at, lane, format);
                    scale[t] = scale_of(scales, at, lane, format);
                }
            }
            #[unroll]
            for q in 0..run_quads {
                let mut xs = Array::<Vector<f32, Const<4>>>::new(batch);
                #[unroll]
                for m in 0..batch {
                    // Past the last token and past the row's end any x will do: the sum is dropped, the weight is zero.
                    let quad = (column / 4 + q) as u32;
                    let quad = if comptime!(plan.ragged) {
                        select(quad < quads, quad, quads - 1)
                    } else {
                        quad
                    };
                    let token = select((m as u32) < tokens, m as u32, tokens - 1);
                    xs[m] = Vector::cast_from(x[(token * quads + quad) as usize]);
                }
                #[unroll]
                for t in 0..tiles {
                    #[unroll]
                    for j in 0..4usize {
                        let bit = comptime!(((r * run_quads + q) * 4 + j) * bits);
                        let word = words[comptime!(t * loads + bit / 128)]
                            .extract(comptime!(bit / 32 % 4));
                        let value = if comptime!(bit % 32 + bits > 32) {
                            let next = comptime!(bit / 32 + 1);
                            let high =
                                words[comptime!(t * loads + next / 4)].extract(comptime!(next % 4));
                            one_plus_split(word, high, comptime!(bit % 32), bits)
                        } else {
                            one_plus(word, comptime!(bit % 32), bits)
                        };
                        let weight = if comptime!(per_group) {
                            value - zero[t]
                        } else {
                            let tile =
                                select(first_tile + t < last_tile, first_tile + t, last_tile);
                            let at = tile * groups as usize
                                + group_of(column + q * 4 + j, groups as usize, format);
                            (value - zero_of(zeros, at, lane, format))
                                * scale_of(scales, at, lane, format)
                        };
                        #[unroll]
                        for m in 0..batch {
                            partial[t * batch + m] += weight * xs[m].extract(j);
                        }
                    }
                }
            }
            #[unroll]
            for t in 0..tiles {
                #[unroll]
                for m in 0..batch {
                    if comptime!(per_group) {
                        sums[t * batch + m] += partial[t * batch + m] * scale[t];
                    } else {
                        sums[t * batch + m] += partial[t * batch + m];
                    }
                }
            }
        }
    }

    // The slices' sums meet in workgroup memory, `[tiles * batch, slices, 8 rows]`.
    let slices = comptime!(plan.slices);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tiles * batch * slices * TILE_ROWS));
    #[unroll]
    for i in 0..tiles * batch {
        shared[(i * slices + slice as usize) * TILE_ROWS + lane as usize] = sums[i];
    }
    sync_cube();
    let n_results = comptime!((tiles * batch * TILE_ROWS) as u32);
    for result in range_stepped(UNIT_POS, n_results, comptime!((slices * TILE_ROWS) as u32)) {
        let lane = result as usize % TILE_ROWS;
        let i = result as usize / TILE_ROWS;
        let mut sum = 0.0f32;
        for s in 0..slices {
            sum += shared[(i * slices + s) * TILE_ROWS + lane];
        }
        let row = (first_tile + i / batch) * TILE_ROWS + lane;
        let token = i % batch;
        if row < rows as usize && token < tokens as usize {
            out[token * out_features as usize + first_row as usize + row] = F::cast_from(sum);
        }
    }
}

/// Four weights of one row from column `column`, a multiple of four.
#[cube]
fn decode_quad(
    codes: &[u32],
    scales: &[u32],
    zeros: &[u32],
    row: usize,
    column: usize,
    chunks: usize,
    groups: usize,
    #[comptime] format: Format,
) -> Vector<f32, Const<4>> {
    let (bits, loads) = comptime!((format.bits, format.loads()));
    let (tile, lane) = (row / TILE_ROWS, row % TILE_ROWS);
    let bit = column % comptime!(format.chunk()) * bits;
    let first_load = (tile * chunks + column / comptime!(format.chunk())) * loads;
    let (word, at) = (bit / 32, (bit % 32) as u32);
    let low = codes
        [((first_load + word / LOAD_WORDS) * TILE_ROWS + lane) * LOAD_WORDS + word % LOAD_WORDS];
    let mut quad = low >> at;
    if comptime!(bits == 3) {
        // Twelve bits may reach into the next word.
        if at > 20 {
            let next = word + 1;
            let high = codes[((first_load + next / LOAD_WORDS) * TILE_ROWS + lane) * LOAD_WORDS
                + next % LOAD_WORDS];
            quad |= high << (32 - at);
        }
    }
    let mut weights = Vector::<f32, Const<4>>::empty();
    if comptime!(format.run().is_multiple_of(4)) {
        let at = tile * groups + group_of(column, groups, format);
        let zero = zero_of(zeros, at, lane as u32, format);
        let scale = scale_of(scales, at, lane as u32, format);
        #[unroll]
        for j in 0..4usize {
            weights.insert(
                j,
                (one_plus(quad, comptime!(j * bits), bits) - zero) * scale,
            );
        }
    } else {
        #[unroll]
        for j in 0..4usize {
            let at = tile * groups + group_of(column + j, groups, format);
            let zero = zero_of(zeros, at, lane as u32, format);
            let scale = scale_of(scales, at, lane as u32, format);
            weights.insert(
                j,
                (one_plus(quad, comptime!(j * bits), bits) - zero) * scale,
            );
        }
    }
    weights
}

/// The weight in full, `[rows, in_features]` from `first_row` on; a unit writes four columns.
#[cube(launch_unchecked)]
pub(crate) fn dequantize<F: Float, N: Size>(
    codes: &[u32],
    scales: &[u32],
    zeros: &[u32],
    out: &mut [Vector<F, N>],
    in_features: u32,
    chunks: u32,
    groups: u32,
    rows: u32,
    first_row: u32,
    #[comptime] format: Format,
    #[define(F)] _dtype: ElemType,
) {
    let in_features = in_features as usize;
    let quads = in_features.div_ceil(4);
    let (row, column) = (ABSOLUTE_POS / quads, ABSOLUTE_POS % quads * 4);
    if row < rows as usize {
        let weights = decode_quad(
            codes,
            scales,
            zeros,
            row,
            column,
            chunks as usize,
            groups as usize,
            format,
        );
        let width = N::value();
        let first = (first_row as usize + row) * in_features + column;
        #[unroll]
        for i in 0..comptime!(4 / width) {
            let mut part = Vector::<F, N>::empty();
            #[unroll]
            for j in 0..width {
                part.insert(j, F::cast_from(weights.extract(comptime!(i * width + j))));
            }
            if column + i * width < in_features {
                out[first / width + i] = part;
            }
        }
    }
}

/// Matrix-matrix: `out[m, first_row + row] = sum_k x[m, k] w[row, k]`, tiles of both in workgroup memory as f32.
#[cube(launch_unchecked)]
pub(crate) fn matmat<F: Float>(
    x: &[Vector<F, Const<4>>],
    codes: &[u32],
    scales: &[u32],
    zeros: &[u32],
    out: &mut [F],
    tokens: u32,
    quads: u32,
    chunks: u32,
    groups: u32,
    rows: u32,
    first_row: u32,
    out_features: u32,
    #[comptime] format: Format,
    #[comptime] plan: MatmatPlan,
    #[define(F)] _dtype: ElemType,
) {
    let (side, per_unit, span, stride) =
        comptime!((plan.side, plan.per_unit, plan.span(), plan.stride()));
    let (rows, tokens, quads) = (rows as usize, tokens as usize, quads as usize);
    let row_blocks = rows.div_ceil(span);
    let first = CUBE_POS % row_blocks * span;
    let first_token = CUBE_POS / row_blocks * span;
    let unit = UNIT_POS as usize;
    let (unit_row, unit_token) = (unit % side, unit / side);

    let mut xs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.quads() * stride));
    let mut ws = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.quads() * stride));
    let mut sums = Array::<f32>::new(comptime!(per_unit * per_unit));
    #[unroll]
    for i in 0..per_unit * per_unit {
        sums[i] = 0.0;
    }
    for step in range_stepped(0u32, quads as u32, comptime!(plan.quads() as u32)) {
        #[unroll]
        for i in 0..comptime!(span * plan.quads() / (side * side)) {
            let at = unit + comptime!(i * side * side);
            let (line, quad) = (at / comptime!(plan.quads()), at % comptime!(plan.quads()));
            // Past the last row or token any value will do, past the row's end both must be nothing.
            let column = step as usize + quad;
            let token = select(first_token + line < tokens, first_token + line, tokens - 1);
            let row = select(first + line < rows, first + line, rows - 1);
            let mut x_quad = Vector::<f32, Const<4>>::new(0.0);
            let mut w_quad = Vector::<f32, Const<4>>::new(0.0);
            if column < quads {
                x_quad = Vector::cast_from(x[token * quads + column]);
                w_quad = decode_quad(
                    codes,
                    scales,
                    zeros,
                    row,
                    column * 4,
                    chunks as usize,
                    groups as usize,
                    format,
                );
            }
            xs[quad * stride + line] = x_quad;
            ws[quad * stride + line] = w_quad;
        }
        sync_cube();
        for quad in 0..comptime!(plan.quads()) {
            let mut w = Array::<Vector<f32, Const<4>>>::new(per_unit);
            #[unroll]
            for i in 0..per_unit {
                w[i] = ws[quad * stride + unit_row + i * side];
            }
            #[unroll]
            for m in 0..per_unit {
                let x = xs[quad * stride + unit_token + m * side];
                #[unroll]
                for i in 0..per_unit {
                    #[unroll]
                    for j in 0..4usize {
                        sums[m * per_unit + i] += x.extract(j) * w[i].extract(j);
                    }
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for m in 0..per_unit {
        #[unroll]
        for i in 0..per_unit {
            let token = first_token + unit_token + m * side;
            let row = first + unit_row + i * side;
            if token < tokens && row < rows {
                out[token * out_features as usize + first_row as usize + row] =
                    F::cast_from(sums[m * per_unit + i]);
            }
        }
    }
}
