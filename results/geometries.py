#!/usr/bin/env python3
"""Every method on the shape of every model in tests/data/geometries.csv, narrowed, with random weights: what `run` gave.

usage: geometries.py [--halfbyte target/release/halfbyte] [--threads 1] [--only WORD] > geometries.md

A model keeps its heads, kv heads, biases, norms, type of weights and whether its head is tied; its head is as wide as
`small_head_dim` says, and hidden_size and intermediate_size go with it, the latter to the nearest multiple of 16. One block,
the embedded model's tokenizer and 4099 ids. No packages are needed.
"""

import argparse
import csv
import json
import math
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, GROUP, BLOCKS, SLIDING_WINDOW = 4099, 16, 1, 24

PIPELINE = """model: {source: model}
calibration: {sources: [{path: text.txt}], num_samples: 18, sequence_length: 64}
quant: {bits: 4, group_size: 16}
evaluate: {text: text.txt, sequence_length: 64, windows: 4}
report: {html: false, calibration_curve: false}
"""

SETTINGS = {
    "gptq": [],
    "gptq reference": ["recipe=reference"],
    "gptq best": ["recipe=best"],
    "float": ["propagation=float"],
    "asymmetric": ["propagation=asymmetric"],
    "rtn": ["method=rtn"],
    "rtn reference": ["method=rtn", "recipe=reference"],
    "awq": ["method=awq"],
    "awq reference": ["method=awq", "recipe=reference"],
    "awq+gptq": ["method=awq+gptq"],
    "awq+gptq best": ["method=awq+gptq", "recipe=best"],
    "hqq": ["method=hqq", "quant.sym=false"],
    "absmax 8": ["method=absmax", "quant={bits: 8, group_size: -1}", "export=[{format: int-quantized}]"],
    "nf4": ["method=nf4", "quant.group_size=64", "export=[{format: bitsandbytes}]"],
    "budget 5.5": ["budget={bits_per_weight: 5.5}"],
    "gptq 3": ["quant.bits=3"],
    "gptq best 2, tuned": ["quant.bits=2", "recipe=best"],
}


def shape(row):
    """The narrowed numbers of a line of the table."""
    wide, narrow = int(row["head_dim"]), int(row["small_head_dim"])
    return {
        "hidden_size": int(row["hidden_size"]) * narrow // wide,
        "intermediate_size": round(int(row["intermediate_size"]) * narrow / wide / GROUP) * GROUP,
        "num_attention_heads": int(row["heads"]),
        "num_key_value_heads": int(row["kv_heads"]),
        "head_dim": narrow,
    }


def config(row):
    made = {
        "model_type": row["model_type"],
        **shape(row),
        "num_hidden_layers": BLOCKS,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "tie_word_embeddings": row["tied"] == "yes",
        "torch_dtype": row["dtype"],
    }
    if row["model_type"] == "llama":
        made |= {key: row[key] == "yes" for key in ("attention_bias", "mlp_bias")}
    if row["sliding_window"]:
        made["sliding_window"] = SLIDING_WINDOW
    return made


def tensors(row):
    """Names, shapes and standard deviations; norms have none and are 1."""
    c = config(row)
    hidden, inner, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    queries, keys = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    qwen2 = row["model_type"] == "qwen2"
    biased = {"self_attn": c.get("attention_bias"), "mlp": c.get("mlp_bias")}
    yield "model.embed_tokens.weight", [VOCABULARY, hidden], 3 / math.sqrt(hidden)
    for block in range(BLOCKS):
        at = f"model.layers.{block}."
        yield at + "input_layernorm.weight", [hidden], None
        for name, out, width, size in (
            ("self_attn.q_proj", queries, hidden, 1.5),
            ("self_attn.k_proj", keys, hidden, 1.5),
            ("self_attn.v_proj", keys, hidden, 1),
            ("self_attn.o_proj", hidden, queries, 1),
            ("mlp.gate_proj", inner, hidden, 1),
            ("mlp.up_proj", inner, hidden, 1),
            ("mlp.down_proj", hidden, inner, 1),
        ):
            yield f"{at}{name}.weight", [out, width], size / math.sqrt(width)
            part, linear = name.split(".")
            if biased[part] or (qwen2 and linear[0] in "qkv"):
                yield f"{at}{name}.bias", [out], 0.3
        if row["model_type"] == "qwen3":
            yield at + "self_attn.q_norm.weight", [dim], None
            yield at + "self_attn.k_norm.weight", [dim], None
        yield at + "post_attention_layernorm.weight", [hidden], None
    yield "model.norm.weight", [hidden], None
    if row["tied"] != "yes":
        yield "lm_head.weight", [VOCABULARY, hidden], 3 / math.sqrt(hidden)


def encoded(deviation, count, dtype, rand):
    """Random numbers, or ones for a norm, as the bytes of a type."""
    if deviation is None:
        values = array("f", [1.0]) * count
    else:
        values = array("f", (rand.gauss(0.0, deviation) for _ in range(count)))
    if dtype == "float16":
        return struct.pack(f"<{count}e", *values)
    raw = struct.pack(f"<{count}f", *values)
    if dtype == "float32":
        return raw
    cut = bytearray(2 * count)
    cut[0::2], cut[1::2] = raw[2::4], raw[3::4]
    return bytes(cut)


def write_model(folder, row):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(row)))
    shutil.copy(ROOT / "crates/checkpoint/embedded/tiny/tokenizer.json", folder)
    rand = random.Random(7)
    name_of = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[row["dtype"]]
    header, data = {"__metadata__": {"format": "pt"}}, []
    end = 0
    for name, dims, deviation in tensors(row):
        raw = encoded(deviation, math.prod(dims), row["dtype"], rand)
        header[name] = {"dtype": name_of, "shape": dims, "data_offsets": [end, end + len(raw)]}
        end += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


