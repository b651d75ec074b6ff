//! Model folders made on the fly, for tests.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::{
    CheckpointError, ModelConfig, SafetensorsWriter, TensorInfo, expected_tensors, plan_shards,
    write_file, write_json,
};

/// A Llama of two blocks, with a few of its fields changed.
pub(crate) fn config_json(changes: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
    });
    for (key, value) in changes.as_object().expect("changes are an object") {
        match value.as_str() {
            Some("ABSENT") => drop(config.as_object_mut().unwrap().shift_remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    config
}

pub(crate) fn config(changes: Value) -> Result<ModelConfig, CheckpointError> {
    ModelConfig::parse(
        config_json(changes).to_string().as_bytes(),
        Path::new("config.json"),
    )
}

/// BF16 tensors that the config calls for, with values that differ.
pub(crate) fn tensors(config: &ModelConfig) -> Vec<(TensorInfo, Vec<u8>)> {
    expected_tensors(config)
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let n: usize = shape.iter().product();
            let bytes = (0..n)
                .flat_map(|k| half::bf16::from_f32((i * 7 + k) as f32 / 8.0 - 3.0).to_le_bytes())
                .collect();
            let dtype = Dtype::BF16;
            (TensorInfo { name, dtype, shape }, bytes)
        })
        .collect()
}

pub(crate) fn write_tensors(path: &Path, tensors: &[(TensorInfo, Vec<u8>)]) {
    let infos: Vec<_> = tensors.iter().map(|(info, _)| info.clone()).collect();
    let mut writer = SafetensorsWriter::create(path, &infos).unwrap();
    for (info, bytes) in tensors {
        writer.write(&info.name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes config.json, tokenizer.json and weights in files of at most `max_shard_bytes`.
pub(crate) fn write_model(folder: &Path, changes: Value, max_shard_bytes: u64) {
    write_json(&folder.join("config.json"), &config_json(changes.clone())).unwrap();
    let all = tensors(&config(changes).unwrap());
    let infos: Vec<_> = all.iter().map(|(info, _)| info.clone()).collect();
    let plan = plan_shards(&infos, max_shard_bytes);
    let mut rest = all.as_slice();
    for shard in &plan.shards {
        let (mine, later) = rest.split_at(shard.tensors.len());
        write_tensors(&folder.join(&shard.file), mine);
        rest = later;
    }
    if let Some(index) = &plan.index {
        write_json(&folder.join("model.safetensors.index.json"), index).unwrap();
    }
    let tokenizer = include_bytes!("../embedded/tiny/tokenizer.json");
    write_file(&folder.join("tokenizer.json"), tokenizer).unwrap();
}

/// An error's text, with the test's folder called DIR.
pub(crate) fn message(error: &CheckpointError, folder: &Path) -> String {
    error
        .to_string()
        .replace(&folder.display().to_string(), "DIR")
}
