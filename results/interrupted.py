#!/usr/bin/env python3
"""Kills halfbyte at every file operation and at random moments, runs the command again, and compares what is left.

usage: results/interrupted.py [--random N] [--pairs N] [--every K] [--only SCENARIO] [--out TABLE.md]
needs: a release build, strace, Python's standard library

A scenario is a command on the embedded model. It is run once undisturbed; the files it leaves, without times, are what every
killed and repeated run must leave too, and nothing besides: no part file, no work folder, no lock. File operations are the
system calls that change a folder (rename, unlink, mkdir, rmdir, fsync, ftruncate): strace kills the process as it enters
the N-th of them, for every N. Random moments are drawn over the undisturbed run's length. Between the kill and the repetition
every export's folder is looked at: it must hold the earlier checkpoint whole, the new one whole, or none that a reader
would load. Pairs are two processes started on one folder at once: one must refuse, and the other's files must be right.
"""
import argparse, hashlib, json, os, pathlib, random, re, shutil, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("HALFBYTE", str(ROOT / "target/release/halfbyte"))
CALLS = "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,ftruncate"
SMALL = """model: {source: embedded:tiny}
calibration: {num_samples: 4, sequence_length: 32, generated_samples: 1}
report: {calibration_curve: false}
"""
SCORED = "evaluate: {text: text.txt, sequence_length: 32, windows: 2}\n"
BOTH = "export: [{format: compressed-tensors}, {format: gptq}]\n"
# name: (pipeline, command, what was done in the folder before)
SCENARIOS = {
    "run": (SMALL + BOTH + SCORED, ["run"], None),
    "best": (SMALL + "recipe: best\nquant: {bits: 3}\ntune: {epochs: 1, num_samples: 2, generated_samples: 2}\n" + SCORED, ["run"], None),
    "sweep": (SMALL + SCORED + "sweep: {bits: [3, 4], winner: {by: kl}}\n", ["sweep"], None),
    "replace (--fresh over a finished run)": (SMALL + "quant: {bits: 3}\n" + BOTH + SCORED, ["run", "--fresh"], SMALL + BOTH + SCORED),
    "export (one more of a finished run)": (SMALL + BOTH + SCORED, ["run"], SMALL + SCORED + "export: [{format: gptq, out: gptq}]\n"),
    "report (drawn again)": (SMALL + SCORED, ["report"], SMALL + SCORED),
}
# Figures that are of one process: times, memory, and how much of the work an earlier one had done.
OF_ONE_PROCESS = re.compile(r"seconds|peak_rss|phases|blocks_resumed|started|finished_at")


def digest(path):
    """A file's content without what is of one process alone."""
    if path.suffix == ".json" and path.parent.name == "halfbyte":
        return hashlib.sha256(json.dumps(bare(json.loads(path.read_text())), sort_keys=True).encode()).hexdigest()
    if path.suffix == ".csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        keep = [i for i, name in enumerate(rows[0]) if not OF_ONE_PROCESS.search(name)]
        return hashlib.sha256(repr([[row[i] for i in keep if i < len(row)] for row in rows]).encode()).hexdigest()
    if path.suffix in (".html", ".md"):
        return "a page"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bare(value):
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if not OF_ONE_PROCESS.search(k)}
    return [bare(v) for v in value] if isinstance(value, list) else value


def left(folder):
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def command(folder, words):
    if words[0] == "report":
        return [PROGRAM, "report", str(folder / "out")]
    return [PROGRAM, words[0], str(folder / "p.yaml"), "--out", str(folder / "out"), "--device", "cpu", "--threads", "1", *words[1:]]


