"""The real onnxruntime-gpu over empty CUDA libraries: what it would do with our graphs, with no GPU.

`make test-cuda-registry` brings it; tests/families/test_nvidia_graphs.py asks it about other families.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cuda_stub import make_stubs
from benchmarks.uncompared_graphs import write_bundles
from tests.export.nano import needs_opset_24

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(os.environ.get("EDGEMM_ORT_GPU", ROOT / "build" / "ort-gpu"))

needs_registry = pytest.mark.skipif(
    not (PACKAGES / "onnxruntime").is_dir() or shutil.which("cc") is None,
    reason="make test-cuda-registry brings it, and wants a C compiler",
)
PRECISIONS = ("fp16", "int8", "int4", "fp32")


def rows_of(bundles, folder):
    """A row a component; none of them is wrong."""
    script = [sys.executable, str(ROOT / "benchmarks" / "cuda_registry.py"), *map(str, bundles)]
    places = ["--packages", str(PACKAGES), "--stubs", str(folder / "stubs")]
    done = subprocess.run([*script, *places], capture_output=True, text=True)
    rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    assert done.returncode == 0 and not any(row["problems"] for row in rows), done.stdout
    return rows


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One a precision, for `cuda`, written without comparing anything."""
    folder = tmp_path_factory.mktemp("cuda")
    return list(write_bundles(ROOT / "checkpoints" / "micro-shapes", PRECISIONS, folder, target="cuda"))


@pytest.mark.slow
@needs_opset_24
@needs_registry
def test_every_component_is_one_captured_graph_that_reads_its_inputs(bundles, tmp_path):
    rows = rows_of(bundles, tmp_path)
    assert len(rows) == 5 * len(PRECISIONS)
    assert all(row["ran"] == "yes" and row["captured"] and row["on_gpu"] > row["on_cpu"] for row in rows)


LOOPS = """
import gc, sys, threading, time
import edgemm
from PIL import Image
from benchmarks.cuda_registry import counts
from edgemm.runtimes import engines
from edgemm.runtimes.backend.cuda_memory import Cuda, shared_cuda
capture = Cuda.capture  # made to last: the other threads come while it does
Cuda.capture = lambda cuda, work: capture(cuda, lambda: (work(), time.sleep(0.01)))
engines.Engines.try_first = lambda self, compare=None: None  # kernels compute nothing: no answer is the recorded one
models, failed = [edgemm.load(sys.argv[1], device="cuda:1") for _ in "ab"], []

def work(model, picture=Image.new("RGB", (64, 64), "red")):
    try:
        session = model.session("be kind")
        session.generate_text("Hello", max_new_tokens=6)
        session.generate_text("What is this?", images=[picture], max_new_tokens=6)
        model.generate_texts(["Hello", "A longer question than that"], max_new_tokens=6)
        model.generate_image("a red circle", num_inference_steps=4, guidance_scale=3.0, num_images=2)
        given_up = model.stream_image("a red circle", num_inference_steps=8)
        [next(given_up) for _ in range(5)]
        given_up.close()
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=work, args=(model,)) for model in models * 2]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
[model.close() for model in models]
del models, threads
gc.collect()
with shared_cuda(1).turn():
    pass
told = counts()
assert told["launches"] > 20 and told["streams"] == 1, told
wrong = ("graphs", "device_memory", "pinned_memory", "refusals", "captured_copies", "strays", "tf32")
assert not any(told[name] for name in wrong), told
"""


@pytest.mark.slow
@needs_opset_24
@needs_registry
def test_whole_loops_of_two_models_in_four_threads_share_a_stream_and_leave_nothing(bundles, tmp_path):
    """Sessions, batches, pictures, drawings that are given up: on the second GPU of a machine that has none."""
    stubs = make_stubs(PACKAGES / "onnxruntime/capi/libonnxruntime_providers_cuda.so", tmp_path / "stubs")
    path = os.pathsep.join(map(str, (PACKAGES, ROOT)))
    variables = {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(stubs), "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOPS, str(bundles[0])], env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
