"""Loading a bundle: what runs beside what, and what never runs before what."""

from __future__ import annotations

import gc
import shutil
import sys
import threading

import pytest

import edgemm
from edgemm.errors import BundleError, UsageError
from edgemm.runtimes.backend import ort_backend as onnxruntime_backend


@pytest.fixture
def opened(monkeypatch):
    """The components that ONNX Runtime was given, in their order."""
    names, really = [], onnxruntime_backend.open_engine

    def open_engine(files, *rest):
        names.append(files.component)
        return really(files, *rest)

    monkeypatch.setattr(onnxruntime_backend, "open_engine", open_engine)
    return names


def test_no_engine_opens_when_any_file_was_altered(bundle_path, tmp_path, opened):
    altered = shutil.copytree(bundle_path, tmp_path / "altered.bundle")
    (altered / "NOTICE").write_bytes((altered / "NOTICE").read_bytes().swapcase())
    with pytest.raises(BundleError, match="NOTICE: SHA-256"):
        edgemm.load(altered, device="cpu", threads=1)
    assert opened == []


def test_an_altered_file_is_told_before_a_device_that_is_not_there(bundle_path, tmp_path, opened):
    altered = shutil.copytree(bundle_path, tmp_path / "altered.bundle")
    (altered / "NOTICE").write_bytes((altered / "NOTICE").read_bytes().swapcase())
    with pytest.raises(BundleError, match="NOTICE: SHA-256"):
        edgemm.load(altered, device="abacus")


def test_the_transformer_loads_while_the_tokenizer_is_read_and_is_loaded_once(bundle_path, opened):
    with edgemm.load(bundle_path, device="cpu", threads=1) as model:
        engine = model._engines.get("transformer")
        model.prepare()
        assert model._engines.get("transformer") is engine
        assert sorted(opened) == sorted(model._engines.components)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_and_the_turns_of_threads_are_afterwards_as_they_were(bundle_path, tmp_path, enabled):
    was, turns, frozen = gc.isenabled(), sys.getswitchinterval(), gc.get_freeze_count()
    gc.unfreeze()  # the tests' own (conftest.py)
    try:
        (gc.enable if enabled else gc.disable)()
        edgemm.load(bundle_path, device="cpu", threads=1).close()
        assert gc.isenabled() == enabled
        with pytest.raises(BundleError):
            edgemm.load(tmp_path / "none.bundle")
        assert gc.isenabled() == enabled and sys.getswitchinterval() == turns and not gc.get_freeze_count()
    finally:
        (gc.enable if was else gc.disable)()
        if frozen:
            gc.freeze()


def test_a_model_that_was_closed_while_it_loads_keeps_no_engine(bundle_path, monkeypatch):
    begun, closed, really = threading.Event(), threading.Event(), onnxruntime_backend.open_engine

    def slow(*arguments):
        begun.set()
        assert closed.wait(600)
        return really(*arguments)

    monkeypatch.setattr(onnxruntime_backend, "open_engine", slow)
    model = edgemm.load(bundle_path, device="cpu", threads=1)
    assert begun.wait(600)
    model.close()
    closed.set()
    with pytest.raises(UsageError, match="the model is closed"):
        model._engines.get("transformer")
    assert not model._engines._loaded
