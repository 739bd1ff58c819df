"""edgemm: unified multimodal models, from training to the edge.

    model = edgemm.load("sticker.bundle")
    print(model.generate_text("What is this?", images=["heart.png"]).text)
    model.generate_image("a red heart", seed=7).image.save("heart.png")

This is the public face; everything below it may change.  Importing it brings neither numpy nor torch nor a backend: a
name is fetched when it is first used, and `load` brings the backend that it chose.

ONNX Runtime reports its use to its makers unless told not to before it is imported, so importing edgemm sets
ORT_DISABLE_TELEMETRY=1, for child processes too; EDGEMM_TELEMETRY=1, or the variable set by hand, is left alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from edgemm.errors import (
    BundleError,
    CheckFailedError,
    CheckpointError,
    EdgemmError,
    InputError,
    MissingError,
    ResourceError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgemm.bundle.bundle import Bundle
    from edgemm.bundle.held_file import FileHashes
    from edgemm.bundle.node_link import Graph
    from edgemm.runtimes.engines import Choice
    from edgemm.runtimes.image_call import DenoiseProgress, DrawingKeywords, DrawingOptions, ImageResult, Picture
    from edgemm.runtimes.interleaved import InterleavedResult
    from edgemm.runtimes.model import Model
    from edgemm.runtimes.session import Session
    from edgemm.runtimes.text_call import TextChunk, TextKeywords, TextOptions, TextResult
    from edgemm.runtimes.watch import Watch, WatchEvent

__all__ = [
    "BundleError",
    "CheckFailedError",
    "CheckpointError",
    "DenoiseProgress",
    "DrawingKeywords",
    "DrawingOptions",
    "EdgemmError",
    "Graph",
    "ImageResult",
    "InputError",
    "InterleavedResult",
    "MissingError",
    "Model",
    "Picture",
    "ResourceError",
    "Session",
    "TextChunk",
    "TextKeywords",
    "TextOptions",
    "TextResult",
    "UsageError",
    "Watch",
    "WatchEvent",
    "__version__",
    "load",
]

__version__ = "0.1.0"

if os.environ.get("EDGEMM_TELEMETRY") != "1":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

LAZY = {  # where each name is found when it is first asked for
    "Graph": "edgemm.bundle.node_link",
    "InterleavedResult": "edgemm.runtimes.interleaved",
    "Model": "edgemm.runtimes.model",
    "Session": "edgemm.runtimes.session",
    **dict.fromkeys(
        ("DenoiseProgress", "DrawingKeywords", "DrawingOptions", "ImageResult", "Picture"),
        "edgemm.runtimes.image_call",
    ),
    **dict.fromkeys(("TextChunk", "TextKeywords", "TextOptions", "TextResult"), "edgemm.runtimes.text_call"),
    **dict.fromkeys(("Watch", "WatchEvent"), "edgemm.runtimes.watch"),
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'edgemm' has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    threads: int | None = None,
    verify: bool = True,
    memory_limit_mb: float | None = None,
    backend: str | Mapping[str, str] | None = None,
) -> Model:
    """Opens a bundle, checks every file's hash, and says in `model.choice` what it runs on and why.

    The first load on a machine tries the bundle in another process, and compares one question and one drawing with what
    was recorded at export.

    `device`: auto, cpu, cuda, rtx, jetson-orin-jp6, jetson-orin or jetson-thor; "cuda:1" is the second GPU.
    `threads`: of the CPU, 1 to 1024; None is one a core that this process may use.
    `verify`: False leaves out the hashes and the first try.
    `memory_limit_mb`: what weights and all conversations together stay below, in 10^6 bytes; `model.memory` says what
    fits, and where not all weights do, components take turns on a CPU (docs/performance.md).
    `backend`: components that other libraries run, {"denoiser": "openvino-bf16"}; `model.choices` says who runs what.

    Raises BundleError of a bundle that is damaged or has no target for the device, MissingError where a library or the
    device is not there, CheckFailedError where this machine computes something else than was recorded, ResourceError
    where memory does not do, UsageError of an argument that means nothing.
    """
    from collections.abc import Mapping
    from pathlib import Path

    from edgemm.bundle.files import reading
    from edgemm.bundle.held_file import FileHashes, files_at_once
    from edgemm.options import check_type

    check_type("path", path, str | os.PathLike)
    check_type("device", device, str)
    check_type("threads", threads, int | None)
    check_type("memory_limit_mb", memory_limit_mb, float | None)
    check_type("backend", backend, str | Mapping | None)

    with _hurried():
        with FileHashes(files_at_once(threads)) as hashes:
            if verify:
                with reading(path, kind=BundleError):
                    hashes.begin_weights(Path(path))
            bundle, choice = _chosen(path, device, hashes if verify else None)
        from edgemm.runtimes.backend.engine import plan_threads
        from edgemm.runtimes.engines import Engines

        engines = Engines(bundle, choice, plan_threads(threads), memory_limit_mb, backend)
        if verify:
            engines.try_first("edgemm.verify.loops:unlike_recorded")
        engines.begin("transformer")
        from edgemm.runtimes.model import Model  # beside the transformer; sooner, and a core would wait for imports

        return Model(engines)


# A load takes the least time when what computes runs beside what waits for Python's lock.  Hashes and engines leave the
# lock alone, imports and the tokenizer hold it.  So hashes are computed from the first moment on, before the manifest
# is read, while everything is imported; and the transformer, which every loop needs, is loaded as soon as its library
# is there, beside the rest of the imports and the tokenizer.  No runtime opens a file before every hash was compared.


def _chosen(path: str | os.PathLike[str], device: str, hashes: FileHashes | None) -> tuple[Bundle, Choice]:
    """The bundle, verified, and what it runs on: numpy and the backend's library are there then."""
    from edgemm.bundle.bundle import open_bundle

    bundle = open_bundle(path, verify=False)
    try:
        from edgemm.runtimes.engines import select

        return bundle, select(device, bundle.manifest.targets)
    finally:
        if hashes:
            bundle.verify(hashes)  # a wrong file is told before anything else


HEARD_S = 1e-4  # within which a thread that asks for Python's lock gets it
SPIN = {"OPENBLAS_THREAD_TIMEOUT": "20"}  # numpy's threads spin for 2^20 cycles when they begin, not for 2^26: 25 ms


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """Without Python's search for cycles: modules are made of objects that stay, and it would look at them again and
    again, for a twentieth of a load; at the end they count as old ones.  And the threads that hash need not wait 5 ms
    for Python's lock, each time that they have read a piece, nor share their core with threads of numpy's that spin.
    Whoever had set any of it otherwise finds it so."""
    enabled, interval = gc.isenabled(), sys.getswitchinterval()
    spin = {} if "numpy" in sys.modules or SPIN.keys() & os.environ.keys() else SPIN
    gc.disable()
    os.environ.update(spin)
    sys.setswitchinterval(min(interval, HEARD_S))
    try:
        yield
    finally:
        for name in spin:
            os.environ.pop(name, None)
        if not gc.get_freeze_count():  # else they are somebody's who wants them left alone
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()
        if interval > HEARD_S:
            sys.setswitchinterval(interval)
