"""ONNX Runtime CUDA's bookkeeping, with stand-ins for driver and session; no device has run it: see docs/nvidia.md."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import onnxruntime
import pytest

from edgemm.errors import BundleError
from edgemm.runtimes.backend import ort_cuda_backend
from edgemm.runtimes.backend.cuda_memory import Cuda
from edgemm.runtimes.backend.engine import GraphFiles, LockedBinding, plan_threads
from edgemm.runtimes.backend.ort_cuda_backend import GraphBinding, OrtCudaEngine, open_engine
from tests.heard import hearing
from tests.runtimes.standin_cuda import CACHE, VARIANT, Driver


class Session:
    """Adds 10 to x and 1 to the cache; remembers which graph was asked for, and where its arrays are."""

    def __init__(self) -> None:
        self.graphs: list[str] = []
        self.places: dict[str, str] = {}

    def io_binding(self):
        return Io(self)

    def run_with_iobinding(self, io, options):
        self.graphs.append(options.get_run_config_entry("gpu_graph_id") if options else "none")
        io.arrays["present_key.0"][:] = io.arrays["past_key.0"] + 1
        io.arrays["y"][:] = io.arrays["x"] + 10


class Io:
    def __init__(self, session: Session) -> None:
        self.session, self.arrays, self.waits = session, {}, 0

    def bind_input(self, name, place, number, dtype, shape, address):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(address)
        self.arrays[name] = np.frombuffer(memory, dtype=dtype).reshape(shape)
        self.session.places[name] = place

    bind_output = bind_input

    def synchronize_outputs(self):
        self.waits += 1


def bound(graphs: bool):
    engine = OrtCudaEngine("transformer", VARIANT, Session(), threading.Lock(), Cuda(Driver()), graphs)
    x, y, cache = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), engine.zeros(CACHE, np.float16)
    binding = engine.bind({"x": x, "past_key.0": cache}, {"y": y, "present_key.0": cache})
    return engine, binding, x, y, cache


@pytest.mark.parametrize("graphs", [True, False], ids=["captured", "node by node"])
def test_every_run_reads_inputs_as_they_are_and_goes_on_from_the_cache(graphs):
    engine, binding, x, y, cache = bound(graphs)
    for run in range(1, 4):
        x += 1
        binding.run()
        np.testing.assert_array_equal(y, x + 10)
        np.testing.assert_array_equal(cache, np.full(CACHE, run))
    small = "cuda" if graphs else "cpu"
    assert engine.session.places == {"x": small, "y": small, "past_key.0": "cuda", "present_key.0": "cuda"}
    assert engine.session.graphs == (["-1", "1", "1"] if graphs else ["none"] * 3)
    assert type(binding) is (GraphBinding if graphs else LockedBinding)


def test_each_binding_is_a_graph_of_its_own_and_another_thread_captures_anew():
    engine, binding, x, y, cache = bound(True)
    other = engine.bind({"x": x, "past_key.0": cache}, {"y": y, "present_key.0": cache})
    for each in (binding, binding, other, other):
        each.run()
    thread = threading.Thread(target=lambda: (binding.run(), binding.run()))
    thread.start()
    thread.join()
    assert engine.session.graphs == ["-1", "1", "-1", "2", "-1", "1"]


@pytest.mark.parametrize("wanted", ["1", "0"])
@pytest.mark.parametrize("refuses", [True, False])
def test_graphs_are_captured_where_onnx_runtime_can_and_the_caller_may_say_no(monkeypatch, tmp_path, wanted, refuses):
    asked = []

    def open_session(files, provider, plan, options):
        asked.append("enable_cuda_graph" in options)
        if refuses and asked[-1]:
            raise BundleError("This session cannot use the graph capture feature as requested by the user")
        return Session()

    monkeypatch.setenv("EDGEMM_CUDA_GRAPHS", wanted)
    monkeypatch.setattr(ort_cuda_backend, "open_session", open_session)
    monkeypatch.setattr(ort_cuda_backend, "shared_cuda", lambda: Cuda(Driver()))
    with hearing() as heard:
        opened = open_engine(GraphFiles("transformer", tmp_path, None, VARIANT), "", plan_threads(1), threading.Lock())
    assert asked == {("1", True): [True, False], ("1", False): [True]}.get((wanted, refuses), [False])
    assert opened.graphs == (wanted == "1" and not refuses)
    assert any("runs some of its nodes on the CPU" in line for line in heard.lines) == (wanted == "1" and refuses)


def test_onnx_runtime_has_what_we_call():
    """Its Python bindings are the same for CPU and CUDA."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "1")
    assert options.get_run_config_entry("gpu_graph_id") == "1"
    assert hasattr(onnxruntime.IOBinding, "synchronize_outputs")
