use serde::{Serialize, Serializer};

use super::kinds::{Kinds, title};
use super::loss::{Colours, HEAT_CAPTION, Recoloured, largest};
use super::record::{linears_table, provenance_of_sweep, shown_columns, values};
use super::table::{Column, Row, Table, Value};
use super::{Section, document, figure, pair, paragraph, tiles, warnings};
use crate::card::short_name;
use crate::chart::{Axis, Plot, Point, Series, Shape, step};
use crate::markup::{counted, escape, short};
use crate::sweep::{broken_cells, front, is_measured};
use crate::text::{bytes, duration};
use crate::{CellRecord, LinearRecord, SweepRecord};

/// A sweep as one page; `linears` are those of its cells by name, as [`crate::read_cells`] gives them. `beside_sweep` is for a page that lies in the sweep's own `halfbyte/` folder: it then links to
/// the page of the winner's run.
pub fn sweep_page(
    sweep: &SweepRecord,
    linears: &[(String, Vec<LinearRecord>)],
    beside_sweep: bool,
) -> String {
    let source = sweep.model.source.as_str();
    let name = if source.starts_with(['/', '.', '~']) {
        short_name(source)
    } else {
        source
    };
    let sections = [
        Some(cells(sweep)),
        kl(sweep),
        Some(loss(sweep)),
        map(sweep, linears),
        Some(provenance_of_sweep(sweep)),
    ];
    let sections: Vec<Section> = sections.into_iter().flatten().collect();
    document(
        &format!("{name}, sweep of {}", counted(sweep.cells.len(), "cell")),
        &head(sweep, name, beside_sweep),
        &sections,
        &format!("halfbyte {}", escape(&sweep.version)),
    )
}

fn head(sweep: &SweepRecord, name: &str, beside_sweep: bool) -> String {
    let summary = &sweep.summary;
    let refused = sweep.cells.iter().filter(|c| c.refused.is_some()).count();
    let measured = sweep
        .cells
        .iter()
        .filter(|c| c.evaluation.is_some())
        .count();
    let mut out = format!(
        "<h1>{}: a sweep</h1>\n<p class=\"lead\">{}, all solved from the statistics of one pass over the float model. KL is the mean over \
         tokens of KL(float ‖ quantized) in nats, ± one standard error over windows.</p>\n",
        escape(name),
        counted(sweep.cells.len() - refused, "cell")
    );
    let mut list: Vec<String> = broken_cells(sweep).into_iter().collect();
    list.extend_from_slice(&summary.warnings);
    if summary.unmeasured > 0 {
        list.push(format!("cells not measured yet: {}", summary.unmeasured));
    }
    out += &warnings(&list);
    if let Some(winner) = &sweep.winner {
        let run = match (winner.kl_mean, winner.kl_mean_se) {
            (Some(kl), Some(se)) => {
                format!(" Solved stage by stage and exported, its KL is {kl:.4} ± {se:.4}.")
            }
            _ => String::new(),
        };
        let page = match beside_sweep {
            true => " <a href=\"report.html\">Its own page</a>",
            false => "",
        };
        out += &format!(
            "<p class=\"verdict\"><strong>{}</strong> is the winner by {}.{}{page}</p>\n",
            escape(&winner.cell),
            escape(&winner.by),
            escape(&run)
        );
    }
    let below = match measured {
        0 => "none measured".to_owned(),
        n => format!("{n} measured, {refused} refused"),
    };
    let mut figures = vec![("Cells", (sweep.cells.len() - refused).to_string(), below)];
    if let Some(rho) = summary.spearman {
        figures.push((
            "Rank correlation",
            format!("{rho:.3}"),
            "Spearman's, of predicted and measured KL".to_owned(),
        ));
    }
    figures.push((
        "Processor time",
        duration(summary.cpu_seconds),
        format!(
            "{} in all, {}",
            duration(summary.seconds),
            match summary.shards {
                1 => "1 process".to_owned(),
                n => format!("{n} processes"),
            }
        ),
    ));
    if let Some(peak) = summary.peak_rss_bytes {
        figures.push(("Peak memory", bytes(peak), "of a process".to_owned()));
    }
    out + &tiles(&figures)
}

fn row_id(index: usize) -> String {
    format!("c{index}")
}

