"""Which operator takes which share of each component, by ONNX Runtime's own trace.

    python benchmarks/runtime_profile.py before.bundle after.bundle

Every component is run again alone on the arrays that real work bound: a token, a prompt of 512 tokens, a drawing
prompt, a picture, a denoising step.  Profiled runs are slower than plain ones: shares are to be trusted, totals are
not; the plain time of each stands in its title.  Prints a table a component and shape, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import edgemm
from edgemm.measure.card import machine_card
from edgemm.measure.engine_clock import EngineClock
from edgemm.measure.operator_profile import by_operator, profile, render_operators
from edgemm.measure.workload import fit_prompt, noise_picture

RUNS = 10
PROMPT_TOKENS = 512


def profiled(path: Path, threads: int | None, runs: int) -> dict[str, Any]:
    """ "component shape" -> its plain milliseconds and its operators."""
    clock = EngineClock()
    with edgemm.load(path, device="cpu", threads=threads) as model:
        model.watch_engines(clock.watch)
        most = min(PROMPT_TOKENS, model.manifest.limits.max_context - 64)
        words = fit_prompt(lambda text: model.generate_text(text, max_new_tokens=1).metrics.prompt_tokens, most)
        for _ in range(3):
            model.generate_text("Name a fruit.", max_new_tokens=8, ignore_eos=True)
            model.generate_text(words, max_new_tokens=1)
            model.generate_text("What is this?", images=[noise_picture()], max_new_tokens=1)
            model.generate_image("a red heart")
        plain: dict[tuple[str, str], list[float]] = {}
        for run in clock.runs:
            plain.setdefault((run.component, run.shape), []).append(1e3 * (run.end_s - run.start_s))
        found = {}
        for (component, shape), bound in clock.bound.items():
            table = by_operator(profile(model, bound, runs))
            took = median(plain[component, shape])
            print(render_operators(table, f"{component}, {shape}, plain {took:.2f} ms") + "\n")
            found[f"{component} {shape}"] = {"plain_ms": round(took, 3), "operators": table}
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(words)
    found = {}
    for path in args.bundle:
        print(f"## {path}\n")
        found[str(path)] = profiled(path, args.threads, args.runs)
    print(json.dumps({"benchmark": "runtime_profile", "card": machine_card(), "profiles": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
