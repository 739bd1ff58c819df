"""A checkpoint with an adapter merged into it: a checkpoint like any other, ready for export.

The denoiser's part goes into the checkpoint's own weights.  So does the transformer's, unless the transformer has a
base: a LoRA then joins the adapter that the checkpoint carries on it, and the base is still not stored.  What no LoRA
can say (DoRA, a base rounded to nf4) costs that: the transformer's weights become the checkpoint's own.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemm.components import check_strength
from edgemm.errors import UsageError
from edgemm.model import checkpoint
from edgemm.train.adapters import merge_part, parts_of

__all__ = ["joined", "merge"]


def merge(
    source: Path, adapter: Path, output: Path, onto: str = "float", name: str = "", strength: float = 1.0
) -> None:
    """Write `output`, in the precision of `source`; what the adapter adds is multiplied by `strength`.

    `onto` "nf4" merges the transformer's part into the base as qlora rounded it; "float" into the base as it is.
    """
    parts = parts_of(adapter)
    check_strength(strength)
    dora = {part for part in parts if _is_dora(adapter / part)}
    if strength != 1 and dora:
        raise UsageError(f"{adapter}: DoRA sets magnitudes, of which there is no half: leave --strength out")
    if onto == "nf4" and "transformer" not in parts:
        raise UsageError(f"--onto nf4 is for an adapter of the transformer; {adapter} is one of the denoiser")
    model = checkpoint.load(source)
    if "denoiser" in parts:
        merge_part(model.denoiser, adapter / "denoiser", strength)
    with tempfile.TemporaryDirectory() as folder:
        if "transformer" in parts:
            if model.config.base and onto == "float" and "transformer" not in dora:
                both = [path for path in (model.adapter, adapter / "transformer") if path]
                merge_part(model.transformer, adapter / "transformer")  # says what does not fit
                joined(both, Path(folder), [1.0] * (len(both) - 1) + [strength])
                model.adapter = Path(folder)
            else:
                if onto == "nf4":
                    from edgemm.train.nf4 import to_dense, to_nf4

                    to_nf4(model.transformer.layers)
                    to_dense(model.transformer.layers)
                merge_part(model.transformer, adapter / "transformer", strength)
                base = model.config.base
                model.config = dataclasses.replace(
                    model.config, base="", base_layers=(), origin=base or model.config.origin
                )
                model.adapter = None
        model.config = dataclasses.replace(model.config, name=name or output.name)
        checkpoint.save(model, output, _precision_of(source))


def joined(folders: list[Path], output: Path, strengths: Sequence[float] = ()) -> None:
    """LoRA adapters of one transformer as one: the products add up when the factors stand side by side.

    Every layer gets the sum of the ranks, zeros where an adapter has nothing, and each scale goes into its B.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapters = [checkpoint.read_adapter(folder) for folder in folders]
    ranks = [int(document["r"]) for document, _ in adapters]
    strengths = strengths or [1.0] * len(adapters)
    names = sorted(
        {key.removesuffix(".lora_A.weight") for _, t in adapters for key in t if key.endswith("lora_A.weight")}
    )
    tensors: dict[str, Tensor] = {}
    for name in names:
        downs, ups = [], []
        like = next(t for _, t in adapters if f"{name}.lora_A.weight" in t)
        shape_in, shape_out = like[f"{name}.lora_A.weight"].shape[1], like[f"{name}.lora_B.weight"].shape[0]
        for (document, own), rank, strength in zip(adapters, ranks, strengths, strict=True):
            down, up = own.get(f"{name}.lora_A.weight"), own.get(f"{name}.lora_B.weight")
            downs.append(torch.zeros(rank, shape_in) if down is None else down.float())
            scale = strength * checkpoint.adapter_scale(document, rank)
            ups.append(torch.zeros(shape_out, rank) if up is None else up.float() * scale)
        tensors[f"{name}.lora_A.weight"] = torch.cat(downs, dim=0)
        tensors[f"{name}.lora_B.weight"] = torch.cat(ups, dim=1)
    targets = [name.removeprefix("base_model.model.") for name in names]
    LoraConfig(r=sum(ranks), lora_alpha=sum(ranks), target_modules=targets).save_pretrained(str(output))
    save_file(tensors, output / "adapter_model.safetensors", metadata={"format": "pt"})


def _is_dora(part: Path) -> bool:
    return bool(json.loads((part / "adapter_config.json").read_text(encoding="utf-8")).get("use_dora"))


def _precision_of(source: Path) -> torch.dtype | None:
    """bfloat16 where the checkpoint is stored so, else float32."""
    from safetensors import safe_open

    file: Any
    with safe_open(source / "model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return torch.bfloat16 if "BF16" in kinds else None
