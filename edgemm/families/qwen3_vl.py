"""Qwen3-VL; Cosmos3-Omni's reasoner is one, and Edge's has its positions (cosmos3.py).

The library packs patches of all pictures into one row and splits it by sizes that come as data.  A bundle reads
pictures of one square, so positions are constants here and attention is over one picture (b of them side by side).
Axes: b pictures, n patches in blocks of merge * merge, c width of the tower, h heads, d head width, m = n / merge**2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError
from edgemm.export.component_graphs import scatter
from edgemm.families.chat_ids import as_the_library_reads
from edgemm.families.chat_strings import chat_strings
from edgemm.families.family import Eye, Parts, Pieces, component, example_ids, example_pictures, picture_rule
from edgemm.families.hf_checkpoint import Checkpoint, rendered
from edgemm.families.llama import (
    LlamaGraph,
    as_transformer,
    check_llama_shaped,
    example_tokens,
    text_pieces,
)
from edgemm.model.transformer import visible_up_to

__all__ = ["CANNOT", "library_inputs", "parts", "pieces", "side_of", "GridGraph"]

CANNOT = "video; pictures of other sizes than one square, 512 pixels where the processor allows it"
SIDE = 512  # pixels, or the nearest that the image processor leaves as it is


def pieces(model: Any) -> Pieces:
    return {
        "image_encoder": [model.model.visual],
        "transformer": text_pieces(model.model.language_model, model.lm_head),
    }


class Tower(nn.Module):
    """Pixels (b, 3, H, W) to image tokens (b, m, e*w): the last layer's, and those of some before it."""

    def __init__(self, visual: Any, size: int) -> None:
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

        super().__init__()
        self.visual, self.merge = visual, visual.config.spatial_merge_size
        filters = visual.patch_embed.proj.weight.detach().sum(2)  # a still picture fills all frames of a patch
        self.filters = nn.Buffer(filters, persistent=False)  # (c, 3, patch, patch)
        side = size // filters.shape[-1]
        grid = torch.tensor([[1, side, side]])
        rows, weights = get_vision_interpolation_indices_and_weights(
            grid,
            visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=self.merge,
        )
        positions = (visual.pos_embed(rows) * weights[..., None]).sum(1).detach()  # (n, c)
        cos, sin = visual.rotary_pos_emb(positions, get_vision_position_ids(grid, self.merge))  # (n, d)
        self.positions, self.cos, self.sin = (nn.Buffer(x, persistent=False) for x in (positions, cos, sin))

    def forward(self, pixels: Tensor) -> Tensor:
        visual, m = self.visual, self.merge
        x = nn.functional.conv2d(pixels, self.filters, visual.patch_embed.proj.bias, stride=self.filters.shape[-1])
        x = x.unflatten(2, (-1, m)).unflatten(4, (-1, m))  # (b, c, rows, m, columns, m)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 4) + self.positions  # (b, n, c)
        deeper: list[Tensor] = []
        for index, block in enumerate(visual.blocks):
            x = x + self._attended(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
            if index in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[list(visual.deepstack_visual_indexes).index(index)]
                deeper.append(self._merged(merger, x))
        return torch.cat([self._merged(visual.merger, x), *deeper], dim=-1)

    def _attended(self, attention: Any, x: Tensor) -> Tensor:
        split = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)  # (b, h, n, d)
        attended = nn.functional.scaled_dot_product_attention(self._turned(queries), self._turned(keys), values)
        return attention.proj(attended.transpose(1, 2).flatten(2))

    def _turned(self, heads: Tensor) -> Tensor:
        front, back = heads.chunk(2, dim=-1)
        return heads * self.cos + torch.cat([-back, front], dim=-1) * self.sin

    @staticmethod
    def _merged(merger: Any, x: Tensor) -> Tensor:
        """(b, n, c) -> (b, m, w)"""
        return merger(x).view(x.shape[0], -1, merger.linear_fc2.out_features)


def parts(checkpoint: Checkpoint, tower: nn.Module | None = None) -> Parts:
    """`tower` is another picture encoder for squares of side_of pixels."""
    model, config = checkpoint.model, checkpoint.config
    most = check_llama_shaped(config.text_config, checkpoint.folder)
    rule = picture_rule(checkpoint.image_processor, checkpoint.folder, size=side_of(checkpoint))
    tower = tower or Tower(model.model.visual, rule.size)
    eye, pictures = Eye(rule, tower, tower), example_pictures(rule.size)
    tokens = eye(pictures)
    encoder = component(
        "image_encoder", eye, {"pixels": ("b", 3, rule.size, rule.size)}, {"image_tokens": ("b", *tokens.shape[1:])}
    )
    text = model.model.language_model
    features = tokens.shape[-1] // config.text_config.hidden_size
    attention, ledger = text.layers[0].self_attn, ("b", 1, "T", 1)
    transformer = as_transformer(
        GridGraph(text, model.lm_head, round(tokens.shape[1] ** 0.5), features),
        text,
        model.lm_head,
        attention.k_proj.out_features // attention.head_dim,
        attention.head_dim,
        image_width=tokens.shape[-1],
        more_caches={f"{part}.{len(text.layers)}": ledger for part in ("key", "value")},
    )
    ids = example_ids(checkpoint)
    return Parts(
        graphs={encoder.name: encoder, transformer.name: transformer},
        inputs={encoder.name: {"pixels": pictures}, transformer.name: example_tokens(transformer, ids, tokens)},
        text=_text_loop(checkpoint, rule.size, tokens.shape[1], rule.resample),
        most_context=most,
    )


