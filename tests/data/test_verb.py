"""`edgemm data` from outside: light to load, exact about what it refuses, the same bytes for the same seed."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.cli import data as verb
from edgemm.cli.main import main
from edgemm.data.format import read_dataset
from edgemm.data.shapes import TASKS
from edgemm.errors import MissingError, UsageError


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(argument) for argument in arguments]))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_verb_loads_no_heavy_library():
    code = "import sys, edgemm.cli.data; print([m for m in ('torch', 'numpy', 'PIL', 'resvg_py') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_shapes_are_written_and_the_last_line_says_what_next(tmp_path, capsys):
    assert run("shapes", "--output", tmp_path / "set", "--count", "12") == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("Wrote 12 pictures to") and "edgemm train --config" in last
    assert len(read_dataset(tmp_path / "set").samples) == 12


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run("shapes", "--output", tmp_path / name, "--count", "24", "--seed", str(seed))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_shapes_of_chosen_tasks(tmp_path):
    run("shapes", "--output", tmp_path / "set", "--count", "12", "--tasks", "colours", "attribute-binding")
    assert {s.subgroup for s in read_dataset(tmp_path / "set").samples} == {"colours", "attribute binding"}
    assert {task.replace("-", " ") for task in verb.SHAPE_TASKS} == set(TASKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", "0"), "--count 0 makes nothing"),
        (("--seed", "-1"), "--seed -1 is negative"),
        (("edits", "--styles", "noto"), "without --source shapes are edited"),
        (("compose", "--source", "emoji", "--offline"), "nothing is fetched beside --source"),
    ],
)
def test_impossible_calls_are_refused(tmp_path, arguments, message):
    kind = [] if arguments[0] in verb.KINDS else ["shapes"]
    with pytest.raises(UsageError, match=message):
        run(*kind, *arguments, "--output", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_no_clip_to_be_read_is_without_its_twin(tmp_path):
    with pytest.raises(UsageError, match="--count 5 is odd"):
        run("clips", "--output", tmp_path / "set", "--count", "5")
    run("clips", "--output", tmp_path / "set", "--count", "5", "--fixed")
    assert len(read_dataset(tmp_path / "set").samples) == 5


@pytest.mark.parametrize(
    ("kind", "its_own", "of_others"),
    [
        ("emoji", {"--styles", "--offline"}, {"--source", "--fixed", "--count", "--skip-broken"}),
        ("shapes", {"--fixed", "--tasks", "--count"}, {"--source", "--styles", "--cache"}),
        ("edits", {"--source", "--count", "--seed"}, {"--fixed", "--offline"}),
        ("pictures", {"--source", "--skip-broken"}, {"--styles", "--seed", "--fixed"}),
    ],
)
def test_a_kinds_help_has_its_own_options_and_others_are_refused(tmp_path, capsys, kind, its_own, of_others):
    assert main(["data", kind, "--help"]) == 0
    shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert its_own | {"--output", "--size", "--force"} <= shown and not of_others & shown
    words = ["--source", str(tmp_path)] if kind == "pictures" else []
    for option in of_others:
        assert main(["data", kind, "--output", str(tmp_path / "set"), *words, option]) == 2
        assert option in capsys.readouterr().err


def test_the_verbs_help_says_what_each_kind_is(capsys):
    assert main(["data", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(what in shown for what in verb.KINDS.values())
    assert main(["data", "--output", "x"]) == 2
    assert "KIND" in capsys.readouterr().err


def test_offline_without_a_cache_leaves_nothing(tmp_path):
    with pytest.raises(MissingError, match="--offline forbids fetching"):
        run("emoji", "--output", tmp_path / "set", "--cache", tmp_path / "cache", "--offline")
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_one_line_in_whatever_letters_the_terminal_has(tmp_path):
    command = [sys.executable, "-m", "edgemm", "data", "pictures", "--source", tmp_path / "Bäume🎨", "--output", "x"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and r"B\u00e4ume\ud83c\udfa8: no folder" in done.stderr
