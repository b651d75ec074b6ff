//! Keys and names of other architectures in a config.json that says it is one of ours.
//!
//! A reader that looks for what it knows alone does not notice that a file is of another model under a borrowed name. The
//! table here is of what other architectures compute beside the common block, each key with the values that change nothing.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::{Place, activation};
use crate::{FamilyRow, ModelConfig, Result, WindowRule};

/// A key that none of our families reads.
struct ForeignKey {
    key: &'static str,
    /// The values by which it changes nothing; null is one always.
    neutral: Neutral,
}

#[derive(Clone, Copy)]
enum Neutral {
    /// A factor: 1.
    One,
    /// A switch, a limit or a list: false, 0, empty.
    Off,
    /// A switch that is on in every model of ours.
    On,
    /// A count of experts or of rounds: at most 1.
    AtMostOne,
    /// A switch for norms on the heads of q and k, which some families have.
    HeadNorms,
    /// A list with a mark a layer: no 0.
    NoZero,
    /// What scores are multiplied by: 1, or the usual `head_dim^-0.5`.
    ScoreFactor,
    /// What scores are divided by, squared: `head_dim`.
    ScoreDivisor,
    /// Names of layers: `full_attention`, where the family does not read them.
    FullAttention,
    /// The name of a non-linearity: the one that is computed.
    Activation,
    /// The name of a kind of position: not one of these.
    Rotary,
    /// The name of a kind of norm: an RMS norm.
    RmsNorm,
    /// How much of a head is turned: all.
    WholeHead,
}

const fn key(key: &'static str, neutral: Neutral) -> ForeignKey {
    ForeignKey { key, neutral }
}

use Neutral::{
    Activation, AtMostOne, FullAttention, HeadNorms, NoZero, Off, On, One, RmsNorm, Rotary,
    ScoreDivisor, ScoreFactor, WholeHead,
};

#[rustfmt::skip]
const FOREIGN: &[ForeignKey] = &[
    // embedding, residual stream, head
    key("embedding_multiplier", One), key("embedding_multiplier_scale", One), key("embedding_scale", One),
    key("scale_emb", One), key("scale_embedding", Off), key("scale_embeddings", Off), key("normalize_embedding", Off),
    key("residual_multiplier", One), key("residual_scale", One), key("scale_depth", One),
    key("logits_scaling", One), key("logit_scale", One), key("output_multiplier", One), key("output_multiplier_scale", One),
    key("lm_head_multiplier", One), key("final_logit_softcapping", Off), key("logits_soft_cap", Off),
    // attention
    key("attention_multiplier", ScoreFactor), key("query_pre_attn_scalar", ScoreDivisor),
    key("attn_logit_softcapping", Off), key("attention_logit_softcapping", Off), key("clip_qkv", Off),
    key("attention_in_multiplier", One), key("attention_out_multiplier", One), key("key_multiplier", One),
    key("qk_scale_factor", One), key("attn_output_gate", Off), key("use_gated_attention", Off),
    key("use_qk_norm", HeadNorms), key("qk_norm", HeadNorms), key("qk_layernorm", HeadNorms), key("use_qk_layernorm", HeadNorms),
    key("is_causal", On), key("use_bidirectional_attention", Off), key("add_cross_attention", Off),
    key("cross_attention_layers", Off), key("num_kv_shared_layers", Off), key("kv_lora_rank", Off), key("q_lora_rank", Off),
    key("attn_temperature_tuning", Off), key("llama_4_scaling_beta", Off),
    // which positions are seen, and how they are told
    key("layer_types", FullAttention), key("attention_chunk_size", Off), key("sliding_window_pattern", AtMostOne),
    key("no_rope_layers", NoZero), key("rope_local_base_freq", Off), key("rope_interleaved", Off), key("rope_interleave", Off),
    key("rotary_pct", WholeHead), key("position_embedding_type", Rotary), key("alibi", Off), key("use_alibi", Off),
    // the block
    key("use_parallel_residual", Off), key("parallel_attn", Off), key("norm_after", Off), key("post_norm", Off),
    key("use_post_norm", Off), key("sandwich_norm", Off), key("layernorm_1p", Off), key("apply_layernorm_1p", Off),
    key("norm_type", RmsNorm), key("normalization_type", RmsNorm), key("hidden_activation", Activation),
    key("num_experts", AtMostOne), key("num_local_experts", AtMostOne), key("n_routed_experts", AtMostOne),
    key("block_configs", Off), key("hidden_size_per_layer_input", Off),
    key("num_loops", AtMostOne), key("loop_num", AtMostOne), key("total_ut_steps", AtMostOne),
];

