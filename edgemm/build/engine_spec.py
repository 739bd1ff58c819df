"""Everything that an engine depends on, and the key that is made of it: another key is another engine.

A bundle's hashes say what is built; the place says for what.  Engines are not portable: another driver, GPU or power
mode may crash or mislead one that was tuned elsewhere, and version numbers alone would not tell.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from edgemm.build.profiles import Profile

__all__ = ["EngineSpec", "Place"]

RECIPE = 1  # raised when this wing builds differently from the same wishes


@dataclass(frozen=True)
class Place:
    """The device that an engine is for; "" and 0 where it is built for a device that is not here."""

    compute_capability: str  # "8.6"
    gpu: str = ""
    gpu_memory_bytes: int = 0
    cuda_driver: str = ""
    power_mode: str = ""  # of a Jetson: clocks decide which tactic is fastest
    here: bool = True  # is it this machine's own device

    def __str__(self) -> str:
        return f"{self.gpu}, SM {self.compute_capability}" if self.gpu else f"SM {self.compute_capability}"


@dataclass(frozen=True)
class EngineSpec:
    component: str
    graph_sha256: str
    data_sha256: str  # "" for a graph without weights outside it
    tensorrt: str  # the Python package: tensorrt or tensorrt_rtx
    version: str  # of it
    place: Place
    profiles: tuple[Profile, ...]
    opt_level: int  # TensorRT's builder_optimization_level, 0 to 5
    workspace_bytes: int  # scratch memory that a tactic may use

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        document = {"recipe": RECIPE, **asdict(self)}
        return json.loads(json.dumps(document))  # tuples as lists, as they come back from a file

    def __str__(self) -> str:
        return f"{self.component} for {self.place}"
