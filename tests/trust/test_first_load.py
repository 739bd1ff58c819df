"""A bundle's first use on a machine is another process's; whoever wrote it there has used it."""

from __future__ import annotations

import pytest

import edgemm
from edgemm.device import child
from edgemm.runtimes.first_load import TRUST
from edgemm.verify.export_native import keep_as_tried


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """What other processes were asked, and a machine that has used no bundle yet."""
    monkeypatch.delenv(TRUST, raising=False)
    monkeypatch.setenv("EDGEMM_CACHE", str(tmp_path / "cache"))
    begun, ask = [], child.ask
    monkeypatch.setattr(child, "ask", lambda *given: (begun.append(given[0]), ask(*given))[1])
    return begun


def test_only_the_first_use_is_tried_in_another_process(copy, processes):
    for _ in range(2):
        with edgemm.load(copy, device="cpu", threads=1) as model:
            model.generate_image("a heart", num_inference_steps=1)
        assert processes == ["edgemm.runtimes.first_load"]


def test_a_bundle_that_was_written_here_is_not_tried(copy, processes):
    keep_as_tried(copy)
    with edgemm.load(copy, device="cpu", threads=1) as model:
        model.generate_image("a heart", num_inference_steps=1)
    assert processes == []


def test_what_was_kept_of_a_bundle_says_nothing_of_another(copy, processes):
    keep_as_tried(copy)
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text() + " ")
    with edgemm.load(copy, device="cpu", threads=1) as model:
        model.generate_image("a heart", num_inference_steps=1)
    assert processes == ["edgemm.runtimes.first_load"]
