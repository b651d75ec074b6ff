use burn::prelude::*;

use crate::block::Norm;
use crate::rope::RopeTables;
use crate::{Block, Execution, Linear, ModelError, Weights};

/// A model walked block by block: the embedding before the blocks and the head after them.
#[derive(Debug)]
pub struct Decoder {
    weights: Weights,
    device: Device,
    execution: Execution,
}

impl Decoder {
    /// A decoder over opened weights; nothing is read yet.
    pub fn new(weights: Weights, device: Device) -> Self {
        Self {
            weights,
            device,
            execution: Execution::Dense,
        }
    }

    /// The same with the blocks' weights held as `execution` says.
    pub fn with_execution(self, execution: Execution) -> Self {
        Self { execution, ..self }
    }

    /// The weights it reads, to be read otherwise.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// The weights it reads.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// How the blocks' weights are held.
    pub fn execution(&self) -> Execution {
        self.execution
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Blocks.
    pub fn n_blocks(&self) -> usize {
        self.weights.config().num_hidden_layers
    }

    /// Loads one block for windows of up to `tokens` tokens.
    pub fn block(&self, index: usize, tokens: usize) -> Result<Block, ModelError> {
        self.block_with(index, self.rope(tokens))
    }

    pub(crate) fn block_with(&self, index: usize, rope: RopeTables) -> Result<Block, ModelError> {
        Block::load(&self.weights, index, rope, self.execution, &self.device)
    }

    pub(crate) fn rope(&self, tokens: usize) -> RopeTables {
        let config = self.weights.config();
        RopeTables::new(&config.rope, config.head_dim, tokens, &self.device)
    }

    /// Lets the operating system take back a block's pages of the file.
    pub fn release_block(&self, index: usize) {
        self.weights.release(&format!("model.layers.{index}."));
    }

    /// Embeds token ids, `[tokens, hidden_size]` row-major, reading only the rows that occur.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        self.weights.embed(ids)
    }

    /// The final norm and the language model head, which is dense: for many rows at once.
    pub fn head(&self) -> Result<Head, ModelError> {
        self.head_with(Execution::Dense)
    }

    pub(crate) fn head_with(&self, execution: Execution) -> Result<Head, ModelError> {
        let config = self.weights.config();
        Ok(Head {
            norm: self
                .weights
                .norm("model.norm.weight", config.hidden_size, &self.device)?,
            linear: self.weights.head(execution, &self.device)?,
        })
    }

    /// Logits `[windows, tokens, vocab_size]` of windows of equal length, all blocks at once in memory one by one:
    /// for tests and small models; evaluation streams instead.
    pub fn logits(&self, windows: &[Vec<u32>]) -> Result<Tensor<3>, ModelError> {
        let (tokens, hidden) = (
            windows.first().map_or(0, Vec::len),
            self.weights.config().hidden_size,
        );
        let ids: Vec<u32> = windows.iter().flatten().copied().collect();
        let h = TensorData::new(self.embed(&ids)?, [windows.len(), tokens, hidden]);
        let mut h = Tensor::<3>::from_data(h, &self.device);
        for index in 0..self.n_blocks() {
            h = self.block(index, tokens)?.forward(h);
        }
        let logits = self
            .head()?
            .forward(h.reshape([windows.len() * tokens, hidden]));
        Ok(logits.reshape([windows.len(), tokens, self.weights.config().vocab_size]))
    }
}

/// What turns the last residual stream into logits.
#[derive(Clone, Debug)]
pub struct Head {
    pub(crate) norm: Norm,
    pub(crate) linear: Linear,
}

impl Head {
    /// `[rows, hidden_size]` to logits `[rows, vocab_size]`.
    pub fn forward(&self, h: Tensor<2>) -> Tensor<2> {
        let x: Tensor<3> = self.norm.forward(h).unsqueeze();
        self.linear.forward(x).squeeze_dim(0)
    }

    /// As [`Block::rounded`].
    pub fn rounded(mut self) -> Self {
        self.linear.round();
        self
    }
}
