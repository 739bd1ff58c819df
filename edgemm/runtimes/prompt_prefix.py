"""The prompt as the denoiser reads it, at every step the same: one row of each, read and conditioned once.

Row 0 is the prompt.  Row 1 is what guidance leads away from: a file of the bundle, the prompt's own prefix behind
another mask, the conditioner on zeros, nothing at all, or a prompt of its own (docs/bundle.md).  Row 2, of models that
guide by the picture they edit, is the prompt without that picture.  The conditioner writes each row in place, and the
denoiser reads as many of them as a step needs: the same memory, no copy.
Axes: T cache slots, t prefix slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemm.bundle.components import TensorSpec, handed_over, pattern
from edgemm.bundle.drawing import DenoiseLoop
from edgemm.bundle.prompt import Prompt
from edgemm.errors import BundleError, InputError
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import SPARED, Arrays, Engine, allocator, check_finite
from edgemm.runtimes.image_call import DrawingClock
from edgemm.runtimes.kv_cache import CachedTransformer, PrefillCancelled

if TYPE_CHECKING:
    from edgemm.runtimes.cache_budget import CacheBudget

__all__ = ["DrawEngines", "PromptPrefix", "Prompts", "read_prompts"]

BLOCK = 16  # slots a drawing prompt is padded to: every one costs the denoiser time, at every step
SLOT_AXIS = {"prefix_key.*": 2, "prefix_value.*": 2, "prefix_mask": 1}
PROMPT, UNCONDITIONAL, WITHOUT_PICTURE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is read for a picture."""

    prompt: Prompt
    negative: Prompt | None = None  # what guidance leads away from; None: what the bundle says
    without_picture: Prompt | None = None  # the third row
    image_tokens: np.ndarray | None = None  # (1, m, width): the picture that the prompt edits
    latents: np.ndarray | None = None  # (1, c, h, w): the same, of models that read it as clean latents too
    guided: bool = True  # False: row 1 is never looked at

    @property
    def rows(self) -> list[tuple[int, Prompt, np.ndarray | None]]:
        """Row, what is read for it, and the picture in it."""
        every = ((PROMPT, self.prompt), (UNCONDITIONAL, self.negative), (WITHOUT_PICTURE, self.without_picture))
        read = [(row, prompt) for row, prompt in every if prompt is not None]
        return [(row, prompt, self.image_tokens if prompt.is_pictured else None) for row, prompt in read]


@dataclass(frozen=True)
class DrawEngines:
    transformer: Engine
    conditioner: Engine
    denoiser: Engine
    image_decoder: Engine
    unconditional: Arrays = field(default_factory=dict)  # of loops that take it from the file
    max_context: int = 2**31
    budget: CacheBudget | None = None


def read_prompts(
    prompts: Prompts,
    loop: DenoiseLoop,
    engines: DrawEngines,
    clock: DrawingClock,
    cancelled: Callable[[], bool] = lambda: False,
) -> PromptPrefix:
    """Prefill, then the conditioner, which writes the rows that the denoiser reads.

    Raises PrefillCancelled between two rows, and two pieces of a long one, once `cancelled` says so.
    """
    conditioner, rows = engines.conditioner, prompts.rows
    block = _read_latents(prompts.latents, loop, engines.denoiser, clock)
    before = next((array.shape[2] for array in block.values()), 0)  # slots that a picture takes as latents
    longest = max(len(prompt) + before * prompt.is_pictured for _, prompt, _ in rows)
    room = fixed_slots(engines.denoiser.inputs) or _slots_of(engines.unconditional)  # t
    fixed = _fixed_prompt(conditioner)
    if fixed is not None and longest > fixed:
        raise InputError(f"the drawing prompt takes {longest} tokens, this bundle draws from at most {fixed}")
    prefix: PromptPrefix | None = None
    first: CachedTransformer | None = None
    for row, prompt, image_tokens in rows:
        if first is not None and cancelled():
            raise PrefillCancelled
        start = time.perf_counter()
        transformer = first if prompt.opens(prompts.prompt) else None  # it has read this, too
        if transformer is None:
            transformer = CachedTransformer(engines.transformer, engines.max_context, BLOCK, budget=engines.budget)
            if block and image_tokens is not None:
                transformer.adopt(block)
            transformer.prefill(prompt, image_tokens, max(longest, room + loop.skip), cancelled=cancelled)
        first = first or transformer
        clock.prefill_s += time.perf_counter() - start
        used = before * prompt.is_pictured
        slots = fixed or transformer.cache.slots
        if prefix is None:
            kept = fixed_slots(engines.denoiser.inputs) or slots - loop.skip
            count = 3 if prompts.without_picture is not None else 2
            zeros = allocator(engines.denoiser)
            prefix = PromptPrefix(engines.denoiser.inputs, engines.unconditional, kept, zeros, count)
        start = time.perf_counter()
        kept_by = {name: buffer for name, buffer in transformer.cache.past.items() if name in conditioner.inputs}
        _condition(prompt, kept_by, slots, conditioner, prefix.row(row), used)
        if row == PROMPT and prompts.guided and prompts.negative is None:
            if loop.unconditional == "zeros":
                nothing = {name: np.zeros_like(buffer) for name, buffer in kept_by.items()}
                _condition(prompt, nothing, slots, conditioner, prefix.row(UNCONDITIONAL), used)
            elif loop.unconditional == "mask":
                prefix.mask_from_prompt(loop.seen_slots)
        clock.conditioner_s += time.perf_counter() - start
    assert prefix is not None
    return prefix


