//! Bits shared out among the linears under a size: what each width of each linear costs the model, and the choice.
//!
//! A linear's error costs the model its sensitivity times the loss `tr(Δ H Δᵀ)`
//! ([`halfbyte_calibrate::sensitivities`], one backward pass over a few windows), and losses add up over linears. One
//! walk over the float model solves every linear at every width by the run's own solver, and
//! [`halfbyte_solve::allocate`] chooses. q, k, v share a width, and so do gate and up: readers fuse them. The rejected
//! alternative, measuring the KL of every linear perturbed by itself, runs the model some hundred times for the same
//! numbers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use halfbyte_calibrate::text::{Window, Windows};
use halfbyte_calibrate::{GradientOptions, LinearStats, Walk, WalkOptions, sensitivities};
use halfbyte_checkpoint::{ModelConfig, TensorInfo};
use halfbyte_model::{Decoder, LinearKind, linear_shape};
use halfbyte_quant::{Coding, Scheme};
use halfbyte_report::{BudgetRecord, SensitivityRecord, UniformRecord};
use halfbyte_solve::{Choice, allocate};

use crate::config::{Budget, BudgetLimit, Pipeline};
use crate::error::user_error;
use crate::event::{Event, phase};
use crate::export;
use crate::quantize::Layout;
use crate::recipe::MIXED_WINDOWS;
use crate::stage::{Prepared, Solver};
use crate::usage::Clock;

/// Windows the sensitivities are taken from.
const SENSITIVITY_WINDOWS: usize = 4;
/// All widths there are.
const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];

/// What sharing out needs of a run.
pub(crate) struct Budgeting<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) layout: &'a Layout,
    pub(crate) decoder: &'a Decoder,
    pub(crate) windows: &'a Windows,
    pub(crate) solver: &'a Solver,
    pub(crate) spill_folder: &'a Path,
    pub(crate) activation_bytes: u64,
}

/// A quantized linear and what it may become.
struct Member {
    block: usize,
    kind: LinearKind,
    options: Vec<Coded>,
    sensitivity: f64,
}

/// A width and what it comes to.
struct Coded {
    scheme: Scheme,
    /// In the limit's unit, bits or bytes.
    size: f64,
    /// Stored bits.
    bits: f64,
    /// KL predicted.
    kl: f64,
}

