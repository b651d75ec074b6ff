//! What comes in: the records of a run, or of several. What goes out: run.json and linears.csv, the text for the
//! terminal, a page with charts, and a draft of the model card.
//!
//! Everything shown is computed from the records alone, so a run can be shown again years later without its model.
//! The rejected alternative, text made while the run goes on, can neither be tested nor compared.
//!
//! Files are written beside their final name and renamed, so a reader never sees half of one.

mod card;
mod chart;
mod compare;
mod curve;
mod enough;
mod explain;
mod files;
mod markup;
mod page;
mod record;
mod sweep;
mod text;
mod verdict;

pub use card::{export_card, model_card};
pub use compare::{Comparison, is_beaten};
pub use explain::{ExplainError, explain};
pub use files::{ReportError, export_places, find_run, page_path, read_run, write_page, write_run};
pub use markup::printable;
pub use page::{comparison_page, run_page, sweep_page};
pub use record::{
    BudgetRecord, CalibrationRecord, CodesRecord, CurvePointRecord, EvaluationRecord, ExportRecord,
    HessianKind, LinearRecord, ModelRecord, PhaseRecord, RunRecord, SCHEMA_VERSION,
    SensitivityRecord, SummaryRecord, TokenRecord, TuneRecord, UniformRecord, UnreadRecord,
};
pub use sweep::{
    CellRecord, SweepRecord, SweepSummaryRecord, WinnerRecord, broken_cells, geometric_means,
    is_cell_name, rank_correlation, read_cells, read_sweep, refusals, sweep_markdown,
    sweep_page_path, sweep_text, write_sweep,
};
pub use text::{bytes, linears_table, summary_text};
pub use verdict::{FELL_BACK, Scores, Verdict, doubtful_linears};

#[cfg(test)]
mod fixture;
