"""From timed runs to what a device really reaches: share of its memory bandwidth, cost a layer, share of its peak.

The model of a run is linear in two unknowns, seconds = bytes / (share * bandwidth) + layers * cost, where the cost of a
layer is a constant over the clock of the GPU.  All rows together give the share and, for each architecture, the
constant; a device's own rows then move both away from there, as far as they weigh (ridge on relative errors).
Pure functions over rows: they know no bundle and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.estimate.devices import Device, PowerMode, find_device
from edgemm.estimate.published_rows import ROWS, PublishedRow

__all__ = [
    "Calibration",
    "Observation",
    "Speed",
    "calibrate",
    "leave_device_out",
    "leave_one_out",
    "published_observations",
]

PRIOR_WEIGHT = 0.2  # one row counts as much as a distance of 1 / PRIOR_WEIGHT times its relative error
LEAST_SPREAD = 0.10  # intervals are never narrower, however well the rows agree
UNSEEN_SPREAD = 0.25  # share of bandwidth where no row was measured in this mode
LAYER_FACTOR = 2.0  # a layer of another model has other kernels than the rows' own: half to twice
ROWS_AN_ARCHITECTURE = 4  # with fewer its layers are taken for the lender's
LENDER = "thor-t5000"  # lends an architecture without rows what a layer costs
COMPUTE_SHARE = (0.10, 0.30, 0.60)  # low, middle, high, where no prefill was published


@dataclass(frozen=True)
class Observation:
    """One timed run: what it had to move and to launch, and how long it took."""

    device: str
    mode: str
    model: str  # runs of one model are left out together
    read_bytes: float
    layers: float
    seconds: float


@dataclass(frozen=True)
class Speed:
    bytes_per_s: float
    fp16_per_s: float  # operations, a multiplication and an addition being two
    int8_per_s: float
    layer_s: float


@dataclass(frozen=True)
class Calibration:
    """What to expect of a device, with the ends of what may be."""

    middle: Speed
    best: Speed
    worst: Speed
    rows: int  # measured in this very mode
    note: str


def published_observations(rows: Sequence[PublishedRow] = ROWS) -> tuple[Observation, ...]:
    return tuple(
        Observation(
            device=row.device,
            mode=find_device(row.device).mode(None).name,
            model=row.decoder,
            read_bytes=row.token_bytes,
            layers=row.shape.layers,
            seconds=row.token_s,
        )
        for row in rows
    )


def calibrate(
    name: str, mode: PowerMode, observations: Sequence[Observation], rows: Sequence[PublishedRow] = ROWS
) -> Calibration:
    """The device in this mode, from everything that was observed anywhere."""
    device = find_device(name)
    inverse_share, cycles = _fit(name, mode, observations)
    own = [o for o in observations if (o.device, o.mode) == (name, mode.name)]
    seen = {find_device(o.device).architecture for o in observations}
    spread = max(LEAST_SPREAD, _worst_error(name, mode, observations)) if own else UNSEEN_SPREAD
    factor = LAYER_FACTOR if device.architecture in seen else 2 * LAYER_FACTOR
    cost_s = cycles / device.layer_clock(mode)
    low, middle, high = _compute_shares(name, rows, cost_s)

    def speed(bandwidth: float, compute: float, layer: float) -> Speed:
        reached = min(bandwidth / inverse_share, 1.0)
        return Speed(
            bytes_per_s=mode.memory_gb_s * 1e9 * reached,
            fp16_per_s=mode.fp16_tflops * 1e12 * compute,
            int8_per_s=mode.int8_tops * 1e12 * compute,
            layer_s=cost_s * layer,
        )

    if own:
        note = f"{len(own)} timed runs in this mode"
    elif device.architecture in seen:
        note = "no timed run in this mode: carried over from its architecture"
    else:
        note = "no timed run of this architecture: carried over from Jetson Thor"
    return Calibration(
        middle=speed(1, middle, 1),
        best=speed(1 + spread, high, 1 / factor),
        worst=speed(1 / (1 + spread), low, factor),
        rows=len(own),
        note=note,
    )


def leave_one_out(observations: Sequence[Observation]) -> list[tuple[Observation, float]]:
    """Every run with the seconds predicted from the other models' runs alone, on all devices."""
    found = []
    for observation in observations:
        others = [o for o in observations if o.model != observation.model]
        mode = find_device(observation.device).mode(observation.mode)
        found.append((observation, _predict(observation, mode, others)))
    return found


