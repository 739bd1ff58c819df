"""A checkpoint with an adapter merged into it: a checkpoint like any other, ready for export.

The denoiser's part goes into the checkpoint's own weights.  So does the transformer's, unless the transformer has a
base: a LoRA then joins the adapter that the checkpoint carries on it, and the base is still not stored.  What no LoRA
can say (DoRA, modules that were saved whole, biases, PiSSA, a base rounded to nf4) costs that: the transformer's
weights become the checkpoint's own.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemm.bundle.adapter_config import FILES, AdapterConfig
from edgemm.bundle.components import check_strength
from edgemm.errors import CheckpointError, UsageError
from edgemm.model import checkpoint
from edgemm.train.adapters import adapter_parts, merge_part

__all__ = ["join", "joined", "merge", "stored_dtype"]


def merge(
    source: Path, adapter: Path, output: Path, onto: str = "float", name: str = "", strength: float = 1.0
) -> None:
    """Write `output`, in the precision of `source`; what the adapter adds is multiplied by `strength`.

    InputError, before anything is read, where `output` is a source or a folder that holds no model.
    `onto` "nf4" merges the transformer's part into the base as qlora rounded it; "float" into the base as it is.
    """
    checkpoint.check_model_output(output, source, adapter)
    parts = adapter_parts(adapter)
    check_strength(strength)
    beyond = {part: AdapterConfig.read(adapter / part, merging=True).beyond_factors for part in parts}
    if strength != 1 and any(beyond.values()):
        key, why = next(item for keys in beyond.values() for item in keys.items())
        raise UsageError(f"{adapter}: {key}: {why}, of which there is no half: leave --strength out")
    if onto == "nf4" and "transformer" not in parts:
        raise UsageError(f"--onto nf4 is for an adapter of the transformer; {adapter} is one of the denoiser")
    model = checkpoint.load(source)
    if "denoiser" in parts:
        merge_part(model.denoiser, adapter / "denoiser", strength)
    with tempfile.TemporaryDirectory() as folder:
        if "transformer" in parts:
            if model.config.base and onto == "float" and not beyond["transformer"]:
                both = [path for path in (model.adapter, adapter / "transformer") if path]
                merge_part(model.transformer, adapter / "transformer")  # says what does not fit
                joined(both, Path(folder), [1.0] * (len(both) - 1) + [strength])
                model.adapter = Path(folder)
            else:
                if onto == "nf4":
                    from edgemm.train.adapters import to_dense, to_nf4

                    to_nf4(model.transformer.layers)
                    to_dense(model.transformer.layers)
                merge_part(model.transformer, adapter / "transformer", strength)
                base = model.config.base
                model.config = dataclasses.replace(
                    model.config, base="", base_layers=(), origin=base or model.config.origin
                )
                model.adapter = None
        model.config = dataclasses.replace(model.config, name=name or output.name)
        checkpoint.save(model, output, stored_dtype(source))


def joined(folders: list[Path], output: Path, strengths: Sequence[float] = ()) -> None:
    """LoRA adapters of one transformer as one: the products add up when the factors stand side by side.

    Every layer gets the sum of the largest ranks, zeros where an adapter has less, and each scale goes into its B.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapters = [checkpoint.read_adapter(folder) for folder in folders]
    ranks = [max(len(t) for key, t in own.items() if key.endswith("lora_A.weight")) for _, own in adapters]
    strengths = strengths or [1.0] * len(adapters)
    names = sorted(
        {key.removesuffix(".lora_A.weight") for _, t in adapters for key in t if key.endswith("lora_A.weight")}
    )
    tensors: dict[str, Tensor] = {}
    for name in names:
        downs, ups = [], []
        like = next(t for _, t in adapters if f"{name}.lora_A.weight" in t)
        shape_in, shape_out = like[f"{name}.lora_A.weight"].shape[1], like[f"{name}.lora_B.weight"].shape[0]
        for (config, own), rank, strength in zip(adapters, ranks, strengths, strict=True):
            downs.append(torch.zeros(rank, shape_in))
            ups.append(torch.zeros(shape_out, rank))
            if f"{name}.lora_A.weight" in own:
                down, up = own[f"{name}.lora_A.weight"], own[f"{name}.lora_B.weight"]
                downs[-1][: len(down)] = down
                scale = config.scale(name.removeprefix("base_model.model."), len(down))
                ups[-1][:, : len(down)] = up.float() * strength * scale
        tensors[f"{name}.lora_A.weight"] = torch.cat(downs, dim=0)
        tensors[f"{name}.lora_B.weight"] = torch.cat(ups, dim=1)
    targets = [name.removeprefix("base_model.model.") for name in names]
    LoraConfig(r=sum(ranks), lora_alpha=sum(ranks), target_modules=targets).save_pretrained(str(output))
    save_file(tensors, output / FILES[1], metadata={"format": "pt"})


