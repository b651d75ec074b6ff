use std::fmt;
use std::str::FromStr;

use halfbyte_quant::{Codebook, CodebookScheme, Coding, GroupSize, Scheme};

use crate::ScaleDtype;
use crate::config::is_head;
use crate::consumers::listed;

/// Checkpoint formats we read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// GPTQ, the first version: the zero points stand in the file less one.
    Gptq,
    /// GPTQ, the second version: the zero points stand as they are.
    GptqV2,
    /// compressed-tensors, `pack-quantized`.
    CompressedTensors,
    /// AutoAWQ's GEMM layout. Every weight in it has stored zero points: a symmetric one stands there with its middle
    /// code, 8, and its config says `zero_point: true`, because readers that offer a way without zero points (vLLM)
    /// have no fast kernel for it and AutoAWQ itself cannot write one. The same values come back, as asymmetric codes.
    Awq,
    /// compressed-tensors, `int-quantized`: symmetric 8 bits, a byte each.
    IntQuantized,
    /// bitsandbytes' 4 bits: NF4 and FP4.
    Bitsandbytes,
}

/// A spelling that is not a format we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "format {0} is not known; use gptq, gptq_v2, awq, compressed-tensors, int-quantized or bitsandbytes"
)]
pub struct UnknownFormat(pub String);

/// Why a format cannot hold a weight.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The width has no layout in the format.
    #[error("{format} has no layout for {bits} bits; use {known}")]
    Bits {
        /// Where it was to go.
        format: Format,
        /// Width asked for.
        bits: u8,
        /// Widths and formats that would do.
        known: &'static str,
    },
    /// Levels of a codebook are no whole numbers.
    #[error("{format} holds whole numbers on a grid and not {codebook}; use bitsandbytes")]
    Codebook {
        /// Where it was to go.
        format: Format,
        /// The codebook's name.
        codebook: &'static str,
    },
    /// bitsandbytes' 4 bits are codebooks.
    #[error("bitsandbytes holds nf4 and fp4 only; use compressed-tensors")]
    Grid,
    /// Block sizes that bitsandbytes has kernels for.
    #[error("bitsandbytes has no blocks of {found} weights; use a power of two from 32 to 4096")]
    BlockSize {
        /// Weights a block.
        found: usize,
    },
    /// Two codes of bitsandbytes share a byte.
    #[error(
        "bitsandbytes needs an even number of weights and {found} is odd; list the module under `ignore`"
    )]
    Odd {
        /// Elements of the weight.
        found: usize,
    },
    /// bitsandbytes' config says one codebook for all modules.
    #[error(
        "bitsandbytes has one codebook for all modules, nested scales or not: {module} differs from those before it"
    )]
    MixedCodebooks {
        /// First module that differs.
        module: String,
    },
    /// GPTQ v1 with free zero points: readers disagree about it, and it cannot hold a zero point of 0.
    #[error(
        "gptq cannot hold asymmetric weights that every reader understands; use gptq_v2 or compressed-tensors"
    )]
    Asymmetric,
    /// Signed bytes have their zero in the middle.
    #[error("{format} holds symmetric weights only; use compressed-tensors")]
    SymmetricOnly {
        /// Where it was to go.
        format: Format,
    },
    /// GPTQ packs codes along the input and zero points along the output, 32 to a block.
    #[error(
        "{format} packs {axis} in blocks of 32 and {found} is not a multiple of it; list the module under `ignore`, or use compressed-tensors"
    )]
    Blocks {
        /// Where it was to go.
        format: Format,
        /// `out_features` or `in_features`.
        axis: &'static str,
        /// The extent that does not divide.
        found: usize,
    },
    /// AWQ packs codes and zero points along the output, 8 to a word.
    #[error(
        "awq packs out_features in words of 8 and {found} is not a multiple of it; list the module under `ignore`, or use compressed-tensors"
    )]
    Words {
        /// `out_features`.
        found: usize,
    },
    /// All but GPTQ demand whole groups.
    #[error(
        "{format} needs whole groups and {group_size} does not divide {in_features} input features; use {offered}"
    )]
    RaggedGroup {
        /// Where it was to go.
        format: Format,
        /// Columns a group.
        group_size: usize,
        /// Columns a row.
        in_features: usize,
        /// Group sizes that divide, as text.
        offered: String,
    },
    /// AWQ's config says one group size for all modules.
    #[error(
        "awq has one group size for all modules: {module} has {found}, the modules before it {wanted}; give all the same, or use compressed-tensors"
    )]
    MixedGroups {
        /// First module that differs.
        module: String,
        /// Its group size.
        found: GroupSize,
        /// The others'.
        wanted: GroupSize,
    },
    /// AWQ's readers never look for a quantized output projection.
    #[error(
        "awq has no quantized {module}; list it under `ignore`, or use gptq or compressed-tensors"
    )]
    Head {
        /// The output projection.
        module: String,
    },
    /// AWQ's config lists untouched modules by parts of names.
    #[error(
        "awq lists untouched modules by parts of names, and the untouched {untouched} is a part of the quantized {module}; quantize both or none, or use compressed-tensors"
    )]
    NamePart {
        /// Module left as it was.
        untouched: String,
        /// Module its name would take along.
        module: String,
    },
}

