use burn::prelude::*;

/// The seven linears of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinearKind {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// The gate of the MLP.
    Gate,
    /// What the gate multiplies.
    Up,
    /// The MLP's output.
    Down,
}

impl LinearKind {
    /// All seven, in the order they are solved.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The checkpoint's name inside a block, such as `self_attn.q_proj`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last part of the path, such as `q_proj`.
    pub fn short(self) -> &'static str {
        self.path().rsplit('.').next().unwrap_or_default()
    }

    /// The module path in the checkpoint, such as `model.layers.3.mlp.up_proj`.
    pub fn module(self, block: usize) -> String {
        format!("model.layers.{block}.{}", self.path())
    }
}

/// `y = x Wᵀ + b`, with the weight kept `[out_features, in_features]` as in checkpoints (burn's own `Linear` keeps
/// the transpose; the product runs as fast on a transposed view).
#[derive(Clone, Debug)]
pub struct Linear {
    pub(crate) weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    /// Takes a weight `[out_features, in_features]`, row-major, and a bias `[out_features]`.
    pub fn new(
        weight: Vec<f32>,
        [out, in_]: [usize; 2],
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Self {
        let bias = bias.map(|b| Tensor::from_data(TensorData::new(b, [out]), device));
        Self {
            weight: Tensor::from_data(TensorData::new(weight, [out, in_]), device),
            bias,
        }
    }

    /// `[windows, tokens, in_features]` to `[windows, tokens, out_features]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [windows, tokens, features] = x.dims();
        let y = x
            .reshape([windows * tokens, features])
            .matmul(self.weight.clone().transpose());
        let y = match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        };
        let out = self.out_features();
        y.reshape([windows, tokens, out])
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Replaces the weight, `[out_features, in_features]` row-major; the bias stays.
    pub fn set_weight(&mut self, weight: Vec<f32>) {
        self.weight = Tensor::from_data(
            TensorData::new(weight, self.weight.dims()),
            &self.weight.device(),
        );
    }

    /// Replaces the bias, `[out_features]`; the weight stays.
    pub fn set_bias(&mut self, bias: Vec<f32>) {
        let data = TensorData::new(bias, [self.out_features()]);
        self.bias = Some(Tensor::from_data(data, &self.weight.device()));
    }
}
