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
    /// What the float model has in its place, where both were walked.
    pub cross: Option<CrossStats>,
}

/// How a linear's input `x` in the quantized model goes with what the float model has there.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossStats {
    /// Mean of `(x_float − x) xᵀ` over tokens, `[in_features, in_features]` row-major, not symmetric.
    pub input: Vec<f32>,
    /// Mean of `(h_float − h) xᵀ`, `[out_features, in_features]` row-major, for the residual stream `h` that the output
    /// is added to; none where it is not added to it.
    pub stream: Option<Vec<f32>>,
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
            cross: None,
        }
    }
}
