"""The native components as torch modules with exactly the bundle's inputs and outputs (docs/bundle.md).

Each is what gets traced and also what its graph is held against.  The transformer is written with standard operators of
opset 24 (Attention, RotaryEmbedding, RMSNormalization, TensorScatter): the static cache goes in, comes out, and a
runtime may bind one buffer to both.  No files, no quantization here.
Axes: b batch, s new tokens, T cache slots, m image tokens, n drawing tokens, t prefix slots; see docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgemm.bundle.components import COMPONENTS, TensorSpec, pattern
from edgemm.model.conditioner import Prefix
from edgemm.model.image_tokens import tokens_to_pixels
from edgemm.model.transformer import Layer, RMSNorm, rotary_tables, visible_up_to, write_slots
from edgemm.model.unified import Unified
from edgemm.model.vision import moved

__all__ = ["ComponentGraph", "component_graphs"]

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class ComponentGraph:
    """A component ready to trace: a module that takes and gives these tensors, in this order."""

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiples: Mapping[str, int] = field(default_factory=dict)  # named axes of inputs that are multiples of a number


class TransformerGraph(nn.Module):
    """With `prompt_lookup` it gives logits of more positions than one, so that candidates are checked in one run."""

    def __init__(self, model: Unified, prompt_lookup: bool = False) -> None:
        super().__init__()
        self.prompt_lookup = prompt_lookup
        self.transformer = model.transformer
        self.config = model.config.transformer
        self.names_nodes = model.config.names_nodes

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past = tensors
        wanted_index = logits_index[:, None]  # (b, 1), or (b, 1 + k)
        if self.prompt_lookup:
            wanted_index = torch.cat((wanted_index, past.pop(0)), dim=1)
        config = self.config
        b, s = input_ids.shape
        x = self.transformer.embed(input_ids, image_tokens, image_index, self.names_nodes)
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
            x = x + layer.mlp(_rms(layer.post_attention_layernorm, x), image_index >= 0)
        wanted = x.gather(1, wanted_index[..., None].expand(-1, -1, x.shape[-1]))
        hidden = _rms(self.transformer.norm, wanted.flatten(0, 1) if self.prompt_lookup else wanted[:, 0])
        logits = nn.functional.linear(hidden, self.transformer.embed_tokens.weight)
        if not self.prompt_lookup:
            return logits, *present
        rows = logits.unflatten(0, (b, wanted_index.shape[1]))  # (b, 1 + k, v)
        return rows[:, 0], rows[:, 1:], *present


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
        self.prefix_layers = model.config.denoiser.prefix_layers  # several denoiser layers may read the same one
        self.has_layout = model.config.denoiser.layout_width > 0

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *past, prompt_mask, prefix_length = tensors
        by_layer = dict(zip(dict.fromkeys(self.prefix_layers), zip(past[::2], past[1::2], strict=True), strict=True))
        prefix = self.conditioner([by_layer[layer] for layer in self.prefix_layers], prompt_mask, prefix_length)
        pairs = [tensor for pair in zip(prefix.keys, prefix.values, strict=True) for tensor in pair]
        layout = [prefix.layout] if self.has_layout else []
        return prefix.prompt_vector, *layout, prefix.mask, *pairs


class DenoiserGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.denoiser = model.denoiser
        if model.config.experts == "dense":
            self.transformer = model.transformer  # whose layers the denoiser uses: the exporter has to see them
        self.has_layout = model.config.denoiser.layout_width > 0
        self.has_step_size = model.config.denoiser.step_size

    def forward(self, *tensors: Tensor) -> Tensor:
        noisy_tokens, time, *rest = tensors
        step_size = rest.pop(0) if self.has_step_size else None
        prompt_vector = rest.pop(0)
        layout = rest.pop(0) if self.has_layout else noisy_tokens[:, :, :0]
        prefix_mask, *pairs = rest
        prefix = Prefix(list(pairs[::2]), list(pairs[1::2]), prefix_mask, prompt_vector, layout)
        return self.denoiser(noisy_tokens, time, prefix, step_size)


class ImageDecoderGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.autoencoder = model.autoencoder
        self.config = model.config.image_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        if self.autoencoder is not None:
            return self.autoencoder.decode(tokens).clamp(0, 1)
        return tokens_to_pixels(tokens, self.config)


class VqEncoderGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.vq, self.first_code = model.vq, model.config.first_code

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.vq is not None
        return self.vq.encode(pixels) + self.first_code


class MotionEncoderGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.motion_encoder = model.motion_encoder

    def forward(self, pixels: Tensor, previous: Tensor) -> Tensor:
        assert self.motion_encoder is not None
        return self.motion_encoder(moved(pixels, previous))


class VqDecoderGraph(nn.Module):
    def __init__(self, model: Unified) -> None:
        super().__init__()
        self.vq = model.vq

    def forward(self, codes: Tensor) -> Tensor:
        assert self.vq is not None
        return self.vq.decode(codes).clamp(0, 1)


def component_graphs(model: Unified, prompt_lookup: bool = False) -> dict[str, ComponentGraph]:
    """Every component of the model by its name in the bundle; `prompt_lookup` as TransformerGraph has it."""
    if model.config.objective == "ar":
        graphs = (_vq_encoder(model), _transformer(model, prompt_lookup), _vq_decoder(model))
    else:
        graphs = (
            _image_encoder(model),
            _transformer(model, prompt_lookup),
            _conditioner(model),
            _denoiser(model),
            _image_decoder(model),
            *(() if model.graph_encoder is None else (_graph_encoder(model),)),
            *(() if model.motion_encoder is None else (_motion_encoder(model),)),
        )
    return {graph.name: graph for graph in graphs}


def _graph(name: str, module: nn.Module, inputs: dict[str, Shape], outputs: dict[str, Shape]) -> ComponentGraph:
    types = {stem: dtype for side in COMPONENTS[name] for stem, (dtype, _) in side.items()}
    taken, given = (
        tuple(TensorSpec(key, types[pattern(key)], shape) for key, shape in side.items()) for side in (inputs, outputs)
    )
    return ComponentGraph(name, module.eval(), taken, given)


def _image_encoder(model: Unified) -> ComponentGraph:
    vision = model.config.vision
    pixels = ("b", 3, vision.image_size, vision.image_size)
    tokens = ("b", vision.token_count, model.config.transformer.width)
    return _graph("image_encoder", model.image_encoder, {"pixels": pixels}, {"image_tokens": tokens})


def _motion_encoder(model: Unified) -> ComponentGraph:
    motion = model.config.motion
    assert motion is not None
    pixels = ("b", 3, motion.image_size, motion.image_size)
    tokens = ("b", motion.token_count, model.config.transformer.width)
    given: dict[str, Shape] = {"pixels": pixels, "previous": pixels}
    return _graph("motion_encoder", MotionEncoderGraph(model), given, {"image_tokens": tokens})


def _graph_encoder(model: Unified) -> ComponentGraph:
    assert model.graph_encoder is not None
    rows = ("b", "m")
    given: dict[str, Shape] = {"rows": (*rows, model.config.transformer.width)}
    return _graph("graph_encoder", model.graph_encoder, dict.fromkeys(("kind", "head", "tail"), rows), given)


def _transformer(model: Unified, prompt_lookup: bool) -> ComponentGraph:
    config = model.config.transformer
    cache = ("b", config.kv_heads, "T", config.head_width)
    layers = [f"{part}.{layer}" for layer in range(config.depth) for part in ("key", "value")]
    inputs: dict[str, Shape] = {
        "input_ids": ("b", "s"),
        "image_tokens": ("b", "m", config.width),
        "image_index": ("b", "s"),
        "write_index": ("b",),
        "attention_limit": ("b", "s"),
        "logits_index": ("b",),
    }
    outputs: dict[str, Shape] = {"logits": ("b", config.vocab_size)}
    if prompt_lookup:
        inputs["draft_index"], outputs["draft_logits"] = ("b", "k"), ("b", "k", config.vocab_size)
    return _graph(
        "transformer",
        TransformerGraph(model, prompt_lookup),
        inputs | {f"past_{layer}": cache for layer in layers},
        outputs | {f"present_{layer}": cache for layer in layers},
    )


def _conditioner(model: Unified) -> ComponentGraph:
    source = model.config.transformer
    inputs: dict[str, Shape] = {}
    for layer in model.config.denoiser.prefix_layers:
        for part in ("key", "value"):
            inputs[f"past_{part}.{layer}"] = ("b", source.kv_heads, "T", source.head_width)
    inputs |= {"prompt_mask": ("b", "T"), "prefix_length": ("b",)}
    return _graph("conditioner", ConditionerGraph(model), inputs, _prefix_shapes(model))


def _denoiser(model: Unified) -> ComponentGraph:
    tokens = model.config.image_tokens
    picture = ("b", tokens.token_count, tokens.token_width)
    steps: dict[str, Shape] = {"step_size": ("b",)} if model.config.denoiser.step_size else {}
    inputs: dict[str, Shape] = {"noisy_tokens": picture, "time": ("b",), **steps, **_prefix_shapes(model)}
    return _graph("denoiser", DenoiserGraph(model), inputs, {"prediction": picture})


def _prefix_shapes(model: Unified) -> dict[str, Shape]:
    """What the conditioner gives and the denoiser takes, in the order of both modules."""
    expert, tokens = model.config.denoiser, model.config.image_tokens
    shapes: dict[str, Shape] = {"prompt_vector": ("b", expert.conditioning)}
    if expert.layout_width:
        shapes["layout"] = ("b", tokens.token_count, expert.layout_width)
    slots = model.config.transformer.queries or "t"
    shapes["prefix_mask"] = ("b", slots)
    for layer in range(expert.depth):
        for part in ("key", "value"):
            shapes[f"prefix_{part}.{layer}"] = ("b", model.config.prefix_heads, slots, model.config.prefix_head_width)
    return shapes


def _image_decoder(model: Unified) -> ComponentGraph:
    tokens = model.config.image_tokens
    drawn = ("b", tokens.cell_count, tokens.token_width)  # of one frame
    pixels = ("b", 3, tokens.image_size, tokens.image_size)
    return _graph("image_decoder", ImageDecoderGraph(model), {"tokens": drawn}, {"pixels": pixels})


def _vq_encoder(model: Unified) -> ComponentGraph:
    tokens = model.config.image_tokens
    pixels = ("b", 3, tokens.image_size, tokens.image_size)
    return _graph("vq_encoder", VqEncoderGraph(model), {"pixels": pixels}, {"token_ids": ("b", tokens.token_count)})


def _vq_decoder(model: Unified) -> ComponentGraph:
    tokens = model.config.image_tokens
    pixels = ("b", 3, tokens.image_size, tokens.image_size)
    return _graph("vq_decoder", VqDecoderGraph(model), {"codes": ("b", tokens.token_count)}, {"pixels": pixels})
