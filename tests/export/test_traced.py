"""What tests share of a trace (tests/traced.py) is of the same thing: whatever trace() reads makes another content."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import torch
from torch import nn

from edgemm.export.component_graphs import ComponentGraph, component_graphs
from edgemm.model import checkpoint
from edgemm.model.kept_weights import KeptTensor, kept
from tests.export.nano import nano, needs_opset_24, random_nano
from tests.traced import content_of, traced


def contents(model) -> dict[str, str | None]:
    return {name: content_of(graph) for name, graph in component_graphs(model).items()}


def test_a_model_of_the_same_numbers_has_the_same_content_also_where_they_stay_in_their_file(model, tmp_path):
    checkpoint.save(model, tmp_path / "nano")
    found = contents(model)
    assert found == contents(random_nano()) == contents(checkpoint.load(tmp_path / "nano"))
    assert None not in found.values() and len(set(found.values())) == len(found)
    plain, stays = nn.Linear(4, 3), nn.Linear(4, 3)
    stays.weight, stays.bias = nn.Parameter(kept(plain.weight.detach()), requires_grad=False), plain.bias
    assert isinstance(stays.weight, KeptTensor)
    assert content_of(of(stays)) == content_of(of(plain))


def test_another_number_or_a_setting_alone_is_another_content(model):
    before, other = contents(model), random_nano()
    other.transformer.layers[1].mlp.down_proj.weight[0, 0] += 1e-6
    assert {name for name, content in contents(other).items() if content != before[name]} == {"transformer"}
    for change in ({"norm_eps": 1e-4}, {"rope_theta": 5000.0}):
        config = dataclasses.replace(nano().transformer, **change)
        assert contents(random_nano(nano(transformer=config)))["transformer"] != before["transformer"]
    assert content_of(component_graphs(model, prompt_lookup=True)["transformer"]) != before["transformer"]


def test_names_axes_and_whether_weights_are_shared_count(model):
    graph = component_graphs(model)["image_decoder"]
    others = [
        dataclasses.replace(graph, name="vq_decoder"),
        dataclasses.replace(
            graph, inputs=(dataclasses.replace(graph.inputs[0], shape=(1, *graph.inputs[0].shape[1:])),)
        ),
        dataclasses.replace(graph, outputs=()),
        dataclasses.replace(graph, multiples={"h": 2}),
    ]
    assert len({content_of(one) for one in (graph, *others)}) == 5
    weight = nn.Parameter(torch.ones(2, 2))
    shared, apart = ([weight, weight], [weight, nn.Parameter(torch.ones(2, 2))])
    assert content_of(of(nn.ParameterList(shared))) != content_of(of(nn.ParameterList(apart)))


def test_what_cannot_be_pickled_or_is_large_is_traced_anew():
    secret = nn.Module()
    secret.rule = lambda x: x  # nobody can say what it does
    assert content_of(of(secret)) is None
    assert content_of(of(nn.Linear(1 << 13, 1 << 12))) is None


def of(module: nn.Module) -> ComponentGraph:
    return ComponentGraph("any", module, (), ())


@needs_opset_24
def test_what_is_read_back_is_the_callers_own(model):
    """That it is what was traced: test_reference.py."""
    graph = component_graphs(model)["image_decoder"]
    first, second = traced(graph), ir.to_proto(traced(graph))
    first.graph.name = "changed"
    assert ir.to_proto(traced(graph)) == second != ir.to_proto(first)
