//! Who loads what, as a table. It states what was found in the versions named and nothing about others.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use halfbyte_quant::{Coding, Scheme};

use crate::Format;
use crate::config::{FUSED, is_head};
use Evidence::{Ran, Read};
use Verdict::{Loads, NotChecked};

/// A program that loads quantized checkpoints, in the version that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Name as its makers write it.
    pub name: &'static str,
    /// Version that was looked at, and the device where that matters.
    pub version: &'static str,
}

impl fmt::Display for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// Whether a consumer loads a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Loads as it is.
    Loads,
    /// Loads on the condition named, or with the consequence named.
    LoadsIf(Cow<'static, str>),
    /// Does not load, for the reason named.
    Refuses(Cow<'static, str>),
    /// Nobody looked.
    NotChecked,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loads => f.write_str("loads it"),
            Self::LoadsIf(condition) => write!(f, "loads it {condition}"),
            Self::Refuses(reason) => write!(f, "does not load it: {reason}"),
            Self::NotChecked => f.write_str("not checked"),
        }
    }
}

/// How a verdict is known, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// Not at all ([`Verdict::NotChecked`]).
    None,
    /// The consumer's source was read.
    Read,
    /// A checkpoint of this format, width and symmetry was given to the program: what it loaded was compared with what
    /// was written, or it refused. Groups were of 32 or 64 columns or a whole row; others take the same way through it.
    Ran,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "nobody looked",
            Self::Read => "by its source code, not run",
            Self::Ran => "ran",
        })
    }
}

/// What is known of one consumer and one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The program.
    pub consumer: Consumer,
    /// Whether it loads the checkpoint, all of it.
    pub verdict: Verdict,
    /// How that is known.
    pub evidence: Evidence,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.consumer, self.verdict)?;
        match self.evidence {
            Evidence::None => Ok(()),
            evidence => write!(f, " ({evidence})"),
        }
    }
}

/// Linears that vLLM and SGLang run as one and that are not stored alike, so that neither loads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitLinears {
    /// The module they belong to, such as `model.layers.0.self_attn`.
    pub parent: String,
    /// The last parts of their names, each with how it is stored; `None` where it stays as it was.
    pub linears: Vec<(String, Option<Coding>)>,
}

/// Linears that vLLM and SGLang run as one (q, k, v, or gate, up) and that a checkpoint of `format` does not store alike.
///
/// `modules` are given as to [`crate::quantization_config`].
pub fn split_linears(format: Format, modules: &[(String, Option<Coding>)]) -> Vec<SplitLinears> {
    let known: HashMap<&str, Option<Coding>> = modules
        .iter()
        .map(|(name, coding)| (name.as_str(), *coding))
        .collect();
    // awq stores symmetric weights as asymmetric ones, and one group size is all it knows
    let alike = |a: &Option<Coding>, b: &Option<Coding>| match format {
        Format::Awq => a.is_some() == b.is_some(),
        _ => a == b,
    };
    let split = |(name, _): &(String, Option<Coding>)| {
        let (parent, leaf) = name.rsplit_once('.')?;
        let (shards, _) = FUSED.iter().find(|(shards, _)| shards[0] == leaf)?;
        let linears: Vec<(String, Option<Coding>)> = shards
            .iter()
            .filter_map(|shard| {
                let coding = known.get(format!("{parent}.{shard}").as_str())?;
                Some(((*shard).to_owned(), *coding))
            })
            .collect();
        let differ = linears
            .iter()
            .any(|(_, coding)| !alike(coding, &linears[0].1));
        differ.then(|| SplitLinears {
            parent: parent.to_owned(),
            linears,
        })
    };
    modules.iter().filter_map(split).collect()
}

/// Who loads a checkpoint of `format`: a line a consumer, in a fixed order, each of the file as a whole.
///
/// `modules` are given as to [`crate::quantization_config`]; `or_else` are codings that some of them may get instead (the
/// widths that a budget chooses from), and count as if each were used.
///
/// The table speaks of whole groups and of weights whose extents are multiples of 32. A ragged last group, which only the
/// gptq formats hold, is refused by vLLM and SGLang and was not tried elsewhere.
pub fn consumers(
    format: Format,
    modules: &[(String, Option<Coding>)],
    or_else: &[Coding],
) -> Vec<Finding> {
    let split = split_linears(format, modules);
    findings(&Stored::new(format, modules, or_else, split))
}

/// The consumers that do not load a checkpoint of `format` for nothing but its [`split_linears`].
pub fn split_refuses(format: Format, modules: &[(String, Option<Coding>)]) -> Vec<Consumer> {
    let split = split_linears(format, modules);
    if split.is_empty() {
        return Vec::new();
    }
    let refuses = |finding: &Finding| matches!(finding.verdict, Verdict::Refuses(_));
    let mended = findings(&Stored::new(format, modules, &[], Vec::new()));
    let as_is = findings(&Stored::new(format, modules, &[], split));
    let pairs = mended.iter().zip(&as_is);
    pairs
        .filter(|(mended, as_is)| refuses(as_is) && !refuses(mended))
        .map(|(_, as_is)| as_is.consumer)
        .collect()
}