def library_inputs(checkpoint: Checkpoint, ids: Tensor, images: list[Any]) -> dict[str, Tensor]:
    """Sizes and kinds of tokens come beside the pixels there; what an earlier prompt left of positions is dropped."""
    checkpoint.model.model.rope_deltas = None
    if not images:
        return {"input_ids": ids}
    seen = checkpoint.image_processor(images, return_tensors="pt")
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == checkpoint.config.image_token_id).int(),
        "pixel_values": seen["pixel_values"],
        "image_grid_thw": seen["image_grid_thw"],
    }


def _text_loop(checkpoint: Checkpoint, size: int, count: int, resample: str) -> TextLoop:
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    start, image, end = tokenizer.convert_ids_to_tokens(
        [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
    )

    def render(messages: list[dict[str, Any]]) -> str:
        return rendered(tokenizer, messages, checkpoint.folder)

    found = chat_strings(render, start + image + end, checkpoint.folder)
    loop = TextLoop(
        template=found.template,
        image_close=found.image_close,
        image_size=size,
        image_token_count=count,
        background=(255, 255, 255),
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        image_token=image,
        image_open=start,
        image_end=end,
        image_between=found.image_between,
        image_fit="stretch",
        image_resample=resample,
        strip=found.strip,
    )
    return as_the_library_reads(checkpoint, loop, tokenizer)


def side_of(checkpoint: Checkpoint) -> int:
    settings = checkpoint.image_processor.to_dict()
    step = settings["patch_size"] * settings["merge_size"]
    least, most = (settings["size"][edge] for edge in ("shortest_edge", "longest_edge"))  # pixels of the whole picture
    sides = [side for side in range(step, int(most**0.5) + 1, step) if side * side >= least]
    if not sides:
        raise CheckpointError(
            f"{checkpoint.folder}: no square whose side is a multiple of {step} has {least} to {most} pixels"
        )
    return min(sides, key=lambda side: abs(side - SIDE))


# The transformer component of Qwen3-VL: Qwen3 whose positions have three axes, and pictures in its first layers too.
#
# A word stands at one number on all three axes; a picture's tokens stand at its start in time, and at row and column
# beyond it, and what follows goes on after its longer side (multimodal rotary embedding, arXiv:2409.12191).  So a
# slot's number is not its place: where the next token stands is kept in the cache beside keys and values, in two
# tensors of one number a slot, thousands (of 1024) and ones, which float16 holds exactly.  A picture's tokens carry the
# features of several layers of the tower; those after the first are added to the hidden states behind the first layers
# (DeepStack, arXiv:2406.04334).
# Axes: b batch, s new tokens, T cache slots, m image tokens, e features side by side, h heads, d head width.

THOUSAND = 1024


class GridGraph(LlamaGraph):
    """Inputs and outputs are LlamaGraph's, with image tokens (b, m, e*w) and a last `layer` of two (b, 1, T, 1)."""

    def __init__(self, text: Any, head: nn.Module, side: int, features: int) -> None:
        super().__init__(text, head)
        self.side, self.features = side, features  # tokens along a picture's side; e
        axes = torch.zeros(3, self.inv_freq.shape[0])
        axes[0] = 1  # time, where no other has a frequency
        for axis, section in enumerate(text.rotary_emb.mrope_section[1:], start=1):
            axes[:, axis : section * 3 : 3] = 0
            axes[axis, axis : section * 3 : 3] = 1
        self.rates = nn.Buffer(axes * self.inv_freq, persistent=False)  # (3, d/2)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past, thousands, ones = (
            tensors
        )
        pictured = image_index >= 0
        rows = image_index.clamp(min=0)[..., None].expand(-1, -1, image_tokens.shape[-1])
        first, *deeper = image_tokens.gather(1, rows).chunk(self.features, dim=-1)  # (b, s, w) each
        x = torch.where(pictured[..., None], first, self.embed_tokens(input_ids))
        shown = pictured[..., None].float()
        places, following = self.places(image_index, write_index, thousands, ones)
        angles = (places.float()[..., None] * self.rates).sum(2)  # (b, s, d/2)
        tokens = self.turned(angles, visible_up_to(attention_limit, past[0].shape[2]))

        def see_deeper(index: int, x: Tensor) -> Tensor:
            return x + deeper[index] * shown if index < len(deeper) else x

        x, present = self.read(x, tokens, write_index, past, see_deeper)
        for cache, part in ((thousands, following // THOUSAND), (ones, following % THOUSAND)):
            present.append(scatter(cache, part.float()[:, None, :, None], write_index))
        return self.answer(x, logits_index), *present

    def places(
        self, image_index: Tensor, write_index: Tensor, thousands: Tensor, ones: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Time, row and column of each new token (b, s, 3), and where the one after it stands (b, s).

        Behind any token of a picture that is the end of the picture, so reading may stop and go on in the middle.
        """
        last = (write_index - 1).clamp(min=0)[:, None, None, None]
        high, low = (cache.gather(2, last)[:, :, 0, 0].long() for cache in (thousands, ones))  # (b, 1)
        start = (high * THOUSAND + low) * (write_index > 0)[:, None]
        pictured = image_index >= 0
        within = image_index.clamp(min=0) % self.side**2  # which token of its picture
        opens = pictured & (within == 0)
        following = start + (~pictured).long().cumsum(1) + self.side * opens.long().cumsum(1)
        time = following - torch.where(pictured, self.side, 1)
        row, column = (torch.where(pictured, offset, 0) for offset in (within // self.side, within % self.side))
        return torch.stack([time, time + row, time + column], dim=-1), following
