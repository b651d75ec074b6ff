//! One linear from its statistics to its codes and its record: the only place where statistics meet a solver.

use std::time::Instant;

use anyhow::{Context, Result};
use faer::MatRef;
use halfbyte_calibrate::{LinearStats, RowStats};
use halfbyte_model::LinearKind;
use halfbyte_quant::Scheme;
use halfbyte_report::{HessianKind, LinearRecord};
use halfbyte_solve::{Factor, GptqOptions, RtnOptions, Solution, factor, gptq, loss, rtn};
use rayon::prelude::*;

use crate::config::{Damp, Method, Pipeline, Recipe, SignedScales};
use crate::work::Solved;

/// Bits up to which the best recipe keeps several partial solutions a row, and how many.
const WIDE_BITS: u8 = 3;
const BEAM: usize = 4;

/// A method with its options, settled once a run.
#[derive(Clone, Debug)]
pub(crate) enum Solver {
    /// Plain rounding, or rounding on a searched grid.
    Rtn(RtnOptions),
    /// GPTQ.
    Gptq {
        options: GptqOptions,
        /// Whether v is solved by the attention-mixed Hessian.
        mixed: bool,
        /// Whether tokens are weighted by how much the loss feels them, and codes searched wider at few bits.
        best: bool,
    },
}

impl Solver {
    /// What the pipeline asks for. `negative_scales_known` says whether every consumer of the exported formats is
    /// known to take them.
    pub(crate) fn new(pipeline: &Pipeline, negative_scales_known: bool) -> Self {
        let quant = &pipeline.quant;
        let signed_scales = match quant.signed_scales {
            SignedScales::Auto => negative_scales_known,
            SignedScales::On => true,
            SignedScales::Off => false,
        };
        let damp = match quant.damp_percent {
            Damp::Auto => None,
            Damp::Fraction(p) => Some(halfbyte_solve::Damp::Percent(p)),
        };
        match (pipeline.method, pipeline.recipe) {
            (Method::Rtn, Recipe::Reference) => Self::Rtn(RtnOptions::default()),
            (Method::Rtn, _) => Self::Rtn(RtnOptions {
                signed_scales,
                ..RtnOptions::search()
            }),
            (_, recipe) => {
                let reference = recipe == Recipe::Reference;
                let base = if reference {
                    GptqOptions::reference()
                } else {
                    GptqOptions::default()
                };
                let options = GptqOptions {
                    desc_act: quant.desc_act,
                    static_groups: quant.static_groups,
                    damp: damp.unwrap_or(base.damp),
                    scale_dtype: halfbyte_solve::ScaleDtype::Portable,
                    signed_scales: signed_scales && !reference,
                    ..base
                };
                Self::Gptq {
                    options,
                    mixed: !reference,
                    best: recipe == Recipe::Best,
                }
            }
        }
    }

    /// The method's name in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rtn(_) => "rtn",
            Self::Gptq { .. } => "gptq",
        }
    }

    /// Whether tokens are to be weighted by how much the loss feels them.
    pub(crate) fn wants_loss_weights(&self) -> bool {
        matches!(self, Self::Gptq { best: true, .. })
    }

    /// Whether v wants the attention-mixed statistics.
    pub(crate) fn wants_mixed(&self) -> bool {
        matches!(self, Self::Gptq { mixed: true, .. })
    }
}

/// A weight to solve: `[out_features, in_features]` row-major.
pub(crate) struct Task<'a> {
    pub(crate) block: usize,
    pub(crate) kind: LinearKind,
    pub(crate) weight: &'a [f32],
    pub(crate) shape: [usize; 2],
    pub(crate) scheme: Scheme,
    /// Bytes of the weight in the source.
    pub(crate) bytes_before: u64,
}

/// Statistics ready to solve from: one set for all rows, or for some rows each.
pub(crate) struct Prepared<'a> {
    parts: Vec<(&'a RowStats, Option<Factor>)>,
    mixed: bool,
    seconds: f64,
}

