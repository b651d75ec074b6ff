#!/usr/bin/env python3
"""Score a model folder of any format with transformers' forward and numpy's dequantizing, in float32.

usage: eval_folder.py REFERENCE_DIR DIR --text FILE [--windows all|COUNT|0,38,...] [--length 1024] [--json FILE]
needs: pip install torch transformers tokenizers numpy

REFERENCE_DIR is the float model, DIR the same model quantized (or the same folder again: KL 0). The text is tokenised
as one string without special tokens and cut in windows of --length tokens that do not overlap. Perplexity is exp of
the mean negative log likelihood of tokens 2.. of each window; KL(reference || DIR), in nats, and top-1 agreement are
taken at the same positions (those that predict a token of the window).
"""
import argparse, json, math, pathlib

import numpy as np
import torch
from tokenizers import Tokenizer

import folder as F

# 8 of the 294 windows of WikiText-2's test split for a vocabulary of 49152: evenly spaced.
SET_E = "0,38,76,114,165,203,242,293"


def chosen(windows, available):
    if windows == "all":
        return list(range(available))
    picked = [int(i) for i in windows.split(",")]
    if len(picked) == 1 and "," not in windows:
        picked = [round(i * (available - 1) / max(picked[0] - 1, 1)) for i in range(picked[0])]
    if max(picked) >= available:
        raise SystemExit(f"the text has {available} windows: {max(picked)} is too high")
    return picked


def log_probabilities(model, ids):
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--windows", default=SET_E)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.reference / "tokenizer.json"))
    ids = tokenizer.encode(args.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    windows = chosen(args.windows, len(ids) // args.length)
    reference, _ = F.float_model(args.reference)
    model, quantized = F.float_model(args.folder)

    nll, nll_reference, kl, agree = [], [], [], []
    for index in windows:
        window = torch.tensor(ids[index * args.length : (index + 1) * args.length])
        want = log_probabilities(reference, window)
        got = log_probabilities(model, window)
        targets = window[1:, None]
        nll.append(-got.gather(1, targets)[:, 0].double().numpy())
        nll_reference.append(-want.gather(1, targets)[:, 0].double().numpy())
        agree.append((got.argmax(1) == want.argmax(1)).numpy())
        kl.append((want.exp() * (want - got)).sum(1, dtype=torch.float64).numpy())
        print(f"window {index:4}  perplexity {math.exp(nll[-1].mean()):8.3f}  kl {kl[-1].mean():.4f}", flush=True)
    kl = np.concatenate(kl)
    result = {
        "folder": args.folder.name, "quantized_linears": len(quantized), "windows": windows, "length": args.length,
        "text_tokens": len(ids), "perplexity_float": math.exp(np.concatenate(nll_reference).mean()),
        "perplexity": math.exp(np.concatenate(nll).mean()), "kl_mean": kl.mean(), "kl_median": float(np.median(kl)),
        "kl_p99": float(np.percentile(kl, 99)), "top1_agreement": float(np.concatenate(agree).mean()),
        "perplexity_by_window": [math.exp(x.mean()) for x in nll],
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
