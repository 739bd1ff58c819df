"""Hostile inputs by kind: each changes a copy of a tiny bundle, whose manifest then says that all is as it should be.

    KINDS["graphs"]["a loop that never ends"](folder)

New ones of a kind go into its table; the tests and `benchmarks/faults.py` take them from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Hostile = Callable[[Path], None]
DECODER = "components/image_decoder/cpu-fp32.onnx"  # small, without a file beside it; drawing wants it
TRANSFORMER = "components/transformer/cpu-fp32.onnx"  # chat and draw want it
SMALLEST = -(2**63)


def rehash(bundle: Path, *names: str) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    for name in names:
        content = (bundle / name).read_bytes()
        document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(document))


# Graphs: what their nodes would do while a library loads or runs them.


def graph(change: Callable[[onnx.GraphProto], None], name: str = TRANSFORMER) -> Hostile:
    def make(folder: Path) -> None:
        model = onnx.load(str(folder / name), load_external_data=False)
        change(model.graph)
        onnx.save_model(model, str(folder / name))
        rehash(folder, name)

    return make


def constant(name: str, *values: int, dtype: type = np.int64, scalar: bool = False) -> onnx.TensorProto:
    array = np.array(values[0] if scalar else values, dtype=dtype)
    return numpy_helper.from_array(array, name)


def extended(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], result: str) -> Hostile:
    """The graph's first output gets a zeroth part of `result`, a whole number, added: nothing can be left out."""

    def change(inner: onnx.GraphProto) -> None:
        output = inner.output[0].name
        for node in inner.node:
            for place, name in enumerate(node.output):
                if name == output:
                    node.output[place] = "honest"
            for place, name in enumerate(node.input):
                if name == output:
                    node.input[place] = "honest"
        inner.initializer.extend([*constants, numpy_helper.from_array(np.zeros((), np.float32), "nothing")])
        inner.node.extend(
            [
                *nodes,
                helper.make_node("Cast", [result], ["as_float"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMax", ["as_float"], ["one_number"], keepdims=0),
                helper.make_node("Mul", ["one_number", "nothing"], ["no_number"]),
                helper.make_node("Add", ["honest", "no_number"], [output]),
            ]
        )

    return graph(change)


def divided(dividend: int, divisor: int, op: str = "Div", dtype: type = np.int64) -> Hostile:
    constants = [constant("above", dividend, dtype=dtype), constant("below", divisor, dtype=dtype)]
    return extended([helper.make_node(op, ["above", "below"], ["quotient"])], constants, "quotient")


def divided_late(dividend: int, divisor: int) -> Hostile:
    """By numbers that are only known once constants were folded."""
    nodes = [
        helper.make_node("Sub", ["zero", "less"], ["below"]),
        helper.make_node("Div", ["above", "below"], ["quotient"]),
    ]
    return extended(nodes, [constant("above", dividend), constant("zero", 0), constant("less", -divisor)], "quotient")


def doubled(times: int, op: str = "Concat") -> Hostile:
    nodes = [helper.make_node(op, [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(times)]
    return extended(nodes, [constant("d0", *range(16))], f"d{times}")


def doubled_input(times: int) -> Hostile:
    """Of what the caller gives: nothing is constant."""

    def change(inner: onnx.GraphProto) -> None:
        name = inner.input[0].name
        inner.node.append(helper.make_node("Identity", [name], ["d0"]))
        for i in range(times):
            inner.node.append(helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0))
        inner.initializer.append(constant("axis_of_all", 0))
        inner.node.append(helper.make_node("Shape", [f"d{times}"], ["size_of_all"]))
        inner.node.append(helper.make_node("Identity", ["size_of_all"], ["left_over"]))
        inner.output.append(helper.make_tensor_value_info("left_over", TensorProto.INT64, [None]))

    return graph(change)


def added(times: int) -> Hostile:
    nodes = [helper.make_node("Add", [f"a{i}", "a0"], [f"a{i + 1}"]) for i in range(times)]
    return extended(nodes, [constant("a0", 1)], f"a{times}")


def grown(op: str, *inputs: onnx.TensorProto) -> Hostile:
    return extended([helper.make_node(op, [i.name for i in inputs], ["grown"])], list(inputs), "grown")


def looked_up(op: str, *inputs: onnx.TensorProto | str, domain: str = "com.microsoft", **settings: Any) -> Hostile:
    """By an operator of ONNX Runtime's own; "" is an input that is not given."""
    tensors = [each for each in inputs if isinstance(each, onnx.TensorProto)]
    names = [each if isinstance(each, str) else each.name for each in inputs]
    return extended([helper.make_node(op, names, ["found"], domain=domain, **settings)], tensors, "found")


def packed_rows(place: int) -> Hostile:
    """Of four rows, each of two blocks of bytes."""
    rows, scales = (
        numpy_helper.from_array(*each) for each in ((ROWS, "rows"), (ROWS[:, :2] / np.float32(1), "scales"))
    )
    given = (rows, constant("place", place), scales)
    return looked_up("GatherBlockQuantized", *given, block_size=16, quantize_axis=1, bits=8)


def turned(place: int, domain: str) -> Hostile:
    """By angles of eight places."""
    named = {"x": np.ones((1, 2, 1, 4), np.float32), "cos": np.ones((8, 2), np.float32)}
    x, cos, sin = (numpy_helper.from_array(named[n], name) for n, name in (("x", "x"), ("cos", "cos"), ("cos", "sin")))
    at = numpy_helper.from_array(np.array([[place]]), "at")
    return looked_up("RotaryEmbedding", *((x, at, cos, sin) if domain else (x, cos, sin, at)), domain=domain)


def remembered(past: int) -> Hostile:
    """Eight places of keys and values, and how many there are said to be."""
    half = numpy_helper.from_array(np.ones((1, 1, 8), np.float32), "now")
    whole = [numpy_helper.from_array(np.zeros((1, 1, 8, 8), np.float32), name) for name in ("keys", "values")]
    now = ("now", "now")
    counts = constant("past", past, dtype=np.int32), constant("all_of_it", 8, dtype=np.int32, scalar=True)
    return looked_up("GroupQueryAttention", half, *now, *whole, *counts, num_heads=1, kv_num_heads=1)


def loop_body(deep: int, at: int = 0) -> onnx.GraphProto:
    """Adds one, in loops within loops; every name is said once."""
    step = helper.make_node("Add", [f"value{at}", "one"], [f"next{at}"])
    if deep:
        step = helper.make_node(
            "Loop", ["rounds", "always", f"value{at}"], [f"next{at}"], body=loop_body(deep - 1, at + 1)
        )
    given = [(f"round{at}", TensorProto.INT64, []), (f"on{at}", TensorProto.BOOL, [])]
    made = [(f"on_and_on{at}", TensorProto.BOOL, []), (f"next{at}", TensorProto.INT64, [1])]
    return helper.make_graph(
        [helper.make_node("Identity", [f"on{at}"], [f"on_and_on{at}"]), step],
        f"body{at}",
        [helper.make_tensor_value_info(*each) for each in (*given, (f"value{at}", TensorProto.INT64, [1]))],
        [helper.make_tensor_value_info(*each) for each in made],
    )


def looped(rounds: int | None, deep: int = 0) -> Hostile:
    body = loop_body(deep)
    given = "rounds" if rounds is not None else ""
    constants = [constant("one", 1), constant("start", 0), numpy_helper.from_array(np.array(True), "always")]
    constants += [constant("rounds", rounds, scalar=True)] if rounds is not None else []
    return extended([helper.make_node("Loop", [given, "always", "start"], ["end"], body=body)], constants, "end")


def scanned(length: int) -> Hostile:
    """Adds up zeros, one a round."""
    names = ("sum", "each"), ("next_sum", "so_far")
    given, made = ([helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in side] for side in names)
    adds = [helper.make_node("Add", names[0], ["next_sum"]), helper.make_node("Identity", ["next_sum"], ["so_far"])]
    body = helper.make_graph(adds, "body", given, made)
    nothing = numpy_helper.from_array(np.zeros(1, np.int64))
    nodes = [
        helper.make_node("ConstantOfShape", ["length"], ["zeros_of_all"], value=nothing),
        helper.make_node("Scan", ["first", "zeros_of_all"], ["total", "sums"], body=body, num_scan_inputs=1),
    ]
    return extended(nodes, [constant("length", length), constant("first", 0, scalar=True)], "total")


def moved(change: Callable[[dict[str, str]], dict[str, str]]) -> Hostile:
    """Where the first weight is said to lie."""

    def make(inner: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in inner.initializer if tensor.external_data)
        entries = change({entry.key: entry.value for entry in tensor.external_data})
        del tensor.external_data[:]
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return graph(make)


def shaped(*dims: int) -> Hostile:
    def make(inner: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in inner.initializer if tensor.external_data)
        tensor.dims[:] = dims

    return graph(make)


def with_functions(bodies: dict[str, tuple[str, ...]]) -> Hostile:
    """Functions of one input, and what each calls one after another; the first one is used."""

    def function(name: str, called: tuple[str, ...]) -> onnx.FunctionProto:
        ways = ["x", *(f"x{place}" for place in range(1, len(called))), "y"]
        nodes = [
            helper.make_node(op, [ways[place]], [ways[place + 1]], domain="own" if op in bodies else "")
            for place, op in enumerate(called)
        ]
        imports = [helper.make_opsetid("", 24), helper.make_opsetid("own", 1)]
        return helper.make_function("own", name, ["x"], ["y"], nodes, imports)

    def make(folder: Path) -> None:
        model = onnx.load(str(folder / TRANSFORMER), load_external_data=False)
        model.functions.extend(function(name, called) for name, called in bodies.items())
        model.opset_import.append(helper.make_opsetid("own", 1))
        first = model.graph.input[0].name
        model.graph.node.append(helper.make_node(next(iter(bodies)), [first], ["made"], domain="own"))
        onnx.save_model(model, str(folder / TRANSFORMER))
        rehash(folder, TRANSFORMER)

    return make


def of_a_sparse_weight(dims: list[int], index: int) -> Hostile:
    """A weight of one number, and its place among all."""
    value = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    sparse = helper.make_sparse_tensor(value, constant("places", index), dims)
    made = extended([helper.make_node("Size", ["sparse"], ["size_of_all"])], [], "size_of_all")
    put = graph(lambda inner: inner.sparse_initializer.append(sparse))
    return lambda folder: (made(folder), put(folder))[0]


def named(name: str) -> Hostile:
    """A node that is refused and has this name."""
    constants = [constant("above", 7), constant("below", 0)]
    return extended([helper.make_node("Div", ["above", "below"], ["quotient"], name=name)], constants, "quotient")


def bytes_of(name: str, content: Callable[[bytes], bytes]) -> Hostile:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()))
        rehash(folder, name)

    return make


BIG = 1 << 40
ROWS = np.ones((4, 32), np.uint8)
GRAPHS: dict[str, Hostile] = {
    "the smallest number by -1": divided(SMALLEST, -1),
    "the smallest number by -1, late": divided_late(SMALLEST, -1),
    "the smallest number modulo -1": divided(SMALLEST, -1, "Mod"),
    "the smallest of 32 bits by -1": divided(-(2**31), -1, dtype=np.int32),
    "a whole number by 0": divided(7, 0),
    "a whole number by 0, late": divided_late(7, 0),
    "a loop of 2^62 rounds": looped(1 << 62),
    "a loop without a number of rounds": looped(None),
    "1,000 rounds of 1,000 rounds of 1,000": looped(1000, deep=2),
    "a scan of 2^27 numbers": scanned(1 << 27),
    "a sparse weight of 2^40 numbers": of_a_sparse_weight([1 << 20, 1 << 20], 5),
    "a sparse weight of 8 GB": of_a_sparse_weight([2000, 1_000_000], 5),
    "a sparse weight with a number out of range": of_a_sparse_weight([4], 10**12),
    "a name of a million letters": named("x" * 1_000_000),
    "a name that commands a terminal": named("a\n\x1b[2J"),
    "30 doublings": doubled(30),
    "60 doublings": doubled(60),
    "40 doublings of an input": doubled_input(40),
    "200,000 nodes": added(200_000),
    "Expand to a million millions": grown("Expand", constant("few", 1), constant("shape", BIG)),
    "Tile a million million times": grown("Tile", constant("few", 1, 2), constant("times", BIG)),
    "Range over a million millions": grown(
        "Range", *(constant(n, v, scalar=True) for n, v in (("from", 0), ("to", BIG), ("by", 1)))
    ),
    "Range by 0": grown("Range", *(constant(n, v, scalar=True) for n, v in (("from", 0), ("to", 9), ("by", 0)))),
    "zeros of a million millions": grown("ConstantOfShape", constant("shape", BIG)),
    "zeros of a negative size": grown("ConstantOfShape", constant("shape", -5)),
    "Gather out of range": grown("Gather", constant("few", 1, 2, 3), constant("which", 10**12)),
    "Gather before the first": grown("Gather", constant("few", 1, 2, 3), constant("which", -4)),
    "GatherND at a million millions": grown("GatherND", constant("few", 1, 2, 3), constant("which", BIG)),
    "packed rows at a million millions": packed_rows(BIG),
    "packed rows before the first": packed_rows(-5),
    "packed rows behind the last": packed_rows(4),
    "a place to turn by at a million millions": turned(BIG, "com.microsoft"),
    "a place to turn by before the first": turned(-1, ""),
    "more of the past than there is": remembered(9),
    "less of the past than nothing": remembered(-2),
    "Reshape to another size": grown("Reshape", constant("few", 1, 2, 3), constant("shape", 7, 7)),
    "weights behind the end": moved(lambda entries: entries | {"offset": str(1 << 40)}),
    "weights before the start": moved(lambda entries: entries | {"offset": "-4096"}),
    "weights of a negative length": moved(lambda entries: entries | {"length": "-1"}),
    "weights that are too long": moved(lambda entries: entries | {"length": str(1 << 40)}),
    "weights of another file": moved(lambda entries: entries | {"location": "/etc/passwd"}),
    "weights of the folder above": moved(lambda entries: entries | {"location": "../../manifest.json"}),
    "a shape with more numbers than there are": shaped(1 << 20, 1 << 20),
    "a shape with a negative axis": shaped(-1, 4),
    "weights at byte 2^64": moved(lambda entries: entries | {"offset": str(1 << 64)}),
    "weights at a byte in other digits": moved(lambda entries: entries | {"offset": "٣"}),
    "weights at a byte of 5,000 digits": moved(lambda entries: entries | {"offset": "9" * 5000}),
    "weights of an address": moved(lambda entries: entries | {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"}),
    "a function that calls itself": with_functions({"Mirror": ("Mirror",)}),
    "two functions that call one another": with_functions({"A": ("B",), "B": ("A",)}),
    "a function of 2^40 nodes": with_functions(
        {f"F{n}": (f"F{n - 1}", f"F{n - 1}") if n else ("Neg", "Neg") for n in range(40, -1, -1)}
    ),
    "nothing": bytes_of(TRANSFORMER, lambda content: b""),
    "noise": bytes_of(TRANSFORMER, lambda content: bytes(range(256)) * 9),
    "half of a graph": bytes_of(TRANSFORMER, lambda content: content[: len(content) // 2]),
    "a text": bytes_of(TRANSFORMER, lambda content: b'{"graph": []}'),
}


# Tokenizers.


def tokenizer(**parts: object) -> Hostile:
    def make(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
        rehash(folder, "tokenizer.json")

    return make


def replacing(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*normalizers: Mapping[str, object]) -> dict[str, object]:
    return {"type": "Sequence", "normalizers": list(normalizers)}


def split(regex: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


LONGER = replacing({"String": "i"}, "i" * 400)
TOKENIZERS: dict[str, Hostile] = {
    "three times 400 letters for one": tokenizer(normalizer=sequence(LONGER, LONGER, LONGER)),
    "400 letters for one, 10 deep": tokenizer(normalizer=sequence(sequence(sequence(*[LONGER] * 10)))),
    "letters for a regex of nothing": tokenizer(normalizer=sequence(*[replacing({"Regex": ""}, "i" * 4000)] * 3)),
    "a replacement of nothing": tokenizer(normalizer=replacing({"String": ""}, "x")),
    "a prefix of 10 million letters": tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 10_000_000}),
    "a decoder that makes it longer": tokenizer(
        decoder={"type": "Sequence", "decoders": [replacing({"String": "i"}, "i" * 400)] * 3}
    ),
    "a regex that is none": tokenizer(pre_tokenizer=split("(")),
    "a model of another kind": tokenizer(model={"type": "Clever"}),
    "no model": tokenizer(model=None),
    "a list": bytes_of("tokenizer.json", lambda content: b"[]"),
    "nothing": bytes_of("tokenizer.json", lambda content: b""),
    "100,000 brackets": bytes_of("tokenizer.json", lambda content: b"[" * 100_000),
    "no UTF-8": bytes_of("tokenizer.json", lambda content: b"\xff\xfe" + content),
    "a table of characters that says it is larger": tokenizer(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    ),
    "a piece of a million letters": tokenizer(
        model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["i" * 1_000_000, -1.0]], "byte_fallback": True}
    ),
    "100,000 rules": tokenizer(normalizer=sequence(*[{"type": "NFD"}] * 100_000)),
    "100,000 rules of a decoder": tokenizer(
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}] * 100_000}
    ),
    "an expression of a million letters": tokenizer(pre_tokenizer=split("|".join(f"a{i}" for i in range(150_000)))),
    "an id of 10^12": tokenizer(model={"type": "WordLevel", "vocab": {"i": 10**12}, "unk_token": "i"}),
    "chunks of no letters": tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "a byte order mark of UTF-16": bytes_of("tokenizer.json", lambda content: content.decode().encode("utf-16")),
    "letters after the end": bytes_of("tokenizer.json", lambda content: content + b"{}"),
    "a field twice": bytes_of(
        "tokenizer.json", lambda content: content.replace(b'"model"', b'"model":null,"model"', 1)
    ),
    "a regex without end": tokenizer(pre_tokenizer=split(r"(a+)+$|(x+x+)+y")),
}


