"""Fuyu (Adept, 2023): no vision tower; patches of pixels go through one linear layer straight into the decoder.

Each row of patches ends with the embedding of |NEWLINE|, which the image encoder gives along with the patches: for the
runtime a picture is one run of tokens, as in every family.  After it come <s>, the question, and <0x04>, which begins
the answer.  The processor tokenizes picture and question apart; so does one to which all four are special.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError
from edgemm.export.component_graphs import scatter
from edgemm.families.chat_ids import as_the_library_reads, without_pictures
from edgemm.families.chat_strings import plain_strings
from edgemm.families.family import WHITE, Eye, Parts, PictureRule, Pieces, component, example_pictures
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama import FIXED_ROTARY, as_transformer, example_tokens
from edgemm.model.transformer import visible_up_to

__all__ = ["CANNOT", "library_inputs", "parts", "pieces", "PersimmonGraph"]

CANNOT = (
    "pictures of other sizes than config.json's image_size, a square; several pictures; boxes and points; "
    "questions without a picture are asked as with one"
)
EXAMPLE = "What is written on the sign above the door?"
PATCH, ROW_END, BEGIN, ANSWER = "|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>"  # the processor's own, not in any setting


def pieces(model: Any) -> Pieces:
    text = model.model.language_model
    return {
        "image_encoder": [model.model.vision_embed_tokens],
        "transformer": [text.embed_tokens, text.layers, text.final_layernorm, model.lm_head],
    }


class PatchRows(nn.Module):
    """(b, 3, H, W) to (b, rows * (columns + 1), w): patches in reading order, each row with its end."""

    def __init__(self, embed: nn.Linear, row_end: Tensor, patch: int) -> None:
        super().__init__()
        self.embed, self.row_end, self.patch = embed, nn.Buffer(row_end, persistent=False), patch

    def forward(self, pixels: Tensor) -> Tensor:
        p, rows = self.patch, pixels.shape[-2] // self.patch
        patches = pixels.unflatten(2, (rows, p)).unflatten(4, (-1, p))  # (b, 3, rows, p, columns, p)
        tokens = self.embed(patches.permute(0, 2, 4, 3, 5, 1).flatten(3))  # (b, rows, columns, w)
        ends = self.row_end.expand(pixels.shape[0], rows, 1, -1)
        return torch.cat([tokens, ends], dim=2).flatten(1, 2)


def parts(checkpoint: Checkpoint) -> Parts:
    model, config = checkpoint.model, checkpoint.config
    text, embed = model.model.language_model, model.model.vision_embed_tokens
    kind = (config.text_config.rope_parameters or {}).get("rope_type", "default")
    if kind not in FIXED_ROTARY:
        raise CheckpointError(f"{checkpoint.folder}: rotary embedding {kind!r}, expected: {', '.join(FIXED_ROTARY)}")
    rule = _rule(checkpoint)
    ids = {token: checkpoint.tokenizer.convert_tokens_to_ids(token) for token in (PATCH, ROW_END, BEGIN, ANSWER)}
    row_end = text.embed_tokens.weight[ids[ROW_END]].detach().clone()
    rows = PatchRows(embed, row_end, config.patch_size)
    eye, pictures = Eye(rule, rows, rows), example_pictures(rule.size)
    tokens = eye(pictures)
    encoder = component(
        "image_encoder", eye, {"pixels": ("b", 3, rule.size, rule.size)}, {"image_tokens": ("b", *tokens.shape[1:])}
    )
    attention = text.layers[0].self_attn
    graph = PersimmonGraph(text, model.lm_head)
    transformer = as_transformer(graph, text, model.lm_head, attention.num_heads, attention.head_dim)
    loop = TextLoop(
        template=plain_strings("", ANSWER).template,
        image_close=BEGIN,
        image_size=rule.size,
        image_token_count=tokens.shape[1],
        background=rule.background,
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        image_token=PATCH,
        image_fit=rule.fit,
        image_resample=rule.resample,
    )
    words = _tokenizer_json(checkpoint, ids)
    loop = as_the_library_reads(checkpoint, loop, checkpoint.processor, lambda said: _asked(checkpoint, said), words)
    example = [ids[BEGIN], *checkpoint.tokenizer(EXAMPLE, add_special_tokens=False)["input_ids"], ids[ANSWER]]
    return Parts(
        graphs={encoder.name: encoder, transformer.name: transformer},
        inputs={encoder.name: {"pixels": pictures}, transformer.name: example_tokens(transformer, example, tokens)},
        text=loop,
        most_context=config.text_config.max_position_embeddings,
        tokenizer_json=words,
    )


def _asked(checkpoint: Checkpoint, messages: list[dict[str, Any]]) -> list[int]:
    """The library's ids of one question about one picture."""
    [message] = messages
    [_, text] = message["content"]
    side = checkpoint.config.image_size
    shown = Image.new("RGB", (side, side))
    found = _processor(checkpoint)(images=shown, text=text["text"], return_legacy_image_output=False)
    return without_pictures(checkpoint, np.asarray(found["input_ids"]).reshape(-1).tolist(), (PATCH, ROW_END))


