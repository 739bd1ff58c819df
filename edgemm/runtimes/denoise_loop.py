"""The loop that turns noise into pictures, step by step, over a constant prefix.

The prompt is read once by the transformer, adapted once by the conditioner, and then only the denoiser runs.  It knows
tokens and time, never strings, files or devices: see prompt.py and drawing.py.
Axes: b batch (row 0 the prompt, row 1 unconditional), n image tokens, p numbers in one, T cache slots, t prefix slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from edgemm.bundle.components import TensorSpec, handed_over, pattern
from edgemm.bundle.loops import DenoiseLoop
from edgemm.bundle.prompt import Prompt
from edgemm.errors import BundleError, InputError
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import Arrays, Binding, Engine, allocator, check_finite
from edgemm.runtimes.cache_budget import UNLIMITED, CacheBudget
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.results import DenoiseProgress, ImageMetrics, ImageResult, Picture

__all__ = [
    "DrawClock",
    "DrawEngines",
    "DrawRequest",
    "check_noise",
    "draw",
    "read_prompts",
    "PromptPrefix",
    "fixed_slots",
    "unconditional_slots",
]

BLOCK = 16  # slots a drawing prompt is padded to: every one costs the denoiser time, at every step


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """A prompt and how it is to be drawn; checked by draw.py."""

    prompt: Prompt
    steps: int
    guidance_scale: float
    seeds: tuple[int, ...]  # one a picture
    noises: tuple[np.ndarray, ...]  # (n, p) float32, one a picture
    preview: bool
    negative: Prompt | None = None  # what guidance leads away from; None is the empty prompt
    image_tokens: np.ndarray | None = None  # (1, m, width): the picture that the prompt edits


@dataclass(frozen=True)
class DrawEngines:
    transformer: Engine
    conditioner: Engine
    denoiser: Engine
    image_decoder: Engine
    unconditional: Arrays  # the conditioner's outputs for the empty prompt
    max_context: int
    budget: CacheBudget = UNLIMITED


@dataclass
class DrawClock:
    """What a call took so far; seconds."""

    began: float = field(default_factory=time.perf_counter)
    load_s: float = 0.0
    image_encode_s: float = 0.0
    prefill_s: float = 0.0
    conditioner_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    decode_s: float = 0.0

    def metrics(self, prompt_tokens: int) -> ImageMetrics:
        return ImageMetrics(
            prompt_tokens=prompt_tokens,
            prefill_ms=1e3 * self.prefill_s,
            conditioner_ms=1e3 * self.conditioner_s,
            steps=len(self.steps_s),
            step_ms=1e3 * sum(self.steps_s) / max(len(self.steps_s), 1),
            decode_ms=1e3 * self.decode_s,
            load_ms=1e3 * self.load_s,
            total_ms=1e3 * (time.perf_counter() - self.began - self.load_s),
            image_encode_ms=1e3 * self.image_encode_s,
        )


def draw(
    request: DrawRequest, loop: DenoiseLoop, engines: DrawEngines, cancelled: Callable[[], bool], clock: DrawClock
) -> Iterator[DenoiseProgress | ImageResult]:
    """Progress after every step, then one ImageResult with every picture.

    When it is cancelled the picture in the making becomes a last, unfinished one, if it has had a step.
    """
    pictures: list[Picture] = []
    if cancelled():
        yield ImageResult((), "cancelled", clock.metrics(len(request.prompt)))
        return
    prefix = read_prompts(request, loop, engines, clock)
    denoiser = _Denoiser(engines.denoiser, prefix, loop)
    decoder = _Decoder(engines.image_decoder, loop, clock)
    times = schedule.times(request.steps, loop.shift)
    finished = True
    for index, (seed, noise) in enumerate(zip(request.seeds, request.noises)):
        x, clean = noise, None  # (n, p)
        for k, (now, later) in enumerate(pairwise(times)):
            if cancelled():
                finished = False
                break
            start = time.perf_counter()
            clean = denoiser.predict(x, now, later, request.guidance_scale)
            check_finite(clean, f"denoiser, step {k + 1} of {request.steps}")
            x = schedule.step(x, clean, now, later)
            clock.steps_s.append(time.perf_counter() - start)
            preview = Picture(decoder.decode(clean), seed) if request.preview and later < 1 else None
            yield DenoiseProgress(k + 1, request.steps, later, index, preview)
        if clean is not None:
            pictures.append(Picture(decoder.decode(clean), seed))
        if not finished:
            break
    yield ImageResult(tuple(pictures), "stop" if finished else "cancelled", clock.metrics(len(request.prompt)))


def read_prompts(request: DrawRequest, loop: DenoiseLoop, engines: DrawEngines, clock: DrawClock) -> PromptPrefix:
    """Prefill, then the conditioner, which writes the rows that the denoiser reads."""
    prompts = [request.prompt] if request.negative is None else [request.prompt, request.negative]
    longest = max(map(len, prompts))
    room = fixed_slots(engines.denoiser.inputs) or unconditional_slots(engines.unconditional)  # t
    fixed = engines.conditioner.inputs["prompt_mask"].shape[1]  # T of a conditioner that was exported for one
    if isinstance(fixed, int) and longest > fixed:
        raise InputError(f"the drawing prompt takes {longest} tokens, this bundle draws from at most {fixed}")
    prefix: PromptPrefix | None = None
    for row, prompt in enumerate(prompts):
        transformer = CachedTransformer(engines.transformer, engines.max_context, BLOCK, budget=engines.budget)
        start = time.perf_counter()
        transformer.prefill(prompt, None if row else request.image_tokens, slots=max(longest, room + loop.skip))
        clock.prefill_s += time.perf_counter() - start
        slots = fixed if isinstance(fixed, int) else transformer.cache.slots
        if prefix is None:
            zeros = allocator(engines.denoiser)
            kept = fixed_slots(engines.denoiser.inputs) or slots - loop.skip
            prefix = PromptPrefix(engines.denoiser.inputs, engines.unconditional, kept, zeros)
        start = time.perf_counter()
        _condition(prompt, transformer, slots, engines.conditioner, prefix.negative if row else prefix.prompt)
        clock.conditioner_s += time.perf_counter() - start
    assert prefix is not None
    return prefix


def _condition(
    prompt: Prompt, transformer: CachedTransformer, slots: int, conditioner: Engine, outputs: Arrays
) -> None:
    """What the transformer has read of a prompt, as the denoiser reads it, written into its row."""
    inputs = {
        name: np.ascontiguousarray(buffer[:, :, :slots])  # the cache itself where it has as many
        for name, buffer in transformer.cache.past.items()
        if name in conditioner.inputs
    }
    mask = np.zeros((1, slots), dtype=np.float32)
    mask[0, : len(prompt)] = prompt.users_own
    inputs |= {"prompt_mask": mask, "prefix_length": np.array([len(prompt)], dtype=np.int64)}
    conditioner.bind(inputs, outputs).run()
    for name, row in outputs.items():
        check_finite(row, f"conditioner, {name}")


class _Denoiser:
    """Bindings of the denoiser: both rows with guidance, row 0 alone without."""

    def __init__(self, engine: Engine, prefix: PromptPrefix, loop: DenoiseLoop) -> None:
        self.engine, self.prefix, self.loop = engine, prefix, loop
        self.noisy = np.zeros((2, loop.token_count, loop.token_width), dtype=np.float32)
        self.time = np.zeros(2, dtype=np.float32)
        self.step_size = np.zeros(2, dtype=np.float32)
        self.prediction = np.zeros_like(self.noisy)
        self._bindings: dict[int, Binding] = {}

    def predict(self, x: np.ndarray, now: float, later: float, guidance_scale: float) -> np.ndarray:
        """The clean tokens (n, p) that the denoiser expects behind x."""
        guided = schedule.is_guided(now, guidance_scale, self.loop.guidance_interval)
        self.noisy[:] = x
        self.time[:] = now
        self.step_size[:] = later - now
        self._binding(2 if guided else 1).run()
        if guided:
            return schedule.guide(self.prediction[0], self.prediction[1], guidance_scale)
        return self.prediction[0].copy()

    def _binding(self, b: int) -> Binding:
        if b not in self._bindings:
            rows = self.prefix.both if b == 2 else self.prefix.prompt
            inputs = {"noisy_tokens": self.noisy[:b], "time": self.time[:b], **rows}
            if "step_size" in self.engine.inputs:
                inputs["step_size"] = self.step_size[:b]
            self._bindings[b] = self.engine.bind(inputs, {"prediction": self.prediction[:b]})
        return self._bindings[b]


class _Decoder:
    """Tokens (n, p) to pixels (3, H, W)."""

    def __init__(self, engine: Engine, loop: DenoiseLoop, clock: DrawClock) -> None:
        self.clock = clock
        self.tokens = np.zeros((1, loop.token_count, loop.token_width), dtype=np.float32)
        self.pixels = np.zeros((1, 3, loop.image_size, loop.image_size), dtype=np.float32)
        self.binding = engine.bind({"tokens": self.tokens}, {"pixels": self.pixels})

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        self.tokens[0] = tokens
        self.binding.run()
        check_finite(self.pixels, "image_decoder, pixels")
        self.clock.decode_s += time.perf_counter() - start
        return self.pixels[0].clip(0, 1)


def check_noise(noise: np.ndarray, count: int, loop: DenoiseLoop) -> tuple[np.ndarray, ...]:
    """A caller's own noise, (n, p) or (count, n, p), as one array a picture."""
    array = np.ascontiguousarray(noise, dtype=np.float32)
    shape = (loop.token_count, loop.token_width)
    if array.shape == shape and count == 1:
        array = array[None]
    if array.shape != (count, *shape) or not np.isfinite(array).all():
        raise InputError(f"noise has shape {array.shape}, expected {(count, *shape)} of finite numbers")
    return tuple(array)


