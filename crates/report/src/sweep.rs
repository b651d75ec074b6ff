//! A grid of settings solved from one pass: its record, its table, its files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compare::is_beaten;
use crate::files::{make_folder, read_linears, read_record, write_linears, write_whole};
use crate::markup::short;
use crate::text::{bytes, duration, geometric_mean, markdown_table, table};
use crate::{
    CalibrationRecord, EvaluationRecord, LinearRecord, ModelRecord, PhaseRecord, ReportError,
    Verdict,
};

/// Everything a sweep leaves behind about itself: the content of sweep.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRecord {
    /// [`crate::SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// Version of that program.
    pub version: String,
    /// Names model, text, cells and what is measured: another sweep has another one.
    pub fingerprint: String,
    /// The checked pipeline, with every default filled in.
    pub pipeline: Value,
    /// What was quantized.
    pub model: ModelRecord,
    /// The text that the statistics are of.
    pub calibration: CalibrationRecord,
    /// Every combination of the axes, those that cannot be included.
    pub cells: Vec<CellRecord>,
    /// The cell that was run and exported in the end, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub winner: Option<WinnerRecord>,
    /// Totals.
    pub summary: SweepSummaryRecord,
}

/// One combination of the axes. Figures are of weights solved from the float model's statistics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CellRecord {
    /// Such as `gptq-4bit-g64-sym`.
    pub cell: String,
    /// Method, as the pipeline spells it.
    pub method: String,
    /// Recipe.
    pub recipe: String,
    /// Bits a code.
    pub bits: u8,
    /// Columns a scale, -1 for the whole row.
    pub group_size: i64,
    /// Whether the zero point is fixed at the middle code.
    pub sym: bool,
    /// Why there can be no such checkpoint; then there are no figures.
    pub refused: Option<String>,
    /// Stored bits per weight over all quantized linears, scales and zero points included.
    pub bits_per_weight: Option<f64>,
    /// Bytes of all tensors of the first export.
    pub bytes: Option<u64>,
    /// Geometric mean over the linears of the loss on the calibration text.
    pub relative_loss: Option<f64>,
    /// The same on the held-out text.
    pub relative_loss_heldout: Option<f64>,
    /// KL expected: the sum over the linears of sensitivity times loss, nats a token.
    pub predicted_kl: Option<f64>,
    /// Scores against the float model, where it was measured; no worst tokens.
    pub evaluation: Option<EvaluationRecord>,
    /// Time in the solver, added up over the linears, the factors that cells share left out.
    pub seconds: Option<f64>,
    /// What the reader should know.
    pub warnings: Vec<String>,
}

/// The cell that was run and exported in the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WinnerRecord {
    /// Its name.
    pub cell: String,
    /// What it is least in.
    pub by: String,
    /// KL of its export and the standard error, where it was scored: solved stage by stage, unless the pipeline says
    /// otherwise, and so as a rule below the cell's.
    pub kl_mean: Option<f64>,
    /// Its standard error.
    pub kl_mean_se: Option<f64>,
}

/// Totals of a sweep. Times are of the processes that reached the end of a phase; what a killed one used is not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SweepSummaryRecord {
    /// Cells that are to be measured and are not yet.
    pub unmeasured: usize,
    /// Processes that shared the work.
    pub shards: usize,
    /// Wall time, added up over the processes.
    pub seconds: f64,
    /// Processor time over all cores and processes.
    pub cpu_seconds: f64,
    /// Largest resident memory of a process, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Where the time went, longest first.
    pub phases: Vec<PhaseRecord>,
    /// Spearman's rank correlation of predicted and measured KL over the measured cells.
    pub spearman: Option<f64>,
    /// What the reader should know of the sweep as a whole.
    pub warnings: Vec<String>,
}

impl SweepRecord {
    /// `(predicted, measured)` KL of the cells that have both.
    pub(crate) fn predicted_and_measured(&self) -> Vec<(f64, f64)> {
        let both = |cell: &CellRecord| {
            let measured = cell.evaluation.as_ref()?.kl_mean;
            Some((cell.predicted_kl?, measured))
        };
        self.cells.iter().filter_map(both).collect()
    }

