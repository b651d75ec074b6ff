//! Finished blocks to checkpoint folders.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use halfbyte_checkpoint::{
    Dtype, ModelFolder, SafetensorsWriter, TensorInfo, encode_f32, plan_shards, write_file,
    write_json,
};
use halfbyte_model::Decoder;
use halfbyte_pack::{ConfigNotes, Format, NamedTensor, pack, packed_layout, quantization_config};
use halfbyte_quant::Coding;
use serde_json::{Value, json};

use crate::config::{Damp, Method, Pipeline, Propagation};
use crate::event::{Event, phase};
use crate::output::{Destination, clear_stage};
use crate::quantize::Layout;
use crate::told;
use crate::work::{Solved, Work};

/// Shards no larger than this, as the field's own writer has it.
pub(crate) const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// One written checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// The format.
    pub(crate) format: Format,
    /// Bytes of its tensors.
    pub(crate) bytes: u64,
}

/// Writes an export whole into the folder it is put together in, block by block, reading the finished blocks from the work
/// folder; [`crate::output::Output::place`] then puts it in its place.
pub(crate) fn stage(
    pipeline: &Pipeline,
    layout: &Layout,
    decoder: &Decoder,
    work: &Work,
    to: &Destination,
    on_event: &mut dyn FnMut(Event),
) -> Result<Exported> {
    let total = decoder.n_blocks() as u64;
    let mut tick = phase(on_event, "export", "blocks");
    let mut tick = |done| tick(done, total);
    let format = to.format;
    let stage = clear_stage(to)?;
    let bytes = export_one(pipeline, layout, decoder, work, format, &stage, &mut tick)
        .with_context(|| format!("export as {format}"))?;
    Ok(Exported {
        folder: to.folder.clone(),
        format,
        bytes,
    })
}

fn export_one(
    pipeline: &Pipeline,
    layout: &Layout,
    decoder: &Decoder,
    work: &Work,
    format: Format,
    folder: &std::path::Path,
    tick: &mut dyn FnMut(u64),
) -> Result<u64> {
    let source = decoder.weights().folder();
    let infos = tensor_infos(layout, source, format)?;
    let plan = plan_shards(&infos, MAX_SHARD_BYTES);
    let mut blocks = Blocks {
        work,
        changed: work.changed()?,
        n_blocks: decoder.n_blocks(),
        loaded: None,
    };
    for shard in &plan.shards {
        let mut writer = SafetensorsWriter::create(&folder.join(&shard.file), &shard.tensors)?;
        for info in &shard.tensors {
            match packed_module(&info.name, layout) {
                Some((block, module)) => {
                    if blocks.block() != Some(block) {
                        tick(block as u64);
                    }
                    let tensors = blocks.packed(block, module, format, layout)?;
                    let tensor = tensors
                        .iter()
                        .find(|t| t.name == info.name)
                        .with_context(|| info.name.clone())?;
                    writer.write(&info.name, &tensor.bytes)?;
                }
                None => match blocks.replaced(&info.name)? {
                    Some(values) => {
                        let bytes = encode_f32(values, info.dtype)
                            .with_context(|| format!("{}: {:?}", info.name, info.dtype))?;
                        writer.write(&info.name, &bytes)?;
                    }
                    None => {
                        writer.write(&info.name, source.tensor(&info.name)?.bytes)?;
                        source.release([info.name.as_str()]);
                    }
                },
            }
        }
        writer.finish()?;
    }
    tick(decoder.n_blocks() as u64);
    if let Some(index) = &plan.index {
        write_json(&folder.join("model.safetensors.index.json"), index)?;
    }
    let mut ignored: Vec<String> = if source.config().tie_word_embeddings {
        vec!["lm_head".to_owned()]
    } else {
        Vec::new()
    };
    ignored.extend(told::carried_linears(source)?);
    let quantization =
        quantization_config(format, &layout.modules, &ignored, &notes(pipeline, layout));
    let mut config = source.raw_config().clone();
    if let Some(file) = format.config_file() {
        write_json(&folder.join(file), &quantization)?;
    }
    if let Value::Object(keys) = &mut config {
        keys.insert("quantization_config".to_owned(), quantization);
    }
    source.copy_other_files(folder)?;
    // Last of all: a folder without config.json is no model to any reader.
    write_file(
        &folder.join("config.json"),
        &serde_json::to_vec_pretty(&config)?,
    )?;
    Ok(infos.iter().map(TensorInfo::bytes).sum())
}

/// All tensors of the export in the source's own order, a packed linear's in the place of its weight.
pub(crate) fn tensor_infos(
    layout: &Layout,
    source: &ModelFolder,
    format: Format,
) -> Result<Vec<TensorInfo>> {
    let mut infos = Vec::new();
    for name in source.names() {
        let view = source.tensor(name)?;
        let coding = name
            .strip_suffix(".weight")
            .and_then(|module| Some((module, layout.coding(module)?)));
        match (coding, view.shape) {
            (Some((module, coding)), &[out, in_]) => {
                infos.extend(packed_infos(layout, module, &coding, [out, in_], format)?);
            }
            _ => infos.push(TensorInfo {
                name: name.to_owned(),
                dtype: view.dtype,
                shape: view.shape.to_vec(),
            }),
        }
    }
    Ok(infos)
}

