"""How one model draws: by denoising, or token by token, whichever its bundle has a loop for.

It has a prompt and its options made into a request (draw_requests.py) and hands it with the engines to that loop
(denoise_loop.py, codes_loop.py).  Text is in text.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from edgemm.bundle.bundle import UNCONDITIONAL
from edgemm.bundle.loops import DenoiseLoop, ImageTokensLoop
from edgemm.bundle.picture import load_stretched, open_picture
from edgemm.bundle.prompt import negative_drawing_prompt
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.errors import BundleError, InputError
from edgemm.runtimes import schedule
from edgemm.runtimes.adapters import read_tensors
from edgemm.runtimes.backend.engine import Arrays, check_finite
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.codes_loop import CodesClock, CodesEngines, CodesRequest, draw_codes
from edgemm.runtimes.denoise_loop import DrawClock, DrawEngines, DrawRequest, draw
from edgemm.runtimes.draw_requests import codes_request, denoise_request, sized_as
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_encoder import ImageReader
from edgemm.runtimes.one_call import as_the_graph_has_it, draw_in_one_call
from edgemm.runtimes.options import DrawingOptions
from edgemm.runtimes.results import DenoiseProgress, ImageResult

__all__ = ["ImageGenerator", "Drawn"]

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
        loop, clock, text = loops.denoise, DrawClock(), loops.text
        if options.one_call:
            call = self._engines.one_call("draw")
            options = replace(options, **as_the_graph_has_it(options, call))
            whole = denoise_request(options, prompt, loop, limits, self._tokenizer)
            return lambda cancelled: self._draw_in_one_call(whole, loop, cancelled, clock)
        if options.image is None:
            request = denoise_request(options, prompt, loop, limits, self._tokenizer)
            return lambda cancelled: self._denoise(request, [], loop, cancelled, clock)
        assert text is not None  # manifest.py saw to it
        picture, edit = open_picture(options.image, limits.max_image_pixels), loop.editing
        options = sized_as(options, picture.height, picture.width, edit)
        edited = denoise_request(options, prompt, edit, limits, self._tokenizer, text)
        seen = [self._reader.picture(picture, text)]
        if edit.picture_words is not None:
            seen.append(load_stretched(picture, edited.height, edited.width, text.background, limits.max_image_pixels))
        return lambda cancelled: self._denoise(edited, seen, edit, cancelled, clock)

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
        picture: Sequence[np.ndarray],  # the one to edit: (3, S, S), and (3, H, W) where it is read as latents too
        loop: DenoiseLoop,
        cancelled: Cancelled,
        clock: DrawClock,
    ) -> Drawn:
        adapter = self._engines.adapters.active
        loaded, clock.load_s = self._engines.timed(PARTS, adapter)
        prompts, from_file = request.prompts, loop.unconditional == "file"
        if picture:
            prompts = replace(prompts, image_tokens=self._seen(picture[0], clock))
        if len(picture) > 1:
            prompts = replace(prompts, latents=self._latents(picture[1], request.seeds[0], loop, clock))
        if "transformer" in adapter.touched and from_file and prompts.negative is None:  # it was made without it
            prompts = replace(prompts, negative=negative_drawing_prompt("", loop.template, self._tokenizer))
        request = replace(request, prompts=prompts)
        engines = DrawEngines(
            **loaded,
            unconditional=self._unconditional if from_file else {},
            max_context=self._manifest.limits.max_context,
            budget=self._budget,
        )
        yield from draw(request, loop, engines, cancelled, clock)

    def _draw_in_one_call(
        self, request: DrawRequest, loop: DenoiseLoop, cancelled: Cancelled, clock: DrawClock
    ) -> Drawn:
        start = time.perf_counter()
        engine = self._engines.whole("draw")
        clock.load_s = time.perf_counter() - start
        yield from draw_in_one_call(request, loop, engine, cancelled, clock)

    def _seen(self, picture: np.ndarray, clock: DrawClock) -> np.ndarray:
        """The picture that is edited, as image tokens."""
        clock.load_s += self._engines.timed(("image_encoder",))[1]
        start, text = time.perf_counter(), self._manifest.loops.text
        assert text is not None
        tokens = self._reader.encode([picture], text)
        clock.image_encode_s = time.perf_counter() - start
        return tokens

    def _latents(self, pixels: np.ndarray, seed: int, loop: DenoiseLoop, clock: DrawClock) -> np.ndarray:
        """The picture that is edited, (3, H, W), as latents (1, c, h, w) drawn from what its encoder gives."""
        loaded, seconds = self._engines.timed(("latent_encoder",))
        clock.load_s += seconds
        start, shape = time.perf_counter(), loop.state_shape(*pixels.shape[1:])
        found = {name: np.zeros((1, *shape), dtype=np.float32) for name in ("mean", "deviation")}
        loaded["latent_encoder"].bind({"pixels": pixels[None]}, found).run()
        for name, array in found.items():
            check_finite(array, f"latent_encoder, {name}")
        clock.image_encode_s += time.perf_counter() - start
        return found["mean"] + found["deviation"] * schedule.picture_noise(seed, *shape)

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
