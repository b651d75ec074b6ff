//! AWQ's part of a block: channel scales searched on the float block and folded into it before anything is solved.
//!
//! A scale between v and o, or between up and down, changes rows of the one and columns of the other. The stages walk
//! v before o, so by the time o's statistics of the sequential pass are there, v has been solved. The scales are
//! therefore searched first, all of them, from one pass over the float block ([`Walk::survey`]); the block is folded;
//! and then it is walked and solved as any other, its statistics coming out transformed by themselves. The rejected
//! alternative, o's statistics from a float v in the sequential pass, would run the attention twice as well and have
//! to transform statistics by hand.
//!
//! The searches do not disturb each other: rows of v divided by one number each round as before, since a row's grids
//! stretch with it.
//!
//! A candidate is judged by what the module that it is in gives on some windows ([`ModuleReference`]), or by statistics
//! alone. Where o or down is all that a candidate changes, the two are one number, and statistics have it of all tokens.
//!
//! [`ModuleReference`]: halfbyte_calibrate::ModuleReference

use anyhow::{Context, Result};
use halfbyte_calibrate::{LinearStats, Module, RowStats, Walk};
use halfbyte_checkpoint::rounding;
use halfbyte_model::{Block, LinearKind, NormKind, Weights, linear_shape};
use halfbyte_quant::ActivationStats;
use halfbyte_solve::GptqOptions;
use halfbyte_solve::awq::{
    AwqOptions, Found, Group, HeadTie, InnerSolver, Member, NormGain, fold_into_columns,
    fold_into_norm, fold_into_rows, search, search_by,
};

use crate::config::{AwqLoss, Method, Pipeline, Recipe};
use crate::quantize::Layout;
use crate::recipe::{GPTQ_GRID, MODULE_GRID, loss_words};
use crate::stage::{Solver, matrix, pick};

/// How a run searches channel scales.
#[derive(Clone, Debug)]
pub(crate) struct Scaling {
    options: AwqOptions,
    /// What candidates for the linears behind a norm are judged by.
    loss: AwqLoss,
    /// Steps of the ratio where they are judged by a module's output.
    module_grid: usize,
    /// Tokens that modules run on.
    loss_tokens: usize,
    /// Whether o is scaled where several query heads share a kv head.
    ties_heads: bool,
}

/// A folded block's linears, and the tensors beside the quantized ones that folding changed.
pub(crate) struct Folded {
    /// Every linear.
    pub(crate) linears: Vec<(LinearKind, Scaled)>,
    /// Norms, biases and unquantized weights by their names in the checkpoint, flat, as their types store them.
    pub(crate) replaced: Vec<(String, Vec<f32>)>,
}

/// A linear with its channels scaled.
pub(crate) struct Scaled {
    /// `[out_features, in_features]`, row-major.
    pub(crate) weight: Vec<f32>,
    /// What was done to it.
    pub(crate) scales: ChannelScales,
}

/// What a linear's rows were divided by and its columns multiplied with.
pub(crate) struct ChannelScales {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl ChannelScales {
    /// Turns Hessians of the unscaled rows' outputs, one after another for all rows, into those of the scaled rows'.
    pub(crate) fn scale_row_hessians(&self, hessians: &mut [ActivationStats]) {
        let mut first = 0;
        for hessian in hessians {
            let rows = hessian.in_features;
            let scales = &self.rows[first..first + rows];
            first += rows;
            for (values, by_row) in hessian.hessian.chunks_exact_mut(rows).zip(scales) {
                for (value, by_column) in values.iter_mut().zip(scales) {
                    *value *= by_row * by_column;
                }
            }
        }
    }

