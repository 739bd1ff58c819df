"""The reader of external-data paths, against the onnx package: its field numbers, and graphs that hide a path."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.bundle.onnx_file import CHILDREN, check_external_data, external_locations
from edgemm.errors import BundleError

MESSAGES = {
    "model": onnx.ModelProto,
    "training": onnx.TrainingInfoProto,
    "function": onnx.FunctionProto,
    "graph": onnx.GraphProto,
    "node": onnx.NodeProto,
    "attribute": onnx.AttributeProto,
    "sparse": onnx.SparseTensorProto,
    "tensor": onnx.TensorProto,
    "entry": onnx.StringStringEntryProto,
}


def test_every_way_to_a_tensor_is_walked():
    kinds = {message.DESCRIPTOR.full_name: kind for kind, message in MESSAGES.items()}
    for kind, message in MESSAGES.items():
        ways = {
            field.number: kinds.get(field.message_type.full_name)
            for field in message.DESCRIPTOR.fields
            if field.message_type and field.name != "metadata_props"
        }
        wanted = {number: child for number, child in ways.items() if child and (child != "entry" or kind == "tensor")}
        assert CHILDREN[kind] == wanted, kind


def outside(location, name="w"):
    tensor = numpy_helper.from_array(np.zeros(4, dtype=np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def plain_graph(*nodes, initializer=()):
    return helper.make_graph(list(nodes), "g", [], [], initializer=list(initializer))


def in_initializer(location):
    return helper.make_model(plain_graph(initializer=[outside(location)]))


def in_constant(location):
    return helper.make_model(plain_graph(helper.make_node("Constant", [], ["c"], value=outside(location))))


def in_list_of_tensors(location):
    return helper.make_model(plain_graph(helper.make_node("Odd", [], ["c"], values=[outside(location)])))


def in_branch(location):
    branch = plain_graph(helper.make_node("Constant", [], ["c"], value=outside(location)))
    return helper.make_model(
        plain_graph(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=plain_graph()))
    )


def in_function(location):
    body = [helper.make_node("Constant", [], ["c"], value=outside(location))]
    function = helper.make_function("own", "F", [], ["c"], body, [helper.make_opsetid("", 24)])
    return helper.make_model(plain_graph(), functions=[function])


def in_sparse(location):
    model = helper.make_model(plain_graph())
    model.graph.sparse_initializer.add().values.CopyFrom(outside(location))
    return model


def in_training(location):
    model = helper.make_model(plain_graph())
    model.training_info.add().initialization.initializer.append(outside(location))
    return model


PLACES = [in_initializer, in_constant, in_list_of_tensors, in_branch, in_function, in_sparse, in_training]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "other.data", "sub/../m.onnx.data", ""])
def test_a_path_that_was_not_declared_is_refused_wherever_it_hides(tmp_path, place, location):
    path = tmp_path / "m.onnx"
    path.write_bytes(place(location).SerializeToString())
    with pytest.raises(BundleError, match=r"reads weights from .*, the manifest allows only 'm.onnx.data'"):
        check_external_data(path, tmp_path / "m.onnx.data")


@pytest.mark.parametrize("place", PLACES)
def test_the_declared_file_is_allowed_and_needs_declaring(tmp_path, place):
    path = tmp_path / "m.onnx"
    path.write_bytes(place("m.onnx.data").SerializeToString())
    check_external_data(path, tmp_path / "m.onnx.data")
    with pytest.raises(BundleError, match="allows no file outside the graph"):
        check_external_data(path, None)


def test_a_doubled_key_hides_nothing(tmp_path):
    model = in_initializer("m.onnx.data")
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert external_locations(tmp_path / "m.onnx") == {"m.onnx.data", "/etc/passwd"}


def test_the_tiny_bundles_graphs_name_one_file_each(bundle_path):
    for graph in bundle_path.glob("components/*/*.onnx"):
        data = graph.with_name(graph.name + ".data")
        assert external_locations(graph) == ({data.name} if data.exists() else set())


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_graph_that_is_cut_off_is_refused(tmp_path, bundle_path, cut):
    whole = next(bundle_path.glob("components/transformer/*.onnx")).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:-cut])
    with pytest.raises(BundleError, match="not an ONNX graph"):
        external_locations(tmp_path / "cut.onnx")


@pytest.mark.parametrize("content", [b"", b"\x3b", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_no_graph_are_refused(tmp_path, content):
    (tmp_path / "odd.onnx").write_bytes(content)
    with pytest.raises(BundleError):
        external_locations(tmp_path / "odd.onnx")


def test_endless_nesting_is_refused(tmp_path):
    def field(number, content):
        size, length = len(content), b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    content = field(5, field(13, field(1, b"location") + field(2, b"far.data")))  # graph: initializer: entry
    for _ in range(100):
        content = field(1, field(5, field(6, content)))  # graph: node: attribute: graph
    (tmp_path / "deep.onnx").write_bytes(field(7, content))
    with pytest.raises(BundleError, match="nested more than"):
        external_locations(tmp_path / "deep.onnx")
