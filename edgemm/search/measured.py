"""What a search has measured so far, a JSON line each: killed at any moment, it goes on from here.

The first line says what was searched; a journal of anything else is refused rather than mixed in.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgemm.bundle.files import reading
from edgemm.errors import InputError
from edgemm.quantize.make import Method, Prepared, make_spec
from edgemm.quantize.spec import Layer

__all__ = ["Journal", "ProductTimes"]


class Journal:
    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill may tear the last one
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about, sort_keys=True) + "\n", encoding="utf-8")
            return
        known = _parsed(path, whole[0])
        changed = sorted(name for name in about.keys() | known.keys() if about.get(name) != known.get(name))
        if changed:
            raise InputError(
                f"{path}: an unfinished search with another {', '.join(changed)}; delete it, or search as it was begun"
            )
        for line in whole[1:]:
            row = _parsed(path, line)
            self.found[row["key"]] = row
        path.write_text("".join(whole), encoding="utf-8")

    def add(self, key: str, **values: Any) -> dict[str, Any]:
        row = {"key": key, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.found[key] = row
        return row


def _parsed(path: Path, line: str) -> dict[str, Any]:
    with reading(path, "not the journal of a search"):
        row = json.loads(line)
    if not isinstance(row, dict):
        raise InputError(f"{path}: not the journal of a search")
    return row


# How long a layer's product takes on this machine in each form, run alone by ONNX Runtime's CPU kernels.
#
# A search that wants speed needs a number a layer; whole graphs are for `edgemm bench`.  One row of inputs stands for a
# token that is decoded, as many as a picture has tokens for a denoising step.
# Axes: n output channels, k input channels, r rows.

RUNS = 15
NAME = "transformer.product"
OPSET, IR = 21, 10


class ProductTimes:
    """Equal products are timed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, Layer], float] = {}

    def ms(self, n: int, k: int, rows: int, layer: Layer) -> float:
        form = Layer(layer.bits, layer.group, layer.symmetric, layer.activations)
        key = (n, k, rows, form)
        if key not in self._known:
            self._known[key] = _measured(n, k, rows, form)
        return self._known[key]


def _measured(n: int, k: int, rows: int, layer: Layer) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    model = _product(n, k, layer)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.ones((rows, k), np.float32)
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        session.run(None, {"x": x})
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken[2:])


def _product(n: int, k: int, layer: Layer) -> ModelProto:
    from edgemm.export.lower_cpu import lower_ort_cpu
    from edgemm.export.products import SCOPES

    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    node.metadata_props.add(key=SCOPES, value=f"['', 'module.{NAME}']")
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["r", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["r", n])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.numpy().T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    if layer.bits is None:
        return model
    spec = make_spec({NAME: weight}, {NAME: layer}, Prepared({"text": Method(rounds="rtn")}))
    return ir.to_proto(lower_ort_cpu("transformer", ir.from_proto(model), spec)[0])
