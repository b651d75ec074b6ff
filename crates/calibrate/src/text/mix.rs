//! Who gives how many windows, in which order, and which are held out. Whole numbers only; no text here.

use super::random::SplitMix64;

/// Splits `total` in proportion to `weights` (each above 0) by largest remainder; ties go to the earlier one.
pub(super) fn apportion(total: usize, weights: &[f64]) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|w| total as f64 * (w / sum)).collect();
    let mut shares: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
    // Rounding can carry the sum of the floors above the total only where a quotient is a whole number computed
    // one bit too high; saturating keeps that from wrapping, and the loop below then adds nothing.
    let missing = total.saturating_sub(shares.iter().sum());
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| {
        exact[b]
            .fract()
            .total_cmp(&exact[a].fract())
            .then(a.cmp(&b))
    });
    for &i in order.iter().cycle().take(missing) {
        shares[i] += 1;
    }
    shares
}

/// The order in which sources alternate: each source's windows keep their own order and lie evenly over the
/// whole; the seed shifts each source by less than one of its own steps. Returns `(source, index)`.
pub(super) fn interleave(counts: &[usize], seed: u64) -> Vec<(usize, usize)> {
    let mut slots: Vec<(f64, usize, usize)> = Vec::with_capacity(counts.iter().sum());
    for (source, &count) in counts.iter().enumerate() {
        let shift = SplitMix64::new(seed, source as u64).unit();
        slots.extend((0..count).map(|i| ((i as f64 + shift) / count as f64, source, i)));
    }
    slots.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    slots
        .into_iter()
        .map(|(_, source, i)| (source, i))
        .collect()
}

/// How many of `total` windows a share of `holdout` keeps out: rounded, at least 1 from 8 windows on, never all.
pub(super) fn holdout_count(total: usize, holdout: f64) -> usize {
    let rounded = (total as f64 * holdout).round() as usize;
    let least = usize::from(holdout > 0.0 && total >= 8);
    rounded.max(least).min(total.saturating_sub(1))
}

/// `count` of the indices `0..total`, each from the middle of its stretch; `count <= total`.
pub(super) fn evenly_inside(count: usize, total: usize) -> Vec<usize> {
    (0..count)
        .map(|j| (2 * j + 1) * total / (2 * count))
        .collect()
}

/// One index drawn from each of `count` equal stretches of `0..total`, in order; `count <= total`.
pub(super) fn one_per_stretch(count: usize, total: usize, random: &mut SplitMix64) -> Vec<usize> {
    (0..count)
        .map(|j| {
            let (from, to) = (j * total / count, (j + 1) * total / count);
            from + random.below(to - from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_follow_the_weights() {
        assert_eq!(apportion(128, &[3.0, 1.0]), [96, 32]);
        assert_eq!(apportion(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(apportion(7, &[0.5, 0.25, 0.25]), [3, 2, 2]);
        assert_eq!(apportion(1, &[1.0, 100.0]), [0, 1]);
        assert_eq!(apportion(0, &[1.0, 2.0]), [0, 0]);
    }

    #[test]
    fn held_out_windows_are_at_least_one_and_never_all() {
        assert_eq!(holdout_count(128, 0.1), 13);
        assert_eq!(holdout_count(8, 0.01), 1);
        assert_eq!(holdout_count(7, 0.01), 0);
        assert_eq!(holdout_count(1, 0.9), 0);
        assert_eq!(holdout_count(100, 0.0), 0);
        assert_eq!(holdout_count(4, 0.99), 3);
    }

    #[test]
    fn one_source_keeps_its_order_whatever_the_seed() {
        for seed in 0..20 {
            let order = interleave(&[50], seed);
            assert!(order.iter().enumerate().all(|(i, &slot)| slot == (0, i)));
        }
    }

    proptest! {
        #[test]
        fn shares_add_up_and_are_within_one_of_exact(
            total in 0usize..5000, weights in prop::collection::vec(1e-3f64..1e3, 1..9)
        ) {
            let shares = apportion(total, &weights);
            let sum: f64 = weights.iter().sum();
            prop_assert_eq!(shares.iter().sum::<usize>(), total);
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert!((*share as f64 - total as f64 * weight / sum).abs() < 1.0 + 1e-9);
            }
        }

        #[test]
        fn interleaving_is_a_permutation_and_spreads_each_source(
            counts in prop::collection::vec(0usize..60, 1..6), seed: u64
        ) {
            let order = interleave(&counts, seed);
            let total = order.len();
            prop_assert_eq!(total, counts.iter().sum::<usize>());
            for (source, &count) in counts.iter().enumerate() {
                let mine: Vec<usize> = order.iter().filter(|s| s.0 == source).map(|s| s.1).collect();
                prop_assert_eq!(mine, (0..count).collect::<Vec<_>>());
                // Any head of the order holds its proportional share, give or take one window a source.
                let head = order[..total / 2].iter().filter(|s| s.0 == source).count() as f64;
                prop_assert!((head - count as f64 / 2.0).abs() <= 1.0 + counts.len() as f64);
            }
        }

        #[test]
        fn chosen_indices_rise_strictly_and_stay_inside(count in 0usize..200, more in 0usize..5000, seed: u64) {
            let total = count + more;
            for chosen in [evenly_inside(count, total), one_per_stretch(count, total, &mut SplitMix64::new(seed, 0))] {
                prop_assert_eq!(chosen.len(), count);
                prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]));
                prop_assert!(chosen.iter().all(|&i| i < total));
            }
        }
    }
}
