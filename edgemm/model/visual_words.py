"""What a picture looks like, said in the transformer's own vocabulary: a soft mixture of visual words.

An encoder knows `words` things by sight (Ovis' visual vocabulary, arXiv:2405.20797).  Each is spelled with the
transformer's own token embeddings, so that a language model that never saw a picture can read them; the mixture of
the likeliest ones is spelled slot by slot.  The grid of features is standardised over the training pictures first.
It knows features and embeddings; who teaches it which words is in train/align.py.
Axes: b batch, m squares of the grid, f features a square, v words, j slots of a word, u letters, w transformer width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.config import VisionConfig

__all__ = ["LENGTH", "NEVER", "VisualWords"]

LENGTH = 30.0  # of a picture's standardised features: steps of 0.001 then move its logits enough
LIKELIEST = 8  # words that are mixed
SHARPNESS = 3.0  # of the mixture: words are taught with smoothed targets, and a blend of many is no word to read
NEVER = -1e4  # bias of a word that is not taught


class VisualWords(nn.Module):
    centre: Tensor
    spread: Tensor
    letters: Tensor
    spelling: Tensor

    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        self.drawn = config.middle_width or config.feature_width
        size = config.grid_count * self.drawn
        self.proj = nn.Linear(size, config.words)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer(
            "letters", torch.zeros(config.words, width)
        )  # (u, w): embeddings that spellings choose from
        self.register_buffer(
            "spelling", torch.zeros(config.words, config.word_tokens, dtype=torch.long)
        )  # rows of them

    def seen(self, features: Tensor) -> Tensor:
        """What words are told apart by, (b, size): the middle blocks' part of features (b, m, f), if they have one."""
        return features[:, :, : self.drawn].flatten(1)

    def standard(self, features: Tensor) -> Tensor:
        """(b, m, f) -> standardised and of one length, (b, size)."""
        standard = (self.seen(features) - self.centre) / self.spread
        return LENGTH * nn.functional.normalize(standard, dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """(b, m, f) -> how much the picture looks like each word (b, v)."""
        return self.proj(self.standard(features))

    def forward(self, features: Tensor) -> Tensor:
        """(b, m, f) -> the mixed spelling (b, j, w)."""
        likeliest, words = self.logits(features).topk(LIKELIEST, dim=-1)  # (b, LIKELIEST)
        spelled = self.letters[self.spelling[words]]  # (b, LIKELIEST, j, w)
        return ((SHARPNESS * likeliest).softmax(-1)[:, :, None, None] * spelled).sum(1)
