#!/usr/bin/env python3
"""Does transformers, with the compressed-tensors package, read our compressed-tensors folder as we do?

usage: transformers_compressed_tensors.py EXPORT_DIR LOGITS.safetensors [--dtype float32|bfloat16] [--dequantize]
needs: pip install torch transformers compressed-tensors accelerate safetensors

LOGITS holds input_ids i64 [B, T] and logits f32 [B, T, V]: ours, computed in float32 from the exported weights.
Every export is loaded as it is: the config of an asymmetric one says `dequantize: true`, without which transformers 5.23 and
5.24 with compressed-tensors 0.20 refuse its zero points. One that does not say so is tried again with
CompressedTensorsConfig(dequantize=True).
Agreement, relative to the rms of our logits: in float32 at most 1e-3 anywhere, or 2e-2 with dequantize=True, which
rounds the weights to the dtype of the scales (bfloat16); in bfloat16 at most 2e-2 on average (activations are rounded in
every layer, so single logits stray further). Exit 0 when it agrees, else 1.
"""
import argparse, json, pathlib, sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

# (dtype, dequantize) -> which difference, and its limit in units of the logits' rms
LIMITS = {("float32", False): ("max", 1e-3), ("float32", True): ("max", 2e-2),
          ("bfloat16", False): ("mean", 2e-2), ("bfloat16", True): ("mean", 2e-2)}


def quantization(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def is_asymmetric(folder):
    return any(not group["weights"]["symmetric"] for group in quantization(folder)["config_groups"].values())


def load(folder, dtype, dequantize):
    """-> the model and whether its weights were turned back at loading (dequantize=True). Every tensor must be found, or transformers would make one up."""
    def attempt(**options):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map="cpu", output_loading_info=True, **options)
        left = {k: sorted(v)[:4] for k, v in info.items() if v}
        if left:
            raise RuntimeError(f"not every tensor was placed: {left}")
        return model

    if not dequantize:
        try:
            return attempt(), quantization(folder).get("dequantize", False)
        except (RuntimeError, ValueError) as error:
            if not is_asymmetric(folder):
                raise
            print(f"as it is: refused: {str(error).strip().splitlines()[0][:160]}")
    return attempt(quantization_config=CompressedTensorsConfig(dequantize=True)), True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("logits", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--dequantize", action="store_true")
    args = parser.parse_args()

    ours = load_file(args.logits)
    try:
        model, dequantized = load(args.folder, getattr(torch, args.dtype), args.dequantize)
    except Exception as error:
        print(f"DIFFERS: {args.folder} does not load: {type(error).__name__}: {error}")
        sys.exit(1)
    print(f"loaded {'with dequantize=True' if dequantized else 'as it is'}, {args.dtype}")
    with torch.no_grad():
        theirs = model(ours["input_ids"].long(), use_cache=False).logits.float()
    want = ours["logits"].float()
    if theirs.shape != want.shape:
        print(f"DIFFERS: logits are {list(theirs.shape)}, ours {list(want.shape)}")
        sys.exit(1)
    difference, rms = (theirs - want).abs(), want.square().mean().sqrt().item()
    figures = {"max": difference.max().item() / rms, "mean": difference.mean().item() / rms}
    agreement = (theirs.argmax(-1) == want.argmax(-1)).float().mean().item()
    print(f"logits: rms {rms:.4f}, difference max {difference.max():.3e} mean {difference.mean():.3e}, "
          f"top-1 agreement {agreement:.4f} over {want.shape[0] * want.shape[1]} tokens")
    which, limit = LIMITS[args.dtype, dequantized]
    # A NaN compares false with everything, so it cannot pass.
    agrees = figures[which] <= limit
    print(f"{'AGREES' if agrees else 'DIFFERS'}: {which} difference / rms = {figures[which]:.2e}, limit {limit:.0e}")
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
