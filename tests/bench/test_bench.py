"""What a benchmark makes of a model whose metrics are known beforehand."""

from __future__ import annotations

import argparse
import csv
import errno
import itertools
import json
import os
import sys

import pytest

import edgemm
from edgemm.bench import bench
from edgemm.bench.bench import run_bench
from edgemm.bench.conditions import ClockWatch, CpuTimes
from edgemm.bench.options import Plan
from edgemm.bench.rows import Round, measured_rows
from edgemm.bench.workload import Drawn
from edgemm.bundle.files import read_result
from edgemm.cli import bench as bench_verb
from edgemm.device.child import Answer
from edgemm.errors import BundleError, ResourceError, UsageError
from edgemm.runtimes.image_call import ImageMetrics
from tests.bench.paper_bundle import PaperModel, write_paper_bundle

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
    assert {name: row["p50"] for name, row in rows.items() if not name.startswith("inter_")} == pytest.approx(
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
    assert result["measured"] == {"prompt_tokens": 128, "new_tokens": 64, "steps": 4, "rounds": 3, "processes": 1}


def test_every_picture_has_its_own_seed(tmp_path, model):
    run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=3, warmup=1, seed=5))
    assert [drawing["seed"] for drawing in model.drawn] == [5, 6, 7, 8]


def test_steady_metrics_bring_no_warning(tmp_path, model, monkeypatch):
    """Whatever the machine of a test is busy with: its clocks and its other work are not looked at."""
    seconds = itertools.count()
    monkeypatch.setattr(bench, "ClockWatch", lambda: ClockWatch(*[lambda: float(next(seconds))] * 3))
    monkeypatch.setattr(bench, "read_cpu_times", lambda at: CpuTimes(at, busy=at, own=at))
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=9))
    assert result["warnings"] == [] and result["other_work"] == {"cores": 0.0, "reason": None}


def test_a_reply_that_would_end_early_is_written_to_its_end(tmp_path, model):
    model.reply_tokens = 1
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=2))
    assert result["measured"]["new_tokens"] == 64 and result["rows"]["decode_tokens_per_s"]["p50"] == 50.0


def test_every_gap_between_tokens_and_steps_is_a_sample(tmp_path, model):
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=2, new_tokens=60, steps=4))
    rows = result["rows"]
    assert (rows["inter_token_ms"]["count"], rows["inter_step_ms"]["count"]) == (2 * 59, 2 * 3)
    assert rows["inter_token_ms"]["p99"] is not None and rows["inter_step_ms"]["p99"] is None
    assert [context for context, _ in result["growth"]["token_ms"]] == list(range(129, 129 + 59))


def test_parts_are_shares_of_a_reply_and_of_a_picture(tmp_path, model):
    parts = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=2, new_tokens=11, steps=10))["parts"]
    reply, image = ({part["part"]: part["ms"] for part in parts[whole]} for whole in ("reply", "image"))
    assert reply == {"prefill": 64, "decode": 200, "rest": 1}
    assert image == {"prefill": 5, "conditioner": 1, "denoiser": 20, "image_decoder": 4}
    assert sum(part["share"] for part in parts["image"]) == pytest.approx(1, abs=1e-3)


def test_keys_and_values_are_counted_by_the_manifest(tmp_path, model):
    memory = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=1, new_tokens=32))["memory"]
    assert memory["kv_bytes_a_token"] == 2 * 2 * 4 * 4  # keys and values, two heads, four wide, float32
    assert memory["kv_bytes"] == (128 + 32) * memory["kv_bytes_a_token"]
    assert memory["device_bytes"] is None and memory["device_reason"] == "it runs on the CPU"
    assert memory["resident"]["bytes"] and all(size > 0 for size in memory["resident"]["bytes"])


def test_runs_are_added_until_the_duration_is_reached(tmp_path, model, monkeypatch):
    seconds = iter(range(10_000))
    monkeypatch.setattr(bench, "ClockWatch", lambda: ClockWatch(*[lambda: float(next(seconds))] * 3))
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=2, warmup=1, duration_s=60))
    assert 2 < result["measured"]["rounds"] < 60


def test_a_model_that_draws_token_by_token_has_tokens_and_no_steps():
    metrics = ImageMetrics(20, 5.0, 0.0, 64, 2.0, 4.0, 0.0, 137.0)
    watch = ClockWatch()
    rows = measured_rows([Round(picture=Drawn(metrics, 0.0, 0.137, (2.0,) * 63))] * 2, watch)
    assert rows["image_token_ms"] == [2.0, 2.0] and not {"conditioner_ms", "denoise_step_ms"} & set(rows)
    assert watch.problems() == []


