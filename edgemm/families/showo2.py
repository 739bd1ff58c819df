"""Show-o2 (arXiv:2506.15564): one Qwen2 that reads by autoregression, and draws by flow matching through a second head.

No library knows the model: modules are our own (showo2_layers.py), and so is what the export is compared with.  Its
language model's config and tokenizer, SigLIP's sizes and the autoencoder are published apart.
The conditioner takes the prompt through the head once, from the hidden states that the transformer keeps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, LatentGrid
from edgemm.bundle.manifest import TextLoop, TextTemplate
from edgemm.bundle.picture import load_picture
from edgemm.errors import CheckpointError
from edgemm.families.family import Drawn, Parts, Pieces, Shape, component, example_ids, example_pictures
from edgemm.families.folder import Found
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama import as_transformer, check_llama_shaped, text_pieces
from edgemm.families.own_modules import check_settings, fill, from_sizes, is_weighed, names_in, read_config
from edgemm.families.prefix import HiddenGraph, example_inputs, prefix_shapes
from edgemm.families.showo2_graphs import Conditioner, Denoiser, ImageDecoder, ImageEncoder
from edgemm.families.showo2_layers import ShowO2
from edgemm.families.wan_autoencoder import WHAT, open_wan, wan_skeleton
from edgemm.runtimes import schedule

__all__ = ["CANNOT", "NEEDS", "TOKENIZER", "draw", "open_model", "parts", "pieces", "reply", "skeleton"]

CANNOT = "chance in how pictures are read (the mean of their latents is read, not a sample), video, other sizes"
NEEDS = {
    "llm": "the language model's config and tokenizer; Show-o2-1.5B is published with Qwen/Qwen2.5-1.5B-Instruct",
    "clip": "the picture encoder's config; Show-o2 is published with google/siglip-so400m-patch14-384",
    "vae": WHAT,
}
TOKENIZER = "llm"
# What the published code says and no file does
START, END, VISION_START, VISION_END = "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"
ADDED = ("[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>")  # tokens that the published code adds
SYSTEM = "You are a helpful assistant."
POINTS, GUIDANCE, SHIFT = 50, 5.0, 3.0
HEAD = "showo.lm_head.weight"
PLAIN = {"add_time_embeds": True, "add_qk_norm": True}  # of config.json, what the published code would do otherwise


def skeleton(found: Found) -> ShowO2:
    return _model(found, wan_skeleton(found.others["vae"]) if "vae" in found.others else None)


def open_model(found: Found) -> ShowO2:
    llm = found.other("llm", NEEDS["llm"])
    found.other("clip", NEEDS["clip"])
    vae = open_wan(found.other("vae", NEEDS["vae"]))
    model, places = _model(found, vae), names_in(found.folder)
    fill(model, found.folder, places, given="vae.")
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    model.showo.model.rotary_emb = Qwen2RotaryEmbedding(model.config)  # its numbers are in no file
    embedding = model.showo.model.embed_tokens
    if torch.equal(embedding.weight, model.showo.lm_head.weight):
        model.showo.lm_head.weight = embedding.weight  # published twice
    if model.channels != vae.channels:
        raise CheckpointError(
            f"{found.others['vae']}: an autoencoder of {vae.channels} latent channels, {found.folder} draws "
            f"{model.channels}"
        )
    if len(embedding.weight) > model.config.vocab_size:
        raise CheckpointError(f"{llm}: a vocabulary of {model.config.vocab_size}, {found.folder} has more")
    return model.eval()


def _model(found: Found, vae: Any) -> ShowO2:
    config = read_config(found.folder / "config.json", "the sizes of Show-o2")
    check_settings(config, PLAIN, found.folder / "config.json")
    language, clip = (
        read_config(found.other(name, NEEDS[name]) / "config.json", f"the sizes of Show-o2's {name}")
        for name in ("llm", "clip")
    )

    tied = is_weighed(found.folder) and HEAD not in names_in(found.folder)  # or published twice, equal or not

    def make() -> ShowO2:
        from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

        if config.get("image_latent_height") != config["image_latent_width"]:
            raise ValueError("pictures that are no squares")
        sizes = {**language, "vocab_size": config["llm_vocab_size"], "tie_word_embeddings": tied}
        text = Qwen2Config(**{**sizes, "attn_implementation": "eager"})
        if text.hidden_size != config["hidden_size"]:
            raise ValueError(f"hidden_size is {config['hidden_size']}, the language model's {text.hidden_size}")
        vision = SiglipVisionConfig(**clip.get("vision_config", clip))
        return ShowO2(config, Qwen2ForCausalLM(text), vision, vae)

    return from_sizes(make, found.folder)


def pieces(model: ShowO2) -> Pieces:
    seen = [model.image_embedder_und, model.image_embedder_gen, model.position_embedding, model.und_trans]
    told = [model.fusion_proj, model.time_embed, model.time_embed_proj]
    words = [weight for name, weight in model.diffusion_head_a.named_parameters() if "adaLN" not in name]
    head, text, vae = [model.diff_proj, model.diffusion_head_a, model.diffusion_head_b], model.showo.model, model.vae
    return {
        "image_encoder": [*seen, *told, *([] if vae is None else [vae.encoder, vae.conv1])],
        "transformer": text_pieces(model.showo.model, model.showo.lm_head),
        "conditioner": [model.diff_proj, *words],
        "denoiser": [*seen, *told, *head, text.layers, text.norm],
        **({} if vae is None else {"image_decoder": [vae.decoder, vae.conv2]}),
    }


def parts(checkpoint: Checkpoint) -> Parts:
    model: ShowO2 = checkpoint.model
    text, head, config = model.showo.model, model.showo.lm_head, model.config
    most = check_llama_shaped(config, checkpoint.folder)
    checkpoint.tokenizer.add_tokens(list(ADDED), special_tokens=True)
    checkpoint.token_ids(START, END, VISION_START, VISION_END)
    side = _side(model)
    eye, pictures = ImageEncoder(model), example_pictures(side)
    tokens = eye(pictures)
    heads, width = config.num_key_value_heads, text.layers[0].self_attn.head_dim
    depth, last = len(text.layers), len(text.layers) - 1
    transformer = as_transformer(
        HiddenGraph(text, head, 1),
        text,
        head,
        heads,
        width,
        more_caches={f"hidden.{last}": ("b", 1, "T", config.hidden_size)},
    )
    caches = {spec.name: spec.shape for spec in transformer.inputs if spec.name.startswith("past_")}
    prefix = prefix_shapes(depth, heads, width)
    own, narrow = model.sizes["head_kv"], model.sizes["head_head_dim"]
    for layer in range(depth, depth + len(model.diffusion_head_a)):
        prefix |= {f"prefix_{part}.{layer}": ("b", own, "t", narrow) for part in ("key", "value")}
    grid: Shape = ("b", model.channels, *_grid(model))
    pixels: Shape = ("b", 3, side, side)
    graphs = [  # the denoiser has weights of all that follow
        transformer,
        component("denoiser", Denoiser(model), {"latents": grid, "time": ("b",), **prefix}, {"prediction": grid}),
        component("conditioner", Conditioner(model), {**caches, "prefix_length": ("b",)}, prefix),
        component("image_encoder", eye, {"pixels": pixels}, {"image_tokens": ("b", *tokens.shape[1:])}),
        component("image_decoder", ImageDecoder(model), {"latents": grid}, {"pixels": pixels}),
    ]
    by_name = {graph.name: graph for graph in graphs}
    return Parts(
        graphs=by_name,
        inputs=example_inputs(by_name, example_ids(checkpoint), (pictures, tokens), (0.0, 0.7)),
        text=_text_loop(checkpoint, side, tokens.shape[1]),
        denoise=_denoise_loop(model, side),
        most_context=most,
        shared=dict.fromkeys(("denoiser", "conditioner", "image_encoder"), "transformer"),
    )


def _grid(model: ShowO2) -> tuple[int, int]:
    """Rows and columns of latents."""
    return model.patch * model.rows, model.patch * model.columns


def _side(model: ShowO2) -> int:
    return _grid(model)[0] * model.vae.cell


def _text_loop(checkpoint: Checkpoint, side: int, count: int) -> TextLoop:
    """As the published script asks, which knows one turn; further ones in the manner of the language model's own."""
    user = f"{START}user\n"
    return TextLoop(
        template=TextTemplate(
            user_open=user,
            user_close="",
            assistant_open=f"\n{START}assistant\n",
            assistant_close=f"{END}\n",
            system_open=f"{START}system\n",
            system_close=f"{END}\n",
            system_default=SYSTEM,
        ),
        image_close="",
        image_size=side,
        image_token_count=count,
        background=(255, 255, 255),
        stop_token_ids=tuple(checkpoint.token_ids(END)),
        image_open=VISION_START,
        image_end=VISION_END,
        image_lead=1,  # the time's row: the published script begins the block one late
        image_fit="crop",
    )


