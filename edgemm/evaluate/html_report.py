"""One page to keep or to send: scores with their intervals as bars, tables, and the sheet of drawings, in one file.

Inline SVG and a data URI, no script, nothing fetched; every string is escaped.  It knows the document of evaluation.py,
never models.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["html_report"]

WIDTH, ROW, LEFT, RIGHT = 640, 26, 210, 70  # of a plot, in pixels
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2328;background:#fff}
h2{margin-top:2.5rem;border-bottom:1px solid #d0d7de}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;
text-align:right}td:first-child,th:first-child{text-align:left}th{font-weight:600}svg{max-width:100%;height:auto}
.faint{color:#656d76}img{max-width:100%}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px}
"""
BAR, MARK, INK = "#4c78a8", "#e45756", "#1f2328"


def html_report(document: dict[str, Any], sheet: bytes | None = None) -> str:
    model, data = document["model"], document["data"]
    title = f"{model['name']}: how it reads and draws"
    about = (
        f"{model['kind']} {str(model['sha256'])[:12]}, edgemm {document['edgemm']} at "
        f"{document['commit'] or 'no commit'}; {data['kind']} at {data['size']} pixels, {str(data['sha256'])[:12]}"
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=faint>{escape(about)}; settings {escape(json.dumps(document['settings']))}</p>",
    ]
    for split, part in document.get("read", {}).items():
        parts += [f"<h2>Reading: {escape(split)}</h2>", *_reading(part)]
    if "draw" in document:
        parts += ["<h2>Drawing</h2>", *_drawing(document["draw"])]
    if "compare" in document:
        parts += _comparison(document["compare"])
    if sheet:
        encoded = base64.b64encode(sheet).decode()
        parts.append(f'<h2>Drawings</h2><img alt="drawings below real pictures" src="data:image/png;base64,{encoded}">')
    parts.append(f"<h2>Everything</h2><pre>{escape(json.dumps(document, indent=1))}</pre>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        + "\n".join(parts)
        + "</html>\n"
    )


def _reading(part: dict[str, Any]) -> Iterable[str]:
    bars = [(kind, score["accuracy"], score["baseline"]) for kind, score in part["kinds"].items()]
    if part.get("any_tag"):
        bars.append(("label or tag", part["any_tag"], None))
    if part.get("balanced"):
        bars.append(("all but label", part["balanced"]["accuracy"], part["balanced"]["baseline"]))
    bars += [(f"{kind}, every order", share, None) for kind, share in (part.get("circular") or {}).items()]
    yield _bars(bars, "accuracy, with 95 % interval; red: always the commonest answer")
    yes_no = part.get("yes_no")
    if yes_no:
        rows = [(name.replace("_", " "), _number(value)) for name, value in yes_no.items()]
        yield _table(("yes or no", ""), rows)


def _drawing(draw: dict[str, Any]) -> Iterable[str]:
    exact = isinstance(draw["judge"], str)
    for split, part in draw["parts"].items():
        if exact:
            bars = [(task, share, None) for task, share in part["tasks"].items()]
            bars.append(("real pictures", part["real"], None))
            bars += [("others' captions", part["shuffled"], None)] if "shuffled" in part else []
            yield f"<h3>{escape(split)}</h3>" + _bars(bars, "share that the exact checker passes, with 95 % interval")
        else:
            bars = [("drawn, top 1", part["drawn_top1"], None), ("real, top 1", part["real_top1"], None)]
            bars += [("drawn, top 5", part["drawn_top5"], None), ("real, top 5", part["real_top5"], None)]
            yield f"<h3>{escape(split)}</h3>" + _bars(bars, "share that the judge names rightly, with 95 % interval")
            halves = _number(part["kid_lite0_real_halves"])
            yield f"<p>KID-Lite0 {_number(part['kid_lite0'])}; between halves of the real pictures {halves}</p>"


def _comparison(compare: dict[str, Any]) -> Iterable[str]:
    other = compare["model"]
    yield f"<h2>Against {escape(other['name'])} ({escape(other['kind'])} {escape(str(other['sha256'])[:12])})</h2>"
    rows = [
        (score, _number(d["first"]), _number(d["second"]), f"{_number(d['value'])} ({_number(d['low'])} to "
         f"{_number(d['high'])})", _number(d["p_value"]), f"{d['changed']} of {d['count']}")
        for score, d in compare["differences"].items()
    ]  # fmt: skip
    yield _table(("", "this", "the other", "difference (95 %)", "p", "changed"), rows)


def _bars(bars: Sequence[tuple[str, dict[str, Any], float | None]], caption: str) -> str:
    """Horizontal bars from 0 to 1, each with its interval and, where there is one, its baseline."""
    scale, height = WIDTH - LEFT - RIGHT, ROW * len(bars) + 24
    lines = [f'<svg role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" font-size="13" fill="{INK}">']
    lines.append(f"<title>{escape(caption)}</title>")
    for row, (name, share, baseline) in enumerate(bars):
        middle = ROW * row + ROW / 2
        lines.append(f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        value = share["value"]
        if value is None:
            lines.append(f'<text x="{LEFT}" y="{middle + 4:.1f}">none</text>')
            continue
        lines.append(_rectangle(LEFT, middle - 8, value * scale, 16, BAR))
        low, high = (LEFT + share[end] * scale for end in ("low", "high"))
        lines.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="{INK}" stroke-width="2"/>')
        if baseline is not None:
            lines.append(_rectangle(LEFT + baseline * scale - 1, middle - 10, 2, 20, MARK))
        lines.append(f'<text x="{WIDTH - RIGHT + 8}" y="{middle + 4:.1f}">{value:.3f}</text>')
    lines.append(f'<text x="{LEFT}" y="{height - 6}" font-size="11" fill="#656d76">{escape(caption)}</text></svg>')
    return "".join(lines)


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
