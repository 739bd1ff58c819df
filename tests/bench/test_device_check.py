"""The script that a board's owner runs: what fails is in its file, and the owner is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import device_check
from benchmarks.device_check import Check, last_document, nameless, run

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
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65\nGCC\n"
    )
    done = subprocess.run([*words, "--root", str(tmp_path)], capture_output=True, text=True)
    assert [step["said"] for step in left(tmp_path)["steps"]] == [["no time was left"]] * 2
    assert "--minutes 30" in done.stdout and left(tmp_path)["nvidia_driver"].endswith("580.65")


def test_folders_and_the_gpus_own_number_are_left_out_and_names_of_files_stay():
    told = nameless(
        {"path": "/home/alice/sticker.bundle: missing", "list": ["/root/.cache/edgemm/engines/ab/engine", 3]}
    )
    assert told == {"path": "sticker.bundle: missing", "list": ["engine", 3]}
    assert nameless("/home/alice b/x y.bundle: missing", ["/home/alice b/"]) == "x y.bundle: missing"
    assert (
        nameless("x.bundle/components/transformer/int8.onnx: missing")
        == "x.bundle/components/transformer/int8.onnx: missing"
    )
    assert nameless({"gpus": [{"name": "RTX 4090", "uuid": "GPU-00010203"}]}) == {"gpus": [{"name": "RTX 4090"}]}
    assert last_document('a line\n{"a": 1}\n') == {"a": 1} and last_document("no document") is None


def left(tmp_path):
    return json.loads((tmp_path / "check.json").read_text())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_was_found_before_an_end_is_kept_and_nothing_runs_on(tmp_path, how):
    """The second step waits for ever; it is ended with the script, whatever ends that."""
    endless = f"import os, time; print(os.getpid(), file=open({str(tmp_path / 'pid')!r}, 'w', 1)); time.sleep(600)"
    script = f"""
import sys
from benchmarks import device_check
steps = {{"first": "print('{{}}')", "second": {endless!r}}}
device_check.look = lambda check, root: [check._run(name, [sys.executable, "-c", steps[name]]) for name in steps]
sys.argv = ["device_check.py", "x.bundle", "--output", {str(tmp_path / "check.json")!r}]
sys.exit(device_check.main())
"""
    script_process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=SCRIPT.parents[1],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip())
    script_process.send_signal(how)
    script_process.communicate(timeout=60)
    steps = {step["name"]: step["code"] for step in left(tmp_path)["steps"]}
    if how == signal.SIGKILL:
        assert script_process.returncode == -how and steps == {"first": 0}
    else:
        assert script_process.returncode == 130 and steps == {"first": 0, "second": 130}
    assert not left(tmp_path)["whole"]
    until(lambda: not runs(int((tmp_path / "pid").read_text())))


def until(true, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_step_out_of_time_ends_with_all_that_it_started_and_what_it_said_is_kept():
    """Its own child holds the pipes open: waiting for those would take ten minutes."""
    began_s = time.monotonic()
    told = run(["sh", "-c", "echo begun >&2; sleep 600 & wait"], 3.0)
    assert told == (5, "", "begun\nnot done after 3 s") and time.monotonic() - began_s < 120


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, capsys):
    """The file keeps what it had; all of it is printed."""
    check = Check(tmp_path / "x.bundle", tmp_path / "check.json", time.monotonic() + 60)
    assert not check.begin()
    check.document["whole"] = True
    check._run("first", [sys.executable, "-c", "print('{}')"])
    monkeypatch.setattr(device_check.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    check._run("second", [sys.executable, "-c", "import sys; sys.exit('no more room')"])
    assert check.end() == 5
    printed = capsys.readouterr().out
    assert "check.json: cannot be written: No space left on device" in printed and "failed (1): no more room" in printed
    assert [step["name"] for step in json.loads(printed.splitlines()[-1])["steps"]] == ["first", "second"]
    assert [step["name"] for step in left(tmp_path)["steps"]] == ["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.json"]


def test_a_file_that_cannot_be_written_is_told_before_ten_minutes_are_spent_and_an_older_one_is_kept(tmp_path):
    words = [sys.executable, str(SCRIPT), "x.bundle", "--minutes", "0", "--output"]
    done = subprocess.run([*words, str(tmp_path / "no" / "check.json")], capture_output=True, text=True)
    assert done.returncode == 3 and "cannot be written: No such file or directory; name another" in done.stderr
    (tmp_path / "check.json").write_text("of before")
    subprocess.run([*words, str(tmp_path / "check.json")], capture_output=True)
    assert left(tmp_path)["whole"] and (tmp_path / "check.json.before").read_text() == "of before"


def test_the_cpu_is_first_and_a_browsers_target_is_the_cpus(tmp_path, monkeypatch):
    """What is sure to end comes before engines that may take all the time."""
    fits = [{"target": target, "problem": ""} for target in ("rtx", "web", "cpu")]
    asked = []

    class Heard(Check):
        def _run(self, name, command):
            asked.append(name)
            return {"bundle": {"each": fits}} if name == "doctor" else None

    device_check.look(Heard(tmp_path / "x.bundle", tmp_path / "check.json", 0.0), Path("/"))
    assert asked == ["doctor", "verify", "cpu: answers", "cpu: bench", "rtx: build", "rtx: answers", "rtx: bench"]
    del asked[:], fits[2]
    device_check.look(Heard(tmp_path / "x.bundle", tmp_path / "check.json", 0.0), Path("/"))
    assert "cpu: bench" in asked and not any("web" in name for name in asked)
