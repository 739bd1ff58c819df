"""Bench and doctor on a tiny bundle that really runs: nothing is made up, and no time is asserted."""

from __future__ import annotations

import pytest
from packaging.version import Version

import edgemm
from edgemm.bench import bench
from edgemm.bench.bench import run_bench
from edgemm.bench.options import Plan
from edgemm.device.child import Answer
from edgemm.device.doctor import examine

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

pytestmark = pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.24"), reason="older ONNX Runtime reads no opset 24 (Python 3.10)"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from tests.runtimes.tiny_bundle import build

    return build(tmp_path_factory.mktemp("bench") / "tiny.bundle")


@pytest.fixture(scope="module")
def result(bundle):
    return run_bench(
        bundle, Plan(prompt_tokens=100, new_tokens=4, steps=3, repetitions=2, warmup=1, device="cpu", threads=1)
    )


def test_every_row_is_measured(result):
    from edgemm.bench.rows import ROWS

    rows = result["rows"]
    assert set(rows) == set(ROWS) - {"image_token_ms"}  # it draws by denoising
    assert all(sample > 0 for row in rows.values() for sample in row["samples"])
    assert {rows[name]["count"] for name in ("image_s", "time_to_first_token_ms", "image_encode_ms")} == {2}


def test_the_work_is_what_was_asked_for(result):
    assert abs(result["measured"]["prompt_tokens"] - 100) < len(" the")  # its tokenizer has a token a byte
    assert result["measured"]["steps"] == 3
    assert result["card"]["device"] == "cpu" and result["card"]["threads"] == 1


def test_the_parts_of_a_picture_are_no_more_than_the_whole(result):
    rows = result["rows"]
    for index, whole in enumerate(rows["image_s"]["samples"]):
        part = {name: rows[name]["samples"][index] for name in ("draw_prefill_ms", "conditioner_ms", "denoise_step_ms")}
        assert part["draw_prefill_ms"] + part["conditioner_ms"] + 3 * part["denoise_step_ms"] <= whole * 1e3 * 1.001


def test_rows_are_what_the_api_itself_told_of_those_very_calls(bundle, monkeypatch):
    """Every generate call's result.metrics, beside the samples that the benchmark made of the same calls."""
    replies, pictures = [], []

    def keeping(work, kept):
        def done(*args):
            kept.append(work(*args))
            return kept[-1]

        return done

    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
    monkeypatch.setattr(bench, "write_reply", keeping(bench.write_reply, replies))
    monkeypatch.setattr(bench, "draw", keeping(bench.draw, pictures))
    plan = Plan(prompt_tokens=100, new_tokens=4, steps=3, repetitions=3, warmup=0, device="cpu", threads=1)
    rows = run_bench(bundle, plan)["rows"]
    told = {
        "time_to_first_token_ms": [r.metrics.time_to_first_token_ms for r in replies],
        "decode_tokens_per_s": [r.metrics.decode_tokens_per_s for r in replies],
        "denoise_step_ms": [p.metrics.step_ms for p in pictures],
        "image_decode_ms": [p.metrics.decode_ms for p in pictures],
        "image_s": [p.metrics.total_ms / 1e3 for p in pictures],
    }
    for name, values in told.items():
        assert rows[name]["samples"] == pytest.approx(values, rel=1e-5), name
    for done in (*replies, *pictures):  # and no call claims more time than passed around it
        assert 0 < done.metrics.total_ms <= (done.end_s - done.start_s) * 1e3


def test_the_metrics_of_generate_are_those_of_its_stream(bundle):
    with edgemm.load(bundle, device="cpu", threads=1) as model:
        reply = model.generate_text("hello", max_new_tokens=3, ignore_eos=True).metrics
        *_, last = model.stream_text("hello", max_new_tokens=3, ignore_eos=True)
        picture = model.generate_image("a heart", num_inference_steps=2, seed=1).metrics
        *_, drawn = model.stream_image("a heart", num_inference_steps=2, seed=1)
    same = ("prompt_tokens", "new_tokens")
    assert [getattr(reply, name) for name in same] == [getattr(last.result.metrics, name) for name in same]
    assert (picture.prompt_tokens, picture.steps) == (drawn.metrics.prompt_tokens, drawn.metrics.steps)


def test_memory_is_that_of_a_process_with_a_runtime_in_it(result):
    peak, released, closed = (result["rows"][f"{when}_memory_bytes"]["p50"] for when in ("peak", "released", "closed"))
    assert min(closed, released) > 20e6 and max(closed, released) <= peak < 2e9


def test_a_fresh_process_tells_its_first_calls(result):
    assert set(result["first_call_ms"]) == {"text", "image"}


def test_the_doctor_lets_it_run(bundle):
    fit = examine(bundle).bundle
    assert fit and fit.runs == ("cpu",) and not fit.problem
