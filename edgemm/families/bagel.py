"""BAGEL (arXiv:2505.14683): reads pictures by SigLIP, draws and edits in FLUX's latents by a second set of weights.

No library knows the model: modules are our own (bagel_layers.py), and so is what the export is compared with.
A picture to edit is read twice, as clean latents by the denoiser at time 0, and as any picture that is read.
"""

from __future__ import annotations

from typing import Any

import torch

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, EditGuidance, LatentGrid
from edgemm.bundle.manifest import TextLoop, TextTemplate
from edgemm.errors import CheckpointError
from edgemm.families.bagel_answers import (
    EDIT_GUIDANCE,
    EDIT_IMAGE_GUIDANCE,
    EDIT_INTERVAL,
    GUIDANCE,
    INTERVAL,
    SHIFT,
    STEPS,
    Answers,
)
from edgemm.families.bagel_graphs import (
    BlockGraph,
    Conditioner,
    Denoiser,
    ImageDecoder,
    ImageEncoder,
    LatentEncoder,
)
from edgemm.families.bagel_layers import GENERATION, BagelModel, BagelSizes, sizes_of
from edgemm.families.family import Drawn, Named, Parts, Pieces, Shape, component, example_ids, example_pictures
from edgemm.families.folder import Found
from edgemm.families.hf_checkpoint import Checkpoint
from edgemm.families.llama import as_transformer, example_tokens
from edgemm.families.own_modules import fill, from_sizes, is_fetched, names_and_shapes, read_config, starting

__all__ = ["CANNOT", "draw", "open_model", "parts", "pieces", "reply", "skeleton"]

CANNOT = "pictures that are read in another size than one square; thinking before drawing"
WEIGHTS, AUTOENCODER = "ema.safetensors", "ae.safetensors"
START, END, VISION_START, VISION_END = "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"
READING_SIDE = 448  # pixels, or the nearest below it that is whole patches
DRAWING_SIDE = 1024  # of a picture when nobody says otherwise; what the model was trained for at most
LEAST_TOKENS = 4  # a side of the smallest picture that may be asked for


def skeleton(found: Found) -> BagelModel:
    """Without weights, of the sizes that the configs say and the published code fixes."""
    text = read_config(found.folder / "llm_config.json", "the sizes of BAGEL's language model")
    vision = read_config(found.folder / "vit_config.json", "the sizes of BAGEL's picture encoder")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, what in ((WEIGHTS, "all but the autoencoder"), (AUTOENCODER, "the autoencoder")):
        if is_fetched(found.folder / name):
            shapes |= names_and_shapes(found.folder / name, what)
    complete = "encoder.conv_in.weight" in shapes and "vae2llm.weight" in shapes

    def make() -> BagelModel:
        from transformers import Qwen2Config

        config: Any = Qwen2Config(**text)  # knows what a file leaves out, and both ways to tell of rotary embedding
        told = {**config.to_dict(), "rope_theta": config.rope_parameters["rope_theta"]}
        model = BagelModel(sizes_of(told, vision, shapes if complete else None))
        model.config = config
        return model

    return from_sizes(make, found.folder)


def open_model(found: Found) -> BagelModel:
    model, folder = skeleton(found), found.folder
    whole = starting(names_and_shapes(folder / WEIGHTS, "all but the autoencoder"), folder / WEIGHTS)
    whole |= starting(names_and_shapes(folder / AUTOENCODER, "the autoencoder"), folder / AUTOENCODER, "vae.")
    fill(model, folder, whole, lambda name: name.removeprefix("vae."), unused=())
    return model.eval()