def _read_latents(latents: np.ndarray | None, loop: DenoiseLoop, denoiser: Engine, clock: DrawingClock) -> Arrays:
    """Slots (1, g, k, d) that a picture leaves in an empty cache when the denoiser reads it clean, a layer each."""
    if latents is None:
        return {}
    start = time.perf_counter()
    _, _, h, w = latents.shape
    count = h * w + (loop.picture_words or 0)
    told = schedule.told(0.0 if loop.time_zero == "picture" else 1.0, loop)
    empty = PromptPrefix(denoiser.inputs, {}, fixed_slots(denoiser.inputs) or 1, rows=1).first(1)
    block: dict[str, np.ndarray] = {}
    for name, spec in denoiser.outputs.items():
        if pattern(name) in SPARED:
            shape = (1, spec.fixed(1, "K/V heads"), count, spec.fixed(3, "head width"))
            block[name] = np.zeros(shape, spec.dtype)
    inputs = {"latents": latents, "time": np.array([told], dtype=np.float32), **empty}
    denoiser.bind(inputs, {"prediction": np.zeros_like(latents), **block}).run()
    for name, array in block.items():
        check_finite(array, f"denoiser, {name} of the picture")
    clock.prefill_s += time.perf_counter() - start
    return {name.replace("block_", "past_", 1): array for name, array in block.items()}


def _condition(prompt: Prompt, kept: Arrays, slots: int, conditioner: Engine, outputs: Arrays, before: int = 0) -> None:
    """What the transformer has read of a prompt, as the denoiser reads it, written into its row; `before` it stand
    slots of a picture's latents."""
    inputs = {name: np.ascontiguousarray(buffer[:, :, :slots]) for name, buffer in kept.items()}  # itself where it can
    mask = np.zeros((1, slots), dtype=np.float32)
    mask[0, before : before + len(prompt)] = prompt.users_own
    more = {"prompt_mask": mask, "prefix_length": np.array([before + len(prompt)], dtype=np.int64)}
    inputs |= {name: array for name, array in more.items() if name in conditioner.inputs}
    conditioner.bind(inputs, outputs).run()
    for name, row in outputs.items():
        check_finite(row, f"conditioner, {name}")


class PromptPrefix:
    """Buffers (rows, ...) for everything that the conditioner hands to the denoiser."""

    def __init__(
        self,
        denoiser_inputs: Mapping[str, TensorSpec],
        unconditional: Arrays,
        slots: int,
        zeros: Callable[[tuple[int, ...], Any], np.ndarray] = np.zeros,
        rows: int = 2,
    ) -> None:
        self.buffers: dict[str, np.ndarray] = {}
        for spec in handed_over(tuple(denoiser_inputs.values())):
            axis = SLOT_AXIS.get(pattern(spec.name))
            shape = [slots if i == axis else spec.fixed(i, "one size") for i in range(1, len(spec.shape))]
            self.buffers[spec.name] = zeros((rows, *shape), spec.dtype)
            if unconditional:
                self._fill(spec.name, axis, unconditional)

    def first(self, rows: int) -> dict[str, np.ndarray]:
        """What a step with so many rows reads."""
        return {name: buffer[:rows] for name, buffer in self.buffers.items()}

    def row(self, index: int) -> dict[str, np.ndarray]:
        return {name: buffer[index : index + 1] for name, buffer in self.buffers.items()}

    def mask_from_prompt(self, seen_slots: int) -> None:
        """The unconditional row is the prompt's, of which it sees the first slots alone."""
        for name, buffer in self.buffers.items():
            buffer[UNCONDITIONAL] = buffer[PROMPT]
            if name == "prefix_mask":
                buffer[UNCONDITIONAL, seen_slots:] = False

    def _fill(self, name: str, axis: int | None, unconditional: Arrays) -> None:
        row = self.buffers[name][UNCONDITIONAL : UNCONDITIONAL + 1]
        if name not in unconditional:
            raise BundleError(f"the unconditional prefix has no {name}")
        given = unconditional[name]
        used = tuple(slice(given.shape[i] if i == axis else None) for i in range(min(given.ndim, row.ndim)))
        if given.dtype.kind != row.dtype.kind or row[used].shape != given.shape:
            raise BundleError(
                f"{name} of the unconditional prefix is {given.dtype} {given.shape}, expected {row.shape}"
            )
        row[used] = given


def _slots_of(unconditional: Arrays) -> int:
    """t of the empty prompt."""
    if not unconditional:
        return 0
    mask = unconditional.get("prefix_mask")
    if mask is None or mask.ndim != 2:
        raise BundleError("the unconditional prefix has no prefix_mask (1, t)")
    return mask.shape[1]


def fixed_slots(denoiser_inputs: Mapping[str, TensorSpec]) -> int | None:
    """t where the graph fixes it."""
    entry = denoiser_inputs["prefix_mask"].shape[1]
    return entry if isinstance(entry, int) else None


def _fixed_prompt(conditioner: Engine) -> int | None:
    """T of a conditioner that was exported for one."""
    axes = [spec.shape[2] for name, spec in conditioner.inputs.items() if name.startswith("past_")]
    return next((entry for entry in axes if isinstance(entry, int)), None)
