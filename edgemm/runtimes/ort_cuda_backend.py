"""ONNX Runtime's CUDA provider as a backend: the same sessions, with the cache on the GPU.  Not tried on a device yet.

Arrays in shared memory (a K/V cache, the prefix) are bound as GPU memory where they are, and updated in place; the
small rest is left to ONNX Runtime to copy.  It falls back to the CPU without a word, so what it uses is asked for.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgemm.errors import BundleError, EdgemmError, MissingError
from edgemm.manifest import Variant
from edgemm.runtimes.cuda_memory import Cuda, open_cuda
from edgemm.runtimes.engine import Arrays, check_arrays
from edgemm.runtimes.onnx_external_data import check_external_data
from edgemm.runtimes.onnxruntime_backend import compare_io, explained, providers, session_options, version
from edgemm.runtimes.threads import ThreadPlan

__all__ = ["OrtCudaBinding", "OrtCudaEngine", "open_engine", "providers", "version"]

PROVIDER = "CUDAExecutionProvider"


def open_engine(
    component: str,
    graph: Path,
    data: Path | None,
    variant: Variant,
    provider: str,
    plan: ThreadPlan,
    lock: threading.Lock,
) -> OrtCudaEngine:
    check_external_data(graph, data)
    if PROVIDER not in ort.get_available_providers():
        raise MissingError(f"{component}: ONNX Runtime {ort.__version__} has no {PROVIDER}")
    cuda = _cuda()
    options = session_options(plan)
    try:
        session = ort.InferenceSession(str(graph), options, providers=[(PROVIDER, {"device_id": "0"})])
    except Exception as error:  # its errors share no base but Exception
        raise explained(error, f"{graph}: ONNX Runtime {ort.__version__} cannot load it", BundleError) from error
    if session.get_providers()[0] != PROVIDER:
        raise MissingError(f"{component}: asked ONNX Runtime for {PROVIDER}, it uses {session.get_providers()[0]}")
    compare_io(graph, "input", variant.inputs, session.get_inputs())
    compare_io(graph, "output", variant.outputs, session.get_outputs())
    return OrtCudaEngine(component, variant, session, cuda, lock)


@cache
def _cuda() -> Cuda:
    return open_cuda()


class OrtCudaEngine:
    """See engine.py."""

    def __init__(self, component: str, variant: Variant, session: Any, cuda: Cuda, lock: threading.Lock) -> None:
        self.component, self.session, self.cuda, self.lock = component, session, cuda, lock
        self.inputs = {spec.name: spec for spec in variant.inputs}
        self.outputs = {spec.name: spec for spec in variant.outputs}

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self.cuda.zeros(shape, dtype)

    def bind(self, inputs: Arrays, outputs: Arrays) -> OrtCudaBinding:
        axes: dict[str, int] = {}
        check_arrays(self.component, self.inputs, inputs, axes)
        check_arrays(self.component, self.outputs, outputs, axes)
        return OrtCudaBinding(self, inputs, outputs)


class OrtCudaBinding:
    """Arrays tied to a session by address; they are kept alive here."""

    def __init__(self, engine: OrtCudaEngine, inputs: Arrays, outputs: Arrays) -> None:
        self._engine = engine
        self._kept_alive = (*inputs.values(), *outputs.values())
        self._io = engine.session.io_binding()
        for name, array in inputs.items():
            self._io.bind_input(name, self._place(array), 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._io.bind_output(name, self._place(array), 0, array.dtype.type, array.shape, array.ctypes.data)

    def _place(self, array: np.ndarray) -> str:
        return "cuda" if self._engine.cuda.shared.holds(array) else "cpu"

    def run(self) -> None:
        """Waits for the result: managed memory may not be touched before."""
        engine = self._engine
        try:
            with engine.lock:
                engine.session.run_with_iobinding(self._io)
                self._io.synchronize_outputs()
        except Exception as error:
            raise explained(error, f"{engine.component}: ONNX Runtime failed", EdgemmError) from error
