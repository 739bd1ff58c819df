"""Energy in a benchmark's result: a paper model that takes paper joules."""

from __future__ import annotations

import pytest

import edgemm
from edgemm.bench import bench
from edgemm.bench.bench import run_bench
from edgemm.bench.options import Plan
from edgemm.bench.page import render_page
from edgemm.device.child import Answer
from edgemm.energy.heat import Heat
from edgemm.energy.meter import Found, Meter
from edgemm.energy.sensor import Sensor
from tests.bench.paper_bundle import PaperModel, write_paper_bundle

REPLY_J, PICTURE_J = 32.0, 5.0


class HungryModel(PaperModel):
    joules = 0.0

    def stream_text(self, prompt, images=(), max_new_tokens=128, ignore_eos=False, prompt_lookup_num_tokens=None):
        self.joules += REPLY_J
        yield from super().stream_text(prompt, images, max_new_tokens, ignore_eos)

    def stream_image(self, prompt, num_inference_steps=None, seed=0):
        self.joules += PICTURE_J
        yield from super().stream_image(prompt, num_inference_steps, seed)


def bench_with(monkeypatch, path, found):
    model = HungryModel()
    monkeypatch.setattr(edgemm, "load", lambda path, device, threads: model)
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
    heat = Heat({"cpu-thermal 0": 61.0}, {}, {})
    monkeypatch.setattr(
        bench, "open_meter", lambda device, root: Meter(found(model), lambda: heat, idle_s=0.0, rate_hz=1e-3)
    )
    return run_bench(write_paper_bundle(path / "b"), Plan(repetitions=3, warmup=1))


def test_joules_a_token_and_an_image_reach_the_result_and_the_page(tmp_path, monkeypatch):
    result = bench_with(
        monkeypatch,
        tmp_path,
        lambda model: Found((Sensor("paper", "all of it", True, lambda: model.joules),), {"RAPL": "none"}),
    )
    per = result["energy"]["per"]
    assert per["token"]["gross_j"]["samples"] == pytest.approx(
        [REPLY_J / 64] * 3
    )  # 64 tokens a reply, warm-up left out
    assert per["image"]["gross_j"]["samples"] == pytest.approx([PICTURE_J] * 3)
    page = render_page(result)
    assert "energy   0.5 J a token gross" in page and "energy   5 J an image gross" in page
    assert "heat     cpu-thermal 0 reached 61 °C" in page


def test_without_a_sensor_the_result_is_null_and_the_page_says_why(tmp_path, monkeypatch):
    result = bench_with(monkeypatch, tmp_path, lambda model: Found((), {"RAPL": "permission denied"}))
    for figure in result["energy"]["per"].values():
        assert figure["gross_j"] is None and figure["above_idle_j"] is None
        assert figure["reason"] == "RAPL: permission denied"
    assert "energy   - J an image (RAPL: permission denied)" in render_page(result)
