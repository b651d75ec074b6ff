//! One linear from its statistics to its codes and its record: the only place where statistics meet a solver.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};
use faer::MatRef;
use halfbyte_calibrate::{LinearStats, StageStats};
use halfbyte_model::LinearKind;
use halfbyte_quant::{ActivationStats, Codebook, CodedWeight, GroupSize, Scheme};
use halfbyte_report::{HessianKind, LinearRecord};
use halfbyte_solve::awq::search_clip;
use halfbyte_solve::{
    ChannelPeaks, CodebookOptions, Factor, GptqOptions, Granularity, HqqOptions, InputSpread, Loss,
    OutlierSplit, RtnOptions, ScaleDtype, Solution, Target, absmax, codebook, corrected_target,
    dense_loss, expected_loss, factor, gptq, gptq_coupled, hqq, input_spread, loss, outlier_split,
    rtn, rtn_clipped,
};
use rayon::prelude::*;

use crate::config::{Damp, Method, Pipeline, Recipe};
use crate::fallback::{Attempts, FellBack};
use crate::recipe::Beam;
use crate::scale::ChannelScales;
use crate::work::Solved;

/// Magnitude from which on LLM.int8() takes an input column for an outlier (Dettmers et al., arXiv 2208.07339,
/// section 3).
const OUTLIER: f32 = 6.0;

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
        /// Where codes are searched wider, if they are.
        beam: Option<Beam>,
    },
    /// Rounding under clipped ranges; the scaling before it is [`crate::scale`]'s.
    Awq {
        /// How ranges are found where clipping is not better, or not done.
        rounding: RtnOptions,
        /// Whether v is solved by the attention-mixed Hessian, and ranges are searched beside clipping them.
        ours: bool,
    },
    /// Zero points from the weights alone.
    Hqq(HqqOptions),
    /// 8 bits by the largest magnitude.
    Absmax,
    /// The levels of a codebook; block sizes are the schemes' groups.
    Codebook(CodebookOptions),
}

