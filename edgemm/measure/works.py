"""One reply, one picture read, one picture drawn: done once through the runtime's streams, with every moment noted.

The runtime's own metrics say what its parts took; the gaps between the events of a stream are timed here, where a user
would feel them.  Stop tokens are ignored, so that a reply is as long as was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgemm.measure.workload import QUESTION, noise_picture
from edgemm.runtimes.results import ImageMetrics, ImageResult, TextMetrics

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["Drawn", "Written", "draw", "read_picture", "write_reply"]

Now = Callable[[], float]


@dataclass(frozen=True)
class Written:
    metrics: TextMetrics
    start_s: float
    end_s: float
    gaps_ms: tuple[float, ...]  # between one token and the next


@dataclass(frozen=True)
class Drawn:
    metrics: ImageMetrics
    start_s: float
    end_s: float
    gaps_ms: tuple[float, ...]  # between the end of one step and of the next


def write_reply(
    model: Model, prompt: str, new_tokens: int, images: Iterable[Any] = (), now: Now = time.perf_counter
) -> Written:
    start_s, moments, result = now(), [], None
    for chunk in model.stream_text(prompt, images=tuple(images), max_new_tokens=new_tokens, ignore_eos=True):
        if chunk.token_ids:
            moments.append(now())
        result = chunk.result
    assert result is not None  # an error would have been raised
    return Written(result.metrics, start_s, now(), _gaps(moments))


def read_picture(model: Model, now: Now = time.perf_counter) -> Written:
    return write_reply(model, QUESTION, 1, [noise_picture()], now)


def draw(model: Model, prompt: str, steps: int | None, seed: int, now: Now = time.perf_counter) -> Drawn:
    start_s, moments, result = now(), [], None
    for event in model.stream_image(prompt, num_inference_steps=steps, seed=seed):
        if isinstance(event, ImageResult):
            result = event
        else:
            moments.append(now())
    assert result is not None
    return Drawn(result.metrics, start_s, now(), _gaps(moments))


def _gaps(moments: list[float]) -> tuple[float, ...]:
    return tuple((later - earlier) * 1e3 for earlier, later in pairwise(moments))
