"""What a measurement was made on and with: without it a number cannot be compared with another."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import edgemm
from edgemm.bundle import Bundle
from edgemm.measure.board import read_board
from edgemm.measure.machine import read_machine
from edgemm.measure.packages import installed_version
from edgemm.runtimes.backends import Choice
from edgemm.runtimes.threads import ThreadPlan

__all__ = ["commit", "machine_card", "make_card"]

LIBRARIES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "torch",
    "transformers",
)


def make_card(bundle: Bundle, choice: Choice, threads: ThreadPlan) -> dict[str, Any]:
    """Plain values; null where something could not be read."""
    manifest = bundle.manifest
    chosen = manifest.targets[choice.target]
    return {
        "bundle": manifest.name,
        "bundle_sha256": hashlib.sha256(bundle.file("manifest.json").read_bytes()).hexdigest(),
        "family": manifest.family,
        "precision": {name: manifest.variant(name, choice.target).precision for name in chosen},
        "target": choice.target,
        "device": choice.device,
        "backend": f"{choice.backend} {choice.provider}",
        "threads": threads.count,
        "threads_spin": threads.spinning,  # answer faster, at the price of a busy core
        **machine_card(),
    }


def machine_card() -> dict[str, Any]:
    """The half of a card that any measurement has: machine, versions, commit."""
    machine, board = read_machine(), read_board()
    versions = {name: installed_version(name) for name in LIBRARIES}
    return {
        "board": board.model if board else None,
        "power_mode": board.power_mode if board else machine.governor,
        "cpu": machine.cpu,
        "cores_usable": machine.cores_usable,
        "memory_bytes": machine.memory_bytes,
        "load_average": round(os.getloadavg()[0], 2),  # other work at the start; it slows all of this
        "system": machine.system,
        "python": machine.python,
        "versions": {name: version for name, version in versions.items() if version},
        "edgemm": edgemm.__version__,
        "commit": commit(Path(edgemm.__file__).parent),
    }


def commit(folder: Path) -> str | None:
    """Short hash of the checkout that holds `folder`, with "+" when files were changed; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
