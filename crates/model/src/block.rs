use burn::prelude::*;
use burn::tensor::activation;
use halfbyte_checkpoint::{Activation, ModelConfig};

use crate::attention::attention_mix;
use crate::host;
use crate::rope::RopeTables;
use crate::{Execution, KeyValueCache, Linear, LinearKind, ModelError, NormKind, Weights};

/// Where a block's inputs are observed, and which linears hang on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// `norm1(h)`: q, k (and v by the ordinary Hessian).
    AttentionInput,
    /// `A norm1(h)` per kv head: v.
    AttentionMixed,
    /// The mixed values: o.
    AttentionOutput,
    /// `norm2(h)`: gate, up.
    MlpInput,
    /// `act(gate x) * up x`: down.
    MlpOutput,
}

impl Stage {
    /// The linears solved from this stage's statistics.
    pub fn linears(self) -> &'static [LinearKind] {
        match self {
            Self::AttentionInput => &[LinearKind::Q, LinearKind::K],
            Self::AttentionMixed => &[LinearKind::V],
            Self::AttentionOutput => &[LinearKind::O],
            Self::MlpInput => &[LinearKind::Gate, LinearKind::Up],
            Self::MlpOutput => &[LinearKind::Down],
        }
    }
}

/// The seven linears of a block.
#[derive(Clone, Debug)]
pub struct Linears {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Linears {
    /// The linear of a kind.
    pub fn get(&self, kind: LinearKind) -> &Linear {
        match kind {
            LinearKind::Q => &self.q,
            LinearKind::K => &self.k,
            LinearKind::V => &self.v,
            LinearKind::O => &self.o,
            LinearKind::Gate => &self.gate,
            LinearKind::Up => &self.up,
            LinearKind::Down => &self.down,
        }
    }

    /// The linear of a kind, to set its weight.
    pub fn get_mut(&mut self, kind: LinearKind) -> &mut Linear {
        match kind {
            LinearKind::Q => &mut self.q,
            LinearKind::K => &mut self.k,
            LinearKind::V => &mut self.v,
            LinearKind::O => &mut self.o,
            LinearKind::Gate => &mut self.gate,
            LinearKind::Up => &mut self.up,
            LinearKind::Down => &mut self.down,
        }
    }
}

/// One decoder block: `h += O(attention(norm1 h)); h += Down(act(Gate x) * Up x), x = norm2 h`.
///
/// All activations are `[windows, tokens, features]`; windows start at position 0, but for
/// [`forward_cached`](Self::forward_cached).
#[derive(Clone, Debug)]
pub struct Block {
    /// The weights that quantizing replaces.
    pub linears: Linears,
    attention_norm: Norm,
    mlp_norm: Norm,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    rope: RopeTables,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    sliding_window: Option<usize>,
    activation: Activation,
}

impl Block {
    /// Loads block `index`, ready for as many positions as `rope` has.
    pub(crate) fn load(
        weights: &Weights,
        index: usize,
        rope: RopeTables,
        execution: Execution,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let config = weights.config();
        let linear = |kind: LinearKind| {
            let shape = linear_shape(config, kind);
            weights.linear(&kind.module(index), shape, execution, device)
        };
        let norm = |name: &str, width: usize| {
            weights.norm(
                &format!("model.layers.{index}.{name}.weight"),
                width,
                device,
            )
        };
        let (q_norm, k_norm) = if config.qk_norm {
            let head = config.head_dim;
            (
                Some(norm("self_attn.q_norm", head)?),
                Some(norm("self_attn.k_norm", head)?),
            )
        } else {
            (None, None)
        };
        Ok(Self {
            linears: Linears {
                q: linear(LinearKind::Q)?,
                k: linear(LinearKind::K)?,
                v: linear(LinearKind::V)?,
                o: linear(LinearKind::O)?,
                gate: linear(LinearKind::Gate)?,
                up: linear(LinearKind::Up)?,
                down: linear(LinearKind::Down)?,
            },
            attention_norm: norm("input_layernorm", config.hidden_size)?,
            mlp_norm: norm("post_attention_layernorm", config.hidden_size)?,
            q_norm,
            k_norm,
            rope,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            sliding_window: config.sliding_windows[index],
            activation: config.hidden_act,
        })
    }

    /// `norm1(h)`, what q, k and v see.
    pub fn attention_input(&self, h: Tensor<3>) -> Tensor<3> {
        self.attention_norm.forward(h)
    }

