//! A decoder block as plain loops over numbers in f64, token by token and head by head, and what statistics must come to.

use halfbyte_calibrate::text::{TextReport, Window, Windows};
use halfbyte_calibrate::{LinearStats, RowStats, Walk, WalkOptions};
use halfbyte_checkpoint::{Rope, rounding};
use halfbyte_model::{Decoder, LinearKind, NormKind, Weights, linear_shape, rope_frequencies};
use safetensors::Dtype;

use super::{Geometry, VOCABULARY};

/// Numbers by token.
pub(super) type Rows = Vec<Vec<f64>>;

/// A linear: its rows, and what is added to each.
#[derive(Clone)]
pub(super) struct NaiveLinear {
    pub(super) weight: Rows,
    pub(super) bias: Vec<f64>,
}

impl NaiveLinear {
    fn of(&self, x: &Rows) -> Rows {
        let of_token = |x: &Vec<f64>| {
            let rows = self.weight.iter().zip(&self.bias);
            rows.map(|(row, bias)| dot(row, x) + bias).collect()
        };
        x.iter().map(of_token).collect()
    }
}

/// A block read from a checkpoint.
#[derive(Clone)]
pub(super) struct NaiveBlock {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope: Rope,
    sliding_window: Option<usize>,
    epsilon: f64,
    pub(super) linears: Vec<(LinearKind, NaiveLinear)>,
    pub(super) norms: Vec<(NormKind, Vec<f64>)>,
}

/// What a block makes of a window, stage by stage.
pub(super) struct NaiveStages {
    pub(super) attention_input: Rows,
    /// `A norm1(h)` of every query head.
    pub(super) attention_mixed: Vec<Rows>,
    pub(super) attention_output: Rows,
    pub(super) mlp_input: Rows,
    pub(super) mlp_output: Rows,
    pub(super) output: Rows,
}

