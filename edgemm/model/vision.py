"""Pixels to clean image tokens for reading: an encoder's feature maps, projected into the residual stream.

EfficientNet-Lite0 (lite0.py, pretrained and frozen), plain linear patches, or both side by side.  The grid comes first,
in row-major order; a model with visual words (vision.py) lets the word that the picture looks like follow.
Axes: b batch, S side in pixels, m squares of the grid, f features a square, j slots of a word, w transformer width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.model.config import ModelConfig, VisionConfig
from edgemm.model.lite0 import Lite0

__all__ = ["ImageEncoder", "PatchStem", "LENGTH", "NEVER", "VisualWords"]


class PatchStem(nn.Module):
    """Linear patches: the pixels of each square, nothing learned before the projection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.stride = config.stride

    def forward(self, pixels: Tensor) -> Tensor:
        patches = nn.functional.pixel_unshuffle(pixels * 2 - 1, self.stride)  # (b, f, S/stride, S/stride)
        return patches.flatten(2).transpose(1, 2)  # (b, m, f)


class DualEye(nn.Module):
    """What EfficientNet-Lite0 makes of a square and the square's own pixels, side by side."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.eye, self.patches = Lite0(config.blocks), PatchStem(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.eye(pixels), self.patches(pixels)], dim=-1)  # (b, m, f)


def make_encoder(config: VisionConfig) -> Lite0 | PatchStem | DualEye:
    if config.encoder == "lite0":
        return Lite0(config.blocks)
    return DualEye(config) if config.encoder == "dual" else PatchStem(config)


class ImageEncoder(nn.Module):
    """pixels (b, 3, S, S) in [0, 1] -> image tokens (b, m + j, w), spread like the transformer's own embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision, width = config.vision, config.transformer.width
        self.encoder = make_encoder(vision)
        self.position = nn.Parameter(torch.zeros(vision.grid_count, vision.hidden_width))
        self.norm_in = nn.LayerNorm(vision.feature_width)
        self.up_proj = nn.Linear(vision.feature_width, vision.hidden_width)
        self.down_proj = nn.Linear(vision.hidden_width, width)
        self.norm_out = nn.LayerNorm(width)
        self.words = VisualWords(vision, width) if vision.words else None

    def match_embeddings(self, embeddings: Tensor) -> None:
        """Start the output's scale at the spread of the transformer's embeddings (vocab, w)."""
        nn.init.constant_(self.norm_out.weight, embeddings.std().item())

    def features(self, pixels: Tensor) -> Tensor:
        """What the frozen encoder gives, (b, m, f): computed once a picture when the projection alone is trained."""
        return self.encoder(pixels)

    def project_grid(self, features: Tensor) -> Tensor:
        """(b, m, f) -> (b, m, w)."""
        hidden = nn.functional.gelu(self.up_proj(self.norm_in(features)) + self.position)
        return self.norm_out(self.down_proj(hidden))

    def project(self, features: Tensor) -> Tensor:
        """(b, m, f) -> (b, m + j, w)."""
        grid = self.project_grid(features)
        return grid if self.words is None else torch.cat([grid, self.words(features)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.project(self.features(pixels))


# What a picture looks like, said in the transformer's own vocabulary: a soft mixture of visual words.
#
# An encoder knows `words` things by sight (Ovis' visual vocabulary, arXiv:2405.20797).  Each is spelled with the
# transformer's own token embeddings, so that a language model that never saw a picture can read them; the mixture of
# the likeliest ones is spelled slot by slot.  The grid of features is standardised over the training pictures first.
# It knows features and embeddings; who teaches it which words is in train/tasks/align.py.
# Axes: b batch, m squares of the grid, f features a square, v words, j slots of a word, u letters, w transformer width.

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
