"""Bundles in turns, many short rounds: one table of ratios to the first, by wall clock and by processor time.

    python benchmarks/in_turns.py before.bundle after.bundle --rounds 10 [--threads 1]

For machines that others use too.  Each work is done once a round by every bundle, one after the other; who comes first
and who follows whom changes from round to round.  The least wall time and processor time of all rounds are compared.
Processor time is all threads' together and knows nothing of waiting for a core: with `--threads 1` it is what an idle
core would take.  Spinning threads count in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import edgemm
from edgemm.bench.conditions import machine_card
from edgemm.bench.workload import fit_prompt
from edgemm.runtimes.model import Model

PROMPTS = (32, 128, 512)
TOKENS = 16
DRAWN = "red heart, fluent style"
Work = Callable[[], object]


def works(model: Model) -> dict[str, tuple[Work, int]]:
    """What is timed -> how, and by what to divide it."""

    def read(words: str) -> Work:
        return lambda: model.generate_text(words, max_new_tokens=1)

    def draw(steps: int, scale: float) -> Work:
        return lambda: model.generate_image(DRAWN, num_inference_steps=steps, guidance_scale=scale, seed=1)

    found: dict[str, tuple[Work, int]] = {}
    if model.manifest.loops.text:
        most = model.manifest.limits.max_context - TOKENS
        for count in (count for count in PROMPTS if count <= most):
            words = fit_prompt(lambda text: model.generate_text(text, max_new_tokens=1).metrics.prompt_tokens, count)
            found[f"{count} tokens read"] = read(words), 1
        one_a_run = {"max_new_tokens": TOKENS, "ignore_eos": True, "prompt_lookup_num_tokens": 0}
        found["a token"] = lambda: model.generate_text("Go on.", **one_a_run), TOKENS
    if model.manifest.loops.denoise:
        found["a picture in 4 steps"] = draw(4, 1.0), 1
        found["a picture in 4 guided steps"] = draw(4, 2.0), 1
        found["a picture in 12 guided steps"] = draw(12, 2.0), 1
    return found


def order(names: Sequence[str], number: int) -> list[str]:
    """Who is measured after whom in a round: each comes first in turn, backwards in every second tour."""
    tour, first = divmod(number, len(names))
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if tour % 2 else turned


def measured(all_works: dict[str, dict[str, tuple[Work, int]]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Work -> bundle -> least milliseconds: wall, processor."""
    least: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for work in next(iter(all_works.values())):
            for bundle in order(list(all_works), number):
                call, count = all_works[bundle][work]
                wall, processor = time.perf_counter(), time.process_time()
                call()
                took = [(time.perf_counter() - wall) * 1e3 / count, (time.process_time() - processor) * 1e3 / count]
                before = least.setdefault(work, {}).get(bundle, took)
                least[work][bundle] = [min(pair) for pair in zip(before, took, strict=True)]
    return {work: {bundle: found[bundle] for bundle in all_works} for work, found in least.items()}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(words)
    with contextlib.ExitStack() as stack:
        models = {
            str(path): stack.enter_context(edgemm.load(path, device="cpu", threads=args.threads))
            for path in args.bundle
        }
        least = measured({name: works(model) for name, model in models.items()}, args.rounds)
    print(f"{'':32}" + "".join(f"{Path(name).name:>34}" for name in models))
    for work, found in least.items():
        first = next(iter(found.values()))
        cells = [
            f"{wall:9.2f} ms {wall / first[0]:5.2f}  cpu {cpu:7.2f} {cpu / first[1]:5.2f}"
            for wall, cpu in found.values()
        ]
        print(f"{work:32}" + "".join(f"{cell:>34}" for cell in cells))
    print(json.dumps({"benchmark": "in_turns", "card": machine_card(), "threads": args.threads, "least_ms": least}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
