use halfbyte_quant::{CodebookScheme, Coding, GroupSize, Scheme};
use serde_json::{Map, Value, json};

use crate::bitsandbytes::CodebookConfig;
use crate::{Format, ScaleDtype};

/// What a configuration says beside the schemes.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigNotes {
    /// Version of this program; gptq files name their maker `halfbyte:VERSION`.
    pub version: String,
    /// Damping asked for, as a fraction of the mean diagonal; `None` where no single number was, which leaves the key out.
    pub damp_percent: Option<f64>,
    /// Whether later linears of a block saw the earlier ones already quantized.
    pub true_sequential: bool,
    /// Whether scales were fixed before the columns were coded.
    pub static_groups: bool,
    /// The model's own type: what bitsandbytes' readers turn weights back to before products.
    pub dtype: ScaleDtype,
    /// Further entries of gptq's free-form `meta`; other formats have no room for them.
    pub meta: Map<String, Value>,
}

/// Linears that some readers run as one, by the last part of their names, and the name that they give the whole.
pub(crate) const FUSED: [(&[&str], &str); 2] = [
    (&["q_proj", "k_proj", "v_proj"], "qkv_proj"),
    (&["gate_proj", "up_proj"], "gate_up_proj"),
];

/// The `quantization_config` object of config.json, and of [`Format::config_file`] where there is one.
///
/// `modules` are all linears of the model in its own order, each with how it is stored or `None` where it stays as it was
/// (lm_head too, if it has a weight); `ignore` names further modules to list as untouched (a tied lm_head).
/// Mixed schemes become gptq's `dynamic` map or compressed-tensors' config groups, by exact module names. awq's config
/// has room for one scheme only: it is the one most modules have, and [`Format::supports_together`] refuses the others.
pub fn quantization_config(
    format: Format,
    modules: &[(String, Option<Coding>)],
    ignore: &[String],
    notes: &ConfigNotes,
) -> Value {
    let grids: Vec<(String, Option<Scheme>)> = modules
        .iter()
        .map(|(name, coding)| (name.clone(), coding.and_then(|coding| coding.grid())))
        .collect();
    match format {
        Format::Gptq | Format::GptqV2 => gptq(format, &grids, ignore, notes),
        Format::CompressedTensors => compressed_tensors("pack-quantized", &grids, ignore),
        Format::IntQuantized => compressed_tensors("int-quantized", &grids, ignore),
        Format::Awq => awq(&grids, ignore),
        Format::Bitsandbytes => bitsandbytes(modules, ignore, notes),
    }
}

/// One codebook for all, which [`Format::supports_together`] sees to. Block sizes stand with the weights.
fn bitsandbytes(
    modules: &[(String, Option<Coding>)],
    ignore: &[String],
    notes: &ConfigNotes,
) -> Value {
    let codebook = modules.iter().find_map(|(_, coding)| match coding {
        Some(Coding::Codebook(scheme)) => Some(*scheme),
        _ => None,
    });
    let Some(CodebookScheme {
        codebook,
        double_quant,
        ..
    }) = codebook
    else {
        return Value::Null;
    };
    let skip = untouched(modules, ignore);
    CodebookConfig {
        codebook,
        double_quant,
        compute_dtype: notes.dtype,
        skip: skip.into_iter().map(String::from).collect(),
    }
    .to_value()
}

fn gptq(
    format: Format,
    modules: &[(String, Option<Scheme>)],
    ignore: &[String],
    notes: &ConfigNotes,
) -> Value {
    let base = usual_scheme(modules);
    let lm_head = modules
        .iter()
        .any(|(name, scheme)| is_head(name) && scheme.is_some());
    let mut meta = Map::new();
    meta.insert(
        "quantizer".into(),
        json!([format!("halfbyte:{}", notes.version)]),
    );
    meta.extend(notes.meta.clone());
    // `method` and `format` are the spellings of newer writers, `quant_method` and `checkpoint_format` of older ones.
    let mut config = json!({
        "quant_method": "gptq",
        "method": "gptq",
        "bits": base.map(|s| s.bits()),
        "group_size": base.map(|s| s.group_size().as_i64()),
        "desc_act": false,
        "sym": base.map(|s| s.sym()),
        "format": format.as_str(),
        "checkpoint_format": format.as_str(),
        "lm_head": lm_head,
        "true_sequential": notes.true_sequential,
        "static_groups": notes.static_groups,
        "pack_dtype": "int32",
        "meta": meta,
    });
    if let Some(damp_percent) = notes.damp_percent {
        config["damp_percent"] = json!(damp_percent);
    }
    let dynamic = dynamic(modules, ignore, base);
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    config
}

