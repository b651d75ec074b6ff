//! The loop where the stages meet: a block's statistics, its solves, its codes on disk, and on to the next.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use halfbyte_calibrate::text::{EvaluationText, Window, Windows};
use halfbyte_calibrate::{
    GradientOptions, LinearStats, OutputGradients, RowStats, Walk, WalkOptions,
};
use halfbyte_checkpoint::decode;
use halfbyte_model::{Block, Decoder, DeviceChoice, LinearKind, Weights, open_device};
use halfbyte_pack::{Format, ScaleDtype};
use halfbyte_quant::{Coding, Scheme};
use halfbyte_report::{BudgetRecord, CurvePointRecord, EvaluationRecord, LinearRecord, RunRecord};
use tokenizers::Tokenizer;

use crate::codes::count_codes;
use crate::config::{Device, Pipeline, Propagation, Recipe, SignedScales, Treatment};
use crate::curve::{Curved, curve_blocks, curves};
use crate::error::{GateFailed, user_error};
use crate::event::{Event, phase};
use crate::finished::{Finished, check_earlier};
use crate::memory::MemoryLimit;
use crate::open::{Inputs, Reading, open_model};
use crate::output::{CARD, Destination, Output, check_places, check_room};
use crate::recipe::Settings;
use crate::scale::Scaled;
use crate::stage::{Prepared, Solver, Task, Unscaled, factor_rows};
use crate::usage::{Clock, usage};
use crate::work::{Opened, Solved, Work};
use crate::{budget, consumers, evaluate, export, record, tune};

/// Where a run goes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The folder the exports and `halfbyte/` are written into.
    pub out: PathBuf,
    /// Start over instead of going on where an interrupted run stopped, and replace a finished run of other settings.
    pub fresh: bool,
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Run {
    /// All records, as in `run.json`.
    pub record: RunRecord,
    /// The exported folders.
    pub folders: Vec<PathBuf>,
    /// Where `halfbyte/run.json`, `linears.csv` and `report.html` lie.
    pub out: PathBuf,
    /// The gate that the scores failed, if any; the files are written all the same.
    pub gate: Option<GateFailed>,
}

/// Quantizes a model as the pipeline says: statistics, solves, exports, evaluation, reports.
///
/// Finished blocks are kept in `OUT/halfbyte/work`; a run of the same pipeline, model and text goes on after them. One that is
/// finished is not done again; where only exports, scores or the page are to be others, what is solved is taken as it is.
///
/// # Errors
/// Whatever is wrong with the input, before any block is solved where that can be known; see [`crate::exit_code`]. An output
/// folder that is the model's, holds another's files or another run, or that another process writes into.
pub fn quantize(
    pipeline: &Pipeline,
    options: &RunOptions,
    on_event: &mut dyn FnMut(Event),
) -> Result<Run> {
    for notice in &pipeline.notices {
        on_event(Event::Note(notice.clone()));
    }
    if pipeline.sweep.is_some() {
        on_event(Event::Note(
            "`sweep` is left alone by a run; `halfbyte sweep` solves its cells".to_owned(),
        ));
    }
    let folder = open_model(
        &pipeline.model.source.location(),
        pipeline.model.revision.clone(),
        on_event,
    )?;
    let layout = Layout::new(pipeline, &folder)?;
    let destinations = Destination::all(&layout, &folder, &options.out)?;
    check_places(pipeline, &folder, &options.out, &destinations)?;
    let (mut output, note) = Output::open(&options.out, &destinations)?;
    if let Some(note) = note {
        on_event(Event::Note(note));
    }
    quantize_into(pipeline, options, false, &mut output, folder, on_event)
}

