"""Pairs of pictures and the instruction that turns one into the other.

    style    "draw it in noto style"     the same emoji by another artist
    colour   "make the circle blue"      the same shape, or the same sign of the same artist, in another colour
    add      "add a red star"            the same canvas with one thing more

From an emoji dataset, or procedural from shapes, where evaluate/shapes_checker.py can judge an edited picture
exactly.  Both pictures are samples of the dataset like any others; `edits.jsonl` says what joins them (format.py).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from edgemm import progress
from edgemm.data.compose import Emoji, emoji_of, has_two_kinds, is_fit, two_kinds
from edgemm.data.format import Edit, Sample
from edgemm.data.labels import COLOURS as COLOUR_WORDS
from edgemm.data.labels import with_article
from edgemm.data.scenes import place
from edgemm.data.shapes import COLOURS, HELD_OUT_SHARE, draw_scene, make_scene, scene_sample
from edgemm.data.writer import DatasetWriter
from edgemm.errors import InputError

__all__ = ["build_edits"]

FEWEST = 4  # emoji of one style and split, for scenes
SIDE = 0.42  # of the canvas, of one of two emoji

Pair = tuple[Sample, Image.Image, str, Sample, Image.Image, str]  # source, instruction, target, kind


def build_edits(folder: Path, size: int, count: int, seed: int, source: Path | None, styles: Sequence[str]) -> int:
    """Write `count` edits into `folder`; the number of pictures."""
    writer, rng = DatasetWriter(folder, "edits", size), random.Random(seed)
    packages = []
    if source is None:
        pairs = (_shapes_pair(index, size, rng) for index in range(count))
    else:
        emoji, packages = emoji_of(source, styles)
        pairs = _emoji_pairs(emoji, size, count, rng)
    written: set[str] = set()
    for before, picture, instruction, after, changed, kind in progress.track(pairs, count, "editing", "pairs"):
        for sample, image in ((before, picture), (after, changed)):
            if sample.id not in written:
                writer.add(sample, image)
                written.add(sample.id)
        split = after.split if before.split == "train" else before.split
        writer.edits.append(Edit(before.id, instruction, after.id, kind, split))
    writer.finish([], packages)
    return len(writer.samples)


def _shapes_pair(index: int, size: int, rng: random.Random) -> Pair:
    withheld = rng.random() < HELD_OUT_SHARE
    if index % 2:
        after = make_scene("attribute binding", size, rng, withheld=withheld)
        before = _scene(after["objects"][:1], size)
        added = after["objects"][1]
        kind, instruction = "add", f"add {with_article(added['colour'] + ' ' + added['name'])}"
    else:
        before = make_scene(rng.choice(("colours", "attribute binding")), size, rng, withheld=withheld)
        changed = rng.choice(before["objects"])
        taken = {item["colour"] for item in before["objects"]}
        colour = rng.choice([name for name in COLOURS if name not in taken])
        objects = [{**item, "colour": colour} if item is changed else item for item in before["objects"]]
        after = _scene(objects, size)
        kind, instruction = "colour", f"make the {changed['name']} {colour}"
    shades = rng.randrange(2**32)  # what is not changed keeps its very pixels
    pictures = [draw_scene(scene, random.Random(shades)) for scene in (before, after)]
    samples = [scene_sample(2 * index + place, scene) for place, scene in enumerate((before, after))]
    return samples[0], pictures[0], instruction, samples[1], pictures[1], kind


def _scene(objects: Sequence[dict[str, Any]], size: int) -> dict[str, Any]:
    """A scene of one or two coloured shapes, as make_scene makes them."""
    wanted = [{"shape": item["name"], "colour": item["colour"], "count": 1} for item in objects]
    task = "colours" if len(objects) == 1 else "attribute binding"
    return {"task": task, "size": size, "objects": list(objects), "relation": None, "wanted": wanted}


def _emoji_pairs(emoji: Sequence[Emoji], size: int, count: int, rng: random.Random) -> Iterator[Pair]:
    by_name: defaultdict[tuple[str, str, str], list[Emoji]] = defaultdict(list)
    by_thing: defaultdict[tuple[str, str, str, str], list[Emoji]] = defaultdict(list)
    pools: defaultdict[tuple[str, str], list[Emoji]] = defaultdict(list)
    for one in emoji:
        sample = one.sample
        by_name[sample.split, sample.hexcode, sample.label].append(one)  # with its color, of what comes in several
        colour, _, thing = sample.label.partition(" ")
        if colour in COLOUR_WORDS and thing:
            way = "" if sample.hexcode else sample.subgroup  # of an icon: outlined, filled, ...
            by_thing[sample.split, sample.style, thing, way].append(one)
        if is_fit(sample):
            pools[sample.split, sample.style].append(one)
    known = {
        "style": [group for group in by_name.values() if len({one.sample.style for one in group}) > 1],
        "colour": [group for group in by_thing.values() if len({one.sample.label for one in group}) > 1],
        "add": [pool for pool in pools.values() if len(pool) >= FEWEST and has_two_kinds(pool)],
    }
    kinds = [kind for kind, groups in known.items() if groups]
    if not kinds:
        raise InputError(f"{len(emoji)} emoji make no pair: no label in two styles, no thing in two colours, no scene")
    for index in range(count):
        kind = kinds[index % len(kinds)]
        group = rng.choice(known[kind])
        if kind == "add":
            yield _added(index, group, size, rng)
            continue
        one = rng.choice(group)
        differs = "style" if kind == "style" else "label"
        other = rng.choice([o for o in group if getattr(o.sample, differs) != getattr(one.sample, differs)])
        word = other.sample.label.partition(" ")[0]
        instruction = f"draw it in {other.sample.style} style" if kind == "style" else f"make it {word}"
        yield one.sample, one.picture, instruction, other.sample, other.picture, kind


def _added(index: int, pool: Sequence[Emoji], size: int, rng: random.Random) -> Pair:
    things = two_kinds(pool, rng)
    boxes = place([round(SIDE * size)] * 2, size, None, rng)
    canvas, pictures, objects, samples = Image.new("RGB", (size, size), "white"), [], [], []
    for which, (thing, box) in enumerate(zip(things, boxes, strict=True)):
        small = thing.picture.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        canvas.paste(small, box[:2])
        pictures.append(canvas.copy())
        objects.append({"id": which, "name": thing.sample.label, "sample": thing.sample.id, "box": list(box)})
        caption = " and ".join(with_article(item["name"]) for item in objects)
        name = f"{thing.sample.style}/edit-{index:06d}-{('before', 'after')[which]}"
        scene = {"task": "two kinds", "size": size, "objects": list(objects), "relation": None}
        family = " + ".join(sorted(one.sample.family for one in things[: which + 1]))
        samples.append(
            replace(
                things[0].sample, id=name, image=f"images/{name}.png", label=caption, tags=(), family=family,
                group="scenes", subgroup="add", hexcode="", scene=scene,
                captions=(caption, f"{caption}, {thing.sample.style} style"),
            )
        )  # fmt: skip
    instruction = f"add {with_article(things[1].sample.label)}"
    return samples[0], pictures[0], instruction, samples[1], pictures[1], "add"
