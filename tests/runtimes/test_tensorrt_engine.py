"""TensorRT's bookkeeping, with stand-ins for driver and engine; and every name of it that we use, in NVIDIA's bindings.

No device has run this: see docs/nvidia.md.
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import gc
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgemm.bundle.components import TensorSpec
from edgemm.device.gpu import CudaDriver, Gpu
from edgemm.engines import bundle_engines
from edgemm.errors import EdgemmError, InputError, MissingError, ResourceError
from edgemm.runtimes import engines as backends
from edgemm.runtimes.backend import cuda_memory, tensorrt_backend
from edgemm.runtimes.backend.cuda_binding import CudaBinding
from edgemm.runtimes.backend.cuda_memory import Cuda
from edgemm.runtimes.backend.engine import GraphFiles, allocator, plan_threads
from edgemm.runtimes.backend.tensorrt_engine import TensorRTEngine
from tests.runtimes.standin_cuda import CACHE, RTX, TRT, VARIANT, Driver, Engine, RtxEngine, RuntimeCache

NARROW, WIDE = ((1, 4), (1, 4), (1, 4)), ((1, 1), (1, 8), (1, 64))


def opened(driver=None, **options):
    driver = driver or Driver()
    cuda = Cuda(driver)
    return TensorRTEngine(TRT, "transformer", VARIANT, (None, None, Engine(driver, **options)), cuda, threading.Lock())


def bound(engine, shared=True, width=4):
    zeros = engine.zeros if shared else np.zeros
    arrays = {"x": np.arange(width, dtype=np.float32)[None], "y": np.zeros((1, width), np.float32)}
    cache = zeros(CACHE, np.float16)
    inputs, outputs = {"x": arrays["x"], "past_key.0": cache}, {"y": arrays["y"], "present_key.0": cache}
    return engine.bind(inputs, outputs), arrays["x"], arrays["y"], cache


def run_three_times(binding, x, y):
    """The second run captures, the third replays; each reads its input as it is."""
    for _ in range(3):
        x += 1
        binding.run()
        np.testing.assert_array_equal(y, x + 10)


@pytest.mark.parametrize("aliased", [True, False], ids=["in place", "copied back"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "staged"])
def test_every_run_reads_inputs_as_they_are_and_goes_on_from_the_cache(aliased, shared):
    binding, x, y, cache = bound(opened(aliased=aliased), shared)
    for run in range(1, 6):  # the second one captures, the later ones replay
        x += 1
        binding.run()
        np.testing.assert_array_equal(y, x + 10)
        np.testing.assert_array_equal(cache, np.full(CACHE, run))


def test_what_numpy_writes_between_runs_counts():
    binding, _, _, cache = bound(opened())
    binding.run()
    cache[:] = 7
    binding.run()
    assert (cache == 8).all()


def test_one_buffer_where_the_engine_updates_in_place_and_two_where_it_cannot():
    for aliased in (True, False):
        engine = opened(aliased=aliased)
        _, _, _, cache = bound(engine)
        addresses = engine.engine.contexts[0].addresses
        assert addresses["past_key.0"] == cache.ctypes.data
        assert (addresses["present_key.0"] == cache.ctypes.data) == aliased


def test_the_second_run_is_captured_and_the_third_is_one_launch():
    driver = Driver()
    binding, *_ = bound(opened(driver))
    binding.run()
    assert "cuStreamBeginCapture_v2" not in driver.log
    binding.run()
    del driver.log[:]
    binding.run()
    assert [call for call in driver.log if call != "cuCtxSetCurrent"] == ["cuGraphLaunch", "cuStreamSynchronize"]


def test_what_rtx_compiles_is_compiled_once_and_kept_for_the_next_process(tmp_path, monkeypatch):
    """By two contexts of one process, and by an engine that is opened later."""
    engines = []
    serialize = RuntimeCache.serialize

    def alone(cache):
        assert engines[-1].cuda.lock._is_owned(), "another context may be compiling into it"
        return serialize(cache)

    monkeypatch.setattr(RuntimeCache, "serialize", alone)
    for _ in "12":
        driver = Driver()
        parts = (None, None, RtxEngine(driver))
        engines.append(TensorRTEngine(RTX, "g", VARIANT, parts, Cuda(driver), threading.Lock(), tmp_path / "compiled"))
        for binding, *_ in [bound(engines[-1]), bound(engines[-1])]:
            binding.run()
            binding.run()
    assert [engine.engine.compiled for engine in engines] == [1, 0]
    kernels = [context.kernels for engine in engines for context in engine.engine.contexts]
    assert kernels == ["eager"] * 4, "what is compiled later would not be in the graph"
    assert (tmp_path / "compiled").read_bytes() == b"kernels of this GPU"


def test_an_engine_that_cannot_be_captured_goes_on_as_before():
    driver = Driver()
    binding, x, y, _ = bound(opened(driver))
    driver.fails["cuStreamEndCapture"] = 901
    run_three_times(binding, x, y)
    assert "cuGraphLaunch" not in driver.log


def test_the_narrowest_profile_that_fits_is_taken():
    engine = opened(profiles=(WIDE, NARROW))
    bound(engine, width=4)
    bound(engine, width=60)
    assert [context.profile for context in engine.engine.contexts] == [1, 0]
    with pytest.raises(InputError, match=r"no profile for \{'x': \(1, 65\)\}"):
        bound(engine, width=65)


def test_a_batch_that_no_profile_takes_is_run_row_by_row_in_place():
    """As generate_texts steps several replies: each row has its own part of one cache."""
    specs = (TensorSpec("x", "float32", ("b", "s")), TensorSpec("y", "float32", ("b", "s")))
    caches = [TensorSpec(f"{name}_key.0", "float16", ("b", *CACHE[1:])) for name in ("past", "present")]
    batched = dataclasses.replace(VARIANT, inputs=(specs[0], caches[0]), outputs=(specs[1], caches[1]))
    driver = Driver()
    engine = TensorRTEngine(TRT, "transformer", batched, (None, None, Engine(driver)), Cuda(driver), threading.Lock())
    x, y = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((3, 4), np.float32)
    cache = engine.zeros((3, *CACHE[1:]), np.float16)
    binding = engine.bind({"x": x, "past_key.0": cache}, {"y": y, "present_key.0": cache})
    for run in range(1, 4):
        x += 1
        binding.run()
        np.testing.assert_array_equal(y, x + 10)
        np.testing.assert_array_equal(cache, np.full(cache.shape, run))
    rows = [context.addresses["present_key.0"] for context in engine.engine.contexts]
    assert rows == [row.ctypes.data for row in cache]
    with pytest.raises(InputError, match=r"no profile for \{'x': \(1, 5\)\}"):
        wide = np.zeros((3, 5), np.float32)
        engine.bind({"x": wide, "past_key.0": cache}, {"y": wide.copy(), "present_key.0": cache})


def free_of(driver, cuda):
    """What is alive once nobody uses anything any more."""
    gc.collect()
    with cuda.turn():
        return {kind: count for kind, count in driver.alive.items() if count}


def test_contexts_share_scratch_memory_and_leave_nothing_behind():
    driver = Driver()
    engine = opened(driver)
    bindings = [bound(engine) for _ in range(5)]
    for binding, *_ in bindings:
        for _ in range(3):
            binding.run()
    assert driver.alive["launchable"] == 5 and driver.alive["streams"] == 1
    assert len({context.scratch for context in engine.engine.contexts}) == 1
    cuda = engine.cuda
    engine.engine.contexts.clear()
    del bindings, binding, engine, _
    assert free_of(driver, cuda) == {"streams": 1}


def test_what_is_dropped_while_a_stream_is_captured_does_not_end_the_capture():
    """The garbage collector may come at any time; memory is freed by the next turn."""
    driver = Driver()
    engine = opened(driver)
    binding, x, y, _ = bound(engine)
    binding.run()
    garbage, enqueue = [engine.zeros((64,), np.float32)], binding.enqueue
    binding.enqueue = lambda: (garbage.clear(), gc.collect(), enqueue())
    for _ in range(2):
        binding.run()
        np.testing.assert_array_equal(y, x + 10)
    assert driver.alive["launchable"] == 1
    del binding
    assert free_of(driver, engine.cuda)["streams"] == 1


def test_an_engine_that_waits_inside_is_not_captured_and_still_right():
    driver = Driver()
    binding, x, y, cache = bound(opened(driver, waits=True))
    for run in range(1, 4):
        x += 1
        binding.run()
        np.testing.assert_array_equal(y, x + 10)
        np.testing.assert_array_equal(cache, np.full(CACHE, run))
    assert "cuGraphLaunch" not in driver.log


def test_what_fails_while_it_is_captured_leaves_nothing_and_goes_on_as_before():
    driver = Driver()
    engine = opened(driver)
    engine.engine.fails_in_capture = True
    for binding, x, y, _ in (bound(engine), bound(engine)):
        run_three_times(binding, x, y)
    assert driver.log.count("cuStreamBeginCapture_v2") == 2 and driver.alive["graphs"] == 0


def test_a_context_that_the_garbage_collector_finds_does_not_end_a_capture():
    """TensorRT frees its own memory then; the collector comes when Python likes."""
    driver = Driver()
    engine = opened(driver)
    binding, x, y, _ = bound(engine)
    binding.run()
    lost, _, _, _ = bound(engine)
    lost.itself = lost
    engine.engine.contexts.clear()
    del lost
    enqueue, thresholds = binding.enqueue, gc.get_threshold()
    binding.enqueue = lambda: (gc.set_threshold(1), [[] for _ in range(100)], enqueue())
    try:
        binding.run()
    finally:
        gc.set_threshold(*thresholds)
    assert driver.alive["launchable"] == 1 and gc.isenabled()
    np.testing.assert_array_equal(y, x + 10)


def test_nothing_is_bound_while_another_binding_is_captured():
    """A new context's profile is work on the stream, and would be in that graph."""
    driver = Driver()
    engine = opened(driver)
    binding, x, y, _ = bound(engine)
    binding.run()
    enqueue, told = binding.enqueue, []
    other = threading.Thread(target=lambda: told.append(bound(engine)))

    def while_captured():
        if not told:
            other.start()
            other.join(0.2)
        enqueue()

    binding.enqueue = while_captured
    binding.run()
    other.join()
    ((second, *_),) = told
    for each in (second, binding):
        each.run()
    assert driver.alive["launchable"] == 1, "the second one has run once"
    np.testing.assert_array_equal(y, x + 10)


