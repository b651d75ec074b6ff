use super::table::{Column, Row, Table, Value, facts};
use super::yaml::yaml;
use super::{Section, document, figure, pair, paragraph, tiles, warnings};
use crate::card::short_name;
use crate::chart::{Axis, Bar, Bars, Cell, Grid, Plot, Point, STEPS, Series, Shape, step};
use crate::files::{COLUMNS, cells};
use crate::markup::{counted, escape, short};
use crate::text::{bytes, count, duration, gain, grouped, judged, kind, kind_figures};
use crate::{
    BudgetRecord, EvaluationRecord, LinearRecord, RunRecord, TokenRecord, TuneRecord, model_card,
};

/// The run as one page. `beside_run` is for a page that lies in the run's own `halfbyte/` folder: it then links to the
/// model cards.
pub fn run_page(run: &RunRecord, beside_run: bool) -> String {
    let kinds = Kinds::of(run);
    let sections = [
        Some(loss(run, &kinds)),
        depth(run),
        Some(rounding_and_text(run, &kinds)),
        bits(run, &kinds),
        run.tune.as_ref().map(tuning),
        run.evaluation.as_ref().and_then(tokens),
        cost(run),
        Some(linears(run)),
        Some(provenance(run, beside_run)),
    ];
    let sections: Vec<Section> = sections.into_iter().flatten().collect();
    let source = run.model.source.as_str();
    let name = if source.starts_with(['/', '.', '~']) {
        short_name(source)
    } else {
        source
    };
    let title = format!("{name}, {:.2} bits a weight", run.summary.bits_per_weight);
    document(
        &title,
        &head(run, name),
        &sections,
        &format!("halfbyte {}", escape(&run.version)),
    )
}

fn head(run: &RunRecord, name: &str) -> String {
    let model = &run.model;
    let mut out = format!(
        "<h1>{}</h1>\n<p class=\"lead\">{} linears at {:.2} bits a weight, scales included. {}, {} blocks, {} parameters, {}.</p>\n",
        escape(name),
        run.linears.len(),
        run.summary.bits_per_weight,
        escape(&model.architecture),
        model.blocks,
        count(model.parameters),
        escape(&model.dtype)
    );
    out += &warnings(&all_warnings(run));
    out + &tiles(&key_figures(run))
}

/// Those of the run, those of linears that it does not tell already, and a gate that was missed.
fn all_warnings(run: &RunRecord) -> Vec<String> {
    let mut all = Vec::new();
    let limit = run
        .pipeline
        .pointer("/gate/max_kl")
        .and_then(serde_json::Value::as_f64);
    if let (Some(limit), Some(e)) = (limit, &run.evaluation)
        && e.kl_mean > limit
    {
        all.push(format!("gate.max_kl: {:.4} is above {limit}", e.kl_mean));
    }
    all.extend(run.summary.warnings.iter().cloned());
    for linear in &run.linears {
        for warning in &linear.warnings {
            let told = format!("{}: {warning}", linear.linear);
            if !all.contains(&told) {
                all.push(told);
            }
        }
    }
    all
}

fn key_figures(run: &RunRecord) -> Vec<(&'static str, String, String)> {
    let summary = &run.summary;
    let mut figures = Vec::new();
    if let Some(e) = &run.evaluation {
        figures.push((
            "KL to the float model",
            format!("{:.4}", e.kl_mean),
            format!(
                "± {:.4} nats a token; 99\u{a0}% below {:.3}",
                e.kl_mean_se, e.kl_p99
            ),
        ));
        figures.push((
            "Perplexity",
            format!("{:.2}", e.perplexity),
            format!(
                "± {:.2}; float {:.2}, {:+.1}\u{a0}%",
                e.perplexity_se,
                e.perplexity_float,
                100.0 * (e.perplexity / e.perplexity_float - 1.0)
            ),
        ));
        figures.push((
            "Same top token",
            format!("{:.1} %", 100.0 * e.top1_agreement),
            format!("of {} tokens", grouped(e.tokens)),
        ));
    }
    figures.push((
        "Size",
        bytes(summary.bytes_after),
        format!(
            "from {}, {:.2} times smaller",
            bytes(summary.bytes_before),
            summary.bytes_before as f64 / summary.bytes_after as f64
        ),
    ));
    figures.push((
        "Bits a weight",
        format!("{:.2}", summary.bits_per_weight),
        "scales and zero points included".to_owned(),
    ));
    figures.push((
        "Time",
        duration(summary.seconds),
        format!("{} of processor time", duration(summary.cpu_seconds)),
    ));
    if let Some(peak) = summary.peak_rss_bytes {
        figures.push(("Memory", bytes(peak), "at the peak".to_owned()));
    }
    figures
}

/// The linears of a block, and how charts tell them apart: colour by the part of the block, form within it.
struct Kinds {
    /// Path inside the block, as `self_attn.q_proj`.
    paths: Vec<String>,
}

impl Kinds {
    fn of(run: &RunRecord) -> Self {
        let mut paths: Vec<String> = Vec::new();
        for linear in &run.linears {
            let path = local(linear);
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
        }
        Self { paths }
    }

    fn index(&self, linear: &LinearRecord) -> usize {
        let path = local(linear);
        self.paths
            .iter()
            .position(|known| known == path)
            .unwrap_or(0)
    }