impl Solver {
    /// What the pipeline asks for, with the recipe's beam.
    pub(crate) fn new(pipeline: &Pipeline, signed_scales: bool, beam: Option<Beam>) -> Self {
        let quant = &pipeline.quant;
        let damp = match quant.damp_percent {
            Damp::Auto => None,
            Damp::Fraction(p) => Some(halfbyte_solve::Damp::Percent(p)),
        };
        let searched = RtnOptions {
            signed_scales,
            ..RtnOptions::search()
        };
        match (pipeline.method, pipeline.recipe) {
            (Method::Rtn, Recipe::Reference) => Self::Rtn(RtnOptions::default()),
            (Method::Rtn, _) => Self::Rtn(searched),
            (Method::Awq, Recipe::Reference) => Self::Awq {
                rounding: RtnOptions::default(),
                ours: false,
            },
            (Method::Awq, _) => Self::Awq {
                rounding: searched,
                ours: true,
            },
            (Method::Hqq, _) => Self::Hqq(HqqOptions::default()),
            (Method::Absmax, _) => Self::Absmax,
            (Method::Nf4, recipe) => Self::codebook(Codebook::Nf4, recipe, quant.double_quant),
            (Method::Fp4, recipe) => Self::codebook(Codebook::Fp4, recipe, quant.double_quant),
            (Method::Gptq | Method::AwqGptq, recipe) => {
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
                    beam,
                }
            }
        }
    }

    fn codebook(codebook: Codebook, recipe: Recipe, double_quant: bool) -> Self {
        let base = match recipe {
            Recipe::Reference => CodebookOptions::reference(),
            _ => CodebookOptions::default(),
        };
        Self::Codebook(CodebookOptions {
            codebook,
            double_quant,
            ..base
        })
    }

    /// The same without what looks beyond a row and one solution of it.
    pub(crate) fn ordinary(&self) -> Self {
        match self {
            Self::Gptq { options, mixed, .. } => Self::Gptq {
                options: options.clone(),
                mixed: *mixed,
                beam: None,
            },
            other => other.clone(),
        }
    }

    /// What the statistics are factored into, for a method that solves from that; `balance` is the solver's of that name.
    fn factor(&self, stats: &ActivationStats, balance: f64) -> Result<Option<Factor>> {
        Ok(match self {
            Self::Gptq { options, .. } => {
                let options = GptqOptions {
                    balance,
                    ..options.clone()
                };
                Some(factor(stats, &options)?)
            }
            _ => None,
        })
    }

    /// What the sum of a row's errors weighs where a scheme has the solver mind it.
    fn balance(&self, scheme: &Scheme) -> f64 {
        match self {
            Self::Gptq { options, .. } => options.wanted_balance(scheme),
            _ => 0.0,
        }
    }

    /// Solves some rows of a linear on a grid; `row_factors` are of the Hessians of consecutive ranges of them, if of any.
    pub(crate) fn solve(
        &self,
        weight: MatRef<'_, f32>,
        seen: Option<&ActivationStats>,
        factor: Option<&Factor>,
        row_factors: &[Factor],
        kind: LinearKind,
        scheme: &Scheme,
    ) -> Result<Solution> {
        Ok(match (self, factor) {
            (Self::Gptq { options, beam, .. }, Some(factor)) => {
                let wide = beam.filter(|beam| scheme.bits() <= beam.most_bits);
                let options = GptqOptions {
                    beam: wide.map_or(options.beam, |beam| beam.width),
                    ..options.clone()
                };
                if row_factors.is_empty() {
                    return Ok(gptq(weight, factor, scheme, &options)?);
                }
                let mut first = 0;
                let ranges = row_factors.iter().map(|rows| {
                    first += rows.in_features();
                    let start = first - rows.in_features();
                    (weight.subrows(start, rows.in_features()), rows)
                });
                let ranges: Vec<_> = ranges.collect();
                let solved = ranges
                    .par_iter()
                    .map(|(range, rows)| gptq_coupled(*range, factor, rows, scheme, &options));
                let mut solutions = solved.collect::<Result<Vec<_>, _>>()?;
                match solutions.len() {
                    1 => solutions.swap_remove(0),
                    _ => Solution::stack(solutions)?,
                }
            }
            (Self::Gptq { .. }, None) => unreachable!("gptq was prepared with a factor"),
            (Self::Rtn(options), _) => rtn(weight, seen, scheme, options)?,
            (Self::Awq { rounding, ours }, _) => {
                let stats = seen.context("awq was prepared with statistics")?;
                let clips = !matches!(kind, LinearKind::Q | LinearKind::K);
                awq(weight, stats, scheme, rounding, clips, *ours)?
            }
            (Self::Hqq(options), _) => hqq(weight, seen, scheme, options)?,
            (Self::Absmax, _) => {
                let granularity = match scheme.group_size() {
                    GroupSize::Tensor => Granularity::Tensor,
                    GroupSize::Channel => Granularity::Channel,
                    GroupSize::Columns(columns) => Granularity::Group(columns),
                };
                absmax(weight, seen, granularity, ScaleDtype::Portable)?
            }
            (Self::Codebook(_), _) => unreachable!("codebooks are solved apart from grids"),
        })
    }

    /// What its factors depend on beside the statistics; none where it needs no factor.
    pub(crate) fn factor_key(
        &self,
    ) -> Option<(halfbyte_solve::Recipe, bool, halfbyte_solve::Damp)> {
        match self {
            Self::Gptq { options, .. } => Some((options.recipe, options.desc_act, options.damp)),
            _ => None,
        }
    }

    /// Whether codes depend on the calibration text.
    pub(crate) fn is_calibrated(&self) -> bool {
        match self {
            Self::Gptq { .. } | Self::Awq { .. } => true,
            Self::Rtn(options) => *options != RtnOptions::default(),
            Self::Hqq(_) | Self::Absmax | Self::Codebook(_) => false,
        }
    }

    /// Where codes are searched wider, if they are.
    pub(crate) fn beam(&self) -> Option<Beam> {
        match self {
            Self::Gptq { beam, .. } => *beam,
            _ => None,
        }
    }

    /// Whether another solve may stand in for its own: not where it is to be another tool's to the bit, or sees no text.
    fn may_fall_back(&self) -> bool {
        match self {
            Self::Gptq { options, .. } => options.recipe == halfbyte_solve::Recipe::Default,
            Self::Awq { ours, .. } => *ours,
            Self::Rtn(options) => *options != RtnOptions::default(),
            Self::Hqq(_) | Self::Absmax | Self::Codebook(_) => false,
        }
    }

    /// Whether v wants the attention-mixed statistics.
    pub(crate) fn wants_mixed(&self) -> bool {
        matches!(
            self,
            Self::Gptq { mixed: true, .. } | Self::Awq { ours: true, .. }
        )
    }
}

