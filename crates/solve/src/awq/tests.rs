//! The search, the clip and the folding against plain f64.

use faer::{Mat, MatRef};
use halfbyte_quant::{ActivationStats, Scheme};
use proptest::prelude::*;

use super::*;
use crate::oracle::{Random, on_threads, quadratic, random_stats, random_weight, scheme};
use crate::{GptqOptions, Grid, RtnOptions, ScaleDtype, factor, gptq, loss, rtn, rtn_clipped};

/// Statistics in which a few channels are loud, which is what AWQ is for.
fn loud_stats(columns: usize, seed: u64) -> ActivationStats {
    let stats = random_stats(columns, 6 * columns, seed);
    let loud: Vec<f32> = (0..columns)
        .map(|k| if k % 13 == 5 { 1.0 / 12.0 } else { 1.0 })
        .collect();
    transform_stats(&stats, &loud).unwrap()
}

fn min_max(scale_dtype: ScaleDtype) -> InnerSolver {
    InnerSolver::Rtn(RtnOptions {
        scale_dtype,
        ..RtnOptions::default()
    })
}

fn member<'a>(weight: &'a Mat<f32>, scheme: Scheme, stats: &'a ActivationStats) -> Member<'a> {
    Member {
        weight: weight.as_ref(),
        scheme,
        stats,
        sensitivity: 1.0,
    }
}

/// Min-max rounding of one row on groups of `group`, each range cut to `limit`. Codes are chosen in f32, as by the
/// solvers: the largest weight of a symmetric group lies half way between two codes, and either is right.
fn naive_round(row: &[f64], group: usize, bits: u32, sym: bool, limit: f32) -> Vec<f64> {
    let levels = ((1u32 << bits) - 1) as f32;
    row.chunks(group)
        .flat_map(|w| {
            let low = w.iter().fold(0.0f32, |m, &w| m.min(w as f32)).max(-limit);
            let high = w.iter().fold(0.0f32, |m, &w| m.max(w as f32)).min(limit);
            let (step, zero) = if sym {
                (2.0 * high.max(-low) / levels, (levels + 1.0) / 2.0)
            } else {
                let step = (high - low) / levels;
                (step, (-low / step).round_ties_even())
            };
            let code = move |w: f64| {
                let steps = (w as f32 * (1.0 / step)).round_ties_even();
                (steps + zero).clamp(0.0, levels)
            };
            w.iter()
                .map(move |&w| f64::from(step) * f64::from(code(w) - zero))
                .collect::<Vec<f64>>()
        })
        .collect()
}

/// Everything AWQ says of one group of linears, term by term: each ratio, its scales, its loss.
fn naive_search(
    weights: &[&Mat<f32>],
    stats: &ActivationStats,
    (group, bits, sym): (usize, u32, bool),
    grid: &[(f64, bool)],
) -> Vec<(Vec<f64>, f64)> {
    let k = stats.in_features;
    let rows: Vec<Vec<f64>> = weights
        .iter()
        .flat_map(|w| (0..w.nrows()).map(|r| (0..k).map(|c| f64::from(w[(r, c)])).collect()))
        .collect();
    let mut w_mean = vec![0.0; k];
    for row in &rows {
        for c in 0..k {
            let start = c / group * group;
            let most = row[start..(start + group).min(k)]
                .iter()
                .fold(0.0f64, |m, w| m.max(w.abs()));
            w_mean[c] += row[c].abs() / (most + 1e-6) / rows.len() as f64;
        }
    }
    grid.iter()
        .map(|&(ratio, duo)| {
            let mut s: Vec<f64> = (0..k)
                .map(|c| {
                    let x = f64::from(stats.mean_abs[c]).powf(ratio);
                    let w = if duo {
                        w_mean[c].powf(1.0 - ratio) + 1e-4
                    } else {
                        1.0
                    };
                    (x / w).max(1e-4)
                })
                .collect();
            let most = s.iter().fold(0.0f64, |m, &s| m.max(s));
            let least = s.iter().fold(f64::INFINITY, |m, &s| m.min(s));
            s.iter_mut().for_each(|s| *s /= (most * least).sqrt());
            let mut loss = 0.0;
            for row in &rows {
                let scaled: Vec<f64> = (0..k)
                    .map(|c| f64::from(row[c] as f32 * s[c] as f32))
                    .collect();
                let rounded = naive_round(&scaled, group, bits, sym, f32::INFINITY);
                let d: Vec<f64> = (0..k).map(|c| row[c] - rounded[c] / s[c]).collect();
                for a in 0..k {
                    for b in 0..k {
                        loss += d[a] * f64::from(stats.hessian[a * k + b]) * d[b];
                    }
                }
            }
            (s, loss)
        })
        .collect()
}

