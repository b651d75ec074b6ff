//! The `sweep` section: axes in, cells out, each with the pipeline it stands for.

use std::path::Path;

use super::check;
use super::error::Fault;
use super::file::{PipelineFile, SweepFile, WinnerFile};
use super::{Measure, Method, Pipeline, Propagation, Recipe, WinnerBy};

/// A grid of settings, all solved from one pass over the float model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Every combination of the axes, the method outermost, then recipe, bits, group size and symmetry.
    pub cells: Vec<Cell>,
    /// Which of them are scored.
    pub measure: Measure,
    /// Which of them is run and exported in the end, if any.
    pub winner: Option<Winner>,
    written: SweepFile,
}

/// One combination of a sweep's axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Such as `gptq-4bit-g64-sym`; no two cells of a sweep share it.
    pub name: String,
    /// How codes are chosen.
    pub method: Method,
    /// Which form of the method.
    pub recipe: Recipe,
    /// Bits a code.
    pub bits: u8,
    /// Columns that share a scale, as the file has it.
    pub group_size: i64,
    /// Whether the zero point is fixed at the middle code.
    pub sym: bool,
    /// A run of these settings alone, by statistics of the float model; or why there can be none.
    pub pipeline: Result<Box<Pipeline>, String>,
}

/// The cell that is run and exported in the end: the best within the limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Winner {
    /// What it is least in.
    pub by: WinnerBy,
    /// Most stored bits a weight over the quantized linears.
    pub max_bits_per_weight: Option<f64>,
    /// Most bytes of all tensors of the first export.
    pub max_bytes: Option<u64>,
}

impl Sweep {
    /// The section in the file's own words.
    pub(super) fn as_written(&self) -> SweepFile {
        self.written.clone()
    }
}

/// The section of a file that is sound otherwise; none where it has none.
pub(super) fn check(file: &PipelineFile, base_dir: &Path) -> Result<Option<Sweep>, Fault> {
    let Some(axes) = &file.sweep else {
        return Ok(None);
    };
    refuse_what_is_not_shared(file, axes)?;
    let measure = measure(file, axes)?;
    Ok(Some(Sweep {
        cells: cells(file, axes, base_dir)?,
        measure,
        winner: match &axes.winner {
            Some(winner) => Some(self::winner(winner, measure)?),
            None => None,
        },
        written: axes.clone(),
    }))
}

/// What changes the float model's statistics, or the weights after all solves, is for a run.
fn refuse_what_is_not_shared(file: &PipelineFile, axes: &SweepFile) -> Result<(), Fault> {
    if file.budget.is_some() {
        return Err(Fault::new(
            &["budget"],
            "a cell of a sweep has one scheme for all linears, but those of `rules`",
            "leave `budget` or `sweep` out",
        ));
    }
    if file.tune.epochs.is_some_and(|epochs| epochs > 0) {
        return Err(Fault::new(
            &["tune", "epochs"],
            "the cells of a sweep are not tuned",
            "leave `tune` out, and tune the winner by a run of its own",
        ));
    }
    let or_own = |axis: &str, asked: bool| -> Vec<String> {
        let section = asked.then(|| "sweep".to_owned());
        section.into_iter().chain([axis.to_owned()]).collect()
    };
    let at = |path: Vec<String>, problem: String, hint: &str| Fault {
        path,
        problem,
        hint: Some(hint.to_owned()),
    };
    if axis(&axes.recipe, file.recipe).contains(&Recipe::Best) {
        return Err(at(
            or_own("recipe", !axes.recipe.is_empty()),
            "`best` weighs every token and row by gradients of its own, which cells cannot share"
                .to_owned(),
            "use `default` or `reference` here, and `best` in a run of the winner",
        ));
    }
    let methods = axis(&axes.method, file.method);
    if let Some(method) = methods.iter().find(|method| method.scales_channels()) {
        return Err(at(
            or_own("method", !axes.method.is_empty()),
            format!("`{method}` scales the float model's channels, each cell in its own way"),
            "use gptq, rtn, hqq, absmax, nf4 or fp4 here, and run awq by itself",
        ));
    }
    Ok(())
}