def prepare(folder, pipeline, before, base):
    """A fresh folder, with what was done before copied from where it was done once."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text((ROOT / "calibration_data/en-narrative.txt").read_text()[:4000])
    if before is not None:
        if not base.exists():
            prepare(base, before, None, None)
            subprocess.run(command(base, ["run"]), check=True, capture_output=True)
        shutil.copytree(base / "out", folder / "out")
    (folder / "p.yaml").write_text(pipeline)


def checkpoints(out):
    """The export folders that a reader would load, with the hashes of config and weights."""
    found = {}
    for config in sorted(out.rglob("config.json")):
        if ".halfbyte-" not in str(config) and "/work/" not in str(config):
            files = sorted(config.parent.glob("*.safetensors"))
            found[str(config.parent.relative_to(out))] = [digest(config)] + [digest(f) for f in files]
    return found


class Tally:
    def __init__(self):
        self.kills = self.moments = self.mixed = self.other = 0
        self.failed = []

    def line(self, name):
        bad = self.mixed + self.other
        return f"| {name} | {self.kills} | {self.moments} | {self.mixed} | {self.other} | {'all right' if not bad else bad} |"


def try_one(folder, words, wanted, allowed, tally, what):
    """After a kill: what is there now, then the same command again, without --fresh where it had begun."""
    for place, hashes in checkpoints(folder / "out").items():
        if hashes not in allowed.get(place, []):
            tally.mixed += 1
            tally.failed.append(f"{what}: {place} is a mixture")
    again = subprocess.run(command(folder, words), capture_output=True, text=True)
    found = left(folder / "out")
    if again.returncode != 0 or found != wanted:
        tally.other += 1
        differs = sorted(k for k in set(found) | set(wanted) if found.get(k) != wanted.get(k))
        tally.failed.append(f"{what}: exit {again.returncode}, {differs[:5]} {again.stderr.strip().splitlines()[-2:]}")


def scenario(name, work, n_random, every):
    pipeline, words, before = SCENARIOS[name]
    base, folder = work / f"before-{re.sub('[^a-z]', '', name)}", work / "try"
    prepare(folder, pipeline, before, base)
    earlier = checkpoints(folder / "out") if before else {}
    start = time.time()
    subprocess.run(command(folder, words), check=True, capture_output=True)
    seconds = time.time() - start
    wanted, after = left(folder / "out"), checkpoints(folder / "out")
    allowed = {place: [c.get(place) for c in (earlier, after)] for place in {*earlier, *after}}
    tally, n = Tally(), 1
    while True:
        prepare(folder, pipeline, before, base)
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:signal=KILL:when={n}"]
        killed = subprocess.run(strace + command(folder, words), capture_output=True)
        if killed.returncode == 0:
            break
        tally.kills += 1
        try_one(folder, words, wanted, allowed, tally, f"{name}, operation {n}")
        n += every
    for i in range(n_random):
        prepare(folder, pipeline, before, base)
        child = subprocess.Popen(command(folder, words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0, seconds))
        child.kill()
        child.wait()
        tally.moments += 1
        try_one(folder, words, wanted, allowed, tally, f"{name}, random moment {i}")
    return tally


def pairs(work, n):
    """Two processes on one folder at once, of one pipeline or of two."""
    pipeline = SMALL + BOTH + SCORED
    folder, right, refused, failed = work / "pair", 0, 0, []
    wanted = {}
    for bits in (4, 3):
        prepare(folder, pipeline + f"quant: {{bits: {bits}}}\n", None, None)
        subprocess.run(command(folder, ["run"]), check=True, capture_output=True)
        wanted[bits] = left(folder / "out")
    for i in range(n):
        prepare(folder, pipeline, None, None)
        (folder / "q.yaml").write_text(pipeline + f"quant: {{bits: {3 if i % 2 else 4}}}\n")
        one = command(folder, ["run"])
        (folder / "p.yaml").write_text(pipeline + "quant: {bits: 4}\n")
        two = [word.replace("p.yaml", "q.yaml") for word in one]
        both = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for c in (one, two)]
        ended = [(child.communicate()[1], child.returncode) for child in both]
        codes = [code for _, code in ended]
        first = codes.index(0) if 0 in codes else 0
        bits = 3 if i % 2 and first == 1 else 4
        told = [error for error, code in ended if code == 2 and ("is writing here" in error or "finished" in error or "unfinished" in error)]
        # one after the other is right too: the second then finds the first's run finished
        ok = (codes.count(0) == 1 and len(told) == 1) or (codes == [0, 0] and not i % 2)
        if ok and left(folder / "out") == wanted[bits]:
            right += 1
            refused += len(told)
        else:
            failed.append(f"pair {i}: exits {codes}, {[e.strip().splitlines()[-2:] for e, _ in ended]}")
    return right, refused, failed


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--random", type=int, default=100, help="random moments, shared out among the scenarios")
    words.add_argument("--pairs", type=int, default=10)
    words.add_argument("--every", type=int, default=1, help="kill at every K-th file operation")
    words.add_argument("--only")
    words.add_argument("--out", type=pathlib.Path)
    words = words.parse_args()
    random.seed(0)
    names = [n for n in SCENARIOS if not words.only or re.search(words.only, n)]
    lines = ["| scenario | kills at a file operation | at random moments | mixtures seen | not as undisturbed | |", "|---|---|---|---|---|---|"]
    failed = []
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            tally = scenario(name, pathlib.Path(work), -(-words.random // len(names)), words.every)
            lines.append(tally.line(name))
            failed += tally.failed
            print(lines[-1], *tally.failed, sep="\n", flush=True)
        right, refused, wrong = pairs(pathlib.Path(work), words.pairs) if words.pairs else (0, 0, [])
        lines.append("")
        lines.append(f"Two processes on one folder: {words.pairs} pairs, {right} right; {refused} of the second processes were refused.")
        failed += wrong
        print(lines[-1], *wrong, sep="\n")
    if words.out:
        words.out.write_text("\n".join(lines) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
