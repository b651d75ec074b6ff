//! What holds for a block of any shape.

use burn::prelude::*;
use halfbyte_calibrate::text::SplitMix64;
use halfbyte_model::{Block, Execution, KeyValueCache, LinearKind, values};
use proptest::prelude::*;

use super::Geometry;
use super::reference::{NaiveBlock, Rows};

fn geometry() -> impl Strategy<Value = Geometry> {
    let heads = (1usize..6, 1usize..5);
    let head_dim =
        prop_oneof![4 => (1usize..9).prop_map(|half| 2 * half), 1 => Just(80), 1 => Just(96)];
    let widths = (1usize..70, 1usize..90);
    let kind = (0usize..4, any::<[bool; 4]>());
    (heads, head_dim, widths, kind).prop_map(
        |((shared, kv_heads), head_dim, widths, (family, are))| {
            let [attention_bias, mlp_bias, tied, slides] = are;
            let model_type = ["llama", "mistral", "qwen2", "qwen3"][family];
            Geometry {
                name: String::new(),
                model_type: model_type.to_owned(),
                heads: shared * kv_heads,
                kv_heads,
                head_dim,
                hidden: widths.0,
                intermediate: widths.1,
                attention_bias,
                mlp_bias,
                tied,
                dtype: "float32".to_owned(),
                slides: slides && model_type == "mistral",
            }
        },
    )
}

/// `[windows][tokens][features]`.
fn random(shape: [usize; 3], seed: u64) -> Vec<Rows> {
    let mut random = SplitMix64::new(seed, 0);
    let [windows, tokens, features] = shape;
    let mut row = || {
        (0..features)
            .map(|_| 2.0 * random.unit() - 1.0)
            .collect::<Vec<f64>>()
    };
    (0..windows)
        .map(|_| (0..tokens).map(|_| row()).collect())
        .collect()
}

fn tensor(rows: &[Rows], device: &Device) -> Tensor<3> {
    let shape = [rows.len(), rows[0].len(), rows[0][0].len()];
    let flat = rows.iter().flatten().flatten();
    let flat: Vec<f32> = flat.map(|x| *x as f32).collect();
    Tensor::from_data(TensorData::new(flat, shape), device)
}

fn is_near(found: Tensor<3>, wanted: &[Rows], what: &str) -> Result<(), TestCaseError> {
    let found = values(found).unwrap();
    let wanted: Vec<f64> = wanted.iter().flatten().flatten().copied().collect();
    prop_assert_eq!(found.len(), wanted.len(), "{}", what);
    let largest = wanted.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (found, wanted) in found.iter().zip(&wanted) {
        let far = (f64::from(*found) - wanted).abs();
        prop_assert!(far < 2e-5 * largest, "{}: {} for {}", what, found, wanted);
    }
    Ok(())
}

fn by_stages(block: &Block, h: Tensor<3>) -> Tensor<3> {
    let x = block.attention_input(h.clone());
    let (q, k) = block.query_key(x.clone());
    let a = block.attention(q, k, x);
    let h = block.attention_output(h, a);
    let m = block.mlp_mix(block.mlp_input(h.clone()));
    block.mlp_output(h, m)
}