fn measure(file: &PipelineFile, axes: &SweepFile) -> Result<Measure, Fault> {
    let scored = file.evaluate != super::EvaluateSwitch::Off;
    match axes.measure {
        Some(asked) if asked != Measure::None && !scored => Err(Fault::new(
            &["sweep", "measure"],
            "there is no text to measure on",
            "add `evaluate: {text: FILE}`, or write `measure: none`",
        )),
        Some(asked) => Ok(asked),
        None if scored => Ok(Measure::All),
        None => Ok(Measure::None),
    }
}

fn winner(file: &WinnerFile, measure: Measure) -> Result<Winner, Fault> {
    let usual = match measure {
        Measure::None => WinnerBy::PredictedKl,
        _ => WinnerBy::Kl,
    };
    let by = file.by.unwrap_or(usual);
    if by != WinnerBy::PredictedKl && measure == Measure::None {
        return Err(Fault::new(
            &["sweep", "winner", "by"],
            format!("`{by}` is measured, and no cell is"),
            "write `by: predicted_kl`, or have cells measured: `evaluate: {text: FILE}`",
        ));
    }
    let max_bytes = file.max_bytes.as_ref();
    let at = ["sweep", "winner", "max_bytes"];
    Ok(Winner {
        by,
        max_bits_per_weight: file.max_bits_per_weight,
        max_bytes: max_bytes.map(|text| check::size(&at, text)).transpose()?,
    })
}

fn cells(file: &PipelineFile, axes: &SweepFile, base_dir: &Path) -> Result<Vec<Cell>, Fault> {
    twice("bits", &axes.bits)?;
    twice("group_size", &axes.group_size)?;
    twice("sym", &axes.sym)?;
    twice("method", &axes.method)?;
    twice("recipe", &axes.recipe)?;
    let generated_samples = check::generated_samples(file);
    let mut cells = Vec::new();
    for method in axis(&axes.method, file.method) {
        for recipe in axis(&axes.recipe, file.recipe) {
            for bits in axis(&axes.bits, file.quant.bits) {
                for group_size in axis(&axes.group_size, file.quant.group_size) {
                    for sym in axis(&axes.sym, file.quant.sym) {
                        let mut alone = PipelineFile {
                            method,
                            recipe,
                            sweep: None,
                            propagation: Some(Propagation::Float),
                            ..file.clone()
                        };
                        // all cells share the windows that are read
                        alone.calibration.generated_samples = Some(generated_samples);
                        alone.quant.bits = bits;
                        alone.quant.group_size = group_size;
                        alone.quant.sym = sym;
                        let pipeline = check::check(alone, base_dir);
                        cells.push(Cell {
                            name: name(method, recipe, bits, group_size, sym),
                            method,
                            recipe,
                            bits,
                            group_size,
                            sym,
                            pipeline: pipeline.map(Box::new).map_err(|fault| fault.problem),
                        });
                    }
                }
            }
        }
    }
    Ok(cells)
}

/// The values of an axis: those asked for, or the file's own.
fn axis<T: Copy>(asked: &[T], own: T) -> Vec<T> {
    if asked.is_empty() {
        vec![own]
    } else {
        asked.to_vec()
    }
}

fn twice<T: PartialEq>(axis: &str, values: &[T]) -> Result<(), Fault> {
    let again = (1..values.len()).find(|&at| values[..at].contains(&values[at]));
    match again {
        None => Ok(()),
        Some(index) => Err(Fault::new(
            &["sweep", axis, &index.to_string()],
            "the same value is there before",
            "keep one of the two",
        )),
    }
}

fn name(method: Method, recipe: Recipe, bits: u8, group_size: i64, sym: bool) -> String {
    let recipe = match recipe {
        Recipe::Default => String::new(),
        other => format!("-{other}"),
    };
    let group = match group_size {
        -1 => "channel".to_owned(),
        0 => "tensor".to_owned(),
        columns => format!("g{columns}"),
    };
    let sym = if sym { "sym" } else { "asym" };
    format!("{method}{recipe}-{bits}bit-{group}-{sym}")
}
