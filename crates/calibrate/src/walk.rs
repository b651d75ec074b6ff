use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use halfbyte_model::{Block, Decoder, LinearKind, ModelError, Stage, values};
use halfbyte_quant::ActivationStats;

use crate::activation::{Activation, Beside, Moments, Rows};
use crate::store::from_bf16;
use crate::text::random::SplitMix64;
use crate::text::{Window, Windows};
use crate::{Module, ModuleReference, OutputGradients, Store, StoreError};

/// Tokens one batch holds: large enough for dense products, small enough that a batch's activations stay in cache.
const BATCH_TOKENS: usize = 2048;

/// What a stage's statistics came out as.
#[derive(Clone, Debug)]
pub struct StageStats {
    /// On the calibration windows: what solvers see.
    pub calibration: ActivationStats,
    /// On the held-out windows, if there are any: what nobody fits.
    pub holdout: Option<ActivationStats>,
    /// Largest `|x|` a channel on the calibration windows.
    pub max_abs: Vec<f32>,
    /// On about an eighth, a quarter and a half of the calibration windows, each with those before it; none unless
    /// [asked for](WalkOptions::subset_blocks).
    pub subsets: Vec<ActivationStats>,
}

/// What some linears that share an input see.
#[derive(Clone, Debug)]
pub struct LinearStats {
    /// The linears.
    pub kinds: Vec<LinearKind>,
    /// Statistics for all output rows, or for some each; together they hold every row once.
    pub parts: Vec<RowStats>,
}

/// The statistics that some output rows are solved from.
#[derive(Clone, Debug)]
pub struct RowStats {
    /// Which rows, ascending; none for all.
    pub rows: Option<Vec<usize>>,
    /// What they see.
    pub stats: StageStats,
}

/// How a walk keeps its activations and samples the costly statistic.
#[derive(Debug)]
pub struct WalkOptions {
    /// Bytes of activations to keep in memory; what is beyond goes to files in `spill_folder`.
    pub max_bytes: u64,
    /// Where spilled activations go.
    pub spill_folder: PathBuf,
    /// Calibration windows the attention-mixed statistic is taken from, evenly spaced; 0 for none at all.
    pub mixed_windows: usize,
    /// What the loss feels of every token; without, every token counts alike.
    pub gradients: Option<Arc<OutputGradients>>,
    /// Whether the float model walks along, so that statistics have [cross moments](ActivationStats::cross).
    pub float_path: bool,
    /// Blocks whose statistics are taken of [subsets](StageStats::subsets) of the calibration windows too. Not so the
    /// attention-mixed ones, unless they are taken from all windows, since more text would not change them, nor those too wide
    /// to be kept several times over: of more than 6688 features for linears that share them.
    pub subset_blocks: Vec<usize>,
}

/// Why the walk stopped.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The model's fault.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The spill file's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An activation overflowed or was not a number.
    #[error(
        "{stage:?}: the activation of window {window}, token {token} is not finite; the model's weights overflow in this place"
    )]
    NotFinite {
        /// Which input.
        stage: Stage,
        /// Calibration windows first, then held-out ones.
        window: usize,
        /// Position in the window.
        token: usize,
    },
    /// A gradient overflowed or was not a number.
    #[error(
        "the gradient at block {block} of window {window} is not finite; the model's weights overflow in this place"
    )]
    Gradient {
        /// Which block.
        block: usize,
        /// Which window.
        window: usize,
    },
}

/// All calibration windows, walking through the decoder one stage at a call.
///
/// The calls of a block come in the order of [`Stage`]; between two of them the caller may replace the weights that
/// the next call runs (sequential propagation) or not (float).
#[derive(Debug)]
pub struct Walk {
    options: WalkOptions,
    device: Device,
    tokens: usize,
    hidden: usize,
    /// Real tokens of every window; the calibration windows come first.
    lengths: Vec<usize>,
    /// The smallest subset that a calibration window is in.
    subset_of: Vec<Option<usize>>,
    n_calibration: usize,
    /// The one that statistics are of, and the float model's if it walks along.
    paths: Vec<ModelPath>,
    bytes_in_memory: u64,
    /// The block that is walked.
    at: usize,
}

/// One model's way through the blocks.
#[derive(Debug)]
struct ModelPath {
    /// Start of its spill files' names.
    name: &'static str,
    stream: Store,
    kept: Kept,
    /// The block it walks by; without, the one that the caller has.
    block: Option<Block>,
}

/// The one stage activation that is kept beside the residual stream.
#[derive(Debug)]
enum Kept {
    Nothing,
    QueriesAndKeys(Store, Store),
    Attention(Store),
    Mlp(Store),
}

/// The paths that walk.
const PATHS: [&str; 2] = ["", "float-"];

impl Walk {
    /// Embeds all windows.
    ///
    /// # Errors
    /// Token ids beyond the vocabulary, non-finite embeddings, no room for a spill file.
    pub fn new(
        windows: &Windows,
        decoder: &Decoder,
        options: WalkOptions,
    ) -> Result<Self, WalkError> {
        let all: Vec<&Window> = windows.calibration.iter().chain(&windows.holdout).collect();
        let tokens = all.first().map_or(0, |w| w.ids.len());
        let hidden = decoder.weights().config().hidden_size;
        let mut walk = Self {
            device: decoder.device().clone(),
            tokens,
            hidden,
            lengths: all.iter().map(|w| w.len).collect(),
            subset_of: subsets(windows.calibration.len()),
            n_calibration: windows.calibration.len(),
            paths: Vec::new(),
            bytes_in_memory: 0,
            at: 0,
            options,
        };
        let n_paths = 1 + usize::from(walk.options.float_path);
        walk.bytes_in_memory = n_paths as u64 * Store::bytes(all.len(), tokens * hidden);
        for name in &PATHS[..n_paths] {
            let mut stream = walk.store(name, 0, "stream", tokens * hidden)?;
            for (index, window) in all.iter().enumerate() {
                stream.write(index, &decoder.embed(&window.ids)?)?;
            }
            walk.paths.push(ModelPath {
                name,
                stream,
                kept: Kept::Nothing,
                block: None,
            });
        }
        Ok(walk)
    }

