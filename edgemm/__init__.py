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

import importlib
import os
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
    from collections.abc import Mapping

    from edgemm.runtimes.interleaved import InterleavedResult
    from edgemm.runtimes.model import Model
    from edgemm.runtimes.options import DrawingKeywords, DrawingOptions, TextKeywords, TextOptions
    from edgemm.runtimes.results import DenoiseProgress, ImageResult, Picture, TextChunk, TextResult
    from edgemm.runtimes.session import Session

__all__ = [
    "BundleError",
    "CheckFailedError",
    "CheckpointError",
    "DenoiseProgress",
    "DrawingKeywords",
    "DrawingOptions",
    "EdgemmError",
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
    "__version__",
    "load",
]

__version__ = "0.1.0"

if os.environ.get("EDGEMM_TELEMETRY") != "1":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

LAZY = {  # where each name is found when it is first asked for
    "InterleavedResult": "edgemm.runtimes.interleaved",
    "Model": "edgemm.runtimes.model",
    "Session": "edgemm.runtimes.session",
    **dict.fromkeys(
        ("DrawingKeywords", "DrawingOptions", "TextKeywords", "TextOptions"),
        "edgemm.runtimes.options",
    ),
    **dict.fromkeys(
        ("DenoiseProgress", "ImageResult", "Picture", "TextChunk", "TextResult"),
        "edgemm.runtimes.results",
    ),
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

    With `memory_limit_mb` the weights and all conversations together stay below it; `model.memory` says what fits.
    `backend` gives components to other libraries: {"denoiser": "openvino-bf16"}; `model.choices` says who runs what.
    """
    from collections.abc import Mapping

    from edgemm.options import check_type
    from edgemm.runtimes.load import open_model

    check_type("path", path, str | os.PathLike)
    check_type("threads", threads, int | None)
    check_type("memory_limit_mb", memory_limit_mb, float | None)
    check_type("backend", backend, str | Mapping | None)
    return open_model(path, device, threads, verify, memory_limit_mb, backend)
