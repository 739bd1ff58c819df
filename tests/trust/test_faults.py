"""Kills, caps, Ctrl-C and other runs: nothing half done is left, and each has its exit code."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgemm.bundle.beside import only_writer, written_beside
from edgemm.bundle.files import write_whole
from edgemm.bundle.writer import whole_folder
from edgemm.cli import guard
from edgemm.cli.main import _explain
from edgemm.errors import EdgemmError, InputError, ResourceError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, **options)


def killed_while(code: str) -> None:
    """Runs it until it says "now", and kills it."""
    process = python(code)
    assert process.stdout and process.stdout.readline() == b"now\n"
    process.kill()
    process.communicate()


# What a kill leaves


def test_the_next_writer_takes_away_what_a_killed_one_left(tmp_path):
    code = (
        f"from edgemm.bundle.writer import whole_folder; import time\nwith whole_folder({str(tmp_path / 'set')!r}):\n"
    )
    killed_while(code + "    print('now', flush=True); time.sleep(100_000)")
    assert len(left(tmp_path)) == 1
    with whole_folder(tmp_path / "set"):
        pass
    assert left(tmp_path) == ["set"]


def test_a_report_too(tmp_path):
    code = f"""
from edgemm.bundle.beside import written_beside; import time, pathlib
with written_beside(pathlib.Path({str(tmp_path / "report.json")!r})):
    print('now', flush=True); time.sleep(100_000)"""
    killed_while(code)
    assert len(left(tmp_path)) == 1
    write_whole(tmp_path / "report.json", "{}")
    assert left(tmp_path) == ["report.json"]


def test_what_a_living_writer_makes_stays(tmp_path):
    with whole_folder(tmp_path / "set") as first, whole_folder(tmp_path / "set") as second:
        assert first.is_dir() and second.is_dir() and first != second
        (second / "its").write_text("x")
    assert left(tmp_path) == ["set"]


def test_others_files_of_nearly_the_same_name_stay(tmp_path):
    for name in (
        ".set.notes.partial",
        ".set.partial",
        ".other.0123456789abcdef.partial",
        ".set.0123456789abcdef.old.txt",
    ):
        (tmp_path / name).mkdir()
    before = left(tmp_path)
    with whole_folder(tmp_path / "set"):
        pass
    assert left(tmp_path) == sorted([*before, "set"])


def test_a_link_of_such_a_name_is_left_alone(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / ".set.0123456789abcdef.partial").symlink_to(tmp_path / "precious")
    with whole_folder(tmp_path / "set"):
        pass
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_what_was_set_aside_when_a_kill_came_is_put_back(tmp_path):
    (tmp_path / ".set.0123456789abcdef.old").mkdir()
    (tmp_path / ".set.0123456789abcdef.old" / "old").write_text("x")

    def keep(path: Path) -> None:
        raise InputError(f"{path}: stays")

    with pytest.raises(InputError, match="stays"), whole_folder(tmp_path / "set", keep):
        raise AssertionError("not reached")
    assert left(tmp_path) == ["set"] and (tmp_path / "set" / "old").read_text() == "x"


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002])
def test_the_umask_is_honoured(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole_folder(tmp_path / "set") as folder:
            (folder / "file").write_text("x")
            (folder / "file").chmod(0o600)
        write_whole(tmp_path / "report", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "set").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "set" / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "report").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_temporary_name_is_new_each_time_and_never_anothers_link(tmp_path):
    names = set()
    for _ in range(5):
        with written_beside(tmp_path / "report") as temporary:
            names.add(temporary.name)
            assert not temporary.is_symlink()
    assert len(names) == 5


# Two at once


def test_a_second_run_in_one_folder_is_refused_while_the_first_lives(tmp_path):
    code = f"""
