"""From a bundle's path to a model, in the least time: what computes runs beside what waits for Python's lock.

Hashes and engines leave the lock alone, imports and the tokenizer hold it.  So hashes are computed from the first
moment on, before the manifest is read, while everything is imported; and the transformer, which every loop needs, is
loaded as soon as its library is there, beside the rest of the imports and the tokenizer.  No runtime opens a file
before every hash was compared.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.files import AT_ONCE, FileHashes
from edgemm.bundle.reading import reading
from edgemm.device.threads import plan_threads
from edgemm.errors import BundleError

if TYPE_CHECKING:
    from edgemm.bundle.bundle import Bundle
    from edgemm.runtimes.backend.choice import Choice
    from edgemm.runtimes.model import Model

__all__ = ["open_model"]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for cycles: modules are made of objects that stay, and it would look at them again and
    again, for a twentieth of a load.  Whoever had switched it off finds it so."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def open_model(
    path: str | os.PathLike[str],
    device: str,
    threads: int | None,
    verify: bool,
    memory_limit_mb: float | None,
    backend: str | Mapping[str, str] | None,
) -> Model:
    """The arguments are those of edgemm.load."""
    plan = plan_threads(threads)
    with FileHashes(min(AT_ONCE, max(1, plan.count - 1))) as hashes:  # one core is for what is imported meanwhile
        if verify:
            with reading(path, kind=BundleError):
                hashes.begin_weights(Path(path))
        bundle, choice = _chosen(path, device, hashes if verify else None)
    from edgemm.runtimes.engines import Engines

    engines = Engines(bundle, choice, plan, memory_limit_mb, backend)
    engines.begin("transformer")
    from edgemm.runtimes.model import Model  # beside the transformer

    return Model(engines)


def _chosen(path: str | os.PathLike[str], device: str, hashes: FileHashes | None) -> tuple[Bundle, Choice]:
    """The bundle, verified, and what it runs on: numpy and the backend's library are there then."""
    from edgemm.bundle.bundle import open_bundle, verify_files

    bundle = open_bundle(path, verify=False)
    try:
        from edgemm.runtimes.backend.choice import select

        return bundle, select(device, bundle.manifest.targets)
    finally:
        if hashes:
            verify_files(bundle.path, bundle.manifest, hashes=hashes)  # a wrong file is told before anything else
