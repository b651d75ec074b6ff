//! `config.json` of a decoder-only model: parsed, checked, resolved to plain numbers.
//!
//! Old and new spellings are read (`dtype` and `torch_dtype`, `rope_parameters` and `rope_theta` with
//! `rope_scaling`). Families differ by a row of [`FAMILIES`] only.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::foreign;
use crate::json::parse_json;
use crate::{CheckpointError, Result};

/// The decoder families that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3 and everything that uses its block.
    Llama,
    /// Llama's block with a sliding window in every layer.
    Mistral,
    /// Llama's block with biases on q, k and v.
    Qwen2,
    /// Llama's block with norms on the heads of q and k, and a free `head_dim`.
    Qwen3,
}

/// Where a bias is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionBias {
    /// On `q_proj`, `k_proj` and `v_proj`.
    pub qkv: bool,
    /// On `o_proj`.
    pub o: bool,
}

/// What `head_dim` is when the file does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadDimDefault {
    /// `hidden_size / num_attention_heads`.
    HiddenOverHeads,
    /// A fixed number.
    Fixed(usize),
}

/// Which layers attend within a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRule {
    /// None.
    Never,
    /// The layers that `layer_types` names, all where that is absent, if `sliding_window` is a number; absent means this
    /// number.
    EveryLayer(usize),
    /// Only with `use_sliding_window`: the layers that `layer_types` names, else those from `max_window_layers` on.
    Chosen {
        /// `sliding_window` when absent.
        window: usize,
        /// `max_window_layers` when absent.
        from_layer: usize,
    },
}

/// How one family differs from the common decoder block. The whole difference; no code asks for the family's name.
#[derive(Clone, Copy, Debug)]
pub struct FamilyRow {
    /// The family.
    pub family: Family,
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// `architectures[0]` in config.json.
    pub architecture: &'static str,
    /// Biases that are always there, whatever the file says.
    pub fixed_bias: AttentionBias,
    /// Whether `attention_bias: true` adds biases to all four attention linears.
    pub reads_attention_bias: bool,
    /// Whether `mlp_bias: true` adds biases to the MLP's linears.
    pub reads_mlp_bias: bool,
    /// Whether q and k are normalised per head.
    pub qk_norm: bool,
    /// `head_dim` when absent.
    pub head_dim: HeadDimDefault,
    /// `num_key_value_heads` when absent; none, and null in the file, mean `num_attention_heads`.
    pub num_key_value_heads: Option<usize>,
    /// Which layers have a sliding window.
    pub window: WindowRule,
    /// `max_position_embeddings` when absent.
    pub max_position_embeddings: usize,
}

const NO_BIAS: AttentionBias = AttentionBias {
    qkv: false,
    o: false,
};

/// Every family, a row each.
pub const FAMILIES: &[FamilyRow] = &[
    FamilyRow {
        family: Family::Llama,
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        fixed_bias: NO_BIAS,
        reads_attention_bias: true,
        reads_mlp_bias: true,
        qk_norm: false,
        head_dim: HeadDimDefault::HiddenOverHeads,
        num_key_value_heads: None,
        window: WindowRule::Never,
        max_position_embeddings: 2048,
    },
    FamilyRow {
        family: Family::Mistral,
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        fixed_bias: NO_BIAS,
        reads_attention_bias: false,
        reads_mlp_bias: false,
        qk_norm: false,
        head_dim: HeadDimDefault::HiddenOverHeads,
        num_key_value_heads: Some(8),
        window: WindowRule::EveryLayer(4096),
        max_position_embeddings: 131_072,
    },
    FamilyRow {
        family: Family::Qwen2,
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        fixed_bias: AttentionBias {
            qkv: true,
            o: false,
        },
        reads_attention_bias: false,
        reads_mlp_bias: false,
        qk_norm: false,
        head_dim: HeadDimDefault::HiddenOverHeads,
        num_key_value_heads: Some(32),
        window: WindowRule::Chosen {
            window: 4096,
            from_layer: 28,
        },
        max_position_embeddings: 32_768,
    },
    FamilyRow {
        family: Family::Qwen3,
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        fixed_bias: NO_BIAS,
        reads_attention_bias: true,
        reads_mlp_bias: false,
        qk_norm: true,
        head_dim: HeadDimDefault::Fixed(128),
        num_key_value_heads: Some(32),
        window: WindowRule::Chosen {
            window: 4096,
            from_layer: 28,
        },
        max_position_embeddings: 32_768,
    },
];