/// Searches two linears and compares every candidate, every loss and the choice with the naive search.
fn check_search(options: &AwqOptions, grid: &[(f64, bool)], group: i64, sym: bool) {
    let k = 52;
    let stats = loud_stats(k, 3);
    let (a, b) = (random_weight(9, k, 1), random_weight(5, k, 2));
    let s = scheme(4, group, sym);
    let members = [member(&a, s, &stats), member(&b, s, &stats)];
    let awq_group = Group {
        members: &members,
        mean_abs: &stats.mean_abs,
        tie: None,
    };
    let wanted = naive_search(&[&a, &b], &stats, (s.group_len(k), 4, sym), grid);
    let tried = candidates(&stats.mean_abs, &weight_mean(&members), options).unwrap();
    assert_eq!(
        tried.iter().map(|c| (c.ratio, c.duo)).collect::<Vec<_>>(),
        grid
    );
    for (found, (scales, _)) in tried.iter().zip(&wanted) {
        for (found, wanted) in found.scales.iter().zip(scales) {
            assert!(
                (f64::from(*found) / wanted - 1.0).abs() < 1e-5,
                "{found}, wanted {wanted}"
            );
        }
    }
    let found = search(&awq_group, options).unwrap();
    for (tried, (_, wanted)) in found.tried.iter().zip(&wanted) {
        assert!(
            (tried.loss / wanted - 1.0).abs() < 2e-3,
            "ratio {}: {}, wanted {wanted}",
            tried.ratio,
            tried.loss
        );
    }
    let best = (0..grid.len()).fold(0, |best, i| {
        if wanted[i].1 < wanted[best].1 {
            i
        } else {
            best
        }
    });
    assert_eq!((found.ratio, found.duo), grid[best]);
    assert_eq!(found.scales, tried[best].scales);
    assert_eq!(found.source_scales, found.scales);
    // the field's own definition, measured from the rounded weights themselves, chooses alike
    let by_weights = search_by::<crate::SolveError>(&awq_group, options, |_, rounded| {
        let mut loss = 0.0;
        for (weight, rounded) in [&a, &b].into_iter().zip(rounded) {
            for (row, rounded) in rounded.chunks_exact(k).enumerate() {
                let d: Vec<f64> = (0..k)
                    .map(|c| f64::from(weight[(row, c)]) - f64::from(rounded[c]))
                    .collect();
                for x in 0..k {
                    for y in 0..k {
                        loss += d[x] * f64::from(stats.hessian[x * k + y]) * d[y];
                    }
                }
            }
        }
        Ok(loss)
    })
    .unwrap();
    assert_eq!(by_weights.scales, found.scales);
    assert!((by_weights.loss / found.loss - 1.0).abs() < 1e-3);
}

#[test]
fn autoawqs_form_is_its_twenty_ratios() {
    let duo: Vec<(f64, bool)> = (0..20).map(|i| (f64::from(i) / 20.0, true)).collect();
    check_search(&AwqOptions::autoawq(), &duo, 16, false);
    let plain: Vec<(f64, bool)> = duo.iter().map(|&(ratio, _)| (ratio, false)).collect();
    let options = AwqOptions {
        duo_scaling: DuoScaling::Off,
        ..AwqOptions::autoawq()
    };
    check_search(&options, &plain, -1, false);
}

