"""Lowering for x86 and ARM CPUs: ONNX Runtime's own block-quantized and dynamic int8 products.

Weights of the transformer in blocks of 32 (MatMulNBits, accuracy level 4: int8 arithmetic), 8 bits or 4; its embedding
in 8 bits (GatherBlockQuantized).  Conditioner and denoiser in dynamic int8 with their first and last products in float.
The eye and the image decoder stay in float.  A component that a precision does not touch keeps its reference graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgemm.errors import UsageError

__all__ = ["PRECISIONS", "lower"]

PRECISIONS = ("fp32", "int8", "int4")
BLOCK = 32
BITS = {"int8": 8, "int4": 4}


def lower(component: str, reference: ModelProto, precision: str) -> tuple[ModelProto, str]:
    """The component's graph for CPUs and the precision it really has."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    if precision == "fp32" or component in ("image_encoder", "image_decoder"):
        return reference, "fp32"
    if component == "transformer":
        return _block_quantized(reference, BITS[precision]), precision
    return _dynamic_int8(reference), "int8"


def _block_quantized(model: ModelProto, bits: int) -> ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        KQuantWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
        QuantFormat,
    )

    copy = ModelProto()
    copy.CopyFrom(model)
    _quantize_embedding(copy)
    if bits == 4 and _suits_k_quant(copy):
        config = KQuantWeightOnlyQuantConfig()
    else:
        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=False, accuracy_level=4, bits=bits, quant_format=QuantFormat.QOperator
        )
    quantizer = MatMulNBitsQuantizer(
        copy, bits=bits, block_size=BLOCK, is_symmetric=False, accuracy_level=4, algo_config=config
    )
    with _quiet():
        quantizer.process()
    lowered = quantizer.model.model
    assert lowered is not None
    return lowered


def _suits_k_quant(model: ModelProto) -> bool:
    """ONNX Runtime's k-quant packs zero-points in pairs of blocks and fails on an odd number of them."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    depths = [weights[n.input[1]][0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    return all(depth % (2 * BLOCK) == 0 for depth in depths)


def _quantize_embedding(model: ModelProto) -> None:
    """The tied embedding: rows gathered from 8-bit blocks; the head becomes a MatMul that the block quantizer takes."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    gather = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[0] in weights)
    head = next(n for n in model.graph.node if n.op_type in ("Gemm", "MatMul") and n.output[0] == "logits")
    table = numpy_helper.to_array(weights[gather.input[0]])  # (vocab, width)
    blocks = table.reshape(table.shape[0], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1) / 127
    scale[scale == 0] = 1
    quantized = (np.rint(blocks / scale[..., None]) + 128).astype(np.uint8).reshape(table.shape)
    zero = np.full(scale.shape, 128, np.uint8)
    for name, array in {"embedding_q8": quantized, "embedding_scale": scale, "embedding_zero": zero}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    replaced = helper.make_node(
        "GatherBlockQuantized",
        ["embedding_q8", gather.input[1], "embedding_scale", "embedding_zero"],
        list(gather.output),
        name=gather.name,
        domain="com.microsoft",
        bits=8,
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )
    product = helper.make_node("MatMul", [head.input[0], "head_weight"], list(head.output), name="logits_head")
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(table.T), "head_weight"))
    for old, new in ((gather, replaced), (head, product)):
        position = list(model.graph.node).index(old)
        model.graph.node.remove(old)
        model.graph.node.insert(position, new)
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in weights.items():
        if name not in used:
            model.graph.initializer.remove(tensor)
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _dynamic_int8(model: ModelProto) -> ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = [node.name for node in model.graph.node if _touches_pixels(node, model)]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, str(source))
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(str(target))


def _touches_pixels(node: onnx.NodeProto, model: ModelProto) -> bool:
    """Products next to the picture's own numbers (and the pooled prompt's whitening) keep their precision."""
    last = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm")][-1]
    first = "noisy_tokens" in node.input
    return (
        first
        or any("whiten" in name for name in node.input)
        or (node.name == last.name and "prediction" in _made(model))
    )


def _made(model: ModelProto) -> set[str]:
    return {output.name for output in model.graph.output}


@contextlib.contextmanager
def _quiet():
    """ONNX Runtime's quantizers log to the root logger and draw a progress bar of their own on stdout."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
