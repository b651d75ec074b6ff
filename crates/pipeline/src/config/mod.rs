//! The pipeline file: YAML in, a checked [`Pipeline`] out.
//!
//! The text becomes a plain value; overrides and other tools' spellings are applied to it; it is held against the
//! schema, which is made from the mirror type and is the only list of keys there is; then the mirror becomes the
//! checked form and nothing downstream checks again. The rejected alternative, deserializing straight from the
//! text, knows lines but can neither take overrides nor say what an unknown key was meant to be.
//!
//! # Paths
//! A relative path is taken from the folder of the pipeline file; where nothing is there, from the working folder.

mod check;
mod error;
mod file;
mod forms;
mod hub;
mod pattern;
mod read;
mod schema;
mod sweep;
mod synonyms;
mod translate;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use halfbyte_quant::{CodebookScheme, Coding, GroupSize, Scheme};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use file::{
    AwqFile, BudgetFile, CalibrationFile, EvaluateFile, EvaluateSwitch, ExportFile, FloorFile,
    GateFile, ModelFile, PipelineFile, QuantFile, ReportFile, ResourcesFile, RuleFile, SourceFile,
    TuneFile,
};

pub use error::ConfigError;
pub use pattern::{Pattern, PatternError};
pub(crate) use schema::nearest;
pub use sweep::{Cell, Sweep, Winner};
pub use words::{
    AwqLoss, Damp, Device, Format, Measure, Method, Packing, Propagation, Recipe, SignedScales,
    Windows, WinnerBy,
};

/// The default pipeline, every key explained; `halfbyte` users start from a copy of it.
pub const DEFAULT_YAML: &str = include_str!("default.yaml");

/// The name of the calibration text inside the program.
pub const EMBEDDED_CALIBRATION: &str = "embedded:calibration";

/// The name of the text to score on inside the program, none of which is in the calibration text.
pub const EMBEDDED_EVALUATION: &str = "embedded:evaluation";

/// A pipeline file after all checks that need no model.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// What is quantized.
    pub model: Model,
    /// The text the statistics are taken on.
    pub calibration: Calibration,
    /// How codes are chosen.
    pub method: Method,
    /// Which form of the method.
    pub recipe: Recipe,
    /// Scheme and solver settings of all linears no rule names.
    pub quant: Quant,
    /// How channel scales are chosen, where the method scales channels.
    pub awq: Awq,
    /// What the statistics of a stage have seen.
    pub propagation: Propagation,
    /// Scales and norms tuned after the solves.
    pub tune: Tune,
    /// Bits chosen linear by linear so that the whole fits a size.
    pub budget: Option<Budget>,
    /// What `halfbyte sweep` tries; a run leaves it alone.
    pub sweep: Option<Sweep>,
    /// Exceptions by module name; the first that matches wins.
    pub rules: Vec<Rule>,
    /// Modules that stay as they are; asked before the rules.
    pub ignore: Vec<Pattern>,
    /// What is written; never empty, no format twice.
    pub export: Vec<Export>,
    /// How the result is scored; none leaves it unscored.
    pub evaluate: Option<Evaluate>,
    /// What the score must reach. Set only together with `evaluate`.
    pub gate: Gate,
    /// What is reported beside the usual.
    pub report: Report,
    /// The machine's share.
    pub resources: Resources,
    /// What was understood other than written (other tools' spellings), for the user to read.
    pub notices: Vec<String>,
}

/// What is quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Where it comes from.
    pub source: ModelSource,
    /// Branch, tag or commit of a hub model.
    pub revision: Option<String>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder on this machine.
    Folder(Located),
    /// `org/name` on the hub.
    Hub(String),
    /// A model inside the program, by its name without `embedded:`.
    Embedded(String),
}

/// A path as the user wrote it and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// As written.
    pub written: String,
    /// Where it is; it existed when the file was read.
    pub path: PathBuf,
}

/// The text the statistics are taken on.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// What is mixed; never empty.
    pub sources: Vec<Source>,
    /// Windows in all, the held-out ones included.
    pub num_samples: usize,
    /// Tokens a window.
    pub sequence_length: usize,
    /// How texts become windows.
    pub packing: Packing,
    /// Decides order and choice of windows.
    pub seed: u64,
    /// Share of the windows kept out of the statistics, `0 <= holdout < 1`.
    pub holdout: f64,
    /// Windows of random ids on top of those of text.
    pub random_samples: usize,
    /// Windows that the float model writes, on top of those.
    pub generated_samples: usize,
}

