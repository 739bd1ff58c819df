"""Open icons: names become plain English, twins are merged, splits leak nothing, pixels are what captions say."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tarfile
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgemm.data import icon_pictures
from edgemm.data.compose import build_compose
from edgemm.data.format import read_dataset
from edgemm.data.icon_names import Spelling, family_of_icon
from edgemm.data.icon_pictures import build_icons, choose_colours, colour_of
from edgemm.data.icon_sets import HELD_OUT, ICON_SETS
from edgemm.data.labels import COLOURS
from edgemm.data.writer import new_folder
from edgemm.errors import CheckFailedError, UsageError
from edgemm.evaluate.icons_suite import see_icon

THINGS = [f"{one}{two}" for one in ("tree", "house", "fish", "boat", "hat", "bell", "leaf", "moon", "lamp", "shoe")
          for two in ("", "top", "ship", "work")]  # fmt: skip


def body(rng: random.Random, outlined: bool) -> str:
    """A drawing of three random discs or rings, no two alike."""
    circles = [(rng.randint(5, 19), rng.randint(5, 19), rng.randint(2, 5)) for _ in range(4)]
    paint = 'fill="none" stroke="currentColor" stroke-width="1.5"' if outlined else 'fill="currentColor"'
    return "".join(f'<circle cx="{x}" cy="{y}" r="{r}" {paint}/>' for x, y, r in circles)


def package_bytes(name: str, icons: dict[str, str], aliases: dict[str, str], licence: str, author: str) -> bytes:
    members = {
        "icons.json": {
            "prefix": name,
            "width": 24,
            "height": 24,
            "icons": {icon: {"body": drawn} for icon, drawn in icons.items()},
            "aliases": {alias: {"parent": parent} for alias, parent in aliases.items()},
        },
        "metadata.json": {"categories": {"Brand / Logo": ["megacorp"]}} if name == "ph" else {},
        "info.json": {"license": {"spdx": licence}, "author": {"name": author}},
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Four sets of 40 things each, spelled as the real ones spell; one of mdi's drawings is one of ph's."""
    folder, patched = tmp_path_factory.mktemp("cache"), {}
    drawings = {}
    for name in ("ph", "mdi", "hugeicons", "tabler"):
        rng, icons, aliases = random.Random(name), {}, {}
        for thing in THINGS:
            icons[thing] = body(rng, outlined=name != "mdi")
            if name == "ph":
                icons[f"{thing}-fill"] = body(rng, outlined=False)
        if name == "ph":
            icons |= {"megacorp": body(rng, True), "letter-q": body(rng, True), "tree-light": body(rng, True)}
            aliases["conifer"] = "tree"
        if name == "mdi":
            icons["dwelling"] = drawings["ph"]["house-fill"]
        drawings[name] = icons
        pinned = ICON_SETS[name].package
        content = package_bytes(name, icons, aliases, pinned.licence, pinned.author)
        digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
        patched[name] = replace(ICON_SETS[name], package=replace(pinned, sha512=digest))
        (folder / pinned.file_name).write_bytes(content)
    patch = pytest.MonkeyPatch()
    patch.setattr(icon_pictures, "ICON_SETS", patched)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def icons(cache, tmp_path_factory):
    goal = tmp_path_factory.mktemp("icons") / "set"
    with new_folder(goal) as folder:
        build_icons(folder, 64, None, 0, cache, offline=True)
    return read_dataset(goal)


@pytest.mark.parametrize(
    ("name", "label", "family"),
    [
        ("bicycle", "bicycle", "bicycle"),
        ("heart-off", "crossed-out heart", "heart"),
        ("door-open", "open door", "door"),
        ("cart-plus", "cart with a plus sign", "cart"),
        ("bell-x", "bell with a cross", "bell"),
        ("star-circle", "star in a circle", "star"),
        ("arrow-up-left", "arrow pointing up left", "arrow"),
        ("animal-cat", "cat", "cat"),
        ("receipt-02", "receipt", "receipt"),
        ("setting-one", "setting", "setting"),
        ("french-fries", "french fries", "french fry"),
        ("lens", "lens", "lens"),
        ("lock-open-alert", "open lock with an exclamation mark", "lock"),
    ],
)
def test_a_spelled_name_becomes_what_one_would_say(name, label, family):
    named = Spelling("outlined").read(name)
    assert (named.label, named.family) == (label, family)


@pytest.mark.parametrize(
    "name", ["letter-a", "brand-slack", "number-3", "grid-2x2", "x", "google-maps", "format-bold", "é"]
)
def test_what_is_no_thing_or_somebodys_mark_is_left_out(name):
    assert Spelling("outlined").read(name) is None


def test_the_way_of_drawing_and_the_better_twin_are_told_by_the_ending():
    fluent = ICON_SETS["fluent"].spelling
    large, small = fluent.read("home-24-filled"), fluent.read("home-16-filled")
    assert (large.label, large.way, large.stem) == ("home", "filled", "home") == (small.label, small.way, small.stem)
    assert large.rank < small.rank
    assert ICON_SETS["ph"].spelling.read("heart-duotone").way == "two-tone"
    assert ICON_SETS["ph"].spelling.read("heart-light") is None


