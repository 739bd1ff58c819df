"""Training on graphs, as rows and as text: losses fall, ids are dealt, what was left out is left out."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edgemm.bundle.node_link import Graph
from edgemm.data.graphs import build_graphs
from edgemm.data.shapes import COLOURS, SHAPES, WITHHELD
from edgemm.errors import InputError
from edgemm.evaluate.graph_suite import (
    AskedGraph,
    Graphs,
    ask_graphs,
    draw_graphs,
    in_pictures,
    in_words,
    recoloured,
    replies_to,
    told_whole,
    with_edges,
)
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from edgemm.model.prompts import read_prompt
from edgemm.model.transformer import attend, rotary_tables, visible_up_to
from edgemm.train.recipe import GraphRecipe
from edgemm.train.recipe_file import read_stages
from edgemm.train.run import train, train_stages
from edgemm.train.tasks.graphs import GraphTask
from tests.train.conftest import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs") / "data"
    folder.mkdir()
    build_graphs(folder, 64, 96, 0)
    return folder


def small(graphs):
    config = variant(PRESETS["micro"](), graphs=graphs)
    transformer = dataclasses.replace(config.transformer, depth=2, ffn_width=64)
    denoiser = dataclasses.replace(config.denoiser, depth=2, prefix_layers=(0, 1), ffn_width=64)
    return dataclasses.replace(config, transformer=transformer, denoiser=denoiser)


@pytest.mark.parametrize("graphs", ["rows", "text"])
def test_losses_fall_and_the_checkpoint_answers(graphs, data, tmp_path):
    checkpoint.save(checkpoint.build(small(graphs), 0), tmp_path / "start", torch.float32)
    recipe = GraphRecipe(
        data=str(data), output=str(tmp_path / "run"), start=str(tmp_path / "start"), steps=16, batch=8, warmup=2,
        learning_rate=1e-3, ema=0.5, log_every=4, save_every=6, sample_every=100, precision="fp32",
    )  # fmt: skip
    train(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] and {"token_accuracy", "flow"} <= lines[-1].keys()
    model = checkpoint.load(tmp_path / "run" / "checkpoint")
    known = Graphs(data, ("train",), 32)
    found = ask_graphs(model, known, limit=4)
    assert set(found) == {"hop-1", "hop-2", "hop-3", "hidden", "same-1", "same-0.5", "same-0"}
    assert found["hop-1"]["chance"] == 1 / 8 and found["same-0"]["chance"] == 0.5
    assert set(draw_graphs(model, known, limit=4)) <= {"2 things", "3 things"}


def test_who_an_edge_joins_is_looked_up_from_the_first_step_on(data):
    """Of all nodes the first layer's first two heads see most of the one an edge leads from, and of its end."""
    model = checkpoint.build(small("rows"), 0)
    attention = model.transformer.layers[0].self_attn
    seen = {0: [], 1: []}
    for asked in Graphs(data, ("train",), 32).asked[:24]:
        graph = Graph([{"id": node.id, "text": "a red star"} for node in asked.graph.nodes], asked.graph.edges)
        prompt = read_prompt(model.config, model.tokenizer, asked.question, 0, graph)
        places = np.flatnonzero(prompt.graph[0] == 0)
        whose = np.where(prompt.image_index < -1, -2 - prompt.image_index, prompt.image_index)
        x, limit, _ = model.embedded([prompt], [[]])
        x = model.transformer.layers[0].input_layernorm(x)
        tables = rotary_tables(torch.arange(x.shape[1])[None], attention.config.head_width, 10_000.0)
        queries, keys, values = attention.project(x, *tables)
        values = torch.zeros_like(values)  # which say whose they are
        for number, place in enumerate(places):
            values[:, :, whose == place, number] = 1.0
        found = attend(queries, keys, values, visible_up_to(limit, x.shape[1]))[0]
        for row, (kind, *ends) in enumerate(prompt.graph.T.tolist()):
            at = int(np.flatnonzero(prompt.image_index == row)[0])
            for head, end in enumerate(ends) if kind else ():
                seen[head].append(found[head, at].argmax().item() == end)
    assert len(seen[0]) > 50 and min(np.mean(right) for right in seen.values()) > 0.95


