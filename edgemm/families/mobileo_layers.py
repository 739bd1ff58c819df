"""Mobile-O's weights in modules: transformers' Qwen2, FastViTHD, its connector, diffusers' SANA and DC-AE's decoder.

Sizes that stand in no config are read off the tensors' shapes; SANA's are in a folder of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgemm.errors import CheckpointError
from edgemm.export.trace import without_warnings
from edgemm.families.fastvit import FastViT, FastViTSizes
from edgemm.families.folder import Found
from edgemm.families.own_modules import (
    check_settings,
    fill,
    from_sizes,
    is_weighed,
    names_and_shapes,
    names_in,
    read_config,
)
from edgemm.families.sana import Connector, ConnectorSizes

__all__ = ["NEEDS", "Eye", "open_model", "skeleton"]

VISION, FUSION = "model.vision_tower.vision_tower.model.", "model.diffusion_connector.fusion."
UNUSED = ("model.vae.encoder.", f"{VISION}head.")
NEEDS = {"sana": "the folder that diffusion_name_or_path names: transformer, vae and scheduler configs of SANA"}
CODE = {  # of config.json, what the published code would do otherwise
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
PLAIN = {"qk_norm": None, "guidance_embeds": False, "timestep_scale": 1.0}  # of SANA's transformer, the same
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}  # what the loop takes, and no other
USUAL = {  # the same, where a scheduler's config may be silent
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "num_train_timesteps": 1000,
    "flow_shift": 1.0,
}
FREE = ("num_train_timesteps", "flow_shift")


def skeleton(found: Found) -> Any:
    """Without weights: transformers' Qwen2, with Mobile-O's other parts in the places that their names say.

    On paper SANA's may be left out, where nobody has named its folder.
    """
    config = read_config(found.folder / "config.json", "the sizes of Mobile-O")
    check_settings(config, CODE, found.folder / "config.json")
    sana = _sana(found.others["sana"]) if "sana" in found.others else None
    shapes = _shapes(found.folder)

    with without_warnings():  # importing them says what they lack
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
        from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
        from transformers import Qwen2Config, Qwen2ForCausalLM

    def make() -> Any:
        model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in config.items() if k != "architectures"}))
        layers = config.get("vlm_num_layers", 4)
        vision = FastViTSizes.read(shapes, VISION) if shapes else FastViTSizes()
        fusion = ConnectorSizes.read(shapes, FUSION) if shapes else ConnectorSizes(layers, config["hidden_size"])
        whole: Any = model.model
        whole.vision_tower, whole.vision_tower.vision_tower = nn.Module(), nn.Module()
        whole.vision_tower.vision_tower.model = FastViT(vision)
        whole.mm_projector = nn.Sequential(
            nn.Linear(vision.out_width, config["hidden_size"]), nn.GELU(), nn.Linear(*[config["hidden_size"]] * 2)
        )
        whole.diffusion_connector = nn.Module()
        whole.diffusion_connector.fusion = Connector(fusion)
        if sana is not None:
            transformer, vae, whole.scheduler = sana
            whole.dit, whole.vae = SanaTransformer2DModel.from_config(transformer), AutoencoderDC.from_config(vae)
            delattr(whole.vae, "encoder")  # never used
        return model

    return from_sizes(make, found.folder)


def _sana(folder: Path) -> tuple[dict[str, Any], ...]:
    """Configs of its transformer, autoencoder and scheduler."""
    *parts, scheduler = (
        read_config(folder / part, "SANA's own")
        for part in ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    )
    check_settings(parts[0], PLAIN, folder / "transformer" / "config.json")
    scheduler = {**USUAL, **scheduler}
    for key, wanted in {**FLOW, **USUAL}.items():
        found = scheduler.get(key)
        if found != wanted and not (key in FREE and isinstance(found, (int, float)) and 0 < found <= 1e6):
            raise CheckpointError(f"{folder}: scheduler has {key} {found!r}, this export knows {wanted!r}")
    return *parts, scheduler


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of every file of weights; none on paper."""
    files = sorted(set(names_in(folder).values())) if is_weighed(folder) else []
    return {name: shape for file in files for name, shape in names_and_shapes(file, "the weights").items()}


def open_model(found: Found) -> Any:
    found.other("sana", NEEDS["sana"])
    places = names_in(found.folder)
    model = skeleton(found)
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    model.model.rotary_emb = Qwen2RotaryEmbedding(model.config)  # its numbers are in no file
    fill(model, found.folder, places, unused=UNUSED)
    dit = model.model.dit
    if dit.config.interpolation_scale is not None:
        dit.patch_embed.pos_embed = _places(dit)
    return model.eval()


def _places(dit: Any) -> Tensor:
    """Sines and cosines of where a patch lies, which are in no file."""
    return type(dit).from_config({**dit.config, "num_layers": 0}).patch_embed.pos_embed


class Eye(nn.Module):
    """Pixels (b, 3, S, S) in [0, 1] to image tokens (b, m, w)."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.tower, self.projector = whole.vision_tower.vision_tower.model, whole.mm_projector

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projector(self.tower(pixels))
