"""What a program pays before its first answer: import, load, first token, installed size; and peak memory.

    python benchmarks/runtime_start.py sticker.bundle --rounds 5

Every sample is a process of its own, its modules compiled before, as pip leaves them.  Cold means that the bundle's
files were dropped from the page cache before; warm, that they were just read.  Memory is the high-water mark of one
process that reads a picture and draws one, beside the sum of two that do one of them each, as users of a reader and a
drawer pay it.  Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from edgemm.bench.conditions import machine_card
from edgemm.bench.memory import drop_from_page_cache

PACKAGES = ("edgemm", "numpy", "onnxruntime", "tokenizers", "pillow")
BARS = {"import_s": 0.15, "load_warm_s": 0.5, "first_token_cold_s": 1.5, "installed_mb": 200, "both_over_two": 0.6}
WORKS = (  # name, what the child does, whether the bundle is dropped from the page cache before
    ("first token, cold", "talk", True),
    ("load, cold", "load", True),
    ("first token, warm", "talk", False),
    ("load, warm", "load", False),
    ("reads", "read", False),
    ("draws", "draw", False),
    ("reads and draws", "both", False),
)
CHILD = """
import json, sys, time
began = time.perf_counter()
import edgemm
said = {"import_s": time.perf_counter() - began}
path, work, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
model = edgemm.load(path, device="cpu", threads=threads)
if work == "load":
    model.prepare()
    said["load_s"] = time.perf_counter() - began - said["import_s"]
if work == "talk":
    next(iter(model.stream_text("Name a fruit.", max_new_tokens=2)))
    said["first_token_s"] = time.perf_counter() - began
if work in ("read", "both"):
    from edgemm.bench.workload import noise_picture
    model.generate_text("What is this?", images=[noise_picture()], max_new_tokens=16, ignore_eos=True)
if work in ("draw", "both"):
    model.generate_image("a red heart")
from edgemm.bench.memory import peak_memory_bytes
said["peak_bytes"] = peak_memory_bytes()
print(json.dumps(said))
"""


def child(path: Path, work: str, threads: int, compiled: str, cold: bool = False) -> dict[str, float]:
    if cold:
        drop_from_page_cache(path)
    command = [sys.executable, "-c", CHILD, str(path), work, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(compiled))
    if done.returncode:
        sys.exit(f"{work} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _environment(compiled: str) -> dict[str, str]:
    """This one, with the folder where modules are kept compiled."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": compiled}


def installed_bytes() -> int:
    """Of what the thin runtime needs, as pip lists its files; the bundle is not in it."""
    found = 0
    for name in PACKAGES:
        for file in importlib.metadata.files(name) or ():
            path = Path(str(file.locate()))
            found += path.stat().st_size if path.is_file() else 0
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core that may be used")
    args = parser.parse_args(words)
    samples: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as compiled:
        for work in ("talk", "both"):  # every library is in the page cache and compiled from here on
            child(args.bundle, work, args.threads, compiled)
        for _ in range(args.rounds):
            for name, work, cold in WORKS:
                samples.setdefault(name, []).append(child(args.bundle, work, args.threads, compiled, cold))

    def middle(name: str, key: str) -> float:
        return median(sample[key] for sample in samples[name])

    peaks = {name: middle(name, "peak_bytes") for name in ("reads", "draws", "reads and draws")}
    rows: dict[str, Any] = {
        "import_s": middle("load, warm", "import_s"),
        "load_warm_s": middle("load, warm", "load_s"),
        "load_cold_s": middle("load, cold", "load_s"),
        "first_token_warm_s": middle("first token, warm", "first_token_s"),
        "first_token_cold_s": middle("first token, cold", "first_token_s"),
        "installed_mb": installed_bytes() / 1e6,
        "peak_reads_mb": peaks["reads"] / 1e6,
        "peak_draws_mb": peaks["draws"] / 1e6,
        "peak_both_mb": peaks["reads and draws"] / 1e6,
        "both_over_two": peaks["reads and draws"] / (peaks["reads"] + peaks["draws"]),
    }
    for name, value in rows.items():
        bar = BARS.get(name)
        verdict = "" if bar is None else f"  bar {bar:g}: {'met' if value <= bar else 'missed'}"
        print(f"{name:<20} {value:>9.3f}{verdict}")
    print(json.dumps({"benchmark": "runtime_start", "card": machine_card(), "medians": rows, "samples": samples}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