impl Format {
    /// Every format, in the order in which they are listed to users.
    pub const ALL: [Self; 6] = [
        Self::CompressedTensors,
        Self::Gptq,
        Self::GptqV2,
        Self::Awq,
        Self::IntQuantized,
        Self::Bitsandbytes,
    ];

    /// The field's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::GptqV2 => "gptq_v2",
            Self::CompressedTensors => "compressed-tensors",
            Self::Awq => "awq",
            Self::IntQuantized => "int-quantized",
            Self::Bitsandbytes => "bitsandbytes",
        }
    }

    /// Whether the format can hold a weight of `shape` `[out_features, in_features]` stored by `coding`.
    ///
    /// | | bits | zero points | shape | group |
    /// |---|---|---|---|---|
    /// | gptq | 2, 3, 4, 8 | symmetric only | both extents a multiple of 32 | any, the last one may be ragged |
    /// | gptq_v2 | 2, 3, 4, 8 | any | both extents a multiple of 32 | any, the last one may be ragged |
    /// | compressed-tensors | 2 to 6, 8 | any | any | must divide in_features |
    /// | awq | 4 | any, symmetric ones are written out | out_features a multiple of 8 | must divide in_features |
    /// | int-quantized | 8 | symmetric only | any | must divide in_features |
    /// | bitsandbytes | nf4, fp4 | none | an even number of weights | a power of two from 32 to 4096, over rows |
    ///
    /// What a format demands of all modules together is asked by [`Self::supports_together`].
    pub fn supports(self, coding: &Coding, shape: [usize; 2]) -> Result<(), Refusal> {
        match (self, coding) {
            (Self::Bitsandbytes, Coding::Codebook(scheme)) => holds_codebook(scheme, shape),
            (Self::Bitsandbytes, Coding::Grid(_)) => Err(Refusal::Grid),
            (_, Coding::Codebook(scheme)) => Err(Refusal::Codebook {
                format: self,
                codebook: scheme.codebook.as_str(),
            }),
            (_, Coding::Grid(scheme)) => self.holds_grid(scheme, shape),
        }
    }

    fn holds_grid(
        self,
        scheme: &Scheme,
        [out_features, in_features]: [usize; 2],
    ) -> Result<(), Refusal> {
        match self {
            Self::Gptq | Self::GptqV2 => {
                if !matches!(scheme.bits(), 2 | 3 | 4 | 8) {
                    return Err(Refusal::Bits {
                        format: self,
                        bits: scheme.bits(),
                        known: "2, 3, 4 or 8, or compressed-tensors",
                    });
                }
                if self == Self::Gptq && !scheme.sym() {
                    return Err(Refusal::Asymmetric);
                }
                for (axis, found) in [("out_features", out_features), ("in_features", in_features)]
                {
                    if !found.is_multiple_of(32) {
                        return Err(Refusal::Blocks {
                            format: self,
                            axis,
                            found,
                        });
                    }
                }
                Ok(())
            }
            Self::CompressedTensors => self.whole_groups(scheme, in_features),
            Self::Awq => {
                if scheme.bits() != 4 {
                    return Err(Refusal::Bits {
                        format: self,
                        bits: scheme.bits(),
                        known: "4, or compressed-tensors",
                    });
                }
                if !out_features.is_multiple_of(8) {
                    return Err(Refusal::Words {
                        found: out_features,
                    });
                }
                self.whole_groups(scheme, in_features)
            }
            Self::IntQuantized => {
                crate::int8::supports(scheme)?;
                self.whole_groups(scheme, in_features)
            }
            Self::Bitsandbytes => Err(Refusal::Grid),
        }
    }

    /// Whether one checkpoint of the format can hold all of `modules`, given as to [`crate::quantization_config`]: each
    /// linear with how it is stored, or `None` where it stays as it was. awq knows one group size, no quantized output
    /// projection, and names untouched modules by parts of their names; bitsandbytes knows one codebook; the others mix
    /// schemes freely.
    pub fn supports_together(self, modules: &[(String, Option<Coding>)]) -> Result<(), Refusal> {
        match self {
            Self::Awq => awq_together(modules),
            Self::Bitsandbytes => codebooks_together(modules),
            _ => Ok(()),
        }
    }

    /// Whether the usual readers take scales below zero.
    ///
    /// A negative scale turns a symmetric grid round, `-8..=7` steps become `-7..=8`, which serves a group whose
    /// largest weight is positive. Dequantizers multiply by the scale as it stands, and AutoRound's symmetric
    /// quantizer makes signed scales by default, so they are out there. Not every reader takes them all the same:
    /// - gptq and compressed-tensors: transformers, GPTQModel's plain kernel and vLLM's Marlin do. Marlin with 8-bit integer
    ///   activations (opt-in) fits the group scales into 16 bits by their maximum, not by their largest magnitude, so
    ///   negative ones may overflow. vLLM's kernel for CPUs does (run); its Humming kernels were not read.
    /// - gptq_v2: the kernels of ExLlamaV2 and of GPTQModel beside its plain one were not read.
    /// - awq: vLLM on a CPU, GPTQModel on a CPU and mlx-lm do (run), but nobody else writes them, and none of the kernels
    ///   for GPUs that awq is mostly read by was run or read for it.
    pub fn usually_takes_negative_scales(self) -> bool {
        match self {
            Self::Gptq | Self::CompressedTensors => true,
            Self::GptqV2 | Self::Awq | Self::IntQuantized | Self::Bitsandbytes => false,
        }
    }

    /// The type scales are stored in, for a model whose own tensors are of type `model`. Round scales to it
    /// **before** coding: [`crate::pack`] refuses scales that would change on the way into the file.
    pub fn scale_dtype(self, model: ScaleDtype) -> ScaleDtype {
        match self {
            Self::Gptq | Self::GptqV2 | Self::Awq => ScaleDtype::F16,
            Self::CompressedTensors | Self::IntQuantized => model,
            Self::Bitsandbytes => ScaleDtype::F32,
        }
    }

    /// A second file that carries the `quantization_config` object of config.json, where readers look for one.
    pub fn config_file(self) -> Option<&'static str> {
        match self {
            Self::Gptq | Self::GptqV2 => Some("quantize_config.json"),
            Self::CompressedTensors | Self::Awq | Self::IntQuantized | Self::Bitsandbytes => None,
        }
    }

    fn whole_groups(self, scheme: &Scheme, in_features: usize) -> Result<(), Refusal> {
        match scheme.group_size() {
            GroupSize::Columns(group_size) if !in_features.is_multiple_of(group_size) => {
                Err(Refusal::RaggedGroup {
                    format: self,
                    group_size,
                    in_features,
                    offered: offered_groups(in_features),
                })
            }
            _ => Ok(()),
        }
    }
}

