"""What a spec costs, for people and programs: one HTML page with the pictures in it, and the same numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edgemm.bundle.files import write_whole
from edgemm.evaluate.report import as_png
from edgemm.quantize.spec import Spec
from edgemm.report import page as kit
from edgemm.report.svg import Axis, Plot
from edgemm.search.judges import Answers, Scores
from edgemm.search.levels import size_bytes

__all__ = ["document_of", "write_report", "HEADS", "document_of_search", "front", "plots", "rows"]


def document_of(
    spec: Spec,
    scores: Scores,
    signals: dict[str, float],
    steps: int,
    search: dict[str, Any] | None = None,  # as report.py makes it
    tasks: dict[str, Any] | None = None,  # score -> its paired difference, as judges.py makes them
) -> dict[str, Any]:
    told = spec.document
    return {
        "checkpoint": told.checkpoint,
        "checkpoint_sha256": told.checkpoint_sha256,
        "text": told.text,
        "draw": told.draw,
        "calibration": told.calibration,
        "steps": steps,
        "size_bytes": size_bytes(spec),
        "scores": scores.to_json(),
        **({"tasks": tasks} if tasks else {}),
        **({"search": search} if search else {}),
        "layers": {
            name: {
                "bits": layer.bits,
                "form": layer.form,
                "method": layer.method,
                "signal_db": signals.get(name),
                "reason": layer.reason,
            }
            for name, layer in told.layers.items()
        },
    }


def write_report(path: Path, document: dict[str, Any], plain: Answers, quantized: Answers) -> None:
    """`path` is the page; the JSON lies beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    write_whole(path, _page(document, plain.pictures, quantized.pictures))


def _page(document: dict[str, Any], plain: Tensor, quantized: Tensor) -> str:
    title = f"{document['checkpoint']}: text {document['text']}, draw {document['draw']}"
    scores = document["scores"]
    facts = [
        ("perplexity, float", f"{scores['perplexity_float']:.3f}"),
        ("perplexity", f"{scores['perplexity']:.3f} ({scores['perplexity_percent']:+.2f} %)"),
        ("same likeliest token", f"{100 * scores['token_agreement']:.1f} %"),
        ("PSNR of drawings, mean and worst", f"{scores['psnr_db']:.1f} and {scores['psnr_worst_db']:.1f} dB"),
        ("SSIM of drawings", f"{scores['ssim']:.4f}"),
        ("quantized weights", f"{document['size_bytes'] / 1e6:.1f} MB"),
        ("calibrated on", document["calibration"] or "nothing"),
        ("denoising steps", str(document["steps"])),
    ]
    layers = [
        (name, _precision(layer), _number(layer["signal_db"]), layer["method"], layer["reason"])
        for name, layer in document["layers"].items()
    ]
    blocks = [
        kit.heading(title, 1),
        kit.table((), facts, {1}),
        kit.heading("The same noise, in float and quantized"),
        *(f"<p>{kit.pictures(map(_png, pictures), small=True)}</p>" for pictures in (plain, quantized)),
        *_tasks(document.get("tasks")),
        *_search(document.get("search")),
        kit.heading("Layers"),
        kit.table(("layer", "bits", "signal dB", "method", "why"), layers, {3, 4}),
    ]
    return kit.page(title, blocks)


def _tasks(tasks: dict[str, Any] | None) -> list[str]:
    """Scores of both models on the same questions and prompts, and the difference with its 95 % interval."""
    if not tasks:
        return []
    found = [
        (score, f"{d['first']:.3f}", f"{d['second']:.3f}", f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})")
        + (f"{d['changed']} of {d['count']}",)
        for score, d in tasks["differences"].items()
    ]
    head = ("", "float", "quantized", "difference (95 %, paired)", "changed")
    return [kit.heading(f"Tasks: {tasks['data']}"), kit.table(head, found)]


def _search(search: dict[str, Any] | None) -> list[str]:
    if not search:
        return []
    return [
        kit.heading(f"What was tried: the {search['goal']} within {', '.join(search['budgets'].values())}"),
        kit.figures(kit.figure("", "", plot) for plot in plots(search)),
        kit.paragraph("Milliseconds are those of the products alone, one by one, on the machine that searched."),
        kit.table(HEADS, rows(search)),
    ]


def _precision(layer: dict[str, Any]) -> str:
    if layer["bits"] is None:
        return "float"
    return str(layer["bits"]) if layer["form"] == "int" else layer["form"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _png(picture: Tensor) -> bytes:
    from PIL import Image

    return as_png(Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()))


# The variants that a search judged, as a table and a plot: which of them no other one beats in everything.
#
# It knows plain values only, so a search.json of last week makes the same page.

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
