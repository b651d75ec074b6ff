use super::*;

const MODEL: &str = "model: {source: embedded:tiny}\n";

fn parse(text: &str) -> Result<Pipeline, ConfigError> {
    Pipeline::parse(text, "p.yaml", Path::new("base"))
}

fn with(overrides: &[&str], text: &str) -> Result<Pipeline, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Pipeline::parse_with(text, "p.yaml", Path::new("base"), &overrides)
}

/// The whole message of a bad file, as the program prints it.
fn message(result: Result<Pipeline, ConfigError>) -> String {
    let error = result.expect_err("the file is bad");
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    assert_eq!(message(parse(text)), expected);
}

#[track_caller]
fn check_override_error(overrides: &[&str], expected: &str) {
    assert_eq!(message(with(overrides, MODEL)), expected);
}

// What is right.

#[test]
fn the_commented_default_is_the_default() {
    let minimal = parse(MODEL).unwrap();
    assert_eq!(parse(DEFAULT_YAML).unwrap(), minimal);
    assert_eq!(minimal.quant.scheme.bits(), 4);
    assert_eq!(minimal.quant.scheme.group_size().as_i64(), 128);
    assert!(minimal.quant.scheme.sym() && minimal.quant.desc_act && minimal.quant.static_groups);
    assert_eq!(minimal.calibration.sources[0].text, TextSource::Embedded);
    assert_eq!(
        (
            minimal.calibration.num_samples,
            minimal.calibration.sequence_length
        ),
        (128, 512)
    );
    assert_eq!(minimal.ignore[0].as_str(), "lm_head");
    assert_eq!(minimal.export[0].format, Format::CompressedTensors);
    assert_eq!(minimal.evaluate, None);
    assert_eq!(minimal.awq.loss, AwqLoss::Module);
}

#[test]
fn the_commented_default_names_every_key_of_the_schema() {
    let schema = Pipeline::schema();
    let sections = schema["$defs"].as_object().unwrap().values();
    for section in sections.chain([&schema]) {
        for key in section["properties"].as_object().into_iter().flatten() {
            let key = format!("{}:", key.0);
            assert!(DEFAULT_YAML.contains(&key), "default.yaml lacks {key}");
        }
    }
}

#[test]
fn a_full_file_becomes_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("text")).unwrap();
    std::fs::write(folder.path().join("eval.txt"), "text").unwrap();
    let text = r#"
model: {source: org/name@v1}
calibration:
  sources: [{path: text, weight: 2}, {dataset: org/data, text_column: body}]
  num_samples: 64
  sequence_length: 256
  packing: truncate
  seed: 7
  holdout: 0.0625
  random_samples: 3
  generated_samples: 5
method: gptq
recipe: reference
quant: {bits: 3, group_size: -1, sym: false, desc_act: false, static_groups: false, damp_percent: 0.01, signed_scales: false}
awq: {loss: hessian, loss_tokens: 1000}
propagation: float
rules:
  - {match: 're:.*down_proj', bits: 8, group_size: 64}
  - {match: '*.v_proj', skip: true}
ignore: [lm_head, 're:.*embed']
export: [{format: compressed-tensors, out: ct}, {format: gptq_v2}]
evaluate: {text: eval.txt, sequence_length: 128, windows: [0, 3, 5]}
gate: {max_kl: 0.1}
report: {html: false, llm_int8: true, calibration_curve: false}
resources: {threads: 2, max_memory: 8GiB, device: cpu}
"#;
    let pipeline = Pipeline::parse(text, "p.yaml", folder.path()).unwrap();
    assert_eq!(
        pipeline.model.source,
        ModelSource::Hub("org/name".to_owned())
    );
    assert_eq!(pipeline.model.revision.as_deref(), Some("v1"));
    assert_eq!(pipeline.calibration.sources[0].weight, 2.0);
    assert_eq!(
        pipeline.calibration.sources[1].text,
        TextSource::Dataset("org/data".to_owned())
    );
    assert_eq!(pipeline.calibration.held_out_samples(), 4);
    assert_eq!(pipeline.calibration.random_samples, 3);
    assert_eq!(pipeline.calibration.generated_samples, 5);
    assert_eq!(pipeline.quant.damp_percent, Damp::Fraction(0.01));
    assert_eq!(pipeline.quant.signed_scales, SignedScales::Off);
    assert_eq!(pipeline.awq.loss, AwqLoss::Hessian);
    assert_eq!(pipeline.awq.loss_tokens, 1000);
    let evaluate = pipeline.evaluate.as_ref().unwrap();
    assert!(!pipeline.report.html && !pipeline.report.calibration_curve);
    assert_eq!(evaluate.windows, Windows::List(vec![0, 3, 5]));
    assert_eq!(evaluate.text.path, folder.path().join("eval.txt"));
    assert_eq!(pipeline.resources.max_memory_bytes, Some(8 << 30));
    assert_eq!(pipeline.resources.threads, Some(2));
    assert_eq!(
        pipeline.export_folders(Path::new("out")),
        [
            (Format::CompressedTensors, PathBuf::from("out/ct")),
            (Format::GptqV2, PathBuf::from("out/gptq_v2"))
        ]
    );
    let again = serde_json::to_string(&pipeline.to_value()).unwrap();
    assert_eq!(
        Pipeline::parse(&again, "p.json", folder.path()).unwrap(),
        pipeline,
        "what to_value writes reads back as itself"
    );
}

#[test]
fn the_first_rule_that_matches_wins_and_ignore_comes_before_all() {
    let text = format!(
        "{MODEL}quant: {{group_size: 64}}\nrules:\n  - {{match: '*.down_proj', bits: 8}}\n  - {{match: 're:.*proj', skip: true}}\nignore: ['*.1.down_proj']\n"
    );
    let pipeline = parse(&text).unwrap();
    let eight = Scheme::new(8, halfbyte_quant::GroupSize::Columns(64), true).unwrap();
    assert_eq!(
        pipeline.treatment("a.0.down_proj"),
        Treatment::Quantize(eight)
    );
    assert_eq!(pipeline.treatment("a.1.down_proj"), Treatment::Keep);
    assert_eq!(pipeline.treatment("a.0.q_proj"), Treatment::Keep);
    assert_eq!(
        pipeline.treatment("a.0.gate"),
        Treatment::Quantize(pipeline.quant.scheme)
    );
}

