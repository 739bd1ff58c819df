"""TensorRT for RTX as a backend: GeForce and workstation GPUs from Turing on.  Not tried on a device yet.

The same engine object as TensorRT's, from another package: tensorrt_package.py.
"""

from __future__ import annotations

from edgemm.runtimes.backend.tensorrt_package import TensorRTPackage

__all__ = ["open_engine", "problem", "providers", "version"]

PACKAGE = TensorRTPackage("tensorrt_rtx", "TensorRT-RTX")
version, providers, problem, open_engine = PACKAGE.version, PACKAGE.providers, PACKAGE.problem, PACKAGE.open_engine
