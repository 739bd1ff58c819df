"""Lowering of a spec for ONNX Runtime on x86 and ARM CPUs, and in wasm: its own block-quantized and integer products.

    activations    product
    block, float   MatMulNBits on the spec's own numbers, accuracy level 4 (int8 arithmetic) or 1 (float)
    tensor         DynamicQuantizeLinear, MatMulInteger: ONNX Runtime makes one kernel of them when it loads the graph
    token          the same, on rows that were divided by their largest number: one scale for all is each row's own
    token16        the same, and what that rounding left as rows more of the same product
    static         MatMulInteger, on ranges known beforehand
The embedding is looked up in the same codes that the head multiplies with: they are stored once.  What a kernel wants
in float32 and a file need not hold so (scales of blocks, filters, tables of letters) is stored in float16, or in the
spec's 8 bits, with a Cast (and Mul), which ONNX Runtime runs once, when it loads the graph.
Axes: n output channels, k input channels, g groups of k.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.errors import InputError
from edgemm.export.passes.experts_fused import experts_fused
from edgemm.export.passes.int8_cache import int8_cache
from edgemm.export.passes.rewriting import CONTRIB, Writer, dims, stored
from edgemm.export.products import Product, rewrite_products, tables_of, write_beside
from edgemm.quantize.layers import TOWERS
from edgemm.quantize.number_formats import Integers
from edgemm.quantize.simulated import FINER
from edgemm.quantize.spec import DRAWN, HEAD, PLACES, REST, Layer, Spec

__all__ = ["in_float", "lower_ort_cpu", "write_blocks"]

SMALL_TABLES = ("image_encoder", "conditioner")  # components of edgemm's own that have more than products
BY_ROW = ("token", "token16")
BLOCK = 32  # what a scale an output channel is spread to, where a product wants blocks
SMALLEST_BLOCK = 16
WIDEST = 1536  # columns of a product in wasm: one row times 49,152 columns takes 2.7 times as long in one piece
HALVED = {
    "Conv": 1,
    "Gather": 0,
    "GatherND": 0,
    "MatMul": 1,
}  # the input that is stored in float16, if no layer owns it


def lower_ort_cpu(component: str, reference: ir.Model, spec: Spec, blocks: bool = True) -> tuple[ir.Model, str]:
    """The component's graph with the spec's numbers, and the precision to call it by.  Changes `reference` itself.

    Without `blocks`, for wasm, which unpacks them at every run, weights in blocks are unpacked once, at load, and wide
    products are cut.
    """
    if spec.document.cache == "int8" and component in ("transformer", "conditioner"):
        int8_cache(reference, spec.cache_steps())
    precision = spec.coarsest(component)
    experts_fused(reference, {"int8": 8, "int4": 4}.get(precision))
    if precision != "fp32":
        rewrite_products(reference, lambda writer, product: _write(writer, product, spec, blocks), component)
        reference.opset_imports.setdefault(CONTRIB, 1)
    if precision != "fp32" and component in SMALL_TABLES:
        _write_tables(reference, component, spec)
        _halve_constants(reference)
    elif spec.towers and component in (*TOWERS, *DRAWN) and _halve_constants(reference) and precision == "fp32":
        precision = "fp16"
    return reference, precision


def _write(writer: Writer, product: Product, spec: Spec, blocks: bool) -> ir.Value | None:
    layer = spec.layer(product.layer)
    if layer.bits is None:
        return None
    numbers = spec.integers(product.layer)
    whole = layer.activations in ("tensor", "token")
    if product.is_lookup and whole:
        return _columns(writer, product, numbers)
    if product.layer == HEAD and not whole:
        return _lookup(writer, product, spec) if product.is_lookup else _head(writer, product, spec)
    if layer.activations in ("block", "float"):
        return write_blocks(writer, product, spec) if blocks else _unpacked(writer, product, numbers, spec)
    widest = None if blocks else WIDEST
    y = _integers(writer, product, layer, numbers, spec.tensors.get(f"{product.layer}.range"), widest)
    return write_beside(writer, product, spec, y)


def write_blocks(writer: Writer, product: Product, spec: Spec) -> ir.Value:
    """MatMulNBits, its branch and its bias, in the type of the weight."""
    y = _blocks(writer, product, spec.layer(product.layer), spec.integers(product.layer))
    return write_beside(writer, product, spec, y)


def _unpacked(writer: Writer, product: Product, numbers: Integers, spec: Spec) -> ir.Value:
    """A product in float with what the codes mean."""
    weight = _whole(writer, product.layer, numbers, list(numbers.codes.shape))
    return write_beside(
        writer, product, spec, writer.make("MatMul", product.x, writer.make("Transpose", weight, perm=[1, 0]))
    )


def _blocks(writer: Writer, product: Product, layer: Layer, numbers: Integers) -> ir.Value:
    """MatMulNBits: codes (n, g, bytes of a group), scales (n, g), zero-points (n, bytes of g)."""
    numbers, size = _in_blocks(product.layer, numbers)
    n, k = numbers.codes.shape
    codes = _block_codes(numbers, size)
    name = product.layer
    scales = _scales(writer, name, numbers.scales.numpy(), product.dtype)
    inputs = [product.x, writer.constant(codes, name=f"{name}.codes"), scales]
    if not layer.symmetric:
        zeros = _packed_zeros(numbers.zeros.numpy(), numbers.bits)
        inputs.append(writer.constant(zeros, name=f"{name}.zeros"))
    level = 4 if layer.activations == "block" else 1
    return writer.make(
        "MatMulNBits", *inputs, domain=CONTRIB, K=k, N=n, bits=layer.bits, block_size=size, accuracy_level=level
    )


def _in_blocks(name: str, numbers: Integers) -> tuple[Integers, int]:
    """One scale a channel says the same in blocks, each with that scale."""
    if numbers.group:
        if numbers.group < SMALLEST_BLOCK or numbers.group & (numbers.group - 1):
            raise InputError(f"{name}: ONNX Runtime's MatMulNBits takes groups of 16, 32, 64, ..., not {numbers.group}")
        return numbers, numbers.group
    g = -(-numbers.codes.shape[1] // BLOCK)
    scales, zeros = (values.expand(-1, g).contiguous() for values in (numbers.scales, numbers.zeros))
    return Integers(numbers.codes, scales, zeros, numbers.bits, BLOCK), BLOCK


def _block_codes(numbers: Integers, size: int) -> np.ndarray:
    """(n, g, bytes of a group), two 4-bit codes a byte."""
    codes = _padded(numbers, size)
    return codes if numbers.bits == 8 else codes[..., ::2] | (codes[..., 1::2] << 4)


def _padded(numbers: Integers, size: int) -> np.ndarray:
    """Codes (n, g, size); what fills up the last group means zero."""
    codes = numbers.codes.numpy()
    n, k = codes.shape
    whole = np.repeat(numbers.zeros.numpy(), size, axis=1)
    whole[:, :k] = codes
    return whole.reshape(n, -1, size)


def _packed_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return zeros
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return even[:, ::2] | (even[:, 1::2] << 4)


def _scales(writer: Writer, name: str, scales: np.ndarray, kind: ir.DataType) -> ir.Value:
    """Scales of groups (n, g), for a product of this type of numbers.

    Those of the embedding lie as a lookup wants them, (n, g, 1): OpenVINO takes none there but a constant.
    """
    if name.removesuffix(REST) == HEAD:
        value = _stored_scales(writer, name, scales[..., None])
        value = writer.make("Reshape", value, writer.constant([len(scales), -1]))
    elif kind == ir.DataType.FLOAT16:  # of a graph in float16: there is nothing to widen them for
        return writer.constant(scales, np.float16, name=f"{name}.scales")
    else:
        value = _stored_scales(writer, name, scales)
    stored = ir.DataType.FLOAT if _halved(scales) is None else ir.DataType.FLOAT16
    return value if stored == kind else writer.make("Cast", value, to=kind)


def _stored_scales(writer: Writer, name: str, scales: np.ndarray) -> ir.Value:
    half = _halved(scales)
    return writer.constant(scales if half is None else half, name=f"{name}.scales")


def _halved(scales: np.ndarray) -> np.ndarray | None:
    """In float16, where it can say them."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), scales) else None


