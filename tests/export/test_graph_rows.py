"""Graphs as rows: a block in the prompt, a component in the bundle, and the same replies and pictures as torch."""

from __future__ import annotations

import json

import networkx
import numpy as np
import pytest
import torch

import edgemm
from edgemm import Graph
from edgemm.bundle.bundle import open_bundle
from edgemm.bundle.node_link import read_graph
from edgemm.bundle.picture import load_picture
from edgemm.errors import InputError
from edgemm.export.component_graphs import component_graphs
from edgemm.model import checkpoint
from edgemm.model.config import GraphConfig
from edgemm.model.prompts import draw_prompt, read_prompt
from edgemm.runtimes import schedule
from edgemm.verify.export_native import export_bundle
from tests.engines.tiny_engines import build_for_rtx, needs_rtx
from tests.export.nano import nano, needs_opset_24, random_nano

pytestmark = needs_opset_24
KINDS = ("left of", "above", "same colour as")
PIXELS = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
ASKED = "Which is red?"


@pytest.fixture(scope="module")
def model():
    return random_nano(nano(graph=GraphConfig(KINDS, 4, named=True)))


def graph(image=None, kind="above"):
    nodes = [{"id": "a", "text": "red"}, {"id": "b", "image": image} if image is not None else {"id": "b"}, {"id": "c"}]
    return Graph(nodes, [("a", "left of", "b"), ("b", kind, "c"), ("c", "same colour as", "a")])


def test_a_graph_is_one_block_of_a_row_a_node_and_a_row_an_edge(model):
    config = model.config
    prompt = read_prompt(config, model.tokenizer, ASKED, 1, graph(PIXELS))
    m, rows = config.vision.token_count, prompt.image_index[prompt.image_index >= 0]
    assert len(rows) == 2 * m + 3 + 3 and sorted(rows) == list(range(2 * m + 6))
    assert prompt.graph.T.tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2], [1, 0, 1], [2, 1, 2], [3, 2, 0]]
    first = np.flatnonzero(prompt.image_index == 2 * m)[0]  # row of node a
    last = np.flatnonzero(prompt.image_index == 2 * m + 5)[0]
    assert (prompt.attention_limit[first : last + 1] == last).all() and (prompt.users_own[first : last + 1] == 1).all()
    assert prompt.attention_limit[last + 1] == last + 1 and prompt.attention_limit[first - 1] == first - 1
    words = prompt.input_ids[first + 1 : first + 4].tolist()
    assert model.tokenizer.decode(words) == "red"
    assert prompt.image_index[first + 1 : first + 4].tolist() == [-2 - 2 * m] * 3  # its node's row is added to each
    assert prompt.nodes.tolist() == [-1] * m + [1] * m  # to the picture before the graph none, to its own node b's
    assert (prompt.image_index[last + 1 :] == -1).all()


def test_an_edge_without_direction_is_a_row_each_way_and_a_loop_one(model):
    """As networkx has them: a self loop is one edge of its node."""
    drawn = networkx.Graph([("a", "b", {"type": "above"}), ("b", "b", {"type": "left of"})])
    prompt = read_prompt(model.config, model.tokenizer, ASKED, 0, read_graph(drawn))
    assert prompt.graph.T.tolist() == [[0, 0, 0], [0, 1, 1], [2, 0, 1], [2, 1, 0], [1, 1, 1]]
    assert len(prompt.graph.T) - 2 == sum(len(drawn.adj[node]) for node in drawn)


def test_words_and_pictures_of_a_node_have_its_row_added(model):
    config, pixels = model.config, torch.from_numpy(load_picture(PIXELS, 16))
    prompt = read_prompt(config, model.tokenizer, ASKED, 0, graph(PIXELS))
    m, embed = config.vision.token_count, model.transformer.embed_tokens
    with torch.no_grad():
        x, _, index = model.embedded([prompt], [[pixels]])
        rows = model.graph_encoder(*torch.from_numpy(prompt.graph)[:, None])[0]
        seen = model.image_encoder(pixels[None])[0]
    at = {row: int(np.flatnonzero(prompt.image_index == m + row)[0]) for row in range(3)}
    words = torch.from_numpy(prompt.input_ids[at[0] + 1 : at[0] + 4])
    torch.testing.assert_close(x[0, at[0] + 1 : at[0] + 4], embed(words) + rows[0])
    torch.testing.assert_close(x[0][(index[0] >= 0) & (index[0] < m)], seen + rows[1])
    torch.testing.assert_close(x[0, at[2]], rows[2])


