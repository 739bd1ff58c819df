"""The cache's buffers: blocks, growth, and that the graph writes them in place."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.bundle.prompt import as_messages, chat_prompt
from edgemm.runtimes.kv_cache import CachedTransformer, KVCache


def test_the_cache_grows_by_blocks_up_to_its_limit(model):
    cache = KVCache(model.engine("transformer"), max_slots=600)
    sizes = []
    for needed in (1, 256, 257, 512, 513, 600):
        cache.reserve(needed)
        sizes.append(cache.slots)
    assert sizes == [256, 256, 512, 512, 600, 600]


def test_growing_keeps_what_was_written(model):
    cache = KVCache(model.engine("transformer"), max_slots=600)
    cache.reserve(10)
    for layer, buffer in enumerate(cache.buffers.values()):
        buffer[:, :, :10] = layer + 1
    cache.used = 10
    assert cache.reserve(300)
    for layer, buffer in enumerate(cache.buffers.values()):
        assert (buffer[:, :, :10] == layer + 1).all()
        assert not buffer[:, :, 10:].any()


def test_past_and_present_are_the_same_memory_and_the_graph_writes_it(model):
    transformer = CachedTransformer(model.engine("transformer"), 600)
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
    engine = model.engine("transformer")
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
