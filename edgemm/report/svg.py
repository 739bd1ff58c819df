"""Plots as inline SVG: axes, marks and words, all escaped.  It knows numbers and names, nothing of benchmarks.

Colours are classes (s0 to s5 for series); the page's style sheet says what they look like in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["Axis", "Bar", "Plot", "bars", "nice_ticks", "short"]

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44  # margins, pixels
LETTER = 6.2  # width of one, pixels


def short(value: float) -> str:
    """Three digits, with a prefix from ten thousand on: 31G, 0.25, 1200."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(limit, 1e4):
            return f"{value / limit:.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, by steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False  # its values are counts

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.high <= self.low:
            raise ValueError(f"axis {self.label!r} from {self.low} to {self.high}, expected a rising range")
        if self.log and self.low <= 0:
            raise ValueError(f"axis {self.label!r} is logarithmic and begins at {self.low}")

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one, never beyond."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        if not self.log:
            ticks = nice_ticks(self.low, self.high)
            return [tick for tick in ticks if tick == round(tick)] if self.whole else ticks
        powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
        return [10.0**power for power in powers]


@dataclass
class Plot:
    """Add marks, then `render()`."""

    title: str  # what a reader of the picture's description is told
    x: Axis
    y: Axis
    width: int = 520
    height: int = 260
    y_names: Sequence[str] | None = None  # words in the place of the y axis's numbers, from 0 upwards
    right: int = RIGHT
    marks: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        return max(LEFT, 14 + LETTER * max(map(len, self.y_names))) if self.y_names else LEFT

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self.marks.append(f'<polyline class="line {escape(kind)}" points="{path}"/>')

    def dot(self, x: float, y: float, kind: str, hint: str) -> None:
        self.marks.append(
            f'<circle class="dot {escape(kind)}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="4">'
            f"<title>{escape(hint)}</title></circle>"
        )

    def box(self, x0: float, x1: float, y0: float, y1: float, kind: str, hint: str) -> None:
        left, right, top, bottom = self._x(x0), self._x(x1), self._y(y1), self._y(y0)
        self.marks.append(
            f'<rect class="{escape(kind)}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.7):.1f}" '
            f'height="{max(bottom - top, 0.7):.1f}"><title>{escape(hint)}</title></rect>'
        )

    def upright(self, x: float, words: str, row: int = 0) -> None:
        """A vertical line with words at its top; `row` keeps neighbours' words apart."""
        at = self._x(x)
        side = "end" if at > self.width - 90 else "start"
        shift = -4 if side == "end" else 4
        self.marks.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>')
        self.marks.append(
            f'<text class="note" x="{at + shift:.1f}" y="{TOP + 11 + 13 * row}" text-anchor="{side}">'
            f"{escape(words)}</text>"
        )

    def words(self, x: float, y: float, text: str, anchor: str = "start", shift: tuple[float, float] = (6, -6)) -> None:
        self.marks.append(
            f'<text class="note" x="{self._x(x) + shift[0]:.1f}" y="{self._y(y) + shift[1]:.1f}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )

    def render(self) -> str:
        inner = "".join([*self._grid(), *self.marks])
        return (
            f'<svg role="img" aria-label="{escape(self.title)}" viewBox="0 0 {self.width} {self.height}">{inner}</svg>'
        )

    def _grid(self) -> list[str]:
        bottom, right = self.height - BOTTOM, self.width - self.right
        parts = []
        for tick in self.x.ticks():
            at = f"{self._x(tick):.1f}"
            parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text class="tick" x="{at}" y="{bottom + 15}" text-anchor="middle">{short(tick)}</text>')
        names = list(enumerate(self.y_names)) if self.y_names else [(tick, short(tick)) for tick in self.y.ticks()]
        for tick, name in names:
            at = self._y(tick)
            if not self.y_names:
                parts.append(f'<line class="grid" x1="{self.left:.0f}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{self.left - 6:.0f}" y="{at + 3.5:.1f}" text-anchor="end">{escape(name)}</text>'
            )
        middle = (self.left + right) / 2
        parts.append(
            f'<text class="axis" x="{middle:.0f}" y="{self.height - 8}" text-anchor="middle">'
            f"{escape(self.x.label)}</text>"
        )
        if self.y.label:
            parts.append(
                f'<text class="axis" transform="translate(13 {(TOP + bottom) / 2:.0f}) rotate(-90)" '
                f'text-anchor="middle">{escape(self.y.label)}</text>'
            )
        parts.append(f'<line class="frame" x1="{self.left:.0f}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        return parts

    def _x(self, value: float) -> float:
        return self.left + self.x.place(value) * (self.width - self.left - self.right)

    def _y(self, value: float) -> float:
        return self.height - BOTTOM - self.y.place(value) * (self.height - TOP - BOTTOM)


@dataclass(frozen=True)
class Bar:
    """A share with its interval, and what it is compared with."""

    name: str
    value: float | None
    low: float
    high: float
    mark: float | None = None


def bars(found: Sequence[Bar], label: str) -> str:
    """Shares from 0 to 1, the first on top; a line from low to high, and an upright one at the mark."""
    names = [bar.name for bar in found]
    y = Axis("", -0.5, len(found) - 0.5)
    plot = Plot(label, Axis(label, 0, 1), y, 640, TOP + BOTTOM + 26 * len(found), y_names=names[::-1], right=52)
    for place, bar in enumerate(reversed(found)):
        if bar.value is None:
            plot.words(0, place, "none", shift=(6, 4))
            continue
        plot.box(0, bar.value, place - 0.3, place + 0.3, "s0", f"{bar.name}: {bar.value:.3f}")
        plot.line([(bar.low, place), (bar.high, place)], "span")
        if bar.mark is not None:
            plot.line([(bar.mark, place - 0.4), (bar.mark, place + 0.4)], "s1")
        plot.words(1, place, f"{bar.value:.3f}", shift=(8, 4))
    return plot.render()
