//! The mirror of the file: what may stand in it, key by key. The descriptions reach editors by the schema.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::words::{
    AwqLoss, Damp, Device, Format, Measure, Method, Packing, Propagation, Recipe, SignedScales,
    Windows, WinnerBy,
};

/// A halfbyte pipeline: how a model folder becomes a smaller one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PipelineFile {
    /// What is quantized; the only section that must be there.
    pub(super) model: ModelFile,
    /// The text the statistics are taken on.
    #[serde(default)]
    pub(super) calibration: CalibrationFile,
    /// How codes are chosen.
    #[serde(default)]
    pub(super) method: Method,
    /// Which form of the method.
    #[serde(default)]
    pub(super) recipe: Recipe,
    /// Scheme and solver settings.
    #[serde(default)]
    pub(super) quant: QuantFile,
    /// How awq and awq+gptq choose channel scales.
    #[serde(default)]
    pub(super) awq: AwqFile,
    /// What the statistics of a stage have seen; auto leaves it to the recipe.
    #[serde(default, with = "auto")]
    #[schemars(schema_with = "propagation_schema")]
    pub(super) propagation: Option<Propagation>,
    /// Scales and norms tuned by gradient after the solves.
    #[serde(default)]
    pub(super) tune: TuneFile,
    /// Bits chosen linear by linear so that the whole fits a size; left out, all linears have `quant.bits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) budget: Option<BudgetFile>,
    /// What `halfbyte sweep` tries; `halfbyte run` leaves it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sweep: Option<SweepFile>,
    /// Exceptions by module name; the first that matches wins.
    #[serde(default)]
    pub(super) rules: Vec<RuleFile>,
    /// Modules that stay as they are: a name with `*` and `?`, or `re:` and a regular expression.
    #[serde(default = "default_ignore")]
    pub(super) ignore: Vec<String>,
    /// What is written.
    #[serde(default = "default_export")]
    #[schemars(length(min = 1))]
    pub(super) export: Vec<ExportFile>,
    /// How the result is scored; false, or left out, leaves it unscored.
    #[serde(default)]
    #[schemars(schema_with = "evaluate_schema")]
    pub(super) evaluate: EvaluateSwitch,
    /// What the score must reach.
    #[serde(default)]
    pub(super) gate: GateFile,
    /// Extra pages to write.
    #[serde(default)]
    pub(super) report: ReportFile,
    /// The machine's share.
    #[serde(default)]
    pub(super) resources: ResourcesFile,
}

/// What is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelFile {
    /// A folder, a hub id `org/name` with or without `@revision`, or `embedded:tiny`.
    pub(super) source: String,
    /// Branch, tag or commit of a hub model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
}

/// The text the statistics are taken on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CalibrationFile {
    /// Texts, mixed by weight.
    #[schemars(length(min = 1))]
    pub(super) sources: Vec<SourceFile>,
    /// Windows in all, the held-out ones included.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) num_samples: usize,
    /// Tokens a window.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub(super) sequence_length: usize,
    /// How texts become windows.
    pub(super) packing: Packing,
    /// Decides order and choice of windows.
    #[schemars(range(min = 0))]
    pub(super) seed: u64,
    /// Share of the windows kept out of the statistics, for the held-out loss.
    #[schemars(range(min = 0.0, max = 0.9))]
    pub(super) holdout: f64,
    /// Windows of tokens drawn at random from the vocabulary, on top of num_samples, so that the statistics know what the text
    /// does not visit.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) random_samples: usize,
    /// Windows that the float model writes itself, on top of num_samples; auto leaves it to the method and the recipe.
    #[serde(with = "auto")]
    #[schemars(schema_with = "generated_schema")]
    pub(super) generated_samples: Option<usize>,
}

/// One calibration text: a path or a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SourceFile {
    /// A txt, jsonl, json, csv, tsv or parquet file, also packed as gz or zst, a folder of them, or `embedded:calibration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// The id of a data set on the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dataset: Option<String>,
    /// Its share of the windows, against the other weights; 1 where left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub(super) weight: Option<f64>,
    /// The column of jsonl, csv and parquet files that holds the text, a chat or token ids. Left out, the first that is
    /// there of text, a chat (messages, conversations), chosen, a question and its answer (prompt and completion and
    /// their like), input_ids, content and other usual names, or the only column of strings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text_column: Option<String>,
    /// Whether chats are written with the model's own chat template, where it has one; false joins their messages by blank
    /// lines. Left out, true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chat_template: Option<bool>,
}

