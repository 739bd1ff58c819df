"""Whether the clock can be believed: the one that times against the two that it should agree with.

Everything is timed with the monotonic clock, which setting the date does not move.  A date that was set, a machine that
slept, a virtual machine that was halted, and a gap that is not positive are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

__all__ = ["ClockWatch"]

Clock = Callable[[], float]
ALLOWED_S = 0.25  # clocks are slewed, and are not read at the same moment
ALLOWED_SHARE = 0.01


def boot_time() -> float:
    """Counts while the machine sleeps; the monotonic clock does not.  Linux only, elsewhere the same clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ClockWatch:
    """`look()` now and then; then ask for `problems()`."""

    def __init__(self, timing: Clock = time.perf_counter, date: Clock = time.time, boot: Clock = boot_time) -> None:
        self._clocks = (timing, date, boot)
        self._looks: list[tuple[float, float, float]] = []
        self._backwards = 0

    def look(self) -> float:
        """The time of the clock that measures."""
        self._looks.append((self._clocks[0](), self._clocks[1](), self._clocks[2]()))
        return self._looks[-1][0]

    def refuse(self, gap: float) -> bool:
        """Whether a duration cannot be true; it is counted."""
        wrong = not 0 < gap < float("inf")
        self._backwards += wrong
        return wrong

    def problems(self) -> list[str]:
        found = []
        steps = list(pairwise(self._looks))
        dates = [jump for before, after in steps if (jump := _jump(before, after, 1))]
        sleeps = [jump for before, after in steps if (jump := _jump(before, after, 2)) and jump > 0]
        back = sum(after[0] < before[0] for before, after in steps)
        if sleeps:
            found.append(f"clock: the machine slept for {sum(sleeps):.1f} s in the middle of the measurement")
        elif dates:
            told = ", ".join(f"{jump:+.1f} s" for jump in dates[:3])
            found.append(f"clock: the date jumped ({told}) against the clock that measures; its own times stand")
        if back or self._backwards:
            found.append(
                f"clock: the clock that measures went backwards or stood still {back + self._backwards} times; "
                "those samples were left out"
            )
        return found


def _jump(before: tuple[float, float, float], after: tuple[float, float, float], other: int) -> float:
    """How much further the other clock went, or 0 when that is within what clocks may differ."""
    elapsed = after[0] - before[0]
    more = after[other] - before[other] - elapsed
    return more if abs(more) > ALLOWED_S + ALLOWED_SHARE * max(elapsed, 0.0) else 0.0
