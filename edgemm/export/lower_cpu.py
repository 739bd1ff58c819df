"""`--precision int8|int4` on CPUs without data: a spec made on the spot of whatever graph there is, and lowered as any
other.

The recipe is that of `edgemm quantize` (quantize/recipe.py); the weights are those of the traced graph, so every family
has it.  Nothing is smoothed: the model stays as it is, and adapters fit it.  What a precision does not touch keeps its
reference graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from onnx import ModelProto
from torch import Tensor

from edgemm.errors import UsageError
from edgemm.export.lower_ort_cpu import lower_ort_cpu
from edgemm.export.products import Product, Table, copy_to_rewrite, products_of, tables_of
from edgemm.quantize.make import Method, make_spec
from edgemm.quantize.recipe import QUICK, choose_layers
from edgemm.quantize.spec import Spec

__all__ = ["PRECISIONS", "lower", "quick_spec"]

PRECISIONS = ("fp32", *QUICK)


def lower(component: str, reference: ModelProto, precision: str, drawing_depth: int = 0) -> tuple[ModelProto, str]:
    """A copy of the component's graph for CPUs, and the precision it really has; drawing reads layers below
    `drawing_depth`."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    if precision == "fp32":
        copy = ModelProto()
        copy.CopyFrom(reference)
        return copy, precision
    spec = quick_spec(component, reference, precision, drawing_depth)
    copy = copy_to_rewrite(reference, lambda product: bool(spec.layer(product.layer).bits), component)
    return lower_ort_cpu(component, copy, spec)


def quick_spec(component: str, reference: ModelProto, precision: str, drawing_depth: int = 0) -> Spec:
    """Of the layers that the graph multiplies with; constants that belong to no layer stay in float."""
    found: dict[str, Product | Table] = {
        product.layer: product for product in products_of(reference, component) if "." in product.layer
    }
    found |= {table.layer: table for table in tables_of(reference, component)}
    shapes = {name: one.weight().shape for name, one in found.items()}
    layers = choose_layers(shapes, *QUICK[precision], drawing_depth)
    return make_spec(_Weights(found), layers, {"text": Method(), "draw": Method()}, asked=QUICK[precision])


class _Weights(Mapping[str, Tensor]):
    """Read out of the graph when one is asked for: all at once they would be another copy of the model."""

    def __init__(self, found: Mapping[str, Product | Table]) -> None:
        self._found = found

    def __getitem__(self, layer: str) -> Tensor:
        return torch.from_numpy(self._found[layer].weight().copy())  # (n, k)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
