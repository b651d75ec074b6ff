//! What a run would do, told in a second: no weight is read.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use halfbyte_model::{LinearKind, linear_shape};
use halfbyte_quant::Coding;
use halfbyte_report::{CellRecord, bytes};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::Pipeline;
use crate::consumers::{self, ConsumerLine};
use crate::export::tensor_infos;
use crate::memory::MemoryLimit;
use crate::open::{open_calibration, open_evaluation, open_model, too_large_to_write};
use crate::output::{Destination, check_places, check_room};
use crate::quantize::{Layout, work_bytes};
use crate::recipe::{self, Settings};
use crate::sweep::plan_cells;
use crate::told;

/// What a core with AVX-512 did on the way through a 135 M model, solves included (results/README.md).
const OPERATIONS_PER_SECOND: f64 = 7e10;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The model as the pipeline names it.
    pub model: String,
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Decoder blocks.
    pub blocks: usize,
    /// Method and recipe.
    pub method: String,
    /// What the recipe and the pipeline settle, by name.
    pub settings: Map<String, Value>,
    /// Names the build by what decides codes in it: blocks of another one are not taken for this one's.
    pub recipe_version: String,
    /// Kinds of linears with their shape and treatment, one line a kind and scheme.
    pub linears: Vec<PlannedLinears>,
    /// Bits per weight over the quantized linears, scales and zero points included.
    pub bits_per_weight: f64,
    /// Bytes of the source's tensors.
    pub bytes_before: u64,
    /// Exports with their size and consumers.
    pub exports: Vec<PlannedExport>,
    /// Calibration windows, and held-out ones.
    pub windows: [usize; 2],
    /// Tokens of a window.
    pub sequence_length: usize,
    /// Evaluation windows.
    pub evaluation_windows: Option<usize>,
    /// Bytes of activations kept at a time, in memory or spilled.
    pub activation_bytes: u64,
    /// Bytes of one block's weights, statistics and working space, roughly.
    pub block_bytes: u64,
    /// Bytes that the run may hold before it spills to files, as far as there is a limit: `resources.max_memory` or, for `auto`,
    /// a share of what is free now.
    pub max_memory_bytes: Option<u64>,
    /// The same in words, with where it comes from.
    pub max_memory: String,
    /// Floating-point operations of forward and statistics.
    pub operations: f64,
    /// Processor seconds they take at [`OPERATIONS_PER_SECOND`] a core: the right order of magnitude, no more.
    pub cpu_seconds: f64,
    /// What `halfbyte sweep` would solve, where the pipeline has a sweep; the rest of the plan is of a run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<CellRecord>,
    /// What to know before starting.
    pub notices: Vec<String>,
    /// What a run would warn of: what reaches nothing, is not honoured or is carried along, and what the texts lack.
    pub warnings: Vec<String>,
}

/// Linears of one kind that are treated alike.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedLinears {
    /// Such as `q_proj`.
    pub linear: String,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
    /// How many blocks treat it so.
    pub count: usize,
    /// Such as `4-bit group 64 sym`, or `kept`.
    pub scheme: String,
}

/// One export.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedExport {
    /// The format.
    pub format: String,
    /// Its folder inside the run's.
    pub folder: String,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Consumers and whether they load it, with a budget all that it may choose from.
    pub consumers: Vec<ConsumerLine>,
}