fn findings(stored: &Stored) -> Vec<Finding> {
    TABLE.iter().map(|row| row.judge(stored)).collect()
}

/// What a checkpoint holds, as far as consumers ask.
struct Stored {
    format: Format,
    /// The distinct ways its linears are stored, in order of first use.
    codings: Vec<Coding>,
    /// Whether linears beside the output projection stay as they were.
    keeps_some: bool,
    split: Vec<SplitLinears>,
}

impl Stored {
    fn new(
        format: Format,
        modules: &[(String, Option<Coding>)],
        or_else: &[Coding],
        split: Vec<SplitLinears>,
    ) -> Self {
        let mut codings: Vec<Coding> = Vec::new();
        let used = modules.iter().filter_map(|(_, coding)| coding.as_ref());
        for coding in used.chain(or_else) {
            if !codings.contains(coding) {
                codings.push(*coding);
            }
        }
        let keeps_some = (modules.iter()).any(|(name, coding)| coding.is_none() && !is_head(name));
        Self {
            format,
            codings,
            keeps_some,
            split,
        }
    }

    fn is_mixed(&self) -> bool {
        self.codings.len() > 1 || self.keeps_some
    }

    /// ` (5 and 6 bits)`: which of the ways it holds are meant; nothing where it is all of them.
    fn which(&self, meant: &[Coding]) -> String {
        if meant.is_empty() || meant.len() == self.codings.len() {
            return String::new();
        }
        let grids = || self.codings.iter().map(Coding::grid);
        let like = |scheme: Option<Scheme>| scheme.map(|s| (s.group_size(), s.sym()));
        let only_bits_differ = grids().all(|scheme| like(scheme) == like(self.codings[0].grid()));
        if only_bits_differ {
            let mut bits: Vec<u8> = meant
                .iter()
                .filter_map(|c| Some(c.grid()?.bits()))
                .collect();
            bits.sort_unstable();
            let bits: Vec<String> = bits.iter().map(u8::to_string).collect();
            format!(" ({} bits)", listed(&bits, "and"))
        } else {
            let words: Vec<String> = meant.iter().map(Coding::to_string).collect();
            format!(" ({})", words.join("; "))
        }
    }
}

/// Words in a row, as a sentence has them: `a, b and c`, with `and` or another word before the last.
pub fn listed(words: &[String], conjunction: &str) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("{} {conjunction} {last}", rest.join(", "))
        }
        _ => words.concat(),
    }
}

/// A consumer with all that is known of it.
struct Row {
    consumer: Consumer,
    /// Verdicts on grids, one scheme at a time; the first that covers a scheme holds, and none means that nobody looked.
    rules: &'static [Rule],
    /// The verdict on codebooks, which are bitsandbytes' 4 bits.
    codebooks: (Verdict, Evidence),
    /// What all schemes of a file must be together.
    demands: &'static [Demand],
    /// Formats of which files with several schemes were run; of others those were not.
    ran_mixed: &'static [Format],
}

/// A verdict on the schemes that fit all four conditions.
struct Rule {
    formats: &'static [Format],
    bits: &'static [u8],
    groups: &'static [i64],
    sym: Option<bool>,
    verdict: Verdict,
    evidence: Evidence,
}

/// What is demanded of a file as a whole, and what is said where it is not met.
struct Demand {
    formats: &'static [Format],
    of: Together,
    reason: &'static str,
    evidence: Evidence,
}

#[derive(Clone, Copy)]
enum Together {
    /// No [`split_linears`].
    Fused,
    /// All linears of one scheme, and none left as it was.
    OneSchemeForAll,
    /// One scheme for those that are quantized.
    OneScheme,
    /// One width for those that are quantized.
    OneWidth,
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

impl Demand {
    /// What is wrong with a file, if anything.
    fn unmet(&self, stored: &Stored) -> Option<String> {
        let widths = || stored.codings.iter().map(|c| c.grid().map(|s| s.bits()));
        let is_met = match self.of {
            Together::Fused => stored.split.is_empty(),
            Together::OneSchemeForAll => !stored.is_mixed(),
            Together::OneScheme => stored.codings.len() <= 1,
            Together::OneWidth => widths().all(|bits| Some(bits) == widths().next()),
        };
        if is_met || !self.formats.contains(&stored.format) {
            return None;
        }
        let place = match (self.of, stored.split.first()) {
            (Together::Fused, Some(split)) => format!(" ({})", split.parent),
            _ => String::new(),
        };
        Some(format!("{}{place}", self.reason))
    }
}

impl Row {
    fn ruling(&self, format: Format, coding: &Coding) -> (&Verdict, Evidence) {
        match coding {
            Coding::Codebook(_) => (&self.codebooks.0, self.codebooks.1),
            Coding::Grid(scheme) => {
                let rule = self.rules.iter().find(|rule| rule.covers(format, scheme));
                rule.map_or((&NotChecked, Evidence::None), |rule| {
                    (&rule.verdict, rule.evidence)
                })
            }
        }
    }

