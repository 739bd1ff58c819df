"""Lowering for NVIDIA without quantizing: sizes of caches fixed, float16 with its islands, then the target's dialect.

Keys and values are float16 where the rest is: they go from transformer to conditioner to denoiser as they are.
Axes: T cache slots, t prefix slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgemm.bundle.components import KEYS_AND_VALUES, TensorSpec, pattern
from edgemm.errors import InputError
from edgemm.export.dialects import in_dialect, say_promised_opset
from edgemm.export.lower_cpu import write_blocks
from edgemm.export.options import ADAPTER_RANK
from edgemm.export.passes.rewriting import CONTRIB, Writer, dims, drop_unread, infer
from edgemm.export.products import Product, rewrite_products
from edgemm.quantize.spec import HEAD, Spec

__all__ = [
    "DRAWING_SLOTS",
    "fixed_axes",
    "fixed_sizes",
    "graph_specs",
    "half_precision",
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
    model = in_dialect(model, dialect)
    say_promised_opset(model)
    return model, real


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


FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
ANGLES = ("Cos", "Sin")
SCALES = 2  # which input of Resize


def half_precision(
    model: ir.Model, half: Callable[[str], bool], island: Callable[[ir.Node], bool] = lambda node: False
) -> bool:
    """A float32 graph in float16, with islands that stay in float32, every change of precision an explicit Cast.

    Islands: what sines and cosines are made of (a position of 2,000 in float16 is off by a whole radian), whatever
    `island` names with all before it, and the statistics of norms, which the operators keep in float32 themselves
    (stash_type).  Inputs and outputs stay float32 but for those that `half` picks: keys and values, which would double
    the traffic of a cache.  Changes `model` itself.
    """
    infer(model)
    graph = model.graph
    kinds = {value.dtype for value in ir.convenience.create_value_mapping(graph).values()}
    if kinds & {HALF, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}:
        raise ValueError("the graph is not in float32 alone")
    wanted = {value: HALF if half(value.name or "") else FLOAT for value in graph.outputs if value.dtype == FLOAT}
    for value in graph.inputs:
        if value.dtype == FLOAT and half(value.name or ""):
            _say(value, HALF)
    kept, writer = _with_ancestors(model, island), _Casts(model)
    for node in list(graph):
        writer.convert(node, FLOAT if node in kept else HALF)
    for place, value in enumerate(graph.outputs):
        if wanted.get(value, value.dtype) != value.dtype:
            name, inner = value.name, "float16" if value.dtype == HALF else "float32"
            value.name = f"{name}/{inner}"
            cast = ir.node("Cast", [value], {"to": wanted[value]}, name=f"{name}/edge")
            cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
            _say(cast.outputs[0], wanted[value])
            graph.append(cast)
            graph.outputs[place] = cast.outputs[0]
    drop_unread(model)
    return True


def _with_ancestors(model: ir.Model, island: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """The nodes that stay in float32."""
    waiting = [node for node in model.graph if node.op_type in ANGLES or island(node)]
    kept: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in kept:
            kept.add(node)
            waiting += node.predecessors()
    return kept


class _Casts:
    """Floats in the type that a node wants them in, made when first asked for; a value's dtype is what it is now."""

    def __init__(self, model: ir.Model) -> None:
        self.writer = Writer(model)
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self, node: ir.Node, precision: ir.DataType) -> None:
        self.writer.place = node
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, HALF):
                always = node.op_type == "Resize" and place == SCALES  # the operator knows no other type
                node.replace_input_with(place, self._in(value, FLOAT if always else precision))
        if precision == FLOAT:
            return
        for value in node.outputs:
            if value.dtype == FLOAT:
                _say(value, HALF)
        for name, item in list(node.attributes.items()):
            if name == "to" and node.op_type == "Cast" and item.as_int() == FLOAT:
                node.attributes[name] = ir.AttrInt64(name, HALF)
            elif item.type == ir.AttributeType.TENSOR and item.as_tensor().dtype == FLOAT:
                node.attributes[name] = ir.AttrTensor(name, _in_half(item.as_tensor()))

    def _in(self, value: ir.Value, precision: ir.DataType) -> ir.Value:
        if value.dtype == precision:
            return value
        if (value, precision) not in self.made:
            name = f"{value.name}/{'float16' if precision == HALF else 'float32'}"
            if value.is_initializer() and value.const_value is not None:
                other = self.writer.constant(_in_half(value.const_value), name=name)
            else:
                other = self.writer.make("Cast", value, to=precision)
                other.name, other.shape = name, value.shape
                _say(other, precision)
            self.made[value, precision] = other
        return self.made[value, precision]


def _say(value: ir.Value, dtype: ir.DataType) -> None:
    """A type of its own: clones of a graph share theirs."""
    value.type = ir.TensorType(dtype)


def _in_half(tensor: ir.TensorProtocol) -> ir.Tensor:
    array = tensor.numpy()
    finite = np.abs(array[np.isfinite(array)])
    if finite.size and finite.max() > LARGEST:
        raise ValueError(f"{tensor.name!r} holds {finite.max():g}, float16 ends at {LARGEST:g}: keep it in float32")
    return ir.Tensor(array.astype(np.float16))
