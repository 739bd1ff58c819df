"""The emoji set: every drawing of the chosen styles, labelled, without duplicates, split by family.

Where one style has the same pixels for two emoji, one stays: the first in Unicode's order when they are one family
(the person, not the man), the shortest label otherwise (Norway, not Svalbard & Jan Mayen).  Nobody could tell the
others apart.  The held-out style also loses the drawings it shares with a training style.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from edgemm import progress
from edgemm.data.format import Sample
from edgemm.data.icons import (
    dominant_colour,
    hue_turned,
    name_codes,
    on_white,
    rasterise,
    read_icons,
    run_together_names,
)
from edgemm.data.labels import COLOURS, Label, asked_words, coloured_words, plain_words, read_labels
from edgemm.data.questions import emoji_questions
from edgemm.data.sources import LABELS, PACKAGES, Package, fetch, read_json
from edgemm.data.writer import HELD_OUT_STYLE, SCORER_STYLE, DatasetWriter, assign_splits, stable_fraction

__all__ = ["Drawing", "build_emoji", "distinct", "draw_emoji", "packages_of"]

SPELLED_LIKE = {"noto-v1": "noto", "fluent-color": "fluent"}  # without chars.json, named as another style's icons are
FREE_COLOUR = ("travel-places", "objects", "activities")  # groups of things that come in any colour
HUES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
UNSEEN_WORDS = (
    "draw one {1} that is {0}",
    "the {1}, but {0}",
    "some {0}-coloured {1}, please",
    "could you make the {1} {0}",
)
SAME_DRAWING = 2.0  # mean difference in grey levels; three noto-v1 drawings are below it, the next is at 2.7


@dataclass(frozen=True)
class Drawing:
    """One emoji as one style draws it."""

    style: str
    label: Label
    picture: Image.Image  # RGB on white
    colour: str | None  # what most of it shows, where one colour does
    turned: tuple[tuple[str, Image.Image], ...] = ()  # the same in other colours, on white


def build_emoji(
    folder: Path,
    size: int,
    styles: Sequence[str],
    seed: int,
    cache: Path,
    *,
    hues: int = 0,
    plain: bool = False,
    offline: bool = False,
) -> int:
    """Write the set into `folder`; the number of pictures.

    hues: so many copies in other colours of every training drawing of a thing that comes in any (two: a red and a
    green car beside the blue one), and one more that is withheld (split held-out-colour).
    plain: captions in plain words, too ("a car", "a picture of a car").
    """
    writer = DatasetWriter(folder, "emoji", size)
    colours = {}
    for sample, drawing in draw_emoji(size, styles, cache, hues=hues, offline=offline):
        pictures = [(sample, drawing.picture, drawing.colour)]
        if sample.split == "train":
            copies = zip(_splits_of(drawing.turned), drawing.turned, strict=True)
            pictures += [(_in_colour(sample, colour, split), picture, colour) for split, (colour, picture) in copies]
        for one, picture, colour in pictures:
            writer.add(_in_plain_words(one, colour) if plain and one.split != "held-out-colour" else one, picture)
            if colour:
                colours[one.id] = colour
    writer.finish(emoji_questions(writer.samples, colours, seed), packages_of(styles))
    return len(writer.samples)


def packages_of(styles: Sequence[str]) -> list[Package]:
    """What a set in these styles is made from, labels first."""
    return [PACKAGES[name] for name in (LABELS, *styles)]


def draw_emoji(
    size: int, styles: Sequence[str], cache: Path, *, hues: int = 0, offline: bool = False
) -> list[tuple[Sample, Drawing]]:
    """Every distinct drawing of the styles, in the styles' and Unicode's order."""
    extra = [SPELLED_LIKE[style] for style in styles if SPELLED_LIKE.get(style, style) not in styles]
    tarballs = {name: fetch(PACKAGES[name], cache, offline=offline) for name in (LABELS, *styles, *extra)}
    labels = read_labels(tarballs[LABELS])

    def names_of(style: str) -> dict[str, str]:
        if style not in SPELLED_LIKE:
            return run_together_names(labels)
        return name_codes(labels, read_json(tarballs[SPELLED_LIKE[style]], "chars.json"))

    icons = [
        (style, labels[code], svg)
        for style in styles
        for code, svg in read_icons(tarballs[style], labels, names_of(style)).items()
    ]
    drawings = distinct(
        [_draw(*icon, size, hues + bool(hues)) for icon in progress.track(icons, len(icons), "drawing", "icons")]
    )
    splits = assign_splits((drawing.style, drawing.label.hexcode, drawing.label.family) for drawing in drawings)
    return [(_sample_of(drawing, splits[drawing.style, drawing.label.hexcode]), drawing) for drawing in drawings]


def distinct(drawings: Sequence[Drawing]) -> list[Drawing]:
    """The drawings without those that look like another one."""
    twins: defaultdict[tuple[str, bytes], list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        twins[drawing.style, hashlib.sha256(drawing.picture.tobytes()).digest()].append(drawing)
    kept = {id(_clearest(same)) for same in twins.values()}
    trained = {
        drawing.label.hexcode: drawing for drawing in drawings if drawing.style not in (HELD_OUT_STYLE, SCORER_STYLE)
    }
    return [drawing for drawing in drawings if id(drawing) in kept and not _is_copy(drawing, trained)]


def _clearest(same: Sequence[Drawing]) -> Drawing:
    families = {drawing.label.family for drawing in same}
    return same[0] if len(families) == 1 else min(same, key=lambda drawing: len(drawing.label.text))


def _is_copy(drawing: Drawing, trained: dict[str, Drawing]) -> bool:
    twin = trained.get(drawing.label.hexcode)
    if drawing.style != HELD_OUT_STYLE or twin is None:
        return False
    difference = np.asarray(drawing.picture, dtype=np.int16) - np.asarray(twin.picture, dtype=np.int16)
    return float(np.abs(difference).mean()) < SAME_DRAWING


def _draw(style: str, label: Label, svg: str, size: int, hues: int) -> Drawing:
    picture = rasterise(svg, size)
    turned = _turned(picture, label, f"{style}/{label.hexcode}", hues)
    return Drawing(style, label, on_white(picture), dominant_colour(picture), turned)


def _turned(picture: Image.Image, label: Label, name: str, hues: int) -> tuple[tuple[str, Image.Image], ...]:
    """At most `hues` copies in other colours, of a thing whose name tells none and that comes in any."""
    if label.group not in FREE_COLOUR or set(label.text.split()) & set(COLOURS):
        return ()
    order = sorted(HUES, key=lambda colour: stable_fraction("hue", name, colour))
    copies = ((colour, hue_turned(picture, colour)) for colour in order)
    return tuple(islice(((colour, on_white(copy)) for colour, copy in copies if copy), hues))


def _splits_of(turned: Sequence[object]) -> list[str]:
    """The last copy is withheld, where another stays in training."""
    return ["train"] * (len(turned) - 1) + ["held-out-colour" if len(turned) > 1 else "train"] if turned else []


def _in_colour(sample: Sample, colour: str, split: str) -> Sample:
    """A copy in another colour: all that is said of it tells the colour, so that "a car" stays the drawing's own.

    A withheld one is asked for in words that no training picture has.
    """
    said = f"{colour} {sample.label}"
    name = f"{sample.id}-{colour}"
    captions = [said, f"{said}, {sample.style} style"]
    if split != "train":
        captions.append(
            UNSEEN_WORDS[int(stable_fraction("words", name) * len(UNSEEN_WORDS))].format(colour, sample.label)
        )
    scene = {"colour": colour, "ground": "white"}
    return replace(sample, id=name, image=f"images/{name}.png", captions=(*captions,), split=split, scene=scene)


def _in_plain_words(sample: Sample, colour: str | None) -> Sample:
    """Its captions and what people would say for them; the one with the style stays the last."""
    synonyms, free = sample.tags[:2], sample.group in FREE_COLOUR
    places = [stable_fraction("asked", sample.id, str(number)) for number in range(3)]
    said = asked_words(sample.label, colour if free else None, places)
    said += coloured_words(sample.label, synonyms if free else (), colour)
    said += [] if sample.scene else plain_words(sample.label, synonyms)
    return replace(sample, captions=(*dict.fromkeys((*said, *sample.captions)),))


def _sample_of(drawing: Drawing, split: str) -> Sample:
    label, style = drawing.label, drawing.style
    name = f"{style}/{label.hexcode}"
    return Sample(
        id=name,
        image=f"images/{name}.png",
        style=style,
        label=label.text,
        tags=label.tags,
        family=label.family,
        group=label.group,
        subgroup=label.subgroup,
        hexcode=label.hexcode,
        split=split,
        captions=(label.text, f"{label.text}, {style} style"),
    )
