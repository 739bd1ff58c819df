"""Coloured shapes on white, by GenEval's six kinds of task (arXiv:2310.11513), which no model is needed to judge.

    single object       "a circle"                              colours           "a red circle"
    two objects         "a circle and a star"                   position          "a circle left of a star"
    counting            "three squares"                         attribute binding "a red circle and a blue star"

`Sample.scene` holds every object and what the short caption claims (`wanted`); evaluate/shapes_checker.py judges a
picture against it.  Six of the 48 pairs of colour and shape are withheld: their scenes are the held-out-pair split.
A tenth of the other scenes is the held-out-picture split: pairs that were trained, in pictures that were not.  With
`fixed`, where a caption has one picture, it is a tenth of what two objects can be, all of their pictures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from edgemm import progress
from edgemm.data.format import Question, Sample
from edgemm.data.labels import NUMBERS, plural, with_article
from edgemm.data.questions import choice_question
from edgemm.data.scenes import (
    RELATIONS,
    Box,
    count_questions,
    existence_questions,
    place,
    place_in_cells,
    relation_questions,
)
from edgemm.data.writer import DatasetWriter, stable_fraction

__all__ = [
    "COLOURS",
    "SHAPES",
    "TASKS",
    "WITHHELD",
    "build_shapes",
    "draw_scene",
    "draw_shape",
    "make_scene",
    "scene_sample",
]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 70),
    "blue": (40, 100, 225),
    "purple": (130, 60, 180),
    "pink": (250, 140, 195),
    "black": (25, 25, 25),
}
TASKS = ("single object", "two objects", "counting", "colours", "position", "attribute binding")
WITHHELD = frozenset(  # every shape once, no colour twice: each half of a pair is well trained
    {
        ("red", "star"),
        ("blue", "circle"),
        ("green", "triangle"),
        ("yellow", "square"),
        ("purple", "cross"),
        ("black", "diamond"),
    }
)
HELD_OUT_SHARE = 0.1  # of the scenes; and of the others, as pictures
SIDES = {1: (0.35, 0.6), 2: (0.3, 0.42), 3: (0.26, 0.36), 4: (0.25, 0.34)}  # of the canvas, by number of objects
OVERSAMPLING = 4
SHADE = 10  # of 255, how far a colour strays in each channel


def build_shapes(
    folder: Path, size: int, count: int, seed: int, tasks: Sequence[str] = TASKS, *, fixed: bool = False
) -> int:
    """Write `count` scenes into `folder`, the tasks in turn; `fixed`: a caption that names colours has one picture."""
    writer, rng = DatasetWriter(folder, "shapes", size), random.Random(seed)
    unseen = random.Random(f"{seed} unseen pictures")  # of its own: the scenes are those that there always were
    for index in progress.track(range(count), count, "drawing", "scenes"):
        withheld = rng.random() < HELD_OUT_SHARE
        scene = make_scene(tasks[index % len(tasks)], size, rng, withheld=withheld, fixed=fixed)
        sample = scene_sample(index, scene)
        lot = unseen.random() if not fixed else _lot_of_two(sample)
        if sample.split == "train" and lot < HELD_OUT_SHARE:
            sample = replace(sample, split="held-out-picture")
        writer.add(sample, draw_scene(scene, rng, shade=0 if fixed else SHADE))
    questions = [question for sample in writer.samples for question in _questions(sample, rng)]
    questions += [*count_questions(writer.samples, rng), *relation_questions(writer.samples)]
    questions += existence_questions(writer.samples, lambda asked, present: asked != present, rng)
    writer.finish(questions, [])
    return count


def _lot_of_two(sample: Sample) -> float:
    """The same for every picture of two kinds of object; of one kind each picture was seen."""
    return stable_fraction("unseen pictures", sample.family) if " + " in sample.family else 1.0


def make_scene(
    task: str, size: int, rng: random.Random, *, withheld: bool = False, fixed: bool = False
) -> dict[str, Any]:
    """Objects, what the caption claims about them, and the relation; with `withheld`, at least one withheld pair.

    `fixed`: objects of a middling size in the middle of equal cells, in the caption's order, not anywhere in any size.
    """
    count = {"single object": 1, "colours": 1, "counting": rng.randint(2, 4)}.get(task, 2)
    kinds = _kinds(1 if task in ("single object", "colours", "counting") else 2, rng, withheld)
    kinds = kinds * count if len(kinds) == 1 else kinds
    relation = rng.choice(RELATIONS) if task == "position" else None
    low, high = SIDES[count]
    if fixed:
        boxes = place_in_cells([round((low + high) / 2 * size)] * len(kinds), size, relation)
    else:
        boxes = place([rng.randint(round(low * size), round(high * size)) for _ in kinds], size, relation, rng)
    objects = [
        {"id": index, "name": shape, "colour": colour, "box": list(box)}
        for index, ((colour, shape), box) in enumerate(zip(kinds, boxes, strict=True))
    ]
    says_colour = task in ("colours", "attribute binding")
    wanted = [
        {"shape": shape, "colour": colour if says_colour else None, "count": kinds.count((colour, shape))}
        for colour, shape in dict.fromkeys(kinds)
    ]
    held = {"subject": 0, "relation": relation, "object": 1} if relation else None
    return {"task": task, "size": size, "objects": objects, "relation": held, "wanted": wanted}


def draw_scene(scene: dict[str, Any], rng: random.Random, shade: int = SHADE) -> Image.Image:
    """The picture of a scene, antialiased, each object's colour astray by up to `shade` of 255 in each channel."""
    size = scene["size"]
    canvas = Image.new("RGB", (size * OVERSAMPLING,) * 2, "white")
    for item in scene["objects"]:
        fill = tuple(min(255, max(0, value + rng.randint(-shade, shade))) for value in COLOURS[item["colour"]])
        left, top, right, bottom = (edge * OVERSAMPLING for edge in item["box"])
        draw_shape(ImageDraw.Draw(canvas), item["name"], (left, top, right, bottom), fill)
    return canvas.resize((size, size), Image.Resampling.BOX)


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: Box, fill: Any) -> None:
    """One shape that fills its box."""
    left, top, right, bottom = box
    if shape == "circle":
        draw.ellipse((left, top, right - 1, bottom - 1), fill=fill)
        return
    across, down = right - left - 1, bottom - top - 1
    draw.polygon([(left + x * across, top + y * down) for x, y in CORNERS[shape]], fill=fill)