from edgemm.bundle.beside import only_writer; import time, pathlib
with only_writer(pathlib.Path({str(tmp_path / "run")!r}), "a run"):
    print('now', flush=True); time.sleep(100_000)"""
    process = python(code)
    assert process.stdout and process.stdout.readline() == b"now\n"
    with pytest.raises(InputError, match="another run writes there now"), only_writer(tmp_path / "run", "another run"):
        raise AssertionError("not reached")
    process.kill()
    process.communicate()
    with only_writer(tmp_path / "run", "another run"):
        pass  # a dead process holds nothing
    assert left(tmp_path / "run") == []


# Ctrl-C and limits


def edgemm(*words: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgemm", *words]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes, **options)


@pytest.mark.slow
@pytest.mark.parametrize("verb", [("estimate", "--help"), ("doctor",), ("chat",)])
def test_ctrl_c_at_any_moment_ends_with_130_or_with_what_was_done(sound, verb):
    """A process that dies of SIGINT, before Python can be asked, is 130 to a shell, too."""
    words = (*verb, str(sound), "--prompt", "hi") if verb == ("chat",) else verb
    began = time.monotonic()
    assert edgemm(*words).wait() == 0
    whole_s = time.monotonic() - began
    for moment in range(20):
        process = edgemm(*words)
        time.sleep(whole_s * moment / 20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        if ("site" in said or "runpy" in said) and "/edgemm/" not in said:
            continue  # Python itself was not there yet, and says so in its own way
        assert process.returncode in (0, 130, -signal.SIGINT), (moment, process.returncode, said)
        assert len(said.splitlines()) <= 1, said


@pytest.mark.slow
def test_verify_ends_when_its_time_or_memory_is_over(sound):
    for limit, said in ((("--timeout", "0.01"), "--timeout 0.01 s ran out"), (("--max-memory", "1MB"), "more memory")):
        process = edgemm("verify", str(sound), *limit)
        _, told = process.communicate()
        assert process.returncode == 5 and said in told and len(told.splitlines()) == 1, told


WANTS = "#include <sys/mman.h>\nint main() { for (;;) mmap(0, 32 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }"
WAITS = """#include <sys/mman.h>
#include <unistd.h>
int main() { for (int size = 32 << 20; size >= 4096; size /= 2) while (mmap(0, size, 3, 34, -1, 0) != MAP_FAILED);
             for (;;) pause(); }"""
WORKS = "int main() { for (volatile long turn = 0;; turn++); }"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs RLIMIT_AS and a C compiler")
@pytest.mark.parametrize(
    ("code", "limit_s", "told"), [(WANTS, None, "stuck"), (WORKS, 8.0, "time"), (WAITS, None, "stuck")]
)
def test_a_library_that_asks_for_memory_for_ever_is_ended(tmp_path, monkeypatch, code, limit_s, told):
    """As OpenBLAS has done below a cap; who computes, and stands far from it, is left alone."""
    (tmp_path / "child.c").write_text(code)
    subprocess.run(["cc", "-O1", "-o", tmp_path / "child", tmp_path / "child.c"], check=True)
    cap = 300 << 20
    monkeypatch.setattr(guard, "memory_cap", lambda: cap)
    monkeypatch.setattr(guard, "STUCK_S", 0.5)
    monkeypatch.setattr(guard, "IDLE_S", 1.0)
    child = subprocess.Popen(
        [tmp_path / "child"],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (cap, cap)),
    )
    assert guard._watched(child, None, limit_s)[0] == told


def test_a_process_that_the_linker_ends_below_a_cap_ran_out_of_memory(tmp_path, monkeypatch):
    """As torch has ended at 400 MiB, without a word of anybody's."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(guard, "memory_cap", lambda: 400 << 20)
    with pytest.raises(ResourceError, match=r"out of memory.* may take 400 MiB"):
        guard.run_guarded(["doctor"])


def test_a_librarys_error_without_words_is_for_want_of_memory_below_a_cap_alone(monkeypatch):
    """torch says "error return without exception set" there."""
    error = SystemError("error return without exception set")
    monkeypatch.setattr(guard, "memory_cap", lambda: 600 << 20)
    assert _explain(error) == ("out of memory; this process may take 600 MiB (ulimit -v)", 5)
    monkeypatch.setattr("edgemm.cli.main.is_scarce", lambda: False)
    assert _explain(error)[1] == 1


@pytest.mark.parametrize(
    ("said", "without"),
    [
        ("ImportError: libtensorrt_rtx.so.1: cannot open shared object file: No such file or directory", 1),
        ("Error Code 1: Myelin (Unexpected exception Resource temporarily unavailable)", 5),
    ],
)
def test_what_nvidias_builder_says_below_a_cap_is_for_want_of_memory(monkeypatch, said, without):
    """Seen of `edgemm build` at 200 and 300 MiB: a library that could not be mapped, a thread that could not begin."""
    error = EdgemmError(f"no engine after 3 attempts: {said}")
    monkeypatch.setattr(guard, "memory_cap", lambda: 200 << 20)
    message, code = _explain(error)
    assert code == 5 and message.endswith("; this process may take 200 MiB (ulimit -v)")
    monkeypatch.setattr("edgemm.cli.main.is_scarce", lambda: False)
    assert _explain(error)[1] == without


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_stream_that_was_closed_is_no_reason_to_fail(sound, closed):
    command = f"exec {closed}; exec {sys.executable} -m edgemm inspect {sound}"
    assert subprocess.run(["sh", "-c", command], env=ENVIRONMENT, capture_output=True).returncode == 0
