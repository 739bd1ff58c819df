"""A component as a TensorRT engine: arrays bound by address, one profile a phase, a captured graph from the second run.

For `tensorrt` (10.3 to 11) and `tensorrt_rtx` alike: what a version lacks is looked for, not assumed.  Arrays in shared
memory are bound as they are, others through a staging buffer.  A cache that the engine updates in place (an aliased
output) has one buffer; an engine that cannot writes a second one, which is copied back.  A batch that no profile takes
is run row by row.  Not tried on a device yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bundle.components import TensorSpec, Variant
from edgemm.errors import BundleError, EdgemmError, InputError
from edgemm.runtimes.backend.cuda_memory import Cuda, cuda_graphs_wanted
from edgemm.runtimes.backend.engine import Arrays, Binding, LoadedEngine

__all__ = ["RowByRow", "TensorRTBinding", "TensorRTEngine", "load_engine"]

BATCH = "b"  # the axis of rows, in a manifest's words


def load_engine(
    trt: Any, component: str, path: Path, variant: Variant, cuda: Cuda, lock: threading.Lock
) -> TensorRTEngine:
    """`path` is an engine of our own cache: its bytes were checked."""
    cuda.enter()
    logger = trt.Logger(trt.Logger.ERROR)
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
    return TensorRTEngine(trt, component, variant, (logger, runtime, engine), cuda, lock)


class TensorRTEngine(LoadedEngine):
    title = "TensorRT"

    def __init__(
        self, trt: Any, component: str, variant: Variant, parts: tuple[Any, Any, Any], cuda: Cuda, lock: threading.Lock
    ) -> None:
        super().__init__(component, variant, lock)
        self.trt, self.cuda = trt, cuda
        self._parts = parts  # the logger and the runtime have to outlive the engine
        self.engine = parts[-1]

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array that needs no staging."""
        return self.cuda.zeros(shape, dtype)

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        self.cuda.enter()
        rows = max((len(array) for name, array in inputs.items() if _has_rows(self.inputs[name])), default=1)
        if rows > 1 and not self._fitting(inputs):
            return RowByRow(
                tuple(
                    self.bind(_row(self.inputs, inputs, row), _row(self.outputs, outputs, row)) for row in range(rows)
                )
            )
        return TensorRTBinding(self, inputs, outputs, self._profile(inputs))

    def new_context(self) -> Any:
        """With scratch memory for the profile that is used, not for the largest one."""
        strategy = getattr(self.trt, "ExecutionContextAllocationStrategy", None)
        if strategy is None or not hasattr(strategy, "ON_PROFILE_CHANGE"):
            return self.engine.create_execution_context()
        return self.engine.create_execution_context(strategy.ON_PROFILE_CHANGE)

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


class TensorRTBinding:
    """Arrays tied to an execution context of their own; they are kept alive here."""

    def __init__(self, engine: TensorRTEngine, inputs: Arrays, outputs: Arrays, profile: int) -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._kept_alive = (*inputs.values(), *outputs.values())
        self._before: list[tuple[np.ndarray, np.ndarray]] = []  # staging, array: copied by numpy before a run
        self._after: list[tuple[np.ndarray, np.ndarray]] = []  # array, staging: and after it
        self._back: list[tuple[int, int, int]] = []  # target, source, bytes: copied by the device after a run
        self._scratch: list[np.ndarray] = []
        self._launch: list[Callable[[], None]] = []  # the captured graph, once there is one
        self._runs = 0
        context = engine.new_context()
        if context is None:
            raise EdgemmError(f"{engine.component}: TensorRT makes no execution context; is the GPU's memory full?")
        self._context = context
        if not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise EdgemmError(f"{engine.component}: TensorRT does not take profile {profile}")
        addresses = {name: self._place_input(name, array) for name, array in inputs.items()}
        for name, array in outputs.items():
            addresses[name] = self._place_output(name, array, inputs, addresses)
        for name in engine.outputs.keys() - outputs.keys():  # those that nobody wants have to lie somewhere
            self._scratch.append(self._cuda.zeros(tuple(context.get_tensor_shape(name)), engine.outputs[name].dtype))
            addresses[name] = self._scratch[-1].ctypes.data
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EdgemmError(f"{engine.component}: TensorRT does not take the memory of {name}")
        self._cuda.wait()

    def _place_input(self, name: str, array: np.ndarray) -> int:
        if not self._context.set_input_shape(name, array.shape):
            raise InputError(f"{self._engine.component}: TensorRT does not take {name} of shape {array.shape}")
        if self._cuda.shared.holds(array):
            return array.ctypes.data
        staging = self._cuda.staging(array.shape, array.dtype)
        self._before.append((staging, array))
        return staging.ctypes.data

    def _place_output(self, name: str, array: np.ndarray, inputs: Arrays, addresses: Mapping[str, int]) -> int:
        twin = next((given for given, other in inputs.items() if other.ctypes.data == array.ctypes.data), None)
        if twin is None and self._cuda.shared.holds(array):
            return array.ctypes.data
        if twin is not None and self._engine.aliased(name) == twin:
            if not self._cuda.shared.holds(array):
                self._after.append((array, self._staged(twin, inputs)))
            return addresses[twin]
        scratch = self._cuda.zeros(array.shape, array.dtype)
        self._scratch.append(scratch)
        if self._cuda.shared.holds(array):
            self._back.append((array.ctypes.data, scratch.ctypes.data, array.nbytes))
        else:
            self._after.append((array, scratch))
        return scratch.ctypes.data

    def _staged(self, name: str, inputs: Arrays) -> np.ndarray:
        return next(staging for staging, array in self._before if array is inputs[name])

    def run(self) -> None:
        """Waits for the result: the loops read it at once, and managed memory may not be touched before."""
        with self._engine.lock:
            self._cuda.enter()
            for staging, array in self._before:
                np.copyto(staging, array)
            self._runs += 1
            if self._runs == 2 and cuda_graphs_wanted():  # the first run may still set up what cannot be captured
                self._capture()
            if self._launch:
                self._launch[0]()
            else:
                self._enqueue()
            self._cuda.wait()
            for array, staging in self._after:
                np.copyto(array, staging)

    def _capture(self) -> None:
        """One launch instead of hundreds; an engine that cannot be captured goes on as before."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX
        if capturable is not None and not capturable(self._cuda.stream):
            return
        try:
            with self._cuda.capture(self._launch):
                self._enqueue()
        except EdgemmError:
            self._launch.clear()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EdgemmError(f"{self._engine.component}: TensorRT could not run it")
        for target, source, size in self._back:
            self._cuda.copy(target, source, size)
