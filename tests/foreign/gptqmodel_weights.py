#!/usr/bin/env python3
"""Does GPTQModel read our GPTQ (v1 or v2) or AWQ folder as we do?

usage: gptqmodel_weights.py EXPORT_DIR WEIGHTS.safetensors
needs: pip install gptqmodel      (7.7.0; on 2 cores it wants GPTQMODEL_CPU_WORKERS=2, set below)

WEIGHTS holds NAME.weight f32 [out, in] for every quantized linear: what we say the folder stands for, scale * (code -
zero). GPTQModel loads the folder with its torch kernel on the CPU; an identity matrix pushed through each linear's own
forward gives the weight it works with, in the dtype it runs (float16), so equal means equal after one rounding to that
dtype. Exit 0 when every linear agrees and none is missing on either side, else 1.
"""
import argparse, json, os, pathlib, sys

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file


def weight_in_use(module, dtype):
    """[out, in]: the module's answer to the identity, less its bias."""
    with torch.no_grad():
        columns = module(torch.eye(module.in_features, dtype=dtype))
        if module.bias is not None:
            columns = columns - module(torch.zeros(1, module.in_features, dtype=dtype))
    return columns.float().T


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("weights", type=pathlib.Path)
    args = parser.parse_args()

    ours = load_file(args.weights)
    dtype = torch.float16
    config = json.loads((args.folder / "config.json").read_text())
    awq = config["quantization_config"]["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.TORCH
    try:
        model = GPTQModel.load(str(args.folder), backend=backend, device="cpu", dtype=dtype)
    except Exception as error:
        print(f"DIFFERS: {args.folder} does not load: {type(error).__name__}: {error}")
        sys.exit(1)

    checked, worst, failures = set(), 0.0, []
    for path, module in model.model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        name = f"{path}.weight"
        if name not in ours:
            failures.append(f"{name}: quantized there, not in {args.weights.name}")
            continue
        checked.add(name)
        theirs, want = weight_in_use(module, dtype), ours[name]
        difference = (theirs - want).abs()
        # One rounding to float16: half a unit of the 11-bit significand, or half the smallest subnormal.
        allowed = want.abs() * 2.0**-11 + 2.0**-25
        worst = max(worst, difference.max().item())
        if not bool((difference <= allowed).all()):
            at = (difference - allowed).argmax().item()
            row, column = divmod(at, want.shape[1])
            failures.append(f"{name}[{row}, {column}]: theirs {theirs[row, column]:.7g}, ours {want[row, column]:.7g}")
    failures += [f"{name}: ours, not quantized there" for name in sorted(set(ours) - checked)]
    for line in failures[:20]:
        print(line)
    print(f"{len(checked)} linears compared by pushing an identity through each, largest difference {worst:.3e}")
    agrees = bool(checked) and not failures
    print("AGREES: every weight equal after one rounding to float16" if agrees else f"DIFFERS: {len(failures)} linears")
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
