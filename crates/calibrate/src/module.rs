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

#[cfg(test)]
mod tests {
    use halfbyte_model::{Decoder, linear_shape, rope_frequencies};

    use super::*;
    use crate::output_gradients::tests::{tiny, window};
    use crate::text::{TextReport, Window, Windows};
    use crate::{Walk, WalkOptions};

    const TOKENS: usize = 24;
    /// Real tokens of the calibration windows.
    const LENGTHS: [usize; 4] = [24, 15, 24, 24];

    fn calibration() -> Vec<Window> {
        let of = |(&len, first): (&usize, u32)| window(first, len);
        LENGTHS.iter().zip([20, 31, 57, 83]).map(of).collect()
    }

    fn walk(decoder: &Decoder, calibration: Vec<Window>) -> (Walk, tempfile::TempDir) {
        let windows = Windows {
            calibration,
            holdout: vec![window(11, TOKENS)],
            tuning: Vec::new(),
            report: TextReport::default(),
        };
        let spill = tempfile::tempdir().unwrap();
        let options = WalkOptions {
            max_bytes: u64::MAX,
            spill_folder: spill.path().to_owned(),
            mixed_windows: 0,
            gradients: None,
            float_path: false,
            subset_blocks: Vec::new(),
        };
        (Walk::new(&windows, decoder, options).unwrap(), spill)
    }

    fn float(decoder: &Decoder, kind: LinearKind) -> Vec<f32> {
        let weights = decoder.weights();
        let shape = linear_shape(weights.config(), kind);
        weights.weight(&kind.module(0), shape).unwrap()
    }

    /// A weight as 2 bits would have it.
    fn coarse(decoder: &Decoder, kind: LinearKind) -> Vec<f32> {
        let float = float(decoder, kind);
        let most = float.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        let step = most / 2.0;
        float.iter().map(|w| (w / step).round() * step).collect()
    }