def _head(writer: Writer, product: Product, spec: Spec) -> ir.Value:
    """Frequent tokens' logits, and then the others'."""
    layer = spec.layer(HEAD)
    y = _blocks(writer, product, layer, spec.integers(HEAD))
    if layer.rows:
        rest = dataclasses.replace(product, layer=HEAD + REST)
        others = _blocks(writer, rest, spec.layer(rest.layer), spec.integers(rest.layer))
        y = writer.make("Concat", y, others, axis=-1)
        if (places := spec.places(HEAD)) is not None:
            y = writer.make("Gather", y, writer.constant(places, name=f"{HEAD}.{PLACES}"), axis=-1)
    return writer.make("Add", y, product.bias) if product.bias is not None else y


def _lookup(writer: Writer, product: Product, spec: Spec) -> ir.Value:
    """Rows of the embedding out of the head's own codes, frequent tokens' and the others'."""
    ids, rows, kind = product.x, spec.layer(HEAD).rows, np.int64
    if not rows:
        return _rows_of(writer, HEAD, ids, product.dtype, spec)
    if (places := spec.places(HEAD)) is not None:
        ids = writer.make("Gather", writer.constant(places, name=f"{HEAD}.{PLACES}"), ids)
        kind = np.int32
    first, last, zero = (writer.constant(n, kind) for n in (rows, rows - 1, 0))
    low = writer.make("Min", ids, last)
    high = writer.make("Max", writer.make("Sub", ids, first), zero)
    frequent = writer.make("Unsqueeze", writer.make("Less", ids, first), writer.constant([-1]))
    found = [_rows_of(writer, name, index, product.dtype, spec) for name, index in ((HEAD, low), (HEAD + REST, high))]
    return writer.make("Where", frequent, *found)


