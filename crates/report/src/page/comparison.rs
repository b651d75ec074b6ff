use super::table::{Column, Row, Table, Value};
use super::{Section, document, figure, paragraph, warnings};
use crate::chart::{Axis, Plot, Point, Series, Shape};
use crate::compare::{ComparedRun, Comparison, is_beaten};
use crate::markup::{counted, escape};
use crate::text::{bytes, duration, kind_figures};

/// Several runs as one page.
pub fn comparison_page(comparison: &Comparison) -> String {
    let count = counted(comparison.runs.len(), "run");
    let head = format!(
        "<h1>{count} compared</h1>\n<p class=\"lead\">KL is the mean over tokens of KL(float ‖ quantized) in nats, ± one standard error over \
         windows.</p>\n{}",
        warnings(&comparison.cautions)
    );
    let mut sections = vec![Section {
        id: "runs",
        name: "Runs",
        html: runs(comparison),
    }];
    sections.extend(pareto(comparison));
    sections.push(Section {
        id: "kinds",
        name: "Loss by kind of linear",
        html: kinds(comparison),
    });
    document(
        &format!("halfbyte: {count} compared"),
        &head,
        &sections,
        "halfbyte",
    )
}

fn row_id(index: usize) -> String {
    format!("r{index}")
}

/// `A  name`: letters are what the chart shows.
fn named(run: &ComparedRun) -> Value {
    let html = format!("<b>{}</b> {}", escape(&run.letter), escape(&run.name));
    Value::html(html, run.name.clone(), "")
}

fn runs(comparison: &Comparison) -> String {
    let mut columns = vec![Column::text("run", "run")];
    for (key, label) in comparison.settings.iter().zip(&comparison.short_settings) {
        columns.push(Column::text(key, label));
    }
    columns.extend([
        Column::number("kl_mean", "KL"),
        Column::number("kl_mean_se", "±"),
        Column::number("perplexity", "perplexity"),
        Column::number("perplexity_se", "±"),
        Column::number("top1_agreement", "same top token"),
        Column::number("bits_per_weight", "bits a weight"),
        Column::number("bytes_after", "size"),
        Column::number("cpu_seconds", "processor time"),
        Column::number("peak_rss_bytes", "memory"),
    ]);
    let rows = comparison.runs.iter().enumerate().map(|(index, run)| {
        let (summary, evaluation) = (&run.record.summary, run.record.evaluation.as_ref());
        let mut values = vec![named(run)];
        values.extend(run.settings.iter().map(|value| Value::text(value)));
        let scored = |show: &dyn Fn(&crate::EvaluationRecord) -> (String, f64)| {
            evaluation.map(show).map_or_else(
                || Value::text(""),
                |(shown, raw)| Value::shown(&shown, raw.to_string()),
            )
        };
        values.extend([
            scored(&|e| (format!("{:.4}", e.kl_mean), e.kl_mean)),
            scored(&|e| (format!("{:.4}", e.kl_mean_se), e.kl_mean_se)),
            scored(&|e| (format!("{:.3}", e.perplexity), e.perplexity)),
            scored(&|e| (format!("{:.3}", e.perplexity_se), e.perplexity_se)),
            scored(&|e| {
                (
                    format!("{:.1} %", 100.0 * e.top1_agreement),
                    e.top1_agreement,
                )
            }),
            Value::shown(
                &format!("{:.3}", summary.bits_per_weight),
                summary.bits_per_weight.to_string(),
            ),
            Value::shown(&bytes(summary.bytes_after), summary.bytes_after.to_string()),
            Value::shown(
                &duration(summary.cpu_seconds),
                summary.cpu_seconds.to_string(),
            ),
            summary.peak_rss_bytes.map_or_else(
                || Value::text(""),
                |peak| Value::shown(&bytes(peak), peak.to_string()),
            ),
        ]);
        Row {
            id: Some(row_id(index)),
            values,
        }
    });
    let table = Table {
        id: "compared",
        caption: "Settings that differ, and what came of them",
        columns,
        rows: rows.collect(),
    };
    table.render()
}

