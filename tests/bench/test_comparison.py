"""Ratios and their intervals: on numbers made with a known ratio, and on what a reader has to be told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemm.bench import comparison
from edgemm.bench.comparison import compare, render_comparison
from edgemm.bench.rows import Row, make_row
from edgemm.cli.main import main
from edgemm.errors import InputError
from edgemm.report.samples import summarise

fastjsonschema = pytest.importorskip("fastjsonschema")


valid = fastjsonschema.compile(json.loads((Path(comparison.__file__).parent / "comparison.schema.json").read_text()))


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


def test_rounds_without_process_effects_show_no_difference():
    """95 % intervals: of forty pairs of runs about two may miss 1; five would be a wrong interval."""
    found = [compare(result(seed), result(seed + 100))["rows"]["denoise_step_ms"] for seed in range(40)]
    assert sum(not row["low"] <= 1 <= row["high"] for row in found) <= 4


def test_a_known_ratio_is_found_with_its_direction():
    rows = compare(result(1), result(2, step_ms=8.0, rate=60.0))["rows"]
    step, rate = rows["denoise_step_ms"], rows["decode_tokens_per_s"]
    assert step["low"] < 0.8 < step["high"] and step["high"] - step["low"] < 0.05
    assert rate["ratio"] == pytest.approx(1.2, rel=0.02)
    assert {step["verdict"], rate["verdict"]} == {"b was better in this one process"}
    worse = compare(result(1), result(2, rate=40.0))["rows"]["decode_tokens_per_s"]
    assert worse["verdict"] == "b was worse in this one process"


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
    assert paired["low"] > 1 and unpaired["verdict"] == "no difference seen"


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


def several(seed, step_ms=10.0, processes=6, rounds=5, between=0.04, rows=1, machine=None):
    """A result of several processes, each of which is faster or slower as a whole; `machine` slows all sides alike."""
    generator = np.random.default_rng(seed)
    shared = np.ones(processes) if machine is None else np.asarray(machine)
    made = {}
    for number in range(rows):
        effect = shared * np.exp(between * generator.standard_normal(processes))
        values = step_ms * effect[:, None] * (1 + 0.01 * generator.standard_normal((processes, rounds)))
        made[f"row{number}_ms"] = make_row(Row("paper"), values.ravel().tolist(), [rounds] * processes)
    return {"card": {"bundle": "paper"}, "plan": {}, "measured": {}, "rows": made, "warnings": []}


def test_two_runs_of_the_same_in_several_processes_show_no_difference():
    found = [compare(several(seed), several(seed + 1000))["rows"]["row0_ms"] for seed in range(200)]
    covered = np.mean([row["low"] <= 1 <= row["high"] for row in found])
    assert 0.92 <= covered <= 0.98  # of 95 %, give or take the luck of two hundred
    assert {row["interval_of"] for row in found} == {"processes"}


def test_one_process_a_side_decides_nothing_and_says_so():
    """What made two runs of one bundle differ by a tenth: the interval of rounds misses what a start decides."""
    pairs = [
        (several(seed, processes=1, rounds=20), several(seed + 1000, processes=1, rounds=20)) for seed in range(60)
    ]
    found = [compare(a, b) for a, b in pairs]
    rows = [one["rows"]["row0_ms"] for one in found]
    assert sum(row["low"] <= 1 <= row["high"] for row in rows) < 30  # of 60, where 57 were promised
    assert {row["verdict"] for row in rows} <= {
        "no difference seen",
        "b was better in this one process",
        "b was worse in this one process",
    }
    assert all(any("nothing of what differs between two" in note for note in one["notes"]) for one in found)


def test_sides_that_took_turns_do_not_feel_a_machine_that_slowly_changes():
    machine = np.linspace(1.0, 1.3, 6)
    a, b = (several(seed, between=0.005, machine=machine) for seed in (1, 2))
    b["rows"]["row0_ms"] = several(2, step_ms=10.4, between=0.005, machine=machine)["rows"]["row0_ms"]
    turns, apart = compare(a, b, took_turns=True), compare(a, b)
    one, other = turns["rows"]["row0_ms"], apart["rows"]["row0_ms"]
    assert one["ratio"] == pytest.approx(one["b"] / one["a"])
    assert one["paired"] and one["verdict"] == "b is worse" and one["low"] < 1.04 < one["high"]
    assert not other["paired"] and other["verdict"] == "no difference seen"
    assert not turns["notes"] and "different times" in apart["notes"][0]


def test_a_process_without_samples_takes_its_pair_with_it():
    a, b = several(1, between=0.2), several(1, between=0.2, step_ms=11.0)
    row = b["rows"]["row0_ms"]
    del row["samples"][10:15]
    row["per_process"][2] = 0
    found = compare(a, b, took_turns=True)["rows"]["row0_ms"]
    assert found["processes"] == [5, 5] and found["ratio"] == pytest.approx(1.1)
    assert compare(a, b)["rows"]["row0_ms"]["processes"] == [6, 5]


def test_of_many_rows_one_that_sticks_out_by_chance_is_not_called_a_difference():
    """Twenty rows of the same: nearly two in three pairs of runs have a row whose own 95 % miss 1."""
    found = [compare(several(seed, rows=20), several(seed + 1000, rows=20), True)["rows"] for seed in range(30)]
    alarms = [[name for name, row in rows.items() if not row["low"] <= 1 <= row["high"]] for rows in found]
    called = [[name for name, row in rows.items() if row["verdict"].startswith("b is")] for rows in found]
    assert sum(map(bool, alarms)) > 10 and sum(map(bool, called)) <= 4  # 5 % of 30 are 1 or 2


def test_a_document_is_what_the_schema_says():
    for a, b in ((several(1), several(2)), (result(1), result(2)), (several(1), result(2) | several(2, processes=1))):
        valid(json.loads(json.dumps(compare(a, b))))
    with pytest.raises(fastjsonschema.JsonSchemaException):
        valid(json.loads(json.dumps(compare(several(1), several(2)) | {"schema_version": 1})))


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
