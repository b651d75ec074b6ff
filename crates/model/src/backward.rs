//! A block's derivatives by hand, for the CPU device.
//!
//! burn's autodiff gives the same ([`crate::gradient`], which runs elsewhere), but keeps a tape of every operator and walks
//! it with a pass and a buffer each. Here the products are burn's, or those of bf16 numbers where the block is rounded, and what lies
//! between them is one pass each ([`crate::host`]): tuning is 15 % faster for it, the gradients' pass 18 % (results/LOG.md). Attention weights are
//! computed again, a chunk of queries at a time, rather than kept.

use burn::prelude::*;

use crate::attention::chunks;
use crate::block::Norm;
use crate::{Block, LinearKind, NormKind, host};

/// Derivatives of a loss with regard to everything in a block, `[windows, tokens, features]` where nothing else is said.
pub(crate) struct Backward {
    pub(crate) input: Tensor<3>,
    /// With regard to o's input.
    pub(crate) attention: Tensor<3>,
    /// With regard to what the linears give, in the order of [`LinearKind::ALL`].
    pub(crate) outputs: [Tensor<3>; 7],
    /// With regard to the weights, `[out_features, in_features]`; none if they were not asked for.
    pub(crate) weights: Vec<(LinearKind, Tensor<2>)>,
    /// With regard to the norms' weights.
    pub(crate) norms: Vec<(NormKind, Tensor<1>)>,
}

/// Runs `block` for input `h` and back from `gradient`, the derivative with regard to its output.
pub(crate) fn backward(
    block: &Block,
    h: Tensor<3>,
    gradient: Tensor<3>,
    wants_weights: bool,
) -> Backward {
    use LinearKind::{Down, Gate, K, O, Q, Up, V};
    let linear = |kind: LinearKind, x: &Tensor<3>| block.linears.get(kind).forward(x.clone());
    let x1 = block.attention_input(h.clone());
    let (q0, k0) = (linear(Q, &x1), linear(K, &x1));
    let (q, k) = block.query_key_from(q0.clone(), k0.clone(), 0);
    let v = block.split_heads(linear(V, &x1), block.kv_heads());
    let a = block.attention_from(q.clone(), k.clone(), v.clone());
    let h2 = block.attention_output(h.clone(), a.clone());
    let x2 = block.mlp_input(h2.clone());
    let (gate, up) = (linear(Gate, &x2), linear(Up, &x2));
    let m = wants_weights.then(|| block.mlp_mix_from(gate.clone(), up.clone()));

    let through = |kind: LinearKind, d: &Tensor<3>| block.linears.get(kind).back(d.clone());
    let mut norms = Vec::new();
    let dm = through(Down, &gradient);
    let (d_gate, d_up) = host::silu_gated_backward(gate, up, dm);
    let dx2 = through(Gate, &d_gate) + through(Up, &d_up);
    let dh2 = norm_backward(block, NormKind::Mlp, h2, dx2, &mut norms) + gradient.clone();
    let da = through(O, &dh2);
    let (dq, dk, dv) = attention_backward(block, q, k, v, da.clone());
    let mut back = |kind: NormKind, y0: Tensor<3>, d: Tensor<4>, heads: usize| {
        let [windows, tokens, features] = y0.dims();
        let mut d = block.rope().apply_back(d);
        if block.norm(kind).is_some() {
            d = norm_backward(block, kind, block.split_heads(y0, heads), d, &mut norms);
        }
        d.swap_dims(1, 2).reshape([windows, tokens, features])
    };
    let dq = back(NormKind::Query, q0, dq, block.heads());
    let dk = back(NormKind::Key, k0, dk, block.kv_heads());
    let dv = {
        let [windows, heads, tokens, features] = dv.dims();
        dv.swap_dims(1, 2)
            .reshape([windows, tokens, heads * features])
    };
    let dx1 = through(Q, &dq) + through(K, &dk) + through(V, &dv);
    let input = norm_backward(block, NormKind::Attention, h, dx1, &mut norms) + dh2.clone();
    let outputs = [dq, dk, dv, dh2, d_gate, d_up, gradient];
    let mut weights = Vec::new();
    if let Some(m) = &m {
        let inputs = [&x1, &x1, &x1, &a, &x2, &x2, m];
        for ((kind, d), x) in LinearKind::ALL.into_iter().zip(&outputs).zip(inputs) {
            let linear = block.linears.get(kind);
            weights.push((kind, linear.weight_gradient(d.clone(), x.clone())));
        }
    }
    Backward {
        input,
        attention: da,
        outputs,
        weights,
        norms,
    }
}

/// Back through a norm, whose weight's derivative is noted.
fn norm_backward<const D: usize>(
    block: &Block,
    kind: NormKind,
    x: Tensor<D>,
    dy: Tensor<D>,
    norms: &mut Vec<(NormKind, Tensor<1>)>,
) -> Tensor<D> {
    let Some(Norm { weight, epsilon }) = block.norm(kind) else {
        return dy;
    };
    let (dx, d_weight) = host::rms_norm_backward(x, weight.clone(), *epsilon, dy);
    norms.push((kind, d_weight));
    dx
}

/// Back through the attention, from `da` `[windows, tokens, heads * head_dim]` to the rotated queries and keys and the
/// values.
fn attention_backward(
    block: &Block,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    da: Tensor<3>,
) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
    let [windows, heads, tokens, head_dim] = q.dims();
    let kv_heads = block.kv_heads();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let q = q.mul_scalar(scale);
    let da = block.split_heads(da, heads);
    let shape = [windows, kv_heads, tokens, head_dim];
    let (mut dk, mut dv) = (host::Sum::new(shape), host::Sum::new(shape));
    let mut dq = Vec::new();
    for chunk in chunks(0..tokens, block.sliding_window()) {
        let (q, da) = (chunk.queries(&q, kv_heads), chunk.queries(&da, kv_heads));
        let (k, v) = (chunk.keys(&k), chunk.keys(&v));
        let scores = q.clone().matmul(k.clone().swap_dims(2, 3));
        let weights = host::softmax(scores, |row| chunk.seen(row));
        let first = chunk.first_key;
        dv.add(first, weights.clone().swap_dims(2, 3).matmul(da.clone()));
        let d_scores = host::softmax_backward(weights, da.matmul(v.swap_dims(2, 3)));
        dk.add(first, d_scores.clone().swap_dims(2, 3).matmul(q));
        let d = d_scores.matmul(k).mul_scalar(scale);
        dq.push(chunk.per_head(d, heads));
    }
    let device = dq[0].device();
    (Tensor::cat(dq, 2), dk.tensor(&device), dv.tensor(&device))
}
