/// What one token's two distributions came to; natural logarithms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// `-ln p(target)` by the reference.
    pub nll_reference: f64,
    /// `-ln q(target)` by the model judged.
    pub nll: f64,
    /// `KL(p || q) = Σ p (ln p - ln q)`.
    pub kl: f64,
    /// The token the reference finds likeliest.
    pub top_reference: usize,
    /// The token the model judged finds likeliest.
    pub top: usize,
}

impl TokenScore {
    /// Whether both find the same token likeliest.
    pub fn same_top(&self) -> bool {
        self.top_reference == self.top
    }
}

/// Compares a reference's logits with a model's, both `[vocab_size]`, at a token whose successor is `target`.
pub fn compare(reference: &[f32], logits: &[f32], target: usize) -> TokenScore {
    let (p, q) = (Normalized::of(reference), Normalized::of(logits));
    let mut sum = 0.0;
    for (a, b) in reference.chunks(1024).zip(logits.chunks(1024)) {
        let part: f32 = a
            .iter()
            .zip(b)
            .map(|(a, b)| {
                let (a, b) = (a - p.max, b - q.max);
                a.exp() * (a - b)
            })
            .sum();
        sum += f64::from(part);
    }
    // Σ p (ln p - ln q) = Σ p (a - b) - ln Zp + ln Zq; rounding can leave a hair below zero.
    let kl = (sum / p.sum - p.sum.ln() + q.sum.ln()).max(0.0);
    TokenScore {
        nll_reference: p.nll(reference, target),
        nll: q.nll(logits, target),
        kl,
        top_reference: p.top,
        top: q.top,
    }
}

/// `-ln p(target)` alone.
pub fn score(logits: &[f32], target: usize) -> f64 {
    Normalized::of(logits).nll(logits, target)
}

struct Normalized {
    max: f32,
    top: usize,
    sum: f64,
}

impl Normalized {
    fn of(logits: &[f32]) -> Self {
        let mut max = f32::NEG_INFINITY;
        for &x in logits {
            max = if x > max { x } else { max };
        }
        let top = logits.iter().position(|&x| x == max).unwrap_or(0);
        let sum = logits
            .chunks(1024)
            .map(|c| f64::from(c.iter().map(|x| (x - max).exp()).sum::<f32>()))
            .sum();
        Self { max, top, sum }
    }

    fn nll(&self, logits: &[f32], target: usize) -> f64 {
        f64::from(self.max) - f64::from(logits[target]) + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        logits.iter().map(|x| f64::from(*x).exp() / sum).collect()
    }

    #[test]
    fn matches_the_definition_in_f64() {
        let a: Vec<f32> = (0..3001)
            .map(|i| ((i * 37) % 101) as f32 / 17.0 - 3.0)
            .collect();
        let b: Vec<f32> = a
            .iter()
            .enumerate()
            .map(|(i, x)| x + ((i * 13) % 7) as f32 / 20.0)
            .collect();
        let (p, q) = (naive(&a), naive(&b));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let found = compare(&a, &b, 11);
        assert!((found.kl - kl).abs() < 1e-6, "{} is not {kl}", found.kl);
        assert!((found.nll + q[11].ln()).abs() < 1e-5);
        assert!((found.nll_reference + p[11].ln()).abs() < 1e-5);
        assert!((score(&b, 11) - found.nll).abs() < 1e-12);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let a: Vec<f32> = (0..500).map(|i| (i as f32).sin() * 30.0).collect();
        let found = compare(&a, &a, 3);
        assert_eq!((found.kl, found.same_top()), (0.0, true));
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let found = compare(&[900.0, 0.0], &[0.0, 900.0], 0);
        assert_eq!(
            (found.nll_reference, found.nll, found.kl),
            (0.0, 900.0, 900.0)
        );
        assert_eq!((found.top_reference, found.top), (0, 1));
        assert!(!found.same_top());
    }
}