/// [`quantize`], into a folder that this process holds. With `replaces` a finished run of other settings goes, while this one goes
/// on where it was interrupted.
pub(crate) fn quantize_into(
    pipeline: &Pipeline,
    options: &RunOptions,
    replaces: bool,
    output: &mut Output,
    folder: halfbyte_checkpoint::ModelFolder,
    on_event: &mut dyn FnMut(Event),
) -> Result<Run> {
    let start = Instant::now();
    let cpu = usage().cpu_seconds;
    let mut clock = Clock::default();
    let mut warnings: Vec<String> = Vec::new();
    let mut warn = |text: String, on_event: &mut dyn FnMut(Event)| {
        on_event(Event::Warning(text.clone()));
        warnings.push(text);
    };
    let memory = MemoryLimit::of(&pipeline.resources);
    if let Some(notice) = memory.notice() {
        on_event(Event::Note(notice));
    }
    let mut layout = Layout::new(pipeline, &folder)?;
    let mut destinations = Destination::all(&layout, &folder, &options.out)?;
    // another process may have come between the first look and the lock
    check_places(pipeline, &folder, &options.out, &destinations)?;
    let identity = folder.identity()?;
    let settings = Settings::new(pipeline, layout.signed_scales(pipeline));
    let of_settings = format!(
        "{}-{}-",
        settings.fingerprint(pipeline),
        identity.fingerprint
    );
    let checks = !options.fresh && !replaces;
    if checks {
        // before any text is read, or written by the model
        check_earlier(&options.out, &of_settings, pipeline)?;
    }
    let reading = Reading {
        pipeline,
        reads_text: pipeline.reads_text(),
        tuning_samples: settings.tuning_samples(),
        memory,
        out: &options.out,
        fresh: options.fresh,
        identity: &identity,
    };
    let Inputs {
        tokenizer,
        windows,
        evaluation,
        weights,
    } = reading.inputs(folder, &mut clock, on_event)?;
    let fingerprint = format!("{of_settings}{}", windows.report.windows_sha256);
    if checks {
        check_earlier(&options.out, &fingerprint, pipeline)?;
    }
    let decoder = Decoder::new(
        weights,
        open_device(device_choice(pipeline.resources.device))?,
    );
    let begun = Work::has_begun(&options.out, |found| found == fingerprint);
    if let Ok(record) = halfbyte_report::read_run(&options.out)
        && record.fingerprint == fingerprint
        && !options.fresh
    {
        if let Some(budget) = &record.budget {
            layout.set_bits(pipeline, budget)?;
            destinations = Destination::all(&layout, decoder.weights().folder(), &options.out)?;
        }
        let finished = Finished {
            record,
            pipeline,
            layout: &layout,
            decoder: &decoder,
            tokenizer: &tokenizer,
            evaluation: evaluation.as_ref(),
            destinations: &destinations,
        };
        let record = finished.renew(output, on_event)?;
        return Ok(Run::new(pipeline, options, record));
    }
    for warning in &windows.report.warnings {
        warn(warning.clone(), on_event);
    }
    check_room(
        &options.out,
        &destinations,
        work_bytes(&layout, decoder.weights().config(), &windows),
    )?;
    let Opened {
        mut work,
        done: resumed,
        lost,
    } = Work::open(
        &options.out,
        fingerprint.clone(),
        options.fresh || replaces && !begun,
    )?;
    if let Some(text) = lost {
        warn(text, on_event);
    }
    let solver = &settings.solver;
    if settings.signed_scales {
        for (format, _) in &layout.formats {
            let readers = match format.usually_takes_negative_scales() {
                true => "vLLM's Marlin with 8-bit activations may not take them, other readers do",
                false => "not every reader is known to take them",
            };
            let text = format!("signed_scales: {format} with negative scales: {readers}");
            warn(text, on_event);
        }
    }
    let blocks = decoder.n_blocks();
    on_event(Event::Started {
        model: pipeline.model.source.to_string(),
        blocks,
        resumed,
        linears: layout
            .modules
            .iter()
            .filter(|(_, coding)| coding.is_some())
            .count(),
        tokens: windows.report.tokens_calibration as u64,
    });

    let mut records: Vec<LinearRecord> = Vec::new();
    for block in 0..resumed {
        records.extend(work.records(block)?);
    }
    let activation_bytes = memory.activations();
    let shared_out = match work.budget()? {
        Some(known) => Some(known),
        None => {
            let budgeting = budget::Budgeting {
                pipeline,
                layout: &layout,
                decoder: &decoder,
                windows: &windows,
                solver,
                spill_folder: work.folder(),
                activation_bytes,
            };
            let made = budgeting.share_out(&mut clock, on_event)?;
            if let Some(budget) = &made {
                work.save_budget(budget)?;
            }
            made
        }
    };
    if let Some(budget) = &shared_out {
        let by_quant_bits = layout.modules.clone();
        layout.set_bits(pipeline, budget)?;
        destinations = Destination::all(&layout, decoder.weights().folder(), &options.out)?;
        for warning in consumers::choice_warnings(&layout, &by_quant_bits) {
            warn(warning, on_event);
        }
    }
    for warning in consumers::warnings(pipeline, &layout) {
        warn(warning, on_event);
    }
    let tune_options = settings.tuning.map(|tuning| {
        let seed = pipeline.calibration.seed;
        tune::options(&tuning, seed, &decoder, windows.tuning.len())
    });
    let tune_options = tune_options.transpose()?;
    // what the float model gives on the calibration windows is kept for tuning that learns from them
    let keeps_float = tune_options.is_some() && windows.tuning.is_empty();
    if resumed < blocks {
        let gradients = if let Some(wanted) = settings.gradients {
            let options = GradientOptions {
                seed: pipeline.calibration.seed,
                max_bytes: wanted.max_bytes,
                every: wanted.every,
                spill_folder: Some(work.folder()),
            };
            let texts: Vec<&Window> = windows.calibration.iter().chain(&windows.holdout).collect();
            let n_calibration = windows.calibration.len();
            let mut tick = phase(on_event, "gradients", "blocks");
            Some(clock.time("gradients", || {
                OutputGradients::take(&texts, n_calibration, &decoder, &options, &mut tick)
                    .map(Arc::new)
            })?)
        } else {
            None
        };
        let subset_blocks = curve_blocks_of(pipeline, solver, &decoder, &windows);
        let walk_options = WalkOptions {
            max_bytes: activation_bytes,
            spill_folder: work.folder().to_owned(),
            mixed_windows: settings.mixed_windows,
            gradients: gradients.clone(),
            float_path: pipeline.propagation == Propagation::Asymmetric,
            subset_blocks,
        };
        let mut walk = if pipeline.reads_text() {
            Some(clock.time("forward", || Walk::new(&windows, &decoder, walk_options))?)
        } else {
            None
        };
        if resumed > 0
            && let Some(walk) = &mut walk
        {
            walk.restore(resumed, &work.stream(resumed)?)?;
        }
        for index in resumed..blocks {
            let started = Instant::now();
            let mut run = BlockRun {
                pipeline,
                settings: &settings,
                layout: &layout,
                block: index,
                clock: &mut clock,
                on_event,
                attention_peaks: Vec::new(),
                gradients: gradients.as_deref(),
                floats: Vec::new(),
                solved: Vec::new(),
                replaced: Vec::new(),
                records: Vec::new(),
            };
            match &mut walk {
                Some(walk) => run.run(&decoder, walk)?,
                None => run.run_without_text(&decoder)?,
            }
            let (solved, replaced, block_records) = (run.solved, run.replaced, run.records);
            for record in &block_records {
                for warning in record.own_warnings() {
                    warn(format!("{}: {warning}", record.linear), on_event);
                }
            }
            clock.time("write", || {
                let float = walk.as_ref().filter(|_| keeps_float && index + 1 == blocks);
                if let Some(bits) = float.map(Walk::save_float).transpose()?.flatten() {
                    work.save_float_stream(&bits)?;
                }
                let stream = || Ok(walk.as_ref().map_or(Ok(Vec::new()), Walk::save)?);
                let stream: Option<&dyn Fn() -> Result<Vec<u16>>> = if index + 1 < blocks {
                    Some(&stream)
                } else {
                    None
                };
                work.save(index, &solved, &replaced, &block_records, stream)
            })?;
            records.extend(block_records);
            tracing::info!(
                block = index,
                seconds = started.elapsed().as_secs_f64(),
                "block finished"
            );
            on_event(Event::BlockDone {
                block: index,
                of: blocks,
                seconds: started.elapsed().as_secs_f64(),
            });
        }
    }

    for warning in halfbyte_report::doubtful_linears(&records) {
        warn(warning, on_event);
    }
    if let Some(options) = tune_options
        && !work.is_tuned()
    {
        let report = clock.time("tune", || {
            let float_stream = match pipeline.propagation {
                Propagation::Asymmetric if keeps_float => Some(work.float_stream()?),
                _ => None,
            };
            tune::tune(
                &decoder,
                &mut work,
                &windows,
                float_stream,
                &options,
                on_event,
            )
        })?;
        if report.epochs_kept < options.epochs {
            warn(
                format!(
                    "tuning: held-out KL was least after epoch {} of {}; later ones were given up",
                    report.epochs_kept, options.epochs
                ),
                on_event,
            );
        }
    }
    let exports = clock.time("export", || {
        let mut staged = Vec::new();
        for to in &destinations {
            staged.push(export::stage(
                pipeline, &layout, &decoder, &work, to, on_event,
            )?);
        }
        // Until here what an earlier run left is as it was.
        output.forget_finished()?;
        for to in &destinations {
            output.place(to)?;
        }
        anyhow::Ok(staged)
    })?;
    let quantizing = usage();
    let mut record = record::Parts {
        fingerprint,
        settings: settings.to_map(pipeline),
        pipeline,
        decoder: &decoder,
        calibration: &windows.report,
        records,
        exports: &exports,
        warnings,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: quantizing.cpu_seconds - cpu,
        peak_rss_bytes: Some(quantizing.peak_rss_bytes).filter(|bytes| *bytes > 0),
        resumed,
        tune: work.tune_record().cloned(),
        budget: shared_out,
        codes: count_codes(&work, blocks)?,
        clock: &clock,
    }
    .record();
    drop(windows);

    if let Some(text) = &evaluation {
        let folder = &exports[0].folder;
        record.evaluation = scored(pipeline, &decoder, folder, text, &tokenizer, on_event)?;
    }
    tell_verdict(&mut record, on_event);
    write_reports(&options.out, pipeline, &record)?;
    work.remove()?;
    Ok(Run::new(pipeline, options, record))
}