    fn parent(path: &str) -> &str {
        path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    fn name(&self, index: usize) -> &str {
        let path = &self.paths[index];
        path.rsplit('.').next().unwrap_or(path)
    }

    /// Class of the colour and form of the mark.
    fn look(&self, index: usize) -> (&'static str, Shape) {
        let parent = Self::parent(&self.paths[index]);
        let mut parents: Vec<&str> = self.paths.iter().map(|p| Self::parent(p)).collect();
        let within = parents[..index].iter().filter(|p| **p == parent).count();
        parents.dedup();
        let family = parents.iter().position(|p| *p == parent).unwrap_or(0);
        (["c0", "c1", "c2", "c3"][family % 4], Shape::ALL[within % 4])
    }

    /// For the grids: names, names without their common end, and whether another part of the block begins.
    fn rows(&self) -> Vec<(String, String, bool)> {
        (0..self.paths.len())
            .map(|index| {
                let name = self.name(index);
                let gap = index > 0
                    && Self::parent(&self.paths[index]) != Self::parent(&self.paths[index - 1]);
                (
                    name.to_owned(),
                    name.trim_end_matches("_proj").to_owned(),
                    gap,
                )
            })
            .collect()
    }

    /// A series a kind.
    fn series(
        &self,
        run: &RunRecord,
        value: fn(&LinearRecord) -> Option<(f64, f64)>,
    ) -> Vec<Series> {
        let points = |kind: usize| {
            let linears = run.linears.iter().enumerate();
            linears
                .filter(|(_, linear)| self.index(linear) == kind)
                .filter_map(|(row, linear)| {
                    let (x, y) = value(linear)?;
                    Some(Point {
                        x,
                        y,
                        title: title(linear),
                        row: Some(row_id(row)),
                        ..Point::default()
                    })
                })
                .collect()
        };
        (0..self.paths.len())
            .map(|kind| {
                let (class, shape) = self.look(kind);
                Series {
                    name: self.name(kind).to_owned(),
                    class,
                    shape,
                    line: false,
                    points: points(kind),
                }
            })
            .filter(|series| !series.points.is_empty())
            .collect()
    }
}

/// `self_attn.q_proj` of `model.layers.3.self_attn.q_proj` in block 3.
fn local(linear: &LinearRecord) -> &str {
    let block = format!(".{}.", linear.block);
    linear
        .linear
        .split_once(&block)
        .map_or(&linear.linear, |(_, path)| path)
}

fn row_id(index: usize) -> String {
    format!("l{index}")
}

fn title(linear: &LinearRecord) -> String {
    let mut out = format!(
        "block {} {}: loss {}",
        linear.block,
        kind(linear),
        short(linear.relative_loss)
    );
    if let Some(heldout) = linear.relative_loss_heldout {
        out += &format!(", held out {}", short(heldout));
    }
    out + &format!(
        ", rounding {}, {} bits",
        short(linear.relative_loss_rtn),
        linear.bits
    )
}

/// Share of the linears past each end of the colour ramp.
const OUTSIDE: f64 = 0.02;

/// What a colour ramp spans.
#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
    below: bool,
    above: bool,
}

/// A column of the heat map.
struct Measure {
    name: &'static str,
    log: bool,
    value: fn(&LinearRecord) -> Option<f64>,
    show: fn(f64) -> String,
}

const MEASURES: [Measure; 7] = [
    Measure {
        name: "calibration loss",
        log: true,
        value: |l| Some(l.relative_loss),
        show: short,
    },
    Measure {
        name: "held-out loss",
        log: true,
        value: |l| l.relative_loss_heldout,
        show: short,
    },
    Measure {
        name: "rounding's loss",
        log: true,
        value: |l| Some(l.relative_loss_rtn),
        show: short,
    },
    Measure {
        name: "rounding / ours",
        log: true,
        value: gain,
        show: |v| format!("{} ×", short(v)),
    },
    Measure {
        name: "bits",
        log: false,
        value: |l| Some(f64::from(l.bits)),
        show: |v| format!("{v:.0}"),
    },
    Measure {
        name: "clipped share",
        log: false,
        value: |l| Some(l.clipped_share),
        show: |v| format!("{} %", short(100.0 * v)),
    },
    Measure {
        name: "seconds",
        log: false,
        value: |l| Some(l.seconds),
        show: short,
    },
];

impl Measure {
    /// What the ramp spans: nearly all values, so that one linear far from all others does not take the colours from
    /// them; and whether some lie below and above.
    fn range(&self, run: &RunRecord) -> Option<Range> {
        let values = run.linears.iter().filter_map(self.value);
        let mut usable: Vec<f64> = values
            .filter(|v| v.is_finite() && (!self.log || *v > 0.0))
            .collect();
        usable.sort_by(f64::total_cmp);
        let last = usable.len().checked_sub(1)?;
        let outside = (last as f64 * OUTSIDE).round() as usize;
        let (low, high) = (usable[outside], usable[last - outside]);
        Some(Range {
            low,
            high,
            below: usable[0] < low,
            above: usable[last] > high,
        })
    }

