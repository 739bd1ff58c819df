"""Nothing that is tested on was trained on."""

from __future__ import annotations

from collections import defaultdict

from edgemm.data.writer import assign_splits, stable_fraction

STYLES = ("fluent", "noto", "noto-v1", "twemoji")
PICTURES = [(style, f"{number:04x}", f"family {number // 2}") for style in STYLES for number in range(2000)]


def test_held_out_families_appear_in_no_training_split():
    families = defaultdict(set)
    for (style, code), split in assign_splits(PICTURES).items():
        families[split].add(f"family {int(code, 16) // 2}")
        assert (split == "scorer") == (style == "twemoji")
    assert not families["held-out-family"] & (
        families["train"] | families["held-out-style"] | families["held-out-pair"]
    )
    assert families["held-out-style"] == families["train"]
    # Binomial with n = 1000: three standard deviations are 26 and 28.
    assert 54 <= len(families["held-out-family"]) <= 106
    assert 64 <= len(families["held-out-pair"]) <= 120


def test_shipped_subset_leaks_no_family(emoji64):
    families = {split: {sample.family for sample in emoji64.split(split)} for split in ("train", "held-out-family")}
    assert families["train"] and families["held-out-family"]
    assert not families["train"] & families["held-out-family"]
    assert {sample.family for sample in emoji64.split("held-out-style")} <= families["train"]


def test_shipped_subset_has_each_held_out_pair_in_another_style(emoji64):
    trained = {(sample.style, sample.label) for sample in emoji64.split("train")}
    pairs = emoji64.split("held-out-pair")
    assert pairs
    for sample in pairs:
        assert sample.style == "noto"
        assert ("fluent", sample.label) in trained


def test_held_out_style_is_never_trained_on(emoji64):
    assert {sample.style for sample in emoji64.split("held-out-style")} == {"noto-v1"}
    assert "noto-v1" not in {sample.style for sample in emoji64.split("train")}


def test_a_family_that_only_the_held_out_style_draws_is_held_out():
    splits = assign_splits([("noto-v1", "1", "old thing"), ("twemoji", "1", "old thing")])
    assert splits == {("noto-v1", "1"): "held-out-family", ("twemoji", "1"): "scorer"}


def test_a_pair_needs_every_withheld_label_in_the_other_style():
    family = next(name for name in map(str, range(1000)) if stable_fraction("pair", name) < 0.01 and
                  stable_fraction("family", name) > 0.5)  # fmt: skip
    whole = assign_splits([("fluent", "1", family), ("noto", "1", family)])
    assert whole["noto", "1"] == "held-out-pair" and whole["fluent", "1"] == "train"
    partly = assign_splits([("fluent", "1", family), ("noto", "1", family), ("noto", "2", family)])
    assert partly["noto", "1"] == partly["noto", "2"] == "train"


def test_adding_a_style_moves_no_picture():
    fewer = assign_splits([picture for picture in PICTURES if picture[0] != "twemoji"])
    assert fewer.items() <= assign_splits(PICTURES).items()


def test_the_hash_is_the_same_on_every_machine():
    assert round(stable_fraction("family", "cat"), 6) == 0.057707