    /// Block 0 of the embedded model in f64, token by token, some weights replaced.
    struct Naive<'a> {
        decoder: &'a Decoder,
        replaced: &'a [LinearKind],
    }

    type Rows = Vec<Vec<f64>>;

    impl Naive<'_> {
        fn linear(&self, kind: LinearKind, x: &Rows) -> Rows {
            let weight = match self.replaced.contains(&kind) {
                true => coarse(self.decoder, kind),
                false => float(self.decoder, kind),
            };
            let row_of = |x: &Vec<f64>| {
                let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
                weight.chunks_exact(x.len()).map(dot).collect()
            };
            x.iter().map(row_of).collect()
        }

        fn norm(&self, name: &str, h: &Rows) -> Rows {
            let name = format!("model.layers.0.{name}.weight");
            let weights = self.decoder.weights();
            let weight = weights.vector(&name).unwrap();
            let epsilon = weights.config().rms_norm_eps;
            let of = |h: &Vec<f64>| {
                let mean = h.iter().map(|h| h * h).sum::<f64>() / h.len() as f64;
                let scaled = h.iter().zip(&weight);
                scaled
                    .map(|(h, w)| h / (mean + epsilon).sqrt() * f64::from(*w))
                    .collect()
            };
            h.iter().map(of).collect()
        }

        fn attention(&self, x: &Rows) -> Rows {
            let config = self.decoder.weights().config();
            let (heads, dim) = (config.num_attention_heads, config.head_dim);
            let shared = heads / config.num_key_value_heads;
            assert!(shared > 1, "the embedded model's heads share keys");
            let (frequencies, factor) = rope_frequencies(&config.rope, dim, TOKENS);
            let turned = |y: &Rows, head: usize, t: usize| -> Vec<f64> {
                let y = &y[t][head * dim..(head + 1) * dim];
                let half = dim / 2;
                (0..dim)
                    .map(|i| {
                        let angle = t as f64 * frequencies[i % half];
                        let other = match i < half {
                            true => -y[i + half],
                            false => y[i - half],
                        };
                        (y[i] * angle.cos() + other * angle.sin()) * factor
                    })
                    .collect()
            };
            let [q, k, v] =
                [LinearKind::Q, LinearKind::K, LinearKind::V].map(|kind| self.linear(kind, x));
            let mut mixed = vec![vec![0.0; heads * dim]; x.len()];
            for head in 0..heads {
                for (t, mixed) in mixed.iter_mut().enumerate() {
                    let query = turned(&q, head, t);
                    let scores: Vec<f64> = (0..=t)
                        .map(|s| {
                            let key = turned(&k, head / shared, s);
                            let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                            (dot / (dim as f64).sqrt()).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for (s, score) in scores.iter().enumerate() {
                        for d in 0..dim {
                            let value = v[s][head / shared * dim + d];
                            mixed[head * dim + d] += score / sum * value;
                        }
                    }
                }
            }
            self.linear(LinearKind::O, &mixed)
        }

        fn mlp(&self, x: &Rows) -> Rows {
            let [gate, up] = [LinearKind::Gate, LinearKind::Up].map(|kind| self.linear(kind, x));
            let of = |(gate, up): (&Vec<f64>, &Vec<f64>)| {
                let both = gate.iter().zip(up);
                both.map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
            };
            let m: Rows = gate.iter().zip(&up).map(of).collect();
            self.linear(LinearKind::Down, &m)
        }
    }

    /// The loss of `replaced` by its definition, over the real tokens of all windows.
    fn naive_loss(decoder: &Decoder, module: Module, replaced: &[LinearKind]) -> f64 {
        let [float, other] = [&[], replaced].map(|replaced| Naive { decoder, replaced });
        let (mut sum, mut tokens) = (0.0, 0);
        for (window, len) in calibration().iter().zip(LENGTHS) {
            let hidden = decoder.weights().config().hidden_size;
            let embedded = decoder.embed(&window.ids[..len]).unwrap();
            let h: Rows = embedded
                .chunks(hidden)
                .map(|h| h.iter().map(|h| f64::from(*h)).collect())
                .collect();
            let x = float.norm("input_layernorm", &h);
            let of = |naive: &Naive<'_>| match module {
                Module::Attention => naive.attention(&x),
                Module::Mlp => {
                    let added = h.iter().zip(float.attention(&x));
                    let h = added.map(|(h, a)| h.iter().zip(a).map(|(h, a)| h + a).collect());
                    naive.mlp(&float.norm("post_attention_layernorm", &h.collect()))
                }
            };
            for (wanted, found) in of(&float).iter().zip(of(&other)) {
                sum += wanted
                    .iter()
                    .zip(found)
                    .map(|(w, f)| (f - w).powi(2))
                    .sum::<f64>();
                tokens += 1;
            }
        }
        sum / f64::from(tokens)
    }

    fn loss(walk: &Walk, decoder: &Decoder, module: Module, replaced: &[LinearKind]) -> f64 {
        let block = decoder.block(0, TOKENS).unwrap();
        let reference = walk.module_reference(&block, module, 1 << 20).unwrap();
        assert_eq!(reference.tokens(), LENGTHS.iter().sum::<usize>());
        let weights = replaced.iter().map(|&kind| (kind, coarse(decoder, kind)));
        reference.loss(weights.collect()).unwrap()
    }

    #[test]
    fn it_is_the_mean_squared_change_of_the_modules_output() {
        use LinearKind::{Down, Gate, K, O, Q, Up, V};
        let decoder = tiny();
        let (walk, _spill) = walk(&decoder, calibration());
        for (module, replaced) in [
            (Module::Attention, &[Q, K, V][..]),
            (Module::Attention, &[V]),
            (Module::Attention, &[O]),
            (Module::Mlp, &[Gate, Up]),
            (Module::Mlp, &[Up, Down]),
        ] {
            let found = loss(&walk, &decoder, module, replaced);
            let wanted = naive_loss(&decoder, module, replaced);
            assert!(wanted > 0.0 && found.is_finite());
            assert!(
                (found / wanted - 1.0).abs() < 1e-3,
                "{module:?} {replaced:?}: {found}, wanted {wanted}"
            );
        }
        assert_eq!(loss(&walk, &decoder, Module::Attention, &[]), 0.0);
        assert_eq!(loss(&walk, &decoder, Module::Mlp, &[]), 0.0);
    }

    #[test]
    fn of_one_linear_that_ends_a_module_statistics_say_the_same() {
        let decoder = tiny();
        let (mut walk, _spill) = walk(&decoder, calibration());
        let block = decoder.block(0, TOKENS).unwrap();
        let stats = walk.survey(&block, &mut |_| ()).unwrap();
        for (module, kind) in [
            (Module::Attention, LinearKind::O),
            (Module::Mlp, LinearKind::Down),
        ] {
            let of_kind = stats.iter().find(|s| s.kinds == [kind]).unwrap();
            let hessian = &of_kind.parts[0].stats.calibration.hessian;
            let (float, coarse) = (float(&decoder, kind), coarse(&decoder, kind));
            let [_, columns] = linear_shape(decoder.weights().config(), kind);
            let mut wanted = 0.0;
            let rows = float.chunks(columns).zip(coarse.chunks(columns));
            for (float, coarse) in rows {
                let off: Vec<f64> = float
                    .iter()
                    .zip(coarse)
                    .map(|(f, c)| f64::from(f - c))
                    .collect();
                for (a, h) in off.iter().zip(hessian.chunks(columns)) {
                    let dot: f64 = h.iter().zip(&off).map(|(h, b)| f64::from(*h) * b).sum();
                    wanted += a * dot;
                }
            }
            let found = loss(&walk, &decoder, module, &[kind]);
            assert!(
                (found / wanted - 1.0).abs() < 1e-3,
                "{kind:?}: {found}, wanted {wanted}"
            );
        }
    }

    #[test]
    fn neither_padding_nor_the_number_of_threads_changes_it() {
        let decoder = tiny();
        let padded_otherwise = calibration().into_iter().map(|window| {
            let mut ids = window.ids;
            ids[window.len..].fill(77);
            Window { ids, ..window }
        });
        let found = [
            (calibration(), 1),
            (calibration(), 3),
            (padded_otherwise.collect(), 2),
        ]
        .map(|(calibration, threads)| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let (walk, _spill) = walk(&decoder, calibration);
                let qkv = [LinearKind::Q, LinearKind::K, LinearKind::V];
                let gate_up = [LinearKind::Gate, LinearKind::Up];
                [
                    loss(&walk, &decoder, Module::Attention, &qkv),
                    loss(&walk, &decoder, Module::Mlp, &gate_up),
                ]
            })
        });
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0], found[2]);
    }

    #[test]
    fn windows_are_taken_whole_and_at_least_one() {
        let decoder = tiny();
        let (walk, _spill) = walk(&decoder, calibration());
        let block = decoder.block(0, TOKENS).unwrap();
        let tokens = |asked| {
            let reference = walk.module_reference(&block, Module::Attention, asked);
            reference.unwrap().tokens()
        };
        assert_eq!(tokens(1), LENGTHS[0]);
        assert_eq!(tokens(50), LENGTHS[0] + LENGTHS[2]);
        assert_eq!(tokens(1_000_000), LENGTHS.iter().sum::<usize>());
    }
}