    /// Does the same to some rows' values, `[rows, in_features]`.
    pub(crate) fn scale(&self, values: &mut [f32], rows: &[usize]) {
        for (values, &row) in values.chunks_exact_mut(self.columns.len()).zip(rows) {
            for (value, column) in values.iter_mut().zip(&self.columns) {
                *value *= column / self.rows[row];
            }
        }
    }
}

impl Scaling {
    /// What the pipeline asks for; none for methods that scale nothing.
    pub(crate) fn new(pipeline: &Pipeline, solver: &Solver) -> Option<Self> {
        if !pipeline.method.scales_channels() {
            return None;
        }
        let reference = pipeline.recipe == Recipe::Reference;
        let base = if reference {
            AwqOptions::autoawq()
        } else {
            AwqOptions::default()
        };
        let options = match (pipeline.method, solver) {
            // Searched by the solver itself, without the refinement, which treats all candidates alike.
            (Method::AwqGptq, Solver::Gptq { options, .. }) if !reference => AwqOptions {
                n_grid: GPTQ_GRID,
                solver: InnerSolver::Gptq(GptqOptions {
                    refine_rounds: 0,
                    ..options.clone()
                }),
                ..base
            },
            _ => base,
        };
        Some(Self {
            module_grid: match reference {
                true => options.n_grid,
                false => options.n_grid.min(MODULE_GRID),
            },
            options,
            loss: pipeline.awq.loss,
            loss_tokens: pipeline.awq.loss_tokens,
            ties_heads: !reference,
        })
    }

    /// How it searches, in words.
    pub(crate) fn words(&self) -> String {
        let loss = loss_words(self.loss, self.options.n_grid, self.module_grid);
        let ties = match self.ties_heads {
            true => "o_proj where heads share too",
            false => "o_proj only where no heads share",
        };
        format!("{loss}, loss_tokens {}, {ties}", self.loss_tokens)
    }

    /// Searches the scales of a block from the statistics of its float form and what its modules give on windows of
    /// `walk`, which stands before it, and folds them into `block`, whose function stays what it was. Linears that see a
    /// folded norm and stay unquantized are scaled as well.
    pub(crate) fn fold(
        &self,
        weights: &Weights,
        layout: &Layout,
        index: usize,
        block: &mut Block,
        stats: &[LinearStats],
        walk: &Walk,
    ) -> Result<Folded> {
        let mut folding = Folding {
            scaling: self,
            weights,
            layout,
            index,
            stats,
            walk,
            linears: unscaled(weights, index)?,
            replaced: Vec::new(),
        };
        folding.run(block)?;
        let Folding {
            linears, replaced, ..
        } = folding;
        Ok(Folded { linears, replaced })
    }
}

/// The linears of a block as they are.
fn unscaled(weights: &Weights, index: usize) -> Result<Vec<(LinearKind, Scaled)>> {
    let of = |kind: LinearKind| {
        let shape = linear_shape(weights.config(), kind);
        let scaled = Scaled {
            weight: weights.weight(&kind.module(index), shape)?,
            scales: ChannelScales {
                rows: vec![1.0; shape[0]],
                columns: vec![1.0; shape[1]],
            },
        };
        Ok((kind, scaled))
    };
    LinearKind::ALL.into_iter().map(of).collect()
}

struct Folding<'a> {
    scaling: &'a Scaling,
    weights: &'a Weights,
    layout: &'a Layout,
    index: usize,
    stats: &'a [LinearStats],
    walk: &'a Walk,
    linears: Vec<(LinearKind, Scaled)>,
    replaced: Vec<(String, Vec<f32>)>,
}

