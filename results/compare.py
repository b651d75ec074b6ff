#!/usr/bin/env python3
"""halfbyte and other quantizers on the same model, calibration ids and evaluator, in one table.

usage: compare.py MODEL CALIB.jsonl --text FILE --halfbyte PATH/halfbyte [--peer NAME=VENV/bin/python ...]
                  [--bits 4,3,2] [--grids sym,asym] [--group-size 64] [--samples 64] [--tokens 512]
                  [--only NAME,NAME] [--json results/compare.json] [--plan]

Each cell of the table (method, bits, grid) is one child process in its own environment, one after another: its CPU
seconds and peak memory are those the system counted for the child, imports and saving included. `peers/` holds a worker
for each peer. Whatever it writes is scored by `halfbyte eval` against the float model. A finished cell is saved in the
JSON at once, so a comparison that was cut off goes on where it stood; a cell that failed keeps its error line and is
tried again by the next call. A method whose peer has no --peer is left out. The table is printed and written beside the
JSON. Of the 64 samples halfbyte's pipelines hold 4 out of calibration; peers use all.

--only takes methods (autoround) or cells (autoround-4-asym); methods marked * run only when named:
"""
import argparse, hashlib, json, os, pathlib, re, shutil, subprocess, sys, time

HERE = pathlib.Path(__file__).resolve().parent
PIPELINES = {"sym": HERE.parent / "pipelines" / "smollm2-4bit.yaml",
             "asym": HERE.parent / "pipelines" / "smollm2-4bit-asym.yaml"}
# The windows of set E, which the pipelines name too.
WINDOWS = "0,38,76,114,165,203,242,293"
# Method -> peer, its variant, its grids, whether it runs unasked.
METHODS = {
    "halfbyte": ("halfbyte", "default", ("sym", "asym"), True),
    "halfbyte-best": ("halfbyte", "best", ("sym", "asym"), True),
    "gptqmodel": ("gptqmodel", "default", ("sym", "asym"), True),
    "gptqmodel-mse": ("gptqmodel", "mse", ("sym", "asym"), True),
    "gptqmodel-desc-act": ("gptqmodel", "desc-act", ("sym", "asym"), False),
    "llmcompressor-gptq": ("llmcompressor", "gptq", ("sym", "asym"), True),
    "llmcompressor-awq": ("llmcompressor", "awq", ("sym", "asym"), True),
    "autoround": ("autoround", "default", ("sym", "asym"), True),
    "autoround-best": ("autoround", "best", ("sym", "asym"), True),
    "autoround-light": ("autoround", "light", ("sym", "asym"), False),
    "autoround-ext": ("autoround", "ext", ("sym", "asym"), False),
    "autoround-small-batch": ("autoround", "small-batch", ("sym", "asym"), False),
    "hqq": ("hqq", "default", ("asym",), True),
}
PEERS = sorted({peer for peer, *_ in METHODS.values()} - {"halfbyte"})


def main():
    args = arguments()
    state = load_state(args)
    cells = chosen_cells(args)
    if args.again:
        for cell in cells:
            state["cells"].pop(cell["name"], None)
    if args.plan:
        for cell in cells:
            print(f"{cell['name']}: {status(state, cell)}")
            if status(state, cell) != "done":
                print("   ", " ".join(map(str, command(args, cell))))
        return
    for cell in cells:
        if status(state, cell) == "done":
            continue
        print(f"{time.strftime('%H:%M:%S')} {cell['name']}", file=sys.stderr, flush=True)
        finish(args, state, cell)
        save(args.json, state)
        args.json.with_suffix(".md").write_text(table(state), encoding="utf-8")
    print(table(state))


