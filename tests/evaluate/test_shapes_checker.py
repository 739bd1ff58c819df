"""The judge accepts what is drawn right, and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from edgemm.data.shapes import COLOURS, SHAPES, TASKS, draw_scene, draw_shape, make_scene
from edgemm.evaluate.shapes_checker import check_scene, find_objects


def made(count: int, seed: int, size: int = 64):
    rng = random.Random(seed)
    for index in range(count):
        scene = make_scene(TASKS[index % len(TASKS)], size, rng, withheld=index % 9 == 0)
        yield scene, draw_scene(scene, rng)


def claims(scene) -> tuple:
    return tuple(sorted(map(str, scene["wanted"]))), str(scene["relation"])


@pytest.mark.parametrize(("size", "count"), [(64, 150), (128, 24)])
def test_right_pictures_pass(size, count):
    verdicts = [check_scene(picture, scene) for scene, picture in made(count, 1, size)]
    assert np.mean([verdict.passed for verdict in verdicts]) >= 0.99, [v.reason for v in verdicts if not v.passed]


def test_right_pictures_pass_in_half_the_size_too_and_others_do_not():
    scenes = [(scene, picture.resize((32, 32), Image.Resampling.BOX)) for scene, picture in made(120, 4)]
    verdicts = [check_scene(picture, scene) for scene, picture in scenes]
    assert np.mean([verdict.passed for verdict in verdicts]) >= 0.99, [v.reason for v in verdicts if not v.passed]
    wrong = [(scene, picture) for (scene, _), (other, picture) in zip(scenes, scenes[6:]) if is_another(scene, other)]
    assert len(wrong) > 70 and not any(check_scene(picture, scene).passed for scene, picture in wrong)


def test_found_objects_are_the_drawn_ones():
    for scene, picture in made(60, 2):
        found = check_scene(picture, scene).found
        assert sorted((one.shape, one.colour) for one in found) == sorted(
            (item["name"], item["colour"]) for item in scene["objects"]
        )


def test_pictures_of_another_scene_fail():
    pairs = list(made(150, 3))
    wrong = [(scene, picture) for (scene, _), (other, picture) in zip(pairs, pairs[6:]) if is_another(scene, other)]
    assert len(wrong) > 90
    assert not [check_scene(picture, scene).reason for scene, picture in wrong if check_scene(picture, scene).passed]


def is_another(scene, other) -> bool:
    """Whether the other scene surely does not show what this one claims: other shapes, counts or stated colours."""
    shapes = [sorted(item["name"] for item in one["objects"]) for one in (scene, other)]
    return shapes[0] != shapes[1]


def test_one_wrong_claim_is_enough():
    rng = random.Random(4)
    scene = make_scene("attribute binding", 64, rng)
    picture = draw_scene(scene, rng)
    first, second = scene["wanted"]
    swapped = [{**first, "colour": second["colour"]}, {**second, "colour": first["colour"]}]
    assert check_scene(picture, scene).passed
    assert not check_scene(picture, {**scene, "wanted": swapped}).passed
    more = [{**first, "count": 2}, second]
    assert "2 objects, expected 3" in check_scene(picture, {**scene, "wanted": more}).reason


def test_the_opposite_relation_fails():
    rng = random.Random(5)
    for _ in range(20):
        scene = make_scene("position", 64, rng)
        relation = scene["relation"]
        turned = {**relation, "subject": relation["object"], "object": relation["subject"]}
        picture = draw_scene(scene, rng)
        assert check_scene(picture, scene).passed
        assert "is not" in check_scene(picture, {**scene, "relation": turned}).reason


def test_an_empty_picture_and_noise_fail():
    scene = make_scene("single object", 64, random.Random(6))
    assert check_scene(Image.new("RGB", (64, 64), "white"), scene).reason == "0 objects, expected 1"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not check_scene(noise, scene).passed


def test_a_fifth_object_fails():
    scene = make_scene("single object", 64, random.Random(7))
    picture = draw_scene(scene, random.Random(7))
    left, top, right, _ = scene["objects"][0]["box"]
    x, y = (2, 2) if left > 12 or top > 12 else (54, 54)
    assert x == 2 or right < 52
    draw_shape(ImageDraw.Draw(picture), "square", (x, y, x + 8, y + 8), COLOURS["blue"])
    assert not check_scene(picture, scene).passed


def test_slight_noise_and_blur_are_forgiven():
    generator, passed = np.random.default_rng(8), []
    for scene, picture in made(120, 8):
        soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6)), np.float64)
        noisy = np.clip(soft + generator.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
        passed.append(check_scene(noisy, scene).passed)
    assert np.mean(passed) >= 0.95


def test_touching_objects_of_two_colours_are_two():
    canvas = Image.new("RGB", (64, 64), "white")
    draw_shape(ImageDraw.Draw(canvas), "square", (8, 20, 30, 42), COLOURS["red"])
    draw_shape(ImageDraw.Draw(canvas), "square", (30, 20, 52, 42), COLOURS["blue"])
    assert {(one.shape, one.colour) for one in find_objects(np.asarray(canvas))} == {
        ("square", "red"),
        ("square", "blue"),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [16, 24, 38])
def test_each_shape_is_told_at_each_size(shape, side):
    big = Image.new("RGB", (256, 256), "white")
    draw_shape(ImageDraw.Draw(big), shape, (40, 40, 40 + side * 4, 40 + side * 4), COLOURS["purple"])
    (found,) = find_objects(np.asarray(big.resize((64, 64), Image.Resampling.BOX)))
    assert (found.shape, found.colour) == (shape, "purple")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_shapes_of_nine_pixels_are_told_between_pixels_and_in_noise(shape, colour):
    generator = np.random.default_rng(0)
    for left, top in generator.integers(8, 120, (6, 2)):
        big = Image.new("RGB", (256, 256), "white")
        draw_shape(ImageDraw.Draw(big), shape, (left, top, left + 72, top + 72), COLOURS[colour])
        small = np.asarray(big.resize((32, 32), Image.Resampling.BOX)) + generator.normal(0, 5, (32, 32, 3))
        (found,) = find_objects(small.clip(0, 255))
        assert (found.shape, found.colour) == (shape, colour)
        assert np.abs(np.array(found.box) * 8 - [left, top, left + 72, top + 72]).max() <= 6  # of 8 a pixel


@pytest.mark.parametrize("seed", range(8))
def test_what_is_like_no_shape_has_no_name(seed):
    """Clouds: noise without its fine parts, of one colour, cut where half of it is left."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8))
    cloud = np.asarray(noise.filter(ImageFilter.GaussianBlur(2)), np.float64)
    cover = ((cloud - np.median(cloud)) / 8).clip(0, 1)[..., None]
    found = find_objects(255 - cover * (255 - np.array(COLOURS["blue"])))
    large = [
        one for one in found if min(one.box[2] - one.box[0], one.box[3] - one.box[1]) > 9
    ]  # few pixels are anything
    whole = [one for one in large if min(one.box) > 0 and max(one.box) < 32]  # as a cut cloud may be a triangle
    assert large and all(one.shape is None for one in whole)


def test_a_blob_has_no_name():
    canvas = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(canvas).rectangle((5, 30, 60, 33), fill=COLOURS["green"])
    ImageDraw.Draw(canvas).rectangle((10, 5, 13, 33), fill=COLOURS["green"])
    (found,) = find_objects(np.asarray(canvas))
    assert found.shape is None and found.colour == "green"
