#!/usr/bin/env python3
"""Quantize a model folder with HQQ on the CPU; the dequantized weights are written in float32.

usage: hqq_quantize.py MODEL_DIR OUT_DIR --calib FILE.jsonl --asym [--bits 4] [--group-size 64] [--json FILE]
needs: pip install hqq      (0.2.8)

HQQ uses no calibration (--calib is taken and left alone) and has no symmetric grid: scale and zero point of each group
are real numbers of 16 bits. At 4 bits HQQ rounds the zero point, elsewhere not: its own defaults.
"""
import sys

import common


def main():
    args = common.arguments(__doc__, ["default"])
    if not args.asym:
        sys.exit("hqq has no symmetric grid")
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from hqq.models.hf.base import AutoHQQHFModel

    settings = dict(nbits=args.bits, group_size=args.group_size, axis=1)
    model = common.load_model(args, torch.float16)
    loaded = common.usage()
    AutoHQQHFModel.quantize_model(model, BaseQuantizeConfig(**settings), compute_dtype=torch.float16, device="cpu")
    solved = common.usage()

    linears = {name: module for name, module in model.named_modules() if isinstance(module, HQQLinear)}
    weights = {name: module.dequantize() for name, module in linears.items()}
    for name, weight in weights.items():
        n_levels = weight.reshape(-1, args.group_size)[0].unique().numel()
        assert n_levels <= 2**args.bits, f"{name}: {n_levels} levels in a group of {args.bits} bits"
    common.save_float(args, weights)
    common.record(args, "hqq", settings, [], ["hqq"], loaded, solved, len(linears), args.bits + 32 / args.group_size)


if __name__ == "__main__":
    main()
