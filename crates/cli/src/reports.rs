//! Runs shown again from their records.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use halfbyte_pipeline::report::{
    Comparison, RunRecord, comparison_page, explain as explain_linear, find_run, model_card,
    page_path, read_cells, read_run, read_sweep, run_page, summary_text, sweep_markdown,
    sweep_page, sweep_page_path, sweep_text, write_page,
};
use halfbyte_pipeline::user_error;

/// Writes the page asked for and says in words what it holds: one run's summary, or a table of several.
pub(crate) fn report(runs: &[PathBuf], out: Option<&Path>) -> Result<String> {
    let folders: Vec<PathBuf> = runs.iter().map(|run| find_run(run)).collect();
    // the page of a run goes into its folder
    let _held = match (&folders[..], out) {
        ([folder], None) => halfbyte_pipeline::clear_leftovers(folder),
        _ => None,
    };
    if let [folder] = &folders[..]
        && let Some(mut text) = sweep(folder, out)?
    {
        // The winner's run lies beside its sweep.
        if out.is_none() && folder.join("halfbyte/run.json").is_file() {
            text += "\n";
            text += &report_runs(&folders, None)?;
        }
        return Ok(text);
    }
    report_runs(&folders, out)
}

/// Why one linear of a run loses what it does.
pub(crate) fn explain(run: &Path, linear: &str) -> Result<String> {
    Ok(explain_linear(&read_run(&find_run(run))?, linear)?)
}

/// The sweep in a folder, if there is one: what its shards left is put together first.
fn sweep(folder: &Path, out: Option<&Path>) -> Result<Option<String>> {
    let merged = halfbyte_pipeline::merge_sweep(folder)?;
    let record = match merged {
        Some(record) => record,
        None if folder.join("halfbyte/sweep.json").is_file() => read_sweep(folder)?,
        None => return Ok(None),
    };
    let path = out.map_or_else(|| sweep_page_path(folder), |out| file_in(out, "sweep.html"));
    let written = match is_markdown(&path) {
        true => sweep_markdown(&record),
        false => sweep_page(&record, &read_cells(folder, &record)?, out.is_none()),
    };
    check_replaced(out, &path, &written)?;
    write_page(&path, &written)?;
    let mut text = sweep_text(&record);
    text += &page_line(&path);
    Ok(Some(text))
}

fn report_runs(folders: &[PathBuf], out: Option<&Path>) -> Result<String> {
    let mut records = folders
        .iter()
        .map(|folder| read_run(folder))
        .collect::<Result<Vec<RunRecord>, _>>()?;
    let mut text;
    let page = if folders.len() == 1 {
        let record = records.remove(0);
        text = summary_text(&record);
        let path = out.map_or_else(|| page_path(&folders[0]), |out| file_in(out, "report.html"));
        let written = match is_markdown(&path) {
            true => model_card(&record),
            false => run_page(&record, out.is_none()),
        };
        Some((path, written))
    } else {
        let comparison = Comparison::of(names(folders).into_iter().zip(records).collect());
        text = comparison.text();
        out.map(|out| {
            let path = file_in(out, "compare.html");
            let written = match is_markdown(&path) {
                true => comparison.markdown(),
                false => comparison_page(&comparison),
            };
            (path, written)
        })
    };
    if let Some((path, html)) = page {
        check_replaced(out, &path, &html)?;
        write_page(&path, &html)?;
        text += &page_line(&path);
    }
    Ok(text)
}

/// Refuses to write a page or a table over a file that is neither.
fn check_replaced(out: Option<&Path>, path: &Path, written: &str) -> Result<()> {
    if out.is_none() || !path.exists() {
        return Ok(());
    }
    let old = fs::read_to_string(path).unwrap_or_default();
    let first = |text: &str| text.lines().next().map(str::to_owned);
    match old.contains("halfbyte") && !old.starts_with('{') || first(&old) == first(written) {
        true => Ok(()),
        false => Err(user_error(
            format!(
                "{}: is there already and was not written by `halfbyte report`",
                path.display()
            ),
            "choose another --out, or move the file away",
        )),
    }
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

fn page_line(path: &Path) -> String {
    format!("{:<15} {}\n", "page", path.display())
}

/// The file itself, or one of that name in a folder.
fn file_in(out: &Path, name: &str) -> PathBuf {
    if out.is_dir() {
        out.join(name)
    } else {
        out.to_path_buf()
    }
}

/// Runs by the last part of their paths, where those differ.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let last = |folder: &PathBuf| {
        let real = fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
        real.file_name().map_or_else(
            || real.display().to_string(),
            |n| n.to_string_lossy().into_owned(),
        )
    };
    let short: Vec<String> = folders.iter().map(last).collect();
    let whole = |(folder, name): (&PathBuf, &String)| {
        let alone = short.iter().filter(|other| *other == name).count() == 1;
        if alone {
            name.clone()
        } else {
            folder.display().to_string()
        }
    };
    folders.iter().zip(&short).map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_name_go_by_their_paths() {
        let folders = ["no/a", "no/b", "other/b"].map(PathBuf::from);
        assert_eq!(names(&folders), ["a", "no/b", "other/b"]);
    }
}
