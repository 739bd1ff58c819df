"""Everything that an engine depends on, and the key that is made of it: another key is another engine.

A bundle's hashes say what is built; the place says for what.  Engines are not portable: another driver, GPU or power
mode may crash or mislead one that was tuned elsewhere, and version numbers alone would not tell.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemm.bundle.components import TensorSpec
from edgemm.bundle.drawing import SIDE_BY_SIDE
from edgemm.bundle.manifest import Manifest
from edgemm.errors import BundleError

__all__ = ["EngineSpec", "Place", "Profile", "merged", "profiles_of", "smaller", "trtexec_command"]

RECIPE = 3  # raised when this wing builds differently from the same wishes


@dataclass(frozen=True)
class Place:
    """The device that an engine is for; "" and 0 where it is built for a device that is not here."""

    compute_capability: str  # "8.6"
    gpu: str = ""
    gpu_memory_bytes: int = 0
    cuda_driver: str = ""
    power_mode: str = ""  # of a Jetson: clocks decide which tactic is fastest
    here: bool = True  # is it this machine's own device
    number: int = 0  # of it, as CUDA counts

    def __str__(self) -> str:
        return f"{self.gpu}, SM {self.compute_capability}" if self.gpu else f"SM {self.compute_capability}"


@dataclass(frozen=True)
class EngineSpec:
    component: str
    graph_sha256: str
    data_sha256: str  # "" for a graph without weights outside it; of several files NAME=SHA256, with blanks between
    tensorrt: str  # the Python package: tensorrt or tensorrt_rtx
    version: str  # of it
    place: Place
    profiles: tuple[Profile, ...]
    opt_level: int  # TensorRT's builder_optimization_level, 0 to 5
    workspace_bytes: int  # scratch memory that a tactic may use
    tf32: bool = False  # may float32 products round their inputs to 10 bits

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """What makes it another engine.  How hard TensorRT looked is no part of it: a model that is loaded takes what
        `edgemm build` made with more time or less memory, and the memory that is free is never the same twice."""
        document = {"recipe": RECIPE, **asdict(self)}
        del document["place"]["number"]  # two GPUs alike share their engines
        del document["opt_level"], document["workspace_bytes"]
        return json.loads(json.dumps(document))  # tuples as lists, as they come back from a file

    @property
    def effort(self) -> dict[str, int]:
        return {"opt_level": self.opt_level, "workspace_bytes": self.workspace_bytes}

    def __str__(self) -> str:
        return f"{self.component} for {self.place}"


# Optimization profiles: for every phase of a component the least, usual and largest shape of each input.
#
# Shapes come from the manifest alone.  One profile a phase: a transformer reads a prompt, then one token at a time; the
# denoiser runs one row, or two with guidance.
# Axes: b batch, s new tokens, m image tokens, T cache slots, t prefix slots.

Range = tuple[int, int, int]  # least, usual, largest
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
USUAL_PROMPT = 128


@dataclass(frozen=True)
class Profile:
    phase: str  # prefill, decode, denoise, ...
    shapes: dict[str, Shapes]  # input -> least, usual and largest shape


def profiles_of(manifest: Manifest, component: str, target: str) -> tuple[Profile, ...]:
    context = manifest.limits.max_context
    seen = min(manifest.loops.text.image_token_count if manifest.loops.text else 1, context)
    one: Range = (1, 1, 1)
    slots: Range = (1, context, context)
    pictures = 2 * SIDE_BY_SIDE  # each beside its unconditional row
    rows: Range = (1, 2, pictures) if manifest.loops.image_tokens else one
    drawing, grid = manifest.loops.denoise, manifest.loops.denoise and manifest.loops.denoise.latents
    drawn: Range = (1, 2, 3 if drawing and drawing.image_guidance_scale is not None else 2)
    cells: dict[str, Range] = {}
    if grid is not None:
        for row, side, own in (("h", "H", grid.height), ("w", "W", grid.width)):
            pixels = (max(grid.smallest, grid.cell), own, grid.largest or own)
            cells[side] = tuple(size // grid.cell * grid.cell for size in pixels)  # type: ignore[assignment]
            cells[row] = tuple(size // grid.cell for size in pixels)  # type: ignore[assignment]
    phases: dict[str, dict[str, dict[str, Range]]] = {
        "transformer": {
            "prefill": {"b": rows, "s": (1, min(USUAL_PROMPT, context), context), "m": (1, seen, context), "T": slots},
            "decode": {"b": rows, "s": one, "m": one, "T": slots},
        },
        "conditioner": {"condition": {"b": one, "T": slots, "t": slots}},
        "denoiser": {"denoise": {"b": drawn, "t": slots, **cells}},
        "image_encoder": {"encode": {"b": one}},
        "motion_encoder": {"encode": {"b": one}},
        "image_decoder": {"decode": {"b": one, **cells}},
        "graph_encoder": {"encode": {"b": one, "m": (1, seen, context)}},
        "latent_encoder": {"encode": {"b": one, **cells}},
        "text_head": {"say": {"b": rows}},
        "image_head": {"say": {"b": rows}},
        "image_embedder": {"embed": {"b": rows, "s": one}},
        "vq_encoder": {"encode": {"b": one}},
        "vq_decoder": {"decode": {"b": one}},
    }
    phases["one_call.draw"] = {"draw": cells}
    phases["one_call.read"] = {"read": {"s": phases["transformer"]["prefill"]["s"], "T": slots}}
    phases["one_call.token"] = {"token": {"T": slots}}
    inputs = manifest.graphs_for(target)[component].inputs
    return tuple(_profile(phase, axes, inputs) for phase, axes in phases[component].items())


def _profile(phase: str, axes: dict[str, Range], inputs: tuple[TensorSpec, ...]) -> Profile:
    def size(spec: TensorSpec, entry: int | str, which: int) -> int:
        if isinstance(entry, int):
            return entry
        if entry not in axes:
            raise BundleError(f"axis {entry!r} of {spec.name!r} has no size in phase {phase}")
        return axes[entry][which]

    def shape(spec: TensorSpec, which: int) -> tuple[int, ...]:
        return tuple(size(spec, entry, which) for entry in spec.shape)

    return Profile(phase, {spec.name: (shape(spec, 0), shape(spec, 1), shape(spec, 2)) for spec in inputs})


def merged(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """One profile for all phases, tuned for the last: TensorRT for RTX stores the weights once a profile."""
    first, last = profiles[0], profiles[-1]
    if len(profiles) == 1:
        return profiles

    def over_all(name: str) -> Shapes:
        ranges = [profile.shapes[name] for profile in profiles]
        least = tuple(map(min, *(shapes[0] for shapes in ranges)))
        most = tuple(map(max, *(shapes[2] for shapes in ranges)))
        return least, last.shapes[name][1], most

    phase = "+".join(profile.phase for profile in profiles)
    return (Profile(phase, {name: over_all(name) for name in first.shapes}),)


def smaller(profile: Profile) -> Profile:
    """The same with a quarter of the room between the least and the largest size of every axis."""

    def shrink(shapes: Shapes) -> Shapes:
        least, usual, largest = shapes
        most = tuple(low + (high - low) // 4 for low, high in zip(least, largest))
        return least, tuple(map(min, usual, most)), most

    return Profile(profile.phase, {name: shrink(shapes) for name, shapes in profile.shapes.items()})


# The command of NVIDIA's own tool that builds the same engine, so that it can be had without us.
#
# trtexec of TensorRT 10 wants --stronglyTyped, from 11 on every network is; TensorRT for RTX calls its tool
# tensorrt_rtx.
# Nothing is run here.

JETPACK_TOOL = "/usr/src/tensorrt/bin/trtexec"


def trtexec_command(spec: EngineSpec, graph: Path, engine: str, jetson: bool = False) -> str:
    """One line for a shell; a profile a phase, in the order of the engine's."""
    rtx = spec.tensorrt == "tensorrt_rtx"
    words = [
        "tensorrt_rtx" if rtx else JETPACK_TOOL if jetson else "trtexec",
        f"--onnx={graph}",
        f"--saveEngine={engine}",
    ]
    if not rtx and _major(spec.version) < 11:
        words.append("--stronglyTyped")
    if rtx and not spec.place.here:
        words.append(f"--computeCapabilities={spec.place.compute_capability}")
    words += [
        f"--builderOptimizationLevel={spec.opt_level}",
        f"--memPoolSize=workspace:{spec.workspace_bytes >> 20}M",
        "--skipInference",
        *(() if spec.tf32 else ("--noTF32",)),
    ]
    for index, profile in enumerate(spec.profiles):
        words += [f"--profile={index}"] if len(spec.profiles) > 1 else []
        for which, flag in enumerate(("min", "opt", "max")):
            shapes = ",".join(f"{name}:{_shape(sizes[which])}" for name, sizes in profile.shapes.items())
            words.append(f"--{flag}Shapes={shapes}")
    return " ".join(map(shlex.quote, words))


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0
