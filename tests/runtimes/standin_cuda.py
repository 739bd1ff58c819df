"""Stand-ins for what needs a GPU: a CUDA driver whose device memory is this process's own, and an engine that adds.

They show that our bookkeeping is right (which memory, which order, which profile), never that a device runs it.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np

from edgemm.bundle.components import TensorSpec, Variant

__all__ = ["CACHE", "TRT", "VARIANT", "Driver", "Engine"]

CACHE = (1, 2, 3, 4)
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

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails: dict[str, int] = {}
        self.libc = ctypes.CDLL(None)
        self.libc.malloc.restype = ctypes.c_void_p
        self.recorded: list | None = None  # what is captured instead of done
        self.graphs: list[list] = []  # captured; their handles count from 1

    def __getattr__(self, name):
        def call(*arguments):
            self.log.append(name)
            if name in self.fails:
                self.recorded = None if name == "cuStreamEndCapture" else self.recorded
                return self.fails[name]
            if name in ("cuMemAllocManaged", "cuMemHostAlloc"):
                pointer, size = arguments[0]._obj, arguments[1]
                pointer.value = self.libc.malloc(size)
            elif name == "cuMemcpyAsync":
                self.do(lambda: ctypes.memmove(arguments[0].value, arguments[1].value, arguments[2].value))
            elif name == "cuStreamCreate":
                arguments[0]._obj.value = 77
            elif name == "cuStreamBeginCapture_v2":
                self.recorded = []
            elif name == "cuStreamEndCapture":
                self.graphs.append(self.recorded or [])
                self.recorded, arguments[1]._obj.value = None, len(self.graphs)
            elif name.startswith("cuGraphInstantiate"):
                arguments[0]._obj.value = _handle(arguments[1])
            elif name == "cuGraphLaunch":
                for work in self.graphs[_handle(arguments[0]) - 1]:
                    work()
            return 0

        return call

    def do(self, work) -> None:
        work() if self.recorded is None else self.recorded.append(work)


def _handle(argument) -> int:
    return int(getattr(argument, "value", argument))


class Engine:
    """present = past + 1 at every place, y = x + 10; profiles are (least, usual, largest) of x."""

    def __init__(self, driver: Driver, aliased: bool = True, profiles=(((1, 4), (1, 4), (1, 4)),)) -> None:
        self.driver, self.profiles = driver, profiles
        self.num_optimization_profiles = len(profiles)
        if aliased:
            self.get_aliased_input_tensor = lambda name: "past_key.0" if name == "present_key.0" else None
        self.contexts: list[Context] = []

    def get_tensor_profile_shape(self, name, profile):
        return self.profiles[profile] if name == "x" else ((1, 2, 3, 4),) * 3

    def create_execution_context(self, strategy=None):
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shapes, self.profile = engine, {}, {}, None

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return stream == 77

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        self.engine.driver.log.append("execute")
        self.engine.driver.do(self._work)
        return True

    def _work(self):
        past, present = (self._array(name, (1, 2, 3, 4), np.float16) for name in ("past_key.0", "present_key.0"))
        x, y = (self._array(name, self.shapes["x"], np.float32) for name in ("x", "y"))
        present[:] = past + 1
        y[:] = x + 10

    def _array(self, name, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype=dtype).reshape(shape)


TRT = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(ON_PROFILE_CHANGE=1))
