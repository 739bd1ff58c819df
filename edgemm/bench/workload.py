"""One reply, one picture read, one picture drawn: done once through the runtime's streams, with every moment noted.

The runtime's own metrics say what its parts took; the gaps between the events of a stream are timed here, where a user
would feel them.  Stop tokens are ignored, so that a reply is as long as was asked for, and nothing is looked up in the
prompt: a text that repeats would say little of others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.runtimes.image_call import ImageMetrics, ImageResult
from edgemm.runtimes.text_call import TextMetrics

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = [
    "Drawn",
    "Written",
    "draw",
    "read_picture",
    "write_reply",
    "DRAWING",
    "ONE_A_RUN",
    "QUESTION",
    "fit_prompt",
    "noise_picture",
]

Now = Callable[[], float]


@dataclass(frozen=True)
class Written:
    metrics: TextMetrics
    start_s: float
    end_s: float
    gaps_ms: tuple[float, ...]  # between one token and the next


ONE_A_RUN: dict[str, Any] = {"ignore_eos": True, "prompt_lookup_num_tokens": 0}


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
    for chunk in model.stream_text(prompt, images=tuple(images), max_new_tokens=new_tokens, **ONE_A_RUN):
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


# The work a benchmark gives a model: text of a chosen length, a picture of noise, a thing to draw.
#
# Contents hardly matter to the time a model takes, lengths do; so words are counted by the model's own tokenizer.

QUESTION = "What is this?"
DRAWING = "a red heart"
WORD = " the"  # one token for most tokenizers
PROBES = (8, 24)  # words
PICTURE_SIDE = 256


def fit_prompt(count_tokens: Callable[[str], int], wanted: int) -> str:
    """A prompt that `count_tokens`, template and all, counts as `wanted`: exactly where a word is one token.

    Shorter than the template cannot be had: then it is one word, and the count tells.
    """
    few, many = (count_tokens(_words(count)) for count in PROBES)
    tokens_a_word = max((many - few) / (PROBES[1] - PROBES[0]), 1e-6)
    return _words(max(1, PROBES[0] + round((wanted - few) / tokens_a_word)))


def noise_picture(seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8)


def _words(count: int) -> str:
    return (WORD * count).strip()