/// Nested lists of numbers, row by row.
fn numbers(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

#[test]
fn autoawq_itself_chooses_the_same_scales_and_limits() {
    // made by AutoAWQ's own search (tests/vectors/make_autoawq_search.py) on numbers of ours; the module it inspects is
    // the two linears themselves, so that statistics say what its output loses
    let vector = include_str!("../../../../tests/vectors/autoawq_search.json");
    let v: serde_json::Value = serde_json::from_str(vector).unwrap();
    let (x, w) = (numbers(&v["x_times_16"]), numbers(&v["w_times_1024"]));
    let (k, tokens, rows) = (32, x.len() / 32, w.len() / 32);
    let mut hessian = vec![0.0; k * k];
    let mut mean_abs = vec![0.0; k];
    for x in x.chunks_exact(k) {
        for a in 0..k {
            mean_abs[a] += x[a].abs() / 16.0 / tokens as f64;
            for b in 0..k {
                hessian[a * k + b] += x[a] * x[b] / 256.0 / tokens as f64;
            }
        }
    }
    let stats = ActivationStats {
        in_features: k,
        hessian: hessian.into_iter().map(|h| h as f32).collect(),
        mean_abs: mean_abs.into_iter().map(|m| m as f32).collect(),
        n_tokens: tokens as u64,
        cross: None,
    };
    let part =
        |start: usize| Mat::from_fn(rows / 2, k, |r, c| (w[(start + r) * k + c] / 1024.0) as f32);
    let (first, second) = (part(0), part(rows / 2));
    let s = scheme(4, v["group_size"].as_i64().unwrap(), false);
    let members = [member(&first, s, &stats), member(&second, s, &stats)];
    let group = Group {
        members: &members,
        mean_abs: &stats.mean_abs,
        tie: None,
    };
    for case in v["cases"].as_array().unwrap() {
        let duo_scaling = match case["duo_scaling"].as_bool().unwrap() {
            true => DuoScaling::On,
            false => DuoScaling::Off,
        };
        let options = AwqOptions {
            duo_scaling,
            ..AwqOptions::autoawq()
        };
        let found = search(&group, &options).unwrap();
        let losses = numbers(&case["losses"]);
        assert_eq!(found.tried.len(), losses.len());
        for (tried, wanted) in found.tried.iter().zip(losses) {
            let mean = tried.loss / rows as f64;
            assert!(
                (mean / wanted - 1.0).abs() < 2e-3,
                "{duo_scaling:?} {}: {mean}, wanted {wanted}",
                tried.ratio
            );
        }
        for (found, wanted) in found.scales.iter().zip(numbers(&case["scales"])) {
            assert!((f64::from(*found) / wanted - 1.0).abs() < 1e-5);
        }
    }
    let options = RtnOptions {
        scale_dtype: ScaleDtype::F32,
        ..RtnOptions::default()
    };
    let limits = [&first, &second].into_iter().flat_map(|part| {
        let clip = search_clip(part.as_ref(), &stats, &s, &options);
        clip.unwrap().limits
    });
    let wanted = numbers(&v["clip_limits"]);
    assert_eq!(wanted.len(), rows * 2);
    let mut differ = 0;
    for (i, (found, wanted)) in limits.zip(wanted).enumerate() {
        if (f64::from(found) / wanted - 1.0).abs() < 1e-5 {
            continue;
        }
        // A range cut on both sides has its zero point half way between two codes, and AutoAWQ, which codes the cut
        // weights, leaves its ends to the rounding of the last bit. Ours are the outermost codes, and no worse.
        let start = i % 2 * 16;
        let row: Vec<f64> = (0..16).map(|c| w[i / 2 * k + start + c] / 1024.0).collect();
        let h = |a: usize, b: usize| f64::from(stats.hessian[(start + a) * k + start + b]);
        let errors = naive_clip(&row, &h, 4, false);
        let most = row.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let error = |limit: f64| errors[(20.0 * (1.0 - limit / most)).round() as usize];
        assert!(row.iter().any(|&w| w > f64::from(found)));
        assert!(row.iter().any(|&w| -w > f64::from(found)));
        assert!(error(f64::from(found)) <= error(wanted));
        differ += 1;
    }
    assert!(differ <= 1, "{differ} of {} groups differ", rows * 2);
}

#[test]
fn llm_compressors_form_is_its_twenty_ratios() {
    let mut grid = vec![(0.0, false)];
    grid.extend((0..19).map(|i| (f64::from(i) / 18.0, true)));
    check_search(&AwqOptions::llm_compressor(), &grid, 32, false);
    let both: Vec<(f64, bool)> = (0..10)
        .flat_map(|i| [(f64::from(i) / 9.0, false), (f64::from(i) / 9.0, true)])
        .collect();
    let options = AwqOptions {
        duo_scaling: DuoScaling::Both,
        ..AwqOptions::llm_compressor()
    };
    check_search(&options, &both, 16, false);
    let plain: Vec<(f64, bool)> = (0..20).map(|i| (f64::from(i) / 19.0, false)).collect();
    let options = AwqOptions {
        duo_scaling: DuoScaling::Off,
        ..AwqOptions::llm_compressor()
    };
    check_search(&options, &plain, 16, true);
}

#[test]
fn the_default_form_begins_with_the_identity_and_reaches_ratio_one() {
    let plain = |duo| (0..=20).map(move |i| (f64::from(i) / 20.0, duo));
    let options = |duo_scaling| AwqOptions {
        duo_scaling,
        solver: min_max(ScaleDtype::F32),
        ..AwqOptions::default()
    };
    let both: Vec<(f64, bool)> = plain(false).chain(plain(true)).collect();
    check_search(&options(DuoScaling::Both), &both, 16, false);
    let duo: Vec<(f64, bool)> = std::iter::once((0.0, false)).chain(plain(true)).collect();
    check_search(&options(DuoScaling::On), &duo, 20, false);
    let plain: Vec<(f64, bool)> = plain(false).collect();
    check_search(&options(DuoScaling::Off), &plain, 16, true);
    let x = [0.3, 2.0, 0.7];
    let tried = candidates(&x, &[0.1, 0.5, 0.4], &AwqOptions::default()).unwrap();
    assert_eq!(tried[0].scales, [1.0; 3]);
}

#[test]
fn a_channel_never_active_keeps_its_scale_in_the_default_form_only() {
    let (x, w) = ([0.0f32, 1.0, 4.0], [0.5f32; 3]);
    let options = |form| AwqOptions {
        form,
        duo_scaling: DuoScaling::Off,
        n_grid: 4,
        ..AwqOptions::default()
    };
    let ours = candidates(&x, &w, &options(Form::Default)).unwrap();
    assert_eq!(
        (ours[4].ratio, &ours[4].scales[..]),
        (1.0, &[1.0, 0.5, 2.0][..])
    );
    let theirs = candidates(&x, &w, &options(Form::LlmCompressor)).unwrap();
    // 1e-4 over the root of 4e-4
    assert!((theirs[3].scales[0] - 0.005).abs() < 1e-6 && theirs[3].scales[1] == 50.0);
}

#[test]
fn scaled_statistics_measure_scaled_errors_alike() {
    let (k, stats) = (40, random_stats(40, 200, 1));
    let weight = random_weight(7, k, 2);
    let mut random = Random::new(5);
    let scales: Vec<f32> = (0..k).map(|_| (random.normal() as f32).exp()).collect();
    let other = transform_stats(&stats, &scales).unwrap();
    for a in 0..k {
        assert!((other.mean_abs[a] * scales[a] / stats.mean_abs[a] - 1.0).abs() < 1e-6);
        for b in 0..k {
            let wanted = stats.hessian[a * k + b] / (scales[a] * scales[b]);
            assert!((other.hessian[a * k + b] - wanted).abs() <= 1e-6 * wanted.abs());
            assert_eq!(other.hessian[a * k + b], other.hessian[b * k + a]);
        }
    }
    let mut values: Vec<f32> = (0..7 * k).map(|i| weight[(i / k, i % k)]).collect();
    fold_into_columns(&mut values, &scales).unwrap();
    let scaled = MatRef::from_row_major_slice(&values, 7, k);
    let solved = rtn(
        scaled,
        Some(&other),
        &scheme(4, 16, false),
        &RtnOptions::default(),
    )
    .unwrap();
    // Δ of the unscaled weight under the unscaled H
    let rounded = solved.weight.dequantize();
    let mut wanted = 0.0;
    for r in 0..7 {
        let d: Vec<f64> = (0..k)
            .map(|c| f64::from(weight[(r, c)]) - f64::from(rounded[r * k + c] / scales[c]))
            .collect();
        for a in 0..k {
            for b in 0..k {
                wanted += d[a] * f64::from(stats.hessian[a * k + b]) * d[b];
            }
        }
    }
    assert!((solved.loss / wanted - 1.0).abs() < 1e-3);
}

#[test]
fn loud_channels_are_scaled_up_and_the_error_falls() {
    let k = 96;
    let (stats, weight) = (loud_stats(k, 7), random_weight(64, k, 8));
    for (solver, most) in [
        (min_max(ScaleDtype::Portable), 0.6),
        (AwqOptions::default().solver, 0.9),
    ] {
        let options = AwqOptions {
            solver,
            ..AwqOptions::default()
        };
        let members = [member(&weight, scheme(4, 32, false), &stats)];
        let group = Group {
            members: &members,
            mean_abs: &stats.mean_abs,
            tie: None,
        };
        let found = search(&group, &options).unwrap();
        let identity = found.identity_loss.unwrap();
        assert!(found.loss < most * identity, "{} of {identity}", found.loss);
        let mean = |loud: bool| {
            let of = |k: &usize| (k % 13 == 5) == loud;
            let logs = (0..k).filter(of).map(|k| f64::from(found.scales[k].ln()));
            logs.sum::<f64>() / (0..k).filter(of).count() as f64
        };
        assert!(mean(true) > mean(false) + 0.5);
    }
}

#[test]
fn gptq_in_the_loop_is_gptq_of_the_scaled_problem_and_never_loses() {
    let k = 64;
    let s = scheme(4, 32, false);
    let mut gained = 0;
    for seed in 0..4 {
        let (stats, weight) = (loud_stats(k, seed), random_weight(40, k, seed + 50));
        for gptq_options in [GptqOptions::default(), GptqOptions::reference()] {
            let members = [member(&weight, s, &stats)];
            let group = Group {
                members: &members,
                mean_abs: &stats.mean_abs,
                tie: None,
            };
            let options = AwqOptions {
                n_grid: 5,
                solver: InnerSolver::Gptq(gptq_options.clone()),
                ..AwqOptions::default()
            };
            let found = search(&group, &options).unwrap();
            let plain = gptq(
                weight.as_ref(),
                &factor(&stats, &gptq_options).unwrap(),
                &s,
                &gptq_options,
            )
            .unwrap();
            assert_eq!(found.identity_loss, Some(plain.loss));
            assert!(found.loss <= plain.loss);
            gained += usize::from(found.loss < 0.98 * plain.loss);
            let other = transform_stats(&stats, &found.scales).unwrap();
            let scaled = Mat::from_fn(40, k, |r, c| weight[(r, c)] * found.scales[c]);
            let again = gptq(
                scaled.as_ref(),
                &factor(&other, &gptq_options).unwrap(),
                &s,
                &gptq_options,
            )
            .unwrap();
            assert_eq!(again.loss, found.loss);
        }
    }
    assert!(gained >= 4, "{gained} of 8");
}

#[test]
fn members_weigh_by_their_sensitivity_and_keep_their_own_statistics() {
    let k = 48;
    let (x, mixed) = (loud_stats(k, 1), loud_stats(k, 2));
    let (a, b) = (random_weight(8, k, 3), random_weight(8, k, 4));
    let s = scheme(3, 16, false);
    let options = AwqOptions::default();
    let losses = |a_counts: f64, b_counts: f64| -> Vec<f64> {
        let members = [
            Member {
                sensitivity: a_counts,
                ..member(&a, s, &x)
            },
            Member {
                sensitivity: b_counts,
                ..member(&b, s, &mixed)
            },
        ];
        let group = Group {
            members: &members,
            mean_abs: &x.mean_abs,
            tie: None,
        };
        let found = search(&group, &options).unwrap();
        found.tried.iter().map(|t| t.loss).collect()
    };
    let (only_a, only_b, both) = (losses(1.0, 0.0), losses(0.0, 1.0), losses(2.0, 0.5));
    for i in 0..both.len() {
        let wanted = 2.0 * only_a[i] + 0.5 * only_b[i];
        assert!((both[i] / wanted - 1.0).abs() < 1e-12);
    }
    let plain = rtn(
        b.as_ref(),
        Some(&mixed),
        &s,
        &RtnOptions {
            grid: Grid::Search,
            ..RtnOptions::default()
        },
    )
    .unwrap();
    assert_eq!(only_b[0], plain.loss);
}

#[test]
fn tied_heads_share_scales_and_fold_into_the_rows_of_v() {
    // 6 query heads on 2 kv heads of 4 channels
    let tie = HeadTie::new(6, 2, 4).unwrap();
    let channels: Vec<f32> = (0..24).map(|c| c as f32).collect();
    let means = tie.mean(&channels).unwrap();
    assert_eq!(means, [4.0, 5.0, 6.0, 7.0, 16.0, 17.0, 18.0, 19.0]);
    assert_eq!(
        tie.expand(&means).unwrap()[8..16],
        [4.0, 5.0, 6.0, 7.0, 16.0, 17.0, 18.0, 19.0]
    );

    let (stats, o) = (loud_stats(24, 3), random_weight(10, 24, 4));
    let members = [member(&o, scheme(4, -1, false), &stats)];
    let group = Group {
        members: &members,
        mean_abs: &stats.mean_abs,
        tie: Some(tie),
    };
    let found = search(&group, &AwqOptions::default()).unwrap();
    assert!(found.loss < found.identity_loss.unwrap());
    assert_eq!(found.source_scales.len(), 8);
    assert_eq!(tie.expand(&found.source_scales).unwrap(), found.scales);

    // values of 3 tokens, attention of each query head over them, then o: the same with folded v and o
    let (mut random, width) = (Random::new(9), 5);
    let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal() as f32).collect() };
    let (x, attention) = (numbers(3 * width), numbers(6 * 3));
    let (v, bias) = (numbers(8 * width), numbers(8));
    let o: Vec<f32> = (0..240).map(|i| o[(i / 24, i % 24)]).collect();
    let output = |v: &[f32], bias: &[f32], o: &[f32]| -> Vec<f64> {
        let value = |token: usize, row: usize| -> f64 {
            let sum: f64 = (0..width)
                .map(|c| f64::from(v[row * width + c]) * f64::from(x[token * width + c]))
                .sum();
            sum + f64::from(bias[row])
        };
        let mixed: Vec<f64> = (0..24)
            .map(|c| {
                let row = c / 4 / 3 * 4 + c % 4;
                let weight = |token: usize| f64::from(attention[c / 4 * 3 + token]);
                (0..3).map(|token| weight(token) * value(token, row)).sum()
            })
            .collect();
        (0..10)
            .map(|r| (0..24).map(|c| f64::from(o[r * 24 + c]) * mixed[c]).sum())
            .collect()
    };
    let before = output(&v, &bias, &o);
    let (mut v, mut bias, mut o) = (v.clone(), bias.clone(), o.clone());
    fold_into_rows(&mut v, Some(&mut bias), &found.source_scales).unwrap();
    fold_into_columns(&mut o, &found.scales).unwrap();
    for (after, before) in output(&v, &bias, &o).iter().zip(&before) {
        assert!((after - before).abs() < 1e-6, "{after}, wanted {before}");
    }
}

