"""The portable dialect on the oldest ONNX Runtime that it is made for (JetPack 6), in an environment of its own.

    edgemm export checkpoints/sticker-small --target jetson-orin-jp6 --output jp6.bundle
    python benchmarks/portable_dialect.py jp6.bundle

Makes build/ort-1.23 when it is not there (a minute, and a network), then runs the bundle's recorded questions and
drawings with that ONNX Runtime's CPU and compares them with what torch answered at export.  No GPU, no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("onnxruntime==1.23.2", "numpy<2.4", "tokenizers>=0.22", "safetensors>=0.7", "pillow>=11", "tqdm>=4.66")
TARGET = "jetson-orin-jp6"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "ort-1.23")
    parser.add_argument("--python", default="python3.10", help="that makes the environment (default: python3.10)")
    parser.add_argument("--here", action="store_true", help="compare with the ONNX Runtime of this very Python")
    args = parser.parse_args()
    if args.here:
        return compare(args.bundle)
    python = make_environment(args.environment, args.python)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(python), __file__, str(args.bundle), "--here"]
    return subprocess.run(command, env=environment).returncode


def make_environment(folder: Path, python: str) -> Path:
    """Its Python; what stands there already is taken as it is."""
    inside = folder / "bin" / "python"
    if not inside.exists():
        print(f"making {folder} with {python}")
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(inside), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return inside


def compare(path: Path) -> int:
    import onnxruntime

    from edgemm.bundle.bundle import open_bundle
    from edgemm.runtimes.backend.engine import plan_threads
    from edgemm.runtimes.engines import Choice, Engines
    from edgemm.runtimes.model import Model
    from edgemm.verify.loops import compare_loops
    from edgemm.verify.parity import precision_of, read_recorded

    bundle = open_bundle(path)
    precision = precision_of(bundle.manifest, TARGET)
    recorded = dataclasses.replace(read_recorded(bundle), precision=precision)
    choice = Choice("cpu", "onnxruntime", TARGET, "CPUExecutionProvider", "the oldest ONNX Runtime it is made for")
    with Model(Engines(bundle, choice, plan_threads())) as model:
        comparisons = list(compare_loops(model, recorded))
    for comparison in comparisons:
        print(comparison.line())
    passed = all(comparison.passed for comparison in comparisons)
    versions = {"onnxruntime": onnxruntime.__version__, "python": sys.version.split()[0]}
    rows = [comparison.to_json() for comparison in comparisons]
    print(json.dumps({"bundle": path.name, "precision": precision, "passed": passed, **versions, "comparisons": rows}))
    return 0 if passed else 7


if __name__ == "__main__":
    sys.exit(main())
