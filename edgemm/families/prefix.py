"""A language model that draws over the keys and values of its prompt: conditioner and denoiser around its own layers.

The prompt's keys were turned to their positions 0 to L - 1.  The conditioner turns them back by L, so that the denoiser
counts positions from 0 and needs no L: attention sees only differences of positions (arXiv:2104.09864).
Axes: b batch, r the denoiser's own rows, t prefix slots, g K/V heads, d head width, w width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.export.component_graphs import ComponentGraph, scatter
from edgemm.families.family import Named, Shape, component
from edgemm.families.llama import LlamaGraph, Pair, Rows, example_tokens, rms

__all__ = [
    "HiddenGraph",
    "OverPrefix",
    "TurnedBack",
    "conditioner_component",
    "example_inputs",
    "over_prefix",
    "prefix_shapes",
]


class HiddenGraph(LlamaGraph):
    """LlamaGraph that keeps hidden states (b, 1, T, w) of its last layers, too; the very last is after the norm."""

    def __init__(self, text: Any, head: nn.Module, kept: int) -> None:
        super().__init__(text, head)
        self.first = len(self.layers) - kept

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past = tensors
        pairs, hidden = past[: 2 * len(self.layers)], past[2 * len(self.layers) :]
        rows = self.placed(write_index[:, None] + torch.arange(input_ids.shape[1]), attention_limit, past)
        kept: list[Tensor] = []

        def keep(index: int, x: Tensor) -> Tensor:
            if index >= self.first:
                state = rms(self.norm, x) if index == len(self.layers) - 1 else x
                kept.append(scatter(hidden[index - self.first], state[:, None], write_index))
            return x

        x = self.look_up(input_ids, image_tokens, image_index)
        x, present = self.read(x, rows, write_index, pairs, keep)
        return self.answer(x, logits_index), *present, *kept


class TurnedBack(nn.Module):
    """The first `prefix_length` slots of a cache, their keys turned back by as many positions."""

    def __init__(self, inv_freq: Tensor) -> None:
        super().__init__()
        self.inv_freq = nn.Buffer(inv_freq.float().clone(), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *past, prefix_length = tensors
        mask = torch.arange(past[0].shape[2]) < prefix_length[:, None]  # (b, T)
        angles = -prefix_length.float()[:, None, None] * self.inv_freq  # (b, 1, d/2)
        cos, sin = (part.expand(-1, mask.shape[1], -1) for part in (angles.cos(), angles.sin()))
        keys = [torch.onnx.ops.rotary_embedding(each, cos, sin) for each in past[::2]]
        return mask, *(tensor for pair in zip(keys, past[1::2], strict=True) for tensor in pair)


class OverPrefix(LlamaGraph):
    """Rows (b, r, w) through a language model's layers, at positions 0, 1, ..., behind a prefix."""

    def behind(self, x: Tensor, prefix_mask: Tensor, pairs: tuple[Tensor, ...], own_mask: Tensor) -> Tensor:
        """Hidden states (b, r, w) after the last norm; `own_mask` (r, r) says which rows each row sees."""
        b = x.shape[0]
        rows = over_prefix(self.inv_freq, prefix_mask, own_mask, b, self.rotary_scale)
        for layer, keys, values in zip(self.layers, pairs[::2], pairs[1::2], strict=True):

            def join(own_keys: Tensor, own_values: Tensor, keys: Tensor = keys, values: Tensor = values) -> Pair:
                return torch.cat([keys, own_keys], dim=2), torch.cat([values, own_values], dim=2)

            x, *_ = self.run_layer(layer, x, rows, join)
        return rms(self.norm, x)


def over_prefix(inv_freq: Tensor, prefix_mask: Tensor, own_mask: Tensor, b: int, scale: float = 1.0) -> Rows:
    """Rows at positions 0, 1, ... behind a prefix."""
    r = own_mask.shape[-1]
    angles = torch.arange(r).float()[None, :, None] * inv_freq  # (1, r, d/2)
    cos, sin = ((part * scale).expand(b, -1, -1) for part in (angles.cos(), angles.sin()))
    seen = prefix_mask[:, None, None].expand(-1, -1, r, -1)
    return Rows(cos, sin, torch.cat([seen, own_mask.expand(b, 1, -1, -1)], dim=3))  # (b, 1, r, t + r)


def prefix_shapes(depth: int, kv_heads: int, head_width: int) -> dict[str, Shape]:
    """What such a conditioner gives and such a denoiser takes, in their order."""
    pair: Shape = ("b", kv_heads, "t", head_width)
    layers = {f"prefix_{part}.{layer}": pair for layer in range(depth) for part in ("key", "value")}
    return {"prefix_mask": ("b", "t"), **layers}


def conditioner_component(text: Any, kv_heads: int, head_width: int) -> ComponentGraph:
    """Of every layer of a language model."""
    depth, cache = len(text.layers), ("b", kv_heads, "T", head_width)
    read: dict[str, Shape] = {f"past_{part}.{layer}": cache for layer in range(depth) for part in ("key", "value")}
    given = prefix_shapes(depth, kv_heads, head_width)
    return component("conditioner", TurnedBack(text.rotary_emb.inv_freq), {**read, "prefix_length": ("b",)}, given)


@torch.no_grad()
def example_inputs(
    graphs: Mapping[str, ComponentGraph], ids: list[int], read: tuple[Tensor, Tensor], times: Sequence[float]
) -> dict[str, Named]:
    """What each component is compared on, made by those before it: a prompt's `ids`, what is `read` (pictures, and
    their tokens), and two `times` of drawing."""
    pictures, tokens = read
    words = example_tokens(graphs["transformer"], ids, tokens)
    present = _answers(graphs["transformer"], words)
    past = {spec.name: present[spec.name.replace("past", "present")] for spec in graphs["conditioner"].inputs[:-1]}
    condition = {**past, "prefix_length": words["attention_limit"][:, -1] + 1 - torch.tensor([0, 5])}
    shape = [int(size) for size in graphs["image_decoder"].inputs[0].shape[1:]]
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    given = _answers(graphs["conditioner"], condition)
    return {
        "image_encoder": {"pixels": pictures},
        "transformer": words,
        "conditioner": condition,
        "denoiser": {"latents": latents, "time": torch.tensor(times), **given},
        "image_decoder": {"latents": latents},
    }


def _answers(graph: ComponentGraph, inputs: Named) -> Named:
    return dict(zip([spec.name for spec in graph.outputs], graph.module(*inputs.values()), strict=True))
