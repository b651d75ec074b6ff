use std::fmt;

use crate::{Codebook, CodebookWeight, GroupSize, NestedScales, QuantizedWeight, Scheme};

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// Whole numbers on a grid: `w = scale * (code - zero)`.
    Grid(Scheme),
    /// Levels of a codebook: `w = scale * level[code]`.
    Codebook(CodebookScheme),
}

/// A codebook and how its block scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodebookScheme {
    /// The levels.
    pub codebook: Codebook,
    /// Neighbours in the flat row-major weight that share a scale.
    pub block_size: usize,
    /// Whether block scales are quantized once more.
    pub double_quant: bool,
}

impl Coding {
    /// The grid, if it is one.
    pub fn grid(&self) -> Option<Scheme> {
        match self {
            Self::Grid(scheme) => Some(*scheme),
            Self::Codebook(_) => None,
        }
    }

    /// Stored bits per weight of a weight `[out_features, in_features]`, scales and zero points included.
    pub fn bits_per_weight(&self, [out_features, in_features]: [usize; 2]) -> f64 {
        match self {
            Self::Grid(scheme) => scheme.bits_per_weight(in_features),
            Self::Codebook(scheme) => {
                let elements = out_features * in_features;
                8.0 * scheme.packed_bytes(elements) as f64 / elements as f64
            }
        }
    }
}

/// In words: `4-bit group 64 sym`, or `nf4 in blocks of 64, double quantization`.
impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grid(scheme) => {
                let sym = if scheme.sym() { "sym" } else { "asym" };
                match scheme.group_size() {
                    GroupSize::Tensor => write!(f, "{}-bit, one scale, {sym}", scheme.bits()),
                    group_size => write!(f, "{}-bit group {group_size} {sym}", scheme.bits()),
                }
            }
            Self::Codebook(scheme) => {
                let nested = if scheme.double_quant {
                    ", double quantization"
                } else {
                    ""
                };
                let (codebook, size) = (scheme.codebook.as_str(), scheme.block_size);
                write!(f, "{codebook} in blocks of {size}{nested}")
            }
        }
    }
}

impl From<Scheme> for Coding {
    fn from(scheme: Scheme) -> Self {
        Self::Grid(scheme)
    }
}

impl CodebookScheme {
    /// Bytes codes and scales of so many weights take once packed, without the maps that every weight of a codebook
    /// repeats.
    pub fn packed_bytes(&self, elements: usize) -> u64 {
        let blocks = elements.div_ceil(self.block_size);
        let scales = if self.double_quant {
            blocks + 4 * blocks.div_ceil(NestedScales::BLOCK) + 4
        } else {
            4 * blocks
        };
        (elements.div_ceil(2) + scales) as u64
    }
}

/// A weight as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum CodedWeight {
    /// On a grid.
    Grid(QuantizedWeight),
    /// By a codebook.
    Codebook(CodebookWeight),
}

impl CodedWeight {
    /// How it is stored.
    pub fn coding(&self) -> Coding {
        match self {
            Self::Grid(weight) => Coding::Grid(weight.scheme()),
            Self::Codebook(weight) => Coding::Codebook(weight.scheme()),
        }
    }

    /// `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Grid(weight) => [weight.out_features(), weight.in_features()],
            Self::Codebook(weight) => [weight.out_features(), weight.in_features()],
        }
    }

    /// The weight the codes stand for, `[out_features, in_features]` row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Grid(weight) => weight.dequantize(),
            Self::Codebook(weight) => weight.dequantize(),
        }
    }

    /// Bytes codes, scales and zero points take once packed.
    pub fn packed_bytes(&self) -> u64 {
        match self {
            Self::Grid(weight) => weight.packed_bytes(),
            Self::Codebook(weight) => weight.packed_bytes(),
        }
    }

    /// Codes, scales and zero points of a weight on a grid.
    pub fn into_grid(self) -> Option<QuantizedWeight> {
        match self {
            Self::Grid(weight) => Some(weight),
            Self::Codebook(_) => None,
        }
    }
}

impl From<QuantizedWeight> for CodedWeight {
    fn from(weight: QuantizedWeight) -> Self {
        Self::Grid(weight)
    }
}

impl From<CodebookWeight> for CodedWeight {
    fn from(weight: CodebookWeight) -> Self {
        Self::Codebook(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockScales, dynamic_map};

    #[test]
    fn stored_bits_are_those_of_the_bytes() {
        let blocks = 300;
        let scales = [
            (BlockScales::Float(vec![1.0; blocks]), 4.0 + 32.0 / 64.0),
            (
                BlockScales::Nested(NestedScales {
                    codes: vec![0; blocks],
                    map: dynamic_map().to_vec(),
                    absmax: vec![1.0; 2],
                    offset: 0.5,
                }),
                4.0 + 8.0 / 64.0 + 8.0 * 12.0 / (64 * blocks) as f64,
            ),
        ];
        for (scales, wanted) in scales {
            let codes = vec![7; 64 * blocks];
            let weight = CodebookWeight::new(Codebook::Nf4, [100, 192], 64, codes, scales).unwrap();
            let bits = weight.packed_bytes() as f64 * 8.0 / (64 * blocks) as f64;
            let coded = CodedWeight::from(weight);
            assert_eq!(coded.coding().bits_per_weight(coded.shape()), bits);
            assert!((bits - wanted).abs() < 1e-12, "{bits} {wanted}");
        }
        let scheme = Scheme::new(4, GroupSize::Columns(64), true).unwrap();
        assert_eq!(Coding::from(scheme).bits_per_weight([7, 128]), 4.25);
    }

    #[test]
    fn codings_are_told_in_words() {
        let grid = |bits, group, sym| Coding::from(Scheme::new(bits, group, sym).unwrap());
        let rows = [
            (grid(4, GroupSize::Columns(64), true), "4-bit group 64 sym"),
            (grid(3, GroupSize::Channel, false), "3-bit group -1 asym"),
            (grid(8, GroupSize::Tensor, true), "8-bit, one scale, sym"),
        ];
        for (coding, words) in rows {
            assert_eq!(coding.to_string(), words);
        }
        let nf4 = |double_quant| {
            Coding::Codebook(CodebookScheme {
                codebook: Codebook::Nf4,
                block_size: 64,
                double_quant,
            })
        };
        assert_eq!(nf4(false).to_string(), "nf4 in blocks of 64");
        assert_eq!(
            nf4(true).to_string(),
            "nf4 in blocks of 64, double quantization"
        );
    }
}
