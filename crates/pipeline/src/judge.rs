//! The loss of any weight, however it came about.

use anyhow::Result;
use halfbyte_calibrate::{LinearStats, StageStats};
use halfbyte_quant::{ActivationStats, Scheme};
use halfbyte_report::LinearRecord;
use halfbyte_solve::dense_loss;

use crate::stage::{matrix, pick, plain_rounding};

/// Measures any weight by the statistics that the model's output feels.
pub(crate) struct Judge<'a> {
    stats: &'a LinearStats,
    weight: &'a [f32],
    columns: usize,
    /// `tr(W H Wᵀ)` on the calibration text.
    pub(crate) signal: f64,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(stats: &'a LinearStats, weight: &'a [f32], columns: usize) -> Result<Self> {
        let mut judge = Self {
            stats,
            weight,
            columns,
            signal: 0.0,
        };
        judge.signal = judge.loss(&vec![0.0; weight.len()])?;
        Ok(judge)
    }

    /// `tr(Δ H Δᵀ)` on the calibration text.
    pub(crate) fn loss(&self, values: &[f32]) -> Result<f64> {
        let loss = self.sum(values, |stats| Some(&stats.calibration))?;
        Ok(loss.unwrap_or(0.0))
    }

    /// Row parts together; none where a part has no such statistics.
    fn sum(
        &self,
        values: &[f32],
        of: fn(&StageStats) -> Option<&ActivationStats>,
    ) -> Result<Option<f64>> {
        let mut sum = 0.0;
        for part in &self.stats.parts {
            let Some(stats) = of(&part.stats) else {
                return Ok(None);
            };
            let rows = part.rows.as_deref();
            let weight = pick(self.weight, rows, self.columns);
            let values = pick(values, rows, self.columns);
            sum += dense_loss(matrix(&weight, self.columns), &values, Some(stats))?.absolute;
        }
        Ok(Some(sum))
    }

    /// Gives the record of a weight that was solved without text the losses that text would show, so that cells
    /// compare.
    pub(crate) fn judge(
        &self,
        record: &mut LinearRecord,
        values: &[f32],
        scheme: &Scheme,
    ) -> Result<()> {
        let rounded = plain_rounding(matrix(self.weight, self.columns), scheme)?;
        let zeros = vec![0.0; self.weight.len()];
        let relative = |values: &[f32], of: fn(&StageStats) -> Option<&ActivationStats>| {
            let (loss, signal) = (self.sum(values, of)?, self.sum(&zeros, of)?);
            let both = loss.zip(signal);
            anyhow::Ok(both.map(|(loss, signal)| if signal > 0.0 { loss / signal } else { 0.0 }))
        };
        let seen: fn(&StageStats) -> Option<&ActivationStats> = |stats| Some(&stats.calibration);
        let held: fn(&StageStats) -> Option<&ActivationStats> = |stats| stats.holdout.as_ref();
        record.relative_loss = relative(values, seen)?.unwrap_or(record.relative_loss);
        record.relative_loss_heldout = relative(values, held)?;
        record.relative_loss_rtn = relative(&rounded, seen)?.unwrap_or(record.relative_loss_rtn);
        record.relative_loss_rtn_heldout = relative(&rounded, held)?;
        Ok(())
    }
}
