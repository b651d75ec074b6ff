use crate::enough;
use crate::{CalibrationRecord, ExportRecord, LinearRecord, RunRecord};

/// Phases in the summary; run.json has all of them.
const PHASES_SHOWN: usize = 6;

/// The run in a few aligned lines, for the end of a terminal session.
pub fn summary_text(run: &RunRecord) -> String {
    let (model, summary, calibration) = (&run.model, &run.summary, &run.calibration);
    let mut rows = vec![
        (
            "model",
            format!(
                "{}: {}, {} blocks, {} parameters",
                model.source,
                model.architecture,
                model.blocks,
                count(model.parameters)
            ),
        ),
        (
            "quantized",
            format!(
                "{} linears at {:.2} bits a weight, scales included",
                run.linears.len(),
                summary.bits_per_weight
            ),
        ),
        (
            "size",
            format!(
                "{} -> {} ({:.2} x smaller)",
                bytes(summary.bytes_before),
                bytes(summary.bytes_after),
                summary.bytes_before as f64 / summary.bytes_after as f64
            ),
        ),
        (
            "calibration",
            if calibration.samples == 0 {
                "none, the method reads no text".to_owned()
            } else {
                token_counts(calibration, "tokens")
            },
        ),
    ];
    if let Some(line) = enough::in_a_line(run) {
        rows.push(("", line));
    }
    rows.push((
        "time",
        format!(
            "{} ({} of processor time)",
            duration(summary.seconds),
            duration(summary.cpu_seconds)
        ),
    ));
    let phases: Vec<String> = summary
        .phases
        .iter()
        .take(PHASES_SHOWN)
        .map(|phase| format!("{} {}", phase.name, duration(phase.seconds)))
        .collect();
    if !phases.is_empty() {
        rows.push(("", phases.join(", ")));
    }
    if let Some(peak) = summary.peak_rss_bytes {
        rows.push(("memory", format!("{} at most", bytes(peak))));
    }
    if let Some(budget) = &run.budget {
        rows.push((
            "budget",
            format!(
                "{:.3} bits a weight reached, KL of {:.4} predicted from the float model",
                budget.bits_per_weight, budget.predicted_kl
            ),
        ));
    }
    if let Some(text) = llm_int8(&run.linears) {
        rows.push(("LLM.int8()", text));
    }
    if let Some(e) = &run.evaluation {
        rows.push((
            "perplexity",
            format!(
                "{:.3} ± {:.3} -> {:.3} ± {:.3} ({:+.1} %)",
                e.perplexity_float,
                e.perplexity_float_se,
                e.perplexity,
                e.perplexity_se,
                100.0 * (e.perplexity / e.perplexity_float - 1.0)
            ),
        ));
        rows.push((
            "KL",
            format!(
                "mean {:.4} ± {:.4}, median {:.4}, 99 % below {:.3}",
                e.kl_mean, e.kl_mean_se, e.kl_median, e.kl_p99
            ),
        ));
        rows.push((
            "same top token",
            format!(
                "{:.1} % of {} tokens, {} windows of {}",
                100.0 * e.top1_agreement,
                grouped(e.tokens),
                e.windows,
                e.text
            ),
        ));
    }
    for export in &run.exports {
        rows.push(("written", written(export)));
    }
    let flagged = run
        .linears
        .iter()
        .filter(|linear| !linear.warnings.is_empty())
        .count();
    if flagged > 0 {
        let noun = if flagged == 1 {
            "linear has"
        } else {
            "linears have"
        };
        rows.push((
            "warning",
            format!("{flagged} {noun} warnings, see linears.csv"),
        ));
    }
    for warning in run.warnings() {
        rows.push(("warning", warning));
    }
    rows.into_iter()
        .map(|(label, text)| format!("{label:<15} {text}\n"))
        .collect()
}

