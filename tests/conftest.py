"""What every test may rely on: Ctrl-C arrives, also where the tests were started in the background; a log is quiet."""

from __future__ import annotations

import signal

import pytest

from edgemm import progress as display
from tests.collected import Collected


def pytest_configure(config):
    config.pluginmanager.register(Collected(), Collected.NAME)


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
