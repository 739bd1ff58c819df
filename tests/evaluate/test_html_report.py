"""The page: whole in itself, well formed, and nothing a model is called can break out of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from edgemm.evaluate.html_report import html_report

SHARE = {"value": 0.5, "low": 0.25, "high": 0.75, "count": 8}
NASTY = "</pre><script>alert(1)</script>\"'&"


def document(**changes):
    part = {
        "pictures": 8,
        "kinds": {"label": {"accuracy": SHARE, "baseline": 0.1}, NASTY: {"accuracy": SHARE, "baseline": None}},
        "any_tag": SHARE,
        "balanced": {"accuracy": {**SHARE, "value": None}, "baseline": 0.2},
        "yes_no": {"f1": 0.5, "unclear": 1},
        "circular": {"group": SHARE},
    }
    difference = {"value": -0.1, "low": -0.2, "high": 0.0, "first": 0.5, "second": 0.4, "count": 8, "changed": 2}
    return {
        "edgemm": "0.1.0",
        "commit": None,
        "model": {"name": NASTY, "kind": "bundle", "sha256": "ab" * 32},
        "data": {"kind": "emoji", "size": 64, "sha256": "cd" * 32},
        "settings": {"limit": None},
        "read": {"held-out-style": part},
        "draw": {"judge": "shapes checker", "parts": {"train": {"tasks": {"colours": SHARE}, "real": SHARE}}},
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
    return html_report(document(), sheet=b"\x89PNG not really")


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
    bars = [rect for rect in plots[0].iter("rect") if rect.get("height") == "16.0"]
    assert len(bars) == 4  # label, the nasty one, label or tag, every order; "all but label" has no value
    assert {rect.get("width") for rect in bars} == {"180.0"}  # half of 640 - 210 - 70
    marks = [rect for rect in plots[0].iter("rect") if rect.get("height") == "20.0"]
    assert [mark.get("x") for mark in marks] == ["245.0"]  # the baseline, 0.1


def test_the_judges_page_of_emoji_is_made_too():
    part = dict.fromkeys(("drawn_top1", "real_top1", "drawn_top5", "real_top5"), SHARE)
    drawn = {"judge": {"styles": []}, "parts": {"train": {**part, "kid_lite0": 0.1, "kid_lite0_real_halves": None}}}
    page = html_report(document(draw=drawn))
    assert "KID-Lite0 0.100; between halves of the real pictures none" in page
    assert "<img" not in page