    /// Step of the colour ramp; none where there is no value.
    fn step(&self, range: Range, linear: &LinearRecord) -> Option<usize> {
        let value = (self.value)(linear).filter(|v| v.is_finite())?;
        let Range { low, high, .. } = range;
        if low == high {
            return Some(STEPS / 2 - 1);
        }
        let share = if self.log {
            (value / low).ln() / (high / low).ln()
        } else {
            (value - low) / (high - low)
        };
        // Nothing lost, infinitely far down a logarithm, is the lowest there is.
        Some(step(share.clamp(0.0, 1.0)))
    }

    fn ramp(&self, column: usize, range: Range) -> String {
        let swatches: String = (0..STEPS)
            .map(|step| format!("<i class=\"h{step}\"></i>"))
            .collect();
        let hidden = if column == 0 {
            ""
        } else {
            " hidden=\"hidden\""
        };
        let scale = if self.log { ", logarithmic" } else { "" };
        format!(
            "<div class=\"ramp\" data-column=\"{column}\"{hidden}><span>{}</span><span class=\"bar\" aria-hidden=\"true\">{swatches}</span><span>{}</span><span>{}{scale}</span></div>\n",
            escape(&(if range.below { "≤ " } else { "" }.to_owned() + &(self.show)(range.low))),
            escape(&(if range.above { "≥ " } else { "" }.to_owned() + &(self.show)(range.high))),
            self.name
        )
    }
}

fn loss(run: &RunRecord, kinds: &Kinds) -> Section {
    let measures: Vec<(&Measure, Range)> = MEASURES
        .iter()
        .filter_map(|measure| Some((measure, measure.range(run)?)))
        .collect();
    let mut chart = "<fieldset class=\"needs-script\"><legend>Colour shows</legend>\n".to_owned();
    for (column, (measure, _)) in measures.iter().enumerate() {
        let checked = if column == 0 {
            " checked=\"checked\""
        } else {
            ""
        };
        chart += &format!(
            "<label><input type=\"radio\" name=\"heat\" data-column=\"{column}\"{checked} /><span>{}</span></label>\n",
            measure.name
        );
    }
    chart += "</fieldset>\n";
    for (column, (measure, range)) in measures.iter().enumerate() {
        chart += &measure.ramp(column, *range);
    }
    let cells = run
        .linears
        .iter()
        .enumerate()
        .map(|(row, linear)| {
            let steps: Vec<Option<usize>> = measures
                .iter()
                .map(|(m, range)| m.step(*range, linear))
                .collect();
            let words: Vec<String> = steps
                .iter()
                .map(|step| step.map_or_else(|| "-".to_owned(), |step| step.to_string()))
                .collect();
            Cell {
                block: linear.block,
                kind: kinds.index(linear),
                step: steps.first().copied().flatten(),
                steps: words.join(","),
                text: String::new(),
                title: title(linear),
                row: row_id(row),
                flagged: !linear.warnings.is_empty(),
            }
        })
        .collect();
    chart += &Grid {
        id: "heat",
        title: "Relative loss by block and linear",
        desc: "One cell a linear; blocks along one axis, the linears of a block along the other. The table of linears below has every figure.",
        blocks: run.model.blocks,
        kinds: kinds.rows(),
        cells,
    }
    .render();
    let caption = "Relative loss is tr(ΔHΔᵀ) / tr(WHWᵀ): the share of a linear's output, in squares, that rounding took away. It has no unit, so \
                   linears and models compare. A red dot marks a warning.";
    let mut html = figure("Loss by block and linear", caption, &chart);
    let mut worst: Vec<&LinearRecord> = run.linears.iter().collect();
    worst.sort_by(|a, b| judged(b).total_cmp(&judged(a)));
    let names: Vec<String> = worst
        .iter()
        .take(3)
        .map(|l| format!("block {} {} ({})", l.block, kind(l), short(judged(l))))
        .collect();
    let text = if run
        .linears
        .iter()
        .any(|l| l.relative_loss_heldout.is_some())
    {
        "held-out text"
    } else {
        "the calibration text"
    };
    html += &paragraph(&format!("Largest on {text}: {}.", names.join(", ")));
    Section {
        id: "loss",
        name: "Loss",
        html,
    }
}

