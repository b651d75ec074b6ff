//! Block after block: the statistics, and all cells from them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use halfbyte_calibrate::{LinearStats, Walk, WalkOptions};
use halfbyte_model::{LinearKind, Stage, linear_shape};
use halfbyte_report::LinearRecord;
use rayon::prelude::*;

use super::{Cell, SweepRun};
use crate::event::Event;
use crate::judge::Judge;
use crate::recipe::{MIXED_WINDOWS, Settings};
use crate::stage::{Prepared, Solver, Task};
use crate::work::{Solved, Work};

/// The stages in the order of their statistics.
const STAGES: [Stage; 5] = [
    Stage::AttentionInput,
    Stage::AttentionMixed,
    Stage::AttentionOutput,
    Stage::MlpInput,
    Stage::MlpOutput,
];

/// One cell's part of a block.
#[derive(Default)]
struct SolvedBlock {
    solved: Vec<Solved>,
    records: Vec<LinearRecord>,
}

/// Walks all blocks from `done` on; this shard's own are solved for every cell and written.
pub(super) fn blocks(
    run: &mut SweepRun<'_>,
    walked: &mut Work,
    done: usize,
    sensitivities: &[BTreeMap<LinearKind, f64>],
    on_event: &mut dyn FnMut(Event),
) -> Result<()> {
    let SweepRun {
        memory,
        options,
        decoder,
        windows,
        cells,
        clock,
        ..
    } = run;
    let walk_options = WalkOptions {
        max_bytes: memory.activations(),
        spill_folder: walked.folder().to_owned(),
        mixed_windows: MIXED_WINDOWS,
        gradients: None,
        float_path: false,
        subset_blocks: Vec::new(),
    };
    let mut walk = clock.time("forward", || Walk::new(windows, decoder, walk_options))?;
    if done > 0 {
        walk.restore(done, &walked.stream(done)?)?;
    }
    for cell in cells.iter() {
        halfbyte_checkpoint::create_folder(cell.work.folder())?;
    }
    let (blocks, tokens) = (decoder.n_blocks(), walk.tokens_per_window());
    let total = (walk.n_windows() * tokens) as u64;
    for (index, sensitivity) in sensitivities.iter().enumerate().skip(done) {
        let started = Instant::now();
        let block = clock.time("read", || decoder.block(index, tokens))?;
        let own = options.shard.owns(index);
        let name = if own { "statistics" } else { "forward" };
        let mut tick = |done: usize| {
            on_event(Event::Phase {
                block: Some(index),
                name,
                done: done as u64,
                total,
                unit: "tokens",
            })
        };
        tick(0);
        let place = || format!("block {index}, {name}");
        if own {
            let stats = clock.time(name, || walk.survey_and_finish(&block, &mut tick));
            let stats = stats.with_context(place)?;
            let in_block = InBlock {
                index,
                stats: &stats,
                sensitivity,
                decoder,
                cells,
            };
            let solved = clock.time("solve", || in_block.solve(on_event))?;
            drop(stats);
            clock.time("write", || -> Result<()> {
                for (cell, SolvedBlock { solved, records }) in cells.iter().zip(&solved) {
                    cell.work.write_block(index, solved, &[], records)?;
                }
                Ok(())
            })?;
        } else {
            clock
                .time(name, || walk.forward(&block, &mut tick))
                .with_context(place)?;
        }
        decoder.release_block(index);
        clock.time("write", || {
            let stream = || Ok(walk.save()?);
            let more: Option<&dyn Fn() -> Result<Vec<u16>>> = match index + 1 < blocks {
                true => Some(&stream),
                false => None,
            };
            walked.advance(index, more)
        })?;
        on_event(Event::BlockDone {
            block: index,
            of: blocks,
            seconds: started.elapsed().as_secs_f64(),
        });
    }
    Ok(())
}

/// A block whose statistics are there.
struct InBlock<'a> {
    index: usize,
    stats: &'a [LinearStats],
    sensitivity: &'a BTreeMap<LinearKind, f64>,
    decoder: &'a halfbyte_model::Decoder,
    cells: &'a [Cell<'a>],
}