/// A weight to solve: `[out_features, in_features]` row-major.
pub(crate) struct Task<'a> {
    pub(crate) block: usize,
    pub(crate) kind: LinearKind,
    pub(crate) weight: &'a [f32],
    pub(crate) shape: [usize; 2],
    pub(crate) scheme: Scheme,
    /// As the pipeline spells it.
    pub(crate) method: Method,
    /// Factors of its row Hessians, one after another for all rows; none where rows are solved by themselves.
    pub(crate) row_factors: Vec<Factor>,
    /// The weight before its channels were scaled, where they were.
    pub(crate) unscaled: Option<Unscaled<'a>>,
    /// Bytes of the weight in the source.
    pub(crate) bytes_before: u64,
    /// Whether to say what LLM.int8() would keep.
    pub(crate) llm_int8: bool,
    /// Largest magnitudes of the linear's input, where its statistics are not of that input itself.
    pub(crate) peaks: Option<&'a Vec<f32>>,
}

/// What a scaled weight was: `weight = columns * unscaled / rows`.
pub(crate) struct Unscaled<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) scales: &'a ChannelScales,
}

/// Statistics ready to solve from: one set for all rows, or for some rows each.
pub(crate) struct Prepared<'a> {
    pub(crate) parts: Vec<Part<'a>>,
    hessian: HessianKind,
    seconds: f64,
}

/// What some rows, or all, are solved from; methods that read no text have no statistics.
pub(crate) struct Part<'a> {
    pub(crate) rows: Option<&'a [usize]>,
    pub(crate) stats: Option<&'a StageStats>,
    spread: Option<InputSpread>,
    pub(crate) factors: Factors,
}

/// Statistics factored as the schemes to solve by them want it: once for most, once more where one wants its errors
/// balanced.
#[derive(Clone, Default)]
pub(crate) struct Factors {
    usual: Option<Factor>,
    balanced: OnceLock<Option<Factor>>,
}

impl Factors {
    pub(crate) fn new(solver: &Solver, stats: &ActivationStats) -> Result<Self> {
        Ok(Self {
            usual: solver.factor(stats, 0.0)?,
            balanced: OnceLock::new(),
        })
    }

    /// The one for a scheme; none where the method needs none.
    pub(crate) fn of(
        &self,
        solver: &Solver,
        stats: Option<&ActivationStats>,
        scheme: &Scheme,
    ) -> Result<Option<&Factor>> {
        let balance = solver.balance(scheme);
        let Some(stats) = stats.filter(|_| balance > 0.0) else {
            return Ok(self.usual.as_ref());
        };
        if self.balanced.get().is_none() {
            // another thread may be first, with the same bits
            let _ = self.balanced.set(solver.factor(stats, balance)?);
        }
        Ok(self.balanced.get().and_then(Option::as_ref))
    }
}

