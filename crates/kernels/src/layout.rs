use half::{bf16, f16};
use halfbyte_quant::{QuantizedWeight, Scheme};
use rayon::prelude::*;

use crate::reference;

/// Rows of a tile: their words lie side by side.
pub(crate) const TILE_ROWS: usize = 8;
/// Words of a 16-byte load.
pub(crate) const LOAD_WORDS: usize = 4;

/// The 16-bit type that scales are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// IEEE half: 11 significant bits, 6e-8 to 65504.
    F16,
    /// The upper half of an f32: 8 significant bits.
    Bf16,
}

/// What a kernel must know of a packed weight when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Format {
    /// Bits a code: 2, 3, 4 or 8.
    pub(crate) bits: usize,
    /// Columns a group, 0 where a row is one group.
    pub(crate) group: usize,
    /// Whether zero points are the middle code and not stored.
    pub(crate) sym: bool,
    /// The type of the scales.
    pub(crate) scale: ScaleType,
}

impl Format {
    /// 16-byte loads a chunk: as few as hold whole codes.
    pub(crate) fn loads(self) -> usize {
        if self.bits == 3 { 3 } else { 1 }
    }

    /// Codes a chunk of one row: 64, 128, 32 or 16 for 2, 3, 4 or 8 bits.
    pub(crate) fn chunk(self) -> usize {
        self.loads() * 128 / self.bits
    }

    /// Words that hold the eight zero points of a tile and group; none where they are the middle code.
    pub(crate) fn zero_words(self) -> usize {
        match (self.sym, self.bits) {
            (true, _) => 0,
            (false, 8) => 2,
            (false, _) => 1,
        }
    }

    /// Bits a stored zero point: a nibble, or a byte for 8 bits.
    pub(crate) fn zero_bits(self) -> usize {
        if self.bits == 8 { 8 } else { 4 }
    }

    /// Consecutive codes of a chunk that are sure to share a scale.
    pub(crate) fn run(self) -> usize {
        if self.group == 0 {
            return self.chunk();
        }
        let (mut a, mut b) = (self.group, self.chunk());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }
}

/// A weight in the layout of the kernels, on the host. See the crate's head for the layout.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeight {
    format: Format,
    out_features: usize,
    in_features: usize,
    n_groups: usize,
    /// `[tiles, chunks, loads, 8 rows, 4]`
    pub(crate) codes: Vec<u32>,
    /// `[tiles, groups, 4]`, two rows a word.
    pub(crate) scales: Vec<u32>,
    /// `[tiles, groups, zero_words]`
    pub(crate) zeros: Vec<u32>,
}

/// Why a weight cannot be packed for the kernels.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PackError {
    /// No kernel for the width.
    #[error("bits: no kernel for {0}; use 2, 3, 4 or 8")]
    Bits(u8),
    /// Some scales need more than f16 and more than bf16.
    #[error(
        "scales[{index}] is {value}, and not all scales are exact in f16 nor all in bf16; round them to one of the two"
    )]
    Scale {
        /// Flat index of the first scale that is not exact in f16.
        index: usize,
        /// The scale.
        value: f32,
    },
    /// Nothing to multiply by.
    #[error("a weight of shape [{0}, {1}] has no elements")]
    Empty(usize, usize),
}

impl PackedWeight {
    /// Packs a weight. Scales are kept as bf16 where all are exact in it, else as f16: no value changes.
    ///
    /// # Errors
    /// [`PackError`] for 5 and 6 bits, for scales that are exact in neither type, and for a weight without elements.
    pub fn new(weight: &QuantizedWeight) -> Result<Self, PackError> {
        let scheme = weight.scheme();
        let (out, in_) = (weight.out_features(), weight.in_features());
        if !matches!(scheme.bits(), 2 | 3 | 4 | 8) {
            return Err(PackError::Bits(scheme.bits()));
        }
        if out == 0 || in_ == 0 {
            return Err(PackError::Empty(out, in_));
        }
        let n_groups = weight.n_groups();
        let format = Format {
            bits: usize::from(scheme.bits()),
            group: if n_groups == 1 {
                0
            } else {
                scheme.group_len(in_)
            },
            sym: scheme.sym(),
            scale: scale_type(weight.scales())?,
        };
        let mut packed = Self {
            format,
            out_features: out,
            in_features: in_,
            n_groups,
            codes: Vec::new(),
            scales: Vec::new(),
            zeros: Vec::new(),
        };
        packed.put_codes(weight);
        packed.put_scales(weight);
        Ok(packed)
    }

    fn put_codes(&mut self, weight: &QuantizedWeight) {
        let (format, columns, groups) = (self.format, self.in_features, self.n_groups);
        let tile_words = self.n_chunks() * self.chunk_words();
        let mut codes = vec![0; self.n_tiles() * tile_words];
        let tiles = codes.par_chunks_exact_mut(tile_words).enumerate();
        tiles.for_each(|(tile, words)| {
            let rows = tile * TILE_ROWS..((tile + 1) * TILE_ROWS).min(self.out_features);
            for (lane, row) in rows.enumerate() {
                let codes = &weight.codes()[row * columns..][..columns];
                // Codes past the row's end are its last zero point: they decode to nothing.
                let padding = weight.zeros()[(row + 1) * groups - 1];
                for (chunk, codes) in codes.chunks(format.chunk()).enumerate() {
                    let padding = std::iter::repeat_n(padding, format.chunk() - codes.len());
                    let (mut string, mut held, mut word) = (0u64, 0, 0);
                    for code in codes.iter().copied().chain(padding) {
                        string |= u64::from(code) << held;
                        held += format.bits;
                        if held >= 32 {
                            words[self.code_word(chunk, lane, word)] = string as u32;
                            (string, held, word) = (string >> 32, held - 32, word + 1);
                        }
                    }
                }
            }
        });
        self.codes = codes;
    }

