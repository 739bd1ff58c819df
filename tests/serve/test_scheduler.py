"""Turns, shares, the queue and its end: jobs that only count, so that nothing else is seen."""

from __future__ import annotations

import threading
import time

import pytest

from edgemm.serve.problems import Problem
from edgemm.serve.scheduler import Job, Lanes, Scheduler, Turns


class Told:
    """What a job was told, and when it ended."""

    def __init__(self):
        self.events, self.ended = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if event is None or isinstance(event, BaseException):
            self.ended.set()


def counting(turns, log, name, seconds=0.0, gate=None):
    """Work of so many turns, each noted in `log`."""

    def work():
        for _ in range(turns):
            if gate is not None:
                gate.wait(10)
            time.sleep(seconds)
            log.append(name)
            yield name

    return work


@pytest.fixture
def scheduler():
    made = []

    def make(most=2, max_queue=4, share=0.5):
        lanes = Lanes({"text": Turns(most), "draw": Turns(most)}, share)
        made.append(Scheduler(lanes, max_queue))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_jobs_of_one_kind_take_turns(scheduler):
    log, told = [], [Told(), Told()]
    scheduler().submit([Job("text", counting(5, log, name), to) for name, to in zip("ab", told)])
    assert all(each.ended.wait(10) for each in told)
    assert log == list("ababababab")
    assert told[0].events == ["a"] * 5 + [None]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_drawing_gets_its_share_of_the_time_while_both_have_work(scheduler, share):
    """Steps of 6 ms against tokens of 2 ms."""
    log, told, gate = [], [Told(), Told()], threading.Event()
    own = scheduler(share=share)
    own.submit([Job("text", counting(600, log, ("t", 2), 0.002, gate), told[0])])
    own.submit([Job("draw", counting(200, log, ("d", 6), 0.006, gate), told[1])])
    gate.set()
    time.sleep(1.2)
    own.close()
    spent = {kind: sum(cost for name, cost in log if name == kind) for kind in "td"}
    assert spent["d"] / (spent["d"] + spent["t"]) == pytest.approx(share, abs=0.12)


def test_a_lane_that_was_idle_has_saved_nothing(scheduler):
    """Ten minutes of text do not let drawing hold text up afterwards."""
    lanes = Lanes({"text": Turns(1), "draw": Turns(1)}, 0.5)
    lanes.of["text"].add(Job("text", counting(9, [], "t"), Told()))
    assert lanes.next() == "text"
    lanes.spent("text", 600.0)
    lanes.of["draw"].add(Job("draw", counting(9, [], "d"), Told()))
    assert lanes.next() in ("text", "draw")
    lanes.spent("draw", 1.0)
    assert lanes.next() == "text"


def test_a_full_queue_refuses_and_says_when_to_ask_again(scheduler):
    gate, log = threading.Event(), []
    own = scheduler(most=1, max_queue=2)
    told = [Told() for _ in range(3)]
    own.submit([Job("text", counting(1, log, "a", gate=gate), told[0])])
    while not own.running:
        time.sleep(0.001)
    for each in told[1:]:
        own.submit([Job("text", counting(1, log, "b"), each)])
    for jobs in (1, 2):
        with pytest.raises(Problem) as refused:
            own.submit([Job("text", counting(1, log, "c"), Told()) for _ in range(jobs)])
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert 1 <= int(refused.value.headers["retry-after"]) <= 60
    gate.set()
    assert all(each.ended.wait(10) for each in told) and sorted(log) == ["a", "b", "b"]


def test_who_cancels_does_nothing_more_running_or_queued_and_nobody_else_notices(scheduler):
    gate, log = threading.Event(), []
    own, told = scheduler(most=2), [Told() for _ in range(4)]
    jobs = [Job("text", counting(3, log, name, gate=gate), to) for name, to in zip("abcd", told)]
    own.submit(jobs)
    while own.running < 2 or own.waiting < 2:
        time.sleep(0.001)
    jobs[0].cancelled = jobs[2].cancelled = True
    gate.set()
    assert told[1].ended.wait(10) and told[3].ended.wait(10)
    assert log.count("a") <= 1 and "c" not in log  # the turn that was running is the last
    assert (log.count("b"), log.count("d")) == (3, 3)
    assert told[1].events[-1] is told[3].events[-1] is None


def test_an_error_is_its_own_jobs_alone(scheduler):
    def broken():
        yield 1
        raise ValueError("broken")

    told = [Told(), Told()]
    scheduler().submit([Job("draw", broken, told[0]), Job("draw", counting(4, [], "b"), told[1])])
    assert all(each.ended.wait(10) for each in told)
    assert isinstance(told[0].events[-1], ValueError) and told[1].events == ["b"] * 4 + [None]


class Panic(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize("how", ["a turn", "an end"])
def test_what_breaks_a_turn_or_an_end_is_told_and_whoever_asks_next_is_answered(scheduler, how):
    begun = threading.Event()

    def breaks():
        try:
            while not begun.is_set() or how == "an end":
                yield begun.set() or "turn"
            raise Panic
        finally:
            if how == "an end":
                raise MemoryError  # while its drawing is thrown away, say

    own, log, told = scheduler(most=1), [], [Told(), Told()]
    broken, waiting = Job("draw", breaks, told[0]), Job("draw", counting(2, log, "a"), told[1])
    own.submit([broken, waiting])
    assert begun.wait(10)
    broken.cancelled = how == "an end"
    own.wake()
    assert all(each.ended.wait(10) for each in told)
    assert isinstance(told[0].events[-1], RuntimeError)
    assert (told[1].events, own.running, own.waiting) == (["a", "a", None], 0, 0)


def test_a_deadline_ends_running_and_queued_jobs(scheduler):
    own, told = scheduler(most=1), [Told(), Told()]
    soon = time.monotonic() + 0.05
    own.submit([Job("text", counting(10_000, [], "a", 0.001), to, deadline=soon) for to in told])
    assert all(each.ended.wait(10) for each in told)
    assert [each.events[-1].code for each in told] == ["deadline_exceeded"] * 2


def test_closing_waits_for_what_was_asked_and_takes_nothing_more(scheduler):
    own, log, told = scheduler(most=1), [], [Told(), Told()]
    own.submit([Job("text", counting(5, log, name, 0.002), to) for name, to in zip("ab", told)])
    own.close(patience_s=10)
    assert log == ["a"] * 5 + ["b"] * 5 and own.running == own.waiting == 0
    with pytest.raises(Problem) as refused:
        own.submit([Job("text", counting(1, log, "c"), Told())])
    assert refused.value.code == "shutting_down"
