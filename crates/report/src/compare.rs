use std::collections::BTreeMap;

use serde_json::Value;

use crate::RunRecord;
use crate::text::{bytes, duration, markdown_table, table};

/// Several runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// One a run, in the order given.
    pub(crate) runs: Vec<ComparedRun>,
    /// Settings in which the runs differ, as `quant.bits`.
    pub(crate) settings: Vec<String>,
    /// The same by their last word, where that names only one setting.
    pub(crate) short_settings: Vec<String>,
    /// Why figures of some runs cannot be held against each other.
    pub(crate) cautions: Vec<String>,
}

/// One run of a comparison.
#[derive(Clone, Debug)]
pub(crate) struct ComparedRun {
    /// `A`, `B` ...
    pub(crate) letter: String,
    pub(crate) name: String,
    /// Values of [`Comparison::settings`]; empty where a run does not have the key.
    pub(crate) settings: Vec<String>,
    pub(crate) record: RunRecord,
}

/// Sections of the pipeline file that do not decide the result.
const NOT_COMPARED: [&str; 4] = ["resources", "report", "gate", "evaluate"];
/// Characters of a setting's value in the terminal.
const VALUE_WIDTH: usize = 24;

impl Comparison {
    /// Of runs and the names they go by. What cannot be compared is said in the cautions rather than refused.
    pub fn of(runs: Vec<(String, RunRecord)>) -> Self {
        let flat: Vec<BTreeMap<String, String>> = runs
            .iter()
            .map(|(_, run)| flattened(&run.pipeline))
            .collect();
        let mut settings: Vec<String> = flat.iter().flat_map(BTreeMap::keys).cloned().collect();
        settings.sort();
        settings.dedup();
        let short = |key: &String| {
            let word = key.rsplit('.').next().unwrap_or_default();
            let alone = settings
                .iter()
                .filter(|k| k.rsplit('.').next() == Some(word))
                .count()
                == 1;
            if alone { word.to_owned() } else { key.clone() }
        };
        let mut short_settings: BTreeMap<String, String> = settings
            .iter()
            .map(|key| (key.clone(), short(key)))
            .collect();
        settings.retain(|key| flat.iter().any(|other| other.get(key) != flat[0].get(key)));
        let cautions = cautions(&runs);
        let runs = runs
            .into_iter()
            .zip(flat)
            .enumerate()
            .map(|(index, ((name, record), flat))| ComparedRun {
                letter: letter(index),
                name,
                settings: settings
                    .iter()
                    .map(|key| flat.get(key).cloned().unwrap_or_default())
                    .collect(),
                record,
            })
            .collect();
        let short_settings = settings
            .iter()
            .filter_map(|key| short_settings.remove(key))
            .collect();
        Self {
            runs,
            settings,
            short_settings,
            cautions,
        }
    }

    /// One table for the terminal, with what to know before reading it below.
    pub fn text(&self) -> String {
        self.tabled(table, "warning: ")
    }

    /// The same in markdown.
    pub fn markdown(&self) -> String {
        self.tabled(markdown_table, "\nWarning: ")
    }

    fn tabled(&self, table: fn(&[&str], &[Vec<String>]) -> String, warning: &str) -> String {
        let mut header = vec!["run"];
        header.extend(self.short_settings.iter().map(String::as_str));
        header.extend([
            "KL",
            "perplexity",
            "same top",
            "bits/weight",
            "size",
            "processor",
            "memory",
        ]);
        let rows: Vec<Vec<String>> = self
            .runs
            .iter()
            .map(|run| {
                let mut row = vec![run.name.clone()];
                row.extend(run.settings.iter().map(|value| cut(value)));
                row.extend(figures(&run.record));
                row
            })
            .collect();
        let mut out = table(&header, &rows);
        for caution in &self.cautions {
            out += &format!("{warning}{caution}\n");
        }
        out
    }
}

