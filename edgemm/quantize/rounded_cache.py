"""Keys and values of the transformer's cache in 8 bits: how coarse, and what it does to the torch model.

    code = round(key / step)      int8, a step a channel of each head, known before anything runs

Steps are the largest keys and values of the calibration data over 127, with some room; a key's channels differ by far
more than its tokens do (KIVI, arXiv:2402.02750), so no step is needed a token, and the cache is one tensor as before.
Axes: b batch, g K/V heads, s tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from edgemm.errors import InputError, UsageError
from edgemm.model.prompts import read_prompt
from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import BATCH, Calibration

if TYPE_CHECKING:
    from edgemm.quantize.spec import Spec

__all__ = ["CACHES", "RoundedCache", "cache_steps", "round_cache"]

CACHES = ("float", "int8")
ROOM = 1.25  # for what the calibration data did not show
PARTS = ("key", "value")
PICTURES = 8
QUESTION = "What is this?"


@torch.no_grad()
def cache_steps(model: Unified, data: Calibration) -> dict[str, Tensor]:
    """`key.LAYER` and `value.LAYER` -> steps (g, d)."""
    if model.config.family != "mot":
        raise UsageError(f"an int8 cache is for family mot; {model.config.name} is of family {model.config.family}")
    largest: dict[str, Tensor] = {}
    for cached in _caches(model, data):
        for layer, pair in enumerate(cached):
            for part, tensor in zip(PARTS, pair, strict=True):
                seen = tensor.abs().amax((0, 2))  # (g, d)
                if not torch.isfinite(seen).all():
                    raise InputError(f"the {part}s of layer {layer} are not finite on the calibration data")
                name = f"{part}.{layer}"
                largest[name] = torch.maximum(largest[name], seen) if name in largest else seen
    return {name: (ROOM / 127 * numbers).clamp(min=1e-6) for name, numbers in largest.items()}


def _caches(model: Unified, data: Calibration) -> Iterator[KeyValues]:
    """Of the calibration text, and of a question about pictures that show nothing: soft random colours."""
    for ids in data.texts.split(BATCH):
        limit = torch.arange(ids.shape[1]).expand(len(ids), -1)
        yield model.transformer(model.transformer.embed_tokens(ids), limit)[1]
    random = torch.Generator().manual_seed(0)
    side = model.config.vision.image_size
    pictures = nn.functional.interpolate(torch.rand(PICTURES, 3, 4, 4, generator=random), side, mode="bilinear")
    prompt = read_prompt(model.config, model.encode, QUESTION, pictures=1)
    ids, index, limit = (
        torch.tensor(row).expand(PICTURES, -1) for row in (prompt.ids, prompt.image_index, prompt.attention_limit)
    )
    yield model.transformer(model.transformer.embed(ids, model.image_encoder(pictures), index), limit)[1]


class RoundedCache(nn.Module):
    """A layer's attention whose keys and values are rounded as the cache rounds them."""

    def __init__(self, attention: nn.Module, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.attention = attention
        self.steps = keys[:, None], values[:, None]  # (g, 1, d)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, *cached = self.attention.project(x, cos, sin)  # type: ignore[operator]
        keys, values = (
            (part / step).round().clamp(-128, 127) * step for part, step in zip(cached, self.steps, strict=True)
        )
        return queries, keys, values

    def output(self, attended: Tensor) -> Tensor:
        return self.attention.output(attended)  # type: ignore[operator]


def round_cache(model: nn.Module, spec: Spec) -> None:
    """In `model` itself, after everything else: names of layers change.  Nothing where the cache is float."""
    steps = spec.cache_steps()
    if not steps:
        return
    layers = cast(nn.ModuleList, model.get_submodule("transformer.layers"))
    wanted = {f"{part}.{number}" for number in range(len(layers)) for part in PARTS}
    if steps.keys() != wanted:
        raise InputError(f"the spec has an int8 cache of {len(steps) // 2} layers, the model {len(layers)}")
    for number, layer in enumerate(layers):
        keys, values = (torch.from_numpy(steps[f"{part}.{number}"]) for part in PARTS)
        layer.self_attn = RoundedCache(cast(nn.Module, layer.self_attn), keys, values)