def _rows_of(writer: Writer, name: str, ids: ir.Value, dtype: ir.DataType, spec: Spec) -> ir.Value:
    """GatherBlockQuantized on (rows, g, bytes of a group); having no zero-points means the middle."""
    layer, numbers = spec.layer(name), spec.integers(name)
    width = numbers.codes.shape[1]
    if not layer.symmetric or not layer.group or width % layer.group:
        raise InputError(f"{name}: ONNX Runtime looks up whole symmetric groups, the spec has {layer}")
    codes = writer.constant(_block_codes(numbers, layer.group), name=f"{name}.codes")
    scales = numbers.scales.numpy()[..., None]
    rows = writer.make(
        "GatherBlockQuantized",
        *(codes, ids, _stored_scales(writer, name, scales)),
        domain=CONTRIB,
        bits=layer.bits,
        block_size=layer.group,
        gather_axis=0,
        quantize_axis=2,
    )  # (..., g, size)
    whole = writer.make("Reshape", rows, writer.constant([0, 0, width]))
    return whole if _halved(scales) is None else writer.make("Cast", whole, to=dtype)


def _columns(writer: Writer, product: Product, numbers: Integers) -> ir.Value:
    """Rows of the embedding out of the codes [k, n] that MatMulInteger multiplies with."""
    codes = writer.make("Gather", _signed(writer, product.layer, numbers), product.x, axis=1)  # (k, b, s)
    rows = writer.make("Cast", writer.make("Transpose", codes, perm=[1, 2, 0]), to=product.dtype)
    scales = writer.make("Gather", _channel_scales(writer, product.layer, numbers), product.x)  # (b, s)
    return writer.make("Mul", rows, writer.make("Unsqueeze", scales, writer.constant([-1])))