/// Plans a run into the folder `out` and finds every problem that can be known without reading weights; nothing is written.
pub fn plan(pipeline: &Pipeline, out: &Path) -> Result<Plan> {
    let folder = open_model(
        &pipeline.model.source.location(),
        pipeline.model.revision.clone(),
        &mut |_| (),
    )?;
    let layout = Layout::new(pipeline, &folder)?;
    let destinations = Destination::all(&layout, &folder, out)?;
    check_places(pipeline, &folder, out, &destinations)?;
    let mut warnings = told::of_run(pipeline, &folder, pipeline.reads_text())?;
    let config = folder.config();
    let tokenizer = folder.tokenizer()?;
    let windows = open_calibration(pipeline, &folder, &tokenizer, &mut |_| ())?;
    check_room(out, &destinations, work_bytes(&layout, config, &windows))?;
    let evaluation = pipeline
        .evaluate
        .as_ref()
        .map(|e| open_evaluation(e, &folder, &tokenizer))
        .transpose()?;

    let mut linears: Vec<PlannedLinears> = Vec::new();
    for block in 0..config.num_hidden_layers {
        for kind in LinearKind::ALL {
            let module = kind.module(block);
            let [out_features, in_features] = linear_shape(config, kind);
            let words = match (layout.coding(&module), layout.scheme(&module)) {
                // as asked: a scale for the whole weight is held once a row
                (Some(Coding::Grid(_)), Some(scheme)) => Coding::Grid(scheme).to_string(),
                (Some(coding), _) => coding.to_string(),
                (None, _) => "kept".to_owned(),
            };
            match linears
                .iter_mut()
                .find(|l| l.linear == kind.short() && l.scheme == words)
            {
                Some(line) => line.count += 1,
                None => linears.push(PlannedLinears {
                    linear: kind.short().to_owned(),
                    out_features,
                    in_features,
                    count: 1,
                    scheme: words,
                }),
            }
        }
    }
    let bytes_before = folder
        .names()
        .map(|name| Ok(folder.tensor(name)?.bytes.len() as u64))
        .sum::<Result<u64>>()?;
    let candidates = consumers::candidates(pipeline, &layout, config)?;
    let mut exports: Vec<PlannedExport> = Vec::new();
    for (format, place) in &layout.formats {
        let tensors = tensor_infos(&layout, &folder, *format)?;
        exports.push(PlannedExport {
            format: format.to_string(),
            folder: place.display().to_string(),
            bytes: tensors.iter().map(|t| t.bytes()).sum(),
            consumers: consumers::plan_lines(*format, &layout, &candidates),
        });
    }

    let settings = Settings::new(pipeline, layout.signed_scales(pipeline));
    let written = pipeline.calibration.generated_samples;
    let counts = [windows.calibration.len() + written, windows.holdout.len()];
    let tokens = ((counts[0] + counts[1]) * pipeline.calibration.sequence_length) as u64;
    let (hidden, mlp) = (config.hidden_size as u64, config.intermediate_size as u64);
    let heads = (config.num_attention_heads * config.head_dim) as u64;
    let kv = (config.num_key_value_heads * config.head_dim) as u64;
    let block_weights = hidden * (2 * heads + 2 * kv) + 3 * hidden * mlp;
    let statistics = 2 * hidden * hidden + heads * heads + mlp * mlp;
    let attention = 2 * heads * pipeline.calibration.sequence_length as u64;
    let per_token = 2 * (block_weights + attention) + statistics;
    let mut operations = config.num_hidden_layers as f64 * tokens as f64 * per_token as f64;
    // Forward, again forward and back, and the products of the gradients; the same without these an epoch.
    let forward = config.num_hidden_layers as f64 * tokens as f64 * (per_token - statistics) as f64;
    if let Some(gradients) = &settings.gradients {
        let outputs = heads * heads + kv * kv + 2 * hidden * hidden + 2 * mlp * mlp;
        let walked =
            4.0 * forward + config.num_hidden_layers as f64 * tokens as f64 * outputs as f64;
        operations += walked / gradients.every as f64;
    }
    let a_window = forward / (counts[0] + counts[1]).max(1) as f64;
    let for_tuning = settings.tuning_samples();
    // a token that the model writes costs a forward pass
    operations += a_window * (written + for_tuning) as f64;
    let learned = match for_tuning {
        0 => counts[0],
        own => own,
    };
    let epochs = settings.tuning.map_or(0, |tuning| tuning.epochs);
    let an_epoch = pipeline.tune.num_samples.unwrap_or(usize::MAX).min(learned);
    operations += 5.0 * a_window * (epochs * an_epoch) as f64;
    let memory = MemoryLimit::of(&pipeline.resources);
    let mut notices = pipeline.notices.clone();
    notices.extend(memory.notice());
    warnings.extend(too_large_to_write(&folder, [written, for_tuning], memory)?);
    warnings.extend(windows.report.warnings.iter().cloned());
    warnings.extend(evaluation.iter().flat_map(|text| text.warnings.clone()));
    if pipeline.budget.is_some() {
        // one more walk, over the float model
        operations += config.num_hidden_layers as f64 * tokens as f64 * per_token as f64;
        notices.push(
            "budget: widths are chosen in the run; bits and sizes above are those of `quant.bits`, and consumers are told of as if all that may be chosen were".to_owned(),
        );
    }
    warnings.extend(consumers::plan_warnings(pipeline, &layout, &candidates));
    Ok(Plan {
        model: pipeline.model.source.to_string(),
        model_type: config.row().model_type.to_owned(),
        blocks: config.num_hidden_layers,
        method: format!("{} ({})", pipeline.method, pipeline.recipe),
        recipe_version: recipe::VERSION.to_owned(),
        settings: settings.to_map(pipeline),
        linears,
        bits_per_weight: layout.bits_per_weight(config),
        bytes_before,
        exports,
        windows: counts,
        sequence_length: pipeline.calibration.sequence_length,
        evaluation_windows: evaluation.map(|e| e.windows.len()),
        activation_bytes: 2 * tokens * (hidden + (heads + kv).max(mlp)),
        block_bytes: 4 * block_weights + 8 * hidden.max(mlp).max(heads).pow(2) * 2,
        max_memory_bytes: memory.bytes(),
        max_memory: memory.to_string(),
        operations,
        cpu_seconds: operations / OPERATIONS_PER_SECOND,
        cells: match &pipeline.sweep {
            Some(grid) => plan_cells(grid, &folder)?,
            None => Vec::new(),
        },
        notices,
        warnings,
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, {} blocks, {}",
            self.model, self.model_type, self.blocks, self.method
        )?;
        for (name, words) in &self.settings {
            writeln!(f, "  {name}: {}", words.as_str().unwrap_or_default())?;
        }
        writeln!(f, "  recipe version: {}", self.recipe_version)?;
        for l in &self.linears {
            writeln!(
                f,
                "  {:10} {:>6} x {:<6} {:>4} of them  {}",
                l.linear, l.out_features, l.in_features, l.count, l.scheme
            )?;
        }
        writeln!(
            f,
            "{:.3} bits per weight with scales and zero points",
            self.bits_per_weight
        )?;
        let [calibration, holdout] = self.windows;
        if calibration == 0 {
            writeln!(f, "calibration: none, the method reads no text")?;
        } else {
            writeln!(
                f,
                "calibration: {calibration} windows of {} tokens, {holdout} held out",
                self.sequence_length
            )?;
        }
        if let Some(windows) = self.evaluation_windows {
            writeln!(f, "evaluation: {windows} windows")?;
        }
        writeln!(
            f,
            "memory: {} of activations, about {} for a block; work: {:.1} TFLOP, about {:.0} s of processor time",
            bytes(self.activation_bytes),
            bytes(self.block_bytes),
            self.operations / 1e12,
            self.cpu_seconds
        )?;
        writeln!(f, "memory limit: {}", self.max_memory)?;
        for export in &self.exports {
            let place = match export.folder.as_str() {
                "" => "the output folder itself".to_owned(),
                folder => format!("its folder {folder}/"),
            };
            writeln!(
                f,
                "export {} into {place}: {} of tensors, {} before",
                export.format,
                bytes(export.bytes),
                bytes(self.bytes_before)
            )?;
            for line in &export.consumers {
                writeln!(f, "  {line}")?;
            }
        }
        if !self.cells.is_empty() {
            writeln!(f, "sweep of {} cells:", self.cells.len())?;
        }
        for cell in &self.cells {
            let size = cell.bytes.zip(cell.bits_per_weight);
            match (&cell.refused, size) {
                (Some(reason), _) => writeln!(f, "  {}: refused: {reason}", cell.cell)?,
                (None, Some((size, bits))) => writeln!(
                    f,
                    "  {}: {bits:.3} bits per weight, {}",
                    cell.cell,
                    bytes(size)
                )?,
                (None, None) => writeln!(f, "  {}", cell.cell)?,
            }
        }
        for notice in &self.notices {
            writeln!(f, "note: {notice}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}
