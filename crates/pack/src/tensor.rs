use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// Element types of the tensors that packed checkpoints hold, in the spelling of safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Words of the bitstream (`u32` bit patterns).
    I32,
    /// `weight_shape` of compressed-tensors.
    I64,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
    /// Two codes, a code of a block scale, or a letter of JSON, of bitsandbytes.
    U8,
    /// Whole numbers from −128, of compressed-tensors' unpacked 8 bits.
    I8,
}

/// A spelling that is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "dtype {0} is not one a packed checkpoint holds; known are I32, I64, F16, BF16, F32, U8 and I8"
)]
pub struct UnknownDtype(pub String);

impl Dtype {
    /// Bytes an element.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// The spelling of safetensors headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F32 => "F32",
            Self::U8 => "U8",
            Self::I8 => "I8",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        [
            Self::I32,
            Self::I64,
            Self::F16,
            Self::BF16,
            Self::F32,
            Self::U8,
            Self::I8,
        ]
        .into_iter()
        .find(|dtype| dtype.as_str() == text)
        .ok_or_else(|| UnknownDtype(text.to_string()))
    }
}

/// Types a scale may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleDtype {
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
}

impl ScaleDtype {
    /// The stored value nearest to `scale` (ties to even): what a reader will see.
    pub fn round(self, scale: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(scale).to_f32(),
            Self::BF16 => bf16::from_f32(scale).to_f32(),
            Self::F32 => scale,
        }
    }
}

impl From<ScaleDtype> for Dtype {
    fn from(dtype: ScaleDtype) -> Self {
        match dtype {
            ScaleDtype::F16 => Self::F16,
            ScaleDtype::BF16 => Self::BF16,
            ScaleDtype::F32 => Self::F32,
        }
    }
}

/// A tensor to be written: name, type, shape and little-endian row-major bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Row-major elements, little-endian.
    pub bytes: Vec<u8>,
}

impl NamedTensor {
    /// Each layout with its bytes.
    pub(crate) fn fill(layouts: Vec<TensorLayout>, bytes: Vec<Vec<u8>>) -> Vec<Self> {
        let pairs = layouts.into_iter().zip(bytes);
        pairs
            .map(|(TensorLayout { name, dtype, shape }, bytes)| Self {
                name,
                dtype,
                shape,
                bytes,
            })
            .collect()
    }

    /// The same tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            dtype: self.dtype,
            shape: &self.shape,
            bytes: &self.bytes,
        }
    }
}

/// Name, type and shape of a tensor still to be made: enough to plan a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorLayout {
    /// Bytes the tensor takes.
    pub fn bytes(&self) -> u64 {
        self.dtype.size() as u64 * self.shape.iter().map(|&n| n as u64).product::<u64>()
    }
}

/// A tensor to be read, borrowed from wherever its bytes are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// Row-major elements, little-endian.
    pub bytes: &'a [u8],
}

/// Little-endian bytes of scales in their storage type. The caller has checked that nothing is rounded.
pub(crate) fn scale_bytes(scales: impl Iterator<Item = f32>, dtype: ScaleDtype) -> Vec<u8> {
    match dtype {
        ScaleDtype::F16 => scales
            .flat_map(|s| f16::from_f32(s).to_le_bytes())
            .collect(),
        ScaleDtype::BF16 => scales
            .flat_map(|s| bf16::from_f32(s).to_le_bytes())
            .collect(),
        ScaleDtype::F32 => scales.flat_map(f32::to_le_bytes).collect(),
    }
}

/// Scales read back, or `None` when the tensor is not of a floating type.
pub(crate) fn read_scales(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let pairs = || tensor.bytes.as_chunks::<2>().0.iter();
    match tensor.dtype {
        Dtype::F16 => Some(pairs().map(|&b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()),
        Dtype::F32 => {
            let (words, _) = tensor.bytes.as_chunks::<4>();
            Some(words.iter().map(|&b| f32::from_le_bytes(b)).collect())
        }
        Dtype::I32 | Dtype::I64 | Dtype::U8 | Dtype::I8 => None,
    }
}
