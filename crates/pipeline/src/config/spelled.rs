//! What people paste from other tools, and what becomes of it.

use super::*;

const MODEL: &str = "model: {source: embedded:tiny}\n";

fn parse(text: &str) -> Result<Pipeline, ConfigError> {
    Pipeline::parse(text, "p.yaml", Path::new("base"))
}

/// The text with a model, unless it has its own.
fn whole(text: &str) -> String {
    match text.starts_with("model") {
        true => text.to_owned(),
        false => format!("{MODEL}{text}"),
    }
}

fn message(error: &ConfigError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

/// Holds each pasted text against ours, and wants it to be told.
#[track_caller]
fn check_read(table: &[(&str, &str)]) {
    let mut wrong = String::new();
    for (pasted, ours) in table {
        let expected = parse(&whole(ours)).unwrap_or_else(|e| panic!("{ours}: {}", message(&e)));
        match parse(&whole(pasted)) {
            Ok(found) if found.notices.is_empty() => {
                wrong += &format!("\n{pasted}\n  is read without a note\n");
            }
            Ok(found) if found.to_value() == expected.to_value() => {
                let again = Pipeline::parse(&found.to_value().to_string(), "p", Path::new("base"));
                assert_eq!(again.unwrap().notices, [""; 0], "{pasted}");
            }
            Ok(found) => {
                let (found_value, expected) = (found.to_value(), expected.to_value());
                for (key, value) in found_value.as_object().unwrap() {
                    if *value != expected[key] {
                        wrong += &format!(
                            "\n{pasted}\n  found {key}: {value}\n  not   {}\n",
                            expected[key]
                        );
                    }
                }
            }
            Err(error) => wrong += &format!("\n{pasted}\n  {}\n", message(&error)),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Holds the messages about each pasted text against those expected.
#[track_caller]
fn check_refused(table: &[(&str, &str)]) {
    let mut wrong = String::new();
    for (pasted, expected) in table {
        let found = match parse(&whole(pasted)) {
            Ok(found) => format!("read: {:?}", found.notices),
            Err(error) => message(&error),
        };
        if found != *expected {
            wrong += &format!("\n{pasted}\n  {found}\n  not\n  {expected}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Holds the notes on each pasted text against those expected.
#[track_caller]
fn check_notes(table: &[(&str, &[&str])]) {
    let mut wrong = String::new();
    for (pasted, expected) in table {
        match parse(&whole(pasted)) {
            Ok(found) if found.notices == *expected => {}
            Ok(found) => wrong += &format!("\n{pasted}\n  {}\n", found.notices.join("\n  ")),
            Err(error) => wrong += &format!("\n{pasted}\n  {}\n", message(&error)),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn schemes_are_read_by_their_names() {
    check_read(&[
        ("quant: {scheme: W4A16}", "quant: {bits: 4}"),
        ("scheme: w3a16", "quant: {bits: 3}"),
        ("scheme: W8A16", "quant: {bits: 8, group_size: -1}"),
        ("scheme: W4A16_ASYM", "quant: {sym: false}"),
        ("scheme: W2A16G64", "quant: {bits: 2, group_size: 64}"),
        (
            "quant: {scheme: W4A16, group_size: 32, sym: false}",
            "quant: {group_size: 32, sym: false}",
        ),
        (
            "rules: [{match: a, scheme: W8A16}]",
            "rules: [{match: a, bits: 8, group_size: -1}]",
        ),
        ("quant: {strategy: channel}", "quant: {group_size: -1}"),
        (
            "quant: {strategy: group, group_size: 64}",
            "quant: {group_size: 64}",
        ),
        ("quant: {targets: Linear, observer: mse}", ""),
    ]);
}

#[test]
fn schemes_that_cannot_be_are_refused_by_name() {
    check_refused(&[
        (
            "scheme: NVFP4",
            "p.yaml:2: scheme: found `NVFP4`: weights are whole numbers on a grid here, or the 16 levels of nf4 and fp4 as bitsandbytes stores them\nhint: write `quant: {bits: 4, group_size: 32}`, or `method: nf4` with `export: [{format: bitsandbytes}]`",
        ),
        (
            "quant:\n  scheme: W8A8",
            "p.yaml:3: quant.scheme: found `W8A8`: only weights are quantized, and activations stay in 16 bits\nhint: write `scheme: W8A16`, or `quant: {bits: 8, group_size: -1}`",
        ),
        (
            "scheme: W4A8",
            "p.yaml:2: scheme: found `W4A8`: only weights are quantized, and activations stay in 16 bits\nhint: write `scheme: W4A16`, or `quant: {bits: 4}`",
        ),
        (
            "scheme: W9A16",
            "p.yaml:2: scheme: found 9, wanted 2, 3, 4, 5, 6 or 8",
        ),
        (
            "scheme: best4",
            "p.yaml:2: scheme: `best4` is no scheme that is known here\nhint: write W4A16, W8A16, W4A16_ASYM or W4A16G64, or `quant: {bits: 4, group_size: 128, sym: true}`",
        ),
        (
            "quant: {bits: 3, scheme: W4A16}",
            "p.yaml:2: quant.scheme: sets `bits`, which is given as well: 3 there, 4 here\nhint: keep `bits`",
        ),
        (
            "quant: {strategy: channel, group_size: 128}",
            "p.yaml:2: quant.strategy: sets `group_size`, which is given as well: 128 there, -1 here\nhint: keep `group_size`",
        ),
        (
            "quant: {strategy: block}",
            "p.yaml:2: quant.strategy: found `block`: scales are shared by a group of columns, by a row or by a whole weight\nhint: write `strategy: group` with a `group_size`, or `strategy: channel`, which is `group_size: -1` here",
        ),
        (
            "targets: [re:.*mlp.*]",
            "p.yaml:2: targets: found `[re:.*mlp.*]`: which linears are quantized is told by `rules` and `ignore`\nhint: write `rules: [{match: 're:.*mlp.*', bits: 4}, {match: '*', skip: true}]`",
        ),
    ]);
}

#[test]
fn switches_of_other_tools_mean_what_is_so_here_or_are_refused() {
    check_read(&[
        ("true_sequential: true", ""),
        ("quant: {true_sequential: true}", ""),
        ("lm_head: false", ""),
        (
            "dynamic: {}\nrules: [{match: a, bits: 8}]",
            "rules: [{match: a, bits: 8}]",
        ),
        (
            "quant: {damp_auto_increment: 0.0025, damp_percent: 0.05}",
            "quant: {damp_percent: 0.05}",
        ),
        ("quant: {gptaq: true}", "propagation: asymmetric"),
        ("quant: {act_order: 'true', batch_size: 1}", ""),
        ("batch_size: 8\nuse_cache: false", ""),
    ]);
    check_refused(&[
        (
            "lm_head: true",
            "p.yaml:2: lm_head: found true: only the linears of the decoder blocks are quantized, and lm_head stays as it is\nhint: write `lm_head: false`, or take it out",
        ),
        (
            "quant: {true_sequential: false}",
            "p.yaml:2: quant.true_sequential: found false: a block's linears are always solved stage by stage, q, k and v first and down last\nhint: take it out, or write `propagation: float` for statistics of the float model throughout",
        ),
        (
            "true_sequential: true\npropagation: float",
            "p.yaml:2: true_sequential: means `propagation: sequential`, and `propagation: float` is given as well\nhint: take it out, or write `propagation: sequential`",
        ),
        (
            "load_in_4bit: true\nquant: {bits: 8}",
            "p.yaml:2: load_in_4bit: means `quant.bits: 4`, and `quant.bits: 8` is given as well\nhint: take it out, or write `quant: {bits: 4}`",
        ),
        (
            "output_dir: my/out",
            "p.yaml:2: output_dir: found `my/out`: where results go is told when the program starts, not in the file\nhint: take it out, and run `halfbyte run FILE --out my/out`",
        ),
        (
            "iters: 200",
            "p.yaml:2: iters: found 200: it is a setting of AutoRound's rounding by gradient, which halfbyte does not do\nhint: take it out; `recipe: best` is the lowest loss here, and `tune: {epochs: 1}` tunes scales by gradient",
        ),
        (
            "quant: {actorder: some}",
            "p.yaml:2: quant.actorder: found `some`, wanted weight, static, group, dynamic, none, true or false\nhint: write one of these, or take the key out",
        ),
    ]);
}

#[test]
fn formats_are_read_by_all_their_names() {
    check_read(&[
        ("export: gptq", "export: [{format: gptq}]"),
        (
            "export: [gptq, awq]",
            "export: [{format: gptq}, {format: awq}]",
        ),
        ("export: {format: gptq}", "export: [{format: gptq}]"),
        (
            "export: auto_gptq,auto_awq",
            "export: [{format: gptq}, {format: awq}]",
        ),
        (
            "export: [gptq, {format: pack-quantized, out: ct}]",
            "export: [{format: gptq}, {format: compressed-tensors, out: ct}]",
        ),
        ("version: GEMM", "export: [{format: awq}]"),
        ("checkpoint_format: gptq_v2", "export: [{format: gptq_v2}]"),
        (
            "quant: {checkpoint_format: gptq}",
            "export: [{format: gptq}]",
        ),
        (
            "quant: {version: gemm}\nmethod: AWQ",
            "method: awq\nexport: [{format: awq}]",
        ),
    ]);
    check_refused(&[
        (
            "export: marlin",
            "p.yaml:2: export: `marlin` is no format that halfbyte writes\nhint: write `gptq`, which such readers load and repack",
        ),
        (
            "export: [gptq, exl3]",
            "p.yaml:2: export.1: `exl3` is no format that halfbyte writes\nhint: use compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes",
        ),
        (
            "export: gguf:q4_k_m",
            "p.yaml:2: export: `gguf` is known, but not in this version\nhint: use compressed-tensors, gptq, gptq_v2, awq, int-quantized or bitsandbytes",
        ),
        (
            "version: GEMV",
            "p.yaml:2: version: found `GEMV`: of AWQ's layouts the GEMM one is written, which every reader takes\nhint: write `version: GEMM`, or `export: [{format: awq}]`",
        ),
        (
            "checkpoint_format: gptq\nexport: [{format: awq}]",
            "p.yaml:2: checkpoint_format: sets `export`, which is given as well\nhint: keep `export`",
        ),
    ]);
}

#[test]
fn gptqmodels_dynamic_keeps_its_order() {
    let pipeline = parse(&whole(
        "quant:
  dynamic:
    '+:.*\\.18\\..*gate.*': {bits: 8, group_size: 64}
    '.*\\.19\\..*gate.*': {bits: 3}
    '-:.*\\.20\\..*gate.*': {}
    '-:.*\\.21\\.':
    '+:.*\\.22\\..*gate.*': {}
    '-:.*gate.*': {}
    '-:re': {}
",
    ))
    .unwrap();
    let of = |module: &str| match pipeline.treatment(module) {
        Treatment::Keep => "kept".to_owned(),
        Treatment::Quantize(scheme) => {
            format!("{} {}", scheme.bits(), scheme.group_size().as_i64())
        }
    };
    for (module, expected) in [
        ("model.layers.18.mlp.gate_proj", "8 64"),
        ("model.layers.19.mlp.gate_proj", "3 128"),
        ("model.layers.20.mlp.gate_proj", "kept"),
        ("model.layers.21.mlp.up_proj", "kept"),
        ("model.layers.22.mlp.gate_proj", "4 128"),
        ("model.layers.17.mlp.gate_proj", "kept"),
        ("model.layers.17.mlp.up_proj", "4 128"),
        ("re.mlp.up_proj", "kept"),
        ("model.re.up_proj", "4 128"),
    ] {
        assert_eq!(of(module), expected, "{module}");
    }
    check_notes(&[(
        "dynamic: {'-:.*q_proj': {}, '+:.*k_proj': {bits: 8}}",
        &[
            "p.yaml:2: `dynamic.-:.*q_proj` is read as `rules.0: {match: re:.*q_proj, skip: true}`",
            "p.yaml:2: `dynamic.+:.*k_proj` is read as `rules.1: {match: re:.*k_proj, bits: 8}`",
        ],
    )]);
    check_refused(&[
        (
            "dynamic:\n  '+:.*(?!down)': {bits: 8}",
            "p.yaml:3: dynamic.+:.*(?!down): `re:.*(?!down)` is not a regular expression: look-around, including look-ahead and look-behind, is not supported\nhint: without `re:` the pattern is a name with `*` and `?`",
        ),
        (
            "dynamic: {'+:a': {bits: 9}}",
            "p.yaml:2: dynamic.+:a.bits: found 9, wanted 2, 3, 4, 5, 6 or 8",
        ),
        (
            "dynamic: {'+:a': {desc_act: true}}",
            "p.yaml:2: dynamic.+:a.desc_act: unknown key\nhint: `desc_act` is `quant.desc_act` here",
        ),
        (
            "dynamic: {'+:a': {bits: 8}}\nrules: [{match: a, bits: 3}]",
            "p.yaml:2: dynamic: sets `rules`, which is given as well\nhint: keep `rules`",
        ),
    ]);
}

#[test]
fn names_left_alone_may_be_parts_of_names() {
    check_read(&[
        (
            "modules_to_not_convert: [lm_head, down_proj]",
            "ignore: [lm_head, 're:.*down_proj']",
        ),
        (
            "modules_to_not_convert: [mlp.gate]",
            "ignore: ['re:.*mlp\\.gate', lm_head]",
        ),
        (
            "fp_layers: 'lm_head,layers.1.'",
            "ignore: [lm_head, 're:.*layers\\.1\\.']",
        ),
        (
            "ignore_layers: [lm_head, 're:.*q_proj', '*.k_proj']",
            "ignore: [lm_head, 're:.*q_proj', '*.k_proj']",
        ),
        ("ignore: lm_head", "ignore: [lm_head]"),
        (
            "layer_config: {self_attn.q_proj: {bits: 8, group_size: 32}, down_proj: {bits: 16}, '.*k_proj$': W8A16}",
            "rules: [{match: '*self_attn.q_proj*', bits: 8, group_size: 32}, {match: '*down_proj*', skip: true}, {match: 're:.*(?:.*k_proj$)', bits: 8, group_size: -1}]",
        ),
    ]);
    check_notes(&[(
        "modules_to_not_convert: [down_proj]",
        &[
            r"p.yaml:2: `modules_to_not_convert` is read as `ignore`, each name matching any part of a module's: `down_proj` as `re:.*down_proj`; `lm_head` stays as it is too",
        ],
    )]);
    check_refused(&[(
        "ignore: [lm_head]\nmodules_to_not_convert: [down_proj]",
        "p.yaml:3: modules_to_not_convert: sets `ignore`, which is given as well\nhint: keep `ignore`",
    )]);
}

#[test]
fn blocks_of_other_tools_are_read_as_a_whole() {
    check_read(&[
        // GPTQModel's quantize_config.json
        (
            "quantization_config: {bits: 4, dynamic: {'-:.*v_proj': {}}, group_size: 64, desc_act: false, sym: true, lm_head: false, quant_method: gptq, checkpoint_format: gptq, format: gptq, pack_dtype: int32, static_groups: false, damp_percent: 0.05, damp_auto_increment: 0.01, true_sequential: true, meta: {quantizer: [\"gptqmodel:7.0\"]}, model_name_or_path: null, model_file_base_name: model}",
            "quant: {group_size: 64, desc_act: false, static_groups: false, damp_percent: 0.05}\nrules: [{match: 're:.*v_proj', skip: true}]\nexport: [{format: gptq}]",
        ),
        // AutoAWQ's quant_config
        (
            "quant_config: {zero_point: true, q_group_size: 128, w_bit: 4, version: GEMM}\nmethod: awq",
            "method: awq\nquant: {sym: false}\nexport: [{format: awq}]",
        ),
        // transformers' AWQ
        (
            "quantization_config: {quant_method: awq, bits: 4, group_size: 64, zero_point: true, version: gemm, backend: auto, do_fuse: false, modules_to_not_convert: null}",
            "method: awq\nquant: {group_size: 64, sym: false}\nexport: [{format: awq}]",
        ),
        // transformers' BitsAndBytesConfig
        (
            "quantization_config: {load_in_4bit: true, load_in_8bit: false, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true, bnb_4bit_compute_dtype: bfloat16, llm_int8_skip_modules: [lm_head], llm_int8_threshold: 6.0, quant_method: bitsandbytes}",
            "method: nf4\nquant: {group_size: 64, double_quant: true}\nexport: [{format: bitsandbytes}]",
        ),
        (
            "load_in_4bit: true",
            "method: fp4\nquant: {group_size: 64, double_quant: false}\nexport: [{format: bitsandbytes}]",
        ),
        // compressed-tensors
        (
            "quantization_config: {quant_method: compressed-tensors, format: pack-quantized, quantization_status: compressed, global_compression_ratio: null, kv_cache_scheme: null, version: 0.12.2, ignore: [lm_head], config_groups: {group_0: {targets: [Linear], weights: {num_bits: 4, type: int, symmetric: true, strategy: group, group_size: 32, dynamic: false, observer: minmax, actorder: weight, observer_kwargs: {}, block_structure: null}, input_activations: null, output_activations: null, format: pack-quantized}}}",
            "quant: {group_size: 32}",
        ),
        // llm-compressor's recipes
        (
            "default_stage:\n  default_modifiers:\n    GPTQModifier:\n      scheme: W4A16\n      targets: [Linear]\n      ignore: [lm_head, 're:.*gate$']\n      dampening_frac: 0.01\n      block_size: 128\n      actorder: static\n",
            "quant: {damp_percent: 0.01}\nignore: [lm_head, 're:.*gate$']",
        ),
        (
            "recipe: {quant_stage: {quant_modifiers: {AWQModifier: {ignore: [lm_head], duo_scaling: both, n_grid: 20, config_groups: {group_0: {targets: [Linear], weights: {num_bits: 4, type: int, symmetric: false, strategy: channel, actorder: null}}}}}}}",
            "method: awq\nquant: {sym: false, group_size: -1, desc_act: false}",
        ),
        (
            "AWQModifier:\nGPTQModifier: {scheme: W4A16, targets: Linear}",
            "method: awq+gptq",
        ),
        (
            "QuantizationModifier: {scheme: W8A16, ignore: lm_head}",
            "method: rtn\nquant: {bits: 8, group_size: -1}",
        ),
        (
            "config_groups: {a: {targets: ['re:.*down_proj', model.x], weights: {num_bits: 8, group_size: 64}}, b: {targets: [Linear], weights: {num_bits: 4}}}",
            "rules: [{match: 're:(?:(?:.*down_proj)|model\\.x$)', bits: 8, group_size: 64}]",
        ),
        (
            "config_groups: {a: {targets: ['re:.*down_proj'], weights: {num_bits: 8}}}",
            "rules: [{match: 're:.*down_proj', bits: 8}, {match: '*', skip: true}]",
        ),
        // AutoRound
        (
            "quantization_config: {bits: 4, group_size: 128, sym: true, nsamples: 64, seqlen: 256, data_type: int, act_bits: 16, seed: 7, packing_format: 'auto_round:auto_gptq'}",
            "calibration: {num_samples: 64, sequence_length: 256, seed: 7}\nexport: [{format: gptq}]",
        ),
    ]);
    check_refused(&[
        (
            "quantization_config: {bits: 3}\nquant: {bits: 4}",
            "p.yaml:2: quantization_config.bits: sets `quant.bits`, which is given as well: 4 there, 3 here\nhint: keep `quant.bits`",
        ),
        (
            "quantization_config:\n  load_in_8bit: true",
            "p.yaml:3: quantization_config.load_in_8bit: found true: LLM.int8() decides while the model runs which columns stay in 16 bits, and no file says so\nhint: write `method: absmax`, `quant: {bits: 8, group_size: -1}` and `export: [{format: int-quantized}]` for 8 bits by the largest magnitude of a row",
        ),
        (
            "quantization_config: {bits: 4, flavour: 3}",
            "p.yaml:2: quantization_config.flavour: unknown key\nhint: take it out; what halfbyte knows is printed by `halfbyte schema`",
        ),
        (
            "default_stage:\n  default_modifiers:\n    SmoothQuantModifier: {smoothing_strength: 0.8}",
            "p.yaml:4: default_stage.default_modifiers.SmoothQuantModifier: halfbyte has no such step\nhint: take it out; GPTQModifier, AWQModifier and QuantizationModifier are known",
        ),
        (
            "config_groups: {group_0: {targets: [Linear], weights: {num_bits: 4}, input_activations: {num_bits: 8}}}",
            "p.yaml:2: config_groups.group_0.input_activations: found a section: only weights are quantized\nhint: take it out",
        ),
        (
            "config_groups: {group_0: {targets: [Linear], weights: {num_bits: 4, type: float}}}",
            "p.yaml:2: config_groups.group_0.weights.type: found `float`: weights are whole numbers on a grid here, or the 16 levels of nf4 and fp4\nhint: take it out; for nf4 write `method: nf4` and `export: [{format: bitsandbytes}]`",
        ),
        (
            "quant_method: auto-round",
            "p.yaml:2: quant_method: found `auto-round`: AutoRound's rounding by gradient is no method here\nhint: write `method: gptq`, with `recipe: best` for the lowest loss",
        ),
    ]);
}

#[test]
fn models_and_texts_are_read_in_their_short_forms_and_by_address() {
    check_read(&[
        ("model: org/name", "model: {source: org/name}"),
        ("model: embedded:tiny", "model: {source: embedded:tiny}"),
        (
            "model_name_or_path: org/name@v1",
            "model: {source: org/name@v1}",
        ),
        (
            "model: https://huggingface.co/org/name/tree/v1.0",
            "model: {source: org/name, revision: v1.0}",
        ),
        (
            "model: {source: 'hf://org/name'}",
            "model: {source: org/name}",
        ),
        (
            "calibration: {sources: Cargo.toml}",
            "calibration: {sources: [{path: Cargo.toml}]}",
        ),
        (
            "calibration: {sources: [Cargo.toml, {path: src}]}",
            "calibration: {sources: [{path: Cargo.toml}, {path: src}]}",
        ),
        (
            "calibration: {sources: {path: src}}",
            "calibration: {sources: [{path: src}]}",
        ),
        (
            "calibration: Cargo.toml",
            "calibration: {sources: [{path: Cargo.toml}]}",
        ),
        (
            "calibration: {path: src, nsamples: 64}",
            "calibration: {sources: [{path: src}], num_samples: 64}",
        ),
        (
            "calibration_dataset: org/data",
            "calibration: {sources: [{dataset: org/data}]}",
        ),
        (
            "dataset: org/data\ntext_column: body",
            "calibration: {sources: [{dataset: org/data, text_column: body}]}",
        ),
        (
            "dataset: https://huggingface.co/datasets/org/data/tree/v2",
            "calibration: {sources: [{dataset: org/data@v2}]}",
        ),
        (
            "calibration: {sources: [{path: 'hf://datasets/org/data'}]}",
            "calibration: {sources: [{dataset: org/data}]}",
        ),
        (
            "calibration: {calib_data: pileval}",
            "calibration: {sources: [{dataset: mit-han-lab/pile-val-backup}]}",
        ),
        (
            "dataset: Cargo.toml",
            "calibration: {sources: [{path: Cargo.toml}]}",
        ),
    ]);
    check_refused(&[
        (
            "model: https://example.com/model",
            "p.yaml:1: model: `https://example.com/model` is an address, and of those only the hub's are known\nhint: download it and give its path, or write a hub id `org/name`",
        ),
        (
            "quant: {dataset: org/data}",
            "p.yaml:2: quant.dataset: unknown key\nhint: `dataset` is `calibration.sources` here",
        ),
        (
            "dataset: wikitext2",
            "p.yaml:2: dataset: `wikitext2` is a name that other tools have for a data set\nhint: download its train split and write `path: FILE`: `Salesforce/wikitext` as a whole holds the text that people score on, too",
        ),
        (
            "calibration: {sources: nowhere.txt}",
            "p.yaml:2: calibration.sources: nothing is at `base/nowhere.txt` or at `nowhere.txt`\nhint: paths are taken from the pipeline file's folder, then from the working folder",
        ),
        (
            "calibration: {text_column: body}",
            "p.yaml:2: calibration.text_column: there is no source that it tells about\nhint: write `calibration: {sources: [{dataset: org/name, text_column: body}]}`",
        ),
        (
            "dataset: org/a\ncalibration: {sources: [{path: src}]}",
            "p.yaml:2: dataset: sets `calibration.sources`, which is given as well\nhint: keep `calibration.sources`",
        ),
    ]);
}

#[test]
fn values_and_keys_are_read_in_other_letters() {
    check_read(&[
        ("quant: {group_size: '64'}", "quant: {group_size: 64}"),
        (
            "quant: {group_size: per_channel}",
            "quant: {group_size: -1}",
        ),
        ("quant: {sym: 'false'}", "quant: {sym: false}"),
        ("quant: {bits: 3bit}", "quant: {bits: 3}"),
        ("quant: {bits: int8}", "quant: {bits: 8}"),
        ("quant: {bits: 3.0}", "quant: {bits: 3}"),
        (
            "quant: {damp_percent: '0.05'}",
            "quant: {damp_percent: 0.05}",
        ),
        (
            "quant: {groupSize: 64, desc-act: false}",
            "quant: {group_size: 64, desc_act: false}",
        ),
        ("Quant: {wBit: 3}", "quant: {bits: 3}"),
        ("method: RTN", "method: rtn"),
        ("quant: {bits: 3, w_bit: '3'}", "quant: {bits: 3}"),
        (
            "rules: [{regex: '.*a', num-bits: '8'}]",
            "rules: [{match: 're:.*a', bits: 8}]",
        ),
    ]);
    assert!(
        parse(&whole("quant: {group_size: null, w_bit: null, scheme: ~}"))
            .unwrap()
            .notices
            .is_empty()
    );
    check_notes(&[
        (
            "quant: {group_size: '64'}",
            &["p.yaml:2: `quant.group_size: '64'` is read as `64`"],
        ),
        (
            "quant: {groupSize: 64}",
            &["p.yaml:2: `quant.groupSize` is read as `quant.group_size`"],
        ),
        (
            "quant: {zero_point: true}",
            &["p.yaml:2: `quant.zero_point: true` is read as `quant.sym: false`"],
        ),
    ]);
    check_refused(&[
        (
            "quant: {bits: 9bit}",
            "p.yaml:2: quant.bits: found 9, wanted 2, 3, 4, 5, 6 or 8",
        ),
        (
            "quant: {bits: 3.5}",
            "p.yaml:2: quant.bits: found 3.5, wanted 2, 3, 4, 5, 6 or 8",
        ),
        (
            "quant: {wbits: 3, w_bit: 4}",
            "p.yaml:2: quant.w_bit: sets `bits`, which `quant.wbits` gives as well: 3 there, 4 here\nhint: keep one of the two",
        ),
    ]);
}

#[test]
fn overrides_take_other_tools_spellings_too() {
    let set = |text: &str, overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Pipeline::parse_with(&whole(text), "p.yaml", Path::new("base"), &overrides)
    };
    for (text, given, ours) in [
        (
            "quant: {bits: 3, group_size: 32}",
            "scheme=W8A16",
            "quant: {bits: 8, group_size: 32}",
        ),
        (
            "quant: {desc_act: false}",
            "quant.w-bit=3",
            "quant: {bits: 3, desc_act: false}",
        ),
        (
            "quant: {desc_act: false}",
            "quantization_config={bits: 3}",
            "quant: {bits: 3, desc_act: false}",
        ),
        ("", "export=gptq", "export: [{format: gptq}]"),
        (
            "",
            "model=https://huggingface.co/org/name",
            "model: {source: org/name}",
        ),
        (
            "calibration: {num_samples: 64}",
            "calibration=Cargo.toml",
            "calibration: {num_samples: 64, sources: [{path: Cargo.toml}]}",
        ),
        (
            "rules: [{match: b, bits: 8}]",
            "dynamic={'-:a': }",
            "rules: [{match: 're:a', skip: true}]",
        ),
        (
            "rules: [{match: b, bits: 8}]",
            "rules.0.num_bits='6'",
            "rules: [{match: b, bits: 6}]",
        ),
    ] {
        let found = set(text, &[given]).unwrap_or_else(|e| panic!("{given}: {}", message(&e)));
        assert_eq!(
            found.to_value(),
            parse(&whole(ours)).unwrap().to_value(),
            "{given}"
        );
        assert!(
            found.notices[0].starts_with("--set "),
            "{:?}",
            found.notices
        );
    }
    for (given, expected) in [
        (
            "scheme=NVFP4",
            "--set scheme: found `NVFP4`: weights are whole numbers on a grid here, or the 16 levels of nf4 and fp4 as bitsandbytes stores them\nhint: write `quant: {bits: 4, group_size: 32}`, or `method: nf4` with `export: [{format: bitsandbytes}]`",
        ),
        (
            "lm_head=true",
            "--set lm_head: found true: only the linears of the decoder blocks are quantized, and lm_head stays as it is\nhint: write `lm_head: false`, or take it out",
        ),
        (
            "save_dir=x",
            "--set save_dir: found `x`: where results go is told when the program starts, not in the file\nhint: take it out, and run `halfbyte run FILE --out x`",
        ),
    ] {
        assert_eq!(message(&set("", &[given]).unwrap_err()), expected);
    }
}

#[test]
fn every_spelling_is_lower_case_and_known_once_in_a_place() {
    let mut seen = std::collections::BTreeSet::new();
    for spelling in super::synonyms::SPELLINGS {
        for theirs in spelling.theirs {
            assert_eq!(super::translate::snake(theirs), *theirs);
            for at in spelling.at {
                assert!(
                    seen.insert((at, theirs)),
                    "{theirs} is there twice in `{at}`"
                );
            }
        }
    }
}

#[test]
fn no_spelling_is_dropped_in_silence_whatever_its_value() {
    let values = [
        "true", "0", "-1", "4.5", "word", "''", "[]", "[a, b]", "[[]]", "{}", "{a: {}}", "{0: a}",
    ];
    // those that are ours, too, in one of their shapes
    let own = [
        "export",
        "ignore",
        "source",
        "sources",
        "evaluate",
        "calibration",
        "path",
        "dataset",
        "format",
        "model",
        "recipe",
    ];
    let mut silent = String::new();
    for spelling in super::synonyms::SPELLINGS {
        for theirs in spelling
            .theirs
            .iter()
            .filter(|theirs| !own.contains(theirs))
            .take(1)
        {
            for at in spelling.at {
                for value in values {
                    let key = format!("{theirs}: {value}");
                    let text = match *at {
                        "" => whole(&key),
                        "model" => format!("model: {{source: embedded:tiny, {key}}}"),
                        "rules.*" => whole(&format!("rules: [{{match: a, bits: 3, {key}}}]")),
                        "export.*" => whole(&format!("export: [{{{key}}}]")),
                        "calibration.sources.*" => {
                            whole(&format!("calibration: {{sources: [{{path: src, {key}}}]}}"))
                        }
                        super::synonyms::BLOCK => whole(&format!("quantization_config: {{{key}}}")),
                        section => whole(&format!("{section}: {{{key}}}")),
                    };
                    if parse(&text).is_ok_and(|pipeline| pipeline.notices.is_empty()) {
                        silent += &format!("{text}\n");
                    }
                    // and once more as an override: told or refused, and no panic
                    let key = match *at {
                        "" | super::synonyms::BLOCK => format!("{theirs}={value}"),
                        at => format!("{}.{theirs}={value}", at.replace('*', "0")),
                    };
                    let set = Pipeline::parse_with(
                        MODEL,
                        "p.yaml",
                        Path::new("base"),
                        std::slice::from_ref(&key),
                    );
                    if set.is_ok_and(|pipeline| pipeline.notices.is_empty()) {
                        silent += &format!("--set {key}\n");
                    }
                }
            }
        }
    }
    assert!(silent.is_empty(), "{silent}");
}