#[test]
fn where_hessians_are_solved_windows_are_added_to_the_text() {
    let samples = |text: &str| {
        let calibration = parse(&format!("{MODEL}{text}")).unwrap().calibration;
        (calibration.random_samples, calibration.generated_samples)
    };
    for (solved, generated) in [("", 16), ("method: awq+gptq\n", 16), ("recipe: best\n", 64)] {
        assert_eq!(samples(solved), (0, generated), "{solved}");
    }
    let asked = |asked: &str| samples(&format!("calibration: {{num_samples: 62{asked}}}\n"));
    assert_eq!(asked(""), (0, 7));
    assert_eq!(asked(", generated_samples: auto"), (0, 7));
    assert_eq!(asked(", generated_samples: 0"), (0, 0));
    assert_eq!(asked(", random_samples: 7, generated_samples: 2"), (7, 2));
    let no_text = "method: hqq\nquant: {sym: false}\ncalibration: {generated_samples: 2}\n";
    for none in [
        "recipe: reference\n",
        "method: rtn\n",
        "method: awq\n",
        no_text,
    ] {
        assert_eq!(samples(none), (0, 0), "{none}");
    }
}

#[test]
fn windows_are_a_count_a_list_or_all() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("e.txt"), "text").unwrap();
    let windows = |text: &str| {
        let text = format!("{MODEL}evaluate: {{text: e.txt{text}}}");
        let pipeline = Pipeline::parse(&text, "p.yaml", folder.path()).unwrap();
        pipeline.evaluate.unwrap().windows
    };
    assert_eq!(windows(""), Windows::Count(32));
    assert_eq!(windows(", windows: 4"), Windows::Count(4));
    assert_eq!(windows(", windows: all"), Windows::All);
    assert_eq!(windows(", windows: [2]"), Windows::List(vec![2]));
}

#[test]
fn sizes_are_read_with_their_units() {
    for (text, bytes) in [
        ("8GiB", 8 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("2g", 2 << 30),
        ("4096", 4096),
    ] {
        assert_eq!(parse_bytes(text), Some(bytes), "{text}");
    }
    for text in ["", "GiB", "8 parsecs", "-1GiB", "1e9", "0"] {
        assert_eq!(parse_bytes(text), None, "{text}");
    }
}

#[test]
fn devices_have_one_word_in_the_file_and_on_the_command_line() {
    for device in Device::ALL {
        assert_eq!(device.to_string(), device.as_str());
    }
}

#[test]
fn group_sizes_offered_divide_the_width() {
    assert_eq!(divisors_hint(576), [16, 32, 48, 64, 96, 144, 192, 288, 576]);
    assert_eq!(divisors_hint(100), [20, 25, 50, 100]);
    assert_eq!(divisors_hint(17), [17]);
    assert_eq!(divisors_hint(8), [0; 0]);
    assert_eq!(divisors_hint(2048).last(), Some(&1024));
}

#[test]
fn an_empty_section_is_the_default_section() {
    let pipeline = parse(&format!("{MODEL}quant:\n  # bits: 3\nrules:\n")).unwrap();
    assert_eq!(pipeline, parse(MODEL).unwrap());
}

#[test]
fn anchors_and_merges_of_yaml_work() {
    let text =
        format!("{MODEL}rules:\n  - &eight {{match: a, bits: 8}}\n  - {{<<: *eight, match: b}}\n");
    let pipeline = parse(&text).unwrap();
    assert_eq!(pipeline.rules[0].treatment, pipeline.rules[1].treatment);
}

#[test]
fn a_fingerprint_changes_with_what_decides_the_codes_and_with_nothing_else() {
    let base = parse(MODEL).unwrap().fingerprint();
    assert_eq!(base.len(), 64);
    let of = |overrides: &[&str]| with(overrides, MODEL).unwrap().fingerprint();
    for same in [
        "resources.threads=2",
        "resources.max_memory=1GiB",
        "report.html=false",
        "report.llm_int8=true",
        "report.calibration_curve=false",
        "export=[{format: compressed-tensors, out: x}]",
        "export=[{format: gptq}]",
        "quant.bits=4",
    ] {
        assert_eq!(of(&[same]), base, "{same}");
    }
    for other in [
        "quant.bits=3",
        "calibration.seed=1",
        "method=rtn",
        "recipe=reference",
        "propagation=float",
        "ignore=[]",
        "rules=[{match: a, skip: true}]",
        "model.source=org/name",
        "quant.damp_percent=0.1",
        "awq.loss=hessian",
        "awq.loss_tokens=512",
    ] {
        assert_ne!(of(&[other]), base, "{other}");
    }
    // what a budget chooses from is what all formats hold
    let budget = "budget={bits_per_weight: 4.25}";
    assert_ne!(of(&[budget]), of(&[budget, "export=[{format: gptq}]"]));
}

#[test]
fn a_fingerprint_tells_models_of_one_name_in_two_folders_apart() {
    let [one, two] = [0, 1].map(|_| tempfile::tempdir().unwrap());
    let [one, two] = [&one, &two].map(|folder| {
        std::fs::create_dir(folder.path().join("model")).unwrap();
        Pipeline::parse("model: {source: model}", "p.yaml", folder.path()).unwrap()
    });
    assert_ne!(one.fingerprint(), two.fingerprint());
    assert_eq!(one.to_value(), two.to_value());
    assert_eq!(one.fingerprint(), one.clone().fingerprint());
}

// Other tools' words, and overrides.

#[test]
fn spellings_of_other_tools_are_read_and_named() {
    let text = "model: {source: embedded:tiny}
quant:
  w_bit: 3
  q_group_size: 64
  zero_point: true
  percdamp: 0.05
calibration: {nsamples: 8, seqlen: 128}
rules:
  - {match: a, num_bits: 8}
";
    let pipeline = parse(text).unwrap();
    let ours = parse(
        "model: {source: embedded:tiny}
quant: {bits: 3, group_size: 64, sym: false, damp_percent: 0.05}
calibration: {num_samples: 8, sequence_length: 128}
rules: [{match: a, bits: 8}]",
    )
    .unwrap();
    assert_eq!(pipeline.to_value(), ours.to_value());
    assert_eq!(
        pipeline.notices,
        [
            "p.yaml:3: `quant.w_bit` is read as `quant.bits`",
            "p.yaml:4: `quant.q_group_size` is read as `quant.group_size`",
            "p.yaml:5: `quant.zero_point: true` is read as `quant.sym: false`",
            "p.yaml:6: `quant.percdamp` is read as `quant.damp_percent`",
            "p.yaml:7: `calibration.nsamples` is read as `calibration.num_samples`",
            "p.yaml:7: `calibration.seqlen` is read as `calibration.sequence_length`",
            "p.yaml:9: `rules.0.num_bits` is read as `rules.0.bits`",
        ]
    );
}

#[test]
fn overrides_reach_every_place_and_the_last_wins() {
    let pipeline = with(
        &[
            "quant.bits=8",
            "quant.bits=3",
            "quant.zero_point=true",
            "calibration.sources.1.dataset=org/data",
            "rules.0={match: a, skip: true}",
            "ignore=",
            "resources={threads: 3}",
        ],
        &format!("{MODEL}quant: {{bits: 2}}\ncalibration: {{sources: [{{path: embedded:calibration}}]}}\nignore: [b]\n"),
    )
    .unwrap();
    assert_eq!(pipeline.quant.scheme.bits(), 3);
    assert!(!pipeline.quant.scheme.sym());
    assert_eq!(pipeline.calibration.sources.len(), 2);
    assert_eq!(pipeline.rules[0].treatment, Treatment::Keep);
    assert_eq!(pipeline.ignore[0].as_str(), "lm_head");
    assert_eq!(pipeline.resources.threads, Some(3));
    assert_eq!(
        pipeline.notices,
        ["--set quant.zero_point: `quant.zero_point: true` is read as `quant.sym: false`"]
    );
}

#[test]
fn an_override_may_give_what_the_file_lacks() {
    let pipeline = with(&["model.source=embedded:tiny"], "# nothing yet\n").unwrap();
    assert_eq!(pipeline, parse(MODEL).unwrap());
}

#[test]
fn files_are_found_beside_the_pipeline_and_else_from_the_working_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Cargo.toml"), "beside").unwrap();
    let source = |name: &str| {
        let text = format!("{MODEL}calibration: {{sources: [{{path: {name}}}]}}");
        let pipeline = Pipeline::parse(&text, "p.yaml", folder.path()).unwrap();
        match &pipeline.calibration.sources[0].text {
            TextSource::Path(located) => located.path.clone(),
            other => panic!("{other:?}"),
        }
    };
    // Both exist in the package's own folder, where tests run.
    assert_eq!(source("Cargo.toml"), folder.path().join("Cargo.toml"));
    assert_eq!(source("src"), Path::new("src"));
}

