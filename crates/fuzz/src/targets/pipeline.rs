//! The pipeline file, what `--set` says, and the grid of a sweep.

use std::path::{Path, PathBuf};

use halfbyte_pipeline::config::{ConfigError, Pipeline};

use super::{Target, root};
use crate::mutate::Format;

/// Where relative paths begin: the folder of the project's own pipeline files.
fn base() -> PathBuf {
    root().join("pipelines")
}

/// What a command asks of a checked pipeline before a model is opened.
fn use_it(pipeline: Result<Pipeline, ConfigError>) -> String {
    let pipeline = match pipeline {
        Ok(pipeline) => pipeline,
        Err(error) => return format!("{error} {}", error.hint().unwrap_or_default()),
    };
    let written = pipeline.to_value();
    pipeline.fingerprint();
    pipeline.calibration.held_out_samples();
    pipeline.treatment("model.layers.0.self_attn.q_proj");
    pipeline.export_folders(Path::new("out"));
    let again = Pipeline::parse(&written.to_string(), "written", &base());
    assert_eq!(
        again
            .map(|again| again.to_value())
            .map_err(|error| error.to_string()),
        Ok(written),
        "a checked pipeline reads back as itself"
    );
    format!("ok {}", pipeline.notices.join(" "))
}

fn files(wanted: fn(&str) -> bool) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(root().join("pipelines"))
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let yaml = paths.iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".yaml") && name != "sweep-job.yaml" && wanted(&name)
    });
    // a model that is there, so that reading does not end at its place
    let of_tiny = |text: String| text.replace("SmolLM2-135M-Instruct", "embedded:tiny");
    let texts = yaml.flat_map(std::fs::read_to_string);
    texts.map(|text| of_tiny(text).into_bytes()).collect()
}

/// All keys there are.
const WHOLE: &str = "model: {source: org/name, revision: main}
calibration:
  sources: [{path: ../tests/data/evaluation.txt, weight: 2, text_column: body}, {dataset: org/data}]
  num_samples: 64
  sequence_length: 256
  packing: concat
  seed: 3
  holdout: 0.1
  random_samples: 8
  generated_samples: 4
method: gptq
recipe: best
quant: {bits: 3, group_size: 64, sym: false, desc_act: true, static_groups: true, damp_percent: 0.05, signed_scales: false}
awq: {loss: module, loss_tokens: 512}
propagation: asymmetric
tune: {epochs: 2, learning_rate: 0.001, num_samples: 8, generated_samples: 4}
budget: {bits_per_weight: 3.5, bits: [2, 3, 4], floors: [{match: '*.v_proj', bits: 4}]}
rules:
  - {match: '*.down_proj', bits: 4, group_size: 32}
  - {match: 're:.*gate.*', skip: true}
ignore: [lm_head, 'model.layers.0.*']
export: [{format: gptq, out: a}, {format: compressed-tensors}]
evaluate: {text: ../tests/data/evaluation.txt, sequence_length: 512, windows: [0, 3, 5]}
gate: {max_kl: 0.5}
report: {html: true, llm_int8: true, calibration_curve: false}
resources: {threads: 2, max_memory: 4GB, device: cpu}
";

const WORDS: &[&str] = &[
    "w_bit",
    "wbits",
    "q_group_size",
    "groupsize",
    "desc_act",
    "actorder",
    "symmetric",
    "true_sequential",
    "damp_auto_increment",
    "nsamples",
    "W4A16",
    "scheme",
    "targets",
    "modules_to_not_convert",
    "1e999",
    ".nan",
    ".inf",
    "auto",
    "4GB",
    "10 %",
    "embedded:tiny",
    "rtn",
    "awq",
    "hqq",
    "awq+gptq",
    "nf4",
    "fp4",
    "absmax",
    "reference",
    "default",
    "best",
    "float",
    "sequential",
    "all",
    "-1",
    "8",
    "re:(",
    "re:[a-z]{1000}{1000}",
    "winner",
    "measure",
    "by",
    "size",
    "methods",
];

pub(super) fn pipeline() -> Target {
    let mut seeds = files(|name| !name.contains("sweep"));
    seeds.push(WHOLE.as_bytes().to_vec());
    Target {
        name: "pipeline",
        format: Format::Yaml,
        seeds,
        words: WORDS,
        reader: || Box::new(|bytes| use_it(parse(bytes, &[]))),
    }
}

/// As a file is read: what is no text is refused before.
fn parse(bytes: &[u8], overrides: &[String]) -> Result<Pipeline, ConfigError> {
    let text = String::from_utf8_lossy(bytes);
    Pipeline::parse_with(&text, "pipeline.yaml", &base(), overrides)
}

pub(super) fn overrides() -> Target {
    let seeds = [
        r#"["quant.bits=3", "quant.group_size=-1", "method=rtn"]"#,
        r#"["rules.0.match=*.down_proj", "rules.0.bits=8", "export.1.format=awq"]"#,
        r#"["calibration.sources=[{path: a.txt}]", "evaluate={text: b.txt, windows: all}", "tune.epochs=3"]"#,
        r#"["quantization.wbits=4", "resources.max_memory=50 %", "ignore=[lm_head]", "model.source="]"#,
    ];
    Target {
        name: "overrides",
        format: Format::Json,
        seeds: seeds.map(|seed| seed.as_bytes().to_vec()).to_vec(),
        words: &[
            "quant.bits=",
            "model.source=embedded:tiny",
            "calibration.num_samples=18446744073709551615",
            "a.b.c.d=1",
            "rules.99999.bits=1",
            "=",
            ".=.",
            "quant={bits: 4, bits: 3}",
            "budget.bits_per_weight=3.1",
            "sweep.bits=[2, 3]",
            "x=&a [*a]",
            "recipe=best",
            "rules.0=[[[[",
        ],
        reader: || {
            Box::new(|bytes| match serde_json::from_slice::<Vec<String>>(bytes) {
                Ok(overrides) => use_it(parse(
                    b"model: {source: embedded:tiny}\nquant: {bits: 4}\n",
                    &overrides,
                )),
                Err(error) => format!("not a list of strings: {error}"),
            })
        },
    }
}

pub(super) fn sweep() -> Target {
    let mut seeds = files(|name| name.contains("sweep"));
    seeds.push(
        b"model: {source: embedded:tiny}\nsweep:\n  method: [gptq, rtn, awq]\n  bits: [2, 3, 4]\n  group_size: [32, -1]\n  sym: [true, \
          false]\n  measure: pareto\n  winner: {by: size, max_kl: 0.1}\nevaluate: {text: ../tests/data/evaluation.txt}\n"
            .to_vec(),
    );
    Target {
        name: "sweep",
        format: Format::Yaml,
        seeds,
        words: WORDS,
        reader: || Box::new(|bytes| use_it(parse(bytes, &[]))),
    }
}
