"""Several prompts side by side: each reply is the one that its prompt gets alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import edgemm
from edgemm.errors import EdgemmError, UsageError
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.kv_cache import BLOCK, PIECE, CachedTransformer
from edgemm.runtimes.text_call import TextChunk
from tests.runtimes import tiny_bundle
from tests.runtimes.tiny_bundle import LIMITS, build, graphs

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
        ("hello", None, "prompts is .hello., expected a list"),
        (["a", "b"], [[]], "images has 1 lists, expected one for each of 2"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(model, prompts, images, message):
    with pytest.raises(UsageError, match=message):
        model.generate_texts(prompts, images)


# Replies that join and leave


def alone(model, prompt, **options):
    result = model.generate_text(prompt, **options)
    return result.token_ids, result.text, result.finish_reason


def run(batch, arrivals, leaves=()):
    """Turns until all is said; `arrivals` are (turn, writing), `leaves` the same: results, in the order of arrival."""
    chunks, results, turn = {}, {}, 0
    waiting = list(arrivals)
    while waiting or len(batch):
        for at, writing in [pair for pair in waiting if pair[0] <= turn]:
            if not batch.full:
                batch.add(writing)
                waiting.remove((at, writing))
        for at, writing in leaves:
            if at == turn:
                batch.drop(writing)
        for writing, said in batch.turn():
            assert isinstance(said, TextChunk), said
            chunks.setdefault(writing, []).append(said.text)
            if said.result is not None:
                results[writing] = said.result
        turn += 1
    for writing, result in results.items():
        assert "".join(chunks[writing]) == result.text
    return [results.get(writing) for _, writing in arrivals]


def test_replies_that_join_and_leave_at_any_time_are_those_of_their_prompts_alone(model):
    """Lengths, pictures and temperatures mixed; several leave in the middle, and the cache grows and shrinks."""
    random = np.random.default_rng(7)
    for _ in range(4):
        batch, asked = model.text_batch(4), []
        for index in range(12):
            prompt = "".join(random.choice(list("abc ")) for _ in range(int(random.integers(1, 330))))
            images = [PICTURE] if index % 3 == 0 else []
            options = {"max_new_tokens": int(random.integers(1, 40)), "temperature": float(index % 2), "seed": index}
            asked.append(("x" + prompt, images, options))
        writings = [model.text_writing(prompt, images, **options) for prompt, images, options in asked]
        arrivals = [(int(random.integers(0, 60)), writing) for writing in writings]
        leaves = [(int(random.integers(0, 80)), writing) for writing in writings[::4]]
        results = run(batch, arrivals, leaves)
        assert batch._transformer is None  # nothing is kept for nobody
        for index, ((prompt, images, options), result) in enumerate(zip(asked, results)):
            if result is not None:
                told = (result.token_ids, result.text, result.finish_reason)
                assert told == alone(model, prompt, images=images, **options), index
            else:
                assert index % 4 == 0


def test_a_long_prompt_is_read_between_the_steps_of_others(model):
    batch = model.text_batch(2)
    first = model.text_writing("hello", max_new_tokens=20, ignore_eos=True)
    batch.add(first)
    batch.turn()
    batch.turn()
    long = model.text_writing("y" * (2 * PIECE + 20), max_new_tokens=2)
    batch.add(long)
    order, said = [], batch.turn()
    while all(writing is not long for writing, _ in said):
        order.append(len(said))
        said = batch.turn()
    assert order == [0, 1, 0, 1]  # a piece, a token, a piece, a token; then the last piece gives the long one's first
    while len(batch):
        batch.turn()


def test_numbers_that_go_wrong_end_one_reply_and_no_other(model):
    batch = model.text_batch(3)
    options = {"max_new_tokens": 12, "ignore_eos": True}
    writings = [model.text_writing(prompt, **options) for prompt in ("hello", "a", "bb")]
    for writing in writings:
        batch.add(writing)
    results, errors, turns = {}, {}, 0
    while len(batch):
        if turns == 8:
            row = batch._written.index(writings[1])
            for buffer in batch._transformer.cache.buffers.values():
                buffer[row] = np.nan
        for writing, said in batch.turn():
            if isinstance(said, EdgemmError):
                errors[writing] = said
            elif said.result is not None:
                results[writing] = said.result
        turns += 1
    assert list(errors) == [writings[1]] and "NaN or infinity" in str(errors[writings[1]])
    for writing, prompt in ((writings[0], "hello"), (writings[2], "bb")):
        assert results[writing].text == model.generate_text(prompt, **options).text


def test_a_memory_limit_keeps_replies_apart_rather_than_cutting_them(bundle_path, model):
    with edgemm.load(bundle_path, device="cpu", threads=1) as limited:
        slot = limited.memory.slot_bytes
        limited._engines.budget = CacheBudget(2 * BLOCK * slot)  # two rows of one block
        batch = limited.text_batch(8)
        writings = [limited.text_writing("hello", max_new_tokens=20) for _ in range(3)]
        assert batch.fits(writings[0])
        batch.add(writings[0])
        batch.turn()
        assert batch.fits(writings[1])
        batch.add(writings[1])
        assert not batch.fits(writings[2])
        said = []
        while len(batch):
            said += [said for _, said in batch.turn()]
        wanted = model.generate_text("hello", max_new_tokens=20).text
        assert [chunk.result.text for chunk in said if chunk.result is not None] == [wanted] * 2
        assert batch.fits(limited.text_writing("hello", max_new_tokens=BLOCK))


def test_a_graph_of_one_row_writes_as_many_replies_one_after_the_other(tmp_path, weights, model, monkeypatch):
    def of_one_row(some):
        made = graphs(some)
        for side in (made["transformer"].inputs, made["transformer"].outputs):
            side[:] = [(name, kind, tuple(1 if axis == "b" else axis for axis in shape)) for name, kind, shape in side]
        return made

    monkeypatch.setattr(tiny_bundle, "graphs", of_one_row)
    path = build(tmp_path / "one.bundle", weights)
    with edgemm.load(path, device="cpu", threads=1) as narrow:
        assert (
            narrow.text_batch(8).full is False and narrow.manifest.variant("transformer", "cpu").inputs[0].shape[0] == 1
        )
        found = narrow.generate_texts(PROMPTS, IMAGES, max_new_tokens=6)
    assert [result.token_ids for result in found] == [
        model.generate_text(prompt, own, max_new_tokens=6).token_ids for prompt, own in zip(PROMPTS, IMAGES)
    ]
