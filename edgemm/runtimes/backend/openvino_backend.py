"""OpenVINO as a backend for CPUs: compiled models, and arrays shared with them.

It reads the bundle's own ONNX graphs; operators that it does not know are told to it, in the second half of this file.
Where it is asked for bfloat16 and this CPU has none it would compute in float32 without a word, so what was asked is
compared with what the compiled model says.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset14 as ops
from openvino.frontend.onnx import ConversionExtension

from edgemm.bundle.components import Variant
from edgemm.bundle.onnx_file import check_external_data
from edgemm.errors import BundleError, MissingError
from edgemm.runtimes.backend.engine import (
    Arrays,
    GraphFiles,
    LoadedEngine,
    LockedBinding,
    ThreadPlan,
    check_names,
    explained,
)

__all__ = ["OpenVinoEngine", "open_engine", "providers", "version", "extensions"]

PRECISIONS = {"CPU f32": ov.Type.f32, "CPU bf16": ov.Type.bf16}  # provider -> what products are computed in


def version() -> str:
    return str(ov.__version__)


def providers() -> tuple[str, ...]:
    return tuple(PRECISIONS)


def open_engine(files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock) -> OpenVinoEngine:
    graph, variant = files.graph, files.variant
    check_external_data(graph, files.data, shared=variant.shared_locations)
    core, precision = ov.Core(), PRECISIONS[provider]
    for extension in extensions():
        core.add_extension(extension)
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise BundleError(
            f"{graph}: OpenVINO {version()} cannot read it: {_reason(error)}; run this component on onnxruntime"
        ) from error
    _ask_for(model, variant)
    options = {
        "INFERENCE_NUM_THREADS": plan.count,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    try:
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        what = f"{graph}: OpenVINO {version()} cannot compile it"
        raise explained(error, what, BundleError, _reason(error)) from error
    found = compiled.get_property("INFERENCE_PRECISION_HINT")
    if found != precision:
        raise MissingError(f"{files.component}: asked OpenVINO for {provider}, on this CPU it computes in {found}")
    check_names(graph, "input", variant.inputs, [port.get_names() for port in compiled.inputs])
    check_names(graph, "output", variant.outputs, [port.get_names() for port in compiled.outputs])
    return OpenVinoEngine(files.component, variant, compiled, lock)


def _ask_for(model: Any, variant: Variant) -> None:
    """An input that has a value of its own, and so need not be given, is read as that value alone: here it is given."""
    constants = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    given = {name for port in model.inputs for name in port.get_names()}
    for spec in variant.inputs:
        if spec.name not in given and (constant := constants.get(spec.name)) is not None:
            made = ops.parameter([-1] * len(spec.shape), constant.get_element_type(), name=spec.name)
            made.output(0).get_tensor().set_names({spec.name})
            constant.output(0).replace(made.output(0))
            model.add_parameters([made])
    model.validate_nodes_and_infer_types()


class OpenVinoEngine(LoadedEngine):
    title = "OpenVINO"

    def __init__(self, component: str, variant: Variant, compiled: Any, lock: threading.Lock) -> None:
        super().__init__(component, variant, lock)
        self.compiled = compiled

    def tie(self, inputs: Arrays, outputs: Arrays) -> LockedBinding:
        """A request whose tensors are the caller's arrays."""
        with self.lock:
            request = self.compiled.create_infer_request()
        for name, array in (*inputs.items(), *outputs.items()):
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        return LockedBinding(self, (inputs, outputs), request.infer)

    def reason(self, error: Exception) -> str:
        return _reason(error)


def _reason(error: Exception) -> str:
    """The one line of OpenVINO's many that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line.lstrip("- ") for line in lines if line.startswith("--") or "No conversion" in line]
    return (telling or lines[-1:] or [type(error).__name__])[0]


# Operators of the bundle's graphs that OpenVINO does not know, or knows otherwise, in operators that it does.
#
# Its own GroupQueryAttention gives a cache that grew by the new tokens; ours is written in place and keeps its size.
# Axes: b batch, s new tokens, T cache slots, t tokens of the longest row, h/g query and K/V heads, d head width.

SLOT_AXIS = 2


def extensions() -> list[ConversionExtension]:
    return [
        ConversionExtension("TensorScatter", "", _scatter),
        ConversionExtension("GroupQueryAttention", "com.microsoft", _grouped_attention),
        ConversionExtension("LayerNormalization", "", _layer_norm),
    ]


def _scatter(node: Any) -> Any:
    """TensorScatter (opset 24, linear)."""
    if node.get_attribute("axis") != SLOT_AXIS:
        raise ValueError(f"TensorScatter along axis {node.get_attribute('axis')}, expected {SLOT_AXIS}")
    return _written(*(node.get_input(place) for place in range(3))).outputs()


def _layer_norm(node: Any) -> Any:
    """LayerNormalization (opset 17). OpenVINO's own cuts a scale of each picture, (b, 1, w), to its first rows."""
    x, *weights = (node.get_input(place) for place in range(node.get_input_size()))
    axis, rank = node.get_attribute("axis", -1), x.get_partial_shape().rank.get_length()
    axes = _whole(list(range(axis % rank, rank)))
    found = ops.mvn(x, axes, True, node.get_attribute("epsilon", 1e-5), "INSIDE_SQRT")
    for combine, weight in zip((ops.multiply, ops.add), weights):
        found = combine(found, weight)
    return found.outputs()


