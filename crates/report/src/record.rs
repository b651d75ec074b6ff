use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::Verdict;

/// Version of the shape of run.json: it grows when a key is renamed, removed or changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything a run leaves behind about itself: the content of run.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// Version of that program.
    pub version: String,
    /// Names the run by all that decides its codes: settings, model, text and build. Empty in records of earlier builds.
    #[serde(default)]
    pub fingerprint: String,
    /// Names the build by what decides codes in it; two runs of one recipe version, settings, model and text have the same codes.
    /// Empty in records of earlier builds.
    #[serde(default)]
    pub recipe_version: String,
    /// What the recipe and the pipeline settled, by name, in words.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// The checked pipeline, with every default filled in.
    pub pipeline: Value,
    /// What was quantized.
    pub model: ModelRecord,
    /// The text that the statistics are of.
    pub calibration: CalibrationRecord,
    /// One record a linear, in the order in which they were solved.
    pub linears: Vec<LinearRecord>,
    /// How bits were shared out among the linears, if a budget was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetRecord>,
    /// How often every code was chosen, a record for each kind of codes.
    #[serde(default)]
    pub codes: Vec<CodesRecord>,
    /// How scales and norms were tuned after the solves, if they were; the linears' losses are from before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tune: Option<TuneRecord>,
    /// Totals.
    pub summary: SummaryRecord,
    /// Folders written.
    #[serde(default)]
    pub exports: Vec<ExportRecord>,
    /// Scores of the exported files against the float model, if asked for.
    pub evaluation: Option<EvaluationRecord>,
}

/// How often every code was chosen over all linears of one kind of codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodesRecord {
    /// `4 bits`, `4 bits with zero points`, `nf4`.
    pub name: String,
    /// Weights by code, lowest code first; a codebook's by rising level.
    pub counts: Vec<u64>,
}

/// The model that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Folder, hub id or `embedded:tiny`, as the pipeline spells it.
    pub source: String,
    /// Whether `source` is a hub id; not in records of earlier versions.
    #[serde(default)]
    pub hub: bool,
    /// Hub revision, where one was asked for.
    pub revision: Option<String>,
    /// Kind of model, `model_type` of its config.
    pub architecture: String,
    /// Decoder blocks.
    #[serde(deserialize_with = "blocks")]
    pub blocks: usize,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Type of the weights, in the spelling of safetensors.
    pub dtype: String,
    /// Tensors that no part of the model reads, if there are any; they are written on as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors_unread: Option<UnreadRecord>,
}

/// Tensors that no part of the model reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadRecord {
    /// How many.
    pub count: u64,
    /// Names of the first few.
    pub first: Vec<String>,
}

/// The calibration text and what became of it. Counts are of tokens unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// Where the text came from, as the pipeline spells it.
    pub sources: Vec<String>,
    /// SHA-256 of the token windows used, hexadecimal.
    pub sha256: String,
    /// Windows of tokens that the statistics are of, the held-out ones not among them.
    pub samples: usize,
    /// Tokens the statistics are of.
    pub tokens_used: u64,
    /// How many of those were drawn at random from the vocabulary.
    #[serde(default)]
    pub tokens_random: u64,
    /// How many of them the float model wrote.
    #[serde(default)]
    pub tokens_generated: u64,
    /// Tokens kept out of the statistics to measure the held-out loss.
    pub tokens_held_out: u64,
    /// Tokens of texts too short, or past the number of samples asked for.
    pub tokens_dropped: u64,
    /// Tokens cut off the ends of texts too long.
    pub tokens_truncated: u64,
}

/// Which second moment a linear was solved by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HessianKind {
    /// Of its own input.
    Input,
    /// Of its input mixed by the attention weights, for values.
    AttentionMixed,
    /// None, no text was read: losses are those of the weight itself, `H = I`.
    Identity,
}

impl HessianKind {
    /// The spelling in run.json and linears.csv.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::AttentionMixed => "attention-mixed",
            Self::Identity => "identity",
        }
    }
}