def test_a_graph_says_the_same_whatever_its_nodes_are_called(model):
    renamed = Graph(
        [{"id": 7, "text": "red"}, {"id": 8}, {"id": 9}], [(7, "left of", 8), (8, "above", 9), (9, KINDS[2], 7)]
    )
    logits = [model.generate(ASKED, None, 1, graph=one)[1] for one in (graph(), renamed, graph(kind="left of"))]
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])


def test_drawing_reads_edges_too(model):
    noise = torch.randn(1, 16, 48)
    one, other = (model.draw([""], noise, graphs=[g]) for g in (graph(), graph(kind="left of")))
    assert not torch.allclose(one, other)
    assert len(draw_prompt(model.config, model.tokenizer, "", graph=graph())) > len(KINDS) + 3


@pytest.fixture(scope="module")
def runtime(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    checkpoint.save(model, folder / "made", torch.float32)
    export_bundle(folder / "made", folder / "made.bundle")
    with edgemm.load(folder / "made.bundle", device="cpu", threads=1) as opened:
        yield opened


def test_the_bundle_says_and_draws_what_torch_does(model, runtime):
    pixels = torch.from_numpy(load_picture(PIXELS, 16))[None]
    for shown in (None, PIXELS):
        given = graph(shown)
        wanted, _ = model.generate(ASKED, None if shown is None else pixels, 5, stop=False, graph=given)
        assert list(runtime.generate_text(ASKED, graph=given, max_new_tokens=5, ignore_eos=True).token_ids) == wanted
    noise = torch.from_numpy(schedule.initial_noise(5, 16, 48))[None]
    sampler = model.with_sampler(num_inference_steps=2, guidance_scale=2.0)
    wanted = model.draw(["small"], noise, sampler, graphs=[graph()])[0].numpy()
    drawn = runtime.generate_image("small", graph=graph(), seed=5, num_inference_steps=2, guidance_scale=2.0)
    np.testing.assert_allclose(drawn.pixels, wanted, atol=2e-4)
    assert runtime.generate_image("", graph=graph(PIXELS), seed=5, num_inference_steps=1).pixels.any()


def test_what_the_model_does_not_know_is_refused_by_name(runtime):
    with pytest.raises(InputError, match=r"edges? of type 'beside': this bundle"):
        runtime.generate_text(ASKED, graph=Graph([{"id": 1}, {"id": 2}], [(1, "beside", 2)]))
    with pytest.raises(InputError, match="has 5 nodes, this bundle reads at most 4"):
        runtime.generate_image("", graph=Graph([{"id": i} for i in range(5)]))


def test_verify_compares_a_graph_here_too(runtime):
    from edgemm.verify.loops import check_bundle

    lines = check_bundle(open_bundle(runtime.bundle.path))
    assert sum("of a graph" in line for line in lines) == 2 and sum("from a graph" in line for line in lines) == 1


def test_the_encoder_is_a_component_like_others(model):
    assert component_graphs(model)["graph_encoder"].inputs[0].shape == ("b", "m")
    assert read_graph(graph()).pictures == []


def test_a_model_from_before_nodes_were_named_reads_them_as_it_learned_to(model, tmp_path):
    before = random_nano(nano(graph=GraphConfig(KINDS, 4)))
    prompt = read_prompt(before.config, before.tokenizer, ASKED, 0, graph(PIXELS))
    assert (prompt.image_index >= -1).all() and (prompt.nodes == -1).all()
    config = before.config.to_json()
    assert config["graph"].pop("named") is False
    checkpoint.save(before, tmp_path / "made", torch.float32)
    assert json.loads((tmp_path / "made" / "config.json").read_text())["graph"].pop("named") is False
    (tmp_path / "made" / "config.json").write_text(json.dumps(config))  # as it was written then
    export_bundle(tmp_path / "made", tmp_path / "made.bundle")
    pixels = torch.from_numpy(load_picture(PIXELS, 16))[None]
    wanted, _ = before.generate(ASKED, pixels, 5, stop=False, graph=graph(PIXELS))
    with edgemm.load(tmp_path / "made.bundle", device="cpu", threads=1) as opened:
        said = opened.generate_text(ASKED, graph=graph(PIXELS), max_new_tokens=5, ignore_eos=True)
    assert list(said.token_ids) == wanted


@pytest.mark.slow
@needs_rtx
def test_the_encoder_builds_for_an_rtx_device_that_is_not_here(model, tmp_path):
    checkpoint.save(model, tmp_path / "made")
    export_bundle(tmp_path / "made", tmp_path / "made.bundle", target="rtx")
    assert "graph_encoder" in build_for_rtx(tmp_path / "made.bundle", tmp_path / "engines")
