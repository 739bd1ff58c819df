"""Janus and Janus-Pro (arXiv:2410.13848, 2501.17811): one eye for reading, codes of a VQ tokenizer for drawing.

The transformer gives hidden states; words and codes have heads of their own, and codes an embedding of their own.
Guidance is on raw logits, away from the prompt with all but its first token and the begin-of-image blotted out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.drawing import ImageTokensLoop
from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError
from edgemm.families.chat_ids import as_the_library_reads
from edgemm.families.family import (
    Eye,
    Parts,
    PictureRule,
    Pieces,
    component,
    example_ids,
    example_pictures,
    picture_rule,
)
from edgemm.families.hf_checkpoint import Checkpoint, rendered
from edgemm.families.llama import (
    check_llama_shaped,
    example_tokens,
    text_pieces,
    transformer_component,
)
from edgemm.families.llava import processor_strings

__all__ = ["CANNOT", "draw_codes", "parts", "pieces"]

CANNOT = "editing (the model has none), pictures of other sizes than its own square"
GUIDANCE, LIBRARYS_TOP_K = 5.0, 50  # the library's own, where generation_config.json is silent


def pieces(model: Any) -> Pieces:
    whole = model.model
    return {
        "image_encoder": [whole.vision_model, whole.aligner],
        "transformer": text_pieces(whole.language_model, None),
        "text_head": [model.lm_head],
        "image_head": [whole.generation_head],
        "image_embedder": [whole.generation_embeddings, whole.generation_aligner],
        "vq_decoder": [whole.vqmodel.decoder, whole.vqmodel.post_quant_conv, whole.vqmodel.quantize],
    }


class CodeEmbedder(nn.Module):
    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.embeddings, self.aligner = whole.generation_embeddings, whole.generation_aligner

    def forward(self, codes: Tensor) -> Tensor:
        return self.aligner(self.embeddings(codes))


class CodeDecoder(nn.Module):
    """Codes (b, n) to pixels in [0, 1]: the image processor's scaling, undone."""

    def __init__(self, vq: Any, rule: PictureRule) -> None:
        super().__init__()
        self.vq = vq
        self.scale = nn.Buffer(torch.tensor(rule.scale)[:, None, None], persistent=False)
        self.shift = nn.Buffer(torch.tensor(rule.shift)[:, None, None], persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        return (self.vq.decode(codes) - self.shift) / self.scale


def parts(checkpoint: Checkpoint) -> Parts:
    model, config = checkpoint.model, checkpoint.config
    if not checkpoint.processor.chat_template:
        raise CheckpointError(
            f"{checkpoint.folder}: no chat template (chat_template.jinja, or in processor_config.json), in which this "
            "model is asked to draw"
        )
    whole, width = model.model, config.text_config.hidden_size
    most = check_llama_shaped(config.text_config, checkpoint.folder)
    rule = picture_rule(checkpoint.processor.image_processor, checkpoint.folder, pads=True)
    eye = Eye(rule, lambda x: whole.aligner(whole.vision_model(x).last_hidden_state), whole.vision_model, whole.aligner)
    pictures, side = example_pictures(rule.size), config.vq_config.num_patches
    tokens, codes = eye(pictures), torch.arange(2 * side * side).reshape(2, -1) * 7 % config.vq_config.num_embeddings
    decoder = CodeDecoder(whole.vqmodel, rule)
    drawn, said = decoder(codes[:1]).shape, model.lm_head.out_features
    graphs = [
        component(
            "image_encoder",
            eye,
            {"pixels": ("b", 3, rule.size, rule.size)},
            {"image_tokens": ("b", *tokens.shape[1:])},
        ),
        transformer_component(whole.language_model, None),
        component("text_head", nn.Sequential(model.lm_head), {"hidden": ("b", width)}, {"logits": ("b", said)}),
        component(
            "image_head",
            whole.generation_head,
            {"hidden": ("b", width)},
            {"logits": ("b", config.vq_config.num_embeddings)},
        ),
        component("image_embedder", CodeEmbedder(whole), {"codes": ("b", "s")}, {"image_tokens": ("b", "s", width)}),
        component("vq_decoder", decoder, {"codes": ("b", side * side)}, {"pixels": ("b", *drawn[1:])}),
    ]
    by_name = {graph.name: graph for graph in graphs}
    read = example_tokens(by_name["transformer"], example_ids(checkpoint), tokens)
    hidden = by_name["transformer"].module(*read.values())[0]
    return Parts(
        graphs=by_name,
        inputs={
            "image_encoder": {"pixels": pictures},
            "transformer": read,
            "text_head": {"hidden": hidden},
            "image_head": {"hidden": hidden},
            "image_embedder": {"codes": codes[:, :3]},
            "vq_decoder": {"codes": codes},
        },
        text=_text_loop(checkpoint, rule, tokens.shape[1]),
        image_tokens=_drawing_loop(checkpoint, side, drawn[-2], drawn[-1]),
        most_context=most,
    )


def _text_loop(checkpoint: Checkpoint, rule: PictureRule, count: int) -> TextLoop:
    processor = checkpoint.processor
    found = processor_strings(checkpoint, processor.image_token)
    loop = TextLoop(
        template=found.template,
        image_close=found.image_close,
        image_size=rule.size,
        image_token_count=count,
        background=rule.background,
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        image_token=processor.image_token,
        image_open=processor.image_start_token,
        image_end=processor.image_end_token,
        image_between=found.image_between,
        image_fit=rule.fit,
        image_least=rule.least,
        image_resample=rule.resample,
        strip=found.strip,
    )
    return as_the_library_reads(checkpoint, loop, processor)


def _drawing_loop(checkpoint: Checkpoint, side: int, height: int, width: int) -> ImageTokensLoop:
    found, usual = processor_strings(checkpoint, checkpoint.processor.image_token), checkpoint.model.generation_config
    t = found.template
    return ImageTokensLoop(
        open=t.opening + t.user_open,
        close=t.user_close + (t.reply_open or "") + checkpoint.processor.image_start_token,
        rows=side,
        columns=side,
        image_height=height,
        image_width=width,
        code_ids=None,
        row_end=None,
        unconditional="pad",
        pad_id=usual.pad_token_id,
        kept_ids=(usual.bos_token_id, usual.generation_kwargs["boi_token_id"]),
        negative_prompt="",
        guidance="logits",
        guidance_scale=float(usual.guidance_scale or GUIDANCE),
        temperature=float(usual.temperature or 1.0),
        top_k=(LIBRARYS_TOP_K if usual.top_k is None else usual.top_k) or None,
        top_p=usual.top_p,
        strip=found.strip,
    )


def draw_codes(checkpoint: Checkpoint, prompt: str, guidance: float, count: int) -> list[int]:
    """The library's own loop, greedy, for `count` codes.  It cannot do without guidance: then half of it is dropped."""
    from transformers import LogitsProcessorList

    model, processor = checkpoint.model, checkpoint.processor
    says = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = rendered(processor, says, checkpoint.folder)
    inputs = processor(text=text, generation_mode="image", return_tensors="pt")
    unguided: Any = LogitsProcessorList([lambda ids, scores: scores.chunk(2)[0]])  # the conditional rows
    sizes = model.model.vision_model.config
    whole, sizes.num_image_tokens = sizes.num_image_tokens, count  # what its loop counts to
    try:
        codes = model.generate(
            **inputs,
            generation_mode="image",
            do_sample=False,
            guidance_scale=guidance,
            logits_processor=unguided if guidance == 1 else None,
        )
    finally:
        sizes.num_image_tokens = whole
    return codes[0].tolist()
