//! Rounding to the levels of a codebook, NF4 or FP4, with block scales that may be quantized once more.

use faer::MatRef;
use halfbyte_quant::{
    ActivationStats, BlockScales, Codebook, CodebookWeight, NestedScales, dynamic_map,
};
use rayon::prelude::*;

use crate::dense::{check, row_major, value_sums};
use crate::{Grid, Loss, SolveError};

/// How [`codebook`] rounds. `default()` is ours, [`reference()`](Self::reference) what bitsandbytes does.
#[derive(Clone, Debug, PartialEq)]
pub struct CodebookOptions {
    /// The levels.
    pub codebook: Codebook,
    /// Neighbours in the flat weight that share a scale: a power of two from 32 to 4096, 64 by habit.
    pub block_size: usize,
    /// Whether block scales are stored in 8 bits and an offset rather than in 32.
    pub double_quant: bool,
    /// `MinMax` takes a block's largest magnitude as its scale; `Search` tries smaller ones and the least squares
    /// fit to the codes of each, weighted with `H_kk` when statistics are given.
    pub grid: Grid,
    /// Whether codes are chosen under the scales as stored. The reference chooses them before scales are quantized.
    pub recode: bool,
}

impl Default for CodebookOptions {
    fn default() -> Self {
        Self {
            codebook: Codebook::Nf4,
            block_size: 64,
            double_quant: true,
            grid: Grid::Search,
            recode: true,
        }
    }
}

impl CodebookOptions {
    /// The largest magnitude of each block, codes chosen before scales are quantized: byte for byte what
    /// bitsandbytes makes of the same weight.
    pub fn reference() -> Self {
        Self {
            grid: Grid::MinMax,
            recode: false,
            ..Self::default()
        }
    }
}

/// A weight on a codebook and the figures of its error, recomputed from codes and scales as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct CodebookSolution {
    /// Codes and block scales.
    pub weight: CodebookWeight,
    /// `tr(Δ H Δᵀ)`, absolute and relative (`H = I` where no statistics were given).
    pub loss: Loss,
    /// `10 log10(‖W‖² / ‖Δ‖²)` in decibels, infinite when exact.
    pub sqnr_db: f64,
    /// Cosine between outputs before and after.
    pub cosine: f64,
    /// Share of weights farther than half a step outside the levels of their block.
    pub clipped_share: f64,
}

/// Scales tried by a search, as fractions of the largest magnitude.
const CANDIDATES: usize = 16;
const NARROWEST: f32 = 0.7;

/// Rounds a weight `[out_features, in_features]` to a codebook, block by block of the flat row-major weight
/// (QLoRA, Dettmers et al., arXiv 2305.14314, section 3).
///
/// # Errors
/// NaN or infinity in weight or statistics, shapes that disagree, a block size out of range.
pub fn codebook(
    weight: MatRef<'_, f32>,
    stats: Option<&ActivationStats>,
    options: &CodebookOptions,
) -> Result<CodebookSolution, SolveError> {
    check(weight, stats)?;
    let (block, book) = (options.block_size, options.codebook);
    if !block.is_power_of_two() || !(32..=4096).contains(&block) {
        return Err(SolveError::Option {
            option: "block_size",
            found: block.to_string(),
            wanted: "a power of two from 32 to 4096",
        });
    }
    let columns = weight.ncols();
    let w = row_major(weight);
    let importance: Option<Vec<f32>> = stats.map(|stats| {
        let diagonal = stats.hessian.iter().step_by(columns + 1);
        diagonal.map(|&h| h.max(0.0)).collect()
    });
    let plain: Vec<f32> = w
        .par_chunks(block)
        .enumerate()
        .map(|(index, w)| match options.grid {
            Grid::MinMax => largest(w),
            Grid::Search => {
                let at = |i: usize| (index * block + i) % columns;
                let u = |i: usize| importance.as_ref().map_or(1.0, |u| u[at(i)]);
                search(w, &u, book)
            }
        })
        .collect();
    let scales = if options.double_quant {
        BlockScales::Nested(nest(&plain))
    } else {
        BlockScales::Float(plain.clone())
    };
    let coded_by = match &scales {
        BlockScales::Nested(nested) if options.recode => nested.values(),
        _ => plain,
    };
    let codes = w
        .par_chunks(block)
        .zip(&coded_by)
        .flat_map_iter(|(w, &scale)| w.iter().map(move |&w| code(w, scale, book)))
        .collect();
    let shape = [weight.nrows(), columns];
    let coded = CodebookWeight::new(book, shape, block, codes, scales)?;
    let sums = value_sums(weight, &coded.dequantize(), stats);
    let clipped = clipped(&w, &coded);
    Ok(CodebookSolution {
        clipped_share: clipped as f64 / w.len().max(1) as f64,
        weight: coded,
        loss: Loss {
            absolute: sums.loss,
            relative: sums.relative_loss(),
        },
        sqnr_db: sums.sqnr_db(),
        cosine: sums.cosine(),
    })
}

