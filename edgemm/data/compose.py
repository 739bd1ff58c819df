"""Two to four emoji on a white canvas, with captions, counts and relations that are exact.

    relation    "a duck left of a red heart"
    counting    "three ducks"                    two to four of a kind
    two kinds   "two ducks and a red heart"      three or four objects

One style a scene, and emoji of one split only, so a scene's split is its emoji's.  Where each one stands is in
`Sample.scene`.  The emoji come from an emoji dataset or from the packages; neither is drawn anew here.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgemm import progress
from edgemm.data.emoji import draw_emoji, packages_of
from edgemm.data.format import Sample, read_dataset
from edgemm.data.icon_sets import ICON_SETS
from edgemm.data.labels import NUMBERS, is_countable, names_gender, plural, with_article
from edgemm.data.questions import surely_differ
from edgemm.data.scenes import RELATIONS, Box, count_questions, existence_questions, place, relation_questions
from edgemm.data.sources import PACKAGES, Package
from edgemm.data.writer import DatasetWriter
from edgemm.errors import InputError

__all__ = ["Emoji", "build_compose", "emoji_of", "has_two_kinds", "is_fit", "two_kinds"]

GROUPS = ("icons", "animals-nature", "food-drink", "travel-places", "activities", "objects")
SUBGROUPS = ("heart",)  # of the other groups
UNFIT = ("time", "event", "sky-weather")  # clocks differ by a hand; a fog has no edge
LONGEST_LABEL = 3  # words
FEWEST = 4  # emoji of one style and split; fewer make the same scenes over and over
TASKS = ("relation", "relation", "counting", "two kinds")
HOW_MANY = {  # of the first and of the second kind
    "relation": ((1, 1),),
    "counting": ((2, 0), (3, 0), (3, 0), (4, 0), (4, 0), (4, 0)),
    "two kinds": ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3)),
}
SIDES = {1: (0.5, 0.7), 2: (0.36, 0.44), 3: (0.3, 0.38), 4: (0.3, 0.36)}  # of the canvas, by number of objects


@dataclass(frozen=True)
class Emoji:
    """One emoji that may stand in a scene."""

    sample: Sample
    picture: Image.Image  # RGB on white


def build_compose(
    folder: Path,
    size: int,
    styles: Sequence[str],
    count: int,
    seed: int,
    cache: Path,
    *,
    source: Path | None = None,
    offline: bool = False,
) -> int:
    """Write `count` scenes into `folder`, shared among styles and splits by how many emoji each has."""
    emoji, packages = emoji_of(source, styles) if source else _from_packages(size, styles, cache, offline)
    pools: defaultdict[tuple[str, str], list[Emoji]] = defaultdict(list)
    for one in emoji:
        if is_fit(one.sample):
            pools[one.sample.style, one.sample.split].append(one)
    names = sorted(name for name, pool in pools.items() if len(pool) >= FEWEST and has_two_kinds(pool))
    if not names:
        raise InputError(
            f"no style and split has {FEWEST} emoji fit for scenes, two of them of kinds that differ; give a larger "
            "--source"
        )
    writer, rng = DatasetWriter(folder, "compose", size), random.Random(seed)
    turns = rng.choices(names, weights=[len(pools[name]) for name in names], k=count)
    for index, name in progress.track(enumerate(turns), count, "composing", "scenes"):
        writer.add(*_compose(index, pools[name], size, rng))
    by_name = {one.sample.label: one.sample for one in emoji}
    questions = [*count_questions(writer.samples, rng), *relation_questions(writer.samples)]
    questions += existence_questions(writer.samples, lambda a, b: surely_differ(by_name[a], by_name[b]), rng)
    writer.finish(questions, packages)
    return count


def _compose(index: int, pool: Sequence[Emoji], size: int, rng: random.Random) -> tuple[Sample, Image.Image]:
    task = rng.choice(TASKS)
    one, other = two_kinds(pool, rng)
    numbers = rng.choice(HOW_MANY[task])
    things = [one] * numbers[0] + [other] * numbers[1]
    relation = rng.choice(RELATIONS) if task == "relation" else None
    low, high = SIDES[len(things)]
    sides = [rng.randint(round(low * size), round(high * size)) for _ in things]
    canvas, boxes = Image.new("RGB", (size, size), "white"), []
    for thing, (left, top, right, bottom) in zip(things, place(sides, size, relation, rng), strict=True):
        small = thing.picture.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        canvas.paste(small, (left, top))
        boxes.append(_ink_box(small, left, top))
    scene = _scene(task, things, boxes, relation, size)
    caption = _caption(task, one.sample.label, other.sample.label, numbers, relation)
    return _sample(index, caption, [one, other] if other in things else [one], scene), canvas


def has_two_kinds(pool: Sequence[Emoji]) -> bool:
    """Whether any two of them may stand in one scene."""
    return any(surely_differ(one.sample, other.sample) for one, other in combinations(pool, 2))


def two_kinds(pool: Sequence[Emoji], rng: random.Random) -> tuple[Emoji, Emoji]:
    """Two that nobody takes for one another; of a pool that `has_two_kinds`."""
    while True:
        one, other = rng.sample(pool, 2)
        if surely_differ(one.sample, other.sample):
            return one, other


def _scene(task: str, things: Sequence[Emoji], boxes: Sequence[Box], relation: str | None, size: int) -> dict[str, Any]:
    objects = [
        {"id": index, "name": thing.sample.label, "sample": thing.sample.id, "box": list(box)}
        for index, (thing, box) in enumerate(zip(things, boxes, strict=True))
    ]
    held = {"subject": 0, "relation": relation, "object": 1} if relation else None
    return {"task": task, "size": size, "objects": objects, "relation": held}


def _caption(task: str, one: str, other: str, numbers: tuple[int, int], relation: str | None) -> str:
    if task == "relation":
        return f"{with_article(one)} {relation} {with_article(other)}"
    said = [
        with_article(name) if number == 1 else f"{NUMBERS[number]} {plural(name)}"
        for name, number in zip((one, other), numbers, strict=True)
        if number
    ]
    return " and ".join(said)


def _sample(index: int, caption: str, kinds: Sequence[Emoji], scene: dict[str, Any]) -> Sample:
    first = kinds[0].sample
    name = f"{first.style}/scene-{index:06d}"
    return Sample(
        id=name,
        image=f"images/{name}.png",
        style=first.style,
        label=caption,
        tags=(),
        family=" + ".join(sorted(kind.sample.family for kind in kinds)),
        group="scenes",
        subgroup=scene["task"],
        hexcode="",
        split=first.split,
        captions=(caption, f"{caption}, {first.style} style"),
        scene=scene,
    )


def _ink_box(picture: Image.Image, left: int, top: int) -> Box:
    """What of the pasted square is not white; the whole square where nothing is."""
    ink = np.asarray(picture).min(axis=-1) < 250
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not len(rows):
        return (left, top, left + picture.width, top + picture.height)
    return (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)


def is_fit(sample: Sample) -> bool:
    topic = (sample.group in GROUPS or sample.subgroup in SUBGROUPS) and sample.subgroup not in UNFIT
    words = sample.label.split()
    return topic and len(words) <= LONGEST_LABEL and is_countable(sample.label) and not names_gender(sample.label)


def emoji_of(source: Path, styles: Sequence[str]) -> tuple[list[Emoji], list[Package]]:
    """Pictures on white of the dataset `source`: emoji in these styles, or icons of every set."""
    dataset = read_dataset(source)
    if dataset.kind not in ("emoji", "icons"):
        raise InputError(
            f"{source} is a dataset of kind {dataset.kind}; --source wants one made by: edgemm data emoji, or icons"
        )
    emoji = []
    for sample in dataset.samples:
        scene = sample.scene or {"ground": "white", "colour": None}
        if scene["ground"] == "white" and (sample.style in styles or dataset.kind == "icons"):
            if scene["colour"]:  # "two red bicycles": in a scene the colour is a part of the name
                sample = replace(sample, label=f"{scene['colour']} {sample.label}")
            with Image.open(dataset.image_path(sample)) as picture:
                emoji.append(Emoji(sample, picture.convert("RGB")))
    named = {item.package for item in dataset.sources}
    known = [*PACKAGES.values(), *(one.package for one in ICON_SETS.values())]
    return emoji, [package for package in known if package.name in named]


def _from_packages(size: int, styles: Sequence[str], cache: Path, offline: bool) -> tuple[list[Emoji], list[Package]]:
    drawn = draw_emoji(size, styles, cache, offline=offline)
    return [Emoji(sample, drawing.picture) for sample, drawing in drawn], packages_of(styles)
