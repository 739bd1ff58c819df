"""TensorRT for RTX builds here for real: once for everybody, again after damage, and with a story when it cannot."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemm.device.child import device_bytes, environment
from edgemm.engines import builder, child
from edgemm.engines.builder import Limits, build_engine
from edgemm.engines.cache import EngineCache
from edgemm.engines.engine_spec import Place, Profile
from edgemm.errors import BundleError, ResourceError
from tests.engines.tiny_engines import LIMITS, needs_rtx, spec_of, write_graph
from tests.heard import hearing

pytestmark = needs_rtx
ROOT = Path(__file__).resolve().parents[2]
BUSY_S = 600  # a machine that trains at the same time

# In TensorRT's place: a build that is in its middle until somebody ends it.
ENDLESS = """
import os, time
from pathlib import Path
Path(os.environ["BUILDING"]).write_text(str(os.getpid()))
time.sleep(100_000)
"""

CALLER = """
import pickle, resource, sys
from pathlib import Path
from edgemm.engines.builder import build_engine
from edgemm.engines.cache import EngineCache
from edgemm.errors import EdgemmError
spec, graph, folder, limits, largest_file = pickle.loads(Path(sys.argv[1]).read_bytes())
if largest_file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
print("ready", flush=True)
try:
    built = build_engine(spec, graph, EngineCache(folder), limits)
except EdgemmError as error:
    sys.exit(print(error) or error.exit_code)
print("fresh" if built.fresh else "from the cache", built.entry.path)
"""


FULL_DISK = """
import os, pickle, subprocess, sys
from pathlib import Path
from edgemm.engines.builder import build_engine
from edgemm.engines.cache import EngineCache
from edgemm.errors import EdgemmError
old, new, graph, folder, limits = pickle.loads(Path(sys.argv[1]).read_bytes())
cache = EngineCache(folder)
engine = build_engine(old, graph, cache, limits).entry.path
whole = engine.read_bytes()
filler = open(folder / "filler", "wb", buffering=0)
try:
    while filler.write(bytes(4096)):
        pass
except OSError as error:
    print("full:", error.strerror)
code, story = 0, ""
try:
    build_engine(new, graph, cache, limits)
except EdgemmError as error:
    code, story = error.exit_code, str(error)
print(code, story)
print("intact" if engine.read_bytes() == whole and not build_engine(old, graph, cache, limits).fresh else "damaged")
print(sorted(path.name for path in folder.iterdir() if path.suffix != ".lock" and path.name != "filler") == [old.key])
"""


def may_mount() -> bool:
    """A file system of its own, in a process's own view of the machine: most containers and CI machines allow it."""
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "tiny.onnx")


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def call(graph, cache, tmp_path):
    """Starts build_engine in a process of its own."""

    def start(spec, largest_file=0, **variables):
        handle, wish = tempfile.mkstemp(dir=tmp_path)  # one each: who was started before may be reading its own
        os.close(handle)
        Path(wish).write_bytes(pickle.dumps((spec, graph, cache.folder, LIMITS, largest_file)))
        command = [sys.executable, "-c", CALLER, wish]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | variables, text=True, **pipes)

    return start


def left_in(cache):
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix != ".lock")


def test_an_engine_is_built_once_and_says_what_it_is_made_of(graph, cache):
    spec = spec_of(graph)
    with hearing() as heard:
        built = build_engine(spec, graph, cache, LIMITS)
    said = heard.statuses
    assert built.fresh and built.entry.path.stat().st_size == built.entry.record["size_bytes"] > 1000
    assert built.entry.record["layers"] == {"CONSTANT": 1, "MATRIX_MULTIPLY": 1}
    assert built.entry.record["rung"] == "as asked" and built.entry.record["largest"] == {"run": {"x": (8, 64)}}
    assert "building, once for this device" in said[0] and "so far, at most 600 s" in said[1]
    assert any("parsing" in line for line in said)
    again = build_engine(spec, graph, cache, LIMITS)
    assert not again.fresh and again.entry.path == built.entry.path
    assert left_in(cache) == [spec.key]


