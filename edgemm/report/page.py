"""Blocks of a report: words in, markup out, and one HTML file that holds all of them and needs nothing else.

No script runs in it and nothing is fetched: pictures lie inside, and so may the JSON document that it was made from.
Every function escapes the words that it is given; `blocks`, `picture` and `body` are markup already.  What a report
says is each wing's own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Any

__all__ = [
    "figure",
    "figures",
    "heading",
    "legend",
    "page",
    "paragraph",
    "pictures",
    "preformatted",
    "stacked_bar",
    "table",
    "text_table",
    "tiles",
    "warnings",
]

SERIES = 6  # colours of bars, lines and dots: s0 to s5
STYLE = """
:root { color-scheme: light dark; --ink:#1c2024; --soft:#60646c; --line:#e3e5e8; --page:#fff; --card:#f7f8f9;
  --warn:#fff4d6; --c0:#3b6fd4; --c1:#e07b39; --c2:#2e9e6b; --c3:#b5459c; --c4:#8a6d1f; --c5:#5b6b7a; }
@media (prefers-color-scheme: dark) { :root { --ink:#eceef0; --soft:#9ba1a8; --line:#33373d; --page:#15171a;
  --card:#1d2024; --warn:#3a3115; --c0:#7aa2f7; --c1:#f0a06a; --c2:#5fd3a0; --c3:#e08acd; --c4:#d3b356;
  --c5:#9fb1c2; } }
body { margin:0 auto; max-width:1100px; padding:28px 20px 60px; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,"DejaVu Sans",sans-serif; }
h1 { font-size:26px; margin:0; } h2 { font-size:16px; margin:22px 0 4px; } figure h2 { margin:0; }
h3 { font-size:13px; margin:10px 0 4px; }
p { margin:4px 0; } .sub,figcaption,.legend,td.words { color:var(--soft); font-size:13px; }
.tiles { display:flex; flex-wrap:wrap; gap:10px; margin:20px 0; }
.tile { background:var(--card); border-radius:10px; padding:12px 14px; flex:1 1 112px; }
.tile b { display:block; font-size:22px; font-weight:600; font-variant-numeric:tabular-nums; }
.warn { background:var(--warn); border-radius:10px; padding:10px 16px; margin:16px 0; }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(430px,1fr)); gap:14px; margin:22px 0; }
figure { margin:0; background:var(--card); border-radius:10px; padding:14px 16px; } figure.wide { grid-column:1/-1; }
svg { width:100%; height:auto; display:block; margin-top:6px; }
svg text { font-family:inherit; fill:var(--soft); font-size:11px; } svg .note { fill:var(--ink); }
.grid { stroke:var(--line); } .frame { stroke:var(--soft); } .mark { stroke:var(--ink); stroke-dasharray:3 3; }
.line { fill:none; stroke-width:1.8; stroke-linejoin:round; } .line.span { stroke:var(--ink); }
rect.soft { fill:var(--line); }
.bar { display:flex; height:22px; border-radius:5px; overflow:hidden; }
.legend span { margin-right:14px; white-space:nowrap; } .legend i { display:inline-block; width:10px; height:10px;
  border-radius:3px; margin-right:5px; }
table { border-collapse:collapse; font-size:13px; font-variant-numeric:tabular-nums; }
th,td { text-align:right; padding:4px 8px; border-bottom:1px solid var(--line); white-space:nowrap; }
th:first-child,td:first-child,td.words,th.words { text-align:left; } td.words { white-space:normal; }
.scroll { overflow-x:auto; } pre { background:var(--card); border-radius:10px; padding:12px 16px; font-size:12px;
  white-space:pre-wrap; overflow-wrap:anywhere; }
img { max-width:100%; } img.small { width:128px; image-rendering:pixelated; margin-right:4px; }
""" + "".join(
    f"rect.s{i},circle.s{i}{{fill:var(--c{i})}}.line.s{i}{{stroke:var(--c{i})}}"
    f".bar .s{i},i.s{i}{{background:var(--c{i})}}"
    for i in range(SERIES)
)


def page(title: str, blocks: Iterable[str], data: Any = None) -> str:
    """The whole file; `data` lies inside as JSON, so that the numbers can be had back."""
    kept = ""
    if data is not None:
        told = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        kept = f'<script type="application/json" id="result">{told}</script>'
    allowed = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(filter(None, blocks))
        + f"\n{kept}</body></html>\n"
    )


def heading(words: str, level: int = 2) -> str:
    return f"<h{level}>{escape(words)}</h{level}>"


def paragraph(words: str, kind: str = "") -> str:
    """`kind` is "sub" for what is read last."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """The few that are quoted: (figure, what it is)."""
    inner = "".join(f'<div class="tile"><b>{escape(value)}</b>{escape(words)}</div>' for value, words in figures)
    return f'<div class="tiles">{inner}</div>'


def warnings(problems: Iterable[str]) -> str:
    items = "".join(map(paragraph, problems))
    return f'<div class="warn"><b>Before you quote a number</b>{items}</div>' if items else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = ()) -> str:
    """Numbers to the right; the first column, and those whose places are in `words`, to the left and wrapped."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="words"' if place in words else "" for place in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, cells)) + "</tr>"

    top = line(head, "th") if head else ""
    return f'<div class="scroll"><table>{top}{"".join(line(row, "td") for row in rows)}</table></div>'


def figure(title: str, seen: str, body: str, wide: bool = False) -> str:
    """`seen` says what is to be seen in it."""
    head = heading(title) if title else ""
    caption = f"<figcaption>{escape(seen)}</figcaption>" if seen else ""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{head}{caption}{body}</figure>"


def figures(blocks: Iterable[str]) -> str:
    return f'<div class="figures">{"".join(blocks)}</div>'


def stacked_bar(title: str, pieces: Sequence[tuple[str, float, str]]) -> str:
    """(name, size, hint) side by side, as wide as their sizes, with a legend."""
    total = sum(size for _, size, _ in pieces) or 1.0
    inner = "".join(
        f'<span class="s{index % SERIES}" style="width:{100 * size / total:.2f}%" title="{escape(hint)}"></span>'
        for index, (_, size, hint) in enumerate(pieces)
    )
    return f'{heading(title, 3)}<div class="bar">{inner}</div>{legend([name for name, _, _ in pieces])}'


def legend(names: Iterable[str]) -> str:
    keys = "".join(f'<span><i class="s{index % SERIES}"></i>{escape(name)}</span>' for index, name in enumerate(names))
    return f'<div class="legend">{keys}</div>'


def pictures(files: Iterable[bytes], words: str = "", small: bool = False) -> str:
    """PNG files in a row; `words` are for who cannot see them."""
    kind = ' class="small"' if small else ""
    return "".join(
        f'<img{kind} alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(file).decode()}">'
        for file in files
    )


def text_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), gap: str = "  ") -> list[str]:
    """The same for a terminal: columns as wide as their widest cell, those in `left` aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