def leave_device_out(observations: Sequence[Observation]) -> list[tuple[Observation, float]]:
    """Every run predicted from other models on other devices of its architecture; left out where there are none."""
    found = []
    for observation in observations:
        device = find_device(observation.device)
        others = [o for o in observations if o.device != observation.device and o.model != observation.model]
        if any(find_device(o.device).architecture == device.architecture for o in others):
            found.append((observation, _predict(observation, device.mode(observation.mode), others)))
    return found


def _predict(run: Observation, mode: PowerMode, observations: Sequence[Observation]) -> float:
    inverse_share, cycles = _fit(run.device, mode, observations)
    return float(_columns(run.device, mode, run.read_bytes, run.layers) @ [inverse_share, cycles])


def _worst_error(name: str, mode: PowerMode, observations: Sequence[Observation]) -> float:
    own = [o for o in observations if (o.device, o.mode) == (name, mode.name)]
    if len({o.model for o in own}) < 2:
        return UNSEEN_SPREAD
    held_out = [(o, _predict(o, mode, [x for x in observations if x.model != o.model])) for o in own]
    return max(abs(predicted / o.seconds - 1) for o, predicted in held_out)


def _columns(name: str, mode: PowerMode, read_bytes: float, layers: float) -> np.ndarray:
    """Seconds for each unit of the two unknowns."""
    return np.array([read_bytes / (mode.memory_gb_s * 1e9), layers / find_device(name).layer_clock(mode)])


def _fit(name: str, mode: PowerMode, observations: Sequence[Observation]) -> tuple[float, float]:
    """(1 / share of bandwidth, cycles a layer) of the device in this mode."""
    prior = _pooled(find_device(name), mode, observations)
    own = [o for o in observations if (o.device, o.mode) == (name, mode.name)]
    timed = [_columns(name, mode, o.read_bytes, o.layers) / o.seconds * prior for o in own]
    rows = np.array([*timed, *(PRIOR_WEIGHT * np.eye(2))])  # unknowns: how many times the prior
    wanted = np.array([1.0] * len(own) + [PRIOR_WEIGHT] * 2)
    share, cycles = np.linalg.lstsq(rows, wanted, rcond=None)[0] * prior
    return max(float(share), 1.0), max(float(cycles), 0.0)


def _pooled(device: Device, mode: PowerMode, observations: Sequence[Observation]) -> np.ndarray:
    """One share for all devices, one cost for each architecture."""
    architectures = [find_device(o.device).architecture for o in observations]
    names = sorted(name for name in set(architectures) if architectures.count(name) >= ROWS_AN_ARCHITECTURE)
    pooled = [o for o, name in zip(observations, architectures) if name in names]
    rows = np.zeros((len(pooled), 1 + len(names)))
    for row, o in zip(rows, pooled):
        its = find_device(o.device)
        row[[0, 1 + names.index(its.architecture)]] = (
            _columns(o.device, its.mode(o.mode), o.read_bytes, o.layers) / o.seconds
        )
    share, *cycles = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    if device.architecture in names:
        return np.array([share, cycles[names.index(device.architecture)]])
    lender = find_device(LENDER)  # peaks of other architectures say nothing about clocks: take its seconds
    seconds_a_layer = cycles[names.index(lender.architecture)] / lender.layer_clock(lender.mode(None))
    return np.array([share, seconds_a_layer * device.layer_clock(mode)])


def _compute_shares(name: str, rows: Sequence[PublishedRow], layer_s: float) -> tuple[float, float, float]:
    """Lowest, median and highest share of the float16 peak that int4 prefills reached (their arithmetic is float16)."""
    device: Device = find_device(name)
    peak = device.mode(None).fp16_tflops * 1e12
    shares = sorted(
        row.prefill_operations / (row.prefill_ms / 1e3 - row.shape.layers * layer_s) / peak
        for row in rows
        if row.device == name and row.precision == "int4" and row.prefill_ms
    )
    return (shares[0], float(np.median(shares)), shares[-1]) if shares else COMPUTE_SHARE
