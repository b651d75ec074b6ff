//! From what the pipeline file names to what is read: model, calibration text, evaluation text.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use halfbyte_calibrate::text::{
    self, EvaluationText, RenderChat, SourceKind, SplitMix64, TextSource, WindowChoice,
    WindowOptions, evaluation_windows, evaluation_windows_of, load_windows,
};
use halfbyte_checkpoint::{
    HubOptions, Identity, ModelFolder, Progress, create_folder, resolve_dataset,
    resolve_with_progress, write_file,
};
use halfbyte_model::Weights;
use halfbyte_report::{export_places, read_run};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::config::{self, Calibration, Evaluate, Packing, Pipeline, Windows};
use crate::error::user_error;
use crate::event::Event;
use crate::generate::{ChatTemplate, Today, writing_bytes, written_windows};
use crate::memory::MemoryLimit;
use crate::told;
use crate::usage::Clock;

/// The project's own calibration text, so that a run needs no network.
const EMBEDDED_TEXTS: [(&str, &str); 18] = [
    ("code", include_str!("../../../calibration_data/code.txt")),
    (
        "en-dialogue",
        include_str!("../../../calibration_data/en-dialogue.txt"),
    ),
    (
        "en-encyclopedia",
        include_str!("../../../calibration_data/en-encyclopedia.txt"),
    ),
    (
        "en-instructions",
        include_str!("../../../calibration_data/en-instructions.txt"),
    ),
    (
        "en-narrative",
        include_str!("../../../calibration_data/en-narrative.txt"),
    ),
    (
        "lang-ar",
        include_str!("../../../calibration_data/lang-ar.txt"),
    ),
    (
        "lang-de",
        include_str!("../../../calibration_data/lang-de.txt"),
    ),
    (
        "lang-es",
        include_str!("../../../calibration_data/lang-es.txt"),
    ),
    (
        "lang-fr",
        include_str!("../../../calibration_data/lang-fr.txt"),
    ),
    (
        "lang-hi",
        include_str!("../../../calibration_data/lang-hi.txt"),
    ),
    (
        "lang-ja",
        include_str!("../../../calibration_data/lang-ja.txt"),
    ),
    (
        "lang-ru",
        include_str!("../../../calibration_data/lang-ru.txt"),
    ),
    ("math", include_str!("../../../calibration_data/math.txt")),
    (
        "tables",
        include_str!("../../../calibration_data/tables.txt"),
    ),
    (
        "zh-dialogue",
        include_str!("../../../calibration_data/zh-dialogue.txt"),
    ),
    (
        "zh-encyclopedia",
        include_str!("../../../calibration_data/zh-encyclopedia.txt"),
    ),
    (
        "zh-narrative",
        include_str!("../../../calibration_data/zh-narrative.txt"),
    ),
    (
        "zh-technical",
        include_str!("../../../calibration_data/zh-technical.txt"),
    ),
];

/// The project's own text to score on, no part of the calibration text.
const EVALUATION_TEXT: &str = include_str!("../../../tests/data/evaluation.txt");

/// Opens a model: a folder, a hub id, or `embedded:tiny`. The folder of a run stands for its first export.
pub(crate) fn open_model(
    source: &str,
    revision: Option<String>,
    on_event: &mut dyn FnMut(Event),
) -> Result<ModelFolder> {
    if let Some(folder) = export_of_run(Path::new(source), on_event)? {
        return Ok(ModelFolder::open(&folder)?);
    }
    let options = HubOptions {
        revision,
        ..HubOptions::from_env()
    };
    let folder = resolve_with_progress(source, &options, &mut |p| on_event(download(p)))?.open()?;
    Ok(folder)
}

/// The first checkpoint of the run in a folder that holds none itself, and a note of which one where there are several;
/// none where the folder is no such run's.
fn export_of_run(folder: &Path, on_event: &mut dyn FnMut(Event)) -> Result<Option<PathBuf>> {
    let place = folder.display();
    if folder.join("config.json").exists() || !folder.join("halfbyte").is_dir() {
        return Ok(None);
    }
    if !folder.join("halfbyte/run.json").is_file() {
        return Err(user_error(
            format!(
                "{place} holds no checkpoint, only a run or a sweep that has not finished or exported nothing"
            ),
            "repeat the command that wrote it, it goes on where it stopped; or name another folder",
        ));
    }
    let record = read_run(folder)?;
    let found = export_places(folder, &record);
    let Some((first, path)) = found.first() else {
        let gone: Vec<&str> = record.exports.iter().map(|e| e.path.as_str()).collect();
        return Err(user_error(
            format!(
                "{place} is the folder of a run, but the checkpoints it wrote are gone: {}",
                gone.join(", ")
            ),
            "name the folder where the checkpoint is now",
        ));
    };
    if found.len() > 1 {
        let formats: Vec<&str> = found.iter().map(|(format, _)| format.as_str()).collect();
        on_event(Event::Note(format!(
            "{place} holds {} checkpoints ({}); taking {first}, {}",
            found.len(),
            formats.join(", "),
            path.display()
        )));
    }
    Ok(Some(path.clone()))
}