/// What LLM.int8() would keep in 16 bits and come to, over the linears where that is known.
fn llm_int8(linears: &[LinearRecord]) -> Option<String> {
    let known: Vec<(&LinearRecord, &Vec<usize>, f64)> = linears
        .iter()
        .filter_map(|linear| {
            let columns = linear.int8_outlier_columns.as_ref()?;
            Some((linear, columns, linear.int8_bits_per_weight?))
        })
        .collect();
    let columns: usize = known.iter().map(|(linear, ..)| linear.in_features).sum();
    let kept: usize = known.iter().map(|(_, columns, _)| columns.len()).sum();
    let weights = |linear: &LinearRecord| (linear.out_features * linear.in_features) as f64;
    let all: f64 = known.iter().map(|(linear, ..)| weights(linear)).sum();
    let bits: f64 = known
        .iter()
        .map(|(linear, _, bits)| bits * weights(linear))
        .sum();
    (columns > 0).then(|| {
        format!(
            "would keep {:.2} % of the input columns in 16 bits, those that reach 6: {:.3} bits a weight",
            100.0 * kept as f64 / columns as f64,
            bits / all
        )
    })
}

/// Losses by kind of linear, the worst five by held-out loss, and every warning: `relative_loss` is
/// tr(ΔHΔᵀ)/tr(WHWᵀ), means are geometric, and the gain is plain rounding's loss over ours, on held-out text where
/// there is some.
pub fn linears_table(run: &RunRecord) -> String {
    let mut out = table(
        &[
            "linear", "count", "bits", "loss", "held out", "rounding", "gain",
        ],
        &by_kind(&run.linears),
    );
    let mut worst: Vec<&LinearRecord> = run.linears.iter().collect();
    worst.sort_by(|a, b| judged(b).total_cmp(&judged(a)));
    let rows: Vec<Vec<String>> = worst
        .into_iter()
        .take(5)
        .map(|linear| {
            vec![
                format!("block {} {}", linear.block, in_block(linear)),
                loss(Some(linear.relative_loss)),
                loss(linear.relative_loss_heldout),
                loss(Some(linear.relative_loss_rtn)),
                times(gain(linear)),
            ]
        })
        .collect();
    out.push('\n');
    out += &table(&["worst", "loss", "held out", "rounding", "gain"], &rows);
    let warned = run
        .linears
        .iter()
        .filter(|linear| !linear.warnings.is_empty());
    for (index, linear) in warned.enumerate() {
        if index == 0 {
            out.push('\n');
        }
        out += &format!(
            "warning: block {} {}: {}\n",
            linear.block,
            in_block(linear),
            linear.warnings.join("; ")
        );
    }
    out
}

/// Figures of several linears: counts add up, bits are of all their weights, losses are geometric means.
pub(crate) struct KindFigures {
    pub(crate) name: String,
    pub(crate) count: usize,
    pub(crate) bits_per_weight: f64,
    pub(crate) relative_loss: Option<f64>,
    pub(crate) relative_loss_heldout: Option<f64>,
    pub(crate) relative_loss_rtn: Option<f64>,
    /// Plain rounding's loss over ours.
    pub(crate) gain: Option<f64>,
    /// Loss on held-out text over that on the calibration text.
    pub(crate) heldout_ratio: Option<f64>,
}

/// Figures for each kind of linear in order of first appearance, and for all of them where there are several kinds.
pub(crate) fn kind_figures(linears: &[LinearRecord]) -> Vec<KindFigures> {
    let mut kinds: Vec<&str> = Vec::new();
    for linear in linears {
        if !kinds.contains(&kind(linear)) {
            kinds.push(kind(linear));
        }
    }
    let figures = |name: &str, linears: &[&LinearRecord]| {
        let mean = |value: fn(&LinearRecord) -> Option<f64>| geometric_mean(linears, value);
        let weights = |linear: &LinearRecord| (linear.out_features * linear.in_features) as f64;
        let all: f64 = linears.iter().map(|linear| weights(linear)).sum();
        let bits: f64 = linears
            .iter()
            .map(|linear| linear.bits_per_weight * weights(linear))
            .sum();
        KindFigures {
            name: name.to_owned(),
            count: linears.len(),
            bits_per_weight: bits / all,
            relative_loss: mean(|linear| Some(linear.relative_loss)),
            relative_loss_heldout: mean(|linear| linear.relative_loss_heldout),
            relative_loss_rtn: mean(|linear| Some(linear.relative_loss_rtn)),
            gain: mean(gain),
            heldout_ratio: mean(heldout_ratio),
        }
    };
    let mut rows: Vec<KindFigures> = kinds
        .iter()
        .map(|name| {
            let members: Vec<&LinearRecord> = linears
                .iter()
                .filter(|linear| kind(linear) == *name)
                .collect();
            figures(name, &members)
        })
        .collect();
    if rows.len() > 1 {
        rows.push(figures("all", &linears.iter().collect::<Vec<_>>()));
    }
    rows
}

