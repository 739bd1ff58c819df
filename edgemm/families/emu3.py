"""Emu3 (arXiv:2409.18869): one transformer over words and picture tokens, for reading and for drawing.

A picture is rows of code tokens, an end-of-line token after each; guidance is on log-probabilities, away from another
prompt.  The VQ tokenizer was made for video: it is shown a picture four times, and one frame of what it draws is kept.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.drawing import ImageTokensLoop
from edgemm.bundle.files import read_text, reading
from edgemm.bundle.manifest import TextLoop
from edgemm.errors import CheckpointError
from edgemm.families.chat_ids import as_the_library_reads
from edgemm.families.family import (
    CODE_IDS,
    Eye,
    Parts,
    PictureRule,
    Pieces,
    component,
    example_ids,
    example_pictures,
    id_table,
    picture_rule,
)
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama import check_llama_shaped, example_tokens, text_pieces, transformer_component
from edgemm.families.llava import processor_strings

__all__ = ["CANNOT", "draw_codes", "parts", "pieces"]

CANNOT = "video; pictures of other sizes than the smallest square that the image processor allows; editing"
GUIDANCE, TOP_K = 3.0, 2048  # of the paper's own drawings, where generation_config.json is silent


def pieces(model: Any) -> Pieces:
    vq = model.model.vqmodel
    return {
        "vq_encoder": [vq.encoder, vq.quant_conv, vq.quantize],
        "transformer": text_pieces(model.model.text_model, model.lm_head),
        "vq_decoder": [vq.decoder, vq.post_quant_conv, vq.quantize],
    }


class CodeDecoder(nn.Module):
    """Codes (1, rows * columns) to pixels in [0, 1]: the image processor's scaling, undone."""

    def __init__(self, vq: Any, rule: PictureRule, rows: int, columns: int) -> None:
        super().__init__()
        self.vq, self.grid = vq, (rows, columns)
        self.scale = nn.Buffer(torch.tensor(rule.scale)[:, None, None], persistent=False)
        self.shift = nn.Buffer(torch.tensor(rule.shift)[:, None, None], persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        return (self.vq.decode(codes.view(-1, *self.grid)) - self.shift) / self.scale


def parts(checkpoint: Checkpoint) -> Parts:
    model, config, processor = checkpoint.model, checkpoint.config, checkpoint.processor
    most = check_llama_shaped(config.text_config, checkpoint.folder)
    vq, mapping, factor = model.model.vqmodel, model.model.vocabulary_mapping, model.model.vqmodel.vision_spatial_factor
    if factor != processor.downsample_ratio:
        raise CheckpointError(f"{checkpoint.folder}: a code covers {factor} pixels, not {processor.downsample_ratio}")
    rule = picture_rule(processor.image_processor, checkpoint.folder, size=_side(processor.image_processor, factor))
    rows, columns = processor.calculate_generate_size(*_canvas(checkpoint).values(), factor)
    largest = max((rule.size // factor) * (rule.size // factor + 1), rows * (columns + 1))
    if largest >= most:  # before gigabytes are taken for such a picture
        raise CheckpointError(f"{checkpoint.folder}: the model reads {most} tokens at most, one picture has {largest}")
    table, row_end = mapping.img2bpe_mapping_tensor.long(), int(mapping.eol_token_id)

    def see(pixels: Tensor) -> Tensor:
        shown = pixels[:, None].repeat(1, config.vq_config.temporal_downsample_factor, 1, 1, 1)
        coded = vq.quant_conv(vq.encoder(shown).transpose(1, 2)).transpose(1, 2)
        ids = table[vq.quantize(coded)[:, 0]]  # (1, rows, columns)
        return torch.cat([ids, torch.full_like(ids[:, :, :1], row_end)], dim=2).flatten(1)

    eye, pictures = Eye(rule, see, vq), example_pictures(rule.size)[:1]
    count = eye(pictures).shape[1]
    decoder = CodeDecoder(vq, rule, rows, columns)
    codes = torch.arange(rows * columns)[None] * 7 % config.vq_config.codebook_size
    drawn = decoder(codes).shape
    transformer = transformer_component(model.model.text_model, model.lm_head)
    graphs = (
        component("vq_encoder", eye, {"pixels": (1, 3, rule.size, rule.size)}, {"token_ids": (1, count)}),
        transformer,
        component("vq_decoder", decoder, {"codes": (1, rows * columns)}, {"pixels": (1, *drawn[1:])}),
    )
    ids = example_ids(checkpoint)
    return Parts(
        graphs={graph.name: graph for graph in graphs},
        inputs={
            "vq_encoder": {"pixels": pictures},
            "transformer": example_tokens(transformer, ids),
            "vq_decoder": {"codes": codes},
        },
        text=_text_loop(checkpoint, rule, count, factor),
        image_tokens=_drawing_loop(checkpoint, rows, columns, row_end, tuple(drawn[-2:])),
        most_context=most,
        tables={CODE_IDS: id_table([mapping.img2bpe[code] for code in range(len(mapping.img2bpe))])},
    )


def _canvas(checkpoint: Checkpoint) -> dict[str, Any]:
    """Shape and size of what is drawn: processor_config.json's word, which the library itself leaves to the caller."""
    path, usual = checkpoint.folder / "processor_config.json", checkpoint.processor
    with reading(path, kind=CheckpointError):
        said = json.loads(read_text(path)) if path.is_file() else {}
        return {"ratio": said.get("ratio", usual.ratio), "image_area": said.get("image_area", usual.image_area)}


def _side(eye: Any, factor: int) -> int:
    """The smallest square that the image processor leaves as it is."""
    side = factor
    while side * side < eye.min_pixels:
        side += factor
    return side


def _text_loop(checkpoint: Checkpoint, rule: PictureRule, count: int, factor: int) -> TextLoop:
    processor, side = checkpoint.processor, rule.size // factor
    found = processor_strings(checkpoint, processor.image_token, (processor.bos_token, ""))
    loop = TextLoop(
        template=found.template,
        image_close=found.image_close,
        image_size=rule.size,
        image_token_count=count,
        background=rule.background,
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        image_token=processor.image_token,
        image_open=f"{processor.image_start_token}{side}*{side}{processor.fake_token_around_image}",
        image_end=processor.eof_token + processor.image_end_token,
        image_between=found.image_between,
        image_fit="stretch",
        image_resample=rule.resample,
        strip=found.strip,
    )
    return as_the_library_reads(checkpoint, loop, processor)


def _drawing_loop(
    checkpoint: Checkpoint, rows: int, columns: int, row_end: int, size: tuple[int, int]
) -> ImageTokensLoop:
    processor, usual = checkpoint.processor, checkpoint.model.generation_config
    return ImageTokensLoop(
        open=processor.bos_token,
        close=f"{processor.image_start_token}{rows}*{columns}{processor.fake_token_around_image}",
        rows=rows,
        columns=columns,
        image_height=size[0],
        image_width=size[1],
        code_ids=CODE_IDS,
        row_end=row_end,
        unconditional="prompt",
        pad_id=0,
        kept_ids=(),
        negative_prompt="",
        guidance="log_probabilities",
        guidance_scale=float(usual.guidance_scale or GUIDANCE),
        temperature=float(usual.temperature or 1.0),
        top_k=(TOP_K if usual.top_k is None else usual.top_k) or None,
        top_p=usual.top_p,
    )


def draw_codes(checkpoint: Checkpoint, prompt: str, guidance: float, count: int, negative: str = "") -> list[int]:
    """The library's own loop, greedy, for `count` codes."""
    model, processor = checkpoint.model, checkpoint.processor
    asked = {"return_for_image_generation": True, "return_tensors": "pt", **_canvas(checkpoint)}
    inputs, blank = processor(text=prompt, **asked), processor(text=negative, **asked)
    columns = int(inputs.pop("image_sizes")[0][1])
    mapping, start = model.vocabulary_mapping, inputs["input_ids"].shape[1]

    def allowed(batch: int, ids: Tensor) -> list[int]:
        at_row_end = (len(ids) - start) % (columns + 1) == columns
        return [mapping.eol_token_id] if at_row_end else mapping.image_tokens

    said = model.generate(
        **inputs,
        max_new_tokens=count + (count - 1) // columns,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
        guidance_scale=guidance,
        negative_prompt_ids=blank["input_ids"],
        negative_prompt_attention_mask=blank["attention_mask"],
    )[0, start:]
    return [mapping.bpe2img[token] for token in said.tolist() if token != mapping.eol_token_id]
