//! What a run is: every setting that decides its codes, in one place.
//!
//! A pipeline file leaves most to its `recipe`. [`usual`] says what each recipe means, and [`Settings::new`] settles a pipeline by
//! it, once a run: the solvers, the walk and the tuning take their numbers from there, `plan` prints them, run.json keeps them,
//! and they are in a run's fingerprint. What no setting says, such as how a solver adds up, is in [`VERSION`], a digest of the
//! sources that decide codes (see build.rs). So blocks that another build solved are never taken for this one's.

use halfbyte_solve::{CodebookOptions, GptqOptions, Grid};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::config::{AwqLoss, Method, Pipeline, Propagation, Recipe, hex};
use crate::scale::Scaling;
use crate::stage::Solver;

/// Names the build by what decides codes in it.
pub(crate) const VERSION: &str = env!("HALFBYTE_RECIPE_VERSION");

/// What a recipe does where the pipeline file says nothing, and what no file can say. results/LOG.md has what was tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    /// What the statistics of a stage have seen.
    pub(crate) propagation: Propagation,
    /// Of so many calibration windows there is one more that the float model writes, where Hessians are solved; none for none.
    windows_a_generated_one: Option<usize>,
    /// Calibration windows that v's attention-mixed statistics are of, where it is solved by those; none for its own statistics.
    mixed_windows: Option<usize>,
    /// Whether, and by which Hessians, rows pay back each other's errors.
    gradients: Option<Gradients>,
    /// Where several partial solutions a row are kept.
    beam: Option<Beam>,
    /// Widths up to which scales and norms are tuned.
    tuned_bits: Option<u8>,
    /// Windows that the model writes to be tuned on, where it is tuned.
    tune_generated_samples: usize,
    /// Calibration windows of an epoch of tuning where there are no such windows; none for all.
    tune_num_samples: Option<usize>,
}

/// Hessians over output rows, from gradients of the calibration's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gradients {
    /// One calibration window in so many has its gradients taken.
    pub(crate) every: usize,
    /// Residual streams kept for a backward pass, whatever memory there is: how many windows are walked together decides in
    /// which order sums are rounded.
    pub(crate) max_bytes: u64,
    /// Damping, more than an input's: gradients differ more from text to text than inputs do.
    pub(crate) damp_percent: f64,
}

/// Partial solutions kept a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beam {
    /// So many.
    pub(crate) width: usize,
    /// Bits up to which.
    pub(crate) most_bits: u8,
}

/// How scales and norms are tuned after the solves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tuning {
    /// Passes over the windows.
    pub(crate) epochs: usize,
    /// Windows that the model writes for this alone.
    pub(crate) generated_samples: usize,
    /// Windows of an epoch, as the file has it.
    num_samples: Option<usize>,
    /// Calibration windows of an epoch where the file says nothing and no window is for tuning alone; none for all.
    usual_num_samples: Option<usize>,
    /// Largest relative change of a scale in a step.
    pub(crate) learning_rate: f64,
    /// Adam's `ε`, a share of the tensor's own root mean second moment.
    pub(crate) damping: f32,
    /// Windows a step: with a few dozen windows, more steps are worth more than smoother ones.
    pub(crate) batch_windows: usize,
}

impl Tuning {
    /// Windows of an epoch, given those that are for tuning alone.
    pub(crate) fn num_samples(&self, own: usize) -> usize {
        let usual = self.usual_num_samples.filter(|_| own == 0);
        self.num_samples.or(usual).unwrap_or(usize::MAX)
    }
}

/// Calibration windows that v's attention-mixed statistics are of in the default recipe, and wherever several settings share
/// their statistics.
pub(crate) const MIXED_WINDOWS: usize = 16;

/// Steps of AWQ's ratio where every candidate is solved by GPTQ.
pub(crate) const GPTQ_GRID: usize = 5;
/// The same where every candidate runs a module; the default form tries each twice, with and without weights.
pub(crate) const MODULE_GRID: usize = 10;

/// Rates of tuning at 2 bits, and above, where there is less to mend.
const LEARNING_RATES: [f64; 2] = [2e-3, 1e-3];

