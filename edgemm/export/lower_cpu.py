"""Lowering for x86 and ARM CPUs: ONNX Runtime's own block-quantized and dynamic int8 products.

Weights of the transformer, and of heads apart from it, in blocks of 32 (MatMulNBits, accuracy level 4: int8
arithmetic), 8 bits or 4; its embedding in 8 bits (GatherBlockQuantized).  In int4 what makes keys and values keeps 8
bits in the layers that drawing reads: the denoiser looks at them at every step.  Conditioner and denoiser in dynamic
int8 with their first and last products in float.  Eyes, tokenizers of pictures and the image decoder stay in float.
What a precision does not touch keeps its reference graph.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgemm.errors import UsageError
from edgemm.export.quiet import quiet

__all__ = ["PRECISIONS", "lower"]

PRECISIONS = ("fp32", "int8", "int4")
BLOCK = 32
BITS = {"int8": 8, "int4": 4}
IN_FLOAT = ("image_encoder", "image_decoder", "image_embedder", "vq_encoder", "vq_decoder")
HEADS = ("text_head", "image_head")
PRODUCTS = ("MatMul", "Gemm")


def lower(component: str, reference: ModelProto, precision: str, drawing_depth: int = 0) -> tuple[ModelProto, str]:
    """The component's graph for CPUs and the precision it really has; drawing reads layers below `drawing_depth`."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is none of: {', '.join(PRECISIONS)}")
    if precision == "fp32" or component in IN_FLOAT:
        return reference, "fp32"
    if component in HEADS:
        copy = ModelProto()
        copy.CopyFrom(reference)
        return _in_blocks(_with_plain_weights(copy), BITS[precision]), precision
    if component == "transformer":
        return _block_quantized(reference, BITS[precision], drawing_depth), precision
    return _dynamic_int8(reference), "int8"


def _block_quantized(model: ModelProto, bits: int, drawing_depth: int) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    fine = [node.name for node in copy.graph.node if _makes_keys_or_values(node, drawing_depth)]
    _quantize_embedding(copy)
    if bits == 8:
        return _in_blocks(copy, 8)
    return _in_blocks(_in_blocks(copy, bits, left_out=fine), 8)


def _makes_keys_or_values(node: NodeProto, drawing_depth: int) -> bool:
    """Of a layer below the depth; the products that feed the residual stream of the next layer's too."""
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    found = re.search(r"layers\.(\d+)\.(?:self_attn\.[kv]_proj|mlp\.down_proj)\b", scopes)
    return node.op_type in PRODUCTS and found is not None and int(found[1]) < drawing_depth


def _in_blocks(model: ModelProto, bits: int, left_out: Sequence[str] = ()) -> ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        KQuantWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
        QuantFormat,
    )

    if bits == 4 and _suits_k_quant(model):
        config = KQuantWeightOnlyQuantConfig()
    else:
        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=False, accuracy_level=4, bits=bits, quant_format=QuantFormat.QOperator
        )
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=BLOCK,
        is_symmetric=False,
        accuracy_level=4,
        nodes_to_exclude=list(left_out),
        algo_config=config,
    )
    with quiet():
        quantizer.process()
    return quantizer.model.model  # type: ignore[attr-defined]  # the library's own wrapper


def _suits_k_quant(model: ModelProto) -> bool:
    """ONNX Runtime's k-quant packs zero-points in pairs of blocks and fails on an odd number of them."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    depths = [weights[n.input[1]][0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    return all(depth % (2 * BLOCK) == 0 for depth in depths)


def _quantize_embedding(model: ModelProto) -> None:
    """The embedding: rows gathered from 8-bit blocks; a head, tied or not, becomes a MatMul that the quantizer takes.

    A width that is no multiple of a block keeps its rows in float.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    gather = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[0] in weights)
    table = numpy_helper.to_array(weights[gather.input[0]])  # (vocab, width)
    _with_plain_weights(model)
    if table.shape[1] % BLOCK == 0:
        _replace(model, gather, _gather_of_blocks(model, gather, table))
    _drop_unused(model, {tensor.name: tensor for tensor in model.graph.initializer})


def _with_plain_weights(model: ModelProto) -> ModelProto:
    """Products of weights stored the other way round (Gemm, or a Transpose before) as the MatMul that is quantized."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    turned = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in weights}
    for number, node in enumerate([n for n in model.graph.node if n.op_type in PRODUCTS]):
        name = turned.get(node.input[1], node.input[1])
        across = node.input[1] in turned or any(a.name == "transB" and a.i for a in node.attribute)
        if name not in weights or not across:
            continue
        plain, bias = f"head_weight_{number}", node.input[2:3]
        table = numpy_helper.to_array(weights[name])  # (out, in)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(table.T), plain))
        said = f"{node.output[0]}_product" if bias else node.output[0]
        product = helper.make_node("MatMul", [node.input[0], plain], [said], name=f"head_{number}")
        position = list(model.graph.node).index(node)
        _replace(model, node, product)
        if bias:
            model.graph.node.insert(position + 1, helper.make_node("Add", [said, *bias], list(node.output)))
    _drop_unused(model, weights)
    return model


def _drop_unused(model: ModelProto, weights: dict[str, TensorProto]) -> None:
    read = {name for node in model.graph.node for name in node.input}
    for node in [n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] in weights]:
        if node.output[0] not in read:
            model.graph.node.remove(node)
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in weights.items():
        if name not in used:
            model.graph.initializer.remove(tensor)


def _gather_of_blocks(model: ModelProto, gather: NodeProto, table: np.ndarray) -> NodeProto:
    blocks = table.reshape(table.shape[0], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1) / 127
    scale[scale == 0] = 1
    quantized = (np.rint(blocks / scale[..., None]) + 128).astype(np.uint8).reshape(table.shape)
    zero = np.full(scale.shape, 128, np.uint8)
    arrays = {"embedding_q8": quantized, "embedding_scale": scale, "embedding_zero": zero}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_node(
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


def _replace(model: ModelProto, old: NodeProto, new: NodeProto) -> None:
    position = list(model.graph.node).index(old)
    model.graph.node.remove(old)
    model.graph.node.insert(position, new)


def _dynamic_int8(model: ModelProto) -> ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, str(source))
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in _kept_in_float(model)],
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(str(target))


def _kept_in_float(model: ModelProto) -> list[NodeProto]:
    """The products next to the picture's own numbers, and the pooled prompt's whitening."""
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    kept = [n for n in products if "noisy_tokens" in n.input or any("whiten" in name for name in n.input)]
    draws = any(output.name == "prediction" for output in model.graph.output)
    return kept + (products[-1:] if draws else [])
