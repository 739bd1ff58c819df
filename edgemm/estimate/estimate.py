"""What a bundle would take on a device that is not here: an estimate, with its ends, never a measurement.

A run takes max(bytes / bandwidth, operations / throughput) + layers * cost.  Bytes, operations and layers are counted
in the bundle's own graphs (graph_costs.py), float arithmetic being taken as float16; what the device reaches comes from
timed runs (calibration.py).  Tokens were judged against published rows of other models by benchmarks/estimator.py;
prefill, reading a picture, drawing and memory were judged against none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgemm.bundle.bundle import Bundle
from edgemm.bundle.components import layers_of
from edgemm.bundle.files import read_result
from edgemm.errors import InputError, UsageError
from edgemm.estimate.calibration import Calibration, Observation, Speed
from edgemm.estimate.devices import Device, PowerMode
from edgemm.estimate.graph_costs import GraphCosts, read_graph_costs
from edgemm.runtimes.cache_budget import cache_bytes_a_slot, row_bytes

__all__ = [
    "JUDGED",
    "NOT_JUDGED",
    "Estimate",
    "Figure",
    "Interval",
    "Run",
    "Workload",
    "estimate",
    "observations_of",
    "runs_of",
    "seconds",
]

SCHEMA_VERSION = 1
JUDGED = "decode: judged by leaving out models among published rows of other models (benchmarks/estimator.py)"
NOT_JUDGED = "not judged against any device"
RUNTIME_BYTES = (0, 600e6, 1200e6)  # what CUDA and the engine take besides weights: low, middle, high
WEIGHTS_IN_MEMORY = (1.0, 1.18, 1.5)  # times their size on disk; both fitted by hand to published peaks on Orin


@dataclass(frozen=True)
class Workload:
    prompt_tokens: int = 128
    new_tokens: int = 64
    steps: int | None = None  # None takes the bundle's own number

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1")


@dataclass(frozen=True)
class Run:
    """What one run of a component moves, computes and launches."""

    read_bytes: float
    operations: float
    layers: float
    int8: bool


@dataclass(frozen=True)
class Interval:
    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    value: Interval
    unit: str
    standing: str  # JUDGED or NOT_JUDGED
    bound_by: str | None = None  # "memory", "arithmetic" or "launches"


@dataclass(frozen=True)
class Estimate:
    bundle: str
    device: str
    mode: str
    target: str  # of the bundle, whose graphs were counted
    figures: dict[str, Figure]
    fits: str  # "yes", "perhaps", "no"
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "kind": "estimate, not a measurement", **asdict(self)}


def estimate(
    bundle: Bundle, device: Device, mode: PowerMode, calibration: Calibration, work: Workload, target: str | None = None
) -> Estimate:
    """Every figure with its ends; `target` says which of the bundle's variants to count."""
    manifest = bundle.manifest
    made_for_it = [name for name in device.targets if name in manifest.targets]
    chosen = target or (made_for_it or list(manifest.targets))[0]
    if chosen not in manifest.targets:
        raise UsageError(f"the bundle has no target {chosen!r}; it has: {', '.join(manifest.targets)}")
    _check_limits(bundle, work)
    runs = runs_of(bundle, chosen, work)
    figures = {f"{name}_ms": _figure(name, run, calibration) for name, run in runs.items()}
    if manifest.loops.denoise:
        steps = work.steps or manifest.loops.denoise.num_inference_steps
        figures["image_s"] = _image_figure(figures, steps)
    memory = _memory(bundle, chosen)
    figures["memory_gb"] = Figure(memory, "GB", NOT_JUDGED)
    room = device.memory_gb - device.system_gb
    remarks = [f"{device.title}, {mode.name}: {calibration.note}"]
    if manifest.loops.image_tokens:
        remarks.append("it draws token by token, and drawing of that kind is not estimated")
    if chosen not in device.targets:
        lacking = "" if made_for_it else f", the bundle has none for {' or '.join(device.targets)}"
        remarks.append(f"counted in the graphs for {chosen}{lacking}: weights are taken to keep their size")
    return Estimate(
        bundle=manifest.name,
        device=device.title,
        mode=mode.name,
        target=chosen,
        figures=figures,
        fits="yes" if memory.high <= room else "perhaps" if memory.low <= room else "no",
        remarks=tuple(remarks),
    )