fn depth(run: &RunRecord) -> Option<Section> {
    let block_axis = Axis {
        label: "block",
        log: false,
        whole: true,
    };
    let mut charts = String::new();
    let drift = run.evaluation.as_ref().map_or(&[][..], |e| &e.stream_error);
    if let (Some(last), true) = (drift.last(), drift.len() > 1) {
        let points = drift.iter().enumerate().map(|(block, error)| Point {
            x: block as f64,
            y: *error,
            title: format!("after block {block}: {}", short(*error)),
            ..Point::default()
        });
        let chart = Plot {
            id: "drift",
            title: "Error of the residual stream after each block",
            desc: "Mean over tokens of the squared distance from the float model's stream, over the stream's own square.",
            x: block_axis,
            y: Axis {
                label: "relative error of the stream",
                log: true,
                whole: false,
            },
            diagonal: false,
            series: vec![Series {
                name: "drift".to_owned(),
                class: "c0",
                shape: Shape::Circle,
                line: true,
                points: points.collect(),
            }],
        };
        let caption = format!(
            "How far the exported files' residual stream is from the float model's after each block, on the evaluation text: all errors so far \
             together. It ends at {}.",
            short(*last)
        );
        charts += &figure("Drift of the residual stream", &caption, &chart.render());
    }
    if run.model.blocks > 1 {
        let sums = |value: fn(&LinearRecord) -> Option<f64>| -> Vec<Point> {
            let mut sum = 0.0;
            (0..run.model.blocks)
                .filter_map(|block| {
                    let of_block: Vec<f64> = run
                        .linears
                        .iter()
                        .filter(|l| l.block == block)
                        .filter_map(value)
                        .collect();
                    sum += of_block.iter().sum::<f64>();
                    (!of_block.is_empty()).then(|| Point {
                        x: block as f64,
                        y: sum,
                        title: format!("up to block {block}: {}", short(sum)),
                        ..Point::default()
                    })
                })
                .collect()
        };
        let named = |name: &str, class, shape, points| Series {
            name: name.to_owned(),
            class,
            shape,
            line: true,
            points,
        };
        let series = [
            named(
                "calibration text",
                "c0",
                Shape::Circle,
                sums(|l| Some(l.relative_loss)),
            ),
            named(
                "held-out text",
                "c2",
                Shape::Triangle,
                sums(|l| l.relative_loss_heldout),
            ),
        ];
        let chart = Plot {
            id: "sums",
            title: "Running sum of relative losses",
            desc: "Relative losses of all linears up to a block, added up.",
            x: block_axis,
            y: Axis {
                label: "sum of relative losses",
                log: false,
                whole: false,
            },
            diagonal: false,
            series: series
                .into_iter()
                .filter(|s| !s.points.is_empty())
                .collect(),
        };
        let caption = "Relative losses of the linears added up from the first block on: where the line is steep, blocks lose most.";
        charts += &figure("Running sum of losses", caption, &chart.render());
    }
    (!charts.is_empty()).then(|| Section {
        id: "depth",
        name: "Down the depth",
        html: pair(&charts),
    })
}

/// How much larger the held-out loss may be for the text to count as enough, and for it to count as nearly enough. KL
/// follows the loss about in proportion, so a tenth is a few standard errors of a KL measured on some thousand tokens;
/// half of it is the difference between two group sizes.
const ENOUGH: f64 = 1.1;
const NEARLY: f64 = 1.5;

fn rounding_and_text(run: &RunRecord, kinds: &Kinds) -> Section {
    let log = |label| Axis {
        label,
        log: true,
        whole: false,
    };
    let judged_text = if run
        .linears
        .iter()
        .any(|l| l.relative_loss_heldout.is_some())
    {
        "held-out text"
    } else {
        "calibration text"
    };
    let chart = Plot {
        id: "rounding",
        title: "Our loss against plain rounding's",
        desc: "One mark a linear. Below the line y = x our loss is the smaller one.",
        x: log("loss of plain rounding"),
        y: log("our loss"),
        diagonal: true,
        series: kinds.series(run, |l| {
            match (l.relative_loss_rtn_heldout, l.relative_loss_heldout) {
                (Some(rounding), Some(ours)) => Some((rounding, ours)),
                _ => Some((l.relative_loss_rtn, l.relative_loss)),
            }
        }),
    };
    let mut charts = figure(
        "Ours against plain rounding",
        &format!(
            "On {judged_text}. Below the line our loss is the smaller one; the distance is the gain."
        ),
        &chart.render(),
    );
    let heldout = kinds.series(run, |l| Some((l.relative_loss, l.relative_loss_heldout?)));
    if !heldout.is_empty() {
        let chart = Plot {
            id: "heldout",
            title: "Held-out loss against calibration loss",
            desc: "One mark a linear. On the line y = x the loss is the same on text the solver has not seen.",
            x: log("loss on the calibration text"),
            y: log("loss on held-out text"),
            diagonal: true,
            series: heldout,
        };
        charts += &figure(
            "Held-out text against calibration text",
            "On the line the loss is the same on text the solver has not seen; above it, the solver has fitted its text.",
            &chart.render(),
        );
    }
    let (answer, reasons) = is_the_text_enough(run);
    let mut html = pair(&charts);
    html += &format!(
        "<p class=\"verdict\">Is the calibration text enough? <strong>{}</strong> {}</p>\n",
        escape(answer),
        escape(&reasons)
    );
    let worse = run
        .linears
        .iter()
        .filter(|l| gain(l).is_some_and(|gain| gain < 1.0))
        .count();
    if worse > 0 {
        html += &paragraph(&format!(
            "{} on {judged_text} more than by plain rounding.",
            lose(worse)
        ));
    }
    let rows = kind_figures(&run.linears)
        .into_iter()
        .map(|k| Row {
            id: None,
            values: vec![
                Value::text(&k.name),
                Value::whole(k.count),
                Value::number(k.bits_per_weight),
                Value::maybe(k.relative_loss),
                Value::maybe(k.relative_loss_heldout),
                Value::maybe(k.relative_loss_rtn),
                Value::maybe(k.gain),
                Value::maybe(k.heldout_ratio),
            ],
        })
        .collect();
    html += &Table {
        id: "kinds",
        caption: "By kind of linear, geometric means",
        columns: vec![
            Column::text("linear", "linear"),
            Column::number("count", "count"),
            Column::number("bits_per_weight", "bits a weight"),
            Column::number("relative_loss", "loss"),
            Column::number("relative_loss_heldout", "held out"),
            Column::number("relative_loss_rtn", "rounding"),
            Column::number("gain", "rounding / ours"),
            Column::number("heldout_ratio", "held out / calibration"),
        ],
        rows,
    }
    .render();
    Section {
        id: "gain",
        name: "Gain and calibration text",
        html,
    }
}