def _processor(checkpoint: Checkpoint) -> Any:
    """Where torchvision is not installed the library hands tensors to a method of its own that takes arrays."""
    processor = checkpoint.processor
    eye = processor.image_processor
    if type(eye).__name__.endswith("Pil") and "patchify_image" not in vars(eye):
        cut = eye.patchify_image
        eye.patchify_image = lambda image, patch_size=None: torch.as_tensor(cut(np.asarray(image), patch_size))
    return processor


def library_inputs(checkpoint: Checkpoint, ids: Tensor, images: list[Any]) -> dict[str, Tensor]:
    """Rows end with a token of their own there, and pixels come as patches."""
    if not images:
        return {"input_ids": ids}
    eye = _processor(checkpoint).image_processor
    pixels = eye.patchify_image(torch.from_numpy(np.asarray(eye(images, return_tensors="np")["images"][0])))
    columns = checkpoint.config.image_size // checkpoint.config.patch_size
    at = (ids == checkpoint.config.image_token_id).nonzero()[:, 1]  # places of the picture's tokens
    told = ids.clone()
    told[:, at[columns :: columns + 1]] = checkpoint.tokenizer.convert_tokens_to_ids(ROW_END)
    return {"input_ids": told, "pixel_values": torch.as_tensor(pixels).flatten(0, -2)}


def _rule(checkpoint: Checkpoint) -> PictureRule:
    """A square of config.json's image_size, which the image processor leaves as it is."""
    settings, config = checkpoint.processor.image_processor.to_dict(), checkpoint.config
    side, patch = int(config.image_size), int(config.patch_size)
    if side % patch:
        raise CheckpointError(f"{checkpoint.folder}: image_size {side} is not a multiple of patch_size {patch}")
    mean, deviation = (
        tuple(value) if isinstance(value := settings[key], (list, tuple)) else (value,) * 3
        for key in ("image_mean", "image_std")
    )
    factor = 255 * settings.get("rescale_factor", 1 / 255)
    scale, shift = tuple(factor / d for d in deviation), tuple(-m / d for m, d in zip(mean, deviation))
    return PictureRule(side, "pad", "bilinear", WHITE, scale, shift)


def _tokenizer_json(checkpoint: Checkpoint, ids: dict[str, int]) -> bytes:
    """The checkpoint's, with the four tokens that stand around pictures and questions made special: ids stay."""
    found = json.loads(checkpoint.tokenizer_json)
    rule = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    others = [token for token in found["added_tokens"] if token["content"] not in ids]
    made = [{"id": number, "content": token, **rule} for token, number in ids.items()]
    found["added_tokens"] = sorted([*others, *made], key=lambda token: token["id"])
    return json.dumps(found, ensure_ascii=False).encode()


# The transformer component of Persimmon (Adept, 2023), Fuyu's decoder, around the library's own weights.
#
# Unlike Llama: layer norms with biases; one product for queries, keys and values; norms on queries and keys; of each
# head a part alone is rotated; squared ReLU.
# Axes: b batch, s new tokens, T cache slots, m image tokens, h heads, d head width, r its rotated part.


class PersimmonGraph(nn.Module):
    """Inputs and outputs are those of llama_graph.LlamaGraph with a head."""

    def __init__(self, text: Any, head: nn.Module) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm, self.head = (
            text.embed_tokens,
            text.layers,
            text.final_layernorm,
            head,
        )
        self.inv_freq = nn.Buffer(text.rotary_emb.inv_freq.float().clone(), persistent=False)  # (r/2)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        input_ids, image_tokens, image_index, write_index, attention_limit, logits_index, *past = tensors
        rows = image_index.clamp(min=0)[..., None].expand(-1, -1, image_tokens.shape[-1])
        x = torch.where((image_index >= 0)[..., None], image_tokens.gather(1, rows), self.embed_tokens(input_ids))
        places = (write_index[:, None] + torch.arange(input_ids.shape[1])).float()
        angles = places[..., None] * self.inv_freq  # (b, s, r/2)
        rotation = angles.cos(), angles.sin()
        mask = visible_up_to(attention_limit, past[0].shape[2])
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            attention: Any = layer.self_attn
            fused = attention.query_key_value(layer.input_layernorm(x))
            queries, keys, values = fused.unflatten(-1, (attention.num_heads, 3, attention.head_dim)).unbind(3)
            if attention.qk_layernorm:
                queries, keys = attention.q_layernorm(queries), attention.k_layernorm(keys)
            queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))  # (b, h, s, d)
            keys = scatter(past[2 * index], rotated(keys, *rotation), write_index)
            values = scatter(past[2 * index + 1], values, write_index)
            present += [keys, values]
            attended = torch.onnx.ops.attention(rotated(queries, *rotation), keys, values, mask)[0]  # (b, h, s, d)
            x = x + attention.dense(attended.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        wanted = x.gather(1, logits_index[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]  # (b, w)
        return self.head(self.norm(wanted)), *present


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(b, h, s, d), of which the first r are turned."""
    size = 2 * cos.shape[-1]
    turned = torch.onnx.ops.rotary_embedding(heads[..., :size], cos, sin)
    return torch.cat([turned, heads[..., size:]], dim=-1)  # (b, h, s, d)
