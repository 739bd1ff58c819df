"""Mobile-O: FastVLM reads, and SANA draws over the hidden states of its last layers.

The checkpoint holds all weights, not SANA's configs: their folder is named with --component sana=FOLDER.  Editing is
drawing after a picture that was read; the autoencoder's encoder is never used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, LatentGrid
from edgemm.bundle.manifest import Licence, TextLoop, TextTemplate
from edgemm.bundle.picture import load_picture
from edgemm.bundle.prompt import PICTURE_ID
from edgemm.errors import CheckpointError
from edgemm.families.family import Drawn, Parts, Pieces, Shape, component, example_ids, example_pictures
from edgemm.families.fastvit import STRIDE
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama import as_transformer, check_llama_shaped, text_pieces
from edgemm.families.mobileo_layers import NEEDS, Eye, open_model, skeleton
from edgemm.families.prefix import HiddenGraph, example_inputs
from edgemm.families.sana import LatentDecoder, SanaConditioner, SanaDenoiser

__all__ = ["CANNOT", "LICENCES", "NEEDS", "draw", "open_model", "parts", "pieces", "reply", "skeleton"]

CANNOT = "pictures of other sizes than one square, read or drawn"
LICENCES = (
    Licence("Mobile-O: code and weights", "CC-BY-NC-SA-4.0", "not for commercial use"),
    Licence("FastVLM, its reading half, copyright Apple", "Apple's model licence", "for research only"),
)
SYSTEM, USER, ASSISTANT, END = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "<|im_end|>\n",
)
CAPTION = "Please generate image based on the following caption: "
EDIT = "\nPlease edit the provided image according to the following description: "
STEPS, GUIDANCE = 20, 1.5  # the published code's


def pieces(model: Any) -> Pieces:
    whole = model.model
    reading = {
        "image_encoder": [whole.vision_tower, whole.mm_projector],
        "transformer": text_pieces(whole, model.lm_head),
    }
    if not hasattr(whole, "dit"):
        return {**reading, "conditioner": [whole.diffusion_connector]}
    dit = whole.dit
    read = [x for block in dit.transformer_blocks for x in (block.attn2.to_k, block.attn2.to_v)]
    constant = {id(x) for part in (*read, dit.caption_projection, dit.caption_norm) for x in part.parameters()}
    return {
        **reading,
        "conditioner": [whole.diffusion_connector, dit.caption_projection, dit.caption_norm, *read],
        "denoiser": [x for x in dit.parameters() if id(x) not in constant],
        "image_decoder": [whole.vae],
    }


def parts(checkpoint: Checkpoint) -> Parts:
    model, config = checkpoint.model, checkpoint.config
    whole = model.model
    most = check_llama_shaped(config, checkpoint.folder)
    checkpoint.token_ids("<|im_start|>", "<|im_end|>")
    side = _reading_side(checkpoint)
    eye, pictures = Eye(whole), example_pictures(side)
    tokens = eye(pictures)
    fusion = whole.diffusion_connector.fusion
    hidden = _hidden_layers(checkpoint)
    attention, width = whole.layers[0].self_attn, config.hidden_size
    transformer = as_transformer(
        HiddenGraph(whole, model.lm_head, len(hidden)),
        whole,
        model.lm_head,
        attention.k_proj.out_features // attention.head_dim,
        attention.head_dim,
        more_caches={f"hidden.{layer}": ("b", 1, "T", width) for layer in hidden},
    )
    dit, vae = whole.dit, whole.vae
    cross = dit.transformer_blocks[0].attn2
    heads: Shape = ("b", cross.heads, "t", cross.inner_kv_dim // cross.heads)
    prefix: dict[str, Shape] = {"prefix_mask": ("b", "t")}
    prefix |= {f"prefix_{part}.{n}": heads for n in range(len(dit.transformer_blocks)) for part in ("key", "value")}
    grid, cell = dit.config.sample_size, _cell(vae)
    latents: Shape = ("b", dit.config.in_channels, grid, grid)
    read: dict[str, Shape] = {f"past_hidden.{layer}": ("b", 1, "T", width) for layer in hidden}
    graphs = [
        component("image_encoder", eye, {"pixels": ("b", 3, side, side)}, {"image_tokens": ("b", *tokens.shape[1:])}),
        transformer,
        component("conditioner", SanaConditioner(fusion, dit), {**read, "prefix_length": ("b",)}, prefix),
        component(
            "denoiser", SanaDenoiser(dit), {"latents": latents, "time": ("b",), **prefix}, {"prediction": latents}
        ),
        component(
            "image_decoder", LatentDecoder(vae), {"latents": latents}, {"pixels": ("b", 3, grid * cell, grid * cell)}
        ),
    ]
    by_name = {graph.name: graph for graph in graphs}
    return Parts(
        graphs=by_name,
        inputs=example_inputs(by_name, example_ids(checkpoint), (pictures, tokens), (900.0, 300.0)),
        text=_text_loop(checkpoint, side, tokens.shape[1]),
        denoise=_denoise_loop(checkpoint, hidden),
        most_context=most,
    )


def _hidden_layers(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Numbers of the layers whose outputs the connector mixes: the last ones."""
    count, depth = (
        len(checkpoint.model.model.diffusion_connector.fusion.layer_weights),
        len(checkpoint.model.model.layers),
    )
    if count > depth:
        raise CheckpointError(
            f"{checkpoint.folder}: the connector mixes {count} layers, the language model has {depth}"
        )
    return tuple(range(depth - count, depth))


