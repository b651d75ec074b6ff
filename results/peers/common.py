"""What every peer's worker shares: the arguments, the calibration ids, the costs, the float folder, the record.

A worker quantizes one model folder one way and writes a folder that `halfbyte eval` reads: the peer's own checkpoint
where its format is one of ours, else the dequantized weights in float32.
"""
import argparse, hashlib, importlib.metadata, json, os, pathlib, resource, shutil, time

START = time.perf_counter()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def arguments(doc, variants):
    """Parses the command line all workers have; `variants` are the peer's own ways, the first its default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="model folder")
    parser.add_argument("out", type=pathlib.Path, help="folder to write")
    parser.add_argument("--calib", type=pathlib.Path, required=True, help='lines of {"text": ...}')
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="a sample is cut to so many")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--asym", action="store_true", help="a zero point for each group")
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--json", type=pathlib.Path, help="file for the record")
    args = parser.parse_args()
    for name in ("model", "out", "calib", "json"):
        if path := getattr(args, name):
            setattr(args, name, path.resolve())
    return args


def calibration_ids(args):
    """The first `tokens` ids of each of the first `samples` texts, without special tokens: the same for every tool."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    lines = args.calib.read_text(encoding="utf-8").splitlines()[: args.samples]
    return [tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids[: args.tokens] for line in lines]


def usage():
    """-> wall seconds since the start, CPU seconds, peak resident bytes; children included."""
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime
    return time.perf_counter() - START, cpu, max(mine.ru_maxrss, children.ru_maxrss) * 1024


def load_model(args, dtype, **settings):
    """The transformers model, its weights in `dtype`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, **settings).eval()


def save_float(args, weights):
    """Writes the model in float32 with `weights` (name of a linear -> [out, in]) in place of its own."""
    import torch

    model = load_model(args, torch.float32)
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = weight.detach().to(torch.float32).contiguous()
    model.save_pretrained(args.out)
    copy_tokenizer(args)


def copy_tokenizer(args):
    """Puts the tokenizer's files beside the weights."""
    for name in TOKENIZER_FILES:
        if (args.model / name).exists():
            shutil.copy(args.model / name, args.out / name)


def record(args, peer, settings, ids, packages, loaded, solved, linears, bits_per_weight, earlier=(0, 0)):
    """Prints and writes what was done and what it cost; `loaded` and `solved` are usage() around the quantize call,
    `earlier` the CPU seconds and peak bytes of processes whose work this one finished."""
    import torch

    saved = usage()
    result = {
        "peer": peer, "variant": args.variant, "model": args.model.name, "settings": settings,
        "linears": linears, "bits_per_weight": bits_per_weight,
        "samples": len(ids), "calibration_tokens": sum(map(len, ids)),
        "calibration_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest() if ids else None,
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load_average_at_end": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in (*packages, "torch", "transformers")},
        "load": {"seconds": loaded[0], "cpu_seconds": loaded[1], "peak_rss_bytes": loaded[2]},
        "quantize": {"seconds": solved[0] - loaded[0], "cpu_seconds": solved[1] - loaded[1],
                     "peak_rss_bytes": solved[2]},
        "save": {"seconds": saved[0] - solved[0], "cpu_seconds": saved[1] - solved[1]},
        "process": {"seconds": saved[0], "cpu_seconds": saved[1], "peak_rss_bytes": saved[2]},
        "earlier": {"cpu_seconds": earlier[0], "peak_rss_bytes": earlier[1]},
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
