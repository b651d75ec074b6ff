use halfbyte_quant::{CodedWeight, Coding, GroupSize, Scheme, SchemeError};
use regex::Regex;
use serde_json::{Map, Value};

use crate::bitsandbytes::{self, CodebookConfig};
use crate::config::is_head;
use crate::{Format, TensorView, UnpackError, unpack};

/// What a checkpoint's configuration says: its format, and the scheme of every module where the format has it there.
#[derive(Clone, Debug)]
pub struct QuantizedLayout {
    format: Format,
    rules: Vec<(Matcher, Option<Scheme>)>,
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A key is missing or of the wrong kind.
    #[error("quantization_config.{key}: {found}, wanted {wanted}")]
    Key {
        /// Path of the key.
        key: String,
        /// What stands there, as JSON, or `missing`.
        found: String,
        /// What can be read.
        wanted: &'static str,
    },
    /// Bits or group size are not ones we know.
    #[error("quantization_config.{key}: {source}")]
    Scheme {
        /// Path of the object.
        key: String,
        /// What is wrong with it.
        source: SchemeError,
    },
    /// A module pattern is not a regular expression we can run.
    #[error(
        "quantization_config.{key}: pattern {pattern:?} is not a regular expression without look-around"
    )]
    Pattern {
        /// Path of the key.
        key: String,
        /// The pattern.
        pattern: String,
    },
}

#[derive(Clone, Debug)]
enum Matcher {
    /// Every module.
    All,
    /// The output projection.
    Head,
    /// This module.
    Name(String),
    /// Modules whose name holds this anywhere.
    Part(String),
    /// Modules whose name ends with none of these, a dot before it.
    NotEnding(Vec<String>),
    /// Modules whose name the pattern matches from the start.
    Pattern(Regex),
}

impl QuantizedLayout {
    /// The format of every quantized module.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How the linear `module` (its path, without `.weight`) is stored, or `None` where it is not quantized. `lookup`
    /// finds tensors by name: bitsandbytes' configuration leaves the answer to them.
    ///
    /// # Errors
    /// Tensors that say what cannot be read.
    pub fn coding_for<'a>(
        &self,
        module: &str,
        lookup: impl Fn(&str) -> Option<TensorView<'a>>,
    ) -> Result<Option<Coding>, UnpackError> {
        match self.format {
            Format::Bitsandbytes => {
                Ok(bitsandbytes::scheme(module, &lookup)?.map(Coding::Codebook))
            }
            _ => Ok(self.scheme_for(module).map(Coding::Grid)),
        }
    }

    /// The weight of the linear `module`, or `None` where it is not quantized.
    ///
    /// # Errors
    /// As [`unpack`].
    pub fn unpack<'a>(
        &self,
        module: &str,
        lookup: impl Fn(&str) -> Option<TensorView<'a>>,
    ) -> Result<Option<CodedWeight>, UnpackError> {
        match self.coding_for(module, &lookup)? {
            Some(coding) => unpack(module, lookup, self.format, &coding).map(Some),
            None => Ok(None),
        }
    }

    /// The scheme of the linear `module` by the configuration alone.
    pub(crate) fn scheme_for(&self, module: &str) -> Option<Scheme> {
        self.rules
            .iter()
            .find(|(matcher, _)| matcher.matches(module))
            .and_then(|(_, scheme)| *scheme)
    }
}