/// Names of classes that compute otherwise than any of ours, by how they begin.
#[rustfmt::skip]
const OTHERS: &[&str] = &[
    "Apertus", "Arcee", "Baichuan", "Bamba", "Bloom", "Cohere", "DeciLM", "Deepseek", "DeepSeek", "Ernie", "Exaone", "Falcon",
    "GPT", "Gpt", "Gemma", "Glm", "ChatGLM", "Granite", "HunYuan", "Jamba", "Jais", "Lfm", "Llama4", "Mamba", "MiniCPM", "MiniMax",
    "Ministral3", "Mistral3", "Mistral4", "Mixtral", "MPT", "Nemotron", "OPT", "Olmo", "Persimmon", "Phi", "PhiMoE", "Qwen2Moe",
    "Qwen3Moe", "Qwen3Next", "Qwen3_5", "RWKV", "SeedOss", "SmolLM3", "StableLm", "Starcoder2", "Zamba",
];

/// Holds a config against what its family computes: gives what is not honoured and does not make another model of it.
///
/// # Errors
/// What does.
pub(crate) fn check(
    all: &Map<String, Value>,
    config: &ModelConfig,
    path: &Path,
) -> Result<Vec<String>> {
    let (place, row) = (Place(path), config.row());
    let mut notices = Vec::new();
    for foreign in FOREIGN {
        let rope = ["rope_parameters", "rope_scaling"]
            .iter()
            .filter_map(|section| all.get(*section)?.get(foreign.key));
        for value in all.get(foreign.key).into_iter().chain(rope) {
            if !value.is_null() && !foreign.neutral.holds(value, config) {
                return Err(place.error(
                    foreign.key,
                    format!(
                        "{}, which {} does not have, so that the result would be of another model; give the model_type that \
                         the model was made as, or take the key out if the model is known to do without",
                        short(value),
                        row.architecture
                    ),
                ));
            }
        }
    }
    let number = |key: &str| all.get(key).and_then(Value::as_f64);
    if row.window == WindowRule::Never
        && let Some(window) = number("sliding_window")
    {
        notices.push(format!(
            "config.json: sliding_window is {window}, and {} has none: every token sees all before it",
            row.architecture
        ));
    }
    for key in ["norm_eps", "layer_norm_eps", "layer_norm_epsilon"] {
        if let Some(eps) = number(key)
            && all.get("rms_norm_eps").is_none_or(Value::is_null)
        {
            notices.push(format!(
                "config.json: {key} is {eps}, which {} does not read; rms_norm_eps is not there and taken as {}",
                row.architecture, config.rms_norm_eps
            ));
        }
    }
    architecture(all, row, &place, &mut notices)?;
    Ok(notices)
}

impl Neutral {
    fn holds(self, value: &Value, config: &ModelConfig) -> bool {
        let number = value.as_f64();
        let near = |wanted: f64| number.is_some_and(|x| (x / wanted - 1.0).abs() < 1e-3);
        let word = || value.as_str().unwrap_or_default().to_lowercase();
        let off = match value {
            Value::Bool(flag) => !flag,
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            Value::String(word) => word.is_empty(),
            _ => number == Some(0.0),
        };
        match self {
            One => number == Some(1.0),
            Off => off,
            On => value == &Value::Bool(true),
            AtMostOne => off || number.is_some_and(|n| n <= 1.0),
            HeadNorms => off || config.qk_norm,
            NoZero => value
                .as_array()
                .is_none_or(|marks| marks.iter().all(|mark| mark != 0 && mark != false)),
            ScoreFactor => number == Some(1.0) || near((config.head_dim as f64).powf(-0.5)),
            ScoreDivisor => near(config.head_dim as f64),
            FullAttention => {
                let full = |layer: &Value| layer == "full_attention";
                let all_full = value.as_array().is_some_and(|l| l.iter().all(full));
                config.row().window != WindowRule::Never || all_full
            }
            Activation => activation(value.as_str(), &Place(Path::new("")))
                .is_ok_and(|named| named == config.hidden_act),
            Rotary => !["alibi", "nope", "none", "learned"].contains(&word().as_str()),
            RmsNorm => word().contains("rms"),
            WholeHead => number == Some(1.0),
        }
    }
}

