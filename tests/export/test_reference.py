"""A traced graph has the contract's names and axes, and the same model gives the same graph."""

from __future__ import annotations

import gc

import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from edgemm.bundle.components import TensorSpec
from edgemm.errors import CheckFailedError
from edgemm.export.component_graphs import ComponentGraph
from edgemm.export.trace import OPSET, trace

COMPONENTS = ("image_encoder", "transformer", "conditioner", "denoiser", "image_decoder")


def specs_of(values):
    names = {1: "float32", 7: "int64", 9: "bool"}
    return tuple(
        TensorSpec(
            value.name,
            names[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_names_types_and_axes_are_the_contracts(references, graphs, component):
    graph = ir.to_proto(references(graphs[component])).graph
    assert specs_of(graph.input) == graphs[component].inputs
    assert specs_of(graph.output) == graphs[component].outputs


def test_the_transformer_is_made_of_standard_operators(references, graphs, model):
    traced = ir.to_proto(references(graphs["transformer"]))
    kinds = [node.op_type for node in traced.graph.node]
    depth = model.config.transformer.depth
    assert [(opset.domain, opset.version) for opset in traced.opset_import] == [("", OPSET)]
    wanted = {
        "Attention": depth,
        "RotaryEmbedding": 2 * depth,
        "TensorScatter": 2 * depth,
        "RMSNormalization": 2 * depth + 1,
    }
    assert {kind: kinds.count(kind) for kind in wanted} == wanted


def test_tied_weights_are_stored_once(references, graphs, model):
    table = model.transformer.embed_tokens.weight
    stored = [tuple(t.dims) for t in ir.to_proto(references(graphs["transformer"])).graph.initializer]
    assert [sorted(dims) for dims in stored].count(sorted(table.shape)) == 1


def test_tracing_again_gives_the_same_graph(references, graphs):
    graph = graphs["conditioner"]
    assert ir.to_proto(trace(graph)) == ir.to_proto(references(graph))


class Forgetful(nn.Module):
    """As large as what it was traced with, whatever comes in."""

    def forward(self, x):
        return torch.ones(2, 3) * x.sum()


def test_an_axis_that_tracing_fixed_is_refused():
    graph = ComponentGraph(
        "denoiser", Forgetful(), (TensorSpec("x", "float32", ("b", 3)),), (TensorSpec("y", "float32", ("b", 3)),)
    )
    before = gc.get_threshold(), vars(ONNXRegistry)["from_torchlib"]
    with pytest.raises(CheckFailedError, match="denoiser: tracing fixed axis 'b' of y at 2"):
        trace(graph)
    assert (gc.get_threshold(), vars(ONNXRegistry)["from_torchlib"]) == before  # what a trace changes for its time
