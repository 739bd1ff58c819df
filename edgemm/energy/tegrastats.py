"""The rails that NVIDIA's tegrastats prints, in watts.  They come and go with board and release; each may be missing.

A power is `now`, `now/average` or `now/average/...`: the first counts.  Other fields of a line are left alone.
Written from recorded lines, not run on a device.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgemm.energy.sensor import Sensor, covers, total_rails
from edgemm.errors import MissingError

__all__ = ["TEGRASTATS", "TegrastatsStream", "open_tegrastats", "rails_of"]


def rails_of(line: str) -> dict[str, float] | None:
    """Watts a rail; None when it is no line of tegrastats: a warning, an empty or a torn one."""
    if not re.search(r"\bRAM \d+/\d+MB", line):
        return None
    return {name: int(mw) / 1e3 for name, mw in re.findall(r"(?<!\S)([A-Z]\w*) (-?\d+)mW(?![^/\s])", line)}


# Runs tegrastats and keeps its newest line: a Jetson's power where the INA3221's files cannot be read.
#
# Written from recorded lines and tested with a script in the tool's place, not run on a device.

INTERVAL_MS = 100
FIRST_LINE_S = 10.0
STALE_S = 1.0  # ten lines that did not come


class TegrastatsStream:
    """The process and the thread that reads it; `close()` ends both."""

    def __init__(self, program: Path, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            self._process = subprocess.Popen(
                [str(program), "--interval", str(INTERVAL_MS)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise MissingError(f"{program} cannot be started: {error.strerror}") from error
        self._clock = clock
        self._newest: tuple[float, dict[str, float]] | None = None
        self._news = threading.Condition()
        self._ended = False
        assert self._process.stdout is not None
        self._thread = threading.Thread(target=self._follow, args=(self._process.stdout,), daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float = FIRST_LINE_S) -> dict[str, float]:
        """The newest line's rails, in watts; the first line is waited for."""
        with self._news:
            self._news.wait_for(lambda: self._newest or self._ended, timeout_s)
            if self._newest is None:
                how = "ended" if self._ended else f"printed nothing within {timeout_s:g} s"
                raise MissingError(f"tegrastats {how}, expected a line that says RAM")
            return self._newest[1]

    def newest(self) -> dict[str, float]:
        """The same; MissingError where it is too old, or no more come."""
        with self._news:
            newest, ended = self._newest, self._ended
        if ended or newest is None:
            raise MissingError("tegrastats ended")
        age_s = self._clock() - newest[0]
        if age_s > STALE_S:
            raise MissingError(f"tegrastats printed nothing for {age_s:.1f} s")
        return newest[1]

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(timeout=5)

    def _follow(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                rails = rails_of(line)
                if rails is not None:
                    with self._news:
                        self._newest = (self._clock(), rails)
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


TEGRASTATS = Path("/usr/bin/tegrastats")


def open_tegrastats(program: Path = TEGRASTATS) -> Sensor:
    """The total, in watts."""
    if not program.is_file():
        raise MissingError(f"{program} does not exist; it comes with Linux for Tegra")
    stream = TegrastatsStream(program)
    try:
        total = total_rails(stream.wait())
        if not total:
            raise MissingError("tegrastats prints no power on this board")
    except MissingError:
        stream.close()
        raise

    def watts() -> float:
        rails = stream.newest()
        absent = [name for name in total if name not in rails]
        if absent:
            raise MissingError(f"tegrastats no longer prints {', '.join(absent)}")
        return sum(rails[name] for name in total)

    return Sensor("tegrastats", covers(total), counts=False, read=watts, close=stream.close)