fn by_kind(linears: &[LinearRecord]) -> Vec<Vec<String>> {
    let cells = |figures: KindFigures| {
        vec![
            figures.name,
            figures.count.to_string(),
            format!("{:.2}", figures.bits_per_weight),
            loss(figures.relative_loss),
            loss(figures.relative_loss_heldout),
            loss(figures.relative_loss_rtn),
            times(figures.gain),
        ]
    };
    kind_figures(linears).into_iter().map(cells).collect()
}

/// `self_attn.q_proj` of `model.layers.3.self_attn.q_proj` in block 3.
fn in_block(linear: &LinearRecord) -> &str {
    let block = format!(".{}.", linear.block);
    let inside = linear.linear.split_once(&block);
    inside.map_or(&linear.linear, |(_, name)| name)
}

/// `q_proj` of `self_attn.q_proj`.
pub(crate) fn kind(linear: &LinearRecord) -> &str {
    linear.linear.rsplit('.').next().unwrap_or(&linear.linear)
}

/// The loss by which a linear is judged: held out, or where nothing was held out, on the calibration text.
pub(crate) fn judged(linear: &LinearRecord) -> f64 {
    linear.relative_loss_heldout.unwrap_or(linear.relative_loss)
}

/// Plain rounding's loss over ours, both on the same text.
pub(crate) fn gain(linear: &LinearRecord) -> Option<f64> {
    let gain = match (
        linear.relative_loss_rtn_heldout,
        linear.relative_loss_heldout,
    ) {
        (Some(rounding), Some(ours)) => rounding / ours,
        _ => linear.relative_loss_rtn / linear.relative_loss,
    };
    gain.is_finite().then_some(gain)
}

/// Loss on held-out text over that on the calibration text.
pub(crate) fn heldout_ratio(linear: &LinearRecord) -> Option<f64> {
    let ratio = linear.relative_loss_heldout? / linear.relative_loss;
    ratio.is_finite().then_some(ratio)
}

/// Over the linears that have the value; none if none has.
pub(crate) fn geometric_mean(
    linears: &[&LinearRecord],
    value: fn(&LinearRecord) -> Option<f64>,
) -> Option<f64> {
    let logs: Vec<f64> = linears
        .iter()
        .filter_map(|linear| value(linear))
        .map(f64::ln)
        .collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// Columns as wide as their widest cell, the first to the left, the others to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .chain([&header])
            .filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        out += line.join("  ").trim_end();
        out.push('\n');
    }
    out
}

/// The same as a table of markdown.
pub(crate) fn markdown_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = line(&mut header.iter().copied());
    out += &format!("|---{}|\n", "|--:".repeat(header.len() - 1));
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

fn loss(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_string(), |value| format!("{value:.2e}"))
}

fn times(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_string(), |value| format!("{value:.2} x"))
}

/// Where an export lies, as what, and its size.
pub(crate) fn written(export: &ExportRecord) -> String {
    format!(
        "{} ({}, {})",
        export.path,
        export.format,
        bytes(export.bytes)
    )
}

/// `512.0 MiB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.2} GiB")
}

