"""A model of codes smaller than `micro`, every weight random, large enough that its codes and words vary."""

from __future__ import annotations

import torch

from edgemm.model import checkpoint
from edgemm.model.config import (
    DenoiserConfig,
    ImageTokensConfig,
    ModelConfig,
    SamplerConfig,
    TransformerConfig,
    VisionConfig,
)
from edgemm.model.unified import Unified
from tests.model.tiny import micro

__all__ = ["random_codes", "tiny_codes"]


def tiny_codes(**changes: object) -> ModelConfig:
    parts: dict[str, object] = {
        "name": "tiny-codes",
        "family": "vq",
        "objective": "ar",
        "transformer": TransformerConfig(
            vocab_size=264 + 40, width=64, depth=2, heads=4, kv_heads=2, head_width=16, ffn_width=128, max_context=512
        ),
        "vision": VisionConfig(encoder="vq", image_size=16, stride=4, feature_width=0, hidden_width=0),
        "image_tokens": ImageTokensConfig("vq", image_size=16, patch=4, channels=4, hidden=16, codes=40),
        "denoiser": DenoiserConfig(),
        "sampler": SamplerConfig(guidance_scale=3.0, top_k=20),
    }
    return micro(**(parts | changes))


def random_codes(seed: int = 0) -> Unified:
    """Its layers weigh more than its embeddings: a tied head would else say the last token over and over."""
    model = checkpoint.build(tiny_codes(), seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    return model.requires_grad_(False)
