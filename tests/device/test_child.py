"""Whatever happens in the child, an answer comes back."""

from __future__ import annotations

import io

import pytest
from PIL import Image

import edgemm
from edgemm.cli.guard import run_guarded
from edgemm.device.child import ask
from edgemm.engines.builder import attempt
from edgemm.runtimes.video import read_video
from tests.runtimes.tiny_bundle import text_loop


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


def test_no_child_takes_modules_from_the_folder_where_one_stands(tmp_path, monkeypatch, capfd):
    """A stranger's folder: what stands there beside a film or a bundle is data."""
    taken = tmp_path / "taken"
    for name in ("json", "numpy", "PIL", "av", "runpy", "edgemm", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(taken)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "GIF")
    assert len(read_video(file.getvalue(), text_loop(), None, 4, 1000)) == 1
    assert run_guarded(["--version"]) == 0 and edgemm.__version__ in capfd.readouterr().out
    assert attempt("x", {}, 1 << 30, 60).result is None  # it says what it lacks
    assert not taken.exists()


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
