//! A run started again in a folder that holds a finished one.
//!
//! The same run is done and nothing is done again. Where other exports, scores or a page are wanted of it, they are made
//! from what is there: the codes are read back from an export, which holds them exactly. Other settings are another run,
//! and that one is not written over the first unasked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use halfbyte_calibrate::text::EvaluationText;
use halfbyte_model::{Decoder, LinearKind, Weights};
use halfbyte_quant::{CodedWeight, Coding, QuantizedWeight};
use halfbyte_report::{ExportRecord, RunRecord, page_path};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::config::{NOT_OF_CODES, Pipeline};
use crate::error::user_error;
use crate::event::Event;
use crate::export;
use crate::output::{Destination, Output, is_same_place};
use crate::quantize::{Layout, scored, tell_verdict, write_reports};
use crate::work::{Opened, Solved, Work};
use crate::{recipe, record};

/// Whether a run may go on in a folder, judged by `settings`, which a run's fingerprint begins with, or by all of it.
///
/// # Errors
/// A finished run, or the unfinished work of one, that is another's; the message names the keys that differ.
pub(crate) fn check_earlier(out: &Path, settings: &str, pipeline: &Pipeline) -> Result<()> {
    let record = halfbyte_report::read_run(out).ok();
    let is_ours = |fingerprint: &str| fingerprint.starts_with(settings);
    // What was begun with --fresh goes on without it.
    if record
        .as_ref()
        .is_some_and(|record| is_ours(&record.fingerprint))
        || Work::has_begun(out, is_ours)
    {
        return Ok(());
    }
    let Some(record) = record else {
        return match Work::has_begun(out, |_| true) {
            true => Err(unfinished(out)),
            false => Ok(()),
        };
    };
    let mut keys = differing_keys(&record.pipeline, &pipeline.to_value());
    keys.retain(|key| !NOT_OF_CODES.contains(&key.split('.').next().unwrap_or_default()));
    let build = [&record.version, &record.recipe_version];
    let differs = match keys.is_empty() {
        false => format!("other: {}", keys.join(", ")),
        true if build != [env!("CARGO_PKG_VERSION"), recipe::VERSION] => {
            "it was solved by another build of halfbyte".to_owned()
        }
        true => "the model's files or the text are others".to_owned(),
    };
    Err(user_error(
        format!(
            "{}: holds a finished run with other settings ({differs})",
            out.display()
        ),
        "choose another --out, or take --fresh to replace it",
    ))
}

/// What is said where work of another run is in the way.
pub(crate) fn unfinished(out: &Path) -> anyhow::Error {
    user_error(
        format!(
            "{}: holds the unfinished work of a run with other settings, another model or text, or of another build",
            out.display()
        ),
        "choose another --out, or take --fresh to give that work up and start over",
    )
}

/// Dotted keys whose values differ in two pipelines.
pub(crate) fn differing_keys(old: &Value, new: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    differing("", old, new, &mut keys);
    keys
}

fn differing(key: &str, old: &Value, new: &Value, keys: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a
                .keys()
                .chain(b.keys().filter(|name| !a.contains_key(*name)));
            for name in names {
                let inner = match key.is_empty() {
                    true => name.clone(),
                    false => format!("{key}.{name}"),
                };
                let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned();
                differing(
                    &inner,
                    &of(a).unwrap_or(Value::Null),
                    &of(b).unwrap_or(Value::Null),
                    keys,
                );
            }
        }
        (old, new) if old == new => (),
        _ => keys.push(key.to_owned()),
    }
}

/// A finished run, and what is asked of it now.
pub(crate) struct Finished<'a> {
    pub(crate) record: RunRecord,
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) layout: &'a Layout,
    pub(crate) decoder: &'a Decoder,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) evaluation: Option<&'a EvaluationText>,
    pub(crate) destinations: &'a [Destination],
}