// What is wrong.

#[test]
fn a_missing_file_is_named() {
    let error = Pipeline::load(Path::new("no/such.yaml"), &[]).unwrap_err();
    assert_eq!(
        message(Err(error)),
        "no/such.yaml: cannot be read: No such file or directory (os error 2)\nhint: give the path of a pipeline file; pipelines/quickstart.yaml is one"
    );
}

#[test]
fn text_that_is_not_yaml_is_refused_with_its_line() {
    check_error(
        "model: {source: a\nquant: b\n",
        "p.yaml:2: not YAML: did not find expected ',' or '}'\nhint: `halfbyte schema` prints what may stand in a pipeline file",
    );
    check_error(
        "model: {source: a}\nquant: {}\nmodel: {source: b}\n",
        "p.yaml:1: not YAML: duplicate entry with key \"model\"\nhint: `halfbyte schema` prints what may stand in a pipeline file",
    );
    check_error("- a\n", "p.yaml: found a list, wanted a section");
}

#[test]
fn an_empty_file_lacks_a_model() {
    check_error(
        "",
        "p.yaml: model: missing\nhint: `model`: what is quantized; the only section that must be there",
    );
    check_error(
        "# head\nmodel: {revision: main}\n",
        "p.yaml:2: model.source: missing\nhint: `source`: a folder, a hub id `org/name` with or without `@revision`, or `embedded:tiny`",
    );
    check_error("model: 3\n", "p.yaml:1: model: found 3, wanted a section");
}

#[test]
fn an_unknown_key_is_refused_with_the_one_meant() {
    check_error(
        "model: {source: embedded:tiny}\nquant:\n  bits: 4\n  grup_size: 64\n",
        "p.yaml:4: quant.grup_size: unknown key\nhint: did you mean `group_size`?",
    );
    check_error(
        "model: {source: embedded:tiny}\nquants: {bits: 4}\n",
        "p.yaml:2: quants: unknown key\nhint: did you mean `quant`?",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {flavour: 1}\n",
        "p.yaml:2: quant.flavour: unknown key\nhint: known here: bits, group_size, sym, desc_act, static_groups, damp_percent, signed_scales, double_quant",
    );
    check_error(
        "model: {source: embedded:tiny}\nrules:\n  - match: a\n    bits: 4\n  - match: b\n    bit: 4\n",
        "p.yaml:6: rules.1.bit: unknown key\nhint: did you mean `bits`?",
    );
}

#[test]
fn a_key_in_the_wrong_section_is_sent_home() {
    check_error(
        "model: {source: embedded:tiny}\nbits: 4\n",
        "p.yaml:2: bits: unknown key\nhint: `bits` is `quant.bits` here",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {nsamples: 4}\n",
        "p.yaml:2: quant.nsamples: unknown key\nhint: `nsamples` is `calibration.num_samples` here",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {avg_bits: 4.25}\n",
        "p.yaml:2: quant.avg_bits: unknown key\nhint: `avg_bits` is `budget.bits_per_weight` here",
    );
}

#[test]
fn two_names_of_one_key_are_one_too_many() {
    check_error(
        "model: {source: embedded:tiny}\nquant:\n  bits: 4\n  w_bit: 3\n",
        "p.yaml:4: quant.w_bit: sets `bits`, which is given as well: 4 there, 3 here\nhint: keep `bits`",
    );
}