/// One linear: what was asked, what came out, and what it cost. The field names are the columns of linears.csv.
///
/// `relative_loss` is tr(ΔHΔᵀ)/tr(WHWᵀ), without units, so it compares across layers, models and calibration sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearRecord {
    /// Index of the decoder block.
    #[serde(deserialize_with = "blocks")]
    pub block: usize,
    /// Path inside the block, as `self_attn.q_proj`.
    pub linear: String,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
    /// Bits a code.
    pub bits: u8,
    /// Columns a scale, -1 for the whole row.
    pub group_size: i64,
    /// Whether the zero point is fixed at the middle code.
    pub sym: bool,
    /// Method, as the pipeline spells it.
    pub method: String,
    /// Stored bits per weight, scales and zero points included.
    pub bits_per_weight: f64,
    /// Tokens the statistics are of.
    pub tokens: u64,
    /// Loss on the calibration text.
    #[serde(deserialize_with = "number")]
    pub relative_loss: f64,
    /// Loss on the held-out text.
    pub relative_loss_heldout: Option<f64>,
    /// Loss of plain rounding on the calibration text.
    #[serde(deserialize_with = "number")]
    pub relative_loss_rtn: f64,
    /// Signal to noise of the weight in decibels; none if nothing was lost.
    pub sqnr_db: Option<f64>,
    /// Cosine between the outputs before and after.
    pub cosine: Option<f64>,
    /// Damping asked for, as a fraction of the mean diagonal; none where a rule chose it.
    pub damp_asked: Option<f64>,
    /// Damping used.
    #[serde(deserialize_with = "number")]
    pub damp_used: f64,
    /// Input features that were zero on every token.
    pub dead_columns: usize,
    /// Estimate of the condition number of the damped second moment.
    pub condition: Option<f64>,
    /// Share of the weights outside their grid.
    #[serde(deserialize_with = "number")]
    pub clipped_share: f64,
    /// Wall time of the solver.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// What the reader should know; joined by `; ` in linears.csv.
    pub warnings: Vec<String>,
    /// Loss of plain rounding on the held-out text.
    pub relative_loss_rtn_heldout: Option<f64>,
    /// Bytes of the weight as it was read.
    pub bytes_before: u64,
    /// Bytes of its codes, scales and zero points.
    pub bytes_after: u64,
    /// Which second moment it was solved by.
    pub hessian: HessianKind,
    /// Input columns that reach 6 on a calibration token: those that LLM.int8() would keep in 16 bits (Dettmers et al.,
    /// arXiv 2208.07339, section 3). It judges every batch by itself and so keeps no more of one. None where it was not
    /// asked for; so for the next three.
    #[serde(default)]
    pub int8_outlier_columns: Option<Vec<usize>>,
    /// Stored bits per weight of that split: 8, or 16 in the columns kept, and a 32-bit scale a row.
    #[serde(default)]
    pub int8_bits_per_weight: Option<f64>,
    /// Loss on the calibration text were all columns in 8 bits, weights a scale a row and inputs a scale a token; of the
    /// inputs' part an upper bound.
    #[serde(default)]
    pub int8_relative_loss: Option<f64>,
    /// The same with those columns kept.
    #[serde(default)]
    pub int8_relative_loss_split: Option<f64>,
    /// Whether the loss's gradient at its output had a say: tokens counted by it, and rows paid back each other's errors.
    /// `relative_loss` is by such tokens, and does not see what rows gain: it is given up for that.
    #[serde(default)]
    pub row_hessian: bool,
    /// `propagation: asymmetric`: share taken of the step to the weight that makes good what came before, 0 to 1. With
    /// several statistics a linear the mean over them, and relative losses are those against the moved weight.
    #[serde(default)]
    pub target_alpha: Option<f64>,
    /// `tr(S H Sᵀ) / tr(W H Wᵀ)` of the step `S` taken.
    #[serde(default)]
    pub target_shift: Option<f64>,
    /// `(tr H)² / ‖H‖²`, directions that the input's energy spreads over; a mean where a linear has several statistics.
    #[serde(default)]
    pub effective_rank: Option<f64>,
    /// Input channels of a hundred times the median mean square and more, the largest first.
    #[serde(default)]
    pub outlier_channels: Option<Vec<usize>>,
    /// What groups half as large (128 for a whole row) would leave of the loss, a share, as expected from ranges and
    /// Hessian; none where there are no finer ones.
    #[serde(default)]
    pub finer_group_loss: Option<f64>,
    /// KL divergence in nats a token that its error is expected to cost the model: its sensitivity times its loss, both by
    /// the float model. None outside a sweep.
    #[serde(default)]
    pub predicted_kl: Option<f64>,
    /// What took the place of the method's own solve, where that lost more than plain rounding: `plain rounding`,
    /// `rounding on a searched grid`, ... None where it stands.
    #[serde(default)]
    pub fallback: Option<String>,
    /// What it loses when solved from less text, by rising tokens, the whole text last; empty where that was not measured.
    /// No column of linears.csv.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calibration_curve: Vec<CurvePointRecord>,
}

