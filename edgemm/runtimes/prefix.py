"""The prompt as the denoiser reads it, at every step the same: two rows, the prompt and the empty prompt.

The conditioner writes row 0 in place, and with guidance the denoiser reads both rows, without it row 0 alone: the same
memory, no copy.  Row 1 is the unconditional prefix that the bundle ships, padded with slots that the mask hides; a
negative prompt's own prefix takes its place.
Axes: t prefix slots, h heads, d head width, c conditioning, n image tokens, l layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgemm.components import TensorSpec, handed_over, pattern
from edgemm.errors import BundleError
from edgemm.runtimes.engine import Arrays

__all__ = ["PromptPrefix", "fixed_slots", "unconditional_slots"]

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
