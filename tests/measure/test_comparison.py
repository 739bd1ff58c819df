"""Ratios and their intervals: on numbers made with a known ratio, and on what a reader has to be told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgemm.cli import main
from edgemm.errors import InputError
from edgemm.measure.comparison import compare, render_comparison
from edgemm.measure.samples import summarise


def result(seed=0, count=40, step_ms=10.0, rate=50.0, noise=0.02, **card):
    generator = np.random.default_rng(seed)
    values = {
        "denoise_step_ms": step_ms * (1 + noise * generator.standard_normal(count)),
        "decode_tokens_per_s": rate * (1 + noise * generator.standard_normal(count)),
        "load_cold_ms": np.array([900.0]),
    }
    rows = {}
    for name, samples in values.items():
        summary = summarise(list(samples))
        assert summary is not None
        rows[name] = {"p50": summary.p50, "samples": samples.tolist(), "more_is_better": name.endswith("per_s")}
    return {"card": {"bundle": "paper", **card}, "plan": {}, "measured": {"steps": 4}, "rows": rows, "warnings": []}


def test_two_runs_of_the_same_show_no_difference():
    """95 % intervals: of forty pairs of runs about two may miss 1; five would be a wrong interval."""
    found = [compare(result(seed), result(seed + 100))["rows"]["denoise_step_ms"] for seed in range(40)]
    assert sum(row["verdict"] != "no difference seen" for row in found) <= 4


def test_a_known_ratio_is_found_with_its_direction():
    rows = compare(result(1), result(2, step_ms=8.0, rate=60.0))["rows"]
    step, rate = rows["denoise_step_ms"], rows["decode_tokens_per_s"]
    assert step["low"] < 0.8 < step["high"] and step["high"] - step["low"] < 0.05 and step["verdict"] == "b is better"
    assert rate["ratio"] == pytest.approx(1.2, rel=0.02) and rate["verdict"] == "b is better"
    assert compare(result(1), result(2, rate=40.0))["rows"]["decode_tokens_per_s"]["verdict"] == "b is worse"


def test_paired_rounds_take_out_what_both_sides_share():
    """Pictures of other seeds take other times, by 10 %: the same on both sides, so pairs do not see it."""
    share = 1 + 0.1 * np.random.default_rng(5).standard_normal(40)
    a, b = result(1, noise=0.002), result(2, noise=0.002, step_ms=10.1)
    for side in (a, b):
        row = side["rows"]["denoise_step_ms"]
        row["samples"] = (np.array(row["samples"]) * share).tolist()
    paired = compare(a, b)["rows"]["denoise_step_ms"]
    b["rows"]["denoise_step_ms"]["samples"].pop()
    unpaired = compare(a, b)["rows"]["denoise_step_ms"]
    assert paired["paired"] and not unpaired["paired"]
    assert paired["verdict"] == "b is worse" and unpaired["verdict"] == "no difference seen"


def test_a_slow_drift_widens_the_interval():
    drift = np.linspace(0.9, 1.1, 40)
    steady, drifting = result(1), result(2)
    mixed = result(2)
    samples = np.array(drifting["rows"]["denoise_step_ms"]["samples"]) * drift
    drifting["rows"]["denoise_step_ms"]["samples"] = samples.tolist()
    mixed["rows"]["denoise_step_ms"]["samples"] = np.random.default_rng(3).permutation(samples).tolist()

    def width(b):
        row = compare(steady, b)["rows"]["denoise_step_ms"]
        return row["high"] - row["low"]

    assert width(drifting) > 1.2 * width(mixed)


def test_one_sample_has_a_ratio_and_no_interval():
    row = compare(result(1), result(2))["rows"]["load_cold_ms"]
    assert row["ratio"] == 1.0 and row["low"] is None and "too few" in row["verdict"]


def test_what_else_differs_is_told():
    b = result(2, threads=4) | {"measured": {"steps": 8}, "warnings": ["unstable: other work"]}
    page = render_comparison(compare(result(1, threads=2), b), "a.json", "b.json")
    assert "differs  threads: 2 against 4" in page and "differs  steps: 4 against 8" in page
    assert "differs  b: unstable: other work" in page


def test_nothing_in_common_is_refused():
    b = result(2)
    b["rows"] = {}
    with pytest.raises(InputError, match="no row in common"):
        compare(result(1), b)


def test_the_verb_reads_files_and_prints_a_page_and_a_line(tmp_path, capsys):
    for name, seed in (("a.json", 1), ("b.json", 2)):
        (tmp_path / name).write_text("| a table |\n" + json.dumps(result(seed)) + "\n")
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    page = capsys.readouterr().out
    assert page.startswith("=== Comparison") and json.loads(page.rstrip().rpartition("\n")[2])["rows"]
    (tmp_path / "b.json").write_text("hello\n")
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 3
    assert "is not the JSON document" in capsys.readouterr().err
