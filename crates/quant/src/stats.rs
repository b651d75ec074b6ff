/// What was seen of one linear's input: the second moment that every solver here works from.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationStats {
    /// Width of the input, `in_features`.
    pub in_features: usize,
    /// Mean of `x xᵀ` over tokens, `[in_features, in_features]` row-major, both triangles filled.
    /// Solvers depend on it up to a factor only.
    pub hessian: Vec<f32>,
    /// Mean of `|x|` a channel, `[in_features]`.
    pub mean_abs: Vec<f32>,
    /// Tokens seen.
    pub n_tokens: u64,
}

impl ActivationStats {
    /// The statistics of white input, `H = I`: what remains to assume when no token was seen.
    pub fn identity(in_features: usize) -> Self {
        let mut hessian = vec![0.0; in_features * in_features];
        hessian
            .iter_mut()
            .step_by(in_features + 1)
            .for_each(|d| *d = 1.0);
        Self {
            in_features,
            hessian,
            mean_abs: vec![1.0; in_features],
            n_tokens: 0,
        }
    }
}