    /// Takes a block as it stands for the float path, if there is one: that path walks by it whatever is put in place.
    pub fn begin_block(&mut self, block: &Block) {
        for path in self.paths.iter_mut().skip(1) {
            path.block = Some(block.clone());
        }
    }

    /// Windows, held-out ones included.
    pub fn n_windows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens a window, padding included.
    pub fn tokens_per_window(&self) -> usize {
        self.tokens
    }

    /// The residual streams' bits in bf16, to go on later from here.
    pub fn save(&self) -> Result<Vec<u16>, WalkError> {
        let mut bits = Vec::new();
        for path in &self.paths {
            bits.extend(path.stream.read_bits(0, self.n_windows())?);
        }
        Ok(bits)
    }

    /// The float model's residual stream of every window, `[tokens, hidden_size]` in bf16's bits one after another, if
    /// that model walks along.
    pub fn save_float(&self) -> Result<Option<Vec<u16>>, WalkError> {
        let read = |path: &ModelPath| Ok(path.stream.read_bits(0, self.n_windows())?);
        self.paths.get(1).map(read).transpose()
    }

    /// Goes on before block `at`, from saved residual streams.
    pub fn restore(&mut self, at: usize, bits: &[u16]) -> Result<(), WalkError> {
        self.at = at;
        let per_window = self.tokens * self.hidden;
        let per_path = self.n_windows() * per_window;
        for (path, bits) in self.paths.iter_mut().zip(bits.chunks(per_path)) {
            path.kept = Kept::Nothing;
            for (index, window) in bits.chunks(per_window).enumerate() {
                let values: Vec<f32> = window.iter().copied().map(from_bf16).collect();
                path.stream.write(index, &values)?;
            }
        }
        Ok(())
    }

    /// Statistics of all stages of a block as it stands, in the order of the stages. The walk stays where it is: this
    /// pass keeps no activations and leaves the residual stream alone.
    pub fn survey(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        self.pass(block, false, tick)
    }

    /// The same, and on to the next block.
    pub fn survey_and_finish(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let stats = self.pass(block, true, tick)?;
        self.at += 1;
        Ok(stats)
    }

    /// What a module of a block as it stands sees and gives on whole calibration windows, evenly spaced, that have some
    /// `tokens` real tokens together; on one at least. The walk stays where it is.
    pub fn module_reference(
        &self,
        block: &Block,
        module: Module,
        tokens: usize,
    ) -> Result<ModuleReference, WalkError> {
        let lengths = &self.lengths[..self.n_calibration];
        let all: usize = lengths.iter().sum();
        let wanted = (tokens * lengths.len() / all.max(1)).clamp(1, lengths.len().max(1));
        let mut reference = ModuleReference::new(block.clone(), module);
        let sampled = (0..lengths.len()).filter(|&w| is_evenly_spaced(w, wanted, lengths.len()));
        let sampled: Vec<usize> = sampled.collect();
        // Attention is causal, so a window without its padding gives what its real tokens give with it.
        for alike in sampled.chunk_by(|a, b| lengths[*a] == lengths[*b]) {
            let len = lengths[alike[0]];
            for windows in alike.chunks((BATCH_TOKENS / len.max(1)).max(1)) {
                let mut values = Vec::with_capacity(windows.len() * len * self.hidden);
                for &window in windows {
                    let all = self.paths[0].stream.read(window, 1)?;
                    values.extend_from_slice(&all[..len * self.hidden]);
                }
                let shape = [windows.len(), len, self.hidden];
                let h = Tensor::from_data(TensorData::new(values, shape), &self.device);
                reference.keep(h);
            }
        }
        Ok(reference)
    }

    /// On to the next block, without statistics.
    pub fn forward(&mut self, block: &Block, tick: &mut dyn FnMut(usize)) -> Result<(), WalkError> {
        for batch in self.batches() {
            let h = values(block.forward(self.stream(&self.paths[0], &batch)?))?;
            self.paths[0].stream.write(batch.start, &h)?;
            tick(batch.end * self.tokens);
        }
        self.at += 1;
        Ok(())
    }