/// The non-linearity of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths, `rope_theta`.
    pub theta: f64,
    /// How the wavelengths are stretched to longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched. Field names are those of `rope_parameters` in config.json.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all (`default`).
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// The base grows with the sequence once it passes the original length (dynamic NTK).
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Length up to which nothing changes.
        original_max_position_embeddings: usize,
    },
    /// Llama 3.1: long wavelengths stretched, short ones kept, a ramp between.
    Llama3 {
        /// Stretch of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The length trained on.
        original_max_position_embeddings: usize,
    },
    /// YaRN, arXiv 2309.00071.
    Yarn {
        /// Stretch.
        factor: f64,
        /// The length trained on.
        original_max_position_embeddings: usize,
        /// Factor on cos and sin; absent means the paper's `0.1 ln(factor) + 1` or the `mscale` ratio.
        attention_factor: Option<f64>,
        /// Rotations above which a dimension is kept (32).
        beta_fast: f64,
        /// Rotations below which a dimension is stretched in full (1).
        beta_slow: f64,
        /// With `mscale_all_dim`: numerator of the attention factor.
        mscale: Option<f64>,
        /// With `mscale`: denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's ends are rounded to whole dimensions (true).
        truncate: bool,
    },
}

/// A decoder-only model, resolved: no field needs another look at the file.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which row of [`FAMILIES`] this is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; even. `num_attention_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Longest sequence the model claims.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases in attention.
    pub attention_bias: AttentionBias,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms over `head_dim` on q and k.
    pub qk_norm: bool,
    /// One per layer: a query sees itself and the `window - 1` positions before it; `None` sees all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// The MLP's non-linearity.
    pub hidden_act: Activation,
    /// `dtype` or `torch_dtype` in torch's own spelling: "bfloat16", "float16", "float32".
    pub dtype: Option<String>,
    /// Token that opens a text; the first where the file holds a list.
    pub bos_token_id: Option<u32>,
    /// Tokens that close a text; the file may hold one number or a list.
    pub eos_token_id: Vec<u32>,
    /// `quantization_config` as it stands, when the checkpoint is already quantized.
    pub quantization_config: Option<Value>,
    /// What of the file is not honoured and does not make another model of it, a sentence each.
    pub notices: Vec<String>,
}

impl ModelConfig {
    /// Reads the text of a config.json; `path` is for messages only.
    ///
    /// # Errors
    /// Text that is not JSON, a field that cannot be, an architecture that cannot be read, and keys of another architecture
    /// that change what a model computes: read without them it would be another model.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let file: ConfigFile = parse_json(text, path)?;
        let all: Map<String, Value> = parse_json(text, path)?;
        let mut config = resolve(file, path)?;
        config.notices = foreign::check(&all, &config, path)?;
        Ok(config)
    }

    /// The longest sequence that the model is made for: `max_position_embeddings`, and what the rotary scaling makes of it
    /// where the file gives the length before scaling.
    pub fn positions(&self) -> usize {
        let stretched = match self.rope.scaling {
            RopeScaling::None | RopeScaling::Llama3 { .. } => 0.0,
            RopeScaling::Linear { factor } => self.max_position_embeddings as f64 * factor,
            RopeScaling::Dynamic {
                factor,
                original_max_position_embeddings: original,
            }
            | RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                ..
            } => original as f64 * factor,
        };
        self.max_position_embeddings.max(stretched as usize)
    }

    /// The family's row of [`FAMILIES`].
    pub fn row(&self) -> &'static FamilyRow {
        FAMILIES
            .iter()
            .find(|row| row.family == self.family)
            .expect("every family has a row, as a test checks")
    }
}

/// Every tensor such a model has, with its shape (`[out_features, in_features]` for linears), in the order a forward
/// pass meets them. A tied head is left out.
pub fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![(
        "model.embed_tokens.weight".to_owned(),
        vec![config.vocab_size, hidden],
    )];
    for layer in 0..config.num_hidden_layers {
        tensors.extend(
            layer_tensors(config)
                .into_iter()
                .map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)),
        );
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

