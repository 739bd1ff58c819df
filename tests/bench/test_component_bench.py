"""A component alone and by operator, and many requests at once: on a tiny bundle that really runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgemm.bench.components import bench_component, by_operator, render_operators
from edgemm.bench.options import Plan
from edgemm.bench.scenarios import arrivals, run_scenario
from edgemm.cli.main import main
from edgemm.errors import InputError
from tests.runtimes.tiny_bundle import build

PLAN = Plan(prompt_tokens=60, new_tokens=4, steps=2, repetitions=3, warmup=1, device="cpu", threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return build(tmp_path_factory.mktemp("component") / "tiny.bundle")


@pytest.fixture(scope="module")
def denoiser(bundle):
    return bench_component(bundle, "denoiser", PLAN, by_operators=True)


def test_every_shape_that_real_work_binds_is_a_row(denoiser):
    rows = denoiser[0]["rows"]
    assert any("b=2" in name for name in rows) and all(row["count"] == 3 for row in rows.values())
    assert all(sample > 0 for row in rows.values() for sample in row["samples"])


def test_a_component_is_measured_on_the_machine_that_root_tells_of(bundle, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor : 0\nmodel name : Abacus 9\n")
    plan = dataclasses.replace(PLAN, root=str(tmp_path))
    assert bench_component(bundle, "image_decoder", plan)[0]["card"]["cpu"] == "Abacus 9"


def test_the_transformer_is_told_for_a_prompt_and_for_a_token(bundle):
    rows = bench_component(bundle, "transformer", PLAN)[0]["rows"]
    assert sorted(" s=1 " in f"{name} " for name in rows) == [False, True]


def test_operators_are_those_of_the_graph_as_often_as_they_stand_there(bundle, denoiser):
    onnx = pytest.importorskip("onnx")
    from edgemm.bundle.bundle import open_bundle

    opened = open_bundle(bundle)
    graph = onnx.load(str(opened.file(opened.manifest.variant("denoiser", "cpu").graph)), load_external_data=False)
    matmuls = sum(node.op_type in ("MatMul", "Gemm", "FusedMatMul") for node in graph.graph.node)
    for table in denoiser[0]["operators"].values():
        head, rows = table[0], {row["name"]: row for row in table[1:]}
        assert head["count"] == 10
        products = sum(row["calls"] for name, row in rows.items() if "MatMul" in name or name == "Gemm")
        assert 0 < products <= matmuls
        assert sum(row["percentage"] for row in rows.values()) == pytest.approx(100, abs=0.1)


def test_the_profiles_events_are_a_chrome_trace(denoiser):
    events = denoiser[1]
    assert {"name", "ph", "ts", "dur", "pid", "tid"} <= events[-1].keys()


def event(name, ts, dur, cat="Node", op=None):
    return {"name": name, "cat": cat, "ts": ts, "dur": dur, "args": {"op_name": op} if op else {}}


def test_operators_add_up_over_runs_without_the_first_two():
    events = []
    for run in range(4):
        at = run * 1000
        events.append(event("model_run", at, 900, "Session"))
        events.append(event("a_kernel_time", at + 10, 5000 if run < 2 else 300, op="MatMul"))
        events.append(event("b_kernel_time", at + 400, 100, op="Add"))
        events.append(event("b_fence_before", at + 390, 7, op="Add"))
    head, matmul, add = by_operator(events)
    assert head == {"count": 2}
    assert (matmul["name"], matmul["averageMs"], matmul["percentage"], matmul["calls"]) == ("MatMul", 0.3, 75.0, 1)
    assert (add["medianMs"], add["timeMs"]) == (0.1, 0.2)
    assert "MatMul" in render_operators([head, matmul, add], "denoiser")


def test_an_unknown_component_is_refused_with_the_list(bundle):
    with pytest.raises(InputError, match=r"it has: .*denoiser"):
        bench_component(bundle, "encoder", PLAN)


def test_the_verb_prints_operators_and_keeps_a_trace(bundle, tmp_path, capsys):
    words = ["bench", str(bundle), "--component", "image_decoder", "--profile", "-r", "2", "--duration", "0"]
    assert main([*words, "--trace", str(tmp_path / "trace.json")]) == 0
    page = capsys.readouterr().out
    assert "by operator, 10 profiled runs" in page and json.loads(page.rstrip().rpartition("\n")[2])["operators"]
    assert any(event["name"] == "model_run" for event in json.loads((tmp_path / "trace.json").read_text()))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give a BUNDLE"),
        (["b", "--profile"], "--profile needs --component"),
        (["b", "--scenario", "offline", "--trace", "t"], "leave --scenario and --loadgen out"),
        (["b", "--loadgen", "--report", "r.html"], "leave the other kinds of measurement out"),
        (["b", "--loadgen", "--component", "denoiser"], "leave one out"),
        (["b", "--loadgen", "--scenario", "offline"], "--scenario offline is a kind of measurement of its own"),
        (["b", "--component", "denoiser", "--scenario", "server"], "--scenario server is a kind of measurement of its"),
        (["b", "--rate", "5"], "--rate says how fast requests come: give --scenario server"),
        (["b", "--scenario", "offline", "--rate", "5"], "give --scenario server"),
        (["b", "--loadgen-logs", "logs"], "give --loadgen, too"),
        (["b", "--compare", "a.json", "b.json"], "measures nothing: leave the rest out"),
        (["--compare", "a.json", "b.json", "--scenario", "offline"], "measures nothing: leave the rest out"),
        (["--compare", "a.json", "b.json", "-o", "csv"], "--compare gives a comparison"),
        (["--compare", "a.json", "b.json", "--report", "r.html"], "--compare gives a comparison"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(words, told, capsys):
    assert main(["bench", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_many_requests_are_all_answered(bundle, scenario):
    found = run_scenario(bundle, scenario, PLAN, rate_per_s=200.0)
    rows = found["rows"]
    assert rows["reply_latency_ms"]["count"] == rows["image_latency_ms"]["count"] == 3
    assert rows["new_tokens_per_s"]["p50"] == pytest.approx(4 * rows["replies_per_s"]["p50"], rel=1e-4)
    if scenario == "offline":  # all were due at once, so the last one waited for the others
        latencies = sorted(rows["reply_latency_ms"]["samples"])
        assert latencies[-1] == pytest.approx(3 / rows["replies_per_s"]["p50"] * 1e3, rel=0.01)
    else:
        assert found["plan"]["rate_per_s"] == {"reply": 200.0, "image": 200.0}


def test_requests_arrive_at_the_rate_that_was_asked_for():
    at = arrivals(4000, 20.0, seed=1)
    gaps = np.diff(at)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05) and gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_a_timeline_holds_works_and_the_engines_inside_them(bundle, tmp_path, capsys):
    words = ["bench", str(bundle), "-r", "1", "--warmup", "0", "--duration", "0", "-p", "60", "-n", "3", "--steps", "2"]
    assert main([*words, "--device", "cpu", "--trace", str(tmp_path / "trace.json"), "--json"]) == 0
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    works = {event["name"]: event for event in events if event["cat"] == "work"}
    assert set(works) == {"reply", "read a picture", "draw"}
    draw = works["draw"]
    inside = [e for e in events if e["name"] == "denoiser" and draw["ts"] <= e["ts"] <= draw["ts"] + draw["dur"]]
    assert len(inside) == 2
