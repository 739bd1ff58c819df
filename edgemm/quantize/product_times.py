"""How long a layer's product takes on this machine in each form, run alone by ONNX Runtime's CPU kernels.

A search that wants speed needs a number a layer; whole graphs are for `edgemm bench`.  One row of inputs stands for a
token that is decoded, as many as a picture has tokens for a denoising step.
Axes: n output channels, k input channels, r rows.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgemm.quantize.rtn import rtn
from edgemm.quantize.spec import SCHEMA_VERSION, Document, Layer, Spec, tensors_hash

__all__ = ["ProductTimes"]

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
    from edgemm.export.lower_ort_cpu import lower_ort_cpu
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
    numbers = rtn(weight, layer.bits, layer.group, layer.symmetric)
    parts = {"codes": numbers.codes, "scales": numbers.scales, "zeros": numbers.zeros}
    tensors = {f"{NAME}.{part}": tensor.numpy() for part, tensor in parts.items()}
    document = Document(SCHEMA_VERSION, "", "", "", "", "", "", {NAME: layer}, (), tensors_hash(tensors))
    return lower_ort_cpu("transformer", model, Spec(document, tensors))[0]
