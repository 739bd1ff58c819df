"""All engines of a bundle for one destination: what each depends on, and each built or found.

A command line, a backend and a benchmark ask here; the verb is cli/build.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.bundle.components import Variant
from edgemm.bundle.graph_rules import RULES, broken_rules
from edgemm.bundle.manifest import Manifest
from edgemm.bundle.onnx_file import Outline, check_external_data, read_outline
from edgemm.device.gpu import CudaDriver, missing_kernels, probe_cuda, tf32_wanted
from edgemm.device.machine import Board, read_board, read_machine
from edgemm.device.targets import find_system_tensorrt, installed_version
from edgemm.engines.builder import OPT_LEVEL, TIMEOUT_S, Built, Limits, build_engine
from edgemm.engines.cache import EngineCache, default_folder
from edgemm.engines.engine_spec import EngineSpec, Place, profiles_of
from edgemm.errors import BundleError, MissingError, ResourceError, UsageError

__all__ = [
    "Destination",
    "OPT_LEVEL",
    "TIMEOUT_S",
    "build_bundle",
    "bundle_specs",
    "checked_graph",
    "choose_destinations",
    "default_memory_bytes",
    "engine_for",
    "install_line",
]

# For which device, and with which TensorRT, an engine is to be built: a caller's words and this machine -> a place.
#
# `--target rtx --sm 86,89` builds for devices that are not here, with TensorRT for RTX, which needs no GPU.  Everything
# else is for a device of this machine, and the CUDA driver is asked before any TensorRT object exists: without a driver
# some versions take the process down.

RTX_SMS = ("75", "80", "86", "89", "120", "121")
PACKAGES = {  # target -> the Python package that builds for it
    "rtx": "tensorrt_rtx",
    "jetson-orin-jp6": "tensorrt",
    "jetson-orin": "tensorrt",
    "jetson-thor": "tensorrt",
}


@dataclass(frozen=True)
class Destination:
    target: str
    tensorrt: str  # Python package
    version: str
    place: Place


def choose_destinations(
    offered: tuple[str, ...], target: str | None, sms: str | None, device: str | None, root: Path = Path("/")
) -> tuple[Destination, ...]:
    """`offered` are the bundle's targets."""
    if sms is not None:
        if target not in (None, "rtx") or device is not None:
            raise UsageError(
                "--sm names devices that are not here: only --target rtx builds for those, without --device"
            )
        return _elsewhere(_offered("rtx", offered), sms, read_board(root))
    board, cuda = read_board(root), probe_cuda()
    number = _number(device)
    if number >= len(cuda.gpus):
        found = cuda.problem or f"there are {len(cuda.gpus)} GPUs"
        raise MissingError(f"no device cuda:{number} to build for: {found}; without one: --target rtx --sm 86,89")
    chosen = _offered(target or (board.target if board and board.target else "rtx"), offered)
    if board and board.target != chosen:
        raise UsageError(f"this board takes target {board.target}, not {chosen}")
    package = PACKAGES[chosen]
    version = _version(package, board, root)
    return (Destination(chosen, package, version, _here(board, cuda, number)),)


def _elsewhere(target: str, sms: str, board: Board | None) -> tuple[Destination, ...]:
    version = _version(PACKAGES[target], board, Path("/"))
    names = [name.strip().replace(".", "") for name in sms.split(",")]
    for name in names:
        if name not in RTX_SMS:
            raise UsageError(f"SM {name!r} is none of what TensorRT for RTX builds for: {', '.join(RTX_SMS)}")
    places = [Place(f"{name[:-1]}.{name[-1]}", here=False) for name in dict.fromkeys(names)]
    return tuple(Destination(target, PACKAGES[target], version, place) for place in places)


def _offered(target: str, offered: tuple[str, ...]) -> str:
    if target not in PACKAGES:
        raise UsageError(f"no engine is built for target {target!r}, expected one of: {', '.join(PACKAGES)}")
    if target not in offered:
        raise BundleError(f"the bundle has no target {target!r}, only: {', '.join(offered)}; export it for that target")
    return target


def _number(device: str | None) -> int:
    found = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", device or "cuda")
    if not found:
        raise UsageError(f"device is {(device or '')[:40]!r}, expected cuda:0 or another number")
    return int(found.group(1) or 0)


def _here(board: Board | None, cuda: CudaDriver, number: int) -> Place:
    gpu = cuda.gpus[number]
    return Place(
        compute_capability=gpu.compute_capability,
        gpu=gpu.name,
        gpu_memory_bytes=gpu.memory_bytes,
        cuda_driver=cuda.version or "",
        power_mode=(board.power_mode if board else None) or "",
        number=number,
    )


