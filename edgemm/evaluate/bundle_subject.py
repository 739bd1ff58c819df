"""A bundle under test, through the runtime a user has: no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import edgemm
from edgemm.errors import InputError
from edgemm.evaluate.subject import MAX_NEW_TOKENS, DrawSettings

__all__ = ["BundleSubject"]


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
            return loops.denoise.image_size
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
