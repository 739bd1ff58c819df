"""What a report shows: each function makes one figure of a result, or None where the result does not hold it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from edgemm.report.svg import Axis, Plot, short

__all__ = ["FIGURES"]

Result = dict[str, Any]
BINS = 30
STEADY_ROWS = ("time_to_first_token_ms", "time_per_output_token_ms", "image_encode_ms", "denoise_step_ms", "image_s")


def histogram(result: Result, name: str, label: str) -> str | None:
    row = result["rows"].get(name)
    if row is None or row["count"] < 5:
        return None
    samples = np.asarray(row["samples"])
    low, high = float(samples.min()), float(samples.max())
    if low == high:
        low, high = low * 0.99, high * 1.01
    counts, edges = np.histogram(samples, bins=min(BINS, max(5, round(len(samples) ** 0.5))), range=(low, high))
    plot = Plot(
        f"Histogram of {name}", Axis(label, low, high), Axis("samples", 0, float(counts.max()) * 1.15, whole=True)
    )
    for count, left, right in zip(counts, edges, edges[1:]):
        plot.box(left, right, 0, count, "s0", f"{count} from {short(left)} to {short(right)}")
    for order, key in enumerate(key for key in ("p50", "p90", "p99") if row[key] is not None):
        plot.upright(row[key], f"{key} {short(row[key])}", order)
    return plot.render()


def steadiness(result: Result) -> str | None:
    """Every row's samples over its own median, in the order they were taken: heat and other work bend the lines."""
    rows = {name: result["rows"][name] for name in STEADY_ROWS if result["rows"].get(name, {}).get("count", 0) > 1}
    if not rows:
        return None
    lines = {name: np.asarray(row["samples"]) / row["p50"] for name, row in rows.items()}
    everything = np.concatenate([*lines.values()])
    low, high = float(everything.min()), float(everything.max())
    pad = max((high - low) * 0.08, 0.01)
    longest = max(map(len, lines.values()))
    plot = Plot(
        "Every sample over its row's median",
        Axis("round", 0, longest - 1, whole=True),
        Axis("over the median", low - pad, high + pad),
    )
    for index, values in enumerate(lines.values()):
        plot.line([(float(x), float(y)) for x, y in enumerate(values)], f"s{index}")
    return plot.render() + legend(list(lines))


def timeline(result: Result) -> str | None:
    """One reply, one picture read and one drawing: what the engines did when."""
    found = result.get("timeline")
    if not found or not found["engines"]:
        return None
    lanes = ["work", *dict.fromkeys(name for name, _, _ in found["engines"])]
    end = max(start + length for _, start, length in (*found["works"], *found["engines"]))
    height = 70 + 26 * len(lanes)
    plot = Plot(
        "Timeline of one round", Axis("ms", 0, end), Axis("", -0.5, len(lanes) - 0.5), 1060, height, lanes[::-1]
    )
    places = {name: len(lanes) - 1 - index for index, name in enumerate(lanes)}
    for name, start, length in found["works"]:
        at = places["work"]
        plot.box(start, start + length, at - 0.34, at + 0.34, "soft", f"{name}: {length:.2f} ms")
        plot.words(start, at, name, shift=(4, 4))
    for name, start, length in found["engines"]:
        at = places[name]
        plot.box(start, start + length, at - 0.34, at + 0.34, f"s{lanes.index(name) - 1}", f"{name}: {length:.2f} ms")
    return plot.render()


def parts(result: Result) -> str | None:
    """Stacked bars: what a reply and a picture are made of."""
    bars = []
    for whole, found in result.get("parts", {}).items():
        positive = [part for part in found if part["share"] > 0]
        total = sum(part["share"] for part in positive) or 1.0
        pieces = "".join(
            f'<span class="s{index}" style="width:{100 * part["share"] / total:.2f}%" '
            f'title="{escape(part["part"])}: {short(part["ms"])} ms"></span>'
            for index, part in enumerate(positive)
        )
        words = ", ".join(
            f"{part['part'].replace('_', ' ')} {short(part['ms'])} ms ({part['share']:.0%})" for part in found
        )
        if pieces:
            names = [part["part"].replace("_", " ") for part in positive]
            bars.append(f'<h3>{escape(whole)}</h3><div class="bar">{pieces}</div>{legend(names)}<p>{escape(words)}</p>')
    return "".join(bars) or None