def test_a_larger_context_gets_more_scratch_and_a_smaller_one_keeps_its_own():
    engine = opened(profiles=(NARROW, WIDE))
    bindings = [bound(engine, width=width) for width in (4, 60, 4)]
    for _ in range(3):
        for binding, x, y, _ in bindings:
            binding.run()
            np.testing.assert_array_equal(y, x + 10)
    first, second, third = (context.scratch for context in engine.engine.contexts)
    assert first != second and second == third


def test_what_nobody_wants_has_a_place_to_be_written_to():
    """Keys and values of a picture's blocks, which a decoding step leaves unbound."""
    spared = TensorSpec("block_key.0", "float16", CACHE)
    driver = Driver()
    engine = Engine(driver)
    engine.spared = (spared.name,)
    variant = dataclasses.replace(VARIANT, outputs=(*VARIANT.outputs, spared))
    binding, x, y, _ = bound(
        TensorRTEngine(TRT, "transformer", variant, (None, None, engine), Cuda(driver), threading.Lock())
    )
    run_three_times(binding, x, y)


def test_kernels_are_waited_for_before_they_are_captured():
    """TensorRT for RTX says itself when a stream of it can be."""
    driver = Driver()
    engine = opened(driver)
    engine.engine.capturable_from = 3
    binding, *_ = bound(engine)
    for _ in range(3):
        binding.run()
    assert "cuStreamBeginCapture_v2" not in driver.log
    binding.run()
    assert driver.alive["launchable"] == 1