/// One calibration source.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Where the text is.
    pub text: TextSource,
    /// Its share of the windows, against the other sources' weights; positive.
    pub weight: f64,
    /// The column of jsonl, csv and parquet files that holds the text; none finds it by the names there are.
    pub text_column: Option<String>,
    /// Whether chats are written with the model's own chat template, where it has one.
    pub chat_template: bool,
}

/// Where a text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextSource {
    /// A file of text, records or a table, or a folder of them.
    Path(Located),
    /// A data set on the hub, by its id.
    Dataset(String),
    /// The calibration text inside the program.
    Embedded,
}

/// Scheme and solver settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Quant {
    /// Bits, group size, symmetry.
    pub scheme: Scheme,
    /// Columns are taken by falling diagonal of the Hessian (act order).
    pub desc_act: bool,
    /// Groups are contiguous columns whatever the order.
    pub static_groups: bool,
    /// What is added to the Hessian's diagonal.
    pub damp_percent: Damp,
    /// Whether scales may be negative.
    pub signed_scales: SignedScales,
    /// Whether block scales of codebooks are quantized once more.
    pub double_quant: bool,
}

/// How channel scales are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awq {
    /// What candidates are judged by.
    pub loss: AwqLoss,
    /// Calibration tokens that modules run on.
    pub loss_tokens: usize,
}

/// Scales and norms tuned after the solves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tune {
    /// Passes over the windows; none leaves it to the recipe.
    pub epochs: Option<usize>,
    /// Windows that the float model writes for tuning alone; none leaves it to the recipe.
    pub generated_samples: Option<usize>,
    /// Windows of an epoch; none leaves it to the recipe.
    pub num_samples: Option<usize>,
    /// Largest relative change of a scale in a step; none leaves it to the recipe.
    pub learning_rate: Option<f64>,
}

/// Bits chosen linear by linear so that the whole fits a size. Linears that a rule names keep the rule's scheme.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// What the whole may take.
    pub limit: BudgetLimit,
    /// Widths to choose from, ascending; empty for all that the exported formats hold.
    pub bits: Vec<u8>,
    /// Least widths by module name; the first that matches wins.
    pub floors: Vec<(Pattern, u8)>,
}

/// What the whole may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BudgetLimit {
    /// Stored bits a weight over the quantized linears, scales and zero points included.
    BitsPerWeight(f64),
    /// Bytes of all tensors of the first export.
    Bytes(u64),
}

/// An exception by module name.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Whom it concerns.
    pub pattern: Pattern,
    /// What is done.
    pub treatment: Treatment,
}

/// What is done with a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It stays as it is.
    Keep,
    /// It is quantized by this scheme.
    Quantize(Scheme),
}

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The layout.
    pub format: Format,
    /// Its folder, from the folder of the run; none means that folder itself for a single export, else a folder in
    /// it named by the format.
    pub out: Option<PathBuf>,
}

/// How the result is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluate {
    /// The text; its place is [`EMBEDDED_EVALUATION`] for the one inside the program.
    pub text: Located,
    /// Tokens a window.
    pub sequence_length: usize,
    /// Which windows.
    pub windows: Windows,
    /// The column of jsonl, csv and parquet files that holds the text; none finds it by the names there are.
    pub text_column: Option<String>,
    /// Whether chats are written with the model's own chat template, where it has one.
    pub chat_template: bool,
}

/// What the score must reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gate {
    /// Largest mean KL divergence to the float model, in nats.
    pub max_kl: Option<f64>,
}

/// What is reported beside the usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// `halfbyte/report.html`, the run as one offline page.
    pub html: bool,
    /// What LLM.int8() would keep of every linear in 16 bits.
    pub llm_int8: bool,
    /// Loss against calibration tokens, where text is held out.
    pub calibration_curve: bool,
}

/// The machine's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Threads; none takes all cores.
    pub threads: Option<usize>,
    /// Bytes the run may hold before it spills to files; none takes 80 % of what is free when it starts, a container's limits
    /// included.
    pub max_memory_bytes: Option<u64>,
    /// Where tensors live.
    pub device: Device,
}

