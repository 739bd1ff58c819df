"""`--precision int8|int4` on CPUs without data: a spec made on the spot of whatever graph there is, and lowered as any
other.

The recipe is that of `edgemm quantize` (quantize/recipe.py); the weights are those of the traced graph, so every family
has it.  Nothing is smoothed: the model stays as it is, and adapters fit it.  What a precision does not touch keeps its
reference graph.
"""

from __future__ import annotations

import torch
from onnx import ModelProto

from edgemm.errors import UsageError
from edgemm.export.lower_ort_cpu import lower_ort_cpu
from edgemm.export.products import products_of
from edgemm.quantize.make import Method, make_spec
from edgemm.quantize.recipe import QUICK, choose_layers
from edgemm.quantize.spec import REST, Spec

__all__ = ["PRECISIONS", "lower", "quick_spec"]

PRECISIONS = ("fp32", *QUICK)


def lower(component: str, reference: ModelProto, precision: str, drawing_depth: int = 0) -> tuple[ModelProto, str]:
    """A copy of the component's graph for CPUs, and the precision it really has; drawing reads layers below
    `drawing_depth`."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    copy = ModelProto()
    copy.CopyFrom(reference)
    if precision == "fp32":
        return copy, precision
    return lower_ort_cpu(component, copy, quick_spec(component, reference, precision, drawing_depth))


def quick_spec(component: str, reference: ModelProto, precision: str, drawing_depth: int = 0) -> Spec:
    """Of the layers that the graph multiplies with; constants that belong to no layer stay in float."""
    found = {product.layer: product for product in products_of(reference, component) if "." in product.layer}
    shapes = {name: product.weight().shape for name, product in found.items()}
    layers = choose_layers(shapes, *QUICK[precision], drawing_depth)
    wanted = {name.removesuffix(REST) for name, layer in layers.items() if layer.bits}
    weights = {name: torch.from_numpy(found[name].weight().copy()) for name in wanted}
    return make_spec(weights, layers, {"text": Method(), "draw": Method()}, asked=QUICK[precision])
