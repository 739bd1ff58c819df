"""The report: whole, escaped, alone; and its numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import edgemm
from edgemm.bench import bench, roofline
from edgemm.bench.bench import run_bench
from edgemm.bench.options import Plan
from edgemm.bench.report import FIGURES, render_report
from edgemm.device.child import Answer
from edgemm.report.svg import Axis, Plot, nice_ticks, short
from tests.bench.paper_bundle import PaperModel, write_paper_bundle
from tests.runtimes.tiny_bundle import build

EVIL = "<script>alert(1)</script>&\"'"


class Balanced(HTMLParser):
    """Every tag that opens is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A tiny bundle that really ran, with ceilings of small products."""
    path = build(tmp_path_factory.mktemp("report") / "tiny.bundle")
    plan = Plan(prompt_tokens=60, new_tokens=8, steps=4, repetitions=6, warmup=1, device="cpu", threads=1, growth=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
        found = run_bench(path, plan)
        patch.setattr(roofline, "COPY_BYTES", 2**20)
        patch.setattr(roofline, "SIDE", 64)
        from edgemm.bundle.bundle import open_bundle

        found["roofline"] = roofline.roofline(open_bundle(path), found)
    return found


def test_a_real_result_has_every_figure(result):
    missing = [title for title, _, draw in FIGURES if draw(result) is None]
    assert missing == []


def test_the_page_is_balanced_and_has_no_script_that_runs_and_no_address(result):
    page = render_report(result)
    parser = parsed(page)
    assert parser.seen.count("svg") >= 8 and parser.seen.count("script") == 1
    assert not re.search(r"https?://|src=|url\(|@import", page)
    assert ("type", "application/json") in parser.attributes


def test_the_memory_plot_shows_the_figure_of_the_tile(result):
    """The tile is a fresh process's peak, the curve this process's: the plot holds both, by name."""
    told = json.loads(json.dumps(result))
    told["rows"]["peak_memory_bytes"] = told["rows"]["image_s"] | {"p50": 4e8}
    page = render_report(told)
    assert ">400 MB</b>resident at most, in a fresh process" in page
    assert ">a fresh process, at most 400 MB</text>" in page
    most = max(result["memory"]["resident"]["bytes"]) / 1e6
    assert f">this process, at most {most:.0f} MB</text>" in page


def test_the_document_can_be_had_back_from_the_page(result):
    (data,) = re.findall(
        r'<script type="application/json" id="result">(.*?)</script>', render_report(result), re.DOTALL
    )
    assert json.loads(data) == json.loads(json.dumps(result))


def test_names_that_look_like_html_stay_words(result):
    evil = json.loads(json.dumps(result))
    evil["card"]["bundle"] = evil["card"]["cpu"] = EVIL
    evil["rows"][EVIL] = evil["rows"]["image_s"] | {"timed": EVIL}
    evil["warnings"] = [EVIL]
    evil["parts"] = {EVIL: [{"part": EVIL, "ms": 1.0, "share": 1.0}]}
    evil["timeline"]["engines"].append([EVIL, 0.0, 1.0])
    page = render_report(evil)
    assert parsed(page).seen.count("script") == 1
    assert "alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page


def test_ceilings_are_above_zero_and_every_part_stands_under_them_somewhere(result):
    found = result["roofline"]
    assert found["reason"] is None and all(value > 0 for value in found["ceilings"].values())
    assert {point["part"] for point in found["points"]} >= {"token", "prefill", "step", "image_encode"}


def test_without_the_onnx_package_the_page_says_why_there_is_no_roofline(tmp_path, monkeypatch):
    monkeypatch.setattr(edgemm, "load", lambda path, device, threads: PaperModel())
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    from edgemm.bundle.bundle import open_bundle

    path = write_paper_bundle(tmp_path / "b")
    found = run_bench(path, Plan(repetitions=2, warmup=0))
    found["roofline"] = roofline.roofline(open_bundle(path), found)
    assert "no roofline: counting a graph&#x27;s operations needs the onnx package" in render_report(found)


def test_ticks_are_round_numbers_inside_the_range():
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.93, 1.08) == pytest.approx([0.95, 1.0, 1.05])
    for low, high in np.random.default_rng(0).uniform(0, 1, (50, 2)).cumsum(axis=1):
        ticks = nice_ticks(low, high)
        assert 2 <= len(ticks) <= 12 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9


def test_places_on_axes_are_shares_of_the_range():
    assert [Axis("", 0, 10).place(value) for value in (-1, 0, 5, 10, 99)] == [0, 0, 0.5, 1, 1]
    assert Axis("", 1, 10_000, log=True).place(100) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="expected a rising range"):
        Axis("x", 1, 1)
    with pytest.raises(ValueError, match="logarithmic"):
        Axis("x", 0, 1, log=True)


def test_the_highest_bin_of_a_histogram_is_the_fullest():
    plot = Plot("p", Axis("x", 0, 4), Axis("y", 0, 10))
    plot.box(0, 1, 0, 5, "s0", "five")
    plot.box(1, 2, 0, 10, "s0", "ten")
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', plot.render())]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)


def test_numbers_are_three_digits_with_a_prefix():
    assert [short(value) for value in (0.25, 7, 999, 1200, 3.1e10, 4.76e11)] == [
        "0.25",
        "7",
        "999",
        "1200",
        "31G",
        "476G",
    ]
