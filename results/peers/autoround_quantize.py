#!/usr/bin/env python3
"""Quantize a model folder with AutoRound on the CPU; the dequantized weights are written in float32.

usage: autoround_quantize.py MODEL_DIR OUT_DIR --calib FILE.jsonl [--samples 64] [--tokens 512] [--bits 4]
                             [--group-size 64] [--asym] [--variant default|light|ext|best|small-batch]
                             [--json FILE]
needs: pip install auto-round      (0.16.1)

The variants are AutoRound's recipes: default 200 iterations, light 50 at rate 5e-3, best 1000, ext the default with
enable_alg_ext. At 2 bits best switches enable_alg_ext on too, as its makers advise. The calibration stays ours in all,
and batches are of 8. Mixed precision is off: without matrix units bfloat16 is both the slower and the coarser on a
processor (2.3 s an iteration of a SmolLM2 block against 0.9). small-batch is no recipe of AutoRound: the default with
batches of 2, for slow machines.
"""
import common

RECIPES = {"default": dict(iters=200), "light": dict(iters=50, lr=5e-3), "ext": dict(iters=200, enable_alg_ext=True),
           "best": dict(iters=1000), "small-batch": dict(iters=200, batch_size=2)}


def main():
    args = common.arguments(__doc__, list(RECIPES))
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    settings = {"bits": args.bits, "group_size": args.group_size, "sym": not args.asym, "batch_size": 8,
                "amp": False, **RECIPES[args.variant]}
    if args.variant == "best" and args.bits == 2:
        settings["enable_alg_ext"] = True
    ids = common.calibration_ids(args)
    # AutoRound leaves a sample shorter than seqlen out without a word.
    short = sum(len(sample) < args.tokens for sample in ids)
    assert short == 0, f"{short} samples are shorter than {args.tokens} tokens"
    model = common.load_model(args, torch.float32)
    tuner = AutoRound(model, AutoTokenizer.from_pretrained(args.model), dataset=[torch.tensor([s]) for s in ids],
                      nsamples=len(ids), seqlen=args.tokens, device_map="cpu",
                      enable_torch_compile=False, **settings)
    loaded = common.usage()
    model, _ = tuner.quantize()
    solved = common.usage()

    tuned = {name: module for name, module in model.named_modules() if getattr(module, "scale", None) is not None}
    weights = {name: module.weight for name, module in tuned.items()}
    for name, weight in weights.items():
        n_levels = weight.reshape(-1, args.group_size)[0].unique().numel()
        assert n_levels <= 2**args.bits, f"{name}: {n_levels} levels in a group of {args.bits} bits"
    common.save_float(args, weights)
    zero_bits = args.bits if args.asym else 0
    common.record(args, "autoround", settings, ids, ["auto-round"], loaded, solved, len(weights),
                  args.bits + (16 + zero_bits) / args.group_size)


if __name__ == "__main__":
    main()
