"""Batches that need no memory of earlier ones, and pictures as they are on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgemm.errors import InputError
from edgemm.train.recipe import DrawRecipe
from edgemm.train.samples import batch_rows, load_pictures, more_samples, pick_samples
from tests.heard import hearing
from tests.train.conftest import EMOJI


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 7), (3, 8), (5, 1)])
def test_every_pass_over_the_data_takes_every_row_once(count, batch):
    steps = 3 * count  # a whole number of passes
    rows = np.concatenate([batch_rows(count, batch, seed=0, step=step) for step in range(steps)])
    assert len(rows) == steps * batch
    passes = rows.reshape(-1, count)
    assert (np.sort(passes, axis=1) == np.arange(count)).all()
    if count > 3:
        assert len({tuple(order) for order in passes.tolist()}) > 1  # each in an order of its own


def test_a_batch_is_a_function_of_seed_and_step():
    assert batch_rows(100, 8, 1, 5).tolist() == batch_rows(100, 8, 1, 5).tolist()
    assert batch_rows(100, 8, 1, 5).tolist() != batch_rows(100, 8, 2, 5).tolist()
    assert batch_rows(100, 8, 1, 5).tolist() != batch_rows(100, 8, 1, 6).tolist()


def test_groups_that_no_picture_is_in_are_told():
    with hearing() as heard:
        known = pick_samples(EMOJI, ["train"], ["food-drink"])[1]
        assert heard.lines == []
        assert pick_samples(EMOJI, ["train"], ["food-drink", "fodo"])[1] == known
    assert heard.lines[0].startswith(f"{EMOJI}: no picture is in groups ['fodo']; groups: ['activities'")


def test_pictures_are_the_files_pixels():
    dataset, samples = pick_samples(EMOJI, ["train"], [])
    pictures = load_pictures(EMOJI, samples[:3], 64)
    for picture, sample in zip(pictures, samples, strict=False):
        expected = np.asarray(Image.open(dataset.image_path(sample)).convert("RGB")).transpose(2, 0, 1)
        assert (picture.numpy() == expected).all()


def test_splits_and_groups_pick_and_nothing_left_names_the_groups():
    _, samples = pick_samples(EMOJI, ["train"], ["food-drink"])
    assert {sample.group for sample in samples} == {"food-drink"}
    assert {sample.split for sample in samples} == {"train"}
    with pytest.raises(InputError, match=r"groups: .*food-drink"):
        pick_samples(EMOJI, ["train"], ["food"])


def test_so_many_pictures_are_spread_over_the_whole_list():
    _, every = pick_samples(EMOJI, ["train"], [])
    _, some = pick_samples(EMOJI, ["train"], [], 5)
    assert len(some) == 5 and some[0] == every[0] and some[-1] == every[-1]
    assert pick_samples(EMOJI, ["train"], [], 10_000)[1] == every


def test_a_recipes_caption_holds_each_pictures_first_one():
    _, own = pick_samples(EMOJI, ["train"], [], 3)
    _, told = pick_samples(EMOJI, ["train"], [], 3, "{caption}, {noto} style")
    assert [sample.captions for sample in told] == [(f"{sample.captions[0]}, {{noto}} style",) for sample in own]
    assert [sample.image for sample in told] == [sample.image for sample in own]


def test_further_folders_are_found_from_anywhere_and_tell_most():
    recipe = DrawRecipe(data="elsewhere", output="o", more=(str(EMOJI), str(EMOJI)), more_captions=1)
    found = more_samples(recipe)
    own = pick_samples(EMOJI, ("train",), ())[1]
    assert [sample.captions for sample in found] == [sample.captions[-1:] for sample in own] * 2
    assert torch.equal(load_pictures(Path("elsewhere"), found[:2], 64), load_pictures(EMOJI, own[:2], 64))
    whole = more_samples(DrawRecipe(data="elsewhere", output="o", more=(str(EMOJI),)))
    assert whole[0].captions == own[0].captions
