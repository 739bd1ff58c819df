"""Graphs of coloured shapes to ask about and to draw, every answer and every picture checked exactly.

    hop-1 .. hop-3    "What colour is the one above the one left of the red circle?"      one edge after the other
    hidden            the same, of a thing that shows nothing but an edge "same colour as" another
    same-1, 0.5, 0    a hidden thing and four neighbours of two colours: all its edges say "same colour as", half, none
                      (the rest "other colour than"); the neighbours' commonest colour is right 1, .5 and 0 of the time
    drawn             two or three things on a canvas, told by their edges alone: where they stand, which colours agree;
                      `fixed`: edges leave one picture, and every second graph is one of these

A thing is told by words, by a picture, by both or by neither.  Edges that lead nowhere distract.  What edges say of
places could be drawn, and a question has one answer however edges are read: the other way round, too ("A is left of B"
says that B is right of A), and with what follows from several.  `scene.graph` is node-link JSON, whose pictures are
samples of group `nodes`; graphs with withheld pairs of colour and shape (shapes.py) are the held-out-pair split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

from edgemm import progress
from edgemm.bundle.node_link import read_graph
from edgemm.data.format import Question, Sample
from edgemm.data.labels import with_article
from edgemm.data.scenes import OPPOSITE, RELATIONS, Box, holds, place
from edgemm.data.shapes import COLOURS, HELD_OUT_SHARE, SHADE, SHAPES, WITHHELD, draw_scene
from edgemm.data.writer import DatasetWriter

__all__ = ["EDGES", "KINDS", "Thing", "ask", "build_graphs", "drawn_graph", "who_stands"]

SAME, OTHER = "same colour as", "other colour than"
EDGES = (*RELATIONS, SAME, OTHER)
KINDS = ("hop-1", "hop-2", "hop-3", "hidden", "same-1", "same-0.5", "same-0", "drawn")
MOST = 5  # things in a graph
NEITHER = 0.3  # of things that no question needs to see
SEEN = ("text", "picture", "both")
DRAWN_SIDE = 0.28  # of the canvas: there is ground between two things in half of its size, too
LAYOUTS = {  # where things stand, across and down: no two have the same edges
    2: (((0, 0), (1, 0)), ((0, 0), (0, 1))),
    3: (
        ((0, 0), (1, 0), (2, 0)),
        ((0, 0), (0, 1), (0, 2)),
        ((0, 0), (1, 0), (0, 1)),
        ((0, 0), (1, 0), (1, 1)),
        ((0, 1), (1, 1), (0, 0)),
        ((0, 1), (1, 1), (1, 0)),
    ),
}
NEIGHBOURS = 4
HIDDEN = "the hidden one"


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    seen: str  # one of SEEN, or "neither"

    @property
    def words(self) -> str:
        return f"{self.colour} {self.shape}"


Edges = list[tuple[int, str, int]]  # places of things, and how the first stands to the second


def build_graphs(
    folder: Path, size: int, count: int, seed: int, kinds: Sequence[str] = KINDS, *, fixed: bool = False
) -> int:
    """Write `count` graphs into `folder`, the kinds in turn; `fixed`: every second is drawn, and its edges leave one
    picture."""
    writer, rng, questions = DatasetWriter(folder, "graphs", size), random.Random(seed), []
    if fixed:
        kinds = [kind for asked in kinds if asked != "drawn" for kind in (asked, "drawn")]
    for index in progress.track(range(count), count, "drawing", "graphs"):
        kind, name = kinds[index % len(kinds)], f"graphs/{index:06d}"
        withheld = rng.random() < HELD_OUT_SHARE
        split = "held-out-pair" if withheld else "train"
        if kind == "drawn":
            things, edges, objects = drawn_graph(size, rng, withheld, fixed=fixed)
        else:
            things, edges, asked, answer, choices = ask(kind, rng, withheld)
            objects = _in_a_row(things, size)
            questions.append(Question(name, kind, asked, answer, tuple(choices), split))
        for node in _pictured(name, things, size, split):
            writer.add(node, draw_scene(node.scene or {}, rng))
        scene = _scene(kind, size, objects) | {"graph": _node_link(name, things, edges)}
        group = "drawn" if kind == "drawn" else "asked"
        told = read_graph(scene["graph"]).to_text()
        picture = draw_scene(scene, rng, 0 if fixed and kind == "drawn" else SHADE)
        writer.add(_sample(name, kind, group, told, scene, split), picture)
    writer.finish(questions, [])
    return len(writer.samples)


def ask(kind: str, rng: random.Random, withheld: bool = False) -> tuple[list[Thing], Edges, str, str, Sequence[str]]:
    """Things, edges, a question about them, its answer, and the answers it may have."""
    if kind.startswith("same-"):
        return _ask_neighbours(float(kind.removeprefix("same-")), rng, withheld)
    things, hops, more = (_hidden if kind == "hidden" else _path)(kind, rng, withheld)
    edges = [*hops, *more, *_distracting(hops, len(things), rng)]
    rng.shuffle(edges)
    named, asked = f"the {things[hops[0][2]].words}", things[hops[-1][0]]
    for _, relation, _ in hops:
        named = f"the one {relation} {named}"
    return things, edges, f"What colour is {named}?", asked.colour, tuple(COLOURS)


def who_stands(relation: str, to: int, edges: Edges) -> set[int]:
    """Things that are left of, right of, above or below one, as edges say and as follows from several of them."""
    found: set[int] = set()
    left = [to]
    while left:
        here = left.pop()
        near = {a for a, kind, b in edges if (kind, b) == (relation, here)}
        near |= {b for a, kind, b in edges if (kind, a) == (OPPOSITE[relation], here)}
        left += near - found
        found |= near
    return found


def _is_clear(hops: Edges, edges: Edges) -> bool:
    """Whether each hop leads to one thing, and no thing stands left of itself."""
    could_be_drawn = all(end not in who_stands(relation, end, edges) for _, relation, end in edges)
    return could_be_drawn and all(who_stands(relation, end, edges) == {start} for start, relation, end in hops)


def _path(kind: str, rng: random.Random, withheld: bool) -> tuple[list[Thing], Edges, Edges]:
    """Things, and the edges from what is named to what is asked about, one after the other."""
    count = int(kind.removeprefix("hop-"))
    things = _things(rng.randint(count + 1, MOST), rng, withheld)
    order = rng.sample(range(len(things)), count + 1)
    while not _is_clear(hops := [(b, rng.choice(RELATIONS), a) for a, b in pairwise(order)], hops):
        pass
    return [_dressed(thing, spot in (order[0], order[-1]), rng) for spot, thing in enumerate(things)], hops, []


def _hidden(kind: str, rng: random.Random, withheld: bool) -> tuple[list[Thing], Edges, Edges]:
    """What is asked about shows nothing, and has the colour of what it is joined to."""
    things = _things(rng.randint(3, MOST), rng, withheld)
    asked = rng.choice([spot for spot, thing in enumerate(things) if (thing.colour, thing.shape) not in WITHHELD])
    named, like = rng.sample([spot for spot in range(len(things)) if spot != asked], 2)
    colour, pairs = things[like].colour, {(thing.colour, thing.shape) for thing in things} | WITHHELD
    dressed = [_dressed(thing, spot in (named, like), rng) for spot, thing in enumerate(things)]
    dressed[asked] = Thing(colour, rng.choice([s for s in SHAPES if (colour, s) not in pairs]), "neither")
    return dressed, [(asked, rng.choice(RELATIONS), named)], [(asked, SAME, like)]


def _ask_neighbours(share: float, rng: random.Random, withheld: bool) -> tuple[list[Thing], Edges, str, str, list[str]]:
    own, other = rng.sample(sorted(colour for colour, _ in WITHHELD), 2)
    agree = [spot < round(share * NEIGHBOURS) for spot in range(NEIGHBOURS)]
    rng.shuffle(agree)
    told = [Thing(own, rng.choice(SHAPES), "neither")]
    for same in agree:
        colour = own if same else other
        shapes = [shape for shape in SHAPES if (colour, shape) not in WITHHELD]
        told.append(Thing(colour, rng.choice(shapes), rng.choice(SEEN)))
    if withheld:
        colour = told[1].colour
        told[1] = Thing(colour, next(shape for other, shape in WITHHELD if other == colour), told[1].seen)
    edges: Edges = [(0, SAME if same else OTHER, spot) for spot, same in enumerate(agree, start=1)]
    spot = rng.randrange(len(told))  # of the hidden one among the others
    moved = {0: spot, spot: 0}
    told[0], told[spot] = told[spot], told[0]
    edges = [(moved.get(one, one), kind, moved.get(to, to)) for one, kind, to in edges]
    rng.shuffle(edges)
    choices = sorted((own, other))
    return told, edges, f"What colour is {HIDDEN}, {choices[0]} or {choices[1]}?", own, choices


def drawn_graph(
    size: int, rng: random.Random, withheld: bool = False, *, fixed: bool = False
) -> tuple[list[Thing], Edges, list[dict[str, Any]]]:
    """Things told by words, every relation that holds between them, and where they stand."""
    things = [Thing(t.colour, t.shape, "text") for t in _things(rng.randint(2, 3), rng, withheld)]
    pairs = [(a, b) for a in range(len(things)) for b in range(len(things)) if a != b]
    while True:
        if fixed:
            boxes = _laid_out(rng.sample(rng.choice(LAYOUTS[len(things)]), len(things)), size)
        else:
            boxes = place([round(DRAWN_SIDE * size)] * len(things), size, None, rng)
        edges: Edges = [(a, kind, b) for a, b in pairs for kind in RELATIONS[::2] if holds(kind, boxes[a], boxes[b])]
        if len(edges) >= len(things) - 1:
            break
    edges += [(a, SAME, b) for a, b in pairs if a < b and things[a].colour == things[b].colour]
    return things, edges, _objects(things, boxes)


def _laid_out(places: Sequence[tuple[int, int]], size: int) -> list[Box]:
    """Boxes side by side, all together in the middle of the canvas."""
    side, pitch, boxes = round(DRAWN_SIDE * size), size / 3, []
    middle = [max(spot[axis] for spot in places) / 2 for axis in (0, 1)]
    for spot in places:
        left, top = (round(size / 2 + (spot[axis] - middle[axis]) * pitch - side / 2) for axis in (0, 1))
        boxes.append((left, top, left + side, top + side))
    return boxes


def _things(count: int, rng: random.Random, withheld: bool) -> list[Thing]:
    """No pair of colour and shape twice, one of them withheld or none."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    chosen = rng.sample([pair for pair in pairs if pair not in WITHHELD], count)
    if withheld:
        chosen[rng.randrange(count)] = rng.choice(sorted(WITHHELD))
    return [Thing(colour, shape, "both") for colour, shape in chosen]