def _denoise_loop(model: ShowO2, side: int) -> DenoiseLoop:
    depth = len(model.showo.model.layers)
    return DenoiseLoop(
        template=DenoiseTemplate(START, VISION_START, joined=True),
        prefix_layers=tuple(range(depth)),
        hidden_layers=(depth - 1,),
        skip=0,
        prediction="velocity",
        num_inference_steps=POINTS,
        guidance_scale=GUIDANCE,
        guidance_interval=(0.0, 1.0),
        shift=SHIFT,
        latents=LatentGrid(model.channels, model.vae.cell, side, side),
        counts="points",
        unconditional="prompt",
    )


@torch.no_grad()
def reply(checkpoint: Checkpoint, ids: Tensor, images: list[np.ndarray], count: int) -> list[int]:
    """The model's likeliest tokens after ids (1, s), pictures between their two tokens; all is read each time."""
    model: ShowO2 = checkpoint.model
    ids, x = ids[0], model.showo.get_input_embeddings()(ids[0])
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    opens, closes = checkpoint.token_ids(VISION_START, VISION_END)
    starts = (ids == opens).nonzero()[:, 0].tolist()
    for start, image in zip(starts, images, strict=bool(images)):
        pixels = torch.from_numpy(load_picture(image, _side(model), (255, 255, 255), fit="crop"))
        rows = ImageEncoder(model)(pixels[None])[0]
        first, last = start + 2, start + 1 + len(rows)  # picture tokens and what ends them, not the time's row
        if ids[last] != closes:
            raise ValueError(f"a picture of {len(rows)} tokens is not followed by {VISION_END}")
        x[start + 1 : last] = rows
        seen[first : last + 1, first : last + 1] = True
    said: list[int] = []
    while True:
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        said.append(int(model.showo(inputs_embeds=x[None], attention_mask=mask[None, None]).logits[0, -1].argmax()))
        if len(said) == count:
            return said
        x = torch.cat([x, model.showo.get_input_embeddings()(torch.tensor(said[-1:]))])
        seen = nn.functional.pad(seen, (0, 1, 0, 1), value=False)
        seen[-1] = True


@torch.no_grad()
def draw(checkpoint: Checkpoint, drawn: Drawn) -> Tensor:
    """(3, H, W) in [0, 1]: the whole picture as published, the prompt read again at every step."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    ids, blank = (
        torch.tensor(tokenizer(f"{START}{prompt}{VISION_START}")["input_ids"]) for prompt in (drawn.prompt, "")
    )
    times = schedule.times(drawn.steps - 1, SHIFT)  # counted in points
    latents = model.draw(ids, blank, drawn.noise, times, drawn.guidance)
    return ImageDecoder(model)(latents[None])[0].clamp(0, 1)