    /// Rotated queries `[windows, heads, tokens, head_dim]` and keys `[windows, kv_heads, tokens, head_dim]` of `x`.
    pub fn query_key(&self, x: Tensor<3>) -> (Tensor<4>, Tensor<4>) {
        self.query_key_from(
            self.linears.q.forward(x.clone()),
            self.linears.k.forward(x),
            0,
        )
    }

    /// The same from what q and k give, for tokens at positions from `first` on.
    pub(crate) fn query_key_from(
        &self,
        q: Tensor<3>,
        k: Tensor<3>,
        first: usize,
    ) -> (Tensor<4>, Tensor<4>) {
        let head = |y: Tensor<3>, norm: &Option<Norm>, heads: usize| {
            let mut y = self.split_heads(y, heads);
            if let Some(norm) = norm {
                y = norm.forward(y);
            }
            self.rope.apply(y, first)
        };
        (
            head(q, &self.q_norm, self.heads),
            head(k, &self.k_norm, self.kv_heads),
        )
    }

    /// `A x` of every query head in `q`, `[windows, heads, tokens, features]`: what the rows of v that belong to a head's
    /// kv head see, once attention has added up tokens. `q` and `k` may be all heads' or those of some kv heads alone.
    pub fn attention_mixed_input(&self, q: Tensor<4>, k: Tensor<4>, x: Tensor<3>) -> Tensor<4> {
        let [windows, tokens, features] = x.dims();
        let [_, kv_heads, _, _] = k.dims();
        let x = x
            .reshape([windows, 1, tokens, features])
            .expand([windows, kv_heads, tokens, features]);
        attention_mix(q, k, x, self.sliding_window)
    }

    /// The attention's output before o, `[windows, tokens, heads * head_dim]`.
    pub fn attention(&self, q: Tensor<4>, k: Tensor<4>, x: Tensor<3>) -> Tensor<3> {
        let v = self.split_heads(self.linears.v.forward(x), self.kv_heads);
        self.attention_from(q, k, v)
    }