/// What bf16 keeps of a number.
fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// `down(silu(gate n) * (up n + bias))` of the norm's output `n`, in f64.
fn feed_forward(
    x: &[f64],
    norm: (&[f32], Option<&[f32]>, NormGain),
    [gate, up, down]: [&[f32]; 3],
    up_bias: &[f32],
) -> Vec<f64> {
    let (weight, bias, gain) = norm;
    let (width, wide) = (x.len(), up_bias.len());
    let rms = (x.iter().map(|x| x * x).sum::<f64>() / width as f64).sqrt();
    let n: Vec<f64> = (0..width)
        .map(|c| {
            let offset = f64::from(u8::from(gain == NormGain::OnePlus));
            let bias = bias.map_or(0.0, |b| f64::from(b[c]));
            x[c] / rms * (offset + f64::from(weight[c])) + bias
        })
        .collect();
    let product = |w: &[f32], x: &[f64], row: usize| -> f64 {
        let row = &w[row * x.len()..(row + 1) * x.len()];
        row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()
    };
    let m: Vec<f64> = (0..wide)
        .map(|row| {
            let g = product(gate, &n, row);
            g / (1.0 + (-g).exp()) * (product(up, &n, row) + f64::from(up_bias[row]))
        })
        .collect();
    (0..width).map(|row| product(down, &m, row)).collect()
}

