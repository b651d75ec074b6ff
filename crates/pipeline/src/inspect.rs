//! What a model folder holds, tensor by tensor.

use std::fmt;

use anyhow::Result;
use halfbyte_pack::{QuantizedLayout, consumers, read_quantization_config};
use serde::Serialize;

use crate::open::open_model;

/// A model folder's contents.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Where it lies.
    pub model: String,
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Parameters of all float tensors, and of packed linears as dense ones.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The quantized format, if it is one.
    pub format: Option<String>,
    /// How many linears have which scheme, as `4-bit group 64 sym`.
    pub schemes: Vec<(String, usize)>,
    /// Which consumers load it.
    pub consumers: Vec<(String, String)>,
    /// Every tensor in the files' order.
    pub tensors: Vec<TensorLine>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

/// Lists a model folder, a hub id or `embedded:tiny`.
pub fn inspect(model: &str) -> Result<Inspection> {
    let folder = open_model(model, None, &mut |_| ())?;
    let config = folder.config();
    let layout: Option<QuantizedLayout> = config
        .quantization_config
        .as_ref()
        .map(read_quantization_config)
        .transpose()?;
    let mut inspection = Inspection {
        model: folder.place(),
        model_type: config.row().model_type.to_owned(),
        parameters: 0,
        bytes: 0,
        format: layout.as_ref().map(|l| l.format().to_string()),
        schemes: Vec::new(),
        consumers: Vec::new(),
        tensors: Vec::new(),
    };
    for name in folder.names() {
        let view = folder.tensor(name)?;
        let elements: u64 = view.shape.iter().map(|&n| n as u64).product();
        let packed = layout.is_some() && PACKED_PARTS.iter().any(|part| name.ends_with(part));
        inspection.parameters += if packed { 0 } else { elements };
        inspection.bytes += view.bytes.len() as u64;
        inspection.tensors.push(TensorLine {
            name: name.to_owned(),
            dtype: format!("{:?}", view.dtype),
            shape: view.shape.to_vec(),
            bytes: view.bytes.len() as u64,
        });
    }
    if let Some(layout) = &layout {
        for block in 0..config.num_hidden_layers {
            for kind in halfbyte_model::LinearKind::ALL {
                let Some(scheme) = layout.scheme_for(&kind.module(block)) else {
                    continue;
                };
                let [out, in_] = halfbyte_model::linear_shape(config, kind);
                inspection.parameters += (out * in_) as u64;
                let words = describe(&scheme);
                match inspection
                    .schemes
                    .iter_mut()
                    .find(|(known, _)| *known == words)
                {
                    Some((_, count)) => *count += 1,
                    None => {
                        inspection.schemes.push((words, 1));
                        let verdicts = consumers(layout.format(), &scheme);
                        let lines = verdicts
                            .into_iter()
                            .map(|(c, verdict, _)| (c.name.to_owned(), verdict.to_string()));
                        inspection.consumers.extend(lines);
                    }
                }
            }
        }
    }
    Ok(inspection)
}

/// What a packed linear's tensors end in.
const PACKED_PARTS: [&str; 8] = [
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_zero_point",
    ".weight_shape",
];

/// A scheme in words.
pub(crate) fn describe(scheme: &halfbyte_quant::Scheme) -> String {
    let sym = if scheme.sym() { "sym" } else { "asym" };
    format!("{}-bit group {} {sym}", scheme.bits(), scheme.group_size())
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, {} parameters, {} bytes",
            self.model, self.model_type, self.parameters, self.bytes
        )?;
        if let Some(format) = &self.format {
            let schemes: Vec<String> = self
                .schemes
                .iter()
                .map(|(s, n)| format!("{n} linears {s}"))
                .collect();
            writeln!(f, "quantized as {format}: {}", schemes.join(", "))?;
        }
        for (consumer, verdict) in &self.consumers {
            writeln!(f, "  {consumer}: {verdict}")?;
        }
        let width = self.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
        for tensor in &self.tensors {
            writeln!(
                f,
                "{:width$}  {:5} {:?} {} bytes",
                tensor.name, tensor.dtype, tensor.shape, tensor.bytes
            )?;
        }
        Ok(())
    }
}