/// One block's tensors, named from the block on.
fn layer_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let AttentionBias { qkv, o } = config.attention_bias;
    let linears = |rows: &[(&str, usize, usize, bool)]| {
        let mut tensors = Vec::new();
        for &(name, out_features, in_features, bias) in rows {
            tensors.push((format!("{name}.weight"), vec![out_features, in_features]));
            if bias {
                tensors.push((format!("{name}.bias"), vec![out_features]));
            }
        }
        tensors
    };
    let norm = |name: &str, width: usize| (format!("{name}.weight"), vec![width]);

    let mut tensors = vec![norm("input_layernorm", hidden)];
    tensors.extend(linears(&[
        ("self_attn.q_proj", queries, hidden, qkv),
        ("self_attn.k_proj", keys, hidden, qkv),
        ("self_attn.v_proj", keys, hidden, qkv),
    ]));
    if config.qk_norm {
        tensors.push(norm("self_attn.q_norm", config.head_dim));
        tensors.push(norm("self_attn.k_norm", config.head_dim));
    }
    tensors.extend(linears(&[("self_attn.o_proj", hidden, queries, o)]));
    tensors.push(norm("post_attention_layernorm", hidden));
    tensors.extend(linears(&[
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    ]));
    tensors
}

/// config.json as it stands; keys that do not change the arithmetic are left unread, and those that would in another
/// architecture are [`foreign`].
#[derive(Deserialize)]
struct ConfigFile {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    #[serde(default, deserialize_with = "present")]
    num_key_value_heads: Option<Option<usize>>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_parameters: Option<serde_json::Map<String, Value>>,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Map<String, Value>>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Value>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    hidden_act: Option<String>,
    dtype: Option<Value>,
    torch_dtype: Option<Value>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
    quantization_config: Option<Value>,
}

/// Keeps null apart from absence, which serde's own reading of an `Option` does not.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// The object under `rope_parameters`, or under `rope_scaling` in older files. `type` is the oldest spelling of
/// `rope_type`; some files hold both, so it is a field of its own and not an alias.
#[derive(Default, Deserialize)]
struct RopeFile {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

/// Names the place in the file.
pub(crate) struct Place<'a>(pub(crate) &'a Path);

impl Place<'_> {
    pub(crate) fn error(&self, field: &'static str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::ConfigField {
            path: self.0.to_owned(),
            field,
            problem: problem.into(),
        }
    }

    /// A count that must be there, from 1 to 2^31: products of two never overflow.
    fn count(&self, field: &'static str, value: Option<usize>) -> Result<usize> {
        match value {
            Some(n) if (1..=1 << 31).contains(&n) => Ok(n),
            Some(n) => Err(self.error(field, format!("{n}, wanted 1 to 2147483648"))),
            None => Err(self.error(field, "missing")),
        }
    }

    fn positive(&self, field: &'static str, value: Option<f64>) -> Result<f64> {
        match value {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            Some(x) => Err(self.error(field, format!("{x}, wanted a positive number"))),
            None => Err(self.error(field, "missing")),
        }
    }
}

fn resolve(file: ConfigFile, path: &Path) -> Result<ModelConfig> {
    let place = Place(path);
    let row = family_row(file.model_type.as_deref(), &place)?;
    let hidden_size = place.count("hidden_size", file.hidden_size)?;
    let num_hidden_layers = place.count("num_hidden_layers", file.num_hidden_layers)?;
    if num_hidden_layers > 4096 {
        return Err(place.error(
            "num_hidden_layers",
            format!("{num_hidden_layers}, wanted 1 to 4096"),
        ));
    }
    let num_attention_heads = place.count("num_attention_heads", file.num_attention_heads)?;
    let num_key_value_heads = match file.num_key_value_heads {
        Some(written) => written,
        None => row.num_key_value_heads,
    };
    let num_key_value_heads = place.count(
        "num_key_value_heads",
        num_key_value_heads.or(Some(num_attention_heads)),
    )?;
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(place.error(
            "num_key_value_heads",
            format!("{num_key_value_heads} does not divide {num_attention_heads} attention heads"),
        ));
    }
    let head_dim = file.head_dim.unwrap_or(match row.head_dim {
        HeadDimDefault::HiddenOverHeads => hidden_size / num_attention_heads,
        HeadDimDefault::Fixed(n) => n,
    });
    let head_dim = place.count("head_dim", Some(head_dim))?;
    if head_dim % 2 != 0 {
        return Err(place.error(
            "head_dim",
            format!("{head_dim} is odd, rotary embedding turns pairs"),
        ));
    }
    let max_position_embeddings = place.count(
        "max_position_embeddings",
        file.max_position_embeddings
            .or(Some(row.max_position_embeddings)),
    )?;
    let asked_bias = row.reads_attention_bias && file.attention_bias.unwrap_or(false);

    Ok(ModelConfig {
        family: row.family,
        hidden_size,
        intermediate_size: place.count("intermediate_size", file.intermediate_size)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size: place.count("vocab_size", file.vocab_size)?,
        rms_norm_eps: place.positive("rms_norm_eps", file.rms_norm_eps.or(Some(1e-6)))?,
        rope: resolve_rope(&file, max_position_embeddings, &place)?,
        max_position_embeddings,
        tie_word_embeddings: file.tie_word_embeddings.unwrap_or(false),
        attention_bias: AttentionBias {
            qkv: row.fixed_bias.qkv || asked_bias,
            o: row.fixed_bias.o || asked_bias,
        },
        mlp_bias: row.reads_mlp_bias && file.mlp_bias.unwrap_or(false),
        qk_norm: row.qk_norm,
        sliding_windows: sliding_windows(&file, row.window, num_hidden_layers, &place)?,
        hidden_act: activation(file.hidden_act.as_deref(), &place)?,
        dtype: dtype(file.dtype.as_ref().or(file.torch_dtype.as_ref())),
        bos_token_id: token_ids("bos_token_id", file.bos_token_id.as_ref(), &place)?
            .first()
            .copied(),
        eos_token_id: token_ids("eos_token_id", file.eos_token_id.as_ref(), &place)?,
        quantization_config: file.quantization_config,
        notices: Vec::new(),
    })
}