def _write_tables(model: ir.Model, component: str, spec: Spec) -> None:
    """Filters of one pixel and letters that the spec has 8 bits of."""
    writer = _first(model)
    for table in list(tables_of(model, component)):
        layer = spec.layer(table.layer)
        if layer.bits is not None:
            numbers = spec.integers(table.layer)
            if (layer.bits, layer.symmetric) != (8, True) or not layer.group or numbers.codes.shape[1] % layer.group:
                raise InputError(
                    f"{table.layer}: ONNX Runtime unpacks whole groups of symmetric 8 bits, the spec has {layer}"
                )
            _write_table(writer, table.stored, numbers)


def _write_table(writer: Writer, table: ir.Value, numbers: Integers) -> None:
    _instead(writer, table, _whole(writer, table.name or "", numbers, list(dims(table))))


def _whole(writer: Writer, name: str, numbers: Integers, shape: list[Any]) -> ir.Value:
    """Codes (n, g, size) as int8 times scales (n, g, 1), in this shape; ONNX Runtime computes it once, at load."""
    k = numbers.codes.shape[1]
    size = numbers.group or k
    signed = _padded(numbers, size).astype(np.int16) - numbers.zeros.numpy().astype(np.int16)[..., None]
    if k % size or np.abs(signed).max() > 128:
        raise InputError(f"{name}: only whole groups of symmetric codes, or of 4 bits, are unpacked at load")
    real = writer.make("Cast", writer.constant(signed, np.int8, name=f"{name}.codes"), to=ir.DataType.FLOAT)
    scales = _stored_scales(writer, name, numbers.scales.numpy()[..., None])
    whole = writer.make("Mul", real, writer.make("Cast", scales, to=ir.DataType.FLOAT))
    return writer.make("Reshape", whole, writer.constant(shape))


def _halve_constants(model: ir.Model) -> bool:
    """Filters (8 bits would blind the eye), letters that visual words are spelled with, the prompt's whitening; answers
    whether there were any."""
    wanted = [node.inputs[HALVED[node.op_type]] for node in model.graph if node.op_type in HALVED]
    writer, changed = _first(model), False
    for value in dict.fromkeys(wanted):
        numbers = stored(value)
        if value is not None and numbers is not None and numbers.dtype == np.float32 and numbers.ndim > 1:
            if np.abs(numbers).max(initial=0) > np.finfo(np.float16).max:
                continue
            changed = True
            half = writer.constant(numbers, np.float16, name=f"{value.name}.half")
            _instead(writer, value, writer.make("Cast", half, to=ir.DataType.FLOAT))
    return changed


def _first(model: ir.Model) -> Writer:
    """Writes before all that is there."""
    writer = Writer(model)
    writer.place = model.graph[0]
    return writer


def _instead(writer: Writer, weight: ir.Value, value: ir.Value) -> None:
    """What is made stands for a weight, by its name."""
    weight.replace_all_uses_with(value)
    del writer.graph.initializers[weight.name or ""]
    value.name, value.type, value.shape = weight.name, weight.type, weight.shape