fn swept(text: &str) -> Sweep {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("e.txt"), "text").unwrap();
    let text = format!("model: {{source: embedded:tiny}}\n{text}");
    let pipeline = Pipeline::parse(&text, "p.yaml", folder.path()).unwrap();
    let again = serde_json::to_string(&pipeline.to_value()).unwrap();
    let again = Pipeline::parse(&again, "p.json", folder.path()).unwrap();
    assert_eq!(
        again.sweep, pipeline.sweep,
        "what to_value writes reads back as itself"
    );
    pipeline.sweep.unwrap()
}

#[test]
fn a_sweep_has_every_combination_of_its_axes_and_the_files_own_values_elsewhere() {
    let grid = swept(
        "quant: {group_size: 64, desc_act: false}\nsweep: {method: [gptq, rtn], w_bit: [3, 4], sym: [true, false]}\n",
    );
    let names: Vec<&str> = grid.cells.iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "gptq-3bit-g64-sym",
            "gptq-3bit-g64-asym",
            "gptq-4bit-g64-sym",
            "gptq-4bit-g64-asym",
            "rtn-3bit-g64-sym",
            "rtn-3bit-g64-asym",
            "rtn-4bit-g64-sym",
            "rtn-4bit-g64-asym",
        ]
    );
    assert_eq!((grid.measure, grid.winner), (Measure::None, None));
    let cell = &grid.cells[5];
    let pipeline = cell.pipeline.as_ref().unwrap();
    assert_eq!(pipeline.method, Method::Rtn);
    assert_eq!(pipeline.propagation, Propagation::Float);
    assert!(!pipeline.quant.desc_act && !pipeline.quant.scheme.sym());
    assert_eq!(pipeline.quant.scheme.bits(), 3);
    assert!(pipeline.sweep.is_none());
    let all: std::collections::BTreeSet<String> = (grid.cells.iter())
        .map(|cell| cell.pipeline.as_ref().unwrap().fingerprint())
        .collect();
    assert_eq!(all.len(), 8, "cells share a fingerprint");
}

#[test]
fn a_cell_that_cannot_be_has_its_reason() {
    let grid = swept(
        "export: [{format: gptq}]\nsweep: {method: [hqq, gptq], sym: [true, false], group_size: [-1]}\n",
    );
    let reasons: Vec<Option<&str>> = (grid.cells.iter())
        .map(|cell| cell.pipeline.as_ref().err().map(String::as_str))
        .collect();
    assert_eq!(grid.cells[2].name, "gptq-4bit-channel-sym");
    assert_eq!(
        reasons[0],
        Some(
            "`quant` asks for more than `hqq` can do: it chooses zero points, and symmetric weights have none"
        )
    );
    assert!(
        reasons[1].unwrap().contains("asks for more than it holds"),
        "{reasons:?}"
    );
    assert_eq!(reasons[2], None);
    assert_eq!(reasons[3], reasons[1]);
}

#[test]
fn a_winner_has_its_limits_and_goes_by_what_there_is() {
    let grid = swept("sweep: {winner: {max_bytes: 4MB}}\n");
    assert_eq!(
        grid.winner,
        Some(Winner {
            by: WinnerBy::PredictedKl,
            max_bits_per_weight: None,
            max_bytes: Some(4_000_000),
        })
    );
    let grid = swept(
        "evaluate: {text: e.txt}\nsweep: {measure: pareto, winner: {max_bits_per_weight: 4.5}}\n",
    );
    assert_eq!(grid.measure, Measure::Pareto);
    assert_eq!(grid.winner.unwrap().by, WinnerBy::Kl);
    let measured = swept("evaluate: {text: e.txt}\nsweep: {bits: [3]}\n");
    assert_eq!(measured.measure, Measure::All);
}

#[test]
fn what_a_sweep_cannot_share_is_refused() {
    let check = |section: &str, message: &str| {
        check_error(
            &format!("model: {{source: embedded:tiny}}\n{section}"),
            message,
        );
    };
    check(
        "sweep: {recipe: [default, best]}\n",
        "p.yaml:2: sweep.recipe: `best` weighs every token and row by gradients of its own, which cells cannot share\nhint: use `default` or `reference` here, and `best` in a run of the winner",
    );
    check(
        "recipe: best\nsweep: {bits: [3]}\n",
        "p.yaml:2: recipe: `best` weighs every token and row by gradients of its own, which cells cannot share\nhint: use `default` or `reference` here, and `best` in a run of the winner",
    );
    check(
        "sweep: {method: [gptq, awq]}\n",
        "p.yaml:2: sweep.method: `awq` scales the float model's channels, each cell in its own way\nhint: use gptq, rtn, hqq, absmax, nf4 or fp4 here, and run awq by itself",
    );
    check(
        "sweep: {bits: [3, 3]}\n",
        "p.yaml:2: sweep.bits.1: the same value is there before\nhint: keep one of the two",
    );
    check(
        "sweep: {bits: 3}\n",
        "p.yaml:2: sweep.bits: found 3, wanted a list",
    );
    check(
        "sweep: {bits: []}\n",
        "p.yaml:2: sweep.bits: found an empty list, wanted at least one entry\nhint: leave the key out to have its default",
    );
    check(
        "sweep: {groupsizes: [64]}\n",
        "p.yaml:2: sweep.groupsizes: unknown key\nhint: did you mean `group_size`?",
    );
    check(
        "sweep: {measure: all}\n",
        "p.yaml:2: sweep.measure: there is no text to measure on\nhint: add `evaluate: {text: FILE}`, or write `measure: none`",
    );
    check(
        "sweep: {winner: {by: perplexity}}\n",
        "p.yaml:2: sweep.winner.by: `perplexity` is measured, and no cell is\nhint: write `by: predicted_kl`, or have cells measured: `evaluate: {text: FILE}`",
    );
    check(
        "sweep: {winner: {by: kld}}\n",
        "p.yaml:2: sweep.winner.by: found `kld`, wanted kl, perplexity or predicted_kl\nhint: did you mean `kl`?",
    );
    check(
        "sweep: {winner: {max_bytes: small}}\n",
        "p.yaml:2: sweep.winner.max_bytes: `small` is not a size\nhint: write it as 90MB, 1.5GiB or a count of bytes",
    );
    check(
        "budget: {bits_per_weight: 4}\nsweep: {bits: [3]}\n",
        "p.yaml:2: budget: a cell of a sweep has one scheme for all linears, but those of `rules`\nhint: leave `budget` or `sweep` out",
    );
    check(
        "tune: {epochs: 1}\nsweep: {bits: [3]}\n",
        "p.yaml:2: tune.epochs: the cells of a sweep are not tuned\nhint: leave `tune` out, and tune the winner by a run of its own",
    );
}

