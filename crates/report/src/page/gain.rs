use super::kinds::Kinds;
use super::table::{Column, Row, Table, Value};
use super::{Section, figure, pair, paragraph};
use crate::RunRecord;
use crate::chart::{Axis, Plot, Point, Series, Shape};
use crate::curve::{Curve, Means};
use crate::enough::{Verdict, is_the_text_enough};
use crate::markup::{counted, escape, short};
use crate::text::{gain, grouped, kind, kind_figures};

pub(super) fn rounding_and_text(run: &RunRecord, kinds: &Kinds) -> Section {
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
        x: Axis::log("loss of plain rounding"),
        y: Axis::log("our loss"),
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
            x: Axis::log("loss on the calibration text"),
            y: Axis::log("loss on held-out text"),
            diagonal: true,
            series: heldout,
        };
        charts += &figure(
            "Held-out text against calibration text",
            "On the line the loss is the same on text the solver has not seen; above it, the solver has fitted its text.",
            &chart.render(),
        );
    }
    let curve = Curve::of(run);
    let Verdict { answer, reasons } = is_the_text_enough(run, curve.as_ref());
    let verdict = format!(
        "<p class=\"verdict\">Is the calibration text enough? <strong>{answer}</strong> {}</p>\n",
        escape(&reasons)
    );
    let mut html = pair(&charts);
    html += &match &curve {
        Some(curve) => {
            let (figure, table) = loss_over_tokens(run, curve);
            pair(&format!("{figure}<div>{table}{verdict}</div>\n"))
        }
        None => verdict,
    };
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

/// The curve and its figures.
fn loss_over_tokens(run: &RunRecord, curve: &Curve) -> (String, String) {
    let row_id = |i: usize| format!("t{i}");
    let series = |name: &str, class, shape, loss: fn(&Means) -> f64| {
        let points = curve.points.iter().enumerate().map(|(i, means)| Point {
            x: means.tokens as f64,
            y: loss(means),
            title: format!(
                "{name}, {} tokens: {}",
                grouped(means.tokens),
                short(loss(means))
            ),
            row: Some(row_id(i)),
            ..Point::default()
        });
        Series {
            name: name.to_owned(),
            class,
            shape,
            line: true,
            points: points.collect(),
        }
    };
    let chart = Plot {
        id: "curve",
        title: "Loss over calibration tokens",
        desc: "Two lines, of the text that linears are fitted to and of held-out text, over the tokens they are solved from.",
        x: Axis::log("calibration tokens"),
        y: Axis::log("relative loss"),
        diagonal: false,
        series: vec![
            series("held out", "c2", Shape::Triangle, |m| {
                m.relative_loss_heldout
            }),
            series("fitted to", "c0", Shape::Circle, |m| m.relative_loss),
        ],
    };
    let blocks: Vec<String> = curve.blocks.iter().map(usize::to_string).collect();
    let mut left_out: Vec<&str> = Vec::new();
    for linear in run
        .linears
        .iter()
        .filter(|l| curve.blocks.contains(&l.block))
    {
        let name = kind(linear);
        if !left_out.contains(&name) && !curve.kinds.iter().any(|known| known == name) {
            left_out.push(name);
        }
    }
    let left_out = match left_out[..] {
        [] => String::new(),
        [one] => format!(
            " {one} is left out: more text would not change its statistics, or they are too wide to be kept four times."
        ),
        _ => format!(
            " {} are left out: more text would not change their statistics, or they are too wide to be kept four times.",
            left_out.join(", ")
        ),
    };
    let caption = format!(
        "Geometric means over linears of {} {}, each solved from windows spread over the text. Where the held-out line is flat, more text gains nothing.{left_out}",
        if blocks.len() == 1 { "block" } else { "blocks" },
        blocks.join(", ")
    );
    let mut columns = vec![
        Column::number("tokens", "tokens"),
        Column::number("relative_loss", "fitted to"),
        Column::number("relative_loss_heldout", "held out"),
    ];
    columns.extend(curve.kinds.iter().map(|k| Column::number(k, k)));
    let rows = curve.points.iter().enumerate().map(|(i, means)| {
        let mut values = vec![
            Value::shown(&grouped(means.tokens), means.tokens.to_string()),
            Value::number(means.relative_loss),
            Value::number(means.relative_loss_heldout),
        ];
        values.extend(means.by_kind.iter().map(|loss| Value::number(*loss)));
        Row {
            id: Some(row_id(i)),
            values,
        }
    });
    let table = Table {
        id: "calibration-curve",
        caption: "The same in figures; kinds held out",
        columns,
        rows: rows.collect(),
    };
    let figure = figure("Loss over calibration tokens", &caption, &chart.render());
    (figure, table.render())
}

fn lose(n: usize) -> String {
    let verb = if n == 1 { "loses" } else { "lose" };
    format!("{} {verb}", counted(n, "linear"))
}
