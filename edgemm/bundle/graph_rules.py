"""What each target cannot take, as a table, and the check that names the node.

`edgemm verify` runs it on every graph of a bundle, and `edgemm build` before NVIDIA's parser, which trusts its input.
What engines take was found with TensorRT for RTX 1.7 and in the parsers' own lists of operators; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from edgemm.bundle.onnx_file import Node, Outline

__all__ = ["RULES", "Rules", "broken_rules"]

PRIMITIVES = frozenset({  # that onnx-tensorrt's docs/operators.md has before and after 10.3, in 9.2 and in 10.15
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat",
    "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "DepthToSpace", "DequantizeLinear", "Div", "Einsum",
    "Equal", "Erf", "Exp", "Expand", "Flatten",
    "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow",
    "QuantizeLinear", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
    "Reshape", "Resize", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
REFUSED = {  # by NVIDIA's parsers
    "NonZero": "its output has no fixed size",
    "Multinomial": "sampling happens outside of graphs",
    "RandomNormal": "noise comes from the caller",
    "RandomNormalLike": "noise comes from the caller",
    "DynamicQuantizeLinear": "TensorRT wants its scales in the graph",
    "MatMulInteger": "TensorRT wants QuantizeLinear and DequantizeLinear around a float product",
    "ConvInteger": "TensorRT wants QuantizeLinear and DequantizeLinear around a float product",
    "If": "a graph within a graph",
    "Loop": "a graph within a graph",
    "Scan": "a graph within a graph",
}
FOREIGN_TYPES = ("string", "float64", "complex64", "complex128", "uint16", "uint32", "uint64", "int16")
ZERO_POINTS = ("int8", "int4", "float8e4m3fn", "float4e2m1")


@dataclass(frozen=True)
class Rules:
    """Whatever a field does not forbid is allowed."""

    newest_opset: int
    domains: tuple[str, ...] = ("",)
    operators: frozenset[str] | None = None  # of the default domain; None: all that are not in `refused`
    refused: dict[str, str] = field(default_factory=dict)  # operator -> why
    own_operators: frozenset[str] = frozenset()  # of domain trt
    functions: bool = False  # may the graph define operators of its own
    types_refused: tuple[str, ...] = ()
    typed_zero_points: bool = False  # symmetric quantization, its type said by a zero-point
    caches_in_place: bool = False  # a TensorScatter takes a cache of fixed size from outside and gives it back


OWN = frozenset({"TRT_FP4DynamicQuantize"})
NVIDIA = Rules(24, refused=REFUSED, types_refused=FOREIGN_TYPES, typed_zero_points=True, caches_in_place=True)

RULES = {
    "cpu": Rules(24, ("", "com.microsoft"), functions=True),
    "web": Rules(24, ("", "com.microsoft"), functions=True),
    "cuda": Rules(24, ("", "com.microsoft"), functions=True),
    "rtx": replace(NVIDIA, own_operators=OWN),
    "jetson-orin": NVIDIA,
    "jetson-thor": replace(NVIDIA, own_operators=OWN),
    # TensorRT 10.3 promises opset 20; 21 is said only where INT4 wants it (export/dialects.py)
    "jetson-orin-jp6": Rules(
        21, operators=PRIMITIVES, refused=REFUSED, types_refused=FOREIGN_TYPES, typed_zero_points=True
    ),
}


def broken_rules(outline: Outline, rules: Rules) -> Iterator[str]:
    """One line for everything that the target cannot take, with the node's name."""
    opset = outline.opsets.get("", 0)
    if opset > rules.newest_opset:
        yield f"the graph is of opset {opset}, expected at most {rules.newest_opset}"
    for name in outline.functions:
        if not rules.functions:
            yield f"function {name!r}: a graph may not define operators of its own"
    for node in outline.nodes:
        yield from _broken_by(node, outline, rules)
    for name, kind in outline.types.items():
        if kind in rules.types_refused:
            yield f"tensor {name!r} is {kind}, which this target does not take"


def _broken_by(node: Node, outline: Outline, rules: Rules) -> Iterator[str]:
    if node.domain not in rules.domains and not (node.domain == "trt" and node.op_type in rules.own_operators):
        yield f"{node}: domain {node.domain!r} is none of: {', '.join(map(repr, rules.domains))}"
    elif node.op_type in rules.refused and not node.domain:
        yield f"{node}: {rules.refused[node.op_type]}"
    elif rules.operators is not None and not node.domain and node.op_type not in rules.operators:
        yield f"{node}: {node.op_type} is not among the primitives that this target takes"
    if rules.typed_zero_points and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _zero_point(node, outline)
    if rules.caches_in_place and node.op_type == "TensorScatter":
        yield from _cache(node, outline)


def _zero_point(node: Node, outline: Outline) -> Iterator[str]:
    """Older parsers take what has no zero-point for int8, whatever it is."""
    source, given = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else ""
    if not given and any(source in other.outputs for other in outline.nodes if other.domain == "trt"):
        return  # its type is that of NVIDIA's own operator, and its scales are not known beforehand
    if not given:
        yield f"{node}: has no zero-point, expected a zero of the quantized type"
    elif given in outline.weights and outline.types[given] not in ZERO_POINTS:
        yield f"{node}: its zero-point is {outline.types[given]}, expected one of: {', '.join(ZERO_POINTS)}"


def _cache(node: Node, outline: Outline) -> Iterator[str]:
    shape = outline.inputs.get(node.inputs[0])
    if shape is None or node.outputs[0] not in outline.outputs:
        yield f"{node}: its cache has to be an input and an output of the graph, to be written in place"
    elif len(shape) != 4 or not isinstance(shape[2], int):
        yield f"{node}: its cache is {shape}, expected a fixed number of slots at axis 2"
