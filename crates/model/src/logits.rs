//! Rows of logits, compared and probed: on the host, one pass after another over memory, with vector exponentials.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::host::{LANES, exp, softmax_row};

/// Lane sums are added to a total in f64 after so many steps.
const STEPS: usize = 64;

/// Sums KL(softmax(p) || softmax(q)) over the first `real` rows of `vocab` logits, in nats, and turns `q` into the
/// derivative of `scale` times that sum with regard to it, `scale (softmax(q) − softmax(p))`; rows past `real` become 0.
///
/// The same bits come out on any number of threads. Logits that are not finite give a sum that is not.
pub fn divergence(p: &[f32], q: &mut [f32], vocab: usize, real: usize, scale: f32) -> f64 {
    let arch = Arch::new();
    q.par_chunks_mut(vocab)
        .zip(p.par_chunks(vocab))
        .enumerate()
        .map(|(row, (q, p))| {
            if row >= real {
                q.fill(0.0);
                return 0.0;
            }
            arch.dispatch(Divergence { p, q, scale })
        })
        .collect::<Vec<f64>>()
        .iter()
        .sum()
}

struct Divergence<'a> {
    p: &'a [f32],
    q: &'a mut [f32],
    scale: f32,
}

impl NullaryFnOnce for Divergence<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let (p_max, p_log) = log_total(self.p);
        let (q_max, q_log) = log_total(self.q);
        if !(p_max + p_log + q_max + q_log).is_finite() {
            self.q.fill(f32::NAN);
            return f64::NAN;
        }
        let of_one = |p: f32, q: &mut f32| {
            let (log_p, log_q) = (p - p_max - p_log, *q - q_max - q_log);
            let (p, now) = (exp(log_p), exp(log_q));
            *q = self.scale * (now - p);
            p * (log_p - log_q)
        };
        let (p, p_rest) = self.p.as_chunks::<LANES>();
        let (q, q_rest) = self.q.as_chunks_mut::<LANES>();
        let mut total = 0.0f64;
        for (p, q) in p.chunks(STEPS).zip(q.chunks_mut(STEPS)) {
            let mut sums = [0.0f32; LANES];
            for (p, q) in p.iter().zip(q) {
                for l in 0..LANES {
                    sums[l] += of_one(p[l], &mut q[l]);
                }
            }
            total += sums.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        for (p, q) in p_rest.iter().zip(q_rest) {
            total += f64::from(of_one(*p, q));
        }
        total
    }
}

/// The largest logit, and the logarithm of `Σ exp(x − max)`.
#[inline(always)]
fn log_total(logits: &[f32]) -> (f32, f32) {
    let (whole, rest) = logits.as_chunks::<LANES>();
    let mut max = [f32::NEG_INFINITY; LANES];
    for x in whole {
        for l in 0..LANES {
            max[l] = max[l].max(x[l]);
        }
    }
    let max = max.iter().chain(rest).copied();
    let max = max.fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0f64;
    for whole in whole.chunks(STEPS) {
        let mut sums = [0.0f32; LANES];
        for x in whole {
            for l in 0..LANES {
                sums[l] += exp(x[l] - max);
            }
        }
        total += sums.iter().map(|x| f64::from(*x)).sum::<f64>();
    }
    total += rest.iter().map(|x| f64::from(exp(x - max))).sum::<f64>();
    (max, total.ln() as f32)
}

/// Turns a row of logits into a random vector whose second moment is their Fisher information `diag(p) − p pᵀ`:
/// `√p ∘ ε − p (√p · ε)` with signs `ε` from `bits`, 64 at a time.
///
/// The derivative of `log p(y)` for a token `y` drawn from `p` has the same second moment, but where the model is sure it
/// is nothing nearly always and then, for a rare `y`, large: over a few ten thousand tokens a few decide. Here every token
/// weighs in with what it has.
pub fn fisher_probe(logits: &mut [f32], mut bits: impl FnMut() -> u64) {
    softmax(logits);
    let mut sum = 0.0f64;
    for p in logits.chunks_mut(64) {
        let drawn = bits();
        for (at, p) in p.iter_mut().enumerate() {
            *p = sign(drawn, at) * p.sqrt();
        }
        sum += f64::from(p.iter().sum::<f32>());
    }
    let sum = sum as f32;
    logits.iter_mut().for_each(|s| *s -= *s * *s * sum);
}

/// Turns a row of logits into the probabilities they stand for.
pub fn softmax(logits: &mut [f32]) {
    Arch::new().dispatch(Softmax(logits));
}