/// Scheme and solver settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QuantFile {
    /// Bits a code.
    #[schemars(extend("enum" = [2, 3, 4, 5, 6, 8]))]
    pub(super) bits: u8,
    /// Columns that share a scale: 16 to 1024, -1 for one group a row, or 0 for one scale for all (absmax). For nf4 and
    /// fp4 the block size: weights in a row of the file, 32 to 1024 by powers of two.
    #[schemars(schema_with = "group_size_schema")]
    pub(super) group_size: i64,
    /// Whether the zero point is fixed at the middle code.
    pub(super) sym: bool,
    /// Columns are solved by falling diagonal of the Hessian (act order).
    pub(super) desc_act: bool,
    /// Groups are contiguous columns whatever the order, so that no index need be stored.
    pub(super) static_groups: bool,
    /// What is added to the Hessian's diagonal, as a fraction of its mean; auto leaves it to the recipe.
    #[schemars(schema_with = "damp_schema")]
    #[serde(with = "damp")]
    pub(super) damp_percent: Damp,
    /// Whether scales may be negative; auto where every known consumer of the exported formats accepts it.
    #[schemars(schema_with = "signed_schema")]
    #[serde(with = "signed")]
    pub(super) signed_scales: SignedScales,
    /// Whether nf4's and fp4's block scales are stored in 8 bits and not in 32 (QLoRA's double quantization).
    pub(super) double_quant: bool,
}

/// How awq and awq+gptq choose channel scales.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AwqFile {
    /// What candidates are judged by.
    pub(super) loss: AwqLoss,
    /// Calibration tokens that modules run on for `loss: module`, as whole windows.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub(super) loss_tokens: usize,
}

/// Scales and norms tuned by gradient until the model's predictions are closest to the float model's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TuneFile {
    /// Passes over the windows; 0 for no tuning, auto leaves it to the recipe.
    #[serde(with = "auto")]
    #[schemars(schema_with = "epochs_schema")]
    pub(super) epochs: Option<usize>,
    /// Windows that the float model writes for tuning alone, learned from in the place of calibration windows; auto leaves it
    /// to the recipe.
    #[serde(with = "auto")]
    #[schemars(schema_with = "generated_schema")]
    pub(super) generated_samples: Option<usize>,
    /// Windows of an epoch, drawn anew for each; auto leaves it to the recipe.
    #[serde(with = "auto")]
    #[schemars(schema_with = "samples_schema")]
    pub(super) num_samples: Option<usize>,
    /// Largest relative change of a scale in a step; auto leaves it to the recipe.
    #[serde(with = "auto")]
    #[schemars(schema_with = "rate_schema")]
    pub(super) learning_rate: Option<f64>,
}

/// Bits chosen linear by linear so that the whole fits a size. One of the two limits must be there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BudgetFile {
    /// Stored bits a weight on average over the quantized linears, scales and zero points included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "budget_bits_schema")]
    pub(super) bits_per_weight: Option<f64>,
    /// Bytes of all tensors of the first export, such as 90MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "text_schema")]
    pub(super) bytes: Option<String>,
    /// The widths to choose from; left out, all that the exported formats hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "bits_list_schema")]
    pub(super) bits: Vec<u8>,
    /// Least widths by module name; the first that matches wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) floors: Vec<FloorFile>,
}

/// The settings a sweep tries, every combination a cell. An axis left out has the file's own value alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SweepFile {
    /// Bits a code.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "bits_list_schema")]
    pub(super) bits: Vec<u8>,
    /// Columns that share a scale.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "group_size_list_schema")]
    pub(super) group_size: Vec<i64>,
    /// Whether the zero point is fixed at the middle code.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub(super) sym: Vec<bool>,
    /// How codes are chosen; not awq and awq+gptq.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub(super) method: Vec<Method>,
    /// Which form of the method; not best.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub(super) recipe: Vec<Recipe>,
    /// Which cells are scored on the text of `evaluate`; left out, all where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) measure: Option<Measure>,
    /// The cell to run and export in the end; left out, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) winner: Option<WinnerFile>,
}

/// The cell to run and export in the end: the best that keeps to the limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WinnerFile {
    /// What it is least in; left out, kl, or predicted_kl where nothing is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<WinnerBy>,
    /// Most stored bits a weight over the quantized linears, scales and zero points included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "budget_bits_schema")]
    pub(super) max_bits_per_weight: Option<f64>,
    /// Most bytes of all tensors of the first export, such as 90MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "text_schema")]
    pub(super) max_bytes: Option<String>,
}