#[test]
fn a_folded_feed_forward_computes_what_it_did() {
    let (width, wide) = (12, 20);
    let mut random = Random::new(3);
    let mut numbers = |n: usize, size: f64| -> Vec<f32> {
        (0..n).map(|_| (size * random.normal()) as f32).collect()
    };
    let x: Vec<f64> = numbers(width, 1.0).into_iter().map(f64::from).collect();
    let (gate, up) = (numbers(width * wide, 0.3), numbers(width * wide, 0.3));
    let (down, up_bias) = (numbers(width * wide, 0.3), numbers(wide, 0.1));
    let norm: Vec<f32> = numbers(width, 0.3).into_iter().map(bf16).collect();
    let into: Vec<f32> = numbers(width, 0.8).into_iter().map(f32::exp).collect();
    let between: Vec<f32> = numbers(wide, 0.8).into_iter().map(f32::exp).collect();
    let wants_exact_bias = vec![0.0f32; width];
    for gain in [NormGain::Plain, NormGain::OnePlus] {
        for store in [bf16 as fn(f32) -> f32, |x: f32| x] {
            let bias = Some(&wants_exact_bias[..]);
            let before = feed_forward(&x, (&norm, bias, gain), [&gate, &up, &down], &up_bias);
            let folded = fold_into_norm(&norm, bias, gain, &into, store).unwrap();
            for (stored, (asked, used)) in folded.weight.iter().zip(into.iter().zip(&folded.scales))
            {
                assert_eq!(store(*stored), *stored);
                assert!((used / asked - 1.0).abs() < 0.05);
            }
            let (mut gate, mut up, mut down, mut up_bias) =
                (gate.clone(), up.clone(), down.clone(), up_bias.clone());
            fold_into_columns(&mut gate, &folded.scales).unwrap();
            fold_into_columns(&mut up, &folded.scales).unwrap();
            fold_into_rows(&mut up, Some(&mut up_bias), &between).unwrap();
            fold_into_columns(&mut down, &between).unwrap();
            let norm = (&folded.weight[..], folded.bias.as_deref(), gain);
            let after = feed_forward(&x, norm, [&gate, &up, &down], &up_bias);
            for (after, before) in after.iter().zip(&before) {
                assert!((after - before).abs() < 1e-6, "{after}, wanted {before}");
            }
        }
    }
}

