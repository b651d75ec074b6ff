#!/usr/bin/env python3
"""Quantize a model folder with GPTQModel on the CPU, save its own GPTQ checkpoint and print what it cost.

usage: gptqmodel_quantize.py MODEL_DIR OUT_DIR --calib FILE.jsonl [--samples 64] [--tokens 512] [--bits 4]
                             [--group-size 64] [--asym] [--variant default|mse|desc-act] [--json FILE]
needs: pip install gptqmodel      (7.7.0; it fails on 2 cores without GPTQMODEL_CPU_WORKERS=2, set below)

Batches of 4 samples. The grid with any zero point is stored as gptq_v2.
"""
import os, tempfile

import common

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
VARIANTS = {"default": {}, "mse": {"mse": 2.4}, "desc-act": {"desc_act": True}}


def main():
    args = common.arguments(__doc__, list(VARIANTS))
    # GPTQModel writes logs/ into the working folder, and fails when that goes away.
    scratch = tempfile.TemporaryDirectory()
    os.chdir(scratch.name)
    from gptqmodel import GPTQModel, QuantizeConfig

    ids = common.calibration_ids(args)
    settings = dict(bits=args.bits, group_size=args.group_size, **VARIANTS[args.variant])
    if args.asym:
        settings.update(sym=False, format="gptq_v2")
    model = GPTQModel.load(str(args.model), QuantizeConfig(**settings))
    loaded = common.usage()
    model.quantize([{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in ids], batch_size=4)
    solved = common.usage()
    linears = sum(hasattr(module, "qweight") for module in model.model.modules())
    model.save(str(args.out))
    zero_bits = args.bits if args.asym else 0
    common.record(args, "gptqmodel", settings, ids, ["gptqmodel"], loaded, solved, linears,
                  args.bits + (16 + zero_bits) / args.group_size)


if __name__ == "__main__":
    main()
