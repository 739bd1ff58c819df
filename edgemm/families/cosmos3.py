"""Cosmos3, Edge and Omni (Nano): transformers reads with its language tower, and its generator draws over its prompt.

One folder holds both halves: the library reads the tower and the picture encoder, and drops the generator's tensors,
which lie in the same files and are read by modules of our own (cosmos3_layers.py).  Omni's reasoner is a Qwen3-VL;
Edge's has another picture encoder and no norms on queries and keys.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, LatentGrid
from edgemm.bundle.files import reading
from edgemm.errors import CheckpointError
from edgemm.export.trace import without_warnings
from edgemm.families import hf_checkpoint, qwen3_vl
from edgemm.families.cosmos3_layers import Conditioner, Denoiser, Generator, PictureDecoder
from edgemm.families.family import Drawn, Named, Parts, Pieces, Shape, component
from edgemm.families.folder import Found
from edgemm.families.hf_checkpoint import Checkpoint, rendered
from edgemm.families.llama import text_pieces
from edgemm.families.own_modules import (
    check_settings,
    fill,
    from_sizes,
    is_fetched,
    names_and_shapes,
    names_in,
    read_config,
    starting,
)
from edgemm.families.prefix import prefix_shapes
from edgemm.families.qwen3_vl import library_inputs
from edgemm.families.wan_autoencoder import Shapes, of_a_picture

__all__ = ["CANNOT", "draw", "library_inputs", "open_model", "parts", "pieces", "skeleton"]

CANNOT = "video, sound and actions; pictures that are read in other sizes than one square; editing (it has none)"
PIPELINE = "model_index.json"  # without it the folder holds a reasoner alone
EDGE = "Cosmos3EdgeForConditionalGeneration"
# What the published pipeline says and no file does
SYSTEM = "You are a helpful assistant who will generate images from a give prompt."
SIZE, NO_SIZE = ("This image is " + word + "of {height}x{width} resolution." for word in ("", "not "))
STEPS, GUIDANCE = 35, 6.0
SIDE, LARGEST = 640, 1280  # pixels: of a picture when nobody says otherwise, and at most
BEGIN = "<|vision_start|>"
PLACE = "\0"  # of a prompt, in a chat template
SOLVER = {  # of the scheduler that the loop writes again -> the only setting it knows
    "_class_name": "UniPCMultistepScheduler",
    "solver_order": 2,
    "solver_type": "bh2",
    "solver_p": None,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "disable_corrector": [],
    "thresholding": False,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_dynamic_shifting": False,
    "rescale_betas_zero_snr": False,
    "shift_terminal": None,
}


def skeleton(found: Found) -> Any:
    model = hf_checkpoint.skeleton(found)
    if (found.folder / PIPELINE).is_file():
        model.generator, model.decoder = _drawing_parts(found.folder, on_paper=not is_fetched(_vae_file(found.folder)))
    return model


def open_model(found: Found) -> Any:
    folder, draws = found.folder, (found.folder / PIPELINE).is_file()
    drawing = _drawing_parts(folder) if draws else None  # what is wrong with small files is told first
    model = hf_checkpoint.open_checkpoint(found).model
    if drawing is not None:
        model.generator, model.decoder = drawing
        fill(model.generator, folder / "transformer", names_in(folder / "transformer"))
        shapes = names_and_shapes(_vae_file(folder), "the autoencoder")
        fill(model.decoder, folder / "vae", starting(shapes, _vae_file(folder)), shaped=of_a_picture)
        text, generator = model.config.get_text_config(), model.generator
        rotary = text.rope_parameters
        if (float(rotary["rope_theta"]), list(rotary["mrope_section"])) != (generator.theta, generator.sections):
            raise CheckpointError(f"{folder}: the generator's positions are not those of the language tower")
        if len(generator.layers) != text.num_hidden_layers:
            raise CheckpointError(f"{folder}: {len(generator.layers)} layers draw, {text.num_hidden_layers} read")
    return model


def _drawing_parts(folder: Path, on_paper: bool = False) -> tuple[Generator, PictureDecoder]:
    """Without weights; and a look at what the loop will need.  On paper the autoencoder is what its config says."""
    config = read_config(folder / "transformer" / "config.json", "the generator's sizes")
    vae = read_config(folder / "vae" / "config.json", "the autoencoder's sizes")
    with reading(folder, "its scheduler's settings do not fit together", CheckpointError):
        _schedule(folder)
    check_settings(config, {"unified_3d_mrope_reset_spatial_ids": True}, folder / "transformer" / "config.json")
    if not vae.get("is_residual"):
        raise CheckpointError(f"{folder}: an autoencoder of Wan 2.1's shape, expected 2.2's (is_residual)")
    shapes = _said_shapes(vae, folder) if on_paper else names_and_shapes(_vae_file(folder), "the autoencoder")
    generator = from_sizes(lambda: Generator(config), folder / "transformer")
    decoder = from_sizes(lambda: PictureDecoder(shapes, vae, folder / "vae" / "config.json"), folder / "vae")
    if decoder.channels != generator.channels:
        raise CheckpointError(
            f"{folder}: an autoencoder of {decoder.channels} latent channels, the generator draws {generator.channels}"
        )
    return generator, decoder


def _said_shapes(vae: dict[str, Any], folder: Path) -> Shapes:
    """Of the library's autoencoder, where nobody has fetched the weights."""
    with without_warnings():
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    model = from_sizes(lambda: AutoencoderKLWan.from_config(vae), folder / "vae")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}  # pyright: ignore