    fn pass(
        &mut self,
        block: &Block,
        into_stream: bool,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let width = |kind| block.linears.get(kind).in_features();
        let wanted = Wanted {
            beside: Beside::Nothing,
            subsets: into_stream && self.takes_subsets(),
        };
        let mut input = self.sums(self.attention_kinds(), self.hidden, wanted);
        let mut mixed = self.mixed_sums(block, wanted);
        let mut output = self.sums(&[LinearKind::O], width(LinearKind::O), wanted);
        let gate_up = &[LinearKind::Gate, LinearKind::Up];
        let mut mlp_input = self.sums(gate_up, self.hidden, wanted);
        let down = &[LinearKind::Down];
        let mut mlp_output = self.sums(down, width(LinearKind::Down), wanted);
        for batch in self.batches() {
            let h = self.stream(&self.paths[0], &batch)?;
            let x = block.attention_input(h.clone());
            let seen = [Activation::of(x.clone())?];
            self.observe(Stage::AttentionInput, &mut input, &batch, &seen, &[])?;
            let (q, k) = block.query_key(x.clone());
            self.observe_mixed(block, &mut mixed, &batch, &[(&q, &k, &x)])?;
            let a = block.attention(q, k, x);
            let seen = [Activation::of(a.clone())?];
            self.observe(Stage::AttentionOutput, &mut output, &batch, &seen, &[])?;
            let h = block.attention_output(h, a);
            let x = block.mlp_input(h.clone());
            let seen = [Activation::of(x.clone())?];
            self.observe(Stage::MlpInput, &mut mlp_input, &batch, &seen, &[])?;
            let m = block.mlp_mix(x);
            let seen = [Activation::of(m.clone())?];
            self.observe(Stage::MlpOutput, &mut mlp_output, &batch, &seen, &[])?;
            if into_stream {
                let h = values(block.mlp_output(h, m))?;
                self.paths[0].stream.write(batch.start, &h)?;
            }
            tick(batch.end * self.tokens);
        }
        let mut stats = finish(input)?;
        stats.extend(finish_mixed(mixed, block.head_dim())?);
        for sums in [output, mlp_input, mlp_output] {
            stats.extend(finish(sums)?);
        }
        Ok(stats)
    }

    /// Statistics of `norm1(h)`: for q and k, and for v too when `options.mixed_windows` is 0.
    pub fn attention_input(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let mut sums = self.sums(self.attention_kinds(), self.hidden, self.wanted(None));
        for batch in self.batches() {
            let x = self.on_paths(block, |path, block| {
                Activation::of(block.attention_input(self.stream(path, &batch)?))
            })?;
            self.observe(Stage::AttentionInput, &mut sums, &batch, &x, &[])?;
            tick(batch.end * self.tokens);
        }
        finish(sums)
    }

    /// Runs q and k, and gives the statistics of `A norm1(h)` for every kv head (none when
    /// `options.mixed_windows` is 0): the second moment of what attention adds up, over the query heads that share
    /// the kv head.
    pub fn attention_mixed(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let (heads, kv_heads, head_dim) = (block.heads(), block.kv_heads(), block.head_dim());
        let mut stores = Vec::new();
        for path in &self.paths {
            let queries = self.tokens * heads * head_dim;
            let keys = self.tokens * kv_heads * head_dim;
            stores.push((
                self.store(path.name, 1, "queries", queries)?,
                self.store(path.name, 1, "keys", keys)?,
            ));
        }
        let mut sums = self.mixed_sums(block, self.wanted(None));
        for batch in self.batches() {
            let seen = self.on_paths(block, |path, block| {
                let x = block.attention_input(self.stream(path, &batch)?);
                let (q, k) = block.query_key(x.clone());
                Ok((q, k, x))
            })?;
            let borrowed: Vec<_> = seen.iter().map(|(q, k, x)| (q, k, x)).collect();
            self.observe_mixed(block, &mut sums, &batch, &borrowed)?;
            for ((queries, keys), (q, k, _)) in stores.iter_mut().zip(seen) {
                queries.write(batch.start, &values(q)?)?;
                keys.write(batch.start, &values(k)?)?;
            }
            tick(batch.end * self.tokens);
        }
        for (path, (queries, keys)) in self.paths.iter_mut().zip(stores) {
            path.kept = Kept::QueriesAndKeys(queries, keys);
        }
        Ok(finish_mixed(sums, head_dim)?.into_iter().collect())
    }

    /// Runs v and the attention, and gives the statistics of o's input.
    pub fn attention_output(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let (heads, kv_heads, head_dim) = (block.heads(), block.kv_heads(), block.head_dim());
        let features = heads * head_dim;
        let mut stores = self.stores("attention", self.tokens * features)?;
        let mut sums = self.sums(&[LinearKind::O], features, self.wanted(Some(self.hidden)));
        for batch in self.batches() {
            let read = |store: &Store, heads: usize| -> Result<Tensor<4>, WalkError> {
                let shape = [batch.len(), heads, self.tokens, head_dim];
                let values = store.read(batch.start, batch.len())?;
                Ok(Tensor::from_data(
                    TensorData::new(values, shape),
                    &self.device,
                ))
            };
            let a = self.on_paths(block, |path, block| {
                let Kept::QueriesAndKeys(queries, keys) = &path.kept else {
                    unreachable!("attention_mixed comes before attention_output");
                };
                let x = block.attention_input(self.stream(path, &batch)?);
                let (q, k) = (read(queries, heads)?, read(keys, kv_heads)?);
                Activation::of(block.attention(q, k, x))
            })?;
            let streams = self.streams(&batch)?;
            self.observe(Stage::AttentionOutput, &mut sums, &batch, &a, &streams)?;
            write(&mut stores, &batch, &a)?;
            tick(batch.end * self.tokens);
        }
        for (path, store) in self.paths.iter_mut().zip(stores) {
            path.kept = Kept::Attention(store);
        }
        finish(sums)
    }

    /// Runs o into the residual stream, and gives the statistics of `norm2(h)`.
    pub fn mlp_input(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let gate_up = &[LinearKind::Gate, LinearKind::Up];
        let mut sums = self.sums(gate_up, self.hidden, self.wanted(None));
        for batch in self.batches() {
            let h = self.on_paths(block, |path, block| {
                let Kept::Attention(attention) = &path.kept else {
                    unreachable!("attention_output comes before mlp_input");
                };
                let a = self.tensor(attention.read(batch.start, batch.len())?, &batch);
                Ok(block.attention_output(self.stream(path, &batch)?, a))
            })?;
            for (path, h) in self.paths.iter_mut().zip(&h) {
                path.stream.write(batch.start, &values(h.clone())?)?;
            }
            let mut h = h.into_iter();
            let x = self.on_paths(block, |_, block| {
                let h = h.next().expect("a stream for every path");
                Activation::of(block.mlp_input(h))
            })?;
            self.observe(Stage::MlpInput, &mut sums, &batch, &x, &[])?;
            tick(batch.end * self.tokens);
        }
        self.drop_kept();
        finish(sums)
    }

