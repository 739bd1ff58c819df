"""LLaVA-like readers (arXiv:2304.08485): a vision tower, a projector, and a Llama-shaped model that reads tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError
from edgemm.families.chat_ids import as_the_library_reads
from edgemm.families.chat_strings import ChatStrings, added_around, chat_strings, plain_strings
from edgemm.families.family import Eye, Parts, Pieces, component, example_ids, example_pictures, picture_rule
from edgemm.families.hf_checkpoint import Checkpoint, rendered
from edgemm.families.llama import (
    check_llama_shaped,
    example_tokens,
    text_pieces,
    transformer_component,
)

__all__ = ["CANNOT", "parts", "pieces", "processor_strings"]

CANNOT = "pictures of other sizes than the tower's own square; tools"


def pieces(model: Any) -> Pieces:
    return {
        "image_encoder": [model.model.vision_tower, model.model.multi_modal_projector],
        "transformer": text_pieces(model.model.language_model, model.lm_head),
    }


def parts(checkpoint: Checkpoint) -> Parts:
    model, config = checkpoint.model, checkpoint.config
    most = check_llama_shaped(config.text_config, checkpoint.folder)
    rule = picture_rule(checkpoint.processor.image_processor, checkpoint.folder)
    pictures = example_pictures(rule.size)

    def see(pixels: Tensor) -> Tensor:
        tower, layer = model.model.vision_tower, config.vision_feature_layer
        states = tower(pixels, output_hidden_states=True).hidden_states
        chosen = [states[index] for index in ([layer] if isinstance(layer, int) else layer)]
        if config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]  # without the class token
        return model.model.multi_modal_projector(torch.cat(chosen, dim=-1))

    eye = Eye(rule, see, model.model.vision_tower, model.model.multi_modal_projector)
    tokens = eye(pictures)
    transformer = transformer_component(model.model.language_model, model.lm_head)
    encoder = component(
        "image_encoder",
        eye,
        {"pixels": ("b", 3, rule.size, rule.size)},
        {"image_tokens": ("b", *tokens.shape[1:])},
    )
    place = checkpoint.processor.image_token
    found = processor_strings(checkpoint, place)
    loop = TextLoop(
        template=found.template,
        image_close=found.image_close,
        image_size=rule.size,
        image_token_count=tokens.shape[1],
        background=rule.background,
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        image_token=place,
        image_between=found.image_between,
        image_fit=rule.fit,
        image_resample=rule.resample,
        strip=found.strip,
    )
    text = as_the_library_reads(checkpoint, loop, checkpoint.processor)
    ids = example_ids(checkpoint)
    return Parts(
        graphs={encoder.name: encoder, transformer.name: transformer},
        inputs={encoder.name: {"pixels": pictures}, transformer.name: example_tokens(transformer, ids, tokens)},
        text=text,
        most_context=most,
    )


def processor_strings(checkpoint: Checkpoint, place: str, around: tuple[str, str] | None = None) -> ChatStrings:
    """The processor's chat template, in the special tokens that the tokenizer adds, or `around` says."""
    processor, tokenizer = checkpoint.processor, checkpoint.tokenizer
    before, after = around or added_around(tokenizer)
    if not processor.chat_template:
        return plain_strings(before, after)

    def render(messages: list[dict[str, Any]]) -> str:
        return rendered(processor, messages, checkpoint.folder)

    found = chat_strings(render, place, checkpoint.folder)
    if not before or found.template.opening.startswith(before):
        return found
    if after:
        raise CheckpointError(f"{checkpoint.folder}: the tokenizer puts {after!r} after every prompt")
    opened = dataclasses.replace(
        found.template,
        opening=before + found.template.opening,
        system_open=before + found.template.system_open,
    )
    return dataclasses.replace(found, template=opened)
