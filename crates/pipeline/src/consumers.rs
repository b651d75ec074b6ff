//! Which programs load what a run writes, in words for people.

use std::fmt;

use halfbyte_checkpoint::ModelConfig;
use halfbyte_pack::{
    Evidence, Finding, Format, SplitLinears, Verdict, listed, split_linears, split_refuses,
};
use halfbyte_quant::Coding;
use serde::Serialize;

use crate::budget;
use crate::config::{Pipeline, Recipe, SignedScales};
use crate::quantize::Layout;

/// What is known of one program and one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConsumerLine {
    /// The program's name.
    pub consumer: String,
    /// The version that was looked at.
    pub version: String,
    /// Whether it loads the checkpoint, on which condition, or why not.
    pub verdict: String,
    /// How that is known; none where nobody looked.
    pub evidence: Option<String>,
}

impl From<Finding> for ConsumerLine {
    fn from(finding: Finding) -> Self {
        let Finding {
            consumer,
            verdict,
            evidence,
        } = finding;
        Self {
            consumer: consumer.name.to_owned(),
            version: consumer.version.to_owned(),
            verdict: verdict.to_string(),
            evidence: (evidence != Evidence::None).then(|| evidence.to_string()),
        }
    }
}

impl fmt::Display for ConsumerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.consumer, self.version, self.verdict)?;
        match &self.evidence {
            Some(evidence) => write!(f, " ({evidence})"),
            None => Ok(()),
        }
    }
}

type Modules = [(String, Option<Coding>)];

/// Every program known, and whether it loads a checkpoint of `format` that holds `modules`, of which some may get a coding
/// of `or_else` instead.
pub(crate) fn lines(format: Format, modules: &Modules, or_else: &[Coding]) -> Vec<ConsumerLine> {
    let found = halfbyte_pack::consumers(format, modules, or_else);
    found.into_iter().map(ConsumerLine::from).collect()
}

/// What a run's exports cost in readers, where its settings are why; `modules` are what is written.
pub(crate) fn warnings(pipeline: &Pipeline, layout: &Layout) -> Vec<String> {
    let mut warnings = split_warnings(layout, &layout.modules);
    warnings.extend(positive_scales(pipeline, layout));
    warnings
}

/// The same of all that a budget may choose, for a plan.
pub(crate) fn budget_warnings(
    pipeline: &Pipeline,
    layout: &Layout,
    candidates: &[budget::Candidates],
) -> Vec<String> {
    let mut warnings = Vec::new();
    // linears that must be alike and are alike at the ends of their ranges are so at every width between
    for end in [<[Coding]>::first, <[Coding]>::last] {
        let mut modules = layout.modules.clone();
        for (module, coding) in &mut modules {
            let known = candidates.iter().find(|c| c.module == *module);
            *coding = known.and_then(|c| end(&c.codings).copied()).or(*coding);
        }
        for warning in split_warnings(layout, &modules) {
            if warnings.is_empty() {
                warnings.push(warning);
            }
        }
    }
    let or_else: Vec<Coding> = candidates.iter().flat_map(|c| c.codings.clone()).collect();
    let widths = widths(or_else.iter());
    for (format, _) in &layout.formats {
        let before = halfbyte_pack::consumers(*format, &layout.modules, &[]);
        let after = halfbyte_pack::consumers(*format, &layout.modules, &or_else);
        warnings.extend(lost(*format, "it may choose", &widths, &before, &after));
    }
    warnings
}

/// Which readers of a budget's choice there are fewer of than of `quant.bits` everywhere: `before` are the modules by
/// `quant.bits`, `after` those of the choice.
pub(crate) fn choice_warnings(layout: &Layout, before: &Modules) -> Vec<String> {
    let chosen = layout
        .modules
        .iter()
        .filter_map(|(_, coding)| coding.as_ref());
    let widths = widths(chosen);
    let of = |(format, _): &(Format, _)| {
        let before = halfbyte_pack::consumers(*format, before, &[]);
        let after = halfbyte_pack::consumers(*format, &layout.modules, &[]);
        lost(*format, "it chose", &widths, &before, &after)
    };
    layout.formats.iter().filter_map(of).collect()
}

