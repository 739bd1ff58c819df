"""How many threads, and whether they spin, on machines described by a few files."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from edgemm.bundle.bundle import open_bundle
from edgemm.errors import UsageError
from edgemm.runtimes.backend import engine as threads
from edgemm.runtimes.backend import ort_backend as onnxruntime_backend


@pytest.fixture
def idle(monkeypatch, tmp_path):
    """Eight cores, all allowed, nobody else at work."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    return tmp_path


def test_alone_on_the_machine_every_core_may_spin(idle):
    plan = threads.plan_threads(root=idle)
    assert (plan.count, plan.spinning) == (8, True)


def test_fewer_allowed_cores_mean_fewer_threads_and_no_spinning(idle, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    plan = threads.plan_threads(root=idle)
    assert (plan.count, plan.spinning) == (2, False)
    assert "2 of 8 cores" in plan.why


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "250000 100000\n"},
        {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        {"system.slice/edgemm.service/cpu.max": "250000 100000\n"},  # a systemd unit with CPUQuota=
        {"system.slice/edgemm.service/cpu.max": "max 100000\n", "system.slice/cpu.max": "250000 100000\n"},
    ],
)
def test_a_containers_quota_counts_as_cores(idle, files):
    (idle / "proc/self").mkdir(parents=True, exist_ok=True)
    (idle / "proc/self/cgroup").write_text("0::/system.slice/edgemm.service\n")
    for name, content in files.items():
        path = idle / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    plan = threads.plan_threads(root=idle)
    assert (plan.count, plan.spinning) == (2, False)


def test_no_quota_is_no_limit(idle):
    (idle / "sys/fs/cgroup").mkdir(parents=True)
    (idle / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert threads.plan_threads(root=idle).count == 8


def test_other_work_stops_the_spinning(idle, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 1.0, 1.0))
    plan = threads.plan_threads(root=idle)
    assert (plan.count, plan.spinning) == (8, False)
    assert "75% busy" in plan.why


@pytest.mark.parametrize(("running", "spins"), [("1/200", True), ("5/200", False), ("?", False)])
def test_work_that_has_ended_does_not(idle, monkeypatch, running, spins):
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 1.0, 1.0))
    (idle / "proc").mkdir()
    (idle / "proc/loadavg").write_text(f"6.00 1.00 1.00 {running} 4711\n")
    assert threads.plan_threads(root=idle).spinning == spins


def test_more_threads_than_cores_do_not_spin(idle):
    plan = threads.plan_threads(12, root=idle)
    assert (plan.count, plan.spinning) == (12, False)


def test_no_threads_at_all_is_refused():
    with pytest.raises(UsageError, match="threads is 0, expected 1 to 1024"):
        threads.plan_threads(0)


@pytest.mark.parametrize("component", ["", "denoiser"])
def test_threads_that_spin_let_the_cores_go_once_an_engine_is_loaded(bundle_path, component):
    bundle = open_bundle(bundle_path, verify=False)
    graph = bundle.file(bundle.manifest.variant("denoiser", "cpu").graph)
    options = onnxruntime_backend.session_options(threads.ThreadPlan(2, True, ""), component)
    session = onnxruntime_backend.ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    began = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - began < 0.02, "of a core; ONNX Runtime's own threads would take 0.04"
    del session


def test_rows_of_a_small_denoiser_run_side_by_side_and_are_those_of_a_batch(bundle_path):
    """Bit for bit the same with one thread or two; a batch is as near as float32 is."""
    bundle = open_bundle(bundle_path, verify=False)
    variant = bundle.manifest.variant("denoiser", "cpu")
    data = bundle.file(variant.data) if variant.data else None
    files = threads.GraphFiles("denoiser", bundle.file(variant.graph), data, variant)
    random, found = np.random.default_rng(0), []
    sizes = [[2 if axis == "b" else 7 if isinstance(axis, str) else axis for axis in s.shape] for s in variant.inputs]
    inputs = {
        spec.name: (random.random(size) < 2 if spec.dtype == "bool" else random.standard_normal(size)).astype(
            spec.dtype
        )
        for spec, size in zip(variant.inputs, sizes, strict=True)
    }
    for count, by_row in ((1, True), (2, True), (1, False)):
        plan = threads.ThreadPlan(count, False, "")
        engine = onnxruntime_backend.open_engine(files, "CPUExecutionProvider", plan, threading.Lock())
        assert engine.by_row and (engine.open_row is not None) == (count == 2)
        engine.by_row = by_row
        prediction = np.zeros([2 if axis == "b" else axis for axis in variant.outputs[0].shape], np.float32)
        binding = engine.bind(inputs, {"prediction": prediction})
        binding.run()
        binding.run()  # by the same threads
        found.append(prediction)
    assert np.abs(found[0]).max() > 0
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