impl Matcher {
    fn matches(&self, module: &str) -> bool {
        match self {
            Self::All => true,
            Self::Head => is_head(module),
            Self::Name(name) => name == module,
            Self::Part(part) => module.contains(part.as_str()),
            Self::NotEnding(ends) => !ends.iter().any(|end| {
                module
                    .strip_suffix(end.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

/// Reads the `quantization_config` object of config.json, or the whole of quantize_config.json: ours, and those of
/// the other tools that write gptq, compressed-tensors, awq or bitsandbytes' 4 bits.
pub fn read_quantization_config(config: &Value) -> Result<QuantizedLayout, ConfigError> {
    match config.get("quant_method").and_then(Value::as_str) {
        Some("gptq") => gptq(config),
        Some("compressed-tensors") => compressed_tensors(config),
        Some("awq") => awq(config),
        Some("bitsandbytes") => {
            CodebookConfig::from_value(config)?;
            Ok(QuantizedLayout {
                format: Format::Bitsandbytes,
                rules: Vec::new(),
            })
        }
        // The quantize_config.json of older tools has no method.
        None if config.get("bits").is_some() && config.get("desc_act").is_some() => gptq(config),
        // Nor has the quant_config.json of llm-awq.
        None if config.get("w_bit").is_some() && config.get("q_group_size").is_some() => {
            awq(config)
        }
        _ => Err(wrong(
            config,
            "quant_method",
            "\"gptq\", \"compressed-tensors\", \"awq\" or \"bitsandbytes\"",
        )),
    }
}

fn gptq(config: &Value) -> Result<QuantizedLayout, ConfigError> {
    let key = if config
        .get("checkpoint_format")
        .is_some_and(|v| !v.is_null())
    {
        "checkpoint_format"
    } else {
        "format"
    };
    let format = match config.get(key) {
        None | Some(Value::Null) => Format::Gptq,
        Some(Value::String(name)) if name == "gptq" => Format::Gptq,
        Some(Value::String(name)) if name == "gptq_v2" => Format::GptqV2,
        Some(_) => return Err(wrong(config, key, "\"gptq\" or \"gptq_v2\"")),
    };
    let base = gptq_scheme(config, config, "")?;
    let mut rules = Vec::new();
    if !config
        .get("lm_head")
        .and_then(Value::as_bool)
        .unwrap_or(false)
    {
        rules.push((Matcher::Head, None));
    }
    match config.get("modules_in_block_to_quantize") {
        None | Some(Value::Null) => {}
        Some(lists) => rules.push((Matcher::NotEnding(module_ends(config, lists)?), None)),
    }
    match config.get("dynamic") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::Object(dynamic)) => {
            for (pattern, change) in dynamic {
                let key = format!("dynamic.{pattern}");
                let scheme = if pattern.starts_with("-:") {
                    None
                } else {
                    Some(gptq_scheme(change, config, &format!("{key}."))?)
                };
                let pattern = pattern
                    .strip_prefix("-:")
                    .or_else(|| pattern.strip_prefix("+:"))
                    .unwrap_or(pattern);
                rules.push((matcher(&key, pattern)?, scheme));
            }
        }
        Some(_) => return Err(wrong(config, "dynamic", "a map from patterns to changes")),
    }
    rules.push((Matcher::All, Some(base)));
    Ok(QuantizedLayout { format, rules })
}

/// Bits, group size and symmetry of `object`, each taken from `base` where it is not there.
fn gptq_scheme(object: &Value, base: &Value, at: &str) -> Result<Scheme, ConfigError> {
    let of = |key: &str| {
        if object.get(key).is_some() {
            object
        } else {
            base
        }
    };
    let number = |key: &str, wanted| {
        let value = of(key).get(key).and_then(Value::as_i64);
        value.ok_or_else(|| wrong_at(of(key), key, &format!("{at}{key}"), wanted))
    };
    let bits = number("bits", "a number of bits")?;
    let group_size = number("group_size", "a number of columns, or -1")?;
    let sym = match of("sym").get("sym") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(sym)) => *sym,
        Some(_) => {
            return Err(wrong_at(
                of("sym"),
                "sym",
                &format!("{at}sym"),
                "true or false",
            ));
        }
    };
    scheme(bits, group_size, sym, &format!("{at}bits, group_size"))
}

fn module_ends(config: &Value, lists: &Value) -> Result<Vec<String>, ConfigError> {
    let key = "modules_in_block_to_quantize";
    let strings = |value: &Value| value.as_str().map(str::to_string);
    lists
        .as_array()
        .and_then(|lists| {
            let flat = lists.iter().flat_map(|list| match list {
                Value::Array(names) => names.iter().map(strings).collect(),
                other => vec![strings(other)],
            });
            flat.collect()
        })
        .ok_or_else(|| wrong(config, key, "a list of lists of module names"))
}

fn compressed_tensors(config: &Value) -> Result<QuantizedLayout, ConfigError> {
    let mut rules = Vec::new();
    for name in strings(config, "ignore", "ignore", true)? {
        rules.push((target("ignore", &name)?, None));
    }
    let Some(Value::Object(groups)) = config.get("config_groups") else {
        return Err(wrong(config, "config_groups", "a map of groups"));
    };
    // Exact names win over patterns and these over module classes, whatever the order of the groups.
    let mut format = None;
    let mut by_rank: [Vec<(Matcher, Option<Scheme>)>; 3] = Default::default();
    for (name, group) in groups {
        let at = format!("config_groups.{name}");
        let found = check_packed(config, group, &at)?;
        if *format.get_or_insert(found) != found {
            let wanted = "one format for all groups";
            return Err(wrong_at(group, "format", &format!("{at}.format"), wanted));
        }
        let scheme = compressed_scheme(group, &at)?;
        if found == Format::IntQuantized && !scheme.sym() {
            let wanted = "true: zero points of int-quantized weights cannot be read";
            let key = format!("{at}.weights.symmetric");
            return Err(wrong_at(&group["weights"], "symmetric", &key, wanted));
        }
        for name in strings(group, "targets", &format!("{at}.targets"), false)? {
            let matcher = target(&format!("{at}.targets"), &name)?;
            let rank = match matcher {
                Matcher::Name(_) => 0,
                Matcher::Pattern(_) => 1,
                _ => 2,
            };
            by_rank[rank].push((matcher, Some(scheme)));
        }
    }
    rules.extend(by_rank.into_iter().flatten());
    Ok(QuantizedLayout {
        format: format.unwrap_or(Format::CompressedTensors),
        rules,
    })
}

/// The GEMM layout only. Zero points are in every file that AutoAWQ can write, so `zero_point: false` is none of them.
fn awq(config: &Value) -> Result<QuantizedLayout, ConfigError> {
    let number = |key: &'static str, older: &'static str, wanted| {
        let key = if config.get(key).is_none() && config.get(older).is_some() {
            older
        } else {
            key
        };
        let value = config.get(key).and_then(Value::as_i64);
        value.ok_or_else(|| wrong(config, key, wanted))
    };
    let bits = number("bits", "w_bit", "a number of bits")?;
    if bits != 4 {
        let key = if config.get("bits").is_some() {
            "bits"
        } else {
            "w_bit"
        };
        return Err(wrong(config, key, "4"));
    }
    let group_size = number("group_size", "q_group_size", "a number of columns, or -1")?;
    match config.get("version") {
        None | Some(Value::Null) => {}
        Some(Value::String(version)) if version.eq_ignore_ascii_case("gemm") => {}
        Some(_) => return Err(wrong(config, "version", "\"gemm\"")),
    }
    match config.get("zero_point") {
        None | Some(Value::Null | Value::Bool(true)) => {}
        Some(_) => return Err(wrong(config, "zero_point", "true")),
    }
    let mut rules = vec![(Matcher::Head, None)];
    let key = "modules_to_not_convert";
    for part in strings(config, key, key, true)? {
        rules.push((Matcher::Part(part), None));
    }
    let scheme = scheme(bits, group_size, false, "bits, group_size")?;
    rules.push((Matcher::All, Some(scheme)));
    Ok(QuantizedLayout {
        format: Format::Awq,
        rules,
    })
}

/// Only integer weights without quantized activations can be read.
fn check_packed(config: &Value, group: &Value, at: &str) -> Result<Format, ConfigError> {
    let wanted = "\"pack-quantized\" or \"int-quantized\"";
    let known = |value: &Value| match value.as_str() {
        Some("pack-quantized") => Some(Format::CompressedTensors),
        // the second is the older name
        Some("int-quantized" | "naive-quantized") => Some(Format::IntQuantized),
        _ => None,
    };
    let format = match group.get("format") {
        None | Some(Value::Null) => config
            .get("format")
            .and_then(known)
            .ok_or_else(|| wrong(config, "format", wanted))?,
        Some(value) => known(value)
            .ok_or_else(|| wrong_at(group, "format", &format!("{at}.format"), wanted))?,
    };
    match group.get("input_activations") {
        None | Some(Value::Null) => Ok(format),
        Some(_) => {
            let key = format!("{at}.input_activations");
            Err(wrong_at(
                group,
                "input_activations",
                &key,
                "null: only weights may be quantized",
            ))
        }
    }
}

fn compressed_scheme(group: &Value, at: &str) -> Result<Scheme, ConfigError> {
    let at = format!("{at}.weights");
    let Some(weights @ Value::Object(fields)) = group.get("weights") else {
        return Err(wrong_at(group, "weights", &at, "an object"));
    };
    let wrong = |key: &str, wanted| Err(wrong_at(weights, key, &format!("{at}.{key}"), wanted));
    if !matches!(
        fields.get("type").and_then(Value::as_str),
        Some("int") | None
    ) {
        return wrong("type", "\"int\"");
    }
    let Some(bits) = fields.get("num_bits").and_then(Value::as_i64) else {
        return wrong("num_bits", "a number of bits");
    };
    let group_size = fields.get("group_size").and_then(Value::as_i64);
    let group_size = match (fields.get("strategy").and_then(Value::as_str), group_size) {
        (Some("channel"), _) => -1,
        (Some("group") | None, Some(n)) => n,
        (Some("group"), None) => return wrong("group_size", "a number of columns"),
        _ => return wrong("strategy", "\"group\" or \"channel\""),
    };
    let sym = match fields.get("symmetric") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(sym)) => *sym,
        Some(_) => return wrong("symmetric", "true or false"),
    };
    scheme(bits, group_size, sym, &at)
}

