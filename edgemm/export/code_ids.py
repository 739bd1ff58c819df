"""A table of token ids in a bundle: which tokens of the vocabulary are a picture's codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save

__all__ = ["CODE_IDS", "id_table"]

CODE_IDS = "tables/code_ids.safetensors"


def id_table(ids: Sequence[int]) -> bytes:
    """Token ids as a file of the bundle."""
    return save({"ids": np.array(ids, dtype=np.int64)})
