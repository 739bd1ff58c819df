"""Every component of a bundle, or of several, through NVIDIA's own builder, for RTX devices that need not be here.

    edgemm export checkpoints/sticker-small --target rtx --precision int8 --output int8.bundle    # and fp16, int4
    python benchmarks/rtx_build.py fp16.bundle int8.bundle int4.bundle [--sm 86,89,120] [--output rtx-build.json]
    python benchmarks/rtx_build.py --checkpoint checkpoints/sticker-small [--precision fp16,int8,int4]  # make build-rtx

With --checkpoint its graphs are written first and not compared, one precision while another is built.  Prints sizes of
engines, seconds and memory of each build, and the layers that TensorRT recognised; the last line is one JSON document.
Fails (exit 7) when a node is refused, when a build came down the ladder (attention taken apart is one), when TensorRT
recognised fewer attentions, rotary embeddings, cache updates or quantized tensors than the graph has, or when an engine
is so much larger than its quantized weights that they were widened.  An SM that multiplies no such numbers (fp8 before
8.9) is passed over and told.  An engine that builds is built, not tried: nothing here runs one.  Seconds of a machine
that did other work are marked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edgemm.bench.conditions import machine_card, read_cpu_times, report_other_work
from edgemm.bundle.bundle import Bundle, open_bundle
from edgemm.bundle.components import layers_of
from edgemm.bundle.files import write_whole
from edgemm.bundle.onnx_file import read_outline
from edgemm.device.gpu import missing_kernels
from edgemm.device.targets import installed_version
from edgemm.engines.builder import Limits, parse_bytes
from edgemm.engines.bundle_engines import (
    OPT_LEVEL,
    Destination,
    build_bundle,
    choose_destinations,
    default_memory_bytes,
    install_line,
)
from edgemm.engines.cache import EngineCache
from edgemm.errors import EdgemmError, MissingError

ROOT = Path(__file__).resolve().parents[1]
ROW = "{component:<14} {sm:>5} {precision:>5} {megabytes:>8} {seconds:>8} {peak:>8}  {layers}"
KINDS = {  # operator of the graph -> layer of TensorRT, and what the table calls it
    "Attention": ("ATTENTION_INPUT", "attention"),
    "RotaryEmbedding": ("ROTARY_EMBEDDING", "rotary"),
    "TensorScatter": ("KV_CACHE_UPDATE", "cache update"),
    "QuantizeLinear": ("QUANTIZE", "quantize"),
    "DequantizeLinear": ("DEQUANTIZE", "dequantize"),
    "TRT_FP4DynamicQuantize": ("DYNAMIC_QUANTIZE", "quantize while it runs"),
    "MatMul": ("MATRIX_MULTIPLY", "product"),
    "Conv": ("CONVOLUTION", "convolution"),
}
COUNTED = (  # one layer a node
    "Attention",
    "RotaryEmbedding",
    "TensorScatter",
    "QuantizeLinear",
    "DequantizeLinear",
    "TRT_FP4DynamicQuantize",
)
QUANTIZED = ("int8", "int4", "fp8", "nvfp4")
WIDENED = 2.0  # engine bytes a weight byte: 1.1 to 1.8 is usual, float16 instead of NVFP4 would be 2.3 and more
LEAST_BYTES = 1 << 20  # of weights that can be told from an engine's other bytes


def main() -> int:
    args = read_words()
    version = installed_version("tensorrt-rtx")
    if version is None:
        print(f"[-] nothing is built: tensorrt-rtx is not installed ({install_line('tensorrt_rtx', None)})")
        return 0 if args.if_installed else MissingError.exit_code
    head = {"component": "component", "sm": "SM", "precision": "", "megabytes": "MB", "seconds": "s", "peak": "peak MB"}
    print(ROW.format(**head, layers="layers"), flush=True)
    before = read_cpu_times(time.perf_counter())
    with tempfile.TemporaryDirectory(prefix="edgemm-engines-") as folder:
        told = build_all(args, Path(folder))
    other, unquiet = report_other_work(before, read_cpu_times(time.perf_counter()))
    for line in told.passed_over:
        print(f"[-] not built: {line}")
    for problem in told.problems:
        print(f"[x] {problem}")
    for warning in unquiet:
        print(warning, file=sys.stderr)
    document = {
        "benchmark": "rtx-build",
        "card": machine_card(),
        "tensorrt_rtx": version,
        "opt_level": args.opt_level,
        "state": "built, with no GPU; no engine was run",
        "jobs": args.jobs,
        "seconds_are_quiet": not unquiet and other["cores"] is not None and args.jobs == 1,
        "other_work": other,
        "results": told.rows,
        "passed_over": told.passed_over,
        "problems": told.problems,
    }
    print(json.dumps(document))
    if args.output:
        write_whole(args.output, json.dumps(document) + "\n")
    return 7 if told.problems else 0


def read_words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="build the graphs of this, instead")
    parser.add_argument("--precision", default="fp16,int8,int4", help="of the checkpoint's graphs (fp16,int8,int4)")
    parser.add_argument("--sm", default="86,89,120")
    parser.add_argument("--jobs", type=int, default=1, help="engines built at the same time")
    parser.add_argument("--opt-level", type=int, default=OPT_LEVEL)
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS")
    parser.add_argument(
        "--max-memory", type=parse_bytes, metavar="SIZE", help="of one build: 4GiB (3/4 of what is free)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="keep engines there, and go on with what an earlier run built"
    )
    parser.add_argument("--if-installed", action="store_true", help="without tensorrt-rtx say so, and end well")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the JSON document there, too")
    args = parser.parse_args()
    if bool(args.bundles) == bool(args.checkpoint):
        parser.error("give bundles, or --checkpoint")
    return args


@dataclass
class Told:
    """What came of one bundle for one device, or of several."""

    rows: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def __iadd__(self, other: Told) -> Told:
        self.rows += other.rows
        self.problems += other.problems
        self.passed_over += other.passed_over
        return self


def build_all(args: argparse.Namespace, folder: Path) -> Told:
    """Bundles are written, where they have to be, while others are built."""
    cache = EngineCache(args.cache or folder / "engines")
    limits = Limits(args.max_memory or default_memory_bytes(folder) // args.jobs, args.timeout)
    bundles: Iterable[Path] = args.bundles
    if args.checkpoint:
        sys.path.insert(0, str(ROOT))
        from benchmarks.uncompared_graphs import write_bundles

        bundles = write_bundles(args.checkpoint, args.precision.split(","), folder)
    told = Told()
    with ThreadPoolExecutor(args.jobs) as pool:
        tasks = [
            pool.submit(build_one, bundle, destination, cache, limits, args.opt_level)
            for bundle in map(open_bundle, bundles)
            for destination in choose_destinations(tuple(bundle.manifest.targets), "rtx", args.sm, None)
        ]
        for task in tasks:
            told += task.result()
    return told


def build_one(bundle: Bundle, destination: Destination, cache: EngineCache, limits: Limits, opt_level: int) -> Told:
    told, sm = Told(), destination.place.compute_capability
    missing = missing_in(bundle, sm)
    if missing:
        told.passed_over.append(f"{bundle.path.name} for SM {sm}: {missing}")
        return told
    try:
        for spec, built in build_bundle(bundle, destination, cache, limits, opt_level):
            told.rows.append(row_of(bundle, spec.component, sm, built.entry.record))
            told.problems += problems_of(bundle, told.rows[-1])
    except EdgemmError as error:
        told.problems.append(str(error))
    return told


def missing_in(bundle: Bundle, sm: str) -> str | None:
    """Why such a GPU does not run the bundle's weights as they are."""
    variants = [bundle.manifest.variant(component, "rtx") for component in bundle.manifest.targets["rtx"]]
    found = (missing_kernels(read_outline(bundle.file(variant.graph)), sm) for variant in variants)
    return next(filter(None, found), None)