impl<'a> Prepared<'a> {
    /// Factors what the solver needs; shared by every linear that sees these inputs.
    pub(crate) fn new(solver: &Solver, linears: &'a LinearStats) -> Result<Self> {
        let start = Instant::now();
        let factored = linears.parts.par_iter().map(|part| {
            anyhow::Ok(Part {
                rows: part.rows.as_deref(),
                stats: Some(&part.stats),
                spread: Some(input_spread(&part.stats.calibration)),
                factors: Factors::new(solver, &part.stats.calibration)?,
            })
        });
        let parts = factored.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            parts,
            hessian: if linears.kinds == [LinearKind::V] {
                HessianKind::AttentionMixed
            } else {
                HessianKind::Input
            },
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// What a method that reads no text solves from.
    pub(crate) fn without_text() -> Self {
        Self {
            parts: vec![Part {
                rows: None,
                stats: None,
                spread: None,
                factors: Factors::default(),
            }],
            hessian: HessianKind::Identity,
            seconds: 0.0,
        }
    }

    /// Books the factor's time to the first linear solved from it, not to every one.
    pub(crate) fn count_once(&mut self) {
        self.seconds = 0.0;
    }

    /// Solves one linear and measures it, and plain rounding beside it, on both texts.
    pub(crate) fn solve(&self, solver: &Solver, task: &Task<'_>) -> Result<(Solved, LinearRecord)> {
        let module = task.kind.module(task.block);
        let start = Instant::now();
        let place = || format!("block {}, {module}", task.block);
        let outcome = match solver {
            Solver::Codebook(options) => solve_codebook(options, task),
            _ => self.solve_parts(solver, task),
        };
        let outcome = outcome.with_context(place)?;
        let record = self.record(task, &module, &outcome, start.elapsed().as_secs_f64());
        let weight = outcome.weight;
        Ok((Solved { module, weight }, record))
    }

    /// What solving a weight of `shape` `[out_features, in_features]` costs, `tr(Δ H Δᵀ)` over all its rows.
    pub(crate) fn loss(
        &self,
        solver: &Solver,
        kind: LinearKind,
        weight: &[f32],
        [_, in_]: [usize; 2],
        scheme: &Scheme,
    ) -> Result<f64> {
        let mut sum = 0.0;
        for Part {
            rows,
            stats,
            factors,
            ..
        } in &self.parts
        {
            let seen = stats.map(|stats| &stats.calibration);
            let weight = pick(weight, *rows, in_);
            let weight = matrix(&weight, in_);
            let factor = factors.of(solver, seen, scheme)?;
            let solution = solver.solve(weight, seen, factor, &[], kind, scheme)?;
            sum += solution.loss;
        }
        Ok(sum)
    }

    fn solve_parts(&self, solver: &Solver, task: &Task<'_>) -> Result<Outcome<'_>> {
        let [out, in_] = task.shape;
        let (mut pieces, mut splits) = (Vec::new(), Vec::new());
        let (mut plain, mut plain_heldout) = (Vec::new(), Vec::new());
        let mut order: Vec<usize> = Vec::with_capacity(out);
        let mut prospect = Prospect {
            spreads: self
                .parts
                .iter()
                .filter_map(|p| p.spread.as_ref())
                .collect(),
            ..Prospect::default()
        };
        let per_part = task.row_factors.len() / self.parts.len();
        for (
            index,
            Part {
                rows,
                stats,
                factors,
                ..
            },
        ) in self.parts.iter().enumerate()
        {
            let first = order.len();
            match rows {
                None => order.extend(0..out),
                Some(rows) => order.extend(*rows),
            }
            let owned = pick(task.weight, *rows, in_);
            let weight = matrix(&owned, in_);
            let seen = stats.map(|stats| &stats.calibration);
            let held = stats.and_then(|stats| stats.holdout.as_ref());
            let target = target(weight, *stats)?;
            let aimed = target.as_ref().map_or(weight, |t| matrix(&t.weight, in_));
            let row_factors = &task.row_factors[index * per_part..][..per_part];
            let factor = factors.of(solver, seen, &task.scheme)?;
            let solution =
                solver.solve(aimed, seen, factor, row_factors, task.kind, &task.scheme)?;
            let rounded = match &task.unscaled {
                None => plain_rounding(weight, &task.scheme)?,
                Some(Unscaled { weight, scales }) => {
                    let weight = pick(weight, *rows, in_);
                    let mut rounded = plain_rounding(matrix(&weight, in_), &task.scheme)?;
                    scales.scale(&mut rounded, &order[first..]);
                    rounded
                }
            };
            plain.push(dense_loss(weight, &rounded, seen)?);
            let judging = held.or(seen);
            let heldout = held.map(|held| loss(aimed, &solution.weight, held));
            if held.is_some() {
                plain_heldout.push(dense_loss(weight, &rounded, held)?);
            }
            let rounding = match &target {
                Some(_) => dense_loss(aimed, &rounded, judging)?,
                None => *plain_heldout
                    .last()
                    .filter(|_| held.is_some())
                    .unwrap_or(&plain[index]),
            };
            if let Some(stats) = stats.filter(|_| task.llm_int8) {
                let peaks = ChannelPeaks::Measured(task.peaks.unwrap_or(&stats.max_abs));
                splits.push(outlier_split(weight, &stats.calibration, peaks, OUTLIER)?);
            }
            if let Some(stats) = stats {
                let usual = factors.usual.as_ref();
                prospect.add(weight, &stats.calibration, usual, &task.scheme)?;
            }
            pieces.push(Piece {
                heldout: heldout.transpose()?,
                rounding,
                solution,
                target,
                weight: owned,
                judging,
                attempts: Attempts {
                    solver,
                    seen,
                    factor,
                    row_factors,
                    kind: task.kind,
                    scheme: &task.scheme,
                },
            });
        }
        let fell_back = fall_back(solver, &mut pieces, in_)?;
        let heldout: Vec<_> = pieces.iter().filter_map(|piece| piece.heldout).collect();
        let (solutions, targets): (Vec<_>, Vec<_>) = (pieces
            .into_iter()
            .map(|piece| (piece.solution, piece.target)))
        .unzip();
        let targets: Vec<Target> = targets.into_iter().flatten().collect();
        let mean = |of: &dyn Fn(&Target) -> f64| {
            let sum: f64 = targets.iter().map(of).sum();
            (!targets.is_empty()).then(|| sum / targets.len() as f64)
        };
        let mut solution = Solution::stack(solutions)?;
        solution
            .warnings
            .extend(fell_back.as_ref().map(FellBack::warning));
        Ok(Outcome {
            weight: solution.weight.scatter_rows(&order)?.into(),
            fallback: fell_back.and_then(|fell| fell.to),
            relative_loss: solution.relative_loss,
            relative_loss_heldout: together(&heldout),
            relative_loss_rtn: together(&plain).unwrap_or(0.0),
            relative_loss_rtn_heldout: together(&plain_heldout),
            sqnr_db: solution.sqnr_db,
            cosine: solution.cosine,
            damp_asked: solution.damp_asked,
            damp_used: solution.damp_used,
            dead_columns: solution.dead_columns,
            condition: solution.condition,
            clipped_share: solution.clipped_share,
            target_alpha: mean(&|target| target.alpha),
            target_shift: mean(&|target| target.shift),
            prospect,
            int8: llm_int8(&splits),
            warnings: solution.warnings,
        })
    }

    fn record(
        &self,
        task: &Task<'_>,
        module: &str,
        outcome: &Outcome<'_>,
        seconds: f64,
    ) -> LinearRecord {
        let tokens = self
            .parts
            .iter()
            .map(|part| part.stats.map_or(0, |stats| stats.calibration.n_tokens))
            .min()
            .unwrap_or(0);
        let [out_features, in_features] = task.shape;
        let int8 = outcome.int8.as_ref();
        LinearRecord {
            block: task.block,
            linear: module.to_owned(),
            out_features,
            in_features,
            bits: task.scheme.bits(),
            group_size: task.scheme.group_size().as_i64(),
            sym: task.scheme.sym(),
            method: task.method.to_string(),
            bits_per_weight: outcome.weight.coding().bits_per_weight(task.shape),
            tokens,
            relative_loss: outcome.relative_loss,
            relative_loss_heldout: outcome.relative_loss_heldout,
            relative_loss_rtn: outcome.relative_loss_rtn,
            relative_loss_rtn_heldout: outcome.relative_loss_rtn_heldout,
            sqnr_db: outcome.sqnr_db.is_finite().then_some(outcome.sqnr_db),
            cosine: Some(outcome.cosine),
            damp_asked: Some(outcome.damp_asked),
            damp_used: outcome.damp_used,
            dead_columns: outcome.dead_columns,
            condition: Some(outcome.condition),
            clipped_share: outcome.clipped_share,
            seconds: seconds + self.seconds,
            warnings: outcome.warnings.clone(),
            bytes_before: task.bytes_before,
            bytes_after: outcome.weight.packed_bytes(),
            hessian: self.hessian,
            int8_outlier_columns: int8.map(|int8| int8.columns.clone()),
            int8_bits_per_weight: int8.map(|int8| int8.bits_per_weight),
            int8_relative_loss: int8.map(|int8| int8.relative_loss),
            int8_relative_loss_split: int8.map(|int8| int8.relative_loss_split),
            row_hessian: !task.row_factors.is_empty(),
            target_alpha: outcome.target_alpha,
            target_shift: outcome.target_shift,
            effective_rank: outcome.prospect.effective_rank(),
            outlier_channels: outcome.prospect.outlier_channels(),
            finer_group_loss: outcome.prospect.finer_group_loss(),
            predicted_kl: None,
            fallback: outcome.fallback.clone(),
            calibration_curve: Vec::new(),
        }
    }
}

/// Some rows of a linear, or all, as they are solved by one set of statistics.
struct Piece<'a> {
    weight: Cow<'a, [f32]>,
    target: Option<Target>,
    solution: Solution,
    /// What it loses on held-out text, where there is some.
    heldout: Option<Loss>,
    /// What plain rounding loses of the same aim, by `judging`.
    rounding: Loss,
    /// Held-out statistics, or the calibration's where nothing is held out.
    judging: Option<&'a ActivationStats>,
    attempts: Attempts<'a>,
}

/// Where a linear loses more than by plain rounding, or more than all it gives, its rows take the best of what can be
/// tried in the same format; none where it does not.
fn fall_back(
    solver: &Solver,
    pieces: &mut [Piece<'_>],
    columns: usize,
) -> Result<Option<FellBack>> {
    let ours = |pieces: &[Piece<'_>]| {
        let each = pieces.iter().map(|piece| {
            piece.heldout.unwrap_or(Loss {
                absolute: piece.solution.loss,
                relative: piece.solution.relative_loss,
            })
        });
        together(&each.collect::<Vec<_>>()).unwrap_or(0.0)
    };
    let before = ours(pieces);
    let rounding: Vec<_> = pieces.iter().map(|piece| piece.rounding).collect();
    let rounding = together(&rounding).unwrap_or(0.0);
    if (before <= rounding && before <= 1.0) || !solver.may_fall_back() {
        return Ok(None);
    }
    let mut to: Vec<&'static str> = Vec::new();
    for piece in &mut *pieces {
        let Some(judging) = piece.judging else {
            continue;
        };
        let aimed = match &piece.target {
            Some(target) => matrix(&target.weight, columns),
            None => matrix(&piece.weight, columns),
        };
        let Some((name, solution)) = piece.attempts.better(aimed, &piece.solution, judging)? else {
            continue;
        };
        if piece.heldout.is_some() {
            piece.heldout = Some(loss(aimed, &solution.weight, judging)?);
        }
        piece.solution = solution;
        if !to.contains(&name) {
            to.push(name);
        }
    }
    let after = ours(pieces);
    if to.is_empty()
        && pieces
            .iter()
            .any(|piece| !piece.attempts.row_factors.is_empty())
        && after <= 1.0
    {
        // by what the loss feels it is the best of all
        return Ok(None);
    }
    Ok(Some(FellBack {
        to: (!to.is_empty()).then(|| to.join(", ")),
        before,
        after,
        rounding,
        heldout: pieces.iter().all(|piece| piece.heldout.is_some()),
    }))
}

/// A solved linear and its figures, as in [`LinearRecord`].
struct Outcome<'a> {
    weight: CodedWeight,
    relative_loss: f64,
    relative_loss_heldout: Option<f64>,
    relative_loss_rtn: f64,
    relative_loss_rtn_heldout: Option<f64>,
    sqnr_db: f64,
    cosine: f64,
    damp_asked: f64,
    damp_used: f64,
    dead_columns: usize,
    condition: f64,
    clipped_share: f64,
    target_alpha: Option<f64>,
    target_shift: Option<f64>,
    prospect: Prospect<'a>,
    int8: Option<Int8>,
    warnings: Vec<String>,
    fallback: Option<String>,
}

/// Why a linear loses what it does, over its row parts.
#[derive(Default)]
struct Prospect<'a> {
    spreads: Vec<&'a InputSpread>,
    expected: f64,
    /// The same in the next finer groups; none where there are none.
    expected_finer: Option<f64>,
}

