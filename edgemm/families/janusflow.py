"""JanusFlow (arXiv:2411.07975): one Llama that reads by autoregression and draws by rectified flow.

The transformer is the denoiser: its layers run again over [time ; noisy latents] behind the prompt's keys and values.
Without guidance's prompt the second row sees the first token alone.  No library knows the model (janusflow_layers.py);
its autoencoder is published apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, LatentGrid
from edgemm.bundle.manifest import TextLoop, TextTemplate
from edgemm.errors import CheckpointError
from edgemm.families.autoencoder_kl import WHAT, autoencoder_skeleton, open_autoencoder
from edgemm.families.family import (
    Drawn,
    Eye,
    Parts,
    PictureRule,
    Pieces,
    component,
    example_ids,
    example_pictures,
)
from edgemm.families.folder import Found
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.janusflow_layers import FULL_RATE, JanusFlow
from edgemm.families.llama import check_llama_shaped, text_pieces, transformer_component
from edgemm.families.own_modules import (
    check_settings,
    fill,
    from_sizes,
    is_weighed,
    keep_biases,
    names_in,
    numbers_of,
    read_config,
)
from edgemm.families.prefix import OverPrefix, conditioner_component, example_inputs, prefix_shapes

__all__ = ["CANNOT", "NEEDS", "draw", "open_model", "parts", "pieces", "reply", "skeleton"]

CANNOT = "editing (the model has none), pictures of other sizes than its own square"
NEEDS = {"vae": f"{WHAT}; JanusFlow is published with stabilityai/sdxl-vae"}
PARTS = ("und_enc", "gen_enc", "gen_dec")
PLAIN = {  # of their `params`, what the published code would do otherwise
    "und_enc": {"select_layer": -1, "select_feature": "same"},
    "gen_enc": {"stride": 2, "elementwise_affine": True},
    "gen_dec": {"upsamples": 1, "elementwise_affine": True},
}
PICTURES = {"do_normalize": True, "rescale_factor": 1 / 255}
# What the published code says and no file does
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
FORMAT, BETWEEN, USER, ASSISTANT = "deepseek_old", "\n\n", "User", "Assistant"
STEPS, GUIDANCE = 30, 2.0
BEGIN, END, PLACE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"


def skeleton(found: Found) -> JanusFlow:
    vae = autoencoder_skeleton(found.others["vae"]) if "vae" in found.others else None
    return _model(found, vae)


def open_model(found: Found) -> JanusFlow:
    vae = open_autoencoder(found.other("vae", NEEDS["vae"]))
    model = _model(found, vae)
    fill(model, found.folder, names_in(found.folder), given="vae.")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model.language_model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    _check_autoencoder(model, found)
    return model.eval()


def _model(found: Found, vae: Any) -> JanusFlow:
    config = read_config(found.folder / "config.json", "the sizes of JanusFlow")
    sections: dict[str, dict[str, Any]] = {
        name: (config.get(f"vision_{name}_config") or {}).get("params") or {} for name in PARTS
    }
    if lacking := [name for name, section in sections.items() if not section]:
        raise CheckpointError(
            f"{found.folder}: no vision_{lacking[0]}_config in config.json, so no JanusFlow; Janus and Janus-Pro are "
            "read in the layout of transformers (deepseek-community/Janus-Pro-1B)"
        )
    for name, section in sections.items():
        check_settings(section, PLAIN[name], found.folder / "config.json")
    weighed = is_weighed(found.folder)
    biased = {name for name in names_in(found.folder) if name.endswith(".bias")} if weighed else set()

    def make() -> JanusFlow:
        from transformers import LlamaConfig, LlamaForCausalLM

        language = {"hidden_size": sections["gen_enc"]["hidden_size"], **config["language_config"]}
        text = LlamaForCausalLM(LlamaConfig(**{**language, "attn_implementation": "eager"}))
        return JanusFlow(text, sections, vae)

    model = from_sizes(make, found.folder)
    if biased:  # `use_bias` is not every layer's
        for part in ("vision_gen_enc_model", "vision_gen_dec_model"):
            keep_biases(getattr(model, part), {name.removeprefix(f"{part}.") for name in biased})
    return model


def _check_autoencoder(model: JanusFlow, found: Found) -> None:
    channels = model.vision_gen_enc_model.in_conv.in_channels
    if model.vae.channels != channels:
        raise CheckpointError(
            f"{found.others['vae']}: an autoencoder of {model.vae.channels} latent channels, {found.folder} draws "
            f"{channels}"
        )
    if model.image_size % (2 * model.vae.cell):
        raise CheckpointError(f"{found.folder}: image_size {model.image_size} is no multiple of {2 * model.vae.cell}")


def pieces(model: JanusFlow) -> Pieces:
    text, aligners = model.language_model.model, [model.vision_gen_enc_aligner, model.vision_gen_dec_aligner]
    own = [model.vision_gen_enc_model, model.vision_gen_dec_model, *aligners, model.vision_gen_dec_aligner_norm]
    return {
        "image_encoder": [model.vision_und_enc_model, model.vision_und_enc_aligner, model.beg_of_und_embed],
        "transformer": text_pieces(text, model.language_model.lm_head),
        "denoiser": [*own, text.layers, text.norm],
        **({} if model.vae is None else {"image_decoder": [model.vae]}),
    }


class Denoiser(OverPrefix):
    """Latents (b, 4, s, s) at tau (b) to their velocity, over a prefix; the time token and all before see no later."""

    def __init__(self, model: JanusFlow) -> None:
        super().__init__(model.language_model.model, None)
        del self.embed_tokens  # the prompt was read already
        self.vision_gen_enc_model, self.vision_gen_dec_model = model.vision_gen_enc_model, model.vision_gen_dec_model
        self.vision_gen_enc_aligner = model.vision_gen_enc_aligner
        self.vision_gen_dec_aligner, self.norm_made = model.vision_gen_dec_aligner, model.vision_gen_dec_aligner_norm
        self.rows, self.velocity = model.drawing_rows, model.velocity

    def forward(self, latents: Tensor, time: Tensor, prefix_mask: Tensor, *pairs: Tensor) -> Tensor:
        rows, x, e = self.rows(latents, time)
        causal = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril()
        hidden = self.behind(rows, prefix_mask, pairs, causal)
        return self.velocity(hidden[:, 1:], x, e)


class ImageDecoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae(latents) / 2 + 0.5


def parts(checkpoint: Checkpoint) -> Parts:
    model: JanusFlow = checkpoint.model
    text, config, side = model.language_model.model, model.config, model.image_size
    most = check_llama_shaped(config, checkpoint.folder)
    rule, least = _picture_rule(checkpoint.folder, side)
    eye = Eye(rule, model.image_tokens, model)
    pictures = example_pictures(side)
    tokens = eye(pictures)
    heads, width = config.num_key_value_heads, config.head_dim
    prefix, grid = prefix_shapes(len(text.layers), heads, width), side // model.vae.cell
    latents = ("b", model.vae.channels, grid, grid)
    pixels = ("b", 3, side, side)
    graphs = [
        component("image_encoder", eye, {"pixels": pixels}, {"image_tokens": ("b", *tokens.shape[1:])}),
        transformer_component(text, model.language_model.lm_head),
        conditioner_component(text, heads, width),
        component("denoiser", Denoiser(model), {"latents": latents, "time": ("b",), **prefix}, {"prediction": latents}),
        component("image_decoder", ImageDecoder(model.vae), {"latents": latents}, {"pixels": pixels}),
    ]
    by_name = {graph.name: graph for graph in graphs}
    return Parts(
        graphs=by_name,
        inputs=example_inputs(by_name, example_ids(checkpoint), (pictures, tokens), (0.0, 700.0)),
        text=_text_loop(checkpoint, rule, least, tokens.shape[1]),
        denoise=_denoise_loop(checkpoint),
        most_context=most,
        shared={"denoiser": "transformer"},
    )


def _picture_rule(folder: Path, side: int) -> tuple[PictureRule, int]:
    """And the least that the shorter side may become."""
    path = folder / "preprocessor_config.json"
    found = read_config(path, "how JanusFlow reads pictures")
    check_settings(found, PICTURES, path)
    if found.get("image_size") != side:
        raise CheckpointError(f"{folder}: pictures become {found.get('image_size')}, the vision tower reads {side}")
    means, deviations = (numbers_of(found, key, path) for key in ("image_mean", "image_std"))
    if 0 in deviations:
        raise CheckpointError(f"{path}: image_std is {list(deviations)}, which is divided by")
    background = numbers_of(found, "background_color", path, usual=(127, 127, 127))
    rule = PictureRule(
        size=side,
        fit="pad_cut",
        resample="bicubic",
        background=tuple(map(int, background)),  # type: ignore[arg-type]
        scale=tuple(1 / deviation for deviation in deviations),
        shift=tuple(-mean / deviation for mean, deviation in zip(means, deviations)),
    )
    least = found.get("min_size", 1)
    if type(least) is not int:
        raise CheckpointError(f"{path}: min_size is {least!r}, expected a whole number")
    return rule, least


def _text_loop(checkpoint: Checkpoint, rule: PictureRule, least: int, count: int) -> TextLoop:
    folder, tokenizer = checkpoint.folder, checkpoint.tokenizer
    place = folder / "processor_config.json"
    settings = read_config(place, "the prompt's format")
    if "sft_format" not in settings:
        raise CheckpointError(f"{place}: no sft_format, expected {FORMAT!r}")
    tags = {"image_tag": PLACE, "image_start_tag": BEGIN, "image_end_tag": END}
    check_settings(settings, {"sft_format": FORMAT, **tags}, place)
    if settings.get("num_image_tokens") != count - 1:
        raise CheckpointError(f"{folder}: num_image_tokens is {settings.get('num_image_tokens')}, not {count - 1}")
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    checkpoint.token_ids(*(word or "bos_token or eos_token" for word in (bos, eos)), BEGIN, END, PLACE)
    template = TextTemplate(
        user_open=f"{USER}: ",
        user_close=BETWEEN,
        assistant_open=f"{ASSISTANT}: ",
        assistant_close=eos,
        system_open=bos,
        system_close=BETWEEN,
        system_default="",
        opening=bos + SYSTEM + BETWEEN,
        reply_open=f"{ASSISTANT}:",
    )
    return TextLoop(
        template=template,
        image_close="\n",
        image_size=rule.size,
        image_token_count=count,
        background=rule.background,
        stop_token_ids=(tokenizer.eos_token_id,),
        joined=True,
        image_token=PLACE,
        image_open=BEGIN,
        open_is_first=True,
        image_end=END,
        image_between="\n",
        image_fit=rule.fit,
        image_least=least,
        image_resample=rule.resample,
        strip=True,
    )


def _denoise_loop(checkpoint: Checkpoint) -> DenoiseLoop:
    model: JanusFlow = checkpoint.model
    side, bos = model.image_size, checkpoint.tokenizer.bos_token
    return DenoiseLoop(
        template=DenoiseTemplate(f"{bos}{USER}: ", f"{BETWEEN}{ASSISTANT}:", joined=True, strip=True),
        prefix_layers=tuple(range(len(model.language_model.model.layers))),
        skip=0,
        prediction="velocity",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        guidance_interval=(0.0, 1.0),
        shift=1.0,
        latents=LatentGrid(model.vae.channels, model.vae.cell, side, side),
        time_scale=FULL_RATE,
        unconditional="mask",
        seen_slots=1,
    )


@torch.no_grad()
def reply(checkpoint: Checkpoint, ids: Tensor, images: list[np.ndarray], count: int) -> list[int]:
    """The model's likeliest tokens after ids (1, s), pictures in their places."""
    model: JanusFlow = checkpoint.model
    embeds, said = model.language_model.get_input_embeddings()(ids), []
    if images:
        rule, _ = _picture_rule(checkpoint.folder, model.image_size)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        named = checkpoint.token_ids(BEGIN, PLACE)
        embeds[torch.isin(ids, torch.tensor(named))] = Eye(rule, model.image_tokens)(pixels).flatten(0, 1)
    answer = model.language_model(inputs_embeds=embeds, use_cache=True)
    while True:
        said.append(int(answer.logits[0, -1].argmax()))
        if len(said) == count:
            return said
        step = torch.tensor([said[-1:]])
        answer = model.language_model(input_ids=step, past_key_values=answer.past_key_values, use_cache=True)


@torch.no_grad()
def draw(checkpoint: Checkpoint, drawn: Drawn) -> Tensor:
    """(3, H, W) in [0, 1]: the whole picture as published, the prompt read again at every step."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    asked = f"{USER}: {drawn.prompt.strip()}{BETWEEN}{ASSISTANT}:{BEGIN}"
    ids = torch.tensor(tokenizer(asked)["input_ids"])[:-1]  # the time token stands in the last one's place
    latents = model.draw(ids, drawn.noise, drawn.steps, drawn.guidance)
    return (model.vae(latents[None])[0] / 2 + 0.5).clamp(0, 1)
