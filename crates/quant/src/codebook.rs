use crate::{CodebookScheme, WeightError};

/// Sixteen fixed levels from −1 to 1, which a block of weights shares after it is divided by its largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// NormalFloat of 4 bits: quantiles of a normal distribution, eight above 0, seven below, and 0 itself
    /// (QLoRA, Dettmers et al., arXiv 2305.14314, section 3 and appendix E).
    Nf4,
    /// A float of one sign, two exponent and one mantissa bit, divided by its largest value 12. The code is the bit
    /// pattern, so 0 stands twice; its one subnormal is 1/192 and not the 1/24 that the pattern suggests.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    1.0 / 192.0,
    2.0 / 3.0,
    1.0,
    1.0 / 3.0,
    0.5,
    1.0 / 6.0,
    0.25,
    0.0,
    -1.0 / 192.0,
    -2.0 / 3.0,
    -1.0,
    -1.0 / 3.0,
    -0.5,
    -1.0 / 6.0,
    -0.25,
];

/// Codes by rising level. Of FP4's two zeros the plain one comes first.
const NF4_RISING: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const FP4_RISING: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

const NF4_BORDERS: [f32; 15] = borders(&NF4, &NF4_RISING);
const FP4_BORDERS: [f32; 15] = borders(&FP4, &FP4_RISING);

/// Midpoints between neighbouring levels.
const fn borders(levels: &[f32; 16], rising: &[u8; 16]) -> [f32; 15] {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = 0.5 * (levels[rising[i] as usize] + levels[rising[i + 1] as usize]);
        i += 1;
    }
    borders
}

impl Codebook {
    /// Every codebook.
    pub const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// The field's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The level of each code.
    pub fn levels(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The code whose level is 0.
    pub fn zero_code(self) -> u8 {
        match self {
            Self::Nf4 => 7,
            Self::Fp4 => 0,
        }
    }

    /// The code of the level nearest to `x`, the lower one of two. Everything beyond the ends goes to the ends; of
    /// FP4's zeros, one serves the small numbers above 0 and the other 0 itself and those below.
    #[inline]
    pub fn nearest(self, x: f32) -> u8 {
        let (borders, rising) = match self {
            Self::Nf4 => (&NF4_BORDERS, &NF4_RISING),
            Self::Fp4 => (&FP4_BORDERS, &FP4_RISING),
        };
        // counting needs no branches, so blocks of weights are compared side by side
        let below: u8 = borders.iter().map(|&border| u8::from(x > border)).sum();
        rising[usize::from(below)]
    }
}

/// The 8-bit dynamic map: a sign, a decimal exponent in unary and a linear fraction in the bits left over, 256 levels
/// in rising order, 1 but not −1 among them (Dettmers, arXiv 1511.04561, section 2.2). Decade `i` of seven, from
/// 10⁻⁶ up to 1, holds the midpoints of `2^i` equal parts of 0.1 to 1.
///
/// The sums are rounded as the checkpoints in the field have them, to the bit.
pub fn dynamic_map() -> [f32; 256] {
    let mut map = [0.0; 256];
    map[1] = 1.0;
    let mut filled = 2;
    for decade in 0..7i32 {
        let parts = 1usize << decade;
        let size = 10.0f64.powi(decade - 6) as f32;
        let step = (1.0 - 0.1f32) / parts as f32;
        // counted from the nearer end
        let edge = |i: usize| {
            if i < parts.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((parts - i) as f32, 1.0)
            }
        };
        for part in 0..parts {
            let level = size * (0.5 * (edge(part) + edge(part + 1)));
            map[filled] = level;
            map[filled + 1] = -level;
            filled += 2;
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// Largest magnitudes of blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockScales {
    /// One number a block.
    Float(Vec<f32>),
    /// Quantized once more (QLoRA, section 3, double quantization).
    Nested(NestedScales),
}

/// Block scales as 8-bit codes in blocks of their own: `map[code] * absmax[block] + offset`.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedScales {
    /// A code a block of weights.
    pub codes: Vec<u8>,
    /// The level of each code, 256 of them.
    pub map: Vec<f32>,
    /// Largest magnitude of [`Self::BLOCK`] scales less their offset.
    pub absmax: Vec<f32>,
    /// The mean of all scales.
    pub offset: f32,
}

impl NestedScales {
    /// Block scales that share one `absmax`.
    pub const BLOCK: usize = 256;