#[test]
fn what_is_planned_is_answered_by_name() {
    check_error(
        "model: {source: embedded:tiny}\nmethod: awq\nrecipe: best\n",
        "p.yaml:3: recipe: `best` is a recipe of gptq and awq+gptq, and the method is awq\nhint: use `method: gptq`, or `recipe: default`",
    );
    check_error(
        "model: {source: embedded:tiny}\nmethod: hqq\nquant: {sym: false}\ntune: {epochs: 1}\n",
        "p.yaml:4: tune.epochs: tuning needs calibration text, and hqq reads none\nhint: use a method that reads text, or leave `tune` out",
    );
    check_error(
        "model: {source: embedded:tiny}\nmethod: hqq\nquant: {sym: false}\npropagation: asymmetric\n",
        "p.yaml:4: propagation: asymmetric compares with the float model on calibration text, and hqq reads none\nhint: use a method that reads text, or leave `propagation` out",
    );
    check_error(
        "model: {source: embedded:tiny}\nexport: [{format: gptq},\n  {format: mlx}]\n",
        "p.yaml:3: export.1.format: `mlx` is known, but not in this version\nhint: use compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant:\n  actorder: group\n",
        "p.yaml:3: quant.actorder: groups that follow the order (false, with desc_act true) are known, but not in this version\nhint: leave `static_groups: true`, which keeps the gain of the order and needs no index when the model runs",
    );
}

#[test]
fn a_value_of_the_wrong_kind_says_what_is_wanted() {
    check_error(
        "model: {source: embedded:tiny}\nquant: {bits: 9}\n",
        "p.yaml:2: quant.bits: found 9, wanted 2, 3, 4, 5, 6 or 8",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {w_bit: four}\n",
        "p.yaml:2: quant.w_bit: found `four`, wanted 2, 3, 4, 5, 6 or 8",
    );
    check_error(
        "model: {source: embedded:tiny}\nrules: [{match: a, bits: 7}]\n",
        "p.yaml:2: rules.0.bits: found 7, wanted 2, 3, 4, 5, 6 or 8",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {group_size: 8}\n",
        "p.yaml:2: quant.group_size: found 8, wanted a whole number from 16 to 1024, -1 or 0",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {sym: yes}\n",
        "p.yaml:2: quant.sym: found `yes`, wanted true or false\nhint: YAML 1.2 has no yes and no; write true or false",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {damp_percent: 5}\n",
        "p.yaml:2: quant.damp_percent: found 5, wanted auto or a number from 0 to 1",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {signed_scales: aut}\n",
        "p.yaml:2: quant.signed_scales: found `aut`, wanted auto, true or false\nhint: did you mean `auto`?",
    );
    check_error(
        "model: {source: embedded:tiny}\nmethod: gtpq\n",
        "p.yaml:2: method: found `gtpq`, wanted rtn, gptq, awq, awq+gptq, hqq, absmax, nf4 or fp4\nhint: did you mean `gptq`?",
    );
    check_error(
        "model: {source: embedded:tiny}\ncalibration:\n  num_samples: '0'\n",
        "p.yaml:3: calibration.num_samples: found `0`, wanted a whole number from 1 to 1000000\nhint: leave the quotes away",
    );
    check_error(
        "model: {source: embedded:tiny, revision: 12}\n",
        "p.yaml:1: model.revision: found 12, wanted text\nhint: put it in quotes",
    );
    check_error(
        "model: {source: embedded:tiny}\nexport: []\n",
        "p.yaml:2: export: found an empty list, wanted at least one entry\nhint: leave the key out to have its default",
    );
    check_error(
        "model: {source: embedded:tiny}\nexport: [gtpq]\n",
        "p.yaml:2: export.0: found `gtpq`, wanted compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes\nhint: did you mean `gptq`?",
    );
    check_error(
        "model: {source: embedded:tiny}\nevaluate: true\n",
        "p.yaml:2: evaluate: found true, wanted false or a section",
    );
    check_error(
        "model: {source: embedded:tiny}\nevaluate:\n  text: a\n  windows: [-1]\n",
        "p.yaml:4: evaluate.windows.0: found -1, wanted a whole number from 0",
    );
    check_error(
        "model: {source: embedded:tiny}\nresources: {device: cuda}\n",
        "p.yaml:2: resources.device: found `cuda`, wanted auto, cpu, vulkan, metal, dx12 or webgpu",
    );
    check_error(
        "model: {source: embedded:tiny}\nresources: {max_memory: much}\n",
        "p.yaml:2: resources.max_memory: found `much`, wanted a size\nhint: write auto, 8GiB or 512MiB",
    );
    check_error(
        "model: {source: embedded:tiny}\nresources: {threads: 0}\n",
        "p.yaml:2: resources.threads: found 0, wanted auto or a whole number from 1 to 4096",
    );
}

#[test]
fn a_model_that_is_not_there_is_refused() {
    check_error(
        "model:\n  source: ./nowhere\n",
        "p.yaml:2: model.source: nothing is at `base/nowhere` or at `./nowhere`\nhint: give a model's folder, a hub id `org/name`, or embedded:tiny",
    );
    check_error(
        "model: {source: embedded:small}\n",
        "p.yaml:1: model.source: no model `small` is inside the program\nhint: use embedded:tiny",
    );
    check_error(
        "model: {source: Cargo.toml}\n",
        "p.yaml:1: model.source: `Cargo.toml` is a file, wanted a model's folder\nhint: give the folder that holds config.json and the safetensors",
    );
    check_error(
        "model:\n  source: embedded:tiny\n  revision: main\n",
        "p.yaml:3: model.revision: `embedded:tiny` has no revisions\nhint: leave it out; only hub models have revisions",
    );
    check_error(
        "model: {source: org/name@a, revision: b}\n",
        "p.yaml:1: model.source: `org/name@a` names a revision, and so does model.revision\nhint: keep one of the two",
    );
}

