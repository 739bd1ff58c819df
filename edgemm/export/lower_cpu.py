"""Lowering of a spec for ONNX Runtime on x86 and ARM CPUs: its own block-quantized and integer products.

    activations    product
    block, float   MatMulNBits on the spec's own numbers, accuracy level 4 (int8 arithmetic) or 1 (float)
    tensor         DynamicQuantizeLinear, MatMulInteger: ONNX Runtime makes one kernel of them when it loads the graph
    token          the same, on rows that were divided by their largest number: one scale for all is each row's own
    static         MatMulInteger, on ranges known beforehand
The embedding is looked up in the same blocks that the head multiplies with: they are stored once.  What a kernel wants
in float32 and a file need not hold so (scales of blocks, filters, tables of letters) is stored in float16, or in the
spec's 8 bits, with a Cast (and Mul), which ONNX Runtime runs once, when it loads the graph.
Axes: n output channels, k input channels, g groups of k.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgemm.errors import InputError
from edgemm.export.passes.int8_cache import int8_cache
from edgemm.export.products import Product, Table, Writer, rewrite_products, tables_of
from edgemm.quantize.number_formats import Integers
from edgemm.quantize.spec import HEAD, PLACES, REST, Layer, Spec

__all__ = ["CONTRIB", "lower_ort_cpu", "write_blocks"]

BLOCK = 32  # what a scale an output channel is spread to, where a product wants blocks
SMALLEST_BLOCK = 16
CONTRIB = "com.microsoft"
HALVED = {
    "Conv": 1,
    "Gather": 0,
    "GatherND": 0,
    "MatMul": 1,
}  # the input that is stored in float16, if no layer owns it


def lower_ort_cpu(component: str, reference: ModelProto, spec: Spec) -> tuple[ModelProto, str]:
    """The component's graph with the spec's numbers, and the precision to call it by.  Changes `reference` itself."""
    if spec.document.cache == "int8" and component in ("transformer", "conditioner"):
        int8_cache(reference, spec.cache_steps())
    precision = spec.coarsest(component)
    if precision == "fp32":
        return reference, precision
    rewrite_products(reference, lambda writer, product: _write(writer, product, spec), component)
    if component in ("image_encoder", "conditioner"):
        _write_tables(reference, component, spec)
        _halve_constants(reference)
    if all(opset.domain != CONTRIB for opset in reference.opset_import):
        reference.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return reference, precision


def _write(writer: Writer, product: Product, spec: Spec) -> str | None:
    layer = spec.layer(product.layer)
    if layer.bits is None:
        return None
    if product.layer == HEAD:
        return _lookup(writer, product, spec) if product.is_lookup else _head(writer, product, spec)
    numbers = spec.integers(product.layer)
    if layer.activations in ("block", "float"):
        return write_blocks(writer, product, spec)
    y = _integers(writer, product, layer, numbers, spec.tensors.get(f"{product.layer}.range"))
    return _beside(writer, product, spec, y)


def write_blocks(writer: Writer, product: Product, spec: Spec) -> str:
    """MatMulNBits, its branch and its bias, in the type of the weight."""
    y = _blocks(writer, product, spec.layer(product.layer), spec.integers(product.layer))
    return _beside(writer, product, spec, y)


def _beside(writer: Writer, product: Product, spec: Spec, y: str) -> str:
    """The product with what is added to it."""
    branch = spec.low_rank(product.layer)
    if branch:
        real = helper.tensor_dtype_to_np_dtype(product.dtype)
        down, up = (
            writer.constant(f"{product.layer}.{side}", array.T.astype(real))
            for side, array in zip(("down", "up"), branch)
        )
        (narrow,) = writer.add("MatMul", product.x, down)
        (y,) = writer.add("Add", y, *writer.add("MatMul", narrow, up))
    if product.bias:
        (y,) = writer.add("Add", y, product.bias)
    return y


def _blocks(writer: Writer, product: Product, layer: Layer, numbers: Integers) -> str:
    """MatMulNBits: codes (n, g, bytes of a group), scales (n, g), zero-points (n, bytes of g)."""
    numbers, size = _in_blocks(product.layer, numbers)
    n, k = numbers.codes.shape
    codes = _block_codes(numbers, size)
    name = product.layer
    scales = _scales(writer, name, numbers.scales.numpy(), product.dtype)
    inputs = [product.x, writer.constant(f"{name}.codes", codes), scales]
    if not layer.symmetric:
        inputs.append(writer.constant(f"{name}.zeros", _packed_zeros(numbers.zeros.numpy(), numbers.bits)))
    level = 4 if layer.activations == "block" else 1
    return writer.add(
        "MatMulNBits", *inputs, domain=CONTRIB, K=k, N=n, bits=layer.bits, block_size=size, accuracy_level=level
    )[0]


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


def _scales(writer: Writer, name: str, scales: np.ndarray, kind: int) -> str:
    """Scales of groups (n, g), for a product of this type of numbers.

    Those of the embedding lie as a lookup wants them, (n, g, 1): OpenVINO takes none there but a constant.
    """
    if name.removesuffix(REST) == HEAD:
        flat = writer.constant(f"{name}.scale_shape", np.array([len(scales), -1], np.int64))
        (value,) = writer.add("Reshape", _stored_scales(writer, name, scales[..., None]), flat)
    elif kind == TensorProto.FLOAT16:  # of a graph in float16: there is nothing to widen them for
        return writer.constant(f"{name}.scales", scales.astype(np.float16))
    else:
        value = _stored_scales(writer, name, scales)
    stored = TensorProto.FLOAT if _halved(scales) is None else TensorProto.FLOAT16
    return value if stored == kind else writer.add("Cast", value, to=kind)[0]


def _stored_scales(writer: Writer, name: str, scales: np.ndarray) -> str:
    half = _halved(scales)
    return writer.constant(f"{name}.scales", scales if half is None else half)


def _halved(scales: np.ndarray) -> np.ndarray | None:
    """In float16, where it can say them."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), scales) else None