/// The weights of a model, as the commands that take one by its name open it; tells what is to be told of it.
pub(crate) fn open_weights(source: &str, on_event: &mut dyn FnMut(Event)) -> Result<Weights> {
    let folder = open_model(source, None, on_event)?;
    told_weights(folder, source, on_event)
}

/// The weights of an opened model; tells what is to be told of it.
pub(crate) fn told_weights(
    folder: ModelFolder,
    source: &str,
    on_event: &mut dyn FnMut(Event),
) -> Result<Weights> {
    for notice in told::of_model(&folder)? {
        on_event(Event::Warning(format!("{source}: {notice}")));
    }
    let weights = Weights::new(folder).with_context(|| source.to_owned())?;
    weights.check()?;
    Ok(weights)
}

/// Token windows of the pipeline's calibration sources; none where the method reads no text.
pub(crate) fn open_calibration(
    pipeline: &Pipeline,
    folder: &ModelFolder,
    tokenizer: &Tokenizer,
    on_event: &mut dyn FnMut(Event),
) -> Result<text::Windows> {
    let calibration = &pipeline.calibration;
    if pipeline.reads_text() {
        read_calibration(calibration, folder, tokenizer, on_event)
    } else {
        Ok(no_text(calibration))
    }
}

/// Token windows of calibration sources.
pub(crate) fn read_calibration(
    calibration: &Calibration,
    folder: &ModelFolder,
    tokenizer: &Tokenizer,
    on_event: &mut dyn FnMut(Event),
) -> Result<text::Windows> {
    let mut sources = Vec::new();
    for source in &calibration.sources {
        let kind = match &source.text {
            config::TextSource::Path(located) => SourceKind::Path(located.path.clone()),
            config::TextSource::Embedded => SourceKind::Texts {
                name: config::EMBEDDED_CALIBRATION.to_owned(),
                texts: EMBEDDED_TEXTS
                    .iter()
                    .map(|(_, text)| (*text).to_owned())
                    .collect(),
            },
            config::TextSource::Dataset(id) => {
                let files = resolve_dataset(id, &is_text, &HubOptions::from_env(), &mut |p| {
                    on_event(download(p))
                })?;
                SourceKind::Files {
                    name: files.id,
                    paths: files.files,
                }
            }
        };
        sources.push(TextSource {
            kind,
            weight: source.weight,
            text_column: source.text_column.clone(),
            chat_template: source.chat_template,
        });
    }
    let options = WindowOptions {
        num_samples: calibration.num_samples,
        sequence_length: calibration.sequence_length,
        packing: packing(calibration.packing),
        seed: calibration.seed,
        holdout: calibration.holdout,
        random_samples: calibration.random_samples,
    };
    let render = chat_writer(folder);
    Ok(load_windows(
        &sources,
        tokenizer,
        render.as_deref(),
        &options,
    )?)
}

/// Writes chats with the model's own template, where it has one. A template that cannot be read refuses every chat, and so is
/// told where there are chats and is no matter where there are none.
fn chat_writer(folder: &ModelFolder) -> Option<Box<RenderChat<'static>>> {
    match ChatTemplate::of(folder, Today::Fixed) {
        Ok(None) => None,
        Ok(Some(template)) => Some(Box::new(move |messages| template.render_said(messages))),
        Err(error) => {
            let reason = error.to_string();
            Some(Box::new(move |_| Err(reason.clone())))
        }
    }
}

/// What the model wrote for a run or a sweep, `OUT/halfbyte/generated.json`: to be read again where work was interrupted, and
/// by all shards of a sweep, whose processors might round, and so write, otherwise.
#[derive(Serialize, Deserialize)]
struct GeneratedFile {
    /// What the windows depend on.
    key: String,
    /// Token ids of those for the statistics.
    windows: Vec<Vec<u32>>,
    /// Token ids of those for tuning alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tuning_windows: Vec<Vec<u32>>,
}

impl GeneratedFile {
    /// The windows of the file, if it holds those of this key.
    fn read(path: &Path, key: &str) -> Option<[Vec<Vec<u32>>; 2]> {
        let file: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (file.key == key).then_some([file.windows, file.tuning_windows])
    }
}