#[test]
fn a_channel_that_rounding_would_silence_keeps_its_weight() {
    // 1 + w is 2^-8 exactly; divided by 4 it is nothing bf16 can add to -1
    let w = -1.0 + 1.0 / 256.0;
    assert_eq!(bf16(w), w);
    let folded = fold_into_norm(&[w, 0.5], None, NormGain::OnePlus, &[4.0, 2.0], bf16).unwrap();
    assert_eq!((folded.weight[0], folded.scales[0]), (w, 1.0));
    assert_eq!((folded.weight[1], folded.scales[1]), (-0.25, 2.0));
    let silent = fold_into_norm(&[0.0], None, NormGain::Plain, &[4.0], bf16).unwrap();
    assert_eq!((silent.weight[0], silent.scales[0]), (0.0, 4.0));
    let bias = fold_into_norm(&[2.0], Some(&[1.0]), NormGain::Plain, &[4.0], bf16).unwrap();
    assert_eq!((bias.weight[0], bias.bias), (0.5, Some(vec![0.25])));
}

/// The clip search of one group, term by term; returns each range's error.
fn naive_clip(w: &[f64], h: &dyn Fn(usize, usize) -> f64, bits: u32, sym: bool) -> Vec<f64> {
    let most = w.iter().fold(0.0f32, |m, w| m.max(w.abs() as f32));
    (0..10u8)
        .map(|i| {
            let limit = most * (1.0 - f32::from(i) / 20.0);
            let rounded = naive_round(w, w.len(), bits, sym, limit);
            let d: Vec<f64> = w.iter().zip(&rounded).map(|(w, r)| w - r).collect();
            let mut loss = 0.0;
            for a in 0..d.len() {
                for b in 0..d.len() {
                    loss += d[a] * h(a, b) * d[b];
                }
            }
            loss
        })
        .collect()
}

