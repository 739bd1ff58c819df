"""FP4 in operators that every runtime has, for those without a kernel for it: to compare with, never to use.

w = DequantizeLinear(codes, DequantizeLinear(scales, whole))            ->  one constant, by the rules of ONNX
DequantizeLinear(c, DequantizeLinear(s, whole)), c, s = TRT_FP4DynamicQuantize(x, whole)
                                                                        ->  x rounded in blocks of 16, in float32
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm.export.graph_file import save_graph
from edgemm.export.passes.rewriting import Writer, drop_unread, nodes_of, stored

__all__ = ["decoded_copy", "fp4_decoded"]

TRT = "trt"
BLOCK, LARGEST = 16, 6.0  # of E2M1
SCALE_LARGEST, SCALE_SMALLEST = 448.0, 2.0**-9  # of E4M3


def decoded_copy(graph: Path, folder: Path) -> tuple[Path, Path | None]:
    """The graph without FP4, and the file that its weights are in, below `folder`."""
    model, copy = ir.load(graph), folder / graph.name
    fp4_decoded(model)
    return copy, save_graph(model, copy)


def fp4_decoded(model: ir.Model) -> bool:
    """Changes `model` itself; answers whether there was one."""
    writer, changed = Writer(model), False
    for node in nodes_of(model, "DequantizeLinear"):
        source = node.inputs[0]
        maker = source.producer() if source is not None else None
        writer.place = node
        if source is not None and source.is_initializer() and source.dtype == ir.DataType.FLOAT4E2M1:
            writer.replace(node, writer.constant(_values(node)))
        elif maker is not None and maker.domain == TRT and maker.outputs[0] is source:
            writer.replace(node, _rounded(writer, *maker.inputs))
        else:
            continue
        changed = True
    drop_unread(model)
    model.opset_imports.pop(TRT, None)
    return changed


def _values(node: ir.Node) -> np.ndarray:
    """What a DequantizeLinear makes of constants, or of what another makes of constants."""
    codes, scale = (_numbers(value) for value in node.inputs[:2])
    block = node.attributes.get_int("block_size", 0)
    spread = np.repeat(scale, block, axis=node.attributes.get_int("axis", 1)) if block else scale
    return (codes.astype(np.float32) * spread.astype(np.float32)).astype(scale.dtype)


def _numbers(value: ir.Value | None) -> np.ndarray:
    array = stored(value)
    if array is None:
        maker = value.producer() if value is not None else None
        assert maker is not None
        array = _values(maker)
    return array


def _rounded(w: Writer, x: ir.Value | None, whole: ir.Value | None) -> ir.Value:
    """x in float32.  Steps of E2M1 are 0.5 up to 2, 1 up to 4, 2 up to 6, ties go to the even."""

    def number(value: float) -> ir.Value:
        return w.constant(value, np.float32)

    blocks = w.make("Reshape", w.make("Cast", x, to=ir.DataType.FLOAT), w.constant([-1, BLOCK]))
    largest = w.make("ReduceMax", w.make("Abs", blocks), w.constant([-1]))
    scale = w.make("Div", w.make("Div", largest, number(LARGEST)), whole)
    scale = w.make("Clip", scale, number(SCALE_SMALLEST), number(SCALE_LARGEST))
    scale = w.make("Cast", w.make("Cast", scale, to=ir.DataType.FLOAT8E4M3FN), to=ir.DataType.FLOAT)
    each = w.make("Mul", scale, whole)
    ratio = w.make("Div", blocks, each)
    size = w.make("Min", w.make("Abs", ratio), number(LARGEST))
    coarse = w.make("Where", w.make("Less", size, number(4)), number(1), number(2))
    step = w.make("Where", w.make("Less", size, number(2)), number(0.5), coarse)
    nearest = w.make("Mul", w.make("Round", w.make("Div", size, step)), step)
    values = w.make("Mul", w.make("Mul", w.make("Sign", ratio), nearest), each)
    return w.make("Reshape", values, w.make("Shape", x))
