"""Contestants of a benchmark: each a fresh process of the benchmark's own script, in turns, medians over rounds.

The script runs as itself, or with `--contestant NAME` as one of them, whose last line is its numbers in JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["Numbers", "compete"]

Numbers = dict[str, float]


def compete(
    script: str, words: Sequence[str], contestants: Sequence[str], rounds: int
) -> tuple[dict[str, Numbers], dict[str, list[Numbers]]]:
    """Medians and all samples by contestant; every second round begins at the end."""
    samples: dict[str, list[Numbers]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in contestants[:: 1 if turn % 2 == 0 else -1]:
            samples[name].append(_asked([sys.executable, script, *words, "--contestant", name], name))
            print(f"{name}: {samples[name][-1]}", file=sys.stderr)
    medians = {
        name: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for name, found in samples.items()
    }
    return medians, samples


def _asked(command: list[str], name: str) -> Numbers:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])