def _integers(
    writer: Writer,
    product: Product,
    layer: Layer,
    numbers: Integers,
    ranges: np.ndarray | None,
    widest: int | None = None,
) -> ir.Value:
    """x rounded to uint8, times codes [k, n] as int8, back to float; `widest` is the most columns of one product."""
    name = product.layer
    if layer.bits != 8 or layer.group or not layer.symmetric:
        raise InputError(
            f"{name}: ONNX Runtime's MatMulInteger takes symmetric 8-bit weights with one scale a channel, "
            f"the spec has {layer.bits} bits in groups of {layer.group} with {layer.activations} activations"
        )
    x, size = _rows_alike(writer, product.x) if layer.activations in BY_ROW else (product.x, None)
    codes, scale, zero = _rounded(writer, x, layer.activations, name, ranges)
    rows = None
    if layer.activations == "token16":
        rows = writer.make("Shape", x, start=0, end=-1)
        rest = writer.make("Sub", x, writer.make("DequantizeLinear", codes, scale, zero))
        fine = writer.make("QuantizeLinear", rest, _unfolded(writer, 1 / 127 / FINER), zero)
        codes = writer.make("Concat", codes, fine, axis=0)
    weight, scales = _signed(writer, name, numbers), _channel_scales(writer, name, numbers)
    parts = []
    for place in range(0, len(numbers.codes), widest or len(numbers.codes)):
        part, some = weight, scales
        if widest and len(numbers.codes) > widest:  # cut once, at load: the embedding is looked up in the whole
            ends = [writer.constant([end]) for end in (place, min(place + widest, len(numbers.codes)))]
            part, some = (writer.make("Slice", whole, *ends, writer.constant([-1])) for whole in (weight, scales))
        # No zero-point for the weights: where products share one, ONNX Runtime cannot widen sums on CPUs without VNNI.
        summed = writer.make("MatMulInteger", codes, part, zero)
        width = min(widest or len(numbers.codes), len(numbers.codes) - place)
        parts.append(in_float(writer, summed, scale, some, rows, width))
    y = writer.make("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]
    return y if size is None else writer.make("Mul", y, size)


def in_float(
    writer: Writer, summed: ir.Value, scale: ir.Value, scales: ir.Value, rows: ir.Value | None, width: int
) -> ir.Value:
    """What a MatMulInteger summed; of two terms the second half of the rows is the finer one.

    `rows` (batch, tokens, ...) is the shape of one term without its `width`; None where there is one.  The terms are
    added by a product with [1, 1/254], which reads both once: Split, Mul and Add take a third longer at 128 rows.
    """
    y = writer.make("Mul", writer.make("Cast", summed, to=ir.DataType.FLOAT), writer.make("Mul", scale, scales))
    if rows is None:
        return y
    terms = writer.make("Reshape", y, writer.constant([2, -1]))
    y = writer.make("MatMul", writer.constant([[1, 1 / FINER]], np.float32), terms)
    return writer.make("Reshape", y, writer.make("Concat", rows, writer.constant([width]), axis=0))


def _signed(writer: Writer, name: str, numbers: Integers) -> ir.Value:
    """Codes [k, n] as int8."""
    return writer.constant((numbers.codes.numpy().astype(np.int16) - 128).T, np.int8, name=f"{name}.codes")


def _channel_scales(writer: Writer, name: str, numbers: Integers) -> ir.Value:
    return writer.constant(numbers.scales.numpy()[:, 0], name=f"{name}.scales")


def _rows_alike(writer: Writer, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Rows within [-1, 1], and what each was divided by; no row depends on its neighbours.  A row of zeros becomes any
    codes, times 0."""
    size = writer.make("ReduceMax", writer.make("Abs", x), writer.constant([-1]))
    return writer.make("Div", x, size), size


def _rounded(
    writer: Writer, x: ir.Value, kind: str, name: str, ranges: np.ndarray | None
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes of x, their scale and zero-point."""
    if kind == "tensor":
        codes, scale, zero = writer.make_many("DynamicQuantizeLinear", [x], 3)
        return codes, scale, zero
    middle = writer.constant(128, np.uint8)
    if kind == "static":
        assert ranges is not None  # read_spec saw to it
        scale = writer.constant(ranges.max() / 127, np.float32, name=f"{name}.input_scale")
    else:
        scale = _unfolded(writer, 1 / 127)
    return writer.make("QuantizeLinear", x, scale, middle), scale, middle


def _unfolded(writer: Writer, value: float) -> ir.Value:
    """A scalar that ONNX Runtime 1.32 takes for no constant: else it folds the scales, and finds no kernel for them."""
    nothing = writer.constant([0])
    empty = writer.make("Slice", writer.make("Shape", writer.graph.inputs[0]), nothing, nothing)
    return writer.make("ConstantOfShape", empty, value=ir.tensor([value], ir.DataType.FLOAT))
