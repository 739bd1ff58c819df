"""Clips to be drawn and to be read: the checker sees what the caption says, and no frame gives an answer away."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemm.data.clips import FRAMES, WITHHELD_WAYS, build_clips
from edgemm.data.format import read_dataset
from edgemm.data.shapes import WITHHELD
from edgemm.evaluate.clips_suite import check_clip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return built(tmp_path_factory.mktemp("clips") / "fixed", 63, fixed=True)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return built(tmp_path_factory.mktemp("clips") / "read", 400)


def built(folder: Path, count: int, **how):
    folder.mkdir()
    build_clips(folder, 64, count, 0, **how)
    return read_dataset(folder)


def frames_of(dataset, sample) -> np.ndarray:
    with Image.open(dataset.image_path(sample)) as tall:
        return np.asarray(tall.convert("RGB")).reshape(FRAMES, dataset.size, dataset.size, 3)


def test_every_real_clip_passes_and_no_other_caption_fits_it(drawn):
    for sample in drawn.samples:
        verdict = check_clip(frames_of(drawn, sample), sample.scene)
        assert verdict.passed, (sample.captions, verdict.reason)
    others = [*drawn.samples[1:], drawn.samples[0]]
    pairs = [(one, other) for one, other in zip(drawn.samples, others, strict=True) if one.captions != other.captions]
    assert not any(check_clip(frames_of(drawn, one), other.scene).passed for one, other in pairs)


def test_a_caption_of_fixed_clips_has_one_clip(drawn):
    by_caption = defaultdict(set)
    for sample in drawn.samples:
        by_caption[sample.captions].add(frames_of(drawn, sample).tobytes())
    assert max(map(len, by_caption.values())) == 1


@pytest.mark.parametrize("spoil", ["backwards", "one frame too slow", "a frame is missing", "another colour"])
def test_a_clip_that_is_nearly_right_fails(drawn, spoil):
    sample = next(s for s in drawn.samples if s.captions[0].endswith("quickly"))
    frames = frames_of(drawn, sample).copy()
    if spoil == "backwards":
        frames = frames[::-1]
    elif spoil == "one frame too slow":
        frames = frames[[0, 0, 1, 1, 2, 2, 3, 3]]
    elif spoil == "a frame is missing":
        frames[3] = 255
    else:
        frames[5] = frames[5][..., ::-1]
        assert (frames[5] != frames[5][..., ::-1]).any()
    assert not check_clip(frames, sample.scene).passed


def test_withheld_pairs_are_in_no_clip_that_is_trained(drawn):
    for sample in drawn.split("train"):
        wanted = sample.scene["wanted"]
        assert (wanted["colour"], wanted["shape"]) not in WITHHELD and (
            wanted["shape"],
            wanted["way"],
        ) not in WITHHELD_WAYS
        assert (wanted["other"], wanted["shape"]) not in WITHHELD
    assert drawn.split("held-out-pair")


def test_a_twin_is_the_same_frames_backwards_with_the_other_answers(asked):
    by_sample = defaultdict(dict)
    for question in asked.questions:
        by_sample[question.sample][question.kind, question.question] = question.answer
    for one, twin in zip(asked.samples[::2], asked.samples[1::2], strict=True):
        assert np.array_equal(frames_of(asked, one), frames_of(asked, twin)[::-1]) and one.split == twin.split
        mine, theirs = by_sample[one.id], by_sample[twin.id]
        assert mine.keys() == theirs.keys()
        assert all((mine[key] == theirs[key]) == (key[0] == "speed") for key in mine)


def test_words_alone_and_the_set_of_frames_tell_no_direction_and_no_order(asked):
    """Every answer is as common as its opposite, for each question's words: by the twins, exactly."""
    for split in ("train", "held-out-pair"):
        counts = Counter((q.kind, q.question, q.answer) for q in asked.questions if q.split == split)
        for (kind, text, answer), count in counts.items():
            if kind == "direction":
                other = {"left": "right", "right": "left", "up": "down", "down": "up"}[answer]
                assert counts[kind, text, other] == count
            if kind == "order":
                assert (
                    counts[kind, text, answer]
                    == sum(c for (k, t, _), c in counts.items() if (k, t) == (kind, text)) / 2
                )
