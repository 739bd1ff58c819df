"""From logits to the next token.  Pure functions; the random generator is an argument.

The order is that of Hugging Face's generate: repetition penalty, temperature, top_k, top_p, min_p.
Axes: v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgemm.errors import UsageError

__all__ = ["Sampling", "filtered", "log_probabilities", "next_token", "penalised"]


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn from the logits; the defaults take the likeliest token."""

    temperature: float = 0.0  # 0 takes the likeliest token; 1 is the model's own distribution
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float | None = None  # keep the fewest tokens that together have this probability (arXiv:1904.09751)
    min_p: float | None = None  # drop tokens less likely than this part of the likeliest (arXiv:2407.01082)
    repetition_penalty: float = (
        1.0  # above 1 makes tokens that stand in the text already less likely (arXiv:1909.05858)
    )
    seed: int | None = None  # None draws one, which the result tells

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature <= 100, "0 to 100")
        _check("repetition_penalty", self.repetition_penalty, 0.01 <= self.repetition_penalty <= 100, "0.01 to 100")
        if self.top_k is not None:
            _check("top_k", self.top_k, self.top_k >= 1, "at least 1")
        if self.top_p is not None:
            _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1")
        if self.min_p is not None:
            _check("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1")
        if self.seed is not None:
            _check("seed", self.seed, self.seed >= 0, "0 or more")


def _check(name: str, value: float, good: bool, expected: str) -> None:
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"{name} is {value}, expected {expected}")


def next_token(logits: np.ndarray, history: Iterable[int], sampling: Sampling, generator: np.random.Generator) -> int:
    """One token id from logits (v); `history` is every id of the text so far."""
    scores = penalised(logits, history, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    scores = scores.astype(np.float64)
    with np.errstate(over="ignore"):  # next to 0 all but the likeliest are as good as left out
        scores = filtered((scores - scores.max()) / sampling.temperature, sampling)
    cumulative = np.cumsum(_softmax(scores))
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right").clip(0, len(scores) - 1))


def penalised(logits: np.ndarray, history: Iterable[int], penalty: float) -> np.ndarray:
    """Logits of tokens in `history` divided by the penalty when positive, multiplied when negative."""
    if penalty == 1:
        return logits
    seen = np.fromiter(set(history), dtype=np.int64)
    scores = logits.copy()
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return scores


def filtered(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Scores (v) with -inf where top_k, top_p or min_p leave a token out; the likeliest always stays."""
    if sampling.top_k is not None and sampling.top_k < len(scores):
        smallest = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < smallest, -np.inf, scores)
    if sampling.top_p is not None and sampling.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        before = np.cumsum(_softmax(scores)[order]) - _softmax(scores)[order]  # probability of all likelier tokens
        scores = scores.copy()
        scores[order[before >= sampling.top_p]] = -np.inf
    if sampling.min_p:
        scores = np.where(scores < scores.max() + math.log(sampling.min_p), -np.inf, scores)
    return scores


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """The model's own distribution over (v), as natural logarithms in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()
