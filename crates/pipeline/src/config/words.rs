use std::fmt;
use std::path::Path;

use halfbyte_quant::Codebook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How codes are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// GPTQ, Frantar et al., arXiv 2210.17323.
    #[default]
    Gptq,
    /// AWQ, Lin et al., arXiv 2306.00978: input channels scaled into the layer before, ranges clipped, rounding.
    Awq,
    /// AWQ's scaling, then GPTQ.
    #[serde(rename = "awq+gptq")]
    AwqGptq,
    /// HQQ, Badri and Shaji 2023: zero points from the weights alone; no calibration text is read.
    Hqq,
    /// 8 bits by the largest magnitude of a weight, row or group; no calibration text is read.
    Absmax,
    /// NF4, QLoRA, Dettmers et al., arXiv 2305.14314: 16 levels for normal weights; no calibration text is read.
    Nf4,
    /// FP4, the same with the levels of a 4-bit float; no calibration text is read.
    Fp4,
}

/// Which form of the method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// The paper's own loop, for comparison with other tools.
    Reference,
    /// Ours: range search, scale refits, coordinate descent and the attention-mixed statistic for v.
    #[default]
    Default,
    /// The lowest KL we know how to reach in a few times the default's time: rows pay back each other's errors and tokens
    /// count by the loss's gradient, linears aim at the float model's output, codes are searched wider at few bits, scales
    /// and norms tuned.
    Best,
}

/// What candidate channel scales are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AwqLoss {
    /// The mean squared change of the output of the attention (q, k, v) or of the MLP (gate, up), run on kept inputs; of
    /// the linear itself for o and down. AutoAWQ's and llm-compressor's.
    Module,
    /// The change of the outputs of the scaled linears themselves, from statistics alone.
    Hessian,
}

/// What the statistics of a stage have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Every statistic from the float model.
    Float,
    /// A stage sees the stages before it already quantized.
    #[default]
    Sequential,
    /// As sequential, and every linear aims at what the float model has in its place.
    Asymmetric,
}

/// Which cells of a sweep are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Every one.
    All,
    /// Those of which no other is both smaller and better by its predicted KL.
    Pareto,
    /// None.
    None,
}

/// What a sweep's winner is least in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WinnerBy {
    /// Measured KL divergence to the float model.
    Kl,
    /// Measured perplexity.
    Perplexity,
    /// Predicted KL: losses weighted by what the model feels of them.
    PredictedKl,
}

/// How texts become windows of `sequence_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Texts are joined and cut; no token is lost but the tail.
    #[default]
    Concat,
    /// A text gives one window: the longer are cut, the shorter padded and masked.
    Truncate,
    /// A text gives one window: the longer are cut, the shorter left out.
    Drop,
}

/// A layout the codes are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Format {
    /// vLLM's and transformers' compressed-tensors, pack-quantized.
    #[default]
    #[serde(rename = "compressed-tensors")]
    CompressedTensors,
    /// GPTQ checkpoints as every consumer knows them (zero points stored less one).
    #[serde(rename = "gptq")]
    Gptq,
    /// GPTQ with zero points stored as they are; what asymmetric weights need.
    #[serde(rename = "gptq_v2")]
    GptqV2,
    /// AutoAWQ's GEMM layout: 4 bits.
    #[serde(rename = "awq")]
    Awq,
    /// compressed-tensors, int-quantized: symmetric 8 bits, a byte each.
    #[serde(rename = "int-quantized")]
    IntQuantized,
    /// bitsandbytes' 4 bits: nf4 and fp4.
    #[serde(rename = "bitsandbytes")]
    Bitsandbytes,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU by Vulkan.
    Vulkan,
    /// A GPU by Metal.
    Metal,
    /// A GPU by Direct3D 12.
    Dx12,
    /// A GPU by WebGPU.
    Webgpu,
}

/// Whether a scale may be negative, which buys a code at the side where the weights reach further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SignedScales {
    /// Where every known consumer of all exported formats accepts it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How much is added to the Hessian's diagonal.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Damp {
    /// By the recipe's own rule.
    #[default]
    Auto,
    /// This fraction of the mean diagonal.
    Fraction(f64),
}

/// Which windows of the evaluation text are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Every whole window.
    All,
    /// This many, evenly spaced over the text.
    Count(usize),
    /// These, counted from 0.
    List(Vec<usize>),
}

impl Default for Windows {
    fn default() -> Self {
        Self::Count(32)
    }
}

impl Windows {
    /// What is scored of a text where nothing is said: 32 windows of a file, all of the short text inside the program.
    pub fn default_for(text: &Path) -> Self {
        match text == Path::new(super::EMBEDDED_EVALUATION) {
            true => Self::All,
            false => Self::default(),
        }
    }
}

impl Method {
    /// Whether the weights are all it looks at.
    pub fn is_data_free(self) -> bool {
        matches!(self, Self::Hqq | Self::Absmax | Self::Nf4 | Self::Fp4)
    }

    /// The levels it rounds to, where they are no grid.
    pub fn codebook(self) -> Option<Codebook> {
        match self {
            Self::Nf4 => Some(Codebook::Nf4),
            Self::Fp4 => Some(Codebook::Fp4),
            _ => None,
        }
    }

    /// Whether input channels are scaled, the scales folded into the layer before.
    pub fn scales_channels(self) -> bool {
        matches!(self, Self::Awq | Self::AwqGptq)
    }
}

impl Device {
    /// Every device, in the order in which they are listed to users.
    pub const ALL: [Self; 6] = [
        Self::Auto,
        Self::Cpu,
        Self::Vulkan,
        Self::Metal,
        Self::Dx12,
        Self::Webgpu,
    ];

    /// The word in the file and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
            Self::Webgpu => "webgpu",
        }
    }
}

impl From<Format> for halfbyte_pack::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::CompressedTensors => Self::CompressedTensors,
            Format::Gptq => Self::Gptq,
            Format::GptqV2 => Self::GptqV2,
            Format::Awq => Self::Awq,
            Format::IntQuantized => Self::IntQuantized,
            Format::Bitsandbytes => Self::Bitsandbytes,
        }
    }
}

/// Prints an enum by the word it has in the file.
macro_rules! display_as_written {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match serde_json::to_value(self) {
                    Ok(serde_json::Value::String(word)) => f.write_str(&word),
                    _ => Err(fmt::Error),
                }
            }
        }
    )*};
}
display_as_written!(
    Method,
    Recipe,
    AwqLoss,
    Propagation,
    Measure,
    WinnerBy,
    Packing,
    Format,
    Device
);
