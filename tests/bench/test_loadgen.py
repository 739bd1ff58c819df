"""MLPerf's LoadGen on a tiny bundle for seconds: LoadGen's own words are what is judged."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgemm.bench import loadgen
from edgemm.bench.loadgen import LABEL, parse_summary, run_loadgen
from edgemm.bench.options import Plan
from edgemm.bench.page import render_page
from edgemm.cli.main import main
from edgemm.errors import EdgemmError, MissingError
from tests.runtimes.tiny_bundle import build

pytest.importorskip("mlperf_loadgen")
PLAN = Plan(prompt_tokens=40, new_tokens=3, steps=1, repetitions=1, warmup=1, duration_s=0.05, device="cpu", threads=1)
INVALID = """Scenario : SingleStream
90.0th percentile latency (ns) : 2000000
Result is : INVALID
  Min duration satisfied : NO
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Decrease the expected latency so the loadgen pre-generates more queries.
Early Stopping Result:
 * Only processed 5 queries.

================================================
Test Parameters Used
================================================
target_qps : 28.114
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return build(tmp_path_factory.mktemp("loadgen") / "tiny.bundle")


def test_a_summary_is_its_verdict_its_advice_and_its_figures():
    found = parse_summary(INVALID)
    assert found["valid"] is False
    assert found["why"] == "Decrease the expected latency so the loadgen pre-generates more queries."
    assert found["figures"] == {"90.0th percentile latency (ns)": 2e6}


def test_without_the_package_the_cure_is_told(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingError, match=r"pip install 'edgemm\[loadgen\]'"):
        run_loadgen(bundle, PLAN)


class TestRealLoadGen:
    @pytest.fixture(scope="class")
    def logs(self, tmp_path_factory):
        return tmp_path_factory.mktemp("logs")

    @pytest.fixture(scope="class")
    def result(self, bundle, logs):
        return run_loadgen(bundle, PLAN, logs)

    def test_every_single_stream_run_is_valid(self, result):
        runs = result["loadgen"]["runs"]
        assert {name: run["valid"] for name, run in runs.items() if run["scenario"] == "SingleStream"} == {
            "reply-single-stream": True,
            "reply-tokens": True,
            "image-single-stream": True,
        }

    def test_what_loadgen_saw_is_what_the_runtime_was_asked(self, result, logs):
        for name, run in result["loadgen"]["runs"].items():
            assert result["rows"][f"{name} query_ms"]["count"] >= (64 if run["scenario"] == "SingleStream" else 1)
            mean_ms = run["figures"]["Mean latency (ns)"] / 1e6
            if run["scenario"] == "SingleStream":  # LoadGen's clock holds its own overhead too
                assert result["rows"][f"{name} query_ms"]["mean"] <= mean_ms
            assert (logs / name / "mlperf_log_detail.txt").is_file()

    def test_token_latencies_are_loadgens_own(self, result):
        figures = result["loadgen"]["runs"]["reply-tokens"]["figures"]
        first, whole = (figures[f"90.00 percentile {name} (ns)"] for name in ("first token latency", "latency"))
        assert 0 < first <= whole and figures["TPS w/o loadgen overhead"] > 0

    def test_the_page_says_that_it_is_no_submission(self, result):
        page = render_page(result)
        assert LABEL in page and re.search(r"loadgen  reply-single-stream: VALID(?: at try [23])?; ms at p90", page)
        json.dumps(result, allow_nan=False)

    @pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
    def test_who_was_slow_to_warm_up_is_asked_again_at_the_speed_that_it_showed(self, scenario, bundle, monkeypatch):
        """A system that answers in 10 ms and had said 100 ms: too few queries are prepared for it.

        Our clock says 10 ms whatever else the machine does.  By LoadGen's the queries of the first run are over at
        once, and each later one takes 10 ms or more, so that what is prepared for that speed lasts.
        """
        clock, one_test, tries = SimpleNamespace(now=0.0), loadgen._one_test, []

        def answer(index, first_token):
            clock.now += 0.01
            if len(tries) > 1:
                time.sleep(0.01)
            return 1

        def counted(*arguments):
            tries.append(arguments)
            return one_test(*arguments)

        monkeypatch.setattr(loadgen, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        monkeypatch.setattr(loadgen, "_one_test", counted)
        monkeypatch.setattr(loadgen, "_warm_up", lambda answer, count: 0.1)
        monkeypatch.setattr(loadgen, "_tests", lambda model, plan: {"image": loadgen._Test(answer, scenario)})
        run = run_loadgen(bundle, replace(PLAN, duration_s=1.0))["loadgen"]["runs"]["image"]
        assert (run["valid"], run["tries"], len(tries)) == (True, 2, 2), run["why"]

    def test_what_stays_invalid_is_told_and_not_asked_for_ever(self, bundle, monkeypatch):
        """One picture is prepared for ten minutes."""
        monkeypatch.setattr(loadgen, "MARGIN", 1e-6)
        result = run_loadgen(bundle, replace(PLAN, duration_s=600.0))
        run = result["loadgen"]["runs"]["image-offline"]
        assert (run["valid"], run["tries"]) == (False, loadgen.TRIES)
        assert any("LoadGen calls image-offline INVALID" in line for line in result["warnings"])

    def test_an_error_in_an_answer_ends_the_run_with_that_error(self, bundle, monkeypatch):
        def broken(*arguments):
            raise EdgemmError("denoiser, step 1: NaN or infinity")

        monkeypatch.setattr(loadgen, "_reply", broken)
        monkeypatch.setattr(loadgen, "_warm_up", lambda answer, count: 0.01)
        with pytest.raises(EdgemmError, match="NaN or infinity"):
            run_loadgen(bundle, PLAN)

    def test_the_verb_keeps_loadgens_logs(self, bundle, tmp_path, capsys):
        words = ["bench", str(bundle), "--loadgen", "--loadgen-logs", str(tmp_path / "logs"), "--device", "cpu"]
        assert main([*words, "-r", "1", "--duration", "0.05", "-p", "40", "-n", "2", "--steps", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["loadgen"]["label"] == LABEL
        assert (tmp_path / "logs/image-offline/mlperf_log_summary.txt").is_file()
