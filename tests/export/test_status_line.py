"""What is being done is told on a terminal, line over line, and nowhere else."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from edgemm.cli import status_line
from edgemm.cli.status_line import ERASE, StatusLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """pytest puts its own stderr back before a test begins, so the module's is replaced."""
    stderr = Terminal()
    monkeypatch.setattr(status_line, "sys", SimpleNamespace(stderr=stderr))
    return stderr


def test_each_line_replaces_the_one_before(terminal):
    with StatusLine() as status:
        status.say("tracing")
        status.say("writing")
    assert terminal.getvalue() == f"{ERASE}tracing{ERASE}writing{ERASE}"


def test_a_result_never_stands_behind_a_status(terminal, capsys):
    with StatusLine() as status:
        status.say("tracing")
        status.print("done")
        assert terminal.getvalue().endswith(ERASE)
    assert capsys.readouterr().out == "done\n"


def test_the_line_is_gone_after_an_error(terminal):
    with pytest.raises(RuntimeError), StatusLine() as status:
        status.say("tracing")
        raise RuntimeError
    assert terminal.getvalue().endswith(ERASE)


def test_a_log_file_gets_results_only(capsys):
    with StatusLine() as status:
        status.say("tracing")
        status.print("done")
    assert capsys.readouterr() == ("done\n", "")
