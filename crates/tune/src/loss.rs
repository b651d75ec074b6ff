use rayon::prelude::*;

/// Sums KL(softmax(p) || softmax(q)) over the first `real` rows of `vocab` logits, in nats, and turns `q` into the
/// derivative of `scale` times that sum with regard to it, `scale (softmax(q) − softmax(p))`; rows past `real` become 0.
pub(crate) fn divergence(p: &[f32], q: &mut [f32], vocab: usize, real: usize, scale: f32) -> f64 {
    q.par_chunks_mut(vocab)
        .zip(p.par_chunks(vocab))
        .enumerate()
        .map(|(row, (q, p))| {
            if row >= real {
                q.fill(0.0);
                return 0.0;
            }
            let (p_max, p_log) = log_total(p);
            let (q_max, q_log) = log_total(q);
            let mut sum = 0.0f64;
            for (q, p) in q.iter_mut().zip(p) {
                let (log_p, log_q) = (p - p_max - p_log, *q - q_max - q_log);
                let (p, now) = (log_p.exp(), log_q.exp());
                sum += f64::from(p * (log_p - log_q));
                *q = scale * (now - p);
            }
            sum
        })
        .collect::<Vec<f64>>()
        .iter()
        .sum()
}

/// The largest logit, and the logarithm of `Σ exp(x − max)`.
fn log_total(logits: &[f32]) -> (f32, f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    (max, total.ln() as f32)
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
    fn equal_logits_cost_nothing_and_padding_is_left_out() {
        let p: Vec<f32> = vec![0.1, 1.3, 5.0, 6.0];
        let mut q = vec![0.1, 1.3, -5.0, 6.0];
        assert!(divergence(&p, &mut q, 2, 1, 1.0).abs() < 1e-7);
        assert!(q.iter().all(|g| g.abs() < 1e-7));
    }
}