impl Folding<'_> {
    fn run(&mut self, block: &mut Block) -> Result<()> {
        use LinearKind::{Down, Gate, K, O, Q, Up, V};
        let tie = HeadTie::new(block.heads(), block.kv_heads(), block.head_dim())?;
        let tied = self.scaling.ties_heads || block.heads() == block.kv_heads();
        let by_module = |module| match self.scaling.loss {
            AwqLoss::Module => Some((&*block, module)),
            AwqLoss::Hessian => None,
        };
        let attention = self.search(&[Q, K, V], None, by_module(Module::Attention))?;
        let values = match tied {
            true => self.search(&[O], Some(tie), None)?,
            false => None,
        };
        let mlp = self.search(&[Gate, Up], None, by_module(Module::Mlp))?;
        let hidden = self.search(&[Down], None, None)?;
        if let Some(found) = attention {
            self.fold_norm(NormKind::Attention, &[Q, K, V], &found, block)?;
        }
        if let Some(found) = values {
            self.fold_rows(V, O, &found, block)?;
        }
        if let Some(found) = mlp {
            self.fold_norm(NormKind::Mlp, &[Gate, Up], &found, block)?;
        }
        if let Some(found) = hidden {
            self.fold_rows(Up, Down, &found, block)?;
        }
        for (kind, Scaled { weight, .. }) in &mut self.linears {
            let module = kind.module(self.index);
            if self.layout.scheme(&module).is_none() {
                let name = format!("{module}.weight");
                let round = stored(self.weights, &name)?;
                weight.iter_mut().for_each(|x| *x = round(*x));
                let shape = linear_shape(self.weights.config(), *kind);
                if *weight != self.weights.weight(&module, shape)? {
                    self.replaced.push((name, weight.clone()));
                }
            }
            block.linears.get_mut(*kind).set_weight(weight.clone());
        }
        Ok(())
    }

    /// The scales for the linears that share an input, by the output of the float block's module or by statistics;
    /// none where nothing of it is quantized.
    fn search(
        &self,
        kinds: &[LinearKind],
        tie: Option<HeadTie>,
        module: Option<(&Block, Module)>,
    ) -> Result<Option<Found>> {
        let mut members = Vec::new();
        let (mut picked, mut of_members) = (Vec::new(), Vec::new());
        for &kind in kinds {
            let Some(scheme) = self.layout.scheme(&kind.module(self.index)) else {
                continue;
            };
            let [_, columns] = linear_shape(self.weights.config(), kind);
            for RowStats { rows, stats } in &self.of(kind)?.parts {
                let weight = pick(&self.linear(kind)?.weight, rows.as_deref(), columns);
                picked.push((kind, rows.as_deref(), weight, columns));
                of_members.push((scheme, &stats.calibration));
            }
        }
        for ((_, _, weight, columns), (scheme, stats)) in picked.iter().zip(of_members) {
            members.push(Member {
                weight: matrix(weight, *columns),
                scheme,
                stats,
                sensitivity: 1.0,
            });
        }
        if members.is_empty() {
            return Ok(None);
        }
        let place = || format!("block {}, scales of {}", self.index, kinds[0].short());
        // The first of them sees the shared input itself; v's own statistics may be of the mixed one.
        let shared = &self.of(kinds[0])?.parts[0].stats.calibration;
        let group = Group {
            members: &members,
            mean_abs: &shared.mean_abs,
            tie,
        };
        let options = &self.scaling.options;
        let found = match module {
            None => search(&group, options).with_context(place)?,
            Some((block, module)) => {
                let tokens = self.scaling.loss_tokens;
                let reference = self.walk.module_reference(block, module, tokens)?;
                let by_output = |_: &[f32], rounded: &[Vec<f32>]| -> Result<f64> {
                    let parts = picked.iter().zip(rounded);
                    let parts = parts.map(|((kind, rows, ..), part)| (*kind, *rows, &part[..]));
                    Ok(reference.loss(self.whole(parts)?)?)
                };
                let options = AwqOptions {
                    n_grid: self.scaling.module_grid,
                    ..options.clone()
                };
                search_by(&group, &options, by_output).with_context(place)?
            }
        };
        tracing::info!(
            block = self.index,
            first = kinds[0].short(),
            ratio = found.ratio,
            duo = found.duo,
            loss = found.loss,
            identity_loss = found.identity_loss,
            "scaled"
        );
        Ok(Some(found))
    }

    /// Whole weights, those of the parts in their rows.
    fn whole<'a>(
        &self,
        parts: impl Iterator<Item = (LinearKind, Option<&'a [usize]>, &'a [f32])>,
    ) -> Result<Vec<(LinearKind, Vec<f32>)>> {
        let mut whole: Vec<(LinearKind, Vec<f32>)> = Vec::new();
        for (kind, rows, part) in parts {
            let Some(rows) = rows else {
                whole.push((kind, part.to_vec()));
                continue;
            };
            if whole.last().is_none_or(|(last, _)| *last != kind) {
                whole.push((kind, self.linear(kind)?.weight.clone()));
            }
            let columns = part.len() / rows.len();
            if let Some((_, weight)) = whole.last_mut() {
                for (values, row) in part.chunks_exact(columns).zip(rows) {
                    weight[row * columns..(row + 1) * columns].copy_from_slice(values);
                }
            }
        }
        Ok(whole)
    }

    fn fold_norm(
        &mut self,
        kind: NormKind,
        readers: &[LinearKind],
        found: &Found,
        block: &mut Block,
    ) -> Result<()> {
        let name = kind.tensor(self.index);
        let norm = self.weights.vector(&name)?;
        let store = stored(self.weights, &name)?;
        let folded = fold_into_norm(&norm, None, NormGain::Plain, &found.scales, store)?;
        for &reader in readers {
            self.fold_columns(reader, &folded.scales)?;
        }
        block.set_norm(kind, folded.weight.clone());
        self.replaced.push((name, folded.weight));
        Ok(())
    }

    fn fold_rows(
        &mut self,
        source: LinearKind,
        reader: LinearKind,
        found: &Found,
        block: &mut Block,
    ) -> Result<()> {
        let name = format!("{}.bias", source.module(self.index));
        let mut bias = match self.weights.folder().has(&name) {
            true => Some(self.weights.vector(&name)?),
            false => None,
        };
        let Scaled { weight, scales } = self.linear_mut(source)?;
        fold_into_rows(weight, bias.as_deref_mut(), &found.source_scales)?;
        scales.rows.clone_from(&found.source_scales);
        self.fold_columns(reader, &found.scales)?;
        if let Some(mut bias) = bias {
            let round = stored(self.weights, &name)?;
            bias.iter_mut().for_each(|x| *x = round(*x));
            block.linears.get_mut(source).set_bias(bias.clone());
            self.replaced.push((name, bias));
        }
        Ok(())
    }

    fn of(&self, kind: LinearKind) -> Result<&LinearStats> {
        let found = self.stats.iter().find(|stats| stats.kinds.contains(&kind));
        found.with_context(|| format!("{} has no statistics", kind.short()))
    }

    fn fold_columns(&mut self, reader: LinearKind, by: &[f32]) -> Result<()> {
        let Scaled { weight, scales } = self.linear_mut(reader)?;
        fold_into_columns(weight, by)?;
        scales.columns = by.to_vec();
        Ok(())
    }

    fn linear(&self, kind: LinearKind) -> Result<&Scaled> {
        let found = self.linears.iter().find(|(k, _)| *k == kind);
        let (_, linear) = found.with_context(|| format!("{} was not read", kind.short()))?;
        Ok(linear)
    }

    fn linear_mut(&mut self, kind: LinearKind) -> Result<&mut Scaled> {
        let found = self.linears.iter_mut().find(|(k, _)| *k == kind);
        let (_, linear) = found.with_context(|| format!("{} was not read", kind.short()))?;
        Ok(linear)
    }
}

