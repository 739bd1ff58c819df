"""LoRA and its kin around a part of a model, through PEFT, in PEFT's own files.

    adapters/NAME/transformer/   adapter_config.json, adapter_model.safetensors
    adapters/NAME/denoiser/      the same; either may be absent

It knows modules and folders, never losses or data.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from edgemm.bundle.adapter_config import FILES, FOUND_AGAIN, INIT, AdapterConfig
from edgemm.bundle.files import reading
from edgemm.bundle.writer import check_replaceable, whole_folder
from edgemm.errors import CheckpointError, MissingError, UsageError
from edgemm.model.unified import Unified
from edgemm.train.ranks import refusing_full_disk
from edgemm.train.recipe_file import FinetuneRecipe

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "add_adapter",
    "check_adapter_output",
    "merge_part",
    "adapter_parts",
    "save_adapter",
    "target_modules",
    "dense_weight",
    "to_dense",
    "to_nf4",
]

USUAL = {
    "transformer": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "denoiser": ("qkv_proj", "o_proj", "up_proj", "down_proj"),
}


def target_modules(model: Unified, part: str, recipe: FinetuneRecipe) -> str:
    """A pattern of the part's linear layers that get an adapter; names that the part lacks are the other part's.

    Raises UsageError naming what the part has.
    """
    module: nn.Module = getattr(model, part)
    leaves = (name.rpartition(".")[2] for name, child in module.named_modules() if isinstance(child, nn.Linear))
    known = sorted({leaf for leaf in leaves if not leaf.isdigit()})
    wanted = [name for name in recipe.target_modules or USUAL[part] if name in known]
    elsewhere = {leaf.rpartition(".")[2] for leaf, _ in model.named_modules()} if recipe.parts == "both" else set()
    unknown = [name for name in recipe.target_modules if name not in known and name not in elsewhere]
    if unknown or not wanted:
        found = ", ".join(unknown or recipe.target_modules)
        raise UsageError(f"target_modules: {found} is no linear layer of the {part}, which has: {', '.join(known)}")
    names = "|".join(wanted)
    if part == "denoiser":
        return rf"(.*\.)?({names})"
    layers = "|".join(map(str, range(recipe.lora_first_layer, model.config.transformer.depth)))
    return rf"layers\.({layers})\.\w+\.({names})"


def add_adapter(model: Unified, part: str, recipe: FinetuneRecipe) -> PeftModel:
    """The part with a new adapter in place, which changes nothing yet; its own weights are frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        target_modules=target_modules(model, part, recipe),
        use_rslora=recipe.method == "rslora",
        use_dora=recipe.method == "dora",
    )
    inner: Any = getattr(model, part)  # PEFT takes any module, its types say otherwise
    adapted: Any = get_peft_model(inner, config)
    return adapted


def check_adapter_output(folder: Path) -> None:
    """InputError where something stands there that is no adapter."""
    check_replaceable(folder, lambda there: any((there / part / FILES[0]).is_file() for part in USUAL), "adapter")


def save_adapter(parts: Mapping[str, PeftModel], folder: Path) -> None:
    """Write the adapter's folder, all parts or nothing."""
    learned = (p for adapted in parts.values() for p in adapted.parameters() if p.requires_grad)
    size = sum(parameter.numel() * parameter.element_size() for parameter in learned)
    with refusing_full_disk(folder, None, size), whole_folder(folder, check_adapter_output) as whole:
        for part, adapted in parts.items():
            adapted.save_pretrained(str(whole / part))
            (whole / part / "README.md").unlink(missing_ok=True)  # PEFT's own empty model card


def adapter_parts(folder: Path) -> list[str]:
    """The parts that an adapter's folder holds. Raises CheckpointError when it is none."""
    parts = [part for part in USUAL if (folder / part).is_dir()]
    if not parts:
        raise CheckpointError(
            f"{folder}: no adapter; its folder holds {' or '.join(USUAL)}, each with PEFT's two files"
        )
    for part in parts:
        for name in FILES:
            if not (folder / part / name).is_file():
                raise CheckpointError(f"{folder / part}: {name} is missing; an adapter holds {', '.join(FILES)}")
    return parts