    /// Puts together what follows from the cells.
    pub fn conclude(&mut self) {
        self.summary.spearman = rank_correlation(&self.predicted_and_measured());
    }
}

impl CellRecord {
    /// Whether it was measured and is no longer the model: such a cell is never the winner, and beats none.
    pub fn is_broken(&self) -> bool {
        self.evaluation
            .as_ref()
            .is_some_and(EvaluationRecord::is_broken)
    }

    /// `(bytes, KL)`: measured, or predicted where nothing was measured.
    pub(crate) fn size_and_kl(&self, measured: bool) -> Option<(u64, f64)> {
        let kl = match measured {
            true => self.evaluation.as_ref().map(|e| e.kl_mean),
            false => self.predicted_kl,
        };
        Some((self.bytes?, kl?))
    }
}

/// The means over a cell's linears, on the calibration text and on the held-out one.
pub fn geometric_means(linears: &[LinearRecord]) -> [Option<f64>; 2] {
    let all: Vec<&LinearRecord> = linears.iter().collect();
    [
        geometric_mean(&all, |linear| Some(linear.relative_loss)),
        geometric_mean(&all, |linear| linear.relative_loss_heldout),
    ]
}

/// Spearman's rank correlation: Pearson's over ranks, ties having their mean rank (Spearman 1904). None for fewer than
/// three pairs, or where one side is all alike.
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 3 {
        return None;
    }
    let x = ranks(&pairs.iter().map(|pair| pair.0).collect::<Vec<_>>());
    let y = ranks(&pairs.iter().map(|pair| pair.1).collect::<Vec<_>>());
    let middle = (pairs.len() as f64 - 1.0) / 2.0;
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        let ranks = x.iter().zip(&y);
        ranks.map(|(x, y)| of(x - middle, y - middle)).sum()
    };
    let spread = (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
    (spread > 0.0).then(|| sum(&|x, y| x * y) / spread)
}

/// Places in ascending order from 0; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: &f64| values.iter().filter(|other| *other < v).count() as f64;
    let alike = |v: &f64| values.iter().filter(|other| *other == v).count() as f64;
    values
        .iter()
        .map(|v| below(v) + (alike(v) - 1.0) / 2.0)
        .collect()
}

/// Where the page of the sweep in `dir` lies; `report.html` beside it is the winner's.
pub fn sweep_page_path(dir: &Path) -> PathBuf {
    dir.join("halfbyte").join("sweep.html")
}

/// Writes `dir/halfbyte/sweep.json`, `sweep.csv` and, for each cell whose linears are given by its name,
/// `cells/CELL.csv`; each beside its final name first. Folders are made.
pub fn write_sweep(
    dir: &Path,
    sweep: &SweepRecord,
    linears: &[(String, Vec<LinearRecord>)],
) -> Result<(), ReportError> {
    let dir = dir.join("halfbyte");
    make_folder(&dir)?;
    if !linears.is_empty() {
        make_folder(&dir.join("cells"))?;
    }
    for (cell, linears) in linears {
        write_linears(&cell_path(&dir, cell), linears)?;
    }
    let path = dir.join("sweep.csv");
    let csv = sweep_csv(sweep).map_err(|source| ReportError::Io {
        path: path.clone(),
        action: "write",
        source,
    })?;
    write_whole(&path, &csv)?;
    // Last, since it says that the others are there.
    let path = dir.join("sweep.json");
    let json = serde_json::to_vec_pretty(sweep).map_err(|source| ReportError::Parse {
        path: path.clone(),
        source,
    })?;
    write_whole(&path, &json)
}

/// Whether a cell's name is one that a file can be called by: a record that came from elsewhere could name a place outside the
/// folder.
pub fn is_cell_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.len() <= 200 && name.chars().all(is_plain)
}