def test_no_graph_is_captured_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("EDGEMM_CUDA_GRAPHS", "0")
    driver = Driver()
    binding, x, y, _ = bound(opened(driver))
    run_three_times(binding, x, y)
    assert "cuStreamBeginCapture_v2" not in driver.log


def test_the_second_gpu_is_asked_for_its_context_and_one_that_is_not_there_refused(monkeypatch):
    driver = Driver()
    assert Cuda(driver, 1).context.value == 1001
    with pytest.raises(EdgemmError, match="cuDeviceGet returns 101"):
        Cuda(driver, 7)
    one = CudaDriver("13.0", (Gpu("RTX 4090", "8.9", 24 << 30),), "")
    monkeypatch.setattr("edgemm.device.gpu.probe_cuda", lambda: one)
    with pytest.raises(MissingError, match="there is no GPU 1, only 1"):
        cuda_memory.open_cuda(1)


def test_engines_of_a_device_are_built_for_it_and_opened_on_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(tensorrt_backend, "shared_cuda", lambda number: asked.append(("opened on", number)))
    monkeypatch.setattr(bundle_engines, "engine_for", lambda *words: asked.append(("built for", words[-1])))
    monkeypatch.setattr(tensorrt_backend, "load_engine", lambda *words: asked.append("loaded"))
    monkeypatch.setattr(tensorrt_backend.importlib, "import_module", lambda name: TRT)
    files = GraphFiles("transformer", tmp_path / VARIANT.graph, None, VARIANT)
    tensorrt_backend.TENSORRT_RTX.open_engine(files, "", plan_threads(1), threading.Lock(), 1)
    assert asked == [("opened on", 1), ("built for", 1), "loaded"]


