use std::sync::Arc;

use burn::prelude::*;
use halfbyte_checkpoint::{Dtype, ModelConfig, ModelFolder, TensorView};
use halfbyte_kernels::PackedWeight;
use halfbyte_pack::{QuantizedLayout, read_quantization_config};
use halfbyte_quant::{CodedWeight, Coding};

use crate::block::{Norm, linear_shape};
use crate::linear::Form;
use crate::stored::StoredWeight;
use crate::{Execution, Linear, LinearKind, ModelError};

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

    /// Checks that what config.json calls for is there in its shape, before anything is allocated by its numbers: every tensor
    /// of floats by its header, and of codes those of the first block's q and k, which give the width and the heads away. All
    /// other codes are checked where they are read.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or of no floats where it must be.
    pub fn check(&self) -> Result<(), ModelError> {
        let has_codes = |name: &str| {
            let module = name.strip_suffix(".weight");
            module.is_some_and(|module| self.has_codes(module))
        };
        self.folder.check_tensors_but(&has_codes)?;
        for kind in [LinearKind::Q, LinearKind::K] {
            let module = kind.module(0);
            if self.has_codes(&module) {
                self.quantized(&module, linear_shape(self.config(), kind))?;
            }
        }
        Ok(())
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
        if self.has_codes(module) {
            Ok(self.quantized(module, shape)?.dequantize())
        } else {
            Ok(self.folder.f32(&format!("{module}.weight"), &shape)?)
        }
    }

    fn has_codes(&self, module: &str) -> bool {
        // some formats keep codes under the weight's own name
        let stored = self.folder.tensor(&format!("{module}.weight"));
        let is_float = matches!(
            stored.map(|view| view.dtype),
            Ok(Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
        );
        self.layout.is_some() && !is_float
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
        execution: Execution,
        device: &Device,
    ) -> Result<Linear, ModelError> {
        let bias = format!("{module}.bias");
        let bias = if self.folder.has(&bias) {
            Some(self.folder.f32(&bias, &shape[..1])?)
        } else {
            None
        };
        let (form, kept_dense) = match execution {
            Execution::Dense => {
                let weight = self.weight(module, shape)?;
                (Form::dense(weight, shape, device), None)
            }
            Execution::Packed if self.has_codes(module) => self.codes(module, shape, device)?,
            Execution::Packed => {
                let weight = self.stored(&format!("{module}.weight"), shape, device)?;
                (weight, None)
            }
        };
        Ok(Linear::of(form, bias, device).with_reason(kept_dense))
    }

    /// A packed linear's codes as the kernels multiply them, or its floats and why not.
    fn codes(
        &self,
        module: &str,
        shape: [usize; 2],
        device: &Device,
    ) -> Result<(Form, Option<String>), ModelError> {
        let (dense, reason) = match self.quantized(module, shape)? {
            CodedWeight::Grid(weight) => match PackedWeight::new(&weight) {
                Ok(packed) => {
                    let form =
                        Form::codes(packed, device).map_err(|source| ModelError::Kernel {
                            module: module.to_owned(),
                            source,
                        })?;
                    return Ok((form, None));
                }
                Err(error) => (weight.dequantize(), error.to_string()),
            },
            CodedWeight::Codebook(weight) => {
                let reason = format!("no kernel for {} codes", weight.codebook().as_str());
                (weight.dequantize(), reason)
            }
        };
        Ok((held(dense, shape, device), Some(reason)))
    }

    /// A float weight in its own type on the CPU, in f32 elsewhere.
    fn stored(&self, name: &str, shape: [usize; 2], device: &Device) -> Result<Form, ModelError> {
        let view = self.folder.tensor(name)?;
        if crate::is_host(device) && view.dtype == Dtype::BF16 && *view.shape == shape {
            let weight = StoredWeight::from_bf16(view.bytes, shape);
            if let Some(weight) = weight {
                return Ok(Form::Stored(Arc::new(weight)));
            }
        }
        Ok(held(self.folder.f32(name, &shape)?, shape, device))
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
    pub(crate) fn head(&self, execution: Execution, device: &Device) -> Result<Linear, ModelError> {
        let config = self.config();
        let name = if self.folder.has("lm_head.weight") {
            "lm_head.weight"
        } else {
            EMBEDDING
        };
        let shape = [config.vocab_size, config.hidden_size];
        let form = match execution {
            Execution::Dense => Form::dense(self.folder.f32(name, &shape)?, shape, device),
            Execution::Packed => self.stored(name, shape, device)?,
        };
        Ok(Linear::of(form, None, device))
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

/// A float weight as it is multiplied by a few tokens.
fn held(weight: Vec<f32>, shape: [usize; 2], device: &Device) -> Form {
    if crate::is_host(device) {
        Form::Stored(Arc::new(StoredWeight::from_f32(weight, shape)))
    } else {
        Form::dense(weight, shape, device)
    }
}

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