/// Sections that do not decide the codes.
pub(crate) const NOT_OF_CODES: [&str; 6] =
    ["evaluate", "gate", "report", "resources", "export", "sweep"];

impl Pipeline {
    /// Reads and checks a pipeline file. `overrides` are `key.path=value` with the value in YAML, applied in order.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            place: name.clone(),
            key: String::new(),
            problem: format!("cannot be read: {error}"),
            hint: Some(
                "give the path of a pipeline file; pipelines/quickstart.yaml is one".to_owned(),
            ),
        })?;
        let base_dir = path.parent().unwrap_or(Path::new(""));
        Self::parse_with(&text, &name, base_dir, overrides)
    }

    /// Checks the text of a pipeline file. Errors call it `name`; relative paths are taken from `base_dir`.
    pub fn parse(text: &str, name: &str, base_dir: &Path) -> Result<Self, ConfigError> {
        Self::parse_with(text, name, base_dir, &[])
    }

    /// [`Pipeline::parse`] with the overrides of [`Pipeline::load`].
    pub fn parse_with(
        text: &str,
        name: &str,
        base_dir: &Path,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        let document = read::Document::read(name, text, overrides)?;
        schema::validate(&document.value, &schema::schema())
            .map_err(|fault| document.error(fault))?;
        // What the schema lets pass the mirror takes; should they ever differ, the file's name must do for a place.
        let file = PipelineFile::deserialize(&document.value).map_err(|error| ConfigError {
            place: name.to_owned(),
            key: String::new(),
            problem: error.to_string(),
            hint: None,
        })?;
        let mut pipeline = check::check(file, base_dir).map_err(|fault| document.error(fault))?;
        pipeline.place_patterns(&|path| document.whole_place(path));
        pipeline.notices = document.notices();
        Ok(pipeline)
    }

    /// Lets every pattern know where it stands.
    fn place_patterns(&mut self, place: &dyn Fn(&[&str]) -> String) {
        let number = |index: usize| index.to_string();
        for (index, pattern) in self.ignore.iter_mut().enumerate() {
            pattern.place = place(&["ignore", &number(index)]);
        }
        for (index, rule) in self.rules.iter_mut().enumerate() {
            rule.pattern.place = place(&["rules", &number(index), "match"]);
        }
        let floors = self.budget.iter_mut().flat_map(|budget| &mut budget.floors);
        for (index, (pattern, _)) in floors.enumerate() {
            pattern.place = place(&["budget", "floors", &number(index), "match"]);
        }
    }

    /// The JSON Schema of the pipeline file.
    pub fn schema() -> Value {
        schema::schema()
    }

    /// The pipeline in the file's own words, every key spelled out and paths as written; reads back as itself.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(PipelineFile::from(self))
            .expect("the mirror holds plain data with string keys, which always becomes JSON")
    }

    /// sha256, in hex, of all that decides the codes: model, calibration, method, recipe, quant, awq, propagation,
    /// rules, ignore and, with a budget, the exported formats, which decide what it chooses from. Two runs of the same
    /// fingerprint may share finished blocks, provided that the files behind the paths have not changed and that
    /// `signed_scales: auto` came out alike: those are for the caller to mix in. Folders count by their real place, so
    /// that `./model` in two places is two models. Evaluation, gate, report, resources, sweep, formats and output folders
    /// do not count.
    pub fn fingerprint(&self) -> String {
        let mut value = self.to_value();
        if let Some(sections) = value.as_object_mut() {
            sections.retain(|key, _| !NOT_OF_CODES.contains(&key.as_str()));
            if self.budget.is_some() {
                let formats: Vec<_> = self.export.iter().map(|e| e.format.to_string()).collect();
                sections.insert("formats".to_owned(), serde_json::json!(formats));
            }
            let places: Vec<_> = self.located().map(Located::real_place).collect();
            sections.insert("places".to_owned(), serde_json::json!(places));
        }
        hex(&Sha256::digest(canonical(value).to_string()))
    }

    /// Whether calibration text is read at all.
    pub fn reads_text(&self) -> bool {
        !self.method.is_data_free()
    }

    /// What is done with the linear of this name in the checkpoint.
    pub fn treatment(&self, linear: &str) -> Treatment {
        if self.ignore.iter().any(|pattern| pattern.matches(linear)) {
            return Treatment::Keep;
        }
        self.rules
            .iter()
            .find(|rule| rule.pattern.matches(linear))
            .map_or(Treatment::Quantize(self.quant.scheme), |rule| {
                rule.treatment
            })
    }

    /// How checkpoints hold a linear that is quantized by this scheme.
    pub fn coding(&self, scheme: Scheme) -> Coding {
        coding(self.method, self.quant.double_quant, scheme)
    }

    /// Each export with its folder, for a run that writes into `out`.
    pub fn export_folders(&self, out: &Path) -> Vec<(Format, PathBuf)> {
        let single = self.export.len() == 1;
        let folder = |export: &Export| match &export.out {
            Some(folder) => out.join(folder),
            None if single => out.to_owned(),
            None => out.join(export.format.to_string()),
        };
        self.export
            .iter()
            .map(|export| (export.format, folder(export)))
            .collect()
    }

    /// The files and folders the statistics depend on.
    fn located(&self) -> impl Iterator<Item = &Located> {
        let model = match &self.model.source {
            ModelSource::Folder(located) => Some(located),
            _ => None,
        };
        let texts = self
            .calibration
            .sources
            .iter()
            .filter_map(|source| match &source.text {
                TextSource::Path(located) => Some(located),
                _ => None,
            });
        model.into_iter().chain(texts)
    }
}