impl Prospect<'_> {
    fn add(
        &mut self,
        weight: MatRef<'_, f32>,
        stats: &ActivationStats,
        factor: Option<&Factor>,
        scheme: &Scheme,
    ) -> Result<()> {
        let pivots = match factor {
            Some(factor) => factor.pivots(),
            None => (stats.hessian.iter().step_by(stats.in_features + 1))
                .map(|d| f64::from(*d))
                .collect(),
        };
        self.expected += expected_loss(weight, &pivots, scheme);
        if let Some(group) = scheme.group_size().finer(stats.in_features) {
            let finer = Scheme::new(scheme.bits(), group, scheme.sym())?;
            let expected = expected_loss(weight, &pivots, &finer);
            self.expected_finer = Some(self.expected_finer.unwrap_or(0.0) + expected);
        }
        Ok(())
    }

    fn effective_rank(&self) -> Option<f64> {
        let sum: f64 = self
            .spreads
            .iter()
            .map(|spread| spread.effective_rank)
            .sum();
        (!self.spreads.is_empty()).then(|| sum / self.spreads.len() as f64)
    }

    /// Those of all parts, in the order in which they first come.
    fn outlier_channels(&self) -> Option<Vec<usize>> {
        let mut all: Vec<usize> = Vec::new();
        for &channel in self.spreads.iter().flat_map(|s| &s.outlier_channels) {
            if !all.contains(&channel) {
                all.push(channel);
            }
        }
        (!self.spreads.is_empty()).then_some(all)
    }

    fn finer_group_loss(&self) -> Option<f64> {
        let ratio = self.expected_finer? / self.expected;
        ratio.is_finite().then_some(ratio)
    }
}

