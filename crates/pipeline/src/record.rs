//! What a run did, as records.

use halfbyte_calibrate::text::{EvaluationText, TextReport};
use halfbyte_evaluate::Evaluation;
use halfbyte_model::Decoder;
use halfbyte_report::{
    BudgetRecord, CalibrationRecord, EvaluationRecord, ExportRecord, LinearRecord, ModelRecord,
    RunRecord, SCHEMA_VERSION, SummaryRecord, TuneRecord,
};

use crate::config::Pipeline;
use crate::export::Exported;
use crate::usage::Clock;

/// What the record of a run is made from.
pub(crate) struct Parts<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) decoder: &'a Decoder,
    pub(crate) calibration: &'a TextReport,
    pub(crate) records: Vec<LinearRecord>,
    pub(crate) exports: &'a [Exported],
    pub(crate) warnings: Vec<String>,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_bytes: Option<u64>,
    pub(crate) resumed: usize,
    pub(crate) tune: Option<TuneRecord>,
    pub(crate) budget: Option<BudgetRecord>,
    pub(crate) clock: &'a Clock,
}

impl Parts<'_> {
    /// The record, without an evaluation.
    pub(crate) fn record(self) -> RunRecord {
        let folder = self.decoder.weights().folder();
        let tensors = || folder.names().filter_map(|name| folder.tensor(name).ok());
        let elements = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
        let weights: f64 = self
            .records
            .iter()
            .map(|r| (r.out_features * r.in_features) as f64)
            .sum();
        let bits: f64 = self
            .records
            .iter()
            .map(|r| r.bits_per_weight * (r.out_features * r.in_features) as f64)
            .sum();
        let total = |count: &dyn Fn(&halfbyte_calibrate::text::SourceReport) -> usize| {
            self.calibration.sources.iter().map(count).sum::<usize>() as u64
        };
        RunRecord {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pipeline: self.pipeline.to_value(),
            model: ModelRecord {
                source: self.pipeline.model.source.to_string(),
                revision: self.pipeline.model.revision.clone(),
                architecture: folder.config().row().architecture.to_owned(),
                blocks: self.decoder.n_blocks(),
                parameters: tensors().map(|t| elements(t.shape)).sum(),
                dtype: folder
                    .config()
                    .dtype
                    .clone()
                    .unwrap_or_else(|| "float32".to_owned()),
            },
            calibration: CalibrationRecord {
                sources: self
                    .calibration
                    .sources
                    .iter()
                    .map(|s| s.name.clone())
                    .collect(),
                sha256: self.calibration.windows_sha256.clone(),
                samples: self.calibration.windows_calibration,
                tokens_used: self.calibration.tokens_calibration as u64,
                tokens_held_out: self.calibration.tokens_holdout as u64,
                tokens_dropped: total(&|s| s.tokens_dropped),
                tokens_truncated: total(&|s| s.tokens_truncated),
            },
            summary: SummaryRecord {
                bits_per_weight: bits / weights,
                bytes_before: tensors().map(|t| t.bytes.len() as u64).sum(),
                bytes_after: self.exports.first().map_or(0, |e| e.bytes),
                seconds: self.seconds,
                cpu_seconds: self.cpu_seconds,
                peak_rss_bytes: self.peak_rss_bytes,
                blocks_resumed: self.resumed,
                phases: self.clock.phases(),
                warnings: self.warnings,
            },
            exports: self
                .exports
                .iter()
                .map(|e| ExportRecord {
                    format: e.format.to_string(),
                    path: e.folder.display().to_string(),
                    bytes: e.bytes,
                })
                .collect(),
            linears: self.records,
            budget: self.budget,
            tune: self.tune,
            evaluation: None,
        }
    }
}

/// The scores as a record; `None` where there was no reference.
pub(crate) fn evaluation(
    name: &str,
    scores: &Evaluation,
    text: &EvaluationText,
) -> Option<EvaluationRecord> {
    let against = scores.against.as_ref()?;
    Some(EvaluationRecord {
        text: name.to_owned(),
        windows: scores.windows,
        sequence_length: text.windows.first().map_or(0, Vec::len),
        tokens: scores.tokens as u64,
        perplexity_float: against.perplexity_float,
        perplexity_float_se: against.perplexity_float_se,
        perplexity: scores.perplexity,
        perplexity_se: scores.perplexity_se,
        kl_mean: against.kl_mean,
        kl_mean_se: against.kl_mean_se,
        kl_median: against.kl_median,
        kl_p99: against.kl_p99,
        top1_agreement: against.top1_agreement,
    })
}
