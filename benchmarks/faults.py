"""Kills, Ctrl-C, caps on memory, loads over and over: how often each was tried, survived and lost.

    python benchmarks/faults.py --tries 20                            # the table, and one JSON line
    python benchmarks/faults.py --only load --before ../main --bundle x.bundle    # of a tree and of this one, in turns
    python benchmarks/faults.py --only kills --checkpoint checkpoints/sticker-small --log kills.jsonl   # an hour

Survived means: what stood there stands, what was made is whole, nothing half done is left after the next run, the exit
code is the right one.  "load" is no fault: load with every component, first token and memory, in fresh processes of two
trees, one after the other, so that a busy machine is equally busy for both; the least of each is told.  The bundle has
to be one that both trees open: the older one's export.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CAPS_MB = (200, 300, 400, 600, 800, 1200, 2000)
LOAD = """
import time; began = time.perf_counter()
import edgemm, json, sys
model = edgemm.load(sys.argv[1], device="cpu"); model.prepare(); loaded = time.perf_counter()
model.generate_text("Hello", max_new_tokens=1); first = time.perf_counter()
rows = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
memory = {name: int(rows[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS")}
print(json.dumps({"load_ms": 1e3 * (loaded - began), "first_token_ms": 1e3 * (first - began),
                  "cpu_ms": 1e3 * time.process_time(), "peak_mb": memory["VmHWM"], "resident_mb": memory["VmRSS"]}))
"""
AGAIN = """
import edgemm, gc, json, sys
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
sizes = []
for turn in range(int(sys.argv[2])):
    with edgemm.load(sys.argv[1], device="cpu", threads=1) as model:
        model.generate_text("Hello", max_new_tokens=1)
    sizes.append(resident())
early = sizes[len(sizes) // 5]
print(json.dumps({"early_mb": early, "late_mb": sizes[-1], "grown": sizes[-1] / early - 1}))
"""
Row = tuple[str, int, int]  # what, tries, lost
MORE = {"export": ("--precision", "int8"), "quantize": ("--samples", "2", "--steps", "2", "--method", "rtn")}


def edgemm(*words: str, root: Path = ROOT, **options: Any) -> subprocess.Popen[Any]:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "edgemm", *words], env=environment, **quiet, **options)


def asked(code: str, *words: str, root: Path = ROOT) -> dict[str, float]:
    compiled = {"PYTHONPYCACHEPREFIX": str(root / "build" / "compiled")}  # as pip leaves modules
    environment = {**os.environ, "PYTHONPATH": str(root), **compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, cwd=root, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def moments(words: tuple[str, ...], tries: int) -> Iterator[float]:
    """Spread over how long the whole takes."""
    began = time.monotonic()
    code = edgemm(*words).wait()
    if code:
        raise SystemExit(f"edgemm {' '.join(words)} ends with {code} when nobody disturbs it")
    whole_s = time.monotonic() - began
    yield from (whole_s * (turn + 0.5) / tries for turn in range(tries))


def kills(verb: str, checkpoint: Path, folder: Path, tries: int, log: Path | None) -> Row:
    """kill -9, and the same again: the old output stands until the new one does, and no half one is left.

    What was tried is kept in `log`, a line each, so that a run of hours can go on where it was ended.
    """
    output, name = folder / f"{verb}-out", f"kill -9 of {verb}, {checkpoint.name}"
    done = [row for row in _rows(log) if row["fault"] == name]
    lost = sum(row["lost"] for row in done)
    words = (verb, str(checkpoint), "--output", str(output), "--overwrite", *MORE[verb])
    if len(done) < tries:
        for turn, moment in enumerate(moments(words, tries)):
            if turn >= len(done):
                row = {"fault": name, "moment_s": round(moment, 2), "lost": int(not _survives(words, output, moment))}
                lost += row["lost"]
                _add_row(log, row)
        lost += edgemm(*words).wait() != 0
        lost += len([path for path in folder.iterdir() if path.name.startswith(f".{output.name}.")])
    return name, tries, lost


def _survives(words: tuple[str, ...], output: Path, moment: float) -> bool:
    """Whether what stood there stands, whole: every file of a bundle is what its manifest says."""
    process = edgemm(*words)
    time.sleep(moment)
    process.kill()
    process.wait()
    if words[0] == "export":
        return edgemm("verify", str(output), "--no-parity").wait() == 0
    try:
        return bool(json.loads((output / "quant.json").read_text()))
    except (OSError, ValueError):
        return False


def _rows(log: Path | None) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log and log.is_file() else []


def _add_row(log: Path | None, row: dict) -> None:
    if log:
        with log.open("a") as stream:
            print(json.dumps(row), file=stream)


def interrupts(words: tuple[str, ...], tries: int) -> Row:
    lost = 0
    for moment in moments(words, tries):
        process = edgemm(*words)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        lost += process.wait() not in (0, 130, -signal.SIGINT)  # the last is 130 to a shell
    return f"Ctrl-C in {words[0]}", tries, lost


def caps(words: tuple[str, ...]) -> Row:
    """Goes well, or ends with 5; doctor may say that something is missing."""

    def cap(megabytes: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    codes = [edgemm(*words, preexec_fn=cap(megabytes)).wait() for megabytes in CAPS_MB]
    return f"ulimit -v in {words[0]}", len(codes), sum(code not in (0, 5) for code in codes)


def again(bundle: Path, turns: int) -> Row:
    grown = asked(AGAIN, str(bundle), str(turns))["grown"]
    return f"load and close {turns} times: {100 * grown:+.1f} % memory", turns, int(grown > 0.05)


def loads(bundle: Path, trees: dict[str, Path], tries: int) -> dict[str, dict[str, float]]:
    """The least of each tree, in turn: what other work adds is not theirs."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for turn in range(tries + 1):
        for name, root in trees.items():
            told = asked(LOAD, str(bundle), root=root)
            if turn:  # the first one tries the bundle, and fills caches
                found[name].append(told)
    return {name: {key: round(min(row[key] for row in rows), 1) for key in rows[0]} for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--turns", type=int, default=500, help="of load and close")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "micro-shapes")
    parser.add_argument("--only", choices=("kills", "interrupts", "caps", "again", "load"))
    parser.add_argument("--log", type=Path, metavar="FILE", help="of kills, where a run of hours goes on")
    parser.add_argument("--verbs", nargs="+", default=list(MORE), choices=list(MORE), help="that are killed")
    parser.add_argument("--bundle", type=Path, help="to load, in the place of one that is exported for it")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, to compare loads with")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle = args.bundle.resolve() if args.bundle else folder / "faults.bundle"
        export = ("export", str(args.checkpoint), "--output", str(bundle), "--precision", "int8")
        if args.only != "kills" and not args.bundle and edgemm(*export).wait():
            raise SystemExit(f"{args.checkpoint} cannot be exported")
        draw = ("draw", str(bundle), "--prompt", "a red circle", "--output", str(folder / "drawn.png"))
        quantize = ("quantize", str(args.checkpoint), "--output", str(folder / "spec"), "--overwrite")
        if args.only in (None, "kills"):
            rows += [kills(verb, args.checkpoint, folder, args.tries, args.log) for verb in args.verbs]
        if args.only in (None, "interrupts"):
            rows += [interrupts(words, args.tries) for words in (draw, ("verify", str(bundle)), ("estimate", "--help"))]
        if args.only in (None, "caps"):
            rows += [caps(words) for words in (draw, ("verify", str(bundle)), ("inspect", str(bundle)), quantize)]
        if args.only in (None, "again"):
            rows.append(again(bundle, args.turns))
        trees = ({"before": args.before.resolve()} if args.before else {}) | {"this": ROOT}
        loaded = loads(bundle, trees, args.tries) if args.only in (None, "load") else {}
    print(f"{'fault':48} {'tries':>5} {'survived':>8} {'lost':>5}")
    for what, tries, lost in rows:
        print(f"{what:48} {tries:5} {tries - lost:8} {lost:5}")
    for name, row in loaded.items():
        print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in row.items()))
    print(json.dumps({"faults": rows, "loads": loaded}))
    sys.exit(any(lost for _, _, lost in rows))


if __name__ == "__main__":
    main()