impl Calibration {
    /// Windows kept out of the statistics: the share rounded, and at least one where a share is asked for.
    pub fn held_out_samples(&self) -> usize {
        let share = (self.num_samples as f64 * self.holdout).round() as usize;
        if self.holdout > 0.0 { share.max(1) } else { 0 }
    }
}

impl ModelSource {
    /// What the checkpoint crate resolves: the folder's place, the hub id, or `embedded:name`.
    pub fn location(&self) -> String {
        match self {
            Self::Folder(located) => located.path.display().to_string(),
            _ => self.to_string(),
        }
    }
}

impl Located {
    fn real_place(&self) -> String {
        let real = self.path.canonicalize();
        real.unwrap_or_else(|_| self.path.clone())
            .display()
            .to_string()
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(located) => f.write_str(&located.written),
            Self::Hub(id) => f.write_str(id),
            Self::Embedded(name) => write!(f, "embedded:{name}"),
        }
    }
}

/// Group sizes to offer for a width that the one asked for does not divide: the divisors from 16 to 1024 that are
/// multiples of 16, which every kernel likes, or where there are none the divisors as they are.
pub fn divisors_hint(in_features: usize) -> Vec<usize> {
    let divisors = || (16..=in_features.min(1024)).filter(|n| in_features.is_multiple_of(*n));
    let round: Vec<usize> = divisors().filter(|n| n % 16 == 0).collect();
    if round.is_empty() {
        divisors().collect()
    } else {
        round
    }
}

/// How checkpoints hold what a method makes by a scheme; a codebook's blocks are the scheme's groups.
fn coding(method: Method, double_quant: bool, scheme: Scheme) -> Coding {
    match (method.codebook(), scheme.group_size()) {
        (Some(codebook), GroupSize::Columns(block_size)) => Coding::Codebook(CodebookScheme {
            codebook,
            block_size,
            double_quant,
        }),
        _ => Coding::Grid(scheme.stored()),
    }
}

/// Reads a size such as `8GiB`, `500MB` or a plain count of bytes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    check::parse_bytes(text)
}

/// A digest in hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same value with the keys of every section sorted.
fn canonical(value: Value) -> Value {
    match value {
        Value::Object(section) => {
            let sorted: BTreeMap<_, _> = section
                .into_iter()
                .map(|(k, v)| (k, canonical(v)))
                .collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(canonical).collect()),
        plain => plain,
    }
}