fn cell_path(dir: &Path, cell: &str) -> PathBuf {
    dir.join("cells").join(format!("{cell}.csv"))
}

/// The linears of every cell that [`write_sweep`] left in `dir`, with its name; a cell whose table is gone is left out.
pub fn read_cells(
    dir: &Path,
    sweep: &SweepRecord,
) -> Result<Vec<(String, Vec<LinearRecord>)>, ReportError> {
    let dir = dir.join("halfbyte");
    let cells = sweep.cells.iter().filter(|cell| cell.refused.is_none());
    let cells = cells.filter(|cell| is_cell_name(&cell.cell));
    let paths = cells.map(|cell| (&cell.cell, cell_path(&dir, &cell.cell)));
    let there = paths.filter(|(_, path)| path.is_file());
    there
        .map(|(cell, path)| Ok((cell.clone(), read_linears(&path)?)))
        .collect()
}

/// Reads the record that [`write_sweep`] left in `dir`.
pub fn read_sweep(dir: &Path) -> Result<SweepRecord, ReportError> {
    read_record(&dir.join("halfbyte").join("sweep.json"))
}

/// Columns of sweep.csv, and what a cell has in each; empty where it is not known.
pub(crate) const COLUMNS: [&str; 20] = [
    "cell",
    "method",
    "recipe",
    "bits",
    "group_size",
    "sym",
    "bits_per_weight",
    "bytes",
    "relative_loss",
    "relative_loss_heldout",
    "predicted_kl",
    "kl_mean",
    "kl_mean_se",
    "perplexity",
    "perplexity_se",
    "top1_agreement",
    "seconds",
    "warnings",
    "refused",
    "verdict",
];

/// A cell as [`COLUMNS`] have it.
pub(crate) fn values(cell: &CellRecord) -> [String; COLUMNS.len()] {
    let maybe = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let score = |of: fn(&EvaluationRecord) -> f64| maybe(cell.evaluation.as_ref().map(of));
    let verdict = cell.evaluation.as_ref().map(|e| e.scores().verdict());
    let verdict = verdict.map_or("", Verdict::as_str);
    [
        cell.cell.clone(),
        cell.method.clone(),
        cell.recipe.clone(),
        cell.bits.to_string(),
        cell.group_size.to_string(),
        cell.sym.to_string(),
        maybe(cell.bits_per_weight),
        cell.bytes
            .map_or_else(String::new, |bytes| bytes.to_string()),
        maybe(cell.relative_loss),
        maybe(cell.relative_loss_heldout),
        maybe(cell.predicted_kl),
        score(|e| e.kl_mean),
        score(|e| e.kl_mean_se),
        score(|e| e.perplexity),
        score(|e| e.perplexity_se),
        score(|e| e.top1_agreement),
        maybe(cell.seconds),
        cell.warnings.join("; "),
        cell.refused.clone().unwrap_or_default(),
        verdict.to_owned(),
    ]
}

fn sweep_csv(sweep: &SweepRecord) -> std::io::Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record(COLUMNS)?;
    for cell in &sweep.cells {
        csv.write_record(values(cell))?;
    }
    csv.into_inner().map_err(|error| error.into_error())
}

/// Whether a cell's KL is to be taken as measured: where any was.
pub(crate) fn is_measured(sweep: &SweepRecord) -> bool {
    sweep.cells.iter().any(|cell| cell.evaluation.is_some())
}

/// The cells that no other beats in size and KL at once.
pub(crate) fn front(sweep: &SweepRecord) -> Vec<&str> {
    let measured = is_measured(sweep);
    let known = |cell: &CellRecord| cell.size_and_kl(measured).filter(|_| !cell.is_broken());
    let all: Vec<(u64, f64)> = sweep.cells.iter().filter_map(known).collect();
    let cells = sweep.cells.iter();
    let best = cells.filter(|cell| known(cell).is_some_and(|one| !is_beaten(one, &all)));
    best.map(|cell| cell.cell.as_str()).collect()
}

