"""How time grows with the context: a token after more tokens, a prompt that is longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgemm.manifest import Manifest
from edgemm.measure.memory_watch import thinned
from edgemm.measure.workload import fit_prompt
from edgemm.measure.works import Written

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["growth_of_prefill", "growth_of_tokens"]

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # tokens, template included
RUNS = 3
MOST_POINTS = 128


def growth_of_tokens(replies: Sequence[Written]) -> list[list[float]]:
    """[context, median ms of the token after it] over all replies; empty where there is no second token."""
    if not replies:
        return []
    shortest = min(len(reply.gaps_ms) for reply in replies)
    prompt = replies[0].metrics.prompt_tokens
    medians = np.median([reply.gaps_ms[:shortest] for reply in replies], axis=0) if shortest else []
    return thinned([[prompt + 1 + index, float(f"{ms:.6g}")] for index, ms in enumerate(medians)], MOST_POINTS)


def growth_of_prefill(model: Model, manifest: Manifest) -> list[list[float]]:
    """[prompt tokens, median ms of prefill], at lengths that double while the context has room."""

    def prefill(text: str) -> tuple[int, float]:
        metrics = model.generate_text(text, max_new_tokens=1).metrics
        return metrics.prompt_tokens, metrics.prefill_ms

    found: dict[int, float] = {}
    for wanted in (length for length in LENGTHS if length < 0.95 * manifest.limits.max_context):
        prompt = fit_prompt(lambda text: prefill(text)[0], wanted)
        runs = [prefill(prompt) for _ in range(RUNS)]
        found[runs[0][0]] = float(f"{np.median([ms for _, ms in runs]):.6g}")
    return [[tokens, ms] for tokens, ms in sorted(found.items())]
