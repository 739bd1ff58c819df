"""A model that draws the real pictures scores like them; one that draws other pictures scores at chance."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.errors import InputError
from edgemm.evaluate.draw_suite import run_draw_suite
from edgemm.evaluate.subject import real_pictures
from tests.evaluate.paper_subject import PaperSubject


@pytest.fixture(scope="module")
def pictures(emoji64):
    """Prompt -> the real picture."""
    samples = emoji64.split("train", "held-out-pair")
    return dict(zip([sample.captions[-1] for sample in samples], real_pictures(emoji64, samples, 64)))


def test_a_copyist_scores_exactly_like_the_real_pictures(emoji64, cache, pictures):
    subject = PaperSubject(pictures.__getitem__, lambda *_: "", 64)
    result = run_draw_suite(subject, emoji64, 40, cache)
    assert set(result.parts) == {"train", "held-out-pair"}
    for part in result.parts.values():
        assert part.drawn_top1 == part.real_top1 and part.top1_ratio.value == part.top1_ratio.low == 1.0
        assert part.kid_lite0 < 0.05
    assert result.judge.chance == pytest.approx(1 / 85)
    assert all(record["drawn_rank"] == record["real_rank"] for record in result.records)


def test_drawings_of_something_else_score_at_chance(emoji64, cache, pictures):
    prompts = sorted(pictures)
    other = dict(zip(prompts, np.roll(np.stack([pictures[prompt] for prompt in prompts]), 40, axis=0)))
    result = run_draw_suite(PaperSubject(other.__getitem__, lambda *_: "", 64), emoji64, 60, cache)
    assert result.parts["train"].drawn_top1.value < 0.06 < 0.6 < result.parts["train"].real_top1.value


def test_noise_is_farther_from_real_pictures_than_they_are_from_one_another(emoji64, cache):
    random = np.random.default_rng(0)
    subject = PaperSubject(lambda prompt: random.integers(0, 256, (64, 64, 3), np.uint8), lambda *_: "", 64)
    part = run_draw_suite(subject, emoji64, 24, cache).parts["train"]
    assert part.drawn_top1.value < 0.2
    assert part.kid_lite0 > 5 * abs(part.kid_lite0_real_halves)


def test_a_smaller_limit_draws_a_part_of_the_same(emoji64, cache, pictures):
    asked: list[list[str]] = []
    for limit in (4, 8):
        subject = PaperSubject(pictures.__getitem__, lambda *_: "", 64)
        records = run_draw_suite(subject, emoji64, limit, cache).records
        asked.append([f"{row['split']} {row['prompt']} {row['seed']}" for row in records])
    assert len(asked[0]) == 8 and set(asked[0]) < set(asked[1])


def test_every_prompt_is_drawn_as_often_as_asked_from_other_noise(emoji64, cache, pictures):
    """The second drawing of each prompt is blank: half of what was right is, of as many prompts."""
    seen: list[str] = []

    def draw(prompt):
        seen.append(prompt)
        return pictures[prompt] if seen.count(prompt) == 1 else np.full((64, 64, 3), 255, np.uint8)

    result = run_draw_suite(PaperSubject(draw, lambda *_: "", 64), emoji64, 8, cache, tries=2)
    for split, part in result.parts.items():
        rows = [row for row in result.records if row["split"] == split]
        assert [row["seed"] for row in rows] == [*range(8), *range(100_000, 100_008)]
        assert len({row["prompt"] for row in rows}) == part.drawn_top1.count == part.real_top1.count == 8
        assert part.drawn_top1.value == pytest.approx(part.real_top1.value / 2, abs=1 / 16)
        assert part.top1_ratio.value == pytest.approx(0.5, abs=0.1) and part.kid_lite0 < 0.05


def test_only_the_groups_of_the_recipe_are_drawn(emoji64, cache, pictures):
    subject = PaperSubject(pictures.__getitem__, lambda *_: "", 64)
    result = run_draw_suite(subject, emoji64, 6, cache, groups=("food-drink",))
    assert {sample.group for drawn in result.drawings.values() for sample in drawn.samples} == {"food-drink"}
    with pytest.raises(InputError, match=r"is in groups flags .* groups: activities, animals-nature"):
        run_draw_suite(subject, emoji64, 6, cache, groups=("flags",))