def roofline(result: Result) -> str | None:
    """Operations a second over operations a byte, under the ceilings that were measured here."""
    found = result.get("roofline") or {}
    ceilings, points = (
        found.get("ceilings"),
        [p for p in found.get("points", []) if p["ms"] > 0 and p["operations"] > 0],
    )
    if not ceilings or not points:
        return None
    at = [(p["operations"] / p["bytes"], p["operations"] / p["ms"] * 1e3) for p in points]
    tops = (ceilings["float32_per_s"], ceilings["int8_per_s"])
    x = Axis("operations a byte", min(0.1, *(i for i, _ in at)) / 2, max(1e4, *(i for i, _ in at)) * 2, log=True)
    y = Axis(
        "operations a second", min(rate for _, rate in at) / 4, max(*tops, *(rate for _, rate in at)) * 2, log=True
    )
    plot = Plot("Roofline", x, y, 520, 320)
    for top, name, kind in ((tops[0], "float32", "s0"), (tops[1], "int8", "s1")):
        knee = top / ceilings["bytes_per_s"]
        start = max(x.low, y.low / ceilings["bytes_per_s"])
        plot.line([(start, start * ceilings["bytes_per_s"]), (knee, top), (x.high, top)], kind)
        plot.words(x.high, top, f"{name} {short(top)}/s", "end", (-4, -5))
    plot.words(
        x.low,
        max(y.low, x.low * ceilings["bytes_per_s"]),
        f"memory {short(ceilings['bytes_per_s'])}B/s",
        shift=(8, -14),
    )
    for point, (intensity, rate) in zip(points, at):
        plot.dot(intensity, rate, "s3", f"{point['part']}: {short(rate)} operations/s at {intensity:.3g} a byte")
        side = ("end", (-7, 4)) if x.place(intensity) > 0.8 else ("start", (7, 4))
        plot.words(intensity, rate, point["part"], *side)
    return plot.render()


def memory(result: Result) -> str | None:
    found = result.get("memory", {}).get("resident", {"at_s": [], "bytes": []})
    if len(found["at_s"]) < 2 or found["at_s"][-1] <= found["at_s"][0]:
        return None
    sizes = [size / 1e6 for size in found["bytes"]]
    plot = Plot(
        "Resident memory over time",
        Axis("seconds since the model was opened", found["at_s"][0], found["at_s"][-1]),
        Axis("MB resident", 0, max(sizes) * 1.1),
    )
    plot.line(list(zip(found["at_s"], sizes)), "s0")
    return plot.render()


def growth(result: Result, name: str, x_label: str, y_label: str) -> str | None:
    points = (result.get("growth") or {}).get(name) or []
    if len(points) < 2:
        return None
    xs, ys = zip(*points)
    plot = Plot(f"{y_label} over {x_label}", Axis(x_label, min(xs), max(xs)), Axis(y_label, 0, max(ys) * 1.1))
    plot.line([tuple(point) for point in points], "s0")
    if len(points) <= 12:
        for x, y in points:
            plot.dot(x, y, "s0", f"{short(y)} at {short(x)}")
    return plot.render()


def legend(names: Sequence[str]) -> str:
    keys = "".join(f'<span><i class="s{index}"></i>{escape(name)}</span>' for index, name in enumerate(names))
    return f'<div class="legend">{keys}</div>'


FIGURES = (  # title, what is to be seen, figure
    ("From one token to the next", "every gap of every reply", lambda r: histogram(r, "inter_token_ms", "ms")),
    ("A picture", "from the call to pixels", lambda r: histogram(r, "image_s", "s")),
    ("First token", "from the call", lambda r: histogram(r, "time_to_first_token_ms", "ms")),
    ("Steadiness", "every sample over its own row's median, in the order of measurement", steadiness),
    ("Where the time goes", "medians; rest is what no engine claims", parts),
    ("Roofline", "ceilings measured on this machine in the same run", roofline),
    (
        "A token, as the context grows",
        "median over replies",
        lambda r: growth(r, "token_ms", "tokens in the context", "ms"),
    ),
    (
        "Prefill, as the prompt grows",
        "median of three",
        lambda r: growth(r, "prefill_ms", "tokens in the prompt", "ms"),
    ),
    ("Memory", "resident size of this process", memory),
    ("One round", "which engine ran when; point at a box for its time", timeline),
)
