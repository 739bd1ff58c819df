"""From a bundle's path to a model, in the least time: what computes runs beside what waits for Python's lock.

Hashes and engines leave the lock alone, imports and the tokenizer hold it.  So the libraries are imported while the
hashes are computed, and the transformer, which every loop needs, is loaded while the tokenizer is read.  No runtime
opens a file before every hash was compared.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgemm.bundle import Bundle, open_bundle, verify_files
from edgemm.runtimes.threads import plan_threads

if TYPE_CHECKING:
    from edgemm.runtimes.backends import Choice
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
    bundle = open_bundle(path, verify=False)
    if not verify:
        made, choice = _imported(bundle, device)
    else:
        with ThreadPoolExecutor(1) as pool:
            verified = pool.submit(verify_files, bundle.path, bundle.manifest)
            try:
                made, choice = _imported(bundle, device)
            finally:
                verified.result()  # what is wrong with a file is told before anything else
    return made(bundle, choice, plan, memory_limit_mb, backend)


def _imported(bundle: Bundle, device: str) -> tuple[type[Model], Choice]:
    """What a bundle becomes, and what it runs on: numpy and the backend's library are there then."""
    from edgemm.runtimes.backends import select
    from edgemm.runtimes.model import Model

    return Model, select(device, bundle.manifest.targets)