/// A least width by module name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FloorFile {
    /// Whom it concerns: a name with `*` and `?`, or `re:` and a regular expression.
    #[serde(rename = "match")]
    pub(super) pattern: String,
    /// Bits a code at least.
    #[schemars(schema_with = "bits_schema")]
    pub(super) bits: u8,
}

/// An exception by module name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleFile {
    /// Whom it concerns: a name with `*` and `?`, or `re:` and a regular expression.
    #[serde(rename = "match")]
    pub(super) pattern: String,
    /// Bits a code, in place of `quant.bits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bits_schema")]
    pub(super) bits: Option<u8>,
    /// Columns that share a scale, in place of `quant.group_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "group_size_schema")]
    pub(super) group_size: Option<i64>,
    /// In place of `quant.sym`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sym: Option<bool>,
    /// True leaves the module as it is. False, with nothing else, quantizes it as `quant` says, whatever rules come after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) skip: Option<bool>,
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExportFile {
    /// The layout.
    pub(super) format: Format,
    /// Its folder, from the folder of the run; left out, a single export takes the run's folder itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) out: Option<String>,
}

/// `evaluate: false`, or the section.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum EvaluateSwitch {
    #[default]
    Off,
    On(EvaluateFile),
}

/// How the result is scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EvaluateFile {
    /// A text of the kinds that calibration reads, or a folder of them, of which the split test or else validation is taken;
    /// left out, a short text inside the program that calibration does not read.
    #[serde(default = "default_evaluate_text")]
    pub(super) text: String,
    /// Tokens a window.
    #[serde(default = "default_evaluate_length")]
    #[schemars(range(min = 2, max = 1_048_576))]
    pub(super) sequence_length: usize,
    /// A count (evenly spaced), a list of indices from 0, or all; left out, 32, and all of the text inside the program.
    #[serde(default, with = "windows", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "windows_schema")]
    pub(super) windows: Option<Windows>,
    /// The column of jsonl, csv and parquet files that holds the text; left out, it is found as for calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text_column: Option<String>,
    /// Whether chats are written with the model's own chat template, where it has one; false joins their messages by blank
    /// lines. Left out, true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chat_template: Option<bool>,
}

/// What the score must reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GateFile {
    /// Largest mean KL divergence to the float model, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub(super) max_kl: Option<f64>,
}

/// What is written beside run.json and linears.csv, which always are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReportFile {
    /// halfbyte/report.html, the run as one offline page.
    pub(super) html: bool,
    /// What LLM.int8() would keep of every linear in 16 bits, as columns of run.json and linears.csv.
    pub(super) llm_int8: bool,
    /// Loss against calibration tokens, in run.json and report.html: whether the text is enough.
    pub(super) calibration_curve: bool,
}

/// The machine's share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ResourcesFile {
    /// Threads; auto takes all cores.
    #[serde(with = "auto")]
    #[schemars(schema_with = "threads_schema")]
    pub(super) threads: Option<usize>,
    /// What the run may hold before it spills to files, such as 8GiB; auto takes 80 % of what is free when it starts, a
    /// container's limits included.
    pub(super) max_memory: String,
    /// Where tensors live.
    pub(super) device: Device,
}

impl Default for ReportFile {
    fn default() -> Self {
        Self {
            html: true,
            llm_int8: false,
            calibration_curve: true,
        }
    }
}

impl Default for CalibrationFile {
    fn default() -> Self {
        Self {
            sources: vec![SourceFile {
                path: Some(super::EMBEDDED_CALIBRATION.to_owned()),
                ..SourceFile::default()
            }],
            num_samples: 128,
            sequence_length: 512,
            packing: Packing::Concat,
            seed: 0,
            holdout: 0.1,
            random_samples: 0,
            generated_samples: None,
        }
    }
}

impl Default for AwqFile {
    fn default() -> Self {
        Self {
            loss: AwqLoss::Module,
            loss_tokens: 2048,
        }
    }
}

impl Default for QuantFile {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: 128,
            sym: true,
            desc_act: true,
            static_groups: true,
            damp_percent: Damp::Auto,
            signed_scales: SignedScales::Auto,
            double_quant: true,
        }
    }
}