/// Tokens one by one after the first `first` of them.
fn by_cache(block: &Block, h: &Tensor<3>, first: usize) -> Tensor<3> {
    let [_, tokens, _] = h.dims();
    let mut cache = KeyValueCache::default();
    let mut parts = vec![block.forward_cached(h.clone().narrow(1, 0, first), &mut cache)];
    for at in first..tokens {
        parts.push(block.forward_cached(h.clone().narrow(1, at, 1), &mut cache));
    }
    Tensor::cat(parts, 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn all_ways_through_a_block_give_what_plain_loops_give(
        geometry in geometry(),
        windows in 1usize..3,
        tokens in 1usize..40,
        first in 1usize..40,
    ) {
        let (_model, decoder) = geometry.decoder(1);
        let naive = NaiveBlock::read(decoder.weights(), 0);
        let h = random([windows, tokens, geometry.hidden], 5);
        let wanted: Vec<Rows> = h.iter().map(|h| naive.stages(h).output).collect();
        let h = tensor(&h, decoder.device());
        let block = decoder.block(0, tokens).unwrap();
        is_near(block.forward(h.clone()), &wanted, "forward")?;
        is_near(by_stages(&block, h.clone()), &wanted, "stages")?;
        let first = first.min(tokens);
        is_near(by_cache(&block, &h, first), &wanted, "cached")?;
        let stored = decoder.with_execution(Execution::Packed);
        let block = stored.block(0, tokens).unwrap();
        is_near(by_cache(&block, &h, first), &wanted, "cached, as stored")?;
    }

    /// Slopes of the plain loops, by differences in f64, along random directions.
    #[test]
    fn derivatives_are_slopes(geometry in geometry(), tokens in 1usize..30) {
        const STEP: f64 = 1e-4;
        let (_model, decoder) = geometry.decoder(1);
        let naive = NaiveBlock::read(decoder.weights(), 0);
        let [h, gradient, along] = [5, 6, 7].map(|seed| random([1, tokens, geometry.hidden], seed));
        let loss = |block: &NaiveBlock, h: &Rows| -> f64 {
            let output = block.stages(h).output;
            output.iter().flatten().zip(gradient[0].iter().flatten()).map(|(y, g)| y * g).sum()
        };
        let slope = |moved: &dyn Fn(f64) -> f64| (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let block = decoder.block(0, tokens).unwrap();
        let device = decoder.device();
        let found = block.parameter_gradients(tensor(&h, device), tensor(&gradient, device));
        let check = |what: &str, found: Vec<f32>, direction: Vec<f64>, slope: f64| {
            assert_eq!(found.len(), direction.len(), "{what}");
            let pairs = found.iter().zip(&direction);
            let along: f64 = pairs.map(|(a, b)| f64::from(*a) * b).sum();
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
            let size = norm(&mut found.iter().map(|x| f64::from(*x))) * norm(&mut direction.iter().copied());
            prop_assert!((along - slope).abs() < 1e-4 * size.max(1e-3), "{}: {} for {}", what, along, slope);
            Ok(())
        };
        let moved = |by: f64| {
            let rows = h[0].iter().zip(&along[0]);
            let h = rows.map(|(h, a)| h.iter().zip(a).map(|(h, a)| h + by * a).collect()).collect();
            loss(&naive, &h)
        };
        let direction = along[0].iter().flatten().copied().collect();
        check("input", values(found.input).unwrap(), direction, slope(&moved))?;
        prop_assert_eq!(found.weights.len(), LinearKind::ALL.len());
        for (seed, (kind, found)) in found.weights.into_iter().enumerate() {
            let [rows, columns] = found.dims();
            let direction = &random([1, rows, columns], 20 + seed as u64)[0];
            let moved = |by: f64| {
                let mut block = naive.clone();
                let weight = &mut block.linear_mut(kind).weight;
                for (w, d) in weight.iter_mut().flatten().zip(direction.iter().flatten()) {
                    *w += by * d;
                }
                loss(&block, &h[0])
            };
            let flat = direction.iter().flatten().copied().collect();
            check(kind.short(), values(found).unwrap(), flat, slope(&moved))?;
        }
        prop_assert_eq!(found.norms.len(), naive.norms.len());
        for (seed, (kind, found)) in found.norms.into_iter().enumerate() {
            let found = values(found).unwrap();
            let direction = random([1, 1, found.len()], 40 + seed as u64).concat().concat();
            let moved = |by: f64| {
                let mut block = naive.clone();
                let (_, weight) = block.norms.iter_mut().find(|(k, _)| *k == kind).unwrap();
                weight.iter_mut().zip(&direction).for_each(|(w, d)| *w += by * d);
                loss(&block, &h[0])
            };
            check(&kind.tensor(0), found, direction.clone(), slope(&moved))?;
        }
    }
}
