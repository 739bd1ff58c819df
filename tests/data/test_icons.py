"""The drawing that is found is the drawing that was meant."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgemm.data import emoji
from edgemm.data.format import read_dataset
from edgemm.data.icons import (
    dominant_colour,
    hue_turned,
    match_by_name,
    name_codes,
    on_white,
    rasterise,
    run_together_names,
    svg_of,
)
from edgemm.data.labels import Label, asked_words, coloured_words, plain_words
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


RED_CAR = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="32" height="32">'
    '<path fill="#dc2828" d="M4 18l4-8h16l4 8v8H4z"/><circle cx="9" cy="26" r="3" fill="#222"/></svg>'
)


@pytest.mark.parametrize("colour", ["blue", "green", "yellow", "orange"])
def test_a_drawing_turned_to_another_hue_shows_it_and_keeps_its_outline(colour):
    red = rasterise(RED_CAR, 64)
    turned = hue_turned(red, colour)
    assert dominant_colour(red) == "red" and dominant_colour(turned) == colour
    assert np.array_equal(np.asarray(turned)[..., 3], np.asarray(red)[..., 3])
    tyre = tuple(np.asarray(on_white(turned))[52, 18])
    assert max(tyre) - min(tyre) <= 2  # black has no hue to turn


def test_what_has_no_one_hue_is_left_as_it_is():
    grey = rasterise(RED_CAR.replace("#dc2828", "#808080"), 64)
    assert hue_turned(grey, "blue") is None
    assert hue_turned(rasterise(RED_CAR, 64), "red") is None


def test_plain_words_are_what_people_ask_for():
    assert plain_words("automobile", ("car",)) == ["car", "automobile", "an automobile", "a picture of an automobile"]
    said = coloured_words("automobile", ("car",), "red")
    assert said == ["a red automobile", "a red car", "a picture of a red automobile"]
    assert coloured_words("red heart", (), "red") == []
    assert asked_words("car", "red", [0.0, 0.1, 0.3]) == ["draw a red car", "please draw a red car", "a car, red"]
    assert asked_words("red heart", "red", [0.0, 0.3]) == ["draw a red heart", "an icon of a red heart"]
    assert asked_words("owl", None, [0.99]) == ["I would like to see an owl"]


def test_unseen_words_are_none_that_training_uses():
    every = [(number + 0.5) / 12 for number in range(12)]
    asked = {words for place in every for words in asked_words("car", "red", [place, place])}
    assert len(asked) == 12 + 4
    assert not asked & {words.format("red", "car") for words in emoji.UNSEEN_WORDS}


def test_copies_in_other_colours_are_trained_on_and_say_so(tmp_path, monkeypatch):
    label = Label("1f697", "automobile", ("car",), "travel-places", "transport-ground", "automobile")
    monkeypatch.setattr(emoji, "fetch", lambda package, cache, offline: package)
    monkeypatch.setattr(emoji, "read_labels", lambda tarball: {label.hexcode: label})
    monkeypatch.setattr(emoji, "read_icons", lambda tarball, labels, names: {label.hexcode: RED_CAR})
    emoji.build_emoji(tmp_path, 64, ["fluent"], 0, tmp_path, hues=2, plain=True)
    first, *copies = read_dataset(tmp_path).samples
    assert (first.split, [copy.split for copy in copies]) == ("train", ["train", "train", "held-out-colour"])
    assert not {*first.captions} & {*copies[0].captions}  # "a car" stays the drawing's own
    assert copies[2].captions[-1] not in {*copies[0].captions, *copies[1].captions}
    for copy in copies[:2]:
        colour = copy.id.rpartition("-")[2]
        shown = Image.open(tmp_path / copy.image).convert("RGBA")
        assert dominant_colour(shown.crop((12, 24, 52, 44))) == colour
        assert f"a {colour} car" in copy.captions and copy.captions[-1] == f"{colour} automobile, fluent style"