    /// The same from the values, `[windows, kv_heads, tokens, head_dim]`.
    pub(crate) fn attention_from(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<3> {
        self.join_heads(attention_mix(q, k, v, self.sliding_window))
    }

    /// `h + O(a)`.
    pub fn attention_output(&self, h: Tensor<3>, a: Tensor<3>) -> Tensor<3> {
        h + self.linears.o.forward(a)
    }

    /// `norm2(h)`, what gate and up see.
    pub fn mlp_input(&self, h: Tensor<3>) -> Tensor<3> {
        self.mlp_norm.forward(h)
    }

    /// `act(Gate x) * Up x`, what down sees.
    pub fn mlp_mix(&self, x: Tensor<3>) -> Tensor<3> {
        self.mlp_mix_from(
            self.linears.gate.forward(x.clone()),
            self.linears.up.forward(x),
        )
    }

    /// The same from what gate and up give.
    pub(crate) fn mlp_mix_from(&self, gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
        if self.activation == Activation::Silu && host::is_host(&gate) && host::is_host(&up) {
            return host::silu_gated(gate, up);
        }
        let gate = match self.activation {
            Activation::Silu => activation::silu(gate),
            Activation::Gelu => activation::gelu(gate),
            Activation::GeluTanh => activation::gelu_approximate(gate),
        };
        gate * up
    }

    /// `h + Down(m)`.
    pub fn mlp_output(&self, h: Tensor<3>, m: Tensor<3>) -> Tensor<3> {
        h + self.linears.down.forward(m)
    }

    /// The whole attention of `x = norm1(h)`, o applied: what is added to `h`.
    pub fn attention_module(&self, x: Tensor<3>) -> Tensor<3> {
        let (q, k) = self.query_key(x.clone());
        self.linears.o.forward(self.attention(q, k, x))
    }

    /// The whole MLP of `x = norm2(h)`, down applied: what is added to `h`.
    pub fn mlp_module(&self, x: Tensor<3>) -> Tensor<3> {
        self.linears.down.forward(self.mlp_mix(x))
    }

    /// The whole block.
    pub fn forward(&self, h: Tensor<3>) -> Tensor<3> {
        let h = h.clone() + self.attention_module(self.attention_input(h));
        h.clone() + self.mlp_module(self.mlp_input(h))
    }

    /// The whole block for the next tokens of windows that grow side by side, `[windows, tokens, hidden_size]`: those of
    /// earlier calls are in `cache`, and these go there too.
    pub fn forward_cached(&self, h: Tensor<3>, cache: &mut KeyValueCache) -> Tensor<3> {
        let x = self.attention_input(h.clone());
        let (q, k) = (
            self.linears.q.forward(x.clone()),
            self.linears.k.forward(x.clone()),
        );
        let (q, k) = self.query_key_from(q, k, cache.len());
        let v = self.split_heads(self.linears.v.forward(x), self.kv_heads);
        // to a cache, windows are more heads of one window
        let shape = q.dims();
        let [q, k, v] = [q, k, v].map(|y| {
            let [windows, heads, tokens, head_dim] = y.dims();
            y.reshape([1, windows * heads, tokens, head_dim])
        });
        let a = cache.attend(q, k, v, self.sliding_window);
        let a = self.join_heads(a.reshape(shape));
        let h = self.attention_output(h, a);
        let m = self.mlp_mix(self.mlp_input(h.clone()));
        self.mlp_output(h, m)
    }

    /// The same block with linears that multiply numbers rounded to bf16, forward and back, on a CPU that is quicker at
    /// those (AVX-512 BF16; sums in f32); elsewhere it stays as it is. For derivatives, which need no more.
    pub fn rounded(mut self) -> Self {
        for kind in LinearKind::ALL {
            self.linears.get_mut(kind).round();
        }
        self
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Features a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub(crate) fn norm(&self, kind: NormKind) -> Option<&Norm> {
        match kind {
            NormKind::Attention => Some(&self.attention_norm),
            NormKind::Mlp => Some(&self.mlp_norm),
            NormKind::Query => self.q_norm.as_ref(),
            NormKind::Key => self.k_norm.as_ref(),
        }
    }

    pub(crate) fn norm_mut(&mut self, kind: NormKind) -> Option<&mut Norm> {
        match kind {
            NormKind::Attention => Some(&mut self.attention_norm),
            NormKind::Mlp => Some(&mut self.mlp_norm),
            NormKind::Query => self.q_norm.as_mut(),
            NormKind::Key => self.k_norm.as_mut(),
        }
    }

    pub(crate) fn sliding_window(&self) -> Option<usize> {
        self.sliding_window
    }

    pub(crate) fn rope(&self) -> &RopeTables {
        &self.rope
    }

    /// Whether the block's derivatives can be taken by hand for such an input.
    pub(crate) fn is_by_hand(&self, h: &Tensor<3>) -> bool {
        self.activation == Activation::Silu && host::is_host(h)
    }

    fn join_heads(&self, mixed: Tensor<4>) -> Tensor<3> {
        let [windows, heads, tokens, head_dim] = mixed.dims();
        mixed
            .swap_dims(1, 2)
            .reshape([windows, tokens, heads * head_dim])
    }

    pub(crate) fn split_heads(&self, y: Tensor<3>, heads: usize) -> Tensor<4> {
        let [windows, tokens, _] = y.dims();
        y.reshape([windows, tokens, heads, self.head_dim])
            .swap_dims(1, 2)
    }
}

/// `[out_features, in_features]` of a linear.
pub fn linear_shape(config: &ModelConfig, kind: LinearKind) -> [usize; 2] {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
    let (heads, kv) = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    );
    match kind {
        LinearKind::Q => [heads, hidden],
        LinearKind::K | LinearKind::V => [kv, hidden],
        LinearKind::O => [hidden, heads],
        LinearKind::Gate | LinearKind::Up => [mlp, hidden],
        LinearKind::Down => [hidden, mlp],
    }
}

/// Root mean square normalization over the last axis: `x / sqrt(mean(x²) + ε) * weight` (arXiv 1910.07467).
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Tensor<1>,
    pub(crate) epsilon: f64,
}

impl Norm {
    pub(crate) fn new(weight: Vec<f32>, epsilon: f64, device: &Device) -> Self {
        let width = weight.len();
        Self {
            weight: Tensor::from_data(TensorData::new(weight, [width]), device),
            epsilon,
        }
    }

    pub(crate) fn set(&mut self, weight: Vec<f32>) {
        let width = weight.len();
        self.weight = Tensor::from_data(TensorData::new(weight, [width]), &self.weight.device());
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        if host::is_host(&x) && host::is_host(&self.weight) {
            return host::rms_norm(x, self.weight.clone(), self.epsilon);
        }
        let mean = (x.clone() * x.clone()).mean_dim(D - 1);
        x * (mean + self.epsilon).sqrt().recip() * self.weight.clone().unsqueeze()
    }
}
