"""One verb over one hostile input, in a process of its own: what it did, in the words of the table.

Right is: one line on stderr, an exit code of errors.py that fits, in bounded time and memory.  An input that turns out
harmless (0, or a reply) is right too, where the caller says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgemm.device.child import Watch

ROOT = Path(__file__).resolve().parents[2]
MEMORY_BYTES = 3 << 30
TIMEOUT_S = 300.0
RIGHT = (3, 4, 5, 7)
VERBS = {
    "chat": ("--prompt", "i am a hi", "--max-new-tokens", "2"),
    "draw": ("--prompt", "i am a hi", "--num-inference-steps", "1"),
    "verify": (),
    "inspect": (),
}


@dataclass(frozen=True)
class Try:
    """What happened."""

    code: int
    lines: tuple[str, ...]  # of stderr
    seconds: float
    peak_bytes: int
    ended: str  # "", or why it had to be ended: "time", "memory"

    @property
    def problem(self) -> str:
        """ "" where it was refused in one line with the right code, or went well."""
        if self.ended:
            return f"ended for want of {self.ended} after {self.seconds:.0f} s, {self.peak_bytes >> 20} MiB"
        if self.code < 0:
            return f"died of signal {-self.code}"
        if self.code == 0:
            return ""
        if self.code not in RIGHT:
            return f"exit code {self.code}: {' / '.join(self.lines)[:200]}"
        if len(self.lines) != 1 or not self.lines[0].startswith("edgemm: error: "):
            return f"{len(self.lines)} lines: {' / '.join(self.lines)[:300]}"
        return ""


def attempt(verb: str, path: Path, *more: str, trusted: bool = False, memory_bytes: int = MEMORY_BYTES) -> Try:
    """`edgemm verb path`, watched; `trusted` skips the process that tries a bundle first."""
    words = [verb, str(path), *VERBS.get(verb, ()), *more]
    if verb == "draw":
        words += ["--output", str(path.parent / "drawn.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEMM_TRUST_BUNDLES": "1" if trusted else "0"}
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "edgemm", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    watch = Watch(child, memory_bytes, began + TIMEOUT_S)
    watch.start()
    _, said = child.communicate()
    told = said.splitlines()
    lines = tuple(line for line in told if not line.startswith("first use of this bundle here"))  # on a busy machine
    return Try(child.returncode, lines, time.monotonic() - began, watch.peak_bytes, watch.reason)
