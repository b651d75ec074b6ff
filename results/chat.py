#!/usr/bin/env python3
"""What the model's own chat template is worth: a chat model calibrated on chats in its template, on the same chats with their
messages joined, and on the text inside the program, each scored on held-out chats, in the template and joined.

usage: results/chat.py MODEL [--bits N] [--threads N] [--out TABLE.md]
needs: a release build, Python's standard library; MODEL is a folder of a model with a chat template

The chats are this project's own: the passages of calibration_data/en-*.txt, code.txt and math.txt, each asked for by its first
words in one of six ways, some with a system prompt, some with a second question of which the next passage is the
answer. Every third passage is held out: it is in no chat that is calibrated on. Nothing is drawn at random.
"""
import argparse, json, os, pathlib, subprocess, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("HALFBYTE", str(ROOT / "target/release/halfbyte"))
ASKED = ["Please write the passage that begins with: {}", "How does this go on? {}", "Tell me more about this: {}",
         "{} - what comes next?", "I remember only the start, {}. Can you give me all of it?", "Continue: {}"]
SYSTEM = "You answer with whole passages and add nothing of your own."
RUN = """model: {{source: '{model}'}}
method: gptq
recipe: reference
calibration: {{sources: [{source}], num_samples: 48, sequence_length: 256, seed: {seed}}}
quant: {{bits: {bits}, group_size: 64, sym: true}}
export: [{{format: compressed-tensors}}]
report: {{calibration_curve: false}}
"""


def chats():
    """The chats to calibrate on and those held out."""
    passages = []
    for name in sorted(["code.txt", "math.txt"] + [p.name for p in (ROOT / "calibration_data").glob("en-*.txt")]):
        text = (ROOT / "calibration_data" / name).read_text(encoding="utf-8")
        passages += [p.strip() for p in text.split("\n\n") if len(p.split()) >= 12]
    parts = {"train": [p for i, p in enumerate(passages) if i % 3], "test": passages[::3]}
    made = {}
    for part, own in parts.items():
        made[part], at = [], 0
        while at < len(own):
            n = len(made[part])
            messages = [{"role": "system", "content": SYSTEM}] if n % 4 == 3 else []
            for passage in own[at:at + 1 + n % 2]:
                start = " ".join(passage.split()[:6])
                messages += [{"role": "user", "content": ASKED[(n + len(messages)) % len(ASKED)].format(start)},
                             {"role": "assistant", "content": passage}]
            made[part].append({"messages": messages})
            at += 1 + n % 2
    return made


def halfbyte(*words, **more):
    return subprocess.run([PROGRAM, *map(str, words)], check=True, capture_output=True, text=True, **more).stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model"), parser.add_argument("--bits", type=int, default=3), parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1), parser.add_argument("--out")
    asked = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="chat-"))
    made = chats()
    for part, own in made.items():
        (work / f"{part}.jsonl").write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in own), encoding="utf-8")
    joined = ["\n\n".join(m["content"] for m in chat["messages"]) for chat in made["test"]]
    (work / "joined.txt").write_text("\n\n".join(joined), encoding="utf-8")
    sources = [("chats in the template", "{path: train.jsonl}"), ("the same chats, joined", "{path: train.jsonl, chat_template: false}"),
               ("text inside the program", "{path: embedded:calibration}")]
    model = pathlib.Path(asked.model).resolve()
    lines = [f"{len(made['train'])} chats calibrated on, {len(made['test'])} held out", "",
             "| calibrated on | seed | KL, held-out chats in the template | KL, the same joined |", "|---|---|---|---|"]
    for seed in range(asked.seeds):
        for name, source in sources:
            (work / "p.yaml").write_text(RUN.format(model=model, source=source, seed=seed, bits=asked.bits))
            out = work / f"out-{seed}-{len(lines)}"
            halfbyte("run", work / "p.yaml", "--out", out, "--threads", asked.threads, "--device", "cpu")
            row = []
            for text in ["test.jsonl", "joined.txt"]:
                scores = halfbyte("eval", out, "--reference", model, "--text", work / text, "--sequence-length", 256, "--windows", 24,
                                  "--max-new-tokens", 0, "--threads", asked.threads, "--device", "cpu", "--json")
                against = json.loads(scores)["against"]
                row.append(f"{against['kl_mean']:.4f} ± {against['kl_mean_se']:.4f}")
            lines.append(f"| {name} | {seed} | {row[0]} | {row[1]} |")
            print(lines[-1], flush=True)
    if asked.out:
        pathlib.Path(asked.out).write_text("\n".join(lines) + "\n")


main()