def merge_part(module: nn.Module, folder: Path, strength: float = 1.0) -> None:
    """Add an adapter's part, times `strength`, to a module's own weights, in their precision, and leave it plain.

    PEFT merges, told what the tensors say: it follows no pattern and imports nothing that a stranger's config names.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    inner, config = cast(Any, module), AdapterConfig.read(folder, merging=True)
    with reading(folder, "does not fit this checkpoint", CheckpointError):
        tensors = load_file(folder / FILES[1])
        asked = LoraConfig(**_asked(config, tensors))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT only warns where a tensor is missing: that is an error below
            adapted: Any = PeftModel.from_pretrained(inner, str(folder), config=asked)
        found, wanted = set(tensors), set(get_peft_model_state_dict(adapted))
        if found != wanted:
            raise ValueError(f"tensor {sorted(found ^ wanted)[0]} is in only one of the two")
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                layer.scale_layer(strength)
        adapted.merge_and_unload()


def _asked(config: AdapterConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """PEFT's settings for the modules that the tensors are of. CheckpointError where PEFT would get one wrong."""
    if embedded := [name for name in tensors if ".lora_embedding_" in name]:
        raise CheckpointError(
            f"{config.path.parent}: {embedded[0]} is LoRA on an embedding, which is the output head as well; "
            "PEFT changes the lookup alone, and a merged weight would change both"
        )
    ranks = {name: len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    ranks = {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): r for name, r in ranks.items()}
    for module, rank in ranks.items():
        config.scale(module, rank)  # says where config and factors differ
    copied = ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "lora_bias", "modules_to_save")
    asked = {key: config.document[key] for key in copied if config.document.get(key) is not None}
    if config.document.get(INIT) in FOUND_AGAIN:
        asked[INIT] = config.document[INIT]
    asked["target_modules"] = sorted(ranks)
    asked["rank_pattern"] = {f"^{re.escape(module)}": rank for module, rank in ranks.items()}
    asked["alpha_pattern"] = {f"^{re.escape(module)}": config.alpha(module) for module in ranks}
    return asked


# A transformer's linear layers in bitsandbytes' nf4 while an adapter is trained (QLoRA, arXiv:2305.14314).
#
# On processors with AVX512-BF16 a `Linear4bit` repacks its weights at the first forward without gradients, and what is
# dequantized after that is garbage, with no message.  Layers made here never repack.  An adapter is never merged into
# nf4, which would round it away: `to_dense` gives plain layers back first.


def to_nf4(module: nn.Module) -> None:
    """Replace every linear layer below `module`, in place; what lies outside linear layers keeps its precision."""
    try:
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError as error:
        raise MissingError("qlora needs bitsandbytes: pip install 'edgemm[quantize]'") from error
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                small: Any = Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None, quant_type="nf4"
                )
                small.load_state_dict(child.state_dict())
                small.support_avx512bf16_for_cpu = False  # never repack; see above
                setattr(parent, name, small.to(child.weight.device).requires_grad_(False))
    module.is_loaded_in_4bit = True  # type: ignore[assignment]  # how PEFT knows


def dense_weight(layer: Any) -> Tensor:
    """The numbers (out, in) that a Linear4bit computes with, float32."""
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError("this Linear4bit was repacked by a forward; its numbers cannot be had back exactly")
    return dequantize_4bit(layer.weight.data, state).float()


def to_dense(module: nn.Module) -> None:
    """Replace every nf4 layer by a plain one of the same, rounded numbers."""
    from bitsandbytes.nn.modules import Linear4bit

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear4bit):
                plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                with torch.no_grad():
                    plain.weight.copy_(dense_weight(child))
                    if child.bias is not None:
                        plain.bias.copy_(child.bias)
                setattr(parent, name, plain.requires_grad_(False))
    module.is_loaded_in_4bit = False  # type: ignore[assignment]
