//! How good a quantized model is: perplexity, and its distance from the float model token by token.
//!
//! In: two decoders and windows of token ids. Out: an [`Evaluation`]. Both models are streamed block by block over
//! all windows, and logits exist only for a few hundred tokens at a time, so evaluating takes the memory quantizing
//! took. KL divergence tells methods apart with a fraction of the tokens perplexity needs; both come with standard
//! errors over windows. The two walk side by side, which shows how far apart they are after each block; where many models are
//! scored against one, it walks once ([`walk`]). What both models generate is compared by [`agreement()`]; generating it is
//! not this crate's.

mod agreement;
mod divergence;
mod score;

pub use agreement::{Agreement, Continuation, GenerationCost, agreement};
pub use divergence::{TokenScore, compare, score};
pub use score::{
    Against, EvaluateError, Evaluation, Judged, KeptDense, LoadBlock, Walked, WorstToken, evaluate,
    evaluate_against, own_blocks, walk,
};