impl Budgeting<'_> {
    /// Chooses widths; none where the pipeline sets no budget.
    pub(crate) fn share_out(
        &self,
        clock: &mut Clock,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<Option<BudgetRecord>> {
        let Some(budget) = &self.pipeline.budget else {
            return Ok(None);
        };
        let mut members = self.members(budget)?;
        let limit = self.limit(budget, &members)?;
        self.check_limit(&members, limit)?;
        clock.time("sensitivity", || self.sense(&mut members, on_event))?;
        clock.time("widths", || self.measure(&mut members, on_event))?;
        self.choose(&members, limit).map(Some)
    }

    /// Every quantized linear with the widths it may have; a single one where a rule has settled it.
    fn members(&self, budget: &Budget) -> Result<Vec<Member>> {
        let config = self.decoder.weights().config();
        let mut members = Vec::new();
        for block in 0..self.decoder.n_blocks() {
            for kind in LinearKind::ALL {
                let module = kind.module(block);
                let Some(scheme) = self.layout.scheme(&module) else {
                    continue;
                };
                let shape = linear_shape(config, kind);
                let widths = widths(self.pipeline, self.layout, budget, &module, &scheme, shape)?;
                let coded = |bits: u8| {
                    let scheme = Scheme::new(bits, scheme.group_size(), scheme.sym())?;
                    let stored = scheme.bits_per_weight(shape[1]) * (shape[0] * shape[1]) as f64;
                    let size = match budget.limit {
                        BudgetLimit::BitsPerWeight(_) => stored,
                        BudgetLimit::Bytes(_) => self.packed_bytes(&module, &scheme, shape)?,
                    };
                    Ok(Coded {
                        scheme,
                        size,
                        bits: stored,
                        kl: 0.0,
                    })
                };
                members.push(Member {
                    block,
                    kind,
                    options: widths.into_iter().map(coded).collect::<Result<_>>()?,
                    sensitivity: 0.0,
                });
            }
        }
        Ok(members)
    }

    fn packed_bytes(&self, module: &str, scheme: &Scheme, shape: [usize; 2]) -> Result<f64> {
        let (format, _) = self.layout.formats[0];
        let infos = export::packed_infos(self.layout, module, &(*scheme).into(), shape, format)?;
        Ok(infos.iter().map(TensorInfo::bytes).sum::<u64>() as f64)
    }

    /// What the quantized linears may take, in the unit of [`Coded::size`].
    fn limit(&self, budget: &Budget, members: &[Member]) -> Result<f64> {
        match budget.limit {
            BudgetLimit::BitsPerWeight(bits) => Ok(bits * self.weights(members)),
            BudgetLimit::Bytes(bytes) => {
                let (format, _) = self.layout.formats[0];
                let folder = self.decoder.weights().folder();
                let mut rest = export::tensor_infos(self.layout, folder, format)?;
                rest.retain(|info| export::packed_module(&info.name, self.layout).is_none());
                let rest: u64 = rest.iter().map(TensorInfo::bytes).sum();
                Ok(bytes as f64 - rest as f64)
            }
        }
    }

    fn weights(&self, members: &[Member]) -> f64 {
        let config = self.decoder.weights().config();
        let of = |member: &Member| linear_shape(config, member.kind).iter().product::<usize>();
        members.iter().map(of).sum::<usize>() as f64
    }

    /// A limit that the smallest widths pass is told before the work.
    fn check_limit(&self, members: &[Member], limit: f64) -> Result<()> {
        let least = |size: fn(&Coded) -> f64| -> f64 {
            let of = |member: &Member| member.options.iter().map(size).fold(f64::MAX, f64::min);
            members.iter().map(of).sum()
        };
        if least(|coded| coded.size) <= limit {
            return Ok(());
        }
        Err(user_error(
            format!(
                "budget: the smallest widths take {:.3} bits a weight already",
                least(|coded| coded.bits) / self.weights(members)
            ),
            "raise the limit, lower the floors, or add smaller widths to `budget.bits`",
        ))
    }

    /// Takes the sensitivity of every linear.
    fn sense(&self, members: &mut [Member], on_event: &mut dyn FnMut(Event)) -> Result<()> {
        let seed = self.pipeline.calibration.seed;
        let found = sense(
            &self.windows.calibration,
            self.decoder,
            seed,
            self.spill_folder,
            on_event,
        )?;
        for member in members {
            member.sensitivity = found[member.block][&member.kind];
        }
        Ok(())
    }

    /// Solves every linear at every width on the float model's statistics.
    fn measure(&self, members: &mut [Member], on_event: &mut dyn FnMut(Event)) -> Result<()> {
        let options = WalkOptions {
            max_bytes: self.activation_bytes,
            spill_folder: self.spill_folder.to_owned(),
            mixed_windows: match self.solver.wants_mixed() {
                true => MIXED_WINDOWS,
                false => 0,
            },
            gradients: None,
            float_path: false,
            subset_blocks: Vec::new(),
        };
        let mut walk = Walk::new(self.windows, self.decoder, options)?;
        let tokens = walk.tokens_per_window();
        let total = (walk.n_windows() * tokens) as u64;
        for index in 0..self.decoder.n_blocks() {
            let block = self.decoder.block(index, tokens)?;
            let mut tick = |done: usize| {
                on_event(Event::Phase {
                    block: Some(index),
                    name: "widths",
                    done: done as u64,
                    total,
                    unit: "tokens",
                })
            };
            let stats = walk.survey_and_finish(&block, &mut tick)?;
            for linears in &stats {
                self.measure_alike(members, index, linears)
                    .with_context(|| format!("block {index}, widths"))?;
            }
            self.decoder.release_block(index);
        }
        Ok(())
    }

    fn measure_alike(
        &self,
        members: &mut [Member],
        block: usize,
        linears: &LinearStats,
    ) -> Result<()> {
        let weights = self.decoder.weights();
        let mut prepared = None;
        let alike = members
            .iter_mut()
            .filter(|member| member.block == block && linears.kinds.contains(&member.kind));
        for Member {
            kind,
            options,
            sensitivity,
            ..
        } in alike
        {
            let prepared = match &prepared {
                Some(prepared) => prepared,
                None => prepared.insert(Prepared::new(self.solver, linears)?),
            };
            let shape = linear_shape(weights.config(), *kind);
            let weight = weights.weight(&kind.module(block), shape)?;
            for coded in options {
                let loss = prepared.loss(self.solver, *kind, &weight, shape, &coded.scheme)?;
                coded.kl = *sensitivity * loss;
            }
        }
        Ok(())
    }

    /// Chooses one width a unit.
    fn choose(&self, members: &[Member], limit: f64) -> Result<BudgetRecord> {
        let units = units(members);
        let choices: Vec<Vec<Choice>> = units.iter().map(|unit| together(members, unit)).collect();
        let chosen = allocate(&choices, limit)?;
        let mut at = vec![0; members.len()];
        for (unit, &choice) in units.iter().zip(&chosen) {
            unit.iter().for_each(|&member| at[member] = choice);
        }
        let total = |of: &dyn Fn(&Coded) -> f64, at: &[usize]| -> f64 {
            let pairs = members.iter().zip(at);
            pairs.map(|(member, &at)| of(&member.options[at])).sum()
        };
        let weights = self.weights(members);
        let mut uniform = Vec::new();
        for bits in WIDTHS {
            let same = |member: &Member| {
                let options = member.options.iter();
                let mut options = options.map(|coded| coded.scheme.bits() == bits);
                options.position(|same| same)
            };
            if let Some(at) = members.iter().map(same).collect::<Option<Vec<_>>>() {
                uniform.push(UniformRecord {
                    bits,
                    bits_per_weight: total(&|coded| coded.bits, &at) / weights,
                    predicted_kl: total(&|coded| coded.kl, &at),
                });
            }
        }
        let linears = members.iter().zip(&at).map(|(member, &at)| {
            let pair = |coded: &Coded| (coded.scheme.bits(), coded.kl);
            SensitivityRecord {
                linear: member.kind.module(member.block),
                bits: member.options[at].scheme.bits(),
                sensitivity: member.sensitivity,
                predicted_kl: member.options.iter().map(pair).collect(),
            }
        });
        Ok(BudgetRecord {
            bits_per_weight: total(&|coded| coded.bits, &at) / weights,
            predicted_kl: total(&|coded| coded.kl, &at),
            uniform,
            linears: linears.collect(),
        })
    }
}

