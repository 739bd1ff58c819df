"""TensorRT's two packages as backends: JetPack's own, 10.3 to 11, and TensorRT for RTX.  Not tried on a device yet.

Engines come from the cache of edgemm.engines, which builds them, once, when they are not there.  The CUDA driver is
asked before any TensorRT object exists.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgemm.bundle.components import Variant
from edgemm.errors import BundleError, MissingError
from edgemm.runtimes.backend.cuda_memory import shared_cuda
from edgemm.runtimes.backend.engine import GraphFiles, ThreadPlan
from edgemm.runtimes.backend.tensorrt_engine import TensorRTEngine, load_engine

__all__ = ["TENSORRT", "TENSORRT_RTX", "TensorRTPackage"]


@dataclass(frozen=True)
class TensorRTPackage:
    package: str
    provider: str

    def version(self) -> str:
        return importlib.import_module(self.package).__version__

    def providers(self) -> tuple[str, ...]:
        return (self.provider,) if not self.problem() else ()

    def problem(self, target: str = "") -> str:
        """Why this target does not run here, or an empty string.  Cheap questions first: most machines have no such
        package, and no driver."""
        from edgemm.device.machine import read_board
        from edgemm.device.targets import is_rtx

        board = read_board()
        if target.startswith("jetson") and (board is None or board.target != target):
            return "this machine is no such Jetson" if board is None else f"this board takes target {board.target}"
        if find_spec(self.package) is None:
            from edgemm.engines.bundle_engines import install_line

            return f"{self.package} is not installed: {install_line(self.package, board)}"
        from edgemm.device.gpu import probe_cuda

        cuda = probe_cuda()
        if self is TENSORRT_RTX and cuda.gpus and not any(map(is_rtx, cuda.gpus)):
            return f"{cuda.gpus[0].name} is no RTX GPU (compute capability 7.5 or newer)"
        return cuda.problem

    def open_engine(
        self, files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock, number: int = 0
    ) -> TensorRTEngine:
        """On the GPU of that number; builds what is not in the cache."""
        from edgemm.engines.bundle_engines import engine_for

        cuda = shared_cuda(number)
        try:
            trt = importlib.import_module(self.package)
        except ImportError as error:
            raise MissingError(f"backend {self.package} is not installed ({error})") from error
        path = engine_for(_bundle_of(files.graph, files.variant), files.component, self.package, files.variant, number)
        return load_engine(trt, files.component, path, files.variant, cuda, lock)


def _bundle_of(graph: Path, variant: Variant) -> Path:
    """The folder that `variant.graph` is in."""
    parts = Path(variant.graph).parts
    if graph.parts[-len(parts) :] != parts:
        raise BundleError(f"{graph} is not {variant.graph} of a bundle")
    return graph.parents[len(parts) - 1]


TENSORRT = TensorRTPackage("tensorrt", "TensorRT")
TENSORRT_RTX = TensorRTPackage("tensorrt_rtx", "TensorRT-RTX")
