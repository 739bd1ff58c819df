"""What opens a GGUF file, by package gguf, in half of the package's time.  No torch here."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["gguf_reader"]


def gguf_reader(library: Any) -> Any:
    """GGUFReader of package gguf (`library`), over plain memory.

    It cuts a mapped file into an array for each string of a vocabulary, a hundred thousand of them.  Arrays of numpy's
    own class for mapped files take most of that time, and plain ones over the same bytes say the same.
    """

    class Reader(library.GGUFReader):
        data = property(lambda self: self.plain, lambda self, mapped: setattr(self, "plain", np.asarray(mapped)))

    return Reader
