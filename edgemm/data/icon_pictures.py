"""Open icons as a dataset: each drawing once, in a colour and on a ground that its captions tell.

    one colour    "a blue outlined bicycle on yellow": colour and ground are chosen by a hash of the icon's name
    coloured      "a coloured bicycle on white": the set's own colours

Twins are merged: icons that look alike keep the first set's picture, and the others' names become its tags.  Splits:

    scorer             a set for an independent judge
    held-out-family    things withheld from every set
    held-out-style     a set that nothing is trained on, of things that others draw
    held-out-pair      a colour withheld from a thing that is trained on in other colours
    train              the rest

`Sample.scene` holds colour, ground and way of drawing, which evaluate/icons_suite.py checks in pixels.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgemm import progress
from edgemm.data.format import Question, Sample
from edgemm.data.icon_names import Named
from edgemm.data.icon_sets import HELD_OUT, ICON_SETS, check_terms, trademarks
from edgemm.data.icons import ANCHORS, lab, rasterise, svg_of
from edgemm.data.labels import COLOURS, coloured_words, plain_words, with_article
from edgemm.data.questions import asked_by_split, balanced_partners, choice_question, surely_differ
from edgemm.data.sources import fetch, read_json
from edgemm.data.writer import HELD_OUT_FAMILY_SHARE, HELD_OUT_PAIR_SHARE, DatasetWriter, stable_fraction
from edgemm.errors import UsageError

__all__ = ["build_icons", "icon_questions", "splits_of"]

GROUNDS = ("white",) * 5 + ("black", "yellow", "blue", "green", "pink", "grey")  # half of the pictures are on white
CONTRAST = 45  # least distance in Lab between a colour and its ground
SHADES = 14  # of 255: how far a shade lies from its colour's anchor
LOOK = 12  # pixels a side of what twins are told by
SAME_LOOK = 6.0  # mean difference in grey levels, of the channel that differs most, of the same drawing


@dataclass(frozen=True)
class Icon:
    """One drawing of one set."""

    set: str
    name: str  # the set's own
    named: Named
    svg: str
    synonyms: tuple[str, ...]  # other names that the set gives it


def build_icons(
    folder: Path,
    size: int,
    sets: Sequence[str] | None,
    seed: int,
    cache: Path,
    *,
    count: int | None = None,
    offline: bool = False,
) -> int:
    """Write icons of the sets (None: all) into `folder`, at most `count` of them by lot; how many there are.

    Raises UsageError for a set that is none, MissingError without npm, CheckFailedError for a package that is not what
    was pinned.
    """
    sets = [*dict.fromkeys(sets or ICON_SETS)]
    for unknown in set(sets) - set(ICON_SETS):
        raise UsageError(f"no icon set {unknown!r}, expected: {', '.join(ICON_SETS)}")
    tarballs = {name: fetch(ICON_SETS[name].package, cache, offline=offline) for name in sets}
    for name, tarball in tarballs.items():
        check_terms(name, tarball)
    brands = trademarks(tarballs.values())
    icons = [icon for name in ICON_SETS if name in tarballs for icon in read_set(name, tarballs[name], brands)]
    lots = [stable_fraction("some", icon.set, icon.name) for icon in icons]
    chosen = set(sorted(range(len(icons)), key=lots.__getitem__)[:count])
    icons = [icon for place, icon in enumerate(icons) if place in chosen]
    writer, twins = DatasetWriter(folder, "icons", size), Twins()
    for icon in progress.track(icons, len(icons), "drawing", "icons"):
        drawn = rasterise(icon.svg, size)
        if twins.is_new(drawn, f"{icon.set}/{icon.name}", icon.named.label):
            writer.add(*_picture(icon, drawn))
    merged = [replace(sample, tags=twins.tags(sample)) for sample in writer.samples]
    splits = splits_of(merged)
    writer.samples[:] = [
        replace(sample, split=split, captions=captions(sample)) for sample, split in zip(merged, splits, strict=True)
    ]
    writer.finish(icon_questions(writer.samples, seed), [ICON_SETS[name].package for name in sets])
    return len(writer.samples)


def read_set(name: str, tarball: Path, brands: set[str]) -> Iterator[Icon]:
    """The set's icons that show a thing, the best of each thing and way of drawing."""
    icons, spelling = read_json(tarball, "icons.json"), ICON_SETS[name].spelling
    best: dict[tuple[str, str], tuple[str, Named]] = {}
    for spelled in icons["icons"]:
        named = spelling.read(spelled)
        if named is None or spelled in brands or named.stem in brands:
            continue
        known = best.get((named.stem, named.way))
        if known is None or named.rank < known[1].rank:
            best[named.stem, named.way] = (spelled, named)
    aliases: defaultdict[str, list[str]] = defaultdict(list)
    for alias, entry in icons.get("aliases", {}).items():
        other = spelling.read(alias)
        if other is not None and set(entry) == {"parent"}:
            aliases[entry["parent"]].append(other.label)
    for spelled, named in best.values():
        synonyms = tuple(dict.fromkeys(label for label in aliases[spelled] if label != named.label))
        yield Icon(name, spelled, named, svg_of(icons, spelled), synonyms)


