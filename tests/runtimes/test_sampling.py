"""Sampling against Hugging Face's processors, and by its own definition."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.errors import UsageError
from edgemm.runtimes.sampling import Sampling, filtered, next_token, penalised

LOGITS = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)


@pytest.mark.parametrize(
    "options", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.5, "min_p": 0.3}]
)
def test_filters_keep_what_hugging_face_keeps(options):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    kinds = {
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
    }
    scores = torch.tensor(LOGITS)[None]
    for name, value in options.items():
        scores = kinds[name](value)(None, scores)
    kept = filtered(LOGITS.astype(np.float64), Sampling(temperature=1.0, **options)) > -np.inf
    assert 0 < kept.sum() < len(LOGITS)
    assert np.array_equal(kept, np.isfinite(scores[0].numpy()))


def test_the_penalty_is_hugging_faces():
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    history = [3, 5, 5, 77]
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([history]), torch.tensor(LOGITS)[None])
    np.testing.assert_allclose(penalised(LOGITS, history, 1.7), theirs[0].numpy(), rtol=1e-6)


def test_a_penalty_that_would_overflow_is_refused():
    for penalty in (0.0, 1e-40, 0.009, 101.0):
        with pytest.raises(UsageError, match=r"repetition_penalty is .*, expected 0\.01 to 100"):
            Sampling(repetition_penalty=penalty)


def test_temperature_zero_takes_the_likeliest():
    generator = np.random.default_rng(0)
    assert next_token(LOGITS, [], Sampling(), generator) == LOGITS.argmax()
    likeliest = int(LOGITS.argmax())
    assert next_token(LOGITS, [likeliest], Sampling(repetition_penalty=50.0), generator) != likeliest


def test_tokens_come_as_often_as_their_probability_says():
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    generator = np.random.default_rng(0)
    drawn = [next_token(logits, [], Sampling(temperature=1.0), generator) for _ in range(20_000)]
    # Three standard deviations of the share of 20,000 draws are 0.0106 at most.
    assert np.abs(np.bincount(drawn, minlength=3) / 20_000 - [0.5, 0.3, 0.2]).max() < 0.0106


def test_a_lower_temperature_sharpens():
    logits = np.log(np.array([0.6, 0.4]))
    generator = np.random.default_rng(0)
    drawn = [next_token(logits, [], Sampling(temperature=0.25), generator) for _ in range(5_000)]
    expected = 0.6**4 / (0.6**4 + 0.4**4)
    assert abs(np.mean(np.array(drawn) == 0) - expected) < 0.016  # three standard deviations


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-30, 1e-310, 5e-324])
def test_next_to_zero_the_likeliest_is_taken(temperature):
    drawn = next_token(LOGITS, [], Sampling(temperature=temperature), np.random.default_rng(0))
    assert drawn == LOGITS.argmax()


def test_a_token_that_was_left_out_never_comes():
    generator = np.random.default_rng(0)
    best = set(np.argsort(LOGITS)[-3:].tolist())
    drawn = {next_token(LOGITS, [], Sampling(temperature=5.0, top_k=3), generator) for _ in range(500)}
    assert drawn == best


def test_options_are_checked_at_birth():
    with pytest.raises(UsageError, match=r"top_p is 1.5, expected above 0, at most 1"):
        Sampling(top_p=1.5)
