"""Drawings of icons, checked exactly for what their prompts ask: colour, ground, and way of drawing.

    colour   of the drawn thing: the name nearest to the typical pixel of what stands out from the ground
    ground   the name nearest to the typical pixel of the border
    way      outlined, filled, thin, bold, two-tone: by a small classifier, whose score on real pictures stands beside

The real pictures are checked too: they say what the checker itself would miss.  What the thing is, the judge of
draw_suite.py says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from edgemm.data.format import Dataset, Sample
from edgemm.data.icon_pictures import colour_of
from edgemm.data.icons import dominant_colour, lab
from edgemm.evaluate.judge import GRID_WIDTHS, Eye, LabelScorer
from edgemm.evaluate.metrics import Share, share
from edgemm.evaluate.subject import Drawings, real_pictures, some

__all__ = ["INK", "ColoursPart", "IconsPart", "Seen", "check_colours", "check_icons", "see_icon"]

STANDS_OUT = 22.0  # Lab distance from the ground: half of the least contrast that icon_pictures.py draws
SPECK = 0.01  # of the canvas: less is noise
INKED = 0.5  # of what stands out, the farthest from the ground: edges mix both colours
INK = 235  # the darkest channel of a pixel that is not white
TAUGHT = 1500  # pictures that the classifier of ways learns from


@dataclass(frozen=True)
class Seen:
    """What the pixels show."""

    colour: str | None  # None: nothing stands out from the ground
    ground: str


@dataclass(frozen=True)
class IconsPart:
    """The scores of one split: of drawings, of the real pictures, and of drawings held against another's caption."""

    colour: Share
    ground: Share
    way: Share
    real_colour: Share
    real_ground: Share
    real_way: Share
    shuffled_colour: Share


def see_icon(rgb: np.ndarray) -> Seen:
    """The colour of the thing and of its ground, of a picture (h, w, 3) in 0..255."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    paper = np.median(border, axis=0)
    pixels = rgb.reshape(-1, 3)
    distance = np.linalg.norm(lab(pixels) - lab(paper[None]), axis=1)
    ground = colour_of(paper)
    out = distance > STANDS_OUT
    if out.mean() < SPECK:
        return Seen(None, ground)
    inked = pixels[out][distance[out] >= np.quantile(distance[out], 1 - INKED)]
    return Seen(colour_of(np.median(inked, axis=0)), ground)


def check_icons(dataset: Dataset, drawings: Drawings, eye: Eye) -> IconsPart | None:
    """None where none of the prompts asks for a colour."""
    asked = [row for row, sample in enumerate(drawings.samples) if (sample.scene or {}).get("colour")]
    if not asked:
        return None
    scenes, tries = [drawings.samples[row].scene or {} for row in asked], drawings.tries
    seen = [see_icon(drawings.drawn[row]) for row in asked]
    real = [see_icon(drawings.real[row]) for row in asked]
    ways = _ways(dataset, drawings.real.shape[1], eye)
    looked = {name: _named(ways, eye, pictures[asked]) for name, pictures in
              (("drawn", drawings.drawn), ("real", drawings.real))}  # fmt: skip
    return IconsPart(
        colour=_right([one.colour for one in seen], scenes, "colour", tries),
        ground=_right([one.ground for one in seen], scenes, "ground", tries),
        way=_right(looked["drawn"], scenes, "way", tries),
        real_colour=_right([one.colour for one in real], scenes, "colour", tries),
        real_ground=_right([one.ground for one in real], scenes, "ground", tries),
        real_way=_right(looked["real"], scenes, "way", tries),
        shuffled_colour=_right([one.colour for one in seen], [*scenes[1:], scenes[0]], "colour", tries),
    )


# Emoji in colours that they were never trained in: what most of the drawing shows, as copies are named (data/icons.py).


@dataclass(frozen=True)
class ColoursPart:
    """The scores of one split's prompts that ask for a colour; `both`: the judge names the thing, too."""

    colour: Share
    both: Share
    real_colour: Share
    real_both: Share
    shuffled_colour: Share


def check_colours(drawings: Drawings, named: np.ndarray, real_named: np.ndarray) -> ColoursPart | None:
    """None where none of the prompts asks for a colour. `named`, bool (b): what the judge names rightly."""
    asked = [row for row, sample in enumerate(drawings.samples) if (sample.scene or {}).get("colour")]
    if not asked:
        return None
    scenes, tries = [drawings.samples[row].scene or {} for row in asked], drawings.tries
    drawn, real = ([_most(pictures[row]) for row in asked] for pictures in (drawings.drawn, drawings.real))
    right, real_right = (
        np.array([one == scene["colour"] for one, scene in zip(seen, scenes)]) for seen in (drawn, real)
    )
    return ColoursPart(
        colour=share(right, tries),
        both=share(right & named[asked], tries),
        real_colour=share(real_right, tries),
        real_both=share(real_right & real_named[asked], tries),
        shuffled_colour=_right(drawn, [*scenes[1:], scenes[0]], "colour", tries),
    )


def _most(rgb: np.ndarray) -> str | None:
    """The colour of most of what is not white."""
    ink = (rgb.min(axis=-1, keepdims=True) < INK) * np.uint8(255)
    return dominant_colour(Image.fromarray(np.concatenate([rgb, ink], axis=-1)))


def _right(found: list[Any], scenes: list[dict[str, Any]], what: str, tries: int) -> Share:
    return share([one == scene[what] for one, scene in zip(found, scenes, strict=True)], tries)


def _ways(dataset: Dataset, size: int, eye: Eye) -> LabelScorer:
    """Learned from things that nobody is asked to draw, where the set holds any; from the others otherwise."""
    own = [sample for sample in dataset.samples if (sample.scene or {}).get("colour")]
    apart = [sample for sample in own if sample.split == "held-out-family"]
    taught: list[Sample] = some(apart or own, TAUGHT, "id")
    looks = eye.look(real_pictures(dataset, taught, size), "learning ways of drawing")
    return LabelScorer.fit(looks.grids, [sample.subgroup for sample in taught], GRID_WIDTHS)


def _named(ways: LabelScorer, eye: Eye, pictures: np.ndarray) -> list[str]:
    scores = ways.scores(eye.look(pictures, "looking at ways").grids, ways.labels)
    return [ways.labels[best] for best in scores.argmax(axis=1)]
