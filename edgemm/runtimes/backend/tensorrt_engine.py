"""A component as a TensorRT engine: arrays bound by address, one profile a phase, a captured graph from the second run.

For `tensorrt` (10.3 to 11) and `tensorrt_rtx` alike: what a version lacks is looked for, not assumed.  A cache that the
engine updates in place (an aliased output) has one buffer; an engine that cannot writes a second one, which is copied
back.  A batch that no profile takes is run row by row.  All contexts share one piece of scratch memory, because runs
take turns.  What TensorRT for RTX compiles for this GPU is kept beside the engine.  Not tried on a device yet.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bundle.components import TensorSpec, Variant
from edgemm.errors import BundleError, EdgemmError, InputError
from edgemm.runtimes.backend.cuda_binding import CudaBinding
from edgemm.runtimes.backend.cuda_memory import Cuda, DeviceMemory, cuda_graphs_wanted
from edgemm.runtimes.backend.engine import Arrays, Binding, LoadedEngine

__all__ = ["RowByRow", "TensorRTBinding", "TensorRTEngine", "load_engine"]

BATCH = "b"  # the axis of rows, in a manifest's words
COMPILED = "compiled"  # file beside the engine: kernels that TensorRT for RTX made on this GPU
FEW = 3  # sizes beside the least that an axis may have, for kernels to be made for each at once


def load_engine(
    trt: Any, component: str, path: Path, variant: Variant, cuda: Cuda, lock: threading.Lock
) -> TensorRTEngine:
    """`path` is an engine of our own cache: its bytes were checked."""
    logger = trt.Logger(trt.Logger.ERROR)
    with cuda.turn():
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EdgemmError(f"{component}: TensorRT {trt.__version__} does not load the engine that it built: {path}")
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    specs = {spec.name for spec in (*variant.inputs, *variant.outputs)}
    if names != specs:
        raise BundleError(
            f"{component}: tensors {sorted(names ^ specs)} are not both in the engine and in the manifest"
        )
    return TensorRTEngine(trt, component, variant, (logger, runtime, engine), cuda, lock, path.parent / COMPILED)


class TensorRTEngine(LoadedEngine):
    title = "TensorRT"

    def __init__(
        self,
        trt: Any,
        component: str,
        variant: Variant,
        parts: tuple[Any, Any, Any],
        cuda: Cuda,
        lock: threading.Lock,
        compiled: Path | None = None,
    ) -> None:
        super().__init__(component, variant, lock)
        self.trt, self.cuda = trt, cuda
        self._parts = parts  # the logger and the runtime have to outlive the engine
        self.engine = parts[-1]
        self._compiled, self._kept = compiled, 0  # bytes of it
        self._cache = self._open_compiled() if hasattr(trt, "IRuntimeCache") else None

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array that needs no staging."""
        return self.cuda.zeros(shape, dtype)

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        rows = max((len(array) for name, array in inputs.items() if _has_rows(self.inputs[name])), default=1)
        if rows > 1 and not self._fitting(inputs):
            return RowByRow(
                tuple(
                    self.bind(_row(self.inputs, inputs, row), _row(self.outputs, outputs, row)) for row in range(rows)
                )
            )
        with self.cuda.turn():
            return TensorRTBinding(self, inputs, outputs, self._profile(inputs))

    def new_context(self, profile: int) -> Any:
        """Without scratch memory of its own."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            return self.engine.create_execution_context(strategy)
        runtime_config = self.engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(strategy)
        runtime_config.set_runtime_cache(self._cache)
        if self._has_few_shapes(profile):
            # compiled in the background they would come after the capture, which keeps what stood there before
            kinds = self.trt.DynamicShapesKernelSpecializationStrategy
            runtime_config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        return self.engine.create_execution_context(runtime_config)

    def _open_compiled(self) -> Any:
        """TensorRT for RTX checks itself whether what is read was made for this GPU and driver."""
        with self.cuda.turn():
            runtime_cache = self.engine.create_runtime_config().create_runtime_cache()
            if self._compiled is not None and self._compiled.is_file():
                blob = self._compiled.read_bytes()
                self._kept = len(blob) if runtime_cache.deserialize(blob) else 0
        return runtime_cache

    def keep_compiled(self) -> None:
        """On disk, for the next process; a folder that takes nothing is no reason to stop."""
        if self._cache is None or self._compiled is None:
            return
        blob = bytes(memoryview(self._cache.serialize()))
        if len(blob) > self._kept:
            self._kept = len(blob)
            part = self._compiled.with_name(f".{COMPILED}.{os.getpid()}")
            with contextlib.suppress(OSError):
                part.write_bytes(blob)
                part.replace(self._compiled)

    def _has_few_shapes(self, profile: int) -> bool:
        sides = (self.engine.get_tensor_profile_shape(name, profile) for name in self.inputs)
        return all(high - low <= FEW for least, _, most in sides for low, high in zip(tuple(least), tuple(most)))

    def aliased(self, output: str) -> str | None:
        """The input whose memory an output shares, where this TensorRT knows such a thing."""
        ask = getattr(self.engine, "get_aliased_input_tensor", None)
        return (ask(output) or None) if ask else None

    def _profile(self, inputs: Arrays) -> int:
        """The narrowest profile that takes these shapes."""
        fitting = self._fitting(inputs)
        if not fitting:
            shapes = {name: array.shape for name, array in inputs.items() if array.ndim < 4}
            raise InputError(f"{self.component}: its engine has no profile for {shapes}; build it with more memory")
        return min(fitting)[1]

    def _fitting(self, inputs: Arrays) -> list[tuple[int, int]]:
        """How much room each profile has that takes these shapes, and its number."""
        fitting = []
        for profile in range(self.engine.num_optimization_profiles):
            room = {name: self.engine.get_tensor_profile_shape(name, profile) for name in inputs}
            if all(_within(inputs[name].shape, least, most) for name, (least, _, most) in room.items()):
                fitting.append((sum(int(np.prod(tuple(most))) for _, _, most in room.values()), profile))
        return fitting


def _has_rows(spec: TensorSpec) -> bool:
    return spec.shape[:1] == (BATCH,)


def _row(specs: Mapping[str, TensorSpec], arrays: Arrays, row: int) -> Arrays:
    """One row of what has rows; views, so that a cache stays where it is."""
    return {name: array[row : row + 1] if _has_rows(specs[name]) else array for name, array in arrays.items()}


def _within(shape: tuple[int, ...], least: Any, most: Any) -> bool:
    return all(low <= size <= high for low, size, high in zip(tuple(least), shape, tuple(most), strict=True))


class RowByRow:
    """A batch for an engine that takes one row at a time: as right as a batch, and no faster than its rows."""

    def __init__(self, rows: tuple[Binding, ...]) -> None:
        self._rows = rows

    def run(self) -> None:
        for row in self._rows:
            row.run()


class TensorRTBinding(CudaBinding):
    """Arrays tied to an execution context of their own; made with the stream's lock held."""

    def __init__(self, engine: TensorRTEngine, inputs: Arrays, outputs: Arrays, profile: int) -> None:
        super().__init__(engine, engine.cuda, inputs, outputs, cuda_graphs_wanted())
        self._engine = engine
        self._back: list[tuple[int, int, int]] = []  # target, source, bytes: copied by the device after a run
        self._own: list[DeviceMemory] = []
        context = engine.new_context(profile)
        if context is None:
            raise EdgemmError(f"{engine.component}: TensorRT makes no execution context; is the GPU's memory full?")
        self._context = context
        if not context.set_optimization_profile_async(profile, self.cuda.stream):
            raise EdgemmError(f"{engine.component}: TensorRT does not take profile {profile}")
        addresses = {name: self._place_input(name, array) for name, array in inputs.items()}
        for name, array in outputs.items():
            addresses[name] = self._place_output(name, array, inputs, addresses)
        for name in engine.outputs.keys() - outputs.keys():  # those that nobody wants have to lie somewhere
            shape = tuple(context.get_tensor_shape(name))
            addresses[name] = self._memory(int(np.prod(shape)) * np.dtype(engine.outputs[name].dtype).itemsize)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EdgemmError(f"{engine.component}: TensorRT does not take the memory of {name}")
        self._scratch = self._give_scratch()
        self.cuda.wait()

    def _give_scratch(self) -> DeviceMemory:
        """For the shapes that were set, not for the largest ones."""
        found = self.cuda.scratch(self._context.update_device_memory_size_for_shapes())
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(found.address, found.size)
        else:  # TensorRT 10.0
            self._context.device_memory = found.address
        return found

    def _memory(self, size: int) -> int:
        self._own.append(DeviceMemory(self.cuda, size))
        return self._own[-1].address

    def _place_input(self, name: str, array: np.ndarray) -> int:
        if not self._context.set_input_shape(name, array.shape):
            raise InputError(f"{self._engine.component}: TensorRT does not take {name} of shape {array.shape}")
        return self.given(array).ctypes.data

    def _place_output(self, name: str, array: np.ndarray, inputs: Arrays, addresses: Mapping[str, int]) -> int:
        twin = next((given for given, other in inputs.items() if other.ctypes.data == array.ctypes.data), None)
        seen = self.gotten(array)
        if twin is None or self._engine.aliased(name) == twin:
            return seen.ctypes.data
        own = self._memory(array.nbytes)
        self._back.append((seen.ctypes.data, own, array.nbytes))
        return own

    def capturable(self) -> bool:
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX
        return ask is None or ask(self.cuda.stream)

    def run(self) -> None:
        super().run()
        if self._runs == 2:
            with self.cuda.turn():  # another context may be compiling into the same cache
                self._engine.keep_compiled()

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self.cuda.stream):
            raise EdgemmError(f"{self._engine.component}: TensorRT could not run it")
        for target, source, size in self._back:
            self.cuda.copy(target, source, size)
