use std::fmt;

/// Weights that share one scale: `Columns(n)`, the whole row (`group_size: -1` in every tool's files), or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupSize {
    /// Contiguous groups of this many input features; the last one may be shorter.
    Columns(usize),
    /// One group a row, written -1.
    Channel,
    /// One scale for the whole weight, written 0 in pipeline files (as AutoRound has it). Checkpoints hold it as a
    /// channel's, the scale once a row, as every reader wants it: they never come out with this.
    Tensor,
}

impl GroupSize {
    /// Reads the field's spelling: -1 for a channel, else a positive count.
    pub fn from_i64(value: i64) -> Result<Self, SchemeError> {
        match value {
            -1 => Ok(Self::Channel),
            n if n > 0 => Ok(Self::Columns(n as usize)),
            n => Err(SchemeError::GroupSize(n)),
        }
    }

    /// The next finer one for rows of so many columns: half as many, or 128 for a whole row. None below 16.
    pub fn finer(self, in_features: usize) -> Option<Self> {
        let half = match self {
            Self::Columns(n) if n % 2 == 0 => n / 2,
            Self::Columns(_) => 0,
            Self::Channel | Self::Tensor => 128,
        };
        (half >= 16 && half < in_features).then_some(Self::Columns(half))
    }

    /// The field's spelling: -1 for a channel; 0 for the whole weight.
    pub fn as_i64(self) -> i64 {
        match self {
            Self::Columns(n) => n as i64,
            Self::Channel => -1,
            Self::Tensor => 0,
        }
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_i64().fmt(f)
    }
}

/// How a weight is coded: `w = scale * (code - zero)` with `code` in `0..2^bits`.
///
/// Symmetric schemes fix `zero = 2^(bits-1)`; asymmetric ones store an integer zero point per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    bits: u8,
    group_size: GroupSize,
    sym: bool,
}

/// Why a scheme cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// Widths from 2 to 8 exist in the formats we write.
    #[error("bits: {0} is not a width we write; use 2, 3, 4, 5, 6 or 8")]
    Bits(u8),
    /// Groups below 16 cost more in scales than they save.
    #[error("group_size: {0} is not a group; use 16 to 1024, or -1 for one group a row")]
    GroupSize(i64),
}

impl Scheme {
    /// Checks `bits` (2, 3, 4, 5, 6 or 8) and `group_size` (16 to 1024 columns, or a channel).
    pub fn new(bits: u8, group_size: GroupSize, sym: bool) -> Result<Self, SchemeError> {
        if !matches!(bits, 2..=6 | 8) {
            return Err(SchemeError::Bits(bits));
        }
        if let GroupSize::Columns(n) = group_size
            && !(16..=1024).contains(&n)
        {
            return Err(SchemeError::GroupSize(n as i64));
        }
        Ok(Self {
            bits,
            group_size,
            sym,
        })
    }

    /// Bits a code.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Columns a scale.
    pub fn group_size(&self) -> GroupSize {
        self.group_size
    }

    /// Whether the zero point is fixed at the middle code.
    pub fn sym(&self) -> bool {
        self.sym
    }

    /// The scheme as checkpoints hold it: one scale for the whole weight stands there once a row.
    pub fn stored(&self) -> Self {
        let group_size = match self.group_size {
            GroupSize::Tensor => GroupSize::Channel,
            stored => stored,
        };
        Self {
            group_size,
            ..*self
        }
    }

    /// Largest code, `2^bits - 1`.
    pub fn max_code(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }

    /// The zero point of a symmetric scheme, `2^(bits-1)`.
    pub fn mid_code(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Columns a group for a weight this wide: a group never exceeds the row.
    pub fn group_len(&self, in_features: usize) -> usize {
        match self.group_size {
            GroupSize::Columns(n) => n.min(in_features.max(1)),
            GroupSize::Channel | GroupSize::Tensor => in_features.max(1),
        }
    }

    /// Groups a row, the ragged last one included.
    pub fn n_groups(&self, in_features: usize) -> usize {
        in_features.div_ceil(self.group_len(in_features))
    }

    /// Stored bits per weight: codes, 16-bit scales and, when asymmetric, zero points of `bits` bits.
    pub fn bits_per_weight(&self, in_features: usize) -> f64 {
        let side = 16.0 + if self.sym { 0.0 } else { f64::from(self.bits) };
        f64::from(self.bits) + side * self.n_groups(in_features) as f64 / in_features as f64
    }
}
