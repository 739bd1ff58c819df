"""The page: whole in itself, well formed, and nothing a model is called can break out of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from edgemm.evaluate.report import render, render_page

SHARE = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 8}
NASTY = "</pre><script>alert(1)</script>\"'&"


def document(**changes):
    part = {
        "pictures": 8,
        "kinds": {"label": {"accuracy": SHARE, "baseline": 0.1}, NASTY: {"accuracy": SHARE, "baseline": None}},
        "any_tag": SHARE,
        "balanced": {"accuracy": {**SHARE, "value": None}, "baseline": 0.2},
        "yes_no": {"f1": 0.5, "precision": 0.5, "recall": 0.5, "yes_ratio": 0.5, "unclear": 1},
        "circular": {"group": SHARE},
    }
    drawn = {"tasks": {"colours": SHARE}, "mean_of_tasks": 0.5, "real": SHARE}
    difference = {"value": -0.1, "low": -0.2, "high": 0.0, "first": 0.5, "second": 0.4, "count": 8, "changed": 2}
    return {
        "edgemm": "0.1.0",
        "commit": None,
        "model": {"name": NASTY, "kind": "bundle", "sha256": "ab" * 32},
        "data": {"kind": "emoji", "size": 64, "sha256": "cd" * 32},
        "settings": {"limit": None},
        "read": {"held-out-style": part},
        "draw": {"judge": "shapes checker", "parts": {"train": drawn}},
        "compare": {
            "model": {"name": NASTY, "kind": "bundle", "sha256": "ef" * 32},
            "differences": {NASTY: {**difference, "p_value": 0.04}},
        },
        **changes,
    }


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(document(), sheet=b"\x89PNG not really")


def test_no_name_breaks_out_and_nothing_is_fetched(page):
    reader = Reader()
    reader.feed(page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    outside = [value for _, attrs in reader.tags for name, value in attrs.items() if name in ("src", "href")]
    assert outside and all(str(value).startswith("data:image/png;base64,") for value in outside)
    assert page.count("<script>") == 0 and "&lt;script&gt;" in page


def test_plots_are_svg_with_bars_as_long_as_the_scores(page):
    plots = [ElementTree.fromstring(f"<svg{piece.split('</svg>')[0]}</svg>") for piece in page.split("<svg")[1:]]
    assert len(plots) == 2
    upright = [float(line.get("x1")) for line in plots[0].iter("line") if line.get("x1") == line.get("x2")]
    left, scale = min(upright), max(upright) - min(upright)  # the grid runs from 0 to 1
    bars = list(plots[0].iter("rect"))
    assert len(bars) == 4  # label, the nasty one, label or tag, every order; "all but label" has no value
    assert [float(bar.get("width")) for bar in bars] == pytest.approx([scale / 2] * 4, abs=0.1)
    lines = [line.get("points").split() for line in plots[0].iter("polyline")]
    ends = [[float(point.split(",")[0]) for point in line] for line in lines]
    intervals = [line for line in ends if line[0] != line[1]]
    assert intervals == [pytest.approx([left + scale / 4, left + 3 * scale / 4], abs=0.1)] * 4
    marks = [line[0] for line in ends if line[0] == line[1]]
    assert marks == pytest.approx([left + 0.1 * scale], abs=0.1)  # the baseline of label


def test_the_page_and_the_terminal_say_the_same_numbers(page):
    told = render(document())
    assert re.search(r"^label or tag +0.500  0.250-0.750 +8$", told, re.MULTILINE)
    assert "says yes 0.500, unclear 1" in told and "mean of tasks: 0.500" in told
    assert "says yes 0.500, unclear 1" in page and "mean of tasks: 0.500" in page
    assert page.count("<td>0.250-0.750</td>") == told.count("0.250-0.750")


def test_the_judges_page_of_emoji_is_made_too():
    part = dict.fromkeys(("drawn_top1", "real_top1", "drawn_top5", "real_top5", "top1_ratio"), SHARE)
    judge = {"styles": [], "pictures": 5, "candidates": 4, "chance": 0.25}
    drawn = {"judge": judge, "parts": {"train": {**part, "kid_lite0": 0.1, "kid_lite0_real_halves": None}}}
    page = render_page(document(draw=drawn))
    assert "KID-Lite0 0.100; between halves of the real pictures none" in page
    thrice = render(document(draw=drawn, settings={"limit": None, "seeds": 3}))
    assert "prompts, 3 drawings each" in thrice and "3 drawings" not in page  # eight prompts, 24 drawings
    assert "<img" not in page
