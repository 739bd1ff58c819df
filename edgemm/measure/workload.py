"""The work a benchmark gives a model: text of a chosen length, a picture of noise, a thing to draw.

Contents hardly matter to the time a model takes, lengths do; so words are counted by the model's own tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["DRAWING", "QUESTION", "fit_prompt", "noise_picture"]

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
