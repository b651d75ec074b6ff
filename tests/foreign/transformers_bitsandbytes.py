#!/usr/bin/env python3
"""Does transformers, with the bitsandbytes package, read our bitsandbytes folder as we do?

usage: transformers_bitsandbytes.py EXPORT_DIR WEIGHTS.safetensors LOGITS.safetensors
needs: pip install torch transformers bitsandbytes accelerate safetensors

WEIGHTS holds NAME.weight f32 [out, in] for every quantized linear: what we say the folder stands for, scale * level.
transformers loads the folder on the CPU; bitsandbytes turns every linear back, in the type that the file names for it, so
equal means equal after one rounding to that type. LOGITS holds input_ids i64 [B, T] and logits f32 [B, T, V]: ours, in
float32; theirs run in bfloat16, activations rounded in every layer, so they may differ by 2e-2 of the rms on average.
Exit 0 when every linear agrees, none is missing on either side, and the logits agree, else 1.
"""
import argparse, os, pathlib, sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

LOGITS_LIMIT = 2e-2


def load(folder):
    """Every tensor must be found, or transformers would make one up."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map="cpu", output_loading_info=True)
    left = {k: sorted(v)[:4] for k, v in info.items() if v}
    if left:
        raise RuntimeError(f"not every tensor was placed: {left}")
    return model


def rounding(dtype, want):
    """Half a unit in the last place of dtype, for every number of want."""
    info = torch.finfo(dtype)
    return want.abs() * info.eps / 2 + info.smallest_normal * info.eps / 2


def compare_weights(model, ours):
    """-> linears compared, and a line for each that differs."""
    checked, worst, failures = set(), 0.0, []
    for path, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        name = f"{path}.weight"
        if name not in ours:
            failures.append(f"{name}: quantized there, not in ours")
            continue
        checked.add(name)
        state, want = module.weight.quant_state, ours[name]
        theirs = dequantize_4bit(module.weight.data, state).float()
        if theirs.shape != want.shape:
            failures.append(f"{name}: shape {list(theirs.shape)}, ours {list(want.shape)}")
            continue
        difference, allowed = (theirs - want).abs(), rounding(state.dtype, want)
        worst = max(worst, difference.max().item())
        # A NaN compares false with everything, so it cannot pass.
        if not bool((difference <= allowed).all()):
            row, column = divmod((difference - allowed).argmax().item(), want.shape[1])
            failures.append(f"{name}[{row}, {column}]: theirs {theirs[row, column]:.7g}, ours {want[row, column]:.7g}")
    failures += [f"{name}: ours, not quantized there" for name in sorted(set(ours) - checked)]
    print(f"{len(checked)} linears compared as {state.quant_type}, blocks of {state.blocksize}, "
          f"{'nested scales' if state.nested else 'float scales'}, largest difference {worst:.3e}")
    return len(checked), failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("weights", type=pathlib.Path)
    parser.add_argument("logits", type=pathlib.Path)
    args = parser.parse_args()

    try:
        model = load(args.folder)
    except Exception as error:
        print(f"DIFFERS: {args.folder} does not load: {type(error).__name__}: {error}")
        sys.exit(1)
    compared, failures = compare_weights(model, load_file(args.weights))
    if compared == 0:
        failures.append("no linear is quantized there")
    logits = load_file(args.logits)
    with torch.no_grad():
        theirs = model(logits["input_ids"].long(), use_cache=False).logits.float()
    want = logits["logits"].float()
    difference = ((theirs - want).abs().mean() / want.square().mean().sqrt()).item()
    agreement = (theirs.argmax(-1) == want.argmax(-1)).float().mean().item()
    print(f"logits: mean difference {difference:.2e} of the rms, limit {LOGITS_LIMIT:.0e}, top-1 agreement {agreement:.4f}")
    if not difference <= LOGITS_LIMIT:
        failures.append("the logits differ")
    for line in failures[:20]:
        print(line)
    print(f"DIFFERS: {len(failures)}" if failures else "AGREES: every weight equal after one rounding to its type")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