/// The nearest code. A block without a scale is zero whatever its codes.
#[inline]
fn code(w: f32, scale: f32, book: Codebook) -> u8 {
    if scale == 0.0 {
        book.zero_code()
    } else {
        book.nearest(w / scale)
    }
}

/// Weights beyond the outermost levels of their block by more than half the gap to the next ones.
fn clipped(w: &[f32], coded: &CodebookWeight) -> usize {
    let mut levels = *coded.codebook().levels();
    levels.sort_by(f32::total_cmp);
    let low = levels[0] - 0.5 * (levels[1] - levels[0]);
    let high = levels[15] + 0.5 * (levels[15] - levels[14]);
    w.chunks(coded.block_size())
        .zip(coded.scale_values())
        .map(|(w, scale)| {
            // a scale of 0 puts every weight but 0 outside
            let outside = |&&w: &&f32| w != 0.0 && !(low..=high).contains(&(w / scale));
            w.iter().filter(outside).count()
        })
        .sum()
}

fn largest(w: &[f32]) -> f32 {
    w.iter().fold(0.0f32, |most, w| most.max(w.abs()))
}

/// The scale of least squared error among the candidates and their least squares fits.
fn search(w: &[f32], u: &dyn Fn(usize) -> f32, book: Codebook) -> f32 {
    let most = largest(w);
    if most == 0.0 {
        return 0.0;
    }
    let u: Vec<f32> = {
        let u: Vec<f32> = (0..w.len()).map(u).collect();
        // a block of dead columns has no weights to go by: all alike
        if u.iter().any(|&u| u > 0.0) {
            u
        } else {
            vec![1.0; w.len()]
        }
    };
    let levels = book.levels();
    let mut best = (f64::INFINITY, most);
    for candidate in 0..CANDIDATES {
        let p = 1.0 - (1.0 - NARROWEST) * candidate as f32 / (CANDIDATES - 1) as f32;
        let scale = p * most;
        let (mut energy, mut cross, mut square) = (0.0f64, 0.0f64, 0.0f64);
        for (&w, &u) in w.iter().zip(&u) {
            let level = f64::from(levels[usize::from(book.nearest(w / scale))]);
            let (w, u) = (f64::from(w), f64::from(u));
            energy += u * w * w;
            cross += u * w * level;
            square += u * level * level;
        }
        // Σ u (w − s l)² = energy − 2 s cross + s² square
        let error = |s: f64| energy - s * (2.0 * cross - s * square);
        let fitted = if square > 0.0 && cross > 0.0 {
            (cross / square) as f32
        } else {
            scale
        };
        for scale in [scale, fitted] {
            let error = error(f64::from(scale));
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

/// Scales less their mean, in blocks of 256 divided by the largest magnitude, on the dynamic map.
fn nest(scales: &[f32]) -> NestedScales {
    let map = dynamic_map();
    let sum: f64 = scales.iter().map(|&s| f64::from(s)).sum();
    let offset = (sum / scales.len() as f64) as f32;
    let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let absmax: Vec<f32> = centred.chunks(NestedScales::BLOCK).map(largest).collect();
    let codes = centred
        .chunks(NestedScales::BLOCK)
        .zip(&absmax)
        .flat_map(|(block, &most)| {
            let map = &map;
            block.iter().map(move |&s| {
                let x = if most > 0.0 { s / most } else { 0.0 };
                nearest_in(map, x)
            })
        })
        .collect();
    NestedScales {
        codes,
        map: map.to_vec(),
        absmax,
        offset,
    }
}

/// Index of the nearest of 256 rising levels, the lower one of two.
fn nearest_in(map: &[f32; 256], x: f32) -> u8 {
    let above = map.partition_point(|&level| level < x).clamp(1, 255);
    let lower = x - map[above - 1] <= map[above] - x;
    (above - usize::from(lower)) as u8
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use serde_json::Value;

    use super::*;
    use crate::oracle::{random_stats, random_weight};

    fn vector() -> Value {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/vectors/bnb_4bit.json"
        );
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        match value {
            Value::Array(items) => items.iter().flat_map(numbers).collect(),
            number => vec![number.as_f64().unwrap()],
        }
    }

    fn floats(value: &Value) -> Vec<f32> {
        numbers(value).into_iter().map(|x| x as f32).collect()
    }

    /// The vector's weight, which was rounded to f16 before it was quantized.
    fn vector_weight(vector: &Value) -> Mat<f32> {
        let storage = crate::storage::Storage::new(crate::ScaleDtype::F16);
        let w = floats(&vector["W_f32"]);
        Mat::from_fn(8, 128, |r, c| match w[r * 128 + c] {
            0.0 => 0.0,
            w => storage.round(w),
        })
    }

    #[test]
    fn the_reference_gives_the_vectors_codes_and_scales() {
        let vector = vector();
        let weight = vector_weight(&vector);
        for (book, name) in [(Codebook::Nf4, "nf4"), (Codebook::Fp4, "fp4")] {
            for (double_quant, kind) in [(false, "plain"), (true, "dq")] {
                let case = &vector[format!("{name}_{kind}")];
                let options = CodebookOptions {
                    codebook: book,
                    double_quant,
                    ..CodebookOptions::reference()
                };
                let solved = codebook(weight.as_ref(), None, &options).unwrap().weight;
                let packed: Vec<f64> = solved
                    .codes()
                    .chunks(2)
                    .map(|c| f64::from(c[0] << 4 | c[1]))
                    .collect();
                assert_eq!(packed, numbers(&case["packed_u8"]), "{name} {kind}");
                assert_eq!(book.levels()[..], floats(&case["quant_map"]["values"]));
                match solved.scales() {
                    BlockScales::Float(scales) => {
                        assert_eq!(*scales, floats(&case["absmax"]["values"]));
                    }
                    BlockScales::Nested(nested) => {
                        let codes: Vec<f32> = nested.codes.iter().map(|&c| f32::from(c)).collect();
                        assert_eq!(codes, floats(&case["absmax"]["values"]));
                        assert_eq!(nested.absmax, floats(&case["nested_absmax"]["values"]));
                        assert_eq!(nested.map, floats(&case["nested_quant_map"]["values"]));
                        assert_eq!(nested.offset, 0.972_900_4);
                    }
                }
            }
        }
    }

    /// Every block by exhaustive search over levels in f64.
    fn naive(w: &[f32], scales: &[f32], block: usize, book: Codebook) -> Vec<f64> {
        let nearest = |w: f64, scale: f64| {
            let levels = book.levels().iter().map(|&level| scale * f64::from(level));
            levels
                .min_by(|a, b| (a - w).abs().total_cmp(&(b - w).abs()))
                .unwrap()
        };
        w.iter()
            .enumerate()
            .map(|(i, &w)| nearest(f64::from(w), f64::from(scales[i / block])))
            .collect()
    }

    #[test]
    fn every_weight_goes_to_the_nearest_level_of_its_block() {
        let weight = random_weight(7, 50, 1);
        let w = row_major(weight.as_ref());
        for book in Codebook::ALL {
            for double_quant in [false, true] {
                for grid in [Grid::MinMax, Grid::Search] {
                    let options = CodebookOptions {
                        codebook: book,
                        block_size: 32,
                        double_quant,
                        grid,
                        recode: true,
                    };
                    let solved = codebook(weight.as_ref(), None, &options).unwrap();
                    let wanted = naive(&w, &solved.weight.scale_values(), 32, book);
                    let found = solved.weight.dequantize();
                    let noise = |values: &[f64]| -> f64 {
                        let square = |(w, v): (&f32, &f64)| (f64::from(*w) - v).powi(2);
                        w.iter().zip(values).map(square).sum()
                    };
                    let found: Vec<f64> = found.into_iter().map(f64::from).collect();
                    assert!((noise(&found) / noise(&wanted) - 1.0).abs() < 1e-5);
                    assert!((solved.loss.absolute / noise(&wanted) - 1.0).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn search_and_recoding_pay_and_nesting_scales_costs_next_to_nothing() {
        let (weight, stats) = (random_weight(96, 256, 3), random_stats(256, 800, 4));
        let of = |options: CodebookOptions| {
            codebook(weight.as_ref(), Some(&stats), &options)
                .unwrap()
                .loss
                .relative
        };
        let reference = of(CodebookOptions::reference());
        let recoded = of(CodebookOptions {
            recode: true,
            ..CodebookOptions::reference()
        });
        let ours = of(CodebookOptions::default());
        let float = of(CodebookOptions {
            double_quant: false,
            ..CodebookOptions::default()
        });
        let found = (reference, recoded, ours, float);
        assert!(recoded < reference && ours < 0.97 * recoded, "{found:?}");
        assert!((ours / float - 1.0).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn blocks_of_zeros_and_weights_without_spread_are_exact() {
        for book in Codebook::ALL {
            for (value, rows) in [(0.0, 2), (0.25, 2)] {
                let weight = Mat::from_fn(rows, 64, |_, _| value);
                let options = CodebookOptions {
                    codebook: book,
                    ..CodebookOptions::default()
                };
                let solved = codebook(weight.as_ref(), None, &options).unwrap();
                assert_eq!(solved.loss.absolute, 0.0);
            }
        }
    }

    #[test]
    fn only_a_narrowed_scale_leaves_weights_outside() {
        let weight = random_weight(7, 64, 5);
        let of = |grid| {
            let options = CodebookOptions {
                grid,
                double_quant: false,
                ..CodebookOptions::default()
            };
            codebook(weight.as_ref(), None, &options).unwrap()
        };
        assert_eq!(of(Grid::MinMax).clipped_share, 0.0);
        let searched = of(Grid::Search);
        let (low, high) = (
            -1.0 - (1.0 - 0.696_192_8) / 2.0,
            1.0 + (1.0 - 0.722_956_84) / 2.0,
        );
        let naive = row_major(weight.as_ref())
            .chunks(64)
            .zip(searched.weight.scale_values())
            .flat_map(|(w, s)| w.iter().map(move |w| w / s))
            .filter(|x| !(low..=high).contains(x))
            .count();
        assert_eq!(searched.clipped_share, naive as f64 / (7.0 * 64.0));
    }

    #[test]
    fn odd_block_sizes_are_refused() {
        let weight = random_weight(2, 64, 1);
        let options = CodebookOptions {
            block_size: 48,
            ..CodebookOptions::default()
        };
        assert_eq!(
            codebook(weight.as_ref(), None, &options)
                .unwrap_err()
                .to_string(),
            "block_size: 48, wanted a power of two from 32 to 4096"
        );
    }

    #[test]
    fn the_nearest_of_the_map_is_the_one_an_exhaustive_look_finds() {
        let map = dynamic_map();
        for i in -2100..=2100 {
            let x = i as f32 / 2000.0;
            let found = (map[usize::from(nearest_in(&map, x))] - x).abs();
            let least = map
                .iter()
                .map(|m| (m - x).abs())
                .fold(f32::INFINITY, f32::min);
            assert!(found <= least, "{x}");
        }
    }
}
