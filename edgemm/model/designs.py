"""The dense design, to compare the mixture with: one set of weights reads text and draws (arXiv:2408.11039).

Noisy image tokens go through the transformer's own layers over its own cached keys and values; they see one another and
the whole prompt.  Only what turns numbers into tokens and back is the denoiser's.  There are no adaptive norms: time
and the pooled prompt are added to every token.  The layers are the transformer's and are stored once, in it.
Axes: b batch, n image tokens, p numbers a token, w width, g key/value heads, d head width, t prefix slots.
"""

from __future__ import annotations

import dataclasses
from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn

from edgemm.data.graphs import EDGES
from edgemm.errors import UsageError
from edgemm.model.conditioner import Conditioner, Prefix
from edgemm.model.config import (
    DenoiserConfig,
    GraphConfig,
    ImageTokensConfig,
    MixtureConfig,
    ModelConfig,
    MotionConfig,
    VisionConfig,
)
from edgemm.model.denoiser import time_features
from edgemm.model.prompts import QUERY
from edgemm.model.transformer import KeyValues, Layer, Transformer, attend, rotary_tables

__all__ = ["MIXTURES", "DenseDenoiser", "Connector", "variant"]


class DenseDenoiser(nn.Module):
    def __init__(self, config: ModelConfig, transformer: Transformer, skip: int) -> None:
        super().__init__()
        expert, tokens = config.denoiser, config.image_tokens
        self.shared = (transformer,)  # in a tuple: its weights are not this module's
        self.skip = skip
        self.embed = nn.Linear(tokens.token_width, expert.width)
        self.layout_proj = nn.Linear(expert.layout_width, expert.width, bias=False)
        self.position = nn.Parameter(torch.randn(tokens.token_count, expert.width) * 0.02)
        self.time_width = 256
        self.time_mlp = nn.Sequential(
            nn.Linear(self.time_width, expert.width), nn.SiLU(), nn.Linear(expert.width, expert.width)
        )
        self.norm = nn.LayerNorm(expert.width)
        self.head = nn.Linear(expert.width, tokens.token_width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, noisy_tokens: Tensor, time: Tensor, prefix: Prefix, step_size: Tensor | None = None) -> Tensor:
        """noisy_tokens (b, n, p) at time (b) in [0, 1), over the prefix -> the clean tokens (b, n, p) it expects."""
        config = self.shared[0].config
        features = time_features(time, self.time_width).to(noisy_tokens.dtype)
        condition = self.time_mlp(features) + prefix.prompt_vector
        x = self.embed(noisy_tokens) + self.layout_proj(prefix.layout) + self.position + condition[:, None]
        b, n, _ = x.shape
        start = prefix.mask.long().sum(1, keepdim=True) + self.skip  # right behind the prompt
        cos, sin = rotary_tables(start + torch.arange(n, device=x.device), config.head_width, config.rope_theta)
        own = torch.ones(b, n, dtype=torch.bool, device=x.device)
        mask = torch.cat((prefix.mask, own), dim=1)[:, None, None]  # (b, 1, 1, t + n)
        layers = cast("list[Layer]", self.shared[0].layers)
        for layer, keys, values in zip(layers, prefix.keys, prefix.values, strict=True):
            queries, own_keys, own_values = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
            joint_keys = torch.cat((keys.to(own_keys.dtype), own_keys), dim=2)  # (b, g, t + n, d)
            joint_values = torch.cat((values.to(own_values.dtype), own_values), dim=2)
            x = x + layer.self_attn.output(attend(queries, joint_keys, joint_values, mask))
            x = x + layer.mlp(layer.post_attention_layernorm(x), own)
        return self.head(self.norm(x))


# The connector design: a frozen language model, learned queries behind the prompt, and a projector to the denoiser.
#
# The queries (config.TransformerConfig.queries) are tokens that close every drawing prompt; what the language model
# makes of them is all that the denoiser sees, as in MetaQueries (arXiv:2504.06256).  Here their keys and values are cut
# out of the cache and projected; the pooled prompt is their values in the deepest layer, side by side.  It knows cached
# tensors, never ids, time or pictures.
# Axes: b batch, T cache slots, q queries, g heads and d head width of the transformer, L prefix layers.