    /// The scales the codes stand for.
    pub fn values(&self) -> Vec<f32> {
        self.codes
            .chunks(Self::BLOCK)
            .zip(&self.absmax)
            .flat_map(|(codes, &absmax)| {
                // two roundings, as readers compute it
                codes
                    .iter()
                    .map(move |&code| self.map[usize::from(code)] * absmax + self.offset)
            })
            .collect()
    }
}

/// A weight as codes into a codebook with a scale a block: `w = scale[i / block_size] * level[code[i]]` over the flat
/// row-major weight. Blocks know nothing of rows; the last one may be shorter.
#[derive(Clone, Debug, PartialEq)]
pub struct CodebookWeight {
    codebook: Codebook,
    out_features: usize,
    in_features: usize,
    block_size: usize,
    codes: Vec<u8>,
    scales: BlockScales,
}

impl CodebookWeight {
    /// Checks and takes `codes` `[out, in]` row-major and the scales of its blocks.
    ///
    /// # Errors
    /// A block size of 0, lengths that disagree, codes above 15, scales that are not finite.
    pub fn new(
        codebook: Codebook,
        [out_features, in_features]: [usize; 2],
        block_size: usize,
        codes: Vec<u8>,
        scales: BlockScales,
    ) -> Result<Self, WeightError> {
        if block_size == 0 {
            return Err(WeightError::Length {
                part: "block",
                found: 0,
                wanted: 1,
            });
        }
        let blocks = (out_features * in_features).div_ceil(block_size);
        length("codes", codes.len(), out_features * in_features)?;
        if let Some(index) = codes.iter().position(|&code| code > 15) {
            return Err(WeightError::Range {
                part: "codes",
                index,
                value: codes[index],
                max: 15,
            });
        }
        match &scales {
            BlockScales::Float(scales) => {
                length("scales", scales.len(), blocks)?;
                finite(scales)?;
            }
            BlockScales::Nested(nested) => {
                length("scales", nested.codes.len(), blocks)?;
                length("nested map", nested.map.len(), 256)?;
                length(
                    "nested scales",
                    nested.absmax.len(),
                    blocks.div_ceil(NestedScales::BLOCK),
                )?;
                finite(&nested.map)?;
                finite(&nested.absmax)?;
                finite(&[nested.offset])?;
            }
        }
        Ok(Self {
            codebook,
            out_features,
            in_features,
            block_size,
            codes,
            scales,
        })
    }

