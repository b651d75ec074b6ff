//! Configurations written and read back, and those that other tools write.

use halfbyte_quant::{Codebook, CodebookScheme};
use serde_json::json;

use super::*;
use crate::{ConfigNotes, ScaleDtype};

fn scheme(bits: u8, group_size: i64, sym: bool) -> Scheme {
    Scheme::new(bits, GroupSize::from_i64(group_size).unwrap(), sym).unwrap()
}

fn notes() -> ConfigNotes {
    ConfigNotes {
        version: "1.2.3".into(),
        damp_percent: None,
        true_sequential: true,
        static_groups: true,
        dtype: ScaleDtype::BF16,
        meta: Map::new(),
    }
}

fn quantization_config(
    format: Format,
    modules: &[(String, Option<Scheme>)],
    ignore: &[String],
    notes: &ConfigNotes,
) -> Value {
    let coded =
        |(name, scheme): &(String, Option<Scheme>)| (name.clone(), scheme.map(Coding::Grid));
    let modules: Vec<_> = modules.iter().map(coded).collect();
    crate::quantization_config(format, &modules, ignore, notes)
}

/// Two blocks of three linears: all alike but for what `change` says.
fn modules(change: impl Fn(&str) -> Option<Scheme>) -> Vec<(String, Option<Scheme>)> {
    let mut names = Vec::new();
    for block in 0..2 {
        for linear in [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.down_proj",
        ] {
            names.push(format!("model.layers.{block}.{linear}"));
        }
    }
    names
        .into_iter()
        .map(|name| (name.clone(), change(&name)))
        .collect()
}

fn check_read_back(format: Format, modules: &[(String, Option<Scheme>)]) {
    let config = quantization_config(format, modules, &["lm_head".to_string()], &notes());
    let layout = read_quantization_config(&config).unwrap();
    assert_eq!(layout.format(), format);
    for (name, scheme) in modules {
        assert_eq!(layout.scheme_for(name), *scheme, "{name} in {config}");
    }
    assert_eq!(layout.scheme_for("lm_head"), None);
}

#[test]
fn a_uniform_gptq_config_is_the_plain_object() {
    let config = quantization_config(
        Format::Gptq,
        &modules(|_| Some(scheme(4, 128, true))),
        &["lm_head".to_string()],
        &notes(),
    );
    assert_eq!(
        config,
        json!({
            "quant_method": "gptq", "method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true,
            "format": "gptq", "checkpoint_format": "gptq", "lm_head": false, "true_sequential": true,
            "static_groups": true, "pack_dtype": "int32", "meta": {"quantizer": ["halfbyte:1.2.3"]},
        })
    );
    let keys: Vec<&String> = config.as_object().unwrap().keys().collect();
    assert_eq!(keys[0], "quant_method");
}

#[test]
fn a_gptq_config_tells_the_damping_only_where_one_was_asked_for() {
    let config = |damp_percent| {
        let notes = ConfigNotes {
            damp_percent,
            ..notes()
        };
        let modules = modules(|_| Some(scheme(4, 128, true)));
        quantization_config(Format::Gptq, &modules, &[], &notes)
    };
    assert_eq!(config(Some(0.05))["damp_percent"], json!(0.05));
    assert_eq!(config(None).get("damp_percent"), None);
}

#[test]
fn compressed_tensors_with_zero_points_ask_transformers_to_turn_them_back_at_loading() {
    let config = |sym: fn(&str) -> bool| {
        let modules = modules(|name| Some(scheme(4, 64, sym(name))));
        check_read_back(Format::CompressedTensors, &modules);
        quantization_config(Format::CompressedTensors, &modules, &[], &notes())
    };
    assert_eq!(config(|_| false)["dequantize"], json!(true));
    assert_eq!(
        config(|name| name.contains("down"))["dequantize"],
        json!(true)
    );
    assert_eq!(config(|_| true).get("dequantize"), None);
}