fn awq_together(modules: &[(String, Option<Coding>)]) -> Result<(), Refusal> {
    let quantized = || {
        let modules = modules.iter();
        modules.filter_map(|(name, coding)| Some((name, coding.as_ref()?.grid()?)))
    };
    let wanted = quantized().next().map(|(_, scheme)| scheme.group_size());
    for (name, scheme) in quantized() {
        if is_head(name) {
            return Err(Refusal::Head {
                module: name.clone(),
            });
        }
        let found = scheme.group_size();
        if let Some(wanted) = wanted.filter(|&wanted| wanted != found) {
            return Err(Refusal::MixedGroups {
                module: name.clone(),
                found,
                wanted,
            });
        }
    }
    for (untouched, _) in modules.iter().filter(|(_, coding)| coding.is_none()) {
        if let Some((module, _)) = quantized().find(|(name, _)| name.contains(untouched)) {
            return Err(Refusal::NamePart {
                untouched: untouched.clone(),
                module: module.clone(),
            });
        }
    }
    Ok(())
}

fn holds_codebook(scheme: &CodebookScheme, shape: [usize; 2]) -> Result<(), Refusal> {
    let found = scheme.block_size;
    if !found.is_power_of_two() || !(32..=4096).contains(&found) {
        return Err(Refusal::BlockSize { found });
    }
    let elements = shape[0] * shape[1];
    if !elements.is_multiple_of(2) {
        return Err(Refusal::Odd { found: elements });
    }
    Ok(())
}

