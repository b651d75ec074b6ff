#!/usr/bin/env python3
"""KL divergence over size: uniform widths beside budgets, from runs of halfbyte.

usage: curve.py NAME=RUN_FOLDER ... --csv budget_curve.csv [--svg budget_curve.svg]
needs: pip install matplotlib      (for --svg)

A run folder is what `halfbyte run` left, with an evaluation; runs whose run.json has a `budget` are drawn as one line,
the others as another for each group size. Rows already in the CSV stay unless a run of the same name is given.
"""
import argparse, csv, json, pathlib

FIELDS = ["name", "kind", "bits_per_weight", "bytes", "kl", "kl_se", "perplexity", "predicted_kl", "cpu_seconds"]


def row(name, folder):
    run = json.loads((pathlib.Path(folder) / "halfbyte" / "run.json").read_text())
    scores, summary, budget = run["evaluation"], run["summary"], run.get("budget")
    kind = "budget" if budget else f"uniform g{run['pipeline']['quant']['group_size']}"
    return {"name": name, "kind": kind, "bits_per_weight": round(summary["bits_per_weight"], 4),
            "bytes": summary["bytes_after"], "kl": round(scores["kl_mean"], 5), "kl_se": round(scores["kl_mean_se"], 5),
            "perplexity": round(scores["perplexity"], 3),
            "predicted_kl": round(budget["predicted_kl"], 5) if budget else "",
            "cpu_seconds": round(summary["cpu_seconds"])}


def draw(rows, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "halfbyte"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for kind in sorted({r["kind"] for r in rows}):
        points = sorted((float(r["bytes"]) / 1e6, float(r["kl"]), float(r["kl_se"])) for r in rows if r["kind"] == kind)
        x, y, error = zip(*points)
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label=kind)
    axes.set(xlabel="bytes of the checkpoint, millions", ylabel="KL to the float model, nats a token", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN_FOLDER")
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--svg", type=pathlib.Path)
    args = parser.parse_args()
    rows = {}
    if args.csv.exists():
        with args.csv.open(newline="") as file:
            rows = {r["name"]: r for r in csv.DictReader(file)}
    for item in args.runs:
        name, folder = item.split("=", 1)
        rows[name] = row(name, folder)
    ordered = sorted(rows.values(), key=lambda r: (r["kind"], float(r["bits_per_weight"])))
    with args.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    if args.svg:
        draw(ordered, args.svg)


if __name__ == "__main__":
    main()