/// 1 or −1.
fn sign(bits: u64, at: usize) -> f32 {
    1.0 - 2.0 * ((bits >> at) & 1) as f32
}

struct Softmax<'a>(&'a mut [f32]);

impl NullaryFnOnce for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        softmax_row(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivative_is_that_of_the_divergence() {
        let p: Vec<f32> = vec![0.1, 1.3, -0.4, 0.2, 2.0, 0.0];
        let q: Vec<f32> = vec![0.5, 1.0, -0.9, 1.2, 1.1, 0.3];
        let at = |q: &[f32]| divergence(&p, &mut q.to_vec(), 3, 2, 1.0);
        let mut gradient = q.clone();
        divergence(&p, &mut gradient, 3, 2, 1.0);
        for i in 0..q.len() {
            let moved = |by: f32| {
                let mut q = q.clone();
                q[i] += by;
                at(&q)
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[i])).abs() < 1e-3,
                "{i}: {slope}, {}",
                gradient[i]
            );
        }
    }

    #[test]
    fn long_rows_give_what_f64_gives() {
        let vocab = 5003;
        let row = |by: f32| -> Vec<f32> {
            (0..vocab)
                .map(|i| 8.0 * (i as f32 * by).sin() + (i % 7) as f32)
                .collect()
        };
        let (p, q) = (row(0.731), row(0.735));
        let shares = |x: &[f32]| -> Vec<f64> {
            let all: Vec<f64> = x.iter().map(|x| f64::from(*x).exp()).collect();
            let total: f64 = all.iter().sum();
            all.into_iter().map(|x| x / total).collect()
        };
        let (p_share, q_share) = (shares(&p), shares(&q));
        let both = || p_share.iter().zip(&q_share);
        let wanted: f64 = both().map(|(p, q)| p * (p / q).ln()).sum();
        let mut gradient = q.clone();
        let found = divergence(&p, &mut gradient, vocab, 1, 0.5);
        assert!((found / wanted - 1.0).abs() < 1e-5, "{found} {wanted}");
        for (found, (p, q)) in gradient.iter().zip(both()) {
            let wanted = 0.5 * (q - p);
            assert!((f64::from(*found) - wanted).abs() < 1e-6 * p.max(*q));
        }
    }

    #[test]
    fn equal_logits_cost_nothing_and_padding_is_left_out() {
        let p: Vec<f32> = vec![0.1, 1.3, 5.0, 6.0];
        let mut q = vec![0.1, 1.3, -5.0, 6.0];
        assert!(divergence(&p, &mut q, 2, 1, 1.0).abs() < 1e-7);
        assert!(q.iter().all(|g| g.abs() < 1e-7));
    }

    #[test]
    fn logits_that_are_not_finite_are_told() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut q = vec![0.0; 40];
            q[17] = wrong;
            assert!(!divergence(&[0.0; 40], &mut q.clone(), 40, 1, 1.0).is_finite());
            assert!(!divergence(&q, &mut [0.0; 40], 40, 1, 1.0).is_finite());
        }
    }

    #[test]
    fn the_probes_second_moment_is_the_fisher_information() {
        let logits = [0.0f32, 1.0, 2.0, -1.0, 4.0];
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let p = logits.map(|x| f64::from(x).exp() / total);
        // all signs there are
        let probes: Vec<[f32; 5]> = (0..32)
            .map(|bits| {
                let mut probe = logits;
                fisher_probe(&mut probe, || bits);
                probe
            })
            .collect();
        for i in 0..5 {
            for j in 0..5 {
                let each = probes.iter().map(|g| f64::from(g[i]) * f64::from(g[j]));
                let found = each.sum::<f64>() / 32.0;
                let wanted = if i == j { p[i] } else { 0.0 } - p[i] * p[j];
                assert!((found - wanted).abs() < 1e-6, "{i}, {j}: {found} {wanted}");
            }
        }
    }

    #[test]
    fn every_token_has_a_sign_of_its_own() {
        let mut words = [0u64, u64::MAX, 1].into_iter();
        let mut probe = vec![0.0f32; 130];
        fisher_probe(&mut probe, || words.next().unwrap());
        assert_eq!(words.next(), None);
        let signs: Vec<bool> = probe.iter().map(|g| *g > 0.0).collect();
        let wanted = (0..130).map(|i| i < 64 || i == 129);
        assert!(signs.into_iter().eq(wanted));
    }
}
