//! Shapes that published models have and the embedded one has not: heads that kv heads divide into groups of 1 to 12, query
//! widths beside the residual stream's, odd multiples of a group, biases, tied heads, norms on q and k.
//!
//! `tests/data/geometries.csv` has one line a model, as its config.json says; `small_head_dim` is what its head is narrowed to
//! here, and everything else with it but the heads, which stay as they are. `results/geometries.py` reads the same table.

mod reference;
mod runs;
mod shapes;

use std::path::Path;

use halfbyte_calibrate::text::SplitMix64;
use halfbyte_checkpoint::{
    ModelConfig, ModelFolder, SafetensorsWriter, TensorInfo, encode_f32, expected_tensors,
    write_json,
};
use halfbyte_model::{Decoder, DeviceChoice, Weights, open_device};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::program::root;

/// Widths inside the MLP are rounded to groups of so many.
const GROUP: usize = 16;
/// More rows than the embedded tokenizer has tokens, a prime number of them.
const VOCABULARY: usize = 4099;
/// A sliding window that is shorter than the windows of text.
const SLIDING_WINDOW: usize = 24;

/// A model's shape, narrowed.
#[derive(Clone, Debug)]
struct Geometry {
    name: String,
    model_type: String,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    intermediate: usize,
    /// Biases that the config asks for, beside those that a family always has.
    attention_bias: bool,
    mlp_bias: bool,
    tied: bool,
    dtype: String,
    slides: bool,
}

impl Geometry {
    /// All lines of the table.
    fn all() -> Vec<Self> {
        let text = include_str!("../../data/geometries.csv");
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap().split(',').collect();
        let of_line = |line: &str| {
            let values: Vec<&str> = line.split(',').collect();
            let text = |name: &str| values[names.iter().position(|n| *n == name).unwrap()];
            let count = |name: &str| text(name).parse::<usize>().unwrap();
            let [wide, narrow] = [count("head_dim"), count("small_head_dim")];
            let narrowed = |name: &str| count(name) * narrow;
            let hidden = narrowed("hidden_size");
            assert_eq!(hidden % wide, 0, "{line}");
            let intermediate = narrowed("intermediate_size") as f64 / (wide * GROUP) as f64;
            Self {
                name: text("model").to_owned(),
                model_type: text("model_type").to_owned(),
                heads: count("heads"),
                kv_heads: count("kv_heads"),
                head_dim: narrow,
                hidden: hidden / wide,
                intermediate: intermediate.round() as usize * GROUP,
                attention_bias: text("attention_bias") == "yes",
                mlp_bias: text("mlp_bias") == "yes",
                tied: text("tied") == "yes",
                dtype: text("dtype").to_owned(),
                slides: !text("sliding_window").is_empty(),
            }
        };
        lines.map(of_line).collect()
    }

    fn config(&self, blocks: usize) -> Value {
        let mut config = json!({
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": VOCABULARY,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_position_embeddings": 512,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "torch_dtype": self.dtype,
        });
        if self.model_type == "llama" {
            config["attention_bias"] = self.attention_bias.into();
            config["mlp_bias"] = self.mlp_bias.into();
        }
        if self.slides {
            config["sliding_window"] = SLIDING_WINDOW.into();
        }
        config
    }

    /// Writes a model of this shape with random weights, and the embedded one's tokenizer.
    fn write(&self, folder: &Path, blocks: usize) {
        let config = self.config(blocks);
        std::fs::create_dir_all(folder).unwrap();
        write_json(&folder.join("config.json"), &config).unwrap();
        let tokenizer = root().join("crates/checkpoint/embedded/tiny/tokenizer.json");
        std::fs::copy(tokenizer, folder.join("tokenizer.json")).unwrap();
        let config = ModelConfig::parse(config.to_string().as_bytes(), folder).unwrap();
        let dtype = match &self.dtype[..] {
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            _ => Dtype::BF16,
        };
        let info = |(name, shape)| TensorInfo { name, dtype, shape };
        let infos: Vec<_> = expected_tensors(&config).into_iter().map(info).collect();
        let mut writer =
            SafetensorsWriter::create(&folder.join("model.safetensors"), &infos).unwrap();
        for (stream, TensorInfo { name, shape, .. }) in infos.iter().enumerate() {
            let values = random_tensor(name, shape, stream as u64);
            writer
                .write(name, &encode_f32(&values, dtype).unwrap())
                .unwrap();
        }
        writer.finish().unwrap();
    }