# Manifests: their bytes, and single fields.


def manifest(change: Callable[[str], str | bytes]) -> Hostile:
    def make(folder: Path) -> None:
        path = folder / "manifest.json"
        changed = change(path.read_text())
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return make


def field(name: str, raw: str) -> Hostile:
    """A field of the whole document, as raw JSON."""

    def change(text: str) -> str:
        document = json.loads(text)
        document[name] = "\0here"
        return json.dumps(document).replace('"\\u0000here"', raw)

    return manifest(change)


def limit(raw: str) -> Hostile:
    def change(text: str) -> str:
        document = json.loads(text)
        document["limits"]["max_context"] = "\0here"
        return json.dumps(document).replace('"\\u0000here"', raw)

    return manifest(change)


def file_named(name: str) -> Hostile:
    def change(text: str) -> str:
        document = json.loads(text)
        document["files"][name] = next(iter(document["files"].values()))
        document["tokenizer"] = name
        return json.dumps(document)

    return manifest(change)


MANIFESTS: dict[str, Hostile] = {
    "a number of 400 digits": limit("9" * 400),
    "a number of 5,000 digits": limit("9" * 5000),
    "1e400": limit("1e400"),
    "NaN": limit("NaN"),
    "a limit of 10^18": limit(str(10**18)),
    "half of a letter": field("name", r'"\ud800"'),
    "half of a letter as bytes": manifest(lambda text: text.encode().replace(b'"tiny"', b'"\xed\xa0\x80"', 1)),
    "null": manifest(lambda text: "null"),
    "a list": manifest(lambda text: "[]"),
    "nothing": manifest(lambda text: ""),
    "100,000 brackets": manifest(lambda text: "[" * 100_000),
    "100,000 objects": manifest(lambda text: '{"a":' * 100_000),
    "a field twice": manifest(lambda text: text.replace('"name"', '"name": "a", "name"', 1)),
    "no UTF-8": manifest(lambda text: b"\xff" + text.encode()),
    "UTF-16": manifest(lambda text: text.encode("utf-16")),
    "a path of the folder above": file_named("../outside"),
    "a path of the root": file_named("/etc/passwd"),
    "a path with a NUL": file_named("a\0b"),
    "an empty path": file_named(""),
    "20 million letters": field("name", '"' + "x" * 20_000_000 + '"'),
    "another version": field("schema_version", "10e9"),
    "5,000 letters for a type": manifest(lambda text: text.replace('"float32"', '"' + "x" * 5000 + '"', 1)),
    "a shape that no loop has": manifest(lambda text: re.sub(r'"shape": \[\s*"?b"?', '"shape": [7', text)),
}


# What lies where a file should: links, pipes, folders, other people's files.


def instead(name: str, put: Callable[[Path], None]) -> Hostile:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return make


def outside(folder: Path) -> Path:
    path = folder.parent / "outside"
    path.write_bytes(b"secret")
    return path


PLACES: dict[str, Hostile] = {}
for _name in ("manifest.json", "tokenizer.json", TRANSFORMER, f"{TRANSFORMER}.data"):
    PLACES |= {
        f"a pipe for {_name}": instead(_name, os.mkfifo),
        f"a link out for {_name}": instead(_name, lambda path: path.symlink_to(outside(path.parent))),
        f"a link to a device for {_name}": instead(_name, lambda path: path.symlink_to("/dev/zero")),
        f"a link to itself for {_name}": instead(_name, lambda path: path.symlink_to(path)),
        f"a folder for {_name}": instead(_name, Path.mkdir),
        f"no {_name}": instead(_name, lambda path: None),
    }

KINDS: dict[str, dict[str, Hostile]] = {
    "graphs": GRAPHS,
    "tokenizers": TOKENIZERS,
    "manifests": MANIFESTS,
    "places": PLACES,
}
