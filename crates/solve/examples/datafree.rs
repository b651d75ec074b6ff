//! What methods that see no text cost, as relative error of the weight (`H = I`): RTN, HQQ with float and integer zero
//! points, NF4 and FP4, absmax. On random normal weights, and on the linears of a bf16 or f32 safetensors file if one
//! is named: `cargo run --release -p halfbyte-solve --example datafree -- model.safetensors`.
#![allow(
    clippy::print_stdout,
    reason = "a program that prints its measurements"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark may stop where it fails")]

use std::time::Instant;

use faer::Mat;
use halfbyte_quant::{Codebook, CodebookWeight, GroupSize, Scheme};
use halfbyte_solve::{
    CodebookOptions, Granularity, Grid, HqqOptions, RtnOptions, ScaleDtype, absmax, codebook,
    dense_loss, hqq, hqq_float, rtn,
};

fn main() {
    measure("random normal", &[random(1024, 1024)]);
    for path in std::env::args().skip(1) {
        let linears = linears(&path);
        measure(&format!("{path}: {} linears", linears.len()), &linears);
    }
}

fn measure(name: &str, weights: &[Mat<f32>]) {
    println!("\n{name}");
    for bits in [4, 3, 2] {
        for group in [64, 128] {
            let scheme = |sym| Scheme::new(bits, GroupSize::Columns(group), sym).unwrap();
            let options = HqqOptions::default();
            let row = |what: &str, of: &dyn Fn(&Mat<f32>) -> f64| {
                line(&format!("{bits} bits, group {group}, {what}"), weights, of);
            };
            let plain = |w: &Mat<f32>, sym, options: &RtnOptions| {
                let solved = rtn(w.as_ref(), None, &scheme(sym), options).unwrap();
                solved.relative_loss
            };
            row("rtn sym", &|w| plain(w, true, &RtnOptions::default()));
            row("rtn sym search", &|w| plain(w, true, &RtnOptions::search()));
            row("rtn asym", &|w| plain(w, false, &RtnOptions::default()));
            row("rtn asym search", &|w| {
                plain(w, false, &RtnOptions::search())
            });
            let float = |w: &Mat<f32>, options: &HqqOptions| {
                let solved = hqq_float(w.as_ref(), &scheme(false), options).unwrap();
                dense_loss(w.as_ref(), &solved.dequantize(), None)
                    .unwrap()
                    .relative
            };
            let start = HqqOptions {
                iterations: 0,
                ..options.clone()
            };
            row("min-max, float zero", &|w| float(w, &start));
            row("hqq, float zero", &|w| float(w, &options));
            row("hqq, integer zero", &|w| {
                hqq(w.as_ref(), None, &scheme(false), &options)
                    .unwrap()
                    .relative_loss
            });
        }
    }
    for book in Codebook::ALL {
        let name = book.as_str();
        for double_quant in [false, true] {
            for (grid, recode) in [
                (Grid::MinMax, false),
                (Grid::MinMax, true),
                (Grid::Search, true),
            ] {
                let options = CodebookOptions {
                    codebook: book,
                    block_size: 64,
                    double_quant,
                    grid,
                    recode,
                };
                let bits =
                    |w: &CodebookWeight| 8.0 * w.packed_bytes() as f64 / w.codes().len() as f64;
                let first = codebook(weights[0].as_ref(), None, &options).unwrap();
                let what = format!(
                    "{name} block 64, double_quant {double_quant}, {grid:?}, recode {recode}, {:.3} bits",
                    bits(&first.weight)
                );
                line(&what, weights, &|w| {
                    codebook(w.as_ref(), None, &options).unwrap().loss.relative
                });
            }
        }
    }
    for granularity in [
        Granularity::Tensor,
        Granularity::Channel,
        Granularity::Group(128),
    ] {
        line(&format!("absmax int8, {granularity:?}"), weights, &|w| {
            absmax(w.as_ref(), None, granularity, ScaleDtype::Portable)
                .unwrap()
                .relative_loss
        });
    }
}

/// Mean over weights, and the seconds a million weights take.
fn line(what: &str, weights: &[Mat<f32>], of: &dyn Fn(&Mat<f32>) -> f64) {
    let start = Instant::now();
    let sum: f64 = weights.iter().map(of).sum();
    let millions: f64 = weights
        .iter()
        .map(|w| (w.nrows() * w.ncols()) as f64 / 1e6)
        .sum();
    let seconds = start.elapsed().as_secs_f64() / millions;
    println!(
        "{:.6}  {seconds:.3} s/M  {what}",
        sum / weights.len() as f64
    );
}

fn random(rows: usize, columns: usize) -> Mat<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    Mat::from_fn(rows, columns, |_, _| {
        (0.02 * ((0..12).map(|_| uniform()).sum::<f64>() - 6.0)) as f32
    })
}

/// Every `*_proj.weight` of a file.
fn linears(path: &str) -> Vec<Mat<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let linears = header.as_object().unwrap().iter();
    linears
        .filter(|(name, _)| name.ends_with("_proj.weight"))
        .map(|(_, info)| {
            let number = |key: &str, i: usize| info[key][i].as_u64().unwrap() as usize;
            let (rows, columns) = (number("shape", 0), number("shape", 1));
            let data = &bytes[8 + length..][number("data_offsets", 0)..number("data_offsets", 1)];
            let values: Vec<f32> = match info["dtype"].as_str().unwrap() {
                "BF16" => {
                    let pairs = data.as_chunks::<2>().0.iter();
                    pairs
                        .map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
                        .collect()
                }
                "F32" => data
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&b| f32::from_le_bytes(b))
                    .collect(),
                other => panic!("{path} holds {other}, wanted BF16 or F32"),
            };
            Mat::from_fn(rows, columns, |r, c| values[r * columns + c])
        })
        .collect()
}