class Connector(Conditioner):
    @staticmethod
    def pooled_width(config: ModelConfig) -> int:
        source = config.transformer
        return source.queries * source.kv_heads * source.head_width

    def pool(self, cached: KeyValues, prompt_mask: Tensor, prefix_length: Tensor) -> Tensor:
        return self._side_by_side(self._queries_of(cached, prefix_length))

    def forward(self, cached: KeyValues, prompt_mask: Tensor, prefix_length: Tensor) -> Prefix:
        """The same as the base's, with t = q: keys and values (b, g, T, d) of the prefix layers -> Prefix."""
        queries = self._queries_of(cached, prefix_length)
        used = torch.ones_like(queries[0][0][:, 0, :, 0], dtype=torch.bool)  # (b, q)
        asked = prompt_mask.sum(1, keepdim=True) > 0
        return self.project(queries, self._side_by_side(queries), used, asked)

    def _queries_of(self, cached: KeyValues, prefix_length: Tensor) -> KeyValues:
        """Keys and values (b, g, q, d) of the prompt's last q slots."""
        slots = prefix_length[:, None] - self.queries + torch.arange(self.queries, device=prefix_length.device)

        def cut(x: Tensor) -> Tensor:
            return x.gather(2, slots[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        return [(cut(keys), cut(values)) for keys, values in cached]

    @staticmethod
    def _side_by_side(queries: KeyValues) -> Tensor:
        """(b, q*g*d)"""
        return queries[-1][1].float().transpose(1, 2).flatten(1)


# The survey's other designs (arXiv:2409.14993) as changes to a preset, so that they can be compared on the same data.
#
# experts        mot     an image expert with its own weights shares attention alone with the transformer
#                dense   one set of weights for text and picture
#                connector  the image expert sees what a frozen transformer makes of learned queries, and nothing else
# vision         single  the preset's encoder for reading
#                dual    pixels and EfficientNet-Lite0's features of the same square, side by side
# image_tokens   patch   the pixels of a square
#                ae      latents of a small autoencoder, trained first
#                vq      entries of a codebook, trained first; they are read, too, and need objective ar
# graphs         text    an incident list
#                rows    a row a node and a row an edge, of the types that data/graphs.py knows
# motion         none    a clip's frames are read as pictures one after the other
#                4, 1    a keyframe is read as a picture, and the frames behind it as so many tokens each, of what moved
# mixture        none    one feed-forward network a layer
#                8-top-2 and so on (MIXTURES): experts that a learned router chooses among, as wide together, where they
#                meet a token, as the one network is
#                choice-8  of the denoiser: experts that choose their tokens
#                wide    one network as wide as all experts of 8-top-2: what they are compared with
# objective      flow    a denoiser turns noise into a picture
#                ar      the transformer says a picture's codes one after the other (arXiv:2405.09818)

CHANNELS = 16  # numbers of an autoencoder's token
HIDDEN = 48  # channels inside it
QUERIES = 16  # of a connector
EYE_WIDTH, EYE_STRIDE = 128, 8  # features of a square that an eye of the model's own gives, and its most side
CODES, CODE_CHANNELS = 256, 8  # of a codebook: many entries of few numbers are all used (arXiv:2110.04627)
CODE_GUIDANCE, LIKELIEST_CODES = 3.0, 32  # how they are drawn


MIXTURES: dict[
    str, tuple[int, int, bool, bool]
] = {  # experts, top, whether one more is shared, whether halves are apart
    "2-top-1": (2, 1, False, False),
    "4-top-1": (4, 1, False, False),
    "4-top-2": (4, 2, False, False),
    "8-top-2": (8, 2, False, False),
    "8-top-2-shared": (8, 2, True, False),
    "8-top-1-by-modality": (8, 1, False, True),
}
NODES = 16  # of a graph that is read as rows
CHOICE, WIDE = "choice-8", "wide"
CHOOSING = (8, 2)  # experts of the denoiser, and how many a token gets on the mean


def variant(
    config: ModelConfig,
    experts: str = "mot",
    vision: str = "single",
    image_tokens: str = "patch",
    objective: str = "flow",
    mixture: str = "none",
    graphs: str = "text",
    motion: str = "none",
) -> ModelConfig:
    """The preset with the designs asked for; UsageError of those that exclude one another.

    `experts` (mot, dense, connector), `vision` (single, dual, conv), `image_tokens` (patch, ae, vq), `objective` (flow,
    ar), `mixture` (none, MIXTURES, choice-8, wide), `graphs` (text, rows), `motion` (none, or tokens a later frame).
    """
    if graphs == "rows":
        config = dataclasses.replace(config, graph=GraphConfig(EDGES, NODES, named=True))
    if mixture != "none":
        config = _mixed(config, mixture, experts)
    if (objective == "ar") != (image_tokens == "vq"):
        raise UsageError(
            f"objective = {objective!r} with image_tokens = {image_tokens!r}: codes are drawn one after the other, and "
            "only codes are: give image_tokens = 'vq' and objective = 'ar'"
        )
    if objective == "ar":
        if motion != "none":
            raise UsageError(f"objective 'ar' with motion {motion!r}: a model of codes has no eye; leave motion out")
        return _of_codes(config, experts, vision)
    if experts == "dense":
        config = _dense(config)
    if experts == "connector":
        config = _connected(config)
    if vision == "dual":
        config = dataclasses.replace(config, vision=_dual_eye(config.vision))
    if vision == "conv":
        config = dataclasses.replace(config, vision=_conv_eye(config.vision))
    if motion != "none":
        eye = config.vision
        stride = eye.image_size // isqrt(int(motion))
        moved = MotionConfig("conv", eye.image_size, stride, eye.feature_width, eye.hidden_width)
        config = dataclasses.replace(config, motion=moved)
    if image_tokens == "ae":
        size, patch = config.image_tokens.image_size, config.image_tokens.patch
        latents = ImageTokensConfig("ae", size, patch, channels=CHANNELS, hidden=HIDDEN)
        config = dataclasses.replace(config, image_tokens=latents)
    return config


def _dense(config: ModelConfig) -> ModelConfig:
    """The denoiser has no layers of its own: it reads noise with those of the transformer."""
    source = config.transformer
    denoiser = dataclasses.replace(
        config.denoiser, width=source.width, depth=source.depth, heads=source.heads, ffn_width=source.ffn_width,
        prefix_layers=tuple(range(source.depth)), condition_width=0,
    )  # fmt: skip
    return dataclasses.replace(config, denoiser=denoiser, experts="dense", family="dense")


def _connected(config: ModelConfig) -> ModelConfig:
    """Learned queries close every drawing prompt, and the denoiser sees them in the upper layers alone."""
    source, expert = config.transformer, config.denoiser
    top = tuple(range(source.depth - expert.depth, source.depth))
    close = config.draw.close + "".join(QUERY.format(number) for number in range(QUERIES))
    return dataclasses.replace(
        config,
        experts="connector",
        family="connector",
        transformer=dataclasses.replace(source, queries=QUERIES),
        denoiser=dataclasses.replace(expert, prefix_layers=top),
        draw=dataclasses.replace(config.draw, close=close),
    )


def _dual_eye(single: VisionConfig) -> VisionConfig:
    """EfficientNet-Lite0's features and raw squares of pixels, side by side."""
    return VisionConfig(
        encoder="dual", image_size=max(64, single.image_size), stride=32,
        feature_width=1280 + single.middle_width + 3 * 32**2, hidden_width=single.hidden_width,
        blocks=single.blocks, words=single.words, word_tokens=single.word_tokens,
    )  # fmt: skip


def _conv_eye(single: VisionConfig) -> VisionConfig:
    """A small convolutional encoder that learns with the model."""
    return VisionConfig(
        encoder="conv", image_size=single.image_size, stride=min(EYE_STRIDE, single.stride),
        feature_width=EYE_WIDTH, hidden_width=single.hidden_width,
    )  # fmt: skip


def _mixed(config: ModelConfig, mixture: str, experts: str) -> ModelConfig:
    """With experts in the place of feed-forward networks, each as wide as makes a token's work the same."""
    source, expert = config.transformer, config.denoiser
    if config.base:
        raise UsageError(f"{config.name}: {config.base} comes with feed-forward networks of its own: take micro")
    if mixture == CHOICE:
        if experts != "mot" or not expert.depth:
            raise UsageError(f"mixture {mixture!r} with experts {experts!r}: only a denoiser of its own can choose")
        count, top = CHOOSING
        chosen = MixtureConfig(count, top, expert.ffn_width // top)
        return dataclasses.replace(config, denoiser=dataclasses.replace(expert, mixture=chosen))
    if mixture == WIDE:
        count, top, *_ = MIXTURES["8-top-2"]
        wide = dataclasses.replace(source, ffn_width=source.ffn_width * count // top)
        return dataclasses.replace(config, transformer=wide)
    if mixture not in MIXTURES:
        raise UsageError(f"mixture {mixture!r} is none of: none, {', '.join(MIXTURES)}, {CHOICE}, {WIDE}")
    count, top, shared, apart = MIXTURES[mixture]
    width = source.ffn_width // (top + shared) // 4 * 4
    made = MixtureConfig(count, top, width, shared=width if shared else 0, by_modality=apart)
    return dataclasses.replace(config, transformer=dataclasses.replace(source, mixture=made))


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