class Twins:
    """Which drawings were seen before, in whatever set and under whatever name."""

    def __init__(self) -> None:
        self._seen: defaultdict[bytes, list[tuple[np.ndarray, str]]] = defaultdict(list)
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def is_new(self, drawn: Image.Image, sample: str, label: str) -> bool:
        """False for what looks like an earlier drawing, which then is called `label`, too."""
        small = np.asarray(drawn.resize((LOOK, LOOK), Image.Resampling.BOX), dtype=np.int16)  # (y, x, rgba)
        near = self._seen[np.packbits(small[2:-2:2, 2:-2:2, 3] > 100).tobytes()]
        for look, first in near:
            if np.abs(look - small).mean(axis=(0, 1)).max() < SAME_LOOK:  # drawings of one colour differ in alpha alone
                self._names[first].append(label)
                return False
        near.append((small, sample))
        return True

    def tags(self, sample: Sample) -> tuple[str, ...]:
        """The sample's own synonyms and its twins' names, each once."""
        return tuple(name for name in dict.fromkeys((*sample.tags, *self._names[sample.id])) if name != sample.label)


def _picture(icon: Icon, drawn: Image.Image) -> tuple[Sample, Image.Image]:
    """The icon on its ground; split and captions come when all are known."""
    name, named = f"{icon.set}/{icon.name}", icon.named
    colour, ground, picture = None, "white", drawn
    if not ICON_SETS[icon.set].is_coloured:
        rng = random.Random(f"colour {name}")
        colour, ground, ink, paper = choose_colours(rng)
        picture = Image.new("RGBA", drawn.size, ink)
        picture.putalpha(drawn.getchannel("A"))
    else:
        paper = (255, 255, 255)
    canvas = Image.alpha_composite(Image.new("RGBA", drawn.size, (*paper, 255)), picture).convert("RGB")
    sample = Sample(
        id=name,
        image=f"images/{name}.png",
        style=icon.set,
        label=named.label,
        tags=icon.synonyms,
        family=named.family,
        group="icons",
        subgroup=named.way,
        hexcode="",
        split="train",
        captions=(named.label,),
        scene={"task": "icon", "colour": colour, "ground": ground, "way": named.way},
    )
    return sample, canvas


def choose_colours(rng: random.Random) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
    """Names and shades of a colour and of a ground that sets it off; each shade is nearest to its own name."""
    colour = rng.choice(COLOURS)
    ink = _shade(colour, rng)
    while True:
        ground = rng.choice(GROUNDS)
        paper = (255, 255, 255) if ground == "white" else _shade(ground, rng)
        inks, papers = lab(np.array([ink])), lab(np.array([paper]))
        if ground != colour and np.linalg.norm(inks - papers) > CONTRAST:
            return colour, ground, ink, paper