fn cells(sweep: &SweepRecord) -> Section {
    let front = front(sweep);
    let columns = vec![
        Column::text("cell", "cell"),
        Column::number("bits_per_weight", "bits a weight"),
        Column::number("bytes", "size"),
        Column::number("kl_mean", "KL"),
        Column::number("kl_mean_se", "±"),
        Column::text("front", "not beaten"),
        Column::number("predicted_kl", "KL predicted"),
        Column::number("perplexity", "perplexity"),
        Column::number("perplexity_se", "±"),
        Column::number("top1_agreement", "same top token"),
        Column::number("relative_loss", "loss"),
        Column::number("relative_loss_heldout", "loss held out"),
        Column::text("method", "method"),
        Column::text("recipe", "recipe"),
        Column::number("bits", "bits"),
        Column::number("group_size", "group size"),
        Column::text("sym", "sym"),
        Column::number("seconds", "seconds"),
    ];
    let fixed = |value: Option<f64>, digits: usize| {
        value.map_or_else(
            || Value::text(""),
            |value| Value::shown(&format!("{value:.digits$}"), value.to_string()),
        )
    };
    let solved = sweep.cells.iter().enumerate();
    let solved = solved.filter(|(_, cell)| cell.refused.is_none());
    let rows = solved.map(|(index, cell)| {
        let score = cell.evaluation.as_ref();
        let best = front.contains(&cell.cell.as_str());
        let share = score.map(|e| e.top1_agreement);
        Row {
            id: Some(row_id(index)),
            values: vec![
                Value::text(&cell.cell),
                fixed(cell.bits_per_weight, 3),
                cell.bytes.map_or_else(
                    || Value::text(""),
                    |size| Value::shown(&bytes(size), size.to_string()),
                ),
                Value::maybe(score.map(|e| e.kl_mean)),
                Value::maybe(score.map(|e| e.kl_mean_se)),
                Value::text(match best {
                    _ if cell.is_broken() => "broken",
                    true => "yes",
                    false => "",
                }),
                Value::maybe(cell.predicted_kl),
                fixed(score.map(|e| e.perplexity), 3),
                fixed(score.map(|e| e.perplexity_se), 3),
                share.map_or_else(
                    || Value::text(""),
                    |share| Value::shown(&format!("{:.1} %", 100.0 * share), share.to_string()),
                ),
                Value::maybe(cell.relative_loss),
                Value::maybe(cell.relative_loss_heldout),
                Value::text(&cell.method),
                Value::text(&cell.recipe),
                Value::whole(usize::from(cell.bits)),
                Value::text(&cell.group_size.to_string()),
                Value::text(&cell.sym.to_string()),
                fixed(cell.seconds, 1),
            ],
        }
    });
    let table = Table {
        id: "cells",
        caption: "Settings, and what came of them",
        columns,
        rows: rows.collect(),
    };
    let mut html = paragraph(
        "Losses are geometric means over the linears, on the float model's statistics. The KL predicted adds up over the linears what \
         each one's loss costs the model; it ranks cells rather than telling the level.",
    );
    html += &table.render();
    html += &refused(sweep);
    let told: Vec<String> = sweep
        .cells
        .iter()
        .flat_map(|cell| {
            cell.warnings
                .iter()
                .map(move |w| format!("{}: {w}", cell.cell))
        })
        .collect();
    if !told.is_empty() {
        let items: String = told
            .iter()
            .map(|w| format!("<li>{}</li>\n", escape(w)))
            .collect();
        html += &format!(
            "<details><summary>{}</summary><ul>\n{items}</ul></details>\n",
            counted(told.len(), "linear's warning")
        );
    }
    Section {
        id: "cells-section",
        name: "Cells",
        html,
    }
}

/// The cells that cannot be, and why.
fn refused(sweep: &SweepRecord) -> String {
    let rows = sweep.cells.iter().filter_map(|cell| {
        let reason = cell.refused.as_ref()?;
        let reason = Value::html(escape(reason), reason.clone(), "words");
        Some(Row {
            id: None,
            values: vec![Value::text(&cell.cell), reason],
        })
    });
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    let table = Table {
        id: "refused",
        caption: "Cells that cannot be",
        columns: vec![
            Column::text("cell", "cell"),
            Column::text("refused", "because"),
        ],
        rows,
    };
    table.render()
}