# The prompt as the denoiser reads it, at every step the same: two rows, the prompt and the empty prompt.
#
# The conditioner writes row 0 in place, and with guidance the denoiser reads both rows, without it row 0 alone: the
# same
# memory, no copy.  Row 1 is the unconditional prefix that the bundle ships, padded with slots that the mask hides; a
# negative prompt's own prefix takes its place.
# Axes: t prefix slots, h heads, d head width, c conditioning, n image tokens, l layout.

SLOT_AXIS = {"prefix_key.*": 2, "prefix_value.*": 2, "prefix_mask": 1}
PROMPT, UNCONDITIONAL = 0, 1


class PromptPrefix:
    """Buffers (2, ...) for everything that the conditioner hands to the denoiser."""

    def __init__(
        self,
        denoiser_inputs: Mapping[str, TensorSpec],
        unconditional: Arrays,
        slots: int,
        zeros: Callable[[tuple[int, ...], Any], np.ndarray] = np.zeros,
    ) -> None:
        self.both: dict[str, np.ndarray] = {}
        for spec in handed_over(tuple(denoiser_inputs.values())):
            axis = SLOT_AXIS.get(pattern(spec.name))
            shape = [slots if i == axis else spec.fixed(i, "one size") for i in range(1, len(spec.shape))]
            self.both[spec.name] = zeros((2, *shape), spec.dtype)
            self._fill(spec.name, axis, unconditional)
        self.prompt = {name: buffer[PROMPT : PROMPT + 1] for name, buffer in self.both.items()}
        self.negative = {name: buffer[UNCONDITIONAL:] for name, buffer in self.both.items()}  # what guidance leaves

    def _fill(self, name: str, axis: int | None, unconditional: Arrays) -> None:
        row = self.both[name][UNCONDITIONAL : UNCONDITIONAL + 1]
        if name not in unconditional:
            raise BundleError(f"the unconditional prefix has no {name}")
        given = unconditional[name]
        used = tuple(slice(given.shape[i] if i == axis else None) for i in range(min(given.ndim, row.ndim)))
        if given.dtype.kind != row.dtype.kind or row[used].shape != given.shape:
            raise BundleError(
                f"{name} of the unconditional prefix is {given.dtype} {given.shape}, expected {row.shape}"
            )
        row[used] = given


def unconditional_slots(unconditional: Arrays) -> int:
    """t of the empty prompt."""
    mask = unconditional.get("prefix_mask")
    if mask is None or mask.ndim != 2:
        raise BundleError("the unconditional prefix has no prefix_mask (1, t)")
    return mask.shape[1]


def fixed_slots(denoiser_inputs: Mapping[str, TensorSpec]) -> int | None:
    """t where the graph fixes it."""
    entry = denoiser_inputs["prefix_mask"].shape[1]
    return entry if isinstance(entry, int) else None
