#!/usr/bin/env python3
"""halfbyte and GPTQModel on the same work, one after the other in one run: CPU seconds, wall seconds, peak memory.

usage: benchmark.py MODEL_DIR CALIB.jsonl --halfbyte PATH/halfbyte --peer-python VENV/bin/python [--threads 2]
                    [--repeat 1] [--json FILE]

The work: SmolLM2-135M (or any Llama-like folder), 64 samples of 512 tokens, 4 bits, group 64, symmetric, evaluation left
out. Both read the same folder and write a GPTQ checkpoint. CPU seconds are those of all threads; only CPU seconds and
memory compare on a shared machine. Rounds alternate, and the table gives each round.
"""
import argparse, json, os, pathlib, resource, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
PIPELINE = HERE.parent / "pipelines" / "smollm2-4bit.yaml"


def measured(command, env=None):
    """Runs a command; -> wall seconds, CPU seconds of all its threads, peak resident bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed:\n{error.decode()[-2000:]}")
    return {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_rss_bytes": usage.ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("calib", type=pathlib.Path)
    parser.add_argument("--halfbyte", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    model, calib = args.model.resolve(), args.calib.resolve()
    rounds = []
    for _ in range(args.repeat):
        with tempfile.TemporaryDirectory() as folder:
            ours = measured([args.halfbyte, "run", str(PIPELINE), "--out", f"{folder}/ours", "--device", "cpu",
                             "--threads", str(args.threads), "--set", f"model.source={model}",
                             "--set", f"calibration.sources.0.path={calib}", "--set", "calibration.holdout=0",
                             "--set", "evaluate=false", "--set", "export=[{format: gptq}]"])
            env = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
            peer = measured([args.peer_python, str(HERE / "peers" / "gptqmodel_quantize.py"), str(model),
                             f"{folder}/peer", "--calib", str(calib), "--json", f"{folder}/peer.json"], env)
            inside = json.loads(pathlib.Path(f"{folder}/peer.json").read_text())
        # Without the import of torch and the saving: what the peer's own quantize call took.
        peer["quantize_cpu_seconds"] = inside["quantize"]["cpu_seconds"]
        rounds.append({"halfbyte": ours, "gptqmodel": peer, "versions": inside["versions"],
                       "cpu_ratio": peer["cpu_seconds"] / ours["cpu_seconds"],
                       "cpu_ratio_quantize_alone": peer["quantize_cpu_seconds"] / ours["cpu_seconds"],
                       "memory_ratio": peer["peak_rss_bytes"] / ours["peak_rss_bytes"]})
        print(json.dumps(rounds[-1], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rounds": rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
