"""A tiny bundle that is real: ONNX graphs with external data, a byte tokenizer, hashes, all that the contract asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgemm.bundle.bundle import (
    UNCONDITIONAL,
    Component,
    DenoiseLoop,
    DenoiseTemplate,
    Licence,
    Limits,
    Loops,
    Manifest,
    Source,
    TensorSpec,
    TextLoop,
    TextTemplate,
    Variant,
)
from edgemm.bundle.writer import BundleWriter
from tests.runtimes import reference, tiny_graphs
from tests.runtimes.tiny_weights import TINY, Weights

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT_TEMPLATE = TextTemplate(
    user_open="<|im_start|>user\n",
    user_close="<|im_end|>\n",
    assistant_open="<|im_start|>assistant\n",
    assistant_close="<|im_end|>\n",
    system_open="<|im_start|>system\n",
    system_close="<|im_end|>\n",
    system_default="",
)
DRAW_TEMPLATE = DenoiseTemplate(open="<|im_start|>user\nDraw", close="<|im_end|>\n")
SKIP = 10  # tokens of DRAW_TEMPLATE.open, one a byte but for the special one
LIMITS = Limits(max_context=600, max_image_pixels=1_000_000, max_steps=50)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def text_loop(**changes) -> TextLoop:
    loop = TextLoop(
        template=TEXT_TEMPLATE,
        image_close="\n",
        image_size=TINY.read_size,
        image_token_count=TINY.image_tokens,
        background=(255, 255, 255),
        stop_token_ids=(256, 258),
    )
    return dataclasses.replace(loop, **changes)


def denoise_loop(**changes) -> DenoiseLoop:
    loop = DenoiseLoop(
        template=DRAW_TEMPLATE,
        prefix_layers=TINY.prefix_layers,
        skip=SKIP,
        prediction="x",
        token_count=TINY.token_count,
        token_width=TINY.token_width,
        image_size=TINY.draw_size,
        num_inference_steps=4,
        guidance_scale=2.0,
        guidance_interval=(0.0, 1.0),
        shift=2.0,
    )
    return dataclasses.replace(loop, **changes)


def graphs(weights: Weights) -> dict[str, tiny_graphs.Graph]:
    return {
        "image_encoder": tiny_graphs.image_encoder(weights),
        "transformer": tiny_graphs.transformer(weights),
        "conditioner": tiny_graphs.conditioner(weights, SKIP),
        "denoiser": tiny_graphs.denoiser(weights),
        "image_decoder": tiny_graphs.image_decoder(),
    }


def write_graph(writer: BundleWriter, component: str, graph: tiny_graphs.Graph) -> Variant:
    """The graph and its weights beside it; every weight is outside, as an exporter does for large ones."""
    name = f"components/{component}/cpu-fp32.onnx"
    data = f"{name}.data" if graph.weights is not None else None
    model = graph.model()
    onnx.checker.check_model(model)
    if data is None:
        onnx.save_model(model, str(writer.file(name)))
    else:
        location = data.rpartition("/")[2]
        onnx.save_model(
            model, str(writer.file(name)), save_as_external_data=True, location=location, size_threshold=256
        )
    inputs, outputs = (tuple(TensorSpec(*tensor) for tensor in side) for side in (graph.inputs, graph.outputs))
    return Variant(name, data, "opset24", "fp32", inputs, outputs)


def unconditional(weights: Weights) -> dict[str, np.ndarray]:
    """The conditioner's outputs for the empty prompt, by the reference."""
    tokenizer = byte_tokenizer()
    opening, close = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in (DRAW_TEMPLATE.open, DRAW_TEMPLATE.close)
    )
    assert len(opening) == SKIP
    ids = opening + close
    rows, limits = [-1] * len(ids), list(range(len(ids)))
    _, cache = reference.transformer(weights, ids, rows, limits, None)
    keys, values, vector, layout = reference.conditioner(weights, cache, [0.0] * len(ids), SKIP)
    tensors = {f"prefix_key.{i}": key[None] for i, key in enumerate(keys)}
    tensors |= {f"prefix_value.{i}": value[None] for i, value in enumerate(values)}
    tensors |= {"prompt_vector": vector[None], "layout": layout[None]}
    tensors = {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
    return tensors | {"prefix_mask": np.ones((1, len(close)), dtype=bool)}


def build(
    path: Path,
    weights: Weights | None = None,
    loops: Loops | None = None,
    limits: Limits = LIMITS,
    without: tuple[str, ...] = (),
) -> Path:
    """Writes a tiny bundle, whole or `without` some of its components, and gives its path back."""
    weights = weights or Weights()
    loops = loops or Loops(text_loop(), denoise_loop())
    with BundleWriter(path) as writer:
        components = {
            name: Component({"cpu-fp32": write_graph(writer, name, graph)})
            for name, graph in graphs(weights).items()
            if name not in without
        }
        writer.add_bytes("tokenizer.json", byte_tokenizer().to_str().encode())
        writer.add_bytes("NOTICE", b"made by a test\n")
        save_file(unconditional(weights), writer.file(UNCONDITIONAL))
        writer.finish(
            Manifest(
                name="tiny",
                family="mot",
                edgemm_version="0.1.0",
                source=Source("tiny", "0" * 64),
                components=components,
                targets={"cpu": dict.fromkeys(components, "cpu-fp32")},
                loops=loops,
                limits=limits,
                tokenizer="tokenizer.json",
                quantization=None,
                licences=(Licence("weights", "CC0-1.0", "a random generator"),),
                files={},
            )
        )
    return path
