//! What a model folder holds.

use std::ops::ControlFlow;
use std::path::Path;

use halfbyte_checkpoint::{ModelConfig, ModelFolder, expected_tensors};
use halfbyte_model::{LinearKind, Weights, linear_shape, rope_frequencies};
use halfbyte_pack::{
    ConfigNotes, Format as Layout, ScaleDtype, packed_layout, read_quantization_config,
};
use halfbyte_pipeline::config::Device;
use halfbyte_pipeline::{GenerateRequest, Generator, SamplingRequest, inspect};
use halfbyte_quant::{Codebook, CodebookScheme, Coding, GroupSize, Scheme};
use serde_json::{Map, Value, json};

use super::{Target, root, said, scratch, write};
use crate::mutate::{Format, safetensors as file_of};

/// Every config.json of the golden models, and further ways to stretch positions.
fn configs() -> Vec<Value> {
    let folders = std::fs::read_dir(root().join("tests/golden"))
        .into_iter()
        .flatten()
        .flatten();
    let texts = folders.filter_map(|folder| std::fs::read(folder.path().join("config.json")).ok());
    let mut all: Vec<Value> = texts
        .filter_map(|text| serde_json::from_slice(&text).ok())
        .collect();
    all.sort_by_key(Value::to_string);
    all
}

pub(super) fn config() -> Target {
    let mut seeds = configs();
    let bare = small_config();
    for quantized in quantization_configs() {
        let mut config = bare.clone();
        config["quantization_config"] = quantized;
        seeds.push(config);
    }
    Target {
        name: "config",
        format: Format::Json,
        seeds: seeds
            .iter()
            .map(|seed| seed.to_string().into_bytes())
            .collect(),
        words: &[
            "layer_types",
            "sliding_attention",
            "full_attention",
            "rope_scaling",
            "longrope",
            "mrope",
            "gelu",
            "use_sliding_window",
            "max_window_layers",
            "partial_rotary_factor",
            "num_experts",
            "text_config",
            "logit_scale",
            "beta_fast",
            "mscale",
        ],
        reader: || {
            Box::new(|bytes| {
                let config = match ModelConfig::parse(bytes, Path::new("config.json")) {
                    Ok(config) => config,
                    Err(error) => return error.to_string(),
                };
                config.positions();
                // what a command does only once the weights are there in their shapes
                if config.head_dim < 1 << 16 {
                    rope_frequencies(&config.rope, config.head_dim, 8);
                }
                if config.num_hidden_layers < 64 {
                    expected_tensors(&config);
                }
                match &config.quantization_config {
                    Some(quantized) => said(read_quantization_config(quantized)),
                    None => format!("ok {}", config.notices.join(" ")),
                }
            })
        },
    }
}

pub(super) fn quantization_config() -> Target {
    let seeds = quantization_configs();
    Target {
        name: "quantization_config",
        format: Format::Json,
        seeds: seeds
            .iter()
            .map(|seed| seed.to_string().into_bytes())
            .collect(),
        words: &[
            "re:.*",
            "+:.*",
            "-:.*",
            "lm_head",
            "targets",
            "dynamic",
            "modules_to_not_convert",
            "bits",
            "actorder",
        ],
        reader: || {
            Box::new(|bytes| {
                let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
                    return "not JSON".to_owned();
                };
                let layout = match read_quantization_config(&value) {
                    Ok(layout) => layout,
                    Err(error) => return error.to_string(),
                };
                let modules = [
                    "model.layers.0.self_attn.q_proj",
                    "model.layers.31.mlp.down_proj",
                    "lm_head",
                ];
                let codings = modules.map(|module| layout.coding_for(module, |_| None));
                match codings.into_iter().collect::<Result<Vec<_>, _>>() {
                    Ok(codings) => {
                        let words = codings.iter().flatten().map(Coding::to_string);
                        format!("ok {}", words.collect::<Vec<_>>().join(" "))
                    }
                    Err(error) => error.to_string(),
                }
            })
        },
    }
}

