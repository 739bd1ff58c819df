"""Llama-shaped text models: Llama, SmolLM, Mistral, Qwen 2 and 3.  The plainest family: one component, one loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError, UsageError
from edgemm.export.component_graphs import ComponentGraph, scatter
from edgemm.families.chat_ids import as_the_library_reads, plain
from edgemm.families.chat_strings import ChatStrings, added_around, chat_strings, plain_strings
from edgemm.families.family import Named, Parts, Pieces, Shape, component
from edgemm.families.hf_checkpoint import Checkpoint, rendered
from edgemm.model.transformer import visible_up_to

__all__ = [
    "CANNOT",
    "parts",
    "pieces",
    "LlamaGraph",
    "as_transformer",
    "check_llama_shaped",
    "example_tokens",
    "rms",
    "text_pieces",
    "transformer_component",
    "takes_candidates",
    "with_prompt_lookup",
]

CANNOT = "pictures: this model knows none; tools and other roles of its chat template than system, user, assistant"
EXAMPLE = "The capital of France is a city on a river, and its name has five letters."


def pieces(model: Any) -> Pieces:
    return {"transformer": text_pieces(model.model, model.lm_head)}


def parts(checkpoint: Checkpoint) -> Parts:
    model, config = checkpoint.model, checkpoint.config
    most = check_llama_shaped(config, checkpoint.folder)
    graph = transformer_component(model.model, model.lm_head)
    return Parts(
        graphs={graph.name: graph},
        inputs={graph.name: example_tokens(graph, checkpoint.tokenizer(EXAMPLE)["input_ids"])},
        text=_text_loop(checkpoint),
        most_context=most,
    )


def _text_loop(checkpoint: Checkpoint) -> TextLoop:
    found = _strings(checkpoint)
    loop = TextLoop(
        template=found.template,
        image_close="",
        image_size=1,
        image_token_count=1,
        background=(255, 255, 255),
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        strip=found.strip,
    )
    return as_the_library_reads(checkpoint, loop, checkpoint.tokenizer)


def _strings(checkpoint: Checkpoint) -> ChatStrings:
    tokenizer = checkpoint.tokenizer
    if not tokenizer.chat_template:
        return plain_strings(*added_around(tokenizer))

    def render(messages: list[dict[str, Any]]) -> str:
        talk = [plain(message) for message in messages]
        return rendered(tokenizer, talk, checkpoint.folder)

    return chat_strings(render, None, checkpoint.folder)


# The transformer component of every Llama-shaped text model (arXiv:2302.13971), around the library's own weights.
#
# Biases, grouped queries, norms on queries and keys (Chameleon, Qwen3) and scaled rotary embedding are taken from the
# library's modules; attention and cache are the bundle's own (docs/bundle.md), as in export/component_graphs.py.
# Axes: b batch, s new tokens, T cache slots, m image tokens, h/g query and key/value heads, d head width.

TEXTS = (  # what the library calls those that compute as Llama does
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_vl_text"),
    *("chameleon", "emu3_text_model", "cosmos3_edge_text"),
)
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # the others change their frequencies with the length
SPARE_SLOTS = 3  # of an example's cache, never written: they must not matter
CHECKED = 8  # tokens of each of an example's two rows whose logits are compared too: of a prompt that is read anyhow


Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
Behind = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """What every layer is told of the rows that it reads: how they are turned, (b, s, d/2) each, and what they see."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


def nothing_more(index: int, x: Tensor) -> Tensor:
    return x


