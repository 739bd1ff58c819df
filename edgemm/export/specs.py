"""How each target's weights are quantized: by the caller's spec, or by what `--precision int8|fp8|...` means there.

CPUs' int8 rounds the inputs of products, so the transformer is smoothed for it by a page of shipped text, which takes
seconds and a fifth of the loss (docs/quantize.md).  Their int4 needs no data.  Where the model is of a family whose
transformer draws, too, both are quick_spec's (lower_cpu.py).
NVIDIA's targets get forms that their engines have kernels for: 8 bits a channel or 4 bits in blocks, without
zero-points, and int8 inputs of conditioner and denoiser by ranges seen while the shipped prompts were drawn; with fp8
all inputs are fp8, by ranges of shipped text and prompts.  ONNX Runtime CUDA multiplies int8 on the CPU only, so there
drawing stays in float16.  Neither is smoothed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from edgemm.errors import UsageError
from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.export.products import Product, Table, products_of, tables_of
from edgemm.export.targets import Plan
from edgemm.model.unified import Unified
from edgemm.quantize.layers import FLOATS, QUICK, choose_layers
from edgemm.quantize.make import Method, make_spec
from edgemm.quantize.quantization import quantize
from edgemm.quantize.spec import Spec

__all__ = ["plan_specs", "PRECISIONS", "lower", "quick_spec"]

ORT_CUDA = {"int8": ("int8", "fp16"), "int4": ("int4", "fp16")}  # where engines have QUICK
METHODS = {"text": "", "draw": ""}  # rounded as the width suggests, without data
SMOOTHED = {"int8": {"text": "smoothquant", "draw": ""}}  # of CPUs
SAMPLES = 8  # shipped prompts, and pieces of text, for the ranges

Say = Callable[[str], None]


def plan_specs(
    model: Unified,
    plans: Sequence[Plan],
    given: Spec | None = None,
    checkpoint: tuple[str, str] = ("", ""),
    status: Say = lambda text: None,
    cache: str = "float",
) -> dict[str, Spec]:
    """target -> spec, for the targets that have one; plans that ask for the same share it.

    Smoothing is folded into `model` itself, which computes the same as before; what that changes for adapters is told
    by adapter_points.py.  `cache` is that of keys and values on a CPU.
    """
    if given is not None:
        return {plan.target: given for plan in plans}
    made: dict[tuple[str, str, bool], Spec] = {}
    found = {}
    for plan in sorted(plans, key=lambda plan: plan.quantizes):  # what is folded, the later ones see
        if not plan.quantizes:
            known = model.config.family not in ("vq", "connector")
            if plan.precision in QUICK and (known or cache == "int8"):
                methods = SMOOTHED.get(plan.precision, METHODS) if known else METHODS
                found[plan.target] = quantize(
                    model, *QUICK[plan.precision], methods, checkpoint=checkpoint, status=status, cache=cache
                )
            continue
        portable = plan.target != "cuda"
        text, draw = (QUICK | FLOATS if portable else ORT_CUDA)[plan.precision]
        wish = (text, draw, portable)
        if wish not in made:
            made[wish] = quantize(
                model, text, draw, METHODS, samples=SAMPLES, portable=portable, checkpoint=checkpoint, status=status
            )
        found[plan.target] = made[wish]
    return found


# `--precision int8|int4` on CPUs without data: a spec made on the spot of whatever graph there is, and lowered as any
# other.
#
# The recipe is that of `edgemm quantize` (quantize/recipe.py); the weights are those of the traced graph, so every
# family
# has it.  Nothing is smoothed: the model stays as it is, and adapters fit it.  What a precision does not touch keeps
# its
# reference graph.

PRECISIONS = ("fp32", *QUICK)


def lower(component: str, reference: ir.Model, precision: str, drawing_depth: int = 0) -> tuple[ir.Model, str]:
    """A copy of the component's graph for CPUs, and the precision it really has; drawing reads layers below
    `drawing_depth`."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return reference.clone(), precision
    spec = quick_spec(component, reference, precision, drawing_depth)
    return lower_ort_cpu(component, reference.clone(), spec)


def quick_spec(component: str, reference: ir.Model, precision: str, drawing_depth: int = 0) -> Spec:
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
