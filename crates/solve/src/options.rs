//! The knobs, in the field's words, and the two recipes as sets of defaults.

use halfbyte_quant::Scheme;

/// Which loop solves a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// The paper's own loop with the semantics of its first implementation: error pushed forward through the upper
    /// Cholesky factor of `H⁻¹`, dead columns zeroed, group parameters found on the way unless `static_groups`.
    Reference,
    /// Pull form on a searched grid, then scales and codes refined together under the same damped `H`.
    Default,
}

/// How much of the mean diagonal is added to `H` before it is factored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Damp {
    /// `clamp(0.5 * in_features / n_tokens, 0.1, 0.3)`: the fewer tokens a column has, the less they are believed. Less than
    /// 0.1 gains nothing on the calibration's kind of text and loses on others.
    Auto,
    /// This fraction of the mean diagonal (0.01 is the field's habit).
    Percent(f64),
}

/// The type a scale is stored in. Scales are rounded to it *before* codes are chosen, so the codes fit the scale a
/// reader will see; tools that cast after solving lose up to 2⁻⁹ of every weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleDtype {
    /// 24 significant bits.
    F32,
    /// 11 significant bits, clamped to the normal range 6.1e-5 to 65504.
    F16,
    /// 8 significant bits.
    Bf16,
    /// 8 significant bits inside f16's normal range: exact as f16 and as bf16.
    Portable,
}

impl ScaleDtype {
    /// The nearest scale that f16 and bf16 both hold.
    pub fn portable(scale: f32) -> f32 {
        crate::storage::Storage::new(Self::Portable).round(scale)
    }
}

/// Where a group's scale and zero point come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// The group's range: `2 max|w| / (2^bits − 1)`, or `(hi − lo) / (2^bits − 1)` with 0 inside the range.
    MinMax,
    /// 36 ranges from 1.05 to 0.3 of the group's, each with its scale refitted to its codes by weighted least squares,
    /// the best kept. GPTQ weights column `k` with its pivot `D_k`, RTN with `H_kk`.
    Search,
}

/// How [`gptq`](crate::gptq) solves. `default()` is the default recipe, [`reference()`](Self::reference) the paper's.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqOptions {
    /// Which loop.
    pub recipe: Recipe,
    /// Columns solved by descending `H_kk`; codes are written in their original order.
    pub desc_act: bool,
    /// Scales fixed before the loop, on the original contiguous groups. The default recipe always works so;
    /// `desc_act` needs it, because no format we write stores a column's group.
    pub static_groups: bool,
    /// Damping of `H`.
    pub damp: Damp,
    /// What the sum of a row's errors weighs: `H` has so much of its mean diagonal added to every element, and the losses
    /// told leave it out again. Levels that reach further on one side err to the other, alike in all weights; no error of
    /// single weights shows that, and inputs that a quantized model shifts along one direction turn it into a shift of
    /// outputs, block after block. [`wanted_balance`](Self::wanted_balance) says where it is wanted (default recipe only).
    pub balance: f64,
    /// Columns between two updates of the remaining weight in the reference loop. No effect on the default recipe.
    pub block_size: usize,
    /// Storage type of scales.
    pub scale_dtype: ScaleDtype,
    /// Whether a symmetric scale may be negative, which gives the extra level to the longer side of the group.
    /// Only for formats whose every reader multiplies by the stored number.
    pub signed_scales: bool,
    /// How scales and zero points are chosen.
    pub grid: Grid,
    /// Rounds of scale least squares and coordinate descent after the solve (default recipe only).
    pub refine_rounds: usize,
    /// Partial solutions kept per row: 1 for greedy, else 2, 4, 8 or 16 (default recipe only).
    pub beam: usize,
}

impl Default for GptqOptions {
    fn default() -> Self {
        Self {
            recipe: Recipe::Default,
            desc_act: true,
            static_groups: true,
            damp: Damp::Auto,
            balance: 0.0,
            block_size: 128,
            scale_dtype: ScaleDtype::Portable,
            signed_scales: false,
            grid: Grid::Search,
            refine_rounds: 2,
            beam: 1,
        }
    }
}

impl GptqOptions {
    /// The paper's loop with its first implementation's defaults: 1 % damping, natural order, groups found on the
    /// way from min and max, blocks of 128.
    pub fn reference() -> Self {
        Self {
            recipe: Recipe::Reference,
            desc_act: false,
            static_groups: false,
            damp: Damp::Percent(0.01),
            scale_dtype: ScaleDtype::F16,
            grid: Grid::MinMax,
            refine_rounds: 0,
            ..Self::default()
        }
    }

    /// The [balance](Self#structfield.balance) that a scheme wants: where a positive scale has levels -2, -1, 0 and 1, of
    /// which the upper ones reach half as far as the lower. From 3 bits on, with zero points, or where scales may be
    /// negative, errors have no side to speak of, and none is wanted.
    pub fn wanted_balance(&self, scheme: &Scheme) -> f64 {
        let one_sided = scheme.sym() && scheme.bits() <= ONE_SIDED_BITS && !self.signed_scales;
        match self.recipe {
            Recipe::Default if one_sided => BALANCE,
            _ => 0.0,
        }
    }
}

/// Bits up to which a positive symmetric scale errs to one side.
const ONE_SIDED_BITS: u8 = 2;
/// Weight of the sum of a row's errors there. From .01 to .3 a model's blocks stop leading each other astray; more of it
/// costs loss.
const BALANCE: f64 = 0.01;

/// How [`rtn`](crate::rtn) rounds. `default()` is the field's plain RTN, [`search()`](Self::search) ours.
#[derive(Clone, Debug, PartialEq)]
pub struct RtnOptions {
    /// Storage type of scales.
    pub scale_dtype: ScaleDtype,
    /// How scales and zero points are chosen; a search is weighted with `H_kk` when statistics are given.
    pub grid: Grid,
    /// Whether a symmetric scale may be negative.
    pub signed_scales: bool,
    /// Rounds of scale least squares and recoding, weighted alike.
    pub refine_rounds: usize,
}

impl Default for RtnOptions {
    fn default() -> Self {
        Self {
            scale_dtype: ScaleDtype::Portable,
            grid: Grid::MinMax,
            signed_scales: false,
            refine_rounds: 0,
        }
    }
}

impl RtnOptions {
    /// Range search and two rounds of refinement: what the default GPTQ recipe becomes when `H = I`.
    pub fn search() -> Self {
        Self {
            grid: Grid::Search,
            refine_rounds: 2,
            ..Self::default()
        }
    }
}