impl NaiveBlock {
    pub(super) fn read(weights: &Weights, index: usize) -> Self {
        let config = weights.config();
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let linear = |kind: LinearKind| {
            let shape = linear_shape(config, kind);
            let module = kind.module(index);
            let weight = wide(weights.weight(&module, shape).unwrap());
            let bias = format!("{module}.bias");
            let linear = NaiveLinear {
                weight: weight.chunks(shape[1]).map(<[f64]>::to_vec).collect(),
                bias: match weights.folder().has(&bias) {
                    true => wide(weights.vector(&bias).unwrap()),
                    false => vec![0.0; shape[0]],
                },
            };
            (kind, linear)
        };
        let norm = |kind: NormKind| {
            let name = kind.tensor(index);
            let has = weights.folder().has(&name);
            has.then(|| (kind, wide(weights.vector(&name).unwrap())))
        };
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rope: config.rope.clone(),
            sliding_window: config.sliding_windows[index],
            epsilon: config.rms_norm_eps,
            linears: LinearKind::ALL.into_iter().map(linear).collect(),
            norms: NormKind::ALL.into_iter().filter_map(norm).collect(),
        }
    }

    pub(super) fn linear_mut(&mut self, kind: LinearKind) -> &mut NaiveLinear {
        let found = self.linears.iter_mut().find(|(k, _)| *k == kind);
        &mut found.unwrap().1
    }

    fn linear(&self, kind: LinearKind, x: &Rows) -> Rows {
        let found = self.linears.iter().find(|(k, _)| *k == kind);
        found.unwrap().1.of(x)
    }

    /// As it is where the block has no such norm.
    fn norm(&self, kind: NormKind, x: &[f64]) -> Vec<f64> {
        let Some((_, weight)) = self.norms.iter().find(|(k, _)| *k == kind) else {
            return x.to_vec();
        };
        let mean = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean + self.epsilon).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
    }

    /// A head's part of a token's queries or keys, normalized and turned to its position.
    fn turned(&self, kind: NormKind, all: &[f64], head: usize, position: usize) -> Vec<f64> {
        let dim = self.head_dim;
        let part = self.norm(kind, &all[head * dim..(head + 1) * dim]);
        let (frequencies, _) = rope_frequencies(&self.rope, dim, 1);
        let half = dim / 2;
        let mut turned = part.clone();
        for i in 0..half {
            let (sin, cos) = (position as f64 * frequencies[i]).sin_cos();
            turned[i] = part[i] * cos - part[i + half] * sin;
            turned[i + half] = part[i + half] * cos + part[i] * sin;
        }
        turned
    }

    /// The attention weights of a query head, a row a token over the tokens up to it.
    fn attention_weights(&self, q: &Rows, k: &Rows, head: usize) -> Rows {
        let kv_head = head * self.kv_heads / self.heads;
        let keys: Vec<_> = (0..k.len())
            .map(|t| self.turned(NormKind::Key, &k[t], kv_head, t))
            .collect();
        let of_token = |t: usize| {
            let query = self.turned(NormKind::Query, &q[t], head, t);
            let first = self.sliding_window.map_or(0, |w| (t + 1).saturating_sub(w));
            let scale = 1.0 / (self.head_dim as f64).sqrt();
            let scores: Vec<f64> = (0..=t).map(|s| scale * dot(&query, &keys[s])).collect();
            let most = scores[first..].iter().copied().fold(f64::MIN, f64::max);
            let seen = |(s, score): (usize, &f64)| match s < first {
                true => 0.0,
                false => (score - most).exp(),
            };
            let weights: Vec<f64> = scores.iter().enumerate().map(seen).collect();
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(|w| w / sum).collect()
        };
        (0..q.len()).map(of_token).collect()
    }

    pub(super) fn stages(&self, h: &Rows) -> NaiveStages {
        use LinearKind::{Down, Gate, K, O, Q, Up, V};
        let normed = |kind, h: &Rows| -> Rows { h.iter().map(|h| self.norm(kind, h)).collect() };
        let x = normed(NormKind::Attention, h);
        let [q, k, v] = [Q, K, V].map(|kind| self.linear(kind, &x));
        let mut mixed = Vec::new();
        let mut attention = vec![vec![0.0; self.heads * self.head_dim]; h.len()];
        for head in 0..self.heads {
            let weights = self.attention_weights(&q, &k, head);
            mixed.push(
                weights
                    .iter()
                    .map(|w| sum_of(w, &x, 0..x[0].len()))
                    .collect(),
            );
            let first = head * self.kv_heads / self.heads * self.head_dim;
            for (weights, to) in weights.iter().zip(&mut attention) {
                let value = sum_of(weights, &v, first..first + self.head_dim);
                to[head * self.head_dim..][..self.head_dim].copy_from_slice(&value);
            }
        }
        let h = added(h, &self.linear(O, &attention));
        let x2 = normed(NormKind::Mlp, &h);
        let silu = |(gate, up): (&f64, &f64)| gate / (1.0 + (-gate).exp()) * up;
        let [gate, up] = [Gate, Up].map(|kind| self.linear(kind, &x2));
        let m: Rows = (gate.iter().zip(&up))
            .map(|(gate, up)| gate.iter().zip(up).map(silu).collect())
            .collect();
        NaiveStages {
            output: added(&h, &self.linear(Down, &m)),
            attention_input: x,
            attention_mixed: mixed,
            attention_output: attention,
            mlp_input: x2,
            mlp_output: m,
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn added(a: &Rows, b: &Rows) -> Rows {
    let rows = a.iter().zip(b);
    rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect())
        .collect()
}

/// `Σ_s weights[s] values[s]`, some features of it.
fn sum_of(weights: &[f64], values: &Rows, features: std::ops::Range<usize>) -> Vec<f64> {
    let mut sum = vec![0.0; features.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (sum, x) in sum.iter_mut().zip(&value[features.clone()]) {
            *sum += weight * x;
        }
    }
    sum
}

/// Distance of statistics from the mean of `x xᵀ` over rows, relative to it.
fn off(found: &RowStats, rows: &[&Vec<f64>]) -> f64 {
    let found = &found.stats.calibration;
    let width = rows[0].len();
    assert_eq!(
        (found.in_features, found.hessian.len()),
        (width, width * width)
    );
    let mut wanted = vec![0.0; width * width];
    for row in rows {
        for (x, sums) in row.iter().zip(wanted.chunks_exact_mut(width)) {
            sums.iter_mut().zip(*row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let (mut off, mut size) = (0.0, 0.0);
    for (found, sum) in found.hessian.iter().zip(&wanted) {
        let wanted = sum / rows.len() as f64;
        off += (f64::from(*found) - wanted).powi(2);
        size += wanted.powi(2);
    }
    (off / size).sqrt()
}

/// Products of numbers rounded to bf16 may be summed, of activations that a store has rounded to it.
const TOLERANCE: f64 = 4e-3;

const TOKENS: usize = 16;
/// Real tokens of the windows.
const LENGTHS: [usize; 2] = [TOKENS, 11];

struct Case {
    name: String,
    decoder: Decoder,
    windows: Windows,
    spill: tempfile::TempDir,
    _model: tempfile::TempDir,
}

impl Case {
    fn new(geometry: &Geometry) -> Self {
        let (model, decoder) = geometry.decoder(1);
        let window = |(at, &len): (usize, &usize)| Window {
            ids: (0..TOKENS)
                .map(|t| ((1 + 997 * at + 131 * t) % VOCABULARY) as u32)
                .collect(),
            len,
        };
        Self {
            name: geometry.name.clone(),
            decoder,
            windows: Windows {
                calibration: LENGTHS.iter().enumerate().map(window).collect(),
                holdout: Vec::new(),
                tuning: Vec::new(),
                report: TextReport::default(),
            },
            spill: tempfile::tempdir().unwrap(),
            _model: model,
        }
    }

    fn walk(&self, float_path: bool) -> Walk {
        let options = WalkOptions {
            max_bytes: u64::MAX,
            spill_folder: self.spill.path().to_owned(),
            mixed_windows: LENGTHS.len(),
            gradients: None,
            float_path,
            subset_blocks: Vec::new(),
        };
        Walk::new(&self.windows, &self.decoder, options).unwrap()
    }

    /// What `block` makes of every window's real tokens, from embeddings as they are kept.
    fn stages(&self, block: &NaiveBlock) -> Vec<NaiveStages> {
        let kept = rounding(Dtype::BF16);
        let of = |(window, len): (&Window, &usize)| {
            let embedded = self.decoder.embed(&window.ids[..*len]).unwrap();
            let wide: Vec<f64> = embedded.iter().map(|x| f64::from(kept(*x))).collect();
            block.stages(&wide.chunks(wide.len() / len).map(<[f64]>::to_vec).collect())
        };
        let windows = self.windows.calibration.iter();
        windows.zip(&LENGTHS).map(of).collect()
    }

    fn is_near(&self, what: &str, found: &RowStats, rows: &[&Vec<f64>]) {
        let off = off(found, rows);
        assert!(off < TOLERANCE, "{}, {what}: off by {off}", self.name);
    }

    /// The statistics of v against the mixed inputs of the query heads that share each kv head.
    fn check_mixed(&self, what: &str, found: &LinearStats, stages: &[NaiveStages]) {
        let config = self.decoder.weights().config();
        let (kv_heads, dim) = (config.num_key_value_heads, config.head_dim);
        let shared = config.num_attention_heads / kv_heads;
        assert_eq!(found.kinds, [LinearKind::V]);
        assert_eq!(found.parts.len(), kv_heads, "{}", self.name);
        for (kv_head, part) in found.parts.iter().enumerate() {
            let rows: Vec<usize> = (kv_head * dim..(kv_head + 1) * dim).collect();
            assert_eq!(part.rows.as_deref(), Some(&rows[..]));
            let heads = kv_head * shared..(kv_head + 1) * shared;
            let of_window = |stages: &NaiveStages| stages.attention_mixed[heads.clone()].concat();
            let rows: Vec<_> = stages.iter().flat_map(of_window).collect();
            let tokens = LENGTHS.iter().sum::<usize>() * shared;
            assert_eq!(part.stats.calibration.n_tokens, tokens as u64);
            let rows: Vec<_> = rows.iter().collect();
            self.is_near(&format!("{what} of kv head {kv_head}"), part, &rows);
        }
    }
}

#[test]
fn statistics_of_every_stage_are_those_of_loops_over_heads_and_tokens() {
    for geometry in Geometry::all().iter().chain(&Geometry::made_up()) {
        let case = Case::new(geometry);
        let block = case.decoder.block(0, TOKENS).unwrap();
        let stats = case.walk(false).survey(&block, &mut |_| ()).unwrap();
        let naive = NaiveBlock::read(case.decoder.weights(), 0);
        let stages = case.stages(&naive);
        let of = |kind: LinearKind| stats.iter().find(|s| s.kinds.contains(&kind)).unwrap();
        case.check_mixed("v", of(LinearKind::V), &stages);
        type OfStages = fn(&NaiveStages) -> &Rows;
        let others: [(LinearKind, OfStages); 4] = [
            (LinearKind::Q, |s| &s.attention_input),
            (LinearKind::O, |s| &s.attention_output),
            (LinearKind::Gate, |s| &s.mlp_input),
            (LinearKind::Down, |s| &s.mlp_output),
        ];
        for (kind, of_stages) in others {
            let rows: Vec<_> = stages.iter().flat_map(of_stages).collect();
            case.is_near(kind.short(), &of(kind).parts[0], &rows);
        }
    }
}

/// A sequential pass, in which q and k are coarser by the time that v's statistics are taken, and the float model beside it.
#[test]
fn vs_statistics_see_the_attention_of_the_q_and_k_in_place() {
    for (at, geometry) in Geometry::all().iter().enumerate() {
        let case = Case::new(geometry);
        let mut walk = case.walk(at % 2 == 1);
        let mut block = case.decoder.block(0, TOKENS).unwrap();
        let mut naive = NaiveBlock::read(case.decoder.weights(), 0);
        walk.begin_block(&block);
        walk.attention_input(&block, &mut |_| ()).unwrap();
        for kind in [LinearKind::Q, LinearKind::K] {
            let linear = naive.linear_mut(kind);
            let coarse = |w: &mut f64| *w = (*w * 16.0).round() / 16.0;
            linear.weight.iter_mut().flatten().for_each(coarse);
            let weight = linear.weight.iter().flatten().map(|w| *w as f32).collect();
            block.linears.get_mut(kind).set_weight(weight);
        }
        let mixed = walk.attention_mixed(&block, &mut |_| ()).unwrap();
        case.check_mixed("v", &mixed[0], &case.stages(&naive));
    }
}
