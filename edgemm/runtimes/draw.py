"""How one model draws: by denoising, or token by token, whichever its bundle has a loop for.

It turns a prompt and its options into a request and hands it with the engines to that loop (denoise_loop.py,
codes_loop.py).  Talking is in text.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgemm.bundle.bundle import UNCONDITIONAL
from edgemm.bundle.loops import DenoiseLoop, ImageTokensLoop, Limits
from edgemm.bundle.picture import PictureSource
from edgemm.bundle.prompt import check_length, drawing_prompt, empty_drawing_prompt, image_prompt, unconditional_prompt
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.errors import BundleError, InputError, UsageError
from edgemm.runtimes import schedule
from edgemm.runtimes.adapters import read_tensors
from edgemm.runtimes.backend.engine import Arrays
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.codes_loop import CodesClock, CodesEngines, CodesRequest, draw_codes
from edgemm.runtimes.denoise_loop import DrawClock, DrawEngines, DrawRequest, check_noise, draw
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_encoder import Sight
from edgemm.runtimes.results import DenoiseProgress, ImageResult
from edgemm.runtimes.sampling import Sampling

__all__ = ["Drawing", "Drawn", "MOST_PICTURES", "DrawingOptions", "check_whole"]

PARTS = ("transformer", "conditioner", "denoiser", "image_decoder")
Cancelled = Callable[[], bool]
Drawn = Iterator[DenoiseProgress | ImageResult]


class Drawing:
    """The drawing half of a model."""

    def __init__(self, engines: Engines, sight: Sight, tokenizer: Tokenizer, budget: CacheBudget) -> None:
        self._engines, self._sight, self._tokenizer, self._budget = engines, sight, tokenizer, budget
        self._manifest = engines.bundle.manifest

    def start(self, prompt: str, options: DrawingOptions) -> Callable[[Cancelled], Drawn]:
        """What draws, given a `cancelled`; prompt and options are checked now."""
        name, loops, limits = self._manifest.name, self._manifest.loops, self._manifest.limits
        edits = loops.denoise is not None and loops.denoise.edits
        if options.image is not None and not edits:
            raise InputError(
                f"bundle {name} does not edit pictures: its model was trained to draw from words alone; "
                "leave `image` out, or ask about the picture with generate_text"
            )
        if loops.image_tokens is not None:
            codes_loop, codes_clock = loops.image_tokens, CodesClock()
            codes = options.codes_request(prompt, codes_loop, limits, self._tokenizer)
            return lambda cancelled: self._draw_codes(codes, codes_loop, cancelled, codes_clock)
        if loops.denoise is None:
            raise BundleError(f"bundle {name} does not draw: it has no denoise loop and no image_tokens loop")
        loop, clock, picture, count = loops.denoise, DrawClock(), None, 0
        if options.image is not None:
            assert loops.text is not None  # manifest.py saw to it
            picture, count = self._sight.picture(options.image, loops.text), loops.text.image_token_count
        request = options.denoise_request(prompt, loop, limits, self._tokenizer, count)
        return lambda cancelled: self._denoise(request, picture, loop, cancelled, clock)

    def codes_engines(self, loop: ImageTokensLoop) -> CodesEngines:
        """What draws token by token."""
        get, own_head = self._engines.get, loop.code_ids is None
        return CodesEngines(
            get("transformer"),
            get("vq_decoder"),
            get("image_head") if own_head else None,
            get("image_embedder") if own_head else None,
            None if loop.code_ids is None else self._engines.ids(loop.code_ids),
            self._manifest.limits.max_context,
        )

    def _denoise(
        self,
        request: DrawRequest,
        picture: np.ndarray | None,  # (3, S, S)
        loop: DenoiseLoop,
        cancelled: Cancelled,
        clock: DrawClock,
    ) -> Drawn:
        adapter = self._engines.adapters.active
        loaded, clock.load_s = self._engines.timed(PARTS, adapter)
        if picture is not None:
            request = replace(request, image_tokens=self._seen(picture, clock))
        if "transformer" in adapter.touched and request.negative is None:  # the bundle's own was made without it
            request = replace(request, negative=empty_drawing_prompt(loop.template, self._tokenizer))
        engines = DrawEngines(
            **loaded,
            unconditional=self._unconditional,
            max_context=self._manifest.limits.max_context,
            budget=self._budget,
        )
        yield from draw(request, loop, engines, cancelled, clock)

    def _seen(self, picture: np.ndarray, clock: DrawClock) -> np.ndarray:
        """The picture that is edited, as image tokens."""
        clock.load_s += self._engines.timed(("image_encoder",))[1]
        start, text = time.perf_counter(), self._manifest.loops.text
        assert text is not None
        tokens = self._sight.encode([picture], text)
        clock.image_encode_s = time.perf_counter() - start
        return tokens

    def _draw_codes(
        self, request: CodesRequest, loop: ImageTokensLoop, cancelled: Cancelled, clock: CodesClock
    ) -> Drawn:
        start = time.perf_counter()
        engines = self.codes_engines(loop)
        clock.load_s = time.perf_counter() - start
        yield from draw_codes(request, loop, engines, cancelled, clock)

    @cached_property
    def _unconditional(self) -> Arrays:
        return read_tensors(self._engines.bundle.file(UNCONDITIONAL))


# How a picture is to be drawn, as a caller says it: one place for names, defaults and checks of every way to ask.

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