def test_a_full_cache_ends_a_reply_and_is_told(tmp_path, model):
    model.cache_tokens = 7
    warnings = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=1))["warnings"]
    assert any("7 of 64 tokens" in warning for warning in warnings)


def test_a_fresh_process_that_dies_leaves_a_warning_and_no_numbers(tmp_path, model, monkeypatch):
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "crashed with SIGKILL"))
    result = run_bench(write_paper_bundle(tmp_path / "b"), Plan(repetitions=1))
    assert "load_cold_ms" not in result["rows"] and result["first_call_ms"] is None
    assert "fresh process crashed with SIGKILL" in result["warnings"]


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
    lines = run_verb(capsys, path, "-r", "2", "--duration", "0", "-p", "64", "-n", "16", "--steps", "4")
    assert lines[0] == "=== Performance summary ==="
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1  # columns stand under one another
    assert any(line.startswith("| peak_memory_bytes ") and "400 MB" in line for line in table)
    document = json.loads(lines[-1])
    assert document["plan"]["new_tokens"] == 16 and document["measured"]["prompt_tokens"] == 64
    assert document["rows"]["denoise_step_ms"]["p99"] is None
    assert len(document["card"]["bundle_sha256"]) == 64 and document["card"]["precision"]["denoiser"] == "fp32"


def test_a_person_at_a_terminal_gets_the_table_in_100_columns_and_no_json_line(tmp_path, model, capsys, monkeypatch):
    words = [str(write_paper_bundle(tmp_path / "b")), "-r", "2", "--duration", "0"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = run_verb(capsys, *words)
    assert lines[-1] == "The JSON document: --result FILE keeps it, -o json prints it."
    assert not any(line.startswith("{") for line in lines)
    explained = lines[lines.index(next(line for line in lines if line.startswith("| "))) :]
    assert max(len(line) for line in explained[: explained.index("", explained.index("") + 1)]) <= 100
    assert any(line.startswith("| time_to_first_token_ms (TTFT) ") for line in lines)
    assert any(line.startswith("time_per_output_token_ms (TPOT) ") for line in lines)
    kept = tmp_path / "kept.json"
    assert not any(line.startswith(("{", "The JSON")) for line in run_verb(capsys, *words, "--result", str(kept)))
    assert json.loads(kept.read_text())["measured"]["rounds"] == 2
    assert json.loads(run_verb(capsys, *words, "-o", "json")[-1])["measured"]["rounds"] == 2


@pytest.mark.parametrize("flags", [["--json"], ["-o", "json"]])
def test_json_alone_is_one_line(tmp_path, model, capsys, flags):
    (line,) = run_verb(capsys, str(write_paper_bundle(tmp_path / "b")), "-r", "1", "--duration", "0", *flags)
    assert json.loads(line)["schema_version"] == 2


def test_every_row_is_a_line_of_jsonl_and_of_csv(tmp_path, model, capsys):
    path = str(write_paper_bundle(tmp_path / "b"))
    words = (path, "-r", "2", "--duration", "0", "-o")
    lines = [json.loads(line) for line in run_verb(capsys, *words, "jsonl")]
    table = list(csv.DictReader(run_verb(capsys, *words, "csv")))
    assert [line["row"] for line in lines] == [line["row"] for line in table]
    (step,) = (line for line in table if line["row"] == "denoise_step_ms")
    assert (step["p50"], step["p99"], step["count"]) == ("2.0", "", "2")


def test_a_result_file_is_the_document_and_is_read_again(tmp_path, model, capsys):
    path = str(write_paper_bundle(tmp_path / "b"))
    lines = run_verb(capsys, path, "-r", "2", "--duration", "0", "--result", str(tmp_path / "kept.json"))
    assert read_result(tmp_path / "kept.json") == json.loads(lines[-1])


def test_a_full_disk_is_told_and_the_result_is_printed_all_the_same(tmp_path, model, capsys, monkeypatch):
    path = str(write_paper_bundle(tmp_path / "b"))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    parser = argparse.ArgumentParser()
    bench_verb.add_arguments(parser)
    words = [path, "-r", "1", "--duration", "0", "--json", "--result", str(tmp_path / "kept.json")]
    with pytest.raises(ResourceError, match="the disk is full"):
        bench_verb.run(parser.parse_args(words))
    assert json.loads(capsys.readouterr().out)["measured"]["rounds"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b"]
