//! What a solve gives back: the codes, and what they cost.

use halfbyte_quant::{QuantizedWeight, WeightError};

/// A solved weight and the figures of its error, all recomputed from the codes and scales as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Codes, scales, zero points.
    pub weight: QuantizedWeight,
    /// `tr(Δ H Δᵀ)`, `Δ = W − Ŵ`, by the undamped `H` (`H = I` where no statistics were given).
    pub loss: f64,
    /// `loss / tr(W H Wᵀ)`; 0 when both are.
    pub relative_loss: f64,
    /// `10 log10(‖W‖² / ‖Δ‖²)` in decibels, of the weight itself; infinite when exact.
    pub sqnr_db: f64,
    /// Cosine between outputs before and after, `tr(W H Ŵᵀ) / √(tr(W H Wᵀ) tr(Ŵ H Ŵᵀ))`; 1 when both are zero.
    pub cosine: f64,
    /// Share of weights farther than half a step outside the levels of their group.
    pub clipped_share: f64,
    /// Damping asked for, a fraction of the mean diagonal; 0 for RTN.
    pub damp_asked: f64,
    /// Damping that let the Cholesky succeed; the largest one of stacked parts.
    pub damp_used: f64,
    /// Input features never active in calibration; the largest count of stacked parts.
    pub dead_columns: usize,
    /// Lower bound of the condition number of the damped `H`, from its pivots; 1 for RTN.
    pub condition: f64,
    /// What a user should hear.
    pub warnings: Vec<String>,
    pub(crate) sums: Sums,
}

/// The sums every figure of error derives from; sums of stacked rows add.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sums {
    /// `tr(Δ H Δᵀ)`.
    pub(crate) loss: f64,
    /// `tr(W H Wᵀ)`.
    pub(crate) signal: f64,
    /// `tr(W H Δᵀ)`.
    pub(crate) cross: f64,
    /// `‖Δ‖²`.
    pub(crate) weight_noise: f64,
    /// `‖W‖²`.
    pub(crate) weight_energy: f64,
    pub(crate) clipped: usize,
    pub(crate) weights: usize,
}

impl Sums {
    pub(crate) fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.signal += other.signal;
        self.cross += other.cross;
        self.weight_noise += other.weight_noise;
        self.weight_energy += other.weight_energy;
        self.clipped += other.clipped;
        self.weights += other.weights;
    }

    pub(crate) fn relative_loss(&self) -> f64 {
        if self.signal > 0.0 {
            self.loss / self.signal
        } else {
            0.0
        }
    }

    pub(crate) fn sqnr_db(&self) -> f64 {
        if self.weight_noise == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.weight_energy / self.weight_noise).log10()
    }

    pub(crate) fn cosine(&self) -> f64 {
        let quantized = self.signal - 2.0 * self.cross + self.loss;
        match (self.signal > 0.0, quantized > 0.0) {
            (true, true) => (self.signal - self.cross) / (self.signal * quantized).sqrt(),
            (false, false) => 1.0,
            _ => 0.0,
        }
    }

    fn clipped_share(&self) -> f64 {
        self.clipped as f64 / self.weights.max(1) as f64
    }
}

impl Solution {
    pub(crate) fn new(weight: QuantizedWeight, sums: Sums) -> Self {
        Self {
            weight,
            loss: sums.loss,
            relative_loss: sums.relative_loss(),
            sqnr_db: sums.sqnr_db(),
            cosine: sums.cosine(),
            clipped_share: sums.clipped_share(),
            damp_asked: 0.0,
            damp_used: 0.0,
            dead_columns: 0,
            condition: 1.0,
            warnings: Vec::new(),
            sums,
        }
    }

    /// Joins row blocks solved with different Hessians, first to last: v's kv heads become one weight. Losses add;
    /// damping, dead columns and condition are those of the worst part; warnings name their part.
    pub fn stack(parts: Vec<Self>) -> Result<Self, WeightError> {
        let mut sums = Sums::default();
        let mut weights = Vec::with_capacity(parts.len());
        let mut worst = (0.0f64, 0.0f64, 0, 1.0f64);
        let mut warnings = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            sums.add(&part.sums);
            worst = (
                worst.0.max(part.damp_asked),
                worst.1.max(part.damp_used),
                worst.2.max(part.dead_columns),
                worst.3.max(part.condition),
            );
            warnings.extend(
                part.warnings
                    .iter()
                    .map(|w| format!("rows of part {index}: {w}")),
            );
            weights.push(part.weight);
        }
        let mut whole = Self::new(QuantizedWeight::stack(weights)?, sums);
        (
            whole.damp_asked,
            whole.damp_used,
            whole.dead_columns,
            whole.condition,
        ) = worst;
        whole.warnings = warnings;
        Ok(whole)
    }
}
