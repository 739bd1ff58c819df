"""The second move of every method: the spec's numbers in the torch model, so that judges can score it before export.

Weights are whole numbers times scales, inputs are rounded as the targets round them; the arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from edgemm.errors import InputError, UsageError
from edgemm.model.prompts import read_prompt
from edgemm.model.transformer import KeyValues
from edgemm.model.unified import Unified
from edgemm.quantize.calibration import BATCH, Calibration
from edgemm.quantize.number_formats import E4M3_LARGEST, as_e4m3, in_blocks, whole_of
from edgemm.quantize.smoothing import fold_all
from edgemm.quantize.spec import REST, Layer, Spec

__all__ = [
    "QuantizedLinear",
    "check_layers",
    "quantizable",
    "swap",
    "weights_of",
    "BLOCK",
    "rounded",
    "FINER",
    "CACHES",
    "RoundedCache",
    "cache_steps",
    "round_cache",
]

TABLES = ("letters",)  # buffers whose rows are looked up


class QuantizedLinear(nn.Module):
    def __init__(self, linear: nn.Linear, layer: Layer, spec: Spec, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.bias = linear.bias
        self.weight = nn.Parameter(
            spec.numbers(name).dequantized().contiguous(), requires_grad=False
        )  # (n, k) what the codes mean
        branch = spec.low_rank(name)
        # A layout that depends on where the spec came from would choose another kernel, and round otherwise.
        self.down, self.up = (torch.from_numpy(side).contiguous() for side in branch) if branch else (None, None)
        ranges = spec.tensors.get(f"{name}.range")
        self.largest = None if ranges is None else torch.tensor(float(ranges.max()))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(
            rounded(x, self.layer.activations, self.largest, self.layer.group or BLOCK), self.weight, self.bias
        )
        return y if self.down is None or self.up is None else y + x @ self.down.T @ self.up.T


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that a spec may name: linear layers, the embedding that the head shares, filters of a single pixel."""
    return {name: part for name, part in model.named_modules() if _has_rows(part)}


def _has_rows(part: nn.Module) -> bool:
    pointwise = isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
    return pointwise or isinstance(part, (nn.Linear, nn.Embedding))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """All that a spec may name -> its numbers as they are now, (n, k); who writes into them changes the model."""
    weights = {name: cast(Tensor, part.weight).data.flatten(1) for name, part in quantizable(model).items()}
    tables = {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in TABLES}
    return weights | tables


def check_layers(model: nn.Module, spec: Spec) -> None:
    """Raises InputError for a layer that the model has not, or has in another shape."""
    weights = weights_of(model)
    for name, layer in spec.document.layers.items():
        if name.removesuffix(REST) not in weights:
            raise InputError(f"the spec has a layer {name}, the model has none of that name")
        if layer.bits is not None and not name.endswith(REST):
            n, k = spec.tensors[f"{name}.codes"].shape
            shape = n + (len(spec.tensors[f"{name}{REST}.codes"]) if layer.rows else 0), k
            wanted = tuple(weights[name].shape)
            if shape != wanted:
                raise InputError(f"{name}: the spec has {shape} codes, the model's weight is {wanted}")


def swap(model: nn.Module, spec: Spec, folded: bool = False) -> None:
    """In `model` itself: the spec's smoothing, unless it was folded already, then its numbers, then its cache's."""
    if not folded:
        fold_all(model, spec)
    check_layers(model, spec)
    layers, weights = quantizable(model), weights_of(model)
    for name, layer in spec.document.layers.items():
        if layer.bits is None or name.endswith(REST):
            continue
        found = layers.get(name)
        if isinstance(found, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantizedLinear(found, layer, spec, name))
        else:  # only its numbers are stored small
            weights[name].copy_(spec.dequantized(name))
    round_cache(model, spec)


# What a target does to the inputs of a quantized product, in float: to numbers of 8 bits and back.
#
# `rounded` is one pure function a kind of spec.ACTIVATIONS.  Axes: ... any, k input channels.

BLOCK = 32  # where the weight has none of its own
FINER = 254  # half a step of the first term of token16 is the largest number of the second


def rounded(x: Tensor, kind: str, largest: Tensor | None = None, block: int = BLOCK) -> Tensor:
    """x (..., k) as the product sees it; `largest` is the range of static, fp8 and nvfp4 inputs, `block` the channels
    that share a scale of the weight's."""
    if kind == "float":
        return x
    if kind == "static":
        assert largest is not None
        return _symmetric(x, largest)
    if kind == "fp8":
        assert largest is not None
        scale = (largest / E4M3_LARGEST).clamp(min=1e-12)
        return as_e4m3(x / scale).to(x.dtype) * scale
    if kind == "nvfp4":
        assert largest is not None
        return in_blocks(x.flatten(0, -2), whole_of(largest)).dequantized().view_as(x)
    if kind in ("token", "token16"):
        largest = x.abs().amax(-1, keepdim=True)
        coarse = _symmetric(x, largest)
        return coarse if kind == "token" else coarse + _symmetric(x - coarse, largest / FINER)
    if kind == "block":
        k = x.shape[-1]
        blocks = pad(x, (0, -k % block)).unflatten(-1, (-1, block))
        return _symmetric(blocks, blocks.abs().amax(-1, keepdim=True)).flatten(-2)[..., :k]
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)  # as ONNX's DynamicQuantizeLinear
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).sub(zero).mul(scale)


def _symmetric(x: Tensor, largest: Tensor) -> Tensor:
    scale = (largest / 127).clamp(min=1e-12)
    return torch.round(x / scale).clamp(-127, 127) * scale


# Keys and values of the transformer's cache in 8 bits: how coarse, and what it does to the torch model.
#
#     code = round(key / step)      int8, a step a channel of each head, known before anything runs
#
# Steps are the largest keys and values of the calibration data over 127, with some room; a key's channels differ by far
# more than its tokens do (KIVI, arXiv:2402.02750), so no step is needed a token, and the cache is one tensor as before.
# Axes: b batch, g K/V heads, s tokens, d head width.

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
    prompt = read_prompt(model.config, model.tokenizer, QUESTION, pictures=1)
    rows = (prompt.input_ids, prompt.image_index, prompt.attention_limit)
    ids, index, limit = (torch.from_numpy(row).expand(PICTURES, -1) for row in rows)
    yield model.transformer(
        model.transformer.embed(ids, model.image_encoder(pictures), index), limit, pictured=index >= 0
    )[1]


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