def _vae_file(folder: Path) -> Path:
    return folder / "vae" / "diffusion_pytorch_model.safetensors"


def pieces(model: Any) -> Pieces:
    whole = model.model
    eye = [whole.visual, *([whole.projector] if hasattr(whole, "projector") else [])]
    found = {"image_encoder": eye, "transformer": text_pieces(whole.language_model, model.lm_head)}
    if not hasattr(model, "generator"):
        return found
    norms = [layer.self_attn.k_norm_und_for_gen for layer in model.generator.layers]
    own = {id(x) for norm in norms if norm for x in norm.parameters()}
    return found | {
        "conditioner": [norm for norm in norms if norm],
        "denoiser": [x for x in model.generator.parameters() if id(x) not in own],
        "image_decoder": [model.decoder],
    }


class EdgeTower(nn.Module):
    """Pixels (b, 3, H, W) to image tokens (b, m, w): SigLIP 2 (arXiv:2502.14786) over one square, then four to one."""

    def __init__(self, whole: Any, size: int) -> None:
        super().__init__()
        visual, self.projector = whole.visual, whole.projector
        self.layers, self.last = visual.encoder.layers, visual.post_layernorm
        embeddings, patch = visual.embeddings, visual.config.patch_size
        self.merge, self.bias = self.projector.spatial_merge_size, embeddings.patch_embedding.bias
        weight = embeddings.patch_embedding.weight.detach()  # (c, p p 3): a patch's numbers are row, column, colour
        self.filters = nn.Buffer(weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2).contiguous())
        side = embeddings.position_embedding_size
        places = embeddings.position_embedding.weight.detach().reshape(side, side, -1)
        grid = torch.tensor([[1, size // patch, size // patch]])
        self.places = nn.Buffer(embeddings.resize_positional_embeddings(places, grid, self.merge))  # (n, c), in blocks

    def forward(self, pixels: Tensor) -> Tensor:
        m, merger = self.merge, self.projector
        x = nn.functional.conv2d(pixels, self.filters, self.bias, stride=self.filters.shape[-1])
        x = x.unflatten(2, (-1, m)).unflatten(4, (-1, m))  # (b, c, rows, m, columns, m)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(1, 4) + self.places  # (b, n, c)
        layers: Any = self.layers
        for layer in layers:
            x = x + self._attended(layer.self_attn, layer.layer_norm1(x))
            x = x + layer.mlp(layer.layer_norm2(x))
        x = merger.norm(self.last(x)).unflatten(1, (-1, m * m)).flatten(2)
        return merger.linear_fc2(merger.act_fn(merger.linear_fc1(x)))

    @staticmethod
    def _attended(attention: Any, x: Tensor) -> Tensor:
        heads = (getattr(attention, f"{part}_proj")(x).unflatten(-1, (-1, attention.head_dim)) for part in "qkv")
        attended = nn.functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in heads))
        return attention.out_proj(attended.transpose(1, 2).flatten(2))


def parts(checkpoint: Checkpoint) -> Parts:
    model = checkpoint.model
    draws = _denoise_loop(checkpoint) if hasattr(model, "generator") else None  # before conversations are compared
    edge = checkpoint.architecture == EDGE
    reads = qwen3_vl.parts(checkpoint, EdgeTower(model.model, qwen3_vl.side_of(checkpoint)) if edge else None)
    if draws is None:
        return reads
    generator, text, decoder = model.generator, model.model.language_model, model.decoder
    attention, depth = text.layers[0].self_attn, len(text.layers)
    heads, width = attention.k_proj.out_features // attention.head_dim, attention.head_dim
    cache: Shape = ("b", heads, "T", width)
    caches = {f"past_{part}.{layer}": cache for layer in range(depth) for part in ("key", "value")}
    prefix = prefix_shapes(depth, heads, width)
    grid, pixels = ("b", decoder.channels, "h", "w"), ("b", 3, "H", "W")
    graphs = [
        component("conditioner", Conditioner(generator, text), {**caches, "prefix_length": ("b",)}, prefix),
        component(
            "denoiser", Denoiser(generator, text), {"latents": grid, "time": ("b",), **prefix}, {"prediction": grid}
        ),
        component("image_decoder", decoder, {"latents": grid}, {"pixels": pixels}),
    ]
    by_name = {graph.name: graph for graph in graphs}
    return dataclasses.replace(
        reads,
        graphs=reads.graphs | by_name,
        inputs=reads.inputs | _inputs(reads, by_name, decoder.channels),
        denoise=draws,
    )


@torch.no_grad()
def _inputs(reads: Parts, graphs: dict[str, Any], channels: int) -> dict[str, Named]:
    """What each component is compared on; the conditioner's is what the transformer has read."""
    read = reads.inputs["transformer"]
    _, *present = reads.graphs["transformer"].module(*read.values())
    past = [spec.name for spec in graphs["conditioner"].inputs[:-1]]
    length = read["attention_limit"][:, -1] + 1
    condition = {**dict(zip(past, present)), "prefix_length": length - torch.tensor([0, 5])}
    given = graphs["conditioner"].module(*condition.values())
    names = [spec.name for spec in graphs["conditioner"].outputs]
    latents = torch.randn(2, channels, 3, 6, generator=torch.Generator().manual_seed(0))
    return {
        "conditioner": condition,
        "denoiser": {"latents": latents, "time": torch.tensor([999.0, 300.0]), **dict(zip(names, given, strict=True))},
        "image_decoder": {"latents": latents},
    }


def _templates(checkpoint: Checkpoint) -> tuple[DenoiseTemplate, DenoiseTemplate]:
    """Of the prompt, and of what guidance leads away from."""
    pipeline = read_config(checkpoint.folder / PIPELINE, "the pipeline")
    messages = [{"role": "system", "content": SYSTEM}] if pipeline.get("default_use_system_prompt", True) else []
    messages.append({"role": "user", "content": PLACE})
    tokenizer = _drawing_tokenizer(checkpoint)
    said = rendered(tokenizer, messages, checkpoint.folder)
    before, found, after = said.partition(PLACE)
    if not found:
        raise CheckpointError(f"{checkpoint.folder}: its chat template leaves the user's words out")
    after += tokenizer.eos_token + BEGIN
    template = DenoiseTemplate(before, after, joined=True, size_sentence=SIZE)
    return template, dataclasses.replace(template, size_sentence=NO_SIZE)


def _drawing_tokenizer(checkpoint: Checkpoint) -> Any:
    """The pipeline's own, whose template may be another; a bundle has one vocabulary."""
    checkpoint.token_ids(BEGIN)
    words = checkpoint.folder / "text_tokenizer"
    own = dataclasses.replace(checkpoint, words=words).tokenizer if words.is_dir() else checkpoint.tokenizer
    if own.get_vocab() != checkpoint.tokenizer.get_vocab():
        raise CheckpointError(f"{words}: another vocabulary than that of {checkpoint.folder}, which reads")
    if not (own.chat_template and own.eos_token):
        raise CheckpointError(f"{words}: a chat template and an eos_token are expected, which drawing prompts have")
    return own


def _schedule(folder: Path) -> dict[str, Any]:
    """The loop's fields of time, from the scheduler's settings."""
    place = folder / "scheduler" / "scheduler_config.json"
    c, pipeline = read_config(place, "the scheduler"), read_config(folder / PIPELINE, "the pipeline")
    check_settings(c, SOLVER, place)
    count, native = c["num_train_timesteps"], pipeline.get("use_native_flow_schedule", False)
    fields: dict[str, Any] = {"time_scale": float(count), "time_whole": True, "solver": "unipc_2", "shift": 1.0}
    if not c.get("use_karras_sigmas"):
        return fields | {"sigma_first": 1 - 1 / count, "shift": float(c.get("flow_shift") or 1)}
    last, first = c.get("sigma_min"), c.get("sigma_max")
    if native and None in (first, last):
        raise CheckpointError(
            f"{place}: use_karras_sigmas without sigma_min and sigma_max, and a native flow: its noise would rise"
        )
    # ends of the noise that the scheduler was made with
    left = torch.cumprod(1 - torch.linspace(c["beta_start"], c["beta_end"], count, dtype=torch.float32), dim=0)
    noise = ((1 - left) / left).sqrt()
    first, last = (float(usual if own is None else own) for usual, own in ((noise[-1], first), (noise[0], last)))
    return fields | {"spacing": "karras", "sigma_first": first, "sigma_last": last}


def _denoise_loop(checkpoint: Checkpoint) -> DenoiseLoop:
    model = checkpoint.model
    template, negative = _templates(checkpoint)
    cell = model.decoder.cell
    side = SIDE // cell * cell
    return DenoiseLoop(
        template=template,
        negative_template=negative,
        prefix_layers=tuple(range(len(model.generator.layers))),
        skip=0,
        prediction="velocity",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        guidance_interval=(0.0, 1.0),
        latents=LatentGrid(model.decoder.channels, cell, side, side, smallest=2 * cell, largest=LARGEST),
        time_zero="picture",
        unconditional="prompt",
        **_schedule(checkpoint.folder),
    )


@torch.no_grad()
def draw(checkpoint: Checkpoint, drawn: Drawn) -> Tensor:
    """(3, H, W): over the library's own keys and values, by diffusers' scheduler."""
    with without_warnings():
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    import numpy as np

    model, folder = checkpoint.model, checkpoint.folder
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    scheduler: Any = UniPCMultistepScheduler.from_config(config)
    if read_config(folder / PIPELINE, "the pipeline").get("use_native_flow_schedule"):
        sigmas = np.linspace(1 - 1 / config["num_train_timesteps"], 0, drawn.steps + 1)[:-1]
        scheduler.set_timesteps(drawn.steps, sigmas=sigmas)
    else:
        scheduler.set_timesteps(drawn.steps)
    text = model.model.language_model
    conditioner, denoiser = Conditioner(model.generator, text), Denoiser(model.generator, text)
    prefixes = []
    for template, said in zip(_templates(checkpoint), (drawn.prompt.rstrip("."), "")):
        sentence = template.size_sentence.format(height=drawn.height, width=drawn.width)
        whole = template.open + (f"{said}. {sentence}" if said else sentence) + template.close
        ids = torch.tensor(checkpoint.tokenizer(whole)["input_ids"])[None]
        cache = text(input_ids=ids, use_cache=True).past_key_values
        pairs = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        prefixes.append(conditioner(*pairs, torch.tensor([ids.shape[1]])))
    latents = drawn.noise[None]
    for time in scheduler.timesteps:
        told = time.float()[None]
        velocity = denoiser(latents, told, *prefixes[0])
        if drawn.guidance != 1:
            away = denoiser(latents, told, *prefixes[1])
            velocity = away + drawn.guidance * (velocity - away)
        latents = scheduler.step(velocity, time, latents).prev_sample
    return model.decoder(latents)[0]
