"""Memory that CPU and GPU both see, a stream and captured graphs, through the CUDA driver's own library and ctypes.

Arrays from `zeros` stay where the GPU reads them and may be read and written by numpy at any time: managed memory where
the device says that CPU and GPU may touch it at once (concurrentManagedAccess), else pinned memory (Jetson Orin, WSL2:
there a CPU that touches managed memory while any kernel runs takes the process down).  `staging` is pinned memory for
the small things that change at every run.  Whoever puts work on the stream, captures, or binds holds `lock`: one stream
serves the whole process.  What is no longer used is freed by the next holder, never by the garbage collector, which may
come while a stream is captured.  No CUDA toolkit and no Python package is needed.  Not tried on a device yet.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgemm.errors import EdgemmError, MissingError, ResourceError

__all__ = ["ALIGNMENT", "Cuda", "DeviceMemory", "Graph", "Shared", "cuda_graphs_wanted", "open_cuda", "shared_cuda"]

OUT_OF_MEMORY = 2
ATTACH_GLOBAL = 1
HOST_MAPPED = 0x02 | 0x01  # CU_MEMHOSTALLOC_DEVICEMAP, and portable
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the legacy default stream would end a capture
CAPTURE_THREAD_LOCAL = 1
CONCURRENT_MANAGED_ACCESS = 89  # CUdevice_attribute
ALIGNMENT = 256  # bytes: what TensorRT's setTensorAddress wants, and what cudaMalloc gives
Shape = tuple[int, ...]


def cuda_graphs_wanted() -> bool:
    """EDGEMM_CUDA_GRAPHS=0 runs every step node by node, to find out whose fault something is."""
    return os.environ.get("EDGEMM_CUDA_GRAPHS", "1") != "0"


_OPENING, _OPENED = threading.Lock(), {}


def shared_cuda(number: int = 0) -> Cuda:
    """One context and one stream a GPU for all engines of the process: they take turns anyway."""
    with _OPENING:  # two models may be loaded at once
        if number not in _OPENED:
            _OPENED[number] = open_cuda(number)
        return _OPENED[number]


def open_cuda(number: int = 0) -> Cuda:
    """MissingError where there is no driver; asked in another process first, because a broken one may not return."""
    from edgemm.device.gpu import probe_cuda

    found = probe_cuda()
    if number >= len(found.gpus):
        raise MissingError(found.problem or f"there is no GPU {number}, only {len(found.gpus)}")
    return Cuda(ctypes.CDLL("libcuda.so.1"), number)


class Cuda:
    """One device's primary context and a stream on it."""

    def __init__(self, driver: Any, number: int = 0) -> None:
        self.driver, self.number, self.shared, self.lock = driver, number, Shared(), threading.RLock()
        self._dead: deque[tuple[str, int]] = deque()  # what is to be freed: by which call, and its handle
        self._scratch: weakref.ref[DeviceMemory] | None = None
        self.call("cuInit", 0)
        device, context, stream, both = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), number)
        self.call("cuDeviceGetAttribute", ctypes.byref(both), CONCURRENT_MANAGED_ACCESS, device)
        self.touched_at_once = bool(both.value)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context
        self._enter()
        self.call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        self.stream = stream.value or 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The stream is the caller's alone; what nobody uses any more is freed first."""
        with self.lock:
            self._enter()
            while self._dead:
                free, handle = self._dead.popleft()
                self.call(free, ctypes.c_void_p(handle))
            yield

    def zeros(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Memory of both as an array; it goes when the array and its views are gone."""
        if not self.touched_at_once:
            return self.staging(shape, dtype)
        return self._array(
            shape, dtype, lambda at, size: self.call("cuMemAllocManaged", at, size, ATTACH_GLOBAL), "cuMemFree_v2"
        )

    def staging(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Pinned memory that the device reads through its own address space."""
        return self._array(
            shape, dtype, lambda at, size: self.call("cuMemHostAlloc", at, size, HOST_MAPPED), "cuMemFreeHost"
        )

    def _array(self, shape: Shape, dtype: Any, allocate: Callable[..., None], free: str) -> np.ndarray:
        size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        pointer = ctypes.c_void_p()
        with self.turn():
            allocate(ctypes.byref(pointer), ctypes.c_size_t(size))
        address = pointer.value or 0
        memory = (ctypes.c_uint8 * size).from_address(address)
        ctypes.memset(address, 0, size)
        self.shared.add(address, size)
        weakref.finalize(memory, self._drop, free, address)
        return np.frombuffer(memoryview(memory), dtype=dtype, count=math.prod(shape)).reshape(shape)

    def _drop(self, free: str, handle: int) -> None:
        self.shared.remove(handle)
        self._dead.append((free, handle))

    def holds(self, array: np.ndarray) -> bool:
        """May the device be given the address of this array as it is?"""
        return array.ctypes.data % ALIGNMENT == 0 and self.shared.holds(array)

    def scratch(self, size: int) -> DeviceMemory:
        """Memory for what lives no longer than a run: one piece for all, because runs take turns.  A smaller one stays
        as long as somebody keeps it."""
        found = self._scratch and self._scratch()
        if found is None or found.size < size:
            found = DeviceMemory(self, size)
            self._scratch = weakref.ref(found)
        return found

    def copy(self, target: int, source: int, size: int) -> None:
        """Between device addresses, in the stream's order."""
        self.call("cuMemcpyAsync", *map(ctypes.c_void_p, (target, source)), ctypes.c_size_t(size), self._stream)

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` puts on the stream is not run but kept; EdgemmError where it cannot be."""
        graph, whole = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            with _no_collection():
                self.call("cuStreamBeginCapture_v2", self._stream, CAPTURE_THREAD_LOCAL)
                try:
                    work()
                finally:
                    self.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(whole), graph, ctypes.c_ulonglong(0))
        finally:
            if graph.value:  # also of work that failed half way
                self.call("cuGraphDestroy", graph)
        return Graph(self, whole.value or 0)

    @property
    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _enter(self) -> None:
        """Every thread that calls has to."""
        self.call("cuCtxSetCurrent", self.context)

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.driver, name)(*arguments)
        if status == OUT_OF_MEMORY:
            raise ResourceError(f"out of GPU memory in {name}")
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(status, ctypes.byref(text))
            raise EdgemmError(f"the CUDA driver: {name} returns {status} ({(text.value or b'?').decode()})")


@contextmanager
def _no_collection() -> Iterator[None]:
    """What a library frees when its object goes is none of ours to put off, and would end a capture of this thread."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class DeviceMemory:
    """Bytes that only the device touches; they go with this object."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        pointer = ctypes.c_void_p()
        with cuda.turn():
            cuda.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        self.address, self.size = pointer.value or 0, size
        weakref.finalize(self, cuda._drop, "cuMemFree_v2", self.address)


class Graph:
    """Captured work: one launch; it goes with this object."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        self._cuda, self._handle = cuda, handle
        weakref.finalize(self, cuda._drop, "cuGraphExecDestroy", handle)

    def launch(self) -> None:
        self._cuda.call("cuGraphLaunch", ctypes.c_void_p(self._handle), self._cuda._stream)


class Shared:
    """Ranges of memory that the device may address as they are."""

    def __init__(self) -> None:
        self._ranges: dict[int, int] = {}

    def add(self, address: int, size: int) -> None:
        self._ranges[address] = size

    def remove(self, address: int) -> None:
        self._ranges.pop(address, None)

    def holds(self, array: np.ndarray) -> bool:
        """Is all of the array inside one of them?"""
        begin, ranges = array.ctypes.data, self._ranges.copy()  # in one step: other threads, and finalizers, change it
        return any(start <= begin and begin + array.nbytes <= start + size for start, size in ranges.items())