def _version(package: str, board: Board | None, root: Path) -> str:
    """Of an installed package; MissingError with this platform's own line where it is not there."""
    version = installed_version(package.replace("_", "-"))
    if version is None and find_spec(package) is None:
        raise MissingError(f"{package} is not installed: {install_line(package, board, root)}")
    return version or "unknown"


def install_line(package: str, board: Board | None, root: Path = Path("/")) -> str:
    if package == "tensorrt_rtx" or board is None:
        return f"pip install 'edgemm[{package.replace('_', '-')}]'"
    environment = "python3 -m venv --system-site-packages .venv"
    system = find_system_tensorrt(root)
    if system:
        return f"JetPack's is in {system.parent}, where this environment does not look: make it with {environment}"
    return f"sudo apt-get install nvidia-jetpack, then make the environment with: {environment}"


MOST_WORKSPACE_BYTES = 1 << 30
AUTOENCODER = ("image_decoder", "latent_encoder")  # whose maps of 1024 pixels want twice as much, and get four times
SHARE_OF_FREE = 0.75  # of what is free: on a Jetson the GPU's memory is the same memory


def default_memory_bytes(disk: Path = Path(".")) -> int:
    free = read_machine(disk=disk).memory_available_bytes
    return int(SHARE_OF_FREE * free) if free else 4 << 30


def engine_for(folder: Path, component: str, package: str, variant: Variant, number: int = 0) -> Path:
    """The engine of one component for one of this machine's GPUs, built when the cache has none; for a backend."""
    bundle = open_bundle(folder, verify=False)  # the backend's caller has checked the hashes
    fitting = [t for t, p in PACKAGES.items() if p == package and t in bundle.manifest.targets]
    target = next((t for t in fitting if bundle.manifest.graphs_for(t).get(component) == variant), None)
    if target is None:
        raise BundleError(f"{folder}: {component} has no graph that {package} builds")
    (destination,) = choose_destinations((target,), target, None, f"cuda:{number}")
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
    for component, variant in manifest.graphs_for(target).items():
        graph = checked_graph(bundle, component, target, destination.place.compute_capability)
        spec = EngineSpec(
            component=component,
            graph_sha256=manifest.files[variant.graph].sha256,
            data_sha256=_data_hashes(manifest, variant),
            tensorrt=destination.tensorrt,
            version=destination.version,
            place=destination.place,
            profiles=profiles_of(manifest, component, target),
            opt_level=opt_level,
            tf32=tf32_wanted(),
            workspace_bytes=workspace * (4 if has_latents and component in AUTOENCODER else 1),
        )
        yield spec, graph


def _data_hashes(manifest: Manifest, variant: Variant) -> str:
    if not variant.shares:
        return manifest.files[variant.data].sha256 if variant.data else ""
    named = zip(variant.shared_locations, variant.shares, strict=True)
    return " ".join(f"{location}={manifest.files[path].sha256}" for location, path in named)


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
        yield spec, build_engine(spec, graph, cache, limits, as_asked=True)


# What a graph has to pass before NVIDIA's parser may see it, because that parser trusts its input.
#
# It follows links out of a folder, waits for ever on a pipe, and crashes on a function that calls itself.  So the path
# is walked without following links (edgemm.bundle.bundle), the graph may read one file, inside that file, and it may
# hold only what its target takes (graph_rules.py).


def checked_graph(bundle: Bundle, component: str, target: str, compute_capability: str = "") -> Path:
    """The graph's path; BundleError says what is wrong with it, or that such a GPU cannot multiply its weights."""
    variant = bundle.manifest.graphs_for(target)[component]
    graph = bundle.file(variant.graph)
    data = bundle.file(variant.data) if variant.data else None
    check_external_data(graph, data, shared=variant.shared_locations)
    outline = read_outline(graph)
    _check_ranges(graph, outline)
    for problem in broken_rules(outline, RULES[target]):
        raise BundleError(f"{graph}: target {target} cannot take it: {problem}")
    missing = missing_kernels(outline, compute_capability) if compute_capability else None
    if missing:
        raise BundleError(f"{graph}: SM {compute_capability} has no kernels for it: {missing}")
    return graph


def _check_ranges(graph: Path, outline: Outline) -> None:
    """Every tensor lies inside its file; which files those may be was checked before."""
    for tensor in outline.stored:
        size = (graph.parent / tensor.location).stat().st_size
        end = tensor.offset + (tensor.length or 0)
        if tensor.offset < 0 or end > size or (tensor.length or 0) < 0:
            raise BundleError(f"{graph}: {tensor.name!r} lies at bytes {tensor.offset} to {end} of a file of {size}")
