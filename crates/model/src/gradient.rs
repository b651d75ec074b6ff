use burn::prelude::*;

use crate::backward::backward;
use crate::decoder::Head;
use crate::{Block, LinearKind};

/// Derivatives of a loss with regard to what a block's linears give, `[windows, tokens, out_features]` each.
///
/// v has none: what its rows give is seen only after attention has added up tokens, so `attention`, the derivative
/// with regard to o's input, stands in its place.
#[derive(Clone, Debug)]
pub struct BlockGradients {
    /// With regard to the block's input.
    pub input: Tensor<3>,
    /// With regard to the attention's output before o, `[windows, tokens, heads * head_dim]`.
    pub attention: Tensor<3>,
    q: Tensor<3>,
    k: Tensor<3>,
    o: Tensor<3>,
    gate: Tensor<3>,
    up: Tensor<3>,
    down: Tensor<3>,
}

impl BlockGradients {
    /// With regard to a linear's output; none for v.
    pub fn of(&self, kind: LinearKind) -> Option<&Tensor<3>> {
        match kind {
            LinearKind::Q => Some(&self.q),
            LinearKind::K => Some(&self.k),
            LinearKind::V => None,
            LinearKind::O => Some(&self.o),
            LinearKind::Gate => Some(&self.gate),
            LinearKind::Up => Some(&self.up),
            LinearKind::Down => Some(&self.down),
        }
    }
}

impl Block {
    /// Carries a loss's derivative back through the block: `gradient` is with regard to the output for input `h`,
    /// both `[windows, tokens, hidden_size]`. The block runs forward once to record its tape.
    pub fn gradients(&self, h: Tensor<3>, gradient: Tensor<3>) -> BlockGradients {
        if self.is_by_hand(&h) {
            let found = backward(self, h, gradient, false);
            let [q, k, _, o, gate, up, down] = found.outputs;
            return BlockGradients {
                input: found.input,
                attention: found.attention,
                q,
                k,
                o,
                gate,
                up,
                down,
            };
        }
        self.gradients_by_tape(h, gradient)
    }

    fn gradients_by_tape(&self, h: Tensor<3>, gradient: Tensor<3>) -> BlockGradients {
        let [windows, tokens, _] = h.dims();
        let device = h.device();
        // Zeros added to each output: leaves whose gradients are the outputs' own.
        let leaf = |features: usize| {
            Tensor::<3>::zeros([windows, tokens, features], &device)
                .autodiff()
                .require_grad()
        };
        let out = |kind: LinearKind| leaf(self.linears.get(kind).out_features());
        let (q, k, gate, up) = (
            out(LinearKind::Q),
            out(LinearKind::K),
            out(LinearKind::Gate),
            out(LinearKind::Up),
        );
        let attention = leaf(self.heads() * self.head_dim());
        let o = out(LinearKind::O);
        let input = h.autodiff().require_grad();

        let x = self.attention_input(input.clone());
        let (queries, keys) = self.query_key_from(
            self.linears.get(LinearKind::Q).forward(x.clone()) + q.clone(),
            self.linears.get(LinearKind::K).forward(x.clone()) + k.clone(),
            0,
        );
        let mixed = self.attention(queries, keys, x) + attention.clone();
        let h = self.attention_output(input.clone(), mixed) + o.clone();
        let x = self.mlp_input(h.clone());
        let m = self.mlp_mix_from(
            self.linears.get(LinearKind::Gate).forward(x.clone()) + gate.clone(),
            self.linears.get(LinearKind::Up).forward(x) + up.clone(),
        );
        let y = self.mlp_output(h, m);
        let mut gradients = (y * gradient.clone()).sum().backward();
        let mut taken = |leaf: &Tensor<3>| {
            leaf.grad_remove(&mut gradients)
                .unwrap_or_else(|| Tensor::zeros(leaf.dims(), &device))
        };
        BlockGradients {
            input: taken(&input),
            attention: taken(&attention),
            q: taken(&q),
            k: taken(&k),
            o: taken(&o),
            gate: taken(&gate),
            up: taken(&up),
            down: gradient,
        }
    }
}

impl Head {
    /// Carries derivatives with regard to the logits back to the last residual stream: `h` `[rows, hidden_size]`,
    /// `gradient` `[rows, vocab_size]`, giving `[rows, hidden_size]`.
    pub fn gradient(&self, h: Tensor<2>, gradient: Tensor<2>) -> Tensor<2> {
        let gradient: Tensor<2> = self.linear.back(gradient.unsqueeze()).squeeze_dim(0);
        let h = h.autodiff().require_grad();
        let mut gradients = (self.norm.forward(h.clone()) * gradient).sum().backward();
        h.grad_remove(&mut gradients)
            .unwrap_or_else(|| Tensor::zeros(h.dims(), &h.device().without_autodiff()))
    }
}

