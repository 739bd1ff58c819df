"""`edgemm build BUNDLE`: engines for this machine's device, or, with no GPU, for RTX devices elsewhere."""

from __future__ import annotations

import argparse
import json

from edgemm.cli.flags import add_options, read_options
from edgemm.engines.builder import BuildOptions, Limits
from edgemm.options import parse_bytes
from edgemm.progress import Display

__all__ = ["HELP", "add_arguments", "run"]

HELP = "build a bundle's TensorRT engines: for this device, or with --target rtx --sm 86,89 for others, without a GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder that `edgemm export` wrote")
    add_options(parser, BuildOptions)
    parser.add_argument("--print-trtexec", action="store_true", help="print NVIDIA's commands for it and build nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    options = read_options(args, BuildOptions)

    from edgemm.bundle.bundle import open_bundle
    from edgemm.engines.bundle_engines import build_bundle, bundle_specs, choose_destinations, default_memory_bytes
    from edgemm.engines.cache import EngineCache, default_folder
    from edgemm.engines.engine_spec import trtexec_command

    bundle = open_bundle(args.bundle)
    memory = options.memory_bytes or default_memory_bytes(bundle.path)
    destinations = choose_destinations(tuple(bundle.manifest.targets), options.target, options.sm, options.device)
    if args.print_trtexec:
        for destination in destinations:
            for spec, graph in bundle_specs(bundle, destination, options.opt_level, memory):
                name = f"{spec.component}-sm{spec.place.compute_capability.replace('.', '')}.engine"
                print(trtexec_command(spec, graph, name, destination.target.startswith("jetson")))
        return 0
    cache = EngineCache(options.cache or default_folder(), parse_bytes(options.cache_size))
    rows = []
    with Display():
        for destination in destinations:
            limits = Limits(memory, options.timeout)
            for spec, built in build_bundle(bundle, destination, cache, limits, options.opt_level):
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
