"""Weights that were packed once are mapped after that: the same numbers, and nothing that is not what was kept."""

from __future__ import annotations

import pytest

import edgemm
from edgemm.runtimes.backend import prepacked


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Of this test alone; models of any size are kept."""
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path))
    monkeypatch.setenv(prepacked.SWITCH, "1")
    monkeypatch.setattr(prepacked, "LEAST_BYTES", 1)
    return tmp_path / "prepacked"


def logprobs(bundle_path, **options):
    with edgemm.load(bundle_path, device="cpu", **options) as model:
        reply = model.generate_text("a red", max_new_tokens=3, ignore_eos=True, logprobs=2)
        return [(token.token_id, token.logprob) for token in reply.logprobs]


def is_believed(entry):
    return prepacked.load(entry, lambda content, folder: True) is True


def entries(cache):
    return sorted(entry for entry in cache.glob("*") if (entry / prepacked.RECORD).is_file())


def test_the_second_load_maps_what_the_first_one_packed_and_says_the_same(bundle_path, cache, monkeypatch):
    monkeypatch.delenv(prepacked.SWITCH)
    plain = logprobs(bundle_path)
    assert not cache.exists(), "nobody asked for it"
    monkeypatch.setenv(prepacked.SWITCH, "1")
    assert logprobs(bundle_path) == plain
    made = entries(cache)
    assert made and not list(cache.glob(".*"))
    monkeypatch.setattr(prepacked, "keep", None)  # called, it would fail
    assert logprobs(bundle_path) == plain
    assert entries(cache) == made


def test_what_was_altered_is_not_believed_and_made_anew(bundle_path, cache):
    plain = logprobs(bundle_path)
    for entry in entries(cache):
        weights = entry / prepacked.WEIGHTS
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 255
        weights.write_bytes(content)
        assert not is_believed(entry)
    assert logprobs(bundle_path) == plain
    assert all(is_believed(entry) for entry in entries(cache))


def test_a_folder_that_others_may_write_is_not_believed(bundle_path, cache):
    plain = logprobs(bundle_path)
    cache.chmod(0o777)
    assert entries(cache) and not any(is_believed(entry) for entry in entries(cache))
    assert logprobs(bundle_path) == plain


def test_nothing_is_kept_without_room_or_of_weights_that_nobody_verified(bundle_path, cache, monkeypatch):
    logprobs(bundle_path, verify=False)
    monkeypatch.setattr(prepacked, "FREE_TIMES", 1e15)
    logprobs(bundle_path)
    assert not entries(cache)


def test_the_longest_unused_entries_go(cache, monkeypatch):
    def make(folder):
        (folder / prepacked.GRAPH).write_bytes(b"graph")
        (folder / prepacked.WEIGHTS).write_bytes(bytes(1000))

    monkeypatch.setattr(prepacked, "LIMIT_BYTES", 2500)
    for name in ("a", "b"):
        prepacked.keep(cache / name, 1000, make)
    assert all(is_believed(cache / name) for name in "aba")
    prepacked.keep(cache / "c", 1000, make)
    assert [entry.name for entry in entries(cache)] == ["a", "c"]
