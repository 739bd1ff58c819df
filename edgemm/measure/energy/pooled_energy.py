"""What the meters of several processes reported, as one report in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from edgemm.measure.samples import summarise

__all__ = ["pool_energy"]

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
