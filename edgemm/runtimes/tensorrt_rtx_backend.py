"""TensorRT for RTX as a backend: GeForce and workstation GPUs from Turing on.  Not tried on a device yet.

The same engine object as TensorRT's, from another package: tensorrt_door.py.
"""

from __future__ import annotations

from edgemm.runtimes.tensorrt_door import Door

__all__ = ["open_engine", "problem", "providers", "version"]

DOOR = Door("tensorrt_rtx", "TensorRT-RTX")
version, providers, problem, open_engine = DOOR.version, DOOR.providers, DOOR.problem, DOOR.open_engine