impl Run {
    /// What is said of a run whose files are all written.
    fn new(pipeline: &Pipeline, options: &RunOptions, record: RunRecord) -> Self {
        let found = record.evaluation.as_ref().map(|e| e.kl_mean);
        let gate = match (pipeline.gate.max_kl, found) {
            (Some(limit), Some(found)) if found > limit => Some(GateFailed {
                name: "max_kl",
                found,
                limit,
            }),
            _ => None,
        };
        let folders = record.exports.iter().map(|e| PathBuf::from(&e.path));
        Self {
            folders: folders.collect(),
            record,
            out: options.out.clone(),
            gate,
        }
    }
}

/// Puts what a bad score means first among a run's warnings.
pub(crate) fn tell_verdict(record: &mut RunRecord, on_event: &mut dyn FnMut(Event)) {
    if let Some(verdict) = record.verdict_warning() {
        on_event(Event::Warning(verdict.clone()));
        record.summary.warnings.insert(0, verdict);
    }
}

/// Scores an exported folder beside the float model, as the pipeline says: the file is what the user gets, so the file is
/// what is scored.
pub(crate) fn scored(
    pipeline: &Pipeline,
    decoder: &Decoder,
    folder: &Path,
    text: &EvaluationText,
    tokenizer: &Tokenizer,
    on_event: &mut dyn FnMut(Event),
) -> Result<Option<EvaluationRecord>> {
    let Some(settings) = &pipeline.evaluate else {
        return Ok(None);
    };
    let quantized = Decoder::new(
        Weights::new(halfbyte_checkpoint::ModelFolder::open(folder)?)?,
        decoder.device().clone(),
    );
    let scores = evaluate::scores(&quantized, Some(decoder), &text.windows, on_event)?;
    // A token that does not decode shows as nothing; its scores stand all the same.
    let text_of = |ids: &[u32]| decode(tokenizer, ids, false).unwrap_or_default();
    Ok(record::evaluation(
        &settings.text.written,
        &scores,
        text,
        &text_of,
    ))
}

