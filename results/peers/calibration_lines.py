#!/usr/bin/env python3
"""Writes a folder of plain text as calibration lines that all tools read alike: {"text": ...}, each long enough.

usage: calibration_lines.py MODEL_DIR TEXT_DIR OUT.jsonl [--samples 64] [--tokens 256]
needs: pip install tokenizers

The samples lie evenly over all *.txt files in name order. Each has some tokens more than asked, since a text cut in two
may be tokenized otherwise at its ends, and workers cut to the length themselves.
"""
import argparse, json, pathlib

from tokenizers import Tokenizer

SPARE = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(args.texts.glob("*.txt")))
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    length = args.tokens + SPARE
    step = (len(offsets) - length) // max(args.samples - 1, 1)
    if step < length:
        parser.error(f"{args.texts} has {len(offsets)} tokens, {args.samples} samples of {length} want more")
    lines = []
    for first in range(0, args.samples * step, step):
        sample = text[offsets[first][0]: offsets[first + length - 1][1]]
        assert len(tokenizer.encode(sample, add_special_tokens=False).ids) >= args.tokens
        lines.append(json.dumps({"text": sample}, ensure_ascii=False))
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