/// A model of one block whose widths all formats take.
fn small_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 24,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": true,
        "torch_dtype": "float16", "bos_token_id": 0, "eos_token_id": [1],
    })
}

fn small() -> ModelConfig {
    let text = small_config().to_string();
    ModelConfig::parse(text.as_bytes(), Path::new("config.json"))
        .expect("the small model's config is valid")
}

/// Every format with every width it takes, as halfbyte writes it, and with what other programs write beside.
fn codings() -> Vec<(Layout, Coding)> {
    let mut all = Vec::new();
    for format in Layout::ALL {
        for bits in [2, 3, 4, 8] {
            for (group, sym) in [(32, true), (-1, true), (32, false)] {
                let group = GroupSize::from_i64(group).expect("a group size");
                let scheme = Scheme::new(bits, group, sym).expect("a scheme");
                all.push((format, Coding::Grid(scheme)));
            }
        }
        for (codebook, double_quant) in [
            (Codebook::Nf4, true),
            (Codebook::Nf4, false),
            (Codebook::Fp4, true),
        ] {
            let scheme = CodebookScheme {
                codebook,
                block_size: 64,
                double_quant,
            };
            all.push((format, Coding::Codebook(scheme)));
        }
    }
    all.retain(|(format, coding)| format.supports(coding, [64, 64]).is_ok());
    all
}

fn modules(coding: Coding) -> Vec<(String, Option<Coding>)> {
    let kinds = LinearKind::ALL.into_iter();
    kinds.map(|kind| (kind.module(0), Some(coding))).collect()
}

fn quantization_of(format: Layout, coding: Coding) -> Value {
    let notes = ConfigNotes {
        version: "0.1.0".to_owned(),
        damp_percent: Some(0.01),
        true_sequential: true,
        static_groups: true,
        dtype: ScaleDtype::F16,
        meta: Map::new(),
    };
    halfbyte_pack::quantization_config(format, &modules(coding), &["lm_head".to_owned()], &notes)
}

fn quantization_configs() -> Vec<Value> {
    let all = codings();
    let mut configs: Vec<Value> = all
        .iter()
        .map(|(format, coding)| quantization_of(*format, *coding))
        .collect();
    configs.extend([
        json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true, "checkpoint_format": "gptq",
            "true_sequential": true, "lm_head": false, "damp_percent": 0.1,
            "dynamic": {"+:.*\\.down_proj.*": {"bits": 8, "group_size": 64}, "-:.*\\.gate_proj.*": {}}}),
        json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm",
            "modules_to_not_convert": ["lm_head"]}),
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*gate.*"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true,
            "strategy": "group", "group_size": 128, "actorder": null, "dynamic": false}, "input_activations": null}}}),
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": true, "bnb_4bit_compute_dtype": "bfloat16", "llm_int8_skip_modules": ["lm_head"]}),
    ]);
    configs
}

/// A tensor's header entry and nothing else: `{"dtype", "shape"}`; bytes follow from the shape.
fn entry(dtype: &str, shape: &[usize]) -> Value {
    json!({"dtype": dtype, "shape": shape})
}

fn size_of(dtype: &str) -> u64 {
    match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    }
}

/// The tensors of `{name: {"dtype", "shape"}}` as a safetensors file, with data that are small numbers in every type. An
/// entry that is no such, and one too large for a test, has no bytes.
fn with_data(tensors: &Value) -> Vec<u8> {
    const LARGEST: u64 = 200_000;
    let mut header = Map::new();
    let mut end = 0;
    for (name, tensor) in tensors.as_object().into_iter().flatten() {
        let mut tensor = tensor.clone();
        let dims = tensor["shape"].as_array().cloned().unwrap_or_default();
        let elements = dims
            .iter()
            .try_fold(1u64, |n, dim| n.checked_mul(dim.as_u64()?));
        let size = tensor["dtype"].as_str().map_or(1, size_of);
        let bytes = elements
            .and_then(|n| n.checked_mul(size))
            .filter(|&n| end + n < LARGEST);
        let bytes = bytes.unwrap_or(0);
        if let Value::Object(fields) = &mut tensor {
            fields.insert("data_offsets".to_owned(), json!([end, end + bytes]));
        }
        header.insert(name.clone(), tensor);
        end += bytes;
    }
    // 0x2c.. is a number near 0.06 in half precision, and one near 1e-11 in single
    let data: Vec<u8> = (0..end as usize).map(|at| [0x11, 0x2c][at % 2]).collect();
    file_of(Value::Object(header).to_string().as_bytes(), &data)
}

