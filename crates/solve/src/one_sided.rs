//! Symmetric grids of 2 bits with positive scales: levels -2, -1, 0 and 1, which reach half as far above as below.

use faer::Mat;
use halfbyte_quant::ActivationStats;

use crate::oracle::{damped, obq, on_grid, quadratic, random_stats, random_weight, scheme};
use crate::{GptqOptions, RtnOptions, Solution, coupled_loss, factor, gptq, gptq_coupled, rtn};

fn solve(weight: &Mat<f32>, stats: &ActivationStats, options: &GptqOptions) -> Solution {
    let factor = factor(stats, options).unwrap();
    gptq(weight.as_ref(), &factor, &scheme(2, 64, true), options).unwrap()
}

fn balanced() -> GptqOptions {
    let options = GptqOptions::default();
    GptqOptions {
        balance: options.wanted_balance(&scheme(2, 64, true)),
        ..options
    }
}

/// `H + (damp I + balance 1 1ᵀ) * mean(diag)` in f64.
fn damped_and_balanced(stats: &ActivationStats, damp: f64, balance: f64) -> Vec<f64> {
    let k = stats.in_features;
    let h = |i: usize| f64::from(stats.hessian[i * k + i]);
    let mean = (0..k).map(h).sum::<f64>() / k as f64;
    let mut all = damped(stats, damp);
    all.iter_mut().for_each(|h| *h += balance * mean);
    all
}

#[test]
fn a_weight_that_carries_a_massive_channel_is_kept_whichever_side_it_is_on() {
    for sign in [1.0f32, -1.0] {
        let mut weight = random_weight(40, 192, 1);
        weight[(7, 70)] = sign * 5.875;
        let mut stats = random_stats(192, 500, 2);
        // one channel is a thousand times as loud as the others are
        for k in 0..192 {
            stats.hessian[70 * 192 + k] *= 1000.0;
            stats.hessian[k * 192 + 70] *= 1000.0;
        }
        for options in [GptqOptions::default(), balanced()] {
            let solved = solve(&weight, &stats, &options).weight;
            let found = f64::from(solved.dequantize()[7 * 192 + 70]);
            let off = (found / f64::from(sign * 5.875) - 1.0).abs();
            assert!(off < 0.01, "{found} for {}", sign * 5.875);
        }
        // plain rounding is what cuts it, on the short side
        let plain = rtn(
            weight.as_ref(),
            None,
            &scheme(2, 64, true),
            &RtnOptions::default(),
        );
        let plain = plain.unwrap().weight.dequantize()[7 * 192 + 70].abs();
        assert!(plain < 4.0 || sign < 0.0, "{plain}");
    }
}

#[test]
fn positive_scales_err_to_one_side_and_balance_takes_that_away() {
    let (weight, stats) = (random_weight(64, 256, 3), random_stats(256, 600, 4));
    let sums = |solution: &Solution| -> (f64, f64) {
        let values = solution.weight.dequantize();
        let (mut mean, mut square) = (0.0, 0.0);
        for row in 0..64 {
            let each = (0..256).map(|k| f64::from(weight[(row, k)] - values[row * 256 + k]));
            let sum: f64 = each.sum();
            mean += sum / 64.0;
            square += sum * sum / 64.0;
        }
        (mean, square)
    };
    let (usual, with) = (
        solve(&weight, &stats, &GptqOptions::default()),
        solve(&weight, &stats, &balanced()),
    );
    let (before, after) = (sums(&usual), sums(&with));
    assert!(before.0 > 0.0, "weights above are cut: {before:?}");
    assert!(
        after.0.abs() < 0.3 * before.0 && after.1 < 0.2 * before.1,
        "{before:?} {after:?}"
    );
    assert!(
        with.loss < 1.15 * usual.loss,
        "{} {}",
        with.loss,
        usual.loss
    );
}

