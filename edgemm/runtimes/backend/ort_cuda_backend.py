"""ONNX Runtime's CUDA provider as a backend: the same sessions, with the cache on the GPU.  Not tried on a device yet.

Its sessions work on our stream, and everything is bound as memory that the GPU reads: ONNX Runtime copies an array of
the CPU when it is bound, not when it runs.  What a node reads on the CPU is bound as the array itself.  Where every
node is on the GPU, a binding is captured by us, not by ONNX Runtime, which keeps a graph until its session ends.
EDGEMM_CUDA_GRAPHS=0 captures nothing; EDGEMM_TF32=1 lets float32 products round their inputs to 10 bits.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort

from edgemm import progress
from edgemm.bundle.components import Variant
from edgemm.device.fatbin import find_cuda_code
from edgemm.device.gpu import probe_cuda, tf32_wanted
from edgemm.device.machine import read_board
from edgemm.device.providers import what_it_lacks
from edgemm.errors import BundleError
from edgemm.runtimes.backend.cuda_binding import CudaBinding
from edgemm.runtimes.backend.cuda_memory import Cuda, cuda_graphs_wanted, shared_cuda
from edgemm.runtimes.backend.engine import Arrays, Binding, GraphFiles, ThreadPlan
from edgemm.runtimes.backend.ort_backend import OrtEngine, denormals_as_zero, open_session, providers, version

__all__ = ["OrtCudaBinding", "OrtCudaEngine", "open_engine", "problem", "providers", "version"]

PROVIDER = "CUDAExecutionProvider"
GRAPHS = {"enable_cuda_graph": "1"}  # asked for to be told whether a session can be captured
REFUSES_GRAPHS = r"cannot use the (graph capture|CUDA Graph) feature"  # in ONNX Runtime's words
RUN_OPTIONS = {"gpu_graph_id": "-1", "disable_synchronize_execution_providers": "1"}  # capture and wait are ours


def problem(target: str = "") -> str:
    """Why nothing runs on it here, or an empty string: the package has its provider also where there is no GPU."""
    found = ort.get_available_providers()
    if PROVIDER not in found:
        return f"ort_cuda here has {', '.join(found)} and no {PROVIDER}"
    cuda, code = probe_cuda(), find_cuda_code()
    on_tegra = read_board() is not None
    if cuda.gpus and code and not any(code.runs_on(gpu.compute_capability, on_tegra) for gpu in cuda.gpus):
        return f"the installed onnxruntime-gpu holds code for SM {code}, this GPU is {cuda.gpus[0].compute_capability}"
    if cuda.problem:
        return cuda.problem
    _load_libraries()
    return what_it_lacks(PROVIDER)


def open_engine(
    files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock, number: int = 0
) -> OrtCudaEngine:
    """On the GPU of that number.  `lock` is of a model; the stream's own holds more."""
    cuda, graphs = shared_cuda(number), cuda_graphs_wanted()
    _load_libraries()
    options = {
        "device_id": str(number),
        "user_compute_stream": str(cuda.stream),
        "use_tf32": "1" if tf32_wanted() else "0",
    }
    with cuda.turn():
        try:
            session = open_session(files, PROVIDER, plan, options | (GRAPHS if graphs else {}))
        except BundleError as error:
            if not (graphs and re.search(REFUSES_GRAPHS, str(error))):
                raise
            progress.line(f"{files.component}: ONNX Runtime runs some of its nodes on the CPU, so no CUDA graph")
            graphs, session = False, open_session(files, PROVIDER, plan, options)
    return OrtCudaEngine(files.component, files.variant, session, lock, cuda, graphs)


@cache
def _load_libraries() -> None:
    """CUDA's and cuDNN's, where they came as wheels: no path leads to those."""
    with contextlib.redirect_stdout(sys.stderr):  # what it does not find it prints
        ort.preload_dlls()


class OrtCudaEngine(OrtEngine):
    def __init__(
        self, component: str, variant: Variant, session: Any, lock: threading.Lock, cuda: Cuda, graphs: bool
    ) -> None:
        super().__init__(component, variant, session, lock)
        self.cuda = cuda
        self.on_cpu = frozenset(
            node.name
            for nodes, memories in (
                (session.get_inputs(), session.get_input_memory_infos()),
                (session.get_outputs(), session.get_output_memory_infos()),
            )
            for node, memory in zip(nodes, memories)
            if memory.name.lower().startswith("cpu")
        )
        self.graphs = graphs and not self.on_cpu  # a captured graph keeps what it read on the CPU

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self.cuda.zeros(shape, dtype)

    def tie(self, inputs: Arrays, outputs: Arrays) -> Binding:
        return OrtCudaBinding(self, inputs, outputs)


class OrtCudaBinding(CudaBinding):
    def __init__(self, engine: OrtCudaEngine, inputs: Arrays, outputs: Arrays) -> None:
        super().__init__(engine, engine.cuda, inputs, outputs, engine.graphs)
        self._session, self._options = engine.session, ort.RunOptions()
        for key, value in RUN_OPTIONS.items():
            self._options.add_run_config_entry(key, value)
        with engine.cuda.turn():
            self._io = engine.session.io_binding()
            for side, bind, placed in (
                (inputs, self._io.bind_input, self.given),
                (outputs, self._io.bind_output, self.gotten),
            ):
                for name, array in side.items():
                    where, number = ("cpu", 0) if name in engine.on_cpu else ("cuda", engine.cuda.number)
                    seen = array if name in engine.on_cpu else placed(array)
                    bind(name, where, number, seen.dtype.type, seen.shape, seen.ctypes.data)

    def capturable(self) -> bool:
        """The second run may allocate, too: what the first one took in parts becomes one piece of memory."""
        return self._runs > 2

    def enqueue(self) -> None:
        with denormals_as_zero():
            self._session.run_with_iobinding(self._io, self._options)
