"""Out of memory and disk full, with the numbers: the libraries below say neither what was needed nor what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from edgemm.errors import ResourceError
from edgemm.measure.machine import read_machine
from edgemm.model.checkpoint import ran_out_of_disk

__all__ = ["refusing_full_disk", "refusing_out_of_memory"]

# torch's CPU allocator, its CUDA one, and numpy: each says how much was asked for, in its own words.
ASKED = re.compile(r"allocate (?P<bytes>\d+) bytes|allocate (?P<size>[\d.]+ \w+)")


@contextmanager
def refusing_out_of_memory(step: int, batch: int, processes: int, device: torch.device) -> Iterator[None]:
    """Turn what an allocator raises inside into a ResourceError; torch's CPU one raises a plain RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in message):
            raise
        found, asked = ASKED.search(message), "more"
        if found:
            asked = f"{int(found['bytes']) >> 20} MiB" if found["bytes"] else found["size"]
        shared = f"batch {batch}" + (f" shared by {processes} processes" if processes > 1 else "")
        raise ResourceError(
            f"out of memory on {device} at step {step}: {shared} asked for {asked}, {_free(device)}; "
            "lower batch; the last state was kept"
        ) from error


@contextmanager
def refusing_full_disk(path: Path, step: int, needed_bytes: int) -> Iterator[None]:
    """Turn a write that failed for want of space into a ResourceError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not ran_out_of_disk(error, path.parent, needed_bytes):
            raise
        free = shutil.disk_usage(path.parent).free
        raise ResourceError(
            f"{path}: disk full at step {step}: needs {needed_bytes} bytes, {free} are free; the last state was kept"
        ) from error


def _free(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{free >> 20} of {total >> 20} MiB are free"
    machine = read_machine()
    if machine.memory_bytes is None or machine.memory_available_bytes is None:  # no Linux
        return "there was no more"
    return f"{machine.memory_available_bytes >> 20} of {machine.memory_bytes >> 20} MiB are free"