impl Finished<'_> {
    /// Makes what is wanted and not there; the record of it all.
    pub(crate) fn renew(
        mut self,
        output: &mut Output,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<RunRecord> {
        let out = output.out().to_owned();
        let missing: Vec<&Destination> = self
            .destinations
            .iter()
            .filter(|to| !output.has(to))
            .collect();
        let text = self.evaluation.filter(|text| {
            let known = self.record.evaluation.as_ref();
            let sha256 = record::windows_sha256(&text.windows);
            known.is_none_or(|known| known.sha256 != sha256)
        });
        let page = self.pipeline.report.html && !page_path(&out).exists();
        self.tell_what_is_not_there(on_event);
        // what was cut off between an export and the records of it
        let is_listed = |to: &Destination| {
            let mut known = self.record.exports.iter();
            known.any(|e| {
                e.format == to.format.to_string() && is_same_place(Path::new(&e.path), &to.folder)
            })
        };
        let unlisted = !self.destinations.iter().all(is_listed);
        if missing.is_empty() && text.is_none() && !page && !unlisted {
            on_event(Event::Note(format!(
                "{}: this run is finished, and nothing is done again; --fresh would do it anew",
                out.display()
            )));
            self.clear_work(output)?;
            return Ok(self.record);
        }
        if !missing.is_empty() {
            self.export(output, &missing, on_event)?;
        }
        let mut exports = output.intact();
        // those that are asked for now come first
        let wanted = |folder: &Path| {
            let mut all = self.destinations.iter();
            all.position(|to| is_same_place(&to.folder, folder))
        };
        exports.sort_by_key(|(_, folder)| wanted(folder).unwrap_or(usize::MAX));
        let of = |(format, folder): (String, PathBuf)| {
            let bytes = match wanted(&folder) {
                Some(at) => Some(self.destinations[at].bytes),
                None => {
                    let mut known = self.record.exports.iter();
                    known.find(|e| e.format == format).map(|e| e.bytes)
                }
            };
            ExportRecord {
                format,
                path: folder.display().to_string(),
                bytes: bytes.unwrap_or_default(),
            }
        };
        let exports = exports.into_iter().map(of).collect();
        self.record.exports = exports;
        self.record.summary.bytes_after = self.record.exports.first().map_or(0, |e| e.bytes);
        if let (Some(text), Some(to)) = (text, self.destinations.first()) {
            let earlier = self.record.verdict_warning();
            let warnings = &mut self.record.summary.warnings;
            warnings.retain(|warning| Some(warning) != earlier.as_ref());
            self.record.evaluation = scored(
                self.pipeline,
                self.decoder,
                &to.folder,
                text,
                self.tokenizer,
                on_event,
            )?;
            tell_verdict(&mut self.record, on_event);
        }
        self.record.pipeline = self.pipeline.to_value();
        write_reports(&out, self.pipeline, &self.record)?;
        self.clear_work(output)?;
        Ok(self.record)
    }

    /// Records that only a new run would take.
    fn tell_what_is_not_there(&self, on_event: &mut dyn FnMut(Event)) {
        let linears = &self.record.linears;
        let report = &self.pipeline.report;
        let asked = |key: &str| {
            let was = self.record.pipeline.pointer(&format!("/report/{key}"));
            was == Some(&Value::Bool(false))
        };
        let mut absent = Vec::new();
        if report.llm_int8 && asked("llm_int8") && !linears.is_empty() {
            absent.push("llm_int8");
        }
        if report.calibration_curve && asked("calibration_curve") {
            absent.push("calibration_curve");
        }
        for key in absent {
            on_event(Event::Warning(format!(
                "report.{key}: is taken while a model is solved, and this one was solved without; --fresh solves it anew"
            )));
        }
    }

    /// Removes what a killed process left of this run's work.
    fn clear_work(&self, output: &Output) -> Result<()> {
        Work::clear(output.out(), &self.record.fingerprint)
    }

    /// Writes further exports, from the codes of one that is there.
    fn export(
        &self,
        output: &mut Output,
        missing: &[&Destination],
        on_event: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let mut known = output.intact();
        // awq holds a symmetric weight as one with zero points; any other says more
        known.sort_by_key(|(format, _)| format == "awq");
        let Some((format, folder)) = known.first() else {
            return Err(user_error(
                format!(
                    "{}: the run is finished, but files of its checkpoint are gone or were changed",
                    output.out().display()
                ),
                "take --fresh to make it anew, or choose another --out",
            ));
        };
        on_event(Event::Note(format!(
            "this run is finished; what is wanted besides is made from its {format} checkpoint"
        )));
        let Opened { mut work, .. } =
            Work::open(output.out(), self.record.fingerprint.clone(), true)?;
        let place = || folder.display().to_string();
        let from =
            Weights::new(halfbyte_checkpoint::ModelFolder::open(folder)?).with_context(place)?;
        self.read_back(&from, &mut work).with_context(place)?;
        for to in missing {
            export::stage(
                self.pipeline,
                self.layout,
                self.decoder,
                &work,
                to,
                on_event,
            )?;
            output.place(to)?;
        }
        Ok(())
    }

    /// Fills the work folder with the blocks of a checkpoint that this run wrote, one at a time.
    fn read_back(&self, from: &Weights, work: &mut Work) -> Result<()> {
        let source = self.decoder.weights().folder();
        let config = source.config();
        let blocks = self.decoder.n_blocks();
        for block in 0..blocks {
            let mut solved = Vec::new();
            for kind in LinearKind::ALL {
                let module = kind.module(block);
                let Some(coding) = self.layout.coding(&module) else {
                    continue;
                };
                let shape = halfbyte_model::linear_shape(config, kind);
                let weight = as_solved(from.quantized(&module, shape)?, &coding)
                    .with_context(|| module.clone())?;
                solved.push(Solved { module, weight });
            }
            let replaced = self.changed(from, |of| of == Some(block))?;
            work.save(block, &solved, &replaced, &[], None)?;
        }
        let of_none = |of: Option<usize>| of.is_none_or(|block| block >= blocks);
        work.save_changed(&self.changed(from, of_none)?)
    }

    /// Tensors of some blocks, or of none, that are not quantized and came out other than they were.
    fn changed(
        &self,
        from: &Weights,
        is_wanted: impl Fn(Option<usize>) -> bool,
    ) -> Result<Vec<(String, Vec<f32>)>> {
        let source = self.decoder.weights().folder();
        let mut changed = Vec::new();
        for name in source
            .names()
            .filter(|name| is_wanted(export::block_of(name)))
        {
            let module = name.strip_suffix(".weight").unwrap_or_default();
            if self.layout.coding(module).is_some() || !from.folder().has(name) {
                continue;
            }
            let (before, after) = (source.tensor(name)?, from.folder().tensor(name)?);
            if before.bytes != after.bytes {
                changed.push((name.to_owned(), from.folder().f32(name, after.shape)?));
            }
        }
        Ok(changed)
    }
}

/// A weight as the solver had it: some formats hold a symmetric one as if it were not.
fn as_solved(weight: CodedWeight, coding: &Coding) -> Result<CodedWeight> {
    match (weight, coding) {
        (CodedWeight::Grid(grid), Coding::Grid(scheme)) if grid.scheme() != *scheme => {
            let shape = [grid.out_features(), grid.in_features()];
            let (codes, scales) = (grid.codes().to_vec(), grid.scales().to_vec());
            let again = QuantizedWeight::new(*scheme, shape, codes, scales, grid.zeros().to_vec())?;
            Ok(again.into())
        }
        (weight, _) => Ok(weight),
    }
}
