//! What a run did, as records.

use halfbyte_calibrate::text::{EvaluationText, SourceReport, TextReport};
use halfbyte_evaluate::{Evaluation, WorstToken};
use halfbyte_model::Decoder;
use halfbyte_report::{
    BudgetRecord, CalibrationRecord, CodesRecord, EvaluationRecord, ExportRecord, LinearRecord,
    ModelRecord, RunRecord, SCHEMA_VERSION, Scores, SummaryRecord, TokenRecord, TuneRecord,
};
use sha2::{Digest, Sha256};

use crate::config::{ModelSource, Pipeline, hex};
use crate::export::Exported;
use crate::usage::Clock;
use crate::{recipe, told};

/// What the record of a run is made from.
pub(crate) struct Parts<'a> {
    /// Names the run.
    pub(crate) fingerprint: String,
    pub(crate) settings: serde_json::Map<String, serde_json::Value>,
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
    pub(crate) codes: Vec<CodesRecord>,
    pub(crate) clock: &'a Clock,
}

impl Parts<'_> {
    /// The record, without an evaluation.
    pub(crate) fn record(self) -> RunRecord {
        let folder = self.decoder.weights().folder();
        let tensors = || folder.names().filter_map(|name| folder.tensor(name).ok());
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
        RunRecord {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: self.fingerprint,
            recipe_version: recipe::VERSION.to_owned(),
            settings: self.settings,
            pipeline: self.pipeline.to_value(),
            model: model(self.pipeline, self.decoder),
            calibration: calibration(self.calibration),
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
            codes: self.codes,
            tune: self.tune,
            evaluation: None,
        }
    }
}

/// The model that was read.
pub(crate) fn model(pipeline: &Pipeline, decoder: &Decoder) -> ModelRecord {
    let folder = decoder.weights().folder();
    let tensors = folder.names().filter_map(|name| folder.tensor(name).ok());
    let elements = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
    let dtype = folder.config().dtype.clone();
    ModelRecord {
        source: pipeline.model.source.to_string(),
        hub: matches!(pipeline.model.source, ModelSource::Hub(_)),
        revision: pipeline.model.revision.clone(),
        architecture: folder.config().row().architecture.to_owned(),
        blocks: decoder.n_blocks(),
        parameters: tensors.map(|t| elements(t.shape)).sum(),
        dtype: dtype.unwrap_or_else(|| "float32".to_owned()),
        tensors_unread: told::unread(folder),
    }
}

/// The text that was read.
pub(crate) fn calibration(text: &TextReport) -> CalibrationRecord {
    let total =
        |count: fn(&SourceReport) -> usize| text.sources.iter().map(count).sum::<usize>() as u64;
    CalibrationRecord {
        sources: text.sources.iter().map(|s| s.name.clone()).collect(),
        sha256: text.windows_sha256.clone(),
        samples: text.windows_calibration,
        tokens_used: text.tokens_calibration as u64,
        tokens_random: text.tokens_random as u64,
        tokens_generated: text.tokens_generated as u64,
        tokens_held_out: text.tokens_holdout as u64,
        tokens_dropped: total(|s| s.tokens_dropped),
        tokens_truncated: total(|s| s.tokens_truncated),
    }
}

/// Names token windows by their content.
pub(crate) fn windows_sha256(windows: &[Vec<u32>]) -> String {
    let mut digest = Sha256::new();
    for window in windows {
        digest.update((window.len() as u64).to_le_bytes());
        for id in window {
            digest.update(id.to_le_bytes());
        }
    }
    hex(&digest.finalize())
}

/// Tokens of text told on each side of a token.
const CONTEXT_TOKENS: usize = 8;

