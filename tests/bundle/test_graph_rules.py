"""What a target cannot take is refused, and the node is named; the oracle of the reader is the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.bundle.graph_rules import RULES, broken_rules
from edgemm.bundle.onnx_file import TYPES, read_outline
from edgemm.errors import BundleError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def graph_of(*nodes, inputs=(), outputs=(), weights=(), opset=21, functions=(), domains=()):
    sides = inputs or [value("x", ["b", 4])], outputs or [value("y", ["b", 4])]
    constants = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(list(nodes), "g", *sides, constants)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def outline_of(model, tmp_path):
    path = tmp_path / "g.onnx"
    path.write_bytes(model.SerializeToString())
    return read_outline(path)


def broken(model, target, tmp_path):
    return list(broken_rules(outline_of(model, tmp_path), RULES[target]))


def test_the_outline_is_what_onnx_reads(tmp_path):
    """Nodes, types, shapes and where weights lie, of a graph with one inside."""
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["i"], name="in")], "i", [], [value("i", None)])
    model = graph_of(
        helper.make_node("If", ["flag"], ["z"], name="if", then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["z", "large"], ["y"], name="add", domain="ai.onnx"),
        inputs=[value("x", ["b", 4], HALF), value("flag", [], TensorProto.BOOL)],
        weights={"large": np.ones(4, np.float32), "bytes": np.ones((2, 3), np.int8)},
    )
    onnx.save_model(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    outline = read_outline(tmp_path / "g.onnx")
    assert [(n.op_type, n.name, n.domain, n.inner) for n in outline.nodes] == [
        ("Neg", "in", "", True),
        ("Neg", "in", "", True),
        ("If", "if", "", False),
        ("Add", "add", "", False),
    ]
    assert outline.nodes[-1].inputs == ("z", "large")
    assert outline.inputs == {"x": ("b", 4), "flag": ()} and outline.outputs == {"y": ("b", 4)}
    wanted = {"x": "float16", "flag": "bool", "y": "float32", "large": "float32", "bytes": "int8"}
    assert outline.types == wanted and outline.weights == {"large", "bytes"} and outline.opsets == {"": 21}
    assert {(s.name, s.location, s.length) for s in outline.stored} == {("large", "g.data", 16), ("bytes", "g.data", 6)}


def test_types_are_numbered_as_onnx_numbers_them():
    for number, name in TYPES.items():
        assert TensorProto.DataType.Name(number).lower().replace("float", "float") in {
            name, name.replace("float32", "float"), name.replace("float64", "double")
        }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_cut_off_graph_is_refused(tmp_path, cut):
    content = graph_of(helper.make_node("Relu", ["x"], ["y"])).SerializeToString()
    (tmp_path / "g.onnx").write_bytes(content[:-cut])
    with pytest.raises(BundleError, match="not an ONNX graph"):
        read_outline(tmp_path / "g.onnx")


@pytest.mark.parametrize("target", RULES)
def test_plain_products_are_taken_everywhere(tmp_path, target):
    model = graph_of(helper.make_node("MatMul", ["x", "w"], ["y"]), weights={"w": np.eye(4, dtype=np.float32)})
    assert broken(model, target, tmp_path) == []


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("NonZero", ["x"], ["y"], name="where"), "NonZero 'where': its output has no fixed size"),
        (helper.make_node("MatMulInteger", ["x", "x"], ["y"], name="q"), "MatMulInteger 'q': TensorRT wants Quantize"),
        (helper.make_node("MatMulNBits", ["x"], ["y"], name="n", domain="com.microsoft"), "MatMulNBits 'n': domain"),
        (helper.make_node("DequantizeLinear", ["x", "s"], ["y"], name="d"), "DequantizeLinear 'd': has no zero-point"),
        (
            helper.make_node("DequantizeLinear", ["x", "s", "unsigned"], ["y"], name="d"),
            "its zero-point is uint8, expected one of: int8",
        ),
    ],
    ids=["data-dependent size", "integer product", "another domain", "no zero-point", "unsigned"],
)
@pytest.mark.parametrize("target", ["rtx", "jetson-orin", "jetson-thor", "jetson-orin-jp6"])
def test_what_nvidia_refuses_is_named(tmp_path, node, message, target):
    weights = {"s": np.array(1, np.float32), "unsigned": np.array(0, np.uint8)}
    found = broken(graph_of(node, weights=weights, domains=[node.domain] if node.domain else []), target, tmp_path)
    assert len(found) == 1 and message in found[0], found
    assert broken(graph_of(node, weights=weights), "cpu", tmp_path) == []


def test_an_operator_newer_than_the_target_is_named(tmp_path):
    model = graph_of(helper.make_node("RMSNormalization", ["x", "w"], ["y"], name="norm"), opset=24)
    assert broken(model, "rtx", tmp_path) == []
    assert broken(model, "jetson-orin-jp6", tmp_path) == [
        "the graph is of opset 24, expected at most 21",
        "RMSNormalization 'norm': RMSNormalization is not among the primitives that this target takes",
    ]


def test_functions_are_refused_even_when_they_call_themselves(tmp_path):
    """NVIDIA's parser crashes on a function that calls itself."""
    body = helper.make_node("F", ["a"], ["b"], domain="own", name="again")
    function = helper.make_function("own", "F", ["a"], ["b"], [body], [helper.make_opsetid("own", 1)])
    model = graph_of(helper.make_node("F", ["x"], ["y"], domain="own"), functions=[function], domains=["own"])
    for target in ("rtx", "jetson-orin", "jetson-thor", "jetson-orin-jp6"):
        assert "function 'F': a graph may not define operators of its own" in broken(model, target, tmp_path)


def test_doubles_and_strings_are_refused(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    model = graph_of(node, inputs=[value("x", [1], TensorProto.DOUBLE)], outputs=[value("y", [1], TensorProto.DOUBLE)])
    assert "tensor 'x' is float64, which this target does not take" in broken(model, "rtx", tmp_path)


@pytest.mark.parametrize(
    ("slots", "given", "message"),
    [
        ("T", "cache", "its cache is ('b', 2, 'T', 4), expected a fixed number of slots at axis 2"),
        (8, "inside", "its cache has to be an input and an output of the graph"),
        (8, "cache", None),
    ],
)
def test_a_cache_that_cannot_be_written_in_place_is_named(tmp_path, slots, given, message):
    cache = [value(name, ["b", 2, slots, 4]) for name in ("cache", "present")]
    model = graph_of(
        helper.make_node("Identity", ["cache"], ["inside"]),
        helper.make_node("TensorScatter", [given, "x", "at"], ["present"], name="write"),
        inputs=[cache[0], value("x", ["b", 2, "s", 4]), value("at", ["b"], TensorProto.INT64)],
        outputs=[cache[1]],
        opset=24,
    )
    found = broken(model, "rtx", tmp_path)
    assert found == [] if message is None else message in found[0] and "TensorScatter 'write'" in found[0]
