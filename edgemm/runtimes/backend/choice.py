"""Which backend runs a bundle on a device, and why: two tables and a choice.

A backend is imported when it is chosen, never before, and comes with the line that installs it.  A device that was
asked for and is not there is an error; only `auto` may choose another.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgemm.errors import BundleError, MissingError, UsageError
from edgemm.runtimes.backend.engine import Backend

__all__ = ["BACKENDS", "DEVICES", "ON_CPU", "Choice", "assign", "load_backend", "select"]

BACKENDS: dict[str, tuple[str, str, str]] = {  # backend -> (module, the object in it or "", how to get it)
    "onnxruntime": ("edgemm.runtimes.backend.ort_backend", "", "pip install 'edgemm[ort]'"),
    "ort_cuda": ("edgemm.runtimes.backend.ort_cuda_backend", "", "pip install 'edgemm[cuda]' and an NVIDIA driver"),
    "tensorrt": (
        "edgemm.runtimes.backend.tensorrt_backend",
        "TENSORRT",
        "comes with JetPack: sudo apt-get install nvidia-jetpack",
    ),
    "tensorrt_rtx": (
        "edgemm.runtimes.backend.tensorrt_backend",
        "TENSORRT_RTX",
        "pip install 'edgemm[tensorrt-rtx]'",
    ),
    "openvino": ("edgemm.runtimes.backend.openvino_backend", "", "pip install 'edgemm[openvino]'"),
    "openvino-bf16": ("edgemm.runtimes.backend.openvino_backend", "", "pip install 'edgemm[openvino]'"),
}

ON_CPU = {  # backends that a component may be given by hand, and what each calls the CPU
    "onnxruntime": "CPUExecutionProvider",
    "openvino": "CPU f32",
    "openvino-bf16": "CPU bf16",  # products in bfloat16, on CPUs that have it
}


@dataclass(frozen=True)
class Device:
    backend: str
    target: str  # the bundle's target that fits it
    provider: str  # the backend's own name for it
    cure: str


ON_JETSON = "on a Jetson TensorRT comes with JetPack (sudo apt-get install nvidia-jetpack)"

DEVICES = {  # `auto` takes the first that works and that the bundle was exported for
    **{
        name: Device("tensorrt", name, "TensorRT", ON_JETSON)
        for name in ("jetson-thor", "jetson-orin", "jetson-orin-jp6")
    },
    "rtx": Device("tensorrt_rtx", "rtx", "TensorRT-RTX", "pip install 'edgemm[tensorrt-rtx]' and an NVIDIA driver"),
    "cuda": Device("ort_cuda", "cuda", "CUDAExecutionProvider", "pip install 'edgemm[cuda]' and an NVIDIA driver"),
    "cpu": Device("onnxruntime", "cpu", "CPUExecutionProvider", "pip install 'edgemm[ort]'"),
}


@dataclass(frozen=True)
class Choice:
    """What a model runs on."""

    device: str
    backend: str
    target: str
    provider: str
    why: str

    def __str__(self) -> str:
        return f"{self.device} with {self.backend} ({self.provider}), target {self.target}: {self.why}"


def select(device: str, targets: Iterable[str]) -> Choice:
    """`device` is `auto` or a row of DEVICES; `targets` are what the bundle was exported for."""
    offered = tuple(targets)
    if device == "auto":
        return _select_auto(offered)
    if device not in DEVICES:
        raise UsageError(f"device is {device!r}, expected one of: auto, {', '.join(DEVICES)}")
    row = DEVICES[device]
    problem = _problem(row)
    if problem:
        raise MissingError(f"device {device!r} was asked for: {problem}; {row.cure}")
    if row.target not in offered:
        raise BundleError(
            f"the bundle has no target {row.target!r}, only: {', '.join(offered)}; export it for that target"
        )
    return _choice(device, "it was asked for")


def _select_auto(offered: tuple[str, ...]) -> Choice:
    passed_over = []
    for device, row in DEVICES.items():
        problem = _problem(row) if row.target in offered else f"the bundle has no target {row.target!r}"
        if not problem:
            return _choice(device, "; ".join([*passed_over, "it is there"]))
        passed_over.append(f"not {device}, because {problem}")
    load_backend("onnxruntime")  # when it is the package that is missing, its cure is the better message
    raise BundleError(f"nothing here runs this bundle: {'; '.join(passed_over)}; export it with --target cpu")


def _choice(device: str, why: str) -> Choice:
    row = DEVICES[device]
    return Choice(device, row.backend, row.target, row.provider, why)


def _problem(row: Device) -> str:
    """Why a device cannot be used, or an empty string."""
    try:
        backend = load_backend(row.backend)
    except MissingError as error:
        return str(error)
    if problem := getattr(backend, "problem", None):  # it knows better than a list of names
        return str(problem(row.target))
    providers = backend.providers()
    return "" if row.provider in providers else f"{row.backend} here has {', '.join(providers)} and no {row.provider}"


def assign(choice: Choice, components: Iterable[str], asked: str | Mapping[str, str] | None) -> dict[str, Choice]:
    """component -> what it runs on; `asked` is a backend for all, or {component: backend} for some."""
    names = tuple(components)
    wanted = dict.fromkeys(names, asked) if isinstance(asked, str) else dict(asked or {})
    for component, backend in wanted.items():
        if component not in names:
            raise UsageError(f"backend names component {component!r}, expected some of: {', '.join(names)}")
        if backend not in ON_CPU:
            raise UsageError(f"backend of {component} is {backend!r}, expected one of: {', '.join(ON_CPU)}")
        if choice.device != "cpu":
            raise UsageError(f"backend {backend!r} runs on the CPU, the device is {choice.device}: say device='cpu'")
        load_backend(backend)
    why = "it was asked for"
    by_hand = {c: Choice("cpu", backend, choice.target, ON_CPU[backend], why) for c, backend in wanted.items()}
    return {component: by_hand.get(component, choice) for component in names}


def load_backend(name: str) -> Backend:
    """MissingError with the cure when its package is not installed."""
    module, part, cure = BACKENDS[name]
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise MissingError(f"backend {name} is not installed ({error}): {cure}") from error
    return getattr(found, part) if part else found