impl InBlock<'_> {
    /// Solves all linears for all cells, in the order of a run.
    fn solve(&self, on_event: &mut dyn FnMut(Event)) -> Result<Vec<SolvedBlock>> {
        let mut all: Vec<SolvedBlock> = Vec::new();
        all.resize_with(self.cells.len(), SolvedBlock::default);
        let mut done = 0;
        for stage in STAGES {
            let shared = Shared::new(self, stage)?;
            for &kind in stage.linears() {
                on_event(Event::Phase {
                    block: Some(self.index),
                    name: "solve",
                    done,
                    total: LinearKind::ALL.len() as u64,
                    unit: "linears",
                });
                let found = self.solve_linear(kind, &shared)?;
                for (block, found) in all.iter_mut().zip(found) {
                    let Some((solved, record)) = found else {
                        continue;
                    };
                    block.solved.push(solved);
                    block.records.push(record);
                }
                done += 1;
            }
        }
        Ok(all)
    }

    /// One linear for all cells; none where a cell leaves it as it is.
    fn solve_linear(
        &self,
        kind: LinearKind,
        shared: &Shared<'_>,
    ) -> Result<Vec<Option<(Solved, LinearRecord)>>> {
        let weights = self.decoder.weights();
        let module = kind.module(self.index);
        let shape = linear_shape(weights.config(), kind);
        let float = weights.weight(&module, shape)?;
        let bytes_before = weights
            .folder()
            .tensor(&format!("{module}.weight"))?
            .bytes
            .len() as u64;
        let judge = Judge::new(shared.judging, &float, shape[1])?;
        let cells = self.cells.par_iter().zip(&shared.of_cell);
        let each = cells.map(|(cell, &prepared)| {
            let Some(scheme) = cell.layout.scheme(&module) else {
                return Ok(None);
            };
            let task = Task {
                block: self.index,
                kind,
                weight: &float,
                shape,
                scheme,
                method: cell.pipeline.method,
                row_factors: Vec::new(),
                unscaled: None,
                bytes_before,
                llm_int8: false,
                peaks: None,
            };
            let Source {
                prepared,
                statistics,
            } = &shared.sources[prepared];
            let (solved, mut record) = prepared.solve(&cell.settings.solver, &task)?;
            let loss = match statistics {
                Statistics::Judging => record.relative_loss * judge.signal,
                Statistics::Other => judge.loss(&solved.weight.dequantize())?,
                Statistics::None => {
                    let values = solved.weight.dequantize();
                    judge.judge(&mut record, &values, &scheme)?;
                    judge.loss(&values)?
                }
            };
            record.predicted_kl = Some(self.sensitivity[&kind] * loss);
            Ok(Some((solved, record)))
        });
        let found: Result<Vec<_>> = each.collect();
        found.with_context(|| format!("block {}, {}", self.index, kind.short()))
    }
}

/// What the linears of a stage are solved and judged by.
struct Shared<'a> {
    judging: &'a LinearStats,
    sources: Vec<Source<'a>>,
    /// Each cell's among them.
    of_cell: Vec<usize>,
}

struct Source<'a> {
    prepared: Prepared<'a>,
    statistics: Statistics,
}

/// Whose statistics a cell is solved from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Statistics {
    /// Those that the loss is felt by.
    Judging,
    /// Those of v's own input.
    Other,
    /// None.
    None,
}

impl<'a> Shared<'a> {
    /// Factors what the cells need, once for all that need the same.
    fn new(block: &InBlock<'a>, stage: Stage) -> Result<Self> {
        let first = stage.linears()[0];
        let of = |kind: LinearKind| block.stats.iter().find(|s| s.kinds.contains(&kind));
        let (judging, input) = of(first).zip(of(LinearKind::Q)).context("statistics")?;
        let mut known = Vec::new();
        let (mut sources, mut of_cell) = (Vec::new(), Vec::new());
        for Cell {
            settings: Settings { solver, .. },
            pipeline,
            ..
        } in block.cells
        {
            let statistics = if !pipeline.reads_text() {
                Statistics::None
            } else if stage == Stage::AttentionMixed && !solver.wants_mixed() {
                Statistics::Other
            } else {
                Statistics::Judging
            };
            let key = (statistics, solver.factor_key());
            let at = known.iter().position(|known| *known == key);
            of_cell.push(at.unwrap_or(known.len()));
            if at.is_none() {
                known.push(key);
                let prepared = match statistics {
                    Statistics::Judging => prepared(solver, judging)?,
                    Statistics::Other => prepared(solver, input)?,
                    Statistics::None => Prepared::without_text(),
                };
                sources.push(Source {
                    prepared,
                    statistics,
                });
            }
        }
        Ok(Self {
            judging,
            sources,
            of_cell,
        })
    }
}

/// Factored; the time of that is no cell's own.
fn prepared<'a>(solver: &Solver, stats: &'a LinearStats) -> Result<Prepared<'a>> {
    let mut prepared = Prepared::new(solver, stats)?;
    prepared.count_once();
    Ok(prepared)
}
