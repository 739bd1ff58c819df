"""What a copy of this process makes comes back, and what it takes is bounded."""

from __future__ import annotations

import faulthandler
import os
import time

import pytest

from edgemm.bundle.forked import forked
from edgemm.errors import CheckpointError, InputError


def test_its_object_and_its_error_come_back():
    assert forked(lambda: {"pid": os.getpid()}, "x")["pid"] != os.getpid()

    def refuse():
        raise CheckpointError("no such thing")

    with pytest.raises(CheckpointError, match="no such thing"):
        forked(refuse, "x")


def test_an_object_of_many_megabytes_comes_back_whole():
    assert len(forked(lambda: b"x" * 5_000_000, "x")) == 5_000_000


def endless():
    while True:
        pass


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: "x" * 10**10, "x: took more than 256 MiB"),
        (lambda: [list(range(10**6)) for _ in range(10**5)], "x: took more than 256 MiB"),
        (lambda: (faulthandler.disable(), os.abort()), "x: ended with SIGABRT"),
    ],
)
def test_what_takes_too_much_or_dies_is_one_line(work, said):
    with pytest.raises(InputError, match=said):
        forked(work, "x")


def test_what_has_no_end_is_ended():
    began = time.monotonic()
    with pytest.raises(InputError, match=r"x: took more than 0.5 s"):
        forked(endless, "x", timeout_s=0.5)
    assert time.monotonic() - began < 60
