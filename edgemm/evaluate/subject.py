"""What is evaluated: something that draws prompts and reads pictures, whatever runs it.

A folder with config.json is a torch checkpoint, one with manifest.json a bundle.  Both draw from the same noise and
answer greedily, so their scores may be compared sample by sample.  torch is imported for a checkpoint only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

import edgemm
from edgemm.errors import InputError

__all__ = ["MAX_NEW_TOKENS", "DrawSettings", "Subject", "BundleSubject"]

MAX_NEW_TOKENS = 32  # the longest label is about 20 tokens


@dataclass(frozen=True)
class DrawSettings:
    """Where None, the model's own default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None


class Subject(Protocol):
    """A model under test."""

    name: str
    kind: str  # "checkpoint" or "bundle"
    sha256: str  # of the checkpoint's weights, or of the bundle's manifest, which holds the hash of all else

    @property
    def drawing_size(self) -> int:
        """Pixels a side of what it draws."""
        ...

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """uint8 (b, H, W, 3), one picture a prompt, each a function of its prompt and seed alone."""
        ...

    def read(self, picture: np.ndarray, question: str) -> str:
        """The greedy reply to a question about a picture, uint8 (H, W, 3)."""
        ...


# A bundle under test, through the runtime a user has: no torch.


class BundleSubject:
    kind = "bundle"

    def __init__(self, path: Path, settings: DrawSettings, device: str, threads: int | None) -> None:
        self.model = edgemm.load(path, device=device, threads=threads)
        self.settings = settings
        self.name = self.model.manifest.name
        self.sha256 = hashlib.sha256(self.model.bundle.file("manifest.json").read_bytes()).hexdigest()

    @property
    def drawing_size(self) -> int:
        loops = self.model.manifest.loops
        if loops.denoise is not None:
            return loops.denoise.height
        if loops.image_tokens is not None:
            return loops.image_tokens.image_height
        raise InputError(f"bundle {self.name} does not draw; ask for --suite read")

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        steps, scale = self.settings.num_inference_steps, self.settings.guidance_scale
        drawn = [
            self.model.generate_image(prompt, num_inference_steps=steps, guidance_scale=scale, seed=seed)
            for prompt, seed in zip(prompts, seeds)
        ]
        return np.stack([result.image.to_array() for result in drawn])

    def read(self, picture: np.ndarray, question: str) -> str:
        return self.model.generate_text(question, images=[picture], max_new_tokens=MAX_NEW_TOKENS).text