/// Whether the class that the model was saved from is its family's own.
fn architecture(
    all: &Map<String, Value>,
    row: &FamilyRow,
    place: &Place<'_>,
    notices: &mut Vec<String>,
) -> Result<()> {
    let own = row.architecture;
    let prefix = own.strip_suffix("ForCausalLM").unwrap_or(own);
    // `modeling_x.Class`, or with a repository before it
    let code = all.get("auto_map").and_then(Value::as_object);
    let code = code.into_iter().flatten().find_map(|(auto, class)| {
        let class = class.as_str().filter(|_| auto.starts_with("AutoModel"))?;
        Some((class, class.rsplit('.').next().unwrap_or(class)))
    });
    let declared = all.get("architectures").and_then(Value::as_array);
    let declared = declared.and_then(|list| list.first()?.as_str());
    let is_own = |name: &str| {
        // what a mistral with layer_types becomes
        let with_layers = name == "MinistralForCausalLM" && row.model_type == "mistral";
        name == own || (with_layers && all.contains_key("layer_types"))
    };
    if let Some(name) = declared.filter(|name| !is_own(name)) {
        let other_head = name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with("For") || rest.starts_with("Model"));
        let known_other = OTHERS.iter().any(|other| name.starts_with(other));
        let has_code = code.is_some_and(|(_, class)| class == name);
        if !other_head && (known_other || has_code) {
            let why = match known_other {
                true => "computes otherwise than".to_owned(),
                false => "is code of the model's own (auto_map) and not".to_owned(),
            };
            return Err(place.error(
                "architectures",
                format!(
                    "'{name}' {why} {own}, which model_type '{}' stands for, so that the result would be of another model; \
                     write {own} there, and take auto_map out, if the model is known to compute as that does",
                    row.model_type
                ),
            ));
        }
        notices.push(format!(
            "config.json: architectures names {name}, and the model is computed as {own}, which model_type '{}' stands for",
            row.model_type
        ));
    }
    if let Some((class, _)) = code {
        notices.push(format!(
            "config.json: auto_map names code of the model's own, {class}, which is not run: the model is computed as {own}"
        ));
    }
    Ok(())
}

