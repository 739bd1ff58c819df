"""The script that a board's owner runs: what fails is in its file, and the owner is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.device_check import last_document, nameless

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "device_check.py"


def test_a_step_that_fails_is_in_the_file_with_what_it_said(tmp_path):
    words = [sys.executable, str(SCRIPT), str(tmp_path / "missing.bundle"), "--output", str(tmp_path / "check.json")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 7 and "2 steps, 2 failed: doctor, verify" in done.stdout
    document = json.loads((tmp_path / "check.json").read_text())
    assert [(step["name"], step["code"]) for step in document["steps"]] == [("doctor", 3), ("verify", 3)]
    assert any("missing.bundle" in line for line in document["steps"][0]["said"])
    assert str(tmp_path) not in json.dumps(document)


def test_no_time_is_no_step(tmp_path):
    words = [sys.executable, str(SCRIPT), "x.bundle", "--minutes", "0", "--output", str(tmp_path / "check.json")]
    subprocess.run(words, capture_output=True)
    steps = json.loads((tmp_path / "check.json").read_text())["steps"]
    assert [step["said"] for step in steps] == [["no time was left"]] * 2


def test_folders_are_left_out_and_names_of_files_stay():
    told = nameless(
        {"path": "/home/alice/sticker.bundle: missing", "list": ["/root/.cache/edgemm/engines/ab/engine", 3]}
    )
    assert told == {"path": "sticker.bundle: missing", "list": ["engine", 3]}
    assert last_document('a line\n{"a": 1}\n') == {"a": 1} and last_document("no document") is None
