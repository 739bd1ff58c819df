"""The survey's other designs (arXiv:2409.14993) as changes to a preset, so that they can be compared on the same data.

experts        mot     an image expert with its own weights shares attention alone with the transformer
               dense   one set of weights for text and picture
vision         single  the preset's encoder for reading
               dual    pixels and EfficientNet-Lite0's features of the same square, side by side
image_tokens   patch   the pixels of a square
               ae      latents of a small autoencoder, trained first
"""

from __future__ import annotations

import dataclasses

from edgemm.config import ImageTokensConfig, ModelConfig, VisionConfig

__all__ = ["variant"]

CHANNELS = 16  # numbers of an autoencoder's token
HIDDEN = 48  # channels inside it


def variant(
    config: ModelConfig, experts: str = "mot", vision: str = "single", image_tokens: str = "patch"
) -> ModelConfig:
    """The preset with the designs asked for."""
    changes: dict[str, object] = {}
    if experts == "dense":
        source = config.transformer
        changes["denoiser"] = dataclasses.replace(
            config.denoiser, width=source.width, depth=source.depth, heads=source.heads, ffn_width=source.ffn_width,
            prefix_layers=tuple(range(source.depth)), condition_width=0,
        )  # fmt: skip
        changes |= {"experts": "dense", "family": "dense"}
    if vision == "dual":
        before = config.vision
        changes["vision"] = VisionConfig(
            encoder="dual", image_size=max(64, before.image_size), stride=32,
            feature_width=1280 + before.middle_width + 3 * 32**2, hidden_width=before.hidden_width,
            blocks=before.blocks, words=before.words, word_tokens=before.word_tokens,
        )  # fmt: skip
    if image_tokens == "ae":
        size, patch = config.image_tokens.image_size, config.image_tokens.patch
        changes["image_tokens"] = ImageTokensConfig("ae", size, patch, channels=CHANNELS, hidden=HIDDEN)
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