def _shade(colour: str, rng: random.Random) -> tuple[int, ...]:
    anchor = rng.choice(ANCHORS[colour])
    shade = tuple(min(255, max(0, value + rng.randint(-SHADES, SHADES))) for value in anchor)
    return shade if colour_of(shade) == colour else anchor


def colour_of(rgb: Sequence[float] | np.ndarray) -> str:
    """The name whose anchor is nearest in Lab."""
    names = [name for name, values in ANCHORS.items() for _ in values]
    anchors = lab(np.array([value for values in ANCHORS.values() for value in values]))
    return names[int(np.linalg.norm(anchors - lab(np.array([rgb])), axis=1).argmin())]


def captions(sample: Sample) -> tuple[str, ...]:
    """True sentences: by name and by synonym, words left out and turned; the last tells colour, way and ground."""
    scene = sample.scene or {}
    said = plain_words(sample.label, sample.tags[:2]) + coloured_words(sample.label, sample.tags[:2], scene["colour"])
    if not scene["colour"]:
        return (*said, with_article(f"coloured {sample.label}") + " on white")
    said.append(f"{sample.label}, {scene['colour']}, {scene['way']}")
    said.append(with_article(f"{scene['way']} {sample.label}") + f" in {scene['colour']}")
    whole = with_article(f"{scene['colour']} {scene['way']} {sample.label}") + f" on {scene['ground']}"
    return (*said, whole)


def splits_of(samples: Sequence[Sample]) -> list[str]:
    """The split of every sample, by stable hashes of names; see the head of this file."""
    trained: defaultdict[str, set[str | None]] = defaultdict(set)  # family -> colours that stay in training
    for sample in samples:
        if sample.style not in HELD_OUT and not _is_withheld_pair(sample):
            trained[sample.family].add((sample.scene or {})["colour"])
    return [_split_of(sample, trained) for sample in samples]


def _split_of(sample: Sample, trained: dict[str, set[str | None]]) -> str:
    kept = HELD_OUT.get(sample.style)
    if kept == "scorer":
        return kept
    if stable_fraction("family", sample.family) < HELD_OUT_FAMILY_SHARE or not trained.get(sample.family):
        return "held-out-family"
    return kept or ("held-out-pair" if _is_withheld_pair(sample) else "train")


def _is_withheld_pair(sample: Sample) -> bool:
    colour = (sample.scene or {})["colour"]
    return colour is not None and stable_fraction("pair", sample.family, colour) < HELD_OUT_PAIR_SHARE


def icon_questions(samples: Sequence[Sample], seed: int) -> list[Question]:
    """label, colour, ground, way ("How is it drawn?") and yesno ("Is this a bicycle?"), sorted by sample."""

    def ask(members: Sequence[Sample], rng: random.Random) -> Iterator[Question]:
        ways = sorted({member.subgroup for member in members if (member.scene or {})["colour"]})
        for sample in members:
            yield Question(sample.id, "label", "What is this?", sample.label, None, sample.split)
        for sample in members:
            yield from _seen(sample, sample.scene or {}, ways, rng)
        yield from _yesno(members, rng)

    return asked_by_split(samples, seed, ask)


def _seen(sample: Sample, scene: dict[str, Any], ways: Sequence[str], rng: random.Random) -> Iterable[Question]:
    if scene["colour"]:
        yield choice_question(sample, "colour", "What colour is this?", scene["colour"], COLOURS, rng)
        if len(ways) > 1:
            yield choice_question(sample, "way", "How is it drawn?", scene["way"], ways, rng)
        if scene["ground"] != "white" or rng.random() < 1 / len(set(GROUNDS)):  # or white would be half of the answers
            grounds = sorted(set(GROUNDS))
            yield choice_question(sample, "ground", "What colour is the background?", scene["ground"], grounds, rng)


def _yesno(members: Sequence[Sample], rng: random.Random) -> Iterable[Question]:
    members = list(members)
    rng.shuffle(members)
    for sample, other in balanced_partners(members, surely_differ):
        for label, answer in ((sample.label, "yes"), (other.label, "no")):
            yield Question(sample.id, "yesno", f"Is this {with_article(label)}?", answer, ("yes", "no"), sample.split)
