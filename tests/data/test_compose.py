"""A composed scene is what its caption says."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from edgemm.data.compose import build_compose, is_fit
from edgemm.data.format import read_dataset
from edgemm.data.labels import NUMBERS, plural, with_article
from edgemm.data.scenes import RELATIONS, holds
from edgemm.data.writer import new_folder
from edgemm.errors import InputError
from tests.data.test_edits import drawn

STYLES = ("fluent", "noto", "noto-v1")


@pytest.fixture(scope="module")
def scenes(emoji64, tmp_path_factory):
    goal = tmp_path_factory.mktemp("compose") / "set"
    with new_folder(goal) as folder:
        build_compose(folder, 64, STYLES, 200, 7, goal, source=emoji64.path)
    return read_dataset(goal)


def test_captions_state_the_objects(scenes):
    for sample in scenes.samples:
        names = Counter(item["name"] for item in sample.scene["objects"])
        for name, count in names.items():
            said = with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"
            assert said in sample.captions[0], sample.captions
        assert 2 <= sum(names.values()) <= 4
    assert {sample.scene["task"] for sample in scenes.samples} == {"relation", "counting", "two kinds"}


def test_relations_hold_between_the_boxes(scenes):
    seen = Counter()
    for sample in scenes.samples:
        relation = sample.scene["relation"]
        if relation:
            one, other = (tuple(sample.scene["objects"][relation[role]]["box"]) for role in ("subject", "object"))
            assert holds(relation["relation"], one, other, slack=1.0), sample
            assert f" {relation['relation']} " in sample.captions[0]
            seen[relation["relation"]] += 1
    assert set(seen) == set(RELATIONS)


def test_every_pixel_of_ink_lies_in_a_box_and_every_box_has_ink(scenes):
    for sample in scenes.samples[:60]:
        with Image.open(scenes.image_path(sample)) as picture:
            ink = np.asarray(picture).min(axis=-1) < 250
        for left, top, right, bottom in (item["box"] for item in sample.scene["objects"]):
            assert ink[top:bottom, left:right].any()
            ink[top:bottom, left:right] = False
        assert not ink.any(), sample.id


def test_a_scene_has_the_split_and_style_of_its_emoji(scenes, emoji64):
    of = {sample.id: sample for sample in emoji64.samples}
    assert {sample.split for sample in scenes.samples} >= {"train", "held-out-style", "held-out-family"}
    for sample in scenes.samples:
        for item in sample.scene["objects"]:
            assert of[item["sample"]].split == sample.split
            assert of[item["sample"]].style == sample.style
            assert of[item["sample"]].label == item["name"]


def test_answers_follow_from_the_scene(scenes):
    samples = {sample.id: sample for sample in scenes.samples}
    kinds = Counter()
    for question in scenes.questions:
        objects = samples[question.sample].scene["objects"]
        names = Counter(item["name"] for item in objects)
        kinds[question.kind] += 1
        if question.kind == "count":
            assert (
                str(next(n for name, n in names.items() if f"many {plural(name)} are" in question.question))
                == question.answer
            )
        elif question.kind == "existence":
            there = any(question.question == f"Is there {with_article(name)}?" for name in names)
            assert there == (question.answer == "yes")
        else:
            one, other = objects[0], objects[1]
            word = next(word for word in RELATIONS if f" {word} the " in question.question)
            assert holds(word, tuple(one["box"]), tuple(other["box"]), 1.0) == (question.answer == "yes")
    assert set(kinds) == {"count", "existence", "relation"}


def test_answers_are_balanced(scenes):
    answers = defaultdict(Counter)
    for question in scenes.questions:
        answers[question.kind, question.split][question.answer] += 1
    for (kind, _), count in answers.items():
        assert len(set(count.values())) == 1, (kind, count)


def test_same_seed_same_scenes(emoji64, tmp_path):
    made = []
    for name in ("a", "b"):
        with new_folder(tmp_path / name) as folder:
            build_compose(folder, 64, STYLES, 10, 3, tmp_path, source=emoji64.path)
        made.append([file.read_bytes() for file in sorted((tmp_path / name).rglob("*")) if file.is_file()])
    assert made[0] == made[1]


def test_scenes_are_not_a_source_of_emoji(scenes, tmp_path):
    with pytest.raises(InputError, match="of kind compose"):
        build_compose(tmp_path, 64, STYLES, 1, 0, tmp_path, source=scenes.path)


def test_too_few_emoji_are_refused(emoji64, tmp_path):
    with pytest.raises(InputError, match="no style and split has 4"):
        build_compose(tmp_path, 64, ("twemoji",), 1, 0, tmp_path, source=emoji64.path)


def test_emoji_of_one_kind_alone_make_no_scene(tmp_path):
    """They were tried for ever."""
    things = [(str(number), "fluent", str(number), "cat", None, "animal-mammal") for number in range(5)]
    source = drawn(tmp_path / "in", "emoji", *things)
    assert all(map(is_fit, read_dataset(source).samples))
    with pytest.raises(InputError, match="two of them of kinds that differ"):
        build_compose(tmp_path, 64, STYLES, 1, 0, tmp_path, source=source)
