"""The display, as a person sees it on a terminal, and as a log keeps it."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr

import pytest

from edgemm import progress
from edgemm import progress as display
from edgemm.progress import Display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """What stands on a terminal after these bytes: carriage returns, new lines and tqdm's one escape, line up."""
    rows, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif piece == "\x1b[A":
            row -= 1
        else:
            rows[row] = rows[row].ljust(column)[:column] + piece + rows[row][column + len(piece) :]
            column += len(piece)
    rows = [re.sub(r" \[[\d:]+\]$", "", row.rstrip()) for row in rows]  # how long it has taken is not compared
    return [line for line in rows if line]


@pytest.fixture
def terminal(monkeypatch):
    """Where everything is drawn at once.  It becomes stderr in the test itself: pytest puts its own back before."""
    monkeypatch.setattr(display, "PATIENCE_S", 0.0)
    monkeypatch.setattr(display, "REDRAW_S", 0.0)
    return Terminal()


def test_each_status_replaces_the_one_before(terminal):
    with redirect_stderr(terminal), Display():
        progress.status("tracing transformer")
        assert screen(terminal.getvalue()) == ["tracing transformer"]
        progress.status("writing")
        assert screen(terminal.getvalue()) == ["writing"]
        progress.status("")
        assert screen(terminal.getvalue()) == []
        progress.status("comparing")
    assert screen(terminal.getvalue()) == []


def test_a_bar_says_how_far_it_is_and_goes_away(terminal):
    with redirect_stderr(terminal), Display():
        progress.status("asking the float model")
        with progress.bar("reading", 8, "questions", 2) as bar:
            bar.update(2, "loss 0.5")
            status, drawn = screen(terminal.getvalue())
            assert status == "asking the float model"
            assert drawn.startswith("reading:  50%|") and "4/8" in drawn and "loss 0.5" in drawn
        assert screen(terminal.getvalue()) == ["asking the float model"]


def test_what_is_over_within_a_second_is_not_drawn(terminal, monkeypatch):
    monkeypatch.setattr(display, "PATIENCE_S", 1e9)
    with redirect_stderr(terminal), Display():
        progress.status("tracing")
        assert list(progress.track("ab", 2, "spelling")) == ["a", "b"]
    assert terminal.getvalue() == ""


def test_a_line_for_good_stands_above_what_is_being_done(terminal):
    with redirect_stderr(terminal), Display():
        progress.status("tracing")
        progress.line("transformer is as torch has it")
        progress.status("writing")
        assert screen(terminal.getvalue()) == ["transformer is as torch has it", "writing"]
    assert screen(terminal.getvalue()) == ["transformer is as torch has it"]


def test_a_result_goes_to_stdout_and_never_stands_behind_a_status(terminal, capsys):
    with redirect_stderr(terminal), Display(results=True):
        progress.status("tracing")
        before = len(terminal.getvalue())
        progress.line("done")
        assert terminal.getvalue()[before:].startswith("\r" + " " * len("tracing")), "the status was wiped away first"
    assert capsys.readouterr().out == "done\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_terminal_is_clean_after_an_error(terminal, error):
    with pytest.raises(error), redirect_stderr(terminal), Display():
        progress.status("tracing")
        for _ in progress.track("ab", 2, "spelling"):
            raise error
    assert screen(terminal.getvalue()) == [] and terminal.getvalue().endswith("\r")


def test_a_long_status_takes_one_row(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with redirect_stderr(terminal), Display():
        progress.status("a status that is longer than the terminal is wide")
        assert screen(terminal.getvalue()) == ["a status"]


def test_a_log_gets_lines_for_good_at_once_and_the_rest_now_and_then(capsys):
    with Display() as shown:
        progress.status("judging")
        with progress.bar("asking", 100, "questions") as bar:
            bar.update(12, "loss 0.5")
            progress.line("for good")
            assert capsys.readouterr() == ("", "for good\n")
            shown.remind()
        err = capsys.readouterr().err
        assert re.fullmatch(r"judging; asking: 12 of 100 questions, loss 0.5 \(\d+ s\)\n", err)
        progress.status("")
        shown.remind()
    assert capsys.readouterr() == ("", "")


def test_a_log_hears_of_work_that_says_nothing_itself(capsys, monkeypatch):
    """One long call: the display's own thread speaks, and no more than once when the work is over."""
    monkeypatch.setattr(display, "SILENCE_S", 0.01)
    spoken = []
    with Display() as shown:
        progress.status("tracing")
        while not spoken:
            spoken = capsys.readouterr().err.splitlines()
    assert spoken[0].startswith("tracing (")
    assert shown.watch is not None
    shown.watch.join()
    capsys.readouterr()


def test_of_several_processes_the_first_one_speaks(capsys, monkeypatch):
    for rank, err in (("1", ""), ("0", "for good\n")):
        monkeypatch.setenv("RANK", rank)
        with Display():
            progress.line("for good")
        assert capsys.readouterr().err == err


def test_a_forced_bar_is_drawn_without_a_terminal_and_stays(capsys):
    with Display(forced=True), progress.bar("drawing", 4, "steps") as bar:
        bar.update(4)
    err = capsys.readouterr().err
    assert "4/4" in err and err.endswith("\n")