/// KL over size, and beside it what was expected.
fn kl(sweep: &SweepRecord) -> Option<Section> {
    let charts = size(sweep)? + &prediction(sweep).unwrap_or_default();
    Some(Section {
        id: "kl",
        name: "KL",
        html: pair(&charts),
    })
}

const MARKS: [(&str, Shape); 4] = [
    ("c0", Shape::Circle),
    ("c1", Shape::Square),
    ("c2", Shape::Triangle),
    ("c3", Shape::Diamond),
];

fn point(x: f64, y: f64, error: Option<f64>, index: usize, title: String) -> Point {
    Point {
        x,
        y,
        error,
        title,
        row: Some(row_id(index)),
        label: None,
    }
}

/// KL over size: what no other cell beats is joined.
fn size(sweep: &SweepRecord) -> Option<String> {
    let measured = is_measured(sweep);
    let best = front(sweep);
    let (mut joined, mut beaten) = (Vec::new(), Vec::new());
    for (index, cell) in sweep.cells.iter().enumerate() {
        let Some((size, kl)) = cell.size_and_kl(measured).filter(|_| !cell.is_broken()) else {
            continue;
        };
        let error = cell.evaluation.as_ref().filter(|_| measured);
        let error = error.map(|e| e.kl_mean_se);
        let told = match error {
            Some(error) => format!("KL {} ± {}", short(kl), short(error)),
            None => format!("KL {} predicted", short(kl)),
        };
        let title = format!("{}: {told}, {}", cell.cell, bytes(size));
        let mebibytes = size as f64 / f64::from(1 << 20);
        let mark = point(mebibytes, kl, error, index, title);
        if best.contains(&cell.cell.as_str()) {
            joined.push(mark);
        } else {
            beaten.push(mark);
        }
    }
    if joined.is_empty() {
        return None;
    }
    joined.sort_by(|a, b| a.x.total_cmp(&b.x));
    let what = if measured { "measured" } else { "predicted" };
    let caption = format!(
        "Down and to the left is better; KL {what}. On the line: {}.{}",
        match best.len() {
            0..=6 => best.join(", "),
            n => format!("{n} cells, marked in the table"),
        },
        if measured {
            " Where bars overlap, the order is not certain."
        } else {
            ""
        }
    );
    let mut series = vec![Series {
        name: "not beaten".to_owned(),
        class: "c0",
        shape: Shape::Circle,
        line: true,
        points: joined,
    }];
    if !beaten.is_empty() {
        series.push(Series {
            name: "beaten in size and KL".to_owned(),
            class: "c1",
            shape: Shape::Square,
            line: false,
            points: beaten,
        });
    }
    let chart = Plot {
        id: "pareto",
        title: "KL over size",
        desc: "One mark a cell; cells that no other beats in both are joined.",
        x: Axis::linear("size in MiB"),
        y: Axis::KL,
        diagonal: false,
        series,
    };
    Some(figure("KL over size", &caption, &chart.render()))
}

/// What was expected of the cells beside what was measured.
fn prediction(sweep: &SweepRecord) -> Option<String> {
    let mut methods: Vec<(&str, Vec<Point>)> = Vec::new();
    let mut n_cells = 0;
    for (index, cell) in sweep.cells.iter().enumerate() {
        let (Some(predicted), Some(e)) = (cell.predicted_kl, &cell.evaluation) else {
            continue;
        };
        n_cells += 1;
        if cell.is_broken() {
            continue;
        }
        let title = format!(
            "{}: KL {} predicted, {} ± {} measured",
            cell.cell,
            short(predicted),
            short(e.kl_mean),
            short(e.kl_mean_se)
        );
        let mark = point(predicted, e.kl_mean, Some(e.kl_mean_se), index, title);
        match methods.iter_mut().find(|(name, _)| *name == cell.method) {
            Some((_, points)) => points.push(mark),
            None => methods.push((&cell.method, vec![mark])),
        }
    }
    if methods.is_empty() {
        return None;
    }
    let rho = sweep.summary.spearman.map_or_else(String::new, |rho| {
        format!(
            " Spearman's rank correlation over {} is {rho:.3}.",
            counted(n_cells, "cell")
        )
    });
    let caption = format!(
        "On the line the prediction is right.{rho} It is taken from the float model by one backward pass, without scoring any cell."
    );
    let chart = Plot {
        id: "prediction",
        title: "Measured over predicted KL",
        desc: "One mark a cell with a bar of one standard error.",
        x: Axis::log("KL predicted, nats"),
        y: Axis::log("KL measured, nats"),
        diagonal: true,
        series: (methods.into_iter().zip(MARKS.into_iter().cycle()))
            .map(|((name, points), (class, shape))| Series {
                name: name.to_owned(),
                class,
                shape,
                line: false,
                points,
            })
            .collect(),
    };
    Some(figure(
        "Measured over predicted KL",
        &caption,
        &chart.render(),
    ))
}

