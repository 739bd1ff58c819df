"""A device's own `edgemm bench` files as timed runs that calibration.py takes instead of published ones.

Only runs that memory bounds say what a byte and a layer cost; those that arithmetic bounds are left out.  A file is
refused when it is of another bundle or another board, or faster than the memory could be.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.files import read_result
from edgemm.errors import InputError
from edgemm.estimate.calibration import Calibration, Observation
from edgemm.estimate.devices import Device, PowerMode
from edgemm.estimate.estimate import Run, Workload, runs_of

__all__ = ["observations_of"]

TIMED = {"token": "time_per_output_token_ms", "step": "denoise_step_ms"}


def observations_of(
    path: Path, bundle: Bundle, name: str, device: Device, mode: PowerMode, before: Calibration
) -> tuple[Observation, ...]:
    """Timed runs of this bundle; `before` is what the device was taken for until now."""
    document = read_result(path)
    card, rows, measured = document["card"], document["rows"], document["measured"]
    found = card.get("bundle_sha256")
    wanted = sha256(bundle.file("manifest.json").read_bytes()).hexdigest()
    if found != wanted:
        raise InputError(
            f"{path}: of a bundle {str(found)[:12]}, expected {wanted[:12]}: give the bundle it was run with"
        )
    if device.board and device.board not in (card.get("board") or ""):
        raise InputError(f"{path}: measured on {card.get('board') or card.get('cpu')}, expected a {device.title}")
    work = Workload(prompt_tokens=measured.get("prompt_tokens", 128), new_tokens=measured.get("new_tokens", 64))
    runs = runs_of(bundle, card["target"], work)
    timed = {
        part: float(rows[row]["p50"]) / 1e3
        for part, row in TIMED.items()
        if part in runs and row in rows and _bound_by_memory(runs[part], before)
    }
    if not timed:
        raise InputError(f"{path}: holds no run that memory bounds, so it says nothing of bandwidth or launches")
    for part, taken in timed.items():
        least = runs[part].read_bytes / (mode.memory_gb_s * 1e9)
        if taken < least:
            raise InputError(
                f"{path}: a {part} of {taken * 1e3:.3g} ms, its bytes alone take {least * 1e3:.3g}: wrong mode?"
            )
    return tuple(
        Observation(name, mode.name, part, runs[part].read_bytes, runs[part].layers, taken)
        for part, taken in timed.items()
    )


def _bound_by_memory(run: Run, calibration: Calibration) -> bool:
    speed = calibration.middle
    computing = run.operations / (speed.int8_per_s if run.int8 else speed.fp16_per_s)
    return computing < run.read_bytes / speed.bytes_per_s
