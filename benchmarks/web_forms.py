"""Which form of a product is the fastest in onnxruntime-web's wasm: eight layers of sticker-nano's shape in every form.

    (cd examples/web && npm install)
    python benchmarks/web_forms.py [--threads 1] [--rounds 20] [--bundles NAME=DIR ...]

Forms are what edgemm/export/lower_cpu.py writes, of the same weights; each runs in turn in one node process, so other
work on the machine meets all alike.  With bundles of `--one-call draw,read` their whole graphs run in turns, too, and
drawings are compared with the first one's.  A table, then one JSON line: milliseconds of the processor (all threads
together) and of the wall, medians; how many times sooner than the first form, the median of the rounds' own ratios;
signal over error in dB; MB of weights as stored, milliseconds to open.  What a precision costs a model is
benchmarks/quantization.py's table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.lower_cpu import lower_ort_cpu
from edgemm.quantize.rounding import rtn
from edgemm.quantize.spec import SCHEMA_VERSION, Document, Layer, Spec

WEB = Path(__file__).resolve().parents[1] / "examples" / "web"
SHAPES = {"a token": (1, 576, 1536), "a prompt": (40, 576, 1536), "a step": (64, 320, 1280)}  # rows, k, n
LAYERS = 8
FORMS: dict[str, Layer | str] = {
    "float32": Layer(None),
    "float16 stored": "float16",
    "MatMulInteger, tensor": Layer(8, 0, activations="tensor"),
    "MatMulInteger, token": Layer(8, 0, activations="token"),
    "MatMulNBits 8, level 4": Layer(8, 32, activations="block"),
    "MatMulNBits 8, level 1": Layer(8, 32, activations="float"),
    "MatMulNBits 4, level 4": Layer(4, 32, symmetric=False, activations="block"),
    "MatMulNBits 4, level 1": Layer(4, 32, symmetric=False, activations="float"),
}


def written(shape: tuple[int, int, int], form: Layer | str, path: Path) -> None:
    """y = sum of x W_i over the layers, each product in its form."""
    rows, k, n = shape
    weights = np.random.default_rng(7).standard_normal((LAYERS, k, n), dtype=np.float32) / np.float32(np.sqrt(k))
    half = form == "float16"
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(LAYERS)]
    nodes += [helper.make_node("Cast", [f"h{i}"], [f"w{i}"], to=TensorProto.FLOAT) for i in range(LAYERS) if half]
    nodes = nodes[::-1] if half else nodes
    nodes.append(helper.make_node("Sum", [f"y{i}" for i in range(LAYERS)], ["y"]))
    stored = weights.astype(np.float16) if half else weights
    given = [numpy_helper.from_array(w, f"{'h' if half else 'w'}{i}") for i, w in enumerate(stored)]
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, size]) for name, size in (("x", k), ("y", n)))
    x, y = ends
    graph = helper.make_graph(nodes, "products", [x], [y], given)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    if isinstance(form, Layer) and form.bits:
        names = [f"transformer.product_{number}" for number in range(LAYERS)]
        layers = dict.fromkeys(names, form)
        numbers = [rtn(torch.from_numpy(w.T.copy()), form.bits, form.group, form.symmetric) for w in weights]
        tensors = {
            f"{name}.{part}": getattr(each, part).numpy()
            for name, each in zip(names, numbers, strict=True)
            for part in ("codes", "scales", "zeros")
        }
        document = Document(SCHEMA_VERSION, "", "", "", "", "", "", layers, (), "")
        model, _ = lower_ort_cpu("transformer", model, Spec(document, tensors))
    onnx.save_model(ir.to_proto(model), str(path))


def products(folder: Path) -> list[dict[str, Any]]:
    cases = []
    for what, shape in SHAPES.items():
        forms = []
        for name, form in FORMS.items():
            path = folder / f"{what}-{name}.onnx"
            written(shape, form, path)
            inputs = [{"name": "x", "shape": shape[:2], "dtype": "float32"}]
            forms.append({"name": name, "graph": str(path), "data": [], "inputs": inputs, "bytes": path.stat().st_size})
        cases.append({"what": what, "forms": forms})
    return cases


def wholes(bundles: list[str]) -> list[dict[str, Any]]:
    cases = []
    for call in ("draw", "token", "read") if bundles else ():
        forms = []
        for name, _, place in (words.partition("=") for words in bundles):
            manifest = json.loads(Path(place, "manifest.json").read_text())
            variants = manifest["one_call"][call]["variants"]
            variant = variants.get("web") or variants["cpu"]
            base = Path(variant["graph"]).parent
            data = [(str(Path(share).relative_to(base)), f"{place}/{share}") for share in variant["shares"]]
            size = sum(Path(file).stat().st_size for _, file in data)
            graph = f"{place}/{variant['graph']}"
            forms.append({"name": name, "graph": graph, "data": data, "inputs": variant["inputs"], "bytes": size})
        cases.append({"what": f"whole: {call}", "forms": forms})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bundles", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--only-bundles", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = wholes(args.bundles) + ([] if args.only_bundles else products(Path(folder)))
        wish, script = Path(folder, "wish.json"), WEB / "bench.mjs"
        wish.write_text(json.dumps({"threads": args.threads, "rounds": args.rounds, "cases": cases}))
        script.write_text(Path(__file__).with_suffix(".mjs").read_text())
        try:
            said = subprocess.run(["node", script.name, wish], cwd=WEB, check=True, stdout=subprocess.PIPE).stdout
        finally:
            script.unlink()
    sizes = {(case["what"], form["name"]): form["bytes"] / 1e6 for case in cases for form in case["forms"]}
    print(f"{'':14}{'form':24}{'cpu ms':>9}{'wall ms':>9}{'sooner':>8}{'dB':>7}{'MB':>7}{'open ms':>9}")
    rows = [row | {"mb": sizes[row["what"], row["name"]]} for row in json.loads(said)]
    for row in rows:
        print(
            f"{row['what']:14}{row['name']:24}{row['cpu_ms']:9.2f}{row['wall_ms']:9.2f}{row['sooner']:8.2f}"
            f"{'-' if row['db'] is None else format(row['db'], '.1f'):>7}{row['mb']:7.1f}{row['open_ms']:9.0f}"
        )
    print(json.dumps({"threads": args.threads, "rounds": args.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
