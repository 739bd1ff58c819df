"""Optimizers, learning rates and averaged weights. Pure book-keeping: no data, no files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgemm.model.config import ModelConfig
from edgemm.model.unified import Unified
from edgemm.train.recipe import Answering, Flow, Parts, Recipe

__all__ = ["Average", "make_optimizers", "rate", "own_the_transformer", "parts_of", "trained_parts"]


def make_optimizers(parameters: Iterable[tuple[str, nn.Parameter]], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW on everything, or Muon on the matrices of repeated blocks and AdamW on the rest.

    Each group keeps its full rate as `peak`, which the loop scales by rate(step).
    """
    named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    matrices = []
    if recipe.optimizer == "muon":
        matrices = [(name, p) for name, p in named if p.ndim == 2 and _is_repeated(name)]
    chosen = {name for name, _ in matrices}
    rest = [p for name, p in named if name not in chosen]
    decayed, free = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon([p for _, p in matrices], lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _is_repeated(name: str) -> bool:
    """A matrix of the denoiser's blocks or of the transformer's layers, which Muon's equal steps suit."""
    block, layer = ".blocks." in name and "modulation" not in name, ".layers." in name and "lora_" not in name
    return block or layer


def rate(step: int, recipe: Recipe) -> float:
    """Share of the full learning rate at a step: linear warm-up, constant, then a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    start = recipe.steps * (1 - recipe.decay)
    if step < start:
        return warm
    progress = (step - start) / max(1.0, recipe.steps - start)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of parameters, with a warm-up so that early steps are forgotten."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(parameters)
        averages = [self.tensors[name] for name in named]
        current = [p.detach() for p in named.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def swap(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Exchange averages and parameters, in place; a second call undoes the first."""
        for name, parameter in parameters:
            kept: Tensor = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


# Which parts of a model a stage trains, by the names a recipe uses.


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
    names = (recipe.train if isinstance(recipe, Parts) else ()) or tuple(default)
    draws, reads = isinstance(recipe, Flow), isinstance(recipe, Answering)
    needed = (config.objective == "ar" and (draws or reads)) or (config.experts == "dense" and draws)
    if needed and "transformer" not in names:
        names = (*names, "transformer")
    if config.experts == "connector" and draws and "queries" not in names:
        names = (*names, "queries")
    return names


def own_the_transformer(model: Unified) -> None:
    """A transformer that learns is stored in the checkpoint: it is no longer its base's."""
    if model.config.base:
        model.config = dataclasses.replace(model.config, base="", origin=model.config.base)