fn family_row(model_type: Option<&str>, place: &Place<'_>) -> Result<&'static FamilyRow> {
    let found = model_type.ok_or_else(|| place.error("model_type", "missing"))?;
    FAMILIES
        .iter()
        .find(|row| row.model_type == found)
        .ok_or_else(|| CheckpointError::ModelType {
            path: place.0.to_owned(),
            found: found.to_owned(),
            known: FAMILIES
                .iter()
                .map(|row| row.model_type)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

pub(crate) fn activation(name: Option<&str>, place: &Place<'_>) -> Result<Activation> {
    match name.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_python_tanh" => Ok(Activation::GeluTanh),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        other => Err(place.error(
            "hidden_act",
            format!("'{other}', wanted silu, gelu_pytorch_tanh or gelu"),
        )),
    }
}

/// The type's name as torch has it, whatever other spelling the file has.
fn dtype(value: Option<&Value>) -> Option<String> {
    let written = value?.as_str()?;
    let name = written.strip_prefix("torch.").unwrap_or(written);
    let name = match name {
        "bf16" => "bfloat16",
        "fp16" | "half" => "float16",
        "fp32" | "float" => "float32",
        "fp64" | "double" => "float64",
        other => other,
    };
    Some(name.to_owned())
}

/// One number or a list of numbers; null, absence and negative numbers are no token.
fn token_ids(field: &'static str, value: Option<&Value>, place: &Place<'_>) -> Result<Vec<u32>> {
    let one = |value: &Value| match value.as_i64() {
        Some(id) if id < 0 => Ok(None),
        Some(id) if id <= i64::from(u32::MAX) => Ok(Some(id as u32)),
        _ => Err(place.error(
            field,
            format!("{value}, wanted a token number or a list of them"),
        )),
    };
    let listed = match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.iter().map(one).collect::<Result<_>>()?,
        Some(value) => vec![one(value)?],
    };
    Ok(listed.into_iter().flatten().collect())
}

/// One window per layer, as transformers 5.23 decides it.
fn sliding_windows(
    file: &ConfigFile,
    rule: WindowRule,
    layers: usize,
    place: &Place<'_>,
) -> Result<Vec<Option<usize>>> {
    // Null means no window, absence the family's usual one.
    let written = |default: usize| match &file.sliding_window {
        None => Ok(Some(default)),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if n > 0 => Ok(Some(n as usize)),
            _ => Err(place.error(
                "sliding_window",
                format!("{value}, wanted a positive count"),
            )),
        },
    };
    match rule {
        WindowRule::Never => Ok(vec![None; layers]),
        WindowRule::EveryLayer(default) => match &file.layer_types {
            None => Ok(vec![written(default)?; layers]),
            Some(types) => listed_windows(types, written(default)?, layers, place),
        },
        WindowRule::Chosen { window, from_layer } => {
            let window = match file.use_sliding_window {
                Some(true) => written(window)?,
                _ => None,
            };
            let first = file.max_window_layers.unwrap_or(from_layer);
            match &file.layer_types {
                None => Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect()),
                Some(types) => listed_windows(types, window, layers, place),
            }
        }
    }
}

