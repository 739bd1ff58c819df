"""Models small enough for milliseconds, with every weight random: what is zero at birth would hide mistakes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from edgemm.model import checkpoint
from edgemm.model.config import PRESETS, ModelConfig
from edgemm.model.unified import Unified

__all__ = ["micro", "random_micro", "tokens_of"]


def micro(**changes: Any) -> ModelConfig:
    return dataclasses.replace(PRESETS["micro"](), **changes)


def random_micro(config: ModelConfig | None = None, seed: int = 0) -> Unified:
    """A micro model whose gates, head and whitening are random too, about as large as trained ones."""
    model = checkpoint.build(config or micro(), seed)
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in [*model.conditioner.buffers(), *model.denoiser.parameters(), *model.image_encoder.parameters()]:
            if not tensor.any():
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
        model.transformer.embed_tokens.weight.mul_(10)  # to a spread of 1: attention then looks at what it sees
    return model.requires_grad_(False)


def varied_micro(config: ModelConfig | None = None) -> Unified:
    """Its layers weigh more than its embeddings: a tied head would else say the last word over and over."""
    model = random_micro(config)
    with torch.no_grad():
        model.transformer.embed_tokens.weight.mul_(0.3)
        for weight in model.transformer.layers.parameters():
            weight.mul_(3 if weight.dim() == 2 else 1)
    return model


def tokens_of(model: Unified, count: int, seed: int = 0) -> torch.Tensor:
    """Noise for `count` pictures, (count, n, p)."""
    tokens = model.config.image_tokens
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, tokens.token_count, tokens.token_width, generator=random)
