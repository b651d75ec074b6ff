//! Logits against those transformers computed for the same random models (`tests/golden/make_golden.py`).

use std::path::Path;

use halfbyte_checkpoint::ModelFolder;
use halfbyte_model::{Decoder, DeviceChoice, Weights, open_device};
use safetensors::SafeTensors;

/// Largest difference allowed between two logits, relative to the largest logit of the model.
const TOLERANCE: f32 = 1e-4;

fn check(device: DeviceChoice) -> usize {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut folders: Vec<_> = std::fs::read_dir(golden)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    folders.retain(|path| path.join("expected.safetensors").exists());
    folders.sort();
    let mut report = Vec::new();
    for folder in &folders {
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let ids = expected.tensor("input_ids").unwrap();
        let tokens = ids.shape()[1];
        let ids: Vec<u32> = ids
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
            .collect();
        let windows: Vec<Vec<u32>> = ids.chunks_exact(tokens).map(<[u32]>::to_vec).collect();
        let wanted = expected.tensor("logits").unwrap();
        let wanted: Vec<f32> = wanted
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();

        let model = ModelFolder::open(folder).unwrap();
        model.check_tensors().unwrap();
        let decoder = Decoder::new(Weights::new(model).unwrap(), open_device(device).unwrap());
        let logits = decoder
            .logits(&windows)
            .unwrap()
            .try_into_vec_as::<f32>()
            .unwrap();
        assert_eq!(logits.len(), wanted.len(), "{}", folder.display());
        let largest = wanted.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        let worst = logits
            .iter()
            .zip(&wanted)
            .map(|(a, b)| (a - b).abs())
            .enumerate();
        let (at, difference) = worst.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let bad = difference.is_nan() || difference > TOLERANCE * largest;
        report.push((
            bad,
            format!("{name}: {difference:.2e} of {largest:.2} at {at}"),
        ));
    }
    let all: Vec<&str> = report.iter().map(|(_, line)| line.as_str()).collect();
    assert!(
        report.iter().all(|(bad, _)| !bad),
        "largest differences by model:\n{}",
        all.join("\n")
    );
    report.len()
}

#[test]
fn logits_match_transformers_on_the_cpu() {
    assert!(check(DeviceChoice::Cpu) >= 20);
}

#[test]
fn logits_match_transformers_on_wgpu() {
    if let Err(error) = open_device(DeviceChoice::Vulkan) {
        halfbyte_testing::skip(halfbyte_testing::Lacking::Vulkan, error);
        return;
    }
    assert!(check(DeviceChoice::Vulkan) >= 20);
}