fn codebooks_together(modules: &[(String, Option<Coding>)]) -> Result<(), Refusal> {
    let mut first: Option<(Codebook, bool)> = None;
    for (module, coding) in modules {
        let Some(Coding::Codebook(scheme)) = coding else {
            continue;
        };
        let found = (scheme.codebook, scheme.double_quant);
        if *first.get_or_insert(found) != found {
            return Err(Refusal::MixedCodebooks {
                module: module.clone(),
            });
        }
    }
    Ok(())
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| UnknownFormat(text.to_string()))
    }
}

/// Group sizes that divide the row, those that kernels like (multiples of 16), and -1.
fn offered_groups(in_features: usize) -> String {
    let mut offered: Vec<String> = (16..=1024.min(in_features))
        .step_by(16)
        .filter(|&group| in_features.is_multiple_of(group))
        .map(|group| group.to_string())
        .collect();
    offered.push("-1".to_string());
    listed(&offered, "or")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(format: Format, bits: u8, group: i64, sym: bool, shape: [usize; 2]) -> String {
        let scheme = Scheme::new(bits, GroupSize::from_i64(group).unwrap(), sym).unwrap();
        format
            .supports(&scheme.into(), shape)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn formats_are_spelled_as_the_field_spells_them() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!(
            "GPTQ".parse::<Format>().unwrap_err().to_string(),
            "format GPTQ is not known; use gptq, gptq_v2, awq, compressed-tensors, int-quantized or bitsandbytes"
        );
    }

    #[test]
    fn refusals_say_what_was_found_and_how_to_mend_it() {
        assert_eq!(
            refusal(Format::Gptq, 5, 64, true, [64, 64]),
            "gptq has no layout for 5 bits; use 2, 3, 4 or 8, or compressed-tensors"
        );
        assert_eq!(
            refusal(Format::Gptq, 4, 64, false, [64, 64]),
            "gptq cannot hold asymmetric weights that every reader understands; use gptq_v2 or compressed-tensors"
        );
        assert_eq!(
            refusal(Format::GptqV2, 4, 64, false, [64, 80]),
            "gptq_v2 packs in_features in blocks of 32 and 80 is not a multiple of it; list the module under `ignore`, or use compressed-tensors"
        );
        assert_eq!(
            refusal(Format::CompressedTensors, 4, 128, true, [64, 576]),
            "compressed-tensors needs whole groups and 128 does not divide 576 input features; use 16, 32, 48, 64, 96, 144, 192, 288, 576 or -1"
        );
        assert_eq!(
            refusal(Format::CompressedTensors, 4, 16, true, [64, 20]),
            "compressed-tensors needs whole groups and 16 does not divide 20 input features; use -1"
        );
        assert_eq!(
            refusal(Format::Awq, 3, 64, false, [64, 64]),
            "awq has no layout for 3 bits; use 4, or compressed-tensors"
        );
        assert_eq!(
            refusal(Format::Awq, 4, 64, false, [60, 64]),
            "awq packs out_features in words of 8 and 60 is not a multiple of it; list the module under `ignore`, or use compressed-tensors"
        );
        assert_eq!(
            refusal(Format::Awq, 4, 32, true, [64, 80]),
            "awq needs whole groups and 32 does not divide 80 input features; use 16, 80 or -1"
        );
    }

    #[test]
    fn awq_takes_one_group_size_and_no_head_and_no_name_inside_another() {
        let module = |name: &str, group: Option<(i64, bool)>| {
            let scheme =
                |(group, sym)| Scheme::new(4, GroupSize::from_i64(group).unwrap(), sym).unwrap();
            (name.to_string(), group.map(scheme).map(Coding::from))
        };
        let refusal = |modules: &[_]| {
            assert_eq!(Format::Gptq.supports_together(modules), Ok(()));
            let refusal = Format::Awq.supports_together(modules);
            refusal.unwrap_err().to_string()
        };
        let (a, b) = (Some((64, true)), Some((64, false)));
        let fitting = [
            module("a.q_proj", a),
            module("b.q_proj", b),
            module("lm_head", None),
        ];
        assert_eq!(Format::Awq.supports_together(&fitting), Ok(()));
        assert_eq!(
            refusal(&[module("a.q_proj", a), module("a.o_proj", Some((-1, true)))]),
            "awq has one group size for all modules: a.o_proj has -1, the modules before it 64; give all the same, or use compressed-tensors"
        );
        assert_eq!(
            refusal(&[module("a.q_proj", a), module("lm_head", a)]),
            "awq has no quantized lm_head; list it under `ignore`, or use gptq or compressed-tensors"
        );
        assert_eq!(
            refusal(&[module("a.gate_proj", a), module("a.gate", None)]),
            "awq lists untouched modules by parts of names, and the untouched a.gate is a part of the quantized a.gate_proj; quantize both or none, or use compressed-tensors"
        );
    }

    #[test]
    fn bitsandbytes_takes_codebooks_alone_and_one_of_them() {
        let coding = |codebook, block_size| {
            Coding::Codebook(CodebookScheme {
                codebook,
                block_size,
                double_quant: true,
            })
        };
        let nf4 = coding(Codebook::Nf4, 64);
        let bnb = |coding, shape| Format::Bitsandbytes.supports(&coding, shape);
        assert_eq!(bnb(nf4, [3, 6]), Ok(()));
        assert_eq!(
            bnb(coding(Codebook::Fp4, 48), [64, 64]),
            Err(Refusal::BlockSize { found: 48 })
        );
        assert_eq!(bnb(nf4, [3, 3]), Err(Refusal::Odd { found: 9 }));
        assert_eq!(
            refusal(Format::Bitsandbytes, 4, 64, true, [64, 64]),
            "bitsandbytes holds nf4 and fp4 only; use compressed-tensors"
        );
        assert_eq!(
            Format::Gptq
                .supports(&nf4, [64, 64])
                .unwrap_err()
                .to_string(),
            "gptq holds whole numbers on a grid and not nf4; use bitsandbytes"
        );
        let together = |second| {
            let modules = [("a".to_string(), Some(nf4)), ("b".to_string(), second)];
            Format::Bitsandbytes.supports_together(&modules)
        };
        assert_eq!(together(None), Ok(()));
        assert_eq!(together(Some(coding(Codebook::Nf4, 128))), Ok(()));
        assert_eq!(
            together(Some(coding(Codebook::Fp4, 64))),
            Err(Refusal::MixedCodebooks { module: "b".into() })
        );
    }

    #[test]
    fn gptq_takes_a_ragged_last_group_and_compressed_tensors_any_width() {
        let scheme = |group| Scheme::new(4, GroupSize::from_i64(group).unwrap(), true).unwrap();
        assert_eq!(
            Format::Gptq.supports(&scheme(128).into(), [64, 576]),
            Ok(())
        );
        assert_eq!(
            Format::CompressedTensors.supports(&scheme(-1).into(), [3, 20]),
            Ok(())
        );
    }
}
