//! Speed of the kernels on this machine's first adapter, hardware before software: the matrix-vector kernel as bytes moved
//! and as a share of what a copy on the device moves, the matrix-matrix kernel in TFLOP/s beside burn's dense product.
//! Shapes are those of the linears and the head of an 8B-parameter Llama. A time is the least of some batches
//! of launches, the wait for the device shared by a batch.
//!
//! `cargo run --release -p halfbyte-kernels --example products -- [--small] [--bits N] [--cpu | --bandwidth GB/s]`; `--small`
//! is for software adapters. With `--cpu` the CPU's products are measured instead, with `--bandwidth` the roofline on paper
//! for a device of that bandwidth is printed and nothing is run.
#![allow(
    clippy::print_stdout,
    reason = "a program that prints its measurements"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark may stop where it fails")]

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};
use halfbyte_kernels::{DeviceWeight, PackedWeight, devices, self_test};
use halfbyte_quant::{GroupSize, QuantizedWeight, Scheme};
use rayon::prelude::*;

const SHAPES: [[usize; 2]; 4] = [[4096, 4096], [14336, 4096], [4096, 14336], [128256, 4096]];
const SMALL_SHAPES: [[usize; 2]; 4] = [[512, 512], [1792, 512], [512, 1792], [4008, 512]];
const BATCHES: [usize; 4] = [1, 2, 4, 8];
const GROUP: i64 = 128;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        Some(args.get(at + 1)?.parse::<f64>().unwrap())
    };
    let small = args.iter().any(|a| a == "--small");
    let bits = number("--bits").map_or(4, |b| b as u8);
    let scheme = Scheme::new(bits, GroupSize::from_i64(GROUP).unwrap(), false).unwrap();
    let shapes = if small { SMALL_SHAPES } else { SHAPES };
    if let Some(bandwidth) = number("--bandwidth") {
        return roofline(scheme, &shapes, bandwidth);
    }

    if args.iter().any(|a| a == "--cpu") {
        return cpu(scheme, &shapes);
    }
    let device = devices().unwrap().remove(0);
    let capabilities = self_test(&device).unwrap();
    println!("{} by {}", capabilities.name, capabilities.runtime);
    let copied = if small { 16 << 20 } else { 512 << 20 };
    let copied = copied.min(capabilities.binding_bytes as usize / 2);
    let bandwidth = copy_bandwidth(&device, copied);
    println!(
        "copy of {} MiB: {bandwidth:.1} GB/s read and written",
        copied >> 20
    );
    let types: &[DType] = match capabilities.f16 {
        true => &[DType::F32, DType::F16],
        false => &[DType::F32],
    };
    println!("\nmatrix-vector, {bits} bits, groups of {GROUP}, asymmetric");
    println!("weight        type tokens      us    MB moved   GB/s  share of the copy");
    for shape in shapes {
        let weight = upload(scheme, shape, &device);
        for &dtype in types {
            for tokens in BATCHES {
                matvec(&weight, shape, tokens, dtype, bandwidth, &device);
            }
        }
    }
    println!("\nmatrix-matrix, TFLOP/s");
    println!("weight        type tokens   packed   dense");
    let token_counts = if small { [64, 128] } else { [512, 2048] };
    for shape in &shapes[..3] {
        let weight = upload(scheme, *shape, &device);
        for &dtype in types {
            let dense = weight.dequantize(dtype).unwrap();
            for tokens in token_counts {
                matmat(&weight, &dense, *shape, tokens, dtype, &device);
            }
        }
    }
}

fn matvec(
    weight: &DeviceWeight,
    [out, features]: [usize; 2],
    tokens: usize,
    dtype: DType,
    bandwidth: f64,
    device: &Device,
) {
    let x = random([tokens, features], dtype, device);
    let bytes = weight.bytes() + activation_bytes(tokens, out, features, dtype.size());
    let seconds = seconds(on(device), || {
        weight.multiply(x.clone()).unwrap();
    });
    print_matvec([out, features], dtype, tokens, bytes, seconds, bandwidth);
}

fn print_matvec(
    [out, features]: [usize; 2],
    dtype: DType,
    tokens: usize,
    bytes: u64,
    seconds: f64,
    bandwidth: f64,
) {
    let rate = bytes as f64 / seconds / 1e9;
    println!(
        "{:<13} {:<4} {tokens:>6} {:>8.1} {:>10.2} {rate:>7.1} {:>6.1} %",
        format!("{out}x{features}"),
        dtype.name(),
        seconds * 1e6,
        bytes as f64 / 1e6,
        rate / bandwidth * 100.0
    );
}

