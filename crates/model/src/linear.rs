use std::sync::{Arc, OnceLock};

use burn::prelude::*;
use burn::tensor::DType;
use halfbyte_kernels::bf16::{self, Bf16Matrix};
use halfbyte_kernels::{DeviceWeight, KernelError, PackedWeight};

use crate::host;
use crate::stored::StoredWeight;

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

/// How weights are held once they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Execution {
    /// All in f32: for statistics, derivatives and long windows.
    #[default]
    Dense,
    /// As small as they are stored, for decoding: codes where the kernels take them, 16 bits on the CPU where the
    /// checkpoint has bf16.
    Packed,
}

/// `y = x Wᵀ + b`, with the weight kept `[out_features, in_features]` as in checkpoints (burn's own `Linear` keeps
/// the transpose; the product runs as fast on a transposed view). The weight is dense or packed.
#[derive(Clone, Debug)]
pub struct Linear {
    form: Form,
    bias: Option<Tensor<1>>,
    device: Device,
    kept_dense: Option<String>,
}

/// What a weight is multiplied by.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "seven a block, never moved about"
)]
pub(crate) enum Form {
    /// f32, for products of any size and for derivatives.
    Dense(Tensor<2>),
    /// On the CPU rounded to bf16, as are the activations: for derivatives where that is quicker.
    Rounded(Arc<RoundedWeight>),
    /// On the CPU as the checkpoint has it, for products with a few tokens.
    Stored(Arc<StoredWeight>),
    /// Codes on the CPU.
    Codes(Arc<PackedWeight>),
    /// Codes on a wgpu device.
    DeviceCodes {
        weight: Box<DeviceWeight>,
        /// Tokens whose activations and results fit a binding.
        tokens_at_once: usize,
    },
}

impl Form {
    pub(crate) fn dense(weight: Vec<f32>, shape: [usize; 2], device: &Device) -> Self {
        Self::Dense(Tensor::from_data(TensorData::new(weight, shape), device))
    }

    /// The codes where `device` computes; the first on a GPU has it tested.
    pub(crate) fn codes(packed: PackedWeight, device: &Device) -> Result<Self, KernelError> {
        if crate::is_host(device) {
            return Ok(Self::Codes(Arc::new(packed)));
        }
        let weight = DeviceWeight::upload(&packed, device)?;
        let widest = weight.out_features().max(weight.in_features()).div_ceil(4) * 4;
        let limit = weight.capabilities().binding_bytes;
        let tokens_at_once = limit / (4 * widest as u64);
        if tokens_at_once == 0 {
            return Err(KernelError::TooLarge {
                what: "a token's activations",
                bytes: 4 * widest as u64,
                limit,
            });
        }
        Ok(Self::DeviceCodes {
            weight: Box::new(weight),
            tokens_at_once: tokens_at_once as usize,
        })
    }

    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Rounded(weight) => weight.shape(),
            Self::Stored(weight) => weight.shape(),
            Self::Codes(weight) => [weight.out_features(), weight.in_features()],
            Self::DeviceCodes { weight, .. } => [weight.out_features(), weight.in_features()],
        }
    }

    /// `x Wᵀ`, `[tokens, in_features]` to `[tokens, out_features]`.
    fn multiply(&self, x: Tensor<2>) -> Tensor<2> {
        let ([out, _], [tokens, _]) = (self.shape(), x.dims());
        match self {
            Self::Dense(weight) => x.matmul(weight.clone().transpose()),
            Self::Rounded(weight) => {
                let x = Bf16Matrix::from_rows(&host::taken(x), weight.rows.depth());
                host_tensor(x.products(&weight.rows), [tokens, out])
            }
            Self::Stored(weight) if tokens > STORED_TOKENS => x.matmul(dense(weight).transpose()),
            Self::Stored(weight) => {
                let y = weight.multiply(&host::taken(x));
                host_tensor(y, [tokens, out])
            }
            Self::Codes(weight) => {
                let y = weight.multiply(&host::taken(x));
                let y = y.unwrap_or_else(|e| unreachable!("x has the weight's columns: {e}"));
                host_tensor(y, [tokens, out])
            }
            Self::DeviceCodes {
                weight,
                tokens_at_once,
            } => {
                let parts = (0..tokens).step_by(*tokens_at_once).map(|first| {
                    let some = (*tokens_at_once).min(tokens - first);
                    let y = weight.multiply(x.clone().narrow(0, first, some));
                    y.unwrap_or_else(|e| unreachable!("width, type and size were seen to: {e}"))
                });
                Tensor::cat(parts.collect(), 0)
            }
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Dense(weight) => 4 * weight.dims().iter().product::<usize>() as u64,
            Self::Rounded(weight) => weight.bytes(),
            Self::Stored(weight) => weight.bytes(),
            Self::Codes(weight) => weight.bytes(),
            Self::DeviceCodes { weight, .. } => weight.bytes(),
        }
    }
}

/// A weight in bf16, for sums over its columns and, once they are wanted, over its rows.
#[derive(Debug)]
pub(crate) struct RoundedWeight {
    rows: Bf16Matrix,
    columns: OnceLock<Bf16Matrix>,
}

impl RoundedWeight {
    fn new(weight: Tensor<2>) -> Self {
        let [_, columns] = weight.dims();
        Self {
            rows: Bf16Matrix::from_rows(&host::taken(weight), columns),
            columns: OnceLock::new(),
        }
    }

    fn shape(&self) -> [usize; 2] {
        [self.rows.rows(), self.rows.depth()]
    }

    fn columns(&self) -> &Bf16Matrix {
        self.columns.get_or_init(|| self.rows.transposed())
    }

    fn bytes(&self) -> u64 {
        self.rows.bytes() + self.columns.get().map_or(0, Bf16Matrix::bytes)
    }
}

