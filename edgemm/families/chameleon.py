"""Chameleon (arXiv:2405.09818): pictures are tokens of the vocabulary, and one transformer reads them with the words.

Codes become token ids by a table (their names spell the codes), not by an offset.  Queries and keys are normed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError
from edgemm.families.chat_ids import as_the_library_reads
from edgemm.families.chat_strings import added_around, plain_strings
from edgemm.families.family import (
    CODE_IDS,
    Eye,
    Parts,
    Pieces,
    component,
    example_ids,
    example_pictures,
    id_table,
    picture_rule,
)
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama import check_llama_shaped, example_tokens, text_pieces, transformer_component

__all__ = ["CANNOT", "parts", "pieces"]

CANNOT = "drawing: the folder as published has no VQ decoder, and the library silences picture tokens in replies"


def pieces(model: Any) -> Pieces:
    vq = model.model.vqmodel
    return {
        "vq_encoder": [vq.encoder, vq.quant_conv, vq.quantize],
        "transformer": text_pieces(model.model, model.lm_head),
    }


def parts(checkpoint: Checkpoint) -> Parts:
    model, config, processor = checkpoint.model, checkpoint.config, checkpoint.processor
    if config.swin_norm:
        raise CheckpointError(f"{checkpoint.folder}: norms after each part (swin_norm, Chameleon-30B) are not built")
    most = check_llama_shaped(config, checkpoint.folder)
    rule = picture_rule(processor.image_processor, checkpoint.folder)
    vq, mapping = model.model.vqmodel, model.model.vocabulary_mapping
    table = mapping.img2bpe_mapping_tensor.long()

    def see(pixels: Tensor) -> Tensor:
        codes = vq.quantize(vq.quant_conv(vq.encoder(pixels)))[2]  # every picture's, one after the other
        return table[codes].view(pixels.shape[0], -1)

    eye, pictures = Eye(rule, see, vq), example_pictures(rule.size)
    count = eye(pictures).shape[1]
    if count != processor.image_seq_length:
        raise CheckpointError(f"{checkpoint.folder}: a picture gives {count} codes, not {processor.image_seq_length}")
    encoder = component("vq_encoder", eye, {"pixels": ("b", 3, rule.size, rule.size)}, {"token_ids": ("b", count)})
    transformer = transformer_component(model.model, model.lm_head)
    before, after = added_around(checkpoint.tokenizer)
    strings = plain_strings(before, checkpoint.tokenizer.sep_token + after)
    text = TextLoop(
        template=dataclasses.replace(strings.template, assistant_close=checkpoint.tokenizer.eos_token or ""),
        image_close="",
        image_size=rule.size,
        image_token_count=count,
        background=rule.background,
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        image_token=processor.image_token,
        image_open=processor.image_start_token,
        image_end=processor.image_end_token,
        image_fit=rule.fit,
        image_resample=rule.resample,
        silent_ids=CODE_IDS,
    )
    ids = example_ids(checkpoint)
    return Parts(
        graphs={encoder.name: encoder, transformer.name: transformer},
        inputs={encoder.name: {"pixels": pictures}, transformer.name: example_tokens(transformer, ids)},
        text=as_the_library_reads(checkpoint, text, processor),
        most_context=most,
        tables={CODE_IDS: id_table([int(token) for token in torch.tensor(mapping.image_tokens)])},
    )
