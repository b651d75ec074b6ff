use burn::prelude::*;
use halfbyte_checkpoint::{Dtype, ModelConfig, ModelFolder, TensorView};
use halfbyte_pack::{QuantizedLayout, read_quantization_config};
use halfbyte_quant::{CodedWeight, Coding};

use crate::block::Norm;
use crate::{Linear, ModelError};

/// A folder's tensors as a decoder wants them: linears dense or packed, norms, embedding, head.
#[derive(Debug)]
pub struct Weights {
    folder: ModelFolder,
    layout: Option<QuantizedLayout>,
}

impl Weights {
    /// Takes an opened folder, reading its quantization_config if it has one.
    pub fn new(folder: ModelFolder) -> Result<Self, ModelError> {
        let layout = match &folder.config().quantization_config {
            Some(config) => Some(
                read_quantization_config(config)
                    .map_err(|e| ModelError::QuantizationConfig(e.to_string()))?,
            ),
            None => None,
        };
        Ok(Self { folder, layout })
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        self.folder.config()
    }

    /// The folder read.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// How the folder's linears are packed, if it is a quantized one.
    pub fn layout(&self) -> Option<&QuantizedLayout> {
        self.layout.as_ref()
    }

    /// A linear's weight, `[out_features, in_features]` row-major, dequantized where it is packed.
    pub fn weight(&self, module: &str, shape: [usize; 2]) -> Result<Vec<f32>, ModelError> {
        let dense = format!("{module}.weight");
        // some formats keep codes under the weight's own name
        let stored = self.folder.tensor(&dense).map(|view| view.dtype);
        let is_float = matches!(stored, Ok(Dtype::F32 | Dtype::F16 | Dtype::BF16));
        match &self.layout {
            Some(_) if !is_float => Ok(self.quantized(module, shape)?.dequantize()),
            _ => Ok(self.folder.f32(&dense, &shape)?),
        }
    }

    /// How a linear is stored, if it is packed.
    pub fn coding(&self, module: &str) -> Result<Option<Coding>, ModelError> {
        match &self.layout {
            Some(layout) => Ok(layout.coding_for(module, |name| self.packed(name))?),
            None => Ok(None),
        }
    }

    /// A packed linear's codes.
    pub fn quantized(&self, module: &str, shape: [usize; 2]) -> Result<CodedWeight, ModelError> {
        let weight = match &self.layout {
            Some(layout) => layout.unpack(module, |name| self.packed(name))?,
            None => None,
        };
        let Some(weight) = weight else {
            return Err(ModelError::QuantizationConfig(format!(
                "{module} is not among the quantized modules"
            )));
        };
        if weight.shape() != shape {
            return Err(ModelError::Shape {
                module: module.to_owned(),
                found: weight.shape(),
                wanted: shape,
            });
        }
        Ok(weight)
    }

    fn packed(&self, name: &str) -> Option<halfbyte_pack::TensorView<'_>> {
        self.folder.tensor(name).ok().and_then(as_packed)
    }

    pub(crate) fn linear(
        &self,
        module: &str,
        shape: [usize; 2],
        device: &Device,
    ) -> Result<Linear, ModelError> {
        let bias = format!("{module}.bias");
        let bias = if self.folder.has(&bias) {
            Some(self.folder.f32(&bias, &shape[..1])?)
        } else {
            None
        };
        Ok(Linear::new(
            self.weight(module, shape)?,
            shape,
            bias,
            device,
        ))
    }

    pub(crate) fn norm(
        &self,
        name: &str,
        width: usize,
        device: &Device,
    ) -> Result<Norm, ModelError> {
        Ok(Norm::new(
            self.folder.f32(name, &[width])?,
            self.config().rms_norm_eps,
            device,
        ))
    }

    /// A tensor of one dimension, such as a norm's weight.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let shape = self.folder.tensor(name)?.shape.to_vec();
        Ok(self.folder.f32(name, &shape)?)
    }

    /// `[vocab_size, hidden_size]`: lm_head, or the embedding where the two are tied.
    pub(crate) fn head(&self) -> Result<Vec<f32>, ModelError> {
        let config = self.config();
        let name = if self.folder.has("lm_head.weight") {
            "lm_head.weight"
        } else {
            EMBEDDING
        };
        Ok(self
            .folder
            .f32(name, &[config.vocab_size, config.hidden_size])?)
    }

    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let (vocab_size, hidden) = (self.config().vocab_size, self.config().hidden_size);
        if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
            return Err(ModelError::TokenId {
                id: ids[position],
                position,
                vocab_size,
            });
        }
        Ok(self
            .folder
            .f32_rows(EMBEDDING, &[vocab_size, hidden], ids)?)
    }

    pub(crate) fn release(&self, prefix: &str) {
        self.folder
            .release(self.folder.names().filter(|n| n.starts_with(prefix)));
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

fn as_packed(view: TensorView<'_>) -> Option<halfbyte_pack::TensorView<'_>> {
    let dtype = match view.dtype {
        Dtype::F16 => halfbyte_pack::Dtype::F16,
        Dtype::BF16 => halfbyte_pack::Dtype::BF16,
        Dtype::F32 => halfbyte_pack::Dtype::F32,
        Dtype::I32 => halfbyte_pack::Dtype::I32,
        Dtype::I64 => halfbyte_pack::Dtype::I64,
        Dtype::U8 => halfbyte_pack::Dtype::U8,
        Dtype::I8 => halfbyte_pack::Dtype::I8,
        _ => return None,
    };
    Some(halfbyte_pack::TensorView {
        dtype,
        shape: view.shape,
        bytes: view.bytes,
    })
}
