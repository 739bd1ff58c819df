"""Sites where a factor an input channel can move from activations into weights, and nothing else changes.

    (x / s) @ (W * s).T = x @ W.T

The division costs nothing on a device: it is folded into what makes x, a norm's weight, a modulation, a linear layer.
Which s is best is for smoothing.py and smoothing.py.  The transformer's value projections are no site, though their
product with the output projection would allow it: the conditioner reads the cached values.  Inputs of the denoiser's
down-projections come out of a GELU, through which nothing can be folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from edgemm.errors import InputError
from edgemm.model.kept_weights import multiply_columns
from edgemm.quantize.number_formats import to_floats
from edgemm.quantize.rounding import rtn
from edgemm.quantize.spec import Layer

if TYPE_CHECKING:
    from edgemm.quantize.spec import Spec

__all__ = ["Site", "fold", "fold_all", "sites", "smoothquant_factors", "awq_factors", "output_error"]


@dataclass(frozen=True)
class Site:
    """What makes an activation, and the layers that read it."""

    maker: str  # a norm with a weight, a linear layer, or a denoiser's modulation
    readers: tuple[str, ...]
    rows: slice | None = None  # of a modulation: where its shifts stand
    scale_rows: slice | None = None  # and its scales, which a 1 is added to


def sites(model: nn.Module) -> dict[str, Site]:
    """Site name -> site, for every transformer and denoiser layer."""
    found: dict[str, Site] = {}
    for name, part in model.named_modules():
        if name.endswith(".input_layernorm"):
            layer = name.rpartition(".")[0]
            found[name] = Site(name, tuple(f"{layer}.self_attn.{kind}_proj" for kind in "qkv"))
        elif name.endswith(".post_attention_layernorm"):
            layer = name.rpartition(".")[0]
            found[name] = Site(name, (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"))
        elif name.endswith(".mlp.up_proj"):
            found[name] = Site(name, (f"{name.removesuffix('up_proj')}down_proj",))
        elif name.endswith(".modulation") and ".blocks." in name and isinstance(part, nn.Linear):
            block, width = name.removesuffix(".modulation"), part.out_features // 6
            found[f"{block}.norm_attention"] = Site(
                name, (f"{block}.qkv_proj",), slice(0, width), slice(width, 2 * width)
            )
            found[f"{block}.norm_ffn"] = Site(
                name, (f"{block}.up_proj",), slice(3 * width, 4 * width), slice(4 * width, 5 * width)
            )
    there = {name for name, _ in model.named_modules()}  # a router and its experts read what no factor may change
    return {name: site for name, site in found.items() if there.issuperset(site.readers)}


@torch.no_grad()
def fold(model: nn.Module, site: Site, factors: Tensor) -> None:
    """Changes `model` itself: what the site makes is divided by factors (k), the weights that read it multiplied."""
    maker = model.get_submodule(site.maker)
    weight, bias = cast(Tensor, maker.weight), cast("Tensor | None", getattr(maker, "bias", None))
    if site.rows is not None and site.scale_rows is not None and bias is not None:
        weight[site.rows] /= factors[:, None]
        weight[site.scale_rows] /= factors[:, None]
        bias[site.rows] /= factors
        bias[site.scale_rows] = (1 + bias[site.scale_rows]) / factors - 1
    else:
        weight /= factors[:, None] if weight.dim() == 2 else factors
        if bias is not None:
            bias /= factors
    for reader in site.readers:
        multiply_columns(cast(Tensor, model.get_submodule(reader).weight), factors)


def fold_all(model: nn.Module, spec: Spec) -> None:
    """Every site that the spec smooths."""
    known = sites(model)
    factors: Mapping[str, Tensor] = {
        name: torch.from_numpy(spec.tensors[f"{name}.smooth"]) for name in spec.document.smoothed
    }
    for name, numbers in factors.items():
        if name not in known:
            raise InputError(f"the spec smooths {name}, the model has no such place")
        width = model.get_submodule(known[name].readers[0]).weight.shape[1]  # type: ignore[union-attr]
        if numbers.shape != (width,):
            raise InputError(f"{name}: the spec has {len(numbers)} factors, the model {width} channels")
    for name, numbers in factors.items():
        fold(model, known[name], numbers)


# SmoothQuant (arXiv:2211.10438): half of what makes activations hard to round moves into the weights.

STRENGTH = 0.5  # 0: all is left in the activations, 1: all is moved


def smoothquant_factors(weights: Sequence[Tensor], largest: Tensor, strength: float = STRENGTH) -> Tensor:
    """Readers' weights (n, k), the largest input of each channel (k) -> factors (k)."""
    inputs = largest.clamp(min=1e-5)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
    return (inputs**strength / columns ** (1 - strength)).clamp(min=1e-5)


# AWQ (arXiv:2306.00978): channels with large inputs get finer steps, by making their weights larger beforehand.
#
# The factors are a power of each channel's root mean square input; the power is searched, at each site for all its
# readers together, by the error of their outputs on the calibration inputs, which the inputs' gram matrix gives
# exactly.
# Axes: n output channels, k input channels.

POWERS = tuple(step / 10 for step in range(9))


def awq_factors(weights: Sequence[Tensor], layers: Sequence[Layer], gram: Tensor) -> Tensor:
    """Readers' weights (n, k) and what they shall be, gram (k, k) -> factors (k), all 1 where nothing helps."""
    size = gram.diagonal().clamp(min=1e-12).sqrt()
    best, found = float("inf"), torch.ones_like(size)
    for power in POWERS:
        factors = size**power
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight, layer in zip(weights, layers, strict=True):
            if layer.bits is not None:
                scaled = weight * factors
                if layer.form == "int":
                    numbers = rtn(scaled, layer.bits, layer.group, layer.symmetric)
                else:
                    numbers = to_floats(scaled, layer.form)
                said = numbers.dequantized() / factors
                error += output_error(said - weight, gram)
        if error < best:
            best, found = error, factors
    return found


def output_error(difference: Tensor, gram: Tensor) -> float:
    """Mean square of difference @ x over the inputs x that gram is the mean of."""
    return float((difference @ gram * difference).sum())
