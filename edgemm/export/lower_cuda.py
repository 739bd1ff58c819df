"""Lowering for NVIDIA without quantizing: sizes of caches fixed, float16 with its islands, then the target's dialect.

Keys and values are float16 where the rest is: they go from transformer to conditioner to denoiser as they are.
Axes: T cache slots, t prefix slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgemm.bundle.components import KEYS_AND_VALUES, TensorSpec, pattern
from edgemm.errors import InputError
from edgemm.export.dialects import in_dialect
from edgemm.export.lower_cpu import write_blocks
from edgemm.export.options import ADAPTER_RANK
from edgemm.export.passes.half_precision import half_precision
from edgemm.export.passes.rewriting import CONTRIB, Writer, dims
from edgemm.export.products import Product, rewrite_products
from edgemm.quantize.spec import HEAD, Spec

__all__ = [
    "DRAWING_SLOTS",
    "fixed_axes",
    "fixed_sizes",
    "graph_specs",
    "in_precision",
    "lower_float",
    "lower_ort_cuda",
]

DRAWING_SLOTS = 128  # T of the conditioner: a drawing prompt is short, and every slot costs the denoiser at every step
PRODUCTS = ("MatMul", "Gemm", "Conv")
IN_FLOAT = ("vq_encoder",)  # gives ids: float16 would choose other codes where two are nearly as near


def fixed_sizes(
    max_context: int, skip: int, rank: int = ADAPTER_RANK, drawing: int = DRAWING_SLOTS
) -> dict[str, dict[str, int]]:
    """component -> named axis -> its size, for engines that want caches of one size, and adapters of one rank."""
    drawing = min(drawing, max_context)
    return {
        "transformer": {"T": max_context, "r": rank},
        "conditioner": {"T": drawing, "t": drawing - skip},
        "denoiser": {"t": drawing - skip, "r": rank},
    }


def lower_float(
    component: str, reference: ir.Model, precision: str, dialect: str, sizes: Mapping[str, Mapping[str, int]]
) -> tuple[ir.Model, str]:
    """The component's graph, and the precision it really has."""
    model, real = in_precision(component, reference, precision, sizes)
    return in_dialect(model, dialect), real


def in_precision(
    component: str, reference: ir.Model, precision: str, sizes: Mapping[str, Mapping[str, int]]
) -> tuple[ir.Model, str]:
    """A copy in its precision, in the reference's operators: without products there is nothing to gain from half."""
    model = reference.clone()
    fixed_axes(model, sizes.get(component, {}))
    hands_on = any(
        pattern(value.name or "") in KEYS_AND_VALUES for value in model.graph.inputs
    )  # to one of this precision
    if component in IN_FLOAT or not (hands_on or any(node.op_type in PRODUCTS for node in model.graph)):
        precision = "fp32"
    if precision == "fp16":
        half_precision(model, lambda name: pattern(name) in KEYS_AND_VALUES, _whitens)
    return model, precision


def _whitens(node: ir.Node) -> bool:
    """The pooled prompt's whitening divides by spreads that float16 would blur; it runs once a prompt."""
    return any(value is not None and "whiten" in (value.name or "") for value in node.inputs)


def fixed_axes(model: ir.Model, sizes: Mapping[str, int]) -> bool:
    """Gives named axes a size, in `model` itself: TensorRT updates a cache in place only when its T is a number."""
    made = [value for node in model.graph for value in node.outputs]
    changed = False
    for value in dict.fromkeys((*model.graph.inputs, *made, *model.graph.outputs)):
        fixed = [sizes.get(entry, entry) if isinstance(entry, str) else entry for entry in dims(value)]
        if fixed != list(dims(value)):
            value.shape = ir.Shape(fixed)
            changed = True
    return changed


def graph_specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a lowered graph, for the manifest."""
    specs = []
    for value in values:
        assert value.name and value.dtype is not None
        shape = tuple(entry for entry in dims(value) if entry is not None)
        specs.append(TensorSpec(value.name, value.dtype.numpy().name, shape))
    return tuple(specs)


# Lowering of a spec for ONNX Runtime on CUDA: float16 with MatMulNBits on the spec's own 4- and 8-bit numbers.
#
# Built only: nobody has run it on a GPU yet.  Its int8 activations would run on the CPU, so they are refused.


def lower_ort_cuda(
    component: str, reference: ir.Model, spec: Spec, precision: str, sizes: Mapping[str, Mapping[str, int]]
) -> tuple[ir.Model, str]:
    """The component's graph, and the precision to call it by."""
    model, real = in_precision(component, reference, precision, sizes)
    found = spec.coarsest(component)
    if found == "fp32":
        return model, real
    rewrite_products(model, lambda writer, product: _write(writer, product, spec), component)
    model.opset_imports[CONTRIB] = 1
    return model, found


def _write(writer: Writer, product: Product, spec: Spec) -> ir.Value | None:
    layer = spec.layer(product.layer)
    if layer.bits is None or product.layer == HEAD:
        return None
    if layer.activations not in ("float", "block"):
        raise InputError(
            f"{product.layer}: ONNX Runtime CUDA takes no {layer.activations!r} activations: quantize with --portable"
        )
    return write_blocks(writer, product, spec)