impl ComparedRun {
    /// `(bytes, KL, standard error)`, where the run was scored and is not broken.
    pub(crate) fn size_and_kl(&self) -> Option<(u64, f64, f64)> {
        let e = self.record.evaluation.as_ref().filter(|e| !e.is_broken())?;
        Some((self.record.summary.bytes_after, e.kl_mean, e.kl_mean_se))
    }
}

/// Whether another of `(bytes, KL)` is no larger and no worse, and better in one of both.
pub fn is_beaten(one: (u64, f64), all: &[(u64, f64)]) -> bool {
    all.iter()
        .any(|other| other.0 <= one.0 && other.1 <= one.1 && *other != one)
}

/// `A` to `Z`, then `A2`.
fn letter(index: usize) -> String {
    let letter = char::from(b'A' + (index % 26) as u8);
    match index / 26 {
        0 => letter.to_string(),
        round => format!("{letter}{}", round + 1),
    }
}

fn figures(run: &RunRecord) -> [String; 7] {
    let scored = |show: fn(&crate::EvaluationRecord) -> String| {
        run.evaluation.as_ref().map_or_else(|| "-".to_owned(), show)
    };
    [
        scored(|e| format!("{:.4} ± {:.4}", e.kl_mean, e.kl_mean_se)),
        scored(|e| format!("{:.3} ± {:.3}", e.perplexity, e.perplexity_se)),
        scored(|e| format!("{:.1} %", 100.0 * e.top1_agreement)),
        format!("{:.3}", run.summary.bits_per_weight),
        bytes(run.summary.bytes_after),
        duration(run.summary.cpu_seconds),
        run.summary
            .peak_rss_bytes
            .map_or_else(|| "-".to_owned(), bytes),
    ]
}

