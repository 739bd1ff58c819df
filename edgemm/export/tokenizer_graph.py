"""A prompt's string to what the graphs read, and ids back to text, as graphs of onnxruntime-extensions' operators.

For programs without a tokenizer of their own (docs/embedding.md).  The template around the user's words is constant
ids; the words go through the library's GPT2Tokenizer.  That is byte-level BPE with GPT-2's own splitting and nothing
else, so a tokenizer that does more is refused by the name of what it does.
Axes: s tokens.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.bundle.chat import as_messages, chat_prompt
from edgemm.bundle.manifest import Manifest
from edgemm.bundle.prompt import Prompt, Tokenizer, drawing_prompt
from edgemm.errors import UsageError
from edgemm.export.canvas import Canvas
from edgemm.export.passes.rewriting import drop_unread

__all__ = ["DOMAIN", "tokenizer_graphs"]

DOMAIN = "ai.onnx.contrib"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PLAIN = {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False}
WORD = "x"  # stands for the user's own text while the template is looked at


def tokenizer_graphs(manifest: Manifest, tokenizer_json: bytes, tokenizer: Tokenizer) -> dict[str, bytes]:
    """path in the bundle -> graph, for what the bundle does: draw, ask about a picture, ask, and read ids aloud.

    Raises UsageError where the library's operator would give other ids than the tokenizer.
    """
    document = json.loads(tokenizer_json)
    _refuse_unless_plain(document)
    made = {"tokenizer/decode.onnx": _decoder(document)}
    denoise, text = manifest.loops.denoise, manifest.loops.text
    if denoise is not None:
        _refuse_joined(denoise.template.joined)
        prompt = drawing_prompt(WORD, denoise.template, tokenizer, size=(denoise.height, denoise.width))
        made["tokenizer/draw_prompt.onnx"] = _prompt_graph(document, prompt, " ", ("input_ids", "prompt_length"))
    if text is not None:
        _refuse_joined(text.joined)
        given = ("input_ids", "image_index", "attention_limit")
        for name, pictures in (("ask", ()), ("ask_about", (None,) if "image_encoder" in manifest.components else ())):
            if name == "ask" or pictures:
                prompt = chat_prompt(as_messages(WORD, list(pictures)), text, tokenizer)
                made[f"tokenizer/{name}_prompt.onnx"] = _prompt_graph(document, prompt, "", given)
    return made


def _refuse_unless_plain(document: dict[str, Any]) -> None:
    model, splits = document["model"], document.get("pre_tokenizer") or {}
    odd = [f"model.{key} {model.get(key)!r}" for key, value in PLAIN.items() if model.get(key) != value]
    odd += [f"pre_tokenizer.{key} {splits.get(key)!r}" for key, value in BYTE_LEVEL.items() if splits.get(key) != value]
    odd += [f"model.{key}" for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    odd += ["a normalizer"] if document.get("normalizer") else []
    odd += ["added tokens that are words"] if not all(token["special"] for token in document["added_tokens"]) else []
    if odd:
        raise UsageError(
            f"--one-call tokenize: onnxruntime-extensions has byte-level BPE split as GPT-2 does, this tokenizer has "
            f"{', '.join(odd)}; use a tokenizer library, or ship ids (docs/embedding.md)"
        )


def _refuse_joined(joined: bool) -> None:
    if joined:
        raise UsageError(
            "--one-call tokenize: this model's template and words are tokenized as one string, which the graph cannot; "
            "use a tokenizer library, or ship ids (docs/embedding.md)"
        )


def _prompt_graph(document: dict[str, Any], prompt: Prompt, before: str, outputs: tuple[str, ...]) -> bytes:
    """`text` (1), a string -> the arrays of a Prompt (1, s); `prompt` has WORD where the user's text goes."""
    own = np.flatnonzero(prompt.users_own)
    first, last = int(own[0]), int(own[-1]) + 1
    assert prompt.attention_limit[first:].tolist() == list(range(first, len(prompt)))  # causal from there on
    canvas = _canvas()
    text = canvas.input("text", ir.DataType.STRING, (1,))
    if before:
        text = canvas.make("StringConcat", canvas.make("Constant", value_strings=[before]), text)
    model = document["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    words, _ = canvas.make_many(
        "GPT2Tokenizer",
        [text],
        2,
        domain=DOMAIN,
        vocab=json.dumps(model["vocab"], ensure_ascii=False),
        merges="\n".join(["#version: 0.2", *merges]),
        padding_length=-1,
    )
    ends = (prompt.input_ids[None, :first], prompt.input_ids[None, last:])
    ids = canvas.make("Concat", canvas.constant(ends[0]), words, canvas.constant(ends[1]), axis=1)
    count = canvas.make("Gather", canvas.make("Shape", ids), canvas.constant([1]))
    minus = canvas.make("Sub", canvas.make("Mul", ids, canvas.constant([0])), canvas.constant([1]))
    end = canvas.make("Squeeze", count, canvas.constant([0]))
    later = canvas.make(
        "Unsqueeze", canvas.make("Range", canvas.constant(first), end, canvas.constant(1)), canvas.constant([0])
    )
    rest = canvas.make("Slice", minus, canvas.constant([first]), canvas.constant([2**31]), canvas.constant([1]))
    every = {
        "input_ids": (ids, (1, "s")),
        "prompt_length": (count, (1,)),
        "image_index": (
            canvas.make("Concat", canvas.constant(prompt.image_index[None, :first]), rest, axis=1),
            (1, "s"),
        ),
        "attention_limit": (
            canvas.make("Concat", canvas.constant(prompt.attention_limit[None, :first]), later, axis=1),
            (1, "s"),
        ),
    }
    for name in outputs:
        canvas.output(name, every[name][0], ir.DataType.INT64, every[name][1])
    return _bytes(canvas)


def _decoder(document: dict[str, Any]) -> bytes:
    """`ids` (s) -> `text` (1); special tokens say nothing."""
    tokens = {**document["model"]["vocab"], **{token["content"]: token["id"] for token in document["added_tokens"]}}
    named = {number: token for token, number in tokens.items()}
    canvas = _canvas()
    ids = canvas.input("ids", ir.DataType.INT64, ("s",))
    special = [token["id"] for token in document["added_tokens"]]
    text = canvas.make(
        "BpeDecoder",
        ids,
        domain=DOMAIN,
        id_vocab="\n".join(named.get(number, "") for number in range(max(named) + 1)),
        byte_decoder="\n".join(f"{ord(letter)}\t{byte}" for letter, byte in _letters().items()),
        added_tokens="\n".join(f"{number}\t{named[number]}" for number in special),
        all_special_ids="\n".join(map(str, special)),
        skip_special_tokens=1,
    )
    canvas.output("text", text, ir.DataType.STRING, (1,))
    return _bytes(canvas)


def _letters() -> dict[str, int]:
    """GPT-2's printable letter for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(odd)}


def _canvas() -> Canvas:
    canvas = Canvas()
    canvas.graph.opset_imports.update({"": 24, DOMAIN: 1})
    return canvas


def _bytes(canvas: Canvas) -> bytes:
    model = ir.Model(canvas.graph, ir_version=10)
    drop_unread(model)
    return ir.to_proto(model).SerializeToString(deterministic=True)
