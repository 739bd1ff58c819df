"""Learned routing as ONNX Runtime's own operator, which multiplies with the chosen experts alone.

A traced Mixture (model/feed_forward.py) multiplies every token with every expert, and by zero where it was not chosen:

    logits = x @ router;  chosen, weights = TopK(Softmax(logits))
    y = ReduceSum(MatMul(silu(gate) * up * shares, down_proj), axis 0) of MatMul(Unsqueeze(x), gate_up_proj)
        ->   MoE(x, logits, W1, W2)      float weights
             QMoE(x, logits, W1, W2)     rounded to the nearest: 8 bits, one scale an output channel, as blocks of 8
                                         bits are off by a hundredth in ONNX Runtime 1.32; 4 bits in blocks of 32

Gate and up lie interleaved there.  ONNX Runtime 1.32's QMoE gives a single expert the weight 1 whatever
`normalize_routing_weights` says, so its output is multiplied by the largest probability.  ONNX Runtime before 1.28
computes another SwiGLU without a word: ort_backend.py refuses it.
Axes: t tokens, w width, h hidden numbers, e experts.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemm.export.passes.rewriting import CONTRIB, Writer, drop_unread, stored

__all__ = ["experts_fused"]

GATE_UP, DOWN, ROUTER = "gate_up_proj", "down_proj", "router"
BLOCK = 32
SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}


def experts_fused(model: ir.Model, bits: int | None = None) -> bool:
    """In `model` itself; `bits` are 8, 4 or, for float, None.  Answers whether there was a Mixture."""
    found = [name for name in model.graph.initializers if name.endswith(f".{GATE_UP}")]
    writer = Writer(model)
    for name in found:
        _fuse(model, writer, name.removesuffix(GATE_UP), bits)
    if found:
        model.opset_imports.setdefault(CONTRIB, 1)
        drop_unread(model)
    return bool(found)


def _fuse(model: ir.Model, writer: Writer, stem: str, bits: int | None) -> None:
    gate_up, down, router = (model.graph.initializers[stem + part] for part in (GATE_UP, DOWN, ROUTER))
    first, last = _reader(gate_up, "MatMul"), _reader(down, "MatMul")
    softmax = _after(_reader(router, "MatMul"), "Softmax")
    summed, top = _after(last, "ReduceSum"), _after(softmax, "TopK")
    x = first.inputs[0]
    producer = x.producer() if x is not None else None
    if producer is not None and producer.op_type == "Unsqueeze":
        x = producer.inputs[0]  # (t, w)
    k = int(stored(top.inputs[1]).item())  # pyright: ignore[reportOptionalMemberAccess]
    writer.place = summed
    attributes = SWIGLU | {"k": k, "normalize_routing_weights": int(k > 1)}
    weights = [_interleaved(gate_up), _turned(down)]
    logits = softmax.inputs[0]
    if bits is None:
        names = (f"{stem}{part}.turned" for part in (GATE_UP, DOWN))
        one, two = (writer.constant(array, name=name) for name, array in zip(names, weights))
        y = writer.make("MoE", x, logits, one, None, two, domain=CONTRIB, **attributes)
    else:
        block = BLOCK if bits == 4 and all(array.shape[-1] % BLOCK == 0 for array in weights) else 0
        attributes |= {"block_size": block} if block else {}
        stored_as = [
            (writer.constant(codes, name=f"{stem}{part}.codes"), writer.constant(scales, name=f"{stem}{part}.scales"))
            for part, (codes, scales) in zip((GATE_UP, DOWN), (rounded(array, bits, block) for array in weights))
        ]
        (one, one_scales), (two, two_scales) = stored_as
        inputs = (x, logits, one, one_scales, None, two, two_scales)
        y = writer.make("QMoE", *inputs, domain=CONTRIB, expert_weight_bits=bits, **attributes)
        if k == 1:
            likeliest = writer.make("ReduceMax", writer.make("Softmax", logits, axis=-1), writer.constant([-1]))
            y = writer.make("Mul", y, likeliest)
    writer.replace(summed, y)


def _interleaved(gate_up: ir.Value) -> np.ndarray:
    """(e, w, 2 h), gate before up -> (e, 2 h, w), the two in turn."""
    gate, up = np.split(_numbers(gate_up), 2, axis=-1)
    both = np.stack([gate, up], axis=-1).reshape(*gate.shape[:2], -1)
    return np.ascontiguousarray(both.transpose(0, 2, 1))


def _turned(down: ir.Value) -> np.ndarray:
    """(e, h, w) -> (e, w, h)"""
    return np.ascontiguousarray(_numbers(down).transpose(0, 2, 1))


def rounded(weights: np.ndarray, bits: int, block: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(e, n, k) -> codes about the middle, uint8, two a byte of 4 bits, and scales (e, n), or (e, n, k / block)."""
    most = 2 ** (bits - 1) - 1
    blocks = weights.reshape(*weights.shape[:2], -1, block or weights.shape[-1])
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    scales = np.where(largest > 0, largest / most, 1).astype(np.float32)
    codes = (np.clip(np.rint(blocks / scales), -most - 1, most) + most + 1).astype(np.uint8).reshape(weights.shape)
    packed = codes if bits == 8 else codes[..., ::2] | (codes[..., 1::2] << 4)
    return packed, scales[..., 0] if block else scales[..., 0, 0]


def _numbers(value: ir.Value) -> np.ndarray:
    array = stored(value)
    assert array is not None
    return array


def _reader(value: ir.Value, op_type: str) -> ir.Node:
    return next(use.node for use in value.uses() if use.node.op_type == op_type)


def _after(node: ir.Node, op_type: str) -> ir.Node:
    """The nearest node of that type that reads what this one makes, perhaps through others."""
    waiting, seen = [node], set()
    while waiting:
        here = waiting.pop(0)
        for use in (use for output in here.outputs for use in output.uses()):
            if use.node.op_type == op_type:
                return use.node
            if use.node not in seen:
                seen.add(use.node)
                waiting.append(use.node)
    raise ValueError(f"{node.name}: no {op_type} follows")
