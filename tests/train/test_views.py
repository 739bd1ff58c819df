"""Changed views of training pictures, and the features that are kept of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgemm.data.format import read_dataset
from edgemm.train.tasks.align import changed_view, features_key, kept_features, may_be_mirrored
from tests.model.tiny import micro
from tests.train.conftest import EMOJI, recipe

MAY = torch.ones(4, dtype=torch.bool)


def test_a_changed_view_stays_a_picture_on_white():
    pixels = torch.ones(4, 3, 32, 32)
    assert torch.equal(changed_view(pixels, MAY, torch.Generator().manual_seed(0)), pixels)
    pixels[:, :, 12:20, 12:20] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    changed = changed_view(pixels, MAY, torch.Generator().manual_seed(0))
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed[:, :, 0] == 1).all()  # nothing but background at the edge
    assert ((1 - changed).sum(dim=(1, 2, 3)) > 20).all()  # and the square is still in it


def test_only_what_may_is_mirrored():
    pixels = torch.ones(64, 3, 32, 32)
    pixels[:, :, 14:18, 2:10] = 0.0  # a mark on the left
    may = torch.arange(64) < 32
    changed = changed_view(pixels, may, torch.Generator().manual_seed(0))
    darkness = 1 - changed.mean(1)
    right = darkness[:, :, 16:].sum(dim=(1, 2)) > darkness[:, :, :16].sum(dim=(1, 2))
    assert 8 < right[:32].sum() < 24
    assert not right[32:].any()


def test_arrows_and_clocks_are_not_mirrored():
    sample = read_dataset(EMOJI).samples[0]
    named = {label: dataclasses.replace(sample, label=label, group="objects") for label in ("left arrow", "heart")}
    assert [may_be_mirrored(named[label]) for label in ("left arrow", "heart")] == [False, True]
    assert not may_be_mirrored(dataclasses.replace(sample, label="Japan", group="flags"))


def test_features_are_looked_at_once_and_again_when_anything_differs(tmp_path):
    looks = []

    def look() -> torch.Tensor:
        looks.append(1)
        return torch.full((2, 1, 4, 3), float(len(looks))).bfloat16()

    path = tmp_path / "run" / "features.safetensors"
    assert kept_features(path, "a", look).eq(1).all()
    assert kept_features(path, "a", look).eq(1).all()
    assert kept_features(path, "b", look).eq(2).all()
    path.write_bytes(path.read_bytes()[:40])  # a file that was cut short
    assert kept_features(path, "b", look).eq(3).all()
    assert [file.name for file in path.parent.iterdir()] == ["features.safetensors"]


@pytest.mark.parametrize("change", [{"views": 3}, {"seed": 5}])
def test_the_key_of_features_holds_what_they_depend_on(change):
    samples, vision = read_dataset(EMOJI).samples[:3], micro().vision
    settings = recipe("micro-read", "unused", data=EMOJI)
    key = features_key(settings, samples, vision)
    assert key == features_key(dataclasses.replace(settings, learning_rate=1.0), samples, vision)
    assert key != features_key(dataclasses.replace(settings, **change), samples, vision)
    assert key != features_key(settings, samples[:2], vision)
    assert key != features_key(settings, samples, dataclasses.replace(vision, stride=16, feature_width=768))