class LlamaGraph(nn.Module):
    """`text` has embed_tokens, layers, norm and rotary_emb; without a head it gives hidden states.

    With `prompt_lookup` it gives logits of more positions than one, so that candidates are checked in one run.
    """

    prompt_lookup = False

    def __init__(self, text: Any, head: nn.Module | None) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm, self.head = text.embed_tokens, text.layers, text.norm, head
        self.inv_freq = nn.Buffer(text.rotary_emb.inv_freq.float().clone(), persistent=False)
        self.rotary_scale = float(text.rotary_emb.attention_scaling)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past = tensors
        candidates = past.pop(0) if self.prompt_lookup else None  # (b, k): where they stand
        x = self.look_up(input_ids, image_tokens, image_index)
        rows = self.placed(write_index[:, None] + torch.arange(input_ids.shape[1]), attention_limit, past)
        x, present = self.read(x, rows, write_index, past)
        if candidates is None:
            return self.answer(x, logits_index), *present
        return *self.answers(x, torch.cat((logits_index[:, None], candidates), dim=1)), *present

    def look_up(self, input_ids: Tensor, image_tokens: Tensor, image_index: Tensor) -> Tensor:
        """The tokens (b, s, w): words, and pictures' where `image_index` says which."""
        rows = image_index.clamp(min=0)[..., None].expand(-1, -1, image_tokens.shape[-1])
        return torch.where((image_index >= 0)[..., None], image_tokens.gather(1, rows), self.embed_tokens(input_ids))

    def placed(self, places: Tensor, attention_limit: Tensor, past: Sequence[Tensor]) -> Rows:
        """New tokens at `places` (b, s) of a cache."""
        angles = places.float()[..., None] * self.inv_freq  # (b, s, d/2)
        return self.turned(angles, visible_up_to(attention_limit, past[0].shape[2]))

    def turned(self, angles: Tensor, mask: Tensor) -> Rows:
        return Rows(angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale, mask)

    def read(
        self, x: Tensor, rows: Rows, write_index: Tensor, past: Sequence[Tensor], behind: Behind = nothing_more
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (b, s, w) behind all layers, and every layer's keys and values (b, h, T, d) with the new ones
        written.  `behind` gives what goes on from a layer's number and hidden states."""
        present: list[Tensor] = []
        for index, (layer, keys, values) in enumerate(zip(self.layers, past[::2], past[1::2])):

            def write(new_keys: Tensor, new_values: Tensor, keys: Tensor = keys, values: Tensor = values) -> Pair:
                return scatter(keys, new_keys, write_index), scatter(values, new_values, write_index)

            x, *pair = self.run_layer(layer, x, rows, write)
            present += pair
            x = behind(index, x)
        return x, present

    def run_layer(self, layer: Any, x: Tensor, rows: Rows, beside: Callable[[Tensor, Tensor], Pair]) -> Triple:
        """Hidden states behind a layer, and the keys and values that its queries met: `beside` puts the rows' own
        among those of before."""
        attention: Any = layer.self_attn
        normed = rms(layer.input_layernorm, x)
        queries, keys, values = (self._heads(attention, part, normed) for part in "qkv")
        queries, keys = (torch.onnx.ops.rotary_embedding(part, rows.cos, rows.sin) for part in (queries, keys))
        keys, values = beside(keys, values)
        attended = torch.onnx.ops.attention(queries, keys, values, rows.mask)[0]  # (b, h, s, d)
        x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
        return x + layer.mlp(rms(layer.post_attention_layernorm, x)), keys, values

    def answer(self, x: Tensor, logits_index: Tensor) -> Tensor:
        """Of hidden states (b, s, w), logits of the wanted token, or its own normed state (b, w) without a head."""
        wanted = x.gather(1, logits_index[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]  # (b, w)
        hidden = rms(self.norm, wanted)
        return hidden if self.head is None else self.head(hidden)

    def answers(self, x: Tensor, wanted_index: Tensor) -> Pair:
        """Logits (b, v) of the first of the wanted tokens (b, 1 + k), and (b, k, v) of the others."""
        assert self.head is not None
        wanted = x.gather(1, wanted_index[..., None].expand(-1, -1, x.shape[-1]))
        rows = self.head(rms(self.norm, wanted.flatten(0, 1))).unflatten(0, wanted_index.shape)
        return rows[:, 0], rows[:, 1:]

    @staticmethod
    def _heads(attention: Any, part: str, x: Tensor) -> Tensor:
        """(b, s, w) -> (b, h, s, d), normed where the model does so."""
        heads = getattr(attention, f"{part}_proj")(x).unflatten(-1, (-1, attention.head_dim))  # (b, s, h, d)
        norm = getattr(attention, f"{part}_norm", None)
        if norm is not None:
            heads = rms(norm, heads) if hasattr(norm, "variance_epsilon") else norm(heads)
        return heads.transpose(1, 2)


def rms(norm: Any, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def check_llama_shaped(config: Any, folder: Any) -> int:
    """Refuses what this graph would get wrong; gives the longest context for which it is right."""
    if (text := getattr(type(config), "model_type", None)) not in TEXTS:
        raise CheckpointError(f"{folder}: its text model is of type {text!r}, expected one of: {', '.join(TEXTS)}")
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in FIXED_ROTARY:
        raise CheckpointError(f"{folder}: rotary embedding {kind!r}, this export knows: {', '.join(FIXED_ROTARY)}")
    window = getattr(config, "sliding_window", None)
    slides = window is not None and getattr(config, "use_sliding_window", True)
    return min(config.max_position_embeddings, window) if slides else config.max_position_embeddings


def transformer_component(text: Any, head: Any) -> ComponentGraph:
    """With `head` it gives logits, without it hidden states."""
    attention = text.layers[0].self_attn
    kv_heads = attention.k_proj.out_features // attention.head_dim
    return as_transformer(LlamaGraph(text, head), text, head, kv_heads, attention.head_dim)


def as_transformer(
    graph: nn.Module,
    text: Any,
    head: Any,
    kv_heads: int,
    head_width: int,
    image_width: int = 0,
    more_caches: Mapping[str, Shape] = MappingProxyType({}),
) -> ComponentGraph:
    """A module with LlamaGraph's inputs and outputs, in the contract's names; image tokens may be wider than words, and
    the graph may keep more than keys and values."""
    width = text.embed_tokens.embedding_dim
    cache: Shape = ("b", kv_heads, "T", head_width)
    layers = [f"{part}.{layer}" for layer in range(len(text.layers)) for part in ("key", "value")]
    caches = {**dict.fromkeys(layers, cache), **more_caches}
    inputs: dict[str, Shape] = {
        "input_ids": ("b", "s"),
        "image_tokens": ("b", "m", image_width or width),
        "image_index": ("b", "s"),
        "write_index": ("b",),
        "attention_limit": ("b", "s"),
        "logits_index": ("b",),
    }
    said: dict[str, Shape] = {"logits": ("b", head.out_features)} if head is not None else {"hidden": ("b", width)}
    return component(
        "transformer",
        graph,
        inputs | {f"past_{layer}": shape for layer, shape in caches.items()},
        said | {f"present_{layer}": shape for layer, shape in caches.items()},
    )


def takes_candidates(parts: Parts) -> bool:
    """Whether `with_prompt_lookup` knows its transformer: one that is Llama's own."""
    module = parts.graphs["transformer"].module if "transformer" in parts.graphs else None
    return isinstance(module, LlamaGraph) and type(module).forward is LlamaGraph.forward and module.head is not None


def with_prompt_lookup(parts: Parts) -> Parts:
    """The same transformer, which checks candidates too.  Raises UsageError where it is not Llama's own."""
    if not takes_candidates(parts):
        raise UsageError("--prompt-lookup is for text models as Llama is one, and readers around them: not this one")
    graph = parts.graphs["transformer"]
    module = cast(LlamaGraph, graph.module)
    module.prompt_lookup = True
    given, said = ({spec.name: spec.shape for spec in side} for side in (graph.inputs, graph.outputs))
    batch, words = said["logits"]
    looked_up = component(
        graph.name,
        module,
        _after(given, "logits_index", "draft_index", (batch, "k")),
        _after(said, "logits", "draft_logits", (batch, "k", words)),
    )
    inputs = parts.inputs["transformer"]
    rows, s = inputs["input_ids"].shape
    index = torch.linspace(0, s - 1, CHECKED).long().expand(rows, -1).contiguous()
    return replace(
        parts,
        graphs={**parts.graphs, "transformer": looked_up},
        inputs={**parts.inputs, "transformer": {**inputs, "draft_index": index}},
    )


def _after(shapes: Mapping[str, Shape], name: str, more: str, shape: Shape) -> dict[str, Shape]:
    """One more, in its place."""
    found: dict[str, Shape] = {}
    for key, known in shapes.items():
        found[key] = known
        if key == name:
            found[more] = shape
    return found


def text_pieces(text: Any, head: nn.Module | None) -> list[nn.Module]:
    """A tied head is the embedding again, and counted once."""
    return [text.embed_tokens, text.layers, text.norm, *([] if head is None else [head])]


@torch.no_grad()
def example_tokens(graph: ComponentGraph, ids: list[int], image_tokens: Tensor | None = None) -> Named:
    """The end of a prompt, two rows of unequal length, after its first tokens were read; a picture in between."""
    ids = (ids * 8)[: max(8, len(ids))]
    before, b, s = 3, 2, len(ids) - 3
    shapes = {spec.name: spec.shape for spec in graph.inputs}
    width = shapes["image_tokens"][2]
    assert isinstance(width, int)
    pictures = torch.zeros(b, 1, width) if image_tokens is None else torch.cat([image_tokens[:1]] * b)
    index = torch.full((b, s), -1)
    if image_tokens is not None:
        index[:, 1:4] = torch.tensor([0, pictures.shape[1] - 1, pictures.shape[1] // 2])[: max(0, min(3, s - 1))]
    empty = {
        name: torch.zeros([b, *(entry if isinstance(entry, int) else len(ids) + SPARE_SLOTS for entry in shape[1:])])
        for name, shape in shapes.items()
        if name.startswith("past_")
    }
    start = torch.zeros(b, dtype=torch.long)
    rows = torch.tensor([ids, ids[::-1]])
    slots = torch.arange(len(ids)).expand(b, -1)
    opening = (rows[:, :before], pictures, torch.full((b, before), -1), start, slots[:, :before], start + before - 1)
    _, *present = graph.module(*opening, *empty.values())
    return {
        "input_ids": rows[:, before:],
        "image_tokens": pictures,
        "image_index": index,
        "write_index": start + before,
        "attention_limit": slots[:, before:].contiguous(),
        "logits_index": torch.tensor([s - 1, s - 2]),
        **dict(zip(empty, present, strict=True)),
    }
