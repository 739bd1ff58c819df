"""Graphs that a model is asked about: typed edges between nodes that are words, pictures, both or neither.

Read from networkx's node-link JSON (a file or a dict), from a networkx graph, or made by hand:

    plan = Graph([{"id": "a", "text": "a red circle"}, {"id": "b", "image": "cat.png"}], [("a", "left of", "b")])

Every model can read `to_text()`: an incident list, which language models answer best from (arXiv:2310.04560), with the
pictures of nodes where they stand in it.  What node-link allows is allowed: self loops, cycles, several edges between
two nodes of a multigraph.  Attributes that no model reads are refused by name.  It knows no tokens and no pixels.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from edgemm.bundle.files import check_is_file, parse, reading
from edgemm.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgemm.bundle.picture import PictureSource

__all__ = ["MOST_EDGES", "MOST_NODES", "Edge", "Graph", "GraphSource", "Node", "read_graph"]

MOST_NODES, MOST_EDGES = 1024, 8192  # more than any context holds
MOST_BYTES = 64 << 20  # of a file, the pictures in it included
LONGEST_NAME = 200  # characters of an id or a type
UNTYPED = "connected to"
NODE_KEYS, EDGE_KEYS = ("id", "text", "image"), ("source", "target", "type", "key")
TOP_KEYS = ("directed", "multigraph", "graph", "nodes", "edges", "links")
PLAIN = re.compile(r"(?!.*(->|--))[^\s:;,\"]([^:;,\"\n\r]*[^\s:;,\"])?", re.DOTALL)  # a name that needs no quotes


@dataclass(frozen=True, eq=False)
class Node:
    """A thing that a graph names; it may have words, a picture, both or neither."""

    id: str
    text: str | None = None
    image: PictureSource | None = None


@dataclass(frozen=True)
class Edge:
    """What leads from one node's id to another's; one that only connects has the type UNTYPED."""

    source: str
    type: str
    target: str


@dataclass(frozen=True, eq=False, init=False)
class Graph:
    """Nodes and typed edges between them, checked at birth; raises InputError with the place of what is wrong.

    `nodes` are dicts of id, text and image (any picture that generate_text takes); `edges` are (id, type, id), or
    (id, id) for edges that only connect.  In a graph that is not directed an edge says the same both ways.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    directed: bool

    def __init__(self, nodes: Iterable[Any], edges: Iterable[Any] = (), directed: bool = True) -> None:
        made = tuple(_node(node, f"nodes[{i}]") for i, node in enumerate(_some(nodes, MOST_NODES, "nodes")))
        known: dict[str, int] = {}
        for index, node in enumerate(made):
            if node.id in known:
                raise InputError(f"nodes[{index}]: node {node.id!r} stands twice, first as nodes[{known[node.id]}]")
            known[node.id] = index
        if not made:
            raise InputError("the graph has no nodes, expected at least one")
        if not isinstance(directed, bool):
            raise InputError(f"directed is {_kind(directed)}, expected true or false")
        drawn = tuple(_edge(edge, f"edges[{i}]") for i, edge in enumerate(_some(edges, MOST_EDGES, "edges")))
        for index, edge in enumerate(drawn):
            for end in (edge.source, edge.target):
                if end not in known:
                    raise InputError(f"edges[{index}]: there is no node {end!r:.80}, an edge joins nodes of the graph")
        for name, value in (("nodes", made), ("edges", drawn), ("directed", directed)):
            object.__setattr__(self, name, value)

    @property
    def pictures(self) -> list[PictureSource]:
        """In the order of their nodes."""
        return [node.image for node in self.nodes if node.image is not None]

    def parts(self) -> tuple[list[str], list[PictureSource]]:
        """The incident list, cut where pictures stand: one string more than pictures."""
        texts, pictures = [f"A graph of {_count(self.nodes, 'node')} and {_count(self.edges, 'edge')}.\n"], []
        for node in self.nodes:
            texts[-1] += _quoted(node.id)
            if node.text is not None:
                texts[-1] += f": {_on_one_line(node.text)}"
            if node.image is not None:
                texts[-1] += ": " if node.text is None else " "
                pictures.append(node.image)
                texts.append("")
            texts[-1] += "\n"
        texts[-1] += "".join(self._incident())
        return texts, pictures

    def to_text(self) -> str:
        """What a model reads that knows no graphs; a picture is told by its place, [picture 1]."""
        texts, pictures = self.parts()
        marks = [f"[picture {number}]" for number in range(1, len(pictures) + 1)]
        return "".join(piece for pair in zip(texts, [*marks, ""], strict=True) for piece in pair)

    def incident(self) -> dict[str, dict[str, list[str]]]:
        """Node -> type -> where its edges of that type lead; in a graph that is not directed, from either end."""
        found: dict[str, dict[str, list[str]]] = {node.id: {} for node in self.nodes}
        for edge in self.edges:
            found[edge.source].setdefault(edge.type, []).append(edge.target)
            if not self.directed and edge.source != edge.target:
                found[edge.target].setdefault(edge.type, []).append(edge.source)
        return found

    def _incident(self) -> Iterator[str]:
        """`a -> left of: b, c; above: d`, a line for every node that an edge leads from."""
        for name, kinds in self.incident().items():
            said = "; ".join(f"{_quoted(kind)}: {', '.join(map(_quoted, ends))}" for kind, ends in kinds.items())
            if said:
                yield f"{_quoted(name)} {'->' if self.directed else '--'} {said}\n"


