use super::bits::{bits, tuning};
use super::codes::codes;
use super::cost::cost;
use super::gain::rounding_and_text;
use super::kinds::Kinds;
use super::loss::{depth, loss};
use super::record::{linears, provenance};
use super::tokens::tokens;
use super::{Section, document, tiles, warnings};
use crate::RunRecord;
use crate::card::short_name;
use crate::markup::escape;
use crate::text::{bytes, count, duration, grouped};

/// The run as one page. `beside_run` is for a page that lies in the run's own `halfbyte/` folder: it then links to the
/// model cards.
pub fn run_page(run: &RunRecord, beside_run: bool) -> String {
    let kinds = Kinds::of(&run.linears);
    let sections = [
        Some(loss(run, &kinds)),
        depth(run),
        Some(rounding_and_text(run, &kinds)),
        bits(run, &kinds),
        codes(run),
        run.tune.as_ref().map(tuning),
        run.evaluation.as_ref().and_then(tokens),
        cost(run),
        Some(linears(run)),
        Some(provenance(run, beside_run)),
    ];
    let sections: Vec<Section> = sections.into_iter().flatten().collect();
    let source = run.model.source.as_str();
    let name = if source.starts_with(['/', '.', '~']) {
        short_name(source)
    } else {
        source
    };
    let title = format!("{name}, {:.2} bits a weight", run.summary.bits_per_weight);
    document(
        &title,
        &head(run, name),
        &sections,
        &format!("halfbyte {}", escape(&run.version)),
    )
}

fn head(run: &RunRecord, name: &str) -> String {
    let model = &run.model;
    let mut out = format!(
        "<h1>{}</h1>\n<p class=\"lead\">{} linears at {:.2} bits a weight, scales included. {}, {} blocks, {} parameters, {}.</p>\n",
        escape(name),
        run.linears.len(),
        run.summary.bits_per_weight,
        escape(&model.architecture),
        model.blocks,
        count(model.parameters),
        escape(&model.dtype)
    );
    out += &warnings(&all_warnings(run));
    out + &tiles(&key_figures(run))
}

/// Those of the run, those of linears that it does not tell already, and a gate that was missed.
fn all_warnings(run: &RunRecord) -> Vec<String> {
    let told = run.warnings();
    // The verdict stands before all others.
    let verdicts = usize::from(run.verdict_warning().is_some());
    let mut all = told[..verdicts].to_vec();
    let limit = run
        .pipeline
        .pointer("/gate/max_kl")
        .and_then(serde_json::Value::as_f64);
    if let (Some(limit), Some(e)) = (limit, &run.evaluation)
        && e.kl_mean > limit
    {
        all.push(format!("gate.max_kl: {:.4} is above {limit}", e.kl_mean));
    }
    all.extend_from_slice(&told[verdicts..]);
    for linear in &run.linears {
        for warning in linear.own_warnings() {
            let told = format!("{}: {warning}", linear.linear);
            if !all.contains(&told) {
                all.push(told);
            }
        }
    }
    all
}