def arguments():
    listed = ", ".join(name if unasked else name + "*" for name, (*_, unasked) in METHODS.items())
    parser = argparse.ArgumentParser(description=__doc__ + listed, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="float model folder")
    parser.add_argument("calib", type=pathlib.Path, help='lines of {"text": ...}')
    parser.add_argument("--text", type=pathlib.Path, required=True, help="text to score on")
    parser.add_argument("--halfbyte", type=pathlib.Path, required=True, help="the program: quantizer and evaluator")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(PEERS))
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--grids", default="sym,asym")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="of each sample")
    parser.add_argument("--windows", default=WINDOWS, help="as halfbyte eval takes them")
    parser.add_argument("--sequence-length", type=int, default=1024, help="of the windows")
    parser.add_argument("--only", help="methods or cells")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, help="seconds a cell may take to quantize")
    parser.add_argument("--json", type=pathlib.Path, default=HERE / "compare.json")
    parser.add_argument("--folder", type=pathlib.Path, help="for the quantized models (default: beside the JSON)")
    parser.add_argument("--keep", action="store_true", help="keep the quantized models")
    parser.add_argument("--again", action="store_true", help="run the chosen cells even where they are done")
    parser.add_argument("--plan", action="store_true", help="print what would run, and run nothing")
    args = parser.parse_args()
    for name in ("model", "calib", "text", "halfbyte", "json"):
        # A Python of an environment is a link and must stay one, so only these are resolved.
        setattr(args, name, getattr(args, name).resolve())
    for name in ("model", "calib", "text", "halfbyte"):
        if not getattr(args, name).exists():
            parser.error(f"{name}: {getattr(args, name)} is not there")
    args.folder = (args.folder or args.json.with_suffix("")).resolve()
    args.peer = dict(item.split("=", 1) for item in args.peer)
    if unknown := set(args.peer) - set(PEERS):
        parser.error(f"--peer: unknown {', '.join(unknown)}; there are {', '.join(PEERS)}")
    args.bits = [int(bits) for bits in args.bits.split(",")]
    args.grids = args.grids.split(",")
    args.only = args.only.split(",") if args.only else None
    return args


# ---- cells ---------------------------------------------------------------------------------------------------------

def chosen_cells(args):
    """The cells to run, in the table's order: all bits of one grid, method by method."""
    cells, unmatched = [], set(args.only or [])
    for bits in args.bits:
        for grid in args.grids:
            for method, (peer, variant, grids, unasked) in METHODS.items():
                short = f"{method}-{bits}-{grid}"
                wanted = unasked if args.only is None else {method, short} & set(args.only)
                unmatched -= {method, short}
                if not wanted or grid not in grids:
                    continue
                if peer != "halfbyte" and peer not in args.peer:
                    print(f"{short}: left out, no --peer {peer}=PYTHON", file=sys.stderr)
                    continue
                name = f"{short}-g{args.group_size}-{args.samples}x{args.tokens}"
                cells.append(dict(name=name, method=method, peer=peer, variant=variant, bits=bits, grid=grid,
                                  group_size=args.group_size, samples=args.samples, tokens=args.tokens))
    if unmatched:
        sys.exit(f"--only: no such method or cell: {', '.join(sorted(unmatched))}")
    return cells


def status(state, cell):
    found = state["cells"].get(cell["name"], {})
    if "score" in found:
        return "done"
    return f"failed before ({found['error']})" if "error" in found else "to do"


def command(args, cell):
    """The command line that quantizes one cell into its folder."""
    folder = args.folder / cell["name"]
    if cell["peer"] == "halfbyte":
        settings = [f"model.source={args.model}", f"recipe={cell['variant']}",
                    f"calibration.sources.0.path={args.calib}", f"calibration.num_samples={args.samples}",
                    f"calibration.sequence_length={args.tokens}", f"quant.bits={cell['bits']}",
                    f"quant.group_size={args.group_size}", "evaluate=false", "export=[{format: compressed-tensors}]"]
        return [args.halfbyte, "run", PIPELINES[cell["grid"]], "--out", folder, "--device", "cpu", "--fresh",
                "--threads", args.threads] + [word for setting in settings for word in ("--set", setting)]
    worker = HERE / "peers" / f"{cell['peer']}_quantize.py"
    return [args.peer[cell["peer"]], worker, args.model, folder, "--calib", args.calib, "--samples", args.samples,
            "--tokens", args.tokens, "--bits", cell["bits"], "--group-size", args.group_size,
            "--variant", cell["variant"], "--json", folder.with_suffix(".json")
            ] + (["--asym"] if cell["grid"] == "asym" else [])