/// Writes the cards, the page and the tables of a run, run.json last: it says that the run is finished.
pub(crate) fn write_reports(out: &Path, pipeline: &Pipeline, record: &RunRecord) -> Result<()> {
    for export in &record.exports {
        halfbyte_checkpoint::write_file(
            &Path::new(&export.path).join(CARD),
            halfbyte_report::export_card(record, &export.format).as_bytes(),
        )?;
    }
    if pipeline.report.html {
        let page = halfbyte_report::run_page(record, true);
        halfbyte_report::write_page(&halfbyte_report::page_path(out), &page)?;
    }
    Ok(halfbyte_report::write_run(out, record)?)
}

/// Bytes of the finished blocks and of the residual stream, which lie in the work folder until all is exported.
pub(crate) fn work_bytes(
    layout: &Layout,
    config: &halfbyte_checkpoint::ModelConfig,
    windows: &Windows,
) -> u64 {
    let mut bytes = 0;
    for block in 0..config.num_hidden_layers {
        for kind in LinearKind::ALL {
            if layout.coding(&kind.module(block)).is_some() {
                let [rows, columns] = halfbyte_model::linear_shape(config, kind);
                // a byte a code; scales and zero points are a few per cent of that
                bytes += (rows * columns) as u64;
            }
        }
    }
    let tokens: usize = windows
        .calibration
        .iter()
        .chain(&windows.holdout)
        .map(|w| w.ids.len())
        .sum();
    bytes + (2 * tokens * config.hidden_size) as u64
}