def _check_limits(bundle: Bundle, work: Workload) -> None:
    """UsageError for more than the bundle does: no device would run that."""
    limits, tokens = bundle.manifest.limits, work.prompt_tokens + work.new_tokens
    if tokens > limits.max_context:
        raise UsageError(
            f"prompt_tokens {work.prompt_tokens} and new_tokens {work.new_tokens} are {tokens}, the bundle holds "
            f"{limits.max_context} at most"
        )
    if (work.steps or 0) > limits.max_steps:
        raise UsageError(f"steps is {work.steps}, the bundle takes {limits.max_steps} at most")


def runs_of(bundle: Bundle, target: str, work: Workload) -> dict[str, Run]:
    """The component runs behind a reply and a picture, by what they are called in the answer."""
    manifest = bundle.manifest
    costs = {name: _costs(bundle, name, target) for name in manifest.targets[target]}
    found: dict[str, Run] = {}
    if "transformer" in costs:
        if manifest.loops.text:  # the head, where it is a graph of its own, runs once a token
            context = work.prompt_tokens + work.new_tokens // 2  # halfway through the reply
            found["token"] = _transformer(bundle, target, costs["transformer"], 1, context)
            if "text_head" in costs:
                found["token"] = _together(found["token"], _rows(costs["text_head"], 1))
        found["prefill"] = _transformer(bundle, target, costs["transformer"], work.prompt_tokens, work.prompt_tokens)
    if "image_encoder" in costs and manifest.loops.text:
        found["image_encode"] = _rows(costs["image_encoder"], manifest.loops.text.image_token_count)
    if manifest.loops.denoise:
        found["conditioner"] = _rows(costs["conditioner"], work.prompt_tokens)
        found["step"] = _denoiser(bundle, target, costs["denoiser"], work.prompt_tokens)
        found["image_decode"] = _rows(costs["image_decoder"], manifest.loops.denoise.places)
    return found


def seconds(run: Run, speed: Speed) -> float:
    """The roofline, and what launching costs."""
    return max(run.read_bytes / speed.bytes_per_s, _computing_s(run, speed)) + run.layers * speed.layer_s


def _computing_s(run: Run, speed: Speed) -> float:
    return run.operations / (speed.int8_per_s if run.int8 else speed.fp16_per_s)


def _figure(name: str, run: Run, calibration: Calibration) -> Figure:
    ends = (seconds(run, speed) * 1e3 for speed in (calibration.middle, calibration.best, calibration.worst))
    shares = {
        "memory": run.read_bytes / calibration.middle.bytes_per_s,
        "arithmetic": _computing_s(run, calibration.middle),
        "launches": run.layers * calibration.middle.layer_s,
    }
    judged = JUDGED if name == "token" and calibration.rows else NOT_JUDGED
    return Figure(Interval(*ends), "ms", judged, max(shares, key=lambda bound: shares[bound]))


def _image_figure(figures: dict[str, Figure], steps: int) -> Figure:
    """A prompt through the transformer and the conditioner once, then the steps, then pixels."""
    once = [figures[f"{name}_ms"].value for name in ("prefill", "conditioner", "image_decode")]
    step = figures["step_ms"].value
    ends = (
        (sum(getattr(part, end) for part in once) + steps * getattr(step, end)) / 1e3
        for end in ("middle", "low", "high")
    )
    return Figure(Interval(*ends), "s", NOT_JUDGED)


def _costs(bundle: Bundle, component: str, target: str) -> GraphCosts:
    variant = bundle.manifest.variant(component, target)
    stored = sum(bundle.manifest.files[path].size_bytes for path in (variant.graph, variant.data) if path)
    return read_graph_costs(bundle.file(variant.graph), stored)


def _rows(costs: GraphCosts, rows: int, images: int = 1) -> Run:
    operations = images * (rows * costs.operations_a_row + costs.operations_a_call)
    return Run(costs.read_bytes, operations, costs.layers, costs.int8)


def _together(one: Run, other: Run) -> Run:
    return Run(
        one.read_bytes + other.read_bytes, one.operations + other.operations, one.layers + other.layers, one.int8
    )


def _transformer(bundle: Bundle, target: str, costs: GraphCosts, tokens: int, context: int) -> Run:
    specs = bundle.manifest.variant("transformer", target).inputs
    width = next(spec for spec in specs if spec.name == "image_tokens").fixed(2, "width")
    run, layers = _rows(costs, tokens), len(layers_of("past_key", specs))
    if tokens == 1:
        run = replace(run, read_bytes=run.read_bytes - costs.idle_bytes)
    attention = 4.0 * layers * width * tokens * context  # the heads together are about as wide as the model
    cache = _cache_bytes(bundle, target, context)
    return Run(run.read_bytes + cache, run.operations + attention, run.layers, run.int8)