def test_a_transformer_of_one_head_looks_up_where_an_edge_leads_from(data):
    config = small("rows")
    one = dataclasses.replace(config.transformer, heads=1, kv_heads=1)
    model = checkpoint.build(dataclasses.replace(config, transformer=one), 0)
    assert model.transformer.layers[0].self_attn.q_proj.weight.shape == (32, 128)


def test_a_graph_is_told_as_its_incident_list_has_it():
    graph = Graph(
        [{"id": "n0", "text": "a red circle"}, {"id": "n1"}, {"id": "n2", "image": np.zeros((8, 8, 3), np.uint8)}],
        [("n2", "above", "n0"), ("n0", "left of", "n1"), ("n2", "left of", "n1"), ("n2", "above", "n1")],
    )
    asked = AskedGraph("hop-1", graph, "", "", 8, {"n0": "red circle", "n1": "hidden one", "n2": "blue star"})
    told = told_whole(asked, graph)
    assert told.answer == (
        "red circle left of hidden one; blue star above red circle; blue star above hidden one; "
        "blue star left of hidden one"
    )
    lines = [line for line in graph.to_text().splitlines() if "->" in line]
    assert lines == ["n0 -> left of: n1", "n2 -> above: n0, n1; left of: n1"]
    assert told_whole(asked, Graph(graph.nodes)).answer == "none"


def test_edges_are_written_as_an_incident_list_has_them_and_named_by_what_is_seen(data):
    known, hidden = Graphs(data, ("train",), 32), 0
    assert known.asked
    for asked in known.asked:
        told, lines = told_whole(asked, asked.graph).answer, []
        for edge in asked.graph.edges:
            lines.append(f"{asked.names[edge.source]} {edge.type} {asked.names[edge.target]}")
        assert told == ("; ".join(lines) or "none")
        for node in asked.graph.nodes:
            if node.text is not None:
                assert node.text.endswith(f" {asked.names[node.id]}")
            elif node.image is None:
                hidden += asked.names[node.id] == "hidden one"
    assert hidden


def test_other_colours_change_what_is_said_and_shown_alike_and_withhold_the_same_pairs(data):
    known, random, changed = Graphs(data, ("train",), 32), np.random.default_rng(0), 0
    samples = {sample.id: sample for sample in known.dataset.samples}
    known.shown |= {f"{colour} {shape}": known.shown["red circle"] for colour in COLOURS for shape in SHAPES}
    for asked in known.asked:
        other = recoloured(asked, known, random)
        assert other.graph.edges == asked.graph.edges and other.kind == asked.kind
        changed += other is not asked
        colours = {asked.answer: other.answer}
        for node, new in zip(asked.graph.nodes, other.graph.nodes, strict=True):
            before, after = (one.names[node.id].split() for one in (asked, other))
            assert before[1] == after[1] and tuple(after) not in WITHHELD
            assert colours.setdefault(before[0], after[0]) == after[0]
            assert (node.text is None, node.image is None) == (new.text is None, new.image is None)
            assert new.text is None or new.text.split()[1:] == after
        for before, after in zip(*(re.findall(r"\w+", one.question) for one in (asked, other)), strict=True):
            assert (colours.setdefault(before, after) if before in COLOURS else before) == after
        assert len(set(colours.values())) == len(colours)
    assert changed > 0.9 * len(known.asked)
    known = Graphs(data, ("train",), 32)
    for asked in known.asked:  # a picture is one of such a thing
        other = recoloured(asked, known, random)
        for node in other.graph.nodes:
            if node.image is not None:
                assert samples[str(node.image)].label.split()[1:] == other.names[node.id].split()


