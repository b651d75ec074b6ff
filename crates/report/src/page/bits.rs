use super::kinds::{Kinds, row_id};
use super::table::{Column, Row, Table, Value};
use super::{Section, figure, pair};
use crate::chart::{Axis, Cell, Grid, Plot, Point, Series, Shape, step};
use crate::markup::{counted, short};
use crate::text::kind;
use crate::{BudgetRecord, LinearRecord, RunRecord, TuneRecord};

pub(super) fn bits(run: &RunRecord, kinds: &Kinds) -> Option<Section> {
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
        x: Axis::linear("stored bits a weight"),
        y: Axis::KL,
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

pub(super) fn tuning(tune: &TuneRecord) -> Section {
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
        desc: "KL on held-out windows before the first epoch and after each, and on the windows learned from, while they were.",
        x: Axis::whole("epochs"),
        y: Axis::KL,
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
                name: "text learned from".to_owned(),
                class: "c0",
                shape: Shape::Circle,
                line: true,
                points: points(&tune.kl_calibration, 1),
            },
        ],
    };
    let own = match tune.generated_samples {
        0 => "",
        _ => " of the float model's own text",
    };
    let windows = match tune.num_samples {
        Some(n) => format!(", {}{own} an epoch", counted(n, "window")),
        None => String::new(),
    };
    let caption = format!(
        "Scales and norms were tuned at a rate of {}{windows}; {} of {} kept. The losses of single linears on this page are from before it.",
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