#[test]
fn gptq_exceptions_are_exact_patterns_and_name_fused_linears_too() {
    let config = quantization_config(
        Format::GptqV2,
        &modules(|name| match name {
            "model.layers.0.mlp.down_proj" => None,
            name if name.starts_with("model.layers.1.self_attn") => Some(scheme(8, -1, true)),
            _ => Some(scheme(4, 64, false)),
        }),
        &[],
        &notes(),
    );
    let eight = json!({"bits": 8, "group_size": -1, "sym": true, "desc_act": false});
    assert_eq!(
        config["dynamic"].to_string(),
        json!({
            r"-:^model\.layers\.0\.mlp\.down_proj$": {},
            r"+:^model\.layers\.1\.self_attn\.q_proj$": eight,
            r"+:^model\.layers\.1\.self_attn\.qkv_proj$": eight,
            r"+:^model\.layers\.1\.self_attn\.k_proj$": eight,
            r"+:^model\.layers\.1\.self_attn\.v_proj$": eight,
        })
        .to_string()
    );
    // Three modules of each scheme: the first one used is the base.
    assert_eq!(config["bits"], 4);
    assert_eq!(config["checkpoint_format"], "gptq_v2");
    assert_eq!(config["format"], "gptq_v2");
}

#[test]
fn a_uniform_compressed_tensors_config_targets_every_linear_and_lists_the_untouched() {
    let config = quantization_config(
        Format::CompressedTensors,
        &modules(|name| (name != "model.layers.1.mlp.down_proj").then(|| scheme(4, 64, true))),
        &["lm_head".to_string()],
        &notes(),
    );
    assert_eq!(
        config,
        json!({
            "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "global_compression_ratio": null, "kv_cache_scheme": null,
            "ignore": ["model.layers.1.mlp.down_proj", "lm_head"],
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 64, "dynamic": false},
                "input_activations": null, "output_activations": null, "format": "pack-quantized",
            }},
        })
    );
}

#[test]
fn mixed_compressed_tensors_groups_name_their_modules() {
    let config = quantization_config(
        Format::CompressedTensors,
        &modules(|name| {
            Some(if name.ends_with("down_proj") {
                scheme(8, -1, false)
            } else {
                scheme(4, 64, true)
            })
        }),
        &[],
        &notes(),
    );
    let group = &config["config_groups"]["group_1"];
    assert_eq!(
        group["targets"],
        json!([
            "model.layers.0.mlp.down_proj",
            "model.layers.1.mlp.down_proj"
        ])
    );
    assert_eq!(
        group["weights"],
        json!({"num_bits": 8, "type": "int", "symmetric": false, "strategy": "channel", "group_size": null, "dynamic": false})
    );
    assert_eq!(
        config["config_groups"]["group_0"]["targets"]
            .as_array()
            .unwrap()
            .len(),
        6
    );
}

#[test]
fn an_awq_config_is_autoawqs_object() {
    let config = quantization_config(
        Format::Awq,
        &modules(|_| Some(scheme(4, 128, true))),
        &[],
        &notes(),
    );
    assert_eq!(
        config.to_string(),
        r#"{"quant_method":"awq","bits":4,"group_size":128,"zero_point":true,"version":"gemm","modules_to_not_convert":null}"#
    );
    let config = quantization_config(
        Format::Awq,
        &modules(|name| (!name.contains(".1.self_attn")).then(|| scheme(4, 64, false))),
        &["lm_head".to_string()],
        &notes(),
    );
    assert_eq!(
        config["modules_to_not_convert"],
        json!([
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.qkv_proj",
            "model.layers.1.self_attn.k_proj",
            "model.layers.1.self_attn.v_proj",
            "lm_head"
        ])
    );
}

#[test]
fn reads_what_awq_tools_write() {
    let layout = read_quantization_config(&json!({
        "quant_method": "awq", "zero_point": true, "group_size": 128, "bits": 4, "version": "GEMM",
        "modules_to_not_convert": ["visual", "mlp.gate."], "backend": "autoawq", "do_fuse": false,
    }))
    .unwrap();
    assert_eq!(layout.format(), Format::Awq);
    let wanted = Some(scheme(4, 128, false));
    assert_eq!(layout.scheme_for("model.layers.3.mlp.gate_proj"), wanted);
    assert_eq!(layout.scheme_for("model.layers.3.mlp.gate.w"), None);
    assert_eq!(layout.scheme_for("visual.blocks.0.mlp.fc1"), None);
    assert_eq!(layout.scheme_for("lm_head"), None);
    let older = json!({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "gemm"});
    let layout = read_quantization_config(&older).unwrap();
    assert_eq!(layout.scheme_for("a.b"), Some(scheme(4, 64, false)));
}