    /// Runs gate and up, and gives the statistics of down's input.
    pub fn mlp_output(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let features = block.linears.get(LinearKind::Down).in_features();
        let mut stores = self.stores("mlp", self.tokens * features)?;
        let down = &[LinearKind::Down];
        let mut sums = self.sums(down, features, self.wanted(Some(self.hidden)));
        for batch in self.batches() {
            let m = self.on_paths(block, |path, block| {
                let x = block.mlp_input(self.stream(path, &batch)?);
                Activation::of(block.mlp_mix(x))
            })?;
            let streams = self.streams(&batch)?;
            self.observe(Stage::MlpOutput, &mut sums, &batch, &m, &streams)?;
            write(&mut stores, &batch, &m)?;
            tick(batch.end * self.tokens);
        }
        for (path, store) in self.paths.iter_mut().zip(stores) {
            path.kept = Kept::Mlp(store);
        }
        finish(sums)
    }

    /// Runs down into the residual stream: the next block's input.
    pub fn finish_block(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<(), WalkError> {
        for batch in self.batches() {
            let h = self.on_paths(block, |path, block| {
                let Kept::Mlp(mlp) = &path.kept else {
                    unreachable!("mlp_output comes before finish_block");
                };
                let m = self.tensor(mlp.read(batch.start, batch.len())?, &batch);
                Ok(values(block.mlp_output(self.stream(path, &batch)?, m))?)
            })?;
            for (path, h) in self.paths.iter_mut().zip(&h) {
                path.stream.write(batch.start, h)?;
            }
            tick(batch.end * self.tokens);
        }
        self.drop_kept();
        for path in &mut self.paths {
            path.block = None;
        }
        self.at += 1;
        Ok(())
    }

    fn drop_kept(&mut self) {
        for path in &mut self.paths {
            path.kept = Kept::Nothing;
        }
    }

    /// What every path has of something: first the one that walks by `block`.
    fn on_paths<T>(
        &self,
        block: &Block,
        mut of: impl FnMut(&ModelPath, &Block) -> Result<T, WalkError>,
    ) -> Result<Vec<T>, WalkError> {
        let path = |path: &ModelPath| of(path, path.block.as_ref().unwrap_or(block));
        self.paths.iter().map(path).collect()
    }

    /// The residual streams of a batch, where there are two.
    fn streams(&self, batch: &Range<usize>) -> Result<Vec<Activation>, WalkError> {
        if self.paths.len() < 2 {
            return Ok(Vec::new());
        }
        let read = |path: &ModelPath| Activation::of(self.stream(path, batch)?);
        self.paths.iter().map(read).collect()
    }

    /// What is summed; `stream` is the width of the residual stream, if the output is added to it.
    fn wanted(&self, stream: Option<usize>) -> Wanted {
        let beside = match self.paths.len() {
            1 => Beside::Nothing,
            _ => Beside::Float { stream },
        };
        Wanted {
            beside,
            subsets: self.takes_subsets(),
        }
    }

    fn takes_subsets(&self) -> bool {
        self.options.subset_blocks.contains(&self.at)
    }

    /// The linears that `norm1(h)` itself is the statistic of.
    fn attention_kinds(&self) -> &'static [LinearKind] {
        if self.options.mixed_windows == 0 {
            &[LinearKind::Q, LinearKind::K, LinearKind::V]
        } else {
            &[LinearKind::Q, LinearKind::K]
        }
    }

    /// Empty sums for v, one a kv head; none when `options.mixed_windows` is 0.
    fn mixed_sums(&self, block: &Block, wanted: Wanted) -> Vec<Sums> {
        let grows = self.options.mixed_windows >= self.n_calibration;
        let heads = match self.options.mixed_windows {
            0 => 0,
            _ => block.kv_heads(),
        };
        let wanted = Wanted {
            subsets: wanted.subsets && grows && subsets_fit(heads, self.hidden),
            ..wanted
        };
        (0..heads)
            .map(|_| Sums::new(self.hidden, wanted, &self.device))
            .collect()
    }

    /// Adds `A x` of a batch's sampled windows to the kv heads' sums; of every path its queries, keys and `x`. Of the
    /// block only what no solve changes is used.
    fn observe_mixed(
        &self,
        block: &Block,
        sums: &mut [Sums],
        batch: &Range<usize>,
        paths: &[(&Tensor<4>, &Tensor<4>, &Tensor<3>)],
    ) -> Result<(), WalkError> {
        let shared = block.heads() / block.kv_heads();
        for window in batch.clone().filter(|&w| self.is_sampled(w)) {
            let at = window - batch.start;
            let one = |t: &Tensor<4>, head: usize, n: usize| {
                t.clone().narrow(0, at, 1).narrow(1, head, n)
            };
            for (head, sums) in sums.iter_mut().enumerate() {
                let mut mixed = Vec::new();
                for (q, k, x) in paths {
                    let (q, k) = (one(q, head * shared, shared), one(k, head, 1));
                    let x = (*x).clone().narrow(0, at, 1);
                    mixed.push(block.attention_mixed_input(q, k, x));
                }
                for i in 0..shared {
                    let of_head = |mixed: &Tensor<4>| {
                        let one = mixed.clone().narrow(1, i, 1);
                        Activation::of(one.reshape([1, self.tokens, self.hidden]))
                    };
                    let rows = mixed.iter().map(of_head).collect::<Result<Vec<_>, _>>()?;
                    let head = (LinearKind::V, head * shared + i);
                    let window = window..window + 1;
                    self.add(Stage::AttentionMixed, sums, &window, (&rows, &[]), head)?;
                }
            }
        }
        Ok(())
    }

