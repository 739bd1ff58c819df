"""Faults put into a measurement: each has to be told in its result, and none may be hidden in a number."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time

import pytest

import edgemm
from edgemm.bench import bench
from edgemm.bench.bench import run_bench
from edgemm.bench.conditions import ClockWatch, CpuTimes, other_cores, read_cpu_times, report_other_work
from edgemm.bench.memory import MemoryWatch, thinned
from edgemm.bench.options import Plan
from edgemm.bench.page import render_page
from edgemm.cli.main import main
from edgemm.device.child import Answer
from edgemm.energy.heat import Heat
from edgemm.energy.meter import Found, Meter, open_meter
from edgemm.energy.sensor import Sensor
from edgemm.errors import MissingError
from tests.bench.paper_bundle import PaperModel, write_paper_bundle
from tests.bench.recorded import lay_out
from tests.energy.layouts import NANO_POWER

STAT = "cpu  1000 50 250 90000 30 10 20 70 0 0\ncpu0 500 25 125 45000 15 5 10 35 0 0\n"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(edgemm, "load", lambda path, device, threads: PaperModel())
    monkeypatch.setattr(bench, "measure_fresh", lambda request, timeout_s: Answer(None, "was left out"))
    return write_paper_bundle(tmp_path / "b")


# Other work


def test_busy_cores_are_the_kernels_count_less_our_own(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(STAT)
    before = read_cpu_times(10.0, tmp_path, own=2.0)
    assert before == CpuTimes(10.0, 14.0, 2.0)  # user, nice, system, irq, softirq, steal: 1400 ticks
    assert other_cores(before, CpuTimes(20.0, 33.0, 12.0)) == pytest.approx(0.9)  # 19 s busy, 10 of them ours


def test_a_core_that_others_keep_busy_makes_a_run_unstable(path, monkeypatch):
    times = iter([CpuTimes(0.0, 100.0, 1.0), CpuTimes(10.0, 120.0, 11.0)])  # both cores busy, one of them not with us
    monkeypatch.setattr(bench, "read_cpu_times", lambda at: next(times))
    result = run_bench(path, Plan(repetitions=3))
    assert result["other_work"] == {"cores": 1.0, "reason": None}
    assert any("unstable: other work kept 1.00" in warning for warning in result["warnings"])
    assert "warning: unstable: other work kept 1.00" in render_page(result)


def test_a_machine_that_does_not_say_is_told_and_not_taken_for_idle(tmp_path):
    assert read_cpu_times(0.0, tmp_path) is None
    report, warnings = report_other_work(None, None)
    assert report["cores"] is None and "/proc/stat" in report["reason"] and not warnings


@pytest.mark.slow
def test_a_process_that_burns_a_core_is_seen_by_the_real_kernel():
    burn = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        before = read_cpu_times(time.perf_counter())
        time.sleep(2.0)
        after = read_cpu_times(time.perf_counter())
    finally:
        burn.kill()
        burn.wait()
    if before is None or after is None:
        pytest.skip("this machine has no /proc/stat")
    _, warnings = report_other_work(before, after)
    assert warnings and "unstable" in warnings[0]


@pytest.mark.slow
def test_a_run_beside_a_process_that_burns_a_core_is_called_unstable(tmp_path):
    from tests.runtimes.tiny_bundle import build

    bundle = build(tmp_path / "tiny.bundle")
    burn = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        plan = Plan(60, 8, 2, repetitions=3, warmup=0, duration_s=2.0, device="cpu", threads=1)
        result = run_bench(bundle, plan)
    finally:
        burn.kill()
        burn.wait()
    if result["other_work"]["cores"] is None:
        pytest.skip("this machine has no /proc/stat")
    assert any("unstable: other work" in warning for warning in result["warnings"])


# Clocks


def clock(jumps):
    """A second passes between two looks, and before look i so much more."""
    looks = itertools.accumulate(1.0 + jumps.get(i, 0.0) for i in range(100))
    return lambda: next(looks)


@pytest.mark.parametrize(
    ("jumps", "told"),
    [
        (({}, {}, {}), None),
        (({}, {5: 0.1}, {}), None),  # a clock that is slewed
        (({}, {5: 3600.0}, {}), "the date jumped (+3600.0 s)"),
        (({}, {5: -30.0}, {}), "the date jumped (-30.0 s)"),
        (({}, {5: 40.0}, {5: 40.0}), "the machine slept for 40.0 s"),
        (({5: -3.0}, {}, {}), "went backwards or stood still 1 times"),
    ],
)
def test_a_clock_that_jumps_is_told(jumps, told):
    watch = ClockWatch(*map(clock, jumps))
    for _ in range(10):
        watch.look()
    problems = " ".join(watch.problems())
    assert told in problems if told else not problems


def test_a_date_that_jumps_in_the_middle_reaches_the_page_and_moves_no_time(path, monkeypatch):
    dates = itertools.accumulate(itertools.chain([0.0] * 4, [3600.0], itertools.repeat(0.0)))
    seconds = itertools.count()
    now = [0.0]

    def timing():  # is looked at first; the other two agree with it
        now[0] = float(next(seconds))
        return now[0]

    monkeypatch.setattr(bench, "ClockWatch", lambda: ClockWatch(timing, lambda: next(dates) + now[0], lambda: now[0]))
    result = run_bench(path, Plan(repetitions=5))
    assert "warning: clock: the date jumped (+3600.0 s)" in render_page(result)
    assert max(result["rows"]["inter_token_ms"]["samples"]) < 60_000


def test_a_duration_that_cannot_be_is_no_sample(path, monkeypatch):
    moments = itertools.cycle([0.0, 5.0, 4.0])  # every third look the clock goes back
    real_reply = bench.write_reply
    monkeypatch.setattr(bench, "write_reply", lambda *args: real_reply(*args, now=lambda: next(moments)))
    result = run_bench(path, Plan(repetitions=2, new_tokens=10))
    samples = result["rows"]["inter_token_ms"]["samples"]
    assert samples and all(sample > 0 for sample in samples) and len(samples) < 2 * 9
    assert any("went backwards" in warning for warning in result["warnings"])


# Sensors


class Vanishing:
    """Works for some readings, then its file is gone."""

    def __init__(self, readings):
        self.left = readings

    def __call__(self):
        self.left -= 1
        if self.left < 0:
            raise MissingError("/sys/paper does not exist")
        return 10.0


def test_a_power_sensor_that_vanishes_leaves_null_and_the_reason(path, monkeypatch):
    found = Found((Sensor("INA3221", "the module", False, Vanishing(4)),), {})
    heat = Heat({}, {}, {})
    monkeypatch.setattr(bench, "open_meter", lambda device, root: Meter(found, lambda: heat, idle_s=0.0, rate_hz=1e-3))
    energy = run_bench(path, Plan(repetitions=5, warmup=0))["energy"]
    assert energy["per"]["image"]["gross_j"] is None and "does not exist" in energy["per"]["image"]["reason"]
    assert any("readings failed" in problem for problem in energy["problems"])


def test_a_boards_power_monitor_that_is_unbound_in_the_middle_leaves_null_and_the_reason(path, monkeypatch, tmp_path):
    """Orin Nano's own layout; its driver goes away while pictures are drawn."""
    root = lay_out(tmp_path / "root", NANO_POWER)
    monkeypatch.setattr(bench, "open_meter", lambda device, _: open_meter("cuda", root, idle_s=0.0))
    drawn = itertools.count()
    draw = bench.draw

    def draw_and_unbind(*args):
        if next(drawn) == 2:
            shutil.rmtree(root / "sys/bus/i2c/devices/1-0040")
        time.sleep(0.12)  # two readings at twenty a second
        return draw(*args)

    monkeypatch.setattr(bench, "draw", draw_and_unbind)
    result = run_bench(path, Plan(repetitions=6, warmup=0))
    energy = result["energy"]
    image = energy["per"]["image"]
    assert image["gross_j"] is None or image["gross_j"]["count"] < 6
    assert all(joules > 0 for joules in (image["gross_j"] or {"samples": []})["samples"])
    assert any("readings failed" in problem for problem in energy["problems"])
    assert "warning: energy:" in render_page(result)


