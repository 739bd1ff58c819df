"""ONNX Runtime CUDA's bookkeeping, with stand-ins for driver and session; no device has run it: see docs/nvidia.md."""

from __future__ import annotations

import ctypes
import gc
import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from edgemm.device.fatbin import CudaCode
from edgemm.device.gpu import CudaDriver, Gpu
from edgemm.device.providers import one_node_model
from edgemm.errors import BundleError
from edgemm.runtimes.backend import ort_cuda_backend
from edgemm.runtimes.backend.cuda_memory import Cuda
from edgemm.runtimes.backend.engine import GraphFiles, plan_threads
from edgemm.runtimes.backend.ort_cuda_backend import OrtCudaEngine, open_engine
from tests.heard import hearing
from tests.runtimes.standin_cuda import CACHE, VARIANT, Driver

Place = SimpleNamespace  # name of a memory, as ONNX Runtime tells it


class Session:
    """Adds 10 to x and 1 to the cache; what is bound on another side than its node's is copied then and there, and the
    first two runs of a binding allocate, as the real one's do (benchmarks/cuda_registry.py saw it)."""

    def __init__(self, driver: Driver, on_cpu: tuple[str, ...] = ()) -> None:
        self.driver, self.on_cpu, self.options = driver, on_cpu, []

    def get_inputs(self):
        return [Place(name=spec.name) for spec in VARIANT.inputs]

    def get_outputs(self):
        return [Place(name=spec.name) for spec in VARIANT.outputs]

    def _memories(self, specs):
        return [Place(name="Cpu" if spec.name in self.on_cpu else "Cuda") for spec in specs]

    def get_input_memory_infos(self):
        return self._memories(VARIANT.inputs)

    def get_output_memory_infos(self):
        return self._memories(VARIANT.outputs)

    def io_binding(self):
        return Io(self)

    def run_with_iobinding(self, io, options):
        keys = ("gpu_graph_id", "disable_synchronize_execution_providers")
        self.options.append(tuple(options.get_run_config_entry(key) for key in keys))
        arrays, io.runs = io.arrays, io.runs + 1
        if io.runs <= 2 and self.driver._unsafe():
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")  # its cudaMalloc

        def work():
            arrays["present_key.0"][:] = arrays["past_key.0"] + 1
            arrays["y"][:] = arrays["x"] + 10

        self.driver.do(work)


class Io:
    def __init__(self, session: Session) -> None:
        self.session, self.arrays, self.places, self.runs = session, {}, {}, 0

    def bind_input(self, name, place, number, dtype, shape, address):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        seen = address if place == "cpu" else self.session.driver.address(address, size)
        memory = (ctypes.c_uint8 * size).from_address(seen)
        array = np.frombuffer(memory, dtype=dtype).reshape(shape)
        stays = (place == "cpu") == (name in self.session.on_cpu)
        self.arrays[name], self.places[name] = (array if stays else array.copy()), (place, number)

    bind_output = bind_input


def opened(graphs: bool, on_cpu: tuple[str, ...] = ()):
    driver = Driver()
    return OrtCudaEngine(
        "transformer", VARIANT, Session(driver, on_cpu), threading.Lock(), Cuda(driver), graphs
    ), driver


def bound(engine):
    x, y, cache = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), engine.zeros(CACHE, np.float16)
    return engine.bind({"x": x, "past_key.0": cache}, {"y": y, "present_key.0": cache}), x, y, cache


@pytest.mark.parametrize("on_cpu", [(), ("x",)], ids=["all on the GPU", "x is read on the CPU"])
@pytest.mark.parametrize("graphs", [True, False], ids=["captured", "node by node"])
def test_every_run_reads_inputs_as_they_are_and_goes_on_from_the_cache(graphs, on_cpu):
    engine, driver = opened(graphs, on_cpu)
    binding, x, y, cache = bound(engine)
    for run in range(1, 5):
        x += 1
        binding.run()
        np.testing.assert_array_equal(y, x + 10)
        np.testing.assert_array_equal(cache, np.full(CACHE, run))
    captured = graphs and not on_cpu
    assert driver.alive["launchable"] == captured and driver.log.count("cuGraphLaunch") == 2 * captured
    assert engine.session.options == [("-1", "1")] * (3 if captured else 4), "capture and wait are ours"