def _head(writer: Writer, product: Product, spec: Spec) -> str:
    """Frequent tokens' logits, and then the others'."""
    layer = spec.layer(HEAD)
    y = _blocks(writer, product, layer, spec.integers(HEAD))
    if layer.rows:
        rest = dataclasses.replace(product, layer=HEAD + REST)
        (y,) = writer.add(
            "Concat", y, _blocks(writer, rest, spec.layer(rest.layer), spec.integers(rest.layer)), axis=-1
        )
        if (places := spec.places(HEAD)) is not None:
            (y,) = writer.add("Gather", y, writer.constant(f"{HEAD}.{PLACES}", places), axis=-1)
    if product.bias:
        (y,) = writer.add("Add", y, product.bias)
    return y


def _lookup(writer: Writer, product: Product, spec: Spec) -> str:
    """Rows of the embedding out of the head's own codes, frequent tokens' and the others'."""
    ids, rows, kind = product.x, spec.layer(HEAD).rows, np.int64
    if not rows:
        return _rows_of(writer, HEAD, ids, product.dtype, spec)
    if (places := spec.places(HEAD)) is not None:
        (ids,) = writer.add("Gather", writer.constant(f"{HEAD}.{PLACES}", places), ids)
        kind = np.int32
    first, last = (writer.constant(f"{HEAD}.{n}", np.array(n, kind)) for n in (rows, rows - 1))
    (low,) = writer.add("Min", ids, last)
    (high,) = writer.add("Max", *writer.add("Sub", ids, first), writer.constant("zero", np.array(0, kind)))
    axis = writer.constant("last_axis", np.array([-1], np.int64))
    (frequent,) = writer.add("Unsqueeze", *writer.add("Less", ids, first), axis)
    found = [_rows_of(writer, name, index, product.dtype, spec) for name, index in ((HEAD, low), (HEAD + REST, high))]
    return writer.add("Where", frequent, *found)[0]


def _rows_of(writer: Writer, name: str, ids: str, dtype: int, spec: Spec) -> str:
    """GatherBlockQuantized on (rows, g, bytes of a group); having no zero-points means the middle."""
    layer, numbers = spec.layer(name), spec.integers(name)
    width = numbers.codes.shape[1]
    if not layer.symmetric or not layer.group or width % layer.group:
        raise InputError(f"{name}: ONNX Runtime looks up whole symmetric groups, the spec has {layer}")
    codes = writer.constant(f"{name}.codes", _block_codes(numbers, layer.group))
    scales = numbers.scales.numpy()[..., None]
    (rows,) = writer.add(
        "GatherBlockQuantized",
        *(codes, ids, _stored_scales(writer, name, scales)),
        domain=CONTRIB,
        bits=layer.bits,
        block_size=layer.group,
        gather_axis=0,
        quantize_axis=2,
    )  # (..., g, size)
    flat = writer.constant(f"{HEAD}.row_shape", np.array([0, 0, width], np.int64))
    (whole,) = writer.add("Reshape", rows, flat)
    return whole if _halved(scales) is None else writer.add("Cast", whole, to=dtype)[0]