impl From<&Pipeline> for PipelineFile {
    fn from(pipeline: &Pipeline) -> Self {
        let Pipeline {
            model,
            calibration,
            method,
            recipe,
            quant,
            awq,
            propagation,
            tune,
            budget,
            sweep,
            rules,
            ignore,
            export,
            evaluate,
            gate,
            report,
            resources,
            notices: _,
        } = pipeline;
        Self {
            model: ModelFile {
                source: model.source.to_string(),
                revision: model.revision.clone(),
            },
            calibration: calibration.into(),
            method: *method,
            recipe: *recipe,
            quant: quant.into(),
            awq: AwqFile {
                loss: awq.loss,
                loss_tokens: awq.loss_tokens,
            },
            propagation: Some(*propagation),
            tune: TuneFile {
                epochs: tune.epochs,
                generated_samples: tune.generated_samples,
                num_samples: tune.num_samples,
                learning_rate: tune.learning_rate,
            },
            budget: budget.as_ref().map(|budget| {
                let (bits_per_weight, bytes) = match budget.limit {
                    BudgetLimit::BitsPerWeight(bits) => (Some(bits), None),
                    BudgetLimit::Bytes(bytes) => (None, Some(bytes.to_string())),
                };
                let floor = |(pattern, bits): &(Pattern, u8)| FloorFile {
                    pattern: pattern.to_string(),
                    bits: *bits,
                };
                BudgetFile {
                    bits_per_weight,
                    bytes,
                    bits: budget.bits.clone(),
                    floors: budget.floors.iter().map(floor).collect(),
                }
            }),
            sweep: sweep.as_ref().map(Sweep::as_written),
            rules: rules.iter().map(RuleFile::from).collect(),
            ignore: ignore.iter().map(ToString::to_string).collect(),
            export: export.iter().map(ExportFile::from).collect(),
            evaluate: evaluate.as_ref().map_or(EvaluateSwitch::Off, |e| {
                EvaluateSwitch::On(EvaluateFile {
                    text: e.text.written.clone(),
                    sequence_length: e.sequence_length,
                    windows: Some(e.windows.clone()),
                    text_column: e.text_column.clone(),
                    chat_template: (!e.chat_template).then_some(false),
                })
            }),
            gate: GateFile {
                max_kl: gate.max_kl,
            },
            report: ReportFile {
                html: report.html,
                llm_int8: report.llm_int8,
                calibration_curve: report.calibration_curve,
            },
            resources: ResourcesFile {
                threads: resources.threads,
                max_memory: resources
                    .max_memory_bytes
                    .map_or_else(|| "auto".to_owned(), |bytes| bytes.to_string()),
                device: resources.device,
            },
        }
    }
}

impl From<&Calibration> for CalibrationFile {
    fn from(calibration: &Calibration) -> Self {
        let source = |source: &Source| {
            let (path, dataset) = match &source.text {
                TextSource::Path(located) => (Some(located.written.clone()), None),
                TextSource::Embedded => (Some(EMBEDDED_CALIBRATION.to_owned()), None),
                TextSource::Dataset(id) => (None, Some(id.clone())),
            };
            SourceFile {
                path,
                dataset,
                weight: Some(source.weight),
                text_column: source.text_column.clone(),
                chat_template: (!source.chat_template).then_some(false),
            }
        };
        Self {
            sources: calibration.sources.iter().map(source).collect(),
            num_samples: calibration.num_samples,
            sequence_length: calibration.sequence_length,
            packing: calibration.packing,
            seed: calibration.seed,
            holdout: calibration.holdout,
            random_samples: calibration.random_samples,
            generated_samples: Some(calibration.generated_samples),
        }
    }
}

impl From<&Quant> for QuantFile {
    fn from(quant: &Quant) -> Self {
        Self {
            bits: quant.scheme.bits(),
            group_size: quant.scheme.group_size().as_i64(),
            sym: quant.scheme.sym(),
            desc_act: quant.desc_act,
            static_groups: quant.static_groups,
            damp_percent: quant.damp_percent,
            signed_scales: quant.signed_scales,
            double_quant: quant.double_quant,
        }
    }
}

impl From<&Rule> for RuleFile {
    fn from(rule: &Rule) -> Self {
        let scheme = match rule.treatment {
            Treatment::Quantize(scheme) => Some(scheme),
            Treatment::Keep => None,
        };
        Self {
            pattern: rule.pattern.to_string(),
            bits: scheme.map(|s| s.bits()),
            group_size: scheme.map(|s| s.group_size().as_i64()),
            sym: scheme.map(|s| s.sym()),
            skip: scheme.is_none().then_some(true),
        }
    }
}

impl From<&Export> for ExportFile {
    fn from(export: &Export) -> Self {
        Self {
            format: export.format,
            out: export.out.as_ref().map(|out| out.display().to_string()),
        }
    }
}

#[cfg(test)]
mod spelled;
#[cfg(test)]
mod tests;
