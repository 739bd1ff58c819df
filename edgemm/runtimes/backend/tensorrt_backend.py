"""TensorRT as a backend: JetPack's own, 10.3 to 11.  Not tried on a device yet.  What it does: tensorrt_package.py."""

from __future__ import annotations

from edgemm.runtimes.backend.tensorrt_package import TensorRTPackage

__all__ = ["open_engine", "problem", "providers", "version"]

PACKAGE = TensorRTPackage("tensorrt", "TensorRT")
version, providers, problem, open_engine = PACKAGE.version, PACKAGE.providers, PACKAGE.problem, PACKAGE.open_engine