/// The small model's tensors, all floats, or its linears as a format has them.
fn small_tensors(packed: Option<(Layout, Coding)>) -> Value {
    let mut all = Map::new();
    let config = small();
    for (name, shape) in expected_tensors(&config) {
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        let kind = LinearKind::ALL
            .into_iter()
            .find(|kind| kind.module(0) == module);
        match (packed, kind) {
            (Some((format, coding)), Some(kind)) => {
                let shape = linear_shape(&config, kind);
                let layouts = packed_layout(module, &coding, shape, format, ScaleDtype::F16);
                for tensor in layouts.into_iter().flatten() {
                    all.insert(tensor.name, entry(tensor.dtype.as_str(), &tensor.shape));
                }
            }
            _ => drop(all.insert(name, entry("F16", &shape))),
        }
    }
    Value::Object(all)
}

/// A byte-pair tokenizer of a few letters.
fn small_tokenizer() -> Value {
    let letters = [
        "<s>", "</s>", "a", "b", "c", "d", "e", "h", "l", "o", "w", "r", "Ġ", "he", "ll", "llo",
        "hello", "Ġw", "or",
    ];
    let vocab: Map<String, Value> = letters
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": true, "normalized": true, "special": true},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": [["h", "e"], ["l", "l"], ["ll", "o"], ["he", "llo"], ["Ġ", "w"], ["o", "r"]]},
    })
}

fn tokenizers() -> Vec<Value> {
    let with = |changes: Value| {
        let mut tokenizer = small_tokenizer();
        for (key, value) in changes.as_object().into_iter().flatten() {
            tokenizer[key] = value.clone();
        }
        tokenizer
    };
    let merges = json!(["h e", "l l", "ll o", "he llo"]);
    let mut old = small_tokenizer();
    old["model"]["merges"] = merges;
    vec![
        small_tokenizer(),
        old,
        with(json!({
            "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 2},
            "padding": {"strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "<s>"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|[a-z]+"}, "behavior": "Isolated", "invert": false},
                {"type": "Digits", "individual_digits": true},
                {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": false}]},
        })),
        with(json!({
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "Strip", "strip_left": true, "strip_right": true}]},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
            "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": true},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": [["<unk>", 0.0], ["▁", -1.0], ["h", -2.0], ["e", -2.5],
                ["l", -2.0], ["o", -3.0], ["▁he", -1.5], ["<0x0A>", -9.0]]},
        })),
        with(json!({
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 2]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": {"[UNK]": 0, "[SEP]": 1, "[CLS]": 2, "h": 3, "##e": 4, "##l": 5, "##o": 6, "hello": 7}},
        })),
        with(json!({
            "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "hello": 1, "world": 2}},
        })),
    ]
}

