"""What a report of a benchmark says: tiles, warnings, figures and the table, out of the result's document.

A function of FIGURES makes one figure, or None where the result does not hold it.  The blocks are report/page.py's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemm.bench.page import card_lines, show_figure, show_name
from edgemm.report import page as kit
from edgemm.report.svg import Axis, Plot, short

__all__ = ["FIGURES", "render_report"]

Result = dict[str, Any]
PEAK = "peak_memory_bytes"
TILES = (  # row, words, figure that is quoted
    ("time_to_first_token_ms", "ms to the first token (TTFT)", "p50"),
    ("decode_tokens_per_s", "tokens a second", "p50"),
    ("image_s", "s a picture", "p50"),
    ("denoise_step_ms", "ms a step", "p50"),
    ("image_encode_ms", "ms to read a picture", "p50"),
    ("load_warm_ms", "ms to load, warm", "p50"),
    (PEAK, "resident at most, in a fresh process", "p50"),
)
COLUMNS = ("mean", "sd", "coefficient_of_variance", "p50", "p90", "p95", "p99", "count")
NAMES = {"coefficient_of_variance": "variance", "count": "n"}
WIDE = "One round"


def render_report(result: Result) -> str:
    card, rows = result["card"], result["rows"]
    machine = str(card["board"] or card["cpu"])
    drawn = [(title, seen, draw(result)) for title, seen, draw in FIGURES]
    energy = [kit.paragraph(line) for line in _energy_lines(result.get("energy"))]
    table = [[show_name(name), *(_cell(name, row, key) for key in COLUMNS), row["timed"]] for name, row in rows.items()]
    head = ["", *(NAMES.get(column, column) for column in COLUMNS), "what is timed"]
    blocks = [
        kit.heading(str(card["bundle"]), 1),
        kit.paragraph(f"measured with edgemm bench on {machine}", "sub"),
        kit.tiles((show_figure(name, rows[name][key]), words) for name, words, key in TILES if name in rows),
        kit.warnings(_problems(result)),
        kit.figures(kit.figure(title, seen, body, title == WIDE) for title, seen, body in drawn if body),
        kit.heading("Every figure"),
        kit.table(head, table, {len(head) - 1}),
        kit.paragraph("no p99 from fewer than 100 samples", "sub"),
        *([kit.heading("Energy"), *energy] if energy else []),
        kit.heading("What it was measured on"),
        kit.preformatted("\n".join(card_lines(result))),
    ]
    return kit.page(f"{card['bundle']} on {machine}", blocks, result)


def _problems(result: Result) -> list[str]:
    reason = (result.get("roofline") or {}).get("reason")
    told = [*result.get("warnings", []), *(result.get("energy") or {}).get("problems", [])]
    return told + ([f"no roofline: {reason}"] if reason else [])


def _cell(name: str, row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "count":
        return str(value)
    if column == "coefficient_of_variance":
        return "-" if value is None else f"{value:.1%}"
    return show_figure(name, value)


def _energy_lines(energy: dict[str, Any] | None) -> list[str]:
    lines = []
    for name, figure in (energy or {"per": {}})["per"].items():
        gross, above = figure["gross_j"], figure["above_idle_j"]
        told = f"{gross['p50']:.3g} J gross" if gross else f"not measured: {figure['reason']}"
        told += f", {above['p50']:.3g} J above idle" if above else ""
        lines.append(f"a{'n' if name[0] in 'aeiou' else ''} {name}: {told}")
    return lines


# The figures.

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
    return plot.render() + kit.legend(lines)


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
        named = [(part["part"].replace("_", " "), part["share"], short(part["ms"])) for part in found]
        pieces = [(name, share, f"{name}: {ms} ms") for name, share, ms in named if share > 0]
        if pieces:
            words = ", ".join(f"{name} {ms} ms ({share:.0%})" for name, share, ms in named)
            bars.append(kit.stacked_bar(whole, pieces) + kit.paragraph(words))
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
    """With the tile's figure as a line: this process also holds what measures, and read longer prompts."""
    found = result.get("memory", {}).get("resident", {"at_s": [], "bytes": []})
    if len(found["at_s"]) < 2 or found["at_s"][-1] <= found["at_s"][0]:
        return None
    sizes, peak = [size / 1e6 for size in found["bytes"]], result["rows"].get(PEAK)
    fresh = peak["p50"] / 1e6 if peak else 0.0
    x = Axis("seconds since the model was opened", found["at_s"][0], found["at_s"][-1])
    plot = Plot("Resident memory over time", x, Axis("MB resident", 0, max(*sizes, fresh) * 1.1))
    plot.line(list(zip(found["at_s"], sizes)), "s0")
    plot.words(x.high, max(sizes), f"this process, at most {max(sizes):.0f} MB", "end", (-4, -5))
    if peak:
        plot.line([(x.low, fresh), (x.high, fresh)], "s1")
        plot.words(x.low, fresh, f"a fresh process, at most {show_figure(PEAK, peak['p50'])}", shift=(4, 14))
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


FIGURES = (  # title, what is to be seen, figure
    ("From one token to the next (ITL)", "every gap of every reply", lambda r: histogram(r, "inter_token_ms", "ms")),
    ("A picture", "from the call to pixels", lambda r: histogram(r, "image_s", "s")),
    ("First token (TTFT)", "from the call", lambda r: histogram(r, "time_to_first_token_ms", "ms")),
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
    ("Memory", "resident size of the process that measured; the tile is the fresh one's", memory),
    (WIDE, "which engine ran when; point at a box for its time", timeline),
)