/// Readers that would take a file of `quant.bits` and do not take the other as gladly.
fn lost(
    format: Format,
    it_chose: &str,
    widths: &str,
    before: &[Finding],
    after: &[Finding],
) -> Option<String> {
    let took = |finding: &Finding| matches!(finding.verdict, Verdict::Loads | Verdict::LoadsIf(_));
    let lost: Vec<String> = before
        .iter()
        .zip(after)
        .filter(|(before, after)| took(before) && before.verdict != after.verdict)
        .map(|(_, after)| after.to_string())
        .collect();
    (!lost.is_empty()).then(|| {
        format!(
            "budget: {it_chose} {widths} bits, which not every reader of {format} takes. {}. `budget.bits` sets what is \
             chosen from",
            lost.join("; ")
        )
    })
}

/// `3, 4 and 8`.
fn widths<'a>(codings: impl Iterator<Item = &'a Coding>) -> String {
    let mut bits: Vec<u8> = codings.filter_map(|c| Some(c.grid()?.bits())).collect();
    bits.sort_unstable();
    bits.dedup();
    listed(&bits.iter().map(u8::to_string).collect::<Vec<_>>(), "and")
}

/// Linears that some readers run as one and that are not stored alike: formats with the same to say are told of once.
fn split_warnings(layout: &Layout, modules: &Modules) -> Vec<String> {
    let mut told: Vec<(Vec<String>, String)> = Vec::new();
    for (format, _) in &layout.formats {
        let mut names: Vec<String> = Vec::new();
        for consumer in split_refuses(*format, modules) {
            if !names.iter().any(|known| known == consumer.name) {
                names.push(consumer.name.to_owned());
            }
        }
        let split = split_linears(*format, modules);
        let (Some(first), false) = (split.first(), names.is_empty()) else {
            continue;
        };
        let more = match split.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more like it"),
        };
        let what = format!(
            "will not load in {}, which run q, k and v of a block as one linear, and so gate and up, and want them stored \
             alike: {} has {}{more}; treat them alike in `rules`, `ignore` and `budget`",
            listed(&names, "and"),
            first.parent,
            stored(first)
        );
        match told.iter_mut().find(|(_, known)| *known == what) {
            Some((formats, _)) => formats.push(format.to_string()),
            None => told.push((vec![format.to_string()], what)),
        }
    }
    let told = told.into_iter();
    told.map(|(formats, what)| format!("{}: {what}", listed(&formats, "and")))
        .collect()
}

/// `q_proj 4-bit group 32 sym; k_proj and v_proj as they were`.
fn stored(split: &SplitLinears) -> String {
    let mut alike: Vec<(Vec<String>, Option<Coding>)> = Vec::new();
    for (name, coding) in &split.linears {
        match alike.iter_mut().find(|(_, known)| known == coding) {
            Some((names, _)) => names.push(name.clone()),
            None => alike.push((vec![name.clone()], *coding)),
        }
    }
    let words = |(names, coding): &(Vec<String>, Option<Coding>)| {
        let coding = coding.map_or_else(|| "as in the source".to_owned(), |c| c.to_string());
        format!("{} {coding}", listed(names, "and"))
    };
    alike.iter().map(words).collect::<Vec<_>>().join("; ")
}

/// What the exports cost where `signed_scales: auto` would take negative scales but for one of them.
fn positive_scales(pipeline: &Pipeline, layout: &Layout) -> Option<String> {
    let wanted = pipeline.recipe == Recipe::Best
        && pipeline.quant.signed_scales == SignedScales::Auto
        && layout.is_any_sym();
    let formats: Vec<String> = layout
        .formats
        .iter()
        .filter(|(format, _)| wanted && !format.usually_takes_negative_scales())
        .map(|(format, _)| format.to_string())
        .collect();
    (!formats.is_empty()).then(|| {
        format!(
            "signed_scales: auto keeps symmetric scales positive, because not every reader of {} is known to take negative \
             ones, which lose less; export {} in a run of its own, or set `quant.signed_scales: true`",
            listed(&formats, "and"),
            if formats.len() == 1 { "it" } else { "them" }
        )
    })
}

/// What a budget may choose for every linear, none without a budget.
pub(crate) fn candidates(
    pipeline: &Pipeline,
    layout: &Layout,
    config: &ModelConfig,
) -> anyhow::Result<Vec<budget::Candidates>> {
    match &pipeline.budget {
        Some(budget) => budget::candidates(pipeline, layout, budget, config),
        None => Ok(Vec::new()),
    }
}