pub(super) fn tokenizer() -> Target {
    Target {
        name: "tokenizer",
        format: Format::Json,
        seeds: tokenizers()
            .iter()
            .map(|seed| seed.to_string().into_bytes())
            .collect(),
        words: &[
            "Nmt",
            "NFKC",
            "StripAccents",
            "Precompiled",
            "Punctuation",
            "UnicodeScripts",
            "CharDelimiterSplit",
            "FixedLength",
            "CTC",
            "BPEDecoder",
            "MergedWithPrevious",
            "Removed",
            "Contiguous",
            "<0xFF>",
            "DoNotTruncate",
            "OnlyFirst",
            "BatchLongest",
        ],
        reader: || {
            let folder = model_in_scratch();
            Box::new(move |bytes| {
                write(folder.path(), "tokenizer.json", bytes);
                let model = match ModelFolder::open(folder.path()) {
                    Ok(model) => model,
                    Err(error) => return error.to_string(),
                };
                let tokenizer = match model.tokenizer() {
                    Ok(tokenizer) => tokenizer,
                    Err(error) => return error.to_string(),
                };
                let text =
                    "Hello world, 1234 é\u{301} \u{1f469}\u{200d}\u{1f680} <s>hello</s>\n\n  ll";
                let windows = halfbyte_calibrate::text::WindowChoice::All;
                let calibration = super::text::windows_of_text(text, &tokenizer);
                let evaluation =
                    halfbyte_calibrate::text::evaluation_windows(text, &tokenizer, 4, &windows);
                let evaluation = evaluation.map_err(|error| error.to_string());
                match calibration.and(evaluation) {
                    Ok(text) => format!("ok {}", text.n_tokens > 8),
                    Err(error) => error,
                }
            })
        },
    }
}

/// The small model as a folder.
fn model_in_scratch() -> tempfile::TempDir {
    let folder = scratch();
    write(
        folder.path(),
        "config.json",
        small_config().to_string().as_bytes(),
    );
    write(
        folder.path(),
        "model.safetensors",
        &with_data(&small_tensors(None)),
    );
    write(
        folder.path(),
        "tokenizer.json",
        small_tokenizer().to_string().as_bytes(),
    );
    folder
}

/// Reads all that a loader reads of an opened folder.
fn read_tensors(folder: &ModelFolder) -> Result<String, String> {
    let unread = folder.unread_tensors().map_err(|error| error.to_string())?;
    folder.check_tensors().map_err(|error| error.to_string())?;
    for (name, shape) in expected_tensors(folder.config()) {
        folder
            .f32(&name, &shape)
            .map_err(|error| error.to_string())?;
    }
    Ok(format!("ok {}", unread.len()))
}

pub(super) fn safetensors() -> Target {
    let mut seeds = vec![with_data(&small_tensors(None))];
    let llama = root().join("tests/golden/llama_bf16/model.safetensors");
    seeds.extend(std::fs::read(llama));
    let packed = codings().into_iter().step_by(5);
    seeds.extend(packed.map(|packed| with_data(&small_tensors(Some(packed)))));
    Target {
        name: "safetensors",
        format: Format::Safetensors,
        seeds,
        words: &[
            "__metadata__",
            "BF16",
            "F64",
            "F8_E4M3",
            "U8",
            "F4",
            "data_offsets",
            "lm_head.weight",
        ],
        reader: || {
            let folder = model_in_scratch();
            tensors_with(folder, "model.safetensors")
        },
    }
}

/// Reads a folder's tensors with one of its files spoiled.
fn tensors_with(folder: tempfile::TempDir, file: &'static str) -> super::Reader {
    Box::new(move |bytes| {
        write(folder.path(), file, bytes);
        let read = ModelFolder::open(folder.path()).map_err(|error| error.to_string());
        read.and_then(|model| read_tensors(&model))
            .unwrap_or_else(|error| error)
    })
}

pub(super) fn index() -> Target {
    let tensors = small_tensors(None);
    let names: Vec<String> = tensors
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect();
    let shard = |at: usize| {
        format!(
            "model-0000{}-of-00002.safetensors",
            1 + at * 2 / names.len()
        )
    };
    let map: Map<String, Value> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (name.clone(), json!(shard(at))))
        .collect();
    let seed = json!({"metadata": {"total_size": 1234}, "weight_map": map});
    Target {
        name: "index",
        format: Format::Json,
        seeds: vec![seed.to_string().into_bytes()],
        words: &["..", "/etc/passwd", "model.safetensors", "config.json"],
        reader: || {
            let folder = model_in_scratch();
            let tensors = small_tensors(None);
            let all: Vec<(String, Value)> = tensors
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            let (first, second) = all.split_at(all.len().div_ceil(2));
            for (shard, part) in [(1, first), (2, second)] {
                let file = with_data(&Value::Object(part.iter().cloned().collect()));
                write(
                    folder.path(),
                    &format!("model-0000{shard}-of-00002.safetensors"),
                    &file,
                );
            }
            tensors_with(folder, "model.safetensors.index.json")
        },
    }
}

