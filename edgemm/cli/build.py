"""`edgemm build BUNDLE`: engines for this machine's device, or, with no GPU, for RTX devices elsewhere."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from edgemm.cli.display import Display
from edgemm.errors import UsageError

__all__ = ["HELP", "add_arguments", "parse_bytes", "run"]

HELP = "build a bundle's TensorRT engines: for this device, or with --target rtx --sm 86,89 for others, without a GPU"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    parser.add_argument("--target", help="rtx, jetson-orin-jp6, jetson-orin or jetson-thor (default: what fits here)")
    parser.add_argument(
        "--sm", metavar="SM,...", help="build for RTX devices that are not here: 75, 80, 86, 89, 120, 121"
    )
    parser.add_argument("--device", metavar="cuda:N", help="which of this machine's GPUs (default: cuda:0)")
    parser.add_argument(
        "--max-memory", metavar="SIZE", help="of the building process: 2GiB (default: 3/4 of what is free)"
    )
    parser.add_argument(
        "--opt-level", type=int, default=3, help="0 to 5: how long TensorRT looks for speed (default: 3)"
    )
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="of one attempt (default: 3600)")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where engines are kept (default: ~/.cache/edgemm)"
    )
    parser.add_argument("--cache-size", metavar="SIZE", default="16GiB", help="oldest unused go beyond it (16GiB)")
    parser.add_argument("--print-trtexec", action="store_true", help="print NVIDIA's commands for it and build nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def parse_bytes(text: str) -> int:
    """2GiB, 512MB, 100000: always powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    size = int(float(found.group(1)) * UNITS[found.group(2).upper()]) if found else 0
    if size < 1:
        raise UsageError(f"size is {text!r}, expected for example 2GiB or 512MiB")
    return size


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.opt_level <= 5:
        raise UsageError(f"opt-level is {args.opt_level}, expected 0 to 5")
    if not args.timeout > 0:
        raise UsageError(f"timeout is {args.timeout:g}, expected more than 0 seconds")
    memory = parse_bytes(args.max_memory) if args.max_memory else None
    limit = parse_bytes(args.cache_size)

    from edgemm.bundle.bundle import open_bundle
    from edgemm.engines.builder import Limits
    from edgemm.engines.bundle_engines import build_bundle, bundle_specs, choose_destinations, default_memory_bytes
    from edgemm.engines.cache import EngineCache, default_folder
    from edgemm.engines.engine_spec import trtexec_command

    bundle = open_bundle(args.bundle)
    memory = memory or default_memory_bytes(bundle.path)
    destinations = choose_destinations(tuple(bundle.manifest.targets), args.target, args.sm, args.device)
    if args.print_trtexec:
        for destination in destinations:
            for spec, graph in bundle_specs(bundle, destination, args.opt_level, memory):
                name = f"{spec.component}-sm{spec.place.compute_capability.replace('.', '')}.engine"
                print(trtexec_command(spec, graph, name, destination.target.startswith("jetson")))
        return 0
    cache = EngineCache(args.cache or default_folder(), limit)
    rows = []
    with Display():
        for destination in destinations:
            limits = Limits(memory, args.timeout)
            for spec, built in build_bundle(bundle, destination, cache, limits, args.opt_level):
                record = built.entry.record
                rows.append(
                    {
                        "component": spec.component,
                        "sm": spec.place.compute_capability,
                        "fresh": built.fresh,
                        **{key: record[key] for key in ("size_bytes", "seconds", "rung", "peak_bytes", "layers")},
                        "path": str(built.entry.path),
                    }
                )
                if not args.json:
                    took = f"built in {record['seconds']:.0f} s" if built.fresh else "in the cache"
                    print(f"{spec}: {took}, {record['size_bytes'] / 1e6:.1f} MB, {record['rung']}", flush=True)
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "cache": str(cache.folder), "engines": rows}))
    else:
        print(f"{len(rows)} engines are in {cache.folder}")
    return 0
