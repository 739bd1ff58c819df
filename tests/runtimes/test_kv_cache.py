"""The cache's buffers: blocks, growth, and that the graph writes them in place."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.prompt import Prompt
from edgemm.runtimes import kv_cache
from edgemm.runtimes.kv_cache import CachedTransformer, KVCache, PrefillCancelled, pieces_of


def test_the_cache_grows_by_blocks_up_to_its_limit(model):
    cache = KVCache(model._engines.get("transformer"), max_slots=600)
    sizes = []
    for needed in (1, 256, 257, 512, 513, 600):
        cache.reserve(needed)
        sizes.append(cache.slots)
    assert sizes == [256, 256, 512, 512, 600, 600]


def test_growing_keeps_what_was_written(model):
    cache = KVCache(model._engines.get("transformer"), max_slots=600)
    cache.reserve(10)
    for layer, buffer in enumerate(cache.buffers.values()):
        buffer[:, :, :10] = layer + 1
    cache.used = 10
    assert cache.reserve(300)
    for layer, buffer in enumerate(cache.buffers.values()):
        assert (buffer[:, :, :10] == layer + 1).all()
        assert not buffer[:, :, 10:].any()


def test_past_and_present_are_the_same_memory_and_the_graph_writes_it(model):
    transformer = CachedTransformer(model._engines.get("transformer"), 600)
    prompt = chat_prompt(as_messages("hello"), model.manifest.loops.text, model.tokenizer)
    transformer.prefill(prompt)
    cache = transformer.cache
    for name, buffer in cache.past.items():
        assert cache.present[name.replace("past", "present")] is buffer
        assert np.abs(buffer[:, :, : len(prompt)]).min(axis=-1).all()
        assert not buffer[:, :, len(prompt) :].any()
    before = {name: buffer.copy() for name, buffer in cache.past.items()}
    transformer.step(7)
    for name, buffer in cache.past.items():
        changed = np.flatnonzero((buffer != before[name]).any(axis=(0, 1, 3)))
        assert changed.tolist() == [len(prompt)]


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_step_gives_the_logits_of_a_longer_prefill(model, tokens):
    engine = model._engines.get("transformer")
    prompt = chat_prompt(as_messages("hello"), model.manifest.loops.text, model.tokenizer)
    longer = chat_prompt(as_messages("hello"), model.manifest.loops.text, model.tokenizer)
    stepped = CachedTransformer(engine, 600)
    stepped.prefill(prompt)
    for token in range(tokens):
        logits = stepped.step(token)
    ids = np.concatenate([prompt.input_ids, np.arange(tokens)])
    longer = type(prompt)(ids, np.full(len(ids), -1), np.arange(len(ids)), np.zeros(len(ids), dtype=np.float32))
    whole = CachedTransformer(engine, 600).prefill(longer)
    assert np.abs(logits - whole).max() < 1e-5


def long_prompt(model, tokens, picture_at=None):
    """So many tokens, with a picture of four that see one another somewhere in it."""
    ids = np.random.default_rng(5).integers(0, 200, tokens)
    index, limit = np.full(tokens, -1), np.arange(tokens)
    if picture_at is not None:
        count = model.manifest.loops.text.image_token_count
        index[picture_at : picture_at + count] = np.arange(count)
        limit[picture_at : picture_at + count] = picture_at + count - 1
    return Prompt(ids, index, limit, np.zeros(tokens, dtype=np.float32))


@pytest.mark.parametrize(("tokens", "picture_at"), [(257, None), (512, None), (600, 254), (520, 255), (300, 10)])
def test_a_prompt_in_pieces_is_the_same_prompt(model, monkeypatch, tokens, picture_at):
    engine, prompt = model._engines.get("transformer"), long_prompt(model, tokens, picture_at)
    width, count = engine.inputs["image_tokens"].fixed(2, "width"), model.manifest.loops.text.image_token_count
    seen = None if picture_at is None else np.random.default_rng(6).standard_normal((1, count, width), dtype=np.float32)
    pieces = pieces_of(prompt)
    assert len(pieces) == -(-tokens // 256) and [piece.start for piece in pieces[1:]] == [p.stop for p in pieces[:-1]]
    read = CachedTransformer(engine, 600)
    in_pieces = read.prefill(prompt, seen).copy()
    monkeypatch.setattr(kv_cache, "PIECE", 10_000)
    whole = CachedTransformer(engine, 600)
    at_once = whole.prefill(prompt, seen).copy()
    assert np.abs(in_pieces - at_once).max() < 1e-4 * max(1, np.abs(at_once).max())  # sums of other order
    for name, buffer in read.cache.buffers.items():
        assert np.abs(buffer - whole.cache.buffers[name]).max() < 1e-4
    assert read.lengths == whole.lengths == tokens


def test_who_cancels_is_heard_between_two_pieces_and_nothing_was_read(model):
    transformer, prompt = CachedTransformer(model._engines.get("transformer"), 600), long_prompt(model, 600)
    asked = []
    with pytest.raises(PrefillCancelled):
        transformer.prefill(prompt, cancelled=lambda: asked.append(1) or len(asked) == 2)
    assert len(asked) == 2 and (transformer.cache.used, transformer.lengths[0]) == (0, 0)
    found = transformer.prefill(prompt).copy()
    assert np.array_equal(found, CachedTransformer(model._engines.get("transformer"), 600).prefill(prompt))


def test_a_cancelled_prefill_ends_the_call_and_leaves_the_session_as_it_was(model, monkeypatch):
    """Cancelled by the first of three runs: the other two never happen."""
    wanted = model.session().generate_text("hello", max_new_tokens=4).token_ids
    session, runs = model.session(), []
    bind = model._engines.get("transformer").bind

    def cancelling(*arguments):
        runs.append(1)
        model.cancel()
        return bind(*arguments)

    monkeypatch.setattr(model._engines.get("transformer"), "bind", cancelling)
    result = session.generate_text("x" * 560, max_new_tokens=4)
    assert (result.finish_reason, result.token_ids, len(runs)) == ("cancelled", (), 1)
    [batched] = model.generate_texts(["x" * 560], max_new_tokens=4)
    assert (batched.finish_reason, len(runs)) == ("cancelled", 2)
    monkeypatch.undo()
    assert session.tokens == 0 and session.generate_text("hello", max_new_tokens=4).token_ids == wanted