@pytest.mark.parametrize(("capability", "told"), [("8.9", ""), ("6.1", "GTX 1080 is no RTX GPU")])
def test_a_gpu_that_rtx_does_not_know_is_passed_over(monkeypatch, capability, told):
    cuda = CudaDriver("13.0", (Gpu("GTX 1080", capability, 8 << 30),), "")
    monkeypatch.setattr("edgemm.device.gpu.probe_cuda", lambda: cuda)
    monkeypatch.setattr(tensorrt_backend, "find_spec", lambda name: name)
    problem = tensorrt_backend.TENSORRT_RTX.problem("rtx")
    assert told in problem and bool(problem) == bool(told)


def test_threads_that_load_at_once_share_one_stream(monkeypatch):
    def slowly(number):
        time.sleep(0.05)
        return Cuda(Driver(), number)

    monkeypatch.setattr(cuda_memory, "_OPENED", {})
    monkeypatch.setattr(cuda_memory, "open_cuda", slowly)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: cuda_memory.shared_cuda(0), range(4)))
    assert len(set(map(id, opened))) == 1 and cuda_memory.shared_cuda(1) is not opened[0]


def test_a_row_that_is_not_aligned_goes_through_memory_that_is():
    """Row 1 of a prefix_mask of 118 slots begins at byte 118."""
    driver = Driver()
    engine = opened(driver)
    x, y = (engine.zeros((2, 4), np.float32)[1:] for _ in "xy")
    cache = engine.zeros(CACHE, np.float16)
    binding = engine.bind({"x": x, "past_key.0": cache}, {"y": y, "present_key.0": cache})
    run_three_times(binding, x, y)


def test_a_first_row_that_begins_where_the_whole_does_is_staged_as_a_row():
    driver = Driver()
    engine = opened(driver)
    binding = CudaBinding(engine, engine.cuda, {}, {}, False)
    whole = np.arange(8, dtype=np.float32).reshape(2, 4)
    seen = [binding.given(array) for array in (whole, whole[:1], whole)]
    assert [array.shape for array in seen] == [(2, 4), (1, 4), (2, 4)] and seen[0] is seen[2]


TOUCHING = """
import threading, numpy as np
from edgemm.runtimes.backend.cuda_memory import Cuda
from edgemm.runtimes.backend.tensorrt_engine import TensorRTEngine
from tests.runtimes.standin_cuda import CACHE, TRT, VARIANT, Driver, Engine
driver = Driver(concurrent={concurrent})
engine = TensorRTEngine(TRT, "transformer", VARIANT, (None, None, Engine(driver)), Cuda(driver), threading.Lock())
cache, others = engine.zeros(CACHE, np.float16), engine.{memory}(CACHE, np.float16)
x, y = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
binding = engine.bind({{"x": x, "past_key.0": cache}}, {{"y": y, "present_key.0": cache}})
driver.while_running = lambda: others.__iadd__(1)  # another conversation grows its cache
for _ in range(3):
    binding.run()
assert (cache == 3).all() and (others == 3).all()
"""


@pytest.mark.parametrize("concurrent", [True, False], ids=["PC", "Orin, WSL2"])
def test_another_conversations_cache_may_be_written_while_a_kernel_runs(concurrent):
    script = TOUCHING.format(concurrent=concurrent, memory="zeros")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_stand_in_takes_a_process_down_that_touches_managed_memory_then():
    script = TOUCHING.replace("Cuda(driver)", "cuda").replace("engine = ", "cuda = Cuda(driver)\nengine = ", 1)
    script = script.replace("cache, others", "cuda.touched_at_once = True\ncache, others")
    done = subprocess.run([sys.executable, "-c", script.format(concurrent=False, memory="zeros")], capture_output=True)
    assert done.returncode == -signal.SIGSEGV