/// How the source's file rounds a tensor.
fn stored(weights: &Weights, name: &str) -> Result<fn(f32) -> f32> {
    Ok(rounding(weights.folder().tensor(name)?.dtype))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use burn::prelude::{Tensor, TensorData};
    use halfbyte_calibrate::WalkOptions;
    use halfbyte_calibrate::text::{Window, Windows};
    use halfbyte_checkpoint::{HubOptions, ModelFolder, resolve};
    use halfbyte_model::{Decoder, DeviceChoice, open_device};
    use halfbyte_quant::Scheme;
    use halfbyte_solve::{RtnOptions, rtn};

    use super::*;
    use crate::recipe::Settings;

    const TOKENS: usize = 24;

    fn pipeline(more: &str) -> Pipeline {
        let text = format!(
            "model: {{source: embedded:tiny}}\nmethod: awq\nquant: {{group_size: -1}}\n{more}"
        );
        Pipeline::parse(&text, "p.yaml", Path::new("")).unwrap()
    }

    fn embedded() -> ModelFolder {
        let source = resolve("embedded:tiny", &HubOptions::default()).unwrap();
        source.open().unwrap()
    }

    fn windows(vocabulary: u32) -> Windows {
        let window = |seed: u32| Window {
            ids: (0..TOKENS as u32)
                .map(|i| (i * i * 31 + seed * 57) % vocabulary)
                .collect(),
            len: TOKENS,
        };
        let mut windows = crate::open::no_text(&pipeline("").calibration);
        windows.calibration = (0..3).map(window).collect();
        windows
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.try_into_vec_as::<f32>().unwrap()
    }

    fn walk(decoder: &Decoder, spill: &Path) -> Walk {
        let options = WalkOptions {
            max_bytes: u64::MAX,
            spill_folder: spill.to_owned(),
            mixed_windows: 2,
            gradients: None,
            float_path: false,
            subset_blocks: Vec::new(),
        };
        let windows = windows(decoder.weights().config().vocab_size as u32);
        Walk::new(&windows, decoder, options).unwrap()
    }

    /// Folds every block, and gives the largest logit of the float model, the largest difference of a logit of the
    /// folded one, and what was replaced.
    fn fold_all(folder: ModelFolder, pipeline: &Pipeline) -> (f32, f32, Vec<String>) {
        let layout = Layout::new(pipeline, &folder).unwrap();
        let device = open_device(DeviceChoice::Cpu).unwrap();
        let decoder = Decoder::new(Weights::new(folder).unwrap(), device.clone());
        let config = decoder.weights().config();
        let windows = windows(config.vocab_size as u32);
        let spill = tempfile::tempdir().unwrap();
        let mut walk = walk(&decoder, spill.path());
        let scaling = Settings::new(pipeline, false).scaling.unwrap();
        let ids: Vec<u32> = windows
            .calibration
            .iter()
            .flat_map(|w| w.ids.clone())
            .collect();
        let shape = [windows.calibration.len(), TOKENS, config.hidden_size];
        let data = TensorData::new(decoder.embed(&ids).unwrap(), shape);
        let mut float = Tensor::<3>::from_data(data, &device);
        let mut folded = float.clone();
        let mut replaced = Vec::new();
        let quiet = &mut |_| ();
        for index in 0..decoder.n_blocks() {
            let block = decoder.block(index, TOKENS).unwrap();
            let stats = walk.survey(&block, quiet).unwrap();
            let mut scaled = block.clone();
            let parts = scaling
                .fold(
                    decoder.weights(),
                    &layout,
                    index,
                    &mut scaled,
                    &stats,
                    &walk,
                )
                .unwrap();
            for (kind, linear) in parts.linears {
                let module = kind.module(index);
                if layout.scheme(&module).is_some() {
                    let shape = linear_shape(config, kind);
                    let mut again = decoder.weights().weight(&module, shape).unwrap();
                    let rows: Vec<usize> = (0..shape[0]).collect();
                    linear.scales.scale(&mut again, &rows);
                    let mut pairs = again.iter().zip(&linear.weight);
                    assert!(
                        pairs.all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()),
                        "{module}"
                    );
                }
            }
            replaced.extend(parts.replaced.into_iter().map(|(name, _)| name));
            // walks on by the float block
            walk.attention_input(&block, quiet).unwrap();
            walk.attention_mixed(&block, quiet).unwrap();
            walk.attention_output(&block, quiet).unwrap();
            walk.mlp_input(&block, quiet).unwrap();
            walk.mlp_output(&block, quiet).unwrap();
            walk.finish_block(&block, quiet).unwrap();
            float = block.forward(float);
            folded = scaled.forward(folded);
        }
        let head = decoder.head().unwrap();
        let rows = [shape[0] * shape[1], shape[2]];
        let float = values(head.forward(float.reshape(rows)));
        let folded = values(head.forward(folded.reshape(rows)));
        let largest = float.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let differences = float.iter().zip(&folded).map(|(a, b)| (a - b).abs());
        (largest, differences.fold(0.0, f32::max), replaced)
    }

    #[test]
    fn the_folded_float_model_has_the_logits_it_had() {
        let (largest, difference, replaced) = fold_all(embedded(), &pipeline(""));
        assert!(difference < 1e-5 * largest, "{difference} of {largest}");
        assert_eq!(replaced.len(), 6 * 2, "{replaced:?}");
    }

    #[test]
    fn biases_head_norms_and_every_family_fold_as_exactly() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for (name, biased) in [
            ("llama", false),
            ("llama_biases", true),
            ("mistral_sliding_window", false),
            ("qwen2", true),
            ("qwen3", false),
        ] {
            let folder: PathBuf = golden.join(name);
            let folder = ModelFolder::open(&folder).unwrap();
            let (largest, difference, replaced) = fold_all(folder, &pipeline(""));
            assert!(
                difference < 1e-5 * largest.max(1.0),
                "{name}: {difference} of {largest}"
            );
            let bias = "model.layers.0.self_attn.v_proj.bias".to_owned();
            assert_eq!(replaced.contains(&bias), biased, "{name}: {replaced:?}");
        }
    }

    #[test]
    fn a_linear_that_stays_float_is_scaled_with_the_others_that_read_the_norm() {
        let ignoring = pipeline("ignore: [lm_head, '*.0.self_attn.k_proj', '*.1.mlp.*']\n");
        let (largest, difference, replaced) = fold_all(embedded(), &ignoring);
        // what stays is rounded to the file's bf16 once more
        assert!(difference < 2e-2 * largest, "{difference} of {largest}");
        let has = |name: &str| replaced.iter().any(|r| r.ends_with(name));
        assert!(has("layers.0.self_attn.k_proj.weight"));
        assert!(!has("layers.1.post_attention_layernorm.weight"));
        assert!(!has("layers.1.mlp.up_proj.weight"));
    }

    /// `Q(W S) S⁻¹`.
    fn by_hand(weight: &[f32], scales: &[f32], scheme: &Scheme, options: &RtnOptions) -> Vec<f32> {
        let times = |weight: &[f32], by: &dyn Fn(f32) -> f32| -> Vec<f32> {
            let rows = weight.chunks_exact(scales.len());
            rows.flat_map(|row| row.iter().zip(scales).map(|(w, s)| w * by(*s)))
                .collect()
        };
        let scaled = times(weight, &|s| s);
        let rounded = rtn(matrix(&scaled, scales.len()), None, scheme, options).unwrap();
        let rounded = rounded.weight.dequantize();
        let back = rounded.chunks_exact(scales.len());
        back.flat_map(|row| row.iter().zip(scales).map(|(w, s)| w / s))
            .collect()
    }

    #[test]
    fn the_scales_behind_a_norm_are_those_of_least_change_of_the_modules_output() {
        use LinearKind::{Gate, K, Q, Up, V};
        // k stays float, and v is handed over by its kv heads
        let pipeline = pipeline("recipe: reference\nignore: [lm_head, '*.k_proj']\n");
        let decoder = Decoder::new(
            Weights::new(embedded()).unwrap(),
            open_device(DeviceChoice::Cpu).unwrap(),
        );
        let layout = Layout::new(&pipeline, decoder.weights().folder()).unwrap();
        let scaling = Settings::new(&pipeline, false).scaling.unwrap();
        let spill = tempfile::tempdir().unwrap();
        let mut walk = walk(&decoder, spill.path());
        let block = decoder.block(0, TOKENS).unwrap();
        let stats = walk.survey(&block, &mut |_| ()).unwrap();
        let folding = Folding {
            scaling: &scaling,
            weights: decoder.weights(),
            layout: &layout,
            index: 0,
            stats: &stats,
            walk: &walk,
            linears: unscaled(decoder.weights(), 0).unwrap(),
            replaced: Vec::new(),
        };
        let InnerSolver::Rtn(options) = &scaling.options.solver else {
            panic!("AutoAWQ rounds");
        };
        for (module, kinds, quantized) in [
            (Module::Attention, &[Q, K, V][..], &[Q, V][..]),
            (Module::Mlp, &[Gate, Up], &[Gate, Up]),
        ] {
            let search = |by| folding.search(kinds, None, by).unwrap().unwrap();
            let found = search(Some((&block, module)));
            let reference = walk.module_reference(&block, module, 4096).unwrap();
            let loss = |scales: &[f32]| {
                let weights = quantized.iter().map(|&kind| {
                    let scheme = layout.scheme(&kind.module(0)).unwrap();
                    let float = &folding.linear(kind).unwrap().weight;
                    (kind, by_hand(float, scales, &scheme, options))
                });
                reference.loss(weights.collect()).unwrap()
            };
            let again = loss(&found.scales);
            assert!(
                (found.loss / again - 1.0).abs() < 1e-6,
                "{module:?}: {}, by hand {again}",
                found.loss
            );
            assert!(found.tried.iter().all(|tried| tried.loss >= found.loss));
            assert_eq!(found.tried.len(), 20);
            assert!(loss(&search(None).scales) >= found.loss * (1.0 - 1e-6));
        }
    }
}