    /// The verdict on a file: one refusal refuses it, one unknown leaves it unknown, and conditions add up.
    fn judge(&self, stored: &Stored) -> Finding {
        let rulings: Vec<(Coding, &Verdict, Evidence)> = stored
            .codings
            .iter()
            .map(|coding| {
                let (verdict, evidence) = self.ruling(stored.format, coding);
                (*coding, verdict, evidence)
            })
            .collect();
        // what is said of which codings, each thing once
        let said = |of: fn(&Verdict) -> Option<&str>| -> Vec<(&str, Vec<Coding>)> {
            let mut said: Vec<(&str, Vec<Coding>)> = Vec::new();
            for (coding, verdict, _) in &rulings {
                let Some(text) = of(verdict) else { continue };
                match said.iter_mut().find(|(known, _)| *known == text) {
                    Some((_, codings)) => codings.push(*coding),
                    None => said.push((text, vec![*coding])),
                }
            }
            said
        };
        let in_words = |said: Vec<(&str, Vec<Coding>)>| -> Vec<String> {
            let words =
                |(text, codings): (&str, Vec<Coding>)| format!("{text}{}", stored.which(&codings));
            said.into_iter().map(words).collect()
        };
        let mut reasons = in_words(said(|verdict| match verdict {
            Verdict::Refuses(reason) => Some(reason),
            _ => None,
        }));
        let mut refused_by: Vec<Evidence> = rulings
            .iter()
            .filter(|(_, verdict, _)| matches!(verdict, Verdict::Refuses(_)))
            .map(|(.., evidence)| *evidence)
            .collect();
        for demand in self.demands {
            if let Some(reason) = demand.unmet(stored) {
                reasons.push(reason);
                refused_by.push(demand.evidence);
            }
        }
        let weakest = |found: &[Evidence]| found.iter().min().copied().unwrap_or(Evidence::None);
        let (verdict, evidence) = if !reasons.is_empty() {
            (
                Verdict::Refuses(reasons.join("; ").into()),
                weakest(&refused_by),
            )
        } else if rulings
            .iter()
            .any(|(_, verdict, _)| **verdict == NotChecked)
        {
            (NotChecked, Evidence::None)
        } else {
            let conditions = in_words(said(|verdict| match verdict {
                Verdict::LoadsIf(condition) => Some(condition),
                _ => None,
            }));
            let verdict = match conditions.is_empty() {
                true => Loads,
                false => Verdict::LoadsIf(conditions.join("; ").into()),
            };
            let found: Vec<Evidence> = rulings.iter().map(|(.., evidence)| *evidence).collect();
            let evidence = match stored.is_mixed() && !self.ran_mixed.contains(&stored.format) {
                true => weakest(&found).min(Read),
                false => weakest(&found),
            };
            (verdict, evidence)
        };
        Finding {
            consumer: self.consumer,
            verdict,
            evidence,
        }
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

const fn demand(
    formats: &'static [Format],
    of: Together,
    reason: &'static str,
    evidence: Evidence,
) -> Demand {
    Demand {
        formats,
        of,
        reason,
        evidence,
    }
}

const fn consumer(name: &'static str, version: &'static str) -> Consumer {
    Consumer { name, version }
}

const fn loads_if(condition: &'static str) -> Verdict {
    Verdict::LoadsIf(Cow::Borrowed(condition))
}

const fn refuses(reason: &'static str) -> Verdict {
    Verdict::Refuses(Cow::Borrowed(reason))
}

const V1: &[Format] = &[Format::Gptq];
const V2: &[Format] = &[Format::GptqV2];
const GPTQ: &[Format] = &[Format::Gptq, Format::GptqV2];
const CT: &[Format] = &[Format::CompressedTensors];
const AWQ: &[Format] = &[Format::Awq];
const INT: &[Format] = &[Format::IntQuantized];
const BOTH_CT: &[Format] = &[Format::CompressedTensors, Format::IntQuantized];
/// Formats whose linears vLLM and SGLang run fused.
const FUSABLE: &[Format] = &[
    Format::Gptq,
    Format::GptqV2,
    Format::CompressedTensors,
    Format::Awq,
    Format::IntQuantized,
];
const NONE: &[Format] = &[];
const ANY: &[u8] = &[];
const EVERY: &[i64] = &[];
const MARLIN: &[i64] = &[-1, 32, 64, 128];
const SYM: Option<bool> = Some(true);
const ASYM: Option<bool> = Some(false);

const NEEDS_OPTIMUM: Verdict = loads_if("if optimum >= 1.24 and gptqmodel >= 1.4.3 are installed");
const NEEDS_GPTQMODEL: Verdict =
    loads_if("if gptqmodel and accelerate are installed; on CUDA bf16 becomes f16");
const NEEDS_CT: Verdict = loads_if("if compressed-tensors >= 0.15 is installed");
const DEQUANTIZES: Verdict = loads_if(
    "if compressed-tensors >= 0.15 is installed and the config says `dequantize: true`, as ours does: dense in memory",
);
const HUMMING: Verdict = loads_if("if the optional Humming kernels are installed");
const HOPPER_OR_HUMMING: Verdict = loads_if(
    "if the GPU is of compute capability 9.0 or the optional Humming kernels are installed",
);
const WHOLE_GROUPS: Verdict =
    loads_if("if group_size divides in_features on every tensor-parallel rank");
const SLOWLY: Verdict = loads_if("slowly: group_size is not -1, 32, 64 or 128");
const MARLIN_GROUPS: Verdict = refuses("group_size must be -1, 32, 64 or 128");
const GPTQ_SYM_4_8: Verdict =
    refuses("gptq must be symmetric at 4 or 8 bits; use compressed-tensors");
const INT8_ALONE: Verdict =
    refuses("int-quantized without quantized activations; use compressed-tensors at 8 bits");
const FOUR_ON_CPU: Verdict = refuses("its kernel for CPUs has 4 bits only");
const CONVERTED: Verdict = loads_if("as floats: its converter turns the codes back into weights");
const OLDER_PACKING: Verdict = refuses("its converter expects the older packing of this width");
const NO_BITSANDBYTES: (Verdict, Evidence) = (refuses("no loader for bitsandbytes"), Read);
const ONE_LINEAR: &str =
    "it runs q, k, v of a block as one linear, and so gate, up, which must be stored alike";

/// Every consumer, in the order in which users are told of them.
#[rustfmt::skip]
static TABLE: [Row; 8] = [
    Row {
        consumer: consumer("transformers", "5.24"),
        rules: &[
            rule(V1, &[3, 4], EVERY, SYM, NEEDS_OPTIMUM, Ran),
            rule(V2, &[4], EVERY, ASYM, NEEDS_OPTIMUM, Ran),
            rule(GPTQ, ANY, EVERY, None, NEEDS_OPTIMUM, Read),
            rule(CT, &[3, 4, 8], EVERY, SYM, NEEDS_CT, Ran),
            rule(CT, ANY, EVERY, SYM, NEEDS_CT, Read),
            rule(CT, &[4], EVERY, ASYM, DEQUANTIZES, Ran),
            rule(CT, ANY, EVERY, ASYM, DEQUANTIZES, Read),
            rule(AWQ, ANY, EVERY, None, NEEDS_GPTQMODEL, Ran),
            rule(INT, &[8], EVERY, SYM, NEEDS_CT, Ran),
        ],
        codebooks: (loads_if("if bitsandbytes is installed"), Ran),
        demands: &[demand(GPTQ, Together::OneSchemeForAll, "in gptq it knows one scheme for all linears of the blocks, and no exceptions", Read)],
        ran_mixed: CT,
    },
    Row {
        consumer: consumer("vLLM", "0.33 on a GPU"),
        rules: &[
            rule(GPTQ, &[4, 8], &[-1], SYM, Loads, Read),
            rule(GPTQ, &[4, 8], MARLIN, SYM, WHOLE_GROUPS, Read),
            rule(GPTQ, &[4, 8], EVERY, SYM, MARLIN_GROUPS, Read),
            rule(GPTQ, ANY, EVERY, None, GPTQ_SYM_4_8, Read),
            rule(CT, &[4, 8], MARLIN, SYM, Loads, Read),
            rule(CT, &[4], MARLIN, ASYM, Loads, Read),
            rule(CT, &[8], MARLIN, ASYM, HOPPER_OR_HUMMING, Read),
            rule(CT, &[2, 3, 5, 6], EVERY, None, HUMMING, Read),
            rule(AWQ, ANY, &[-1], None, Loads, Read),
            rule(AWQ, ANY, MARLIN, None, WHOLE_GROUPS, Read),
            rule(AWQ, ANY, EVERY, None, SLOWLY, Read),
            rule(INT, ANY, EVERY, None, INT8_ALONE, Read),
        ],
        codebooks: (refuses("bitsandbytes was removed from it"), Read),
        demands: &[demand(FUSABLE, Together::Fused, ONE_LINEAR, Read)],
        ran_mixed: NONE,
    },
    Row {
        consumer: consumer("vLLM", "0.32.0 on a CPU"),
        rules: &[
            rule(GPTQ, &[4], &[-1, 32, 64], SYM, Loads, Ran),
            rule(GPTQ, &[4], MARLIN, SYM, Loads, Read),
            rule(GPTQ, &[4], EVERY, SYM, MARLIN_GROUPS, Read),
            rule(GPTQ, &[8], EVERY, SYM, FOUR_ON_CPU, Ran),
            rule(V1, &[3], EVERY, SYM, GPTQ_SYM_4_8, Ran),
            rule(V2, &[4], EVERY, ASYM, GPTQ_SYM_4_8, Ran),
            rule(GPTQ, ANY, EVERY, None, GPTQ_SYM_4_8, Read),
            rule(CT, &[4], &[-1, 32, 64], None, Loads, Ran),
            rule(CT, &[4], EVERY, None, Loads, Read),
            rule(CT, &[3, 8], EVERY, SYM, FOUR_ON_CPU, Ran),
            rule(CT, &[2], EVERY, ASYM, FOUR_ON_CPU, Ran),
            rule(CT, ANY, EVERY, None, FOUR_ON_CPU, Read),
            rule(AWQ, ANY, &[64], None, Loads, Ran),
            rule(AWQ, ANY, EVERY, None, Loads, Read),
            rule(INT, ANY, EVERY, None, INT8_ALONE, Ran),
        ],
        codebooks: (refuses("it has no bitsandbytes"), Ran),
        demands: &[
            demand(&[Format::Gptq, Format::CompressedTensors], Together::Fused, ONE_LINEAR, Ran),
            demand(&[Format::GptqV2, Format::Awq], Together::Fused, ONE_LINEAR, Read),
        ],
        ran_mixed: &[Format::Gptq, Format::CompressedTensors],
    },
    Row {
        consumer: consumer("SGLang", "0.5.23"),
        rules: &[
            rule(GPTQ, &[4, 8], &[-1], SYM, Loads, Read),
            rule(GPTQ, &[4, 8], MARLIN, SYM, WHOLE_GROUPS, Read),
            rule(GPTQ, &[4, 8], EVERY, SYM, MARLIN_GROUPS, Read),
            rule(GPTQ, ANY, EVERY, None, GPTQ_SYM_4_8, Read),
            rule(CT, &[4, 8], MARLIN, SYM, Loads, Read),
            rule(CT, &[4], MARLIN, ASYM, Loads, Read),
            rule(CT, &[2, 3, 5, 6], EVERY, None, refuses("compressed-tensors only at 4 and 8 bits"), Read),
            rule(AWQ, ANY, &[-1], None, Loads, Read),
            rule(AWQ, ANY, MARLIN, None, WHOLE_GROUPS, Read),
            rule(INT, ANY, EVERY, None, INT8_ALONE, Read),
        ],
        codebooks: (Loads, Read),
        demands: &[demand(FUSABLE, Together::Fused, ONE_LINEAR, Read)],
        ran_mixed: NONE,
    },
    Row {
        consumer: consumer("llama.cpp", "(convert-hf-to-gguf 0.1.1)"),
        rules: &[
            rule(GPTQ, &[3], EVERY, None, refuses("its converter has no 3-bit gptq"), Ran),
            rule(V1, &[4], EVERY, SYM, CONVERTED, Ran),
            rule(V2, &[4], EVERY, ASYM, CONVERTED, Ran),
            rule(GPTQ, ANY, EVERY, None, CONVERTED, Read),
            rule(CT, ANY, &[-1], None, refuses("its converter reads groups only, not group_size -1"), Ran),
            rule(CT, &[3], EVERY, SYM, OLDER_PACKING, Ran),
            rule(CT, &[3, 5, 6], EVERY, None, OLDER_PACKING, Read),
            rule(CT, &[4], EVERY, None, CONVERTED, Ran),
            rule(CT, &[2], EVERY, ASYM, CONVERTED, Ran),
            rule(CT, &[8], EVERY, SYM, CONVERTED, Ran),
            rule(CT, ANY, EVERY, None, CONVERTED, Read),
            rule(INT, ANY, EVERY, None, CONVERTED, Read),
            rule(AWQ, ANY, EVERY, None, refuses("its converter does not know awq"), Ran),
        ],
        codebooks: NO_BITSANDBYTES,
        demands: &[
            demand(CT, Together::OneScheme, "its converter takes one scheme of compressed-tensors", Ran),
            demand(INT, Together::OneScheme, "its converter takes one scheme of compressed-tensors", Read),
            demand(GPTQ, Together::OneWidth, "its converter takes one width of gptq", Ran),
        ],
        ran_mixed: V1,
    },
    Row {
        consumer: consumer("ExLlamaV2", "b9c025b"),
        rules: &[
            rule(GPTQ, &[4], EVERY, None, Loads, Read),
            rule(GPTQ, ANY, EVERY, None, refuses("gptq only at 4 bits"), Read),
            rule(BOTH_CT, ANY, EVERY, None, refuses("no loader for compressed-tensors"), Read),
        ],
        codebooks: NO_BITSANDBYTES,
        demands: &[],
        ran_mixed: NONE,
    },
    Row {
        consumer: consumer("GPTQModel", "7.7.0"),
        rules: &[
            rule(V1, ANY, EVERY, SYM, Loads, Ran),
            rule(V2, &[4], EVERY, ASYM, Loads, Ran),
            rule(V2, ANY, EVERY, None, Loads, Read),
            rule(AWQ, ANY, EVERY, None, Loads, Ran),
        ],
        codebooks: (NotChecked, Evidence::None),
        demands: &[],
        ran_mixed: V1,
    },
    Row {
        consumer: consumer("mlx-lm", "0.32.2"),
        rules: &[
            rule(GPTQ, &[4], EVERY, None, refuses("it refuses every checkpoint that holds g_idx"), Ran),
            rule(GPTQ, ANY, EVERY, None, refuses("it refuses every checkpoint that holds g_idx"), Read),
            rule(CT, &[4, 8], &[64], SYM, refuses("it has no place for packed weights of compressed-tensors"), Ran),
            rule(CT, ANY, EVERY, None, refuses("it has no place for packed weights of compressed-tensors"), Read),
            rule(INT, ANY, EVERY, None, refuses("it does not know int-quantized"), Ran),
            rule(AWQ, ANY, &[64], None, Loads, Ran),
            rule(AWQ, ANY, &[32, 64, 128], None, Loads, Read),
        ],
        codebooks: NO_BITSANDBYTES,
        demands: &[],
        ran_mixed: NONE,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_quant::{Codebook, CodebookScheme, GroupSize};

    type Modules = Vec<(String, Option<Coding>)>;

    fn coding(bits: u8, group: i64, sym: bool) -> Coding {
        let group = GroupSize::from_i64(group).unwrap();
        Scheme::new(bits, group, sym).unwrap().into()
    }

    /// Two blocks of seven linears, stored as `of` says.
    fn modules(of: impl Fn(&str) -> Option<Coding>) -> Modules {
        let linears = [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        let names =
            (0..2).flat_map(|block| linears.map(|linear| format!("model.layers.{block}.{linear}")));
        let mut modules: Modules = names.map(|name| (name.clone(), of(&name))).collect();
        modules.push(("lm_head".to_owned(), None));
        modules
    }

    fn told(format: Format, modules: &Modules, consumer: &str) -> String {
        let found = consumers(format, modules, &[]);
        let of_it: Vec<String> = found
            .iter()
            .filter(|finding| finding.consumer.to_string().starts_with(consumer))
            .map(|finding| {
                let line = finding.to_string();
                line.split_once(": ").unwrap().1.to_owned()
            })
            .collect();
        assert_eq!(of_it.len(), 1, "{consumer}");
        of_it.concat()
    }

    const GPU: &str = "vLLM 0.33 on a GPU";
    const CPU: &str = "vLLM 0.32.0 on a CPU";

    /// What was seen or read of files of one scheme, line by line.
    #[test]
    fn files_of_one_scheme_are_told_of_as_they_were_found() {
        use Format::{Awq, CompressedTensors as Ct, Gptq, GptqV2, IntQuantized as Int};
        let optimum = "loads it if optimum >= 1.24 and gptqmodel >= 1.4.3 are installed";
        let ct = "loads it if compressed-tensors >= 0.15 is installed";
        let whole = "loads it if group_size divides in_features on every tensor-parallel rank";
        let sym_4_8 =
            "does not load it: gptq must be symmetric at 4 or 8 bits; use compressed-tensors";
        let alone = "does not load it: int-quantized without quantized activations; use compressed-tensors at 8 bits";
        let four = "does not load it: its kernel for CPUs has 4 bits only";
        let floats = "loads it as floats: its converter turns the codes back into weights";
        let older = "does not load it: its converter expects the older packing of this width";
        let packed = "does not load it: it has no place for packed weights of compressed-tensors";
        let (ran, read) = (" (ran)", " (by its source code, not run)");
        let loads = "loads it";
        let rows: &[(&str, Format, u8, i64, bool, &str, &str)] = &[
            ("transformers", Gptq, 4, 64, true, optimum, ran),
            ("transformers", Gptq, 3, 64, true, optimum, ran),
            ("transformers", Gptq, 8, 64, true, optimum, read),
            ("transformers", GptqV2, 4, 64, false, optimum, ran),
            ("transformers", Ct, 3, 64, true, ct, ran),
            ("transformers", Ct, 5, 64, true, ct, read),
            (
                "transformers",
                Ct,
                4,
                64,
                false,
                "loads it if compressed-tensors >= 0.15 is installed and the config says `dequantize: true`, as ours does: dense in memory",
                ran,
            ),
            (
                "transformers",
                Awq,
                4,
                64,
                false,
                "loads it if gptqmodel and accelerate are installed; on CUDA bf16 becomes f16",
                ran,
            ),
            ("transformers", Int, 8, 64, true, ct, ran),
            (GPU, Gptq, 4, -1, true, loads, read),
            (GPU, Gptq, 4, 64, true, whole, read),
            (GPU, GptqV2, 4, 64, true, whole, read),
            (GPU, GptqV2, 4, 64, false, sym_4_8, read),
            (GPU, Gptq, 3, 64, true, sym_4_8, read),
            (
                GPU,
                Gptq,
                8,
                48,
                true,
                "does not load it: group_size must be -1, 32, 64 or 128",
                read,
            ),
            (GPU, Ct, 4, 64, false, loads, read),
            (GPU, Ct, 8, 64, true, loads, read),
            (
                GPU,
                Ct,
                3,
                64,
                true,
                "loads it if the optional Humming kernels are installed",
                read,
            ),
            (GPU, Ct, 4, 48, true, "not checked", ""),
            (GPU, Awq, 4, 128, true, whole, read),
            (
                GPU,
                Awq,
                4,
                48,
                true,
                "loads it slowly: group_size is not -1, 32, 64 or 128",
                read,
            ),
            (GPU, Int, 8, 64, true, alone, read),
            (CPU, Ct, 4, 64, true, loads, ran),
            (CPU, Ct, 4, 64, false, loads, ran),
            (CPU, Ct, 4, -1, true, loads, ran),
            (CPU, Ct, 4, 128, true, loads, read),
            (CPU, Ct, 8, 64, true, four, ran),
            (CPU, Ct, 3, 64, true, four, ran),
            (CPU, Ct, 2, 64, false, four, ran),
            (CPU, Ct, 5, 64, true, four, read),
            (CPU, Gptq, 4, 64, true, loads, ran),
            (CPU, Gptq, 4, -1, true, loads, ran),
            (CPU, Gptq, 8, 64, true, four, ran),
            (CPU, Gptq, 3, 64, true, sym_4_8, ran),
            (CPU, GptqV2, 4, 64, true, loads, ran),
            (CPU, GptqV2, 4, 64, false, sym_4_8, ran),
            (CPU, Awq, 4, 64, true, loads, ran),
            (CPU, Int, 8, -1, true, alone, ran),
            (
                "SGLang",
                Ct,
                5,
                64,
                true,
                "does not load it: compressed-tensors only at 4 and 8 bits",
                read,
            ),
            ("SGLang", Int, 8, 64, true, alone, read),
            ("llama.cpp", Ct, 4, 64, true, floats, ran),
            ("llama.cpp", Ct, 2, 32, false, floats, ran),
            ("llama.cpp", Ct, 8, 64, true, floats, ran),
            ("llama.cpp", Ct, 3, 64, true, older, ran),
            ("llama.cpp", Ct, 6, 64, true, older, read),
            (
                "llama.cpp",
                Ct,
                4,
                -1,
                true,
                "does not load it: its converter reads groups only, not group_size -1",
                ran,
            ),
            ("llama.cpp", Gptq, 4, 64, true, floats, ran),
            (
                "llama.cpp",
                Gptq,
                3,
                64,
                true,
                "does not load it: its converter has no 3-bit gptq",
                ran,
            ),
            ("llama.cpp", GptqV2, 4, 64, false, floats, ran),
            (
                "llama.cpp",
                Awq,
                4,
                64,
                true,
                "does not load it: its converter does not know awq",
                ran,
            ),
            ("ExLlamaV2", Gptq, 4, 64, true, loads, read),
            (
                "ExLlamaV2",
                Int,
                8,
                64,
                true,
                "does not load it: no loader for compressed-tensors",
                read,
            ),
            ("GPTQModel", Gptq, 8, 64, true, loads, ran),
            ("GPTQModel", Awq, 4, 64, true, loads, ran),
            ("GPTQModel", Ct, 4, 64, true, "not checked", ""),
            ("mlx-lm", Awq, 4, 64, false, loads, ran),
            ("mlx-lm", Ct, 4, 64, true, packed, ran),
            ("mlx-lm", Ct, 4, 32, true, packed, read),
            (
                "mlx-lm",
                Gptq,
                4,
                64,
                true,
                "does not load it: it refuses every checkpoint that holds g_idx",
                ran,
            ),
            (
                "mlx-lm",
                Int,
                8,
                64,
                true,
                "does not load it: it does not know int-quantized",
                ran,
            ),
        ];
        for (consumer, format, bits, group, sym, verdict, evidence) in rows {
            let modules = modules(|_| Some(coding(*bits, *group, *sym)));
            assert_eq!(
                told(*format, &modules, consumer),
                format!("{verdict}{evidence}"),
                "{consumer}, {format}, {bits} bits, group {group}, sym {sym}"
            );
        }
    }

    #[test]
    fn a_mixed_file_gets_one_verdict_of_every_consumer_that_says_what_is_refused() {
        let (four, eight) = (coding(4, 64, true), coding(8, 64, true));
        let mixed = modules(|name| Some(if name.contains("down") { eight } else { four }));
        let ct = |consumer| told(Format::CompressedTensors, &mixed, consumer);
        let found = consumers(Format::CompressedTensors, &mixed, &[]);
        assert_eq!(found.len(), TABLE.len());
        assert_eq!(
            ct("transformers"),
            "loads it if compressed-tensors >= 0.15 is installed (ran)"
        );
        assert_eq!(ct(GPU), "loads it (by its source code, not run)");
        assert_eq!(
            ct(CPU),
            "does not load it: its kernel for CPUs has 4 bits only (8 bits) (ran)"
        );
        assert_eq!(
            ct("llama.cpp"),
            "does not load it: its converter takes one scheme of compressed-tensors (ran)"
        );
        let gptq = |consumer| told(Format::Gptq, &mixed, consumer);
        assert_eq!(gptq("GPTQModel"), "loads it (ran)");
        assert_eq!(
            gptq("llama.cpp"),
            "does not load it: its converter takes one width of gptq (ran)"
        );
        assert_eq!(
            gptq("transformers"),
            "does not load it: in gptq it knows one scheme for all linears of the blocks, and no exceptions (by its source code, not run)"
        );

        // several groups of one width, and a block left as it was: what was run
        let groups = modules(|name| match name {
            name if name.contains(".0.") => None,
            name if name.contains("down") => Some(coding(4, 32, true)),
            _ => Some(four),
        });
        assert_eq!(told(Format::Gptq, &groups, CPU), "loads it (ran)");
        assert_eq!(
            told(Format::CompressedTensors, &groups, CPU),
            "loads it (ran)"
        );
        assert_eq!(
            told(Format::Gptq, &groups, "llama.cpp"),
            "loads it as floats: its converter turns the codes back into weights (ran)"
        );
        // of awq no such file was run
        let skipped = modules(|name| (!name.contains(".0.")).then_some(four));
        assert_eq!(
            told(Format::Awq, &skipped, CPU),
            "loads it (by its source code, not run)"
        );
    }

    #[test]
    fn fused_linears_that_differ_are_found_and_refused_by_those_that_fuse() {
        let (fine, coarse) = (coding(4, 32, true), coding(4, 64, true));
        let q_alone = modules(|name| {
            Some(if name.contains("q_proj") {
                fine
            } else {
                coarse
            })
        });
        let no_v = modules(|name| (name != "model.layers.1.self_attn.v_proj").then_some(coarse));
        let no_up = modules(|name| (!name.contains("up_proj")).then_some(coarse));
        let alike = modules(|name| Some(if name.contains("down") { fine } else { coarse }));
        for format in [Format::CompressedTensors, Format::Gptq] {
            let split = split_linears(format, &q_alone);
            assert_eq!(split.len(), 2);
            assert_eq!(split[0].parent, "model.layers.0.self_attn");
            let linears: Vec<_> = split[0].linears.iter().map(|(name, _)| name).collect();
            assert_eq!(linears, ["q_proj", "k_proj", "v_proj"]);
            assert_eq!(split_linears(format, &no_v).len(), 1);
            assert_eq!(
                split_linears(format, &no_up)[1].parent,
                "model.layers.1.mlp"
            );
            assert_eq!(split_linears(format, &alike), []);
            for file in [&q_alone, &no_v, &no_up] {
                for consumer in [GPU, CPU, "SGLang"] {
                    let told = told(format, file, consumer);
                    assert!(
                        told.starts_with("does not load it: it runs q, k, v"),
                        "{told}"
                    );
                }
                assert_eq!(split_refuses(format, file).len(), 3);
            }
            assert_eq!(split_refuses(format, &alike), []);
        }
        assert_eq!(
            told(Format::Gptq, &no_v, CPU),
            "does not load it: it runs q, k, v of a block as one linear, and so gate, up, which must be stored alike \
             (model.layers.1.self_attn) (ran)"
        );
        // awq holds symmetric weights as asymmetric ones: these are alike in the file
        let mixed_sym = modules(|name| Some(coding(4, 64, name.contains("q_proj"))));
        assert_eq!(split_linears(Format::Awq, &mixed_sym), []);
        assert_eq!(split_linears(Format::Awq, &no_v).len(), 1);
        assert_eq!(
            split_linears(Format::CompressedTensors, &mixed_sym).len(),
            2
        );
        // vLLM does not load 3 bits of gptq anyway: mending the split would not help
        let three = modules(|name| {
            Some(coding(
                3,
                if name.contains("q_proj") { 32 } else { 64 },
                true,
            ))
        });
        assert_eq!(split_refuses(Format::Gptq, &three), []);
    }

    #[test]
    fn widths_that_may_be_chosen_count_as_if_they_were() {
        let four = modules(|_| Some(coding(4, 64, true)));
        let widths = [2, 3, 4, 5, 6, 8].map(|bits| coding(bits, 64, true));
        let found = consumers(Format::CompressedTensors, &four, &widths);
        let told = |name: &str| {
            let mut lines = found.iter().map(Finding::to_string);
            lines.find(|line| line.starts_with(name)).unwrap()
        };
        assert_eq!(
            told("SGLang"),
            "SGLang 0.5.23: does not load it: compressed-tensors only at 4 and 8 bits (2, 3, 5 and 6 bits) \
             (by its source code, not run)"
        );
        assert_eq!(
            told(GPU),
            "vLLM 0.33 on a GPU: loads it if the optional Humming kernels are installed (2, 3, 5 and 6 bits) \
             (by its source code, not run)"
        );
        assert_eq!(
            told("llama.cpp"),
            "llama.cpp (convert-hf-to-gguf 0.1.1): does not load it: its converter expects the older packing of this \
             width (3, 5 and 6 bits); its converter takes one scheme of compressed-tensors (by its source code, not run)"
        );
    }

    #[test]
    fn codebook_weights_have_a_verdict_of_every_consumer() {
        let nf4 = Coding::Codebook(CodebookScheme {
            codebook: Codebook::Nf4,
            block_size: 64,
            double_quant: true,
        });
        let all = modules(|_| Some(nf4));
        let told = |consumer| told(Format::Bitsandbytes, &all, consumer);
        assert_eq!(
            told("transformers"),
            "loads it if bitsandbytes is installed (ran)"
        );
        assert_eq!(told(CPU), "does not load it: it has no bitsandbytes (ran)");
        assert_eq!(told("GPTQModel"), "not checked");
    }

    #[test]
    fn a_verdict_has_evidence_unless_nobody_looked() {
        for format in Format::ALL {
            for bits in [2, 3, 4, 5, 6, 8] {
                for (group, sym) in [(-1, true), (32, false), (64, true), (48, false)] {
                    let modules = modules(|_| Some(coding(bits, group, sym)));
                    for finding in consumers(format, &modules, &[]) {
                        assert_eq!(
                            finding.verdict == NotChecked,
                            finding.evidence == Evidence::None,
                            "{finding}: {format} {bits} {group} {sym}"
                        );
                    }
                }
            }
        }
    }
}