def row_of(bundle: Bundle, component: str, sm: str, record: dict) -> dict:
    layers = Counter(record["layers"])
    kinds = {name: layers[kind] for kind, name in KINDS.values() if layers[kind]}
    variant = bundle.manifest.variant(component, "rtx")
    row = {
        "bundle": bundle.path.name,
        "component": component,
        "sm": sm,
        "precision": variant.precision,
        "weights_bytes": bundle.manifest.files[variant.data].size_bytes if variant.data else 0,
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
    variant = bundle.manifest.variant(row["component"], "rtx")
    name = f"{row['component']} ({row['precision']}) for SM {row['sm']}"
    found = [] if row["rung"] == "as asked" else [f"{name} was built with {row['rung']}"]
    nodes = Counter(node.op_type for node in read_outline(bundle.file(variant.graph)).nodes)
    wanted = {KINDS[op_type][1]: nodes[op_type] for op_type in COUNTED}
    if row["component"] == "transformer":
        depth = len(layers_of("past_key", variant.inputs))
        wanted |= {"attention": depth, "rotary": 2 * depth, "cache update": 2 * depth}
    if row["component"] == "denoiser":
        wanted["attention"] = len(layers_of("prefix_key", variant.inputs))
    size, weights = row["size_bytes"], row["weights_bytes"]
    if row["precision"] in QUANTIZED and weights > LEAST_BYTES and size > WIDENED * weights:
        found.append(f"{name} has {size / 1e6:.0f} MB, its weights {weights / 1e6:.0f}: they were widened")
    for kind, count in wanted.items():
        if row["layers"].get(kind, 0) != count:
            found.append(f"{name} has {row['layers'].get(kind, 0)} layers of {kind}, expected {count}")
    return found


if __name__ == "__main__":
    sys.exit(main())