fn key_figures(run: &RunRecord) -> Vec<(&'static str, String, String)> {
    let summary = &run.summary;
    let mut figures = Vec::new();
    if let Some(e) = &run.evaluation {
        figures.push((
            "KL to the float model",
            format!("{:.4}", e.kl_mean),
            format!(
                "± {:.4} nats a token; 99\u{a0}% below {:.3}",
                e.kl_mean_se, e.kl_p99
            ),
        ));
        figures.push((
            "Perplexity",
            format!("{:.2}", e.perplexity),
            format!(
                "± {:.2}; float {:.2}, {:+.1}\u{a0}%",
                e.perplexity_se,
                e.perplexity_float,
                100.0 * (e.perplexity / e.perplexity_float - 1.0)
            ),
        ));
        figures.push((
            "Same top token",
            format!("{:.1} %", 100.0 * e.top1_agreement),
            format!("of {} tokens", grouped(e.tokens)),
        ));
    }
    figures.push((
        "Size",
        bytes(summary.bytes_after),
        format!(
            "from {}, {:.2} times smaller",
            bytes(summary.bytes_before),
            summary.bytes_before as f64 / summary.bytes_after as f64
        ),
    ));
    figures.push((
        "Bits a weight",
        format!("{:.2}", summary.bits_per_weight),
        "scales and zero points included".to_owned(),
    ));
    figures.push((
        "Time",
        duration(summary.seconds),
        format!("{} of processor time", duration(summary.cpu_seconds)),
    ));
    if let Some(peak) = summary.peak_rss_bytes {
        figures.push(("Memory", bytes(peak), "at the peak".to_owned()));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::tests::run_with;
    use crate::enough::{Answer, is_the_text_enough};
    use crate::fixture;
    use crate::markup::tests::elements;
    use crate::page::record::export_folder;
    use crate::text::kind;
    use crate::{BudgetRecord, LinearRecord, SensitivityRecord, UniformRecord};
    use serde_json::{Value as Json, json};

    fn with(page: &str, part: &str) -> usize {
        elements(page)
            .iter()
            .filter(|tag| tag.contains(part))
            .count()
    }

    fn charts(run: &RunRecord) -> Vec<String> {
        let page = run_page(run, true);
        let ids = elements(&page).into_iter().filter_map(|tag| {
            let id = tag.strip_prefix("svg id=\"")?;
            Some(id.split('"').next()?.to_owned())
        });
        ids.collect()
    }

    fn budgeted() -> RunRecord {
        let mut run = fixture::run();
        run.linears[3].bits = 8;
        run.budget = Some(BudgetRecord {
            bits_per_weight: 5.5,
            predicted_kl: 0.05,
            uniform: vec![UniformRecord {
                bits: 4,
                bits_per_weight: 4.5,
                predicted_kl: 0.08,
            }],
            linears: vec![SensitivityRecord {
                linear: run.linears[3].linear.clone(),
                bits: 8,
                sensitivity: 0.5,
                predicted_kl: vec![(4, 0.04), (8, 0.002)],
            }],
        });
        run
    }

    #[test]
    fn every_linear_has_its_row_and_its_mark_in_every_chart() {
        let page = run_page(&fixture::run(), true);
        // Two forms of the heat map, two scatters.
        for row in ["l0", "l1", "l2", "l3"] {
            assert_eq!(with(&page, &format!("data-row=\"{row}\"")), 4, "{row}");
            assert_eq!(with(&page, &format!("tr id=\"{row}\"")), 1, "{row}");
        }
        assert_eq!(with(&page, "class=\"flag\""), 2);
        assert_eq!(with(&page, "\"mark bar c0\""), 6);
        assert_eq!(
            charts(&fixture::run()),
            [
                "heat",
                "heat-narrow",
                "drift",
                "sums",
                "rounding",
                "heldout",
                "time",
                "memory"
            ]
        );
    }

    #[test]
    fn figures_on_the_page_are_those_of_the_record() {
        let page = run_page(&fixture::run(), true);
        for part in [
            "<dd>0.1273<small>± 0.0021 nats a token; 99\u{a0}% below 1.214</small>",
            "<dd>81.3 %<small>of 24 552 tokens</small>",
            "<dd>4.0 MiB<small>from 12.0 MiB, 3.00 times smaller</small>",
            "<title>block 1 down_proj: loss 0.00100, held out 0.0320, rounding 0.00400, 4 bits</title>",
            "<td class=\"n\" data-v=\"0.032\">0.0320</td>",
            "<title>after block 1: 0.00210</title>",
            "<title>up to block 1: 0.0100</title>",
            "the cat⏎sat<mark> on</mark> the &lt;b&gt;mat&lt;/b&gt;",
            "<title>solve: 19 s, 36 s of processor time</title>",
            "  bits: 4\n",
            "href=\"../README.md\"",
            "00ff",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn warnings_stand_before_all_figures_each_once() {
        let mut run = fixture::run();
        let told = format!("{}: 3 dead columns", run.linears[3].linear);
        run.summary.warnings.push(told.clone());
        run.pipeline = json!({"gate": {"max_kl": 0.1}});
        let page = run_page(&run, true);
        let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part}"));
        assert!(at("<h2 id=\"warnings-h\">4 warnings</h2>") < at("class=\"figures\""));
        assert!(at("gate.max_kl: 0.1273 is above 0.1") < at("the calibration text is short"));
        assert_eq!(page.matches(&format!("<li>{told}</li>")).count(), 1);
    }

    #[test]
    fn a_broken_result_is_the_first_warning_of_all() {
        let mut run = fixture::run();
        run.pipeline = json!({"gate": {"max_kl": 0.1}});
        run.evaluation.as_mut().unwrap().kl_mean = 13.8;
        let page = run_page(&run, true);
        let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part}"));
        assert!(at("<li>broken: perplexity 21.0 where") < at("<li>gate.max_kl"));
        assert!(at("worse than guessing evenly") < at("class=\"figures\""));
    }

    #[test]
    fn whatever_the_record_holds_is_text() {
        const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&";
        fn spoil(value: &mut Json) {
            match value {
                Json::String(text)
                    if !["input", "attention-mixed", "good"].contains(&text.as_str()) =>
                {
                    *text = format!("{text}{HOSTILE}");
                }
                Json::Array(list) => list.iter_mut().for_each(spoil),
                Json::Object(map) => map.values_mut().for_each(spoil),
                _ => {}
            }
        }
        let mut run = budgeted();
        run.pipeline = json!({"a": {"b": "x", "list": [{"c": "y"}]}, "export": [{"out": "z"}]});
        let mut json = serde_json::to_value(run).unwrap();
        spoil(&mut json);
        json["pipeline"][HOSTILE] = json!(1);
        let run: RunRecord = serde_json::from_value(json).unwrap();
        let page = run_page(&run, true);
        let tags = elements(&page);
        let named = |name: &str| tags.iter().filter(|tag| tag.starts_with(name)).count();
        assert_eq!((named("script"), named("img")), (1, 0));
        assert!(page.contains("&lt;script&gt;alert(1)"));
    }

    #[test]
    fn charts_stand_only_where_there_are_data() {
        let mut run = fixture::run();
        run.evaluation = None;
        run.summary.phases.clear();
        for linear in &mut run.linears {
            linear.relative_loss_heldout = None;
            linear.relative_loss_rtn_heldout = None;
        }
        assert_eq!(charts(&run), ["heat", "heat-narrow", "sums", "rounding"]);
        assert_eq!(is_the_text_enough(&run, None).answer, Answer::Unknown);
        run.linears.truncate(1);
        run.model.blocks = 1;
        assert_eq!(charts(&run), ["heat", "heat-narrow", "rounding"]);
    }

    #[test]
    fn a_loss_that_is_no_number_leaves_the_page_whole() {
        let mut run = fixture::run();
        run.linears[0].relative_loss = f64::NAN;
        run.linears[1].relative_loss = 0.0;
        let page = run_page(&run, true);
        assert!(!page.contains("NaN") && !page.contains("inf\""));
        assert_eq!(with(&page, "mark cell none"), 2);
    }

    #[test]
    fn a_budget_shows_bits_and_what_was_predicted_beside_what_was_measured() {
        let run = budgeted();
        let shown = charts(&run);
        for id in ["bits-grid", "bits-grid-narrow", "predicted"] {
            assert!(shown.iter().any(|chart| chart == id), "{id}");
        }
        let page = run_page(&run, true);
        for part in [
            "Predicted KL of the bits chosen: 0.0500. Measured: 0.127 ± 0.00210, 2.55 times as much.",
            "4 bits in 3 linears (75 % of the weights), 8 bits in 1 linear (25 % of the weights).",
            "8 bits; KL predicted: 0.0400 at 4, 0.00200 at 8",
            "<title>measured, 5.50 bits a weight: KL 0.127 ± 0.00210</title>",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn a_curve_is_drawn_and_answers_whether_the_text_is_enough() {
        let mut run = run_with(&[2.0, 1.5, 1.2, 1.1]);
        run.pipeline = json!({"calibration": {"num_samples": 64}});
        let page = run_page(&run, true);
        assert!(charts(&run).contains(&"curve".to_owned()));
        assert_eq!(with(&page, "tr id=\"t"), 4);
        assert_eq!(with(&page, "data-row=\"t3\""), 2);
        assert!(page.contains(
            "Is the calibration text enough? <strong>Nearly.</strong> Solved from 500 tokens"
        ));
        // A kind whose statistics do not grow with the text.
        for linear in run.linears.iter_mut().filter(|l| kind(l) == "q_proj") {
            linear.calibration_curve.clear();
        }
        assert!(run_page(&run, true).contains("q_proj is left out: more text"));
    }

    #[test]
    fn linears_that_lose_to_plain_rounding_are_counted() {
        let mut run = fixture::run();
        run.linears[0].relative_loss_rtn_heldout = Some(0.000_1);
        assert!(
            run_page(&run, true)
                .contains("1 linear loses on held-out text more than by plain rounding.")
        );
    }

    #[test]
    fn columns_without_a_value_are_left_out_of_the_table() {
        let mut run = fixture::run();
        let heads = |run: &RunRecord| with(&run_page(run, true), "data-key=\"int8_");
        assert_eq!(heads(&run), 4);
        let page = run_page(&run, true);
        assert!(page.contains("<td data-v=\"3 17\">2</td>"));
        for linear in &mut run.linears {
            linear.int8_outlier_columns = None;
            linear.int8_relative_loss = None;
        }
        assert_eq!(heads(&run), 2);
    }

    #[test]
    fn links_lead_to_the_exports_folders() {
        let mut run = fixture::run();
        run.pipeline = json!({"export": [{"format": "gptq"}, {"format": "awq", "out": "mine"}]});
        run.exports.push(run.exports[0].clone());
        assert_eq!(
            (export_folder(&run, 0), export_folder(&run, 1)),
            ("gptq/".into(), "mine/".into())
        );
        run.exports.pop();
        assert_eq!(export_folder(&run, 0), "");
        assert!(!run_page(&run, false).contains("README.md\""));
    }

    #[test]
    fn a_large_model_stays_far_below_three_megabytes() {
        let mut run = fixture::run();
        run.model.blocks = 126;
        let names = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        let linear = LinearRecord {
            relative_loss: 0.001_234_567_890_123,
            ..run.linears[0].clone()
        };
        run.linears = (0..126)
            .flat_map(|block| names.map(|name| (block, name)))
            .map(|(block, name)| LinearRecord {
                block,
                linear: format!("model.layers.{block}.self_attn.{name}"),
                ..linear.clone()
            })
            .collect();
        let page = run_page(&run, true);
        assert!(page.len() < 2_500_000, "{} bytes", page.len());
    }
}
