"""Graphs as networkx writes them, what a model is told of them, and what is refused."""

from __future__ import annotations

import json
import sys

import networkx
import numpy as np
import pytest
from PIL import Image

from edgemm.bundle.node_link import MOST_EDGES, Graph, read_graph
from edgemm.bundle.picture import open_picture
from edgemm.errors import InputError, UsageError


def plan(kind=networkx.MultiDiGraph):
    graph = kind()
    graph.add_node("a", text="a red circle")
    graph.add_node("b", image="data:image/png;base64,AA==")
    graph.add_node(3, text="lies\nover two lines")
    graph.add_node("the end")
    for source, target, type in [
        ("a", "b", "left of"),
        ("a", 3, "left of"),
        ("a", "b", "same colour as"),
        (3, 3, "on"),
    ]:
        graph.add_edge(source, target, type=type)
    graph.add_edge("the end", "a")
    return graph


SAID = """A graph of 4 nodes and 5 edges.
a: a red circle
b: [picture 1]
3: "lies\\nover two lines"
the end
a -> left of: b, 3; same colour as: b
3 -> on: 3
the end -> connected to: a
"""


@pytest.mark.parametrize("key", ["edges", "links"])
def test_what_networkx_writes_is_read_under_either_name_of_its_edges(key, tmp_path):
    document = networkx.node_link_data(plan(), edges=key)
    assert read_graph(document).to_text() == SAID
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_graph(path).to_text() == SAID
    assert read_graph(str(path)).to_text() == SAID


def test_a_networkx_graph_is_read_as_it_is():
    assert read_graph(plan()).to_text() == SAID


@pytest.mark.parametrize("kind", [networkx.Graph, networkx.DiGraph, networkx.MultiGraph, networkx.MultiDiGraph])
@pytest.mark.parametrize("seed", range(3))
def test_every_edge_of_a_random_graph_is_told_at_its_ends(kind, seed):
    """networkx is the oracle: what it calls the neighbours of a node, in a line of that node."""
    drawn = kind(networkx.gnp_random_graph(12, 0.2, seed=seed, directed=kind(()).is_directed()))
    drawn.add_edge(0, 0)
    graph = read_graph(networkx.node_link_data(drawn, edges="edges"))
    assert graph.directed == drawn.is_directed()
    told = dict(line.split(" connected to: ") for line in graph.to_text().splitlines() if " connected to: " in line)
    arrow = "->" if graph.directed else "--"
    assert {name: set(ends.split(", ")) for name, ends in told.items()} == {
        f"{node} {arrow}": set(map(str, drawn.adj[node])) for node in drawn if drawn.adj[node]
    }


@pytest.mark.parametrize("kind", [networkx.Graph, networkx.DiGraph, networkx.MultiGraph, networkx.MultiDiGraph])
def test_nodes_and_ends_are_what_networkx_says_and_no_attribute(kind):
    """node_link_data writes a node's name over an attribute `id`, and an edge's ends over `source` and `target`."""
    drawn = kind()
    drawn.add_node("a", id="b", text="red")
    drawn.add_node("b", id="a")
    drawn.add_edge("a", "b", source="b", target="a", type="on")
    graph, written = read_graph(drawn), read_graph(networkx.node_link_data(drawn))
    assert graph.to_text() == written.to_text()
    assert [(node.id, node.text) for node in graph.nodes] == [("a", "red"), ("b", None)]
    assert [(edge.source, edge.target) for edge in graph.edges] == [("a", "b")]


def test_what_is_refused_of_a_document_is_refused_of_the_graph_itself():
    named, keyed = networkx.path_graph(3), networkx.MultiDiGraph()
    named.graph["name"] = "a path"
    keyed.add_edge("a", "b", key="left of")  # as from_pandas_edgelist(edge_key=...) has types
    for drawn, said in ((named, "graph: no model reads 'name'"), (keyed, "edges[0]: no model reads the key 'left of'")):
        assert said in refused(drawn) and said in refused(networkx.node_link_data(drawn))
    keyed.add_edge("a", "b", key="left of", type="left of")
    assert read_graph(keyed).edges[0].type == "left of"


def test_numbers_of_numpy_are_numbers():
    drawn = networkx.from_edgelist([(np.int64(1), np.int64(2))])
    assert [node.id for node in read_graph(drawn).nodes] == ["1", "2"]


def test_no_two_graphs_are_told_alike():
    """A name may hold what an edge's line is made of."""
    nodes = [{"id": "a"}, {"id": "a -> x"}, {"id": "b"}]
    one, other = Graph(nodes, [("a", "x -> on", "b")]), Graph(nodes, [("a -> x", "on", "b")])
    assert one.to_text() != other.to_text()
    assert '"a -> x" -> on: b' in other.to_text()


def test_a_picture_beside_the_file_is_found_there(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"nodes": [{"id": "a", "image": "red.png"}], "edges": []}))
    assert read_graph(path).parts()[1] == [tmp_path / "red.png"]


def refused(source, kind=InputError):
    with pytest.raises(kind) as told:
        read_graph(source)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    return str(told.value)


