"""Optimizers, learning rates and averaged weights. Pure book-keeping: no data, no files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgemm.errors import UsageError
from edgemm.model.config import ModelConfig
from edgemm.model.unified import Unified
from edgemm.train.recipe import Answering, Flow, Parts, Recipe

__all__ = ["Average", "make_optimizers", "rate", "own_the_transformer", "part_names", "trained_parts"]


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
            Muon([p for _, p in matrices], lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


SMALL = 1 << 16  # numbers of a matrix up to which several at once are faster than one by one


class Muon(torch.optim.Muon):
    """torch's, with small matrices of one shape orthogonalized together: each of a `micro`'s 66 is 15 products that
    keep no processor busy.  Larger ones go alone.  It keeps what torch's keeps, so a state of either goes on with the
    other."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if any(hasattr(parameter, "full_tensor") for group in self.param_groups for parameter in group["params"]):
            return super().step(closure)  # sharded over processes
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])  # parameters, gradients, momenta
            self._init_group(group, *lists)
            alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
            for one in zip(*lists, strict=True):
                alike.setdefault(one[0].shape, []).append(one)
            for shape, some in alike.items():
                for together in [some] if shape.numel() <= SMALL else [[one] for one in some]:
                    _move(group, together)
        return loss


def _move(group: dict[str, Any], some: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """One step of parameters of one shape, by their gradients and momenta."""
    wanted = []
    for _, gradient, momentum in some:
        momentum.lerp_(gradient, 1 - group["momentum"])
        wanted.append(gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum)
    matrices = torch.stack(wanted) if len(wanted) > 1 else wanted[0]
    updates = orthogonal(matrices, group["ns_coefficients"], group["ns_steps"], group["eps"])
    rows, columns = updates.shape[-2:]
    for (parameter, _, _), update in zip(some, updates.reshape(-1, rows, columns), strict=True):
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """One matrix (rows, columns), or several (count, rows, columns), with singular values near 1, in bfloat16, by the
    iteration of Newton and Schulz (arXiv:2502.16982)."""
    a, b, c = coefficients
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    plus_product = torch.addmm if x.ndim == 2 else torch.baddbmm  # a product alone is slow as one of several
    for _ in range(steps):
        gram = x @ x.mT
        x = plus_product(x, plus_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


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
    """The named parts, which train.recipe.PARTS lists. UsageError for one that a model which draws does not have."""
    parts: dict[str, nn.Module] = {"transformer": model.transformer}
    if model.config.objective == "flow":
        parts |= {"conditioner": model.conditioner, "denoiser": model.denoiser}
        if model.transformer.queries is not None:
            parts["queries"] = model.transformer.queries
        parts["projection"] = model.image_encoder  # the eye in it, if it has a pretrained one, stays frozen
        if missing := [name for name in names if name not in parts]:
            raise UsageError(f"recipe: train names {', '.join(missing)}, {model.config.name} has: {', '.join(parts)}")
    return nn.ModuleDict({name: parts[name] for name in names if name in parts})


def part_names(recipe: Recipe, config: ModelConfig, default: Sequence[str] = ()) -> tuple[str, ...]:
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