#[test]
fn configs_read_back_as_they_were_written() {
    // awq is read back as asymmetric whatever was written, and knows one scheme only
    check_read_back(Format::Awq, &modules(|_| Some(scheme(4, 128, false))));
    check_read_back(
        Format::Awq,
        &modules(|name| name.contains(".0.").then(|| scheme(4, -1, false))),
    );
    for format in [Format::CompressedTensors, Format::Gptq, Format::GptqV2] {
        check_read_back(format, &modules(|_| Some(scheme(4, 128, true))));
        check_read_back(
            format,
            &modules(|name| name.contains(".0.").then(|| scheme(3, 32, true))),
        );
        check_read_back(
            format,
            &modules(|name| match name {
                "model.layers.0.mlp.down_proj" => None,
                name if name.ends_with("v_proj") => Some(scheme(8, -1, true)),
                _ => Some(scheme(2, 16, true)),
            }),
        );
    }
}

#[test]
fn a_quantized_head_is_said_so() {
    let mut modules = modules(|_| Some(scheme(4, 128, true)));
    modules.push(("lm_head".into(), Some(scheme(8, 128, true))));
    for format in [Format::CompressedTensors, Format::Gptq, Format::GptqV2] {
        let config = quantization_config(format, &modules, &[], &notes());
        let layout = read_quantization_config(&config).unwrap();
        assert_eq!(layout.scheme_for("lm_head"), Some(scheme(8, 128, true)));
    }
}

#[test]
fn reads_what_gptq_tools_write() {
    let layout = read_quantization_config(&json!({
        "bits": 4, "dynamic": {"+:.*\\.1[0-9]\\..*gate_proj": {"bits": 8, "group_size": 32}, "-:.*\\.2\\..*": {}},
        "group_size": 128, "desc_act": false, "sym": true, "lm_head": false, "quant_method": "gptq",
        "checkpoint_format": "gptq", "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.7.0"]},
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.gate_proj", "mlp.up_proj"]],
    }))
    .unwrap();
    assert_eq!(layout.format(), Format::Gptq);
    assert_eq!(
        layout.scheme_for("model.layers.0.mlp.gate_proj"),
        Some(scheme(4, 128, true))
    );
    assert_eq!(
        layout.scheme_for("model.layers.12.mlp.gate_proj"),
        Some(scheme(8, 32, true))
    );
    assert_eq!(layout.scheme_for("model.layers.2.mlp.gate_proj"), None);
    assert_eq!(layout.scheme_for("model.layers.0.mlp.down_proj"), None);
    let older = json!({"bits": 3, "group_size": -1, "desc_act": true, "static_groups": true, "sym": false, "damp_percent": 0.01, "true_sequential": true, "model_name_or_path": null});
    let layout = read_quantization_config(&older).unwrap();
    assert_eq!(layout.scheme_for("a.b"), Some(scheme(3, -1, false)));
    let v2 = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false, "format": "gptq_v2"});
    assert_eq!(
        read_quantization_config(&v2).unwrap().format(),
        Format::GptqV2
    );
}

