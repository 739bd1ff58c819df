"""How large the keys and values are that a bundle remembers: by the manifest's own shapes and types."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgemm.components import TensorSpec
from edgemm.manifest import Variant

__all__ = ["cache_bytes_a_slot", "row_bytes"]


def cache_bytes_a_slot(transformer: Variant) -> int:
    """Keys and values of every layer for one token."""
    return row_bytes(spec for spec in transformer.inputs if spec.name.startswith(("past_key.", "past_value.")))


def row_bytes(specs: Iterable[TensorSpec]) -> int:
    """Of one slot in tensors (b, heads, slots, width)."""
    return sum(spec.fixed(1, "heads") * spec.fixed(3, "head width") * np.dtype(spec.dtype).itemsize for spec in specs)