def test_a_thermal_zone_that_vanishes_is_told(path, monkeypatch):
    readings = iter([Heat({"cpu 0": 50.0}, {}, {})] + [Heat({}, {}, {})] * 10)
    monkeypatch.setattr(
        bench, "open_meter", lambda device, root: Meter(Found((), {}), lambda: next(readings), 0.0, 1e-3)
    )
    page = render_page(run_bench(path, Plan(repetitions=1)))
    assert "thermal zones that could not be read all the time: cpu 0" in page


def test_a_throttled_run_is_told(path, monkeypatch):
    readings = iter([Heat({}, {}, {"core temperature": 3})] + [Heat({}, {}, {"core temperature": 9})] * 10)
    monkeypatch.setattr(
        bench, "open_meter", lambda device, root: Meter(Found((), {}), lambda: next(readings), 0.0, 1e-3)
    )
    page = render_page(run_bench(path, Plan(repetitions=1)))
    assert "throttled: core temperature counted 6 throttling events" in page


def test_a_card_that_does_not_say_its_memory_leaves_null_and_the_reason():
    def lost():
        raise MissingError("nvmlDeviceGetMemoryInfo returns 15: GPU is lost")

    with MemoryWatch("cuda", resident=lambda: 7, card=lost) as watch:
        pass
    report = watch.report()
    assert report["device_bytes"] is None and "GPU is lost" in report["device_reason"]
    assert set(report["resident"]["bytes"]) == {7}


def test_a_card_reports_its_most():
    readings = iter([100, 900] + [300] * 50)
    with MemoryWatch("cuda", resident=lambda: None, card=lambda: next(readings), interval_s=10.0) as watch:
        pass
    report = watch.report()
    assert report["device_bytes"] == 900 and report["resident"] == {"at_s": [], "bytes": []}


def test_thinning_keeps_both_ends():
    assert thinned(list(range(1000)), 5) == [0, 250, 500, 749, 999]
    assert thinned([1, 2, 3], 5) == [1, 2, 3]


# Disk


@pytest.fixture
def full_disk(tmp_path):
    """A file system of two pages that really is full; it needs the right to mount one."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "edgemm-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        (place / "others").write_bytes(b"x" * 4096)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("flag", ["--result", "--trace"])
def test_a_disk_that_is_full_ends_with_5_and_the_result_is_on_the_screen(path, full_disk, capsys, flag):
    words = ["-r", "20", "--duration", "0", "--json", flag, str(full_disk / "kept.json")]
    assert main(["bench", str(path), *words]) == 5
    said = capsys.readouterr()
    assert "the disk is full" in said.err and json.loads(said.out)["measured"]["rounds"] == 20
    assert [entry.name for entry in full_disk.iterdir()] == ["others"]