/// What a recipe means.
pub(crate) const fn usual(recipe: Recipe) -> Usual {
    let reference = Usual {
        propagation: Propagation::Sequential,
        windows_a_generated_one: None,
        mixed_windows: None,
        gradients: None,
        beam: None,
        tuned_bits: None,
        tune_generated_samples: 0,
        tune_num_samples: None,
    };
    match recipe {
        Recipe::Reference => reference,
        Recipe::Default => Usual {
            windows_a_generated_one: Some(8),
            mixed_windows: Some(MIXED_WINDOWS),
            ..reference
        },
        Recipe::Best => Usual {
            propagation: Propagation::Asymmetric,
            windows_a_generated_one: Some(2),
            mixed_windows: Some(32),
            gradients: Some(Gradients {
                every: 3,
                max_bytes: 128 << 20,
                damp_percent: 0.5,
            }),
            beam: Some(Beam {
                width: 16,
                most_bits: 4,
            }),
            // above, its row Hessians leave tuning nothing to gain
            tuned_bits: Some(3),
            tune_generated_samples: 24,
            tune_num_samples: Some(32),
        },
    }
}

/// Windows that the float model writes for calibration where the file says nothing.
pub(crate) fn generated_samples(method: Method, recipe: Recipe, num_samples: usize) -> usize {
    match (method, usual(recipe).windows_a_generated_one) {
        (Method::Gptq | Method::AwqGptq, Some(windows)) => num_samples / windows,
        _ => 0,
    }
}

/// A pipeline's settings, settled.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Whether symmetric scales may be negative.
    pub(crate) signed_scales: bool,
    /// How a linear is solved.
    pub(crate) solver: Solver,
    /// How channel scales are searched, where the method scales channels.
    pub(crate) scaling: Option<Scaling>,
    /// Windows of v's attention-mixed statistics; 0 where it is solved by its own.
    pub(crate) mixed_windows: usize,
    /// Hessians over output rows.
    pub(crate) gradients: Option<Gradients>,
    /// Tuning after the solves.
    pub(crate) tuning: Option<Tuning>,
}

impl Settings {
    /// What a pipeline asks for; whether scales may be negative hangs on the exports too.
    pub(crate) fn new(pipeline: &Pipeline, signed_scales: bool) -> Self {
        let usual = usual(pipeline.recipe);
        let solver = Solver::new(pipeline, signed_scales, usual.beam);
        Self {
            scaling: Scaling::new(pipeline, &solver),
            mixed_windows: match solver.wants_mixed() {
                true => usual.mixed_windows.unwrap_or(0),
                false => 0,
            },
            gradients: usual
                .gradients
                .filter(|_| matches!(solver, Solver::Gptq { .. })),
            tuning: tuning(pipeline, usual),
            signed_scales,
            solver,
        }
    }

    /// Windows that the model writes for tuning alone.
    pub(crate) fn tuning_samples(&self) -> usize {
        self.tuning.map_or(0, |tuning| tuning.generated_samples)
    }

    /// The settings by name, in the words that people read; no two runs that choose codes differently have the same, given
    /// their pipelines and the build.
    pub(crate) fn entries(&self, pipeline: &Pipeline) -> Vec<(&'static str, String)> {
        let mut entries = Vec::new();
        entries.push(("solver", self.solver_words(pipeline)));
        if let Some(Beam { width, most_bits }) = self.solver.beam() {
            entries.push((
                "beam",
                format!("{width} partial solutions a row up to {most_bits} bits"),
            ));
        }
        if pipeline.quant.scheme.sym() || self.signed_scales {
            entries.push((
                "signed_scales",
                if self.signed_scales { "on" } else { "off" }.to_owned(),
            ));
        }
        if let Some(scaling) = &self.scaling {
            entries.push(("awq", scaling.words()));
        }
        if !pipeline.reads_text() {
            return entries;
        }
        entries.push(("propagation", pipeline.propagation.to_string()));
        if self.mixed_windows > 0 {
            entries.push((
                "v_proj",
                format!(
                    "by inputs as attention mixes them, of {} windows",
                    self.mixed_windows
                ),
            ));
        }
        if let Some(gradients) = &self.gradients {
            entries.push((
                "gradients",
                format!(
                    "of one window in {}, damp_percent {}",
                    gradients.every, gradients.damp_percent
                ),
            ));
        }
        if pipeline.calibration.generated_samples > 0 {
            entries.push((
                "generated_samples",
                pipeline.calibration.generated_samples.to_string(),
            ));
        }
        if let Some(tuning) = &self.tuning {
            let samples = match (tuning.generated_samples, tuning.num_samples(0)) {
                (0, usize::MAX) => "all calibration windows".to_owned(),
                (0, some) => format!("{some} calibration windows"),
                (own, _) => format!("{own} windows that the model writes for it"),
            };
            let most = tuning
                .num_samples
                .map_or(String::new(), |most| format!(", at most {most} of them"));
            entries.push((
                "tune",
                format!(
                    "epochs {} over {samples}{most}, learning_rate {}",
                    tuning.epochs, tuning.learning_rate
                ),
            ));
        }
        entries
    }