    fn put_scales(&mut self, weight: &QuantizedWeight) {
        let (format, groups) = (self.format, self.n_groups);
        self.scales = vec![0; self.n_tiles() * groups * TILE_ROWS / 2];
        self.zeros = vec![0; self.n_tiles() * groups * format.zero_words()];
        let sides = weight.scales().iter().zip(weight.zeros());
        for (at, (&scale, &zero)) in sides.enumerate() {
            let (row, group) = (at / groups, at % groups);
            let (tile, lane) = (row / TILE_ROWS, row % TILE_ROWS);
            let at = tile * groups + group;
            let bits = match format.scale {
                ScaleType::F16 => f16::from_f32(scale).to_bits(),
                ScaleType::Bf16 => bf16::from_f32(scale).to_bits(),
            };
            self.scales[at * TILE_ROWS / 2 + lane / 2] |= u32::from(bits) << (lane % 2 * 16);
            if !format.sym {
                let bit = lane * format.zero_bits();
                self.zeros[at * format.zero_words() + bit / 32] |= u32::from(zero) << (bit % 32);
            }
        }
    }

    /// Where word `word` of a chunk lies in its tile, for row `lane` of it.
    fn code_word(&self, chunk: usize, lane: usize, word: usize) -> usize {
        let load = chunk * self.format.loads() + word / LOAD_WORDS;
        (load * TILE_ROWS + lane) * LOAD_WORDS + word % LOAD_WORDS
    }

    /// Words a chunk of all eight rows.
    pub(crate) fn chunk_words(&self) -> usize {
        self.format.loads() * TILE_ROWS * LOAD_WORDS
    }

    /// What a kernel must know when it is compiled.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Groups a row.
    pub fn n_groups(&self) -> usize {
        self.n_groups
    }

    /// The type that holds the scales.
    pub fn scale_type(&self) -> ScaleType {
        self.format.scale
    }

    /// Tiles of eight rows, the last one padded.
    pub(crate) fn n_tiles(&self) -> usize {
        self.out_features.div_ceil(TILE_ROWS)
    }

    /// Chunks a row, the last one padded.
    pub(crate) fn n_chunks(&self) -> usize {
        self.in_features.div_ceil(self.format.chunk())
    }

    /// Bytes of codes, scales and zero points: what one product reads of the weight.
    pub fn bytes(&self) -> u64 {
        4 * (self.codes.len() + self.scales.len() + self.zeros.len()) as u64
    }

    /// Code of `row` and `column`.
    pub(crate) fn code(&self, row: usize, column: usize) -> u32 {
        let bits = self.format.bits;
        let tile_words = self.n_chunks() * self.chunk_words();
        let tile = &self.codes[row / TILE_ROWS * tile_words..][..tile_words];
        let bit = column % self.format.chunk() * bits;
        let word = |word| tile[self.code_word(column / self.format.chunk(), row % TILE_ROWS, word)];
        let low = word(bit / 32) >> (bit % 32);
        let high = if bit % 32 + bits > 32 {
            word(bit / 32 + 1) << (32 - bit % 32)
        } else {
            0
        };
        (low | high) & ((1 << bits) - 1)
    }

    /// Scale of `row` and `group`.
    pub(crate) fn scale(&self, row: usize, group: usize) -> f32 {
        let at = (row / TILE_ROWS * self.n_groups + group) * TILE_ROWS / 2 + row % TILE_ROWS / 2;
        let bits = (self.scales[at] >> (row % 2 * 16)) as u16;
        match self.format.scale {
            ScaleType::F16 => f16::from_bits(bits).to_f32(),
            ScaleType::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    /// Zero point of `row` and `group`.
    pub(crate) fn zero(&self, row: usize, group: usize) -> u32 {
        if self.format.sym {
            return 1 << (self.format.bits - 1);
        }
        let bit = row % TILE_ROWS * self.format.zero_bits();
        let at = (row / TILE_ROWS * self.n_groups + group) * self.format.zero_words() + bit / 32;
        (self.zeros[at] >> (bit % 32)) & ((1 << self.format.zero_bits()) - 1)
    }

    /// Group of a column.
    pub(crate) fn group_of(&self, column: usize) -> usize {
        column.checked_div(self.format.group).unwrap_or(0)
    }

    /// The weight it stands for, `[out_features, in_features]` row-major: `scale * (code - zero)` in f32. Slow: for
    /// checks, and for what the kernels do not do.
    pub fn dequantize(&self) -> Vec<f32> {
        reference::dequantize(self)
    }

    /// Bits the layout stores per weight of a scheme, when no padding is needed: codes, scales of 16 bits, zero points
    /// of 4 bits (8 for 8-bit codes).
    pub fn bits_per_weight(scheme: Scheme, in_features: usize) -> f64 {
        let zero = match (scheme.sym(), scheme.bits()) {
            (true, _) => 0.0,
            (false, 8) => 8.0,
            (false, _) => 4.0,
        };
        let groups = scheme.n_groups(in_features) as f64;
        f64::from(scheme.bits()) + (16.0 + zero) * groups / in_features as f64
    }
}

fn scale_type(scales: &[f32]) -> Result<ScaleType, PackError> {
    if scales.iter().all(|&s| bf16::from_f32(s).to_f32() == s) {
        return Ok(ScaleType::Bf16);
    }
    match scales.iter().position(|&s| f16::from_f32(s).to_f32() != s) {
        None => Ok(ScaleType::F16),
        Some(index) => Err(PackError::Scale {
            index,
            value: scales[index],
        }),
    }
}