def pieces(model: BagelModel) -> Pieces:
    language = model.language_model
    text = language.model
    own = [model.vae2llm, model.llm2vae, model.time_embedder, model.latent_pos_embed, text.norm_moe_gen]
    return {
        "image_encoder": [model.vit_model, model.connector, model.vit_pos_embed],
        "transformer": [text.embed_tokens, *_weights(text, False), text.norm, language.lm_head],
        "denoiser": [*_weights(text, True), *own, *_weights(text, False), text.norm],
        "latent_encoder": [model.vae.encoder],
        "image_decoder": [model.vae.decoder],
    }


def _weights(text: Any, drawing: bool) -> list[torch.nn.Parameter]:
    """The layers' for latents, or those for words and pictures that are read."""
    return [weight for name, weight in text.layers.named_parameters() if (GENERATION in name) == drawing]


def parts(checkpoint: Checkpoint) -> Parts:
    model: BagelModel = checkpoint.model
    sizes, text = model.sizes, model.language_model.model
    turned, acts = checkpoint.config.rope_parameters["rope_type"], checkpoint.config.hidden_act
    if (turned, acts) != ("default", "silu"):
        raise CheckpointError(
            f"{checkpoint.folder}: rotary embedding {turned!r} and activation {acts!r}, BAGEL has 'default' and 'silu'"
        )
    graph = BlockGraph(text, model.language_model.lm_head)
    side = _reading_side(model)
    pictures = example_pictures(side)
    encoder = ImageEncoder(model)
    tokens = encoder(pictures)
    ledger, cells = ("b", 1, "T", 1), ("b", sizes.latent_width, "h", "w")
    transformer = as_transformer(
        graph,
        text,
        model.language_model.lm_head,
        sizes.kv_heads,
        sizes.head_width,
        more_caches={f"{part}.{sizes.depth}": ledger for part in ("key", "value")},
    )
    caches = {spec.name: spec.shape for spec in transformer.inputs if spec.name.startswith("past_")}
    prefix, block = _prefix_and_block(sizes)
    pixels: Shape = ("b", 3, "H", "W")
    *_, opens, closes = checkpoint.token_ids(START, END, VISION_START, VISION_END)
    graphs = [
        component(
            "image_encoder", encoder, {"pixels": ("b", 3, side, side)}, {"image_tokens": ("b", *tokens.shape[1:])}
        ),
        transformer,
        component("conditioner", Conditioner(graph.inv_freq), {**caches, "prefix_length": ("b",)}, prefix),
        component(
            "denoiser",
            Denoiser(model, opens, closes),
            {"latents": cells, "time": ("b",), **prefix},
            {"prediction": cells, **block},
        ),
        component(
            "latent_encoder",
            LatentEncoder(model),
            {"pixels": pixels},
            {"mean": cells, "deviation": cells},
            dict.fromkeys("HW", sizes.cell),
        ),
        component("image_decoder", ImageDecoder(model), {"latents": cells}, {"pixels": pixels}),
    ]
    return Parts(
        graphs={graph.name: graph for graph in graphs},
        inputs=_inputs(checkpoint, {graph.name: graph.module for graph in graphs}, transformer, pictures, tokens),
        text=_text_loop(checkpoint, side, tokens.shape[1]),
        denoise=_denoise_loop(model),
        most_context=checkpoint.config.max_position_embeddings,
        shared={"denoiser": "transformer"},
    )


def _prefix_and_block(sizes: BagelSizes) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """What the denoiser reads of the prompt, and the keys and values of its own block of k rows, which an edit's next
    prompt stands behind; its last pair says where tokens stand (bagel_graphs.py)."""
    prefix: dict[str, Shape] = {"prefix_mask": ("b", "t")}
    block: dict[str, Shape] = {}
    for layer in range(sizes.depth):
        for part in ("key", "value"):
            prefix[f"prefix_{part}.{layer}"] = ("b", sizes.kv_heads, "t", sizes.head_width)
            block[f"block_{part}.{layer}"] = ("b", sizes.kv_heads, "k", sizes.head_width)
    for part in ("key", "value"):
        block[f"block_{part}.{sizes.depth}"] = ("b", 1, "k", 1)
    return prefix, block