#[test]
fn calibration_sources_are_checked_one_by_one() {
    let sources = |list: &str| format!("{MODEL}calibration:\n  sources:\n{list}");
    check_error(
        &sources("    - path: embedded:calibration\n    - path: org/data\n"),
        "p.yaml:5: calibration.sources.1.path: nothing is at `base/org/data` or at `org/data`\nhint: if a data set on the hub is meant, write `dataset: org/data`",
    );
    check_error(
        &sources("    - path: a.txt\n"),
        "p.yaml:4: calibration.sources.0.path: nothing is at `base/a.txt` or at `a.txt`\nhint: paths are taken from the pipeline file's folder, then from the working folder",
    );
    check_error(
        &sources("    - {weight: 1}\n"),
        "p.yaml:4: calibration.sources.0: found neither `path` nor `dataset`, wanted one\nhint: write one entry a source: `path` for files, `dataset` for a hub id",
    );
    check_error(
        &sources("    - {path: a, dataset: org/b}\n"),
        "p.yaml:4: calibration.sources.0: found both `path` and `dataset`, wanted one\nhint: write one entry a source: `path` for files, `dataset` for a hub id",
    );
    check_error(
        &sources("    - {dataset: wiki}\n"),
        "p.yaml:4: calibration.sources.0.dataset: `wiki` is no hub id\nhint: write `org/name`, or `path:` for a file or folder",
    );
    check_error(
        &sources("    - path: embedded:calibration\n      weight: 0\n"),
        "p.yaml:5: calibration.sources.0.weight: found 0, wanted a number above 0\nhint: take the source out of the list to leave it out",
    );
    check_error(
        &format!("{MODEL}calibration: {{num_samples: 1}}\n"),
        "p.yaml:2: calibration.holdout: found 0.1 of 1 samples, which leaves none for the statistics\nhint: set `holdout: 0`, or raise `num_samples`",
    );
}

#[test]
fn rules_must_be_readable_and_do_something() {
    let rules = |list: &str| format!("{MODEL}rules:\n{list}");
    check_error(
        &rules("  - {match: a, bits: 3}\n  - match: 're:(a'\n    bits: 3\n"),
        "p.yaml:4: rules.1.match: `re:(a` is not a regular expression: unclosed group\nhint: without `re:` the pattern is a name with `*` and `?`",
    );
    check_error(
        &rules("  - {match: a}\n"),
        "p.yaml:3: rules.0: changes nothing\nhint: add `bits`, `group_size` or `sym`, or `skip: true`",
    );
    check_error(
        &rules("  - {match: a, skip: true, bits: 3}\n"),
        "p.yaml:3: rules.0: found `skip: true` beside settings that it would make idle\nhint: keep either `skip` or the settings",
    );
    check_error(
        &rules("  - {bits: 3}\n"),
        "p.yaml:3: rules.0.match: missing\nhint: `match`: whom it concerns: a name with `*` and `?`, or `re:` and a regular expression",
    );
}

#[test]
fn an_export_must_be_able_to_hold_every_scheme() {
    check_error(
        "model: {source: embedded:tiny}\nquant: {sym: false}\nexport:\n  - {format: gptq}\n",
        "p.yaml:4: export.0.format: `quant` asks for more than it holds: gptq cannot hold asymmetric weights that every reader understands; use gptq_v2 or compressed-tensors\nhint: use `format: gptq_v2`, or `sym: true`",
    );
    check_error(
        "model: {source: embedded:tiny}\nrules: [{match: a, bits: 6}]\nexport: [{format: compressed-tensors}, {format: gptq}]\n",
        "p.yaml:3: export.1.format: `rules.0` asks for more than it holds: gptq has no layout for 6 bits; use 2, 3, 4 or 8, or compressed-tensors\nhint: use one of these widths, or another format alone",
    );
    check_error(
        "model: {source: embedded:tiny}\nexport: [{format: gptq}, {format: gptq}]\n",
        "p.yaml:2: export.1.format: `gptq` is there twice\nhint: keep one of the two",
    );
    check_error(
        "model: {source: embedded:tiny}\nexport: [{format: gptq, out: a}, {format: gptq_v2, out: a}]\n",
        "p.yaml:2: export.1.out: another export has the same folder\nhint: give each its own, or leave `out` away",
    );
}

#[test]
fn a_method_says_what_it_cannot_do() {
    check_error(
        "model: {source: embedded:tiny}\nmethod: hqq\n",
        "p.yaml:2: method: `quant` asks for more than `hqq` can do: it chooses zero points, and symmetric weights have none\nhint: set `sym: false` there",
    );
    check_error(
        "model: {source: embedded:tiny}\nmethod: absmax\nquant: {bits: 8}\nrules: [{match: a, bits: 4}]\n",
        "p.yaml:2: method: `rules.0` asks for more than `absmax` can do: it is for symmetric weights of 8 bits\nhint: set `bits: 8` and `sym: true` there, or use rtn",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {bits: 8, sym: false}\nexport: [{format: int-quantized}]\n",
        "p.yaml:3: export.0.format: `quant` asks for more than it holds: int-quantized holds symmetric weights only; use compressed-tensors\nhint: set `sym: true`, or use another format",
    );
}

