"""The second move of every method: the spec's numbers in the torch model, so that judges can score it before export.

Weights are whole numbers times scales, inputs are rounded as the targets round them; the arithmetic is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemm.errors import InputError
from edgemm.quantize.rounded_cache import round_cache
from edgemm.quantize.rounded_inputs import BLOCK, rounded
from edgemm.quantize.smoothing import fold_all
from edgemm.quantize.spec import REST, Layer, Spec

__all__ = ["QuantizedLinear", "check_layers", "quantizable", "swap"]


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
    """Layers that a spec may name: every linear layer, and the embedding that the head shares."""
    return {name: part for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Embedding))}


def check_layers(model: nn.Module, spec: Spec) -> None:
    """Raises InputError for a layer that the model has not, or has in another shape."""
    layers = quantizable(model)
    for name, layer in spec.document.layers.items():
        if name.removesuffix(REST) not in layers:
            raise InputError(f"the spec has a layer {name}, the model has none of that name")
        if layer.bits is not None and not name.endswith(REST):
            weight: Tensor = layers[name].weight  # type: ignore[assignment]
            n, k = spec.tensors[f"{name}.codes"].shape
            shape = n + (len(spec.tensors[f"{name}{REST}.codes"]) if layer.rows else 0), k
            wanted = tuple(weight.shape)
            if shape != wanted:
                raise InputError(f"{name}: the spec has {shape} codes, the model's weight is {wanted}")


def swap(model: nn.Module, spec: Spec, folded: bool = False) -> None:
    """In `model` itself: the spec's smoothing, unless it was folded already, then its numbers, then its cache's."""
    if not folded:
        fold_all(model, spec)
    check_layers(model, spec)
    layers = quantizable(model)
    for name, layer in spec.document.layers.items():
        if layer.bits is None or name.endswith(REST):
            continue
        found = layers[name]
        if isinstance(found, nn.Embedding):
            found.weight.data = spec.dequantized(name)
        elif isinstance(found, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantizedLinear(found, layer, spec, name))
    round_cache(model, spec)
