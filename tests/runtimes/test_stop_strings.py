"""Stop strings in a stream, whatever the pieces it comes in."""

from __future__ import annotations

import random

import pytest

from edgemm.runtimes.constraint import StopStrings


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("hello world", ["wor"], "hello "),
        ("hello world", ["xyz"], "hello world"),
        ("aaab", ["aab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("one\n\ntwo", ["\n\n", "two"], "one"),
        ("ends in half of st", ["stop"], "ends in half of st"),
        ("stop", ["stop"], ""),
    ],
)
def test_nothing_of_a_stop_string_is_shown(text, stops, shown):
    for seed in range(20):
        cut = random.Random(seed)
        watch, seen, rest = StopStrings(stops), "", text
        while rest and not watch.hit:
            size = cut.randint(1, 4)
            seen += watch.push(rest[:size])
            assert shown.startswith(seen)
            rest = rest[size:]
        assert watch.hit == (shown != text)
        assert seen + ("" if watch.hit else watch.flush()) == shown