#[test]
fn codebooks_say_what_does_not_go_with_them() {
    let with = |line: &str| {
        format!(
            "model: {{source: embedded:tiny}}\nmethod: nf4\nexport: [{{format: bitsandbytes}}]\n{line}\n"
        )
    };
    let pipeline = parse(&with(
        "quant: {group_size: 64, use_double_quant: false}\nrules: [{match: a, group_size: 32}]",
    ))
    .unwrap();
    let coding = |block_size| {
        Coding::Codebook(CodebookScheme {
            codebook: halfbyte_quant::Codebook::Nf4,
            block_size,
            double_quant: false,
        })
    };
    let of = |name| match pipeline.treatment(name) {
        Treatment::Quantize(scheme) => pipeline.coding(scheme),
        Treatment::Keep => panic!("{name} is kept"),
    };
    assert_eq!((of("b"), of("a")), (coding(64), coding(32)));
    for (line, expected) in [
        (
            "quant: {bits: 3}",
            "p.yaml:2: method: `quant` asks for more than `nf4` can do: it has codes of 4 bits and no zero points\nhint: set `bits: 4` and `sym: true` there",
        ),
        (
            "rules: [{match: a, sym: false}]",
            "p.yaml:2: method: `rules.0` asks for more than `nf4` can do: it has codes of 4 bits and no zero points\nhint: set `bits: 4` and `sym: true` there",
        ),
        (
            "quant: {group_size: -1}",
            "p.yaml:2: method: `quant` asks for more than `nf4` can do: it has blocks of 32, 64, 128, 256, 512 or 1024 weights\nhint: set `group_size: 64` there",
        ),
        (
            "quant: {signed_scales: true}",
            "p.yaml:4: quant.signed_scales: nf4 has no negative scales\nhint: leave it out, or use rtn or gptq",
        ),
        (
            "tune: {epochs: 1}",
            "p.yaml:4: tune.epochs: tuning needs calibration text, and nf4 reads none\nhint: use a method that reads text, or leave `tune` out",
        ),
        (
            "budget: {bits_per_weight: 4.25}",
            "p.yaml:4: budget: what a width costs is measured on calibration text, and `method: nf4` reads none\nhint: use `method: gptq`",
        ),
        (
            "recipe: best",
            "p.yaml:4: recipe: `best` is a recipe of gptq and awq+gptq, and the method is nf4\nhint: use `method: gptq`, or `recipe: default`",
        ),
    ] {
        check_error(&with(line), expected);
    }
    check_error(
        "model: {source: embedded:tiny}\nmethod: fp4\n",
        "p.yaml: export.0.format: `quant` asks for more than it holds: compressed-tensors holds whole numbers on a grid and not fp4; use bitsandbytes\nhint: write `export: [{format: bitsandbytes}]`",
    );
    check_error(
        "model: {source: embedded:tiny}\nexport: [{format: bitsandbytes}]\n",
        "p.yaml:2: export.0.format: `quant` asks for more than it holds: bitsandbytes holds nf4 and fp4 only; use compressed-tensors\nhint: use `method: nf4` or `fp4`, or another format",
    );
    check_error(
        "model: {source: embedded:tiny}\nquant: {double_quant: false}\n",
        "p.yaml:2: quant.double_quant: only block scales of nf4 and fp4 are quantized once more, and the method is gptq\nhint: leave it out",
    );
}

#[test]
fn outliers_are_looked_for_where_text_is_read_and_inputs_are_not_scaled() {
    let text = |method: &str| {
        format!("model: {{source: embedded:tiny}}\nmethod: {method}\nreport: {{llm_int8: true}}\n")
    };
    assert!(parse(&text("rtn")).unwrap().report.llm_int8);
    let expected = |found: &str| {
        format!(
            "p.yaml:3: report.llm_int8: outliers are looked for in the inputs of the model as it is, and {found}\nhint: use `method: gptq` or `rtn`"
        )
    };
    check_error(&text("awq"), &expected("awq scales them"));
    check_error(
        &text("absmax\nquant: {bits: 8}"),
        &expected("absmax reads no text").replace(":3:", ":4:"),
    );
}

#[test]
fn one_scale_for_a_whole_weight_is_absmaxs_alone() {
    let text = "model: {source: embedded:tiny}\nmethod: absmax\nquant: {bits: 8, group_size: 0}\n";
    let pipeline = parse(text).unwrap();
    let scheme = pipeline.quant.scheme;
    assert_eq!(scheme.group_size(), GroupSize::Tensor);
    assert_eq!(pipeline.to_value()["quant"]["group_size"], 0);
    assert_eq!(
        pipeline.coding(scheme),
        Scheme::new(8, GroupSize::Channel, true).unwrap().into()
    );
    check_error(
        "model: {source: embedded:tiny}\nrules: [{match: a, group_size: 0}]\n",
        "p.yaml: method: `rules.0` asks for more than `gptq` can do: it has no single scale for a whole weight, which `group_size: 0` means\nhint: set `group_size: -1` there for one a row, or use `method: absmax`",
    );
}

#[test]
fn a_budget_wants_one_limit_and_a_method_that_reads_text() {
    check_error(
        "model: {source: embedded:tiny}\nbudget: {bits: [3, 4]}\n",
        "p.yaml:2: budget: wants one limit, `bits_per_weight` or `bytes`\nhint: write `budget: {bits_per_weight: 4.25}`",
    );
    check_error(
        "model: {source: embedded:tiny}\nbudget: {bytes: much}\n",
        "p.yaml:2: budget.bytes: `much` is not a size\nhint: write it as 90MB, 1.5GiB or a count of bytes",
    );
    check_error(
        "model: {source: embedded:tiny}\nmethod: hqq\nquant: {sym: false}\nbudget: {bits_per_weight: 4.25}\n",
        "p.yaml:4: budget: what a width costs is measured on calibration text, and `method: hqq` reads none\nhint: use `method: gptq`",
    );
    let parse = |text: &str| {
        let text = format!("model: {{source: embedded:tiny}}\nbudget: {text}\n");
        Pipeline::parse(&text, "p.yaml", Path::new("")).unwrap()
    };
    let pipeline = parse("{avg_bits: 4.25, bits: [4, 3, 4], floors: [{match: '*.0.*', bits: 4}]}");
    let budget = pipeline.budget.clone().unwrap();
    assert_eq!(budget.limit, BudgetLimit::BitsPerWeight(4.25));
    assert_eq!(budget.bits, [3, 4]);
    assert!(budget.floors[0].0.matches("model.layers.0.mlp.up_proj"));
    let again = serde_json::to_string(&pipeline.to_value()).unwrap();
    let again = Pipeline::parse(&again, "p.yaml", Path::new("")).unwrap();
    assert_eq!(again.budget, pipeline.budget);
    let bytes = parse("{bytes: 3MB}").budget.unwrap();
    assert_eq!(
        (bytes.limit, bytes.bits),
        (BudgetLimit::Bytes(3_000_000), Vec::new())
    );
}