def finish(args, state, cell):
    """Quantizes and scores one cell; what went wrong becomes its `error`. The caller saves."""
    folder = args.folder / cell["name"]
    args.folder.mkdir(parents=True, exist_ok=True)
    earlier = state["cells"].get(cell["name"], {})
    # A model that was quantized and only not scored is not made again.
    result = earlier if "cost" in earlier and folder.exists() else dict(cell)
    result.pop("error", None)
    state["cells"][cell["name"]] = result
    try:
        if "cost" not in result:
            shutil.rmtree(folder, ignore_errors=True)
            result["cost"] = measured(args, command(args, cell), folder.with_suffix(".log"), args.timeout)
            result.update(account(args, cell, folder))
            add_earlier(result)
            check_calibration(state, result)
            save(args.json, state)
        result["score"] = score(args, folder, folder.with_suffix(".log"))
        result["evaluator_sha256"] = sha256(args.halfbyte)
    except Failure as failure:
        result["error"] = str(failure)
        print(f"{cell['name']} failed: {failure}", file=sys.stderr)
        return
    if not args.keep:
        shutil.rmtree(folder)


def account(args, cell, folder):
    """What the run says of itself: version, bits per weight, settings."""
    try:
        if cell["peer"] == "halfbyte":
            run = json.loads((folder / "halfbyte" / "run.json").read_text())
            return {"version": run["version"], "bits_per_weight": run["summary"]["bits_per_weight"],
                    "binary_sha256": sha256(args.halfbyte), "pipeline": without_folders(run["pipeline"])}
        record = json.loads(folder.with_suffix(".json").read_text())
    except (OSError, KeyError) as error:
        raise Failure(f"wrote no whole record: {error}") from error
    return {"version": next(iter(record["versions"].values())), "bits_per_weight": record["bits_per_weight"],
            "record": record}


def add_earlier(result):
    """Adds what the processes spent whose work this one finished."""
    earlier, cost = result.get("record", {}).get("earlier", {}), result["cost"]
    cost["cpu_seconds"] += earlier.get("cpu_seconds", 0)
    cost["peak_rss_bytes"] = max(cost["peak_rss_bytes"], earlier.get("peak_rss_bytes", 0))