def test_a_graph_goes_with_its_binding_and_any_thread_may_launch_it():
    engine, driver = opened(True)
    for _ in range(3):
        binding, x, y, _ = bound(engine)
        for _ in range(3):
            binding.run()
        x += 5
        thread = threading.Thread(target=binding.run)
        thread.start()
        thread.join()
        np.testing.assert_array_equal(y, x + 10)
    del binding
    gc.collect()
    with engine.cuda.turn():
        assert driver.alive["launchable"] == 0 and driver.alive["streams"] == 1


@pytest.mark.parametrize("wanted", ["1", "0"])
@pytest.mark.parametrize("refuses", [True, False])
def test_graphs_are_captured_where_onnx_runtime_can_and_the_caller_may_say_no(monkeypatch, tmp_path, wanted, refuses):
    """On the second GPU, with the stream held and CUDA's libraries loaded."""
    asked, loaded = [], []

    driver = Driver()
    cuda = {number: Cuda(driver, number) for number in (0, 1)}

    def open_session(files, provider, plan, options):
        asked.append("enable_cuda_graph" in options)
        rounds = "1" if refuses else "0"  # as the variable is set below
        assert (options["use_tf32"], options["device_id"], options["user_compute_stream"]) == (rounds, "1", "77")
        assert loaded == ["libraries"] and cuda[1].lock._is_owned()
        if refuses and asked[-1]:
            raise BundleError("This session cannot use the graph capture feature as requested by the user")
        return Session(driver)

    monkeypatch.setenv("EDGEMM_CUDA_GRAPHS", wanted)
    monkeypatch.setattr(ort_cuda_backend, "open_session", open_session)
    monkeypatch.setenv("EDGEMM_TF32", "1" if refuses else "0")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("libraries"))
    ort_cuda_backend._load_libraries.cache_clear()
    monkeypatch.setattr(ort_cuda_backend, "shared_cuda", cuda.get)
    with hearing() as heard:
        files = GraphFiles("transformer", tmp_path, None, VARIANT)
        opened = open_engine(files, "", plan_threads(1), threading.Lock(), 1)
    assert asked == {("1", True): [True, False], ("1", False): [True]}.get((wanted, refuses), [False])
    assert opened.graphs == (wanted == "1" and not refuses)
    assert any("runs some of its nodes on the CPU" in line for line in heard.lines) == (wanted == "1" and refuses)
    binding, *_ = bound(opened)
    assert binding._io.places == dict.fromkeys(binding._io.places, ("cuda", 1))


@pytest.mark.parametrize(
    ("code", "told"), [(None, ""), (CudaCode((80,)), ""), (CudaCode((90,)), "for SM 9.0, this GPU is 8.6")]
)
def test_a_wheel_without_code_for_the_gpu_is_passed_over_before_its_first_kernel(monkeypatch, code, told):
    """PyPI's wheel for Arm installs on an Orin: `auto` would take it."""
    found = CudaDriver("13.0", (Gpu("RTX 3060", "8.6", 12 << 30),), "")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort_cuda_backend.PROVIDER])
    monkeypatch.setattr(ort_cuda_backend, "probe_cuda", lambda: found)
    monkeypatch.setattr(ort_cuda_backend, "find_cuda_code", lambda: code)
    problem = ort_cuda_backend.problem()
    assert told in problem and bool(problem) == bool(told)
    monkeypatch.setattr(ort_cuda_backend, "what_it_lacks", lambda provider: "libcudnn.so.9: not found")
    assert ort_cuda_backend.problem() == (problem or "libcudnn.so.9: not found")


def test_onnx_runtime_has_what_we_call():
    """Its Python bindings are the same for CPU and CUDA."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    assert options.get_run_config_entry("gpu_graph_id") == "-1"
    session = onnxruntime.InferenceSession(one_node_model(), providers=["CPUExecutionProvider"])
    assert session.get_input_memory_infos()[0].name == session.get_output_memory_infos()[0].name == "Cpu"
    assert hasattr(onnxruntime, "preload_dlls")
