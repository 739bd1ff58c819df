"""Several processes as one result: what is kept of each, who goes first, and what a child's refusal becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgemm
from edgemm.bench import bench, comparison
from edgemm.bench.bench import measure_once, run_in_turns, run_processes
from edgemm.bench.options import Plan
from edgemm.bench.page import render_page
from edgemm.bench.pooled import pool
from edgemm.bench.report import render_report
from edgemm.cli.main import main
from edgemm.device.child import Answer
from edgemm.errors import BundleError, EdgemmError, MissingError
from tests.bench.paper_bundle import PaperModel, write_paper_bundle
from tests.runtimes.tiny_bundle import build

fastjsonschema = pytest.importorskip("fastjsonschema")
HOME = Path(bench.__file__).parent
valid = fastjsonschema.compile(json.loads((HOME / "bench.schema.json").read_text()))
valid_comparison = fastjsonschema.compile(json.loads((HOME / "comparison.schema.json").read_text()))


@pytest.fixture
def paper(tmp_path, monkeypatch):
    monkeypatch.setattr(edgemm, "load", lambda path, device, threads: PaperModel())
    fresh = {"load_cold_ms": 900.0, "first_call_ms": {"text": 5.0}}
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(fresh))
    return write_paper_bundle(tmp_path / "b")


def in_this_process(monkeypatch, told):
    """Children that answer here, in the words that a pipe would carry; `told` collects who was asked."""

    def ask(module, arguments, timeout_s):
        assert module == "edgemm.bench.bench"
        request = json.loads(arguments[0])
        told.append(Path(request["bundle"]).name)
        return Answer(json.loads(json.dumps(bench._answer(request))))

    monkeypatch.setattr(bench, "ask", ask)


def test_every_sample_keeps_its_process(paper, monkeypatch):
    in_this_process(monkeypatch, [])
    result = run_processes(paper, Plan(repetitions=3, processes=2))
    valid(result)
    assert result["rows"]["image_s"]["per_process"] == [3, 3]
    assert result["rows"]["load_cold_ms"]["per_process"] == [1, 1]
    assert result["measured"]["rounds"] == 6 and result["measured"]["processes"] == 2
    assert result["plan"]["processes"] == 2 and result["first_call_ms"] == {"text": 5.0}
    assert result["rows"]["image_s"]["p50_interval"] == [0.03, 0.03]
    page = render_page(result)
    assert "6 rounds, 2 processes" in page and "0.03 (0.03 to 0.03)" in page
    assert render_report(result)


def test_one_process_has_no_interval_and_is_one(paper):
    result = bench.run_bench(paper, Plan(repetitions=3))
    assert {row["p50_interval"] for row in result["rows"].values()} == {None}
    assert "1 process;" in render_page(result)


def test_the_worst_process_is_told_and_the_problem_of_one_is_its_own(paper):
    seen = [measure_once(paper, Plan(repetitions=2)) for _ in range(3)]
    for one, cores in zip(seen, (0.01, 0.9, None)):
        one["other_cores"] = cores
    for one in seen:
        one["problems"] = ["fresh process was left out"]
    seen[1]["problems"].append("clock: the machine slept for 5.0 s in the middle of the measurement")
    seen[2]["outside"] = {"reply": [0.9] * 9, "picture": []}
    warnings = pool(seen, Plan(repetitions=2, processes=3))["warnings"]
    assert any("other work kept 0.90" in line for line in warnings)
    assert "fresh process was left out" in warnings
    assert "process 2: clock: the machine slept for 5.0 s in the middle of the measurement" in warnings
    assert any("host-bound: 90% of a reply" in line for line in warnings)


def test_energy_of_processes_is_joined(paper):
    seen = [measure_once(paper, Plan(repetitions=1)) for _ in range(2)]
    for one, joules in zip(seen, (3.0, 5.0)):
        figure = {"p50": joules, "samples": [joules]}
        one["energy"]["per"]["image"] = {"timed": "t", "gross_j": figure, "above_idle_j": None, "reason": None}
        one["energy"] |= {"idle_w": joules, "problems": [f"{joules}"]}
        one["energy"]["heat"] = {"zones": {"cpu 0": {"first_c": 40.0, "highest_c": 10 * joules}}, "throttled": []}
    seen[1]["energy"]["heat"]["throttled"] = ["core temperature counted 6 throttling events"]
    energy = pool(seen, Plan(processes=2))["energy"]
    assert energy["per"]["image"]["gross_j"]["samples"] == [3, 5] and energy["idle_w"] == 4
    assert energy["heat"]["zones"]["cpu 0"] == {"first_c": 40.0, "highest_c": 50.0}
    assert energy["heat"]["throttled"] == ["core temperature counted 6 throttling events"]
    assert energy["problems"] == ["3.0", "5.0"] and energy["per"]["token"]["gross_j"] is None


def test_two_bundles_take_turns_and_who_goes_first_alternates(paper, tmp_path, monkeypatch):
    told = []
    in_this_process(monkeypatch, told)
    other = write_paper_bundle(tmp_path / "c")
    a, b = run_in_turns(paper, other, Plan(repetitions=2, processes=3))
    assert told == ["b", "c", "c", "b", "b", "c"]
    found = comparison.compare(a, b, took_turns=True)
    assert found["rows"]["image_s"]["processes"] == [3, 3] and found["rows"]["image_s"]["paired"]


def test_a_child_that_refuses_raises_what_it_raised(paper, monkeypatch):
    in_this_process(monkeypatch, [])

    def load(path, device, threads):
        raise MissingError("no card here: pip install luck")

    monkeypatch.setattr(edgemm, "load", load)
    with pytest.raises(MissingError, match="pip install luck"):
        run_processes(paper, Plan(processes=2))


def test_a_child_that_dies_is_told_with_its_number(paper, monkeypatch):
    monkeypatch.setattr(bench, "ask", lambda *args: Answer(None, "crashed with SIGKILL"))
    with pytest.raises(EdgemmError, match="process 1 of 2 crashed with SIGKILL"):
        run_processes(paper, Plan(processes=2))


def test_a_missing_bundle_is_refused_before_a_child_starts(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ask", None)
    with pytest.raises(BundleError, match="does not exist"):
        run_in_turns(paper, tmp_path / "missing", Plan(processes=2))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--processes", "2", "--loadgen"], "--processes and --against"),
        (["--processes", "2", "--trace", "t.json"], "without --trace"),
        (["--against", "c", "--component", "denoiser"], "--processes and --against"),
        (["--against", "c", "-o", "csv"], "-o md or -o json"),
        (["--processes", "0"], "processes is 0"),
        (["--result", "./a", "--report", "a"], "a is named twice, and would hold one of the two"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(paper, capsys, flags, told):
    assert main(["bench", str(paper), *flags]) == 2
    assert told in capsys.readouterr().err


def test_a_real_child_measures_a_real_bundle(tmp_path):
    plan = Plan(60, 3, 1, repetitions=2, warmup=0, device="cpu", threads=1)
    result = run_processes(build(tmp_path / "tiny.bundle"), plan)
    valid(json.loads(json.dumps(result)))
    assert result["rows"]["image_s"]["per_process"] == [2] and result["measured"]["steps"] == 1


@pytest.mark.slow
def test_real_children_measure_a_bundle_against_itself(tmp_path, capsys):
    path = str(build(tmp_path / "tiny.bundle"))
    words = ["--processes", "2", "-r", "2", "--warmup", "0", "-p", "60", "-n", "3", "--steps", "1", "--device", "cpu"]
    kept = tmp_path / "kept.json"
    assert main(["bench", path, "--against", path, *words, "--threads", "1", "--result", str(kept)]) == 0
    page = capsys.readouterr().out
    document = json.loads(page.rstrip().rpartition("\n")[2])
    assert json.loads(kept.read_text()) == document and page.startswith("=== Comparison")
    valid_comparison(document)
    valid(document["results"]["a"])
    assert document["rows"]["load_cold_ms"]["low"] is not None and not document["notes"]
    assert document["results"]["b"]["rows"]["image_s"]["per_process"] == [2, 2]
