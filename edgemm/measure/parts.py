"""Which part of a reply and of a picture takes how much: the runtime's metrics as shares of the whole.

The rest is what no part claims: tokenizing, sampling, bindings.  Medians over runs, so parts of a whole may differ from
it by a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemm.runtimes.results import ImageMetrics, TextMetrics

__all__ = ["HOST_BOUND", "WHOLE", "Times", "host_warning", "parts_of_pictures", "parts_of_replies", "shares"]

Times = dict[str, list[float]]  # part -> milliseconds of every run
WHOLE = "whole"

HOST_BOUND = 0.2  # of a run outside of every engine
SMALLEST = 0.0005  # share of a part worth a line


def parts_of_replies(found: Sequence[TextMetrics]) -> Times:
    return {
        "image_encode": [m.image_encode_ms for m in found],
        "prefill": [m.prefill_ms for m in found],
        "decode": [(m.new_tokens - 1) / m.decode_tokens_per_s * 1e3 if m.decode_tokens_per_s else 0.0 for m in found],
        WHOLE: [m.total_ms for m in found],
    }


def parts_of_pictures(found: Sequence[ImageMetrics]) -> Times:
    return {
        "prefill": [m.prefill_ms for m in found],
        "conditioner": [m.conditioner_ms for m in found],
        "denoiser": [m.steps * m.step_ms for m in found],
        "image_decoder": [m.decode_ms for m in found],
        WHOLE: [m.total_ms for m in found],
    }


def host_warning(name: str, outside: Sequence[float]) -> list[str]:
    """trtexec's first warning, in terms of these engines: `outside` are shares of runs that no engine had."""
    share = float(np.median(outside)) if len(outside) else 0.0
    if share <= HOST_BOUND:
        return []
    return [
        f"host-bound: {share:.0%} of a {name} passes outside of the engines (sampling, bindings, Python); "
        "a faster device would not shorten that"
    ]


def shares(times: Times) -> list[dict[str, Any]]:
    """Of the whole, what has a share worth a line, and the rest."""
    whole, parts = times[WHOLE], {name: values for name, values in times.items() if name != WHOLE}
    if not whole:
        return []
    rest = [total - sum(values) for total, *values in zip(whole, *parts.values())]
    total = float(np.median(whole))
    medians = {name: float(np.median(values)) for name, values in {**parts, "rest": rest}.items()}
    return [
        {"part": name, "ms": float(f"{ms:.6g}"), "share": round(ms / total, 4)}
        for name, ms in medians.items()
        if abs(ms) >= SMALLEST * total
    ]
