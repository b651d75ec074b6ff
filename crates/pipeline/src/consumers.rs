//! Which programs load what a run writes, in words for people.

use std::collections::HashMap;
use std::fmt;

use anyhow::Result;
use halfbyte_checkpoint::ModelConfig;
use halfbyte_pack::{
    Evidence, Finding, Format, SplitLinears, Verdict, listed, split_linears, split_refuses,
};
use halfbyte_quant::Coding;
use serde::Serialize;

use crate::budget::{self, Candidates};
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

/// Every program known, and whether it loads a checkpoint of `format` that holds `modules`.
pub(crate) fn lines(format: Format, modules: &Modules) -> Vec<ConsumerLine> {
    let found = halfbyte_pack::consumers(format, modules, &[]);
    found.into_iter().map(ConsumerLine::from).collect()
}

/// Where the settings of a run cost its exports readers; `layout` is what is written.
pub(crate) fn warnings(pipeline: &Pipeline, layout: &Layout) -> Vec<String> {
    let mut warnings = split_warnings(layout, &layout.modules);
    warnings.extend(positive_scales(pipeline, layout));
    warnings
}

/// The same for a plan, where a budget may still choose among `candidates`.
pub(crate) fn plan_warnings(
    pipeline: &Pipeline,
    layout: &Layout,
    candidates: &[Candidates],
) -> Vec<String> {
    let (modules, or_else) = may_become(layout, candidates);
    let mut warnings = split_warnings(layout, &modules);
    if !candidates.is_empty() {
        let formats = layout.formats.iter();
        warnings.extend(formats.filter_map(|(format, _)| {
            lost(
                *format,
                "it may choose",
                &layout.modules,
                &modules,
                &or_else,
            )
        }));
    }
    warnings.extend(positive_scales(pipeline, layout));
    warnings
}

/// The lines of a plan's export: with a budget, as if all that it may choose from were chosen.
pub(crate) fn plan_lines(
    format: Format,
    layout: &Layout,
    candidates: &[Candidates],
) -> Vec<ConsumerLine> {
    let (modules, or_else) = may_become(layout, candidates);
    let found = halfbyte_pack::consumers(format, &modules, &or_else);
    found.into_iter().map(ConsumerLine::from).collect()
}

/// What the modules of a plan may become: as they are without a budget; with one, each at its narrowest or each at its
/// widest, and all codings that any may get. Of the two ends it is the one that parts linears which some readers run as
/// one, if any does: linears whose ranges begin and end alike are only chosen alike.
fn may_become(
    layout: &Layout,
    candidates: &[Candidates],
) -> (Vec<(String, Option<Coding>)>, Vec<Coding>) {
    let (format, _) = layout.formats[0];
    let by_name: HashMap<&str, &[Coding]> = candidates
        .iter()
        .map(|c| (c.module.as_str(), c.codings.as_slice()))
        .collect();
    let at = |end: fn(&[Coding]) -> Option<&Coding>| {
        let mut modules = layout.modules.clone();
        for (module, coding) in &mut modules {
            let range = by_name.get(module.as_str());
            *coding = range.and_then(|range| end(range).copied()).or(*coding);
        }
        modules
    };
    let (narrow, wide) = (at(<[Coding]>::first), at(<[Coding]>::last));
    let parts = |modules: &Modules| !split_linears(format, modules).is_empty();
    let modules = match !parts(&narrow) && parts(&wide) {
        true => wide,
        false => narrow,
    };
    let or_else = candidates.iter().flat_map(|c| c.codings.clone());
    (modules, or_else.collect())
}

/// Which readers take a budget's choice less gladly than `quant.bits` everywhere, `before` the choice.
pub(crate) fn choice_warnings(layout: &Layout, before: &Modules) -> Vec<String> {
    let formats = layout.formats.iter();
    formats
        .filter_map(|(format, _)| lost(*format, "it chose", before, &layout.modules, &[]))
        .collect()
}

/// The readers of `before` that do not take `after`, or `or_else`, as gladly. Those that refuse it for linears that they
/// run as one are left to [`split_warnings`].
fn lost(
    format: Format,
    it_chose: &str,
    before: &Modules,
    after: &Modules,
    or_else: &[Coding],
) -> Option<String> {
    let took = |finding: &Finding| matches!(finding.verdict, Verdict::Loads | Verdict::LoadsIf(_));
    let split = split_refuses(format, after);
    let before = halfbyte_pack::consumers(format, before, &[]);
    let now = halfbyte_pack::consumers(format, after, or_else);
    let lost: Vec<String> = before
        .iter()
        .zip(&now)
        .filter(|(before, now)| took(before) && before.verdict != now.verdict)
        .filter(|(_, now)| !split.contains(&now.consumer))
        .map(|(_, now)| match &now.verdict {
            Verdict::NotChecked => format!("{} was not checked with them", now.consumer),
            verdict => format!("{} {verdict}", now.consumer),
        })
        .collect();
    (!lost.is_empty()).then(|| {
        let codings = after.iter().filter_map(|(_, coding)| coding.as_ref());
        format!(
            "budget: {it_chose} {} bits, and not every program that loads {format} at `quant.bits` takes them: {}; \
             `budget.bits` sets what is chosen from",
            widths(codings.chain(or_else)),
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
) -> Result<Vec<Candidates>> {
    match &pipeline.budget {
        Some(budget) => budget::candidates(pipeline, layout, budget, config),
        None => Ok(Vec::new()),
    }
}