fn check_clip(rows: usize, k: usize, bits: u8, group: i64, sym: bool) {
    let (stats, weight) = (loud_stats(k, 11), random_weight(rows, k, 12));
    let s = scheme(bits, group, sym);
    let options = RtnOptions {
        scale_dtype: ScaleDtype::F32,
        ..RtnOptions::default()
    };
    let clip = search_clip(weight.as_ref(), &stats, &s, &options).unwrap();
    let (len, groups) = (s.group_len(k), s.n_groups(k));
    let (mut before, mut after, mut narrowed) = (0.0, 0.0, 0);
    for row in 0..rows {
        for g in 0..groups {
            let columns: Vec<usize> = (g * len..((g + 1) * len).min(k)).collect();
            let w: Vec<f64> = columns
                .iter()
                .map(|&c| f64::from(weight[(row, c)]))
                .collect();
            let h = |a: usize, b: usize| f64::from(stats.hessian[columns[a] * k + columns[b]]);
            let wanted = naive_clip(&w, &h, u32::from(bits), sym);
            let most = w.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            let step = 20.0 * (1.0 - f64::from(clip.limits[row * groups + g]) / most);
            assert!((step - step.round()).abs() < 1e-4 && step < 9.5, "{step}");
            let least = wanted.iter().fold(f64::INFINITY, |m, &e| m.min(e));
            let found = wanted[step.round() as usize];
            // two ranges may be equal but for rounding
            assert!(found <= least * (1.0 + 1e-3), "{found}, wanted {least}");
            before += wanted[0];
            after += least;
            narrowed += usize::from(step.round() > 0.0);
        }
    }
    assert!((clip.loss_before / before - 1.0).abs() < 1e-3);
    assert!((clip.loss / after - 1.0).abs() < 1e-3);
    assert_eq!(
        clip.narrowed_share,
        narrowed as f64 / (rows * groups) as f64
    );
    assert!(clip.loss < clip.loss_before);

    // rounding within the limits has that error, as far as groups do not meet
    let clipped = rtn_clipped(weight.as_ref(), Some(&stats), &s, &options, &clip.limits).unwrap();
    let mut blocks: Vec<f64> = stats.hessian.iter().map(|&h| f64::from(h)).collect();
    for a in 0..k {
        for b in 0..k {
            if a / len != b / len {
                blocks[a * k + b] = 0.0;
            }
        }
    }
    let wanted = quadratic(weight.as_ref(), &clipped.weight, &blocks);
    assert!((wanted / clip.loss - 1.0).abs() < 1e-3);
    let held = loss(weight.as_ref(), &clipped.weight, &stats).unwrap();
    assert!((held.absolute / clipped.loss - 1.0).abs() < 1e-6);
}

#[test]
fn clip_limits_are_the_naive_search_by_hessian_blocks() {
    check_clip(35, 64, 4, 16, false);
    check_clip(5, 50, 3, 20, false);
    check_clip(7, 48, 3, -1, true);
}

