"""`edgemm estimate BUNDLE --device NAME`: time and memory on a device that is not here, each between its ends."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.bundle import Bundle
    from edgemm.measure.calibration import Observation
    from edgemm.measure.devices import Device, PowerMode

__all__ = ["add_arguments", "run"]


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
    parser.add_argument("--list", action="store_true", help="the devices, their figures and where those come from")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the page")


def run(args: argparse.Namespace) -> int:
    from edgemm.measure.devices import DEVICES
    from edgemm.measure.estimate_page import render_devices, render_estimate

    if args.list:
        print(json.dumps(_listed()) if args.json else render_devices(DEVICES))
        return 0
    if args.bundle is None or args.device is None:
        raise UsageError("give a BUNDLE and a --device; `edgemm estimate --list` shows the devices")
    from edgemm.bundle import open_bundle
    from edgemm.measure.calibration import calibrate
    from edgemm.measure.devices import find_device
    from edgemm.measure.estimate import Workload, estimate

    device = find_device(args.device)
    mode = device.mode(args.power)
    work = Workload(args.prompt_tokens, args.new_tokens, args.steps)
    bundle = open_bundle(args.bundle, verify=False)
    calibration = calibrate(args.device, mode, _observations(args, bundle, device, mode))
    found = estimate(bundle, device, mode, calibration, work, args.target)
    print(json.dumps(found.to_json()) if args.json else render_estimate(found))
    return 0


def _observations(args: argparse.Namespace, bundle: Bundle, device: Device, mode: PowerMode) -> tuple[Observation, ...]:
    """What was published; with --fit, the device's own runs stand in for what was published of it."""
    from edgemm.measure.bench_fit import observations_of
    from edgemm.measure.calibration import calibrate, published_observations

    published = published_observations()
    if not args.fit:
        return published
    before = calibrate(args.device, mode, published)
    own = [o for path in args.fit for o in observations_of(path, bundle, args.device, device, mode, before)]
    return (*(o for o in published if (o.device, o.mode) != (args.device, mode.name)), *own)


def _listed() -> dict[str, object]:
    from edgemm.measure.devices import DEVICES

    return {"schema_version": 1, "devices": {name: asdict(device) for name, device in DEVICES.items()}}