A = {"id": "a"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"nodes": [A, {"id": "a"}], "edges": []}, "nodes[1]: node 'a' stands twice, first as nodes[0]"),
        ({"nodes": [{"id": 1}, {"id": "1"}], "edges": []}, "node '1' stands twice"),
        ({"nodes": [A], "edges": [{"source": "a", "target": "b"}]}, "edges[0]: there is no node 'b'"),
        ({"nodes": [A], "edges": [], "links": []}, "both `edges` and `links`"),
        ({"nodes": [A]}, "edges is missing, expected a list"),
        ({"edges": []}, "nodes is missing, expected a list"),
        ({"nodes": [], "edges": []}, "no nodes"),
        ({"nodes": "abc", "edges": []}, "nodes is 'abc', expected a list"),
        ({"nodes": [7], "edges": []}, "nodes[0] is 7, expected an object"),
        ({"nodes": [{}], "edges": []}, "nodes[0].id is missing"),
        ({"nodes": [{"id": True}], "edges": []}, "nodes[0].id is True"),
        ({"nodes": [{"id": ["a", 1]}], "edges": []}, "nodes[0].id is a list"),
        ({"nodes": [{"id": " "}], "edges": []}, "not only blanks"),
        ({"nodes": [{"id": "a" * 9999}], "edges": []}, "nodes[0].id has 9999 characters"),
        ({"nodes": [{"id": "a", "text": 3}], "edges": []}, "nodes[0].text is 3, expected a string"),
        ({"nodes": [{"id": "a", "image": {}}], "edges": []}, "nodes[0].image is an object"),
        ({"nodes": [{"id": "a", "colour": "red"}], "edges": []}, "no model reads 'colour', known are: id, text, image"),
        ({"nodes": [A], "edges": [{"source": "a", "target": "a", "weight": 2}]}, "no model reads 'weight'"),
        ({"nodes": [A], "edges": [{"source": "a", "target": "a", "type": 2}]}, "edges[0].type is 2"),
        ({"nodes": [A], "edges": [["a", "a"]]}, "edges[0] is a list, expected an object"),
        ({"nodes": [A], "edges": [], "directed": "yes"}, "directed is 'yes', expected true or false"),
        ({"nodes": [A], "edges": [], "graph": {"name": "x"}}, "no model reads 'name', known are: none"),
        ({"nodes": [A], "edges": [], "vertices": []}, "no model reads 'vertices'"),
        ({"nodes": [{"id": "\ud800"}], "edges": []}, "no valid Unicode"),
        ({"nodes": [{"id": "a", "text": "\udfff"}], "edges": []}, "no valid Unicode"),
        ({"nodes": [A], "multigraph": False, "edges": [{"source": "a", "target": "a"}] * 2}, "multigraph is false"),
    ],
)
def test_what_is_no_graph_is_refused_in_one_line(document, said, tmp_path):
    assert said in refused(document)
    path = tmp_path / "g.json"
    path.write_text(json.dumps(document))
    assert refused(path).startswith(f"{path}: ")


def test_a_graph_of_a_million_edges_is_refused_unread():
    document = {"nodes": [A], "edges": [{"source": "a", "target": "a"}] * 1_000_000}
    assert refused(document) == f"the graph has 1000000 edges, expected at most {MOST_EDGES}"
    endless = iter(lambda: ("a", "b"), None)
    with pytest.raises(InputError, match=f"more than {MOST_EDGES} edges"):
        Graph([A, {"id": "b"}], endless)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"nodes": [' * 20_000, "nested too deep"),
        ("[]", "holds a list"),
        ('{"nodes": [{"id": "\\ud83d"}], "edges": []}', "surrogates"),
        ('{"nodes": [], "nodes": []}', "stands twice"),
        ('{"nodes": [{"id": NaN}], "edges": []}', "NaN is not JSON"),
        ("{", "not the JSON that was expected"),
    ],
)
def test_a_file_that_is_no_json_is_refused_in_one_line(text, said, tmp_path):
    path = tmp_path / "g.json"
    path.write_text(text, encoding="utf-8")
    assert said in refused(path) and str(path) in refused(path)


@pytest.mark.parametrize("image", ["/etc/passwd", "../x.png", "a/../../x.png", "http://x/y.png", "C:\\x.png"])
def test_a_file_shows_no_picture_from_elsewhere(image, tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"nodes": [{"id": "a", "image": image}], "edges": []}))
    assert "a path below the file's own folder" in refused(path)


def test_a_tilde_in_a_file_is_no_home(tmp_path, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(), work.mkdir()
    Image.new("RGB", (4, 4), "red").save(home / "own.png")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (work / "g.json").write_text(json.dumps({"nodes": [{"id": "a", "image": "~/own.png"}], "edges": []}))
    with pytest.raises(InputError, match="No such file"):
        open_picture(read_graph("g.json").pictures[0])
    (work / "~").mkdir()
    Image.new("RGB", (2, 2), "red").save(work / "~" / "own.png")
    assert open_picture(read_graph("g.json").pictures[0]).size == (2, 2)


def test_what_is_no_source_of_a_graph_is_a_wrong_call(tmp_path):
    assert "expected node-link JSON" in refused(7, UsageError)
    with pytest.raises(InputError, match="directed is 'no', expected true or false"):
        Graph([A], directed="no")
    assert "No such file" in refused(tmp_path / "none.json")
    assert "Is a directory" in refused(tmp_path) or "not a file" in refused(tmp_path)
    big = tmp_path / "big.json"
    with open(big, "wb") as stream:
        stream.truncate(100 << 20)
    assert "expected at most" in refused(big)


def test_reading_brings_no_networkx():
    assert sys.modules["edgemm.bundle.node_link"].__dict__.get("networkx") is None
