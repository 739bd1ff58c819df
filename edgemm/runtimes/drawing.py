"""How one model draws: by denoising, or token by token, whichever its bundle has a loop for.

It turns a prompt and its options into a request and hands it with the engines to that loop (denoise_loop.py,
image_tokens_loop.py).  Talking is in talking.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from edgemm.bundle import UNCONDITIONAL
from edgemm.errors import BundleError, InputError
from edgemm.loops import DenoiseLoop, ImageTokensLoop
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.denoise_loop import DrawClock, DrawEngines, DrawRequest, draw
from edgemm.runtimes.drawing_options import DrawingOptions
from edgemm.runtimes.engine import Arrays
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.events import DenoiseProgress
from edgemm.runtimes.image_tokens_loop import CodesClock, CodesEngines, CodesRequest, draw_codes
from edgemm.runtimes.prompt import empty_drawing_prompt
from edgemm.runtimes.results import ImageResult
from edgemm.runtimes.sight import Sight
from edgemm.runtimes.tensor_file import read_tensors
from edgemm.tokenizer import Tokenizer

__all__ = ["Drawing", "Drawn"]

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