    /// Empty sums for the linears of a stage: shared by all, or one each where tokens have weights.
    fn sums(&self, kinds: &[LinearKind], features: usize, wanted: Wanted) -> Vec<LinearSums> {
        let shared = match self.options.gradients {
            Some(_) => 1,
            None => kinds.len(),
        };
        let wanted = Wanted {
            subsets: wanted.subsets && subsets_fit(kinds.chunks(shared).len(), features),
            ..wanted
        };
        let of = |kinds: &[LinearKind]| (kinds.to_vec(), Sums::new(features, wanted, &self.device));
        kinds.chunks(shared).map(of).collect()
    }

    fn batches(&self) -> Vec<Range<usize>> {
        let size = (BATCH_TOKENS / self.tokens.max(1)).max(1);
        (0..self.n_windows())
            .step_by(size)
            .map(|start| start..(start + size).min(self.n_windows()))
            .collect()
    }

    fn stream(&self, path: &ModelPath, batch: &Range<usize>) -> Result<Tensor<3>, WalkError> {
        Ok(self.tensor(path.stream.read(batch.start, batch.len())?, batch))
    }

    fn tensor(&self, values: Vec<f32>, batch: &Range<usize>) -> Tensor<3> {
        let features = values.len() / (batch.len() * self.tokens);
        Tensor::from_data(
            TensorData::new(values, [batch.len(), self.tokens, features]),
            &self.device,
        )
    }

    /// Room for an activation of every path.
    fn stores(&self, name: &str, values_per_window: usize) -> Result<Vec<Store>, WalkError> {
        let of = |path: &ModelPath| self.store(path.name, 1, name, values_per_window);
        self.paths.iter().map(of).collect()
    }

    /// Room for an activation, `more` times as much beside what is in memory already for each path.
    fn store(
        &self,
        path: &str,
        more: u64,
        name: &str,
        values_per_window: usize,
    ) -> Result<Store, WalkError> {
        let windows = self.n_windows();
        let paths = 1 + u64::from(self.options.float_path);
        let bytes = self.bytes_in_memory + more * paths * Store::bytes(windows, values_per_window);
        if bytes <= self.options.max_bytes {
            return Ok(Store::in_memory(windows, values_per_window));
        }
        let file = self
            .options
            .spill_folder
            .join(format!("{path}{name}.spill"));
        Ok(Store::in_file(windows, values_per_window, &file)?)
    }

    /// Held-out windows always count; calibration windows are taken evenly spaced.
    fn is_sampled(&self, window: usize) -> bool {
        let (wanted, all) = (self.options.mixed_windows, self.n_calibration);
        wanted > 0 && (window >= all || is_evenly_spaced(window, wanted, all))
    }

    /// Adds a batch of every path to the sums of all linears that see it, and the residual streams that their outputs
    /// are added to, if there are two.
    fn observe(
        &self,
        stage: Stage,
        linears: &mut [LinearSums],
        batch: &Range<usize>,
        seen: &[Activation],
        streams: &[Activation],
    ) -> Result<(), WalkError> {
        for (kinds, sums) in linears {
            self.add(stage, sums, batch, (seen, streams), (kinds[0], 0))?;
        }
        Ok(())
    }

    /// Adds the real tokens of a batch to its windows' sums; padding is left out.
    fn add<'a>(
        &self,
        stage: Stage,
        sums: &mut Sums,
        batch: &Range<usize>,
        (seen, streams): (&'a [Activation], &'a [Activation]),
        (kind, head): (LinearKind, usize),
    ) -> Result<(), WalkError> {
        let not_finite = |row: usize, first: usize| WalkError::NotFinite {
            stage,
            window: first + row / self.tokens,
            token: row % self.tokens,
        };
        let mut window = batch.start;
        while window < batch.end {
            let mut end = window + 1;
            let whole = |w: usize| self.lengths[w] == self.tokens;
            while end < batch.end
                && whole(window)
                && whole(end)
                && (end < self.n_calibration) == (window < self.n_calibration)
            {
                end += 1;
            }
            let rows = if whole(window) {
                (end - window) * self.tokens
            } else {
                self.lengths[window]
            };
            let sum = if window < self.n_calibration {
                &mut sums.calibration
            } else {
                &mut sums.holdout
            };
            let first = (window - batch.start) * self.tokens;
            let all = batch.len() * self.tokens;
            let of = |seen: &'a Activation| seen.rows(first..first + rows, all);
            let seen_rows: Vec<Rows<'_>> = seen.iter().map(of).collect();
            let streams: Vec<Rows<'_>> = streams.iter().map(of).collect();
            let weights = match &self.options.gradients {
                None => None,
                Some(gradients) => {
                    let mut weights = gradients.weights(self.at, kind, head, window..end)?;
                    weights.truncate(rows);
                    Some(weights)
                }
            };
            if let Some(row) = sum.add(&seen_rows, &streams, weights.as_deref())? {
                return Err(not_finite(row, window));
            }
            if !sums.subsets.is_empty() && window < self.n_calibration {
                for one in window..end {
                    let Some(subset) = self.subset_of[one] else {
                        continue;
                    };
                    let (first, rows) = ((one - batch.start) * self.tokens, self.lengths[one]);
                    let weights =
                        (weights.as_ref()).map(|all| &all[(one - window) * self.tokens..][..rows]);
                    let rows = [seen[0].rows(first..first + rows, all)];
                    sums.subsets[subset].add(&rows, &[], weights)?;
                }
            }
            window = end;
        }
        Ok(())
    }
}

