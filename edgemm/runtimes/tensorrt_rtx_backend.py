"""TensorRT for RTX as a backend: GeForce and workstation GPUs from Turing on.  Not tried on a device yet.

The same engine object as TensorRT's (tensorrt_engine.py), from another package.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

from edgemm.manifest import Variant
from edgemm.runtimes.tensorrt_backend import open_engine_of, problem_of
from edgemm.runtimes.tensorrt_engine import TensorRTEngine
from edgemm.runtimes.threads import ThreadPlan

__all__ = ["open_engine", "problem", "providers", "version"]

PACKAGE, PROVIDER = "tensorrt_rtx", "TensorRT-RTX"


def version() -> str:
    return importlib.import_module(PACKAGE).__version__


def providers() -> tuple[str, ...]:
    return (PROVIDER,) if not problem_of(PACKAGE) else ()


def problem(target: str) -> str:
    return problem_of(PACKAGE, target)


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