pub(super) fn packed_weights() -> Target {
    let seeds = codings().into_iter().map(|(format, coding)| {
        json!({"quantization_config": quantization_of(format, coding), "tensors": small_tensors(Some((format, coding)))})
    });
    Target {
        name: "packed_weights",
        format: Format::Json,
        seeds: seeds.map(|seed| seed.to_string().into_bytes()).collect(),
        words: &[
            "weight_shape",
            "weight_zero_point",
            "g_idx",
            "qzeros",
            "absmax",
            "quant_map",
            "nested_absmax",
            "I64",
            "U8",
            "BF16",
        ],
        reader: || {
            let folder = model_in_scratch();
            Box::new(move |bytes| {
                let Ok(input) = serde_json::from_slice::<Value>(bytes) else {
                    return "not JSON".to_owned();
                };
                let mut config = small_config();
                config["quantization_config"] = input["quantization_config"].clone();
                write(folder.path(), "config.json", config.to_string().as_bytes());
                write(
                    folder.path(),
                    "model.safetensors",
                    &with_data(&input["tensors"]),
                );
                let model = match ModelFolder::open(folder.path()) {
                    Ok(model) => model,
                    Err(error) => return error.to_string(),
                };
                let weights = match Weights::new(model) {
                    Ok(weights) => weights,
                    Err(error) => return error.to_string(),
                };
                let config = weights.config().clone();
                let mut words = Vec::new();
                for kind in LinearKind::ALL {
                    let read = weights.weight(&kind.module(0), linear_shape(&config, kind));
                    words.push(said(read));
                }
                words.dedup();
                words.join("; ")
            })
        },
    }
}

/// Loads the small model from a folder and has it write a token.
fn generate(folder: &Path) -> String {
    let request = GenerateRequest {
        model: folder.display().to_string(),
        prompt: "hello".to_owned(),
        raw: false,
        max_new_tokens: 2,
        sampling: SamplingRequest::default(),
        device: Device::Cpu,
    };
    let mut told = String::new();
    let generator = Generator::load(&request, &mut |event| told = format!("{event:?}"));
    let text =
        generator.and_then(|generator| generator.generate(&mut |_| ControlFlow::Continue(())));
    match text {
        Ok(_) => format!("ok {told}"),
        Err(error) => format!("{error:#}"),
    }
}