/// Subsets of the calibration windows: about an eighth, a quarter and a half of them.
const SUBSETS: usize = 3;

/// Bytes that the subsets' Hessians of a stage may take.
const MOST_SUBSET_BYTES: usize = 512 << 20;

/// Whether the subsets of so many statistics of so many features are few bytes enough to be taken.
fn subsets_fit(sums: usize, features: usize) -> bool {
    SUBSETS * sums * features * features * size_of::<f32>() <= MOST_SUBSET_BYTES
}

/// The smallest subset that each of `n` windows is in: of every eight in a row one is drawn for the first, another for
/// the second, two for the third. A walk's first windows are the beginning of a text, and several sources take turns, so
/// neither the first eighth nor every eighth window would stand for the whole.
fn subsets(n: usize) -> Vec<Option<usize>> {
    const EIGHT: [Option<usize>; 8] = [Some(0), Some(1), Some(2), Some(2), None, None, None, None];
    let drawn = (0..n.div_ceil(8)).flat_map(|stretch| {
        let (mut random, mut all) = (SplitMix64::new(0, stretch as u64), EIGHT);
        for last in (1..all.len()).rev() {
            all.swap(last, random.below(last + 1));
        }
        all
    });
    drawn.take(n).collect()
}

/// Whether a window is one of `wanted` that are spread evenly over `all`.
fn is_evenly_spaced(window: usize, wanted: usize, all: usize) -> bool {
    wanted >= all || (window * wanted) % all < wanted
}

/// Linears that share an input, and its sums.
type LinearSums = (Vec<LinearKind>, Sums);

fn finish(linears: Vec<LinearSums>) -> Result<Vec<LinearStats>, WalkError> {
    let of = |(kinds, sums): LinearSums| {
        let (rows, stats) = (None, sums.finish()?);
        let parts = vec![RowStats { rows, stats }];
        Ok(LinearStats { kinds, parts })
    };
    linears.into_iter().map(of).collect()
}

/// The sums of v's kv heads, each for the rows of its head; nothing where there are none.
fn finish_mixed(sums: Vec<Sums>, head_dim: usize) -> Result<Option<LinearStats>, WalkError> {
    if sums.is_empty() {
        return Ok(None);
    }
    let of = |(head, sums): (usize, Sums)| {
        let rows = Some((head * head_dim..(head + 1) * head_dim).collect());
        let stats = sums.finish()?;
        Ok::<_, WalkError>(RowStats { rows, stats })
    };
    let parts = sums.into_iter().enumerate().map(of);
    Ok(Some(LinearStats {
        kinds: vec![LinearKind::V],
        parts: parts.collect::<Result<_, _>>()?,
    }))
}

/// Writes what every path has of a batch.
fn write(
    stores: &mut [Store],
    batch: &Range<usize>,
    activations: &[Activation],
) -> Result<(), WalkError> {
    for (store, activation) in stores.iter_mut().zip(activations) {
        store.write(batch.start, &activation.values()?)?;
    }
    Ok(())
}

/// What is summed of an input beside its own moments.
#[derive(Clone, Copy)]
struct Wanted {
    beside: Beside,
    subsets: bool,
}

struct Sums {
    calibration: Moments,
    holdout: Moments,
    /// Of the windows that are in a subset and in none before it.
    subsets: Vec<Moments>,
}

impl Sums {
    fn new(features: usize, wanted: Wanted, device: &Device) -> Self {
        let of = |beside| Moments::new(features, beside, device);
        let subsets = if wanted.subsets { SUBSETS } else { 0 };
        Self {
            calibration: of(wanted.beside),
            holdout: of(wanted.beside),
            subsets: (0..subsets).map(|_| of(Beside::Nothing)).collect(),
        }
    }

    fn finish(self) -> Result<StageStats, WalkError> {
        let holdout = match self.holdout.n_tokens() {
            0 => None,
            _ => Some(self.holdout.finish()?.0),
        };
        let (calibration, max_abs) = self.calibration.finish()?;
        let mut subsets = Vec::new();
        let mut sums = self.subsets.into_iter().peekable();
        while let Some(sum) = sums.next() {
            if let Some(next) = sums.peek_mut() {
                next.join(&sum);
            }
            subsets.push(sum.finish()?.0);
        }
        Ok(StageStats {
            calibration,
            holdout,
            max_abs,
            subsets,
        })
    }
}

#[cfg(test)]
mod tests {
    use halfbyte_model::Weights;

    use super::*;
    use crate::output_gradients::tests::{tiny, window};

    const TOKENS: usize = 24;

    /// Halves a linear's weight, so that the paths part by more than the rounding of what is kept.
    fn halve(block: &mut Block, kind: LinearKind, weights: &Weights) {
        let shape = halfbyte_model::linear_shape(weights.config(), kind);
        let float = weights.weight(&kind.module(0), shape).unwrap();
        let halves = float.iter().map(|w| 0.5 * w).collect();
        block.linears.get_mut(kind).set_weight(halves);
    }

