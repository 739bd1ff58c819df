"""Engines with a clock on them, on a tiny bundle that really runs."""

from __future__ import annotations

import numpy as np
import pytest

import edgemm
from edgemm.bench.pooled import host_warning
from edgemm.bench.timeline import EngineClock
from tests.runtimes.tiny_bundle import build


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with edgemm.load(build(tmp_path_factory.mktemp("clock") / "tiny.bundle"), device="cpu", threads=1) as opened:
        yield opened


def test_every_run_of_an_engine_is_seen_and_the_answer_is_the_same(model):
    before = model.generate_text("hello", max_new_tokens=5, ignore_eos=True).token_ids
    clock = EngineClock()
    model._engines.watch(clock.watch)
    assert model.generate_text("hello", max_new_tokens=5, ignore_eos=True).token_ids == before
    assert [run.component for run in clock.runs] == ["transformer"] * 5
    assert [" s=1 " in f"{run.shape} " for run in clock.runs] == [False, True, True, True, True]
    first, last = clock.runs[0], clock.runs[-1]
    assert 0 < clock.spent_s(first.start_s, last.end_s) <= last.end_s - first.start_s
    assert clock.spent_s(first.start_s, first.end_s) == pytest.approx(first.end_s - first.start_s)


def test_what_a_loop_bound_runs_again_alone_and_gives_the_same(model):
    clock = EngineClock()
    model._engines.watch(clock.watch)
    model.generate_image("a red heart", num_inference_steps=2, seed=1)
    ((_, denoiser),) = [item for item in clock.bound.items() if item[0][0] == "denoiser" and "b=2" in item[0][1]]
    prediction = denoiser.outputs["prediction"]
    before = prediction.copy()
    prediction[:] = 0
    denoiser.run()
    np.testing.assert_array_equal(prediction, before)


def test_time_outside_of_the_engines_is_told_above_a_limit():
    assert host_warning("reply", [0.1, 0.15, 0.19]) == [] and host_warning("reply", []) == []
    (warning,) = host_warning("reply", [0.5, 0.4, 0.1])
    assert warning.startswith("host-bound: 40% of a reply")