def _dressed(thing: Thing, visible: bool, rng: random.Random) -> Thing:
    seen = "neither" if not visible and rng.random() < NEITHER else rng.choice(SEEN)
    return Thing(thing.colour, thing.shape, seen)


def _distracting(hops: Edges, count: int, rng: random.Random) -> Edges:
    """Up to three more; none says what others do, and none leads elsewhere what is asked."""
    edges, number = list(hops), len(hops) + rng.randint(0, 3)
    might = [(one, kind, to) for one, to in permutations(range(count), 2) for kind in RELATIONS]
    for one, kind, to in rng.sample(might, len(might)):
        if len(edges) == number:
            break
        news = not who_stands(kind, to, edges) and not who_stands(OPPOSITE[kind], one, edges)
        if news and _is_clear(hops, [*edges, (one, kind, to)]):
            edges.append((one, kind, to))
    return edges[len(hops) :]


def _node_link(name: str, things: Sequence[Thing], edges: Edges) -> dict[str, Any]:
    nodes: list[dict[str, Any]] = []
    for spot, thing in enumerate(things):
        node: dict[str, Any] = {"id": f"n{spot}"}
        if thing.seen in ("text", "both"):
            node["text"] = with_article(thing.words)
        if thing.seen in ("picture", "both"):
            node["image"] = f"{name}-n{spot}"
        nodes.append(node)
    first: dict[tuple[int, str], int] = {}
    for spot, (one, kind, _) in enumerate(edges):
        first.setdefault((one, kind), spot)
    listed = sorted(edges, key=lambda edge: (edge[0], first[edge[:2]]))  # as an incident list has them
    told = [{"source": f"n{one}", "target": f"n{to}", "type": kind} for one, kind, to in listed]
    return {"directed": True, "multigraph": True, "graph": {}, "nodes": nodes, "edges": told}