def test_models_side_by_side_take_turns_on_the_one_stream():
    """Two models have two locks; what one puts on the stream while the other captures would be in its graph."""
    driver = Driver()
    cuda = Cuda(driver)
    engines = [
        TensorRTEngine(TRT, "transformer", VARIANT, (None, None, Engine(driver)), cuda, threading.Lock()) for _ in "ab"
    ]

    def converse(engine):
        for _ in range(20):
            binding, x, y, _ = bound(engine)
            for _ in range(4):
                x += 1
                binding.run()
                np.testing.assert_array_equal(y, x + 10)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(converse, engines * 2))
    assert driver.alive["streams"] == 1


def test_a_view_of_shared_memory_is_shared_and_freed_memory_is_not():
    driver = Driver()
    cuda = Cuda(driver)
    array = cuda.zeros((4, 8), np.float32)
    assert not array.any() and cuda.shared.holds(array) and cuda.shared.holds(array[1:2])
    assert not cuda.shared.holds(np.zeros((4, 8), np.float32))
    row = array[1:2]
    del array
    gc.collect()
    assert cuda.shared.holds(row) and not cuda.holds(row), "the view keeps it alive"
    there = (ctypes.c_uint8 * row.nbytes).from_address(row.ctypes.data)
    del row
    assert "memory" not in free_of(driver, cuda) and driver.log[-1] == "cuMemFree_v2"
    assert not cuda.shared.holds(np.frombuffer(there, np.uint8)), "what lies there later is numpy's own"


def test_what_the_driver_says_becomes_an_error_of_ours():
    driver = Driver()
    cuda = Cuda(driver)
    driver.fails["cuMemAllocManaged"] = 2
    with pytest.raises(ResourceError, match="out of GPU memory in cuMemAllocManaged"):
        cuda.zeros((1,), np.float32)
    driver.fails["cuMemAllocManaged"] = 700
    with pytest.raises(EdgemmError, match=r"cuMemAllocManaged returns 700"):
        cuda.zeros((1,), np.float32)


def test_an_engine_that_has_no_memory_of_its_own_gets_numpys():
    assert allocator(object()) is np.zeros
    engine = opened()
    assert allocator(engine) == engine.zeros


@pytest.mark.parametrize("device", ["rtx", "jetson-orin-jp6", "jetson-thor"])
def test_a_device_that_is_not_there_is_exit_4_with_this_platforms_line(device, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, "find_spec", lambda name: None)
    with pytest.raises(
        MissingError, match=r"was asked for: .*(pip install 'edgemm\[tensorrt-rtx\]'|no such Jetson)"
    ) as told:
        backends.select(device, [device])
    assert told.value.exit_code == 4


NAMES = {  # variable in our code -> class of the bindings
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "error": "ParserError",
    "layer": "ILayer",
    "runtime": "Runtime",
    "engine.engine": "ICudaEngine",
    "self.engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
    "self._cache": "IRuntimeCache",
}


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="pip install tensorrt-rtx")
@pytest.mark.parametrize("module", ["edgemm/engines/child.py", "edgemm/runtimes/backend/tensorrt_engine.py"])
def test_every_name_that_we_use_is_in_nvidias_bindings(module):
    import tensorrt_rtx as trt

    classes = {name: getattr(trt, kind) for name, kind in NAMES.items()} | {"trt": trt}
    used = {
        (ast.unparse(node.value), node.attr)
        for node in ast.walk(ast.parse((Path(__file__).resolve().parents[2] / module).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in classes
    }
    looked_for = {("layer", "attention"), ("layer", "__class__"), ("error", "errno"), ("error", "filename"),
                  ("error", "strerror"), ("engine.engine", "contexts")}  # fmt: skip
    missing = {f"{name}.{attr}" for name, attr in used - looked_for if not hasattr(classes[name], attr)}
    assert len(used) > 5 and not missing
    assert hasattr(trt.IAttentionInputLayer, "attention")
    looked_up = ((trt.IExecutionContext, "is_stream_capturable"), (trt.ICudaEngine, "get_aliased_input_tensor"))
    assert all(hasattr(kind, name) for kind, name in looked_up), "or nothing would be captured, and caches copied"