/// The blocks whose linears are solved from less text too, to tell whether there is enough of it.
fn curve_blocks_of(
    pipeline: &Pipeline,
    solver: &Solver,
    decoder: &Decoder,
    windows: &Windows,
) -> Vec<usize> {
    let wanted = pipeline.report.calibration_curve && solver.is_calibrated();
    match wanted && !windows.holdout.is_empty() {
        true => curve_blocks(decoder.n_blocks()),
        false => Vec::new(),
    }
}

/// What becomes of every linear, checked against the model and the formats before anything is read.
pub(crate) struct Layout {
    /// Formats and their folders.
    pub(crate) formats: Vec<(Format, PathBuf)>,
    /// All linears in the model's order, lm_head last where it has a weight of its own, as checkpoints hold them.
    pub(crate) modules: Vec<(String, Option<Coding>)>,
    /// What the quantized ones are solved by, and how they are held.
    schemes: HashMap<String, (Scheme, Coding)>,
    /// Type of the tensors that stay, and of compressed-tensors' scales.
    pub(crate) scale_dtype: ScaleDtype,
}

impl Layout {
    /// Settles every linear's scheme.
    ///
    /// # Errors
    /// A model that is quantized already or lacks tensors; a scheme that a format cannot hold for a linear's shape.
    pub(crate) fn new(
        pipeline: &Pipeline,
        folder: &halfbyte_checkpoint::ModelFolder,
    ) -> Result<Self> {
        check_float(folder)?;
        Self::of_config(pipeline, folder.config(), folder.has("lm_head.weight"))
    }

    /// The same from the config alone.
    pub(crate) fn of_config(
        pipeline: &Pipeline,
        config: &halfbyte_checkpoint::ModelConfig,
        own_head: bool,
    ) -> Result<Self> {
        let formats: Vec<_> = pipeline
            .export_folders(Path::new(""))
            .into_iter()
            .map(|(format, folder)| (Format::from(format), folder))
            .collect();
        let mut modules = Vec::new();
        let mut schemes = HashMap::new();
        for block in 0..config.num_hidden_layers {
            for kind in LinearKind::ALL {
                let module = kind.module(block);
                let Treatment::Quantize(scheme) = pipeline.treatment(&module) else {
                    modules.push((module, None));
                    continue;
                };
                let coding = pipeline.coding(scheme);
                let shape = halfbyte_model::linear_shape(config, kind);
                for (format, _) in &formats {
                    format.supports(&coding, shape).map_err(|refusal| {
                        user_error(
                            format!("{module}: {refusal}"),
                            "change quant or add a rule for this linear",
                        )
                    })?;
                }
                schemes.insert(module.clone(), (scheme, coding));
                modules.push((module, Some(coding)));
            }
        }
        if own_head {
            if matches!(pipeline.treatment("lm_head"), Treatment::Quantize(_)) {
                return Err(user_error(
                    "lm_head: only the linears of the decoder blocks are quantized",
                    "list lm_head under `ignore`",
                ));
            }
            modules.push(("lm_head".to_owned(), None));
        }
        if schemes.is_empty() {
            return Err(user_error(
                "nothing is left to quantize",
                "loosen `ignore` and the rules that skip",
            ));
        }
        for (format, _) in &formats {
            format.supports_together(&modules).map_err(|refusal| {
                user_error(
                    format!("export as {format}: {refusal}"),
                    "change `rules` or `ignore`, or leave this format out",
                )
            })?;
        }
        let scale_dtype = match config.dtype.as_deref() {
            Some("float16") => ScaleDtype::F16,
            Some("float32") => ScaleDtype::F32,
            _ => ScaleDtype::BF16,
        };
        Ok(Self {
            formats,
            modules,
            schemes,
            scale_dtype,
        })
    }

    /// Gives every linear the width that a budget chose for it.
    fn set_bits(&mut self, pipeline: &Pipeline, budget: &BudgetRecord) -> Result<()> {
        for chosen in &budget.linears {
            if let Some((scheme, coding)) = self.schemes.get_mut(&chosen.linear) {
                *scheme = Scheme::new(chosen.bits, scheme.group_size(), scheme.sym())?;
                *coding = pipeline.coding(*scheme);
            }
        }
        for (module, coding) in &mut self.modules {
            *coding = self.schemes.get(module).map(|(_, coding)| *coding);
        }
        Ok(())
    }