    fn solver_words(&self, pipeline: &Pipeline) -> String {
        let searched = |is_searched: bool, rounds: usize| match (is_searched, rounds) {
            (false, _) => "ranges from min and max".to_owned(),
            (true, 0) => "ranges searched".to_owned(),
            (true, rounds) => format!("ranges searched, refined in {rounds} rounds"),
        };
        match &self.solver {
            Solver::Gptq { options, .. } => {
                let GptqOptions {
                    desc_act,
                    static_groups,
                    damp,
                    block_size,
                    grid,
                    refine_rounds,
                    recipe,
                    ..
                } = options;
                let damp = match damp {
                    halfbyte_solve::Damp::Auto => "auto".to_owned(),
                    halfbyte_solve::Damp::Percent(percent) => percent.to_string(),
                };
                let blocks = match recipe {
                    halfbyte_solve::Recipe::Reference => {
                        format!(", blocks of {block_size} columns")
                    }
                    halfbyte_solve::Recipe::Default => String::new(),
                };
                format!(
                    "gptq, {}, desc_act {desc_act}, static_groups {static_groups}, damp_percent {damp}{blocks}",
                    searched(*grid == Grid::Search, *refine_rounds)
                )
            }
            Solver::Rtn(options) => {
                let words = searched(options.grid == Grid::Search, options.refine_rounds);
                format!("rtn, {words}")
            }
            Solver::Awq { rounding, ours } => {
                let words = searched(rounding.grid == Grid::Search, rounding.refine_rounds);
                let choice = match ours {
                    true => ", the better of clipped and searched",
                    false => ", clipped",
                };
                format!("awq, {words}{choice}")
            }
            Solver::Hqq(_) => "hqq".to_owned(),
            Solver::Absmax => "absmax".to_owned(),
            Solver::Codebook(CodebookOptions { double_quant, .. }) => {
                let how = match pipeline.recipe {
                    Recipe::Reference => "scales from the largest magnitude",
                    _ => "scales searched",
                };
                format!("{}, {how}, double_quant {double_quant}", pipeline.method)
            }
        }
    }

    /// The settings as run.json has them.
    pub(crate) fn to_map(&self, pipeline: &Pipeline) -> Map<String, Value> {
        let entries = self.entries(pipeline).into_iter();
        entries
            .map(|(name, words)| (name.to_owned(), words.into()))
            .collect()
    }

    /// sha256, in hex, of the pipeline's own fingerprint, of all settings and of the build.
    pub(crate) fn fingerprint(&self, pipeline: &Pipeline) -> String {
        let mut digest = Sha256::new();
        digest.update(pipeline.fingerprint());
        digest.update(Value::from(self.to_map(pipeline)).to_string());
        digest.update([u8::from(self.signed_scales)]);
        digest.update(VERSION);
        digest.update(env!("CARGO_PKG_VERSION"));
        hex(&digest.finalize())
    }
}

fn tuning(pipeline: &Pipeline, usual: Usual) -> Option<Tuning> {
    let file = &pipeline.tune;
    let bits = pipeline.quant.scheme.bits();
    let is_usual = usual.tuned_bits.is_some_and(|most| bits <= most);
    let epochs = file.epochs.unwrap_or(usize::from(is_usual));
    let usual_rate = LEARNING_RATES[usize::from(bits > 2)];
    (epochs > 0).then(|| Tuning {
        epochs,
        generated_samples: file
            .generated_samples
            .unwrap_or(usual.tune_generated_samples),
        num_samples: file.num_samples,
        usual_num_samples: usual.tune_num_samples,
        learning_rate: file.learning_rate.unwrap_or(usual_rate),
        damping: 0.1,
        batch_windows: 1,
    })
}

/// What candidates for channel scales are judged by, in words.
pub(crate) fn loss_words(loss: AwqLoss, grid: usize, module_grid: usize) -> String {
    match loss {
        AwqLoss::Module => {
            format!("loss module, {module_grid} ratios, {grid} where statistics judge")
        }
        _ => format!("loss {loss}, {grid} ratios"),
    }
}