fn lose(n: usize) -> String {
    let verb = if n == 1 { "loses" } else { "lose" };
    format!("{} {verb}", counted(n, "linear"))
}

/// A word and the reasons for it.
fn is_the_text_enough(run: &RunRecord) -> (&'static str, String) {
    let calibration = &run.calibration;
    if calibration.tokens_used == 0 {
        return ("No text was read.", "The method needs none.".to_owned());
    }
    let kinds = kind_figures(&run.linears);
    let Some(ratio) = kinds.last().and_then(|all| all.heldout_ratio) else {
        let remedy =
            "Nothing was held out, so this run cannot tell; set calibration.holdout to 0.1.";
        return ("Unknown.", remedy.to_owned());
    };
    let parts = if kinds.len() > 1 {
        &kinds[..kinds.len() - 1]
    } else {
        &kinds[..]
    };
    let most = parts
        .iter()
        .filter_map(|k| Some((k.heldout_ratio?, k.name.as_str())))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let tail = match most {
        Some((most, name)) if parts.len() > 1 => format!(", most for {name} ({most:.2} times)"),
        _ => String::new(),
    };
    let measured = format!(
        "On {} held-out tokens the loss is {ratio:.2} times that on the {} tokens of the calibration text{tail}.",
        grouped(calibration.tokens_held_out),
        grouped(calibration.tokens_used)
    );
    let (answer, advice) = if ratio <= ENOUGH {
        ("Yes.", "More text would gain little.")
    } else if ratio <= NEARLY {
        (
            "Nearly.",
            "More text of the same kind would lower the loss somewhat.",
        )
    } else {
        (
            "No.",
            "The solver has fitted its text; raise calibration.num_samples, or add text nearer to what the model will read.",
        )
    };
    let mut reasons = format!("{measured} {advice}");
    let widest = run.linears.iter().max_by_key(|l| l.in_features);
    if let Some(widest) = widest.filter(|l| l.tokens > 0 && l.tokens < l.in_features as u64) {
        reasons += &format!(
            " {} has {} inputs and was measured on {} tokens, too few for statistics of full rank.",
            kind(widest),
            widest.in_features,
            grouped(widest.tokens)
        );
    }
    (answer, reasons)
}

fn bits(run: &RunRecord, kinds: &Kinds) -> Option<Section> {
    let widths: Vec<u8> = run.linears.iter().map(|l| l.bits).collect();
    let (low, high) = (*widths.iter().min()?, *widths.iter().max()?);
    if low == high && run.budget.is_none() {
        return None;
    }
    let place = |bits: u8| {
        let span = f64::from(high - low).max(1.0);
        // The ramp's ends are left to the extremes of the losses.
        step(0.08 + 0.84 * f64::from(bits - low) / span)
    };
    let sensitivity = |linear: &LinearRecord| {
        let known = run.budget.iter().flat_map(|b| &b.linears);
        known.into_iter().find(|s| s.linear == linear.linear)
    };
    let cells = run
        .linears
        .iter()
        .enumerate()
        .map(|(row, linear)| {
            let mut title = format!(
                "block {} {}: {} bits",
                linear.block,
                kind(linear),
                linear.bits
            );
            if let Some(known) = sensitivity(linear) {
                let each: Vec<String> = known
                    .predicted_kl
                    .iter()
                    .map(|(bits, kl)| format!("{} at {bits}", short(*kl)))
                    .collect();
                title += &format!("; KL predicted: {}", each.join(", "));
            }
            Cell {
                block: linear.block,
                kind: kinds.index(linear),
                step: Some(place(linear.bits)),
                steps: String::new(),
                text: linear.bits.to_string(),
                title,
                row: row_id(row),
                flagged: false,
            }
        })
        .collect();
    let chart = Grid {
        id: "bits-grid",
        title: "Bits by block and linear",
        desc: "One cell a linear with its bits a code.",
        blocks: run.model.blocks,
        kinds: kinds.rows(),
        cells,
    }
    .render();
    let weights = |bits: u8| -> f64 {
        let of_width = run.linears.iter().filter(|l| l.bits == bits);
        of_width
            .map(|l| (l.out_features * l.in_features) as f64)
            .sum()
    };
    let mut distinct = widths.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let all: f64 = distinct.iter().map(|bits| weights(*bits)).sum();
    let shares: Vec<String> = distinct
        .iter()
        .map(|bits| {
            let linears = widths.iter().filter(|b| *b == bits).count();
            format!(
                "{bits} bits in {} ({:.0} % of the weights)",
                counted(linears, "linear"),
                100.0 * weights(*bits) / all
            )
        })
        .collect();
    let mut html = figure(
        "Bits by block and linear",
        &format!("{}.", shares.join(", ")),
        &chart,
    );
    if let Some(budget) = &run.budget {
        html += &predicted(run, budget);
    }
    Some(Section {
        id: "bits",
        name: "Bits",
        html,
    })
}