def test_pixels_show_the_colour_and_the_ground_that_the_captions_tell(icons):
    seen = [(see_icon(np.asarray(Image.open(icons.image_path(one)))), one) for one in icons.samples]
    wrong = [
        one.captions[-1]
        for found, one in seen
        if (found.colour, found.ground) != (one.scene["colour"], one.scene["ground"])
    ]
    assert len(wrong) <= 0.02 * len(seen), wrong  # antialiasing mixes a thin ring's colour
    assert all(one.scene["ground"] in one.captions[-1] and one.scene["colour"] in one.captions[-1] for _, one in seen)


def test_every_shade_is_nearest_to_its_own_name():
    rng = random.Random(3)
    for _ in range(300):
        colour, ground, ink, paper = choose_colours(rng)
        assert (colour_of(ink), colour_of(paper)) == (colour, ground) and colour != ground


def test_twins_across_sets_are_one_picture_with_both_names(icons):
    by_id = {sample.id: sample for sample in icons.samples}
    assert "mdi/dwelling" not in by_id
    assert "dwelling" in by_id["ph/house-fill"].tags and "a picture of a house" in by_id["ph/house-fill"].captions
    assert "conifer" in by_id["ph/tree"].captions  # an alias is a synonym
    assert not {"ph/megacorp", "ph/letter-q", "ph/tree-light"} & set(by_id)


def test_no_family_colour_or_artist_leaks(icons):
    families, pairs, styles = defaultdict(set), defaultdict(set), defaultdict(set)
    for sample in icons.samples:
        families[sample.split].add(sample.family)
        pairs[sample.split].add((sample.family, sample.scene["colour"]))
        styles[sample.split].add(sample.style)
    assert {"train", "held-out-family", "held-out-style", "held-out-pair", "scorer"} == set(families)
    assert not families["train"] & families["held-out-family"]
    assert families["held-out-style"] <= families["train"] and families["held-out-pair"] <= families["train"]
    assert not pairs["train"] & pairs["held-out-pair"]
    assert styles["scorer"] == {"tabler"} and styles["held-out-style"] == {"hugeicons"}
    assert not styles["train"] & set(HELD_OUT)


def test_questions_ask_what_can_be_seen_and_no_answer_is_the_usual_one(icons):
    kinds = Counter(question.kind for question in icons.questions)
    assert set(kinds) == {"label", "colour", "ground", "way", "yesno"}
    scenes = {sample.id: sample.scene for sample in icons.samples}
    assert all(q.answer == scenes[q.sample][q.kind] for q in icons.questions if q.kind in ("colour", "ground", "way"))
    assert icons.baselines["yesno"]["train"]["accuracy"] == 0.5
    assert icons.baselines["colour"]["train"]["accuracy"] < 0.5


def test_each_author_is_named_with_the_licence(icons):
    notice = (icons.path / "NOTICE").read_text()
    assert "Phosphor Icons; MIT" in notice and "Paweł Kuna; MIT" in notice
    assert "Copyright (c) Phosphor Icons" in (icons.path / "LICENSES/MIT-ph.txt").read_text()


def test_the_same_icons_every_time_and_a_count_takes_a_part(cache, icons, tmp_path):
    for name, count in (("again", None), ("part", 60), ("one", 1)):
        with new_folder(tmp_path / name) as folder:
            build_icons(folder, 64, None, 0, cache, count=count, offline=True)
    again, part = read_dataset(tmp_path / "again"), read_dataset(tmp_path / "part")
    assert again.samples == icons.samples and again.questions == icons.questions
    assert 50 <= len(part.samples) <= 60 and len(read_dataset(tmp_path / "one").samples) == 1  # twins are one picture
    assert {one.id for one in part.samples} <= {one.id for one in icons.samples} | {"mdi/dwelling"}  # its twin is away


def test_icons_stand_in_scenes_with_their_colours(icons, tmp_path):
    with new_folder(tmp_path / "scenes") as folder:
        build_compose(folder, 64, ("fluent",), 20, 1, tmp_path, source=icons.path)
    made = read_dataset(tmp_path / "scenes")
    assert all(any(colour in one.label for colour in COLOURS) for one in made.samples)
    assert {source.package for source in made.sources} == {source.package for source in icons.sources}


def test_a_set_that_is_none_lists_those_that_are(tmp_path):
    with pytest.raises(UsageError, match="no icon set 'phosphor', expected: ph, "):
        build_icons(tmp_path, 64, ["phosphor"], 0, tmp_path)


def test_terms_that_differ_from_the_pin_are_refused(cache, tmp_path):
    pinned = icon_pictures.ICON_SETS["ph"].package
    content = package_bytes("ph", {"tree": body(random.Random(0), True)}, {}, "CC-BY-4.0", pinned.author)
    (tmp_path / pinned.file_name).write_bytes(content)
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    patched = replace(icon_pictures.ICON_SETS["ph"], package=replace(pinned, sha512=digest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(icon_pictures.ICON_SETS, "ph", patched)
        with pytest.raises(CheckFailedError, match=r"says CC-BY-4\.0 by Phosphor Icons, expected MIT"):
            build_icons(tmp_path, 64, ["ph"], 0, tmp_path, offline=True)


def test_families_part_no_thing_from_its_variants():
    same = ("heart", "hearts", "broken heart", "crossed-out heart", "heart with a plus sign", "heart in a circle")
    assert {family_of_icon(label) for label in same} == {"heart"}
