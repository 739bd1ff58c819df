"""An estimate for people: every figure between its ends, and what it stands on."""

from __future__ import annotations

from collections.abc import Mapping

from edgemm.measure.devices import Device
from edgemm.measure.estimate import JUDGED, NOT_JUDGED, Estimate, Figure

__all__ = ["render_devices", "render_estimate"]

NAMES = {
    "token_ms": "a token",
    "prefill_ms": "the prompt",
    "image_encode_ms": "reading a picture",
    "conditioner_ms": "conditioner, once a picture",
    "step_ms": "a denoising step",
    "image_decode_ms": "tokens to pixels",
    "image_s": "a picture",
    "memory_gb": "memory",
}
FITS = {"yes": "fits", "perhaps": "may not fit: one end of its memory does not", "no": "does not fit"}


def render_estimate(found: Estimate) -> str:
    lines = ["=== Estimate, not a measurement ===", "", f"{found.bundle} on {found.device} ({found.mode})", ""]
    lines += [f"  {NAMES[name]:<28}{_ends(figure)}" for name, figure in found.figures.items()]
    judged = [NAMES[name] for name, figure in found.figures.items() if figure.standing == JUDGED]
    unjudged = [NAMES[name] for name, figure in found.figures.items() if figure.standing == NOT_JUDGED]
    lines += ["", *(f"note: {remark}" for remark in found.remarks)]
    lines += [f"note: {', '.join(judged)}: {JUDGED}"] if judged else []
    lines += [f"note: {', '.join(unjudged)}: {NOT_JUDGED}"]
    return "\n".join([*lines, "", f"Estimated: {found.bundle} {FITS[found.fits]} on {found.device}; measure it there."])


def render_devices(devices: Mapping[str, Device]) -> str:
    lines = []
    for name, device in devices.items():
        lines.append(f"{name:<15} {device.title}, {device.memory_gb:g} GB; {device.source}")
        lines += [
            f"{'':<15}   --power {mode.name:<11} {mode.memory_gb_s:g} GB/s, {mode.fp16_tflops:g} TFLOP/s float16, "
            f"{mode.int8_tops:g} TOP/s int8"
            for mode in device.modes
        ]
    return "\n".join([*lines, "", "The first mode of a device is its default: edgemm estimate BUNDLE --device NAME"])


def _ends(figure: Figure) -> str:
    value = figure.value
    bound = f", bound by {figure.bound_by}" if figure.bound_by else ""
    return f"{_digits(value.middle):>7} {figure.unit:<3} ({_digits(value.low)} to {_digits(value.high)}{bound})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"
