"""Several prompts side by side: each reply is the one that its prompt gets alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import edgemm
from edgemm.errors import UsageError
from edgemm.runtimes.kv_cache import BLOCK, CachedTransformer
from tests.runtimes.tiny_bundle import LIMITS, build

PICTURE = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PROMPTS = ["hello", "What is this?", "a", "a much longer prompt than the others " * 3]
IMAGES = [[], [PICTURE], [], []]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 5}, {"logprobs": 2}])
def test_a_batch_says_what_each_prompt_alone_says(model, options):
    together = model.generate_texts(PROMPTS, IMAGES, max_new_tokens=20, **options)
    for prompt, images, result in zip(PROMPTS, IMAGES, together):
        alone = model.generate_text(prompt, images, max_new_tokens=20, **options)
        assert (result.token_ids, result.text, result.finish_reason, result.seed) == (
            alone.token_ids,
            alone.text,
            alone.finish_reason,
            alone.seed,
        )


def test_rows_end_at_different_times_and_for_their_own_reasons(model):
    whole = model.generate_text("hello", max_new_tokens=30).text
    stop = whole[4:6]
    results = model.generate_texts(["hello", "a", "hello"], max_new_tokens=30, stop=[stop])
    assert results[0].text == results[2].text == whole[: whole.index(stop)]
    assert results[1].token_ids == model.generate_text("a", max_new_tokens=30, stop=[stop]).token_ids
    assert len(results[1].token_ids) != len(results[0].token_ids)


def test_a_batch_grows_its_cache_over_a_block(model):
    long = "x" * (BLOCK - 30)
    results = model.generate_texts([long, "hello"], max_new_tokens=40)
    assert [result.token_ids for result in results] == [
        model.generate_text(prompt, max_new_tokens=40).token_ids for prompt in (long, "hello")
    ]


def test_a_full_row_ends_with_length_and_leaves_the_others_alone(tmp_path, weights, model):
    path = build(tmp_path / "short.bundle", weights, limits=dataclasses.replace(LIMITS, max_context=60))
    with edgemm.load(path, device="cpu", threads=1) as short:
        results = short.generate_texts(["hello there", "hi"], max_new_tokens=33)
    for prompt, result in zip(("hello there", "hi"), results):
        assert result.token_ids == model.generate_text(prompt, max_new_tokens=33).token_ids[: len(result.token_ids)]
    assert [len(result.token_ids) for result in results] == [60 - results[0].metrics.prompt_tokens + 1, 33]


def test_cancel_ends_every_row_and_keeps_what_it_has(model, monkeypatch):
    step, steps = CachedTransformer.step_rows, []

    def cancelling(*arguments, **named):
        steps.append(1)
        if len(steps) == 3:
            model.cancel()
        return step(*arguments, **named)

    whole = model.generate_text("hello", max_new_tokens=50).token_ids
    monkeypatch.setattr(CachedTransformer, "step_rows", cancelling)
    results = model.generate_texts(["hello", "hello"], max_new_tokens=50)
    assert [(result.finish_reason, result.token_ids) for result in results] == [("cancelled", whole[:3])] * 2
    timed = model.generate_texts(["hello", "a"], max_new_tokens=5, timeout_s=1e-9)
    assert [(result.finish_reason, result.token_ids) for result in timed] == [("cancelled", ())] * 2


@pytest.mark.parametrize(
    ("prompts", "images", "message"),
    [
        ([], None, "prompts is empty"),
        ("hello", None, "expected a list of prompts"),
        (["a", "b"], [[]], "images has 1 lists, expected one for each of 2"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(model, prompts, images, message):
    with pytest.raises(UsageError, match=message):
        model.generate_texts(prompts, images)
