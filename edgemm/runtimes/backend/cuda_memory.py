"""Memory that CPU and GPU both see, streams and captured graphs, through the CUDA driver's own library and ctypes.

Arrays from `zeros` lie in managed memory: a K/V cache stays where the GPU is and may still be read and written by numpy
between runs; on a Jetson both are the same memory.  `staging` is pinned host memory for the small things that change at
every run.  No CUDA toolkit and no Python package is needed.  Not tried on a device yet.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from edgemm.errors import EdgemmError, MissingError, ResourceError

__all__ = ["Cuda", "Shared", "cuda_graphs_wanted", "open_cuda", "shared_cuda"]

OUT_OF_MEMORY = 2
ATTACH_GLOBAL = 1
HOST_MAPPED = 0x02 | 0x01  # CU_MEMHOSTALLOC_DEVICEMAP, and portable
CAPTURE_THREAD_LOCAL = 1
Shape = tuple[int, ...]


def cuda_graphs_wanted() -> bool:
    """EDGEMM_CUDA_GRAPHS=0 runs every step node by node, to find out whose fault something is."""
    return os.environ.get("EDGEMM_CUDA_GRAPHS", "1") != "0"


@cache
def shared_cuda() -> Cuda:
    """One context and one stream for all engines of the process: they take turns anyway."""
    return open_cuda()


def open_cuda(number: int = 0) -> Cuda:
    """MissingError where there is no driver; asked in another process first, because a broken one may not return."""
    from edgemm.device.gpu import probe_cuda

    found = probe_cuda()
    if number >= len(found.gpus):
        raise MissingError(found.problem or f"there is no device cuda:{number}, only {len(found.gpus)}")
    return Cuda(ctypes.CDLL("libcuda.so.1"), number)


class Cuda:
    """One device's primary context and a stream on it."""

    def __init__(self, driver: Any, number: int = 0) -> None:
        self.driver, self.shared = driver, Shared()
        self._call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), number)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = stream.value or 0

    def enter(self) -> None:
        """Every thread that calls has to."""
        self._call("cuCtxSetCurrent", self.context)

    def zeros(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Managed memory as an array; it goes when the array and its views are gone."""
        self.enter()
        return self._array(
            shape, dtype, lambda at, size: self._call("cuMemAllocManaged", at, size, ATTACH_GLOBAL), "cuMemFree_v2"
        )

    def staging(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Pinned memory that the device reads through its own address space."""
        self.enter()
        return self._array(
            shape, dtype, lambda at, size: self._call("cuMemHostAlloc", at, size, HOST_MAPPED), "cuMemFreeHost"
        )

    def _array(self, shape: Shape, dtype: Any, allocate: Callable[..., None], free: str) -> np.ndarray:
        size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        pointer = ctypes.c_void_p()
        allocate(ctypes.byref(pointer), ctypes.c_size_t(size))
        address = pointer.value or 0
        memory = (ctypes.c_uint8 * size).from_address(address)
        ctypes.memset(address, 0, size)
        self.shared.add(address, size)
        weakref.finalize(memory, self._free, address, free)
        return np.frombuffer(memoryview(memory), dtype=dtype, count=math.prod(shape)).reshape(shape)

    def _free(self, address: int, free: str) -> None:
        self.shared.remove(address)
        self.enter()
        self._call(free, ctypes.c_void_p(address))

    def copy(self, target: int, source: int, size: int) -> None:
        """Between device addresses, in the stream's order."""
        self._call("cuMemcpyAsync", *map(ctypes.c_void_p, (target, source)), ctypes.c_size_t(size), self._stream)

    def wait(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    @contextmanager
    def capture(self, launch: list[Callable[[], None]]) -> Iterator[None]:
        """What is put on the stream inside is not run but kept; `launch` gets the one call that runs it all."""
        graph, whole = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, CAPTURE_THREAD_LOCAL)
        try:
            yield
        finally:
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(whole), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        launch.append(lambda: self._call("cuGraphLaunch", whole, self._stream))

    @property
    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.driver, name)(*arguments)
        if status == OUT_OF_MEMORY:
            raise ResourceError(f"out of GPU memory in {name}")
        if status:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorName(status, ctypes.byref(text))
            raise EdgemmError(f"the CUDA driver: {name} returns {status} ({(text.value or b'?').decode()})")


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
