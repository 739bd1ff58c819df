"""Clips of coloured shapes that move and change, which no model is needed to judge (evaluate/clips_suite.py).

To be drawn (`fixed`): one shape, its path in the middle, so that the caption decides every pixel.

    still       "a red circle"                      move      "a red circle moving left slowly"
    appear      "a red circle appears"              vanish    "a red circle vanishes"
    recolour    "a red circle turns blue"           two events, in either order:
                                                    "a red circle turns blue, then moves right"

To be read: one or two shapes that move, and wrap around the edges, so that no single frame says which way; each clip
has a twin that is the same frames in the other order, so that no set of frames does either (Video QA without such twins
is answered from one frame: CATER, arXiv:1910.04744; Vinoground, arXiv:2410.02763).  A clip and its twin are one split.
A clip's file is a tall picture, frame below frame.  Withheld: six pairs of colour and shape (shapes.py), and six of
shape and direction.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from edgemm import progress
from edgemm.data.format import Question, Sample
from edgemm.data.labels import with_article
from edgemm.data.shapes import COLOURS, OVERSAMPLING, SHAPES, WITHHELD, draw_shape
from edgemm.data.writer import DatasetWriter

__all__ = ["DIRECTIONS", "FRAMES", "FRAME_MS", "SPEEDS", "WITHHELD_WAYS", "build_clips", "draw_clip", "make_clip"]

FRAMES, FRAME_MS = 8, 100
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SPEEDS = {"slowly": 1 / 32, "quickly": 2 / 32}  # of the side, a frame
TASKS = ("move", "move", "still", "appear", "vanish", "recolour", "two events")
EVENT = FRAMES // 2  # the frame in which something is new
SIDE = 0.3  # of the canvas
WITHHELD_WAYS = frozenset(  # every shape once
    {
        ("circle", "left"),
        ("square", "up"),
        ("triangle", "right"),
        ("star", "down"),
        ("diamond", "up"),
        ("cross", "left"),
    }
)
HELD_OUT_SHARE = 0.1  # of the clips, for either kind of pair; and of the others, as pictures


def build_clips(folder: Path, size: int, count: int, seed: int, *, fixed: bool = False) -> int:
    """Write `count` clips: to be drawn with `fixed`, else to be read, two and two."""
    writer, rng = DatasetWriter(folder, "clips", size), random.Random(seed)
    questions: list[Question] = []
    for index in progress.track(range(count), count, "drawing", "clips"):
        if fixed:
            scene = make_clip(TASKS[index % len(TASKS)], size, rng, withheld=rng.random() < HELD_OUT_SHARE)
        elif index % 2 == 0:
            scene = _reading_clip(
                size, rng, withheld=rng.random() < HELD_OUT_SHARE, unseen=rng.random() < HELD_OUT_SHARE
            )
        else:
            scene = _reversed(scene)  # the clip before
        sample = _sample(index, scene)
        writer.add(sample, draw_clip(scene))
        questions += [] if fixed else _questions(sample)
    writer.finish(questions, [])
    return count


def make_clip(task: str, size: int, rng: random.Random, *, withheld: bool = False) -> dict[str, Any]:
    """One shape: its colour, middle and whether it is there, frame by frame, and what the caption claims."""
    by_colour = withheld and (rng.random() < 0.5 or task not in ("move", "two events"))
    colour, shape = _kind(rng, by_colour)
    ways = [way for way in DIRECTIONS if ((shape, way) in WITHHELD_WAYS) == (withheld and not by_colour)]
    way, speed = rng.choice(ways), rng.choice(list(SPEEDS))
    other = rng.choice([name for name in COLOURS if name != colour and (name, shape) not in WITHHELD])
    first = rng.choice(("move", "recolour"))
    moves = {"move": (0, FRAMES), "two events": (0, EVENT) if first == "move" else (EVENT, FRAMES)}.get(task, (0, 0))
    steps = [int(moves[0] < frame < moves[1]) for frame in range(FRAMES)]
    if task == "two events":
        speed = "quickly"
    travel = SPEEDS[speed] * size * sum(steps)
    middles, gone = [], 0.0
    for step in steps:
        gone += SPEEDS[speed] * size * step
        middles.append([size / 2 + axis * (gone - travel / 2) for axis in DIRECTIONS[way]])
    changes = {"recolour": EVENT, "two events": EVENT + 1 if first == "move" else EVENT - 1}.get(task, FRAMES)
    there = {"appear": range(EVENT, FRAMES), "vanish": range(EVENT)}.get(task, range(FRAMES))
    item = {"id": 0, "name": shape, "side": round(SIDE * size), "middles": middles, "there": list(there)}
    item["colours"] = [other if frame >= changes else colour for frame in range(FRAMES)]
    wanted = {
        "shape": shape,
        "colour": colour,
        "way": way if sum(steps) else None,
        "speed": speed if task == "move" else None,
    }
    wanted["other"] = other if changes < FRAMES else None
    wanted["first"] = first if task == "two events" else None
    return _scene(task, size, [item], wanted, "held-out-pair" if withheld else "train")


def _kind(rng: random.Random, withheld: bool) -> tuple[str, str]:
    return rng.choice([(c, s) for c in COLOURS for s in SHAPES if ((c, s) in WITHHELD) == withheld])


def _scene(task: str, size: int, objects: list[dict[str, Any]], wanted: dict[str, Any], split: str) -> dict[str, Any]:
    return {
        "task": task, "size": size, "frames": FRAMES, "frame_ms": FRAME_MS, "objects": objects, "relation": None,
        "wanted": wanted, "split": split,
    }  # fmt: skip


def _caption(scene: dict[str, Any]) -> str:
    wanted, task = scene["wanted"], scene["task"]
    what = with_article(f"{wanted['colour']} {wanted['shape']}")
    turns, moves = f"turns {wanted['other']}", f"moves {wanted['way']}"
    if task == "two events":
        return f"{what} {moves}, then {turns}" if wanted["first"] == "move" else f"{what} {turns}, then {moves}"
    said = {"move": f" moving {wanted['way']} {wanted['speed']}", "recolour": f" {turns}"}
    return what + ({"appear": " appears", "vanish": " vanishes", "still": ""} | said)[task]


# To be read


def _reading_clip(size: int, rng: random.Random, *, withheld: bool, unseen: bool) -> dict[str, Any]:
    """One shape that moves, or two of which one begins to move before the other."""
    count = rng.choice((1, 2))
    split = "held-out-pair" if withheld else "held-out-picture" if unseen else "train"
    objects: list[dict[str, Any]] = []
    while len(objects) < count:
        colour, shape = _kind(rng, False)
        ways = [
            way
            for way in DIRECTIONS
            if ((shape, way) in WITHHELD_WAYS or (shape, OPPOSITE[way]) in WITHHELD_WAYS) == withheld
        ]
        if any(item["name"] == shape or item["colours"][0] == colour for item in objects):
            continue
        way, speed = rng.choice(ways), rng.choice(list(SPEEDS))
        start = [rng.randrange(size), rng.randrange(size)] if count == 1 else _lane(size, len(objects), way, rng)
        item = {
            "id": len(objects),
            "name": shape,
            "side": round((SIDE if count == 1 else 0.25) * size),
            "way": way,
            "speed": speed,
        }
        item |= {"start": start, "there": list(range(FRAMES)), "colours": [colour] * FRAMES}
        objects.append(item)
    if count == 2:  # the second one's lane does not cross the first one's
        axis = DIRECTIONS[objects[0]["way"]]
        if abs(axis[0]) != abs(DIRECTIONS[objects[1]["way"]][0]):
            return _reading_clip(size, rng, withheld=withheld, unseen=unseen)
    first = rng.randrange(2)
    for item in objects:
        moving = range(1, FRAMES) if count == 1 else range(1, EVENT) if item["id"] == first else range(EVENT, FRAMES)
        item["middles"] = _wrapped(item, [int(frame in moving) for frame in range(FRAMES)], size)
    return _scene(
        "one moves" if count == 1 else "two move", size, objects, {"first": first if count == 2 else None}, split
    )


def _lane(size: int, place: int, way: str, rng: random.Random) -> list[int]:
    """A start in the upper or left half for the first of two, and in the other for the second."""
    across = round(size * (0.25 + 0.5 * place))
    return [rng.randrange(size), across] if way in ("left", "right") else [across, rng.randrange(size)]


def _wrapped(item: dict[str, Any], steps: Sequence[int], size: int) -> list[list[float]]:
    middles, gone = [], 0.0
    for step in steps:
        gone += SPEEDS[item["speed"]] * size * step
        middles.append([(from_ + axis * gone) % size for from_, axis in zip(item["start"], DIRECTIONS[item["way"]])])
    return middles


def _reversed(scene: dict[str, Any]) -> dict[str, Any]:
    """The twin: the same frames from the last to the first."""
    objects = [
        {**item, "way": OPPOSITE[item["way"]], "middles": item["middles"][::-1], "colours": item["colours"][::-1]}
        for item in scene["objects"]
    ]
    first = scene["wanted"]["first"]
    return {**scene, "objects": objects, "wanted": {"first": None if first is None else 1 - first}}


def _moves(scene: dict[str, Any]) -> str:
    """What moves, in its order: "red star left slowly, then blue cross right quickly"."""
    first = scene["wanted"]["first"]
    told = [f"{item['colours'][0]} {item['name']} {item['way']} {item['speed']}" for item in scene["objects"]]
    return ", then ".join(told[::-1] if first == 1 else told)


def _questions(sample: Sample) -> Iterable[Question]:
    scene = sample.scene or {}
    for item in scene["objects"]:
        name, ways, speeds = item["name"], tuple(DIRECTIONS), tuple(SPEEDS)
        yield Question(sample.id, "direction", f"Which way does the {name} move?", item["way"], ways, sample.split)
        yield Question(sample.id, "speed", f"How does the {name} move?", item["speed"], speeds, sample.split)
    first = scene["wanted"]["first"]
    if first is not None:
        names = tuple(sorted(item["name"] for item in scene["objects"]))
        text = f"Which moves first, the {names[0]} or the {names[1]}?"
        yield Question(sample.id, "order", text, scene["objects"][first]["name"], names, sample.split)


# Pictures


def draw_clip(scene: dict[str, Any]) -> Image.Image:
    """Frame below frame, (W, frames * W) pixels, antialiased; what leaves at an edge comes in at the other."""
    size, count = scene["size"], scene["frames"]
    canvas = Image.new("RGB", (size * OVERSAMPLING, count * size * OVERSAMPLING), "white")
    for frame in range(count):
        one = Image.new("RGB", (size * OVERSAMPLING,) * 2, "white")
        for item in scene["objects"]:
            if frame in item["there"]:
                _draw_wrapped(ImageDraw.Draw(one), item, frame, size)
        canvas.paste(one, (0, frame * size * OVERSAMPLING))
    return canvas.resize((size, count * size), Image.Resampling.BOX)


def _draw_wrapped(draw: ImageDraw.ImageDraw, item: dict[str, Any], frame: int, size: int) -> None:
    (x, y), half = item["middles"][frame], item["side"] / 2
    for right in (-size, 0, size):
        for down in (-size, 0, size):
            edges = (x + right - half, y + down - half, x + right + half, y + down + half)
            if min(edges[2:]) > 0 and max(edges[:2]) < size:
                left, top, end, bottom = (round(edge * OVERSAMPLING) for edge in edges)
                draw_shape(draw, item["name"], (left, top, end, bottom), COLOURS[item["colours"][frame]])


def _sample(index: int, scene: dict[str, Any]) -> Sample:
    name, read = f"clips/{index:06d}", "first" in scene["wanted"] and "shape" not in scene["wanted"]
    pairs = " + ".join(f"{item['colours'][0]} {item['name']}" for item in scene["objects"])
    caption, told = (pairs, (pairs, _moves(scene))) if read else (_caption(scene), (_caption(scene),))
    return Sample(
        id=name,
        image=f"images/{name}.png",
        style="clips",
        label=caption,
        tags=(),
        family=pairs,
        group="clips",
        subgroup=scene["task"],
        hexcode="",
        split=scene["split"],
        captions=told,
        scene=scene,
    )