/// What a budget may choose for a linear, the narrowest first.
pub(crate) struct Candidates {
    /// The linear's whole name.
    pub(crate) module: String,
    /// How it may be stored.
    pub(crate) codings: Vec<Coding>,
}

/// What a budget may choose for every quantized linear of a model.
pub(crate) fn candidates(
    pipeline: &Pipeline,
    layout: &Layout,
    budget: &Budget,
    config: &ModelConfig,
) -> Result<Vec<Candidates>> {
    let mut candidates = Vec::new();
    for block in 0..config.num_hidden_layers {
        for kind in LinearKind::ALL {
            let module = kind.module(block);
            let Some(scheme) = layout.scheme(&module) else {
                continue;
            };
            let shape = linear_shape(config, kind);
            let widths = widths(pipeline, layout, budget, &module, &scheme, shape)?;
            let coding = |bits: u8| {
                let scheme = Scheme::new(bits, scheme.group_size(), scheme.sym())?;
                Ok(pipeline.coding(scheme))
            };
            candidates.push(Candidates {
                codings: widths.into_iter().map(coding).collect::<Result<_>>()?,
                module,
            });
        }
    }
    Ok(candidates)
}

/// The widths a linear may have: its rule's alone; else those asked for, or all that every exported format holds, from its
/// floor on.
fn widths(
    pipeline: &Pipeline,
    layout: &Layout,
    budget: &Budget,
    module: &str,
    scheme: &Scheme,
    shape: [usize; 2],
) -> Result<Vec<u8>> {
    if (pipeline.rules.iter()).any(|rule| rule.pattern.matches(module)) {
        return Ok(vec![scheme.bits()]);
    }
    let floor = budget.floors.iter().find(|(p, _)| p.matches(module));
    let floor = floor.map_or(0, |(_, bits)| *bits);
    let asked = !budget.bits.is_empty();
    let all = if asked { &budget.bits[..] } else { &WIDTHS };
    let mut widths = Vec::new();
    for &bits in all.iter().filter(|bits| **bits >= floor) {
        let scheme = Scheme::new(bits, scheme.group_size(), scheme.sym())?;
        let refusal = layout
            .formats
            .iter()
            .find_map(|(format, _)| format.supports(&scheme.into(), shape).err());
        match refusal {
            None => widths.push(bits),
            Some(refusal) if asked => {
                return Err(user_error(
                    format!("budget.bits: {bits}: {module}: {refusal}"),
                    "leave this width or this format out",
                ));
            }
            Some(_) => (),
        }
    }
    if widths.is_empty() {
        return Err(user_error(
            format!("budget: no width is left for {module}"),
            format!("its floor is {floor} bits; add wider ones to `budget.bits`"),
        ));
    }
    Ok(widths)
}