/// The scores as a record; `None` where there was no reference. `decode` makes token ids text.
pub(crate) fn evaluation(
    name: &str,
    scores: &Evaluation,
    text: &EvaluationText,
    decode: &dyn Fn(&[u32]) -> String,
) -> Option<EvaluationRecord> {
    let against = scores.against.as_ref()?;
    Some(EvaluationRecord {
        text: name.to_owned(),
        sha256: windows_sha256(&text.windows),
        windows: scores.windows,
        sequence_length: text.windows.first().map_or(0, Vec::len),
        tokens: scores.tokens as u64,
        vocab_size: Some(scores.vocab_size),
        verdict: verdict_scores(scores).map(|scores| scores.verdict()),
        perplexity_float: against.perplexity_float,
        perplexity_float_se: against.perplexity_float_se,
        perplexity: scores.perplexity,
        perplexity_se: scores.perplexity_se,
        kl_mean: against.kl_mean,
        kl_mean_se: against.kl_mean_se,
        kl_median: against.kl_median,
        kl_p99: against.kl_p99,
        top1_agreement: against.top1_agreement,
        stream_error: against.stream_error.clone(),
        worst_tokens: against
            .worst_tokens
            .iter()
            .map(|worst| in_context(worst, text, decode))
            .collect(),
    })
}

/// What the verdict on a model is drawn from; none where it was scored without a reference.
pub fn verdict_scores(scores: &Evaluation) -> Option<Scores> {
    let against = scores.against.as_ref()?;
    Some(Scores {
        perplexity_float: against.perplexity_float,
        perplexity: scores.perplexity,
        kl_mean: against.kl_mean,
        vocab_size: Some(scores.vocab_size),
    })
}

fn in_context(
    worst: &WorstToken,
    text: &EvaluationText,
    decode: &dyn Fn(&[u32]) -> String,
) -> TokenRecord {
    let (ids, at) = (&text.windows[worst.window], worst.position);
    let from = at.saturating_sub(CONTEXT_TOKENS);
    let to = ids.len().min(at + 1 + CONTEXT_TOKENS);
    // Decoded from the front, since some tokenizers decode the first token without its space.
    let whole = decode(&ids[from..to]);
    let (upto, through) = (decode(&ids[from..at]), decode(&ids[from..=at]));
    let cut = through
        .strip_prefix(&upto)
        .zip(whole.strip_prefix(&through))
        .map(|(token, after)| (token.to_owned(), after.to_owned()));
    // A character cut in two decodes otherwise alone than in its place.
    let (token, after) = cut.unwrap_or_else(|| (decode(&ids[at..=at]), decode(&ids[at + 1..to])));
    TokenRecord {
        window: text.indices[worst.window],
        position: at,
        kl: worst.kl,
        before: upto,
        token,
        after,
        probability_float: (-worst.nll_reference).exp(),
        probability: (-worst.nll).exp(),
        top_float: decode(&[worst.top_reference as u32]),
        top: decode(&[worst.top as u32]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: usize, decode: &dyn Fn(&[u32]) -> String) -> TokenRecord {
        let text = EvaluationText {
            windows: vec![vec![], (10..40).collect()],
            indices: vec![2, 7],
            n_available: 8,
            n_tokens: 240,
            tokens_dropped_at_end: 0,
            warnings: vec![],
        };
        let worst = WorstToken {
            window: 1,
            position,
            kl: 2.0,
            nll_reference: 0.0,
            nll: 1.0,
            top_reference: 11,
            top: 12,
        };
        in_context(&worst, &text, decode)
    }

    #[test]
    fn a_token_is_told_with_eight_on_each_side_where_there_are_so_many() {
        let decode = |ids: &[u32]| ids.iter().map(|id| format!(" {id}")).collect::<String>();
        let middle = at(20, &decode);
        assert_eq!(middle.before, " 22 23 24 25 26 27 28 29");
        assert_eq!((middle.token.as_str(), middle.window), (" 30", 7));
        assert_eq!(middle.after, " 31 32 33 34 35 36 37 38");
        assert_eq!(
            (middle.top_float.as_str(), middle.top.as_str()),
            (" 11", " 12")
        );
        let (first, last) = (at(1, &decode), at(29, &decode));
        assert_eq!(
            (first.before.as_str(), first.token.as_str()),
            (" 10", " 11")
        );
        assert_eq!((last.token.as_str(), last.after.as_str()), (" 39", ""));
    }

    #[test]
    fn text_that_does_not_decode_piece_by_piece_is_still_told() {
        // The last token of a stretch decodes otherwise than in the middle of one.
        let decode = |ids: &[u32]| {
            let (last, rest) = ids.split_last().unwrap();
            let rest: String = rest.iter().map(u32::to_string).collect();
            format!("{rest}[{last}]")
        };
        let found = at(20, &decode);
        assert_eq!(found.token, "[30]");
        assert_eq!(found.after, "31323334353637[38]");
    }
}