#[test]
fn reads_what_compressed_tensors_tools_write() {
    let group = |targets: Value, bits: u8| {
        json!({
            "format": "pack-quantized", "input_activations": null, "output_activations": null, "targets": targets,
            "weights": {
                "actorder": "static", "block_structure": null, "dynamic": false, "group_size": 128, "num_bits": bits,
                "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": true, "type": "int",
            },
        })
    };
    let layout = read_quantization_config(&json!({
        "config_groups": {
            "group_0": group(json!(["Linear"]), 4),
            "group_1": group(json!(["re:.*down_proj"]), 8),
            "group_2": group(json!(["model.layers.0.mlp.down_proj"]), 3),
        },
        "format": "pack-quantized", "ignore": ["lm_head", "re:.*router$"], "quant_method": "compressed-tensors",
        "kv_cache_scheme": null, "quantization_status": "compressed", "version": "0.20.0",
    }))
    .unwrap();
    let bits = |name: &str| layout.scheme_for(name).map(|scheme| scheme.bits());
    assert_eq!(bits("model.layers.0.mlp.up_proj"), Some(4));
    assert_eq!(bits("model.layers.1.mlp.down_proj"), Some(8));
    assert_eq!(bits("model.layers.0.mlp.down_proj"), Some(3));
    assert_eq!(bits("model.layers.0.router"), None);
    assert_eq!(bits("lm_head"), None);
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = |config: Value| read_quantization_config(&config).unwrap_err().to_string();
    assert_eq!(
        error(json!({"quant_method": "aqlm"})),
        "quantization_config.quant_method: \"aqlm\", wanted \"gptq\", \"compressed-tensors\", \"awq\" or \"bitsandbytes\""
    );
    assert_eq!(
        error(json!({})),
        "quantization_config.quant_method: missing, wanted \"gptq\", \"compressed-tensors\", \"awq\" or \"bitsandbytes\""
    );
    assert_eq!(
        error(
            json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin"})
        ),
        "quantization_config.checkpoint_format: \"marlin\", wanted \"gptq\" or \"gptq_v2\""
    );
    assert_eq!(
        error(json!({"quant_method": "gptq", "group_size": 64})),
        "quantization_config.bits: missing, wanted a number of bits"
    );
    assert_eq!(
        error(json!({"quant_method": "gptq", "bits": 7, "group_size": 64})),
        "quantization_config.bits, group_size: bits: 7 is not a width we write; use 2, 3, 4, 5, 6 or 8"
    );
    assert_eq!(
        error(
            json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"-:(?!x)": {}}})
        ),
        "quantization_config.dynamic.-:(?!x): pattern \"(?!x)\" is not a regular expression without look-around"
    );
    let awq = |key: &str, value: Value| {
        let mut config = json!({"quant_method": "awq", "bits": 4, "group_size": 64});
        config[key] = value;
        error(config)
    };
    assert_eq!(
        awq("version", json!("gemv")),
        "quantization_config.version: \"gemv\", wanted \"gemm\""
    );
    assert_eq!(
        awq("bits", json!(3)),
        "quantization_config.bits: 3, wanted 4"
    );
    assert_eq!(
        awq("zero_point", json!(false)),
        "quantization_config.zero_point: false, wanted true"
    );
    assert_eq!(
        awq("group_size", json!(null)),
        "quantization_config.group_size: null, wanted a number of columns, or -1"
    );
    let group = |weights: Value| {
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
    };
    assert_eq!(
        error(group(
            json!({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 16})
        )),
        "quantization_config.config_groups.group_0.weights.type: \"float\", wanted \"int\""
    );
    assert_eq!(
        error(group(
            json!({"num_bits": 8, "type": "int", "strategy": "tensor"})
        )),
        "quantization_config.config_groups.group_0.weights.strategy: \"tensor\", wanted \"group\" or \"channel\""
    );
    let mut int8 = group(json!({"num_bits": 8, "type": "int", "strategy": "channel"}));
    int8["format"] = json!("float-quantized");
    assert_eq!(
        error(int8),
        "quantization_config.format: \"float-quantized\", wanted \"pack-quantized\" or \"int-quantized\""
    );
}

#[test]
fn the_config_of_codebooks_leaves_blocks_to_the_tensors() {
    let nf4 = Coding::Codebook(CodebookScheme {
        codebook: Codebook::Nf4,
        block_size: 64,
        double_quant: true,
    });
    let modules = [
        ("model.layers.0.mlp.up_proj".to_string(), Some(nf4)),
        ("model.layers.0.mlp.down_proj".to_string(), None),
    ];
    let ignore = ["lm_head".to_string()];
    let config = crate::quantization_config(Format::Bitsandbytes, &modules, &ignore, &notes());
    assert_eq!(config["bnb_4bit_quant_type"], "nf4");
    assert_eq!(config["bnb_4bit_use_double_quant"], true);
    assert_eq!(config["bnb_4bit_compute_dtype"], "bfloat16");
    assert_eq!(
        config["llm_int8_skip_modules"],
        json!(["model.layers.0.mlp.down_proj", "lm_head"])
    );
    let layout = read_quantization_config(&config).unwrap();
    assert_eq!(layout.format(), Format::Bitsandbytes);
    let nothing = layout.coding_for("model.layers.0.mlp.up_proj", |_| None);
    assert_eq!(nothing, Ok(None));
}
