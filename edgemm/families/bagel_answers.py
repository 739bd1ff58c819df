"""BAGEL's own loops in torch, told as its code has them: what the exported bundle is compared with.

A context is a cache and how much of it is used.  Nothing here is exported, and nothing of the runtime is used but the
noise that a seed stands for.
Axes: b batch, T slots, p numbers in a latent token, h, w rows and columns of latent tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.picture import load_picture, load_stretched
from edgemm.families.bagel_graphs import (
    BlockGraph,
    Conditioner,
    Denoiser,
    ImageDecoder,
    ImageEncoder,
    LatentEncoder,
    next_place,
)
from edgemm.families.bagel_layers import BagelModel
from edgemm.families.family import Drawn

__all__ = ["Answers", "Context", "guided"]

EMPTY = -1  # image_index of a word
# The published app's: text guidance 4 on top of picture guidance 1.5, which from words alone are one of 5.5
STEPS, SHIFT, GUIDANCE, INTERVAL = 50, 3.0, 1 + 1.5 * (4 - 1), (0.4, 1.0)
EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE, EDIT_INTERVAL = 4.0, 2.0, (0.0, 1.0)


class Context:
    """What was read so far, for reading on or for drawing after it."""

    def __init__(self, model: BagelModel, slots: int) -> None:
        sizes, self.model, self.used = model.sizes, model, 0
        shape, ledger = (1, sizes.kv_heads, slots, sizes.head_width), (1, 1, slots, 1)
        self.past = [*(torch.zeros(shape) for _ in range(2 * sizes.depth)), torch.zeros(ledger), torch.zeros(ledger)]
        self.graph = BlockGraph(model.language_model.model, model.language_model.lm_head)

    def text(self, ids: list[int]) -> Tensor:
        """Reads words; the logits (v) after the last."""
        return self._read(ids, torch.zeros(1, 1, self.model.sizes.width), [EMPTY] * len(ids), range(len(ids)))

    def picture(self, pixels: Tensor, start: int, end: int) -> None:
        """Reads a picture (1, 3, H, W) in [0, 1]."""
        tokens = ImageEncoder(self.model)(pixels)
        m = tokens.shape[1]
        self._read([start, *[0] * m, end], tokens, [EMPTY, *range(m), EMPTY], [m + 1] * (m + 2))

    def latents(self, latents: Tensor, denoiser: Denoiser) -> None:
        """Reads a picture's clean latents (1, p, h, w), in an empty context."""
        _, *block = denoiser(latents, torch.zeros(1), *self.prefix())
        for cache, rows in zip(self.past, block, strict=True):
            cache[:, :, : rows.shape[2]] = rows
        self.used = block[0].shape[2]

    def prefix(self) -> tuple[Tensor, ...]:
        """As the denoiser reads it."""
        condition = Conditioner(self.graph.inv_freq)
        kept = [cache[:, :, : max(self.used, 1)] for cache in self.past]
        return condition(*kept, torch.tensor([self.used]))

    @property
    def place(self) -> int:
        """Where the next token stands."""
        return int(next_place(torch.tensor([self.used]), *self.past[-2:]))

    def _read(self, ids: list[int], tokens: Tensor, index: list[int], limits: Any) -> Tensor:
        first = torch.tensor([self.used])
        logits, *self.past = self.graph(
            torch.tensor([ids]),
            tokens,
            torch.tensor([index]),
            first,
            torch.tensor([list(limits)]) + self.used,
            torch.tensor([len(ids) - 1]),
            *self.past,
        )
        self.used += len(ids)
        return logits[0]


class Answers:
    """A model with the four words that its code knows, as token ids."""

    def __init__(self, model: BagelModel, encode: Callable[[str], list[int]], reading_side: int) -> None:
        self.model, self.encode, self.reading_side = model, encode, reading_side
        self.open, self.close, *vision = (
            encode(word)[0] for word in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        )
        self.vision = vision
        self.denoiser = Denoiser(model, *vision)

    def reply(self, ids: list[int], images: list[np.ndarray], count: int) -> list[int]:
        """The likeliest tokens after the pictures and the words after them."""
        block = (self.reading_side // self.model.sizes.vision_patch) ** 2 + 2
        context = Context(self.model, len(ids) + count)
        for image in images:
            context.picture(self._seen(image), *self.vision)
        logits, said = context.text(ids[block * len(images) :]), []
        while True:
            said.append(int(logits.argmax()))
            if len(said) == count:
                return said
            logits = context.text(said[-1:])

    def draw(self, drawn: Drawn) -> Tensor:
        """Pixels (3, H, W), not clipped."""
        words = [self.open, *self.encode(drawn.prompt), self.close]
        whole, text_free, image_free = (Context(self.model, 64 + 2 * len(words) + 2 * 4096) for _ in range(3))
        edits, latents = drawn.image is not None, drawn.noise[None]
        if edits:
            pixels = load_stretched(drawn.image, drawn.height, drawn.width)
            mean, deviation = LatentEncoder(self.model)(torch.from_numpy(pixels)[None])
            clean = mean + deviation * drawn.picture_noise
            for context in (whole, text_free):
                context.latents(clean, self.denoiser)
                context.picture(self._seen(drawn.image), *self.vision)
        whole.text(words)
        image_free.text(words)
        scales = (drawn.guidance, EDIT_IMAGE_GUIDANCE if edits else 1.0)
        low, high = EDIT_INTERVAL if edits else INTERVAL
        prefixes = [context.prefix() for context in (whole, text_free, *([image_free] if edits else []))]
        times = torch.linspace(1, 0, drawn.steps)
        times = SHIFT * times / (1 + (SHIFT - 1) * times)
        for now, later in pairwise(times):
            guides = low < now <= high and scales != (1.0, 1.0)
            rows = prefixes if guides else prefixes[:1]
            found = [self.denoiser(latents, now[None], *prefix)[0][0].flatten(1).T for prefix in rows]
            if guides:
                renorm = "text_channel" if edits else "global"
                velocity = guided(found[0], found[1], found[-1] if edits else found[0], scales, renorm, 0.0)
            else:
                velocity = found[0]
            latents = latents - (now - later) * velocity.T.view_as(latents)
        return ImageDecoder(self.model)(latents)[0]

    def _seen(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(load_picture(image, self.reading_side, fit="stretch"))[None]


def guided(
    conditional: Tensor,
    text_free: Tensor,
    image_free: Tensor,
    scales: tuple[float, float],  # of text, of the picture
    renorm: str,  # "global", "channel" or "text_channel"
    least: float,
) -> Tensor:
    """Of velocities (n, p)."""
    found = text_free + scales[0] * (conditional - text_free)
    if renorm == "text_channel":
        found = found * _factor(conditional, found, -1, least)
    if scales[1] > 1:
        found = image_free + scales[1] * (found - image_free)
    if renorm != "text_channel":
        found = found * _factor(conditional, found, None if renorm == "global" else -1, least)
    return found


def _factor(wanted: Tensor, found: Tensor, axis: int | None, least: float) -> Tensor:
    lengths = [x.norm() if axis is None else x.norm(dim=axis, keepdim=True) for x in (wanted, found)]
    return (lengths[0] / (lengths[1] + 1e-8)).clamp(least, 1)