    /// Stored bits a weight over the quantized linears, scales and zero points included.
    pub(crate) fn bits_per_weight(&self, config: &halfbyte_checkpoint::ModelConfig) -> f64 {
        let (mut bits, mut weights) = (0.0, 0.0);
        for block in 0..config.num_hidden_layers {
            for kind in LinearKind::ALL {
                if let Some(coding) = self.coding(&kind.module(block)) {
                    let shape = halfbyte_model::linear_shape(config, kind);
                    let elements = (shape[0] * shape[1]) as f64;
                    bits += coding.bits_per_weight(shape) * elements;
                    weights += elements;
                }
            }
        }
        bits / weights
    }

    /// Whether symmetric linears may get negative scales: where that was asked for, and else in `best`, where the usual
    /// readers of all exports take them.
    pub(crate) fn signed_scales(&self, pipeline: &Pipeline) -> bool {
        let mut formats = self.formats.iter();
        let wanted = match pipeline.quant.signed_scales {
            SignedScales::On => true,
            SignedScales::Off => false,
            SignedScales::Auto => {
                pipeline.recipe == Recipe::Best
                    && formats.all(|(format, _)| format.usually_takes_negative_scales())
            }
        };
        wanted && self.is_any_sym()
    }

    /// Whether any linear is quantized symmetrically.
    pub(crate) fn is_any_sym(&self) -> bool {
        self.schemes.values().any(|(scheme, _)| scheme.sym())
    }

    /// The scheme a linear is solved by, if it is quantized.
    pub(crate) fn scheme(&self, module: &str) -> Option<Scheme> {
        self.schemes.get(module).map(|(scheme, _)| *scheme)
    }

    /// How checkpoints hold a linear that is quantized.
    pub(crate) fn coding(&self, module: &str) -> Option<Coding> {
        self.schemes.get(module).map(|(_, coding)| *coding)
    }
}

/// Refuses a model that is quantized already or lacks tensors.
pub(crate) fn check_float(folder: &halfbyte_checkpoint::ModelFolder) -> Result<()> {
    if folder.config().quantization_config.is_some() {
        return Err(user_error(
            format!("{}: the model is quantized already", folder.place()),
            "give the float model it was made from",
        ));
    }
    Ok(folder.check_tensors()?)
}

/// One block on its way through the stages.
struct BlockRun<'a> {
    pipeline: &'a Pipeline,
    settings: &'a Settings,
    layout: &'a Layout,
    block: usize,
    clock: &'a mut Clock,
    on_event: &'a mut dyn FnMut(Event),
    /// Largest magnitudes of the input of q, k and v, which v's mixed statistics are not of.
    attention_peaks: Vec<f32>,
    gradients: Option<&'a OutputGradients>,
    /// The linears that are not solved yet, where their channels were scaled.
    floats: Vec<(LinearKind, Scaled)>,
    solved: Vec<Solved>,
    /// Tensors beside the quantized ones that came out changed.
    replaced: Vec<(String, Vec<f32>)>,
    records: Vec<LinearRecord>,
}

