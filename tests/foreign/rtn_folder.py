#!/usr/bin/env python3
"""Round a float model folder to nearest and write it in a low-bit format: an export that halfbyte had no hand in.

usage: rtn_folder.py MODEL_DIR OUT_DIR --format gptq|gptq_v2|compressed-tensors [--bits 4] [--group-size 64] [--asym]
                     [--weights FILE] [--logits FILE [--tokens 64]]
needs: numpy; for --logits also torch and transformers

--weights writes what the export stands for (NAME.weight f32 [out, in]), --logits the float32 logits of those weights
for two sequences of random ids: the second arguments of gptqmodel_weights.py and transformers_compressed_tensors.py.
"""
import argparse, json, pathlib

import numpy as np

import folder as F


def round_to_nearest(weight, bits, group_size, asym, storage):
    """-> codes [out, in], scales and zeros [out, G]; scales are rounded to `storage` before coding."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // group_size, group_size)
    top = (1 << bits) - 1
    if asym:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        scales = storage(np.maximum((high - low) / top, 1e-8))
        zeros = np.clip(np.rint(-low / scales), 0, top).astype(np.int32)
    else:
        scales = storage(np.maximum(np.abs(groups).max(2) / (top / 2), 1e-8))
        zeros = np.full(scales.shape, 1 << (bits - 1), np.int32)
    codes = np.clip(np.rint(groups / scales[:, :, None]) + zeros[:, :, None], 0, top)
    return codes.astype(np.int32).reshape(rows, columns), scales, zeros


def to_f16(x):
    return x.astype(np.float16).astype(np.float32)


def to_bf16(x):
    return (F.bf16_bits(x).astype(np.uint32) << 16).view(np.float32).reshape(x.shape)


def gptq_tensors(codes, scales, zeros, args):
    stored = zeros if args.format == "gptq_v2" else zeros - 1
    if stored.min() < 0:
        raise SystemExit("a zero point of 0 cannot be stored in gptq v1: use gptq_v2")
    return {"qweight": np.ascontiguousarray(F.pack_rows(codes, args.bits).T),
            "qzeros": F.pack_rows(np.ascontiguousarray(stored.T), args.bits),
            "scales": np.ascontiguousarray(scales.T).astype(np.float16),
            "g_idx": (np.arange(codes.shape[1]) // args.group_size).astype(np.int32)}


def pack_quantized_tensors(codes, scales, zeros, args):
    tensors = {"weight_packed": F.pack_rows(codes, args.bits), "weight_scale": scales,
               "weight_shape": np.array(codes.shape, np.int64)}
    if args.asym:
        tensors["weight_zero_point"] = np.ascontiguousarray(F.pack_rows(np.ascontiguousarray(zeros.T), args.bits).T)
    return tensors


def quantization_config(args):
    if args.format == "compressed-tensors":
        weights = dict(num_bits=args.bits, type="int", symmetric=not args.asym, strategy="group",
                       group_size=args.group_size, dynamic=False)
        group = dict(targets=["Linear"], weights=weights, input_activations=None, output_activations=None,
                     format="pack-quantized")
        return dict(quant_method="compressed-tensors", format="pack-quantized", quantization_status="compressed",
                    global_compression_ratio=None, kv_cache_scheme=None, ignore=["lm_head"],
                    config_groups=dict(group_0=group))
    return dict(quant_method="gptq", bits=args.bits, group_size=args.group_size, desc_act=False, sym=not args.asym,
                checkpoint_format=args.format, lm_head=False, damp_percent=0.01, true_sequential=True,
                static_groups=False, pack_dtype="int32", meta={})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--format", required=True, choices=["gptq", "gptq_v2", "compressed-tensors"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--logits", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()

    source = F.read_folder(args.model)
    F.copy_rest(args.model, args.out)
    config = json.loads((args.model / "config.json").read_text())
    gptq = args.format != "compressed-tensors"
    bf16 = (config.get("dtype") or config.get("torch_dtype")) == "bfloat16"
    tensors, as_bf16, stands_for = {}, set(), {}
    for name, x in source.items():
        linear = name.removesuffix(".weight")
        if not linear.endswith(F.LINEARS) or not name.endswith(".weight"):
            tensors[name] = x
            as_bf16 |= {name} if bf16 else set()
            continue
        storage = to_f16 if gptq else to_bf16 if bf16 else np.float32
        parts = round_to_nearest(x.astype(np.float32), args.bits, args.group_size, args.asym, storage)
        for suffix, part in (gptq_tensors if gptq else pack_quantized_tensors)(*parts, args).items():
            tensors[f"{linear}.{suffix}"] = part
        as_bf16 |= {f"{linear}.weight_scale"} if bf16 else set()
        codes, scales, zeros = parts
        spread = np.repeat(np.stack([scales, zeros.astype(np.float32)]), args.group_size, axis=2)
        stands_for[name] = spread[0] * (codes.astype(np.float32) - spread[1])
    F.write_file(args.out / "model.safetensors", tensors, as_bf16)
    config["quantization_config"] = quantization_config(args)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if gptq:
        (args.out / "quantize_config.json").write_text(json.dumps(config["quantization_config"], indent=2) + "\n")
    print(f"{len(stands_for)} linears rounded to {args.bits} bits, group {args.group_size}, in {args.out}")

    if args.weights:
        F.write_file(args.weights, stands_for)
    if args.logits:
        import torch

        model, _ = F.float_model(args.model)
        model.load_state_dict({n: torch.from_numpy(w) for n, w in stands_for.items()}, strict=False)
        ids = np.random.default_rng(0).integers(0, config["vocab_size"], (2, args.tokens))
        with torch.no_grad():
            logits = model(torch.from_numpy(ids), use_cache=False).logits.float().numpy()
        F.write_file(args.logits, {"input_ids": ids, "logits": logits})


if __name__ == "__main__":
    main()
