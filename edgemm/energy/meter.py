"""Joules of named pieces of work: what a benchmark holds while it runs, and what it reports afterwards.

Gross is all that the sensors saw during the work; above idle is that less what the same seconds would have taken with
the model opened and nothing to do.  Without a sensor both are null, with the reason.  All of energy/ was written from
recorded layouts and tested on them; none was run on a Jetson or beside a power meter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from edgemm.device.gpu import gpu_number
from edgemm.device.machine import read_board
from edgemm.energy.heat import Heat, read_heat, report_heat
from edgemm.energy.sampler import RATE_HZ, Sampler
from edgemm.energy.sensor import Sensor, open_ina3221, open_nvml, open_rapl, throttle_reasons
from edgemm.energy.tegrastats import TEGRASTATS, open_tegrastats
from edgemm.errors import MissingError
from edgemm.report.samples import summarise

__all__ = ["FIGURES", "Found", "Meter", "Work", "find_sensors", "open_meter", "pool_energy"]

IDLE_S = 2.0
FEW_SAMPLES = 10  # a power that is read fewer times during a piece of work is told
FIGURES = {  # of what -> what its joules are divided by
    "token": "a whole reply, prefill included, over the tokens it wrote",
    "image": "one picture, from the call to pixels",
}


@dataclass
class Work:
    name: str  # of FIGURES
    start_s: float
    end_s: float = float("nan")
    units: int = 0  # tokens written, pictures drawn; the caller says


class Meter:
    """Use it as a context manager, then ask for `report()`."""

    def __init__(
        self,
        found: Found,
        heat: Callable[[], Heat],
        idle_s: float = IDLE_S,
        rate_hz: float = RATE_HZ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._found = found
        self._heat = heat
        self._idle_s = idle_s
        self._sampler = Sampler(found.sensors, rate_hz, clock, self._feel)
        self._works: list[Work] = []
        self._readings: list[Heat] = []
        self._idle: Work | None = None

    def __enter__(self) -> Meter:
        """Watches the idle machine first, when there is anything to watch it with."""
        self._feel()
        self._sampler.__enter__()
        if self._found.sensors:
            start_s = self._sampler.mark()
            time.sleep(self._idle_s)
            self._idle = Work("idle", start_s, self._sampler.mark())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.__exit__(kind, error, trace)
        self._feel()

    @contextmanager
    def work(self, name: str) -> Iterator[Work]:
        """`with meter.work("token") as work: ...; work.units = 64`: units before it ends."""
        work = Work(name, self._sampler.mark())
        yield work
        work.end_s = self._sampler.mark()
        self._works.append(work)

    def forget(self) -> None:
        """The work so far was warming up."""
        self._works.clear()

    def report(self) -> dict[str, Any]:
        """Plain values; null stands for what could not be measured, and `reason` says why."""
        idle = self._sampler.energy(self._idle.start_s, self._idle.end_s) if self._idle else None
        idle_w = idle.joules / (self._idle.end_s - self._idle.start_s) if idle and idle.joules and self._idle else None
        figures = {name: self._figure(name, idle_w) for name in FIGURES if any(w.name == name for w in self._works)}
        notes = [f"idle: {idle.problem}"] if idle and idle.problem else []
        for name, figure in figures.items():
            notes += [f"{name}: {note}" for note in figure.pop("notes")]
        heat = report_heat(self._readings)
        throttled = [f"throttled: {line}" for line in heat["throttled"] or ()]
        return {
            "sensors": [{"source": s.source, "covers": s.covers, "counts": s.counts} for s in self._found.sensors],
            "missing": self._found.missing,
            "rate_hz": self._sampler.rate_hz,
            "idle_w": idle_w,
            "per": figures,
            "heat": {"zones": heat["zones"], "throttled": heat["throttled"]},
            "problems": [*self._sampler.problems(), *notes, *throttled, *heat["problems"]],
        }

    def _feel(self) -> None:
        self._readings.append(self._heat())

    def _figure(self, name: str, idle_w: float | None) -> dict[str, Any]:
        works = [work for work in self._works if work.name == name and work.units > 0]
        energies = [self._sampler.energy(work.start_s, work.end_s) for work in works]
        gross, above = [], []
        for work, energy in zip(works, energies):
            if energy.joules is not None:
                gross.append(energy.joules / work.units)
                if idle_w is not None:
                    above.append((energy.joules - idle_w * (work.end_s - work.start_s)) / work.units)
        reasons = list(dict.fromkeys(energy.problem for energy in energies if energy.joules is None))
        fewest = min((energy.samples for energy in energies if energy.joules is not None), default=0)
        notes = []
        if gross and reasons:
            notes.append(f"{len(works) - len(gross)} of {len(works)} runs have no energy: {reasons[0]}")
        if gross and fewest < FEW_SAMPLES and not all(sensor.counts for sensor in self._found.sensors):
            notes.append(f"power was read only {fewest} times during the shortest run; give it more work")
        if any(joules <= 0 for joules in above):
            notes.append("no more than idle: the idle machine was busy, or the work is too small to tell")
        reason = "" if gross else "; ".join(reasons) or "nothing was done"
        if not self._found.sensors:
            reason = "; ".join(f"{source}: {why}" for source, why in self._found.missing.items()) or "no sensor"
        return {
            "timed": FIGURES[name],
            "gross_j": _summary(gross),
            "above_idle_j": _summary(above),
            "reason": reason or None,
            "notes": notes,
        }


def open_meter(device: str = "cpu", root: Path = Path("/"), idle_s: float = IDLE_S) -> Meter:
    found = find_sensors(device, root)
    has_card = any(sensor.source == "NVML" for sensor in found.sensors)
    number = gpu_number(device)
    return Meter(found, lambda: _with_card(read_heat(root), number) if has_card else read_heat(root), idle_s)


def _with_card(heat: Heat, number: int) -> Heat:
    try:
        reasons = {f"GPU {number}, {reason},": 1 for reason in throttle_reasons(number)}
    except MissingError:
        return heat
    return replace(heat, held_down={**heat.held_down, f"GPU {number}": 0, **reasons})


def _summary(values: list[float]) -> dict[str, Any] | None:
    summary = summarise(values)
    return {**asdict(summary), "samples": [float(f"{value:.6g}") for value in values]} if summary else None


# What the meters of several processes reported, as one report in the same form.

Report = dict[str, Any]  # what Meter.report() gives


def pool_energy(reports: Sequence[Report]) -> Report:
    """Samples one after the other, idle power as a median, heat at its highest; sensors are the same all along."""
    if len(reports) == 1:
        return reports[0]
    idle = [report["idle_w"] for report in reports if report["idle_w"] is not None]
    throttled = [line for report in reports for line in report["heat"]["throttled"] or ()]
    tells = any(report["heat"]["throttled"] is not None for report in reports)
    return {
        **reports[0],
        "idle_w": median(idle) if idle else None,
        "per": {name: _figure(name, reports) for name in dict.fromkeys(n for report in reports for n in report["per"])},
        "heat": {"zones": _zones(reports), "throttled": list(dict.fromkeys(throttled)) if tells else None},
        "problems": list(dict.fromkeys(line for report in reports for line in report["problems"])),
    }


def _figure(name: str, reports: Sequence[Report]) -> dict[str, Any]:
    figures = [report["per"][name] for report in reports if name in report["per"]]
    reasons = dict.fromkeys(figure["reason"] for figure in figures if figure["reason"])
    gross, above = (_pooled([figure[key] for figure in figures]) for key in ("gross_j", "above_idle_j"))
    return {
        "timed": figures[0]["timed"],
        "gross_j": gross,
        "above_idle_j": above,
        "reason": None if gross else "; ".join(reasons) or None,
    }


def _pooled(figures: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    samples = [joules for figure in figures if figure for joules in figure["samples"]]
    summary = summarise(samples)
    return {**asdict(summary), "samples": samples} if summary else None


def _zones(reports: Sequence[Report]) -> dict[str, Any] | None:
    """The first process's first temperature, and the highest of all."""
    zones: dict[str, Any] = {}
    for name, zone in ((name, zone) for report in reports for name, zone in (report["heat"]["zones"] or {}).items()):
        known = zones.setdefault(name, dict(zone))
        known["highest_c"] = max(known["highest_c"], zone["highest_c"])
    return zones or None