#[test]
fn a_balanced_solve_is_textbook_obq_and_its_losses_are_those_without_the_balance() {
    for dead in [false, true] {
        let (rows, columns) = (6, 80);
        let mut stats = random_stats(columns, 300, 6);
        if dead {
            for k in 0..columns {
                stats.hessian[9 * columns + k] = 0.0;
                stats.hessian[k * columns + 9] = 0.0;
            }
        }
        let weight = random_weight(rows, columns, 5);
        let options = GptqOptions {
            balance: 0.3,
            refine_rounds: 0,
            ..GptqOptions::default()
        };
        let factored = factor(&stats, &options).unwrap();
        let solved = solve(&weight, &stats, &options);
        let values = solved.weight.dequantize();
        let mut h = damped_and_balanced(&stats, factored.damp_used(), 0.3);
        if dead {
            let own = damped(&stats, factored.damp_used());
            for k in 0..columns {
                h[9 * columns + k] = own[9 * columns + k];
                h[k * columns + 9] = own[k * columns + 9];
            }
        }
        for row in 0..rows {
            let w: Vec<f64> = (0..columns).map(|c| f64::from(weight[(row, c)])).collect();
            let level = |c: usize, x: f64| on_grid(&solved.weight, row, c, x);
            let wanted = obq(&w, &h, factored.order(), level);
            for c in 0..columns {
                let found = f64::from(values[row * columns + c]);
                assert!((found - wanted[c]).abs() < 1e-6, "row {row}, column {c}");
            }
        }
        let bare: Vec<f64> = stats.hessian.iter().map(|&h| f64::from(h)).collect();
        let loss = quadratic(weight.as_ref(), &solved.weight, &bare);
        assert!(
            (solved.loss / loss - 1.0).abs() < 1e-3,
            "{} {loss}",
            solved.loss
        );
        let told = crate::loss(weight.as_ref(), &solved.weight, &stats).unwrap();
        assert!((solved.relative_loss / told.relative - 1.0).abs() < 1e-3);
    }
}

#[test]
fn only_two_bits_with_positive_scales_want_it() {
    let options = GptqOptions::default();
    assert!(options.wanted_balance(&scheme(2, 64, true)) > 0.0);
    for (bits, sym) in [(3, true), (4, true), (8, true), (2, false)] {
        assert_eq!(options.wanted_balance(&scheme(bits, 64, sym)), 0.0);
    }
    let signed = GptqOptions {
        signed_scales: true,
        ..options
    };
    assert_eq!(signed.wanted_balance(&scheme(2, 64, true)), 0.0);
    assert_eq!(
        GptqOptions::reference().wanted_balance(&scheme(2, 64, true)),
        0.0
    );
}

#[test]
fn the_coupled_loss_is_the_sum_over_pairs_of_rows() {
    let (columns, ranges) = (20, [5, 8]);
    let weight = random_weight(13, columns, 7);
    let stats = random_stats(columns, 100, 8);
    let options = GptqOptions::default();
    let inner = factor(&stats, &options).unwrap();
    let moments = ranges.map(|rows| random_stats(rows, 3 * rows, 9));
    let factors: Vec<_> = moments
        .iter()
        .map(|m| factor(m, &options).unwrap())
        .collect();
    let parts = [0, 5].into_iter().zip(ranges).zip(&factors);
    let solved = parts.map(|((start, rows), of)| {
        let part = weight.as_ref().subrows(start, rows);
        gptq_coupled(part, &inner, of, &scheme(3, 16, true), &options).unwrap()
    });
    let solved = Solution::stack(solved.collect()).unwrap();
    let found = coupled_loss(weight.as_ref(), &solved.weight, &stats, &factors).unwrap();
    let values = solved.weight.dequantize();
    let error = |r: usize, k: usize| f64::from(weight[(r, k)] - values[r * columns + k]);
    let mut wanted = 0.0;
    for (first, (moment, factor)) in [0, 5].into_iter().zip(moments.iter().zip(&factors)) {
        let r = damped(moment, factor.damp_used());
        let n = moment.in_features;
        for a in 0..n {
            for b in 0..n {
                for i in 0..columns {
                    for j in 0..columns {
                        let h = f64::from(stats.hessian[i * columns + j]);
                        wanted += r[a * n + b] * error(first + a, i) * h * error(first + b, j);
                    }
                }
            }
        }
    }
    assert!((found / wanted - 1.0).abs() < 1e-4, "{found} {wanted}");
    assert!(coupled_loss(weight.as_ref(), &solved.weight, &stats, &factors[..1]).is_err());
}
