"""The drawing that is found is the drawing that was meant."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.data.icons import match_by_name, name_codes, on_white, rasterise, run_together_names, svg_of
from edgemm.data.labels import Label
from edgemm.errors import InputError

ICONS = {
    "prefix": "tests",
    "width": 32,
    "height": 32,
    "icons": {
        "left": {"body": '<path fill="red" d="M0 0h8v32H0z"/>'},
        "tall": {"body": '<path d="M0 0h32v64H0z"/>', "height": 64},
        "keycap": {"body": "<path d=''/>"},
        "cricket-game": {"body": "<path d=''/>"},
    },
    "aliases": {
        "right": {"parent": "left", "hFlip": True},
        "left-again": {"parent": "right", "hFlip": True},
        "same": {"parent": "left"},
        "cricket": {"parent": "cricket-game"},
        "turned": {"parent": "left", "rotate": 1},
    },
}


def pixels(name: str) -> np.ndarray:
    return np.asarray(on_white(rasterise(svg_of(ICONS, name), 32)))


def test_aliases_are_followed_and_mirrored():
    assert np.array_equal(pixels("same"), pixels("left"))
    assert np.array_equal(pixels("right"), pixels("left")[:, ::-1])
    assert np.array_equal(pixels("left-again"), pixels("left"))
    assert not np.array_equal(pixels("right"), pixels("left"))


def test_a_tall_icon_is_centred_not_stretched():
    ink = (pixels("tall").min(axis=-1) < 128).any(axis=0)
    assert ink.sum() == 16 and ink[8] and not ink[7]


def test_an_unknown_alias_property_is_refused():
    with pytest.raises(InputError, match="rotate"):
        svg_of(ICONS, "turned")


def label(code: str, text: str) -> Label:
    return Label(code, text, (), "symbols", "keycap", text)


def test_names_match_labels_and_another_sets_icons():
    labels = {"1": label("1", "left"), "2": label("2", "keycap: #"), "3": label("3", "keycap: *"), "4": label("4", "x")}
    names = name_codes(labels, {"4": "tall", "9": "nobody"})
    assert names == {"left": "1", "x": "4", "tall": "4"}  # "keycap" would mean two emoji
    assert match_by_name(ICONS, names) == {"1": "left", "4": "tall"}


def test_aliases_do_not_match_by_name():
    assert match_by_name(ICONS, {"cricket": "1f997", "cricket-game": "1f3cf"}) == {"1f3cf": "cricket-game"}


def test_a_run_together_name_is_unicodes_before_it_is_a_labels():
    labels = {
        "1f601": label("1f601", "beaming face with smiling eyes"),
        "1f604": label("1f604", "grinning face with smiling eyes"),
        "1f1e6-1f1fa": label("1f1e6-1f1fa", "flag: Australia"),
    }
    names = run_together_names(labels)
    assert names["grinningfacewithsmilingeyes"] == "1f601"  # what Unicode calls it
    assert names["smilingfacewithopenmouthandsmilingeyes"] == "1f604"
    assert names["flagaustralia"] == "1f1e6-1f1fa"
