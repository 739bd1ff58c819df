"""Reading as two graphs: picture, prompt and the first token in one run, then a step for each token after it.

Both choose the likeliest token themselves, and the step's outputs may be bound to its inputs, caches included: whoever
runs it again has the next token.  So a loop in any language is a call, repeated until a stop token is there.
Axes: b batch, s tokens of the prompt, T cache slots, g K/V heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemm.bundle.components import Variant
from edgemm.export.canvas import Canvas

__all__ = ["compose_prompt", "compose_step"]

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


def compose_prompt(folder: Path, variants: Mapping[str, Variant], silent: np.ndarray | None) -> ir.Model:
    """`pixels` (1, 3, S, S), `input_ids`, `image_index`, `attention_limit` (1, s) and empty caches -> `next_id` (1, 1).

    Without a picture `image_index` is -1 everywhere and `pixels` whatever is there; `next_position` (1) is s.
    """
    canvas = Canvas(folder, variants)
    seen: dict[str, ir.Value] = {}
    for encoder in variants.keys() & {"image_encoder", "vq_encoder"}:
        pixels = canvas.input("pixels", FLOAT, (1, *variants[encoder].inputs[0].shape[1:]))
        seen = canvas.run(encoder, {"pixels": pixels})
    words = {name: canvas.input(name, INT64, (1, "s")) for name in ("input_ids", "image_index", "attention_limit")}
    if "token_ids" in seen:
        words |= _with_picture_ids(canvas, words["input_ids"], words["image_index"], seen["token_ids"])
    count = canvas.make("Gather", canvas.make("Shape", words["input_ids"]), canvas.constant([1]))
    more = {"write_index": canvas.constant([0]), "logits_index": canvas.make("Sub", count, canvas.constant([1]))}
    following = _read(canvas, {**words, **more}, seen.get("image_tokens"), silent)
    canvas.output("next_position", _after(canvas, count, following, 0), INT64, (1,))
    return canvas.model()


def _with_picture_ids(canvas: Canvas, ids: ir.Value, index: ir.Value, token_ids: ir.Value) -> dict[str, ir.Value]:
    """bundle/prompt.py's with_picture_ids: `token_ids` (1, m) stand where the picture does, and no row is told."""
    minus_one = canvas.constant([-1])
    rows = canvas.make("Max", index, canvas.constant([0]))
    codes = canvas.make("Gather", canvas.make("Squeeze", token_ids, canvas.constant([0])), rows, axis=0)  # (1, s)
    pictured = canvas.make("Greater", index, minus_one)
    blank = canvas.make("Min", index, minus_one)
    return {"input_ids": canvas.make("Where", pictured, codes, ids), "image_index": blank}


def compose_step(folder: Path, variants: Mapping[str, Variant], silent: np.ndarray | None) -> ir.Model:
    """`token_id` (1, 1), its `position` (1) and caches -> `next_id` (1, 1), `next_position` (1) and the caches.

    All that reads the inputs comes before what makes the outputs, so one buffer may be both.
    """
    canvas = Canvas(folder, variants)
    token = canvas.input("token_id", INT64, (1, 1))
    position = canvas.input("position", INT64, (1,))
    axis = canvas.constant([0])
    words = {
        "input_ids": token,
        "image_index": canvas.make("Sub", canvas.make("Mul", token, canvas.constant([0])), canvas.constant([1])),
        "attention_limit": canvas.make("Unsqueeze", position, axis),
        "write_index": position,
        "logits_index": canvas.constant([0]),
    }
    following = _read(canvas, words, None, silent)
    canvas.output("next_position", _after(canvas, position, following, 1), INT64, (1,))
    return canvas.model()


def _read(
    canvas: Canvas, words: Mapping[str, ir.Value], image_tokens: ir.Value | None, silent: np.ndarray | None
) -> ir.Value:
    """The transformer with its caches as the graph's own inputs and outputs; the likeliest token (1, 1) is one, too."""
    variant = canvas.variants["transformer"]
    taken = {spec.name: spec for spec in variant.inputs}
    past = {
        spec.name: canvas.input(spec.name, ir.DataType.from_numpy(np.dtype(spec.dtype)), (1, *spec.shape[1:]))
        for spec in variant.inputs
        if spec.name.startswith("past_")
    }
    if image_tokens is None:
        width = taken["image_tokens"].fixed(2, "width")
        image_tokens = canvas.constant(np.zeros((1, 1, width)), np.float32)
    inputs = {**words, "image_tokens": image_tokens, **past}
    if "draft_index" in taken:
        inputs["draft_index"] = canvas.constant(np.zeros((1, 1)))
    given = canvas.run("transformer", inputs)
    logits = given["logits"] if "logits" in given else canvas.run("text_head", {"hidden": given["hidden"]})["logits"]
    if silent is not None:
        said = np.zeros((1, variant.outputs[0].fixed(1, "vocabulary")), dtype=np.float32)
        said[0, silent] = -np.inf
        logits = canvas.make("Add", logits, canvas.constant(said, np.float32))
    following = canvas.make("ArgMax", logits, axis=1, keepdims=1)
    following = _behind(canvas, following, [given[name] for name in given if name.startswith("present_")])
    canvas.output("next_id", following, INT64, (1, 1))
    for spec in variant.outputs:
        if spec.name.startswith("present_"):
            dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
            canvas.give(spec.name, given[spec.name], dtype, (1, *spec.shape[1:]))
    return following


def _behind(canvas: Canvas, following: ir.Value, caches: Sequence[ir.Value]) -> ir.Value:
    """The token, known no sooner than the caches that it does not depend on: they read what it is written over."""
    read, left = set[ir.Value](), [following]
    while left:
        if (value := left.pop()) not in read:
            read.add(value)
            node = value.producer()
            left += [] if node is None else [each for each in node.inputs if each is not None]
    for cache in (cache for cache in caches if cache not in read):
        first = canvas.make("Gather", canvas.make("Reshape", cache, canvas.constant([-1])), canvas.constant([[0]]))
        none = canvas.make("Mul", canvas.make("Cast", first, to=int(INT64)), canvas.constant([0]))
        following = canvas.make("Add", following, none)
    return following


def _after(canvas: Canvas, position: ir.Value, following: ir.Value, more: int) -> ir.Value:
    """The position (1) of the next token, known no sooner than the token is."""
    zero = canvas.make("Mul", canvas.make("Squeeze", following, canvas.constant([0])), canvas.constant([0]))
    return canvas.make("Add", canvas.make("Add", position, canvas.constant([more])), zero)
