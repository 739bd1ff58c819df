"""`edgemm estimate BUNDLE --device NAME`: time and memory on a device that is not here, each between its ends."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.errors import UsageError
from edgemm.estimate.devices import Device
from edgemm.estimate.estimate import JUDGED, NOT_JUDGED, Estimate, Figure

if TYPE_CHECKING:
    from edgemm.bundle.bundle import Bundle
    from edgemm.estimate.calibration import Observation
    from edgemm.estimate.devices import PowerMode

__all__ = ["add_arguments", "run", "render_devices", "render_estimate"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?")
    parser.add_argument("--device", help="for example orin-nano-8gb; --list shows all")
    parser.add_argument("--power", metavar="MODE", help="power mode, for example 15W (default: the first of --list)")
    parser.add_argument("--target", help="which of the bundle's targets to count (default: the device's, or the first)")
    parser.add_argument("-p", "--prompt-tokens", type=int, default=128, help="tokens to read (default: 128)")
    parser.add_argument("-n", "--new-tokens", type=int, default=64, help="tokens to write (default: 64)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the bundle's own)")
    parser.add_argument(
        "--fit",
        metavar="BENCH_JSON",
        type=Path,
        nargs="+",
        default=[],
        help="calibrate with bench files of this device",
    )
    parser.add_argument(
        "--root", metavar="FOLDER", type=Path, help="device and power mode of a recorded board, instead"
    )
    parser.add_argument("--list", action="store_true", help="the devices, their figures and where those come from")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the page")


def run(args: argparse.Namespace) -> int:
    from edgemm.estimate.devices import DEVICES

    if args.list:
        print(json.dumps(_listed()) if args.json else render_devices(DEVICES))
        return 0
    if args.root is not None:
        _read_board(args)
    if args.bundle is None or args.device is None:
        raise UsageError("give a BUNDLE and a --device; `edgemm estimate --list` shows the devices")
    from edgemm.bundle.bundle import open_bundle
    from edgemm.estimate.calibration import calibrate
    from edgemm.estimate.devices import find_device
    from edgemm.estimate.estimate import Workload, estimate

    device = find_device(args.device)
    mode = device.mode(args.power)
    work = Workload(args.prompt_tokens, args.new_tokens, args.steps)
    bundle = open_bundle(args.bundle, verify=False)
    calibration = calibrate(args.device, mode, _observations(args, bundle, device, mode))
    found = estimate(bundle, device, mode, calibration, work, args.target)
    print(json.dumps(found.to_json()) if args.json else render_estimate(found))
    return 0


def _read_board(args: argparse.Namespace) -> None:
    """What was said by hand goes before what the board's files say."""
    from edgemm.device.machine import read_board
    from edgemm.errors import InputError
    from edgemm.estimate.devices import device_of, find_device

    board = read_board(args.root)
    if board is None:
        raise InputError(f"{args.root}: no recorded Jetson; expected its proc/device-tree, etc and var/lib/nvpmodel")
    args.device = args.device or device_of(board.model)
    device = find_device(args.device)
    known = {mode.name.lower() for mode in device.modes}
    if args.power is None and (board.power_mode or "").lower() in known:
        args.power = board.power_mode
    elif args.power is None:
        used, found = device.mode(None).name, board.power_mode or "a mode that its files do not tell"
        print(f"the board is in {found}, of which no figures are known: these are {used}'s", file=sys.stderr)


def _observations(args: argparse.Namespace, bundle: Bundle, device: Device, mode: PowerMode) -> tuple[Observation, ...]:
    """What was published; with --fit, the device's own runs stand in for what was published of it."""
    from edgemm.estimate.calibration import calibrate, published_observations
    from edgemm.estimate.estimate import observations_of

    published = published_observations()
    if not args.fit:
        return published
    before = calibrate(args.device, mode, published)
    own = [o for path in args.fit for o in observations_of(path, bundle, args.device, device, mode, before)]
    return (*(o for o in published if (o.device, o.mode) != (args.device, mode.name)), *own)


def _listed() -> dict[str, object]:
    from edgemm.estimate.devices import DEVICES

    return {"schema_version": 1, "devices": {name: asdict(device) for name, device in DEVICES.items()}}


# An estimate for people: every figure between its ends, and what it stands on.

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