impl<'a> Prepared<'a> {
    /// Factors what the solver needs; shared by every linear that sees these inputs.
    pub(crate) fn new(solver: &Solver, linears: &'a LinearStats) -> Result<Self> {
        let start = Instant::now();
        let factored = linears.parts.par_iter().map(|part| {
            let factor = match solver {
                Solver::Rtn(_) => None,
                Solver::Gptq { options, .. } => Some(factor(&part.stats.calibration, options)?),
            };
            anyhow::Ok((part, factor))
        });
        let parts = factored.collect::<Result<Vec<_>>>()?;
        let mixed = linears.kinds == [LinearKind::V];
        Ok(Self {
            mixed,
            parts,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// Books the factor's time to the first linear solved from it, not to every one.
    pub(crate) fn count_once(&mut self) {
        self.seconds = 0.0;
    }

    /// Solves one linear and measures it, and plain rounding beside it, on both texts.
    pub(crate) fn solve(&self, solver: &Solver, task: &Task<'_>) -> Result<(Solved, LinearRecord)> {
        let module = task.kind.module(task.block);
        self.solve_parts(solver, task, &module)
            .with_context(|| format!("block {}, {module}", task.block))
    }

    fn solve_parts(
        &self,
        solver: &Solver,
        task: &Task<'_>,
        module: &str,
    ) -> Result<(Solved, LinearRecord)> {
        let start = Instant::now();
        let [out, in_] = task.shape;
        let (mut solutions, mut plain) = (Vec::new(), Vec::new());
        let (mut heldout, mut plain_heldout) = (Vec::new(), Vec::new());
        let mut order: Vec<usize> = Vec::with_capacity(out);
        for (RowStats { rows, stats }, factor) in &self.parts {
            let picked: Vec<f32>;
            let weight = match rows {
                None => {
                    order.extend(0..out);
                    task.weight
                }
                Some(rows) => {
                    order.extend(rows);
                    picked = rows
                        .iter()
                        .flat_map(|&r| &task.weight[r * in_..(r + 1) * in_])
                        .copied()
                        .collect();
                    &picked
                }
            };
            let weight = MatRef::from_row_major_slice(weight, weight.len() / in_, in_);
            let solution = match (solver, factor) {
                (Solver::Gptq { options, best, .. }, Some(factor)) => {
                    let wide = *best && task.scheme.bits() <= WIDE_BITS;
                    let options = GptqOptions {
                        beam: if wide { BEAM } else { options.beam },
                        ..options.clone()
                    };
                    gptq(weight, factor, &task.scheme, &options)?
                }
                (Solver::Rtn(options), _) => {
                    rtn(weight, Some(&stats.calibration), &task.scheme, options)?
                }
                (Solver::Gptq { .. }, None) => unreachable!("gptq was prepared with a factor"),
            };
            let rounded = rtn(
                weight,
                Some(&stats.calibration),
                &task.scheme,
                &RtnOptions::default(),
            )?;
            if let Some(held) = &stats.holdout {
                heldout.push(loss(weight, &solution.weight, held)?);
                plain_heldout.push(loss(weight, &rounded.weight, held)?);
            }
            solutions.push(solution);
            plain.push(rounded);
        }
        let tokens = self
            .parts
            .iter()
            .map(|(part, _)| part.stats.calibration.n_tokens)
            .min()
            .unwrap_or(0);
        let solution = Solution::stack(solutions)?;
        let plain = Solution::stack(plain)?;
        let record = LinearRecord {
            block: task.block,
            linear: module.to_owned(),
            out_features: out,
            in_features: in_,
            bits: task.scheme.bits(),
            group_size: task.scheme.group_size().as_i64(),
            sym: task.scheme.sym(),
            method: solver.name().to_owned(),
            bits_per_weight: task.scheme.bits_per_weight(in_),
            tokens,
            relative_loss: solution.relative_loss,
            relative_loss_heldout: together(&heldout),
            relative_loss_rtn: plain.relative_loss,
            relative_loss_rtn_heldout: together(&plain_heldout),
            sqnr_db: solution.sqnr_db.is_finite().then_some(solution.sqnr_db),
            cosine: Some(solution.cosine),
            damp_asked: Some(solution.damp_asked),
            damp_used: solution.damp_used,
            dead_columns: solution.dead_columns,
            condition: Some(solution.condition),
            clipped_share: solution.clipped_share,
            seconds: start.elapsed().as_secs_f64() + self.seconds,
            warnings: solution.warnings.clone(),
            bytes_before: task.bytes_before,
            bytes_after: solution.weight.packed_bytes(),
            hessian: match (solver.wants_loss_weights(), self.mixed) {
                (true, _) => HessianKind::LossWeighted,
                (false, true) => HessianKind::AttentionMixed,
                (false, false) => HessianKind::Input,
            },
        };
        Ok((
            Solved {
                module: module.to_owned(),
                weight: solution.weight.scatter_rows(&order)?,
            },
            record,
        ))
    }
}

/// The relative loss of row parts together: losses and signals add.
fn together(parts: &[halfbyte_solve::Loss]) -> Option<f64> {
    if parts.is_empty() {
        return None;
    }
    let loss: f64 = parts.iter().map(|p| p.absolute).sum();
    let signal: f64 = parts
        .iter()
        .filter(|p| p.relative > 0.0)
        .map(|p| p.absolute / p.relative)
        .sum();
    Some(if signal > 0.0 { loss / signal } else { 0.0 })
}