/// A value for a message, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::config;

    fn notices(changes: Value) -> Vec<String> {
        config(changes).unwrap().notices
    }

    fn error(changes: Value) -> String {
        config(changes).unwrap_err().to_string()
    }

    /// For every key of the table a value that changes nothing, and one that does; `head_dim` is 4.
    fn values(neutral: Neutral) -> (Vec<Value>, Vec<Value>) {
        match neutral {
            One => (vec![json!(1), json!(1.0)], vec![json!(0.5), json!("1.0")]),
            Off => (
                vec![json!(false), json!(0), json!([]), json!({})],
                vec![json!(true), json!(30.0), json!([3]), json!({"a": 1})],
            ),
            On => (vec![json!(true)], vec![json!(false)]),
            AtMostOne => (vec![json!(0), json!(1)], vec![json!(8)]),
            HeadNorms => (vec![json!(false)], vec![json!(true)]),
            NoZero => (
                vec![json!([]), json!([1, 1])],
                vec![json!([1, 0]), json!([true, false])],
            ),
            ScoreFactor => (vec![json!(1.0), json!(0.5)], vec![json!(0.0078125)]),
            ScoreDivisor => (vec![json!(4)], vec![json!(256)]),
            FullAttention => (
                vec![json!(["full_attention", "full_attention"])],
                vec![json!(["full_attention", "sliding_attention"])],
            ),
            Activation => (vec![json!("silu")], vec![json!("gelu"), json!("relu")]),
            Rotary => (
                vec![json!("rope"), json!("absolute")],
                vec![json!("alibi"), json!("nope")],
            ),
            RmsNorm => (
                vec![json!("rmsnorm"), json!("RMS")],
                vec![json!("layernorm")],
            ),
            WholeHead => (vec![json!(1.0)], vec![json!(0.25)]),
        }
    }

    #[test]
    fn every_foreign_key_is_an_error_unless_its_value_changes_nothing() {
        for foreign in FOREIGN {
            let (neutral, changing) = values(foreign.neutral);
            for value in neutral.into_iter().chain([Value::Null]) {
                let found = config(json!({foreign.key: value}));
                assert!(found.is_ok(), "{}: {value}: {found:?}", foreign.key);
            }
            for value in changing {
                let found = error(json!({foreign.key: value}));
                let wanted = format!("config.json: {}: ", foreign.key);
                assert!(found.starts_with(&wanted), "{found}");
                assert!(
                    found.contains("which LlamaForCausalLM does not have"),
                    "{found}"
                );
            }
        }
        let inside = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}});
        assert!(error(inside).contains("llama_4_scaling_beta"));
    }

    #[test]
    fn a_family_that_has_the_thing_is_not_told_of_it() {
        assert!(config(json!({"model_type": "qwen3", "use_qk_norm": true})).is_ok());
        let windows = json!(["full_attention", "sliding_attention"]);
        let mistral = json!({"model_type": "mistral", "layer_types": windows, "sliding_window": 8});
        assert_eq!(config(mistral).unwrap().sliding_windows, [None, Some(8)]);
    }

    #[test]
    fn what_is_passed_over_without_harm_is_told() {
        assert_eq!(
            notices(json!({"sliding_window": 2047})),
            [
                "config.json: sliding_window is 2047, and LlamaForCausalLM has none: every token sees all before it"
            ]
        );
        assert_eq!(
            notices(json!({"norm_eps": 1e-4, "rms_norm_eps": "ABSENT"})),
            [
                "config.json: norm_eps is 0.0001, which LlamaForCausalLM does not read; rms_norm_eps is not there and taken as \
                 0.000001"
            ]
        );
        assert_eq!(notices(json!({"norm_eps": 1e-4})), [""; 0]);
        assert_eq!(notices(json!({"pretraining_tp": 4})), [""; 0]);
    }

    #[test]
    fn names_of_other_classes_are_told_and_refused_where_they_compute_otherwise() {
        let named = |name: &str| config(json!({"architectures": [name]}));
        assert_eq!(named("LlamaForCausalLM").unwrap().notices, [""; 0]);
        for name in [
            "LlamaModel",
            "LlamaForSequenceClassification",
            "SomethingElseForCausalLM",
        ] {
            assert_eq!(
                named(name).unwrap().notices,
                [format!(
                    "config.json: architectures names {name}, and the model is computed as LlamaForCausalLM, which model_type \
                     'llama' stands for"
                )]
            );
        }
        for name in [
            "GraniteForCausalLM",
            "Llama4ForCausalLM",
            "Gemma2ForCausalLM",
        ] {
            let found = named(name).unwrap_err().to_string();
            let wanted = format!("config.json: architectures: '{name}' computes otherwise than ");
            assert!(found.starts_with(&wanted), "{found}");
        }
        let mistral = |changes: Value| {
            let mut all =
                json!({"model_type": "mistral", "architectures": ["MinistralForCausalLM"]});
            all.as_object_mut()
                .unwrap()
                .extend(changes.as_object().unwrap().clone());
            notices(all).len()
        };
        assert_eq!(mistral(json!({})), 1);
        let layers = json!({"layer_types": ["full_attention", "full_attention"]});
        assert_eq!(mistral(layers), 0);
    }

    #[test]
    fn code_of_the_models_own_is_told() {
        let own = json!({"auto_map": {"AutoConfig": "configuration_x.XConfig",
            "AutoModelForCausalLM": "org/name--modeling_x.LlamaForCausalLM"}});
        assert_eq!(
            notices(own),
            [
                "config.json: auto_map names code of the model's own, org/name--modeling_x.LlamaForCausalLM, which is not run: \
                 the model is computed as LlamaForCausalLM"
            ]
        );
        let other = json!({"architectures": ["XForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}});
        assert!(error(other).contains(
            "'XForCausalLM' is code of the model's own (auto_map) and not LlamaForCausalLM"
        ));
        let tokenizer = json!({"auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}});
        assert_eq!(notices(tokenizer), [""; 0]);
    }
}
