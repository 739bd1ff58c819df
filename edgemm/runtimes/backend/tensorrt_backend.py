"""TensorRT as a backend: JetPack's own, 10.3 to 11.  Not tried on a device yet.  What it does: tensorrt_package.py."""

from __future__ import annotations

from edgemm.runtimes.backend.tensorrt_package import Door

__all__ = ["open_engine", "problem", "providers", "version"]

DOOR = Door("tensorrt", "TensorRT")
version, providers, problem, open_engine = DOOR.version, DOOR.providers, DOOR.problem, DOOR.open_engine