/// All of a cell's settings but the bits.
fn setting(cell: &CellRecord) -> String {
    let group = match cell.group_size {
        -1 => "a group a row".to_owned(),
        0 => "one scale".to_owned(),
        columns => format!("groups of {columns}"),
    };
    let recipe = match cell.recipe.as_str() {
        "default" => String::new(),
        other => format!(" {other}"),
    };
    let sym = if cell.sym { "sym" } else { "asym" };
    format!("{}{recipe} {sym}, {group}", cell.method)
}

/// Loss over bits, a line for all that have the other settings alike; the same as a table.
fn loss(sweep: &SweepRecord) -> Section {
    let mut settings: Vec<String> = Vec::new();
    let mut widths: Vec<u8> = Vec::new();
    let solved = || {
        sweep
            .cells
            .iter()
            .enumerate()
            .filter(|(_, c)| c.refused.is_none())
    };
    for (_, cell) in solved() {
        if !settings.contains(&setting(cell)) {
            settings.push(setting(cell));
        }
        if !widths.contains(&cell.bits) {
            widths.push(cell.bits);
        }
    }
    widths.sort_unstable();
    let judged = |cell: &CellRecord| cell.relative_loss_heldout.or(cell.relative_loss);
    let logs: Vec<f64> = solved()
        .filter_map(|(_, cell)| judged(cell))
        .filter(|loss| *loss > 0.0)
        .map(f64::ln)
        .collect();
    let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shade = |loss: f64| match high > low {
        true => step(((loss.ln() - low) / (high - low)).clamp(0.0, 1.0)),
        false => 0,
    };
    let mut columns = vec![Column::text("setting", "settings")];
    columns.extend(
        widths
            .iter()
            .map(|bits| Column::number(&format!("bits_{bits}"), &format!("{bits} bits"))),
    );
    let rows = settings.iter().map(|name| {
        let mut values = vec![Value::text(name)];
        values.extend(widths.iter().map(|bits| {
            let found = solved().find(|(_, cell)| cell.bits == *bits && setting(cell) == *name);
            match found.and_then(|(_, cell)| judged(cell)) {
                Some(loss) => Value::html(
                    format!(
                        "<span class=\"cell-value h{}\">{}</span>",
                        shade(loss),
                        short(loss)
                    ),
                    loss.to_string(),
                    "",
                ),
                None => Value::text(""),
            }
        }));
        Row { id: None, values }
    });
    let table = Table {
        id: "loss-by-setting",
        caption: "Relative loss, on held-out text where there is some",
        columns,
        rows: rows.collect(),
    };
    let shown: Vec<&String> = settings.iter().take(MARKS.len()).collect();
    let series = shown.iter().zip(MARKS).map(|(name, (class, shape))| {
        let of = solved().filter(|(_, cell)| setting(cell) == **name);
        let mut points: Vec<Point> = of
            .filter_map(|(index, cell)| {
                let loss = judged(cell)?;
                let title = format!("{}: loss {}", cell.cell, short(loss));
                Some(point(f64::from(cell.bits), loss, None, index, title))
            })
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series {
            name: (*name).clone(),
            class,
            shape,
            line: true,
            points,
        }
    });
    let chart = Plot {
        id: "loss-by-bits",
        title: "Relative loss over bits",
        desc: "A line for all cells whose other settings are alike.",
        x: Axis::whole("bits a code"),
        y: Axis::log("relative loss"),
        diagonal: false,
        series: series.collect(),
    };
    let rest = match settings.len() - shown.len() {
        0 => String::new(),
        n => format!(
            " The first {} settings are drawn, {n} more stand in the table.",
            shown.len()
        ),
    };
    let caption = format!("Geometric means over the linears.{rest}");
    Section {
        id: "loss",
        name: "Loss by bits and groups",
        html: pair(
            &(figure("Relative loss over bits", &caption, &chart.render())
                + &format!("<div>{}</div>\n", table.render())),
        ),
    }
}