def _denoiser(bundle: Bundle, target: str, costs: GraphCosts, prompt_tokens: int) -> Run:
    loop = bundle.manifest.loops.denoise
    assert loop is not None
    specs = bundle.manifest.variant("denoiser", target).inputs
    keys = [spec for spec in specs if spec.name.startswith("prefix_key.")]
    images = 1 if loop.guidance_scale == 1 else 2  # guidance draws a second one from the empty prompt
    prefix = max(prompt_tokens - loop.skip, 1)
    run = _rows(costs, loop.places, images)
    widths = sum(spec.fixed(1, "heads") * spec.fixed(3, "head width") for spec in keys)  # of all layers
    attention = 4.0 * images * widths * loop.places * (prefix + loop.places)
    values = [spec for spec in specs if spec.name.startswith("prefix_value.")]
    cache = images * prefix * row_bytes([*keys, *values])
    return Run(run.read_bytes + cache, run.operations + attention, run.layers, run.int8)


def _cache_bytes(bundle: Bundle, target: str, context: int) -> int:
    return cache_bytes_a_slot(bundle.manifest.variant("transformer", target)) * context


def _memory(bundle: Bundle, target: str) -> Interval:
    manifest = bundle.manifest
    variants = [manifest.variant(component, target) for component in manifest.targets[target]]
    files = {path for variant in variants for path in (variant.graph, variant.data) if path}
    weights = sum(manifest.files[path].size_bytes for path in files)
    has_text = "transformer" in manifest.targets[target]
    cache = _cache_bytes(bundle, target, manifest.limits.max_context) if has_text else 0
    low, middle, high = (
        (times * weights + cache + runtime) / 1e9 for times, runtime in zip(WEIGHTS_IN_MEMORY, RUNTIME_BYTES)
    )
    return Interval(middle, low, high)


# A device's own `edgemm bench` files as timed runs that calibration.py takes instead of published ones.
#
# Only runs that memory bounds say what a byte and a layer cost; those that arithmetic bounds are left out.  A file is
# refused when it is of another bundle or another board, or faster than the memory could be.

TIMED = {"token": "time_per_output_token_ms", "step": "denoise_step_ms"}


def observations_of(
    path: Path, bundle: Bundle, name: str, device: Device, mode: PowerMode, before: Calibration
) -> tuple[Observation, ...]:
    """Timed runs of this bundle; `before` is what the device was taken for until now."""
    document = read_result(path)
    card, rows, measured = document["card"], document["rows"], document["measured"]
    found = card.get("bundle_sha256")
    wanted = sha256(bundle.file("manifest.json").read_bytes()).hexdigest()
    if found != wanted:
        raise InputError(
            f"{path}: of a bundle {str(found)[:12]}, expected {wanted[:12]}: give the bundle it was run with"
        )
    if device.board and device.board not in (card.get("board") or ""):
        raise InputError(f"{path}: measured on {card.get('board') or card.get('cpu')}, expected a {device.title}")
    ran, known = str(card.get("power_mode")).lower(), {each.name.lower() for each in device.modes}
    if ran in known and ran != mode.name.lower():
        raise InputError(f"{path}: measured in mode {card['power_mode']}, expected {mode.name}: give it as --power")
    work = Workload(prompt_tokens=measured.get("prompt_tokens", 128), new_tokens=measured.get("new_tokens", 64))
    runs = runs_of(bundle, card["target"], work)
    timed = {
        part: float(rows[row]["p50"]) / 1e3
        for part, row in TIMED.items()
        if part in runs and row in rows and _bound_by_memory(runs[part], before.middle)
    }
    if not timed:
        raise InputError(f"{path}: holds no run that memory bounds, so it says nothing of bandwidth or launches")
    for part, taken in timed.items():
        least = runs[part].read_bytes / (mode.memory_gb_s * 1e9)
        if taken < least:
            raise InputError(
                f"{path}: a {part} of {taken * 1e3:.3g} ms, its bytes alone take {least * 1e3:.3g}: wrong mode?"
            )
    return tuple(
        Observation(name, mode.name, part, runs[part].read_bytes, runs[part].layers, taken)
        for part, taken in timed.items()
    )


def _bound_by_memory(run: Run, speed: Speed) -> bool:
    return _computing_s(run, speed) < run.read_bytes / speed.bytes_per_s