# The sensors that tell this machine's energy, and why the others are missing.


@dataclass(frozen=True)
class Found:
    """The sensors cover different things, so their energies add up."""

    sensors: tuple[Sensor, ...]
    missing: dict[str, str]  # source -> why it is not among them


def find_sensors(device: str = "cpu", root: Path = Path("/"), tegrastats: Path | None = None) -> Found:
    """A Jetson's rails hold processor and GPU; elsewhere each has its own sensor, asked when it does the work.  No
    program of a recorded machine is run: its files are a stranger's."""
    sensors: list[Sensor] = []
    missing: dict[str, str] = {}

    def attempt(source: str, open_sensor: Callable[[], Sensor]) -> bool:
        try:
            sensors.append(open_sensor())
        except MissingError as error:
            missing[source] = str(error)
        return source not in missing

    if read_board(root):
        if not attempt("INA3221", lambda: open_ina3221(root)):
            program = tegrastats or (TEGRASTATS if root == Path("/") else None)
            if program:
                attempt("tegrastats", lambda: open_tegrastats(program))
            else:
                missing["tegrastats"] = f"is not run for a recorded machine ({root})"
        missing["NVML"] = "not supported on Jetson"
        return Found(tuple(sensors), missing)
    attempt("RAPL", lambda: open_rapl(root))
    if device != "cpu":
        attempt("NVML", lambda: open_nvml(gpu_number(device)))
    return Found(tuple(sensors), missing)