/// What the budget expected of one width everywhere and of its choice, beside what was measured.
fn predicted(run: &RunRecord, budget: &BudgetRecord) -> String {
    let point = |x: f64, y: f64, error: Option<f64>, title: String| Point {
        x,
        y,
        error,
        title,
        ..Point::default()
    };
    let series = |name: &str, class, shape, line, points| Series {
        name: name.to_owned(),
        class,
        shape,
        line,
        points,
    };
    let uniform = budget.uniform.iter().map(|u| {
        let title = format!(
            "{} bits everywhere, {:.2} a weight: KL {} predicted",
            u.bits,
            u.bits_per_weight,
            short(u.predicted_kl)
        );
        point(u.bits_per_weight, u.predicted_kl, None, title)
    });
    let chosen = format!(
        "chosen, {:.2} bits a weight: KL {} predicted",
        budget.bits_per_weight,
        short(budget.predicted_kl)
    );
    let mut all = vec![
        series(
            "one width everywhere, predicted",
            "c0",
            Shape::Circle,
            true,
            uniform.collect(),
        ),
        series(
            "bits chosen, predicted",
            "c0",
            Shape::Diamond,
            false,
            vec![point(
                budget.bits_per_weight,
                budget.predicted_kl,
                None,
                chosen,
            )],
        ),
    ];
    let mut text = format!(
        "Predicted KL of the bits chosen: {}.",
        short(budget.predicted_kl)
    );
    if let Some(e) = &run.evaluation {
        let title = format!(
            "measured, {:.2} bits a weight: KL {} ± {}",
            budget.bits_per_weight,
            short(e.kl_mean),
            short(e.kl_mean_se)
        );
        all.push(series(
            "bits chosen, measured",
            "c1",
            Shape::Square,
            false,
            vec![point(
                budget.bits_per_weight,
                e.kl_mean,
                Some(e.kl_mean_se),
                title,
            )],
        ));
        text += &format!(
            " Measured: {} ± {}, {:.2} times as much. The prediction adds up the cost of each linear alone, from the float model; it is for \
             ranking choices rather than for the level.",
            short(e.kl_mean),
            short(e.kl_mean_se),
            e.kl_mean / budget.predicted_kl
        );
    }
    all.retain(|s| !s.points.is_empty());
    let chart = Plot {
        id: "predicted",
        title: "KL over bits a weight, predicted and measured",
        desc: "KL predicted for one width everywhere and for the bits chosen, and the KL measured.",
        x: Axis {
            label: "stored bits a weight",
            log: false,
            whole: false,
        },
        y: Axis {
            label: "KL to the float model, nats",
            log: true,
            whole: false,
        },
        diagonal: false,
        series: all,
    };
    let mut rows: Vec<Row> = budget
        .uniform
        .iter()
        .map(|u| Row {
            id: None,
            values: vec![
                Value::text(&format!("{} bits everywhere", u.bits)),
                Value::number(u.bits_per_weight),
                Value::number(u.predicted_kl),
                Value::maybe(None),
                Value::maybe(None),
            ],
        })
        .collect();
    let measured = run.evaluation.as_ref();
    rows.push(Row {
        id: None,
        values: vec![
            Value::text("bits chosen"),
            Value::number(budget.bits_per_weight),
            Value::number(budget.predicted_kl),
            Value::maybe(measured.map(|e| e.kl_mean)),
            Value::maybe(measured.map(|e| e.kl_mean_se)),
        ],
    });
    let table = Table {
        id: "widths",
        caption: "Predicted and measured KL",
        columns: vec![
            Column::text("bits", "bits"),
            Column::number("bits_per_weight", "bits a weight"),
            Column::number("predicted_kl", "predicted"),
            Column::number("kl_mean", "measured"),
            Column::number("kl_mean_se", "±"),
        ],
        rows,
    };
    pair(
        &(figure("Predicted and measured", &text, &chart.render())
            + &format!("<div>{}</div>\n", table.render())),
    )
}

fn tuning(tune: &TuneRecord) -> Section {
    let points = |values: &[f64], first: usize| {
        let each = values.iter().enumerate();
        each.map(|(index, kl)| Point {
            x: (first + index) as f64,
            y: *kl,
            title: format!("epoch {}: KL {}", first + index, short(*kl)),
            ..Point::default()
        })
        .collect()
    };
    let chart = Plot {
        id: "tuning",
        title: "KL by epoch",
        desc: "KL on held-out windows before the first epoch and after each, and on the calibration windows while they were learned from.",
        x: Axis {
            label: "epochs",
            log: false,
            whole: true,
        },
        y: Axis {
            label: "KL to the float model, nats",
            log: true,
            whole: false,
        },
        diagonal: false,
        series: vec![
            Series {
                name: "held-out text".to_owned(),
                class: "c2",
                shape: Shape::Triangle,
                line: true,
                points: points(&tune.kl_heldout, 0),
            },
            Series {
                name: "calibration text".to_owned(),
                class: "c0",
                shape: Shape::Circle,
                line: true,
                points: points(&tune.kl_calibration, 1),
            },
        ],
    };
    let caption = format!(
        "Scales and norms were tuned at a rate of {}; {} of {} kept. The losses of single linears on this page are from before it.",
        tune.learning_rate,
        tune.epochs_kept,
        counted(tune.epochs, "epoch")
    );
    Section {
        id: "tuning",
        name: "Tuning",
        html: figure("KL by epoch", &caption, &chart.render()),
    }
}

