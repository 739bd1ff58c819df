"""What onnxruntime-gpu would do with the `cuda` graphs of bundles, asked of the real library over empty CUDA libraries.

    edgemm export checkpoints/micro-shapes --target cuda --precision int8 --output int8.bundle  # fp16, int4, fp32, too
    python benchmarks/cuda_registry.py int8.bundle ...  [--sm 8.9] [--output cuda-registry.json]

Needs no GPU: a C compiler, binutils, and onnxruntime-gpu, which pip brings into build/ort-gpu when it is not there (250
MB).  Its kernel registry, graph partitioning, copies and streams are real; kernels compute nothing.  Each component is
opened and run by edgemm's own backend, five times.  A row is right when every node that computes has a CUDA kernel and
no node copies between CPU and GPU (then ONNX Runtime takes the session for graph capture), no input or output lies on
the CPU's side, ONNX Runtime waits and allocates nothing while we capture, no copy from the CPU's memory is in the
graph, every kernel is on the captured stream, one launch is all of a later run, products do not round to TF32, and
nothing is left when the engine is gone.  What has convolutions that cuDNN plans while it runs is opened and looked at,
and not run.
The last line is one JSON document; exit 7 when a row is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
COLUMNS = ("component", "precision", "on_gpu", "on_cpu", "captured", "ran", "problems")
RUNS = 5
CACHES = ("past_", "present_", "prefix_")
SIZES = {"b": 1, "s": 1, "m": 1, "T": 16, "t": 16, "r": 1, "n": 16, "h": 8, "w": 8, "H": 64, "W": 64}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="without one, all is brought and made")
    parser.add_argument("--packages", type=Path, default=ROOT / "build" / "ort-gpu", help="onnxruntime-gpu, unpacked")
    parser.add_argument("--stubs", type=Path, default=ROOT / "build" / "cuda-stub", help="made there")
    parser.add_argument("--sm", default="8.9", help="compute capability of the GPU that is not there (8.9)")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        return look(args.bundles, args.output)
    from benchmarks.cuda_stub import make_stubs

    bring(args.packages)
    make_stubs(args.packages / "onnxruntime/capi/libonnxruntime_providers_cuda.so", args.stubs, args.sm)
    if not args.bundles:
        return 0
    path = os.pathsep.join(map(str, filter(None, (args.packages, ROOT, os.environ.get("PYTHONPATH")))))
    environment = {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(args.stubs.resolve()), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run([sys.executable, __file__, "--here", *sys.argv[1:]], env=os.environ | environment).returncode


def bring(packages: Path) -> None:
    """onnxruntime-gpu of the version in constraints.txt, beside and not over the onnxruntime that is installed."""
    if (packages / "onnxruntime").is_dir():
        return
    pinned = re.search(r"^onnxruntime-gpu==([\d.]+); python_version >= ", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    wheels = packages.with_name(f"{packages.name}-wheel")
    wanted = f"onnxruntime-gpu=={pinned[1]}"
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, wanted], check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(packages)


def look(paths: list[Path], output: Path | None) -> int:
    import onnxruntime

    from edgemm.bundle.bundle import open_bundle

    rows = []
    for path in paths:
        bundle = open_bundle(path, verify=False)
        for component in bundle.manifest.targets["cuda"]:
            rows.append({"bundle": path.name, **row_of(bundle, component)})
            print("  ".join(f"{rows[-1][column]!s:<14}" for column in COLUMNS), flush=True)
    wrong = [row for row in rows if row["problems"]]
    document = {"benchmark": "cuda-registry", "onnxruntime_gpu": onnxruntime.__version__, "rows": rows}
    print(json.dumps({**document, "state": "kernels computed nothing: no GPU"}))
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n")
    return 7 if wrong else 0


def row_of(bundle, component: str) -> dict:
    from edgemm.runtimes.backend import ort_cuda_backend as backend
    from edgemm.runtimes.backend.engine import GraphFiles, plan_threads

    variant = bundle.manifest.variant(component, "cuda")
    files = GraphFiles(
        component, bundle.file(variant.graph), bundle.file(variant.data) if variant.data else None, variant
    )
    cuda, before, problems, ran = backend.shared_cuda(1), counts(), [], True
    engine = backend.open_engine(files, backend.PROVIDER, plan_threads(1), threading.Lock(), 1)
    if engine.on_cpu:
        problems.append(f"on the CPU's side: {', '.join(sorted(engine.on_cpu))}")
    try:
        runs = list(run(engine, variant))
        problems += told_by(runs)
    except Exception as error:  # what the libraries raise is the answer
        ran = "CUDNN" not in str(error)  # which plans a convolution as it runs: no stub does
        problems += [str(error).splitlines()[0]] if ran else []
    captured = engine.graphs
    problems += [] if captured else ["ONNX Runtime does not take it for graph capture"]
    del engine
    gc.collect()
    with cuda.turn():
        left = {name: counts()[name] - before[name] for name in ("graphs", "streams", "pinned_memory", "device_memory")}
    problems += [f"{count} {name} left" for name, count in left.items() if count]
    return {
        "component": component,
        "precision": variant.precision,
        **where_nodes_run(files.graph),
        "ran": "yes" if ran else "no: convolutions",
        "captured": captured,
        "problems": "; ".join(problems),
    }


def run(engine, variant):
    """What each of several runs of one binding did, by count; the first one with what binding did."""
    import numpy as np

    def arrays(specs):  # as loops give them: large ones in memory of both, small ones numpy's own
        shapes = {spec.name: [SIZES.get(e, 16) if isinstance(e, str) else e for e in spec.shape] for spec in specs}
        large = {spec.name: engine.zeros if spec.name.startswith(CACHES) else np.zeros for spec in specs}
        return {spec.name: large[spec.name](tuple(shapes[spec.name]), spec.dtype) for spec in specs}

    inputs = arrays(variant.inputs)
    outputs = arrays([spec for spec in variant.outputs if not spec.name.startswith("block_")])  # which no step binds
    outputs |= {name: inputs[past] for name in outputs if (past := name.replace("present_", "past_", 1)) in inputs}
    before = counts()
    binding = engine.bind(inputs, outputs)
    for _ in range(RUNS):
        binding.run()
        after = counts()
        yield {name: count - before[name] for name, count in after.items()}
        before = after


def told_by(runs: list[dict]) -> list[str]:
    whole = {name: sum(run[name] for run in runs) for name in runs[0]}
    problems = [] if runs[0]["kernels"] else ["no kernel was launched"]
    problems += [f"{whole['refusals']} calls that a capture forbids"] if whole["refusals"] else []
    problems += [f"{whole['captured_copies']} copies from the CPU in the graph"] if whole["captured_copies"] else []
    problems += [f"{whole['tf32']} products in TF32"] if whole["tf32"] else []
    problems += (
        [f"{whole['strays']} kernels on another stream than the captured one, or of another thread"]
        if whole["strays"]
        else []
    )
    problems += [f"{runs[0]['copies']} arrays copied when they were bound or first run"] if runs[0]["copies"] else []
    last = {name: runs[-1][name] for name in ("launches", "kernels", "copies")}
    problems += [f"a later run is {last}"] if last != {"launches": 1, "kernels": 0, "copies": 0} else []
    return problems


def where_nodes_run(graph: Path) -> dict:
    """After ONNX Runtime's own fusions; what is left to the CPU computes shapes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(graph), options, providers=["CUDAExecutionProvider"])
    names = {"CUDAExecutionProvider": [], "CPUExecutionProvider": []}
    for part in session.get_provider_graph_assignment_info():
        names[part.ep_name] += [node.op_type for node in part.get_nodes()]
    return {"on_gpu": len(names["CUDAExecutionProvider"]), "on_cpu": len(names["CPUExecutionProvider"])}


def counts() -> dict[str, int]:
    from benchmarks.cuda_stub import COUNTS

    stub = ctypes.CDLL("libcudart.so.13")
    stub.stub_count.restype = ctypes.c_long
    return {name: stub.stub_count(index) for index, name in enumerate(COUNTS)}


if __name__ == "__main__":
    sys.exit(main())