/// The norms of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormKind {
    /// Before the attention.
    Attention,
    /// Before the MLP.
    Mlp,
    /// On every head's queries.
    Query,
    /// On every head's keys.
    Key,
}

impl NormKind {
    /// All four; a block may lack the last two.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Mlp, Self::Query, Self::Key];

    /// The weight's name in the checkpoint, such as `model.layers.3.input_layernorm.weight`.
    pub fn tensor(self, block: usize) -> String {
        let path = match self {
            Self::Attention => "input_layernorm",
            Self::Mlp => "post_attention_layernorm",
            Self::Query => "self_attn.q_norm",
            Self::Key => "self_attn.k_norm",
        };
        format!("model.layers.{block}.{path}.weight")
    }
}

/// Derivatives of a loss with regard to a block's parameters.
#[derive(Clone, Debug)]
pub struct ParameterGradients {
    /// With regard to the block's input, `[windows, tokens, hidden_size]`.
    pub input: Tensor<3>,
    /// With regard to the weights, `[out_features, in_features]` each.
    pub weights: Vec<(LinearKind, Tensor<2>)>,
    /// With regard to the norms' weights.
    pub norms: Vec<(NormKind, Tensor<1>)>,
}

impl Block {
    /// Carries a loss's derivative back to the block's weights and norms; arguments as in [`Self::gradients`].
    pub fn parameter_gradients(&self, h: Tensor<3>, gradient: Tensor<3>) -> ParameterGradients {
        if self.is_by_hand(&h) {
            let found = backward(self, h, gradient, true);
            return ParameterGradients {
                input: found.input,
                weights: found.weights,
                norms: found.norms,
            };
        }
        self.parameter_gradients_by_tape(h, gradient)
    }

    fn parameter_gradients_by_tape(&self, h: Tensor<3>, gradient: Tensor<3>) -> ParameterGradients {
        let mut block = self.clone();
        for kind in LinearKind::ALL {
            let weight = block.linears.get_mut(kind).weight_mut();
            *weight = weight.clone().autodiff().require_grad();
        }
        for kind in NormKind::ALL {
            if let Some(norm) = block.norm_mut(kind) {
                norm.weight = norm.weight.clone().autodiff().require_grad();
            }
        }
        let input = h.autodiff().require_grad();
        let y = block.forward(input.clone());
        let mut gradients = (y * gradient).sum().backward();
        let weights = LinearKind::ALL.into_iter().filter_map(|kind| {
            let weight = block.linears.get(kind).weight();
            Some((kind, weight.grad_remove(&mut gradients)?))
        });
        let weights = weights.collect();
        let norms = NormKind::ALL.into_iter().filter_map(|kind| {
            let weight = &block.norm(kind)?.weight;
            Some((kind, weight.grad_remove(&mut gradients)?))
        });
        let norms = norms.collect();
        let device = self.linears.get(LinearKind::Q).weight().device();
        ParameterGradients {
            input: input
                .grad_remove(&mut gradients)
                .unwrap_or_else(|| Tensor::zeros(input.dims(), &device)),
            weights,
            norms,
        }
    }

    /// A norm's weight, `[width]`; none for a norm that the block lacks.
    pub fn norm_weight(&self, kind: NormKind) -> Option<&Tensor<1>> {
        Some(&self.norm(kind)?.weight)
    }

    /// Replaces a norm's weight, `[width]`; a norm that the block lacks stays so.
    pub fn set_norm(&mut self, kind: NormKind, weight: Vec<f32>) {
        if let Some(norm) = self.norm_mut(kind) {
            norm.set(weight);
        }
    }
}

impl Head {
    /// As [`Self::gradient`], with the derivative with regard to the final norm's weight beside it.
    pub fn parameter_gradients(&self, h: Tensor<2>, gradient: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let gradient: Tensor<2> = self.linear.back(gradient.unsqueeze()).squeeze_dim(0);
        let mut norm = self.norm.clone();
        norm.weight = norm.weight.autodiff().require_grad();
        let device = h.device();
        let h = h.autodiff().require_grad();
        let mut gradients = (norm.forward(h.clone()) * gradient).sum().backward();
        (
            h.grad_remove(&mut gradients)
                .unwrap_or_else(|| Tensor::zeros(h.dims(), &device)),
            norm.weight
                .grad_remove(&mut gradients)
                .unwrap_or_else(|| Tensor::zeros(norm.weight.dims(), &device)),
        )
    }

