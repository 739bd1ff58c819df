"""A torch checkpoint under test; noise, picture preparation and decoding are those of the runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgemm.bundle.node_link import Graph
from edgemm.bundle.picture import load_picture
from edgemm.errors import InputError, UsageError
from edgemm.evaluate.subject import MAX_NEW_TOKENS, NO_CLIPS, DrawSettings, Shown
from edgemm.model.checkpoint import load, weights_hash
from edgemm.model.codes import Choose
from edgemm.model.config import SamplerConfig
from edgemm.model.unified import Asked, Unified
from edgemm.quantize.simulated import QuantizedLinear
from edgemm.runtimes.sampling import Sampling, next_token
from edgemm.runtimes.schedule import initial_noise

__all__ = ["CheckpointSubject", "by_lot"]

AT_ONCE = 16  # questions: more are no faster, and take more memory
DRAWING = ("conditioner.", "denoiser.")  # no question is answered by these


class CheckpointSubject:
    kind = "checkpoint"

    def __init__(self, path: Path, settings: DrawSettings, threads: int | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._hold(load(path), settings, weights_hash(path, with_spec=True))

    @classmethod
    def of(cls, model: Unified, settings: DrawSettings) -> CheckpointSubject:
        """A model in memory, which no file's hash stands for."""
        subject = cls.__new__(cls)
        subject._hold(model, settings, "")
        return subject

    def _hold(self, model: Unified, settings: DrawSettings, sha256: str) -> None:
        self.model, self.name, self.sha256 = model, model.config.name, sha256
        if model.config.objective == "ar" and settings.num_inference_steps is not None:
            raise UsageError("num_inference_steps: this checkpoint draws token by token and has no such option")
        chosen = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
        self.sampler = self.model.with_sampler(**chosen)
        alike = _rounded_together(model)
        self.at_once = 1 if any(not name.startswith(DRAWING) for name in alike) else AT_ONCE
        self.draws_alone = bool(alike)

    @property
    def drawing_size(self) -> int:
        if self.model.config.image_tokens.frames > 1:
            raise InputError(f"checkpoint {self.name} draws clips, {NO_CLIPS}")
        return self.model.config.image_tokens.image_size

    def draw(self, prompts: Sequence[str | Graph], seeds: Sequence[int]) -> np.ndarray:
        if self.draws_alone and len(prompts) > 1:
            return np.concatenate([self.draw([one], [seed]) for one, seed in zip(prompts, seeds, strict=True)])
        graphs = [prompt if isinstance(prompt, Graph) else None for prompt in prompts]
        words = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
        if self.model.config.objective == "ar":
            words = [prompt if isinstance(prompt, str) else prompt.to_text().strip() for prompt in prompts]
            pixels = self.model.draw_codes(words, self.sampler, by_lot(self.sampler, seeds)).numpy()
        else:
            tokens = self.model.config.image_tokens
            noise = np.stack([initial_noise(seed, tokens.token_count, tokens.token_width) for seed in seeds])
            pixels = self.model.draw(
                words, torch.from_numpy(noise), self.sampler, graphs=graphs
            ).numpy()  # (b, 3, H, W)
        return np.rint(pixels * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()

    def read(self, asked: Iterable[tuple[Shown, str]]) -> Iterator[str]:
        """Some at a time, which is several times as fast as one after the other."""
        left = iter(asked)
        while some := list(islice(left, self.at_once)):
            replies = self.model.replies([self._asked(*one) for one in some], MAX_NEW_TOKENS)
            yield from map(self.model.tokenizer.decode, replies)

    def _asked(self, picture: Shown, question: str) -> Asked:
        config = self.model.config
        graph = picture if isinstance(picture, Graph) else None
        is_clip = isinstance(picture, np.ndarray) and picture.ndim == 4
        frames = picture.pictures if isinstance(picture, Graph) else picture if is_clip else picture[None]
        squares = [load_picture(frame, config.vision.image_size, config.background) for frame in frames]
        pixels = torch.from_numpy(np.stack(squares)) if squares else None
        return Asked(question, pixels, graph, is_clip)


def by_lot(sampler: SamplerConfig, seeds: Sequence[int]) -> Choose:
    """Codes as the runtime picks them: picture number i takes one number of PCG64(seeds[i]) a code."""
    sampling = Sampling(sampler.temperature, sampler.top_k, sampler.top_p)
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def choose(scores: Tensor) -> Tensor:
        rows = zip(scores.numpy(), generators, strict=True)
        return torch.tensor([next_token(row, (), sampling, generator) for row, generator in rows])

    return choose


def _rounded_together(model: Unified) -> list[str]:
    """Quantized layers that have one scale for a whole batch: what comes of a row depends on the others."""
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, QuantizedLinear)]
    return [name for name, part in layers if part.layer.activations == "tensor"]
