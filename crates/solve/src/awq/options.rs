use crate::{GptqOptions, RtnOptions, ScaleDtype};

/// Whose grid of ratios a search walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Ours: the identity first, then ratios `i / n_grid` up to 1. Channels that were never active keep scale 1 and
    /// do not enter the normalisation; the peers give them `1e-4`, which pushes all others up.
    Default,
    /// AutoAWQ's: ratios `i / n_grid` for `i` below `n_grid`. With duo scaling the identity is not among them, and
    /// ratio 1 never is.
    AutoAwq,
    /// llm-compressor's: `n_grid` candidates in all, ratios spread evenly from 0 to 1; with duo scaling the first is
    /// the identity, with `both` plain and duo take turns on half as many ratios.
    LlmCompressor,
}

/// Whether the weights take part in the scales (`duo_scaling` in the field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuoScaling {
    /// `s = x_mean^r`.
    Off,
    /// `s = x_mean^r / (w_mean^(1-r) + 1e-4)`.
    On,
    /// Both families are tried.
    Both,
}

/// What rounds the scaled weights inside the search.
#[derive(Clone, Debug, PartialEq)]
pub enum InnerSolver {
    /// Rounding to nearest: min-max as in the field, or range-searched.
    Rtn(RtnOptions),
    /// GPTQ itself, factored anew for each candidate. Scales chosen for RTN need not help GPTQ; chosen so, and with
    /// the identity among them, they cannot hurt its calibration loss. Dear for wide inputs: a Cholesky a candidate;
    /// take `n_grid` of 5 or so.
    Gptq(GptqOptions),
}

/// How a search runs. `default()` is ours, [`autoawq()`](Self::autoawq) and
/// [`llm_compressor()`](Self::llm_compressor) are the peers' own.
#[derive(Clone, Debug, PartialEq)]
pub struct AwqOptions {
    /// Which ratios.
    pub form: Form,
    /// Which scales.
    pub duo_scaling: DuoScaling,
    /// Steps of the ratio, at least 4; 20 is usual.
    pub n_grid: usize,
    /// What rounds.
    pub solver: InnerSolver,
}

impl Default for AwqOptions {
    fn default() -> Self {
        Self {
            form: Form::Default,
            duo_scaling: DuoScaling::Both,
            n_grid: 20,
            solver: InnerSolver::Rtn(RtnOptions {
                refine_rounds: 0,
                ..RtnOptions::search()
            }),
        }
    }
}

impl AwqOptions {
    /// AutoAWQ's search: 20 duo ratios below 1, min-max rounding with unrounded scales; its loss is the output of the
    /// inspected module ([`search_by`](super::search_by)), which for o and down alone [`search`](super::search) has as
    /// well. Two departures remain: its
    /// ranges need not include 0 (ours do, which is the same for any group with weights of both signs), and it steps
    /// symmetric grids by `absmax / (2^(bits-1) - 1)`, which nothing it writes uses.
    pub fn autoawq() -> Self {
        Self {
            form: Form::AutoAwq,
            duo_scaling: DuoScaling::On,
            n_grid: 20,
            solver: InnerSolver::Rtn(RtnOptions {
                scale_dtype: ScaleDtype::F32,
                ..RtnOptions::default()
            }),
        }
    }

    /// llm-compressor's search: the identity and 19 duo ratios from 0 to 1, min-max rounding with unrounded scales.
    pub fn llm_compressor() -> Self {
        Self {
            form: Form::LlmCompressor,
            ..Self::autoawq()
        }
    }
}
