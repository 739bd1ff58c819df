"""A question put to a fresh Python process, so that a crash there is an answer here.

Drivers and their libraries may take a process down (a TensorRT runtime without a driver does), and a peak of memory is
only a process's own when it began there.  A module that answers prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgemm

__all__ = ["Answer", "ask"]


@dataclass(frozen=True)
class Answer:
    """Exactly one of the two is filled."""

    value: dict[str, Any] | None
    problem: str = ""


def ask(module: str, arguments: Sequence[str] = (), timeout_s: float = 60.0) -> Answer:
    """Runs `python -m module arguments`; whatever happens to it, an Answer comes back."""
    package_root = str(Path(edgemm.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"gave no answer within {timeout_s:g} s")
    except OSError as error:
        return Answer(None, f"could not start a process: {error}")
    if done.returncode < 0:
        return Answer(None, f"crashed with {_signal_name(-done.returncode)}")
    try:
        value = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        value = None
    if done.returncode or not isinstance(value, dict):
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return Answer(None, f"ended with code {done.returncode}: {said[-1]}")
    return Answer(value)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