/// A linear solved from some of the calibration text.
///
/// All points of a curve are of the same rows, at most 128 evenly spaced, and of the ordinary solve: rows by themselves,
/// no beam, for the weight as it is. So they compare with each other, and the last one is the linear's own loss where
/// that was solved so and has no more rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePointRecord {
    /// Tokens that its statistics are of.
    pub tokens: u64,
    /// Loss by those statistics: on what it was fitted to.
    #[serde(deserialize_with = "number")]
    pub relative_loss: f64,
    /// Loss on the held-out text.
    #[serde(deserialize_with = "number")]
    pub relative_loss_heldout: f64,
}

/// Bits shared out among the linears. KL divergences are in nats a token, predicted as sensitivity times loss from the
/// float model's statistics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetRecord {
    /// Stored bits per weight reached, over the quantized linears.
    pub bits_per_weight: f64,
    /// KL predicted for the widths chosen.
    pub predicted_kl: f64,
    /// The same for one width everywhere, ascending.
    pub uniform: Vec<UniformRecord>,
    /// Every linear, in the model's order.
    pub linears: Vec<SensitivityRecord>,
}

/// What one width everywhere would come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UniformRecord {
    /// Bits a code.
    pub bits: u8,
    /// Stored bits per weight.
    pub bits_per_weight: f64,
    /// KL predicted.
    pub predicted_kl: f64,
}

/// What a linear's error costs the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensitivityRecord {
    /// Module name.
    pub linear: String,
    /// Bits chosen.
    pub bits: u8,
    /// KL a unit of the loss `tr(ΔHΔᵀ)`.
    pub sensitivity: f64,
    /// KL predicted at the widths that could be chosen, as `(bits, KL)`.
    pub predicted_kl: Vec<(u8, f64)>,
}

/// Scales and norms tuned by gradient. KL in nats, a value an epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TuneRecord {
    /// Passes over the windows learned from.
    pub epochs: usize,
    /// Windows that the float model wrote to be learned from; none of them where those were the calibration's.
    #[serde(default)]
    pub generated_samples: usize,
    /// Windows of a pass; none in records from before it could be fewer than all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_samples: Option<usize>,
    /// Epochs kept: those up to the least held-out KL.
    pub epochs_kept: usize,
    /// Largest relative change of a scale in a step.
    pub learning_rate: f64,
    /// Mean KL(float ‖ quantized) on those windows while they were learned from.
    pub kl_calibration: Vec<f64>,
    /// The same on the held-out windows, before the first epoch and after each.
    pub kl_heldout: Vec<f64>,
}

/// Totals of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SummaryRecord {
    /// Stored bits per weight over all quantized linears, scales and zero points included.
    #[serde(deserialize_with = "number")]
    pub bits_per_weight: f64,
    /// Bytes of all tensors read.
    pub bytes_before: u64,
    /// Bytes of all tensors of the first export.
    pub bytes_after: u64,
    /// Wall time.
    pub seconds: f64,
    /// Processor time over all cores.
    pub cpu_seconds: f64,
    /// Largest resident memory, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Blocks taken over from an interrupted run; the seconds are those of this one alone.
    #[serde(default)]
    pub blocks_resumed: usize,
    /// Where the time went, longest first.
    #[serde(default)]
    pub phases: Vec<PhaseRecord>,
    /// What the reader should know of the run as a whole.
    pub warnings: Vec<String>,
}