def _write_tables(model: ModelProto, component: str, spec: Spec) -> None:
    """Filters of one pixel and letters that the spec has 8 bits of."""
    for table in list(tables_of(model, component)):
        layer = spec.layer(table.layer)
        if layer.bits is not None:
            numbers = spec.integers(table.layer)
            if (layer.bits, layer.symmetric) != (8, True) or not layer.group or numbers.codes.shape[1] % layer.group:
                raise InputError(
                    f"{table.layer}: ONNX Runtime unpacks whole groups of symmetric 8 bits, the spec has {layer}"
                )
            _write_table(model, table, numbers)


def _write_table(model: ModelProto, table: Table, numbers: Integers) -> None:
    """Codes (n, g, size) as int8 times scales (n, g, 1), in the table's shape."""
    writer, name = Writer(model), table.stored.name
    codes = (_padded(numbers, numbers.group).astype(np.int16) - 128).astype(np.int8)
    (real,) = writer.add("Cast", writer.constant(f"{name}.codes", codes), to=TensorProto.FLOAT)
    scales = writer.constant(f"{name}.scales", numbers.scales.numpy()[..., None].astype(np.float16))
    (whole,) = writer.add("Mul", real, *writer.add("Cast", scales, to=TensorProto.FLOAT))
    writer.add("Reshape", whole, writer.constant(f"{name}.shape", np.array(table.stored.dims, np.int64)), output=name)
    model.graph.initializer.remove(table.stored)
    for node in reversed(writer.nodes):
        model.graph.node.insert(0, node)


def _halve_constants(model: ModelProto) -> None:
    """Filters (8 bits would blind the eye), letters that visual words are spelled with, the prompt's whitening."""
    wanted = {node.input[HALVED[node.op_type]] for node in model.graph.node if node.op_type in HALVED}
    for tensor in model.graph.initializer:
        if tensor.name in wanted and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name, half = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            model.graph.node.insert(0, helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))


def _integers(writer: Writer, product: Product, layer: Layer, numbers: Integers, ranges: np.ndarray | None) -> str:
    """x rounded to uint8, times codes [k, n] as int8, back to float."""
    name = product.layer
    if layer.bits != 8 or layer.group or not layer.symmetric:
        raise InputError(
            f"{name}: ONNX Runtime's MatMulInteger takes symmetric 8-bit weights with one scale a channel, "
            f"the spec has {layer.bits} bits in groups of {layer.group} with {layer.activations} activations"
        )
    x, size = _rows_alike(writer, product.x) if layer.activations == "token" else (product.x, None)
    codes, scale, zero = _rounded(writer, x, layer.activations, name, ranges)
    weight = writer.constant(f"{name}.codes", (numbers.codes.numpy().astype(np.int16) - 128).astype(np.int8).T)
    scales = writer.constant(f"{name}.scales", numbers.scales.numpy()[:, 0])
    signed = writer.constant("int8_zero", np.zeros((), np.int8))
    (summed,) = writer.add("MatMulInteger", codes, weight, zero, signed)
    (real,) = writer.add("Cast", summed, to=TensorProto.FLOAT)
    (y,) = writer.add("Mul", real, *writer.add("Mul", scale, scales))
    return y if size is None else writer.add("Mul", y, size)[0]


def _rows_alike(writer: Writer, x: str) -> tuple[str, str]:
    """Rows within [-1, 1], and what each was divided by; no row depends on its neighbours."""
    last = writer.constant("last_axis", np.array([-1], np.int64))
    (largest,) = writer.add("ReduceMax", *writer.add("Abs", x), last)
    (size,) = writer.add("Max", largest, writer.constant("tiny", np.array(1e-10, np.float32)))
    return writer.add("Div", x, size)[0], size


def _rounded(writer: Writer, x: str, kind: str, name: str, ranges: np.ndarray | None) -> tuple[str, str, str]:
    """Codes of x, their scale and zero-point."""
    if kind == "tensor":
        codes, scale, zero = writer.add("DynamicQuantizeLinear", x, outputs=3)
        return codes, scale, zero
    middle = writer.constant("uint8_middle", np.array(128, np.uint8))
    if kind == "static":
        assert ranges is not None  # read_spec saw to it
        scale = writer.constant(f"{name}.input_scale", np.array(ranges.max() / 127, np.float32))
    else:
        scale = _unfolded(writer, 1 / 127)
    return writer.add("QuantizeLinear", x, scale, middle)[0], scale, middle


def _unfolded(writer: Writer, value: float) -> str:
    """A scalar that ONNX Runtime 1.32 takes for no constant: else it folds the scales, and finds no kernel for them."""
    nothing = writer.constant("nothing", np.array([0], np.int64))
    (shape,) = writer.add("Shape", writer.model.graph.input[0].name)
    (empty,) = writer.add("Slice", shape, nothing, nothing)
    fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    return writer.add("ConstantOfShape", empty, value=fill)[0]
