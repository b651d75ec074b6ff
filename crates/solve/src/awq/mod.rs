//! AWQ: input channels scaled before rounding, the scales folded into what produces the input.
//!
//! A linear computes `W x = (W S)(S⁻¹ x)` for any positive diagonal `S`, yet `Q(W S) S⁻¹` is not `Q(W)`: a channel
//! scaled up is rounded more finely at the cost of its group. AWQ (Lin et al., arXiv 2306.00978, section 3.2) searches
//! `s = x_mean^r` over a grid of ratios `r` for the linears that share an input, and folds `1/s` into the norm or
//! the linear before them, so that the float model stays what it was.
//!
//! What comes in: the weights of one such group and the statistics of their input. What goes out: scales, and the
//! arithmetic that folds them. The rounded problem `(W S, S⁻¹ H S⁻¹)` has the very loss `tr(Δ H Δᵀ)` of the unscaled
//! one, so [`search`] runs any solver of this crate as it is and no activation has to be kept. The field judges q, k, v
//! and gate, up by what the attention or the MLP around them gives on kept activations instead, which [`search_by`] is
//! for: the candidate's weights go out, a loss comes back.

mod candidates;
mod clip;
mod fold;
mod options;
mod search;
#[cfg(test)]
mod tests;
mod tie;

pub use candidates::{Candidate, candidates, weight_mean};
pub use clip::{Clip, search_clip};
pub use fold::{
    FoldedNorm, NormGain, fold_into_columns, fold_into_norm, fold_into_rows, transform_stats,
};
pub use options::{AwqOptions, DuoScaling, Form, InnerSolver};
pub use search::{Found, Group, Member, Tried, search, search_by};
pub use tie::HeadTie;

use crate::SolveError;

/// Refuses scales of the wrong number, and any that is not a finite number above zero.
fn check_scales(scales: &[f32], wanted: usize) -> Result<(), SolveError> {
    if scales.len() != wanted {
        return Err(SolveError::Shape {
            part: "channel scales",
            found: scales.len(),
            wanted,
        });
    }
    match scales.iter().position(|s| !s.is_finite() || *s <= 0.0) {
        Some(channel) => Err(SolveError::ChannelScale {
            channel,
            value: scales[channel],
        }),
        None => Ok(()),
    }
}