fn pareto(comparison: &Comparison) -> Option<Section> {
    let all: Vec<(u64, f64)> = comparison
        .runs
        .iter()
        .filter_map(|run| run.size_and_kl().map(|(bytes, kl, _)| (bytes, kl)))
        .collect();
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut front: Vec<Point> = Vec::new();
    let mut beaten: Vec<Point> = Vec::new();
    for (index, run) in comparison.runs.iter().enumerate() {
        let Some((size, kl, error)) = run.size_and_kl() else {
            continue;
        };
        let point = Point {
            x: mebibytes(size),
            y: kl,
            error: Some(error),
            title: format!(
                "{} {}: KL {kl:.4} ± {error:.4}, {}",
                run.letter,
                run.name,
                bytes(size)
            ),
            row: Some(row_id(index)),
            label: Some(run.letter.clone()),
        };
        if is_beaten((size, kl), &all) {
            beaten.push(point)
        } else {
            front.push(point)
        }
    }
    if front.is_empty() {
        return None;
    }
    front.sort_by(|a, b| a.x.total_cmp(&b.x));
    let best: Vec<&str> = front.iter().filter_map(|p| p.label.as_deref()).collect();
    let caption = format!(
        "Down and to the left is better. On the line: {}, of which no other run is both smaller and closer to the float model. Where bars \
         overlap, the order is not certain.",
        best.join(", ")
    );
    let series = |name: &str, class, shape, line, points| Series {
        name: name.to_owned(),
        class,
        shape,
        line,
        points,
    };
    let mut both = vec![series("not beaten", "c0", Shape::Circle, true, front)];
    if !beaten.is_empty() {
        both.push(series(
            "beaten in size and KL",
            "c1",
            Shape::Square,
            false,
            beaten,
        ));
    }
    let chart = Plot {
        id: "pareto",
        title: "KL over size",
        desc: "One mark a run with a bar of one standard error; runs that no other beats in both are joined.",
        x: Axis::linear("size in MiB"),
        y: Axis::KL,
        diagonal: false,
        series: both,
    };
    Some(Section {
        id: "size",
        name: "KL over size",
        html: figure("KL over size", &caption, &chart.render()),
    })
}

/// Where a run's loss lies: geometric means over the linears of a kind, a column a run.
fn kinds(comparison: &Comparison) -> String {
    let each: Vec<_> = comparison
        .runs
        .iter()
        .map(|run| kind_figures(&run.record.linears))
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for kind in each.iter().flatten() {
        if !names.contains(&kind.name.as_str()) {
            names.push(&kind.name);
        }
    }
    let mut columns = vec![Column::text("linear", "linear")];
    columns.extend(
        comparison
            .runs
            .iter()
            .map(|run| Column::number(&run.name, &run.letter)),
    );
    let rows = names.iter().map(|name| {
        let mut values = vec![Value::text(name)];
        values.extend(each.iter().map(|kinds| {
            let kind = kinds.iter().find(|k| k.name == *name);
            Value::maybe(kind.and_then(|k| k.relative_loss_heldout.or(k.relative_loss)))
        }));
        Row { id: None, values }
    });
    let table = Table {
        id: "loss-by-kind",
        caption: "Relative loss on held-out text, where there is some",
        columns,
        rows: rows.collect(),
    };
    paragraph(
        "Geometric means over the linears of a kind. A run of another model or calibration text compares only roughly.",
    ) + &table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;
    use crate::markup::tests::elements;

    #[test]
    fn the_page_has_every_run_as_row_and_mark() {
        let mut worse = run();
        let mut unscored = run();
        worse.evaluation.as_mut().unwrap().kl_mean = 0.3;
        unscored.evaluation = None;
        let runs = [("<b>&", run()), ("worse", worse), ("unscored", unscored)];
        let comparison = Comparison::of(runs.map(|(name, run)| (name.to_owned(), run)).to_vec());
        let page = comparison_page(&comparison);
        let found = elements(&page);
        let with = |part: &str| found.iter().filter(|tag| tag.contains(part)).count();
        assert_eq!(
            (with("id=\"r0\""), with("id=\"r1\""), with("id=\"r2\"")),
            (1, 1, 1)
        );
        assert_eq!(
            (with("\"mark c0\""), with("\"mark c1\""), with("\"error ")),
            (1, 1, 2)
        );
        assert!(page.contains("<b>A</b> &lt;b&gt;&amp;") && !page.contains("<b>&"));
        assert!(page.contains("unscored was not scored"));
    }
}
