//! What a model folder holds, tensor by tensor.

use std::collections::HashSet;
use std::fmt;

use anyhow::Result;
use halfbyte_model::{LinearKind, Weights, linear_shape};
use halfbyte_quant::Coding;
use halfbyte_report::bytes;
use serde::Serialize;

use crate::consumers::{self, ConsumerLine};
use crate::event::Event;
use crate::export::module_of;
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
    pub consumers: Vec<ConsumerLine>,
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
pub fn inspect(model: &str, on_event: &mut dyn FnMut(Event)) -> Result<Inspection> {
    let weights = Weights::new(open_model(model, None, on_event)?)?;
    let (folder, config) = (weights.folder(), weights.config());
    let mut inspection = Inspection {
        model: folder.place(),
        model_type: config.row().model_type.to_owned(),
        parameters: 0,
        bytes: 0,
        format: weights.layout().map(|layout| layout.format().to_string()),
        schemes: Vec::new(),
        consumers: Vec::new(),
        tensors: Vec::new(),
    };
    let mut packed: HashSet<String> = HashSet::new();
    let mut modules: Vec<(String, Option<Coding>)> = Vec::new();
    for block in 0..config.num_hidden_layers {
        for kind in LinearKind::ALL {
            let module = kind.module(block);
            let coding = weights.coding(&module)?;
            modules.push((module.clone(), coding));
            let Some(coding) = coding else {
                continue;
            };
            let [out, in_] = linear_shape(config, kind);
            inspection.parameters += (out * in_) as u64;
            packed.insert(module);
            let words = coding.to_string();
            match inspection
                .schemes
                .iter_mut()
                .find(|(known, _)| *known == words)
            {
                Some((_, count)) => *count += 1,
                None => inspection.schemes.push((words, 1)),
            }
        }
    }
    if let Some(layout) = weights.layout() {
        inspection.consumers = consumers::lines(layout.format(), &modules);
    }
    for name in folder.names() {
        let view = folder.tensor(name)?;
        let elements: u64 = view.shape.iter().map(|&n| n as u64).product();
        let is_part = module_of(name, |module| packed.contains(module)).is_some();
        inspection.parameters += if is_part { 0 } else { elements };
        inspection.bytes += view.bytes.len() as u64;
        inspection.tensors.push(TensorLine {
            name: name.to_owned(),
            dtype: format!("{:?}", view.dtype),
            shape: view.shape.to_vec(),
            bytes: view.bytes.len() as u64,
        });
    }
    Ok(inspection)
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, {} parameters, {}",
            self.model,
            self.model_type,
            self.parameters,
            bytes(self.bytes)
        )?;
        if let Some(format) = &self.format {
            let schemes: Vec<String> = self
                .schemes
                .iter()
                .map(|(s, n)| format!("{n} linears {s}"))
                .collect();
            writeln!(f, "quantized as {format}: {}", schemes.join(", "))?;
        }
        for line in &self.consumers {
            writeln!(f, "  {line}")?;
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
