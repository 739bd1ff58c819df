"""Graphs to ask about and to draw: answers derived again by networkx, pictures judged again by the checker."""

from __future__ import annotations

import re
from collections import Counter

import networkx
import numpy as np
import pytest
from PIL import Image, ImageOps

from edgemm.bundle.node_link import read_graph
from edgemm.data.format import read_dataset
from edgemm.data.graphs import EDGES, KINDS, build_graphs
from edgemm.data.shapes import WITHHELD
from edgemm.evaluate.shapes_checker import check_graph


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    build_graphs(folder, 64, 240, 0)
    return read_dataset(folder)


def shown(node, samples):
    """What a node tells of itself: (colour, shape), by its words or by the scene of its picture."""
    if "text" in node:
        return tuple(node["text"].split()[1:])
    if "image" in node:
        (item,) = samples[node["image"]].scene["objects"]
        return item["colour"], item["name"]
    return None


def answered(graph, question, samples):
    """The answer, from what the graph tells alone."""
    things = {name: shown(node | {"id": name}, samples) for name, node in graph.nodes(data=True)}
    edges = {(kind, target): source for source, target, kind in graph.edges(data="type")}
    if "the hidden one" in question:
        (name,) = [name for name, thing in things.items() if thing is None]
        choices = set(re.findall(r"(\w+) or (\w+)\?", question)[0])
        told = [(kind, things[target][0]) for _, target, kind in graph.out_edges(name, data="type")]
        found = {colour if kind == "same colour as" else (choices - {colour}).pop() for kind, colour in told}
        (colour,) = found
        return colour
    chain, colour, shape = re.fullmatch(r"What colour is (.*)the (\w+) (\w+)\?", question).groups()
    (here,) = [name for name, thing in things.items() if thing == (colour, shape)]
    for relation in reversed(re.findall(r"the one (left of|right of|above|below)", chain)):
        here = edges[relation, here]
    if things[here] is None:
        (like,) = [target for _, target, kind in graph.out_edges(here, data="type") if kind == "same colour as"]
        return things[like][0]
    return things[here][0]


def test_every_answer_follows_from_what_the_graph_tells(dataset):
    samples = {sample.id: sample for sample in dataset.samples}
    assert Counter(question.kind for question in dataset.questions) == dict.fromkeys(KINDS[:-1], 30)
    for question in dataset.questions:
        graph = networkx.node_link_graph(samples[question.sample].scene["graph"], edges="edges")
        assert answered(graph, question.question, samples) == question.answer, question


AXES = {"left of": ("across", 1), "right of": ("across", -1), "above": ("down", 1), "below": ("down", -1)}


def test_places_could_be_drawn_and_each_hop_has_one_answer_however_edges_are_read(dataset):
    """Each axis as an order of things, closed by networkx: without a circle, and one thing on the asked side."""
    samples, distracted = dataset.by_id, 0
    for question in dataset.questions:
        graph = networkx.node_link_graph(samples[question.sample].scene["graph"], edges="edges")
        orders = {"across": networkx.DiGraph(), "down": networkx.DiGraph()}
        for source, target, kind in graph.edges(data="type"):
            if kind in AXES:
                axis, way = AXES[kind]
                orders[axis].add_edge(*((source, target) if way == 1 else (target, source)))
        assert all(map(networkx.is_directed_acyclic_graph, orders.values())), question
        if not (found := re.fullmatch(r"What colour is (.*)the (\w+ \w+)\?", question.question)):
            continue
        things = {name: shown(node, samples) for name, node in graph.nodes(data=True)}
        (here,) = [name for name, thing in things.items() if thing and " ".join(thing) == found[2]]
        for relation in reversed(re.findall(r"the one (left of|right of|above|below)", found[1])):
            axis, way = AXES[relation]
            (here,) = (networkx.ancestors if way == 1 else networkx.descendants)(orders[axis], here)
        distracted += graph.number_of_edges() > question.question.count("the one") + (question.kind == "hidden")
    assert distracted > 60