/// `Linear`, `re:<pattern>` or an exact module name. Other class names match nothing that we are asked about.
fn target(key: &str, name: &str) -> Result<Matcher, ConfigError> {
    match name.strip_prefix("re:") {
        Some(pattern) => matcher(key, pattern),
        None if name == "Linear" => Ok(Matcher::All),
        None => Ok(Matcher::Name(name.to_string())),
    }
}

/// A pattern that must match from the start of the name, as Python's `re.match` does.
fn matcher(key: &str, pattern: &str) -> Result<Matcher, ConfigError> {
    Regex::new(&format!("^(?:{pattern})"))
        .map(Matcher::Pattern)
        .map_err(|_| ConfigError::Pattern {
            key: key.to_string(),
            pattern: pattern.to_string(),
        })
}

fn scheme(bits: i64, group_size: i64, sym: bool, key: &str) -> Result<Scheme, ConfigError> {
    // Widths that no u8 holds are refused by the scheme like any other wrong width.
    let bits = u8::try_from(bits).unwrap_or(0);
    GroupSize::from_i64(group_size)
        .and_then(|group_size| Scheme::new(bits, group_size, sym))
        .map_err(|source| ConfigError::Scheme {
            key: key.to_string(),
            source,
        })
}

fn strings(
    object: &Value,
    key: &str,
    path: &str,
    may_lack: bool,
) -> Result<Vec<String>, ConfigError> {
    let list = match object.get(key) {
        None | Some(Value::Null) if may_lack => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.as_slice(),
        _ => return Err(wrong_at(object, key, path, "a list of names")),
    };
    list.iter()
        .map(|item| item.as_str().map(str::to_string))
        .collect::<Option<_>>()
        .ok_or_else(|| wrong_at(object, key, path, "a list of names"))
}

fn wrong(object: &Value, key: &str, wanted: &'static str) -> ConfigError {
    wrong_at(object, key, key, wanted)
}

fn wrong_at(object: &Value, key: &str, path: &str, wanted: &'static str) -> ConfigError {
    let found = object
        .as_object()
        .and_then(|object: &Map<String, Value>| object.get(key))
        .map_or_else(|| "missing".to_string(), Value::to_string);
    ConfigError::Key {
        key: path.to_string(),
        found,
        wanted,
    }
}

#[cfg(test)]
mod tests;
