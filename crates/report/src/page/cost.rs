use super::table::{Column, Row, Table, Value};
use super::{Section, figure, pair};
use crate::RunRecord;
use crate::chart::{Bar, Bars};
use crate::markup::counted;
use crate::text::{bytes, duration};

pub(super) fn cost(run: &RunRecord) -> Option<Section> {
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
