"""A graph on disk: its weights in one file beside it, and nothing that says where it was made."""

from __future__ import annotations

import stat

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.graph_file import save_graph, tidy

SECRET = "/home/somebody/model.py"


def noted_model():
    """A model with a note wherever the format has room for one."""
    weights = [
        numpy_helper.from_array(np.arange(400, dtype=np.float32), "large"),
        numpy_helper.from_array(np.arange(600, dtype=np.int64), "larger"),
        numpy_helper.from_array(np.array(2, dtype=np.float32), "small"),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b"])  # noqa: E731
    inner = helper.make_graph(
        [helper.make_node("Identity", ["large"], ["c"], doc_string=SECRET)], "inner", [], [value("c")]
    )
    condition = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    graph = helper.make_graph(
        [condition], "outer", [flag], [value("y")], weights, doc_string=SECRET, value_info=[value("c")]
    )
    body = helper.make_node("Neg", ["a"], ["b"], doc_string=SECRET)
    function = helper.make_function("own", "F", ["a"], ["b"], [body], [helper.make_opsetid("", 21)])
    model = helper.make_model(
        graph, functions=[function], opset_imports=[helper.make_opsetid("", 21)], producer_name=SECRET
    )
    branches = [attribute.g for attribute in model.graph.node[0].attribute]
    holders = [model, model.graph, *branches, model.functions[0]]
    holders += [n for g in (model.graph, *branches, model.functions[0]) for n in g.node]
    holders += [*model.graph.initializer, *model.graph.input, *model.graph.output]
    for holder in holders:
        holder.doc_string = SECRET
        holder.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=SECRET)
    return model


def test_no_note_stays():
    model = noted_model()
    assert model.SerializeToString().count(SECRET.encode()) > 25
    tidy(model)
    content = model.SerializeToString()
    assert SECRET.encode() not in content and b"stack_trace" not in content
    assert model.producer_name == "edgemm"
    onnx.checker.check_model(model)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "cpu-fp32.onnx"
    return path, save_graph(ir.from_proto(noted_model()), path)


def test_large_weights_go_to_one_file_beside_the_graph(written):
    path, data = written
    assert data == path.with_name("cpu-fp32.onnx.data")
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, data.name]
    raw = {t.name: t for t in onnx.load(str(path), load_external_data=False).graph.initializer}
    outside = {
        name: {e.key: e.value for e in t.external_data}["location"] for name, t in raw.items() if t.external_data
    }
    assert outside == {"large": data.name, "larger": data.name}
    read = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    assert np.array_equal(read["larger"], np.arange(600)) and read["small"] == 2


def test_whoever_may_read_the_graph_may_read_its_weights(written):
    path, data = written
    assert stat.S_IMODE(data.stat().st_mode) == stat.S_IMODE(path.stat().st_mode)


def test_writing_again_gives_the_same_bytes(written):
    path, data = written
    before = path.read_bytes(), data.read_bytes()
    assert save_graph(ir.from_proto(noted_model()), path) == data
    assert (path.read_bytes(), data.read_bytes()) == before


def test_a_graph_without_large_weights_has_no_data(tmp_path):
    model = noted_model()
    del model.graph.initializer[:2]
    assert save_graph(ir.from_proto(model), tmp_path / "x.onnx") is None
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
