use super::kinds::row_id;
use super::table::{Column, Row, Table, Value, facts};
use super::yaml::yaml;
use super::{Section, paragraph};
use crate::files::{COLUMNS, cells};
use crate::markup::{counted, escape, short};
use crate::text::{grouped, token_counts, written};
use crate::{
    CalibrationRecord, EvaluationRecord, LinearRecord, ModelRecord, RunRecord, SCHEMA_VERSION,
    SweepRecord, model_card,
};

/// Labels of [`COLUMNS`] on the page.
const LABELS: [&str; COLUMNS.len()] = [
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
    "int8 columns kept",
    "int8 bits a weight",
    "int8 loss",
    "int8 loss split",
    "row Hessian",
    "target share",
    "target shift",
    "effective rank",
    "outlier channels",
    "finer groups' loss",
    "predicted KL",
    "fell back to",
];

pub(super) fn linears(run: &RunRecord) -> Section {
    let shown = shown_columns(&run.linears);
    let table = linears_table("All linears", &shown, values(&run.linears, &shown));
    Section {
        id: "table",
        name: "Linears",
        html: paragraph(
            "Every figure of every linear, as in linears.csv; columns without any value are left out. A click on a heading sorts.",
        ) + &table.render(),
    }
}

/// Indices of the columns of which some linear has a value, the name first: it is what a row is called by.
pub(super) fn shown_columns<'a>(linears: impl IntoIterator<Item = &'a LinearRecord>) -> Vec<usize> {
    let mut has_value = [false; COLUMNS.len()];
    for linear in linears {
        let all = cells(linear);
        (has_value.iter_mut().zip(all)).for_each(|(has, cell)| *has |= !cell.is_empty());
    }
    let mut order: Vec<usize> = (0..COLUMNS.len()).collect();
    order.swap(0, 1);
    order.retain(|&c| has_value[c]);
    order
}

/// Columns of words and lists.
const WORDS: [&str; 9] = [
    "linear",
    "sym",
    "method",
    "warnings",
    "hessian",
    "int8_outlier_columns",
    "row_hessian",
    "outlier_channels",
    "fallback",
];

/// What linears have in the columns shown.
pub(super) fn values(linears: &[LinearRecord], shown: &[usize]) -> Vec<Vec<Value>> {
    let of = |linear| {
        let all = cells(linear);
        shown.iter().map(|&c| value(c, &all[c])).collect()
    };
    linears.iter().map(of).collect()
}

fn value(column: usize, raw: &str) -> Value {
    let name = COLUMNS[column];
    let real = raw.contains(['.', 'e', 'N', 'i']) || raw == "0";
    match raw.parse::<f64>() {
        Ok(number) if real && !WORDS.contains(&name) => {
            // Cosines differ in their last digits only.
            let shown = if name == "cosine" {
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
        _ if name == "warnings" => Value::html(escape(raw), raw.to_owned(), "words"),
        _ if name == "int8_outlier_columns" => {
            Value::shown(&raw.split_whitespace().count().to_string(), raw.to_owned())
        }
        _ => Value::text(raw),
    }
}

/// A row a linear, which marks of charts find by its [`row_id`].
pub(super) fn linears_table<'a>(
    caption: &'a str,
    shown: &[usize],
    values: Vec<Vec<Value>>,
) -> Table<'a> {
    let column = |&c: &usize| match WORDS.contains(&COLUMNS[c]) {
        true => Column::text(COLUMNS[c], LABELS[c]),
        false => Column::number(COLUMNS[c], LABELS[c]),
    };
    let rows = values.into_iter().enumerate().map(|(row, values)| Row {
        id: Some(row_id(row)),
        values,
    });
    Table {
        id: "linears",
        caption,
        columns: shown.iter().map(column).collect(),
        rows: rows.collect(),
    }
}

pub(super) fn provenance(run: &RunRecord, beside_run: bool) -> Section {
    let mut rows = origin(&run.version, &run.model, &run.calibration);
    rows.extend(run.evaluation.as_ref().map(scored));
    for export in &run.exports {
        rows.push(("written", written(export)));
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
    html += &resolved(&run.pipeline);
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

/// The same of a sweep.
pub(super) fn provenance_of_sweep(sweep: &SweepRecord) -> Section {
    let mut rows = origin(&sweep.version, &sweep.model, &sweep.calibration);
    let mut scores = sweep.cells.iter().filter_map(|c| c.evaluation.as_ref());
    rows.extend(scores.next().map(scored));
    Section {
        id: "provenance",
        name: "Provenance",
        html: facts(&rows) + &resolved(&sweep.pipeline),
    }
}

type Fact = (&'static str, String);

fn origin(version: &str, model: &ModelRecord, calibration: &CalibrationRecord) -> Vec<Fact> {
    let mut rows = vec![
        (
            "halfbyte",
            format!("{version} (schema_version {SCHEMA_VERSION})"),
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
        rows.push(("tokens", token_counts(calibration, "used")));
        rows.push(("sha256 of the windows", calibration.sha256.clone()));
    }
    rows
}

fn scored(e: &EvaluationRecord) -> Fact {
    (
        "evaluation",
        format!(
            "{}: {} of {} tokens",
            e.text,
            counted(e.windows, "window"),
            grouped(e.sequence_length as u64)
        ),
    )
}

fn resolved(pipeline: &serde_json::Value) -> String {
    format!(
        "<details><summary>Pipeline as resolved, every default filled in</summary>\n<pre tabindex=\"0\">{}</pre></details>\n",
        escape(&yaml(pipeline))
    )
}

/// The export's folder in the run's, with a slash behind it; empty where it is the run's own.
pub(crate) fn export_folder(run: &RunRecord, index: usize) -> String {
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
