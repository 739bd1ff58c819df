"""What every test may rely on: Ctrl-C arrives, also where the tests were started in the background."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_arrives():
    """A shell's background job ignores SIGINT, and so would every process that a test starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