/// What came of the calibration text, `noun` being what its used tokens are called.
pub(crate) fn token_counts(calibration: &CalibrationRecord, noun: &str) -> String {
    format!(
        "{} {noun}, {} of them random, {} generated, {} held out, {} dropped, {} truncated",
        grouped(calibration.tokens_used),
        grouped(calibration.tokens_random),
        grouped(calibration.tokens_generated),
        grouped(calibration.tokens_held_out),
        grouped(calibration.tokens_dropped),
        grouped(calibration.tokens_truncated)
    )
}

/// `6.3 M`.
pub(crate) fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// `1 234 567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `1 min 32 s`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;

    #[test]
    fn the_summary_is_short_and_aligned() {
        assert_eq!(
            summary_text(&run()),
            "\
model           org/name: llama, 2 blocks, 6.3 M parameters
quantized       4 linears at 4.50 bits a weight, scales included
size            12.0 MiB -> 4.0 MiB (3.00 x smaller)
calibration     29 491 tokens, 3 584 of them random, 7 168 generated, 3 277 held out, 120 dropped, 0 truncated
time            1 min 32 s (2 min 58 s of processor time)
                mlp input 40 s, attention 22 s, solve 19 s
memory          512.0 MiB at most
LLM.int8()      would keep 3.12 % of the input columns in 16 bits, those that reach 6: 8.750 bits a weight
perplexity      20.000 ± 0.510 -> 21.000 ± 0.550 (+5.0 %)
KL              mean 0.1273 ± 0.0021, median 0.0512, 99 % below 1.214
same top token  81.3 % of 24 552 tokens, 24 windows of wiki.txt
written         out (compressed-tensors, 4.0 MiB)
warning         1 linear has warnings, see linears.csv
warning         the calibration text is short
"
        );
    }

    #[test]
    fn the_table_shows_kinds_then_the_worst_then_warnings() {
        assert_eq!(
            linears_table(&run()),
            "\
linear     count  bits     loss  held out  rounding    gain
q_proj         2  4.50  2.00e-3   4.00e-3   8.00e-3  3.00 x
down_proj      2  4.50  2.00e-3   1.60e-2   8.00e-3  3.00 x
all            4  4.50  2.00e-3   8.00e-3   8.00e-3  3.00 x

worst                        loss  held out  rounding    gain
block 1 mlp.down_proj     1.00e-3   3.20e-2   4.00e-3  3.00 x
block 0 mlp.down_proj     4.00e-3   8.00e-3   1.60e-2  3.00 x
block 1 self_attn.q_proj  4.00e-3   8.00e-3   1.60e-2  3.00 x
block 0 self_attn.q_proj  1.00e-3   2.00e-3   4.00e-3  3.00 x

warning: block 1 mlp.down_proj: damping raised, Cholesky failed twice; 3 dead columns
"
        );
    }

    #[test]
    fn beside_its_block_a_linear_goes_without_what_names_the_block() {
        let mut run = run();
        for linear in &mut run.linears {
            linear.linear = format!("model.layers.{}.{}", linear.block, linear.linear);
        }
        let table = linears_table(&run);
        assert!(table.contains("\nblock 1 mlp.down_proj  "), "{table}");
        assert!(!table.contains("model.layers"), "{table}");
    }

    #[test]
    fn without_held_out_text_the_gain_is_of_the_calibration_text() {
        let mut linear = run().linears.remove(0);
        linear.relative_loss_heldout = None;
        assert_eq!(gain(&linear), Some(4.0));
        linear.relative_loss = 0.0;
        linear.relative_loss_rtn = 0.0;
        assert_eq!(gain(&linear), None);
        let row = by_kind(&[linear]).remove(0);
        assert_eq!(row[3..], ["0.00e0", "-", "0.00e0", "-"].map(String::from));
    }

    #[test]
    fn units_are_human() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(3 << 30), "3.00 GiB");
        assert_eq!(count(135_000_000), "135.0 M");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(grouped(100), "100");
        assert_eq!(duration(0.25), "0.2 s");
        assert_eq!(duration(9.96), "10 s");
        assert_eq!(duration(59.7), "1 min 0 s");
        assert_eq!(duration(7265.0), "2 h 1 min");
    }
}
