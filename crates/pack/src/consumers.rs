//! Who loads what, as a table. It states what was found in the versions named and nothing about others.

use std::fmt;

use halfbyte_quant::{Coding, Scheme};

use crate::Format;
use Evidence::{Ran, Read};
use Verdict::{Loads, LoadsIf, NotChecked, Refuses};

/// A program that loads quantized checkpoints, in the version that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Name as its makers write it.
    pub name: &'static str,
    /// Version that was looked at; empty where the source names none.
    pub version: &'static str,
}

/// Whether a consumer loads a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Loads as it is.
    Loads,
    /// Loads on the condition named, or with the consequence named.
    LoadsIf(&'static str),
    /// Does not load, for the reason named.
    Refuses(&'static str),
    /// Nobody looked.
    NotChecked,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loads => f.write_str("loads it"),
            Self::LoadsIf(condition) => write!(f, "loads it ({condition})"),
            Self::Refuses(reason) => write!(f, "does not load it: {reason}"),
            Self::NotChecked => f.write_str("not checked"),
        }
    }
}

/// How a verdict is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A checkpoint was loaded and compared.
    Ran,
    /// The consumer's source was read.
    Read,
    /// Not at all ([`Verdict::NotChecked`]).
    None,
}

/// Who loads checkpoints of `format` stored by `coding`: one row a consumer, in a fixed order.
///
/// Rows speak of whole groups. A ragged last group, which only the gptq formats hold, is refused by vLLM and SGLang
/// and was not tried elsewhere.
pub fn consumers(format: Format, coding: &Coding) -> Vec<(Consumer, Verdict, Evidence)> {
    let Coding::Grid(scheme) = coding else {
        return codebook_consumers();
    };
    TABLE
        .iter()
        .map(|(consumer, rules)| {
            let (verdict, evidence) = rules
                .iter()
                .find(|rule| rule.covers(format, scheme))
                .map_or((Verdict::NotChecked, Evidence::None), |rule| {
                    (rule.verdict, rule.evidence)
                });
            (*consumer, verdict, evidence)
        })
        .collect()
}

/// Who loads codebook weights in bitsandbytes' 4-bit layout, in the same order.
fn codebook_consumers() -> Vec<(Consumer, Verdict, Evidence)> {
    let removed = Refuses("bitsandbytes was removed from it");
    let none = Refuses("no loader for bitsandbytes");
    let verdicts = [
        (LoadsIf("bitsandbytes is installed"), Ran),
        (removed, Read),
        (Loads, Read),
        (none, Read),
        (none, Read),
        (NotChecked, Evidence::None),
        (none, Read),
    ];
    let consumers = TABLE.iter().map(|(consumer, _)| *consumer);
    consumers
        .zip(verdicts)
        .map(|(consumer, (verdict, evidence))| (consumer, verdict, evidence))
        .collect()
}

/// A verdict on the checkpoints that fit all four conditions.
struct Rule {
    formats: &'static [Format],
    bits: &'static [u8],
    groups: &'static [i64],
    sym: Option<bool>,
    verdict: Verdict,
    evidence: Evidence,
}

impl Rule {
    fn covers(&self, format: Format, scheme: &Scheme) -> bool {
        let group = scheme.group_size().as_i64();
        self.formats.contains(&format)
            && (self.bits.is_empty() || self.bits.contains(&scheme.bits()))
            && (self.groups.is_empty() || self.groups.contains(&group))
            && self.sym.is_none_or(|sym| sym == scheme.sym())
    }
}

const fn rule(
    formats: &'static [Format],
    bits: &'static [u8],
    groups: &'static [i64],
    sym: Option<bool>,
    verdict: Verdict,
    evidence: Evidence,
) -> Rule {
    Rule {
        formats,
        bits,
        groups,
        sym,
        verdict,
        evidence,
    }
}

const fn consumer(name: &'static str, version: &'static str) -> Consumer {
    Consumer { name, version }
}

const V1: &[Format] = &[Format::Gptq];
const V2: &[Format] = &[Format::GptqV2];
const GPTQ: &[Format] = &[Format::Gptq, Format::GptqV2];
const CT: &[Format] = &[Format::CompressedTensors];
const AWQ: &[Format] = &[Format::Awq];
const INT: &[Format] = &[Format::IntQuantized];
const ANY: &[u8] = &[];
const EVERY: &[i64] = &[];
const MARLIN: &[i64] = &[-1, 32, 64, 128];
const SYM: Option<bool> = Some(true);
const ASYM: Option<bool> = Some(false);

const NEEDS_OPTIMUM: Verdict =
    LoadsIf("optimum >= 1.24 and gptqmodel >= 1.4.3 are installed; text models only");