fn listed_windows(
    types: &[String],
    window: Option<usize>,
    layers: usize,
    place: &Place<'_>,
) -> Result<Vec<Option<usize>>> {
    if types.len() != layers {
        return Err(place.error(
            "layer_types",
            format!("{} entries, wanted {layers}, one per layer", types.len()),
        ));
    }
    let one = |kind: &String| match (kind.as_str(), window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(place.error(
            "layer_types",
            "sliding_attention, but sliding_window is null or use_sliding_window is false",
        )),
        (other, _) => Err(place.error(
            "layer_types",
            format!("'{other}', wanted full_attention or sliding_attention"),
        )),
    };
    types.iter().map(one).collect()
}

fn resolve_rope(file: &ConfigFile, max_positions: usize, place: &Place<'_>) -> Result<Rope> {
    // Where both are present transformers lets rope_scaling win.
    let object = match &file.rope_scaling {
        Some(object) if !object.is_empty() => Some(object),
        _ => file.rope_parameters.as_ref(),
    };
    let rope: RopeFile = match object {
        None => RopeFile::default(),
        Some(object) if object.values().any(Value::is_object) => {
            return Err(place.error(
                "rope_parameters",
                "one object per layer type, wanted one for all layers",
            ));
        }
        Some(object) => serde_json::from_value(Value::Object(object.clone()))
            .map_err(|error| place.error("rope_parameters", error.to_string()))?,
    };
    let partial = rope.partial_rotary_factor.or(file.partial_rotary_factor);
    if let Some(partial) = partial.filter(|&p| p != 1.0) {
        return Err(place.error(
            "partial_rotary_factor",
            format!("{partial}, only 1.0 is supported"),
        ));
    }
    let theta = rope.rope_theta.or(file.rope_theta).or(Some(10_000.0));
    let original = file
        .original_max_position_embeddings
        .or(rope.original_max_position_embeddings)
        .or(Some(max_positions));
    let original = place.count("rope_parameters.original_max_position_embeddings", original)?;
    let factor = || place.positive("rope_parameters.factor", rope.factor);

    let kind = rope.rope_type.as_deref().or(rope.r#type.as_deref());
    let scaling = match kind.unwrap_or("default") {
        // `mrope` has a position for each of a picture's axes, which are one and the same for text.
        "default" | "mrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        // transformers stretches from max_position_embeddings on, whatever `original_...` says.
        "dynamic" => RopeScaling::Dynamic {
            factor: factor()?,
            original_max_position_embeddings: max_positions,
        },
        "llama3" => {
            let low_freq_factor =
                place.positive("rope_parameters.low_freq_factor", rope.low_freq_factor)?;
            let high_freq_factor =
                place.positive("rope_parameters.high_freq_factor", rope.high_freq_factor)?;
            if high_freq_factor <= low_freq_factor {
                return Err(place.error(
                    "rope_parameters.high_freq_factor",
                    format!(
                        "{high_freq_factor}, wanted more than low_freq_factor {low_freq_factor}"
                    ),
                ));
            }
            RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            }
        }
        "yarn" => RopeScaling::Yarn {
            factor: match rope.factor {
                Some(_) => factor()?,
                None => max_positions as f64 / original as f64,
            },
            original_max_position_embeddings: original,
            attention_factor: rope.attention_factor,
            beta_fast: rope.beta_fast.filter(|&b| b != 0.0).unwrap_or(32.0),
            beta_slow: rope.beta_slow.filter(|&b| b != 0.0).unwrap_or(1.0),
            mscale: rope.mscale,
            mscale_all_dim: rope.mscale_all_dim,
            truncate: rope.truncate.unwrap_or(true),
        },
        other => {
            return Err(place.error(
                "rope_parameters.rope_type",
                format!("'{other}', wanted default, linear, dynamic, llama3 or yarn"),
            ));
        }
    };
    Ok(Rope {
        theta: place.positive("rope_theta", theta)?,
        scaling,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::fixture::config;

    fn fails(changes: Value) -> String {
        config(changes).unwrap_err().to_string()
    }

    fn windows(changes: Value) -> Vec<Option<usize>> {
        config(changes).unwrap().sliding_windows
    }

    #[test]
    fn tensors_of_every_family_are_those_that_transformers_saves() {
        let families: Value = serde_json::from_str(include_str!("testdata/families.json")).unwrap();
        assert_eq!(families.as_object().unwrap().len(), FAMILIES.len());
        for row in FAMILIES {
            let saved = &families[row.model_type];
            let text = saved["config"].to_string();
            let config = ModelConfig::parse(text.as_bytes(), Path::new("config.json")).unwrap();
            assert_eq!(config.family, row.family);
            assert_eq!(config.row().architecture, row.architecture);
            assert_eq!(saved["config"]["architectures"][0], row.architecture);
            let found: BTreeMap<_, _> = expected_tensors(&config).into_iter().collect();
            let wanted: BTreeMap<String, Vec<usize>> =
                serde_json::from_value(saved["shapes"].clone()).unwrap();
            assert_eq!(found, wanted, "{}", row.model_type);
        }
    }

    #[test]
    fn every_field_of_a_saved_config_arrives() {
        let text = include_bytes!("../embedded/tiny/config.json");
        let found = ModelConfig::parse(text, Path::new("config.json")).unwrap();
        let wanted = ModelConfig {
            family: Family::Llama,
            hidden_size: 256,
            intermediate_size: 768,
            num_hidden_layers: 6,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 64,
            vocab_size: 4096,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            max_position_embeddings: 2048,
            tie_word_embeddings: true,
            attention_bias: NO_BIAS,
            mlp_bias: false,
            qk_norm: false,
            sliding_windows: vec![None; 6],
            hidden_act: Activation::Silu,
            dtype: Some("bfloat16".to_owned()),
            bos_token_id: Some(0),
            eos_token_id: vec![0],
            quantization_config: None,
            notices: vec![],
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn old_and_new_spellings_mean_the_same() {
        let old = config(json!({
            "torch_dtype": "float16", "rope_theta": 5e5,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        }));
        let new = config(json!({
            "torch_dtype": "ABSENT", "dtype": "float16", "rope_theta": "ABSENT",
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        }));
        let old = old.unwrap();
        assert_eq!(old.rope.theta, 5e5);
        assert_eq!(old.dtype.as_deref(), Some("float16"));
        assert_eq!(old, new.unwrap());
        let both = config(
            json!({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}}),
        );
        assert_eq!(
            both.unwrap().rope.scaling,
            RopeScaling::Linear { factor: 4.0 }
        );
    }

    #[test]
    fn absent_fields_take_the_family_defaults() {
        let absent = json!({"num_key_value_heads": "ABSENT", "rope_theta": "ABSENT",
            "rms_norm_eps": "ABSENT", "max_position_embeddings": "ABSENT", "torch_dtype": "ABSENT"});
        let found = config(absent).unwrap();
        assert_eq!(found.num_key_value_heads, 4);
        assert_eq!(found.head_dim, 4);
        assert_eq!(found.rope.theta, 10_000.0);
        assert_eq!(found.rms_norm_eps, 1e-6);
        assert_eq!(found.max_position_embeddings, 2048);
        assert_eq!(found.dtype, None);
        assert!(!found.tie_word_embeddings);
        assert_eq!(
            config(json!({"model_type": "qwen3"})).unwrap().head_dim,
            128
        );
        assert_eq!(config(json!({"head_dim": null})).unwrap().head_dim, 4);
    }

    #[test]
    fn every_rope_scaling_is_read() {
        let scaling = |object: Value| {
            config(json!({"rope_scaling": object}))
                .unwrap()
                .rope
                .scaling
        };
        assert_eq!(scaling(json!(null)), RopeScaling::None);
        assert_eq!(scaling(json!({"rope_type": "default"})), RopeScaling::None);
        assert_eq!(
            scaling(json!({"type": "dynamic", "factor": 2.0})),
            RopeScaling::Dynamic {
                factor: 2.0,
                original_max_position_embeddings: 64
            }
        );
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        assert_eq!(
            scaling(llama3),
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 32
            }
        );
        let yarn = |object| match scaling(object) {
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate,
            } => (
                (factor, original, attention_factor),
                (beta_fast, beta_slow, truncate),
                (mscale, mscale_all_dim),
            ),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            yarn(json!({"type": "yarn", "original_max_position_embeddings": 16})),
            ((4.0, 16, None), (32.0, 1.0, true), (None, None))
        );
        assert_eq!(
            yarn(
                json!({"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "beta_fast": 16.0,
                "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": false})
            ),
            (
                (2.0, 64, Some(1.5)),
                (16.0, 2.0, false),
                (Some(1.0), Some(0.5))
            )
        );
    }

    #[test]
    fn mistral_slides_in_every_layer_unless_null() {
        let mistral =
            |window: Value| windows(json!({"model_type": "mistral", "sliding_window": window}));
        assert_eq!(mistral(json!(8)), [Some(8); 2]);
        assert_eq!(mistral(json!(null)), [None; 2]);
        assert_eq!(mistral(json!("ABSENT")), [Some(4096); 2]);
        assert_eq!(windows(json!({"sliding_window": 8})), [None; 2]);
    }

    #[test]
    fn mistral_slides_in_the_layers_that_are_named() {
        let named = |window: Value| {
            json!({"model_type": "mistral", "sliding_window": window,
                "layer_types": ["full_attention", "sliding_attention"]})
        };
        assert_eq!(windows(named(json!(8))), [None, Some(8)]);
        assert_eq!(windows(named(json!("ABSENT"))), [None, Some(4096)]);
        assert!(fails(named(json!(null))).contains("sliding_window is null"));
        let chunked = json!({"model_type": "mistral", "layer_types": ["full_attention", "chunked_attention"]});
        assert!(
            fails(chunked)
                .contains("'chunked_attention', wanted full_attention or sliding_attention")
        );
    }

    #[test]
    fn key_value_heads_are_the_class_default_where_absent_and_the_query_heads_where_null() {
        let heads = |model_type: &str, written: Value| {
            let found = config(
                json!({"model_type": model_type, "num_key_value_heads": written,
                "hidden_size": 256, "num_attention_heads": 64}),
            );
            found.unwrap().num_key_value_heads
        };
        for (model_type, default) in [("llama", 64), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)] {
            assert_eq!(heads(model_type, json!("ABSENT")), default, "{model_type}");
            assert_eq!(heads(model_type, json!(null)), 64, "{model_type}");
            assert_eq!(heads(model_type, json!(16)), 16, "{model_type}");
        }
    }

    #[test]
    fn positions_are_those_after_scaling() {
        let positions = |scaling: Value| {
            config(json!({"rope_scaling": scaling}))
                .unwrap()
                .positions()
        };
        assert_eq!(positions(json!(null)), 64);
        for (kind, wanted) in [("linear", 256), ("dynamic", 256), ("yarn", 256)] {
            assert_eq!(
                positions(json!({"rope_type": kind, "factor": 4.0})),
                wanted,
                "{kind}"
            );
        }
        // max_position_embeddings is the length after scaling here
        let yarn =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
        assert_eq!(positions(yarn), 64);
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8});
        assert_eq!(positions(llama3), 64);
        assert_eq!(
            positions(json!({"type": "mrope", "mrope_section": [1, 1]})),
            64
        );
    }

    #[test]
    fn types_are_read_in_every_spelling() {
        for (written, wanted) in [
            ("torch.bfloat16", "bfloat16"),
            ("bf16", "bfloat16"),
            ("half", "float16"),
            ("fp32", "float32"),
            ("float32", "float32"),
        ] {
            let found = config(json!({"torch_dtype": written})).unwrap().dtype;
            assert_eq!(found.as_deref(), Some(wanted), "{written}");
        }
        assert_eq!(config(json!({"torch_dtype": null})).unwrap().dtype, None);
        assert_eq!(
            config(json!({"torch_dtype": {"": "bf16"}})).unwrap().dtype,
            None
        );
    }

    #[test]
    fn qwen_slides_only_where_it_is_told() {
        let qwen = |mut changes: Value| {
            changes["model_type"] = json!("qwen2");
            changes["sliding_window"] = json!(8);
            windows(changes)
        };
        assert_eq!(qwen(json!({"max_window_layers": 0})), [None; 2]);
        assert_eq!(
            qwen(json!({"use_sliding_window": true, "max_window_layers": 1})),
            [None, Some(8)]
        );
        assert_eq!(qwen(json!({"use_sliding_window": true})), [None; 2]);
        assert_eq!(
            qwen(json!({"use_sliding_window": true, "max_window_layers": 1,
                "layer_types": ["sliding_attention", "full_attention"]})),
            [Some(8), None]
        );
    }

    #[test]
    fn biases_follow_the_family_before_the_file() {
        let bias = |model_type: &str, asked: bool| {
            let found = config(
                json!({"model_type": model_type, "attention_bias": asked, "mlp_bias": asked}),
            );
            let found = found.unwrap();
            (
                found.attention_bias.qkv,
                found.attention_bias.o,
                found.mlp_bias,
            )
        };
        assert_eq!(bias("llama", false), (false, false, false));
        assert_eq!(bias("llama", true), (true, true, true));
        assert_eq!(bias("mistral", true), (false, false, false));
        assert_eq!(bias("qwen2", false), (true, false, false));
        assert_eq!(bias("qwen3", true), (true, true, false));
    }

    #[test]
    fn a_tied_head_is_not_expected_and_an_untied_one_is() {
        let heads = |tied: bool| {
            let config = config(json!({"tie_word_embeddings": tied})).unwrap();
            let tensors = expected_tensors(&config);
            tensors
                .iter()
                .filter(|(name, _)| name == "lm_head.weight")
                .count()
        };
        assert_eq!((heads(true), heads(false)), (0, 1));
    }

    #[test]
    fn token_ids_may_be_one_a_list_or_none() {
        let eos = |value: Value| config(json!({"eos_token_id": value})).unwrap().eos_token_id;
        assert_eq!(eos(json!(2)), [2]);
        assert_eq!(eos(json!([2, 5])), [2, 5]);
        assert!(eos(json!(null)).is_empty());
        assert!(eos(json!(-1)).is_empty());
        assert_eq!(eos(json!([-1, 5])), [5]);
        let bos = |value: Value| config(json!({"bos_token_id": value})).unwrap().bos_token_id;
        assert_eq!(bos(json!(1)), Some(1));
        assert_eq!(bos(json!([3, 4])), Some(3));
        assert_eq!(bos(json!([])), None);
        assert_eq!(bos(json!(-1)), None);
        assert_eq!(bos(json!(null)), None);
        assert_eq!(
            fails(json!({"eos_token_id": "end"})),
            "config.json: eos_token_id: \"end\", wanted a token number or a list of them"
        );
    }

    #[test]
    fn an_existing_quantization_config_is_kept_as_it_stands() {
        let raw = json!({"quant_method": "gptq", "bits": 4});
        let found = config(json!({"quantization_config": raw})).unwrap();
        assert_eq!(found.quantization_config, Some(raw));
    }

    #[test]
    fn bad_configs_are_told_with_field_found_and_wanted() {
        for (changes, wanted) in [
            (
                json!({"model_type": "mamba"}),
                "config.json: model_type: 'mamba' is not supported; known are llama, mistral, qwen2, qwen3",
            ),
            (
                json!({"model_type": "ABSENT"}),
                "config.json: model_type: missing",
            ),
            (
                json!({"hidden_size": "ABSENT"}),
                "config.json: hidden_size: missing",
            ),
            (
                json!({"vocab_size": 0}),
                "config.json: vocab_size: 0, wanted 1 to 2147483648",
            ),
            (
                json!({"num_key_value_heads": 3}),
                "config.json: num_key_value_heads: 3 does not divide 4 attention heads",
            ),
            (
                json!({"head_dim": 5}),
                "config.json: head_dim: 5 is odd, rotary embedding turns pairs",
            ),
            (
                json!({"rms_norm_eps": -1.0}),
                "config.json: rms_norm_eps: -1, wanted a positive number",
            ),
            (
                json!({"hidden_act": "relu"}),
                "config.json: hidden_act: 'relu', wanted silu, gelu_pytorch_tanh or gelu",
            ),
            (
                json!({"rope_scaling": {"rope_type": "longrope"}}),
                "config.json: rope_parameters.rope_type: 'longrope', wanted default, linear, dynamic, llama3 or yarn",
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear"}}),
                "config.json: rope_parameters.factor: missing",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
                "config.json: rope_parameters: one object per layer type, wanted one for all layers",
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                "config.json: partial_rotary_factor: 0.5, only 1.0 is supported",
            ),
            (
                json!({"model_type": "qwen2", "layer_types": ["full_attention"]}),
                "config.json: layer_types: 1 entries, wanted 2, one per layer",
            ),
            (
                json!({"model_type": "mistral", "sliding_window": "wide"}),
                "config.json: sliding_window: \"wide\", wanted a positive count",
            ),
        ] {
            assert_eq!(fails(changes), wanted);
        }
    }

    #[test]
    fn text_that_is_not_json_is_told_with_line_and_column() {
        let found = ModelConfig::parse(
            b"{\n \"hidden_size\": \"many\"\n}",
            Path::new("config.json"),
        );
        assert_eq!(
            found.unwrap_err().to_string(),
            "config.json: invalid type: string \"many\", expected usize at line 2 column 22"
        );
    }
}
