"""The five components as torch modules with exactly the bundle's inputs and outputs (docs/bundle.md).

Each is what gets traced and also what its graph is held against.  The transformer is written with the standard operators
of opset 24 (Attention, RotaryEmbedding, RMSNormalization, TensorScatter): the static cache goes in, comes out, and a
runtime may bind one buffer to both.  No files, no quantization here.
Axes: b batch, s new tokens, T cache slots, m image tokens, n drawing tokens, t prefix slots; see docs/bundle.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.model.attention import RMSNorm, rotary_tables, visible_up_to
from edgemm.model.conditioner import Prefix
from edgemm.model.image_tokens import tokens_to_pixels
from edgemm.model.transformer import Layer, write_slots
from edgemm.model.unified import Unified

__all__ = ["ComponentGraph", "component_graphs"]

EXAMPLE_TEXT = "Once upon a time a painter lived by the sea. What did she see from her window every morning?"
EXAMPLE_DRAWINGS = ("red heart", "dog face, noto style")


@dataclass(frozen=True)
class ComponentGraph:
    """A component ready to trace: module, example inputs by name, axis names of each input, output specs."""

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, tuple[str | int, ...]]  # input or output name -> axis names or sizes
    outputs: tuple[str, ...]


class TransformerGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.transformer = model.transformer
        self.config = model.config.transformer

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past = tensors
        config = self.config
        b, s = input_ids.shape
        x = self.transformer.embed(input_ids, image_tokens, image_index)
        positions = write_index[:, None] + torch.arange(s, device=x.device)
        cos, sin = rotary_tables(positions, config.head_width, config.rope_theta)
        mask = visible_up_to(attention_limit, past[0].shape[2])
        present: list[Tensor] = []
        for index, layer in enumerate(self.transformer.layers):
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            normed = _rms(layer.input_layernorm, x)
            queries = attention.q_proj(normed).view(b, s, config.heads, config.head_width).transpose(1, 2)
            keys = attention.k_proj(normed).view(b, s, config.kv_heads, config.head_width).transpose(1, 2)
            values = attention.v_proj(normed).view(b, s, config.kv_heads, config.head_width).transpose(1, 2)
            queries = torch.onnx.ops.rotary_embedding(queries, cos, sin)
            keys = scatter(past[2 * index], torch.onnx.ops.rotary_embedding(keys, cos, sin), write_index)
            values = scatter(past[2 * index + 1], values, write_index)
            present += [keys, values]
            attended = torch.onnx.ops.attention(queries, keys, values, mask)[0]  # (b, h, s, d)
            x = x + attention.output(attended)
            x = x + layer.mlp(_rms(layer.post_attention_layernorm, x))
        wanted = x.gather(1, logits_index[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]  # (b, w)
        hidden = _rms(self.transformer.norm, wanted)
        return nn.functional.linear(hidden, self.transformer.embed_tokens.weight), *present


def scatter(cache: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """TensorScatter (opset 24) in a traced graph, its eager twin outside of one."""
    if not torch.compiler.is_exporting():
        return write_slots(cache, update, write_index)
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, update, write_index),
        attrs={"axis": 2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=24,
    )


def _rms(norm: RMSNorm, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


class ConditionerGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.conditioner = model.conditioner

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *cached, prompt_mask, prefix_length = tensors
        prefix = self.conditioner(list(zip(cached[::2], cached[1::2], strict=True)), prompt_mask, prefix_length)
        pairs = [tensor for pair in zip(prefix.keys, prefix.values, strict=True) for tensor in pair]
        return prefix.prompt_vector, prefix.layout, prefix.mask, *pairs


class DenoiserGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.denoiser = model.denoiser

    def forward(self, *tensors: Tensor) -> Tensor:
        noisy_tokens, time, prompt_vector, layout, prefix_mask, *pairs = tensors
        prefix = Prefix(list(pairs[::2]), list(pairs[1::2]), prefix_mask, prompt_vector, layout)
        return self.denoiser(noisy_tokens, time, prefix)


class ImageEncoderGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.image_encoder = model.image_encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.image_encoder(pixels)


class ImageDecoderGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.config = model.config.image_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens_to_pixels(tokens, self.config)


def component_graphs(model: Unified, seed: int = 0) -> dict[str, ComponentGraph]:
    """Every component of the model, with example inputs drawn from the seed."""
    random = torch.Generator().manual_seed(seed)
    config = model.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    conditioner = _conditioner(model)
    return {
        "image_encoder": _image_encoder(model, torch.rand(2, 3, *[config.vision.image_size] * 2, generator=random)),
        "transformer": _transformer(model, normal),
        "conditioner": conditioner,
        "denoiser": _denoiser(model, normal, conditioner.inputs),
        "image_decoder": _image_decoder(model, normal),
    }


def _image_encoder(model: Unified, pixels: Tensor) -> ComponentGraph:
    vision = model.config.vision
    return ComponentGraph(
        ImageEncoderGraph(model),
        {"pixels": pixels},
        {
            "pixels": ("b", 3, vision.image_size, vision.image_size),
            "image_tokens": ("b", vision.token_count, model.config.transformer.width),
        },
        ("image_tokens",),
    )


def _transformer(model: Unified, normal: Any) -> ComponentGraph:
    config = model.config.transformer
    b, s, slots, rows = 2, 5, 19, 7
    index = torch.tensor([[-1, 0, 1, 2, -1], [-1, -1, 6, -1, -1]])
    write_index = torch.tensor([3, 8])
    own = write_index[:, None] + torch.arange(s)
    limit = torch.tensor([[own[0, 0], own[0, 3], own[0, 3], own[0, 3], own[0, 4]], own[1].tolist()])
    said, asked = model.encode(EXAMPLE_TEXT)[: 2 * b * s], model.encode(EXAMPLE_TEXT)[-b * s :]
    before = torch.tensor([said[:8]] * b)
    zeros = [(torch.zeros(b, config.kv_heads, slots, config.head_width),) * 2] * config.depth
    with torch.no_grad():  # a cache that a real text left: random numbers are nothing a transformer ever meets
        _, past = model.transformer(
            model.transformer.embed_tokens(before),
            torch.arange(8).expand(b, -1),
            zeros,
            torch.zeros(b, dtype=torch.long),
        )
    inputs = {
        "input_ids": torch.tensor(asked).reshape(b, s),
        "image_tokens": normal(b, rows, config.width) * 0.1,
        "image_index": index,
        "write_index": write_index,
        "attention_limit": limit,
        "logits_index": torch.tensor([4, 2]),
    }
    cache_axes = ("b", config.kv_heads, "T", config.head_width)
    axes: dict[str, tuple[str | int, ...]] = {
        "input_ids": ("b", "s"),
        "image_tokens": ("b", "m", config.width),
        "image_index": ("b", "s"),
        "write_index": ("b",),
        "attention_limit": ("b", "s"),
        "logits_index": ("b",),
        "logits": ("b", config.vocab_size),
    }
    outputs = ["logits"]
    for layer in range(config.depth):
        for which, part in enumerate(("key", "value")):
            inputs[f"past_{part}.{layer}"] = past[layer][which]
            outputs.append(f"present_{part}.{layer}")
            axes |= {f"past_{part}.{layer}": cache_axes, f"present_{part}.{layer}": cache_axes}
    return ComponentGraph(TransformerGraph(model), inputs, axes, tuple(outputs))


def _conditioner(model: Unified) -> ComponentGraph:
    source, expert = model.config.transformer, model.config.denoiser
    inputs, axes = {}, {}
    cached, prompt_mask, prefix_length = model.prompt_cache(EXAMPLE_DRAWINGS)
    for layer, pair in zip(expert.prefix_layers, cached, strict=True):
        for part, tensor in zip(("key", "value"), pair, strict=True):
            inputs[f"past_{part}.{layer}"] = tensor
            axes[f"past_{part}.{layer}"] = ("b", source.kv_heads, "T", source.head_width)
    inputs |= {"prompt_mask": prompt_mask, "prefix_length": prefix_length}
    axes |= {"prompt_mask": ("b", "T"), "prefix_length": ("b",)}
    prefix_axes = _prefix_axes(model)
    return ComponentGraph(ConditionerGraph(model), inputs, axes | prefix_axes, tuple(prefix_axes))


def _prefix_axes(model: Unified) -> dict[str, tuple[str | int, ...]]:
    expert, tokens = model.config.denoiser, model.config.image_tokens
    axes: dict[str, tuple[str | int, ...]] = {
        "prompt_vector": ("b", expert.conditioning),
        "layout": ("b", tokens.token_count, expert.layout_width),
        "prefix_mask": ("b", "t"),
    }
    for layer in range(expert.depth):
        for part in ("key", "value"):
            axes[f"prefix_{part}.{layer}"] = ("b", expert.heads, "t", expert.head_width)
    return axes


def _denoiser(model: Unified, normal: Any, conditioner_inputs: dict[str, Tensor]) -> ComponentGraph:
    tokens = model.config.image_tokens
    prefix_axes = _prefix_axes(model)
    inputs = {
        "noisy_tokens": normal(2, tokens.token_count, tokens.token_width),
        "time": torch.tensor([0.2, 0.7]),
    }
    with torch.no_grad():
        prefix = ConditionerGraph(model)(*conditioner_inputs.values())
    inputs |= dict(zip(prefix_axes, prefix, strict=True))
    picture = ("b", tokens.token_count, tokens.token_width)
    axes = {"noisy_tokens": picture, "time": ("b",), "prediction": picture} | prefix_axes
    return ComponentGraph(DenoiserGraph(model), inputs, axes, ("prediction",))


def _image_decoder(model: Unified, normal: Any) -> ComponentGraph:
    tokens = model.config.image_tokens
    return ComponentGraph(
        ImageDecoderGraph(model),
        {"tokens": normal(2, tokens.token_count, tokens.token_width)},
        {
            "tokens": ("b", tokens.token_count, tokens.token_width),
            "pixels": ("b", 3, tokens.image_size, tokens.image_size),
        },
        ("pixels",),
    )
