"""What every test may rely on: Ctrl-C arrives, also where the tests were started in the background; a log is quiet."""

from __future__ import annotations

import gc
import signal
import sys

import pytest

from edgemm import progress as display
from tests.collected import Collected
from tests.shared import run_folder


def pytest_configure(config):
    config.pluginmanager.register(Collected(), Collected.NAME)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules and tests stay until the end: no search for cycles looks at them, now or later; later ones are rare."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)  # of 700, 10, 10: a tracer makes objects by the million, and keeps them


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_arrives():
    """A shell's background job ignores SIGINT, and so would every process that a test starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _a_log_is_quiet():
    """However busy the machine is, stderr holds what a command says for good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display, "SILENCE_S", 1e6)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_kept_outside_of_the_tests(tmp_path_factory):
    """Caches of this machine's own are the tests' own; a test's bundle is its own work, and not tried first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("EDGEMM_TRUST_BUNDLES", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _what_is_the_same_is_traced_once(tmp_path_factory):
    """Where tests export at all: traced.py brings torch, which others do without."""
    exporters = [sys.modules.get(f"edgemm.verify.{name}") for name in ("export_native", "export_foreign")]
    if not any(exporters):
        yield
        return
    from tests import traced

    traced.folder = run_folder(tmp_path_factory, "traced")
    with pytest.MonkeyPatch.context() as patch:
        for module in filter(None, exporters):
            patch.setattr(module, "trace", traced.traced)
        yield
