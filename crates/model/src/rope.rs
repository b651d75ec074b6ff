use std::f64::consts::PI;
use std::sync::Arc;

use burn::prelude::*;
use halfbyte_checkpoint::{Rope, RopeScaling};

use crate::host;

/// Cosines and sines of every position, `[tokens, head_dim]` each, both halves filled. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct RopeTables {
    cos: Table,
    sin: Table,
}

/// The same numbers on the device and on the host.
#[derive(Clone, Debug)]
struct Table {
    device: Tensor<2>,
    host: Arc<[f32]>,
}

impl RopeTables {
    pub(crate) fn new(rope: &Rope, head_dim: usize, tokens: usize, device: &Device) -> Self {
        let (frequencies, attention) = rope_frequencies(rope, head_dim, tokens);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..tokens)
                .flat_map(|t| {
                    frequencies
                        .iter()
                        .chain(&frequencies)
                        .map(move |w| (t as f64, *w))
                })
                // transformers multiplies position and frequency in f32; so do we, to agree with it far out.
                .map(|(t, w)| (f(f64::from(t as f32 * w as f32)) * attention) as f32)
                .collect();
            Table {
                device: Tensor::from_data(
                    TensorData::new(values.clone(), [tokens, head_dim]),
                    device,
                ),
                host: values.into(),
            }
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Back through [`Self::apply`], on the host: the rotation the other way.
    pub(crate) fn apply_back(&self, d: Tensor<4>) -> Tensor<4> {
        let back: Vec<f32> = self.sin.host.iter().map(|sin| -sin).collect();
        host::rotate(d, &self.cos.host, &back)
    }

    /// Rotates `[windows, heads, tokens, head_dim]`, the tokens at positions from `first` on: `x cos + rotate_half(x) sin` (RoFormer, arXiv 2104.09864, with
    /// the halves split as Hugging Face checkpoints have them).
    pub(crate) fn apply(&self, x: Tensor<4>, first: usize) -> Tensor<4> {
        let [_, _, tokens, head_dim] = x.dims();
        if host::is_host(&x) {
            let from = first * head_dim;
            return host::rotate(x, &self.cos.host[from..], &self.sin.host[from..]);
        }
        let half = head_dim / 2;
        let rotated = Tensor::cat(
            vec![
                x.clone().narrow(3, half, half).neg(),
                x.clone().narrow(3, 0, half),
            ],
            3,
        );
        let cos = self
            .cos
            .device
            .clone()
            .narrow(0, first, tokens)
            .unsqueeze::<4>();
        let sin = self
            .sin
            .device
            .clone()
            .narrow(0, first, tokens)
            .unsqueeze::<4>();
        x * cos + rotated * sin
    }
}

/// Inverse frequencies `[head_dim / 2]` and the factor on cosines and sines, for windows of `tokens` tokens.
///
/// Linear and dynamic (NTK-aware) scaling, Llama 3's by wavelength, and YaRN (arXiv 2309.00071, section 3.4), with
/// transformers' definitions.
pub fn rope_frequencies(rope: &Rope, head_dim: usize, tokens: usize) -> (Vec<f64>, f64) {
    let plain = |theta: f64| -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
            .collect()
    };
    match &rope.scaling {
        RopeScaling::None => (plain(rope.theta), 1.0),
        RopeScaling::Linear { factor } => {
            (plain(rope.theta).iter().map(|w| w / factor).collect(), 1.0)
        }
        RopeScaling::Dynamic {
            factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            let length = (tokens as f64).max(original);
            let base = factor * length / original - (factor - 1.0);
            (
                plain(rope.theta * base.powf(head_dim as f64 / (head_dim as f64 - 2.0))),
                1.0,
            )
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            let scale = |w: f64| {
                let wavelength = 2.0 * PI / w;
                if wavelength < original / high_freq_factor {
                    w
                } else if wavelength > original / low_freq_factor {
                    w / factor
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * w / factor + smooth * w
                }
            };
            (plain(rope.theta).into_iter().map(scale).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            let original = *original_max_position_embeddings as f64;
            let magnitude = |scale: f64, m: f64| {
                if scale <= 1.0 {
                    1.0
                } else {
                    0.1 * m * scale.ln() + 1.0
                }
            };
            let attention = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
                (Some(m), Some(all)) => magnitude(*factor, *m) / magnitude(*factor, *all),
                _ => magnitude(*factor, 1.0),
            });
            let dimension = |rotations: f64| {
                head_dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let blend = |(i, w): (usize, f64)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                w / factor * ramp + w * (1.0 - ramp)
            };
            (
                plain(rope.theta)
                    .into_iter()
                    .enumerate()
                    .map(blend)
                    .collect(),
                attention,
            )
        }
    }
}
