//! Writes what halfbyte makes of a model folder, for another project's reader to be held against it: logits of fixed
//! token ids (`OUT/logits.safetensors`) and the dequantized weight of every packed linear (`OUT/weights.safetensors`).
//!
//! usage: dump MODEL_FOLDER OUT

use std::path::PathBuf;

use halfbyte_checkpoint::{Dtype, ModelFolder, SafetensorsWriter, TensorInfo, create_folder};
use halfbyte_model::{Decoder, DeviceChoice, LinearKind, Weights, linear_shape, open_device};

const WINDOWS: usize = 2;
const TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: dump MODEL_FOLDER OUT".into());
    };
    create_folder(&out)?;
    let decoder = Decoder::new(
        Weights::new(ModelFolder::open(&model)?)?,
        open_device(DeviceChoice::Cpu)?,
    );
    let config = decoder.weights().config();

    let id = |n: usize| (n.wrapping_mul(2_654_435_761) >> 7) as u32 % config.vocab_size as u32;
    let windows: Vec<Vec<u32>> = (0..WINDOWS)
        .map(|w| (0..TOKENS).map(|t| id(w * TOKENS + t + 1)).collect())
        .collect();
    let logits = decoder
        .logits(&windows)?
        .try_into_vec_as::<f32>()
        .map_err(|e| e.to_string())?;
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    };
    let infos = [
        info("input_ids", Dtype::I64, &[WINDOWS, TOKENS]),
        info("logits", Dtype::F32, &[WINDOWS, TOKENS, config.vocab_size]),
    ];
    let mut writer = SafetensorsWriter::create(&out.join("logits.safetensors"), &infos)?;
    let ids: Vec<u8> = windows
        .iter()
        .flatten()
        .flat_map(|id| i64::from(*id).to_le_bytes())
        .collect();
    writer.write("input_ids", &ids)?;
    writer.write("logits", &bytes(&logits))?;
    writer.finish()?;

    let packed = |module: &str| matches!(decoder.weights().coding(module), Ok(Some(_)));
    let linears: Vec<(String, [usize; 2])> = (0..config.num_hidden_layers)
        .flat_map(|block| {
            LinearKind::ALL.map(|kind| (kind.module(block), linear_shape(config, kind)))
        })
        .filter(|(module, _)| packed(module))
        .collect();
    let infos: Vec<TensorInfo> = linears
        .iter()
        .map(|(module, shape)| info(&format!("{module}.weight"), Dtype::F32, shape))
        .collect();
    let mut writer = SafetensorsWriter::create(&out.join("weights.safetensors"), &infos)?;
    for (module, shape) in &linears {
        writer.write(
            &format!("{module}.weight"),
            &bytes(&decoder.weights().weight(module, *shape)?),
        )?;
    }
    writer.finish()?;
    Ok(())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
