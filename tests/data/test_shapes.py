"""Procedural scenes: what is drawn, said and withheld."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from PIL import Image

from edgemm.data.format import read_dataset
from edgemm.data.scenes import OPPOSITE, RELATIONS, holds, place, place_in_cells
from edgemm.data.shapes import COLOURS, SHAPES, TASKS, WITHHELD, build_shapes, make_scene
from edgemm.data.writer import new_folder
from edgemm.evaluate.shapes_checker import check_scene


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    goal = tmp_path_factory.mktemp("shapes") / "set"
    with new_folder(goal) as folder:
        build_shapes(folder, 64, 360, seed=1)
    return read_dataset(goal)


def test_the_six_tasks_are_equally_many(scenes):
    assert Counter(sample.scene["task"] for sample in scenes.samples) == dict.fromkeys(TASKS, 60)


def test_training_scenes_show_no_withheld_pair(scenes):
    shown = defaultdict(set)
    for sample in scenes.samples:
        pairs = {(item["colour"], item["name"]) for item in sample.scene["objects"]}
        assert bool(pairs & WITHHELD) == (sample.split == "held-out-pair")
        shown[sample.split] |= pairs
    assert shown["held-out-pair"] >= WITHHELD
    # One in ten is asked for; of 360, three standard deviations are 17.
    assert 19 <= len(scenes.split("held-out-pair")) <= 53
    assert {colour for colour, _ in shown["train"]} == set(COLOURS)
    assert {shape for _, shape in shown["train"]} == set(SHAPES)


def test_each_shape_is_withheld_once_and_no_colour_twice():
    assert sorted(shape for _, shape in WITHHELD) == sorted(SHAPES)
    assert len({colour for colour, _ in WITHHELD}) == len(WITHHELD)


def test_short_captions_claim_what_is_wanted_and_no_more(scenes):
    for sample in scenes.samples:
        for want in sample.scene["wanted"]:
            assert want["shape"] in sample.label
        says_colour = any(colour in sample.label for colour in COLOURS)
        assert says_colour == (sample.scene["task"] in ("colours", "attribute binding"))
        assert all(any(colour in caption for colour in COLOURS) for caption in sample.captions[1:])


def test_boxes_do_not_touch_and_stay_inside(scenes):
    for sample in scenes.samples:
        boxes = [item["box"] for item in sample.scene["objects"]]
        assert all(0 <= box[0] < box[2] <= 64 and 0 <= box[1] < box[3] <= 64 for box in boxes)
        for index, one in enumerate(boxes):
            for other in boxes[:index]:
                assert any(one[a + 2] + 3 <= other[a] or other[a + 2] + 3 <= one[a] for a in (0, 1))


def test_fixed_scenes_are_one_picture_a_caption_and_right(tmp_path):
    with new_folder(tmp_path / "set") as folder:
        build_shapes(folder, 64, 300, seed=1, fixed=True)
    data, pictures = read_dataset(tmp_path / "set"), {}
    for sample in data.samples:
        picture = Image.open(data.image_path(sample))
        assert check_scene(picture, sample.scene).passed, sample.captions
        assert pictures.setdefault(sample.captions[-1], picture.tobytes()) == picture.tobytes()
    assert len(pictures) < 300  # some captions came twice


@pytest.mark.parametrize("relation", RELATIONS)
def test_cells_keep_the_relation(relation):
    assert holds(relation, *place_in_cells([20, 24], 64, relation))


def test_cells_are_in_reading_order():
    assert place_in_cells([20], 64, None) == [(22, 22, 42, 42)]
    corners = [box[:2] for box in place_in_cells([20] * 4, 64, None)]
    assert corners == [(6, 6), (38, 6), (6, 38), (38, 38)]
    with pytest.raises(ValueError, match="5 boxes"):
        place_in_cells([10] * 5, 64, None)


@pytest.mark.parametrize("relation", RELATIONS)
def test_placed_boxes_keep_their_relation_and_not_its_opposite(relation):
    rng = random.Random(0)
    for _ in range(50):
        one, other = place([20, 24], 64, relation, rng)
        assert holds(relation, one, other)
        assert holds(OPPOSITE[relation], other, one)
        assert [word for word in RELATIONS if holds(word, one, other, slack=1.0)] == [relation]


def test_relations_read_as_on_paper():
    left, right, low = (0, 0, 10, 10), (30, 2, 40, 12), (2, 30, 12, 40)
    assert holds("left of", left, right) and holds("right of", right, left)
    assert holds("above", left, low) and holds("below", low, left)
    assert not holds("left of", right, left)
    assert not holds("left of", left, (12, 12, 22, 22))  # diagonal: neither


def test_scenes_scale_with_the_canvas():
    assert max(edge for item in make_scene("counting", 128, random.Random(2))["objects"] for edge in item["box"]) > 64


def test_counts_cannot_be_guessed(scenes):
    answers = Counter(q.answer for q in scenes.questions if q.kind == "count" and q.split == "train")
    assert set(answers) == {"2", "3", "4"} and len(set(answers.values())) == 1


def test_unseen_pictures_show_pairs_that_were_trained(tmp_path):
    from edgemm.data.format import read_dataset
    from edgemm.data.shapes import build_shapes

    build_shapes(tmp_path / "free", 64, 300, 0, ("single object",))
    free = read_dataset(tmp_path / "free")
    seen, unseen = ({s.family for s in free.split(split)} for split in ("train", "held-out-picture"))
    assert len(free.split("held-out-picture")) > 15 and unseen <= seen
    build_shapes(tmp_path / "fixed", 64, 400, 0, ("single object", "attribute binding"), fixed=True)
    fixed = read_dataset(tmp_path / "fixed")
    seen, unseen = ({s.family for s in fixed.split(split)} for split in ("train", "held-out-picture"))
    assert unseen and not unseen & seen  # no picture of the two together was trained, but of each
    assert {pair for both in unseen for pair in both.split(" + ")} <= {
        pair for both in seen for pair in both.split(" + ")
    }
