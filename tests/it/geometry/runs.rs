//! Every method on every kind of shape, from the model's folder to the scores of what was exported.

use std::path::Path;

use halfbyte_pipeline::config::{Device, Pipeline, Windows};
use halfbyte_pipeline::{
    EvalRequest, Evaluation, GenerateRequest, Generator, Parts, Run, RunOptions, SamplingRequest,
    SensitivityRequest, Shard, StoppedBy, SweepOptions, evaluate, plan, quantize, sensitivity,
    sweep,
};

use super::Geometry;
use crate::program::root;

const PIPELINE: &str = "model: {source: model}
calibration: {sources: [{path: text.txt}], num_samples: 9, sequence_length: 64}
quant: {bits: 4, group_size: 16}
evaluate: {text: text.txt, sequence_length: 48, windows: 2}
report: {html: false, calibration_curve: false}
resources: {device: cpu}
";

/// Names of settings, and the settings.
const SETTINGS: [(&str, &[&str]); 21] = [
    ("gptq", &[]),
    ("gptq, reference", &["recipe=reference"]),
    ("gptq, best", &["recipe=best"]),
    ("gptq, best, 2 bits", &["recipe=best", "quant.bits=2"]),
    ("gptq, 3 bits, rows", &["quant={bits: 3, group_size: -1}"]),
    (
        "gptq, 8 bits, asymmetric",
        &["quant={bits: 8, group_size: 16, sym: false}"],
    ),
    ("gptq, with its curve", &["report.calibration_curve=true"]),
    ("float", &["propagation=float"]),
    ("asymmetric", &["propagation=asymmetric"]),
    ("tuned", &["tune.epochs=1"]),
    ("rtn", &["method=rtn"]),
    ("rtn, reference", &["method=rtn", "recipe=reference"]),
    ("awq", &["method=awq"]),
    ("awq, reference", &["method=awq", "recipe=reference"]),
    ("awq, by Hessians", &["method=awq", "awq.loss=hessian"]),
    ("awq+gptq", &["method=awq+gptq"]),
    ("awq+gptq, best", &["method=awq+gptq", "recipe=best"]),
    ("hqq", &["method=hqq", "quant.sym=false"]),
    (
        "absmax",
        &[
            "method=absmax",
            "quant={bits: 8, group_size: -1}",
            "export=[{format: int-quantized}]",
        ],
    ),
    (
        "nf4",
        &[
            "method=nf4",
            "quant.group_size=64",
            "export=[{format: bitsandbytes}]",
        ],
    ),
    ("budget", &["budget={bits_per_weight: 5}"]),
];

/// Tokens a window: as many as a text that the model writes, fewer, and more than are attended to at once.
const LENGTHS: [usize; 3] = [64, 33, 130];

/// What no sound run of these models passes; guessing would be at the logarithm of the vocabulary, 8.3. Random weights leave
/// little at few bits.
fn most_kl(bits: u8) -> f64 {
    match bits {
        2 => 4.0,
        3 => 3.0,
        _ => 1.5,
    }
}