def _written(cache: Any, rows: Any, index: Any) -> Any:
    """Rows (b, g, s, d) written into (b, g, T, d) from slot index (b) on."""
    whole, axis, zero, one = ops.shape_of(rows, "i64"), _whole(SLOT_AXIS), _whole(0), _whole(1)
    steps = ops.range(zero, ops.gather(whole, axis, zero), one, output_type="i64")  # (s)
    steps = ops.unsqueeze(steps, _whole([0, 1, 3]))
    slots = ops.broadcast(ops.add(ops.unsqueeze(index, _whole([1, 2, 3])), steps), whole)  # (b, g, s, d)
    return ops.scatter_elements_update(cache, slots, rows, axis)


def _grouped_attention(node: Any) -> Any:
    """As passes/grouped_attention.py writes it: with rotary tables, positions and a bias, no mask of its own."""
    h, g = (node.get_attribute(name) for name in ("num_heads", "kv_num_heads"))
    past = [node.get_input(place) for place in (3, 4)]
    lasts, longest, cosines, sines, positions, bias = (node.get_input(place) for place in range(5, 11))
    d = past[0].get_partial_shape()[3].get_length()
    queries, keys, values = _heads(node, h, g, d)
    cos, sin = (ops.unsqueeze(ops.gather(table, positions, _whole(0)), _whole(1)) for table in (cosines, sines))
    queries, keys = (_turned(part, cos, sin, d // 2) for part in (queries, keys))
    s = ops.gather(ops.shape_of(keys, "i64"), _whole(SLOT_AXIS), _whole(0))
    index = ops.subtract(ops.add(ops.convert(lasts, "i64"), _whole(1)), s)  # (b)
    present = [_written(cache, part, index) for cache, part in zip(past, (keys, values))]
    end = ops.reshape(ops.convert(longest, "i64"), _whole([1]), special_zero=False)
    seen = [ops.slice(p, _whole([0]), end, _whole([1]), _whole([SLOT_AXIS])) for p in present]  # (b, g, t, d)
    attended = ops.scaled_dot_product_attention(queries, *(_repeated(p, h, g, d) for p in seen), bias)
    flat = ops.reshape(ops.transpose(attended, _whole([0, 2, 1, 3])), _whole([0, 0, h * d]), special_zero=True)
    return [flat.output(0), *(p.output(0) for p in present)]


def _heads(node: Any, h: int, g: int, d: int) -> list[Any]:
    """Queries, keys and values (b, heads, s, d), out of one piece or of three."""
    pieces = [node.get_input(0)]
    if node.get_input(1).get_node().get_type_name() != "NullNode":
        pieces += [node.get_input(1), node.get_input(2)]
    split = [ops.reshape(piece, _whole([0, 0, -1, d]), special_zero=True) for piece in pieces]
    parts = split if len(split) > 1 else ops.variadic_split(split[0], _whole(2), _whole([h, g, g])).outputs()
    return [ops.transpose(part, _whole([0, 2, 1, 3])) for part in parts]


def _turned(x: Any, cosines: Any, sines: Any, half: int) -> Any:
    """Rotary embedding of (b, heads, s, d) by tables (b, 1, s, d / 2)."""
    left, right = ops.variadic_split(x, _whole(3), _whole([half, half])).outputs()
    turned = (
        ops.subtract(ops.multiply(left, cosines), ops.multiply(right, sines)),
        ops.add(ops.multiply(right, cosines), ops.multiply(left, sines)),
    )
    return ops.concat(list(turned), 3)


def _repeated(x: Any, h: int, g: int, d: int) -> Any:
    """(b, g, t, d) -> (b, h, t, d)."""
    if h == g:
        return x
    each = ops.broadcast(ops.unsqueeze(x, _whole(2)), _whole([1, 1, h // g, 1, 1]), broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(each, _whole([0, h, -1, d]), special_zero=True)


def _whole(value: int | list[int]) -> Any:
    return ops.constant(value, np.int64)