/// What LLM.int8() would make of a linear.
struct Int8 {
    columns: Vec<usize>,
    bits_per_weight: f64,
    relative_loss: f64,
    relative_loss_split: f64,
}

/// Row parts together; none where there are none. The parts see one input, so their columns are the same.
fn llm_int8(parts: &[OutlierSplit]) -> Option<Int8> {
    let first = parts.first()?;
    let whole: Vec<_> = parts.iter().map(|part| part.loss_whole).collect();
    let signal = signal(&whole);
    let relative = |of: &dyn Fn(&OutlierSplit) -> f64| {
        let sum: f64 = parts.iter().map(of).sum();
        if signal > 0.0 { sum / signal } else { 0.0 }
    };
    Some(Int8 {
        columns: first.channels.clone(),
        bits_per_weight: first.bits_per_weight,
        relative_loss: relative(&|part| part.loss_whole.absolute + part.input_noise_whole),
        relative_loss_split: relative(&|part| part.loss_split.absolute + part.input_noise_split),
    })
}

/// Rounds a whole linear to a codebook, without statistics.
fn solve_codebook(options: &CodebookOptions, task: &Task<'_>) -> Result<Outcome<'static>> {
    let weight = matrix(task.weight, task.shape[1]);
    let options = CodebookOptions {
        block_size: task.scheme.group_len(usize::MAX),
        ..options.clone()
    };
    let solution = codebook(weight, None, &options)?;
    let rounded = plain_rounding(weight, &task.scheme)?;
    Ok(Outcome {
        weight: solution.weight.into(),
        relative_loss: solution.loss.relative,
        relative_loss_heldout: None,
        relative_loss_rtn: dense_loss(weight, &rounded, None)?.relative,
        relative_loss_rtn_heldout: None,
        sqnr_db: solution.sqnr_db,
        cosine: solution.cosine,
        damp_asked: 0.0,
        damp_used: 0.0,
        dead_columns: 0,
        condition: 1.0,
        clipped_share: solution.clipped_share,
        target_alpha: None,
        target_shift: None,
        prospect: Prospect::default(),
        int8: None,
        warnings: Vec::new(),
        fallback: None,
    })
}

/// Factors a row Hessian.
pub(crate) fn factor_rows(hessian: &ActivationStats, damp_percent: f64) -> Result<Factor> {
    let options = GptqOptions {
        damp: halfbyte_solve::Damp::Percent(damp_percent),
        ..GptqOptions::default()
    };
    Ok(factor(hessian, &options)?)
}

/// What a weight aims at, where the float model was walked too.
fn target(weight: MatRef<'_, f32>, stats: Option<&StageStats>) -> Result<Option<Target>> {
    let with_cross = |stats: &&ActivationStats| stats.cross.is_some();
    let Some(seen) = stats.map(|stats| &stats.calibration).filter(with_cross) else {
        return Ok(None);
    };
    let held = stats.and_then(|stats| stats.holdout.as_ref());
    Ok(Some(corrected_target(weight, seen, held)?))
}

/// Some rows of a weight with `columns` columns, or all.
pub(crate) fn pick<'a>(
    weight: &'a [f32],
    rows: Option<&[usize]>,
    columns: usize,
) -> Cow<'a, [f32]> {
    let of = |&row: &usize| &weight[row * columns..(row + 1) * columns];
    match rows {
        None => Cow::Borrowed(weight),
        Some(rows) => rows.iter().flat_map(of).copied().collect(),
    }
}