    /// The levels the codes speak of.
    pub fn codebook(&self) -> Codebook {
        self.codebook
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Weights that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Codes `[out, in]`, row-major, one a byte.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Scales of the blocks as they are stored.
    pub fn scales(&self) -> &BlockScales {
        &self.scales
    }

    /// Scales of the blocks as numbers. A nested one may come out below 0 where a block is much smaller than the rest.
    pub fn scale_values(&self) -> Vec<f32> {
        match &self.scales {
            BlockScales::Float(scales) => scales.clone(),
            BlockScales::Nested(nested) => nested.values(),
        }
    }

    /// The weight the codes stand for, `[out, in]` row-major, in f32: `scale * level`.
    pub fn dequantize(&self) -> Vec<f32> {
        let levels = self.codebook.levels();
        self.codes
            .chunks(self.block_size)
            .zip(self.scale_values())
            .flat_map(|(codes, scale)| codes.iter().map(move |&c| scale * levels[usize::from(c)]))
            .collect()
    }

    /// Codebook, block size and how scales are stored.
    pub fn scheme(&self) -> CodebookScheme {
        CodebookScheme {
            codebook: self.codebook,
            block_size: self.block_size,
            double_quant: matches!(self.scales, BlockScales::Nested(_)),
        }
    }

    /// Bytes codes and scales take once packed, without the maps that every weight of a codebook repeats.
    pub fn packed_bytes(&self) -> u64 {
        self.scheme().packed_bytes(self.codes.len())
    }
}

fn length(part: &'static str, found: usize, wanted: usize) -> Result<(), WeightError> {
    if found == wanted {
        Ok(())
    } else {
        Err(WeightError::Length {
            part,
            found,
            wanted,
        })
    }
}

fn finite(scales: &[f32]) -> Result<(), WeightError> {
    match scales.iter().position(|scale| !scale.is_finite()) {
        None => Ok(()),
        Some(index) => Err(WeightError::BlockScale {
            index,
            value: scales[index],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Φ(x) by Simpson's rule, and its inverse by halving: slow, and independent of any table.
    fn normal_quantile(p: f64) -> f64 {
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let below = |x: f64| {
            let (n, h) = (400, x / 400.0);
            let sum: f64 = (0..=n)
                .map(|i| {
                    let factor = match i {
                        0 => 1.0,
                        i if i == n => 1.0,
                        i => f64::from(2 + 2 * (i % 2)),
                    };
                    factor * density(h * f64::from(i))
                })
                .sum();
            0.5 + sum * h / 3.0
        };
        let (mut low, mut high) = (0.0, 5.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if below(middle) < p {
                low = middle;
            } else {
                high = middle;
            }
        }
        0.5 * (low + high)
    }

    #[test]
    fn nf4_is_made_of_normal_quantiles_as_the_paper_says() {
        // the outermost quantile is the mean of what 16 and 15 levels would ask for
        let outermost = 1.0 - 0.5 * (1.0 / 32.0 + 1.0 / 30.0);
        let quantiles = |count: usize| -> Vec<f64> {
            (0..count)
                .map(|i| {
                    let p = outermost + (0.5 - outermost) * i as f64 / count as f64;
                    normal_quantile(p) / normal_quantile(outermost)
                })
                .collect()
        };
        let mut wanted: Vec<f64> = quantiles(8);
        wanted.extend(quantiles(7).iter().map(|q| -q));
        wanted.push(0.0);
        wanted.sort_by(f64::total_cmp);
        for (found, wanted) in NF4.iter().zip(wanted) {
            assert!(
                (f64::from(*found) - wanted).abs() < 1e-6,
                "{found} {wanted}"
            );
        }
    }

    #[test]
    fn fp4_levels_are_the_floats_of_their_bits() {
        for (code, level) in FP4.iter().enumerate() {
            let (exponent, mantissa) = ((code >> 1) & 3, code & 1);
            let magnitude = match (exponent, mantissa) {
                (0, 0) => 0.0,
                (0, _) => 0.0625,
                // exponents are read in the order 3, 2, 1: 8 and 12, 4 and 6, 2 and 3
                (1, m) => 8.0 + 4.0 * m as f32,
                (2, m) => 4.0 + 2.0 * m as f32,
                (_, m) => 2.0 + m as f32,
            };
            let sign = if code < 8 { 1.0 } else { -1.0 };
            assert_eq!(*level, sign * magnitude / 12.0, "code {code}");
        }
    }

    #[test]
    fn nearest_is_the_level_at_the_least_distance() {
        for book in Codebook::ALL {
            for i in -1200..=1200 {
                let x = i as f32 / 1000.0;
                let found = book.levels()[usize::from(book.nearest(x))];
                let least = book
                    .levels()
                    .iter()
                    .map(|level| (level - x).abs())
                    .fold(f32::INFINITY, f32::min);
                assert!((found - x).abs() <= least + 1e-7, "{book:?} {x}");
            }
            for (code, &level) in book.levels().iter().enumerate() {
                let back = book.nearest(level);
                assert!(usize::from(back) == code || level == 0.0);
            }
            assert_eq!(book.nearest(0.0), book.zero_code());
        }
    }

    #[test]
    fn the_dynamic_map_rises_and_is_even_but_for_its_end() {
        let map = dynamic_map();
        assert!(map.is_sorted() && map[127] == 0.0 && map[255] == 1.0);
        assert!((0..127).all(|i| map[i] == -map[254 - i]));
        assert_eq!((map[128], map[0]), (5.500_000_4e-7, -0.992_968_74));
    }

    #[test]
    fn blocks_run_over_rows_and_the_last_one_is_short() {
        let weight = CodebookWeight::new(
            Codebook::Nf4,
            [2, 5],
            4,
            vec![15, 0, 7, 15, 15, 0, 7, 15, 15, 0],
            BlockScales::Float(vec![1.0, 2.0, 4.0]),
        )
        .unwrap();
        assert_eq!(
            weight.dequantize(),
            [1.0, -1.0, 0.0, 1.0, 2.0, -2.0, 0.0, 2.0, 4.0, -4.0]
        );
        assert_eq!(weight.packed_bytes(), 5 + 12);
    }

    #[test]
    fn nested_scales_are_a_level_times_a_magnitude_and_an_offset() {
        let nested = NestedScales {
            codes: vec![255; 257],
            map: dynamic_map().to_vec(),
            absmax: vec![0.5, 0.25],
            offset: 1.0,
        };
        let values = nested.values();
        assert_eq!((values[0], values[255], values[256]), (1.5, 1.5, 1.25));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let new = |size, codes, scales| {
            CodebookWeight::new(Codebook::Fp4, [1, 8], size, codes, scales)
                .map_err(|e| e.to_string())
        };
        let float = |n| BlockScales::Float(vec![1.0; n]);
        assert!(new(4, vec![0; 8], float(2)).is_ok());
        for (size, codes, scales, wanted) in [
            (0, vec![0; 8], float(2), "block: 0 elements, wanted 1"),
            (4, vec![0; 7], float(2), "codes: 7 elements, wanted 8"),
            (
                4,
                vec![16; 8],
                float(2),
                "codes[0] is 16, above the largest code 15",
            ),
            (4, vec![0; 8], float(3), "scales: 3 elements, wanted 2"),
            (
                4,
                vec![0; 8],
                BlockScales::Float(vec![1.0, f32::NAN]),
                "block scales[1] is NaN, wanted a finite number",
            ),
        ] {
            assert_eq!(new(size, codes, scales).unwrap_err(), wanted);
        }
    }
}
