use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use halfbyte_model::{Block, Decoder, LinearKind, ModelError, Stage, values};
use halfbyte_quant::ActivationStats;

use crate::text::{Window, Windows};
use crate::{Accumulator, OutputGradients, Store, StoreError};

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
    n_calibration: usize,
    stream: Store,
    kept: Kept,
    bytes_in_memory: u64,
    /// The block that is walked.
    at: usize,
}

/// The one stage activation that is kept beside the residual stream.
#[derive(Debug)]
enum Kept {
    Nothing,
    QueriesAndKeys(Store, Store),
    Attention(Store),
    Mlp(Store),
}

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
            n_calibration: windows.calibration.len(),
            stream: Store::in_memory(0, 0),
            kept: Kept::Nothing,
            bytes_in_memory: 0,
            at: 0,
            options,
        };
        walk.stream = walk.store(tokens * hidden, "stream")?;
        walk.bytes_in_memory = Store::bytes(all.len(), tokens * hidden);
        for (index, window) in all.iter().enumerate() {
            walk.stream.write(index, &decoder.embed(&window.ids)?)?;
        }
        Ok(walk)
    }

    /// Windows, held-out ones included.
    pub fn n_windows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens a window, padding included.
    pub fn tokens_per_window(&self) -> usize {
        self.tokens
    }

    /// The residual stream's bits in bf16, to go on later from here.
    pub fn save(&self) -> Result<Vec<u16>, WalkError> {
        Ok(self.stream.read_bits(0, self.n_windows())?)
    }

    /// Goes on before block `at`, from a saved residual stream.
    pub fn restore(&mut self, at: usize, bits: &[u16]) -> Result<(), WalkError> {
        self.at = at;
        self.kept = Kept::Nothing;
        for (index, window) in bits.chunks(self.tokens * self.hidden).enumerate() {
            let values: Vec<f32> = window
                .iter()
                .map(|b| f32::from_bits(u32::from(*b) << 16))
                .collect();
            self.stream.write(index, &values)?;
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

    /// On to the next block, without statistics.
    pub fn forward(&mut self, block: &Block, tick: &mut dyn FnMut(usize)) -> Result<(), WalkError> {
        for batch in self.batches() {
            let h = values(block.forward(self.stream(&batch)?))?;
            self.stream.write(batch.start, &h)?;
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
        let mut input = self.sums(self.attention_kinds(), self.hidden);
        let mut mixed = self.mixed_sums(block);
        let mut output = self.sums(&[LinearKind::O], width(LinearKind::O));
        let mut mlp_input = self.sums(&[LinearKind::Gate, LinearKind::Up], self.hidden);
        let mut mlp_output = self.sums(&[LinearKind::Down], width(LinearKind::Down));
        for batch in self.batches() {
            let h = self.stream(&batch)?;
            let x = block.attention_input(h.clone());
            let seen = values(x.clone())?;
            self.observe(Stage::AttentionInput, &mut input, &batch, &seen)?;
            let (q, k) = block.query_key(x.clone());
            self.observe_mixed(block, &mut mixed, &batch, [&q, &k], &x)?;
            let a = block.attention(q, k, x);
            let seen = values(a.clone())?;
            self.observe(Stage::AttentionOutput, &mut output, &batch, &seen)?;
            let h = block.attention_output(h, a);
            let x = block.mlp_input(h.clone());
            let seen = values(x.clone())?;
            self.observe(Stage::MlpInput, &mut mlp_input, &batch, &seen)?;
            let m = block.mlp_mix(x);
            let seen = values(m.clone())?;
            self.observe(Stage::MlpOutput, &mut mlp_output, &batch, &seen)?;
            if into_stream {
                let h = values(block.mlp_output(h, m))?;
                self.stream.write(batch.start, &h)?;
            }
            tick(batch.end * self.tokens);
        }
        let mut stats = finish(input);
        stats.extend(finish_mixed(mixed, block.head_dim()));
        for sums in [output, mlp_input, mlp_output] {
            stats.extend(finish(sums));
        }
        Ok(stats)
    }

    /// Statistics of `norm1(h)`: for q and k, and for v too when `options.mixed_windows` is 0.
    pub fn attention_input(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let mut sums = self.sums(self.attention_kinds(), self.hidden);
        for batch in self.batches() {
            let x = block.attention_input(self.stream(&batch)?);
            self.observe(Stage::AttentionInput, &mut sums, &batch, &values(x)?)?;
            tick(batch.end * self.tokens);
        }
        Ok(finish(sums))
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
        let mut queries = self.store(self.tokens * heads * head_dim, "queries")?;
        let mut keys = self.store(self.tokens * kv_heads * head_dim, "keys")?;
        let mut sums = self.mixed_sums(block);
        for batch in self.batches() {
            let x = block.attention_input(self.stream(&batch)?);
            let (q, k) = block.query_key(x.clone());
            self.observe_mixed(block, &mut sums, &batch, [&q, &k], &x)?;
            queries.write(batch.start, &values(q)?)?;
            keys.write(batch.start, &values(k)?)?;
            tick(batch.end * self.tokens);
        }
        self.kept = Kept::QueriesAndKeys(queries, keys);
        Ok(finish_mixed(sums, head_dim).into_iter().collect())
    }

    /// Runs v and the attention, and gives the statistics of o's input.
    pub fn attention_output(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let (heads, kv_heads, head_dim) = (block.heads(), block.kv_heads(), block.head_dim());
        let Kept::QueriesAndKeys(queries, keys) = std::mem::replace(&mut self.kept, Kept::Nothing)
        else {
            unreachable!("attention_mixed comes before attention_output");
        };
        let features = heads * head_dim;
        let mut attention = self.store(self.tokens * features, "attention")?;
        let mut sums = self.sums(&[LinearKind::O], features);
        for batch in self.batches() {
            let x = block.attention_input(self.stream(&batch)?);
            let read = |store: &Store, heads: usize| -> Result<Tensor<4>, WalkError> {
                let shape = [batch.len(), heads, self.tokens, head_dim];
                let values = store.read(batch.start, batch.len())?;
                Ok(Tensor::from_data(
                    TensorData::new(values, shape),
                    &self.device,
                ))
            };
            let a = values(block.attention(read(&queries, heads)?, read(&keys, kv_heads)?, x))?;
            self.observe(Stage::AttentionOutput, &mut sums, &batch, &a)?;
            attention.write(batch.start, &a)?;
            tick(batch.end * self.tokens);
        }
        self.kept = Kept::Attention(attention);
        Ok(finish(sums))
    }

    /// Runs o into the residual stream, and gives the statistics of `norm2(h)`.
    pub fn mlp_input(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let Kept::Attention(attention) = std::mem::replace(&mut self.kept, Kept::Nothing) else {
            unreachable!("attention_output comes before mlp_input");
        };
        let mut sums = self.sums(&[LinearKind::Gate, LinearKind::Up], self.hidden);
        for batch in self.batches() {
            let a = self.tensor(attention.read(batch.start, batch.len())?, &batch);
            let h = block.attention_output(self.stream(&batch)?, a);
            self.stream.write(batch.start, &values(h.clone())?)?;
            self.observe(
                Stage::MlpInput,
                &mut sums,
                &batch,
                &values(block.mlp_input(h))?,
            )?;
            tick(batch.end * self.tokens);
        }
        Ok(finish(sums))
    }

    /// Runs gate and up, and gives the statistics of down's input.
    pub fn mlp_output(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Vec<LinearStats>, WalkError> {
        let features = block.linears.get(LinearKind::Down).in_features();
        let mut mlp = self.store(self.tokens * features, "mlp")?;
        let mut sums = self.sums(&[LinearKind::Down], features);
        for batch in self.batches() {
            let m = values(block.mlp_mix(block.mlp_input(self.stream(&batch)?)))?;
            self.observe(Stage::MlpOutput, &mut sums, &batch, &m)?;
            mlp.write(batch.start, &m)?;
            tick(batch.end * self.tokens);
        }
        self.kept = Kept::Mlp(mlp);
        Ok(finish(sums))
    }

    /// Runs down into the residual stream: the next block's input.
    pub fn finish_block(
        &mut self,
        block: &Block,
        tick: &mut dyn FnMut(usize),
    ) -> Result<(), WalkError> {
        let Kept::Mlp(mlp) = std::mem::replace(&mut self.kept, Kept::Nothing) else {
            unreachable!("mlp_output comes before finish_block");
        };
        for batch in self.batches() {
            let m = self.tensor(mlp.read(batch.start, batch.len())?, &batch);
            let h = block.mlp_output(self.stream(&batch)?, m);
            self.stream.write(batch.start, &values(h)?)?;
            tick(batch.end * self.tokens);
        }
        self.at += 1;
        Ok(())
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
    fn mixed_sums(&self, block: &Block) -> Vec<Sums> {
        let heads = match self.options.mixed_windows {
            0 => 0,
            _ => block.kv_heads(),
        };
        (0..heads).map(|_| Sums::new(self.hidden)).collect()
    }

    /// Adds `A x` of a batch's sampled windows to the kv heads' sums.
    fn observe_mixed(
        &self,
        block: &Block,
        sums: &mut [Sums],
        batch: &Range<usize>,
        [q, k]: [&Tensor<4>; 2],
        x: &Tensor<3>,
    ) -> Result<(), WalkError> {
        let shared = block.heads() / block.kv_heads();
        for window in batch.clone().filter(|&w| self.is_sampled(w)) {
            let at = window - batch.start;
            let one = |t: &Tensor<4>, head: usize, n: usize| {
                t.clone().narrow(0, at, 1).narrow(1, head, n)
            };
            for (head, sums) in sums.iter_mut().enumerate() {
                let (q, k) = (one(q, head * shared, shared), one(k, head, 1));
                let mixed = values(block.attention_mixed_input(q, k, x.clone().narrow(0, at, 1)))?;
                for (i, rows) in mixed.chunks(self.tokens * self.hidden).enumerate() {
                    let head = (LinearKind::V, head * shared + i);
                    self.add(
                        Stage::AttentionMixed,
                        sums,
                        &(window..window + 1),
                        rows,
                        head,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Empty sums for the linears of a stage: shared by all, or one each where tokens have weights.
    fn sums(&self, kinds: &[LinearKind], features: usize) -> Vec<LinearSums> {
        let shared = match self.options.gradients {
            Some(_) => 1,
            None => kinds.len(),
        };
        let of = |kinds: &[LinearKind]| (kinds.to_vec(), Sums::new(features));
        kinds.chunks(shared).map(of).collect()
    }

    fn batches(&self) -> Vec<Range<usize>> {
        let size = (BATCH_TOKENS / self.tokens.max(1)).max(1);
        (0..self.n_windows())
            .step_by(size)
            .map(|start| start..(start + size).min(self.n_windows()))
            .collect()
    }

    fn stream(&self, batch: &Range<usize>) -> Result<Tensor<3>, WalkError> {
        Ok(self.tensor(self.stream.read(batch.start, batch.len())?, batch))
    }

    fn tensor(&self, values: Vec<f32>, batch: &Range<usize>) -> Tensor<3> {
        let features = values.len() / (batch.len() * self.tokens);
        Tensor::from_data(
            TensorData::new(values, [batch.len(), self.tokens, features]),
            &self.device,
        )
    }

    fn store(&self, values_per_window: usize, name: &str) -> Result<Store, WalkError> {
        let windows = self.n_windows();
        let bytes = self.bytes_in_memory + Store::bytes(windows, values_per_window);
        if bytes <= self.options.max_bytes {
            return Ok(Store::in_memory(windows, values_per_window));
        }
        let path: &Path = &self.options.spill_folder.join(format!("{name}.spill"));
        Ok(Store::in_file(windows, values_per_window, path)?)
    }

    /// Held-out windows always count; calibration windows are taken evenly spaced.
    fn is_sampled(&self, window: usize) -> bool {
        let (wanted, all) = (self.options.mixed_windows, self.n_calibration);
        wanted > 0 && (window >= all || wanted >= all || (window * wanted) % all < wanted)
    }

    /// Adds a batch to the sums of all linears that see it.
    fn observe(
        &self,
        stage: Stage,
        linears: &mut [LinearSums],
        batch: &Range<usize>,
        values: &[f32],
    ) -> Result<(), WalkError> {
        for (kinds, sums) in linears {
            self.add(stage, sums, batch, values, (kinds[0], 0))?;
        }
        Ok(())
    }

    /// Adds the real tokens of a batch to its windows' sums; padding is left out.
    fn add(
        &self,
        stage: Stage,
        sums: &mut Sums,
        batch: &Range<usize>,
        values: &[f32],
        (kind, head): (LinearKind, usize),
    ) -> Result<(), WalkError> {
        let per_window = values.len() / batch.len();
        let features = per_window / self.tokens;
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
            let start = (window - batch.start) * per_window;
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
            let values = &values[start..start + rows * features];
            let added = match &self.options.gradients {
                None => sum.add(values),
                Some(gradients) => {
                    let mut weights = gradients.weights(self.at, kind, head, window..end)?;
                    weights.truncate(rows);
                    sum.add_weighted(values, &weights)
                }
            };
            added.map_err(|row| not_finite(row, window))?;
            window = end;
        }
        Ok(())
    }
}

/// Linears that share an input, and its sums.
type LinearSums = (Vec<LinearKind>, Sums);

fn finish(linears: Vec<LinearSums>) -> Vec<LinearStats> {
    let of = |(kinds, sums): LinearSums| LinearStats {
        kinds,
        parts: vec![RowStats {
            rows: None,
            stats: sums.finish(),
        }],
    };
    linears.into_iter().map(of).collect()
}

/// The sums of v's kv heads, each for the rows of its head; nothing where there are none.
fn finish_mixed(sums: Vec<Sums>, head_dim: usize) -> Option<LinearStats> {
    if sums.is_empty() {
        return None;
    }
    let parts = sums.into_iter().enumerate().map(|(head, sums)| RowStats {
        rows: Some((head * head_dim..(head + 1) * head_dim).collect()),
        stats: sums.finish(),
    });
    Some(LinearStats {
        kinds: vec![LinearKind::V],
        parts: parts.collect(),
    })
}

struct Sums {
    calibration: Accumulator,
    holdout: Accumulator,
}

impl Sums {
    fn new(features: usize) -> Self {
        Self {
            calibration: Accumulator::new(features),
            holdout: Accumulator::new(features),
        }
    }

    fn finish(self) -> StageStats {
        let holdout = (self.holdout.n_tokens() > 0).then(|| self.holdout.finish());
        StageStats {
            max_abs: self.calibration.max_abs().to_vec(),
            calibration: self.calibration.finish(),
            holdout,
        }
    }
}
