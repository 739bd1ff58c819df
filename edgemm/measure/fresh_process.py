"""What only a process that began just now can tell: cold load, first calls, peak memory.

The child loads a bundle, reads a picture, writes a reply, draws, notes its peak, and loads once more.  The parent drops
the bundle's files from the page cache first, so that cold means read from the disk.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.measure.child import Answer, ask
from edgemm.measure.workload import noise_picture

if TYPE_CHECKING:
    from edgemm.runtimes.model import Model

__all__ = ["drop_from_page_cache", "measure_fresh", "peak_memory_bytes"]


def measure_fresh(request: dict[str, Any], timeout_s: float) -> Answer:
    """`request` holds bundle, device, threads, reads_pictures, and what generate_text and generate_image are given."""
    drop_from_page_cache(Path(request["bundle"]))
    return ask("edgemm.measure.fresh_process", [json.dumps(request)], timeout_s)


def drop_from_page_cache(folder: Path) -> None:
    """Asks the kernel to forget the files; it needs no rights, and may be refused without harm."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.rglob("*"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def peak_memory_bytes() -> int:
    """Largest resident size of this process since it began.

    On Linux ru_maxrss still counts the parent that was forked, so the kernel's own high-water mark is read.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    model, cold_ms = _load(request)
    first_call_ms = {}
    if request["text"]:
        pictures = [noise_picture()] if request["reads_pictures"] else []
        first_call_ms["text"] = model.generate_text(images=pictures, **request["text"]).metrics.total_ms
    if request["image"]:
        first_call_ms["image"] = model.generate_image(**request["image"]).metrics.total_ms
    peak = peak_memory_bytes()
    model.close()
    del model
    warm_ms = _load(request)[1]
    return {"load_cold_ms": cold_ms, "load_warm_ms": warm_ms, "peak_memory_bytes": peak, "first_call_ms": first_call_ms}


def _load(request: dict[str, Any]) -> tuple[Model, float]:
    import edgemm

    started = time.perf_counter()
    model = edgemm.load(request["bundle"], device=request["device"], threads=request["threads"])
    model.prepare()
    return model, (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    print(json.dumps(_answer(json.loads(sys.argv[1]))))
