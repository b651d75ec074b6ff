//! What a run tells while it works. The program outside decides what a person sees of it.

/// One thing that happened, in the order it happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The plan stands; blocks come next.
    Started {
        /// The model as the pipeline file names it.
        model: String,
        /// Decoder blocks to do in all.
        blocks: usize,
        /// Of these, blocks an earlier run left behind finished.
        resumed: usize,
        /// Linears to quantize in all.
        linears: usize,
        /// Calibration tokens; 0 where the method reads none.
        tokens: u64,
    },
    /// A piece of work moves on: sent at its start with `done` 0, then as often as is cheap, and at its end with
    /// `done == total`.
    Phase {
        /// The block, counted from 0; none before the first and after the last.
        block: Option<usize>,
        /// What is being done, such as `statistics`, `solve gate_proj`, `evaluate`.
        name: &'static str,
        /// Units done.
        done: u64,
        /// Units in all; 0 where it is not known.
        total: u64,
        /// What is counted, in the plural, such as `tokens`.
        unit: &'static str,
    },
    /// A linear has its codes.
    LinearDone {
        /// The block, counted from 0.
        block: usize,
        /// Its whole name in the checkpoint.
        linear: String,
        /// Bits a code.
        bits: u8,
        /// tr(ΔHΔᵀ)/tr(WHWᵀ) on the calibration text.
        relative_loss: f64,
        /// The same for plain rounding.
        relative_loss_rtn: f64,
        /// Wall time.
        seconds: f64,
    },
    /// A block is written.
    BlockDone {
        /// The block, counted from 0.
        block: usize,
        /// Blocks in all.
        of: usize,
        /// Wall time.
        seconds: f64,
    },
    /// Something went otherwise than asked; it stands in the report too.
    Warning(String),
    /// Something worth a line.
    Note(String),
    /// A file comes from the hub: sent at its start, as it grows, and when whole with `bytes == total`.
    Download {
        /// The file's name.
        file: String,
        /// Bytes here.
        bytes: u64,
        /// Bytes in all, where the server says.
        total: Option<u64>,
    },
}

/// Tells of a phase of the whole run, as done of total.
pub(crate) fn phase<'a>(
    on_event: &'a mut dyn FnMut(Event),
    name: &'static str,
    unit: &'static str,
) -> impl FnMut(u64, u64) + 'a {
    move |done, total| {
        on_event(Event::Phase {
            block: None,
            name,
            done,
            total,
            unit,
        })
    }
}
