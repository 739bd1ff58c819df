"""The survey's other designs (arXiv:2409.14993) as changes to a preset, so that they can be compared on the same data.

experts        mot     an image expert with its own weights shares attention alone with the transformer
               dense   one set of weights for text and picture
               connector  the image expert sees what a frozen transformer makes of learned queries, and nothing else
vision         single  the preset's encoder for reading
               dual    pixels and EfficientNet-Lite0's features of the same square, side by side
image_tokens   patch   the pixels of a square
               ae      latents of a small autoencoder, trained first
               vq      entries of a codebook, trained first; they are read, too, and need objective ar
objective      flow    a denoiser turns noise into a picture
               ar      the transformer says a picture's codes one after the other (arXiv:2405.09818)
"""

from __future__ import annotations

import dataclasses

from edgemm.config import DenoiserConfig, ImageTokensConfig, ModelConfig, VisionConfig
from edgemm.errors import UsageError
from edgemm.model.prompts import QUERY

__all__ = ["variant"]

CHANNELS = 16  # numbers of an autoencoder's token
HIDDEN = 48  # channels inside it
QUERIES = 16  # of a connector
CODES, CODE_CHANNELS = 256, 8  # of a codebook: many entries of few numbers are all used (arXiv:2110.04627)
CODE_GUIDANCE, LIKELIEST_CODES = 3.0, 32  # how they are drawn


def variant(
    config: ModelConfig,
    experts: str = "mot",
    vision: str = "single",
    image_tokens: str = "patch",
    objective: str = "flow",
) -> ModelConfig:
    """The preset with the designs asked for."""
    changes: dict[str, object] = {}
    if (objective == "ar") != (image_tokens == "vq"):
        raise UsageError(
            f"objective = {objective!r} with image_tokens = {image_tokens!r}: codes are drawn one after the other, and "
            "only codes are: give image_tokens = 'vq' and objective = 'ar'"
        )
    if objective == "ar":
        return _of_codes(config, experts, vision)
    if experts == "dense":
        source = config.transformer
        changes["denoiser"] = dataclasses.replace(
            config.denoiser, width=source.width, depth=source.depth, heads=source.heads, ffn_width=source.ffn_width,
            prefix_layers=tuple(range(source.depth)), condition_width=0,
        )  # fmt: skip
        changes |= {"experts": "dense", "family": "dense"}
    if experts == "connector":
        source, expert = config.transformer, config.denoiser
        top = tuple(range(source.depth - expert.depth, source.depth))
        close = config.draw.close + "".join(QUERY.format(number) for number in range(QUERIES))
        changes |= {
            "experts": "connector",
            "family": "connector",
            "transformer": dataclasses.replace(source, queries=QUERIES),
            "denoiser": dataclasses.replace(expert, prefix_layers=top),
            "draw": dataclasses.replace(config.draw, close=close),
        }
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


def _of_codes(config: ModelConfig, experts: str, vision: str) -> ModelConfig:
    """One transformer that reads and says codes: no eye, no denoiser; squares of half a side, for codes are coarse."""
    if experts != "mot" or vision != "single":
        raise UsageError(f"experts {experts!r} and vision {vision!r}: a model of codes has no experts and one vision")
    if config.base:
        raise UsageError(f"{config.name}: codes widen the vocabulary, and {config.base} comes with its own: take micro")
    size, patch = config.image_tokens.image_size, config.image_tokens.patch // 2
    source = config.transformer
    return dataclasses.replace(
        config,
        family="vq",
        objective="ar",
        transformer=dataclasses.replace(source, vocab_size=source.vocab_size + CODES),
        vision=VisionConfig(encoder="vq", image_size=size, stride=patch, feature_width=0, hidden_width=0),
        image_tokens=ImageTokensConfig("vq", size, patch, channels=CODE_CHANNELS, hidden=HIDDEN, codes=CODES),
        denoiser=DenoiserConfig(),
        sampler=dataclasses.replace(config.sampler, guidance_scale=CODE_GUIDANCE, top_k=LIKELIEST_CODES),
    )
