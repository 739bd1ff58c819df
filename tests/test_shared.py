"""What a run's processes share is made once, whole, and at the same place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.shared import made_once, run_folder


class Factory:
    """Of one process of a run."""

    def __init__(self, base) -> None:
        self.base = base

    def getbasetemp(self):
        return self.base


@pytest.fixture
def workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    for name in ("gw0", "gw1"):
        (tmp_path / name).mkdir()
    return [Factory(tmp_path / name) for name in ("gw0", "gw1")]


def test_both_processes_have_one_folder_and_a_lone_one_its_own(workers, tmp_path, monkeypatch):
    assert {run_folder(worker, "x") for worker in workers} == {tmp_path / "x"}
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    assert run_folder(workers[0], "x") == tmp_path / "gw0" / "x"


def test_whoever_asks_second_waits_and_makes_nothing(workers):
    made = []

    def make(folder):
        assert not folder.exists()
        folder.mkdir()
        made.append(folder)
        (folder / "a").write_text("1")

    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda worker: made_once(worker, "model", make), workers * 4))
    assert len(made) == 1 and set(places) == set(made) and (places[0] / "a").read_text() == "1"


def test_what_was_not_finished_is_made_anew(workers):
    def fail(folder):
        folder.mkdir()
        (folder / "half").write_text("1")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        made_once(workers[0], "model", fail)
    assert list(made_once(workers[1], "model", lambda folder: folder.mkdir()).iterdir()) == []
