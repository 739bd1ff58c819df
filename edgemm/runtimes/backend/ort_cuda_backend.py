"""ONNX Runtime's CUDA provider as a backend: the same sessions, with the cache on the GPU.  Not tried on a device yet.

Arrays in shared memory (a K/V cache, the prefix) are bound as GPU memory where they are, and updated in place; the
small rest is left to ONNX Runtime to copy.  Where every node is on the GPU, a binding is one captured CUDA graph from
its second run on; then the small rest goes through memory that both see, because a captured graph knows addresses only.
EDGEMM_CUDA_GRAPHS=0 captures nothing.
"""

from __future__ import annotations

import itertools
import re
import threading
from typing import Any

import numpy as np
import onnxruntime as ort

from edgemm import progress
from edgemm.bundle.components import Variant
from edgemm.device.gpu import probe_cuda
from edgemm.errors import BundleError
from edgemm.runtimes.backend.cuda_memory import Cuda, cuda_graphs_wanted, shared_cuda
from edgemm.runtimes.backend.engine import Arrays, Binding, GraphFiles, ThreadPlan
from edgemm.runtimes.backend.ort_backend import OrtEngine, open_session, providers, version

__all__ = ["GraphBinding", "OrtCudaEngine", "open_engine", "problem", "providers", "version"]

PROVIDER = "CUDAExecutionProvider"
DEVICE = {"device_id": "0"}
GRAPHS = {"enable_cuda_graph": "1"}
REFUSES_GRAPHS = r"cannot use the (graph capture|CUDA Graph) feature"  # in ONNX Runtime's words
NOT_CAPTURED = -1


def problem(target: str = "") -> str:
    """Why nothing runs on it here, or an empty string: the package has its provider also where there is no GPU."""
    found = ort.get_available_providers()
    if PROVIDER not in found:
        return f"ort_cuda here has {', '.join(found)} and no {PROVIDER}"
    return probe_cuda().problem


def open_engine(files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock) -> OrtCudaEngine:
    cuda, graphs = shared_cuda(), cuda_graphs_wanted()
    options = DEVICE | (GRAPHS if graphs else {})
    try:
        session = open_session(files, PROVIDER, plan, options)
    except BundleError as error:
        if not (graphs and re.search(REFUSES_GRAPHS, str(error))):
            raise
        progress.line(f"{files.component}: ONNX Runtime runs some of its nodes on the CPU, so no CUDA graph")
        graphs, session = False, open_session(files, PROVIDER, plan, DEVICE)
    return OrtCudaEngine(files.component, files.variant, session, lock, cuda, graphs)


class OrtCudaEngine(OrtEngine):
    def __init__(
        self, component: str, variant: Variant, session: Any, lock: threading.Lock, cuda: Cuda, graphs: bool
    ) -> None:
        super().__init__(component, variant, session, lock)
        self.cuda, self.graphs = cuda, graphs
        self.numbers = itertools.count(1)  # of captured graphs

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self.cuda.zeros(shape, dtype)

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        return GraphBinding(self, inputs, outputs) if self.graphs else self.tie_by_address(inputs, outputs)

    def place(self, array: np.ndarray) -> str:
        return "cuda" if self.cuda.shared.holds(array) else "cpu"

    def run(self, io: Any, options: ort.RunOptions | None = None) -> None:
        """Waits for the result: managed memory may not be touched before."""
        super().run(io, options)
        io.synchronize_outputs()


class GraphBinding:
    """A binding that ONNX Runtime captures in its second run and launches as one from then on.

    It keeps captured graphs for each thread, so a run in another thread than the one before is not captured.
    """

    def __init__(self, engine: OrtCudaEngine, inputs: Arrays, outputs: Arrays) -> None:
        shared, copies = engine.cuda.shared, {}

        def seen(array: np.ndarray) -> np.ndarray:
            """By the GPU; an array that is an input and an output is one array there, too."""
            if shared.holds(array):
                return array
            return copies.setdefault(array.ctypes.data, engine.zeros(array.shape, array.dtype))

        given = {name: seen(array) for name, array in inputs.items()}
        gotten = {name: seen(array) for name, array in outputs.items()}
        self._before = [(given[name], array) for name, array in inputs.items() if given[name] is not array]
        self._after = [(array, gotten[name]) for name, array in outputs.items() if gotten[name] is not array]
        self._binding = engine.tie_by_address(given, gotten)
        self._captured, self._plain = (_options(number) for number in (next(engine.numbers), NOT_CAPTURED))
        self._thread: int | None = None  # of the last run

    def run(self) -> None:
        for copy, array in self._before:
            np.copyto(copy, array)
        here = threading.get_ident()
        self._binding.run(self._captured if here == self._thread else self._plain)
        self._thread = here
        for array, copy in self._after:
            np.copyto(array, copy)


def _options(number: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options
