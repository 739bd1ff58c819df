"""ONNX Runtime as a backend: sessions, and arrays bound to them by their address.

ONNX Runtime falls back to the CPU without a word, so what was asked for is compared with what the session says it uses.
It follows any external data path, so the graph is read first (onnx_file.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from edgemm.bundle.components import TensorSpec
from edgemm.bundle.manifest import Variant
from edgemm.bundle.onnx_file import check_external_data
from edgemm.device.threads import ThreadPlan
from edgemm.errors import BundleError, EdgemmError, MissingError, ResourceError
from edgemm.runtimes.backend.engine import Arrays, check_binding

__all__ = [
    "OrtBinding",
    "OrtEngine",
    "compare_io",
    "explained",
    "open_engine",
    "open_session",
    "providers",
    "session_options",
    "version",
]

ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
CPU = "CPUExecutionProvider"
NEEDED = (1, 30)  # of what graphs for CPUs are made: GroupQueryAttention without a mask of its own
UPGRADE = "bundles for CPUs want 1.30 or newer: pip install -U 'onnxruntime>=1.30' (Python 3.11 or newer)"
ERRORS_ONLY = 3
SPIN_US = 1000  # threads wait less within a run; ONNX Runtime's own 40 ms would burn a core at every component's load
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


def version() -> str:
    return ort.__version__


def providers() -> tuple[str, ...]:
    """What this build could use; whether it does is known once a session is open."""
    return tuple(ort.get_available_providers())


def open_engine(
    component: str,
    graph: Path,
    data: Path | None,
    variant: Variant,
    provider: str,
    plan: ThreadPlan,
    lock: threading.Lock,
) -> OrtEngine:
    """Loads one component; `lock` is shared by the engines of a model, so that runs take turns."""
    return OrtEngine(component, variant, open_session(component, graph, data, variant, provider, plan), lock)


def open_session(
    component: str,
    graph: Path,
    data: Path | None,
    variant: Variant,
    provider: str,
    plan: ThreadPlan,
    options: Mapping[str, str] = NO_OPTIONS,
) -> ort.InferenceSession:
    """`options` are the provider's own.  The session has the tensors of the manifest, and uses what was asked for."""
    check_external_data(graph, data)
    if provider not in ort.get_available_providers():
        raise MissingError(f"{component}: ONNX Runtime {ort.__version__} has no {provider}")
    try:
        session = ort.InferenceSession(str(graph), session_options(plan), providers=[(provider, dict(options))])
    except Exception as error:  # its errors share no base but Exception
        what, kind = f"{graph}: ONNX Runtime {ort.__version__} cannot load it", BundleError
        if provider == CPU and _release(ort.__version__) < NEEDED:
            what, kind = f"{what}; {UPGRADE}; it says", MissingError
        raise explained(error, what, kind) from error
    if session.get_providers()[0] != provider:
        raise MissingError(f"{component}: asked ONNX Runtime for {provider}, it uses {session.get_providers()[0]}")
    compare_io(graph, "input", variant.inputs, session.get_inputs())
    compare_io(graph, "output", variant.outputs, session.get_outputs())
    return session


class OrtEngine:
    """A loaded component; see engine.py.  What another provider does differently, its engine overrides."""

    def __init__(self, component: str, variant: Variant, session: Any, lock: threading.Lock) -> None:
        self.component = component
        self.inputs = {spec.name: spec for spec in variant.inputs}
        self.outputs = {spec.name: spec for spec in variant.outputs}
        self.session = session
        self.lock = lock

    def bind(self, inputs: Arrays, outputs: Arrays) -> OrtBinding:
        check_binding(self, inputs, outputs)
        return OrtBinding(self, inputs, outputs)

    def place(self, array: np.ndarray) -> str:
        """Where the memory of an array is, in ONNX Runtime's words."""
        return "cpu"

    def run(self, io: Any, options: ort.RunOptions | None) -> None:
        """With the lock held."""
        self.session.run_with_iobinding(io, options)


class OrtBinding:
    """Arrays tied to a session by address; they are kept alive here."""

    def __init__(self, engine: OrtEngine, inputs: Arrays, outputs: Arrays) -> None:
        self._engine = engine
        self._kept_alive = (*inputs.values(), *outputs.values())
        self._io = engine.session.io_binding()
        for name, array in inputs.items():
            self._io.bind_input(name, engine.place(array), 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._io.bind_output(name, engine.place(array), 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, options: ort.RunOptions | None = None) -> None:
        engine = self._engine
        try:
            with engine.lock:
                engine.run(self._io, options)
        except Exception as error:
            raise explained(error, f"{engine.component}: ONNX Runtime failed", EdgemmError) from error


def session_options(plan: ThreadPlan) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = plan.count
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    if plan.count > 1:  # weights are put in the kernels' own order side by side; the numbers are the same
        options.add_session_config_entry("session.prepack.enable_parallel", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if plan.spinning else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the next component's threads want the cores
    return options


def compare_io(graph: Path, side: str, specs: tuple[TensorSpec, ...], found: Sequence[Any]) -> None:
    """The manifest and the graph have to name the same tensors."""
    nodes = {node.name: node for node in found}
    if nodes.keys() != {spec.name for spec in specs}:
        wrong = sorted(nodes.keys() ^ {spec.name for spec in specs})
        raise BundleError(f"{graph}: {side}s {', '.join(wrong)} are not both in the graph and in the manifest")
    for spec in specs:
        node = nodes[spec.name]
        numbers = [(have, want) for have, want in zip(node.shape, spec.shape) if isinstance(have, int)]
        same = len(node.shape) == len(spec.shape) and all(have == want for have, want in numbers)
        if ORT_TYPES.get(node.type) != spec.dtype or not same:
            raise BundleError(
                f"{graph}: {side} {spec.name} is {node.type} {node.shape}, the manifest says {spec.dtype} {spec.shape}"
            )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def explained(error: Exception, what: str, kind: type[EdgemmError]) -> EdgemmError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, MemoryError) or "bad_alloc" in first_line or "Failed to allocate memory" in first_line:
        return ResourceError(f"{what}: out of memory: {first_line}")
    return kind(f"{what}: {first_line}")
