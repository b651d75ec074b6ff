use burn::prelude::*;
use halfbyte_model::{Block, LinearKind, ModelError, values};

/// A part of a block that is added to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// From `norm1(h)` through q, k, v and o.
    Attention,
    /// From `norm2(h)` through gate, up and down.
    Mlp,
}

/// What a module sees on some windows and what it gives there by its own weights, to hold other weights against.
///
/// The loss that AWQ (Lin et al., arXiv 2306.00978, section 3.2) judges scales by in AutoAWQ and llm-compressor.
#[derive(Debug)]
pub struct ModuleReference {
    block: Block,
    module: Module,
    kept: Vec<Kept>,
    tokens: usize,
}

/// Some windows of one length, without padding, `[windows, tokens, hidden_size]` each.
#[derive(Debug)]
struct Kept {
    input: Tensor<3>,
    output: Tensor<3>,
}

impl ModuleReference {
    pub(crate) fn new(block: Block, module: Module) -> Self {
        Self {
            block,
            module,
            kept: Vec::new(),
            tokens: 0,
        }
    }

    /// Takes in windows by the residual stream at the block's entry, `[windows, tokens, hidden_size]`, all tokens real.
    pub(crate) fn keep(&mut self, h: Tensor<3>) {
        let [windows, tokens, _] = h.dims();
        let x = self.block.attention_input(h.clone());
        let input = match self.module {
            Module::Attention => x,
            Module::Mlp => self.block.mlp_input(h + self.block.attention_module(x)),
        };
        let output = run(&self.block, self.module, input.clone());
        self.kept.push(Kept { input, output });
        self.tokens += windows * tokens;
    }

    /// Real tokens kept.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Mean over tokens of the squared distance between the module's output and that with `weights`, each
    /// `[out_features, in_features]` row-major, in place of its own: AutoAWQ's mean squared error times hidden_size. Where
    /// only o or only down is replaced this is `tr(Δ H Δᵀ)` of its input.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn loss(&self, weights: Vec<(LinearKind, Vec<f32>)>) -> Result<f64, ModelError> {
        let mut block = self.block.clone();
        for (kind, weight) in weights {
            block.linears.get_mut(kind).set_weight(weight);
        }
        let mut sum = 0.0;
        for Kept { input, output } in &self.kept {
            let off = run(&block, self.module, input.clone()) - output.clone();
            let per_token = values((off.clone() * off).sum_dim(2))?;
            sum += per_token.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum / self.tokens as f64)
    }
}

fn run(block: &Block, module: Module, input: Tensor<3>) -> Tensor<3> {
    match module {
        Module::Attention => block.attention_module(input),
        Module::Mlp => block.mlp_module(input),
    }
}