pub(crate) fn matrix(weight: &[f32], columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(weight, weight.len() / columns, columns)
}

/// The values that plain rounding gives, `[rows, columns]`; no statistics change them.
pub(crate) fn plain_rounding(weight: MatRef<'_, f32>, scheme: &Scheme) -> Result<Vec<f32>> {
    let solution = rtn(weight, None, scheme, &RtnOptions::default())?;
    Ok(solution.weight.dequantize())
}

/// AWQ's rounding. Ranges are clipped by their own group's error under the whole group's Hessian, which the range
/// search, going by the diagonal, does not see; of the two the better is kept where both are tried. q and k are never
/// clipped, as in the field: their products go through the softmax, which clipping disturbs more than the loss says.
fn awq(
    weight: MatRef<'_, f32>,
    stats: &ActivationStats,
    scheme: &Scheme,
    rounding: &RtnOptions,
    clips: bool,
    ours: bool,
) -> Result<Solution> {
    if !clips {
        return Ok(rtn(weight, Some(stats), scheme, rounding)?);
    }
    let plain = RtnOptions::default();
    let clip = search_clip(weight, stats, scheme, &plain)?;
    let clipped = rtn_clipped(weight, Some(stats), scheme, &plain, &clip.limits)?;
    if ours {
        let searched = rtn(weight, Some(stats), scheme, rounding)?;
        if searched.loss < clipped.loss {
            return Ok(searched);
        }
    }
    Ok(clipped)
}

/// The relative loss of row parts together: losses and signals add.
pub(crate) fn together(parts: &[halfbyte_solve::Loss]) -> Option<f64> {
    if parts.is_empty() {
        return None;
    }
    let loss: f64 = parts.iter().map(|p| p.absolute).sum();
    let signal = signal(parts);
    Some(if signal > 0.0 { loss / signal } else { 0.0 })
}

/// `tr(W H Wᵀ)` of row parts together.
fn signal(parts: &[halfbyte_solve::Loss]) -> f64 {
    parts
        .iter()
        .filter(|p| p.relative > 0.0)
        .map(|p| p.absolute / p.relative)
        .sum()
}