GraphSource = Union[Graph, Mapping[str, Any], str, "os.PathLike[str]", Any]  # the last: an object with nodes and edges


def read_graph(source: GraphSource) -> Graph:
    """A Graph, node-link JSON as a dict or the path of a file, a networkx graph, or an object with nodes and edges.

    In a file a picture is a data: URL, or a path below the file's own folder.  Raises InputError of what cannot be
    read, UsageError of what is no graph at all.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, Mapping):
        return _from_node_link(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(os.fsdecode(source)))
    if not (hasattr(source, "nodes") and hasattr(source, "edges")):
        kind = type(source).__name__
        raise UsageError(
            f"graph is {kind}, expected node-link JSON as a dict or a path, or an object with nodes and edges"
        )
    with reading("graph", "an object that is no graph"):
        if hasattr(source, "is_multigraph"):  # networkx
            return _from_node_link(_as_node_link(source))
        return Graph(source.nodes, source.edges, getattr(source, "directed", True))


def _as_node_link(graph: Any) -> dict[str, Any]:
    """What networkx.node_link_data writes: a node's own name, and an edge's own ends, over attributes called so."""
    multigraph = graph.is_multigraph()
    edges = graph.edges(data=True, keys=True) if multigraph else graph.edges(data=True)
    return {
        "directed": graph.is_directed(),
        "multigraph": multigraph,
        "graph": graph.graph,
        "nodes": [{**data, "id": name} for name, data in graph.nodes(data=True)],
        "edges": [
            {**data, "source": one, "target": other, **({"key": key[0]} if key else {})}
            for one, other, *key, data in edges
        ],
    }


def _from_file(path: Path) -> Graph:
    with reading(check_is_file(path, "node-link JSON")):
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path}: {size} bytes, expected at most {MOST_BYTES} of node-link JSON")
        text = path.read_text(encoding="utf-8-sig")
    document = parse(text, str(path))
    try:
        graph = _from_node_link(document)
        nodes = [_beside(node, path, f"nodes[{index}]") for index, node in enumerate(graph.nodes)]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Graph(nodes, graph.edges, graph.directed)


def _beside(node: Node, path: Path, where: str) -> Node:
    """A stranger's file shows pictures that came with it, and no other of the machine."""
    if node.image is None or str(node.image).startswith("data:"):
        return node
    said = str(node.image)
    if Path(said).is_absolute() or ".." in Path(said).parts or "\\" in said or ":" in said:
        raise InputError(f"{where}.image is {said!r:.80}, expected a data: URL or a path below the file's own folder")
    return dataclasses.replace(node, image=path.parent.absolute() / said)  # where ~ is no home