/// Exceptions to the base scheme, first match wins: `-:` leaves a module as it was, `+:` changes its scheme.
fn dynamic(
    modules: &[(String, Option<Scheme>)],
    ignore: &[String],
    base: Option<Scheme>,
) -> Map<String, Value> {
    let also_ignored = ignore
        .iter()
        .filter(|name| modules.iter().all(|(known, _)| known != *name))
        .map(|name| (name.clone(), None));
    let mut map = Map::new();
    for (name, scheme) in modules.iter().cloned().chain(also_ignored) {
        // The head is ruled by its own key.
        if scheme == base || (scheme.is_none() && is_head(&name)) {
            continue;
        }
        for name in std::iter::once(name.clone()).chain(fused_name(&name, scheme, modules)) {
            let pattern = format!("^{}$", regex::escape(&name));
            match scheme {
                None => map.insert(format!("-:{pattern}"), json!({})),
                Some(scheme) => map.insert(
                    format!("+:{pattern}"),
                    json!({
                        "bits": scheme.bits(),
                        "group_size": scheme.group_size().as_i64(),
                        "sym": scheme.sym(),
                        "desc_act": false,
                    }),
                ),
            };
        }
    }
    map
}

/// The name under which a reader that fuses q, k, v or gate, up looks for their exception, if all of them agree.
fn fused_name(
    name: &str,
    scheme: Option<Scheme>,
    modules: &[(String, Option<Scheme>)],
) -> Option<String> {
    let (parent, leaf) = name.rsplit_once('.')?;
    let (shards, fused) = FUSED.iter().find(|(shards, _)| shards[0] == leaf)?;
    shards
        .iter()
        .all(|shard| modules.contains(&(format!("{parent}.{shard}"), scheme)))
        .then(|| format!("{parent}.{fused}"))
}

fn compressed_tensors(
    format: &str,
    modules: &[(String, Option<Scheme>)],
    ignore: &[String],
) -> Value {
    let schemes = schemes(modules);
    let uniform = schemes.len() == 1;
    let all_sym = schemes.iter().all(|(scheme, _)| scheme.sym());
    let mut groups = Map::new();
    for (index, (scheme, names)) in schemes.into_iter().enumerate() {
        let targets = if uniform { vec!["Linear"] } else { names };
        let (strategy, group_size) = match scheme.group_size() {
            GroupSize::Columns(n) => ("group", json!(n)),
            GroupSize::Channel | GroupSize::Tensor => ("channel", Value::Null),
        };
        groups.insert(
            format!("group_{index}"),
            json!({
                "targets": targets,
                "weights": {
                    "num_bits": scheme.bits(),
                    "type": "int",
                    "symmetric": scheme.sym(),
                    "strategy": strategy,
                    "group_size": group_size,
                    "dynamic": false,
                },
                "input_activations": null,
                "output_activations": null,
                "format": format,
            }),
        );
    }
    let mut config = json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "ignore": untouched(modules, ignore),
        "config_groups": groups,
    });
    // transformers 5.24 cannot place packed zero points in a model that stays compressed, and reads them where it is told
    // to turn the weights back at loading. vLLM does not look at this key.
    if !all_sym {
        config["dequantize"] = json!(true);
    }
    config
}

/// Zero points are always there, and readers take the names in `modules_to_not_convert` for parts of module names.
/// SGLang asks by the name of the fused linear, so that stands there too where all its shards are untouched.
fn awq(modules: &[(String, Option<Scheme>)], ignore: &[String]) -> Value {
    let base = usual_scheme(modules);
    let mut names: Vec<String> = Vec::new();
    for name in untouched(modules, ignore) {
        names.push(name.to_string());
        names.extend(fused_name(name, None, modules));
    }
    json!({
        "quant_method": "awq",
        "bits": base.map(|s| s.bits()),
        "group_size": base.map(|s| s.group_size().as_i64()),
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": if names.is_empty() { Value::Null } else { json!(names) },
    })
}

/// Modules that stay as they were, each once.
fn untouched<'a, C>(modules: &'a [(String, Option<C>)], ignore: &'a [String]) -> Vec<&'a str> {
    let mut untouched: Vec<&str> = Vec::new();
    let unquantized = modules
        .iter()
        .filter(|(_, coding)| coding.is_none())
        .map(|(name, _)| name);
    for name in unquantized.chain(ignore) {
        if !untouched.contains(&name.as_str()) {
            untouched.push(name);
        }
    }
    untouched
}

/// The scheme that most modules have, the first of several.
fn usual_scheme(modules: &[(String, Option<Scheme>)]) -> Option<Scheme> {
    schemes(modules)
        .into_iter()
        // `max_by_key` alone would take the last of the most frequent.
        .rev()
        .max_by_key(|(_, names)| names.len())
        .map(|(scheme, _)| scheme)
}

/// The distinct schemes in order of first use, each with the modules that have it.
fn schemes(modules: &[(String, Option<Scheme>)]) -> Vec<(Scheme, Vec<&str>)> {
    let mut schemes: Vec<(Scheme, Vec<&str>)> = Vec::new();
    for (name, scheme) in modules {
        let Some(scheme) = scheme else { continue };
        match schemes.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, names)) => names.push(name),
            None => schemes.push((*scheme, vec![name])),
        }
    }
    schemes
}

/// The output projection, whatever stands before its name.
pub(crate) fn is_head(name: &str) -> bool {
    name == "lm_head" || name.ends_with(".lm_head")
}
