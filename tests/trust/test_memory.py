"""Every verb below a cap on memory: it goes well, or ends with 5 and one line that says what it may take."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MICRO = str(ROOT / "checkpoints" / "micro-shapes")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MEGABYTES = (200, 300, 400, 600, 1000, 2000)
VERBS = (
    *("chat", "draw", "verify", "inspect", "doctor", "quantize", "estimate", "train", "finetune", "export", "eval"),
    *("data", "merge", "join", "distill", "serve", "bench"),
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="caps are counted on Linux")]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    command = [sys.executable, "-m", "edgemm", "data", "shapes", "--count", "60", "--fixed", "--output", str(folder)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, shapes) -> Path:
    run = tmp_path_factory.mktemp("adapted") / "run"
    more = ("--set", "threads=1", "--set", "batch=8", "--data", str(shapes), "--steps", "1", "--output", str(run))
    command = [sys.executable, "-m", "edgemm", "finetune", MICRO, "--name", "mine", *more]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    return run / "adapters" / "mine"


def words(verb: str, sound: Path, shapes: Path, adapter: Path, made: Path) -> tuple[str, ...]:
    recipe = ("--set", "threads=1", "--data", str(shapes), "--steps", "2", "--output", str(made / "run"))
    return {
        "chat": (str(sound), "--prompt", "hi", "--max-new-tokens", "1"),
        "draw": (str(sound), "--prompt", "hi", "--output", str(made / "x.png")),
        "verify": (str(sound), "--no-parity"),
        "inspect": (str(sound),),
        "doctor": (),
        "quantize": (MICRO, "--output", str(made / "q")),
        "estimate": (str(sound), "--device", "orin-nano-8gb"),
        "train": ("--config", str(ROOT / "recipes" / "micro-shapes.toml"), "--set", "batch=8", *recipe),
        "finetune": (MICRO, "--set", "batch=8", *recipe),
        "export": (MICRO, "--output", str(made / "b.bundle"), "--precision", "int8"),
        "eval": (MICRO, "--data", str(shapes), "--suite", "draw", "--limit", "2", "--num-inference-steps", "1"),
        "data": ("shapes", "--count", "20", "--fixed", "--output", str(made / "shapes")),
        "merge": (MICRO, str(adapter), "--output", str(made / "merged")),
        "join": ("--drawing", MICRO, "--reading", MICRO, "--output", str(made / "joined")),
        "distill": ("--teacher", MICRO, "--student", MICRO, "--few", "2,1", "--set", "batch=8", *recipe),
        "serve": (str(sound), "--port", "0"),
        "bench": (str(sound), "-p", "4", "-n", "2", "--steps", "1", "-r", "1"),
    }[verb]


def check(verb: str, more: tuple[str, ...], enter: Callable[[], object], may: str, made: Path) -> None:
    command = [sys.executable, "-m", "edgemm", verb, *more]
    if verb == "serve":  # who is well does not end by itself
        command = ["timeout", "--preserve-status", "60", *command]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", preexec_fn=enter)
    said = [line for line in ran.stderr.splitlines() if line.startswith("edgemm: error: ")]
    assert ran.returncode in ((0, 4, 5) if verb == "doctor" else (0, 5)), (ran.returncode, ran.stderr)
    if ran.returncode == 5:
        assert len(said) == 1 and re.search(may, said[0]), ran.stderr
        assert "Traceback" not in ran.stderr and "terminate called" not in ran.stderr
        left = {path.name for path in made.iterdir()} - {"run"}  # a run keeps the state that it had
        assert all(re.fullmatch(r"\..*\.partial", name) for name in left), left  # for the next run to take away


@pytest.mark.parametrize("megabytes", MEGABYTES)
@pytest.mark.parametrize("verb", VERBS)
def test_of_the_process(sound, shapes, adapter, tmp_path, verb, megabytes):
    """RLIMIT_AS, as `ulimit -v` sets it."""

    def enter() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    check(
        verb, words(verb, sound, shapes, adapter, tmp_path), enter, rf"this process may take {megabytes} MiB", tmp_path
    )


@pytest.fixture
def group(request) -> Iterator[Callable[[int], Callable[[], object]]]:
    """A control group of its own (version 1 or 2), where this machine lets one be made."""
    own = re.search(r"^(?:\d+:memory|0:):/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    first = re.search(r"^\d+:memory:/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    base = Path("/sys/fs/cgroup/memory") / first[1] if first else Path("/sys/fs/cgroup") / (own[1] if own else "")
    folder, limit = base / f"edgemm-test-{os.getpid()}", "memory.limit_in_bytes" if first else "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(1 << 30))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")

    def capped(megabytes: int) -> Callable[[], object]:
        (folder / limit).write_text(str(megabytes << 20))
        return lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))

    yield capped
    folder.rmdir()


@pytest.mark.parametrize("megabytes", MEGABYTES[:5])
@pytest.mark.parametrize("verb", VERBS)
def test_of_the_control_group(sound, shapes, adapter, tmp_path, group, verb, megabytes):
    """As containers have it: the kernel ends a process of the group."""
    check(verb, words(verb, sound, shapes, adapter, tmp_path), group(megabytes), rf"may take {megabytes} MiB", tmp_path)
