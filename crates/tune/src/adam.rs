/// One tensor's factors `1 + θ` on what it was, with Adam's two moments (arXiv 1412.6980, algorithm 1).
///
/// Steps are relative, so one learning rate suits scales and norms of any size.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    base: Vec<f32>,
    theta: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
    gradient: Vec<f32>,
}

const MEAN_DECAY: f32 = 0.9;
const SQUARE_DECAY: f32 = 0.95;

impl Factors {
    pub(crate) fn new(base: Vec<f32>) -> Self {
        let zeros = vec![0.0; base.len()];
        Self {
            theta: zeros.clone(),
            mean: zeros.clone(),
            square: zeros.clone(),
            gradient: zeros,
            base,
        }
    }

    /// What the tensor is now.
    pub(crate) fn values(&self) -> Vec<f32> {
        let pairs = self.base.iter().zip(&self.theta);
        pairs.map(|(base, theta)| base * (1.0 + theta)).collect()
    }

    /// The factors, to come back to.
    pub(crate) fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// Goes back to saved factors.
    pub(crate) fn set_theta(&mut self, theta: &[f32]) {
        self.theta.copy_from_slice(theta);
    }

    /// Adds a derivative with regard to the tensor.
    pub(crate) fn add_gradient(&mut self, gradient: &[f32]) {
        let pairs = self.gradient.iter_mut().zip(gradient).zip(&self.base);
        pairs.for_each(|((sum, g), base)| *sum += g * base);
    }

    /// Takes step `step` (1 for the first) of size `rate` along the gradient added since the last one.
    ///
    /// The usual `ε` is a share of the tensor's own mean second moment: factors that the loss hardly feels move little
    /// instead of wandering at full step.
    pub(crate) fn step(&mut self, step: i32, rate: f32, damping: f32) {
        let (mean_left, square_left) = (1.0 - MEAN_DECAY.powi(step), 1.0 - SQUARE_DECAY.powi(step));
        for ((m, v), g) in self
            .mean
            .iter_mut()
            .zip(&mut self.square)
            .zip(&self.gradient)
        {
            *m = MEAN_DECAY * *m + (1.0 - MEAN_DECAY) * g;
            *v = SQUARE_DECAY * *v + (1.0 - SQUARE_DECAY) * g * g;
        }
        let total: f64 = self.square.iter().map(|v| f64::from(*v)).sum();
        let typical = (total / self.square.len().max(1) as f64) as f32 / square_left;
        let epsilon = damping * typical.sqrt() + f32::MIN_POSITIVE;
        for ((theta, m), v) in self.theta.iter_mut().zip(&self.mean).zip(&self.square) {
            *theta -= rate * (m / mean_left) / ((v / square_left).sqrt() + epsilon);
        }
        self.gradient.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_the_rate_against_the_gradients_sign() {
        let mut factors = Factors::new(vec![2.0, 4.0]);
        factors.add_gradient(&[3.0, -3.0]);
        factors.step(1, 0.01, 0.0);
        let values = factors.values();
        assert!((values[0] - 2.0 * 0.99).abs() < 1e-5 && (values[1] - 4.0 * 1.01).abs() < 1e-5);
    }

    #[test]
    fn steps_find_the_minimum_of_a_bowl() {
        let mut factors = Factors::new(vec![1.0, 10.0]);
        for step in 1..400 {
            let now = factors.values();
            factors.add_gradient(&[now[0] - 1.05, 0.1 * (now[1] - 9.8)]);
            factors.step(step, 0.002, 0.1);
        }
        let found = factors.values();
        assert!(
            (found[0] - 1.05).abs() < 5e-3 && (found[1] - 9.8).abs() < 5e-2,
            "{found:?}"
        );
    }
}
