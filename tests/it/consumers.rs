//! What the program says about who loads its exports, and what stands in them for those who do.

use std::path::Path;

use halfbyte_report::read_run;
use serde_json::Value;

use crate::program::{halfbyte, small_run, succeed};

const CT_ALONE: [&str; 2] = ["--set", "export=[{format: compressed-tensors}]"];

fn plan(more: &[&str]) -> String {
    let mut command = halfbyte();
    let output = succeed(
        command
            .args(["plan", "pipelines/quickstart.yaml"])
            .args(more),
    );
    String::from_utf8(output.stdout).unwrap()
}

fn inspect(folder: &Path) -> String {
    let output = succeed(halfbyte().arg("inspect").arg(folder));
    String::from_utf8(output.stdout).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The lines of the first export that begin with the name of a consumer.
fn lines_of<'a>(text: &'a str, consumer: &str) -> Vec<&'a str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| line.starts_with(consumer)).collect()
}

#[test]
fn plan_tells_how_it_is_known_who_loads_an_export() {
    let text = plan(&CT_ALONE);
    assert_eq!(
        lines_of(&text, "vLLM"),
        [
            "vLLM 0.33 on a GPU: loads it (by its source code, not run)",
            "vLLM 0.32.0 on a CPU: loads it (ran)"
        ]
    );
    let json = succeed(halfbyte().args(["plan", "pipelines/quickstart.yaml", "--json"]));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    let vllm = &json["exports"][0]["consumers"][2];
    assert_eq!(vllm["consumer"], "vLLM");
    assert_eq!(vllm["evidence"], "ran");
}

#[test]
fn linears_that_readers_fuse_and_rules_split_are_warned_of_by_plan_and_run() {
    let rules = [
        "--set",
        "rules=[{match: '*.q_proj', group_size: 32}, {match: model.layers.1.mlp.up_proj, skip: true}]",
    ];
    let warning = "compressed-tensors and gptq: will not load in vLLM and SGLang, which run q, k and v of a block as one \
                   linear, and so gate and up, and want them stored alike: model.layers.0.self_attn has q_proj 4-bit group \
                   32 sym; k_proj and v_proj 4-bit group 64 sym, and 6 more like it; treat them alike in `rules`, `ignore` \
                   and `budget`";
    let text = plan(&rules);
    assert!(text.contains(warning), "{text}");
    for line in lines_of(&text, "vLLM") {
        assert!(line.contains("does not load it"), "{line}");
    }

    let out = tempfile::tempdir().unwrap();
    let output = succeed(&mut small_run(out.path(), &rules));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("will not load in vLLM and SGLang"), "{told}");
    let record = read_run(out.path()).unwrap();
    assert!(record.summary.warnings.iter().any(|w| w == warning));

    let text = inspect(&out.path().join("gptq"));
    let on_cpu = lines_of(&text, "vLLM 0.32.0 on a CPU");
    assert_eq!(on_cpu.len(), 1, "one verdict a file: {text}");
    assert!(
        on_cpu[0].contains("does not load it: it runs q, k, v"),
        "{text}"
    );
    assert!(on_cpu[0].ends_with("(ran)"), "{text}");

    // no damping was asked for, so none is told; newer readers' keys stand beside the older ones
    let config = json(&out.path().join("gptq/quantize_config.json"));
    assert_eq!(config.get("damp_percent"), None);
    assert_eq!(config["method"], "gptq");
    assert_eq!(config["format"], "gptq");
    // each folder's card is tagged with its own format
    for (own, other) in [
        ("gptq", "compressed-tensors"),
        ("compressed-tensors", "gptq"),
    ] {
        let card = std::fs::read_to_string(out.path().join(own).join("README.md")).unwrap();
        assert!(card.contains(&format!("\n- {own}\n")), "{card}");
        assert!(!card.contains(&format!("\n- {other}\n")), "{card}");
        assert!(!card.contains("base_model"), "{card}");
    }
}

#[test]
fn a_budget_tells_which_readers_its_widths_cost() {
    let budget = |bits: &str| format!("budget={{bits_per_weight: 5.2, bits: {bits}}}");
    let (wide, plain) = (budget("[4, 5, 6]"), budget("[4, 8]"));
    let text = plan(&[&CT_ALONE[..], &["--set", &wide]].concat());
    let note = "warning: budget: it may choose 4, 5 and 6 bits, and not every program that loads compressed-tensors at \
                `quant.bits` takes them: ";
    let told = text.lines().find(|line| line.starts_with(note)).unwrap();
    let refused = "does not load it: compressed-tensors only at 4 and 8 bits (5 and 6 bits)";
    assert!(
        told.contains(&format!("SGLang 0.5.23 {refused}; ")),
        "{told}"
    );
    assert!(told.contains("`budget.bits`"), "{told}");
    assert_eq!(
        lines_of(&text, "SGLang"),
        [format!(
            "SGLang 0.5.23: {refused} (by its source code, not run)"
        )]
    );
    let text = plan(&[&CT_ALONE[..], &["--set", &plain]].concat());
    assert_eq!(
        lines_of(&text, "SGLang"),
        ["SGLang 0.5.23: loads it (by its source code, not run)"]
    );

    // of a budget that may give q other bits than k and v
    let floors =
        "budget={bits_per_weight: 5.2, bits: [4, 8], floors: [{match: '*.q_proj', bits: 8}]}";
    let text = plan(&[&CT_ALONE[..], &["--set", floors]].concat());
    assert!(text.contains("will not load in vLLM and SGLang"), "{text}");

    let out = tempfile::tempdir().unwrap();
    succeed(&mut small_run(
        out.path(),
        &[&CT_ALONE[..], &["--set", &wide]].concat(),
    ));
    let record = read_run(out.path()).unwrap();
    let warnings = &record.summary.warnings;
    let chosen = warnings.iter().find(|w| w.starts_with("budget: it chose "));
    let chosen = chosen.unwrap_or_else(|| panic!("{warnings:?}"));
    assert!(
        chosen.contains("SGLang 0.5.23 does not load it"),
        "{chosen}"
    );
    assert!(
        inspect(out.path()).contains("SGLang 0.5.23: does not load it"),
        "inspect says the same"
    );
}

#[test]
fn an_export_that_keeps_scales_positive_says_so() {
    let best = ["--set", "recipe=best", "--set", "tune={epochs: 0}"];
    let exports = [
        "--set",
        "export=[{format: compressed-tensors}, {format: awq}]",
    ];
    let text = plan(&[&best[..], &exports].concat());
    let told = "signed_scales: auto keeps symmetric scales positive, because not every reader of awq is known to take \
                negative ones, which lose less; export it in a run of its own, or set `quant.signed_scales: true`";
    assert!(text.contains(told), "{text}");
    for fine in [
        &[&best[..], &CT_ALONE].concat(),
        &[&best[..], &exports, &["--set", "quant.sym=false"]].concat(),
        &[&best[..], &exports, &["--set", "quant.signed_scales=true"]].concat(),
        &[&best[..], &exports, &["--set", "quant.signed_scales=false"]].concat(),
        &exports.to_vec(),
    ] {
        let text = plan(fine);
        assert!(!text.contains("keeps symmetric scales positive"), "{text}");
    }
}