pub(super) fn chat_template() -> Target {
    let templates = [
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[{{ m.content | trim }}]{% endif %}{% endfor %}{% if \
         add_generation_prompt %}hello{% endif %}",
        "{%- macro block(x) -%}{{ x|tojson }}{%- endmacro -%}{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 \
         %}{{ block(m.content) ~ ns.n }}{% endfor %}",
        "{% if messages[0]['role'] != 'system' %}{% set system = 'hello' %}{% endif %}{{ system.strip().split('l')[-1] | upper }}\
         {% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ range(3) | list | join(',') }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }}",
    ];
    let seeds = templates.map(|template| {
        json!({"tokenizer_config": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template,
            "add_bos_token": true, "model_max_length": 64}})
    });
    let named = json!({"tokenizer_config": {"chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
        "unk_token": null, "additional_special_tokens": ["<a>"]}, "special_tokens_map": {"bos_token": "<s>"}});
    let file = json!({"jinja": "{{ messages | length }} {{ messages[0].role }} hello"});
    Target {
        name: "chat_template",
        format: Format::Json,
        seeds: seeds
            .into_iter()
            .chain([named, file])
            .map(|seed| seed.to_string().into_bytes())
            .collect(),
        words: &[
            "{% for i in range(100000) %}",
            "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
            "{% set x = x * 9 %}",
            "{{ 'a' * 100000 }}",
            "{{ [0] * 1000000 }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "| tojson(indent=4)",
            "| replace('a', 'aa')",
            "{%- endif %}",
            "{% include 'x' %}",
            "{{ 9 ** 99999 }}",
            "{{ 'x' | center(1000000000) }}",
            "{{ '%s' | format(1) }}",
            "{% endfor %}",
            "{{ range(1000000000) | list }}",
            "| indent(100000000)",
            "{{ 1 / 0 }}",
            "{{ messages.__class__ }}",
            "{{ 'a'.zfill(1000000000) }}",
            "{{ 1 % 0 }}",
            "{{ 1 // 0 }}",
            "{{ 'a'.center(999999999) }}",
        ],
        reader: || {
            let folder = model_in_scratch();
            Box::new(move |bytes| {
                let Ok(input) = serde_json::from_slice::<Value>(bytes) else {
                    return "not JSON".to_owned();
                };
                for (key, name) in [
                    ("tokenizer_config", "tokenizer_config.json"),
                    ("special_tokens_map", "special_tokens_map.json"),
                    ("jinja", "chat_template.jinja"),
                ] {
                    let text = match &input[key] {
                        Value::Null => {
                            // a file that is not there; nothing is lost where it never was
                            let _ = std::fs::remove_file(folder.path().join(name));
                            continue;
                        }
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    write(folder.path(), name, text.as_bytes());
                }
                generate(folder.path())
            })
        },
    }
}

pub(super) fn generation_config() -> Target {
    let seeds = [
        json!({"do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": [1, 2],
            "bos_token_id": 0, "pad_token_id": 0, "transformers_version": "4.40"}),
        json!({"do_sample": false, "eos_token_id": 1, "max_new_tokens": 16}),
    ];
    Target {
        name: "generation_config",
        format: Format::Json,
        seeds: seeds
            .iter()
            .map(|seed| seed.to_string().into_bytes())
            .collect(),
        words: &["min_p", "num_beams", "typical_p", "no_repeat_ngram_size"],
        reader: || {
            let folder = model_in_scratch();
            Box::new(move |bytes| {
                write(folder.path(), "generation_config.json", bytes);
                generate(folder.path())
            })
        },
    }
}

pub(super) fn model_folder() -> Target {
    let mut seeds: Vec<Value> = codings()
        .into_iter()
        .step_by(4)
        .map(|(format, coding)| {
            let mut config = small_config();
            config["quantization_config"] = quantization_of(format, coding);
            json!({"config": config, "tensors": small_tensors(Some((format, coding))), "tokenizer": small_tokenizer()})
        })
        .collect();
    seeds.push(json!({"config": small_config(), "tensors": small_tensors(None), "tokenizer": small_tokenizer()}));
    Target {
        name: "model_folder",
        format: Format::Json,
        seeds: seeds
            .iter()
            .map(|seed| seed.to_string().into_bytes())
            .collect(),
        words: &[
            "attention_bias",
            "mlp_bias",
            "sliding_window",
            "rope_scaling",
            "lm_head.weight",
            "dtype",
        ],
        reader: || {
            let folder = model_in_scratch();
            Box::new(move |bytes| {
                let Ok(input) = serde_json::from_slice::<Value>(bytes) else {
                    return "not JSON".to_owned();
                };
                write(
                    folder.path(),
                    "config.json",
                    input["config"].to_string().as_bytes(),
                );
                write(
                    folder.path(),
                    "tokenizer.json",
                    input["tokenizer"].to_string().as_bytes(),
                );
                write(
                    folder.path(),
                    "model.safetensors",
                    &with_data(&input["tensors"]),
                );
                let place = folder.path().display().to_string();
                let inspected = inspect(&place, &mut |_| {});
                let inspected = inspected.map_or_else(
                    |error| format!("{error:#}"),
                    |i| i.to_string().len().to_string(),
                );
                let generated = generate(folder.path());
                match generated.starts_with("ok") {
                    true => generated,
                    false => format!("{generated} {inspected}"),
                }
            })
        },
    }
}