/// A cell of a sweep as the script puts it in another's place.
#[derive(Serialize)]
struct MapData {
    colours: Vec<Recoloured>,
    largest: String,
    titles: Vec<String>,
    /// Contents of the table by its columns.
    columns: Vec<Contents>,
}

#[derive(Clone, PartialEq)]
enum Contents {
    /// Those of every cell.
    Shared,
    /// One for all rows.
    Alike(String),
    Each(Vec<String>),
}

impl Serialize for Contents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Shared => serializer.serialize_none(),
            Self::Alike(content) => content.serialize(serializer),
            Self::Each(contents) => contents.serialize(serializer),
        }
    }
}

/// Where in the model a cell loses; which one is for the reader to choose.
fn map(sweep: &SweepRecord, linears: &[(String, Vec<LinearRecord>)]) -> Option<Section> {
    let first = shown_first(sweep, linears)?;
    let (_, default) = &linears[first];
    let names = |all: &[LinearRecord]| -> Vec<String> {
        all.iter().map(|linear| linear.linear.clone()).collect()
    };
    let wanted = names(default);
    let (drawn, others): (Vec<_>, Vec<_>) =
        (linears.iter().enumerate()).partition(|(_, (_, linears))| names(linears) == wanted);
    let colours = Colours::of(default);
    let shown = shown_columns(drawn.iter().flat_map(|(_, (_, linears))| linears));
    let mut options = String::new();
    let mut data = Vec::new();
    for (index, (cell, linears)) in &drawn {
        let selected = match *index == first {
            true => " selected=\"selected\"",
            false => "",
        };
        options += &format!("<option{selected}>{}</option>\n", escape(cell));
        let rows = values(linears, &shown);
        let column = |column: usize| {
            let contents = rows.iter().map(|row| row[column].inner_html().to_owned());
            let contents: Vec<String> = contents.collect();
            match contents.iter().all(|content| *content == contents[0]) {
                true => Contents::Alike(contents[0].clone()),
                false => Contents::Each(contents),
            }
        };
        data.push(MapData {
            colours: colours.recoloured(linears),
            largest: largest(linears),
            titles: linears.iter().map(title).collect(),
            columns: (0..shown.len()).map(column).collect(),
        });
    }
    let rows = values(default, &shown).into_iter();
    let rows = rows.map(|row| row.into_iter().map(Value::without_raw).collect());
    let table = linears_table("Linears of the cell", &shown, rows.collect());
    let heat_map = colours.heat_map(default, sweep.model.blocks, &Kinds::of(default));
    let chart = format!(
        "<p class=\"choice needs-script\"><label for=\"cell\">Cell</label> <select id=\"cell\" data-source=\"cell-data\" \
         data-table=\"linears\" data-text=\"largest\" autocomplete=\"off\">\n{options}</select></p>\n{heat_map}"
    );
    let missing = sweep.cells.iter().filter(|c| c.refused.is_none()).count() - drawn.len();
    for column in 0..shown.len() {
        let of_first = data[0].columns[column].clone();
        if data.iter().all(|cell| cell.columns[column] == of_first) {
            data.iter_mut()
                .for_each(|cell| cell.columns[column] = Contents::Shared);
        }
    }
    let mut html = paragraph(&format!(
        "Shown first is {}, {}. cells/CELL.csv has all digits of the table.{}",
        match &sweep.winner {
            Some(winner) if winner.cell == linears[first].0 => "the winner",
            _ => "the middle one of those that no other beats",
        },
        linears[first].0,
        match missing {
            0 => String::new(),
            n => format!(
                " {} not to choose: {}.",
                match n {
                    1 => "1 cell is".to_owned(),
                    n => format!("{n} cells are"),
                },
                match others.len() {
                    0 => "their tables are gone",
                    _ => "their tables are gone, or have other linears",
                }
            ),
        }
    ));
    html += &figure("Loss by block and linear", HEAT_CAPTION, &chart);
    html += &format!("<p id=\"largest\">{}</p>\n", escape(&largest(default)));
    html += &table.render();
    // Within a script element only a tag could end the data.
    let json = serde_json::to_string(&data).expect("plain data always becomes JSON");
    html += &format!(
        "<script type=\"application/json\" id=\"cell-data\">{}</script>\n",
        json.replace('<', "\\u003c")
    );
    Some(Section {
        id: "map",
        name: "Where a cell loses",
        html,
    })
}