def test_what_is_hidden_is_no_second_thing_of_a_name_nor_a_withheld_one(dataset):
    for sample in dataset.samples:
        if sample.subgroup == "hidden":
            pairs = [(item["colour"], item["name"]) for item in sample.scene["objects"]]
            assert len(set(pairs)) == len(pairs)
            assert bool(set(pairs) & WITHHELD) == (sample.split == "held-out-pair")


@pytest.mark.parametrize(("kind", "right"), [("same-1", 1.0), ("same-0.5", None), ("same-0", 0.0)])
def test_the_commonest_colour_of_the_neighbours_is_right_as_often_as_they_agree(dataset, kind, right):
    samples = {sample.id: sample for sample in dataset.samples}
    for question in dataset.questions:
        if question.kind == kind:
            nodes = samples[question.sample].scene["graph"]["nodes"]
            colours = Counter(thing[0] for node in nodes if (thing := shown(node, samples)))
            if right is None:
                assert sorted(colours.values()) == [2, 2]
            else:
                assert (colours.most_common(1)[0][0] == question.answer) == bool(right)


def test_pictures_of_nodes_are_samples_and_withheld_pairs_are_held_out(dataset):
    samples = {sample.id: sample for sample in dataset.samples}
    assert {sample.group for sample in dataset.samples} == {"asked", "drawn", "nodes"}
    for sample in dataset.samples:
        pairs = {(item["colour"], item["name"]) for item in sample.scene["objects"]}
        graph = sample.scene.get("graph")
        if sample.group != "asked":  # those hold what no node tells
            assert bool(pairs & WITHHELD) <= (sample.split == "held-out-pair")
        if graph:
            assert {edge["type"] for edge in graph["edges"]} <= set(EDGES)
            assert all(samples[node["image"]].group == "nodes" for node in graph["nodes"] if "image" in node)
            assert len(read_graph(graph).nodes) == len(graph["nodes"])
    graphs = [sample.scene["graph"] for sample in dataset.samples if "graph" in sample.scene]
    seen = Counter(("text" in node, "image" in node) for graph in graphs for node in graph["nodes"])
    assert min(seen.values()) > 20 and len(seen) == 4  # words, picture, both, neither


def test_the_checker_takes_what_was_drawn_and_no_other(dataset):
    drawn = [sample for sample in dataset.samples if sample.group == "drawn"]
    pictures = [Image.open(dataset.image_path(sample)).convert("RGB") for sample in drawn]
    assert np.mean([check_graph(picture, sample.scene).passed for picture, sample in zip(pictures, drawn)]) >= 0.95
    assert not any(check_graph(ImageOps.flip(ImageOps.mirror(p)), s.scene).passed for p, s in zip(pictures, drawn))
    assert not any(check_graph(picture, sample.scene).passed for picture, sample in zip(pictures[1:], drawn))


def test_the_same_seed_makes_the_same_graphs(tmp_path):
    for name in ("a", "b"):
        build_graphs(tmp_path / name, 64, 8, 5)
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == (tmp_path / "b" / "samples.jsonl").read_bytes()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    build_graphs(folder, 64, 400, 0, fixed=True)
    return read_dataset(folder)


def test_fixed_edges_leave_one_picture(fixed):
    drawn = [sample for sample in fixed.samples if sample.group == "drawn"]
    assert len(drawn) == 200
    told = {}
    for sample in drawn:
        graph = sample.scene["graph"]
        edges = frozenset((e["source"], e["type"], e["target"]) for e in graph["edges"] if "colour" not in e["type"])
        boxes = [tuple(item["box"]) for item in sample.scene["objects"]]
        assert told.setdefault((len(boxes), edges), boxes) == boxes
        with Image.open(fixed.image_path(sample)) as picture:
            assert check_graph(picture, sample.scene).passed
    assert 36 <= len(told) <= 4 + 6 * 6  # nearly every layout in every order


def test_nothing_but_the_edges_of_a_fixed_graph_says_where_things_stand(fixed):
    """Each of two things stands in each of its places about as often."""
    two = [s.scene["objects"] for s in fixed.samples if s.group == "drawn" and len(s.scene["objects"]) == 2]
    places = Counter(tuple(objects[0]["box"]) for objects in two)
    assert len(places) == 4 and min(places.values()) > len(two) / 10
