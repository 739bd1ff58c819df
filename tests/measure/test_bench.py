"""What a benchmark makes of a model whose metrics are known beforehand."""

from __future__ import annotations

import argparse
import json

import pytest

import edgemm
from edgemm.errors import BundleError, UsageError
from edgemm.measure import bench, bench_verb
from edgemm.measure.bench import Plan, run_bench
from edgemm.measure.child import Answer
from tests.measure.paper_bundle import PaperModel, write_paper_bundle

FRESH = {
    "load_cold_ms": 900.0,
    "load_warm_ms": 300.0,
    "peak_memory_bytes": 4e8,
    "first_call_ms": {"text": 1200.0, "image": 50.0},
}


@pytest.fixture
def model(monkeypatch):
    made = PaperModel()
    monkeypatch.setattr(edgemm, "load", lambda path, device, threads: made)
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(FRESH))
    return made


def test_rows_hold_the_runtimes_own_figures(tmp_path, model):
    rows = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=3))["rows"]
    assert {name: row["p50"] for name, row in rows.items()} == pytest.approx(
        {
            "load_cold_ms": 900.0,
            "load_warm_ms": 300.0,
            "peak_memory_bytes": 4e8,
            "time_to_first_token_ms": 65.0,
            "prefill_tokens_per_s": 2000.0,  # 128 tokens in 64 ms
            "decode_tokens_per_s": 50.0,
            "time_per_output_token_ms": 20.0,
            "image_encode_ms": 3.0,
            "time_to_first_token_with_image_ms": 65.0,
            "draw_prefill_ms": 5.0,
            "conditioner_ms": 1.0,
            "denoise_step_ms": 2.0,
            "image_decode_ms": 4.0,
            "image_s": 0.03,
        }
    )


def test_warm_up_runs_do_not_count_and_every_other_sample_is_kept(tmp_path, model):
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=3, warmup=2, steps=4))
    assert len(model.drawn) == 5
    assert len(result["rows"]["image_s"]["samples"]) == result["rows"]["image_s"]["count"] == 3
    assert result["rows"]["load_cold_ms"]["count"] == 1
    assert result["measured"] == {"prompt_tokens": 128, "new_tokens": 64, "steps": 4}


def test_every_picture_has_its_own_seed(tmp_path, model):
    run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=3, seed=5))
    assert [drawing["seed"] for drawing in model.drawn] == [5, 6, 7, 8]


def test_steady_metrics_bring_no_warning(tmp_path, model):
    assert run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=9))["warnings"] == []


def test_a_reply_that_ends_early_is_told(tmp_path, model):
    model.reply_tokens = 7
    (warning,) = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=1))["warnings"]
    assert "7 of 64 tokens" in warning


def test_a_reply_of_one_token_has_no_decode_rate(tmp_path, model):
    model.reply_tokens = 1
    rows = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=1))["rows"]
    assert "decode_tokens_per_s" not in rows and "time_to_first_token_ms" in rows


def test_a_fresh_process_that_dies_leaves_a_warning_and_no_numbers(tmp_path, model, monkeypatch):
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "crashed with SIGKILL"))
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=1))
    assert "load_cold_ms" not in result["rows"] and result["first_call_ms"] is None
    assert result["warnings"] == ["fresh process crashed with SIGKILL"]


def test_a_bundle_that_cannot_draw_has_no_drawing_rows(tmp_path, model):
    rows = run_bench(write_paper_bundle(tmp_path / "b", draws=False), Plan(repetitions=1))["rows"]
    assert "image_encode_ms" in rows and not {"image_s", "denoise_step_ms"} & set(rows)
    assert model.drawn == []


@pytest.mark.parametrize("field", ["prompt_tokens", "new_tokens", "steps", "repetitions"])
def test_a_plan_that_measures_nothing_is_refused(field):
    with pytest.raises(UsageError, match=f"{field} is 0"):
        Plan(**{field: 0})


def test_a_missing_bundle_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        run_bench(tmp_path / "missing", Plan())


def run_verb(capsys, *words: str) -> list[str]:
    parser = argparse.ArgumentParser()
    bench_verb.add_arguments(parser)
    assert bench_verb.run(parser.parse_args(words)) == 0
    return capsys.readouterr().out.rstrip("\n").split("\n")


def test_the_page_is_a_card_a_table_and_one_json_line(tmp_path, model, capsys):
    path = str(write_paper_bundle(tmp_path / "b"))
    lines = run_verb(capsys, path, "-r", "2", "-p", "64", "-n", "16", "--steps", "4")
    assert lines[0] == "=== Performance summary ==="
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1  # columns stand under one another
    assert any(line.startswith("| peak_memory_bytes ") and "400 MB" in line for line in table)
    document = json.loads(lines[-1])
    assert document["plan"]["new_tokens"] == 16 and document["measured"]["prompt_tokens"] == 64
    assert document["rows"]["denoise_step_ms"]["p99"] is None
    assert len(document["card"]["bundle_sha256"]) == 64 and document["card"]["precision"]["denoiser"] == "fp32"


@pytest.mark.parametrize("flags", [["--json"], ["-o", "json"]])
def test_json_alone_is_one_line(tmp_path, model, capsys, flags):
    (line,) = run_verb(capsys, str(write_paper_bundle(tmp_path / "b")), "-r", "1", *flags)
    assert json.loads(line)["schema_version"] == 1