/// The cell that is shown where none is chosen: the winner, or the middle one by size of those that no other beats.
fn shown_first(sweep: &SweepRecord, linears: &[(String, Vec<LinearRecord>)]) -> Option<usize> {
    let place = |name: &str| linears.iter().position(|(cell, _)| cell == name);
    let winner = sweep.winner.as_ref().and_then(|winner| place(&winner.cell));
    let mut best = front(sweep);
    let size = |name: &&str| sweep.cells.iter().find(|c| c.cell == **name)?.bytes;
    best.sort_by_key(size);
    let middle = best.get(best.len() / 2).and_then(|name| place(name));
    let any = (!linears.is_empty()).then_some(0);
    winner.or(middle).or(any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::markup::tests::elements;
    use crate::sweep::tests::sweep;

    /// Every solved cell's linears, of losses that differ from cell to cell.
    fn linears(sweep: &SweepRecord) -> Vec<(String, Vec<LinearRecord>)> {
        let solved = sweep.cells.iter().filter(|cell| cell.refused.is_none());
        let of = |cell: &CellRecord| {
            let mut linears = fixture::run().linears;
            for linear in &mut linears {
                linear.bits = cell.bits;
                linear.relative_loss *= f64::from(9 - cell.bits);
            }
            (cell.cell.clone(), linears)
        };
        solved.map(of).collect()
    }

    #[test]
    fn the_page_has_every_cell_as_row_and_the_solved_ones_as_marks() {
        let page = sweep_page(&sweep(), &linears(&sweep()), true);
        let found = elements(&page);
        let with = |part: &str| found.iter().filter(|tag| tag.contains(part)).count();
        assert_eq!((with("tr id=\"c"), with("table class=\"data\"")), (4, 4));
        // two forms of the map, and its table
        assert_eq!((with("data-row=\"l3\""), with("tr id=\"l")), (2, 4));
        assert_eq!((with("option"), with("selected=")), (4, 1));
        // three measured in two charts with bars, four by their loss
        assert_eq!((with("\"error "), with("data-row=\"c0\"")), (6, 3));
        assert_eq!(with("data-row=\"c3\""), 1, "an unmeasured cell");
        assert_eq!(with("data-row=\"c4\""), 0, "a refused cell");
        for part in [
            "do not divide &lt;256&gt; columns",
            "short &lt;text&gt;",
            "<a href=\"report.html\">",
            "over 3 cells is 1.000",
            "<strong>gptq-4bit-g64-sym</strong> is the winner by kl",
        ] {
            assert!(page.contains(part), "lacks {part}");
        }
        assert!(!sweep_page(&sweep(), &[], false).contains("report.html"));
        assert!(!sweep_page(&sweep(), &[], false).contains("id=\"heat\""));
    }

    #[test]
    fn a_broken_cell_stands_in_the_table_and_stretches_no_chart() {
        let mut sweep = sweep();
        sweep.cells[0].evaluation.as_mut().unwrap().kl_mean = 13.8;
        sweep.conclude();
        let page = sweep_page(&sweep, &linears(&sweep), true);
        let found = elements(&page);
        let with = |part: &str| found.iter().filter(|tag| tag.contains(part)).count();
        // its loss alone is drawn
        assert_eq!((with("\"error "), with("data-row=\"c0\"")), (4, 1));
        assert_eq!(with("tr id=\"c0"), 1);
        assert_eq!(page.matches("broken</td>").count(), 1);
        let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part}"));
        assert!(at("<li>1 cell is broken, no longer the model") < at("<li>short &lt;text&gt;"));
        assert!(page.contains("On the line: gptq-4bit-g64-sym."));
        assert!(page.contains("over 3 cells"), "ranks are of all cells");
    }

    #[test]
    fn every_cell_can_be_shown_on_the_map_and_the_winner_is() {
        let (sweep, linears) = (sweep(), linears(&sweep()));
        let page = sweep_page(&sweep, &linears, true);
        assert!(page.contains("<option selected=\"selected\">gptq-4bit-g64-sym</option>"));
        assert!(page.contains("Shown first is the winner, gptq-4bit-g64-sym."));
        let (_, rest) = page.split_once("id=\"cell-data\">").unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(data.as_array().unwrap().len(), 4);
        let losses = &data[0]["columns"][10];
        assert_eq!(losses[0], "0.00600");
        assert_eq!(data[0]["columns"][4], "3", "bits, alike in all rows");
        assert!(data[0]["columns"][0].is_null(), "names, those of all cells");
        assert_eq!(data[0]["colours"][0]["steps"], "0bb0");
        assert_eq!(data[0]["colours"][0]["low"], "0.00600");
        assert_eq!(
            data[0]["titles"][0],
            "block 0 q_proj: loss 0.00600, held out 0.00200, rounding 0.00400, 3 bits"
        );
        let mut unasked = sweep.clone();
        unasked.winner = None;
        let page = sweep_page(&unasked, &linears[1..], true);
        assert!(page.contains("the middle one of those that no other beats, gptq-4bit-g64-sym."));
        assert!(page.contains("1 cell is not to choose: their tables are gone."));
    }

    #[test]
    fn a_large_sweep_stays_below_three_megabytes() {
        let mut sweep = sweep();
        let mut cells = Vec::new();
        let linears: Vec<(String, Vec<LinearRecord>)> = (0..48)
            .map(|i| {
                let mut cell = sweep.cells[i % 4].clone();
                cell.cell = format!("gptq-{}bit-g{}-asym-{i}", cell.bits, cell.group_size);
                let linear = |block: usize, kind: &str, j: usize| {
                    let noise = 1.0 + ((i * 211 + block * 7 + j) % 97) as f64 / 31.7;
                    LinearRecord {
                        block,
                        linear: format!("model.layers.{block}.self_attn.{kind}"),
                        relative_loss: 0.001_234_567 * noise,
                        relative_loss_heldout: Some(0.002_345_678 * noise),
                        relative_loss_rtn: 0.003_456_789 * noise,
                        relative_loss_rtn_heldout: Some(0.004_567_89 * noise),
                        sqnr_db: Some(20.1 * noise),
                        cosine: Some(1.0 - 0.001_234_567 * noise),
                        condition: Some(1234.5 * noise),
                        clipped_share: 0.000_123 * noise,
                        damp_used: 0.012_34 * noise,
                        seconds: 0.012_345 * noise,
                        finer_group_loss: Some(0.2 * noise),
                        predicted_kl: Some(0.000_123_4 * noise),
                        bytes_after: (123_456.0 * noise) as u64,
                        int8_outlier_columns: None,
                        ..fixture::run().linears[0].clone()
                    }
                };
                let kinds = ["q", "k", "v", "o", "gate", "up", "down"];
                let linears = (0..30).flat_map(|block| {
                    let each = kinds.iter().enumerate();
                    each.map(move |(j, kind)| linear(block, &format!("{kind}_proj"), j))
                });
                let named = (cell.cell.clone(), linears.collect());
                cells.push(cell);
                named
            })
            .collect();
        (sweep.cells, sweep.model.blocks) = (cells, 30);
        let page = sweep_page(&sweep, &linears, true);
        assert!(page.len() < 3_000_000, "{} bytes", page.len());
    }

    #[test]
    fn a_sweep_that_measured_nothing_is_drawn_by_its_predictions() {
        let mut sweep = sweep();
        sweep
            .cells
            .iter_mut()
            .for_each(|cell| cell.evaluation = None);
        sweep.conclude();
        sweep.winner = None;
        let page = sweep_page(&sweep, &[], true);
        elements(&page);
        assert!(page.contains("id=\"pareto\"") && page.contains("KL predicted. On the line"));
        assert!(!page.contains("id=\"prediction\"") && !page.contains("report.html"));
    }
}
