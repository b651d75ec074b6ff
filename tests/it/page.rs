//! The page of a run as a browser has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{halfbyte, small_run, succeed};
use crate::sweep::small_sweep;

const CHECKS: &str = include_str!("page_checks.js");
/// Stands before all of the page's own, so that nothing it does wrong goes unseen.
const KEEP_ERRORS: &str = "<script>
window.errors = [];
addEventListener('error', (event) => errors.push(event.message), true);
addEventListener('securitypolicyviolation', (event) => errors.push(event.blockedURI));
console.error = (...what) => errors.push(what.join(' '));
</script>";

/// A browser without a window, where one is installed.
fn browser() -> Option<&'static str> {
    [
        "chromium-headless-shell",
        "chromium",
        "chrome-headless-shell",
        "google-chrome",
    ]
    .into_iter()
    .find(|name| {
        let answer = Command::new(name).arg("--version").output();
        answer.is_ok_and(|output| output.status.success())
    })
}

/// The document after its scripts have run.
fn dump_dom(browser: &str, folder: &Path, page: &Path) -> String {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The page in a frame as wide as a screen and in one as wide as a phone, looked over by a script.
fn look_over(browser: &str, folder: &Path, page: &str) {
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    let copy = page.replacen("<head>", &format!("<head>{KEEP_ERRORS}"), 1);
    let attribute = copy.replace('&', "&amp;").replace('"', "&quot;");
    let frame = |width| {
        format!("<iframe width=\"{width}\" height=\"900\" srcdoc=\"{attribute}\"></iframe>")
    };
    let harness = format!(
        "<!DOCTYPE html><meta charset=\"utf-8\"><pre id=\"found\"></pre>{}{}<script>{CHECKS}</script>",
        frame(1280),
        frame(390)
    );
    let path = folder.join("checks.html");
    fs::write(&path, harness).unwrap();
    let dom = dump_dom(browser, folder, &path);
    let found = dom
        .split_once("<pre id=\"found\">")
        .and_then(|(_, rest)| rest.split_once("</pre>"));
    let found = found.map_or("", |(found, _)| found);
    assert!(
        found.ends_with("end") && found.lines().count() > 100,
        "the checks did not run to their end: {found}"
    );
    let failed: Vec<&str> = found
        .lines()
        .filter(|line| line.starts_with("FAILED"))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A browser, or a word that there is none.
fn browser_or_skip() -> Option<&'static str> {
    let found = browser();
    if found.is_none() {
        halfbyte_testing::skip(
            halfbyte_testing::Lacking::Browser,
            "no chromium to open the page in",
        );
    }
    found
}

#[test]
fn a_browser_shows_every_chart_sorts_every_table_and_reports_no_error() {
    let Some(browser) = browser_or_skip() else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let budget = ["--set", "budget={bits_per_weight: 4.5, bits: [3, 4, 8]}"];
    succeed(&mut small_run(out.path(), &budget));
    let page = fs::read_to_string(out.path().join("halfbyte/report.html")).unwrap();
    for id in [
        "heat",
        "heat-narrow",
        "drift",
        "sums",
        "rounding",
        "heldout",
        "curve",
        "bits-grid",
        "predicted",
        "time",
    ] {
        assert!(page.contains(&format!("<svg id=\"{id}\"")), "no chart {id}");
    }
    assert!(page.contains("id=\"tokens\""), "no worst tokens");
    look_over(browser, out.path(), &page);
}

#[test]
fn a_browser_shows_the_page_of_a_sweep_without_an_error() {
    let Some(browser) = browser_or_skip() else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let grid = "sweep={bits: [2, 3, 4, 8], group_size: [32, 96, -1], sym: [true]}";
    succeed(&mut small_sweep(out.path(), &["--set", grid]));
    let page = fs::read_to_string(out.path().join("halfbyte/sweep.html")).unwrap();
    for id in [
        "pareto",
        "prediction",
        "loss-by-bits",
        "heat",
        "heat-narrow",
    ] {
        assert!(page.contains(&format!("<svg id=\"{id}\"")), "no chart {id}");
    }
    look_over(browser, out.path(), &page);
}

/// The page without the cells' values in full, of which only a few digits are shown.
fn without_raw_values(page: &str) -> String {
    let mut parts = page.split(" data-v=\"");
    let first = parts.next().unwrap_or_default().to_owned();
    first
        + &parts
            .filter_map(|part| part.split_once('"'))
            .map(|(_, rest)| rest)
            .collect::<String>()
}

#[test]
fn a_page_is_drawn_again_from_the_record_and_runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let export = ["--set", "export=[{format: gptq}]"];
    let fewer = ["--set", "quant.bits=3", "--set", "report.html=false"];
    succeed(&mut small_run(&a, &export));
    succeed(small_run(&b, &export).args(fewer));
    let page = |run: &Path| run.join("halfbyte/report.html");
    assert!(!page(&b).exists(), "report.html: false");

    // The page is a function of the record alone, down to the last digit of a float read from JSON.
    let first = fs::read_to_string(page(&a)).unwrap();
    fs::remove_file(page(&a)).unwrap();
    let output = succeed(halfbyte().arg("report").arg(a.join("halfbyte/run.json")));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("perplexity") && text.contains("report.html"),
        "{text}"
    );
    let again = fs::read_to_string(page(&a)).unwrap();
    assert!(
        without_raw_values(&again) == without_raw_values(&first),
        "the page drawn again differs"
    );
    assert!(first.contains("href=\"../README.md\"") && a.join("README.md").exists());

    let compare = folder.path().join("new/compare.html");
    let output = succeed(
        halfbyte()
            .arg("report")
            .args([&a, &b])
            .arg("--out")
            .arg(&compare),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, rows) = text.split_once('\n').unwrap();
    assert!(
        head.contains("bits") && head.contains("KL") && !head.contains("group_size"),
        "{text}"
    );
    let cells = |row: usize| {
        rows.lines()
            .nth(row)
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!((cells(0)[0], cells(1)[0], cells(1)[1]), ("a", "b", "3"));
    let html = fs::read_to_string(compare).unwrap();
    assert!(html.contains("id=\"pareto\"") && html.contains("id=\"r1\""));

    let markdown = |runs: &[&PathBuf], name: &str| {
        let path = folder.path().join(name);
        succeed(halfbyte().arg("report").args(runs).arg("--out").arg(&path));
        fs::read_to_string(path).unwrap()
    };
    let table = markdown(&[&a, &b], "compare.md");
    assert!(
        table.starts_with("| run | ") && table.contains("\n| b | 3 | "),
        "{table}"
    );
    let card = markdown(&[&a], "card.md");
    assert_eq!(card, fs::read_to_string(a.join("README.md")).unwrap());
}

#[test]
fn a_folder_without_a_finished_run_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let told = |path: &Path| {
        let output = halfbyte().arg("report").arg(path).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = told(folder.path());
    assert!(missing.contains("run.json: cannot read"), "{missing}");
    assert!(
        missing.contains("hint: give the folder a finished run has written"),
        "{missing}"
    );
    fs::create_dir(folder.path().join("halfbyte")).unwrap();
    fs::write(
        folder.path().join("halfbyte/run.json"),
        "{\"schema_version\": 1}",
    )
    .unwrap();
    let broken = told(folder.path());
    assert!(
        broken.contains("run.json: not a run record: missing field"),
        "{broken}"
    );
    assert!(!folder.path().join("halfbyte/report.html").exists());
}
