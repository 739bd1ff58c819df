"""OpenVINO as a backend for CPUs: compiled models, and arrays shared with them.

It reads the bundle's own ONNX graphs; what it does not know is told to it (openvino_operators.py).  Where it is asked
for bfloat16 and this CPU has none it would compute in float32 without a word, so what was asked is compared with what
the compiled model says.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from edgemm.components import TensorSpec
from edgemm.errors import BundleError, EdgemmError, MissingError, ResourceError
from edgemm.manifest import Variant
from edgemm.runtimes.engine import Arrays, check_binding
from edgemm.runtimes.onnx_external_data import check_external_data
from edgemm.runtimes.openvino_operators import extensions
from edgemm.runtimes.threads import ThreadPlan

__all__ = ["OpenVinoBinding", "OpenVinoEngine", "open_engine", "providers", "version"]

PRECISIONS = {"CPU f32": ov.Type.f32, "CPU bf16": ov.Type.bf16}  # provider -> what products are computed in


def version() -> str:
    return str(ov.__version__)


def providers() -> tuple[str, ...]:
    return tuple(PRECISIONS)


def open_engine(
    component: str,
    graph: Path,
    data: Path | None,
    variant: Variant,
    provider: str,
    plan: ThreadPlan,
    lock: threading.Lock,
) -> OpenVinoEngine:
    """Loads one component; `lock` is shared by the engines of a model, so that runs take turns."""
    check_external_data(graph, data)
    core, precision = ov.Core(), PRECISIONS[provider]
    for extension in extensions():
        core.add_extension(extension)
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise BundleError(
            f"{graph}: OpenVINO {version()} cannot read it: {_reason(error)}; run this component on onnxruntime"
        ) from error
    options = {
        "INFERENCE_NUM_THREADS": plan.count,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    try:
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise _explained(error, f"{graph}: OpenVINO {version()} cannot compile it", BundleError) from error
    found = compiled.get_property("INFERENCE_PRECISION_HINT")
    if found != precision:
        raise MissingError(f"{component}: asked OpenVINO for {provider}, on this CPU it computes in {found}")
    _compare(graph, "input", variant.inputs, compiled.inputs)
    _compare(graph, "output", variant.outputs, compiled.outputs)
    return OpenVinoEngine(component, variant, compiled, lock)


class OpenVinoEngine:
    """A loaded component; see engine.py."""

    def __init__(self, component: str, variant: Variant, compiled: Any, lock: threading.Lock) -> None:
        self.component = component
        self.inputs = {spec.name: spec for spec in variant.inputs}
        self.outputs = {spec.name: spec for spec in variant.outputs}
        self.compiled = compiled
        self.lock = lock

    def bind(self, inputs: Arrays, outputs: Arrays) -> OpenVinoBinding:
        check_binding(self, inputs, outputs)
        return OpenVinoBinding(self, inputs, outputs)


class OpenVinoBinding:
    """A request whose tensors are the caller's arrays."""

    def __init__(self, engine: OpenVinoEngine, inputs: Arrays, outputs: Arrays) -> None:
        self._engine = engine
        self._kept_alive = (*inputs.values(), *outputs.values())
        with engine.lock:
            self._request = engine.compiled.create_infer_request()
        for name, array in (*inputs.items(), *outputs.items()):
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def run(self) -> None:
        engine = self._engine
        try:
            with engine.lock:
                self._request.infer()
        except RuntimeError as error:
            raise _explained(error, f"{engine.component}: OpenVINO failed", EdgemmError) from error


def _compare(graph: Path, side: str, specs: tuple[TensorSpec, ...], found: Sequence[Any]) -> None:
    """The manifest and the graph have to name the same tensors."""
    names = {name for port in found for name in port.get_names()}
    missing = [spec.name for spec in specs if spec.name not in names]
    if missing or len(found) != len(specs):
        wrong = missing or [port.get_any_name() for port in found]
        raise BundleError(f"{graph}: {side}s {', '.join(wrong)} are not both in the graph and in the manifest")


def _reason(error: Exception) -> str:
    """The one line of OpenVINO's many that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line.lstrip("- ") for line in lines if line.startswith("--") or "No conversion" in line]
    return (telling or lines[-1:] or [type(error).__name__])[0]


def _explained(error: Exception, what: str, kind: type[EdgemmError]) -> EdgemmError:
    reason = _reason(error)
    if "bad_alloc" in str(error) or "out of memory" in str(error).lower():
        return ResourceError(f"{what}: out of memory: {reason}")
    return kind(f"{what}: {reason}")
