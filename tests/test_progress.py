"""The one channel: what is said reaches who listens, from any thread, and nobody else."""

from __future__ import annotations

import threading

import pytest

from edgemm import progress
from tests.heard import hearing


def test_who_does_not_listen_hears_and_prints_nothing(capfd):
    progress.status("tracing")
    progress.line("for good")
    with progress.bar("hashing", 3, "MB") as bar:
        bar.update(3)
    assert list(progress.track("abc", 3, "spelling")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_what_is_said_is_heard_until_the_block_ends():
    with hearing() as heard:
        progress.status("tracing")
        progress.line("for good")
    progress.status("unheard")
    assert (heard.statuses, heard.lines) == (["tracing"], ["for good"])


def test_the_innermost_listener_hears_alone():
    with hearing() as outer:
        with hearing() as inner:
            progress.line("inside")
        progress.line("outside")
    assert (inner.lines, outer.lines) == (["inside"], ["outside"])


def test_a_bar_counts_from_where_a_resumed_run_stands_and_keeps_its_note():
    with hearing() as heard:
        with progress.bar("training", 300, "steps", 120) as bar:
            bar.update(1, "loss 0.5")
            bar.update(2)
            assert heard.open == [bar]
    assert (bar.done, bar.total, bar.note, heard.open) == (123, 300, "loss 0.5", [])


def test_a_tracked_item_is_done_when_the_next_one_is_asked_for():
    with hearing() as heard:
        seen = [heard.bars[0].done for _ in progress.track("abc", 3, "spelling")]
    assert seen == [0, 1, 2] and heard.bars[0].done == 3 and heard.open == []


def test_a_bar_ends_with_the_error_that_ended_its_work():
    with hearing() as heard:
        with pytest.raises(KeyboardInterrupt), progress.bar("hashing", 3):
            raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            for _ in progress.track("abc", 3, "spelling"):
                raise KeyboardInterrupt
        progress.status("after it")
    assert heard.open == [] and heard.statuses == ["after it"]


def test_threads_lose_no_count():
    """A thousand updates from each of eight threads; `+=` of two threads at once would lose some."""
    with hearing(), progress.bar("hashing", 8000) as bar:
        threads = [threading.Thread(target=lambda: [bar.update() for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.done == 8000