def _star() -> list[tuple[float, float]]:
    corners = []
    for index in range(10):
        radius, angle = (1.0 if index % 2 == 0 else 0.42), math.pi * index / 5
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in corners]


ARM = 1 / 3  # width of the cross's arms
CORNERS: dict[str, list[tuple[float, float]]] = {  # in the unit square
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
    "cross": [
        (ARM, 0), (1 - ARM, 0), (1 - ARM, ARM), (1, ARM), (1, 1 - ARM), (1 - ARM, 1 - ARM),
        (1 - ARM, 1), (ARM, 1), (ARM, 1 - ARM), (0, 1 - ARM), (0, ARM), (ARM, ARM),
    ],
}  # fmt: skip


def _kinds(number: int, rng: random.Random, withheld: bool) -> list[tuple[str, str]]:
    """Colours and shapes, no colour and no shape twice."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    allowed = [pair for pair in pairs if pair not in WITHHELD]
    kinds = [rng.choice([pair for pair in pairs if pair in WITHHELD] if withheld else allowed)]
    while len(kinds) < number:
        other = rng.choice(allowed)
        if other[0] != kinds[0][0] and other[1] != kinds[0][1]:
            kinds.append(other)
    rng.shuffle(kinds)
    return kinds


def scene_sample(index: int, scene: dict[str, Any]) -> Sample:
    name = f"shapes/{index:06d}"
    pairs = sorted({(item["colour"], item["name"]) for item in scene["objects"]})
    short, full = _caption(scene, with_colours=False), _caption(scene, with_colours=True)
    return Sample(
        id=name,
        image=f"images/{name}.png",
        style="shapes",
        label=short,
        tags=(),
        family=" + ".join(f"{colour} {shape}" for colour, shape in pairs),
        group="shapes",
        subgroup=scene["task"],
        hexcode="",
        split="held-out-pair" if WITHHELD & set(pairs) else "train",
        captions=tuple(dict.fromkeys((short, full))),
        scene=scene,
    )


def _caption(scene: dict[str, Any], *, with_colours: bool) -> str:
    said = []
    for want in scene["wanted"]:
        colour = next(item["colour"] for item in scene["objects"] if item["name"] == want["shape"])
        name = f"{colour} {want['shape']}" if with_colours or want["colour"] else want["shape"]
        said.append(with_article(name) if want["count"] == 1 else f"{NUMBERS[want['count']]} {plural(name)}")
    return f" {scene['relation']['relation']} ".join(said) if scene["relation"] else " and ".join(said)


def _questions(sample: Sample, rng: random.Random) -> Iterable[Question]:
    one, colours = rng.choice((sample.scene or {})["objects"]), tuple(COLOURS)
    if sample.subgroup == "counting":
        text = f"What colour are the {plural(one['name'])}?"
    else:
        text = f"What colour is the {one['name']}?"
        yield choice_question(sample, "label", f"What shape is {one['colour']}?", one["name"], SHAPES, rng)
    yield choice_question(sample, "colour", text, one["colour"], colours, rng)
