"""All engines of a bundle for one destination: what each depends on, and each built or found.

A command line, a backend and a benchmark ask here; the verb is verb.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.bundle.components import Variant
from edgemm.bundle.graph_rules import RULES, broken_rules
from edgemm.bundle.onnx_file import Outline, check_external_data, read_outline
from edgemm.device.gpu import missing_kernels
from edgemm.device.machine import read_machine
from edgemm.engines.builder import Built, Limits, build_engine
from edgemm.engines.cache import EngineCache, default_folder
from edgemm.engines.destination import PACKAGES, Destination, choose_destinations
from edgemm.engines.engine_spec import EngineSpec, profiles_of
from edgemm.errors import BundleError, ResourceError

__all__ = [
    "OPT_LEVEL",
    "TIMEOUT_S",
    "bundle_specs",
    "build_bundle",
    "default_memory_bytes",
    "engine_for",
    "checked_graph",
]

OPT_LEVEL = 3  # TensorRT's own default
TIMEOUT_S = 3600.0
MOST_WORKSPACE_BYTES = 1 << 30
AUTOENCODER = ("image_decoder", "latent_encoder")  # whose maps of 1024 pixels want twice as much, and get four times
SHARE_OF_FREE = 0.75  # of what is free: on a Jetson the GPU's memory is the same memory


def default_memory_bytes(disk: Path = Path(".")) -> int:
    free = read_machine(disk=disk).memory_available_bytes
    return int(SHARE_OF_FREE * free) if free else 4 << 30


def engine_for(folder: Path, component: str, package: str, variant: Variant) -> Path:
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
    return build_engine(spec, graph, EngineCache(default_folder()), limits).entry.path


def bundle_specs(
    bundle: Bundle, destination: Destination, opt_level: int = OPT_LEVEL, memory_bytes: int | None = None
) -> Iterator[tuple[EngineSpec, Path]]:
    """What the engine of every component depends on, and its graph, checked."""
    manifest, target = bundle.manifest, destination.target
    workspace = min(MOST_WORKSPACE_BYTES, (memory_bytes or 4 * MOST_WORKSPACE_BYTES) // 4)
    has_latents = manifest.loops.denoise is not None and manifest.loops.denoise.latents is not None
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
            workspace_bytes=workspace * (4 if has_latents and component in AUTOENCODER else 1),
        )
        yield spec, graph


def build_bundle(
    bundle: Bundle,
    destination: Destination,
    cache: EngineCache,
    limits: Limits,
    opt_level: int = OPT_LEVEL,
) -> Iterator[tuple[EngineSpec, Built]]:
    for spec, graph in list(bundle_specs(bundle, destination, opt_level, limits.memory_bytes)):
        least = graph.stat().st_size
        if limits.memory_bytes < least:
            raise ResourceError(f"{spec}: its graph alone has {least} bytes, --max-memory is {limits.memory_bytes}")
        yield spec, build_engine(spec, graph, cache, limits)


# What a graph has to pass before NVIDIA's parser may see it, because that parser trusts its input.
#
# It follows links out of a folder, waits for ever on a pipe, and crashes on a function that calls itself.  So the
# path is
# walked without following links (edgemm.bundle.bundle), the graph may read one file, inside that file, and it may
# hold only what
# its target takes (graph_rules.py).


def checked_graph(bundle: Bundle, component: str, target: str, compute_capability: str = "") -> Path:
    """The graph's path; BundleError says what is wrong with it, or that such a GPU cannot multiply its weights."""
    variant = bundle.manifest.variant(component, target)
    graph = bundle.file(variant.graph)
    data = bundle.file(variant.data) if variant.data else None
    check_external_data(graph, data)
    outline = read_outline(graph)
    _check_ranges(graph, data, outline)
    for problem in broken_rules(outline, RULES[target]):
        raise BundleError(f"{graph}: target {target} cannot take it: {problem}")
    missing = missing_kernels(outline, compute_capability) if compute_capability else None
    if missing:
        raise BundleError(f"{graph}: SM {compute_capability} has no kernels for it: {missing}")
    return graph


def _check_ranges(graph: Path, data: Path | None, outline: Outline) -> None:
    size = data.stat().st_size if data else 0
    for tensor in outline.stored:
        end = tensor.offset + (tensor.length or 0)
        if tensor.offset < 0 or end > size or (tensor.length or 0) < 0:
            raise BundleError(f"{graph}: {tensor.name!r} lies at bytes {tensor.offset} to {end} of a file of {size}")