/// Time of one phase, such as `mlp input` (forward and statistics of that stage) or `solve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// What was done.
    pub name: String,
    /// Wall time.
    pub seconds: f64,
    /// Processor time over all cores.
    pub cpu_seconds: f64,
    /// By how much the process's peak memory grew while it ran, where the system tells.
    #[serde(default)]
    pub peak_rss_growth_bytes: u64,
}

/// A folder that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// Checkpoint format, in the field's spelling.
    pub format: String,
    /// Folder.
    pub path: String,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// Scores of the exported files read back, beside the float model, token by token. KL in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// The text, as the pipeline spells it.
    pub text: String,
    /// SHA-256 of the token windows scored, hexadecimal; empty in records of earlier builds.
    #[serde(default)]
    pub sha256: String,
    /// Tokens a window.
    pub sequence_length: usize,
    /// Windows scored.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: u64,
    /// Tokens in the vocabulary; none in records of earlier versions.
    #[serde(default)]
    pub vocab_size: Option<usize>,
    /// What the scores come to, in a word; none in records of earlier versions.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// Perplexity of the float model.
    #[serde(deserialize_with = "number")]
    pub perplexity_float: f64,
    /// Its standard error.
    #[serde(deserialize_with = "number")]
    pub perplexity_float_se: f64,
    /// Perplexity of the exported files.
    #[serde(deserialize_with = "number")]
    pub perplexity: f64,
    /// Its standard error.
    #[serde(deserialize_with = "number")]
    pub perplexity_se: f64,
    /// Mean of KL(float ‖ quantized) over tokens.
    #[serde(deserialize_with = "number")]
    pub kl_mean: f64,
    /// Its standard error.
    #[serde(deserialize_with = "number")]
    pub kl_mean_se: f64,
    /// Median over tokens.
    #[serde(deserialize_with = "number")]
    pub kl_median: f64,
    /// 99th percentile over tokens.
    #[serde(deserialize_with = "number")]
    pub kl_p99: f64,
    /// Share of tokens on which both models think the same token likeliest.
    #[serde(deserialize_with = "number")]
    pub top1_agreement: f64,
    /// How far the residual stream has drifted from the float model's after each block: the mean over tokens of
    /// `‖h - ĥ‖² / ‖h‖²`.
    #[serde(default)]
    pub stream_error: Vec<f64>,
    /// The tokens of largest KL, largest first.
    #[serde(default)]
    pub worst_tokens: Vec<TokenRecord>,
}

/// A token whose prediction changed much, in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Window of the text, counted as the pipeline counts them.
    pub window: usize,
    /// Index in the window of the token predicted.
    pub position: usize,
    /// KL(float ‖ quantized) of the prediction.
    #[serde(deserialize_with = "number")]
    pub kl: f64,
    /// The text before it, a few tokens.
    pub before: String,
    /// The token that stands there.
    pub token: String,
    /// The text after it, a few tokens.
    pub after: String,
    /// Probability of the token by the float model.
    #[serde(deserialize_with = "number")]
    pub probability_float: f64,
    /// Probability of the token by the exported files.
    #[serde(deserialize_with = "number")]
    pub probability: f64,
    /// The token the float model finds likeliest.
    pub top_float: String,
    /// The token the exported files find likeliest.
    pub top: String,
}

/// No model that is read has more blocks; charts have a place for each.
const MOST_BLOCKS: usize = 4096;

fn blocks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let blocks = usize::deserialize(deserializer)?;
    match blocks <= MOST_BLOCKS {
        true => Ok(blocks),
        false => Err(serde::de::Error::custom(format!(
            "{blocks} blocks, wanted {MOST_BLOCKS} or fewer"
        ))),
    }
}

/// JSON has no NaN: what was written as null must not make the whole record unreadable.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|value| value.unwrap_or(f64::NAN))
}
