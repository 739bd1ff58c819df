"""Stand-ins for what needs a GPU: a CUDA driver whose device memory is this process's own, and an engine that adds.

They show that our bookkeeping is right (which memory, which order, which profile), never that a device runs it.  The
driver refuses what CUDA refuses: waiting and allocating while a stream is captured, an address that is not aligned or
that nobody allocated, another thread's work in a capture, a thread without a context, a device that is not there, what
was freed or destroyed before; and it takes the process down where the CPU touches managed memory while a kernel runs on
a device without concurrentManagedAccess, as Orin and WSL2 are.  New and freed memory holds rubbish.  What is opened is
counted until it is closed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from edgemm.bundle.components import TensorSpec, Variant

__all__ = ["CACHE", "RTX", "TRT", "VARIANT", "Driver", "Engine", "RtxEngine", "RuntimeCache"]

CACHE = (1, 2, 8, 16)  # 512 bytes: a row of several is aligned
STREAM = 77
INVALID_VALUE, INVALID_DEVICE, INVALID_CONTEXT, INVALID_HANDLE, ILLEGAL_STATE = 1, 101, 201, 400, 401
UNSUPPORTED, INVALIDATED, WRONG_THREAD = 900, 901, 908  # CUDA_ERROR_STREAM_CAPTURE_...
WITHOUT_CONTEXT = (
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuGetErrorName",
)
GPUS, RUBBISH = 2, 0xA5
CONCURRENT_MANAGED_ACCESS = 89
VARIANT = Variant(
    "g.onnx",
    None,
    "standard-24",
    "fp16",
    (TensorSpec("x", "float32", ("b", "s")), TensorSpec("past_key.0", "float16", CACHE)),
    (TensorSpec("y", "float32", ("b", "s")), TensorSpec("present_key.0", "float16", CACHE)),
)


class Driver:
    """The functions of libcuda that cuda_memory.py calls; `log` is their names in order."""

    def __init__(self, concurrent: bool = True) -> None:
        self.log: list[str] = []
        self.fails: dict[str, int] = {}
        self.concurrent = concurrent
        self.alive: Counter[str] = Counter()  # graphs, launchable graphs, streams, pieces of memory
        self.while_running: Callable[[], None] = lambda: None  # what another thread does before the wait is over
        self._recorded: list | None = None  # what is captured instead of done
        self._broken = False  # the capture
        self._by: int | None = None  # the thread that captures
        self._graphs: dict[int, list | None] = {}
        self._managed: dict[int, tuple[int, int]] = {}  # as the CPU sees it -> bytes, as the device sees it
        self._memory: dict[int, object] = {}  # all that ever was: what is freed stays readable, as rubbish
        self._sizes: dict[int, int] = {}  # of what is not freed
        self._launchable: dict[int, list] = {}
        self._current = threading.local()  # context of each thread
        self.devices: list[int] = []  # whose contexts were asked for
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        self._libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            self.log.append(name)
            if name in self.fails:
                if name == "cuStreamEndCapture":
                    self._recorded, self._by = None, None
                return self.fails[name]
            if name not in WITHOUT_CONTEXT and not getattr(self._current, "context", None):
                return INVALID_CONTEXT
            return getattr(self, f"_{name}", lambda *arguments: 0)(*arguments) or 0

        return call

    def address(self, address: int, size: int = 1) -> int:
        """As the device sees it; what nobody allocated is CUDA's error 700."""
        inside = any(begin <= address and address + size <= begin + held for begin, held in self._sizes.items())
        assert inside, "an illegal memory access"
        for begin, (size, twin) in self._managed.items():
            if begin <= address < begin + size:
                return twin + address - begin
        return address

    def do(self, work: Callable[[], None]) -> None:
        """A kernel: it runs until somebody waits for the stream."""
        assert getattr(self._current, "context", None), "this thread has no context"
        if self._recorded is not None:
            assert threading.get_ident() == self._by, "another thread's work in this capture"
            self._recorded.append(work)
            return
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE if self.concurrent else 0)
        work()

    def _protect(self, protection: int) -> None:
        for begin, (size, _) in self._managed.items():
            self._libc.mprotect(begin, size, protection)

    def _unsafe(self) -> bool:
        """Called while this very thread captures (thread-local mode): the capture is lost."""
        self._broken = self._broken or self._by == threading.get_ident()
        return self._by == threading.get_ident()

    def _cuDeviceGet(self, device, number):
        device._obj.value = number
        return INVALID_DEVICE if number >= GPUS else 0

    def _cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 1000 + device.value
        self.devices.append(device.value)

    def _cuCtxSetCurrent(self, context):
        self._current.context = context.value

    def _cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = int(attribute == CONCURRENT_MANAGED_ACCESS and self.concurrent)

    def _cuStreamCreate(self, stream, flags):
        assert flags == 1, "the legacy default stream would end a capture on a blocking one"
        stream._obj.value = STREAM
        self.alive["streams"] += 1

    def _cuMemAllocManaged(self, pointer, size, flags):
        whole = -(-size.value // mmap.PAGESIZE) * mmap.PAGESIZE
        file = os.memfd_create("managed")
        os.ftruncate(file, whole)
        sides = [self._libc.mmap(None, whole, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0) for _ in "12"]
        os.close(file)
        self._managed[sides[0]] = (whole, sides[1])
        return self._given(pointer, sides[0], size.value)

    def _cuMemHostAlloc(self, pointer, size, flags=0):
        memory = ctypes.create_string_buffer(size.value + 512)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self._memory[address] = memory
        return self._given(pointer, address, size.value)

    _cuMemAlloc_v2 = _cuMemHostAlloc

    def _given(self, pointer, address, size):
        if self._unsafe():
            return UNSUPPORTED
        ctypes.memset(address, RUBBISH, size)
        pointer._obj.value, self._sizes[address] = address, size
        self.alive["memory"] += 1

    def _cuMemFree_v2(self, pointer):
        if self._unsafe():
            return UNSUPPORTED
        if pointer.value not in self._sizes:
            return INVALID_VALUE
        self.alive["memory"] -= 1
        ctypes.memset(pointer.value, RUBBISH, self._sizes.pop(pointer.value))

    _cuMemFreeHost = _cuMemFree_v2

    def _cuMemcpyAsync(self, target, source, size, stream):
        sides = (target.value, source.value)
        self.do(lambda: ctypes.memmove(*(self.address(side, size.value) for side in sides), size.value))

    def _cuStreamSynchronize(self, stream):
        if self._recorded is not None:
            self._broken = True
            return UNSUPPORTED
        self.while_running()
        self._protect(mmap.PROT_READ | mmap.PROT_WRITE)

    def _cuStreamBeginCapture_v2(self, stream, mode):
        assert mode == 1, "in mode Global another thread's allocation ends the capture"
        if self._recorded is not None:
            return ILLEGAL_STATE
        self._recorded, self._by, self._broken = [], threading.get_ident(), False

    def _cuStreamEndCapture(self, stream, graph):
        if self._recorded is None or self._by != threading.get_ident():
            return WRONG_THREAD if self._by else ILLEGAL_STATE
        recorded, self._recorded, self._by = self._recorded, None, None
        if self._broken:
            return INVALIDATED
        handle = len(self._graphs) + 1
        self._graphs[handle] = recorded
        graph._obj.value = handle
        self.alive["graphs"] += 1

    def _cuGraphInstantiateWithFlags(self, whole, graph, flags):
        whole._obj.value = 5000 + graph.value
        self._launchable[whole._obj.value] = self._graphs[graph.value]
        self.alive["launchable"] += 1

    def _cuGraphDestroy(self, graph):
        if self._graphs.get(graph.value) is None:
            return INVALID_VALUE
        self._graphs[graph.value] = None
        self.alive["graphs"] -= 1

    def _cuGraphExecDestroy(self, graph):
        if self._launchable.pop(graph.value, None) is None:
            return INVALID_HANDLE
        self.alive["launchable"] -= 1

    def _cuGraphLaunch(self, graph, stream):
        if graph.value not in self._launchable:
            return INVALID_HANDLE
        for work in self._launchable[graph.value]:
            self.do(work)


class Engine:
    """present = past + 1 at every place, y = x + 10; profiles are (least, usual, largest) of x."""

    spared: tuple[str, ...] = ()  # outputs that nobody may want; they want memory all the same

    def __init__(self, driver: Driver, aliased: bool = True, profiles=(((1, 4), (1, 4), (1, 4)),), waits=False) -> None:
        self.driver, self.profiles, self.waits = driver, profiles, waits
        self.fails_in_capture = False  # as an engine that has something to allocate
        self.capturable_from = 0  # run; as TensorRT for RTX while kernels are compiled
        self.num_optimization_profiles = len(profiles)
        if aliased:
            self.get_aliased_input_tensor = lambda name: "past_key.0" if name == "present_key.0" else None
        self.contexts: list[Context] = []

    def get_tensor_profile_shape(self, name, profile):
        return self.profiles[profile] if name == "x" else (CACHE,) * 3

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shapes, self.profile = engine, {}, {}, None
        self.scratch: tuple[int, int] | None = None
        self.runs = 0
        pointer = ctypes.c_void_p()
        assert engine.driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(64)) == 0
        weakref.finalize(self, engine.driver.cuMemFree_v2, pointer)  # TensorRT's own, freed when the context goes

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        self.engine.driver.do(lambda: None)
        return stream == STREAM

    def is_stream_capturable(self, stream):
        return self.runs >= self.engine.capturable_from

    def get_tensor_shape(self, name):
        return CACHE

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def update_device_memory_size_for_shapes(self):
        return 250 * int(np.prod(self.shapes["x"]))

    def set_device_memory(self, address, size):
        self.scratch = (address, size)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream):
        driver, captures = self.engine.driver, self.engine.driver._recorded is not None
        assert self.scratch and self.scratch[1] >= self.update_device_memory_size_for_shapes(), "no scratch memory"
        driver.log.append("execute")
        if captures and (self.engine.fails_in_capture or not self.is_stream_capturable(stream)):
            driver._broken = not self.engine.fails_in_capture
            return False
        if not {"x", "y", "past_key.0", "present_key.0", *self.engine.spared} <= self.addresses.keys():
            return False
        if hasattr(self.engine, "get_aliased_input_tensor"):
            assert self.addresses["past_key.0"] == self.addresses["present_key.0"], "it updates in place"
        self.runs += 1
        if self.engine.waits:  # as an engine does that copies what it allocates
            driver.cuStreamSynchronize(stream)
        driver.do(self._work)
        return True

    def _work(self):
        past, present = (self._array(name, CACHE, np.float16) for name in ("past_key.0", "present_key.0"))
        x, y = (self._array(name, self.shapes["x"], np.float32) for name in ("x", "y"))
        present[:] = past + 1
        y[:] = x + 10
        for name in self.engine.spared:
            self._array(name, CACHE, np.float16)[:] = past
        ctypes.memset(self.engine.driver.address(*self.scratch), RUBBISH, self.scratch[1])

    def _array(self, name, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.engine.driver.address(self.addresses[name], size))
        return np.frombuffer(memory, dtype=dtype).reshape(shape)


class RuntimeCache:
    """Kernels that TensorRT for RTX compiled: none is compiled again that is in here."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, blob):
        self.kernels = blob
        return True

    def serialize(self):
        return self.kernels


class RtxEngine(Engine):
    """As TensorRT for RTX: contexts come of a runtime config, and compile what its cache does not hold."""

    compiled = 0

    def create_runtime_config(self):
        chosen = {}
        return SimpleNamespace(
            chosen=chosen,
            create_runtime_cache=RuntimeCache,
            set_execution_context_allocation_strategy=lambda strategy: chosen.update(strategy=strategy),
            set_runtime_cache=lambda cache: chosen.update(cache=cache),
        )

    def create_execution_context(self, config):
        if not config.chosen["cache"].kernels:
            self.compiled += 1
            config.chosen["cache"].kernels = b"kernels of this GPU"
        context = super().create_execution_context(config.chosen["strategy"])
        context.kernels = getattr(config, "dynamic_shapes_kernel_specialization_strategy", None)
        return context


TRT = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"))
RTX = SimpleNamespace(
    **vars(TRT),
    IRuntimeCache=RuntimeCache,
    DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
)