/// Leaves of the pipeline by their path; a list of plain values is one leaf.
fn flattened(pipeline: &Value) -> BTreeMap<String, String> {
    fn walk(value: &Value, path: &str, out: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    walk(value, &path, out);
                }
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                for (index, value) in list.iter().enumerate() {
                    walk(value, &format!("{path}.{index}"), out);
                }
            }
            Value::String(text) => {
                out.insert(path.to_owned(), text.clone());
            }
            other => {
                out.insert(path.to_owned(), other.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(pipeline, "", &mut out);
    out.retain(|key, _| {
        let section = key.split('.').next().unwrap_or_default();
        let folder = section == "export" && key.ends_with(".out");
        !folder && !NOT_COMPARED.contains(&section)
    });
    out
}

fn cut(value: &str) -> String {
    if value.chars().count() <= VALUE_WIDTH {
        return value.to_owned();
    }
    let kept: String = value.chars().take(VALUE_WIDTH - 1).collect();
    kept + "…"
}

/// KL and perplexity compare only on the same tokens, and by the same float model.
fn cautions(runs: &[(String, RunRecord)]) -> Vec<String> {
    let mut out = Vec::new();
    let differ =
        |of: fn(&RunRecord) -> String| runs.iter().any(|(_, run)| of(run) != of(&runs[0].1));
    if differ(|run| format!("{} {}", run.model.architecture, run.model.parameters)) {
        out.push("the runs are of different models; nothing but the settings compares".to_owned());
    }
    let scored: Vec<_> = runs
        .iter()
        .filter_map(|(_, run)| run.evaluation.as_ref())
        .collect();
    let text = scored.iter().any(|e| {
        let first = scored[0];
        (&e.text, e.sequence_length, e.windows, e.tokens)
            != (
                &first.text,
                first.sequence_length,
                first.windows,
                first.tokens,
            )
    });
    let windows = |run: &RunRecord| {
        run.pipeline
            .pointer("/evaluate/windows")
            .map(Value::to_string)
    };
    let mut chosen = runs
        .iter()
        .filter(|(_, run)| run.evaluation.is_some())
        .map(|(_, run)| windows(run));
    let first = chosen.next();
    if text || chosen.any(|w| Some(w) != first) {
        out.push(
            "the runs were scored on different text or windows; KL and perplexity do not compare"
                .to_owned(),
        );
    }
    for (name, run) in runs {
        if let Some(verdict) = run.verdict_warning() {
            out.push(format!("{name} is {verdict}"));
        }
        if run.evaluation.is_none() {
            out.push(format!(
                "{name} was not scored; set `evaluate` and run it again"
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;
    use serde_json::json;

    pub(crate) fn two() -> Comparison {
        let mut other = run();
        other.pipeline = json!({"method": "awq", "quant": {"bits": 4, "group_size": 32}, "resources": {"threads": 2}});
        if let Some(e) = &mut other.evaluation {
            e.kl_mean = 0.2;
        }
        Comparison::of(vec![("one".to_owned(), run()), ("two".to_owned(), other)])
    }

    #[test]
    fn the_table_has_a_row_a_run_and_only_settings_that_differ() {
        assert_eq!(
            two().text(),
            "\
run  method  group_size               KL      perplexity  same top  bits/weight     size   processor     memory
one    gptq              0.1273 ± 0.0021  21.000 ± 0.550    81.3 %        4.500  4.0 MiB  2 min 58 s  512.0 MiB
two     awq          32  0.2000 ± 0.0021  21.000 ± 0.550    81.3 %        4.500  4.0 MiB  2 min 58 s  512.0 MiB
"
        );
    }

    #[test]
    fn the_table_in_markdown_has_the_same_cells() {
        let mut comparison = two();
        comparison.runs[1].name = "a|b".to_owned();
        comparison.cautions.push("other texts".to_owned());
        assert_eq!(
            comparison.markdown(),
            "\
| run | method | group_size | KL | perplexity | same top | bits/weight | size | processor | memory |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| one | gptq |  | 0.1273 ± 0.0021 | 21.000 ± 0.550 | 81.3 % | 4.500 | 4.0 MiB | 2 min 58 s | 512.0 MiB |
| a\\|b | awq | 32 | 0.2000 ± 0.0021 | 21.000 ± 0.550 | 81.3 % | 4.500 | 4.0 MiB | 2 min 58 s | 512.0 MiB |

Warning: other texts
"
        );
    }

    #[test]
    fn what_does_not_compare_is_said() {
        let mut other = run();
        other.model.parameters += 1;
        if let Some(e) = &mut other.evaluation {
            e.tokens += 1;
        }
        let mut unscored = run();
        unscored.evaluation = None;
        let named = |name: &str, run| (name.to_owned(), run);
        let cautions = Comparison::of(vec![
            named("a", run()),
            named("b", other),
            named("c", unscored),
        ])
        .cautions;
        assert_eq!(cautions.len(), 3, "{cautions:?}");
        assert_eq!(
            cautions[2],
            "c was not scored; set `evaluate` and run it again"
        );
        assert!(two().cautions.is_empty());
    }

    #[test]
    fn keys_that_share_their_last_word_stay_whole() {
        let with = |bits: u8, widths: &[u8]| {
            let mut run = run();
            run.pipeline = json!({
                "quant": {"bits": 4}, "budget": {"bits": widths}, "tune": {"epochs": bits},
                "export": [{"format": "gptq", "out": bits}],
            });
            (bits.to_string(), run)
        };
        let comparison = Comparison::of(vec![with(1, &[2, 3]), with(2, &[3, 4])]);
        assert_eq!(comparison.settings, ["budget.bits", "tune.epochs"]);
        assert_eq!(comparison.short_settings, ["budget.bits", "epochs"]);
        assert_eq!(comparison.runs[1].settings, ["[3,4]", "2"]);
    }

    #[test]
    fn a_run_is_beaten_by_one_no_larger_and_no_worse() {
        let all = [(10, 0.2), (20, 0.1), (20, 0.3), (10, 0.2)];
        let beaten: Vec<bool> = all.iter().map(|one| is_beaten(*one, &all)).collect();
        assert_eq!(beaten, [false, false, true, false]);
    }

    #[test]
    fn letters_go_on_after_z() {
        assert_eq!([0, 25, 26].map(letter), ["A", "Z", "A2"]);
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(cut(&"x".repeat(30)).chars().count(), VALUE_WIDTH);
        assert_eq!(cut("short"), "short");
    }
}