/// What a run or a sweep reads before its first block.
pub(crate) struct Reading<'a> {
    pub(crate) pipeline: &'a Pipeline,
    /// Whether calibration text is read: a sweep's cells may want it where its pipeline does not.
    pub(crate) reads_text: bool,
    /// The output folder.
    pub(crate) out: &'a Path,
    /// Windows that the model writes for tuning alone.
    pub(crate) tuning_samples: usize,
    /// What the model may not pass when it writes.
    pub(crate) memory: MemoryLimit,
    /// Whether what an earlier run had the model write is passed over.
    pub(crate) fresh: bool,
    /// Names the model.
    pub(crate) identity: &'a Identity,
}

/// What was read.
pub(crate) struct Inputs {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) windows: text::Windows,
    /// Where the pipeline evaluates.
    pub(crate) evaluation: Option<EvaluationText>,
    pub(crate) weights: Weights,
}

impl Reading<'_> {
    /// Reads all texts, early, so that a wrong path is told before the work and not after it, and lets the model write. What
    /// is to be told of model and pipeline stands first among the windows' warnings.
    pub(crate) fn inputs(
        &self,
        folder: ModelFolder,
        clock: &mut Clock,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Inputs> {
        let told = told::of_run(self.pipeline, &folder, self.reads_text)?;
        let tokenizer = folder.tokenizer()?;
        let calibration = &self.pipeline.calibration;
        let mut windows = clock.time("tokenize", || match self.reads_text {
            true => read_calibration(calibration, &folder, &tokenizer, on_event),
            false => Ok(no_text(calibration)),
        })?;
        windows.report.warnings.splice(0..0, told);
        let evaluation = match &self.pipeline.evaluate {
            Some(evaluate) => Some(open_evaluation(evaluate, &folder, &tokenizer)?),
            None => None,
        };
        if let Some(evaluation) = &evaluation {
            windows.report.warnings.extend(evaluation.warnings.clone());
        }
        let weights = clock.time("write text", || {
            self.let_model_write(
                &mut windows,
                folder,
                &tokenizer,
                &self.identity.fingerprint,
                on_event,
            )
        })?;
        Ok(Inputs {
            tokenizer,
            windows,
            evaluation,
            weights,
        })
    }

    /// Adds the windows that the float model is to write, or those that it wrote for this folder before; where all of it at once
    /// does not fit into the memory that the run may hold, as many of random ids, and a warning says so. Gives the model's
    /// weights.
    fn let_model_write(
        &self,
        windows: &mut text::Windows,
        folder: ModelFolder,
        tokenizer: &Tokenizer,
        fingerprint: &str,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Weights> {
        let weights = Weights::new(folder)?;
        let (samples, seed) = (
            self.pipeline.calibration.generated_samples,
            self.pipeline.calibration.seed,
        );
        if samples + self.tuning_samples == 0 {
            return Ok(weights);
        }
        let add = |windows: &mut text::Windows, [written, for_tuning]: [Vec<Vec<u32>>; 2]| {
            windows.add_generated(written);
            windows.add_tuning(for_tuning);
        };
        let shape = [samples, self.tuning_samples];
        let tokens = self.pipeline.calibration.sequence_length;
        let folder = self.out.join("halfbyte");
        // an output folder that cannot be is told before the work and not after it
        create_folder(&folder)?;
        let path = folder.join("generated.json");
        let key = format!(
            "{fingerprint} {seed} {}+{}x{tokens} {}",
            shape[0],
            shape[1],
            env!("CARGO_PKG_VERSION")
        );
        let earlier = || match self.fresh {
            true => None,
            false => GeneratedFile::read(&path, &key),
        };
        if let Some(written) = earlier() {
            add(windows, written);
            return Ok(weights);
        }
        let too_large = too_large_to_write(weights.folder(), shape, self.memory)?;
        if !too_large.is_empty() {
            let mut random = SplitMix64::new(seed, u64::MAX);
            windows.add_random(tokenizer, samples, &mut random);
            windows.report.warnings.extend(too_large);
            return Ok(weights);
        }
        let (own, weights) = written_windows(weights, tokenizer, shape, tokens, seed, on_event)?;
        // another shard may have been faster
        let written = match earlier() {
            Some(theirs) => theirs,
            None => {
                let [windows, tuning_windows] = own;
                let file = GeneratedFile {
                    key,
                    windows,
                    tuning_windows,
                };
                write_file(&path, &serde_json::to_vec(&file)?)?;
                [file.windows, file.tuning_windows]
            }
        };
        add(windows, written);
        Ok(weights)
    }
}

/// Why a model is not to write windows for the statistics and for tuning, a warning for each of these that wants any: all of
/// its weights at once, and what goes with them, are more than the run may hold. Empty where they are not.
pub(crate) fn too_large_to_write(
    folder: &ModelFolder,
    [samples, tuning_samples]: [usize; 2],
    memory: MemoryLimit,
) -> Result<Vec<String>> {
    let bytes = writing_bytes(folder)?;
    if samples + tuning_samples == 0 || bytes <= memory.all() {
        return Ok(Vec::new());
    }
    let because = format!(
        "because it would hold all its weights at once for that, {} with what goes with them, and the run may hold {memory}",
        halfbyte_report::bytes(bytes),
    );
    let mut warnings = Vec::new();
    if samples > 0 {
        warnings.push(format!(
            "calibration.generated_samples: {samples} windows are of random tokens, not of the model's own, {because}",
        ));
    }
    if tuning_samples > 0 {
        warnings.push(format!(
            "tune.generated_samples: tuning learns from the calibration's windows, not from {tuning_samples} of the model's \
             own, {because}",
        ));
    }
    Ok(warnings)
}

/// What is read where the method reads no text.
pub(crate) fn no_text(calibration: &Calibration) -> text::Windows {
    text::Windows {
        calibration: Vec::new(),
        holdout: Vec::new(),
        tuning: Vec::new(),
        report: text::TextReport {
            packing: packing(calibration.packing),
            sequence_length: calibration.sequence_length,
            ..text::TextReport::default()
        },
    }
}

fn packing(packing: Packing) -> text::Packing {
    match packing {
        Packing::Concat => text::Packing::Concat,
        Packing::Truncate => text::Packing::Truncate,
        Packing::Drop => text::Packing::Drop,
    }
}

/// A text to score on.
pub(crate) struct ScoredText<'a> {
    /// A file or folder, or [`config::EMBEDDED_EVALUATION`] for the one inside the program.
    pub(crate) path: &'a Path,
    /// The column that holds the text, where it is not to be found by its name.
    pub(crate) text_column: Option<&'a str>,
    /// Whether chats are written with the model's own template, where it has one.
    pub(crate) chat_template: bool,
}