    /// Real tokens of every window, `[tokens][features]`.
    fn rows(tensors: &[Tensor<3>], lengths: &[usize]) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        for (tensor, len) in tensors.iter().zip(lengths) {
            let width = tensor.dims()[2];
            let values = values(tensor.clone()).unwrap();
            all.extend(values.chunks(width).take(*len).map(<[f32]>::to_vec));
        }
        all
    }

    fn is_cross_moment(found: &[f32], [float, own]: [&[Vec<f32>]; 2], x: &[Vec<f32>], what: &str) {
        let (left, features) = (own[0].len(), x[0].len());
        assert_eq!(found.len(), left * features, "{what}");
        let (mut off, mut size) = (0.0, 0.0);
        for i in 0..left {
            for k in 0..features {
                let sum: f64 = (0..x.len())
                    .map(|t| f64::from(float[t][i] - own[t][i]) * f64::from(x[t][k]))
                    .sum();
                let wanted = sum / x.len() as f64;
                off += (f64::from(found[i * features + k]) - wanted).powi(2);
                size += wanted.powi(2);
            }
        }
        assert!(size > 0.0, "{what}: the paths are one");
        let relative = (off / size).sqrt();
        assert!(relative < 0.02, "{what} is off by {relative}");
    }

    #[test]
    fn of_every_eight_windows_one_two_and_four_are_in_the_subsets() {
        let found = subsets(803);
        for eight in found[..800].chunks(8) {
            let up_to = |last: usize| eight.iter().flatten().filter(|s| **s <= last).count();
            assert_eq!([0, 1, 2].map(up_to), [1, 2, 4]);
        }
        assert_eq!(found.len(), 803);
        // Every place of the eight is drawn about equally often.
        for place in 0..8 {
            let drawn = found[..800].iter().skip(place).step_by(8);
            let in_first = drawn.filter(|s| **s == Some(0)).count();
            assert!((4..=24).contains(&in_first), "place {place}: {in_first}");
        }
    }

    #[test]
    fn subsets_of_wide_statistics_are_not_taken() {
        assert!(subsets_fit(1, 6688) && !subsets_fit(1, 6689));
        assert!(subsets_fit(2, 4096) && !subsets_fit(8, 4096));
    }

    #[test]
    fn subsets_are_sums_of_their_windows_and_leave_the_whole_as_it_is() {
        let decoder = tiny();
        let windows = Windows {
            // The tenth is padded.
            calibration: (0..11)
                .map(|i| window(20 + i, if i == 9 { 15 } else { TOKENS }))
                .collect(),
            holdout: vec![window(57, TOKENS)],
            tuning: Vec::new(),
            report: crate::text::TextReport::default(),
        };
        let block = decoder.block(0, TOKENS).unwrap();
        let stats = |subset_blocks: Vec<usize>, mixed_windows: usize| {
            let spill = tempfile::tempdir().unwrap();
            let options = WalkOptions {
                max_bytes: u64::MAX,
                spill_folder: spill.path().to_owned(),
                mixed_windows,
                gradients: None,
                float_path: false,
                subset_blocks,
            };
            let mut walk = Walk::new(&windows, &decoder, options).unwrap();
            let surveyed = walk.survey(&block, &mut |_| ()).unwrap();
            let no_subsets = |l: &LinearStats| l.parts.iter().all(|p| p.stats.subsets.is_empty());
            assert!(surveyed.iter().all(no_subsets));
            let all = walk.survey_and_finish(&block, &mut |_| ()).unwrap();
            (all, walk.subset_of)
        };
        let (plain, _) = stats(vec![1], 11);
        let (found, subset_of) = stats(vec![0], 11);
        let (sampled, _) = stats(vec![0], 4);
        for (plain, found) in plain.iter().zip(&found) {
            for (plain, found) in plain.parts.iter().zip(&found.parts) {
                let (plain, found) = (&plain.stats, &found.stats);
                assert!(plain.subsets.is_empty());
                assert_eq!(found.subsets.len(), SUBSETS);
                assert!(plain.calibration == found.calibration && plain.holdout == found.holdout);
            }
        }
        let mixed = |all: &[LinearStats]| {
            let of_v = all.iter().find(|l| l.kinds == [LinearKind::V]).unwrap();
            of_v.parts[0].stats.subsets.len()
        };
        assert_eq!((mixed(&found), mixed(&sampled)), (SUBSETS, 0));
        for (last, found) in found[0].parts[0].stats.subsets.iter().enumerate() {
            let mut sum = crate::Accumulator::new(found.in_features);
            for (window, subset) in windows.calibration.iter().zip(&subset_of) {
                if subset.is_some_and(|subset| subset <= last) {
                    let hidden = found.in_features;
                    let embedded = decoder.embed(&window.ids).unwrap();
                    // As the stream keeps it.
                    let mut kept = Store::in_memory(1, embedded.len());
                    kept.write(0, &embedded).unwrap();
                    let h = TensorData::new(kept.read(0, 1).unwrap(), [1, TOKENS, hidden]);
                    let h = Tensor::from_data(h, decoder.device());
                    let x = values(block.attention_input(h)).unwrap();
                    sum.add(&x[..window.len * hidden]).unwrap();
                }
            }
            let wanted = sum.finish();
            assert_eq!(found.n_tokens, wanted.n_tokens);
            for (found, wanted) in found.hessian.iter().zip(&wanted.hessian) {
                assert!(
                    (found - wanted).abs() < 1e-5 * wanted.abs().max(1.0),
                    "{found} {wanted}"
                );
            }
        }
    }

    #[test]
    fn cross_moments_are_of_what_the_float_model_has_in_their_place() {
        let decoder = tiny();
        let windows = Windows {
            calibration: vec![window(20, TOKENS), window(31, 15)],
            holdout: vec![window(57, TOKENS)],
            tuning: Vec::new(),
            report: crate::text::TextReport::default(),
        };
        let spill = tempfile::tempdir().unwrap();
        let options = WalkOptions {
            max_bytes: u64::MAX,
            spill_folder: spill.path().to_owned(),
            mixed_windows: 2,
            gradients: None,
            float_path: true,
            subset_blocks: Vec::new(),
        };
        let mut walk = Walk::new(&windows, &decoder, options).unwrap();
        let (lengths, mut tick) = ([TOKENS, 15], |_: usize| ());
        let float = decoder.block(0, TOKENS).unwrap();
        let mut block = float.clone();
        walk.begin_block(&block);
        let h: Vec<Tensor<3>> = (windows.calibration.iter())
            .map(|window| {
                let hidden = walk.hidden;
                let embedded = decoder.embed(&window.ids).unwrap();
                Tensor::from_data(TensorData::new(embedded, [1, TOKENS, hidden]), &walk.device)
            })
            .collect();
        let each = |of: &dyn Fn(&Tensor<3>) -> Tensor<3>, h: &[Tensor<3>]| -> Vec<Tensor<3>> {
            h.iter().map(of).collect()
        };
        let cross = |stats: &LinearStats| stats.parts[0].stats.calibration.cross.clone().unwrap();

        let stats = walk.attention_input(&block, &mut tick).unwrap();
        assert!(cross(&stats[0]).input.iter().all(|d| *d == 0.0));
        halve(&mut block, LinearKind::K, decoder.weights());
        let stats = walk.attention_mixed(&block, &mut tick).unwrap();
        let mixed = |block: &Block| {
            let of = |h: &Tensor<3>| {
                let x = block.attention_input(h.clone());
                let (q, k) = block.query_key(x.clone());
                let shared = block.heads() / block.kv_heads();
                let y = block.attention_mixed_input(q.narrow(1, 0, shared), k.narrow(1, 0, 1), x);
                let [_, heads, tokens, features] = y.dims();
                y.reshape([heads, tokens, features])
            };
            let mut all = Vec::new();
            for (h, len) in h.iter().zip(lengths) {
                let y = of(h);
                for head in 0..y.dims()[0] {
                    all.extend(rows(&[y.clone().narrow(0, head, 1)], &[len]));
                }
            }
            all
        };
        let (own, wanted) = (mixed(&block), mixed(&float));
        is_cross_moment(&cross(&stats[0]).input, [&wanted, &own], &own, "mixed");

        halve(&mut block, LinearKind::V, decoder.weights());
        let stats = walk.attention_output(&block, &mut tick).unwrap();
        let attention = |block: &Block, h: &Tensor<3>| {
            let x = block.attention_input(h.clone());
            let (q, k) = block.query_key(x.clone());
            block.attention(q, k, x)
        };
        let own = each(&|h| attention(&block, h), &h);
        let wanted = each(&|h| attention(&float, h), &h);
        let (own_rows, wanted_rows) = (rows(&own, &lengths), rows(&wanted, &lengths));
        let found = cross(&stats[0]);
        is_cross_moment(&found.input, [&wanted_rows, &own_rows], &own_rows, "o");
        assert!(
            found.stream.unwrap().iter().all(|e| *e == 0.0),
            "o's stream"
        );

        halve(&mut block, LinearKind::O, decoder.weights());
        let stats = walk.mlp_input(&block, &mut tick).unwrap();
        let add = |block: &Block, a: &[Tensor<3>]| -> Vec<Tensor<3>> {
            let both = h.iter().zip(a);
            both.map(|(h, a)| block.attention_output(h.clone(), a.clone()))
                .collect()
        };
        let (h_own, h_float) = (add(&block, &own), add(&float, &wanted));
        let own = rows(&each(&|h| block.mlp_input(h.clone()), &h_own), &lengths);
        let wanted = rows(&each(&|h| float.mlp_input(h.clone()), &h_float), &lengths);
        is_cross_moment(&cross(&stats[0]).input, [&wanted, &own], &own, "gate");

        halve(&mut block, LinearKind::Up, decoder.weights());
        let stats = walk.mlp_output(&block, &mut tick).unwrap();
        let m = |block: &Block, h: &Tensor<3>| block.mlp_mix(block.mlp_input(h.clone()));
        let (m_own, m_float) = (
            each(&|h| m(&block, h), &h_own),
            each(&|h| m(&float, h), &h_float),
        );
        let (own, wanted) = (rows(&m_own, &lengths), rows(&m_float, &lengths));
        let found = cross(&stats[0]);
        is_cross_moment(&found.input, [&wanted, &own], &own, "down");
        let streams = [rows(&h_float, &lengths), rows(&h_own, &lengths)];
        is_cross_moment(
            &found.stream.unwrap(),
            [&streams[0], &streams[1]],
            &own,
            "down's stream",
        );
        let held = stats[0].parts[0].stats.holdout.as_ref().unwrap();
        assert!(held.cross.as_ref().unwrap().stream.is_some());

        walk.finish_block(&block, &mut tick).unwrap();
        let finish = |block: &Block, h: &[Tensor<3>], m: &[Tensor<3>]| -> Vec<Tensor<3>> {
            let both = h.iter().zip(m);
            both.map(|(h, m)| block.mlp_output(h.clone(), m.clone()))
                .collect()
        };
        let (h_own, h_float) = (
            finish(&block, &h_own, &m_own),
            finish(&float, &h_float, &m_float),
        );
        let saved = walk.save().unwrap();
        walk.restore(1, &saved).unwrap();
        assert_eq!(walk.save().unwrap(), saved);
        let next = decoder.block(1, TOKENS).unwrap();
        walk.begin_block(&next);
        let stats = walk.attention_input(&next, &mut tick).unwrap();
        let x = |h: &[Tensor<3>]| rows(&each(&|h| next.attention_input(h.clone()), h), &lengths);
        let (own, wanted) = (x(&h_own), x(&h_float));
        is_cross_moment(&cross(&stats[0]).input, [&wanted, &own], &own, "next block");
    }
}
