"""TensorRT as a backend: JetPack's own, 10.3 to 11.  Not tried on a device yet.

Engines come from the cache of edgemm.build, which builds them, once, when they are not there.  The CUDA driver is asked
before any TensorRT object exists.
"""

from __future__ import annotations

import importlib
import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from edgemm.errors import BundleError, MissingError
from edgemm.manifest import Variant
from edgemm.runtimes.cuda_memory import Cuda, open_cuda
from edgemm.runtimes.tensorrt_engine import TensorRTEngine, load_engine
from edgemm.runtimes.threads import ThreadPlan

__all__ = ["open_engine", "open_engine_of", "problem", "problem_of", "providers", "version"]

PACKAGE, PROVIDER = "tensorrt", "TensorRT"


def version() -> str:
    return importlib.import_module(PACKAGE).__version__


def providers() -> tuple[str, ...]:
    return (PROVIDER,) if not problem_of(PACKAGE) else ()


def problem(target: str) -> str:
    """Why this target does not run here, or an empty string."""
    return problem_of(PACKAGE, target)


def problem_of(package: str, target: str = "") -> str:
    """Cheap questions first: most machines have no such package, and no driver."""
    from edgemm.measure.board import read_board

    board = read_board()
    if target.startswith("jetson") and (board is None or board.target != target):
        return "this machine is no such Jetson" if board is None else f"this board takes target {board.target}"
    if find_spec(package) is None:
        from edgemm.build.devices import install_line

        return f"{package} is not installed: {install_line(package, board)}"
    from edgemm.measure.cuda_driver import probe_cuda

    return probe_cuda().problem


def open_engine(
    component: str,
    graph: Path,
    data: Path | None,
    variant: Variant,
    provider: str,
    plan: ThreadPlan,
    lock: threading.Lock,
) -> TensorRTEngine:
    return open_engine_of(PACKAGE, component, graph, variant, lock)


def open_engine_of(package: str, component: str, graph: Path, variant: Variant, lock: threading.Lock) -> TensorRTEngine:
    """Builds what is not in the cache, telling it on stderr: minutes of silence look like a hang."""
    from edgemm.build.bundle_engines import engine_for
    from edgemm.build.heartbeat import Heartbeat

    cuda = _cuda()
    try:
        trt = importlib.import_module(package)
    except ImportError as error:
        raise MissingError(f"backend {package} is not installed ({error})") from error
    folder = _bundle_of(graph, variant)
    with Heartbeat() as heartbeat:
        path = engine_for(folder, component, package, variant, heartbeat.say, heartbeat.status)
    return load_engine(trt, component, path, variant, cuda, lock)


@cache
def _cuda() -> Cuda:
    """One context and one stream for all engines of the process: they take turns anyway."""
    return open_cuda()


def _bundle_of(graph: Path, variant: Variant) -> Path:
    """The folder that `variant.graph` is in."""
    parts = Path(variant.graph).parts
    if graph.parts[-len(parts) :] != parts:
        raise BundleError(f"{graph} is not {variant.graph} of a bundle")
    return graph.parents[len(parts) - 1]
