#!/usr/bin/env python3
"""Quantize a model folder with AutoRound on the CPU; the dequantized weights are written in float32.

usage: autoround_quantize.py MODEL_DIR OUT_DIR --calib FILE.jsonl [--samples 64] [--tokens 512] [--bits 4]
                             [--group-size 64] [--asym] [--variant default|light|ext|best|small-batch]
                             [--json FILE]
needs: pip install auto-round      (0.16.1), and g++ for its compiled mode

The variants are AutoRound's recipes: default 200 iterations, light 50 at rate 5e-3, best 1000, ext the default with
enable_alg_ext. At 2 bits best switches enable_alg_ext on too, as its makers advise. The calibration stays ours in all,
and batches are of 8. Mixed precision, AutoRound's own default, is on where the processor multiplies bfloat16 by itself
and off elsewhere, where it is both the slower and the coarser (2.3 s an iteration of a SmolLM2 block against 0.9). The
blocks are compiled and attend by plain products of matrices, which is the fastest way to the same sums on a processor.
small-batch is no recipe of AutoRound: the default with batches of 2, for slow machines.

Finished blocks are kept in OUT_DIR.resume, so that a run that was cut off goes on where it stood; the record has the
costs of all its parts.
"""
import common, json, os, shutil

RECIPES = {"default": dict(iters=200), "light": dict(iters=50, lr=5e-3), "ext": dict(iters=200, enable_alg_ext=True),
           "best": dict(iters=1000), "small-batch": dict(iters=200, batch_size=2)}


def main():
    args = common.arguments(__doc__, list(RECIPES))
    parts = args.out.with_name(args.out.name + ".resume")
    os.environ["AR_RESUME_DIR"] = str(parts)
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    settings = {"bits": args.bits, "group_size": args.group_size, "sym": not args.asym, "batch_size": 8,
                "amp": torch.cpu._is_avx512_bf16_supported(), "enable_torch_compile": shutil.which("g++") is not None,
                **RECIPES[args.variant]}
    if args.variant == "best" and args.bits == 2:
        settings["enable_alg_ext"] = True
    ids = common.calibration_ids(args)
    # AutoRound leaves a sample shorter than seqlen out without a word.
    short = sum(len(sample) < args.tokens for sample in ids)
    assert short == 0, f"{short} samples are shorter than {args.tokens} tokens"
    model = common.load_model(args, torch.float32, attn_implementation="eager")
    keep_blocks(model, parts, settings)
    tuner = AutoRound(model, AutoTokenizer.from_pretrained(args.model), dataset=[torch.tensor([s]) for s in ids],
                      nsamples=len(ids), seqlen=args.tokens, device_map="cpu", **settings)
    loaded = common.usage()
    tuner.quantize()
    solved = common.usage()

    weights, earlier = kept_blocks(parts)
    for name, weight in weights.items():
        n_levels = weight.reshape(-1, args.group_size)[0].unique().numel()
        assert n_levels <= 2**args.bits, f"{name}: {n_levels} levels in a group of {args.bits} bits"
    common.save_float(args, weights)
    zero_bits = args.bits if args.asym else 0
    common.record(args, "autoround", settings, ids, ["auto-round"], loaded, solved, len(weights),
                  args.bits + (16 + zero_bits) / args.group_size, earlier)
    shutil.rmtree(parts)


def keep_blocks(model, parts, settings):
    """Has AutoRound's own note of a finished block keep the block's weights too, and what this process spent so far."""
    from auto_round.utils.resume import ResumeState
    from safetensors.torch import save_file

    parts.mkdir(parents=True, exist_ok=True)
    made_with = parts / "settings.json"
    if made_with.exists():
        assert json.loads(made_with.read_text()) == settings, f"{parts} was made with other settings: remove it"
    made_with.write_text(json.dumps(settings))
    note = ResumeState.mark_block_done

    def mark_block_done(self, block, q_input, input_ids):
        tuned = {f"{block}.{name}": module.weight.detach().contiguous().clone()
                 for name, module in model.get_submodule(block).named_modules()
                 if getattr(module, "scale", None) is not None}
        save_file(tuned, parts / f"{block}.safetensors")
        _, cpu_seconds, peak = common.usage()
        (parts / f"costs-{os.getpid()}.json").write_text(json.dumps([cpu_seconds, peak]))
        note(self, block, q_input, input_ids)

    ResumeState.mark_block_done = mark_block_done


def kept_blocks(parts):
    """-> the weights of all blocks by name, and what earlier processes spent: CPU seconds, peak resident bytes."""
    from safetensors.torch import load_file

    weights = {}
    for path in sorted(parts.glob("*.safetensors")):
        weights |= load_file(path)
    costs = [json.loads(path.read_text()) for path in parts.glob("costs-*.json")
             if path.name != f"costs-{os.getpid()}.json"]
    return weights, (sum(cpu for cpu, _ in costs), max((peak for _, peak in costs), default=0))


if __name__ == "__main__":
    main()
