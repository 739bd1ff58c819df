"""ONNX Runtime's CPU as the judge of every graph, whatever target it is for.

It has no kernel for FP4: there each weight stands in the graph as the numbers that it means (passes/decompositions.py),
and that graph is run and thrown away.  All else is run as it lies in the bundle.  For comparing, never for use.
"""

from __future__ import annotations

import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from edgemm.bundle.onnx_file import read_outline
from edgemm.errors import MissingError
from edgemm.runtimes.backend import ort_backend as onnxruntime_backend
from edgemm.runtimes.backend.engine import GraphFiles, ThreadPlan
from edgemm.runtimes.backend.ort_backend import OrtEngine, providers, version
from edgemm.runtimes.engines import BACKENDS

__all__ = ["REFERENCE", "open_engine", "providers", "version"]

REFERENCE = "reference"
BACKENDS[REFERENCE] = (__name__, "", "pip install 'edgemm[export,ort]'")  # there for whoever compares, never chosen


def open_engine(files: GraphFiles, provider: str, plan: ThreadPlan, lock: threading.Lock) -> OrtEngine:
    if "float4e2m1" not in read_outline(files.graph).types.values():
        return onnxruntime_backend.open_engine(files, provider, plan, lock)
    try:
        from edgemm.export.passes.decompositions import decoded_copy
    except ImportError as error:
        raise MissingError(f"comparing nvfp4 needs {error.name or error}: pip install 'edgemm[export]'") from error
    with tempfile.TemporaryDirectory(prefix="edgemm-decoded-") as folder:
        copy, weights = decoded_copy(files.graph, Path(folder))
        decoded = replace(files, graph=copy, data=weights, verified=None)  # what was verified is the other one
        return onnxruntime_backend.open_engine(decoded, provider, plan, lock)