def without_folders(value):
    """The pipeline with the names of files and folders of this machine and not where they lie."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return pathlib.Path(value).name if isinstance(value, str) and value.startswith("/") else value


def check_calibration(state, result):
    """All peers that calibrate must have read the same ids."""
    mine = result.get("record", {}).get("calibration_sha256")
    if mine is None:
        return
    for other in state["cells"].values():
        theirs = other.get("record", {}).get("calibration_sha256")
        same_work = (other["samples"], other["tokens"]) == (result["samples"], result["tokens"])
        if theirs is not None and same_work and theirs != mine:
            raise Failure(f"calibration ids differ from those of {other['name']}")


# ---- children ------------------------------------------------------------------------------------------------------

class Failure(Exception):
    """A child that failed: its last words."""


def measured(args, words, log, timeout=None):
    """Runs a command, its output to `log`; -> wall seconds, CPU seconds and peak resident bytes of the child."""
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    start = time.perf_counter()
    # Some tools write into the working folder.
    with log.open("w") as output, subprocess.Popen(list(map(str, words)), stdout=output, stderr=subprocess.STDOUT,
                                                   env=env, cwd=args.folder) as process:
        late = False
        while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if timeout and not late and time.perf_counter() - start > timeout:
                late = True
                process.kill()
            time.sleep(0.2)
        _, code, usage = waited
        process.returncode = os.waitstatus_to_exitcode(code)
    if late:
        raise Failure(f"took longer than {timeout:.0f} s")
    if process.returncode != 0:
        raise Failure(last_words(log) or f"ended with {process.returncode}")
    return {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_rss_bytes": usage.ru_maxrss * 1024, "threads": args.threads, "load_average": os.getloadavg()[0]}


def last_words(log):
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log.read_text(errors="replace")) if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*([Ee]rror|Exception)\b", line)]
    return (errors or lines or [""])[-1][:300]


def score(args, model, log):
    """KL, perplexity and top-1 agreement of a folder against the float model, by halfbyte."""
    words = [args.halfbyte, "eval", model, "--reference", args.model, "--text", args.text,
             "--sequence-length", args.sequence_length, "--windows", args.windows, "--device", "cpu",
             "--threads", args.threads, "--json"]
    with log.open("a") as output:
        done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, stderr=output, text=True)
    if done.returncode != 0:
        raise Failure("eval: " + (last_words(log) or str(done.returncode)))
    return json.loads(done.stdout)


# ---- state and table -----------------------------------------------------------------------------------------------

def load_state(args):
    """The JSON so far; another model, text or choice of windows needs another file."""
    work = {"model": args.model.name, "model_sha256": model_sha256(args.model), "calib": args.calib.name,
            "calib_sha256": sha256(args.calib), "text": args.text.name, "text_sha256": sha256(args.text),
            "windows": args.windows, "sequence_length": args.sequence_length}
    if not args.json.exists():
        return {"work": work, "cells": {}}
    state = json.loads(args.json.read_text())
    if state["work"] != work:
        changed = [key for key in work if state["work"].get(key) != work[key]]
        sys.exit(f"{args.json} holds other work ({', '.join(changed)} differ): name another with --json")
    return state


def save(path, state):
    """Whole or not at all: a file cut short would lose hours."""
    scratch = path.with_suffix(".json.tmp")
    scratch.write_text(json.dumps(state, indent=1) + "\n")
    scratch.replace(path)


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder):
    """One hash over the model's weight files."""
    return hashlib.sha256("".join(sha256(path) for path in sorted(folder.glob("*.safetensors"))).encode()).hexdigest()


def table(state):
    """The markdown table, best first at each number of bits and grid; failures at its end."""
    work, cells = state["work"], list(state["cells"].values())
    done = sorted((cell for cell in cells if "score" in cell),
                  key=lambda cell: (-cell["bits"], cell["grid"] != "sym", cell["score"]["against"]["kl_mean"]))
    lines = [f"Model {work['model']}, calibration {work['calib']}, text {work['text']}, windows {work['windows']} of "
             f"{work['sequence_length']} tokens.", ""]
    if done:
        lines[0] += f" Float perplexity {done[0]['score']['against']['perplexity_float']:.3f}."
    lines += ["| method | version | calibration | bits | grid | group | bits/weight | KL | perplexity | top-1 | CPU s "
              "| of which quantize | peak MB |", "|---" * 13 + "|"]
    for cell in done:
        against, cost = cell["score"]["against"], cell["cost"]
        calibration = "none" if cell["peer"] == "hqq" else f"{cell['samples']}x{cell['tokens']}"
        inside = f"{cell['record']['quantize']['cpu_seconds']:.0f}" if "record" in cell else ""
        lines.append(f"| {cell['method']} | {cell['version']} | {calibration} | {cell['bits']} | {cell['grid']} "
                     f"| {cell['group_size']} | {cell['bits_per_weight']:.3f} "
                     f"| {against['kl_mean']:.4f} ± {against['kl_mean_se']:.4f} | {cell['score']['perplexity']:.2f} "
                     f"| {against['top1_agreement']:.3f} | {cost['cpu_seconds']:.0f} | {inside} "
                     f"| {cost['peak_rss_bytes'] / 1e6:.0f} |")
    for cell in cells:
        if "error" in cell:
            words = cell["error"].replace("|", "/")
            lines.append(f"| {cell['method']} | | {cell['samples']}x{cell['tokens']} | {cell['bits']} | {cell['grid']} "
                         f"| {cell['group_size']} | | failed: {words} | | | | | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