fn tokens(evaluation: &EvaluationRecord) -> Option<Section> {
    let tokens = &evaluation.worst_tokens;
    if tokens.is_empty() {
        return None;
    }
    let context = |t: &TokenRecord| {
        let html = format!(
            "{}<mark>{}</mark>{}",
            escape(&visible(&t.before)),
            escape(&visible(&t.token)),
            escape(&visible(&t.after))
        );
        Value::html(
            html,
            format!("{}{}{}", t.before, t.token, t.after),
            "context",
        )
    };
    let token = |text: &str| {
        Value::html(
            format!("<span class=\"token\">{}</span>", escape(&visible(text))),
            text.to_owned(),
            "",
        )
    };
    let rows = tokens
        .iter()
        .map(|t| Row {
            id: None,
            values: vec![
                Value::number(t.kl),
                context(t),
                Value::number(t.probability_float),
                Value::number(t.probability),
                token(&t.top_float),
                token(&t.top),
                Value::whole(t.window),
                Value::whole(t.position),
            ],
        })
        .collect();
    let table = Table {
        id: "tokens",
        caption: "Tokens of largest KL",
        columns: vec![
            Column::number("kl", "KL"),
            Column::text("context", "token in its context"),
            Column::number("probability_float", "its probability, float"),
            Column::number("probability", "quantized"),
            Column::text("top_float", "likeliest, float"),
            Column::text("top", "quantized"),
            Column::number("window", "window"),
            Column::number("position", "position"),
        ],
        rows,
    };
    let note = format!(
        "Where the two models' predictions differ most, of {} tokens of {}. The marked token is the one that was to be predicted from the text \
         before it.",
        grouped(evaluation.tokens),
        evaluation.text
    );
    Some(Section {
        id: "tokens",
        name: "Worst tokens",
        html: paragraph(&note) + &table.render(),
    })
}

/// Line ends as a sign, so that a context stays one line.
fn visible(text: &str) -> String {
    text.replace("\r\n", "⏎")
        .replace(['\n', '\r'], "⏎")
        .replace('\t', "⇥")
}

fn cost(run: &RunRecord) -> Option<Section> {
    let (summary, phases) = (&run.summary, &run.summary.phases);
    if phases.is_empty() {
        return None;
    }
    let bars = phases.iter().map(|p| Bar {
        name: p.name.clone(),
        value: p.seconds,
        second: Some(p.cpu_seconds),
        text: duration(p.seconds),
        title: format!(
            "{}: {}, {} of processor time",
            p.name,
            duration(p.seconds),
            duration(p.cpu_seconds)
        ),
    });
    let chart = Bars {
        id: "time",
        title: "Time by phase",
        desc: "One bar a phase, its length the wall time; a tick stands at the processor time.",
        rows: bars.collect(),
    };
    let mut caption = "Bars are wall time, ticks processor time over all cores.".to_owned();
    if summary.blocks_resumed > 0 {
        caption += &format!(
            " {} came from an earlier run; the times are of the last one.",
            counted(summary.blocks_resumed, "block")
        );
    }
    let mut charts = figure("Time by phase", &caption, &chart.render());
    let mut grown: Vec<_> = phases
        .iter()
        .filter(|p| p.peak_rss_growth_bytes > 0)
        .collect();
    grown.sort_by_key(|p| std::cmp::Reverse(p.peak_rss_growth_bytes));
    if !grown.is_empty() {
        let bars = grown.iter().map(|p| Bar {
            name: p.name.clone(),
            value: p.peak_rss_growth_bytes as f64,
            second: None,
            text: bytes(p.peak_rss_growth_bytes),
            title: format!("{}: {}", p.name, bytes(p.peak_rss_growth_bytes)),
        });
        let chart = Bars {
            id: "memory",
            title: "Growth of the peak memory by phase",
            desc: "One bar a phase, its length the growth of the process's peak resident memory while it ran.",
            rows: bars.collect(),
        };
        let caption = "By how much the process's peak memory grew while a phase ran. Evaluation comes after these phases and is not among them.";
        charts += &figure("Memory by phase", caption, &chart.render());
    }
    let rows = phases
        .iter()
        .map(|p| Row {
            id: None,
            values: vec![
                Value::text(&p.name),
                Value::number(p.seconds),
                Value::number(p.cpu_seconds),
                Value::shown(
                    &bytes(p.peak_rss_growth_bytes),
                    p.peak_rss_growth_bytes.to_string(),
                ),
            ],
        })
        .collect();
    let table = Table {
        id: "phases",
        caption: "Phases",
        columns: vec![
            Column::text("phase", "phase"),
            Column::number("seconds", "seconds"),
            Column::number("cpu_seconds", "processor seconds"),
            Column::number("peak_rss_growth_bytes", "growth of peak memory"),
        ],
        rows,
    };
    let html = pair(&charts)
        + &format!(
            "<details><summary>Phases as a table</summary>\n{}</details>\n",
            table.render()
        );
    Some(Section {
        id: "cost",
        name: "Time and memory",
        html,
    })
}

