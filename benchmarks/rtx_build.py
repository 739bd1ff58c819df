"""Every component of a bundle through NVIDIA's own builder, for RTX devices that need not be here.

    edgemm export checkpoints/sticker-small --target rtx --output rtx.bundle
    python benchmarks/rtx_build.py rtx.bundle [--sm 86,89,120]

Prints sizes of engines, seconds and memory of each build, and the layers that TensorRT recognised; the last line is one
JSON document.  Fails (exit 7) when a node is refused, when a build came down the ladder, or when attention, rotary
embedding or cache update were not recognised.  An engine that builds is built, not tried: nothing
here runs one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from edgemm.build.builder import Limits
from edgemm.build.bundle_engines import build_bundle, default_memory_bytes
from edgemm.build.devices import choose_destinations
from edgemm.build.engine_cache import EngineCache
from edgemm.bundle import Bundle, open_bundle
from edgemm.components import layers_of
from edgemm.errors import EdgemmError
from edgemm.measure.card import commit

ROW = "{component:<14} {sm:>5} {precision:>5} {megabytes:>8} {seconds:>8} {peak:>8}  {layers}"
KINDS = ("ATTENTION_INPUT", "ROTARY_EMBEDDING", "KV_CACHE_UPDATE", "MATRIX_MULTIPLY", "CONVOLUTION", "NORMALIZATION")
SHORT = {"ATTENTION_INPUT": "attention", "ROTARY_EMBEDDING": "rotary", "KV_CACHE_UPDATE": "cache update"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sm", default="86,89,120")
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    destinations = choose_destinations(tuple(bundle.manifest.targets), "rtx", args.sm, None)
    head = {"component": "component", "sm": "SM", "precision": "", "megabytes": "MB", "seconds": "s", "peak": "peak MB"}
    print(ROW.format(**head, layers="layers"))
    rows, problems = [], []
    limits = Limits(default_memory_bytes(args.bundle), args.timeout)
    with tempfile.TemporaryDirectory(prefix="edgemm-engines-") as folder:
        for destination in destinations:
            try:
                for spec, built in build_bundle(bundle, destination, EngineCache(Path(folder)), limits):
                    rows.append(
                        row_of(bundle, spec.component, destination.place.compute_capability, built.entry.record)
                    )
                    problems += problems_of(bundle, rows[-1])
            except EdgemmError as error:
                problems.append(str(error))
    for problem in problems:
        print(f"[x] {problem}")
    version = destinations[0].version
    document = {
        "bundle": args.bundle.name,
        "tensorrt_rtx": version,
        "commit": commit(Path(__file__).parent),
        "engines": rows,
    }
    print(json.dumps({**document, "problems": problems}))
    return 7 if problems else 0


def row_of(bundle: Bundle, component: str, sm: str, record: dict) -> dict:
    layers = Counter(record["layers"])
    kinds = {SHORT.get(kind, kind.lower()): layers[kind] for kind in KINDS if layers[kind]}
    row = {
        "component": component,
        "sm": sm,
        "precision": bundle.manifest.variant(component, "rtx").precision,
        "size_bytes": record["size_bytes"],
        "seconds": record["seconds"],
        "peak_bytes": record["peak_bytes"],
        "rung": record["rung"],
        "layers": kinds,
        "all_layers": sum(layers.values()),
    }
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + f" of {row['all_layers']}"
    sizes = {"megabytes": f"{row['size_bytes'] / 1e6:.1f}", "peak": f"{row['peak_bytes'] / 1e6:.0f}"}
    print(ROW.format(**{**row, **sizes, "layers": told}), flush=True)
    return row


def problems_of(bundle: Bundle, row: dict) -> list[str]:
    name = f"{row['component']} for SM {row['sm']}"
    found = [] if row["rung"] == "as asked" else [f"{name} was built with {row['rung']}"]
    if row["component"] == "transformer":
        depth = len(layers_of("past_key", bundle.manifest.variant("transformer", "rtx").inputs))
        wanted = {"attention": depth, "rotary": 2 * depth, "cache update": 2 * depth}
        for kind, count in wanted.items():
            if row["layers"].get(kind, 0) != count:
                found.append(f"{name} has {row['layers'].get(kind, 0)} layers of {kind}, expected {count}")
    if row["component"] == "denoiser":
        depth = len(layers_of("prefix_key", bundle.manifest.variant("denoiser", "rtx").inputs))
        if row["layers"].get("attention", 0) != depth:
            found.append(f"{name} has {row['layers'].get('attention', 0)} layers of attention, expected {depth}")
    return found


if __name__ == "__main__":
    sys.exit(main())