fn host_tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Tokens up to which a stored weight is read as it is; for more it is turned into f32, once for all of them.
const STORED_TOKENS: usize = 32;

fn dense(weight: &StoredWeight) -> Tensor<2> {
    host_tensor(weight.to_f32(), weight.shape())
}

impl Linear {
    /// Takes a weight `[out_features, in_features]`, row-major, and a bias `[out_features]`.
    pub fn new(
        weight: Vec<f32>,
        shape: [usize; 2],
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Self {
        Self::of(Form::dense(weight, shape, device), bias, device)
    }

    pub(crate) fn of(form: Form, bias: Option<Vec<f32>>, device: &Device) -> Self {
        let [out, _] = form.shape();
        Self {
            form,
            bias: bias.map(|b| Tensor::from_data(TensorData::new(b, [out]), device)),
            device: device.clone(),
            kept_dense: None,
        }
    }

    /// The same, with the reason why codes are not multiplied as they are.
    pub(crate) fn with_reason(self, kept_dense: Option<String>) -> Self {
        Self { kept_dense, ..self }
    }

    /// `[windows, tokens, in_features]` to `[windows, tokens, out_features]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [windows, tokens, features] = x.dims();
        let y = self.form.multiply(x.reshape([windows * tokens, features]));
        let y = match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        };
        let out = self.out_features();
        y.reshape([windows, tokens, out])
    }

    /// From a derivative with regard to the output to that with regard to the input, both `[windows, tokens, features]`.
    pub(crate) fn back(&self, d: Tensor<3>) -> Tensor<3> {
        let [windows, tokens, out] = d.dims();
        let d = d.reshape([windows * tokens, out]);
        let dx = match &self.form {
            Form::Rounded(weight) => {
                let d = Bf16Matrix::from_rows(&host::taken(d), out);
                let shape = [windows * tokens, self.in_features()];
                host_tensor(d.products(weight.columns()), shape)
            }
            _ => d.matmul(self.weight()),
        };
        dx.reshape([windows, tokens, self.in_features()])
    }

    /// The derivative with regard to the weight, `[out_features, in_features]`, from that with regard to the output and
    /// from the input.
    pub(crate) fn weight_gradient(&self, d: Tensor<3>, x: Tensor<3>) -> Tensor<2> {
        fn flat(t: Tensor<3>) -> Tensor<2> {
            let [windows, tokens, features] = t.dims();
            t.reshape([windows * tokens, features])
        }
        let (d, x) = (flat(d), flat(x));
        if !matches!(self.form, Form::Rounded(_)) {
            return d.transpose().matmul(x);
        }
        let shape = [self.out_features(), self.in_features()];
        let [d, x] = [(d, shape[0]), (x, shape[1])]
            .map(|(t, features)| Bf16Matrix::from_columns(&host::taken(t), features));
        host_tensor(d.products(&x), shape)
    }

    /// Multiplies numbers rounded to bf16 from now on, forward and back, where a dense weight's products are made on a CPU
    /// that is quicker at those; sums are in f32. Elsewhere nothing changes.
    pub(crate) fn round(&mut self) {
        if let Form::Dense(weight) = &mut self.form
            && host::is_host(weight)
            && bf16::is_at_hand()
        {
            // taken out, so that a head of a large vocabulary is not copied first
            let weight = std::mem::replace(weight, Tensor::empty([0, 0], &self.device));
            self.form = Form::Rounded(Arc::new(RoundedWeight::new(weight)));
        }
    }

    /// Rows of the weight.
    pub fn out_features(&self) -> usize {
        self.form.shape()[0]
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.form.shape()[1]
    }

    /// Bytes the weight takes where it is held, the bias left out.
    pub fn bytes(&self) -> u64 {
        self.form.bytes()
    }

    /// Whether codes are multiplied as they are.
    pub fn is_packed(&self) -> bool {
        matches!(self.form, Form::Codes(_) | Form::DeviceCodes { .. })
    }

    /// Why a linear that the checkpoint has as codes is held dense though [`Execution::Packed`] was asked for.
    pub fn kept_dense(&self) -> Option<&str> {
        self.kept_dense.as_deref()
    }

    /// The weight in f32, `[out_features, in_features]`.
    pub(crate) fn weight(&self) -> Tensor<2> {
        match &self.form {
            Form::Dense(weight) => weight.clone(),
            Form::Rounded(weight) => host_tensor(weight.rows.to_rows(), weight.shape()),
            Form::Stored(weight) => dense(weight),
            Form::Codes(weight) => {
                let data = TensorData::new(weight.dequantize(), self.form.shape());
                Tensor::from_data(data, &self.device)
            }
            Form::DeviceCodes { weight, .. } => {
                let weight = weight.dequantize(DType::F32);
                weight.unwrap_or_else(|e| unreachable!("f32 is what the kernels compute in: {e}"))
            }
        }
    }

    /// The same in place, dense from now on.
    pub(crate) fn weight_mut(&mut self) -> &mut Tensor<2> {
        if !matches!(self.form, Form::Dense(_)) {
            self.form = Form::Dense(self.weight());
        }
        match &mut self.form {
            Form::Dense(weight) => weight,
            _ => unreachable!("made dense above"),
        }
    }

    /// Replaces the weight, `[out_features, in_features]` row-major; the bias stays.
    pub fn set_weight(&mut self, weight: Vec<f32>) {
        self.form = Form::dense(weight, self.form.shape(), &self.device);
    }

    /// Replaces the bias, `[out_features]`; the weight stays.
    pub fn set_bias(&mut self, bias: Vec<f32>) {
        let data = TensorData::new(bias, [self.out_features()]);
        self.bias = Some(Tensor::from_data(data, &self.device));
    }
}