const DEQUANTIZE: Verdict = LoadsIf("loaded with CompressedTensorsConfig(dequantize=True)");
const HUMMING: Verdict = LoadsIf("the optional Humming kernels are installed");
const WHOLE_GROUPS: Verdict =
    LoadsIf("group_size divides in_features on every tensor-parallel rank");
const MARLIN_GROUPS: Verdict = Refuses("group_size must be -1, 32, 64 or 128");
const GPTQ_SYM_4_8: Verdict =
    Refuses("gptq must be symmetric at 4 or 8 bits; use compressed-tensors");
const CONVERTED: Verdict =
    LoadsIf("its converter turns the weights back to floats; codes are lost");
const CONVERTED_ONE: Verdict =
    LoadsIf("one scheme for all; its converter turns the weights back to floats");

/// For each consumer its rules; the first that covers a checkpoint holds, and none means that nobody looked.
#[rustfmt::skip]
const TABLE: &[(Consumer, &[Rule])] = &[
    (consumer("transformers", "5.23"), &[
        rule(GPTQ, ANY, EVERY, None, NEEDS_OPTIMUM, Read),
        rule(CT, &[3, 4, 8], EVERY, SYM, Loads, Ran),
        rule(CT, &[4], EVERY, ASYM, DEQUANTIZE, Ran),
        rule(CT, ANY, EVERY, ASYM, DEQUANTIZE, Read),
        rule(AWQ, ANY, EVERY, None, LoadsIf("gptqmodel and accelerate are installed; bf16 becomes f16 on CUDA"), Read),
        rule(INT, &[8], EVERY, SYM, Loads, Ran),
    ]),
    (consumer("vLLM", "0.33"), &[
        rule(V1, &[4, 8], &[-1], SYM, Loads, Read),
        rule(V1, &[4, 8], MARLIN, SYM, WHOLE_GROUPS, Read),
        rule(V1, &[4, 8], EVERY, SYM, MARLIN_GROUPS, Read),
        rule(GPTQ, &[2, 3], EVERY, None, GPTQ_SYM_4_8, Read),
        rule(GPTQ, ANY, EVERY, ASYM, GPTQ_SYM_4_8, Read),
        rule(CT, &[4, 8], MARLIN, SYM, Loads, Read),
        rule(CT, &[4], MARLIN, ASYM, Loads, Read),
        rule(CT, &[8], MARLIN, ASYM, LoadsIf("the GPU is of compute capability 9.0, or the optional Humming kernels are installed"), Read),
        rule(CT, &[2, 3, 5, 6], EVERY, None, HUMMING, Read),
        rule(AWQ, ANY, &[-1], None, Loads, Read),
        rule(AWQ, ANY, MARLIN, None, WHOLE_GROUPS, Read),
        rule(AWQ, ANY, EVERY, None, LoadsIf("slowly: group_size is not -1, 32, 64 or 128"), Read),
    ]),
    (consumer("SGLang", "0.5.23"), &[
        rule(V1, &[4, 8], &[-1], SYM, Loads, Read),
        rule(V1, &[4, 8], MARLIN, SYM, WHOLE_GROUPS, Read),
        rule(V1, &[4, 8], EVERY, SYM, MARLIN_GROUPS, Read),
        rule(GPTQ, &[2, 3], EVERY, None, GPTQ_SYM_4_8, Read),
        rule(GPTQ, ANY, EVERY, ASYM, GPTQ_SYM_4_8, Read),
        rule(CT, &[4, 8], MARLIN, SYM, Loads, Read),
        rule(CT, &[4], MARLIN, ASYM, Loads, Read),
        rule(CT, &[2, 3, 5, 6], EVERY, None, Refuses("compressed-tensors only at 4 and 8 bits"), Read),
        rule(AWQ, ANY, &[-1], None, Loads, Read),
        rule(AWQ, ANY, MARLIN, None, WHOLE_GROUPS, Read),
    ]),
    (consumer("llama.cpp", ""), &[
        rule(GPTQ, &[3], EVERY, None, Refuses("its converter has no 3-bit gptq"), Read),
        rule(GPTQ, ANY, EVERY, None, CONVERTED, Read),
        rule(CT, ANY, &[-1], None, Refuses("its converter reads groups only, not group_size -1"), Read),
        rule(CT, &[3, 5, 6], EVERY, None, Refuses("its converter expects the older packing of this width and misreads the codes"), Read),
        rule(CT, ANY, EVERY, None, CONVERTED_ONE, Read),
        rule(AWQ, ANY, EVERY, None, Refuses("its converter does not know awq"), Read),
    ]),
    (consumer("ExLlamaV2", "b9c025b"), &[
        rule(GPTQ, &[4], EVERY, None, Loads, Read),
        rule(GPTQ, ANY, EVERY, None, Refuses("gptq only at 4 bits"), Read),
        rule(CT, ANY, EVERY, None, Refuses("no loader for compressed-tensors"), Read),
    ]),
    (consumer("GPTQModel", "7.7.0"), &[
        rule(V1, ANY, EVERY, SYM, Loads, Ran),
        rule(V2, &[4], EVERY, ASYM, Loads, Ran),
        rule(V2, ANY, EVERY, None, Loads, Read),
        rule(AWQ, ANY, EVERY, None, Loads, Ran),
    ]),
    (consumer("mlx-lm", "0.32.2"), &[
        rule(GPTQ, ANY, EVERY, None, Refuses("refuses every checkpoint that holds g_idx"), Read),
        rule(CT, &[4], &[32], None, NotChecked, Evidence::None),
        rule(CT, ANY, EVERY, None, Refuses("reads compressed-tensors at 4 bits and group_size 32 only"), Read),
        rule(AWQ, ANY, &[32, 64, 128], None, Loads, Read),
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_quant::GroupSize;

    fn verdicts(format: Format, bits: u8, group: i64, sym: bool) -> Vec<(&'static str, Verdict)> {
        let scheme = Scheme::new(bits, GroupSize::from_i64(group).unwrap(), sym).unwrap();
        let rows = consumers(format, &scheme.into()).into_iter();
        rows.map(|(consumer, verdict, _)| (consumer.name, verdict))
            .collect()
    }

    #[test]
    fn symmetric_four_bits_in_gptq_load_everywhere_but_in_mlx() {
        assert_eq!(
            verdicts(Format::Gptq, 4, -1, true),
            [
                ("transformers", NEEDS_OPTIMUM),
                ("vLLM", Loads),
                ("SGLang", Loads),
                ("llama.cpp", CONVERTED),
                ("ExLlamaV2", Loads),
                ("GPTQModel", Loads),
                (
                    "mlx-lm",
                    Refuses("refuses every checkpoint that holds g_idx")
                ),
            ]
        );
    }

    #[test]
    fn vllm_reads_gptq_at_four_and_eight_symmetric_bits_in_known_groups_only() {
        let vllm = |format, bits, group, sym| verdicts(format, bits, group, sym)[1].1;
        assert_eq!(vllm(Format::Gptq, 4, 64, true), WHOLE_GROUPS);
        assert_eq!(vllm(Format::Gptq, 8, 48, true), MARLIN_GROUPS);
        assert_eq!(vllm(Format::Gptq, 3, 64, true), GPTQ_SYM_4_8);
        assert_eq!(vllm(Format::GptqV2, 4, 64, false), GPTQ_SYM_4_8);
        assert_eq!(vllm(Format::CompressedTensors, 4, 64, false), Loads);
        assert_eq!(vllm(Format::CompressedTensors, 3, 64, true), HUMMING);
        assert_eq!(vllm(Format::CompressedTensors, 4, 48, true), NotChecked);
    }

    #[test]
    fn awq_loads_in_vllm_whether_symmetric_or_not() {
        for sym in [true, false] {
            let verdicts = |group| verdicts(Format::Awq, 4, group, sym);
            assert_eq!(verdicts(-1)[1], ("vLLM", Loads));
            assert_eq!(verdicts(128)[1], ("vLLM", WHOLE_GROUPS));
            assert_eq!(verdicts(128)[4], ("ExLlamaV2", NotChecked));
            assert_eq!(verdicts(128)[6], ("mlx-lm", Loads));
            assert!(verdicts(48)[1].1.to_string().contains("slowly"));
        }
    }

    #[test]
    fn codebook_weights_have_a_verdict_of_every_consumer() {
        let rows = codebook_consumers();
        assert_eq!(rows.len(), TABLE.len());
        let of = |name| rows.iter().find(|row| row.0.name == name).map(|row| row.1);
        assert_eq!(
            of("vLLM"),
            Some(Refuses("bitsandbytes was removed from it"))
        );
        assert_eq!(of("GPTQModel"), Some(NotChecked));
    }

    #[test]
    fn a_verdict_has_evidence_unless_nobody_looked() {
        for format in Format::ALL {
            for bits in [2, 3, 4, 5, 6, 8] {
                for (group, sym) in [(-1, true), (32, false), (64, true), (48, false)] {
                    let scheme =
                        Scheme::new(bits, GroupSize::from_i64(group).unwrap(), sym).unwrap();
                    for (consumer, verdict, evidence) in consumers(format, &scheme.into()) {
                        assert_eq!(
                            verdict == NotChecked,
                            evidence == Evidence::None,
                            "{} on {format} {bits} {group} {sym}",
                            consumer.name
                        );
                    }
                }
            }
        }
    }
}
