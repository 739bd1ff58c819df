"""The report: one HTML file without scripts, without anything from elsewhere, every word of it escaped.

The JSON document it was made from is inside, so that the numbers can be had back.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from edgemm.bench.page import card_lines, show_figure
from edgemm.bench.plots import FIGURES

__all__ = ["render_report"]

TILES = (  # row, words, figure that is quoted
    ("time_to_first_token_ms", "ms to the first token", "p50"),
    ("decode_tokens_per_s", "tokens a second", "p50"),
    ("image_s", "s a picture", "p50"),
    ("denoise_step_ms", "ms a step", "p50"),
    ("image_encode_ms", "ms to read a picture", "p50"),
    ("load_warm_ms", "ms to load, warm", "p50"),
    ("peak_memory_bytes", "resident at most", "p50"),
)
COLUMNS = ("mean", "sd", "coefficient_of_variance", "p50", "p90", "p95", "p99", "count")
STYLE = """
:root { color-scheme: light dark; --ink:#1c2024; --soft:#60646c; --line:#e3e5e8; --page:#fff; --card:#f7f8f9;
  --warn:#fff4d6; --c0:#3b6fd4; --c1:#e07b39; --c2:#2e9e6b; --c3:#b5459c; --c4:#8a6d1f; --c5:#5b6b7a; }
@media (prefers-color-scheme: dark) { :root { --ink:#eceef0; --soft:#9ba1a8; --line:#33373d; --page:#15171a;
  --card:#1d2024; --warn:#3a3115; --c0:#7aa2f7; --c1:#f0a06a; --c2:#5fd3a0; --c3:#e08acd; --c4:#d3b356;
  --c5:#9fb1c2; } }
body { margin:0 auto; max-width:1100px; padding:28px 20px 60px; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,"DejaVu Sans",sans-serif; }
h1 { font-size:26px; margin:0; } h2 { font-size:16px; margin:0; } h3 { font-size:13px; margin:10px 0 4px; }
p { margin:4px 0; } .sub,figcaption,.legend,td.timed { color:var(--soft); font-size:13px; }
.tiles { display:flex; flex-wrap:wrap; gap:10px; margin:20px 0; }
.tile { background:var(--card); border-radius:10px; padding:12px 14px; flex:1 1 112px; }
.tile b { display:block; font-size:22px; font-weight:600; font-variant-numeric:tabular-nums; }
.warn { background:var(--warn); border-radius:10px; padding:10px 16px; margin:16px 0; }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(430px,1fr)); gap:14px; margin:22px 0; }
figure { margin:0; background:var(--card); border-radius:10px; padding:14px 16px; } figure.wide { grid-column:1/-1; }
svg { width:100%; height:auto; display:block; margin-top:6px; }
svg text { font-family:inherit; fill:var(--soft); font-size:11px; } svg .note { fill:var(--ink); }
.grid { stroke:var(--line); } .frame { stroke:var(--soft); } .mark { stroke:var(--ink); stroke-dasharray:3 3; }
.line { fill:none; stroke-width:1.8; stroke-linejoin:round; } rect.soft { fill:var(--line); }
.bar { display:flex; height:22px; border-radius:5px; overflow:hidden; }
.legend span { margin-right:14px; white-space:nowrap; } .legend i { display:inline-block; width:10px; height:10px;
  border-radius:3px; margin-right:5px; }
table { border-collapse:collapse; width:100%; font-size:13px; font-variant-numeric:tabular-nums; }
th,td { text-align:right; padding:4px 8px; border-bottom:1px solid var(--line); white-space:nowrap; }
th:first-child,td:first-child,td.timed,th.timed { text-align:left; } td.timed { white-space:normal; }
.scroll { overflow-x:auto; } pre { background:var(--card); border-radius:10px; padding:12px 16px; font-size:12px;
  white-space:pre-wrap; }
"""


def render_report(result: dict[str, Any]) -> str:
    card = result["card"]
    title = f"{card['bundle']} on {card['board'] or card['cpu']}"
    body = [
        f"<h1>{escape(str(card['bundle']))}</h1>",
        f'<p class="sub">measured with edgemm bench on {escape(str(card["board"] or card["cpu"]))}</p>',
        _tiles(result["rows"]),
        _warnings(result),
        f'<div class="figures">{"".join(_figures(result))}</div>',
        _table(result["rows"]),
        _energy(result.get("energy")),
        f"<h2>What it was measured on</h2><pre>{escape(chr(10).join(card_lines(result)))}</pre>",
    ]
    data = json.dumps(result, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}{_series_style()}</style></head><body>{''.join(body)}"
        f'<script type="application/json" id="result">{data}</script></body></html>\n'
    )


def _series_style() -> str:
    kinds = range(6)
    return "".join(
        f"rect.s{i},circle.s{i}{{fill:var(--c{i})}}.line.s{i}{{stroke:var(--c{i})}}"
        f".bar .s{i},i.s{i}{{background:var(--c{i})}}"
        for i in kinds
    )


def _tiles(rows: dict[str, Any]) -> str:
    tiles = [
        f'<div class="tile"><b>{escape(show_figure(name, rows[name][key]))}</b>{escape(words)}</div>'
        for name, words, key in TILES
        if name in rows
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _warnings(result: dict[str, Any]) -> str:
    problems = [*result.get("warnings", []), *(result.get("energy") or {}).get("problems", [])]
    reason = (result.get("roofline") or {}).get("reason")
    problems += [f"no roofline: {reason}"] if reason else []
    items = "".join(f"<p>{escape(problem)}</p>" for problem in problems)
    return f'<div class="warn"><b>Before you quote a number</b>{items}</div>' if items else ""


def _figures(result: dict[str, Any]) -> list[str]:
    found = []
    for title, seen, draw in FIGURES:
        figure = draw(result)
        if figure:
            wide = ' class="wide"' if title == "One round" else ""
            found.append(
                f"<figure{wide}><h2>{escape(title)}</h2><figcaption>{escape(seen)}</figcaption>{figure}</figure>"
            )
    return found


def _table(rows: dict[str, Any]) -> str:
    names = {"coefficient_of_variance": "variance", "count": "n"}
    head = "".join(f"<th>{escape(names.get(column, column))}</th>" for column in COLUMNS)
    lines = [
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(_cell(name, row, column))}</td>' for column in COLUMNS)}"
        f'<td class="timed">{escape(row["timed"])}</td></tr>'
        for name, row in rows.items()
    ]
    return (
        f'<h2>Every figure</h2><div class="scroll"><table><tr><th></th>{head}<th class="timed">what is timed</th></tr>'
        f'{"".join(lines)}</table></div><p class="sub">no p99 from fewer than 100 samples</p>'
    )


def _cell(name: str, row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "count":
        return str(value)
    if column == "coefficient_of_variance":
        return "-" if value is None else f"{value:.1%}"
    return show_figure(name, value)


def _energy(energy: dict[str, Any] | None) -> str:
    if not energy:
        return ""
    lines = []
    for name, figure in energy["per"].items():
        gross = figure["gross_j"]
        told = f"{gross['p50']:.3g} J gross" if gross else f"not measured: {figure['reason']}"
        above = figure["above_idle_j"]
        lines.append(
            f"a{'n' if name[0] in 'aeiou' else ''} {name}: {told}"
            + (f", {above['p50']:.3g} J above idle" if above else "")
        )
    return f"<h2>Energy</h2>{''.join(f'<p>{escape(line)}</p>' for line in lines)}" if lines else ""
