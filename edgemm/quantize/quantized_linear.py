"""The second move of every method: the spec's numbers in the torch model, so that judges can score it before export.

Weights are whole numbers times scales, inputs are rounded as the targets round them; the arithmetic is float32.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgemm.errors import InputError
from edgemm.quantize.rounded_cache import round_cache
from edgemm.quantize.rounded_inputs import BLOCK, rounded
from edgemm.quantize.smoothing import fold_all
from edgemm.quantize.spec import REST, Layer, Spec

__all__ = ["QuantizedLinear", "check_layers", "quantizable", "swap", "weights_of"]

TABLES = ("letters",)  # buffers whose rows are looked up


class QuantizedLinear(nn.Module):
    def __init__(self, linear: nn.Linear, layer: Layer, spec: Spec, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.bias = linear.bias
        self.weight = nn.Parameter(spec.numbers(name).dequantized(), requires_grad=False)  # (n, k) what the codes mean
        branch = spec.low_rank(name)
        self.down, self.up = (torch.from_numpy(side) for side in branch) if branch else (None, None)
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