def test_eight_processes_build_one_engine(graph, cache, call):
    spec = spec_of(graph)
    callers = [call(spec) for _ in range(8)]
    ends = [caller.communicate(timeout=BUSY_S) for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 8, ends
    lines = [out.splitlines()[-1] for out, _ in ends]
    assert sorted(line.rpartition(" ")[0] for line in lines) == ["fresh"] + 7 * ["from the cache"]
    assert left_in(cache) == [spec.key]


def test_a_flipped_byte_and_a_foreign_engine_are_built_again_never_loaded(graph, cache):
    spec, foreign = spec_of(graph), spec_of(graph, place=Place("8.9", here=False))
    path = build_engine(spec, graph, cache, LIMITS).entry.path
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with hearing() as heard:
        assert build_engine(spec, graph, cache, LIMITS).fresh
        assert "its bytes are not those that were built; it is built again" in heard.lines[0]
        (cache.folder / spec.key).rename(cache.folder / foreign.key)
        assert build_engine(foreign, graph, cache, LIMITS).fresh
        assert "it was built for something else" in heard.lines[1]
    assert not build_engine(foreign, graph, cache, LIMITS).fresh


def test_kill_9_in_the_middle_leaves_nothing_that_is_loaded(graph, cache, call, tmp_path):
    spec, building = spec_of(graph), tmp_path / "building"
    (tmp_path / "endless").mkdir()
    (tmp_path / "endless" / "tensorrt_rtx.py").write_text(ENDLESS)
    path = os.pathsep.join(filter(None, [str(tmp_path / "endless"), os.environ.get("PYTHONPATH")]))
    caller = call(spec, PYTHONPATH=path, BUILDING=str(building))
    partial = cache.folder / f".{spec.key}.partial"
    deadline = time.monotonic() + BUSY_S
    while not (building.exists() and building.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    builder = int(building.read_text())
    assert alive(builder) and partial.exists()
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    while alive(builder) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(builder), "nobody waits for this build any more"
    assert cache.find(spec) == (None, "") and partial.exists()
    assert build_engine(spec, graph, cache, LIMITS).fresh
    assert left_in(cache) == [spec.key]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_full_disk_is_told_and_the_old_engine_stays(graph, cache, call):
    """A limit on the size of files stands for the disk: the write fails in the same way."""
    old = build_engine(spec_of(graph), graph, cache, LIMITS).entry
    before = old.path.read_bytes()
    caller = call(spec_of(graph, tf32=True), largest_file=old.record["size_bytes"] // 2)
    out, _ = caller.communicate(timeout=BUSY_S)
    assert caller.returncode == ResourceError.exit_code == 5
    assert "the disk is full" in out and "what stood in the cache is untouched" in out
    assert left_in(cache) == [spec_of(graph).key] and old.path.read_bytes() == before
    assert not build_engine(spec_of(graph), graph, cache, LIMITS).fresh


@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here: unshare -rm, tmpfs")
def test_a_disk_that_is_really_full_is_told_and_the_old_engine_stays(graph, tmp_path):
    """ENOSPC from the kernel: a file system of 1 MiB, filled up once the first engine stands on it."""
    folder, wish = tmp_path / "disk", tmp_path / "wish"
    folder.mkdir()
    wish.write_bytes(pickle.dumps((spec_of(graph), spec_of(graph, tf32=True), graph, folder, LIMITS)))
    script = 'mount -t tmpfs -o size=1m,mode=700 tmpfs "$1" && exec "$2" -c "$3" "$4"'
    words = ["unshare", "-rm", "sh", "-c", script, "sh", str(folder), sys.executable, FULL_DISK, str(wish)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=BUSY_S)
    full, told, *left = ran.stdout.splitlines()
    assert full == "full: No space left on device", ran.stderr
    assert told.startswith(f"{ResourceError.exit_code} ") and "the disk is full" in told
    assert "what stood" in told and "untouched" in told
    assert left == ["intact", "True"]


def test_a_cap_that_is_too_small_tells_every_rung(graph, cache):
    with hearing() as heard, pytest.raises(ResourceError) as told:
        build_engine(spec_of(graph, workspace_bytes=64 << 20), graph, cache, Limits(1 << 20, 600))
    rungs = ["as asked", "a workspace of 16 MiB", "optimization level 1", "smaller shapes"]
    assert re.findall(r"(?:: |; )([^:;]+): it grew past 1 MiB", str(told.value)) == rungs
    assert [line.rpartition("next: ")[2] for line in heard.lines] == rungs[1:]
    assert left_in(cache) == []


def test_time_that_runs_out_is_told(graph, cache):
    with pytest.raises(ResourceError, match=r"as asked: it was not done after 0 s; optimization level 1: "):
        build_engine(spec_of(graph), graph, cache, Limits(4 << 30, 1e-9))


def test_a_node_that_the_parser_refuses_is_named(tmp_path, cache):
    graph = write_graph(tmp_path / "refused.onnx", "NonZero")
    with pytest.raises(BundleError, match="TensorRT's parser refuses it: NonZero 'product'"):
        build_engine(spec_of(graph), graph, cache, LIMITS)
    assert left_in(cache) == []


def test_attention_without_a_kernel_of_its_own_is_taken_apart(tmp_path, cache):
    """Float32 attention: TensorRT has a kernel for it in half precision only."""
    side = (("q", 4), ("k", 4), ("v", 4))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, heads, 32, 16]) for name, heads in side]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 32, 16])
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attend")
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, [output]), opset_imports=[helper.make_opsetid("", 24)]
    )
    path = tmp_path / "attention.onnx"
    onnx.save(model, path)
    shapes = {name: ((1, 4, 32, 16),) * 3 for name, _ in side}
    spec = spec_of(path, profiles=(Profile("run", shapes),))
    with hearing() as heard:
        built = build_engine(spec, path, cache, LIMITS)
    assert built.entry.record["rung"] == "attention taken apart" and "next: attention taken apart" in heard.lines[0]
    assert np.sum([built.entry.record["layers"][f"ATTENTION_{end}"] for end in ("INPUT", "OUTPUT")]) == 2