class Bench:
    def __init__(self, folder, options):
        self.folder, self.options = folder, options
        shutil.copy(ROOT / "calibration_data/en-narrative.txt", folder / "text.txt")
        (folder / "p.yaml").write_text(PIPELINE)

    def call(self, *words):
        """Exit code and stdout; what went wrong is told on stderr."""
        machine = [] if words[0] == "inspect" else ["--device", "cpu", "--threads", str(self.options.threads)]
        program = [str(Path(self.options.halfbyte).resolve()), *words, *machine]
        ended = subprocess.run(program, cwd=self.folder, capture_output=True, text=True)
        if ended.returncode:
            print(f"{' '.join(words)}: exit {ended.returncode}\n{ended.stderr[-600:]}", file=sys.stderr)
        return ended.returncode, ended.stdout

    def run(self, settings, out):
        shutil.rmtree(self.folder / out, ignore_errors=True)
        sets = [word for setting in settings for word in ("--set", setting)]
        code, _ = self.call("run", "p.yaml", "--out", out, *sets)
        if code:
            return f"exit {code}"
        record = json.loads((self.folder / out / "halfbyte/run.json").read_text())
        return figure(record["evaluation"]["kl_mean"])

    def sweep(self):
        shutil.rmtree(self.folder / "swept", ignore_errors=True)
        grid = "sweep={bits: [3, 4], group_size: [16, -1], winner: {by: kl}}"
        code, _ = self.call("sweep", "p.yaml", "--out", "swept", "--set", grid)
        if code:
            return f"exit {code}"
        record = json.loads((self.folder / "swept/halfbyte/sweep.json").read_text())
        scores = [cell["evaluation"]["kl_mean"] for cell in record["cells"]]
        return f"{figure(min(scores))} to {figure(max(scores))}"

    def commands(self, model):
        """What the commands give that take a finished folder: eval, the same with --packed, sensitivity, generate."""
        on = ["--reference", "model", "--text", "text.txt", "--sequence-length", "64", "--windows", "4", "--json"]
        cells = []
        for more in ([], ["--packed"]):
            code, told = self.call("eval", model, *on, "--max-new-tokens", "0", *more)
            cells.append(f"exit {code}" if code else figure(json.loads(told)["against"]["kl_mean"]))
        code, told = self.call("sensitivity", model, *on)
        if code:
            cells.append(f"exit {code}")
        else:
            parts = json.loads(told)["parts"]
            foretold = sum(part["predicted_kl"] for part in parts)
            cells.append(f"{figure(foretold)} / {figure(sum(part['kl_mean'] for part in parts))}")
        code, told = self.call("generate", model, "--prompt", "The cooks of the harbour", "--raw", "--max-new-tokens", "12", "--json")
        cells.append(f"exit {code}" if code else str(len(json.loads(told)["tokens"])))
        return cells


def figure(x):
    return f"{x:.3g}"


def line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--halfbyte", default=ROOT / "target/release/halfbyte")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--only", default="")
    options = options.parse_args()
    with open(ROOT / "tests/data/geometries.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if options.only in row["model"]]
    shapes, runs, commands, failed = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for row in rows:
            print(row["model"], file=sys.stderr, flush=True)
            write_model(bench.folder / "model", row)
            small = shape(row)
            biases = {"qwen2": "q, k, v"}.get(row["model_type"], "all" if row["mlp_bias"] else "none")
            shapes.append(line([
                row["model"], row["model_type"], f"{row['heads']}/{row['kv_heads']}",
                f"{row['head_dim']} ({small['head_dim']})",
                f"{row['hidden_size']} ({small['hidden_size']})",
                f"{int(row['heads']) * int(row['head_dim'])} ({int(row['heads']) * small['head_dim']})",
                f"{row['intermediate_size']} ({small['intermediate_size']})",
                biases, row["tied"], "yes" if row["model_type"] == "qwen3" else "no", row["dtype"],
            ]))
            found = {name: bench.run(settings, "default" if name == "gptq" else "out") for name, settings in SETTINGS.items()}
            others = [bench.sweep(), *bench.commands("default")]
            runs.append(line([row["model"], *found.values()]))
            commands.append(line([row["model"], *others]))
            failed += sum(cell.startswith("exit") for cell in [*found.values(), *others])
    tries = len(rows) * (len(SETTINGS) + 5)
    print(f"""# Published shapes, every method

Made by [geometries.py](geometries.py): the shapes of {len(rows)} published models, narrowed to what stands in brackets, one block
each, random weights. {tries - failed} of {tries} tries ended with exit code 0. Random weights are harder to round than trained
ones, and methods differ less on them: the figures say that each is sound, not which is best.

## Shapes

| model | family | heads/kv | head_dim | hidden_size | q's rows | intermediate_size | biases | tied | q/k norm | dtype |
|---|---|---|---|---|---|---|---|---|---|---|
""" + "\n".join(shapes) + f"""

## Mean KL divergence of the exported file from the float model, nats a token

4 bits in groups of 16, symmetric, where nothing else is said.

| model | {' | '.join(SETTINGS)} |
|---|{'---|' * len(SETTINGS)}
""" + "\n".join(runs) + """

## The other commands

`sweep`: KL of the best and the worst of four cells. The others read the default run's export: KL by `eval` and by
`eval --packed`, the sum of KL over kinds of linears as foretold and as measured by `sensitivity`, tokens that `generate` gave of
12.

| model | sweep | eval | eval --packed | sensitivity | generate |
|---|---|---|---|---|---|
""" + "\n".join(commands))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
