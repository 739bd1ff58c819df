"""Whatever happens in the child, an answer comes back."""

from __future__ import annotations

import pytest

from edgemm.device.child import ask


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A module of the given source, put where the child finds it; its name comes back."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "asked_module.py").write_text(source)
        return "asked_module"

    return write


def test_the_last_line_is_the_answer(child):
    answer = ask(
        child("import sys\nprint('noise of a library')\nprint('{\"got\": \"' + sys.argv[1] + '\"}')"), ["this"]
    )
    assert (answer.value, answer.problem) == ({"got": "this"}, "")


def test_a_crash_is_an_answer(child):
    answer = ask(child("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"))
    assert (answer.value, answer.problem) == (None, "crashed with SIGSEGV")


def test_a_hang_is_an_answer(child):
    answer = ask(child("import time\ntime.sleep(100_000)"), timeout_s=0.5)
    assert (answer.value, answer.problem) == (None, "gave no answer within 0.5 s")


def test_an_exception_is_an_answer(child):
    answer = ask(child("raise RuntimeError('driver too old')"))
    assert answer.value is None and "driver too old" in answer.problem


@pytest.mark.parametrize("printed", ["", "print('not json')", "print('[1]')"])
def test_silence_and_nonsense_are_answers(child, printed):
    answer = ask(child(printed))
    assert answer.value is None and answer.problem