def _reading_side(checkpoint: Checkpoint) -> int:
    """Pixels: the number at the end of the vision tower's name."""
    name = str(getattr(checkpoint.config, "mm_vision_tower", ""))
    number = name.rpartition("_")[2]
    if not number.isdigit() or not 0 < int(number) <= 4096 or int(number) % STRIDE:
        raise CheckpointError(
            f"{checkpoint.folder}: mm_vision_tower is {name!r}, expected a name that ends in the side of a picture, a "
            f"multiple of {STRIDE} pixels"
        )
    return int(number)


def _cell(vae: Any) -> int:
    return 2 ** (len(vae.config.decoder_block_out_channels) - 1)


def _text_loop(checkpoint: Checkpoint, side: int, count: int) -> TextLoop:
    return TextLoop(
        template=TextTemplate(
            USER, END, ASSISTANT, END, "<|im_start|>system\n", END, system_default="", opening=SYSTEM
        ),
        image_close="\n",
        image_between="\n",
        image_size=side,
        image_token_count=count,
        background=(0, 0, 0),
        stop_token_ids=checkpoint.stop_token_ids,
        joined=True,
        apart=True,
        image_fit="pad_first",
    )


def _denoise_loop(checkpoint: Checkpoint, hidden: tuple[int, ...]) -> DenoiseLoop:
    whole = checkpoint.model.model
    scheduler, grid, cell = whole.scheduler, whole.dit.config, _cell(whole.vae)
    steps = scheduler["num_train_timesteps"]
    close = END + ASSISTANT
    return DenoiseLoop(
        template=DenoiseTemplate(SYSTEM + USER + CAPTION, close, joined=True),
        prefix_layers=(),
        hidden_layers=hidden,
        skip=0,
        prediction="velocity",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        guidance_interval=(0.0, 1.0),
        shift=float(scheduler["flow_shift"]),
        latents=LatentGrid(grid.in_channels, cell, grid.sample_size * cell, grid.sample_size * cell),
        time_zero="picture",
        time_scale=float(steps),
        time_whole=True,
        sigma_first=1 - 1 / steps,
        solver="dpmsolver++_2m",
        unconditional="zeros",
        edits=True,
        edit_template=DenoiseTemplate(SYSTEM + USER, close, joined=True, image_close=EDIT),
    )


# The published loop, for comparison: transformers' language model and diffusers' scheduler, all tokens at every step.


def reply(checkpoint: Checkpoint, ids: Tensor, images: list[np.ndarray], count: int) -> list[int]:
    """The likeliest tokens after ids (1, s), pictures in the places of PICTURE_ID; all is read each time."""
    model, x = checkpoint.model, checkpoint.model.model.embed_tokens(ids[0])
    if images:
        seen = _seen(checkpoint, images)
        places = (ids[0] == PICTURE_ID).nonzero()[:, 0]
        if len(places) != len(seen):
            raise ValueError(f"a prompt has {len(places)} places for {len(seen)} image tokens")
        x[places] = seen
    said: list[int] = []
    while True:
        said.append(int(model(inputs_embeds=x[None]).logits[0, -1].argmax()))
        if len(said) == count:
            return said
        x = torch.cat([x, model.model.embed_tokens(torch.tensor(said[-1:]))])


def draw(checkpoint: Checkpoint, drawn: Drawn) -> Tensor:
    """Pixels (3, H, W), not clipped."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    whole, tokenizer = checkpoint.model.model, checkpoint.tokenizer
    if drawn.image is None:
        words, images = [SYSTEM + USER + CAPTION + drawn.prompt + END + ASSISTANT], []
    else:
        words, images = [SYSTEM + USER, EDIT + drawn.prompt + END + ASSISTANT], [drawn.image]
    parts = [whole.embed_tokens(torch.tensor(tokenizer(piece)["input_ids"])) for piece in words]
    if images:
        parts.insert(1, _seen(checkpoint, images))
    x = torch.cat(parts)[None]
    states = checkpoint.model(inputs_embeds=x, output_hidden_states=True).hidden_states
    fusion = whole.diffusion_connector.fusion
    hidden, ones = states[-len(fusion.layer_weights) :], torch.ones(1, x.shape[1], 1)
    captions = fusion(hidden, ones), fusion([torch.zeros_like(state) for state in hidden], ones)
    scheduler: Any = DPMSolverMultistepScheduler.from_config(whole.scheduler)
    scheduler.set_timesteps(drawn.steps)
    latents = drawn.noise[None]
    for time in scheduler.timesteps:
        found = [whole.dit(latents, caption, time[None]).sample for caption in captions]
        velocity = found[1] + drawn.guidance * (found[0] - found[1])
        latents = scheduler.step(velocity, time, latents).prev_sample
    return whole.vae.decoder(latents / whole.vae.config.scaling_factor)[0] / 2 + 0.5


def _seen(checkpoint: Checkpoint, images: list[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) as image tokens (pictures m, w)."""
    side = _reading_side(checkpoint)
    pixels = np.stack([load_picture(image, side, (0, 0, 0), fit="pad_first") for image in images])
    return Eye(checkpoint.model.model)(torch.from_numpy(pixels)).flatten(0, 1)