def test_words_come_first_where_a_recipe_says_so(data, tmp_path):
    known = Graphs(data, ("train",), 32)
    for asked in known.asked:
        for before, node in zip(asked.graph.nodes, in_words(asked).graph.nodes, strict=True):
            shows = before.text is not None or before.image is not None
            assert node.image is None and (node.text or "").split()[1:] == (
                asked.names[node.id].split() if shows else []
            )
    model = checkpoint.build(small("rows"), 0)
    common = {"data": str(data), "output": str(tmp_path), "start": "", "steps": 4, "batch": 8, "flow_weight": 0.0}
    tasks = [GraphTask(model, GraphRecipe(words_share=share, **common)) for share in (0.0, 0.5)]
    with torch.no_grad():
        shown, first = ([task.loss(step).item() for step in range(4)] for task in tasks)
    assert first[0] != shown[0] and first[1] != shown[1] and first[2:] == shown[2:]


def test_nodes_are_asked_about_in_pictures_alone(data):
    known = Graphs(data, ("train",), 32)
    shown = {sample.id: sample.scene["objects"][0] for sample in known.dataset.samples if sample.group == "nodes"}
    for asked in known.asked:
        for before, node in zip(asked.graph.nodes, in_pictures(asked, known).graph.nodes, strict=True):
            if before.text is None and before.image is None:
                assert node.text is None and node.image is None
            elif node.image is None:
                assert node.text == before.text and not known.shown[asked.names[node.id]]
            else:
                thing = shown[node.image]
                assert node.text is None and f"{thing['colour']} {thing['name']}" == asked.names[node.id]


def test_ids_are_dealt_and_edges_matter_to_rows_alone_where_they_are_told(data):
    known, model = Graphs(data, ("train",), 32), checkpoint.build(small("rows"), 0)
    one = [next(asked for asked in known.asked if asked.kind == "hop-2")]

    def logits(seed, edges="told"):
        with torch.no_grad():
            return replies_to(model, one, known, np.random.default_rng(seed), edges)[0]

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))
    assert not torch.allclose(logits(0), logits(0, "none"))
    graph, random = one[0].graph, np.random.default_rng(0)
    shuffled = with_edges(graph, "shuffled", random)
    assert [e.type for e in shuffled.edges] == [e.type for e in graph.edges] and shuffled.edges != graph.edges
    assert with_edges(graph, "none", random).edges == ()


def test_a_batch_is_what_its_prompts_are_alone(data):
    """Padding, pictures and rows of one prompt reach no other."""
    known = Graphs(data, ("train",), 32)
    model = checkpoint.build(small("text"), 0)
    with torch.no_grad():
        together = replies_to(model, known.asked[:5], known, np.random.default_rng(0))
        alone = [replies_to(model, [one], known, np.random.default_rng(0))[0] for one in known.asked[:5]]
    torch.testing.assert_close(together[0], torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_another_dataset_is_refused(tmp_path):
    from edgemm.data.shapes import build_shapes

    (tmp_path / "shapes").mkdir()
    build_shapes(Path(tmp_path / "shapes"), 64, 8, 0)
    with pytest.raises(InputError, match="of kind shapes; make one of graphs: edgemm data graphs"):
        Graphs(tmp_path / "shapes", ("train",), 32)


def test_the_recipe_teaches_an_eye_and_then_graphs_and_its_tokens_are_words_of_both(data, shapes, tmp_path):
    few = {"steps": 2, "batch": 8, "save_every": 2}
    changes = {f"{stage}.{key}": value for stage in ("eye", "graphs") for key, value in few.items()}
    changes |= {"eye.data": shapes, "graphs.data": data, "output": tmp_path / "run"}
    stages = read_stages(ROOT / "recipes" / "micro-graphs.toml", [f"{key}={value}" for key, value in changes.items()])
    assert train_stages(stages)
    model = checkpoint.load(tmp_path / "run" / "graphs" / "checkpoint")
    assert model.graph_encoder is not None and model.config.vision.encoder == "conv"
    (drawn,) = {len(model.tokenizer.encode(word)) for word in (" circle", " purple")}  # that captions have
    (told,) = {len(model.tokenizer.encode(word)) for word in (" same", " other", " hidden")}  # that graphs alone have
    assert drawn == told == 1
