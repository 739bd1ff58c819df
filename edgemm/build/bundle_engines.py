"""All engines of a bundle for one destination: what each depends on, and each built or found.

A command line, a backend and a benchmark ask here; the verb is verb.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from edgemm.build.builder import Built, Limits, build_engine
from edgemm.build.devices import PACKAGES, Destination, choose_destinations
from edgemm.build.engine_cache import EngineCache, default_folder
from edgemm.build.engine_spec import EngineSpec
from edgemm.build.graph_gate import checked_graph
from edgemm.build.profiles import profiles_of
from edgemm.bundle import Bundle, open_bundle
from edgemm.errors import BundleError, ResourceError
from edgemm.manifest import Variant
from edgemm.measure.machine import read_machine

__all__ = ["OPT_LEVEL", "TIMEOUT_S", "bundle_specs", "build_bundle", "default_memory_bytes", "engine_for"]

OPT_LEVEL = 3  # TensorRT's own default
TIMEOUT_S = 3600.0
MOST_WORKSPACE_BYTES = 1 << 30
SHARE_OF_FREE = 0.75  # of what is free: on a Jetson the GPU's memory is the same memory

Say = Callable[[str], None]


def default_memory_bytes(disk: Path = Path(".")) -> int:
    free = read_machine(disk=disk).memory_available_bytes
    return int(SHARE_OF_FREE * free) if free else 4 << 30


def engine_for(folder: Path, component: str, package: str, variant: Variant, say: Say, status: Say) -> Path:
    """The engine of one component for this machine's first GPU, built when the cache has none; for a backend."""
    bundle = open_bundle(folder, verify=False)  # the backend's caller has checked the hashes
    fitting = [t for t, p in PACKAGES.items() if p == package and t in bundle.manifest.targets]
    target = next((t for t in fitting if bundle.manifest.variant(component, t) == variant), None)
    if target is None:
        raise BundleError(f"{folder}: {component} has no graph that {package} builds")
    (destination,) = choose_destinations((target,), target, None, None)
    limits = Limits(default_memory_bytes(folder), TIMEOUT_S)
    spec, graph = next(
        pair
        for pair in bundle_specs(bundle, destination, OPT_LEVEL, limits.memory_bytes)
        if pair[0].component == component
    )
    return build_engine(spec, graph, EngineCache(default_folder()), limits, say, status).entry.path


def bundle_specs(
    bundle: Bundle, destination: Destination, opt_level: int = OPT_LEVEL, memory_bytes: int | None = None
) -> Iterator[tuple[EngineSpec, Path]]:
    """What the engine of every component depends on, and its graph, checked."""
    manifest, target = bundle.manifest, destination.target
    workspace = min(MOST_WORKSPACE_BYTES, (memory_bytes or 4 * MOST_WORKSPACE_BYTES) // 4)
    for component in manifest.targets[target]:
        variant = manifest.variant(component, target)
        graph = checked_graph(bundle, component, target, destination.place.compute_capability)
        spec = EngineSpec(
            component=component,
            graph_sha256=manifest.files[variant.graph].sha256,
            data_sha256=manifest.files[variant.data].sha256 if variant.data else "",
            tensorrt=destination.tensorrt,
            version=destination.version,
            place=destination.place,
            profiles=profiles_of(manifest, component, target),
            opt_level=opt_level,
            workspace_bytes=workspace,
        )
        yield spec, graph


def build_bundle(
    bundle: Bundle,
    destination: Destination,
    cache: EngineCache,
    limits: Limits,
    opt_level: int = OPT_LEVEL,
    say: Say = lambda line: None,
    status: Say = lambda text: None,
) -> Iterator[tuple[EngineSpec, Built]]:
    for spec, graph in list(bundle_specs(bundle, destination, opt_level, limits.memory_bytes)):
        least = graph.stat().st_size
        if limits.memory_bytes < least:
            raise ResourceError(f"{spec}: its graph alone has {least} bytes, --max-memory is {limits.memory_bytes}")
        yield spec, build_engine(spec, graph, cache, limits, say, status)