#[test]
fn whole_ranges_clip_nothing() {
    let (stats, weight) = (random_stats(40, 200, 1), random_weight(33, 40, 2));
    for (group, sym) in [(16, false), (16, true), (-1, false)] {
        let s = scheme(4, group, sym);
        let groups = s.n_groups(40);
        let options = RtnOptions::default();
        let plain = rtn(weight.as_ref(), Some(&stats), &s, &options).unwrap();
        let limits = vec![f32::INFINITY; 33 * groups];
        let within = rtn_clipped(weight.as_ref(), Some(&stats), &s, &options, &limits).unwrap();
        assert_eq!(within, plain);
        let nothing = vec![0.0; 33 * groups];
        let none = rtn_clipped(weight.as_ref(), None, &s, &options, &nothing).unwrap();
        assert!(none.weight.scales().iter().all(|&s| s == 1.0));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_named() {
    let (stats, weight) = (random_stats(32, 100, 1), random_weight(3, 32, 2));
    let s = scheme(4, 16, false);
    let members = [member(&weight, s, &stats)];
    let group = Group {
        members: &members,
        mean_abs: &stats.mean_abs,
        tie: None,
    };
    let message =
        |group: &Group<'_>, options: &AwqOptions| search(group, options).unwrap_err().to_string();
    let ours = AwqOptions::default();
    let coarse = AwqOptions {
        n_grid: 3,
        ..ours.clone()
    };
    assert_eq!(
        message(&group, &coarse),
        "n_grid: 3, wanted at least 4; 20 is usual"
    );
    let both = AwqOptions {
        form: Form::AutoAwq,
        ..ours.clone()
    };
    assert_eq!(
        message(&group, &both),
        "duo_scaling: both, wanted true or false in AutoAWQ's form"
    );
    let empty = Group {
        members: &[],
        ..group
    };
    assert!(message(&empty, &ours).starts_with("members of the group: 0, wanted 1"));
    let narrow = Group {
        mean_abs: &stats.mean_abs[..31],
        ..group
    };
    assert!(message(&narrow, &ours).contains("31, wanted 32"));
    let mut means = stats.mean_abs.clone();
    means[4] = f32::NAN;
    let overflowed = Group {
        mean_abs: &means,
        ..group
    };
    assert!(message(&overflowed, &ours).starts_with("mean_abs of channel 4 is NaN"));
    let heads = HeadTie::new(9, 2, 64).unwrap_err().to_string();
    assert!(heads.starts_with("heads that do not fall evenly to kv heads: 9, wanted"));
    let tied = Group {
        tie: Some(HeadTie::new(4, 2, 16).unwrap()),
        ..group
    };
    assert!(message(&tied, &ours).starts_with("channels of the heads: 32, wanted 64"));
    let nowhere = search_by::<crate::SolveError>(&group, &ours, |_, _| Ok(f64::NAN));
    assert!(
        nowhere
            .unwrap_err()
            .to_string()
            .starts_with("none of 42 scales tried on 32 channels")
    );
    let mut scales = vec![1.0; 32];
    scales[3] = 0.0;
    let zero = transform_stats(&stats, &scales).unwrap_err().to_string();
    assert_eq!(
        zero,
        "scale of channel 3 is 0, wanted a finite number above zero"
    );
    assert!(fold_into_columns(&mut [1.0; 7], &[1.0, 2.0]).is_err());
    assert!(fold_into_rows(&mut [1.0; 8], Some(&mut [1.0]), &[1.0, 2.0]).is_err());
    let options = RtnOptions::default();
    let limits = [1.0, 1.0, -1.0, 1.0, 1.0, 1.0];
    let below = rtn_clipped(weight.as_ref(), None, &s, &options, &limits).unwrap_err();
    assert_eq!(
        below.to_string(),
        "clip limit of row 1, group 0 is -1, wanted a number of zero or more"
    );
    let few = rtn_clipped(weight.as_ref(), None, &s, &options, &limits[..5]).unwrap_err();
    assert!(few.to_string().starts_with("clip limits: 5, wanted 6"));
}

#[test]
fn any_number_of_threads_finds_the_same_bits() {
    let (stats, weight) = (loud_stats(72, 1), random_weight(70, 72, 2));
    let s = scheme(4, 24, false);
    let found = [1, 3].map(|threads| {
        on_threads(threads, || {
            let members = [member(&weight, s, &stats)];
            let group = Group {
                members: &members,
                mean_abs: &stats.mean_abs,
                tie: None,
            };
            (
                search(&group, &AwqOptions::default()).unwrap(),
                search_clip(weight.as_ref(), &stats, &s, &RtnOptions::default()).unwrap(),
            )
        })
    });
    assert_eq!(found[0], found[1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_default_search_never_loses_to_no_scaling_at_any_shape(
        rows in 1usize..40, columns in 1usize..70, bits in prop::sample::select(vec![2u8, 3, 4, 8]),
        group in prop::sample::select(vec![-1i64, 16, 17, 32]), sym: bool, duo in 0usize..3, seed in 0u64..1000,
    ) {
        let (weight, mut stats) = (random_weight(rows, columns, seed), random_stats(columns, 3 * columns, seed));
        if seed % 3 == 0 {
            stats.mean_abs[0] = 0.0;
            for other in 0..columns {
                stats.hessian[other] = 0.0;
                stats.hessian[other * columns] = 0.0;
            }
        }
        let s = scheme(bits, group, sym);
        let options = AwqOptions {
            duo_scaling: [DuoScaling::Off, DuoScaling::On, DuoScaling::Both][duo],
            n_grid: 6,
            ..AwqOptions::default()
        };
        let members = [member(&weight, s, &stats)];
        let awq_group = Group { members: &members, mean_abs: &stats.mean_abs, tie: None };
        let found = search(&awq_group, &options).unwrap();
        prop_assert!(found.loss <= found.identity_loss.unwrap());
        prop_assert!(found.scales.iter().all(|s| s.is_finite() && *s > 0.0));
        let clip = search_clip(weight.as_ref(), &stats, &s, &RtnOptions::default()).unwrap();
        prop_assert!(clip.loss <= clip.loss_before);
    }
}