/// Labels of [`COLUMNS`] on the page.
const LABELS: [&str; 26] = [
    "block",
    "linear",
    "outputs",
    "inputs",
    "bits",
    "group size",
    "sym",
    "method",
    "bits a weight",
    "tokens",
    "loss",
    "loss held out",
    "rounding",
    "SQNR dB",
    "cosine",
    "damping asked",
    "damping used",
    "dead columns",
    "condition",
    "clipped share",
    "seconds",
    "warnings",
    "rounding held out",
    "bytes before",
    "bytes after",
    "Hessian",
];

fn linears(run: &RunRecord) -> Section {
    // The name comes first: it is what a row is called by.
    let mut order: Vec<usize> = (0..COLUMNS.len()).collect();
    order.swap(0, 1);
    let words = ["linear", "sym", "method", "warnings", "hessian"];
    let columns = order
        .iter()
        .map(|&c| {
            if words.contains(&COLUMNS[c]) {
                Column::text(COLUMNS[c], LABELS[c])
            } else {
                Column::number(COLUMNS[c], LABELS[c])
            }
        })
        .collect();
    let value = |column: usize, raw: &str| {
        let real = raw.contains(['.', 'e', 'N', 'i']) || raw == "0";
        match raw.parse::<f64>() {
            Ok(number) if real && !words.contains(&COLUMNS[column]) => {
                // Cosines differ in their last digits only.
                let shown = if COLUMNS[column] == "cosine" {
                    format!("{number:.6}")
                } else {
                    short(number)
                };
                Value::shown(
                    &shown,
                    if number.is_finite() {
                        raw.to_owned()
                    } else {
                        String::new()
                    },
                )
            }
            _ if COLUMNS[column] == "warnings" => Value::html(escape(raw), raw.to_owned(), "words"),
            _ => Value::text(raw),
        }
    };
    let rows = run
        .linears
        .iter()
        .enumerate()
        .map(|(row, linear)| {
            let cells = cells(linear);
            Row {
                id: Some(row_id(row)),
                values: order.iter().map(|&c| value(c, &cells[c])).collect(),
            }
        })
        .collect();
    let table = Table {
        id: "linears",
        caption: "All linears",
        columns,
        rows,
    };
    Section {
        id: "table",
        name: "Linears",
        html: paragraph(
            "Every figure of every linear, as in linears.csv. A click on a heading sorts.",
        ) + &table.render(),
    }
}

fn provenance(run: &RunRecord, beside_run: bool) -> Section {
    let (model, calibration) = (&run.model, &run.calibration);
    let mut rows = vec![
        (
            "halfbyte",
            format!("{} (schema_version {})", run.version, run.schema_version),
        ),
        ("model", model.source.clone()),
    ];
    if let Some(revision) = &model.revision {
        rows.push(("revision", revision.clone()));
    }
    rows.push((
        "architecture",
        format!(
            "{}, {} blocks, {} parameters, {}",
            model.architecture,
            model.blocks,
            grouped(model.parameters),
            model.dtype
        ),
    ));
    if calibration.tokens_used == 0 {
        rows.push(("calibration", "none, the method reads no text".to_owned()));
    } else {
        rows.push(("calibration", calibration.sources.join(", ")));
        rows.push((
            "tokens",
            format!(
                "{} used, {} held out, {} dropped, {} truncated",
                grouped(calibration.tokens_used),
                grouped(calibration.tokens_held_out),
                grouped(calibration.tokens_dropped),
                grouped(calibration.tokens_truncated)
            ),
        ));
        rows.push(("sha256 of the windows", calibration.sha256.clone()));
    }
    if let Some(e) = &run.evaluation {
        rows.push((
            "evaluation",
            format!(
                "{}: {} of {} tokens",
                e.text,
                counted(e.windows, "window"),
                grouped(e.sequence_length as u64)
            ),
        ));
    }
    for export in &run.exports {
        rows.push((
            "written",
            format!(
                "{} ({}, {})",
                export.path,
                export.format,
                bytes(export.bytes)
            ),
        ));
    }
    let mut html = facts(&rows);
    if beside_run {
        html += "<p>";
        for (index, export) in run.exports.iter().enumerate() {
            html += &format!(
                "<a href=\"../{}README.md\">Model card draft ({})</a> ",
                escape(&export_folder(run, index)),
                escape(&export.format)
            );
        }
        html += "<a href=\"run.json\">run.json</a> <a href=\"linears.csv\">linears.csv</a></p>\n";
    }
    html += &format!(
        "<details><summary>Pipeline as resolved, every default filled in</summary>\n<pre tabindex=\"0\">{}</pre></details>\n",
        escape(&yaml(&run.pipeline))
    );
    html += &format!(
        "<details><summary>Model card draft</summary>\n<pre tabindex=\"0\">{}</pre></details>\n",
        escape(&model_card(run))
    );
    Section {
        id: "provenance",
        name: "Provenance",
        html,
    }
}

/// The export's folder in the run's, with a slash behind it; empty where it is the run's own.
fn export_folder(run: &RunRecord, index: usize) -> String {
    let export = run.pipeline.pointer(&format!("/export/{index}"));
    let key = |name: &str| {
        export
            .and_then(|e| e.get(name))
            .and_then(serde_json::Value::as_str)
    };
    match key("out").or(if run.exports.len() > 1 {
        key("format")
    } else {
        None
    }) {
        Some(folder) => format!("{}/", folder.trim_end_matches('/')),
        None => String::new(),
    }
}
