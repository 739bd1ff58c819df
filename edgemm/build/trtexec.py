"""The command of NVIDIA's own tool that builds the same engine, so that it can be had without us.

trtexec of TensorRT 10 wants --stronglyTyped, from 11 on every network is; TensorRT for RTX calls its tool tensorrt_rtx.
Nothing is run here.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from edgemm.build.engine_spec import EngineSpec

__all__ = ["trtexec_command"]

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