impl BlockRun<'_> {
    /// Solves every linear from its weight alone.
    fn run_without_text(&mut self, decoder: &Decoder) -> Result<()> {
        for kind in LinearKind::ALL {
            if let Some(scheme) = self.layout.scheme(&kind.module(self.block)) {
                self.solve_one(decoder, None, kind, scheme, &mut Prepared::without_text())?;
            }
        }
        decoder.release_block(self.block);
        Ok(())
    }

    fn run(&mut self, decoder: &Decoder, walk: &mut Walk) -> Result<()> {
        let tokens = walk.tokens_per_window();
        let mut block = self
            .clock
            .time("read", || decoder.block(self.block, tokens))?;
        if let Some(scaling) = &self.settings.scaling {
            let stats = self.walk(walk, "survey", |walk, tick| walk.survey(&block, tick))?;
            let fold = || {
                scaling.fold(
                    decoder.weights(),
                    self.layout,
                    self.block,
                    &mut block,
                    &stats,
                    walk,
                )
            };
            let folded = self.clock.time("scale", fold)?;
            (self.floats, self.replaced) = (folded.linears, folded.replaced);
        }
        if self.pipeline.propagation == Propagation::Float {
            return self.run_float(decoder, walk, block);
        }
        walk.begin_block(&block);
        let stats = self.walk(walk, "attention input", |walk, tick| {
            walk.attention_input(&block, tick)
        })?;
        self.attention_peaks = stats[0].parts[0].stats.max_abs.clone();
        self.solve(decoder, &mut block, &[LinearKind::Q, LinearKind::K], &stats)?;
        let mixed = self.walk(walk, "attention", |walk, tick| {
            walk.attention_mixed(&block, tick)
        })?;
        let of_v = if mixed.is_empty() { &stats } else { &mixed };
        self.solve(decoder, &mut block, &[LinearKind::V], of_v)?;
        drop((stats, mixed));
        let stats = self.walk(walk, "attention output", |walk, tick| {
            walk.attention_output(&block, tick)
        })?;
        self.solve(decoder, &mut block, &[LinearKind::O], &stats)?;
        let stats = self.walk(walk, "mlp input", |walk, tick| walk.mlp_input(&block, tick))?;
        self.solve(
            decoder,
            &mut block,
            &[LinearKind::Gate, LinearKind::Up],
            &stats,
        )?;
        let stats = self.walk(walk, "mlp output", |walk, tick| {
            walk.mlp_output(&block, tick)
        })?;
        self.solve(decoder, &mut block, &[LinearKind::Down], &stats)?;
        self.walk(walk, "residual", |walk, tick| {
            walk.finish_block(&block, tick)
        })?;
        decoder.release_block(self.block);
        Ok(())
    }

    /// The block where all statistics are the float model's: one pass gives them all.
    fn run_float(&mut self, decoder: &Decoder, walk: &mut Walk, mut block: Block) -> Result<()> {
        let stats = self.walk(walk, "statistics", |walk, tick| {
            walk.survey_and_finish(&block, tick)
        })?;
        self.attention_peaks = stats[0].parts[0].stats.max_abs.clone();
        self.solve(decoder, &mut block, &LinearKind::ALL, &stats)?;
        decoder.release_block(self.block);
        Ok(())
    }

    fn walk<T>(
        &mut self,
        walk: &mut Walk,
        name: &'static str,
        stage: impl FnOnce(&mut Walk, &mut dyn FnMut(usize)) -> Result<T, halfbyte_calibrate::WalkError>,
    ) -> Result<T> {
        let block = self.block;
        let total = (walk.n_windows() * walk.tokens_per_window()) as u64;
        let on_event = &mut *self.on_event;
        let mut tick = |done: usize| {
            on_event(Event::Phase {
                block: Some(block),
                name,
                done: done as u64,
                total,
                unit: "tokens",
            })
        };
        tick(0);
        let result = self.clock.time(name, || stage(walk, &mut tick));
        result.with_context(|| format!("block {block}, {name}"))
    }

    /// Solves linears from their statistics, and puts their rounded weights in place for what follows unless all
    /// statistics are to come from the float model.
    fn solve(
        &mut self,
        decoder: &Decoder,
        block: &mut Block,
        kinds: &[LinearKind],
        stats: &[LinearStats],
    ) -> Result<()> {
        for linears in stats {
            let kinds: Vec<LinearKind> = kinds
                .iter()
                .copied()
                .filter(|kind| linears.kinds.contains(kind))
                .collect();
            self.solve_alike(decoder, block, &kinds, linears)?;
        }
        Ok(())
    }

    /// The same for linears that share their statistics.
    fn solve_alike(
        &mut self,
        decoder: &Decoder,
        block: &mut Block,
        kinds: &[LinearKind],
        linears: &LinearStats,
    ) -> Result<()> {
        let module = |kind: LinearKind| kind.module(self.block);
        let wanted: Vec<(LinearKind, Scheme)> = kinds
            .iter()
            .filter_map(|&kind| Some((kind, self.layout.scheme(&module(kind))?)))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let index = self.block;
        let place = || format!("block {index}, {}", kinds[0].short());
        let solver = &self.settings.solver;
        let mut prepared = self
            .clock
            .time("factor", || Prepared::new(solver, linears))
            .with_context(place)?;
        let with_subsets = |part: &RowStats| !part.stats.subsets.is_empty();
        let measured = match linears.parts.iter().any(with_subsets) {
            true => (self.curves(decoder, &wanted, &prepared)).with_context(place)?,
            false => Vec::new(),
        };
        let mut measured = measured.into_iter();
        for (kind, scheme) in wanted {
            let record = self.solve_one(decoder, Some(&mut *block), kind, scheme, &mut prepared)?;
            record.calibration_curve = measured.next().unwrap_or_default();
        }
        Ok(())
    }

    /// The curves of linears that share `prepared`, in their order.
    fn curves(
        &mut self,
        decoder: &Decoder,
        linears: &[(LinearKind, Scheme)],
        prepared: &Prepared<'_>,
    ) -> Result<Vec<Vec<CurvePointRecord>>> {
        let weights = decoder.weights();
        let curved = linears.iter().map(|&(kind, scheme)| {
            let shape = halfbyte_model::linear_shape(weights.config(), kind);
            let scaled = self.floats.iter().find(|(k, _)| *k == kind);
            let weight = match scaled {
                Some((_, scaled)) => Cow::Borrowed(&scaled.weight[..]),
                None => weights.weight(&kind.module(self.block), shape)?.into(),
            };
            anyhow::Ok(Curved {
                kind,
                weight,
                columns: shape[1],
                scheme,
            })
        });
        let curved = curved.collect::<Result<Vec<_>>>()?;
        let measure = || curves(&self.settings.solver, prepared, &curved);
        self.clock.time("calibration curve", measure)
    }

    /// Solves one linear; its rounded weight goes into the block, if there is one. Gives its record.
    fn solve_one(
        &mut self,
        decoder: &Decoder,
        block: Option<&mut Block>,
        kind: LinearKind,
        scheme: Scheme,
        prepared: &mut Prepared<'_>,
    ) -> Result<&mut LinearRecord> {
        let solver = &self.settings.solver;
        let weights = decoder.weights();
        let shape = halfbyte_model::linear_shape(weights.config(), kind);
        let module = kind.module(self.block);
        let float = weights.weight(&module, shape)?;
        let scaled = self.floats.iter().position(|(k, _)| *k == kind);
        let scaled = scaled.map(|at| self.floats.swap_remove(at).1);
        let dense = weights.folder().tensor(&format!("{module}.weight"))?;
        let row_factors = match self.gradients {
            Some(gradients) => self.clock.time("factor", || {
                let mut hessians = gradients.row_hessians(self.block, kind)?;
                if let Some(scaled) = &scaled {
                    scaled.scales.scale_row_hessians(&mut hessians);
                }
                let damp_percent = self.settings.gradients.map_or(0.0, |g| g.damp_percent);
                let factors = hessians.iter().map(|h| factor_rows(h, damp_percent));
                factors.collect::<Result<_>>()
            })?,
            None => Vec::new(),
        };
        let task = Task {
            block: self.block,
            kind,
            weight: scaled.as_ref().map_or(&float, |scaled| &scaled.weight),
            shape,
            scheme,
            method: self.pipeline.method,
            row_factors,
            unscaled: scaled.as_ref().map(|scaled| Unscaled {
                weight: &float,
                scales: &scaled.scales,
            }),
            bytes_before: dense.bytes.len() as u64,
            llm_int8: self.pipeline.report.llm_int8,
            peaks: (kind == LinearKind::V).then_some(&self.attention_peaks),
        };
        let (solved, record) = self.clock.time("solve", || prepared.solve(solver, &task))?;
        prepared.count_once();
        tracing::info!(
            linear = solved.module,
            relative_loss = record.relative_loss,
            relative_loss_heldout = record.relative_loss_heldout,
            damp_used = record.damp_used,
            "solved"
        );
        (self.on_event)(Event::LinearDone {
            block: self.block,
            linear: solved.module.clone(),
            bits: record.bits,
            relative_loss: record.relative_loss,
            relative_loss_rtn: record.relative_loss_rtn,
            seconds: record.seconds,
        });
        if let Some(block) = block
            && self.pipeline.propagation != Propagation::Float
        {
            block
                .linears
                .get_mut(kind)
                .set_weight(solved.weight.dequantize());
        }
        self.solved.push(solved);
        self.records.push(record);
        Ok(self.records.last_mut().expect("one was pushed"))
    }
}

pub(crate) fn device_choice(device: Device) -> DeviceChoice {
    match device {
        Device::Auto => DeviceChoice::Auto,
        Device::Cpu => DeviceChoice::Cpu,
        Device::Vulkan => DeviceChoice::Vulkan,
        Device::Metal => DeviceChoice::Metal,
        Device::Dx12 => DeviceChoice::Dx12,
        Device::Webgpu => DeviceChoice::WebGpu,
    }
}