/// The sensitivity of every linear of every block, from a few windows, evenly spaced.
pub(crate) fn sense(
    all: &[Window],
    decoder: &Decoder,
    seed: u64,
    spill_folder: &Path,
    on_event: &mut dyn FnMut(Event),
) -> Result<Vec<BTreeMap<LinearKind, f64>>> {
    let count = SENSITIVITY_WINDOWS.min(all.len());
    let windows: Vec<&Window> = (0..count).map(|i| &all[i * all.len() / count]).collect();
    let options = GradientOptions {
        seed,
        max_bytes: u64::MAX,
        every: 1,
        spill_folder: Some(spill_folder),
    };
    let mut tick = phase(on_event, "sensitivity", "blocks");
    Ok(sensitivities(&windows, decoder, &options, &mut tick)?)
}

/// Members that must have the same width, by their indices.
fn units(members: &[Member]) -> Vec<Vec<usize>> {
    use LinearKind::{Gate, K, Q, Up, V};
    let mut units: Vec<Vec<usize>> = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let fused = [&[Q, K, V][..], &[Gate, Up]];
        let fused = fused.iter().find(|kinds| kinds.contains(&member.kind));
        let widths = |member: &Member| -> Vec<u8> {
            let options = member.options.iter();
            options.map(|coded| coded.scheme.bits()).collect()
        };
        let mate = units.iter_mut().find(|unit| {
            let first = &members[unit[0]];
            first.block == member.block
                && fused.is_some_and(|kinds| kinds.contains(&first.kind))
                && widths(first) == widths(member)
        });
        match mate {
            Some(unit) => unit.push(index),
            None => units.push(vec![index]),
        }
    }
    units
}

/// The choices of a unit: its members' sizes and losses added up, width by width.
fn together(members: &[Member], unit: &[usize]) -> Vec<Choice> {
    let widths = members[unit[0]].options.len();
    let choice = |at: usize| {
        let of = unit.iter().map(|&member| &members[member].options[at]);
        of.fold(
            Choice {
                size: 0.0,
                loss: 0.0,
            },
            |sum, coded| Choice {
                size: sum.size + coded.size,
                loss: sum.loss + coded.kl,
            },
        )
    };
    (0..widths).map(choice).collect()
}