/// The cells that cannot be, those of one reason together.
pub fn refusals(cells: &[CellRecord]) -> Vec<(Vec<&str>, &str)> {
    let mut all: Vec<(Vec<&str>, &str)> = Vec::new();
    for cell in cells {
        let Some(reason) = cell.refused.as_deref() else {
            continue;
        };
        match all.iter_mut().find(|(_, known)| *known == reason) {
            Some((names, _)) => names.push(&cell.cell),
            None => all.push((vec![&cell.cell], reason)),
        }
    }
    all
}

/// The table of cells, and what no cell could be, in markdown.
pub fn sweep_markdown(sweep: &SweepRecord) -> String {
    let mut out = cells_table(sweep, markdown_table);
    for (names, reason) in refusals(&sweep.cells) {
        out += &format!("\nRefused: {}: {reason}\n", names.join(", "));
    }
    if let Some(warning) = broken_cells(sweep) {
        out += &format!("\nWarning: {warning}\n");
    }
    out += "\n\\*: no other cell is both smaller and closer to the float model\n";
    out
}

/// Every solved cell with its figures.
fn cells_table(sweep: &SweepRecord, table: fn(&[&str], &[Vec<String>]) -> String) -> String {
    let front = front(sweep);
    let figure = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let solved = sweep.cells.iter().filter(|cell| cell.refused.is_none());
    let rows: Vec<Vec<String>> = solved
        .map(|cell| {
            let score = cell.evaluation.as_ref();
            let mark = match front.contains(&cell.cell.as_str()) {
                _ if cell.is_broken() => "broken",
                true => "*",
                false => "",
            };
            vec![
                cell.cell.clone(),
                mark.to_owned(),
                figure(cell.bits_per_weight, 3),
                cell.bytes.map_or_else(|| "-".to_owned(), bytes),
                cell.relative_loss
                    .map_or_else(|| "-".to_owned(), |loss| format!("{loss:.2e}")),
                cell.predicted_kl.map_or_else(|| "-".to_owned(), short),
                score.map_or_else(
                    || "-".to_owned(),
                    |e| format!("{} ± {}", short(e.kl_mean), short(e.kl_mean_se)),
                ),
                figure(score.map(|e| e.perplexity), 3),
                score.map_or_else(
                    || "-".to_owned(),
                    |e| format!("{:.1} %", 100.0 * e.top1_agreement),
                ),
            ]
        })
        .collect();
    table(
        &[
            "cell",
            "",
            "bits/weight",
            "size",
            "loss",
            "KL predicted",
            "KL",
            "perplexity",
            "same top",
        ],
        &rows,
    )
}

/// The table of cells and the totals, for the terminal.
pub fn sweep_text(sweep: &SweepRecord) -> String {
    let mut out = cells_table(sweep, table);
    for (names, reason) in refusals(&sweep.cells) {
        out += &format!("refused: {}: {reason}\n", names.join(", "));
    }
    out += "*: no other cell is both smaller and closer to the float model\n\n";
    let summary = &sweep.summary;
    let refused = sweep
        .cells
        .iter()
        .filter(|cell| cell.refused.is_some())
        .count();
    let measured = sweep
        .cells
        .iter()
        .filter(|cell| cell.evaluation.is_some())
        .count();
    out += &format!(
        "{:<15} {} solved, {refused} refused, {measured} measured\n",
        "cells",
        sweep.cells.len() - refused
    );
    if let Some(rho) = summary.spearman {
        out += &format!(
            "{:<15} {rho:.3} between predicted and measured KL, Spearman's\n",
            "rank"
        );
    }
    let memory = summary
        .peak_rss_bytes
        .map_or_else(String::new, |peak| format!(", {}", bytes(peak)));
    out += &format!(
        "{:<15} {}, {} of processor time{memory}\n",
        "took",
        duration(summary.seconds),
        duration(summary.cpu_seconds)
    );
    if let Some(winner) = &sweep.winner {
        let run = match (winner.kl_mean, winner.kl_mean_se) {
            (Some(kl), Some(se)) => format!(", exported with a KL of {kl:.4} ± {se:.4}"),
            _ => String::new(),
        };
        out += &format!("{:<15} {} by {}{run}\n", "winner", winner.cell, winner.by);
    }
    if summary.unmeasured > 0 {
        out += &format!("warning: cells not measured yet: {}\n", summary.unmeasured);
    }
    for warning in broken_cells(sweep).iter().chain(&summary.warnings) {
        out += &format!("warning: {warning}\n");
    }
    out
}