    /// Such a model, and the folder that it lies in while it is read.
    fn decoder(&self, blocks: usize) -> (tempfile::TempDir, Decoder) {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path(), blocks);
        let weights = Weights::new(ModelFolder::open(folder.path()).unwrap()).unwrap();
        let device = open_device(DeviceChoice::Cpu).unwrap();
        (folder, Decoder::new(weights, device))
    }

    /// Shapes that no model is known to have and that a config may ask for all the same.
    fn made_up() -> Vec<Self> {
        let of = |name: &str, [heads, kv_heads, head_dim, hidden, intermediate]: [usize; 5]| Self {
            name: name.to_owned(),
            model_type: "llama".to_owned(),
            heads,
            kv_heads,
            head_dim,
            hidden,
            intermediate,
            attention_bias: false,
            mlp_bias: false,
            tied: true,
            dtype: "bfloat16".to_owned(),
            slides: false,
        };
        vec![
            of("one kv head", [7, 1, 10, 70, 48]),
            of("one head", [1, 1, 256, 80, 112]),
            of("no width that a power of two divides", [6, 3, 6, 37, 53]),
            Self {
                attention_bias: true,
                mlp_bias: true,
                tied: false,
                ..of("wider than the stream, biased", [10, 2, 14, 33, 21])
            },
        ]
    }
}

/// Numbers of about the size that trained tensors have: outputs as large as inputs, attention that prefers some tokens, logits
/// that prefer some ids.
fn random_tensor(name: &str, shape: &[usize], stream: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(7, stream);
    // four uniform numbers are near enough to a normal one
    let mut normal = || 3f64.sqrt() * ((0..4).map(|_| random.unit()).sum::<f64>() - 2.0);
    let fan_in = (*shape.last().unwrap() as f64).sqrt();
    let (mean, deviation) = match name.rsplit_once('.').unwrap() {
        (_, "bias") => (0.0, 0.3),
        (module, _) if module.ends_with("norm") => (1.0, 0.1),
        (module, _) if module.ends_with("q_proj") || module.ends_with("k_proj") => {
            (0.0, 1.5 / fan_in)
        }
        (module, _) if module.ends_with("embed_tokens") || module == "lm_head" => {
            (0.0, 3.0 / fan_in)
        }
        _ => (0.0, 1.0 / fan_in),
    };
    let count = shape.iter().product();
    (0..count)
        .map(|_| (mean + deviation * normal()) as f32)
        .collect()
}

#[test]
fn the_table_has_shapes_of_every_kind() {
    let all = Geometry::all();
    assert!(all.len() >= 20);
    let some = |what: &str, is_so: &dyn Fn(&Geometry) -> bool| {
        let count = all.iter().filter(|g| is_so(g)).count();
        assert!(count >= 2, "{count} are {what}");
    };
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        some(family, &|g| g.model_type == family);
    }
    some("without shared kv heads", &|g| g.heads == g.kv_heads);
    some("of kv heads whose square does not divide heads", &|g| {
        g.heads % (g.kv_heads * g.kv_heads) != 0
    });
    some("of three, five or seven heads to a kv head", &|g| {
        [3, 5, 7].contains(&(g.heads / g.kv_heads))
    });
    some("wider in the attention than the stream", &|g| {
        g.heads * g.head_dim > g.hidden
    });
    some("narrower in the attention than the stream", &|g| {
        g.heads * g.head_dim < g.hidden
    });
    some("of odd multiples of a group", &|g| {
        g.intermediate / GROUP % 2 == 1
    });
    some("biased", &|g| g.mlp_bias && g.attention_bias);
    some("tied", &|g| g.tied);
    some("with a head of its own", &|g| !g.tied);
    some("in float16", &|g| g.dtype == "float16");
    some("of sliding windows", &|g| g.slides);
}
