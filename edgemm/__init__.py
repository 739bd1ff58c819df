"""edgemm: unified multimodal models, from training to the edge.

    model = edgemm.load("sticker.bundle")
    print(model.generate_text("What is this?", images=["heart.png"]).text)
    model.generate_image("a red heart", seed=7).image.save("heart.png")

Importing this brings neither torch nor a backend; `load` brings the backend that it chose.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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

    from edgemm.runtimes.model import Model

__all__ = [
    "BundleError",
    "CheckFailedError",
    "CheckpointError",
    "EdgemmError",
    "InputError",
    "MissingError",
    "ResourceError",
    "UsageError",
    "__version__",
    "load",
]

__version__ = "0.1.0"


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
    from edgemm.runtimes.load import open_model

    return open_model(path, device, threads, verify, memory_limit_mb, backend)
