"""The judge names real pictures of artists it never saw, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.errors import InputError
from edgemm.evaluate.judge import GRID_WIDTHS, Eye, LabelScorer, open_judge
from edgemm.evaluate.subject import real_pictures


@pytest.fixture(scope="module")
def seen(emoji64, cache):
    """The judge, the training pictures of the two judged styles, and what the eye sees in them."""
    eye = Eye()
    judge = open_judge(emoji64, 64, eye, cache)
    samples = [sample for sample in emoji64.split("train") if sample.label in judge.candidates]
    return judge, samples, eye.look(real_pictures(emoji64, samples, 64))


def test_the_judge_is_trained_on_other_styles_than_it_judges(seen, emoji64):
    judge, samples, _ = seen
    assert judge.styles == ("noto-v1",)
    assert {sample.style for sample in samples} == {"fluent", "noto"}
    assert judge.pictures == sum(sample.style == "noto-v1" for sample in emoji64.samples)


def test_real_pictures_of_an_unseen_style_are_named(seen):
    judge, samples, looks = seen
    ranks = judge.scorer.ranks(looks.grids, [sample.label for sample in samples], judge.candidates)
    assert np.mean(ranks == 0) > 0.6  # 0.76 was measured; chance is 1 of 85
    assert len(judge.candidates) == 85


def test_shuffled_pictures_are_named_at_chance(seen):
    judge, samples, looks = seen
    labels = [sample.label for sample in samples]
    shares = []
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(labels).tolist()
        shares.append(np.mean(judge.scorer.ranks(looks.grids, shuffled, judge.candidates) == 0))
    assert np.mean(shares) < 0.03  # chance 0.012; a label has up to two pictures, so a shuffle may hit its own


def test_the_judge_is_trained_once_and_kept(emoji64, cache, seen, monkeypatch, tmp_path):
    def look(*_):
        raise AssertionError("the judge was trained again")

    monkeypatch.setattr(Eye, "look", look)
    again = open_judge(emoji64, 64, Eye(), cache)
    assert again.sha256 == seen[0].sha256
    assert np.array_equal(again.scorer.weights, seen[0].scorer.weights)
    with pytest.raises(AssertionError, match="trained again"):
        open_judge(emoji64, 64, Eye(), tmp_path)
    with pytest.raises(AssertionError, match="trained again"):
        open_judge(emoji64, 31, Eye(), cache)  # drawings of another size need another judge


def test_a_damaged_judge_is_named(tmp_path):
    (tmp_path / "judge.npz").write_bytes(b"PK no")
    with pytest.raises(InputError, match=r"judge\.npz: no scorer that was stored; delete it"):
        LabelScorer.load(tmp_path / "judge.npz")


def test_ridge_is_the_primal_solution():
    random = np.random.default_rng(0)
    features = random.standard_normal((40, 6)).astype(np.float32)
    labels = [f"label {index % 4}" for index in range(40)]
    scorer = LabelScorer.fit(features, labels, (2, 4))
    x = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3)
    x /= np.sqrt([2, 2, 4, 4, 4, 4])  # two kinds of features with the same say
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    targets = np.eye(4)[[index % 4 for index in range(40)]]
    primal = np.linalg.solve(x.T @ x + 0.2 * np.eye(6), x.T @ targets)
    assert np.allclose(scorer.weights, primal, atol=1e-4)  # float32 solves against float64


def test_a_tie_is_no_hit():
    scorer = LabelScorer(("a", "b"), np.zeros(2), np.ones(2), np.zeros((2, 2)))
    assert scorer.ranks(np.ones((1, 2)), ["a"], ["a", "b"]).tolist() == [1]


def test_the_eye_sees_three_depths_on_a_grid(emoji64):
    looks = Eye().look(real_pictures(emoji64, emoji64.samples[:2], 32))
    assert looks.grids.shape == (2, sum(GRID_WIDTHS)) and looks.pooled.shape == (2, 1280)
    import torch

    with torch.no_grad():
        pixels = torch.from_numpy(real_pictures(emoji64, emoji64.samples[:1], 128).transpose(0, 3, 1, 2).copy())
        expected = Eye().net(pixels.float() / 255)[:, :, -1280:].mean(dim=1).numpy()  # Lite0's own way through
        found = Eye().look(real_pictures(emoji64, emoji64.samples[:1], 128)).pooled
    assert np.allclose(found, expected, atol=1e-5)