    /// Replaces the final norm's weight, `[hidden_size]`.
    pub fn set_norm(&mut self, weight: Vec<f32>) {
        self.norm.set(weight);
    }
}

#[cfg(test)]
mod tests {
    use halfbyte_checkpoint::ModelFolder;

    use super::*;
    use crate::{Decoder, Weights};

    fn decoder() -> Decoder {
        let folder = ModelFolder::embedded("tiny").unwrap();
        Decoder::new(Weights::new(folder).unwrap(), Device::flex())
    }

    fn numbers(shape: [usize; 3], seed: f32, device: &Device) -> Tensor<3> {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.731 + seed).sin()).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn values<const D: usize>(t: &Tensor<D>) -> Vec<f32> {
        t.clone().into_data().try_to_vec_as::<f32>().unwrap()
    }

    #[test]
    fn input_derivatives_are_slopes() {
        let decoder = decoder();
        let block = decoder.block(1, 9).unwrap();
        let hidden = decoder.weights().config().hidden_size;
        let h = numbers([1, 9, hidden], 0.3, decoder.device());
        let g = numbers([1, 9, hidden], 1.9, decoder.device());
        let along = numbers([1, 9, hidden], 4.2, decoder.device());
        let loss = |by: f32| {
            let y = block.forward(h.clone() + along.clone() * by);
            let pairs = values(&y).into_iter().zip(values(&g));
            pairs.map(|(y, g)| f64::from(y) * f64::from(g)).sum::<f64>()
        };
        let slope = (loss(1e-2) - loss(-1e-2)) / 2e-2;
        for input in [
            block.gradients(h.clone(), g.clone()).input,
            block.parameter_gradients(h.clone(), g.clone()).input,
        ] {
            let pairs = values(&input).into_iter().zip(values(&along));
            let found: f64 = pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum();
            assert!(
                (found - slope).abs() < 2e-3 * slope.abs().max(1.0),
                "{found} {slope}"
            );
        }
    }

    /// A bias stays, and no matrix has a round number of rows or columns.
    #[test]
    fn rounded_linears_multiply_rounded_numbers() {
        use halfbyte_kernels::bf16;
        if !bf16::is_at_hand() {
            halfbyte_testing::skip(halfbyte_testing::Lacking::Instructions, "AVX-512 BF16");
            return;
        }
        let (tokens, out, input) = (7, 67, 35);
        let device = Device::flex();
        let numbers = |n: usize, seed: f32| values(&numbers([1, 1, n], seed, &device));
        let (weight, bias) = (numbers(out * input, 0.2), numbers(out, 3.1));
        let (x, d) = (numbers(tokens * input, 1.7), numbers(tokens * out, 5.3));
        let mut linear =
            crate::Linear::new(weight.clone(), [out, input], Some(bias.clone()), &device);
        linear.round();
        let tensor = |v: &[f32], width: usize| {
            Tensor::<3>::from_data(TensorData::new(v.to_vec(), [1, tokens, width]), &device)
        };
        let r = |x: f32| f64::from(f32::from_bits(u32::from(bf16::bits(x)) << 16));
        let sum = |n: usize, a: &dyn Fn(usize) -> f32, b: &dyn Fn(usize) -> f32| -> f64 {
            (0..n).map(|i| r(a(i)) * r(b(i))).sum()
        };
        let near = |found: Vec<f32>, wanted: &dyn Fn(usize) -> f64| {
            for (i, found) in found.into_iter().enumerate() {
                let wanted = wanted(i);
                assert!(
                    (f64::from(found) - wanted).abs() < 1e-5,
                    "{i}: {found} {wanted}"
                );
            }
        };
        near(values(&linear.forward(tensor(&x, input))), &|i| {
            let (t, o) = (i / out, i % out);
            let product = sum(input, &|k| x[t * input + k], &|k| weight[o * input + k]);
            product + f64::from(bias[o])
        });
        near(values(&linear.back(tensor(&d, out))), &|i| {
            let (t, k) = (i / input, i % input);
            sum(out, &|o| d[t * out + o], &|o| weight[o * input + k])
        });
        let gradient = linear.weight_gradient(tensor(&d, out), tensor(&x, input));
        near(values(&gradient), &|i| {
            let (o, k) = (i / input, i % input);
            sum(tokens, &|t| d[t * out + o], &|t| x[t * input + k])
        });
    }

    #[test]
    fn a_rounded_block_has_nearly_the_same_derivatives() {
        let decoder = decoder();
        let block = decoder.block(1, 150).unwrap();
        let rounded = decoder.block(1, 150).unwrap().rounded();
        let hidden = decoder.weights().config().hidden_size;
        let h = numbers([1, 150, hidden], 0.3, decoder.device());
        let g = numbers([1, 150, hidden], 1.9, decoder.device());
        let found = rounded.parameter_gradients(h.clone(), g.clone());
        let wanted = block.parameter_gradients(h, g);
        let near = |found: Vec<f32>, wanted: Vec<f32>, what: &str| {
            let pairs = found.iter().zip(&wanted);
            let off: f32 = pairs.map(|(a, b)| (a - b).powi(2)).sum();
            let all: f32 = wanted.iter().map(|x| x * x).sum();
            let share = (off / all).sqrt();
            assert!(share < 2e-2, "{what}: {share}");
        };
        near(values(&found.input), values(&wanted.input), "input");
        for ((kind, found), (_, wanted)) in found.weights.iter().zip(&wanted.weights) {
            near(values(found), values(wanted), kind.short());
        }
        for ((kind, found), (_, wanted)) in found.norms.iter().zip(&wanted.norms) {
            near(values(found), values(wanted), &kind.tensor(1));
        }
    }

    /// 150 tokens are more than one chunk of queries.
    #[test]
    fn derivatives_by_hand_are_those_of_the_tape() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for name in ["llama", "mistral_sliding_window", "qwen2", "qwen3"] {
            let folder = ModelFolder::open(&golden.join(name)).unwrap();
            let decoder = Decoder::new(Weights::new(folder).unwrap(), Device::flex());
            let block = decoder.block(0, 150).unwrap();
            let hidden = decoder.weights().config().hidden_size;
            let h = numbers([2, 150, hidden], 0.3, decoder.device());
            let g = numbers([2, 150, hidden], 1.9, decoder.device());
            let close = |what: &str, found: Vec<f32>, wanted: Vec<f32>| {
                assert_eq!(found.len(), wanted.len(), "{name} {what}");
                let largest = wanted.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let far = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
                let far = far.fold(0.0, f32::max);
                assert!(far < 2e-5 * largest, "{name} {what}: {far} of {largest}");
            };
            assert!(block.is_by_hand(&h));
            let found = block.gradients(h.clone(), g.clone());
            let wanted = block.gradients_by_tape(h.clone(), g.clone());
            close("input", values(&found.input), values(&wanted.input));
            close(
                "attention",
                values(&found.attention),
                values(&wanted.attention),
            );
            for kind in LinearKind::ALL {
                if let (Some(found), Some(wanted)) = (found.of(kind), wanted.of(kind)) {
                    close(kind.short(), values(found), values(wanted));
                }
            }
            let mut found = block.parameter_gradients(h.clone(), g.clone());
            let wanted = block.parameter_gradients_by_tape(h, g);
            close("input", values(&found.input), values(&wanted.input));
            for ((kind, found), (_, wanted)) in found.weights.iter().zip(&wanted.weights) {
                close(kind.short(), values(found), values(wanted));
            }
            found.norms.sort_by_key(|(kind, _)| *kind);
            assert_eq!(found.norms.len(), wanted.norms.len());
            for ((kind, found), (_, wanted)) in found.norms.iter().zip(&wanted.norms) {
                close(&format!("{kind:?}"), values(found), values(wanted));
            }
        }
    }

    #[test]
    fn derivatives_of_outputs_and_of_weights_agree() {
        let decoder = decoder();
        let block = decoder.block(0, 7).unwrap();
        let hidden = decoder.weights().config().hidden_size;
        let h = numbers([2, 7, hidden], 0.3, decoder.device());
        let g = numbers([2, 7, hidden], 1.9, decoder.device());
        let of_outputs = block.gradients(h.clone(), g.clone());
        let of_weights = block.parameter_gradients(h.clone(), g);
        let x = block.attention_input(h).reshape([14, hidden]);
        for kind in [LinearKind::Q, LinearKind::K] {
            let out = of_outputs.of(kind).unwrap().clone();
            let [_, _, features] = out.dims();
            let wanted = out.reshape([14, features]).transpose().matmul(x.clone());
            let (_, found) = of_weights.weights.iter().find(|(k, _)| *k == kind).unwrap();
            let wanted = values(&wanted);
            let scale = wanted.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            assert!(scale > 0.0);
            for (a, b) in wanted.iter().zip(values(found)) {
                assert!((a - b).abs() < 1e-4 * scale, "{kind:?}: {a} {b}");
            }
        }
    }
}