/// The cells whose scores are of a broken model, in a line; none where none is.
pub fn broken_cells(sweep: &SweepRecord) -> Option<String> {
    let broken: Vec<String> = (sweep.cells.iter())
        .filter(|cell| cell.is_broken())
        .filter_map(|cell| Some((cell, cell.evaluation.as_ref()?)))
        .map(|(cell, e)| format!("{} (KL {})", cell.cell, short(e.kl_mean)))
        .collect();
    let noun = match broken.len() {
        0 => return None,
        1 => "1 cell is".to_owned(),
        n => format!("{n} cells are"),
    };
    Some(format!(
        "{noun} broken, no longer the model, and left out of the charts of KL: {}. A run by itself, solved stage by stage, may do better",
        broken.join(", ")
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fixture::run;

    /// Three cells that were measured, one that was not, one that cannot be.
    pub(crate) fn sweep() -> SweepRecord {
        let run = run();
        let cell =
            |bits: u8, group_size: i64, bytes: u64, predicted: f64, kl: Option<f64>| CellRecord {
                cell: format!("gptq-{bits}bit-g{group_size}-sym"),
                method: "gptq".into(),
                recipe: "default".into(),
                bits,
                group_size,
                sym: true,
                bits_per_weight: Some(f64::from(bits) + 16.0 / group_size as f64),
                bytes: Some(bytes),
                relative_loss: Some(predicted / 10.0),
                relative_loss_heldout: Some(predicted / 8.0),
                predicted_kl: Some(predicted),
                evaluation: kl.map(|kl_mean| EvaluationRecord {
                    kl_mean,
                    ..run.evaluation.clone().expect("the fixture is scored")
                }),
                seconds: Some(1.5),
                ..CellRecord::default()
            };
        let mut cells = vec![
            cell(3, 64, 3_000_000, 0.4, Some(0.5)),
            cell(4, 64, 4_000_000, 0.1, Some(0.12)),
            cell(4, 32, 4_200_000, 0.11, Some(0.13)),
            cell(8, 32, 8_000_000, 0.001, None),
        ];
        cells.push(CellRecord {
            refused: Some("groups of 96 do not divide <256> columns".into()),
            ..cell(4, 96, 0, 0.0, None)
        });
        if let Some(last) = cells.last_mut() {
            (last.bytes, last.predicted_kl, last.bits_per_weight) = (None, None, None);
            (last.relative_loss, last.relative_loss_heldout, last.seconds) = (None, None, None);
        }
        let mut sweep = SweepRecord {
            schema_version: crate::SCHEMA_VERSION,
            version: "0.1.0".into(),
            fingerprint: "f".into(),
            pipeline: run.pipeline,
            model: run.model,
            calibration: run.calibration,
            cells,
            winner: Some(WinnerRecord {
                cell: "gptq-4bit-g64-sym".into(),
                by: "kl".into(),
                kl_mean: Some(0.11),
                kl_mean_se: Some(0.002),
            }),
            summary: SweepSummaryRecord {
                shards: 1,
                seconds: 12.0,
                cpu_seconds: 20.0,
                peak_rss_bytes: Some(1 << 29),
                warnings: vec!["short <text>".into()],
                ..SweepSummaryRecord::default()
            },
        };
        sweep.conclude();
        sweep
    }

    #[test]
    fn rank_correlation_is_spearmans() {
        let up = [(1.0, 10.0), (2.0, 30.0), (3.0, 1000.0)];
        assert_eq!(rank_correlation(&up), Some(1.0));
        let down = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)];
        assert_eq!(rank_correlation(&down), Some(-1.0));
        // d = (1, -1, 0, 0): 1 - 6 * 2 / (4 * 15)
        let mixed = [(1.0, 2.0), (2.0, 1.0), (3.0, 3.0), (4.0, 4.0)];
        assert!((rank_correlation(&mixed).unwrap() - 0.8).abs() < 1e-12);
        // ranks (0.5, 0.5, 2) and (0, 1, 2): 1.5 / sqrt(1.5 * 2)
        let tied = [(1.0, 1.0), (1.0, 2.0), (5.0, 3.0)];
        assert!((rank_correlation(&tied).unwrap() - 1.5 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(rank_correlation(&up[..2]), None);
        assert_eq!(
            rank_correlation(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]),
            None
        );
    }

    #[test]
    fn a_sweep_reads_back_as_it_was_written_with_a_line_a_cell() {
        let dir = tempfile::tempdir().unwrap();
        let sweep = sweep();
        let linears = vec![("gptq-4bit-g64-sym".to_owned(), run().linears)];
        write_sweep(dir.path(), &sweep, &linears).unwrap();
        assert_eq!(read_sweep(dir.path()).unwrap(), sweep);
        assert_eq!(read_cells(dir.path(), &sweep).unwrap(), linears);
        let csv = std::fs::read_to_string(dir.path().join("halfbyte/sweep.csv")).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], COLUMNS.join(","));
        assert_eq!(lines.len(), 1 + sweep.cells.len());
        assert_eq!(
            lines[5],
            "gptq-4bit-g96-sym,gptq,default,4,96,true,,,,,,,,,,,,,groups of 96 do not divide <256> columns,"
        );
        assert!(
            dir.path()
                .join("halfbyte/cells/gptq-4bit-g64-sym.csv")
                .is_file()
        );
    }

    #[test]
    fn a_broken_cell_is_called_so_and_beats_none() {
        let mut sweep = sweep();
        assert_eq!(broken_cells(&sweep), None);
        sweep.cells[0].evaluation.as_mut().unwrap().kl_mean = 13.8;
        assert_eq!(front(&sweep), ["gptq-4bit-g64-sym"]);
        let text = sweep_text(&sweep);
        for part in [
            "gptq-3bit-g64-sym  broken        3.250",
            "warning: 1 cell is broken, no longer the model, and left out of the charts of KL: gptq-3bit-g64-sym (KL 13.8).",
        ] {
            assert!(text.contains(part), "lacks {part}:\n{text}");
        }
        assert!(sweep_markdown(&sweep).contains("Warning: 1 cell is broken"));
        let column = COLUMNS.iter().position(|name| *name == "verdict").unwrap();
        assert_eq!(values(&sweep.cells[0])[column], "broken");
        assert_eq!(values(&sweep.cells[1])[column], "good");
        assert_eq!(values(&sweep.cells[3])[column], "");
    }

    #[test]
    fn the_table_marks_the_front_and_names_what_is_refused() {
        assert_eq!(front(&sweep()), ["gptq-3bit-g64-sym", "gptq-4bit-g64-sym"]);
        let text = sweep_text(&sweep());
        for line in [
            "gptq-3bit-g64-sym  *        3.250  2.9 MiB  4.00e-2         0.400  0.500 ± 0.00210      21.000    81.3 %",
            "refused: gptq-4bit-g96-sym: groups of 96 do not divide <256> columns",
            "cells           4 solved, 1 refused, 3 measured",
            "rank            1.000 between predicted and measured KL, Spearman's",
            "took            12 s, 20 s of processor time, 512.0 MiB",
            "winner          gptq-4bit-g64-sym by kl, exported with a KL of 0.1100 ± 0.0020",
            "warning: short <text>",
        ] {
            assert!(text.contains(line), "lacks {line}:\n{text}");
        }
    }
}
