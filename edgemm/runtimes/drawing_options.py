"""How a picture is to be drawn, as a caller says it: one place for names, defaults and checks of every way to ask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.errors import UsageError
from edgemm.loops import DenoiseLoop, ImageTokensLoop, Limits
from edgemm.picture import PictureSource
from edgemm.runtimes import schedule
from edgemm.runtimes.denoise_loop import DrawRequest, check_noise
from edgemm.runtimes.image_tokens_loop import CodesRequest
from edgemm.runtimes.prompt import check_length, drawing_prompt, image_prompt, unconditional_prompt
from edgemm.runtimes.sampling import Sampling
from edgemm.tokenizer import Tokenizer

__all__ = ["MOST_PICTURES", "DrawingOptions", "check_whole"]

MOST_PICTURES = 64  # of one prompt in one call
LARGEST_GUIDANCE = 100.0


@dataclass(frozen=True, eq=False)
class DrawingOptions:
    """The options of Model.stream_image and its relatives; what is None is the bundle's own default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None  # 1 leaves the unconditional half out
    seed: int = 0  # of the first picture; the next have the next ones
    num_images: int = 1
    noise: np.ndarray | None = None  # (n, p) or (num_images, n, p), in the place of the seeds' noise
    preview: bool = False  # show what each step expects
    timeout_s: float | None = None
    temperature: float | None = None  # this and the next two: of models that draw token by token
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str | None = None  # what guidance leads away from, instead of the empty prompt
    image: PictureSource | None = None  # a picture to edit

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_whole("num_images", self.num_images, 1, MOST_PICTURES)

    def denoise_request(
        self, prompt: str, loop: DenoiseLoop, limits: Limits, tokenizer: Tokenizer, picture: int = 0
    ) -> DrawRequest:
        """What the denoise loop wants, or UsageError; `picture` is how many tokens the one to edit takes."""
        self._refuse("draws by denoising", "temperature", "top_k", "top_p")
        steps = loop.num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        check_whole("num_inference_steps", steps, 1, limits.max_steps)
        scale = self._guidance(loop.guidance_scale)
        tokens, negative = drawing_prompt(prompt, loop.template, tokenizer, picture), None
        if self.negative_prompt is not None:
            if scale == 1:
                raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
            negative = drawing_prompt(self.negative_prompt, loop.template, tokenizer)
        check_length(max(len(tokens), len(negative or ())), limits)
        if self.noise is None:
            noises = tuple(schedule.initial_noise(each, loop.token_count, loop.token_width) for each in self._seeds)
        else:
            noises = check_noise(self.noise, self.num_images, loop)
        return DrawRequest(tokens, steps, scale, self._seeds, noises, self.preview, negative)

    def codes_request(self, prompt: str, loop: ImageTokensLoop, limits: Limits, tokenizer: Tokenizer) -> CodesRequest:
        """What the image_tokens loop wants."""
        self._refuse("draws token by token", "num_inference_steps", "noise", "preview")
        scale = self._guidance(loop.guidance_scale)
        tokens = image_prompt(prompt, loop, tokenizer)
        blank = None if scale == 1 else unconditional_prompt(tokens, self.negative_prompt, loop, tokenizer)
        check_length(max(len(tokens), len(blank or ())) + loop.length, limits)
        sampling = Sampling(
            loop.temperature if self.temperature is None else self.temperature,
            loop.top_k if self.top_k is None else self.top_k,
            loop.top_p if self.top_p is None else self.top_p,
        )
        return CodesRequest(tokens, blank, scale, sampling, self._seeds)

    @property
    def _seeds(self) -> tuple[int, ...]:
        return tuple(int(self.seed) + index for index in range(self.num_images))

    def _guidance(self, default: float) -> float:
        scale = default if self.guidance_scale is None else self.guidance_scale
        if not (math.isfinite(scale) and 0 <= scale <= LARGEST_GUIDANCE):
            raise UsageError(f"guidance_scale is {scale}, expected 0 to {LARGEST_GUIDANCE:g}")
        return float(scale)

    def _refuse(self, how: str, *names: str) -> None:
        """Options that mean nothing to this bundle's way of drawing."""
        given = [name for name in names if getattr(self, name) is not None and getattr(self, name) is not False]
        if given:
            raise UsageError(f"{', '.join(given)}: this bundle {how} and has no such option")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
