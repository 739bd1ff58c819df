"""Which parts of a model a stage trains, by the names a recipe uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from edgemm.config import ModelConfig
from edgemm.model.unified import Unified
from edgemm.train.recipe import Recipe

__all__ = ["own_the_transformer", "parts_of", "trained_parts"]


def trained_parts(model: Unified, names: Sequence[str]) -> nn.ModuleDict:
    """The named parts, which train.recipe.PARTS lists."""
    parts: dict[str, nn.Module] = {"transformer": model.transformer}
    if model.config.objective == "flow":
        parts |= {"conditioner": model.conditioner, "denoiser": model.denoiser}
        if model.transformer.queries is not None:
            parts["queries"] = model.transformer.queries
        parts["projection"] = model.image_encoder  # the eye in it, if it has a pretrained one, stays frozen
    return nn.ModuleDict({name: parts[name] for name in names if name in parts})


def parts_of(recipe: Recipe, config: ModelConfig, default: Sequence[str] = ()) -> tuple[str, ...]:
    """What a stage trains; a dense model cannot learn to draw without its transformer, a model of codes nothing."""
    names = recipe.train or tuple(default)
    needed = config.objective == "ar" or (config.experts == "dense" and recipe.task != "read")
    if needed and recipe.task != "autoencode" and "transformer" not in names:
        names = (*names, "transformer")
    if config.experts == "connector" and recipe.task in ("draw", "edit", "joint") and "queries" not in names:
        names = (*names, "queries")
    return names


def own_the_transformer(model: Unified) -> None:
    """A transformer that learns is stored in the checkpoint: it is no longer its base's."""
    if model.config.base:
        model.config = dataclasses.replace(model.config, base="", origin=model.config.base)
