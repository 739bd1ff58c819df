"""Nobody is asked to tell apart what looks the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
from PIL import Image

from edgemm.data.emoji import Drawing, distinct
from edgemm.data.labels import Label


def drawing(style: str, text: str, shade: int, family: str | None = None) -> Drawing:
    label = Label(text, text, (), "flags", "country-flag", family or text)
    return Drawing(style, label, Image.new("RGB", (8, 8), (shade, shade, shade)), None)


def kept(*drawings: Drawing) -> list[tuple[str, str]]:
    return [(one.style, one.label.text) for one in distinct(drawings)]


def test_one_family_keeps_its_first():
    person, man = drawing("noto", "person running", 9, "running"), drawing("noto", "man running", 9, "running")
    assert kept(person, man) == [("noto", "person running")]


def test_two_families_keep_the_shortest_label():
    assert kept(drawing("noto", "flag: svalbard", 9), drawing("noto", "flag: norway", 9)) == [("noto", "flag: norway")]


def test_two_styles_may_draw_the_same_thing():
    assert len(kept(drawing("fluent", "black square", 9), drawing("noto", "black square", 9))) == 2


def test_the_held_out_style_loses_what_a_training_style_draws_the_same():
    trained = drawing("noto", "comet", 100)
    assert kept(trained, drawing("noto-v1", "comet", 101)) == [("noto", "comet")]
    assert len(kept(trained, drawing("noto-v1", "comet", 110))) == 2


def test_shipped_subset_has_no_twins(emoji64):
    pixels = Counter()
    for sample in emoji64.samples:
        with Image.open(emoji64.image_path(sample)) as picture:
            pixels[np.asarray(picture).tobytes()] += 1
    assert max(pixels.values()) == 1