/// A folder with a model and a text.
struct Bench {
    name: String,
    blocks: usize,
    tokens: usize,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(geometry: &Geometry, index: usize) -> Self {
        let blocks = 1 + index % 2;
        let folder = tempfile::tempdir().unwrap();
        geometry.write(&folder.path().join("model"), blocks);
        let text = root().join("calibration_data/en-narrative.txt");
        std::fs::copy(text, folder.path().join("text.txt")).unwrap();
        Self {
            name: geometry.name.clone(),
            blocks,
            tokens: LENGTHS[index % LENGTHS.len()],
            folder,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn pipeline(&self, settings: &[&str]) -> Pipeline {
        let mut settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        settings.push(format!("calibration.sequence_length={}", self.tokens));
        Pipeline::parse_with(PIPELINE, "p.yaml", self.folder.path(), &settings).unwrap()
    }

    /// A run and what must be so of any.
    fn run(&self, what: &str, settings: &[&str]) -> Run {
        let place = format!("{}, {what}", self.name);
        let pipeline = self.pipeline(settings);
        let planned = plan(&pipeline, &self.folder.path().join(what))
            .unwrap_or_else(|e| panic!("{place}: {e:#}"));
        let options = RunOptions {
            out: self.folder.path().join(what),
            fresh: false,
        };
        let run =
            quantize(&pipeline, &options, &mut |_| ()).unwrap_or_else(|e| panic!("{place}: {e:#}"));
        let record = &run.record;
        assert_eq!(record.linears.len(), 7 * self.blocks, "{place}");
        for linear in &record.linears {
            let losses = [linear.relative_loss, linear.relative_loss_rtn];
            let are_losses = losses.iter().all(|loss| *loss > 0.0 && *loss < 0.5);
            assert!(are_losses, "{place}: {} {losses:?}", linear.linear);
        }
        let kl = record.evaluation.as_ref().unwrap().kl_mean;
        let most = most_kl(pipeline.quant.scheme.bits());
        assert!(kl > 0.0 && kl < most, "{place}: KL {kl}");
        if pipeline.budget.is_none() {
            let bits = record.summary.bits_per_weight;
            assert!(
                (planned.bits_per_weight - bits).abs() < 1e-9,
                "{place}: {bits}"
            );
        }
        run
    }

    fn evaluate(&self, model: &Path, packed: bool, max_new_tokens: usize) -> Evaluation {
        let request = EvalRequest {
            model: model.display().to_string(),
            reference: Some(self.path("model")),
            text: self.folder.path().join("text.txt"),
            sequence_length: 48,
            windows: Windows::Count(2),
            packed,
            prompts: None,
            max_new_tokens,
            device: Device::Cpu,
        };
        evaluate(&request, &mut |_| ()).unwrap_or_else(|e| panic!("{}: {e:#}", self.name))
    }

    /// Codes that are multiplied as they are against the weights that they stand for, in scores and in text.
    fn read_packed(&self, run: &Run) {
        let folder = &run.folders[0];
        let (dense, packed) = (
            self.evaluate(folder, false, 0),
            self.evaluate(folder, true, 6),
        );
        assert!(packed.kept_dense.is_empty(), "{}", self.name);
        let [dense, kl] = [&dense, &packed].map(|e| e.against.as_ref().unwrap().kl_mean);
        let place = format!("{}: {kl} packed, {dense} dense", self.name);
        assert!((kl - dense).abs() < 1e-4 * dense, "{place}");
        let run = run.record.evaluation.as_ref().unwrap().kl_mean;
        assert!((run - dense).abs() < 1e-9, "{place}, {run} in the run");
        let request = GenerateRequest {
            model: folder.display().to_string(),
            prompt: "The cooks of the harbour".to_owned(),
            raw: true,
            max_new_tokens: 9,
            sampling: SamplingRequest::default(),
            device: Device::Cpu,
        };
        let generator = Generator::load(&request, &mut |_| ()).unwrap();
        let text = generator
            .generate(&mut |_| std::ops::ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(text.linears_packed, 7 * self.blocks, "{}", self.name);
        assert!(
            text.tokens.len() == 9 || text.stopped_by == StoppedBy::EndToken,
            "{}: {} tokens",
            self.name,
            text.tokens.len()
        );
    }

    /// What the parts of a run cost alone, foretold and measured.
    fn take_apart(&self, run: &Run) {
        let request = SensitivityRequest {
            model: run.folders[0].display().to_string(),
            reference: self.path("model"),
            text: self.folder.path().join("text.txt"),
            sequence_length: 48,
            windows: Windows::Count(2),
            by: Parts::Kind,
            device: Device::Cpu,
        };
        let found =
            sensitivity(&request, &mut |_| ()).unwrap_or_else(|e| panic!("{}: {e:#}", self.name));
        assert_eq!(found.parts.len(), 7);
        for part in &found.parts {
            let [foretold, measured] = [part.predicted_kl, part.kl_mean];
            let ratio = foretold / measured;
            assert!(
                ratio > 0.2 && ratio < 5.0,
                "{}, {}: {foretold} foretold, {measured} measured",
                self.name,
                part.part
            );
        }
    }

    fn sweep(&self) {
        let pipeline = self.pipeline(&[
            "sweep={bits: [3, 4], group_size: [16, -1], method: [gptq, rtn], winner: {by: kl}}",
            "evaluate.windows=1",
        ]);
        let options = SweepOptions {
            out: self.folder.path().join("sweep"),
            fresh: false,
            shard: Shard::ALONE,
        };
        let swept = sweep(&pipeline, &options, &mut |_| ())
            .unwrap_or_else(|e| panic!("{}: {e:#}", self.name));
        let cells = swept.record.unwrap().cells;
        assert_eq!(cells.len(), 8);
        for cell in &cells {
            let kl = cell.evaluation.as_ref().unwrap().kl_mean;
            assert!(
                kl > 0.0 && kl < most_kl(cell.bits),
                "{}, {}: KL {kl}",
                self.name,
                cell.cell
            );
        }
        assert!(swept.winner.is_some());
    }
}

/// Settings that the shape of this index meets beside the default: over the shapes all of them, with one block and with two.
fn drawn(index: usize) -> impl Iterator<Item = &'static (&'static str, &'static [&'static str])> {
    const EACH: usize = 5;
    // no divisor in common with the number of others
    const STEP: usize = 7;
    let others = SETTINGS.len() - 1;
    (0..EACH).map(move |i| &SETTINGS[1 + (STEP * index + i) % others])
}

/// Every shape by the default settings, read back as codes, and by some others.
fn run_some(of: &[Geometry], first: usize, step: usize) {
    for (index, geometry) in of.iter().enumerate().skip(first).step_by(step) {
        let bench = Bench::new(geometry, index);
        let (name, settings) = SETTINGS[0];
        let run = bench.run(name, settings);
        bench.read_packed(&run);
        for (name, settings) in drawn(index) {
            bench.run(name, settings);
        }
        match index % 3 {
            0 => bench.take_apart(&run),
            1 => bench.sweep(),
            _ => (),
        }
    }
}

#[test]
fn published_shapes_are_quantized_by_every_method() {
    run_some(&Geometry::all(), 0, 2);
}

#[test]
fn the_other_published_shapes_are_too() {
    run_some(&Geometry::all(), 1, 2);
}

/// A scale a row, since no group divides their widths.
#[test]
fn shapes_that_no_group_divides_are_too() {
    for (index, geometry) in Geometry::made_up().iter().enumerate() {
        let bench = Bench::new(geometry, index);
        let rows = "quant.group_size=-1";
        let run = bench.run("gptq", &[rows]);
        bench.read_packed(&run);
        bench.take_apart(&run);
        bench.run("best", &[rows, "recipe=best"]);
        bench.run("awq+gptq", &[rows, "method=awq+gptq"]);
        bench.run("budget", &[rows, "budget={bits_per_weight: 5}"]);
    }
}
