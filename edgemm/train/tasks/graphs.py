"""Teaching a model to answer about graphs and to draw them, from nothing, all its parts together.

Cross-entropy on answers, and on all edges of other graphs told in words, plus flow matching on the pictures of graphs
(data/graphs.py).  One answer is one colour; a graph that is told whole teaches whose every edge is.  A graph is read as
rows or as text, whichever the model does.  Which node has which id is dealt anew at every step, and which colour, lest
answers be known by heart; edges may be left out.  The first steps may tell in words what nodes show, so that whose an
edge is is learned before pictures are.  What a batch holds is a function of (seed, step, place) alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemm.errors import InputError
from edgemm.evaluate.graph_suite import Graphs, graph_of, in_words, recoloured, replies_to, told_whole, with_edges
from edgemm.model import checkpoint, flow
from edgemm.model.unified import Unified
from edgemm.train.ranks import Share
from edgemm.train.recipe import GraphRecipe
from edgemm.train.samples import batch_rows
from edgemm.train.tasks.draw import FOLLOW_EVERY, rows_to_show

__all__ = ["GraphTask"]

FITTED = 256  # prompts that the whitening is fitted to


class GraphTask:
    """What the loop trains; see train/loop.py for the interface."""

    def __init__(self, model: Unified, recipe: GraphRecipe, share: Share | None = None) -> None:
        self.model, self.recipe, self.share = model, recipe, share or Share()
        self.graphs = Graphs(recipe.data, recipe.splits, model.config.vision.image_size)
        if not self.graphs.asked or not (self.graphs.drawn or not recipe.flow_weight):
            raise InputError(f"{recipe.data}: no graphs to ask about, or none to draw, in {list(recipe.splits)}")
        self.told = [graph_of(sample) for sample in self.graphs.drawn]
        parts: dict[str, nn.Module] = {"transformer": model.transformer, "projection": model.image_encoder}
        if model.graph_encoder is not None:
            parts["graph"] = model.graph_encoder
        if recipe.flow_weight:
            parts |= {"conditioner": model.conditioner, "denoiser": model.denoiser}
            self._fit(follow=False)
        self.trained = nn.ModuleDict(parts).requires_grad_(True)
        model.image_encoder.keep_what_was_taught()
        self.description = f"{len(self.graphs.asked)} questions about graphs, {len(self.told)} graphs to draw"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.trained.named_parameters() if parameter.requires_grad)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self.model.conditioner.named_buffers(prefix="conditioner")

    def prepare(self) -> None:
        """Nothing comes before the first step."""

    def loss(self, step: int) -> Tensor:
        if self.recipe.flow_weight and step and step % FOLLOW_EVERY == 0:
            self._fit(follow=True)
        loss = self.reading_loss(step)
        return loss + self.recipe.flow_weight * self.flow_loss(step) if self.recipe.flow_weight else loss

    def reading_loss(self, step: int) -> Tensor:
        logits, targets, _ = self._replies(step)
        return nn.functional.cross_entropy(logits.float(), targets)

    def flow_loss(self, step: int) -> Tensor:
        recipe, tokens = self.recipe, self.model.config.image_tokens
        mine = self.share.of(recipe.batch)
        rows = batch_rows(len(self.told), recipe.batch // recipe.noises, recipe.seed, step)
        rows = np.repeat(rows, recipe.noises)[mine]
        random = np.random.default_rng([recipe.seed, step, 5, mine.start])
        noise = torch.from_numpy(
            random.standard_normal((len(rows), tokens.token_count, tokens.token_width), dtype=np.float32)
        )
        normal = torch.from_numpy(random.standard_normal(len(rows), dtype=np.float32))
        time = flow.logit_normal_times(normal, recipe.time_mean, recipe.time_spread).to(self.model.device)
        graphs = {int(row): self._edged(row, random) for row in dict.fromkeys(rows)}  # read once, whoever shares it
        order = [-1, *graphs]  # -1: without a prompt
        places = [order.index(-1 if random.random() < recipe.drop_prompt else row) for row in rows]
        pixels = torch.stack([self.graphs.picture(self.graphs.drawn[row].id) for row in rows])
        with torch.no_grad():
            clean = self.model.to_tokens(_fitted(pixels, tokens.image_size).to(self.model.device))
        cached = self.model.prompt_cache([""] * len(order), graphs=[None, *graphs.values()], learn=True)
        prefix = self.model.conditioner(*cached).of(torch.tensor(places, device=clean.device))
        found = self.model.denoiser(flow.noised(clean, noise.to(clean.device), time), time, prefix)
        return flow.velocity_loss(found, clean, time, recipe.loss_floor).mean()

    @torch.no_grad()
    def measures(self, step: int) -> dict[str, float]:
        logits, targets, _ = self._replies(step)
        found = {"token_accuracy": (logits.argmax(-1) == targets).float().mean().item()}
        if self.recipe.flow_weight:
            found["flow"] = self.flow_loss(step).item()
        return found

    def samples(self, model: Unified) -> Tensor | None:
        if not self.recipe.flow_weight:
            return None
        tokens = model.config.image_tokens
        noise = torch.randn(16, tokens.token_count, tokens.token_width, generator=torch.Generator().manual_seed(0))
        told = [self.told[row] for row in rows_to_show(len(self.told))]
        return model.draw([""] * 16, noise.to(model.device), graphs=told)

    def save(self, path: Path) -> None:
        checkpoint.save(self.model, path, torch.bfloat16)

    def _edged(self, row: int, random: np.random.Generator):
        return with_edges(self.told[row], self.recipe.edges, random)

    def _replies(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        mine = self.share.of(recipe.batch)
        rows = batch_rows(len(self.graphs.asked), recipe.batch, recipe.seed, step)[mine]
        random = np.random.default_rng([recipe.seed, step, 4, mine.start])
        asked = []
        for row in rows:
            one = recoloured(self.graphs.asked[row], self.graphs, random)
            one = in_words(one) if step < recipe.words_share * recipe.steps else one
            graph = with_edges(one.graph, recipe.edges, random)
            tell = random.random() < recipe.tell_share
            asked.append(told_whole(one, graph) if tell else dataclasses.replace(one, graph=graph))
        return replies_to(self.model, asked, self.graphs, random)

    @torch.no_grad()
    def _fit(self, follow: bool) -> None:
        """The whitening, to what the transformer says of graphs by now."""
        random = np.random.default_rng(self.recipe.seed)
        told = [self._edged(row, random) for row in range(min(FITTED, len(self.told)))]
        pooled = [
            self.model.conditioner.pool(*self.model.prompt_cache([""] * len(some), graphs=some))
            for some in (told[start : start + 64] for start in range(0, len(told), 64))
        ]
        self.model.conditioner.fit_whitening(torch.cat(pooled), follow=follow)


def _fitted(pixels: Tensor, size: int) -> Tensor:
    """Pictures as large as they are drawn."""
    if pixels.shape[-1] == size:
        return pixels
    return nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