#[test]
fn methods_without_statistics_read_no_text() {
    let reads = |text: &str| {
        let text = format!("model: {{source: embedded:tiny}}\n{text}");
        Pipeline::parse(&text, "p.yaml", Path::new(""))
            .unwrap()
            .reads_text()
    };
    assert!(!reads("method: hqq\nquant: {sym: false}\n"));
    assert!(!reads("method: absmax\nquant: {bits: 8}\n"));
    assert!(reads("method: awq+gptq\n"));
}

#[test]
fn evaluation_takes_the_text_inside_the_program_where_none_is_named() {
    let of = |section: &str| {
        let text = format!("model: {{source: embedded:tiny}}\nevaluate: {section}\n");
        let pipeline = Pipeline::parse(&text, "p.yaml", Path::new(".")).unwrap();
        // as it is written into run.json, it is read again
        let again = pipeline.to_value().to_string();
        let again = Pipeline::parse(&again, "p.yaml", Path::new(".")).unwrap();
        assert_eq!(again.evaluate, pipeline.evaluate);
        let evaluate = pipeline.evaluate.unwrap();
        assert_eq!(evaluate.text.written, EMBEDDED_EVALUATION);
        evaluate.windows
    };
    assert_eq!(of("{}"), Windows::All);
    assert_eq!(of("{windows: 4}"), Windows::Count(4));
    assert_eq!(of("{text: embedded:evaluation}"), Windows::All);
}

#[test]
fn chats_go_through_the_template_unless_a_key_says_otherwise() {
    let of = |more: &str| {
        let text = format!("model: {{source: embedded:tiny}}\n{more}");
        let pipeline = parse(&text).unwrap();
        let written = parse(&pipeline.to_value().to_string()).unwrap();
        assert_eq!(pipeline.calibration, written.calibration);
        assert_eq!(pipeline.evaluate, written.evaluate);
        let evaluate = pipeline.evaluate.unwrap();
        (
            pipeline.calibration.sources[0].chat_template,
            evaluate.chat_template,
            evaluate.text_column,
        )
    };
    assert_eq!(of("evaluate: {}"), (true, true, None));
    let off = "calibration: {sources: [{path: embedded:calibration, chat_template: false}]}\n\
               evaluate: {chat_template: false, text_column: body}";
    assert_eq!(of(off), (false, false, Some("body".to_owned())));
}

#[test]
fn a_gate_needs_its_evaluation() {
    check_error(
        "model: {source: embedded:tiny}\ngate: {max_kl: 0.1}\n",
        "p.yaml:2: gate.max_kl: nothing is measured to hold it against\nhint: add `evaluate: {text: FILE}`",
    );
}

#[test]
fn a_bad_override_is_told_by_its_own_name() {
    check_override_error(
        &["quant.bits=9"],
        "--set quant.bits: found 9, wanted 2, 3, 4, 5, 6 or 8",
    );
    check_override_error(
        &["quant.bitz=3"],
        "--set quant.bitz: unknown key\nhint: did you mean `bits`?",
    );
    check_override_error(
        &["quant.w_bit=9"],
        "--set quant.w_bit: found 9, wanted 2, 3, 4, 5, 6 or 8",
    );
    check_override_error(
        &["quant.bits"],
        "--set quant.bits: no `=` in it\nhint: write `--set key.path=value`, such as `--set quant.bits=3`",
    );
    check_override_error(
        &["quant..bits=3"],
        "--set quant..bits=3: `quant..bits` is no key path\nhint: write `--set key.path=value`, such as `--set quant.bits=3`",
    );
    check_override_error(
        &["rules.3.bits=3"],
        "--set rules.3.bits=3: `3` is no place in a list; it has 0, and the next free place is 0\nhint: write `--set key.path=value`, such as `--set quant.bits=3`",
    );
    check_override_error(
        &["method.name=3", "method=rtn", "method.name=3"],
        "--set method.name=3: nothing can be set below a plain value at `name`\nhint: write `--set key.path=value`, such as `--set quant.bits=3`",
    );
    check_override_error(
        &["quant={bits: 4"],
        "--set quant={bits: 4: not YAML: did not find expected ',' or '}'\nhint: write `--set key.path=value`, such as `--set quant.bits=3`",
    );
}

#[test]
fn lines_are_right_among_comments_strings_and_flow() {
    check_error(
        "# one\nmodel: {source: \"embedded:tiny\"}   # bits: 1\n\nquant: {\n  group_size: 64, # bits: 9\n\n  bits: 9 }\n",
        "p.yaml:7: quant.bits: found 9, wanted 2, 3, 4, 5, 6 or 8",
    );
    check_error(
        "model:\n  source: >\n    bits\n    and more\nquant:\n  bits: 9\n",
        "p.yaml:6: quant.bits: found 9, wanted 2, 3, 4, 5, 6 or 8",
    );
}

// The pipelines that come with the project.

fn pipelines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines")
}

#[test]
fn the_quickstart_needs_nothing_but_the_project() {
    let pipeline = Pipeline::load(&pipelines().join("quickstart.yaml"), &[]).unwrap();
    assert_eq!(
        pipeline.model.source,
        ModelSource::Embedded("tiny".to_owned())
    );
    assert!(pipeline.evaluate.unwrap().text.path.is_file());
    assert_eq!(pipeline.export.len(), 2);
    assert_eq!(pipeline.notices, [""; 0]);
}

#[test]
fn every_pipeline_of_the_project_is_sound_once_its_files_are_given() {
    let text = pipelines().join("quickstart.yaml").display().to_string();
    let given = [
        "model.source=embedded:tiny".to_owned(),
        format!("calibration.sources.0.path={text}"),
        format!("evaluate.text={text}"),
    ];
    let mut seen = 0;
    for entry in std::fs::read_dir(pipelines()).unwrap() {
        let path = entry.unwrap().path();
        // a scheduler's files lie beside the pipelines they start
        let text = std::fs::read_to_string(&path).unwrap();
        if text.starts_with("#!") || text.contains("kind: Job") {
            continue;
        }
        let pipeline = Pipeline::load(&path, &given).unwrap();
        assert_eq!(pipeline.notices, [""; 0], "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 7, "found {seen} pipelines");
}