impl<'a> ScoredText<'a> {
    /// A text that only its path is known of.
    pub(crate) fn at(path: &'a Path) -> Self {
        Self {
            path,
            text_column: None,
            chat_template: true,
        }
    }

    fn is_embedded(&self) -> bool {
        self.path == Path::new(config::EMBEDDED_EVALUATION)
    }

    /// Finds early that there is nothing at the path.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_embedded() || self.path.exists() {
            true => Ok(()),
            false => Err(text::TextError::Missing {
                path: self.path.to_owned(),
            }
            .into()),
        }
    }

    /// Its token windows.
    pub(crate) fn windows(
        &self,
        folder: &ModelFolder,
        tokenizer: &Tokenizer,
        sequence_length: usize,
        windows: &Windows,
    ) -> Result<EvaluationText> {
        let choice = window_choice(windows);
        if self.is_embedded() {
            return Ok(evaluation_windows(
                EVALUATION_TEXT,
                tokenizer,
                sequence_length,
                &choice,
            )?);
        }
        let source = TextSource {
            kind: SourceKind::Path(self.path.to_owned()),
            weight: 1.0,
            text_column: self.text_column.map(str::to_owned),
            chat_template: self.chat_template,
        };
        let render = chat_writer(folder);
        Ok(evaluation_windows_of(
            &source,
            tokenizer,
            render.as_deref(),
            sequence_length,
            &choice,
        )?)
    }
}

/// Token windows of the pipeline's evaluation text.
pub(crate) fn open_evaluation(
    evaluate: &Evaluate,
    folder: &ModelFolder,
    tokenizer: &Tokenizer,
) -> Result<EvaluationText> {
    let text = ScoredText {
        path: &evaluate.text.path,
        text_column: evaluate.text_column.as_deref(),
        chat_template: evaluate.chat_template,
    };
    text.windows(
        folder,
        tokenizer,
        evaluate.sequence_length,
        &evaluate.windows,
    )
}

/// The choice of windows in the text crate's own type.
fn window_choice(windows: &Windows) -> WindowChoice {
    match windows {
        Windows::All => WindowChoice::All,
        Windows::Count(n) => WindowChoice::Count(*n),
        Windows::List(list) => WindowChoice::List(list.clone()),
    }
}

/// Files of a data set that hold text we read.
fn is_text(name: &str) -> bool {
    let name = [".gz", ".zst"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name);
    [".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn download(progress: Progress<'_>) -> Event {
    Event::Download {
        file: progress.file.to_owned(),
        bytes: progress.bytes,
        total: Some(progress.total),
    }
}