def _from_node_link(document: Mapping[str, Any]) -> Graph:
    """As networkx.node_link_data writes it: `edges`, or `links` before networkx 3.4's change."""
    _known(document, TOP_KEYS, "the graph")
    if "edges" in document and "links" in document:
        raise InputError("the graph has both `edges` and `links`, expected one of them")
    edges = document.get("edges", document.get("links"))
    for name, value in (("nodes", document.get("nodes")), ("edges", edges)):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise InputError(f"{name} is {_kind(value)}, expected a list")
    for name in ("directed", "multigraph"):
        if not isinstance(document.get(name, True), bool):
            raise InputError(f"{name} is {_kind(document[name])}, expected true or false")
    _known(document.get("graph") or {}, (), "graph")
    assert edges is not None
    for index, edge in enumerate(islice(edges, MOST_EDGES)):
        if not isinstance(edge, Mapping):
            raise InputError(f"edges[{index}] is {_kind(edge)}, expected an object")
    graph = Graph(document["nodes"], edges, document.get("directed", False))
    if not document.get("multigraph", True):
        _check_single(graph)
    return graph


def _check_single(graph: Graph) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for index, edge in enumerate(graph.edges):
        ends = (edge.source, edge.target)
        first = seen.setdefault(ends if graph.directed else tuple(sorted(ends)), index)
        if first != index:
            raise InputError(f"edges[{index}] joins what edges[{first}] does, and multigraph is false")


def _node(value: Any, where: str) -> Node:
    if isinstance(value, Node):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {_kind(value)}, expected an object with an id")
    _known(value, NODE_KEYS, where)
    text, image = value.get("text"), value.get("image")
    if text is not None:
        _string(text, f"{where}.text")
    if isinstance(image, (bool, int, float, list, tuple, Mapping)):
        raise InputError(f"{where}.image is {_kind(image)}, expected a picture: a path or a data: URL")
    if isinstance(image, str):
        _string(image, f"{where}.image")
    return Node(_name(value.get("id"), f"{where}.id"), text, image)


def _edge(value: Any, where: str) -> Edge:
    if isinstance(value, Edge):
        return value
    if isinstance(value, Mapping):
        _known(value, EDGE_KEYS, where)
        if isinstance(value.get("key"), str) and "type" not in value:
            raise InputError(f"{where}: no model reads the key {value['key']!r:.60}; say it as the edge's type")
        value = (value.get("source"), value.get("type", UNTYPED), value.get("target"))
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        value = (value[0], UNTYPED, value[1])
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise InputError(f"{where} is {_kind(value)}, expected (id, type, id)")
    source, kind, target = value
    if not isinstance(kind, str) or not kind.strip():
        raise InputError(f"{where}.type is {_kind(kind)}, expected a string")
    return Edge(_name(source, f"{where}.source"), _name(kind, f"{where}.type"), _name(target, f"{where}.target"))


def _name(value: Any, where: str) -> str:
    """An id: a string, or a whole number, which is told as one."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = str(value) if abs(int(value)) < 10**40 else None
    if value is None or not isinstance(value, str):
        raise InputError(f"{where} is {_kind(value)}, expected a string or a whole number")
    if not value.strip() or len(value) > LONGEST_NAME:
        raise InputError(f"{where} has {len(value)} characters, expected 1 to {LONGEST_NAME} and not only blanks")
    return _string(value, where)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {_kind(value)}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is no valid Unicode: {error.reason}") from error
    return value


def _some(values: Iterable[Any], most: int, what: str) -> list[Any]:
    """No more is looked at than may be there."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"{what} is {_kind(values)}, expected a list")
    found = list(islice(values, most + 1))
    if len(found) > most:
        count = str(len(values)) if isinstance(values, Sequence) else f"more than {most}"
        raise InputError(f"the graph has {count} {what}, expected at most {most}")
    return found


def _known(value: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {_kind(value)}, expected an object")
    for key in value:
        if key not in keys:
            known = ", ".join(keys) or "none"
            raise InputError(
                f"{where}: no model reads {key!r:.60}, known are: {known}; say it in a node's text or leave it out"
            )


def _kind(value: Any) -> str:
    names = {type(None): "missing", dict: "an object", list: "a list", tuple: "a list"}
    return names.get(type(value)) or f"{value!r:.60}"


def _quoted(name: str) -> str:
    """As it is, or as a JSON string where a reader could not see its end."""
    return name if PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _on_one_line(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text.splitlines() != [text] or text.startswith('"') else text


def _count(things: Sequence[Any], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"