@torch.no_grad()
def _inputs(
    checkpoint: Checkpoint, modules: dict[str, Any], transformer: Any, pictures: Any, tokens: Any
) -> dict[str, Named]:
    """What each component is compared on, made by those before it; a picture's tokens see one another."""
    ids = example_ids(checkpoint)
    read = example_tokens(transformer, ids, tokens)
    seen = read["image_index"][0] >= 0
    read["attention_limit"][:, seen] = read["attention_limit"][:, seen].max()
    _, *present = modules["transformer"](*read.values())
    length = read["attention_limit"][:, -1] + 1
    past = [name for name in read if name.startswith("past_")]
    condition = {**dict(zip(past, present, strict=True)), "prefix_length": length - torch.tensor([0, 5])}
    mask, *prefix = modules["conditioner"](*condition.values())
    sizes = checkpoint.model.sizes
    latents = torch.randn(2, sizes.latent_width, 3, 5, generator=torch.Generator().manual_seed(0))
    names = ["prefix_mask", *(f"prefix_{part}.{layer}" for layer in range(sizes.depth) for part in ("key", "value"))]
    drawn = {"latents": latents, "time": torch.tensor([0.9, 0.3])}
    side = 4 * sizes.cell
    return {
        "image_encoder": {"pixels": pictures},
        "transformer": read,
        "conditioner": condition,
        "denoiser": drawn | dict(zip(names, [mask, *prefix], strict=True)),
        "latent_encoder": {"pixels": example_pictures(side)[..., : side - sizes.cell]},
        "image_decoder": {"latents": latents},
    }


def reply(checkpoint: Checkpoint, ids: Any, images: list[Any], count: int) -> list[int]:
    return _answers(checkpoint).reply(ids[0].tolist(), images, count)


def draw(checkpoint: Checkpoint, drawn: Drawn) -> torch.Tensor:
    return _answers(checkpoint).draw(drawn)


def _answers(checkpoint: Checkpoint) -> Answers:
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    return Answers(model, lambda text: tokenizer(text)["input_ids"], _reading_side(model))


def _reading_side(model: BagelModel) -> int:
    sizes = model.sizes
    return min(READING_SIDE // sizes.vision_patch, sizes.vision_side) * sizes.vision_patch


def _text_loop(checkpoint: Checkpoint, side: int, count: int) -> TextLoop:
    return TextLoop(
        template=TextTemplate(*(START, END) * 3, system_default=""),
        image_close="",
        image_size=side,
        image_token_count=count,
        background=(255, 255, 255),
        stop_token_ids=tuple(checkpoint.token_ids(END)),
        image_open=VISION_START,
        image_end=VISION_END,
        image_fit="stretch",
        block=True,
    )


def _denoise_loop(model: BagelModel) -> DenoiseLoop:
    sizes = model.sizes
    side = min(DRAWING_SIDE, sizes.latent_side * sizes.cell) // sizes.cell * sizes.cell
    return DenoiseLoop(
        template=DenoiseTemplate(START, END, joined=True),
        prefix_layers=tuple(range(sizes.depth)),
        place_layer=sizes.depth,
        skip=0,
        prediction="velocity",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        guidance_interval=INTERVAL,
        shift=SHIFT,
        latents=LatentGrid(
            channels=sizes.latent_width,
            cell=sizes.cell,
            height=side,
            width=side,
            smallest=min(LEAST_TOKENS, sizes.latent_side) * sizes.cell,
            largest=sizes.latent_side * sizes.cell,
        ),
        time_zero="picture",
        counts="points",
        renorm="global",
        unconditional="empty",
        edits=True,
        image_guidance_scale=EDIT_IMAGE_GUIDANCE,
        edit_guidance=EditGuidance(EDIT_GUIDANCE, EDIT_INTERVAL, "text_token", 0.0),
        picture_words=2,
    )