impl Default for ResourcesFile {
    fn default() -> Self {
        Self {
            threads: None,
            max_memory: "auto".to_owned(),
            device: Device::Auto,
        }
    }
}

fn default_ignore() -> Vec<String> {
    vec!["lm_head".to_owned()]
}

fn default_export() -> Vec<ExportFile> {
    vec![ExportFile {
        format: Format::CompressedTensors,
        out: None,
    }]
}

fn default_evaluate_text() -> String {
    super::EMBEDDED_EVALUATION.to_owned()
}

fn default_evaluate_length() -> usize {
    1024
}

// Keys with a word beside a number or a section. serde's own way, `untagged`, reports every mistake in them as
// "did not match any variant"; the schema has said what is wrong before these run.

fn bits_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "enum": [2, 3, 4, 5, 6, 8]})
}

fn bits_list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {"type": "integer", "enum": [2, 3, 4, 5, 6, 8]},
        "minItems": 1,
    })
}

fn budget_bits_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "number", "minimum": 2, "maximum": 16})
}

fn text_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string"})
}

fn group_size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"type": "integer", "minimum": 16, "maximum": 1024}, {"const": -1}, {"const": 0}]})
}

fn group_size_list_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": group_size_schema(generator), "minItems": 1})
}

fn damp_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "number", "minimum": 0, "maximum": 1}]})
}

fn signed_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "boolean"}]})
}

fn threads_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 4096}]})
}

fn propagation_schema(generator: &mut SchemaGenerator) -> Schema {
    let word = generator.subschema_for::<Propagation>();
    json_schema!({"anyOf": [{"const": "auto"}, word]})
}

fn epochs_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0, "maximum": 1000}]})
}

fn samples_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1_000_000}]})
}

fn generated_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0, "maximum": 1_000_000}]})
}

fn rate_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"const": "auto"}, {"type": "number", "minimum": 0, "maximum": 0.1}]})
}

fn windows_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [
        {"const": "all"},
        {"type": "integer", "minimum": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ]})
}

fn evaluate_schema(generator: &mut SchemaGenerator) -> Schema {
    let section = generator.subschema_for::<EvaluateFile>();
    json_schema!({"anyOf": [{"const": false}, section]})
}

impl Serialize for EvaluateSwitch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On(section) => section.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for EvaluateSwitch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(false) => Ok(Self::Off),
            section => from_json(section).map(Self::On),
        }
    }
}

mod damp {
    use super::*;

    pub(super) fn serialize<S: Serializer>(damp: &Damp, serializer: S) -> Result<S::Ok, S::Error> {
        match damp {
            Damp::Auto => serializer.serialize_str("auto"),
            Damp::Fraction(fraction) => serializer.serialize_f64(*fraction),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Damp, D::Error> {
        match Value::deserialize(d)? {
            word if word == "auto" => Ok(Damp::Auto),
            number => from_json(number).map(Damp::Fraction),
        }
    }
}

mod signed {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        signed: &SignedScales,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match signed {
            SignedScales::Auto => serializer.serialize_str("auto"),
            SignedScales::On => serializer.serialize_bool(true),
            SignedScales::Off => serializer.serialize_bool(false),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SignedScales, D::Error> {
        match Value::deserialize(d)? {
            word if word == "auto" => Ok(SignedScales::Auto),
            Value::Bool(true) => Ok(SignedScales::On),
            other => from_json(other).map(|_: bool| SignedScales::Off),
        }
    }
}

/// `auto`, or a value.
mod auto {
    use super::*;

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            None => serializer.serialize_str("auto"),
            Some(value) => value.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<T>, D::Error> {
        match Value::deserialize(d)? {
            word if word == "auto" => Ok(None),
            value => from_json(value).map(Some),
        }
    }
}

mod windows {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        windows: &Option<Windows>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match windows {
            None => Value::Null,
            Some(Windows::All) => json!("all"),
            Some(Windows::Count(count)) => json!(count),
            Some(Windows::List(list)) => json!(list),
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Windows>, D::Error> {
        let windows = match Value::deserialize(d)? {
            word if word == "all" => Windows::All,
            list @ Value::Array(_) => Windows::List(from_json(list)?),
            number => Windows::Count(from_json(number)?),
        };
        Ok(Some(windows))
    }
}

fn from_json<T: DeserializeOwned, E: serde::de::Error>(value: Value) -> Result<T, E> {
    serde_json::from_value(value).map_err(E::custom)
}
