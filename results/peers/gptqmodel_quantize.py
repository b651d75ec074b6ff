#!/usr/bin/env python3
"""Quantize a model folder with GPTQModel on the CPU and print what it cost: the peer of our benchmark.

usage: gptqmodel_quantize.py MODEL_DIR OUT_DIR --calib FILE.jsonl [--samples 64] [--tokens 512] [--bits 4]
                             [--group-size 64] [--asym] [--desc-act] [--mse] [--json FILE]
needs: pip install gptqmodel      (7.7.0; it fails on 2 cores without GPTQMODEL_CPU_WORKERS=2, set below)

Calibration: the first --tokens ids of each of the first --samples `text`s, without special tokens, batches of 4.
Reported: wall and CPU seconds (all threads and child processes) of the quantize call, of loading and saving, and of
the whole process; peak resident memory after each.
"""
import argparse, json, os, pathlib, resource, tempfile, time

START = time.perf_counter()
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def usage():
    """-> wall seconds since the start, CPU seconds, peak resident bytes; children included."""
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime
    return time.perf_counter() - START, cpu, max(mine.ru_maxrss, children.ru_maxrss) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--calib", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--desc-act", action="store_true")
    parser.add_argument("--mse", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    for name in ("model", "out", "calib", "json"):
        if path := getattr(args, name):
            setattr(args, name, path.resolve())
    # GPTQModel writes logs/ into the working folder, and fails when that goes away.
    scratch = tempfile.TemporaryDirectory()
    os.chdir(scratch.name)

    import gptqmodel, torch, transformers
    from gptqmodel import GPTQModel, QuantizeConfig
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in args.calib.read_text(encoding="utf-8").splitlines()[: args.samples]]
    samples = [tokenizer.encode(text, add_special_tokens=False).ids[: args.tokens] for text in texts]
    dataset = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]

    options = dict(bits=args.bits, group_size=args.group_size)
    if args.asym:
        # The grid with any zero point is stored as gptq_v2.
        options.update(sym=False, format="gptq_v2")
    if args.desc_act:
        options["desc_act"] = True
    if args.mse:
        options["mse"] = 2.4
    config = QuantizeConfig(**options)
    model = GPTQModel.load(str(args.model), config)
    loaded = usage()
    model.quantize(dataset, batch_size=4)
    solved = usage()
    model.save(str(args.out))
    saved = usage()

    result = {
        "peer": "gptqmodel", "model": args.model.name, "settings": options, "samples": len(samples),
        "calibration_tokens": sum(map(len, samples)),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load_average_at_end": os.getloadavg()[0],
        "versions": {"gptqmodel": gptqmodel.__version__, "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "load": {"seconds": loaded[0], "cpu_seconds": loaded[1], "peak_rss_bytes": loaded[2]},
        "quantize": {"seconds": solved[0] - loaded[0], "cpu_seconds": solved[1] - loaded[1],
                     "peak_rss_bytes": solved[2]},
        "save": {"seconds": saved[0] - solved[0], "cpu_seconds": saved[1] - solved[1]},
        "process": {"seconds": saved[0], "cpu_seconds": saved[1], "peak_rss_bytes": saved[2]},
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
