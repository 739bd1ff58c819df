"""What a student is asked to copy: the teacher's next words, its velocity, and the direction of its last features.

Pure functions; who the two are is in distill.py.
Axes: a answer tokens, k words kept, b batch, n image tokens, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["feature_loss", "kept_words", "word_loss"]


def kept_words(logits: Tensor, temperature: float, count: int) -> tuple[Tensor, Tensor]:
    """Of logits (a, vocab): the likeliest words (a, k) and their log-probabilities (a, k) at the temperature."""
    best = (logits.float() / temperature).log_softmax(dim=-1).topk(min(count, logits.shape[-1]), dim=-1)
    return best.indices, best.values


def word_loss(logits: Tensor, words: Tensor, log_probabilities: Tensor, temperature: float) -> Tensor:
    """Forward KL from teacher to student, times the temperature's square (arXiv:1503.02531), a scalar.

    Words that were not kept count as one more word, with what is left of the probability on either side.
    """
    ours = (logits.float() / temperature).log_softmax(dim=-1).gather(1, words)  # (a, k)
    theirs = log_probabilities.float()
    left, own_left = (_log_rest(known) for known in (theirs, ours))
    theirs, ours = torch.cat((theirs, left), dim=1), torch.cat((ours, own_left), dim=1)
    return (theirs.exp() * (theirs - ours)).sum(dim=1).mean() * temperature**2


def _log_rest(log_probabilities: Tensor) -> Tensor:
    """Log of 1 - the sum (a, 1), bounded below where the kept words are all there is."""
    return (1 - log_probabilities.exp().sum(dim=1, keepdim=True)).clamp(min=1e-6).log()


def feature_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - cosine between features (..., w) of the same place, a scalar: the direction is copied, the length is free."""
    return (1 - nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)).mean()