/// The tensors of one packed linear.
pub(crate) fn packed_infos(
    layout: &Layout,
    module: &str,
    coding: &Coding,
    shape: [usize; 2],
    format: Format,
) -> Result<Vec<TensorInfo>> {
    let packed = packed_layout(module, coding, shape, format, layout.scale_dtype)?;
    let infos = packed.into_iter().map(|tensor| TensorInfo {
        name: tensor.name,
        dtype: file_dtype(tensor.dtype),
        shape: tensor.shape,
    });
    Ok(infos.collect())
}

/// The block and module a packed tensor belongs to; none for tensors that are copied.
pub(crate) fn packed_module<'a>(tensor: &'a str, layout: &Layout) -> Option<(usize, &'a str)> {
    let module = module_of(tensor, |module| layout.coding(module).is_some())?;
    Some((block_of(module)?, module))
}

/// The module one of whose packed parts a tensor is, among those that are packed; biases are none.
pub(crate) fn module_of(tensor: &str, is_packed: impl Fn(&str) -> bool) -> Option<&str> {
    if tensor.ends_with(".bias") {
        return None;
    }
    let mut modules = tensor.rmatch_indices('.').map(|(at, _)| &tensor[..at]);
    modules.find(|module| is_packed(module))
}

/// The block a tensor or module belongs to.
pub(crate) fn block_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// What solving and tuning left, with the block read last: neighbours in the file come from the same one.
struct Blocks<'a> {
    work: &'a Work,
    /// Tensors beside the quantized ones that changed and do not lie with their blocks.
    changed: HashMap<String, Vec<f32>>,
    /// The model's blocks; tensors of layers beyond them are carried along.
    n_blocks: usize,
    loaded: Option<Loaded>,
}

struct Loaded {
    block: usize,
    solved: Vec<Solved>,
    /// Tensors beside the quantized ones that solving changed.
    replaced: HashMap<String, Vec<f32>>,
    /// The module packed last.
    module: String,
    tensors: Vec<NamedTensor>,
}

impl Blocks<'_> {
    fn block(&self) -> Option<usize> {
        self.loaded.as_ref().map(|loaded| loaded.block)
    }

    fn load(&mut self, block: usize) -> Result<&mut Loaded> {
        let loaded = match self.loaded.take() {
            Some(loaded) if loaded.block == block => loaded,
            _ => Loaded {
                block,
                solved: self.work.load(block)?,
                replaced: self.work.replaced(block)?,
                module: String::new(),
                tensors: Vec::new(),
            },
        };
        Ok(self.loaded.insert(loaded))
    }

    /// What stands in the place of a tensor that is not packed, if it changed.
    fn replaced(&mut self, tensor: &str) -> Result<Option<&Vec<f32>>> {
        if self.changed.contains_key(tensor) {
            return Ok(self.changed.get(tensor));
        }
        match block_of(tensor).filter(|&block| block < self.n_blocks) {
            Some(block) => Ok(self.load(block)?.replaced.get(tensor)),
            None => Ok(None),
        }
    }

    fn packed(
        &mut self,
        block: usize,
        module: &str,
        format: Format,
        layout: &Layout,
    ) -> Result<&[NamedTensor]> {
        let loaded = self.load(block)?;
        if loaded.module != module {
            let found = loaded.solved.iter().find(|s| s.module == module);
            let weight = &found
                .with_context(|| format!("{module} is missing from the finished block {block}"))?
                .weight;
            loaded.tensors = pack(module, weight, format, layout.scale_dtype)?;
            loaded.module = module.to_owned();
        }
        Ok(&loaded.tensors)
    }
}

fn notes(pipeline: &Pipeline, layout: &Layout) -> ConfigNotes {
    let meta = json!({
        "method": pipeline.method.to_string(),
        "recipe": pipeline.recipe.to_string(),
    });
    ConfigNotes {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        damp_percent: match pipeline.quant.damp_percent {
            Damp::Fraction(p) if matches!(pipeline.method, Method::Gptq | Method::AwqGptq) => {
                Some(p)
            }
            _ => None,
        },
        true_sequential: pipeline.propagation != Propagation::Float,
        static_groups: pipeline.quant.static_groups,
        dtype: layout.scale_dtype,
        meta: meta.as_object().cloned().unwrap_or_default(),
    }
}

fn file_dtype(dtype: halfbyte_pack::Dtype) -> Dtype {
    match dtype {
        halfbyte_pack::Dtype::F16 => Dtype::F16,
        halfbyte_pack::Dtype::BF16 => Dtype::BF16,
        halfbyte_pack::Dtype::F32 => Dtype::F32,
        halfbyte_pack::Dtype::I32 => Dtype::I32,
        halfbyte_pack::Dtype::I64 => Dtype::I64,
        halfbyte_pack::Dtype::U8 => Dtype::U8,
        halfbyte_pack::Dtype::I8 => Dtype::I8,
    }
}
