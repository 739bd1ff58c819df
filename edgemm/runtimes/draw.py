"""How one model draws: by denoising, or token by token, whichever its bundle has a loop for.

It turns a prompt and its options into a request and hands it with the engines to that loop (denoise_loop.py,
codes_loop.py).  Text is in text.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from edgemm.bundle.bundle import UNCONDITIONAL
from edgemm.bundle.loops import DenoiseLoop, ImageTokensLoop, Limits
from edgemm.bundle.prompt import (
    check_length,
    drawing_prompt,
    image_prompt,
    negative_drawing_prompt,
    unconditional_prompt,
)
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.errors import BundleError, InputError, UsageError
from edgemm.runtimes import schedule
from edgemm.runtimes.adapters import read_tensors
from edgemm.runtimes.backend.engine import Arrays
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.codes_loop import CodesClock, CodesEngines, CodesRequest, draw_codes
from edgemm.runtimes.denoise_loop import DrawClock, DrawEngines, DrawRequest, check_noise, draw
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_encoder import ImageReader
from edgemm.runtimes.options import DrawingOptions, check_whole
from edgemm.runtimes.results import DenoiseProgress, ImageResult
from edgemm.runtimes.sampling import Sampling

__all__ = ["ImageGenerator", "Drawn", "codes_request", "denoise_request"]

LARGEST_GUIDANCE = 100.0
PARTS = ("transformer", "conditioner", "denoiser", "image_decoder")
Cancelled = Callable[[], bool]
Drawn = Iterator[DenoiseProgress | ImageResult]


class ImageGenerator:
    """The drawing half of a model."""

    def __init__(self, engines: Engines, reader: ImageReader, tokenizer: Tokenizer, budget: CacheBudget) -> None:
        self._engines, self._reader, self._tokenizer, self._budget = engines, reader, tokenizer, budget
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
            codes = codes_request(options, prompt, codes_loop, limits, self._tokenizer)
            return lambda cancelled: self._draw_codes(codes, codes_loop, cancelled, codes_clock)
        if loops.denoise is None:
            raise BundleError(f"bundle {name} does not draw: it has no denoise loop and no image_tokens loop")
        loop, clock, picture, count = loops.denoise, DrawClock(), None, 0
        if options.image is not None:
            assert loops.text is not None  # manifest.py saw to it
            picture, count = self._reader.picture(options.image, loops.text), loops.text.image_token_count
        request = denoise_request(options, prompt, loop, limits, self._tokenizer, count)
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
            request = replace(request, negative=negative_drawing_prompt("", loop.template, self._tokenizer))
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
        tokens = self._reader.encode([picture], text)
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


# A prompt and its options as what the loops want.


def denoise_request(
    options: DrawingOptions, prompt: str, loop: DenoiseLoop, limits: Limits, tokenizer: Tokenizer, picture: int = 0
) -> DrawRequest:
    """What the denoise loop wants, or UsageError; `picture` is how many tokens the one to edit takes."""
    _refuse(options, "draws by denoising", "temperature", "top_k", "top_p")
    steps = loop.num_inference_steps if options.num_inference_steps is None else options.num_inference_steps
    check_whole("num_inference_steps", steps, 1, limits.max_steps)
    scale = _guidance(options, loop.guidance_scale)
    tokens, negative = drawing_prompt(prompt, loop.template, tokenizer, picture), None
    if options.negative_prompt is not None:
        if scale == 1:
            raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
        negative = drawing_prompt(options.negative_prompt, loop.template, tokenizer)
    check_length(max(len(tokens), len(negative or ())), limits)
    if options.noise is None:
        noises = tuple(schedule.initial_noise(seed, loop.token_count, loop.token_width) for seed in options.seeds)
    else:
        noises = check_noise(options.noise, options.num_images, loop)
    return DrawRequest(tokens, steps, scale, options.seeds, noises, options.preview, negative)


def codes_request(
    options: DrawingOptions, prompt: str, loop: ImageTokensLoop, limits: Limits, tokenizer: Tokenizer
) -> CodesRequest:
    """What the image_tokens loop wants."""
    _refuse(options, "draws token by token", "num_inference_steps", "noise", "preview")
    scale = _guidance(options, loop.guidance_scale)
    tokens = image_prompt(prompt, loop, tokenizer)
    blank = None if scale == 1 else unconditional_prompt(tokens, options.negative_prompt, loop, tokenizer)
    check_length(max(len(tokens), len(blank or ())) + loop.length, limits)
    sampling = Sampling(
        loop.temperature if options.temperature is None else options.temperature,
        loop.top_k if options.top_k is None else options.top_k,
        loop.top_p if options.top_p is None else options.top_p,
    )
    return CodesRequest(tokens, blank, scale, sampling, options.seeds)


def _guidance(options: DrawingOptions, default: float) -> float:
    scale = default if options.guidance_scale is None else options.guidance_scale
    if not (math.isfinite(scale) and 0 <= scale <= LARGEST_GUIDANCE):
        raise UsageError(f"guidance_scale is {scale}, expected 0 to {LARGEST_GUIDANCE:g}")
    return float(scale)


def _refuse(options: DrawingOptions, how: str, *names: str) -> None:
    """Options that mean nothing to this bundle's way of drawing."""
    given = [name for name in names if getattr(options, name) is not None and getattr(options, name) is not False]
    if given:
        raise UsageError(f"{', '.join(given)}: this bundle {how} and has no such option")