/// The CPU's products, beside a copy by all threads.
fn cpu(scheme: Scheme, shapes: &[[usize; 2]]) {
    let from = vec![1u64; 32 << 20];
    let mut to = vec![0u64; from.len()];
    let copy = seconds(
        || (),
        || {
            let parts = to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
        },
    );
    let bandwidth = 2.0 * 8.0 * from.len() as f64 / copy / 1e9;
    println!(
        "{} threads, copy of 256 MiB: {bandwidth:.1} GB/s read and written",
        rayon::current_num_threads()
    );
    println!("weight        type tokens      us    MB moved   GB/s  share of the copy");
    for &[out, features] in shapes {
        let weight = packed(scheme, [out, features]);
        for tokens in BATCHES {
            let x: Vec<f32> = (0..tokens * features).map(|i| (i % 13) as f32).collect();
            let bytes = weight.bytes() + activation_bytes(tokens, out, features, 4);
            let seconds = seconds(
                || (),
                || {
                    std::hint::black_box(weight.multiply(&x).unwrap());
                },
            );
            print_matvec(
                [out, features],
                DType::F32,
                tokens,
                bytes,
                seconds,
                bandwidth,
            );
        }
    }
}

fn matmat(
    weight: &DeviceWeight,
    dense: &Tensor<2>,
    [out, features]: [usize; 2],
    tokens: usize,
    dtype: DType,
    device: &Device,
) {
    let x = random([tokens, features], dtype, device);
    let operations = 2.0 * tokens as f64 * out as f64 * features as f64;
    let packed = seconds(on(device), || {
        weight.multiply(x.clone()).unwrap();
    });
    let dense = seconds(on(device), || {
        x.clone().matmul(dense.clone().transpose());
    });
    println!(
        "{:<13} {:<4} {tokens:>6} {:>8.3} {:>7.3}",
        format!("{out}x{features}"),
        dtype.name(),
        operations / packed / 1e12,
        operations / dense / 1e12
    );
}

/// What a matrix-vector product takes at least, when every byte moves once at the device's bandwidth, and how much faster
/// that is than with weights of 16 bits.
fn roofline(scheme: Scheme, shapes: &[[usize; 2]], bandwidth: f64) {
    println!(
        "on paper, {bandwidth} GB/s, {} bits, groups of {GROUP}, asymmetric, f16 activations",
        scheme.bits()
    );
    println!("weight        tokens  MB moved      us  x of bf16");
    for &[out, features] in shapes {
        let bits = PackedWeight::bits_per_weight(scheme, features);
        for tokens in BATCHES {
            let activations = activation_bytes(tokens, out, features, 2) as f64;
            let bytes = bits / 8.0 * (out * features) as f64 + activations;
            let bf16 = 2.0 * (out * features) as f64 + activations;
            println!(
                "{:<13} {tokens:>6} {:>9.2} {:>7.1} {:>10.2}",
                format!("{out}x{features}"),
                bytes / 1e6,
                bytes / bandwidth / 1e3,
                bf16 / bytes
            );
        }
    }
}

/// Activations and results, once each.
fn activation_bytes(tokens: usize, out: usize, features: usize, width: usize) -> u64 {
    (tokens * (out + features) * width) as u64
}

/// Bytes read and written a second, in GB/s, by burn's own addition of a number to a tensor.
fn copy_bandwidth(device: &Device, bytes: usize) -> f64 {
    let from = Tensor::<1>::zeros([bytes / 4], device);
    let seconds = seconds(on(device), || {
        let _ = from.clone().add_scalar(1.0);
    });
    2.0 * bytes as f64 / seconds / 1e9
}

/// Waits for a device.
fn on(device: &Device) -> impl Fn() + '_ {
    || device.sync().unwrap()
}

/// Seconds a launch: the least of some batches of 20 ms, after a first launch that compiles. What else runs on the machine
/// only ever adds.
fn seconds(wait: impl Fn(), mut launch: impl FnMut()) -> f64 {
    let mut batch = |n: usize| {
        let start = Instant::now();
        for _ in 0..n {
            launch();
        }
        wait();
        start.elapsed().as_secs_f64() / n as f64
    };
    batch(1);
    let n = (0.02 / batch(1)).clamp(1.0, 1000.0) as usize;
    let times = (0..15).map(|_| batch(n));
    times.fold(f64::INFINITY, f64::min)
}

fn random(shape: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
    Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), device).cast(dtype)
}

fn upload(scheme: Scheme, shape: [usize; 2], device: &Device) -> DeviceWeight {
    DeviceWeight::upload(&packed(scheme, shape), device).unwrap()
}

fn packed(scheme: Scheme, [out, features]: [usize; 2]) -> PackedWeight {
    let groups = out * scheme.n_groups(features);
    let max = usize::from(scheme.max_code());
    let code = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13 & max) as u8;
    let weight = QuantizedWeight::new(
        scheme,
        [out, features],
        (0..out * features).map(code).collect(),
        vec![1.0 / 64.0; groups],
        (0..groups).map(code).collect(),
    );
    PackedWeight::new(&weight.unwrap()).unwrap()
}