def _pictured(name: str, things: Sequence[Thing], size: int, split: str) -> Iterator[Sample]:
    """Things that have a picture, each as a sample of its own."""
    for spot, thing in enumerate(things):
        if thing.seen in ("picture", "both"):
            objects = _objects([thing], [(size // 4, size // 4, size * 3 // 4, size * 3 // 4)])
            scene = _scene("node", size, objects)
            yield _sample(f"{name}-n{spot}", "node", "nodes", with_article(thing.words), scene, split)


def _in_a_row(things: Sequence[Thing], size: int) -> list[dict[str, Any]]:
    """A look at all of them: positions say nothing."""
    side = size // MOST
    boxes = [(spot * side + 1, side, spot * side + side - 1, 2 * side - 2) for spot in range(len(things))]
    return _objects(things, boxes)


def _objects(things: Sequence[Thing], boxes: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"id": spot, "name": thing.shape, "colour": thing.colour, "box": list(box)}
        for spot, (thing, box) in enumerate(zip(things, boxes, strict=True))
    ]


def _scene(kind: str, size: int, objects: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(item["colour"], item["name"]) for item in objects]
    wanted = [{"shape": s, "colour": c, "count": pairs.count((c, s))} for c, s in dict.fromkeys(pairs)]
    return {"task": kind, "size": size, "objects": objects, "relation": None, "wanted": wanted}


def _sample(name: str, kind: str, group: str, told: str, scene: dict[str, Any], split: str) -> Sample:
    pairs = sorted({f"{item['colour']} {item['name']}" for item in scene["objects"]})
    return Sample(
        id=name, image=f"images/{name}.png", style="shapes", label=told, tags=(), family=" + ".join(pairs), group=group,
        subgroup=kind, hexcode="", split=split, captions=(told,), scene=scene,
    )  # fmt: skip