def test_the_second_gpu_is_all_that_its_builder_sees(graph, cache, monkeypatch):
    """By its own name: CUDA_VISIBLE_DEVICES may renumber."""
    given = []
    monkeypatch.setattr(builder, "gpu_uuid", lambda number: f"GPU-{number}")

    def attempt(what, wish, memory_bytes, timeout_s, environment):
        given.append(environment)
        return builder.Outcome(None, "refused", "not tried")

    monkeypatch.setattr(builder, "attempt", attempt)
    for number in (0, 1):
        with pytest.raises(BundleError):
            build_engine(spec_of(graph, place=Place("8.9", "RTX 4090", number=number)), graph, cache, LIMITS)
    monkeypatch.setattr(builder, "gpu_uuid", lambda number: "")  # of a driver that is too old to tell
    with pytest.raises(BundleError):
        build_engine(spec_of(graph, place=Place("8.9", "RTX 4090", number=1)), graph, cache, LIMITS)
    assert given == [{}, *({"CUDA_VISIBLE_DEVICES": name} for name in ("GPU-1", "1"))]


def test_what_a_jetsons_gpu_holds_of_the_shared_memory_is_read(tmp_path):
    (tmp_path / "proc").mkdir()
    assert device_bytes(tmp_path) == 0
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000000 kB\nNvMapMemFree: 94784 kB\nNvMapMemUsed: 805068 kB\n")
    assert device_bytes(tmp_path) == 805068 * 1024


def test_what_the_gpu_holds_more_than_before_counts_under_the_cap(monkeypatch, tmp_path):
    """Of a builder that never ends."""
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)")
    held = iter([2 << 30])  # by others, before; then 8 GiB
    monkeypatch.setattr(builder, "device_bytes", lambda: next(held, 8 << 30))
    path = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    outcome = builder.attempt("product", {"tensorrt": "endless"}, 4 << 30, BUSY_S, {"PYTHONPATH": path})
    assert (outcome.kind, outcome.text) == ("memory", "it grew past 4096 MiB") and outcome.peak_bytes >= 6 << 30


@needs_rtx
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_not_rounded_unless_asked_and_rtx_engines_can_be_captured(tf32):
    import tensorrt_rtx as trt

    wish = {"workspace_bytes": 1 << 20, "opt_level": 0, "sm": "86", "profiles": [], "tf32": tf32}
    config = child._config(trt, trt.Builder(trt.Logger(trt.Logger.ERROR)), wish, lambda line: None)
    assert config.get_flag(trt.BuilderFlag.TF32) == tf32
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