def stored_dtype(source: Path) -> torch.dtype | None:
    """bfloat16 where the checkpoint is stored so, else float32."""
    from safetensors import safe_open

    file: Any
    with safe_open(source / "model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return torch.bfloat16 if "BF16" in kinds else None


# Two trainings of one base, side by side, into one checkpoint: drawing from one folder, reading from the other.
#
# Sound because the two touch nothing in common: drawing trains the conditioner and the denoiser over the transformer's
# lower layers, reading trains the projection and an adapter on layers above those.


def join(drawing: Path, reading: Path, output: Path, name: str = "") -> None:
    """Write `output`: conditioner, denoiser and a connector's queries of `drawing`, everything else of `reading`.

    Raises CheckpointError when the two are not the same model or the reading one changed layers that drawing reads,
    InputError where `output` is one of them or a folder that holds no model.
    """
    checkpoint.check_model_output(output, drawing, reading)
    draws, reads = checkpoint.load(drawing), checkpoint.load(reading)
    if draws.config.objective == "ar":
        raise CheckpointError(f"{drawing}: one transformer reads and draws codes, there are no halves to join")
    of_reading = {"name": "", "sampler": draws.config.sampler, "vision": reads.config.vision, "edits": False}
    ours, theirs = (dataclasses.replace(m.config, **of_reading) for m in (draws, reads))
    if ours != theirs:
        raise CheckpointError(f"{reading}: config.json differs from that of {drawing}; only one model can be joined")
    if draws.tokenizer_json != reads.tokenizer_json:
        raise CheckpointError(f"{reading}: tokenizer.json differs from that of {drawing}; only one model can be joined")
    if not torch.equal(draws.transformer.embed_tokens.weight, reads.transformer.embed_tokens.weight):
        raise CheckpointError(f"{reading}: the transformer's embedding differs from {drawing}, and drawing reads it")
    deepest = max(draws.config.denoiser.prefix_layers)
    for index in range(deepest + 1):
        both = (m.transformer.layers[index].parameters() for m in (draws, reads))
        if not all(torch.equal(a, b) for a, b in zip(*both, strict=True)):
            raise CheckpointError(f"{reading}: transformer layer {index} differs from {drawing}, and drawing reads it")
    reads.conditioner.load_state_dict(draws.conditioner.state_dict())
    reads.denoiser.load_state_dict(draws.denoiser.state_dict())
    kept, learned = reads.transformer.queries, draws.transformer.queries
    if kept is not None and learned is not None:  # a connector's, by drawing alone
        kept.load_state_dict(learned.state_dict())
    edits = draws.config.edits and _same(draws.image_encoder.state_dict(), reads.image_encoder.state_dict())
    reads.config = dataclasses.replace(draws.config, name=name or output.name, vision=reads.config.vision, edits=edits)
    checkpoint.save(reads, output, torch.bfloat16)


def _same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Editing was taught with one projection of pictures, and is lost with another."""
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
