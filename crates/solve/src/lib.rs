//! Weight and input statistics in, integer codes and what they cost out: RTN, GPTQ and AWQ's scales before either.
//!
//! Every solver here lowers `tr((W − Ŵ) H (W − Ŵ)ᵀ)`, the mean squared error of a linear's output, over weights
//! `Ŵ = scale * (code − zero)`. GPTQ (Frantar et al., arXiv 2210.17323) is solved in *pull* form: with `H = M Mᵀ`,
//! `M` upper triangular, the greedy choice for column `k` is the level nearest to
//! `w_k + Σ_{i<k} (w_i − ŵ_i) M_ik / M_kk`. The paper's push form needs the inverse of `H`, writes the remaining
//! weight after every column and so synchronises threads; the pull form needs one Cholesky and lets each thread own
//! rows. It is kept as [`Recipe::Reference`], for parity.
//!
//! Beside them stand the methods that see no text and that users compare with: HQQ, NF4 and FP4, absmax to 8 bits.
//!
//! Pure functions: no IO, no clock, no randomness. The same inputs give the same bits on any number of threads.

mod absmax;
mod allocate;
pub mod awq;
mod beam;
mod codebook;
mod coupled;
mod dense;
mod error;
mod factor;
mod gptq;
mod grid;
mod hqq;
mod kernel;
#[cfg(test)]
mod laws;
mod measure;
#[cfg(test)]
mod one_sided;
mod options;
#[cfg(test)]
mod oracle;
mod outliers;
mod prospect;
mod reference;
mod refine;
mod rtn;
mod solution;
mod storage;
mod strip;
mod target;

pub use absmax::{Granularity, absmax};
pub use allocate::{Choice, allocate};
pub use codebook::{CodebookOptions, CodebookSolution, codebook};
pub use coupled::{coupled_loss, gptq_coupled};
pub use dense::dense_loss;
pub use error::SolveError;
pub use factor::{Factor, factor};
pub use gptq::gptq;
pub use hqq::{FloatZeroWeight, HqqOptions, hqq, hqq_float};
pub use measure::{Loss, loss};
pub use options::{Damp, GptqOptions, Grid, Recipe, RtnOptions, ScaleDtype};
pub use outliers::{ChannelPeaks, OutlierSplit, outlier_split};
pub use prospect::{InputSpread, expected_loss, input_spread};
pub use rtn::{rtn, rtn_clipped};
pub use solution::Solution;
pub use target::{Target, corrected_target};
