"""Which operator takes which share of each component, by ONNX Runtime's own trace.

    python benchmarks/without_passes.py checkpoints/sticker-small before.bundle
    edgemm export checkpoints/sticker-small --output after.bundle --precision int8
    python benchmarks/runtime_profile.py before.bundle after.bundle

Every component is run again alone on the arrays that real work bound: a token, a prompt of 512 tokens, a drawing
prompt, a picture, a denoising step.  Profiled runs are slower than plain ones: shares are to be trusted, totals are
not; the plain time of each stands in its title.  Prints a table a component and shape, with several bundles their
shares side by side (with how often an operator runs), then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import edgemm
from edgemm.bench.components import by_operator, profile, render_operators
from edgemm.bench.conditions import machine_card
from edgemm.bench.timeline import EngineClock
from edgemm.bench.workload import fit_prompt, noise_picture

RUNS = 10
PROMPT_TOKENS = 512
LEAST_SHARE = 1.0  # percent, of what is shown side by side


def profiled(path: Path, threads: int | None, runs: int) -> dict[str, Any]:
    """ "component shape" -> its plain milliseconds and its operators."""
    clock = EngineClock()
    with edgemm.load(path, device="cpu", threads=threads) as model:
        model._engines.watch(clock.watch)
        most = min(PROMPT_TOKENS, model.manifest.limits.max_context - 64)
        words = fit_prompt(lambda text: model.generate_text(text, max_new_tokens=1).metrics.prompt_tokens, most)
        for _ in range(3):
            model.generate_text("Name a fruit.", max_new_tokens=8, ignore_eos=True, prompt_lookup_num_tokens=0)
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


def side_by_side(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """For every component and shape that all bundles have: the share of each operator that takes 1 % in one of them."""
    columns = list(found.values())
    for name in columns[0]:
        if all(name in column for column in columns):
            entries = [column[name] for column in columns]
            shares = [_shares(entry["operators"][1:]) for entry in entries]
            yield f"| {name} | " + " | ".join(f"{entry['plain_ms']:.2f} ms" for entry in entries) + " |"
            yield "|---" * (1 + len(columns)) + "|"
            for operator in dict.fromkeys(operator for share in shares for operator in share):
                if any(share.get(operator, (0.0, 0))[0] >= LEAST_SHARE for share in shares):
                    cells = [f"{s[operator][0]:.0f} % ({s[operator][1]})" if operator in s else "-" for s in shares]
                    yield f"| {operator} | " + " | ".join(cells) + " |"
            yield ""


def _shares(rows: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Operator -> its share of the medians in percent, which one disturbed run does not move; and how often it runs."""
    whole = sum(row["medianMs"] for row in rows) or 1.0
    return {row["name"]: (100 * row["medianMs"] / whole, row["calls"]) for row in rows}


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
    if len(found) > 1:
        print("\n".join(side_by_side(found)))
    print(json.dumps({"benchmark": "runtime_profile", "card": machine_card(), "profiles": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
