//! What halfbyte itself leaves in an output folder, read back.

use halfbyte_pipeline::{blocks_kept, clear_leftovers, merge_sweep};
use halfbyte_report::{
    Comparison, comparison_page, explain, export_card, linears_table, model_card, read_cells,
    read_run, read_sweep, run_page, summary_text, sweep_markdown, sweep_page, sweep_text,
};
use serde_json::Value;

use super::{Target, scratch, write};
use crate::mutate::Format;

pub(super) fn run() -> Target {
    Target {
        name: "run_record",
        format: Format::Json,
        seeds: vec![include_bytes!("../../seeds/run.json").to_vec()],
        words: &["\u{1b}[31m", "<script>", "awq", "attention_mixed", "broken"],
        reader: || {
            let folder = scratch();
            let good: Value =
                serde_json::from_slice(include_bytes!("../../seeds/run.json")).unwrap_or_default();
            write(
                folder.path(),
                "good/halfbyte/run.json",
                good.to_string().as_bytes(),
            );
            let good = read_run(&folder.path().join("good")).expect("the seed is a record");
            Box::new(move |bytes| {
                write(folder.path(), "halfbyte/run.json", bytes);
                let record = match read_run(folder.path()) {
                    Ok(record) => record,
                    Err(error) => return format!("{error} {}", source(&error)),
                };
                let page = run_page(&record, true);
                let texts = [
                    summary_text(&record),
                    linears_table(&record),
                    model_card(&record),
                    export_card(&record, "gptq"),
                ];
                let linear = record
                    .linears
                    .first()
                    .map(|linear| linear.linear.clone())
                    .unwrap_or_default();
                let explained = explain(&record, &linear);
                let runs = vec![("one".to_owned(), record), ("two".to_owned(), good.clone())];
                let comparison = Comparison::of(runs);
                let compared = comparison_page(&comparison);
                let length = page.len()
                    + compared.len()
                    + comparison.text().len()
                    + comparison.markdown().len();
                // how much is shown tells records apart, roughly
                let size = texts.iter().map(String::len).sum::<usize>() + length;
                match explained {
                    Ok(text) => format!(
                        "ok {} {}",
                        "x".repeat(size.ilog2() as usize),
                        text.lines().count()
                    ),
                    Err(error) => format!("ok {error}"),
                }
            })
        },
    }
}

fn source(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

pub(super) fn sweep() -> Target {
    let sweep: Value =
        serde_json::from_slice(include_bytes!("../../seeds/sweep.json")).unwrap_or_default();
    let seed = serde_json::json!({"sweep": sweep, "cell": include_str!("../../seeds/cell.csv")});
    Target {
        name: "sweep_record",
        format: Format::Json,
        seeds: vec![seed.to_string().into_bytes()],
        words: &["../x", "gptq-4bit-g64-sym", "\u{1b}[31m"],
        reader: || {
            let folder = scratch();
            Box::new(move |bytes| {
                let Ok(input) = serde_json::from_slice::<Value>(bytes) else {
                    return "not JSON".to_owned();
                };
                let csv = input["cell"].as_str().unwrap_or_default();
                write(
                    folder.path(),
                    "halfbyte/sweep.json",
                    input["sweep"].to_string().as_bytes(),
                );
                write(
                    folder.path(),
                    "halfbyte/cells/gptq-4bit-g64-sym.csv",
                    csv.as_bytes(),
                );
                let record = match read_sweep(folder.path()) {
                    Ok(record) => record,
                    Err(error) => return format!("{error} {}", source(&error)),
                };
                let mut size = sweep_text(&record).len() + sweep_markdown(&record).len();
                match read_cells(folder.path(), &record) {
                    Ok(cells) => {
                        size += sweep_page(&record, &cells, true).len();
                        format!("ok {} {}", "x".repeat(size.ilog2() as usize), cells.len())
                    }
                    Err(error) => format!("{error} {}", source(&error)),
                }
            })
        },
    }
}

pub(super) fn work_folder() -> Target {
    Target {
        name: "work_folder",
        format: Format::Json,
        seeds: vec![include_bytes!("../../seeds/work.json").to_vec()],
        words: &[
            "sweep/shard-2-of-2/shard.json",
            "work/block-0000.json",
            "generated.json",
            "../x",
            "sweep/gptq-3bit-g64-sym/score.json",
        ],
        reader: || {
            Box::new(|bytes| {
                let folder = scratch();
                let Ok(Value::Object(input)) = serde_json::from_slice::<Value>(bytes) else {
                    return "not JSON".to_owned();
                };
                for (name, value) in input.iter().take(12) {
                    let is_plain = name.len() < 80
                        && name.split('/').all(|part| {
                            !part.is_empty()
                                && part
                                    .bytes()
                                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                                && !part.starts_with('.')
                        });
                    let place = folder.path().join("halfbyte").join(name);
                    if is_plain
                        && !place.exists()
                        && place.parent().is_some_and(|p| !p.is_file())
                        && !place.ancestors().any(|p| p.is_file())
                    {
                        write(
                            folder.path(),
                            &format!("halfbyte/{name}"),
                            value.to_string().as_bytes(),
                        );
                    }
                }
                let kept = blocks_kept(folder.path());
                clear_leftovers(folder.path());
                match merge_sweep(folder.path()) {
                    Ok(Some(record)) => {
                        let cells = read_cells(folder.path(), &record);
                        format!(
                            "ok {} {}",
                            sweep_text(&record).lines().count(),
                            cells.map_or(0, |cells| cells.len())
                        )
                    }
                    Ok(None) => format!("ok none {}", kept > 0),
                    Err(error) => format!("{error:#}"),
                }
            })
        },
    }
}
