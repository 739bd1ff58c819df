"""A bundle as it would be without the passes for ONNX Runtime's CPU provider: the "before" of a profile.

    python benchmarks/without_passes.py checkpoints/sticker-small before.bundle --precision int8
    edgemm export checkpoints/sticker-small --output after.bundle --precision int8
    python benchmarks/runtime_profile.py before.bundle after.bundle

The weights and their rounding are those of a plain export; only edgemm/export/ort_cpu_graph.py is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgemm.export import variants
from edgemm.progress import Display
from edgemm.verify.export_native import export_bundle


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--precision", default="int8", help="fp32, int8 or int4 (default %(default)s)")
    args = parser.parse_args(words)
    variants.for_ort_cpu = lambda lowered, slots: None
    with Display(results=True):
        export_bundle(args.checkpoint, args.output, precision=args.precision)
    print(f"Wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
