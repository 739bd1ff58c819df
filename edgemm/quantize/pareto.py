"""The variants that a search judged, as a table and a plot: which of them no other one beats in everything.

It knows plain values only, so a search.json of last week makes the same page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgemm.measure.report.svg import Axis, Plot

__all__ = ["HEADS", "document_of_search", "front", "plots", "rows"]

HEADS = ("variant", "MB", "ms a token", "ms a step", "perplexity", "tokens alike", "PSNR", "SSIM", "drawn", "unbeaten")
LOW = ("size_bytes", "text_ms", "draw_ms", "perplexity_percent")  # the less, the better
HIGH = ("psnr_db", "drawn")  # drawn: the share that a dataset's judge names rightly, where one was asked


def document_of_search(goal: str, budgets: Mapping[str, str], best: str, points: Sequence[dict[str, Any]]) -> dict:
    """For the report; `points` are Point.to_json()."""
    return {
        "goal": goal,
        "budgets": dict(budgets),
        "chosen": best,
        "front": [point["name"] for point in front(points)],
        "points": list(points),
    }


def front(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other point equals or beats in everything, smallest first."""
    kept = [point for point in points if not any(_beats(other, point) for other in points if other is not point)]
    return sorted(kept, key=lambda point: point["size_bytes"])


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = [(_value(one, key), _value(other, key)) for key in LOW]
    pairs += [(-_value(one, key), -_value(other, key)) for key in HIGH]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _value(point: dict[str, Any], key: str) -> float:
    """What was not asked for is the same for all."""
    return float((point[key] if key in point else point["scores"].get(key)) or 0)


def rows(search: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of the table, smallest first."""
    found = []
    for point in sorted(search["points"], key=lambda point: point["size_bytes"]):
        scores = point["scores"]
        found.append(
            (
                point["name"] + (" (chosen)" if point["name"] == search["chosen"] else ""),
                f"{point['size_bytes'] / 1e6:.1f}",
                f"{point['text_ms']:.2f}",
                f"{point['draw_ms']:.2f}",
                f"{scores['perplexity_percent']:+.2f} %",
                f"{100 * scores['token_agreement']:.1f} %",
                f"{scores['psnr_db']:.1f} dB",
                f"{scores['ssim']:.4f}",
                "" if point.get("drawn") is None else f"{100 * point['drawn']:.1f} %",
                "yes" if point["name"] in search["front"] else "",
            )
        )
    return found


def plots(search: dict[str, Any]) -> list[str]:
    """Perplexity, PSNR and what is drawn rightly over megabytes, the unbeaten joined by a line."""
    found = [
        _plot(search, "perplexity_percent", "perplexity, % above float"),
        _plot(search, "psnr_db", "PSNR of drawings, dB"),
    ]
    if any(point.get("drawn") is not None for point in search["points"]):
        found.append(_plot(search, "drawn", "drawings that the judge names rightly"))
    return found


def _plot(search: dict[str, Any], key: str, label: str) -> str:
    spots = [(point["size_bytes"] / 1e6, _value(point, key), point["name"]) for point in search["points"]]
    across, up = (_axis(name, [spot[place] for spot in spots]) for place, name in enumerate(("MB of weights", label)))
    plot = Plot(f"{label} over size", across, up)
    line = [spot[:2] for spot in sorted(spots) if spot[2] in search["front"]]
    if len(line) > 1:
        plot.line(line, "s0")
    for x, y, name in spots:
        plot.dot(x, y, "s1" if name == search["chosen"] else "s0", f"{name}: {x:.1f} MB, {y:.2f}")
    return plot.render()


def _axis(label: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or max(1.0, abs(high) * 0.1)
    return Axis(label, low - room, high + room)
