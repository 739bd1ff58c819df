"""Graphs are asked about and drawn as graphs: with their edges and their nodes' pictures, by checkpoint and paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.bundle.node_link import Graph
from edgemm.data.format import read_dataset
from edgemm.data.graphs import build_graphs
from edgemm.data.writer import new_folder
from edgemm.evaluate.checkpoint_subject import CheckpointSubject
from edgemm.evaluate.evaluation import Plan, evaluate_subject
from edgemm.evaluate.subject import DrawSettings, real_pictures, shown_graph
from edgemm.model import checkpoint
from edgemm.model.config import PRESETS
from edgemm.model.designs import variant
from tests.evaluate.paper_subject import PaperSubject


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "graphs"
    with new_folder(path, force=False) as folder:
        build_graphs(folder, 64, 64, 3)
    return read_dataset(path)


def drawn(data):
    return [sample for sample in data.samples if sample.group == "drawn"]


def test_who_answers_and_draws_what_the_graph_says_is_right_throughout(data):
    samples, pictured = data.by_id, 0
    answers = {(shown_graph(data, samples[q.sample]).to_text(), q.question): q.answer for q in data.questions}
    pictures = {shown_graph(data, one).to_text(): real_pictures(data, [one], 64)[0] for one in drawn(data)}

    def read(graph, question):
        nonlocal pictured
        assert all(picture.shape == (64, 64, 3) for picture in graph.pictures)
        pictured += len(graph.pictures)
        return answers[graph.to_text(), question]

    subject = PaperSubject(lambda graph: pictures[graph.to_text()], read, 64)
    plan = Plan(splits=("train",), limit=20)
    document = evaluate_subject(subject, data.path, plan).document
    kinds = document["read"]["train"]["kinds"]
    assert set(kinds) == {"hop-1", "hop-2", "hop-3", "hidden", "same-1", "same-0.5", "same-0"} and pictured
    assert all(kind["accuracy"]["value"] == 1.0 for kind in kinds.values())
    part = document["draw"]["parts"]["train"]
    assert document["draw"]["judge"] == "graphs checker" and set(part["tasks"]) == {"2 things", "3 things"}
    assert part["mean_of_tasks"] == part["real"]["value"] == 1.0 and part["shuffled"]["value"] < 0.5


def test_an_edge_the_other_way_about_is_no_pass(data):
    """The picture of the same things, whose places were changed."""
    one = next(sample for sample in drawn(data) if len(sample.scene["objects"]) == 2)
    edges = one.scene["graph"]["edges"]
    turned = real_pictures(data, [one], 64)[0][::-1, ::-1].copy()  # upside down, and the left on the right
    subject = PaperSubject(lambda graph: turned, lambda *_: "", 64)
    records = evaluate_subject(subject, data.path, Plan(suites=("draw",))).records["drawing"]
    (found,) = [record for record in records if record["sample"] == one.id]
    assert edges and not found["passed"]


@pytest.mark.parametrize("graphs", ["rows", "text"])
def test_a_checkpoint_is_told_edges_and_shown_nodes(graphs, data):
    model = checkpoint.build(variant(PRESETS["micro"](), graphs=graphs), 0)
    with torch.no_grad():
        for weights in model.denoiser.parameters():  # at birth it says the same of everything
            weights.add_(torch.randn_like(weights), alpha=0.05)
    subject = CheckpointSubject.of(model, DrawSettings(2, 1.0))
    one = next(sample for sample in drawn(data) if shown_graph(data, sample).edges)
    graph = shown_graph(data, one)
    alone = Graph(graph.nodes, (), graph.directed)
    pictures = subject.draw([graph, graph, alone], [0, 0, 0])
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    question = next(q for q in data.questions if shown_graph(data, data.by_id[q.sample]).pictures)
    shown = shown_graph(data, data.by_id[question.sample])
    blank = Graph([{"id": node.id, "text": node.text} for node in shown.nodes], shown.edges, shown.directed)
    replies = list(subject.read([(shown, question.question), (shown, question.question), (blank, question.question)]))
    assert replies[0] == replies[1] != replies[2]
