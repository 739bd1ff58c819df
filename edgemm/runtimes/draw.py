"""How one model draws: by denoising, or token by token, whichever its bundle has a loop for.

It turns a prompt and its options into a request and hands it with the engines to that loop (denoise_loop.py,
codes_loop.py).  Talking is in text.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edgemm.bundle.bundle import UNCONDITIONAL
from edgemm.bundle.loops import DenoiseLoop, ImageTokensLoop, Limits
from edgemm.bundle.picture import PictureSource, load_stretched, open_picture
from edgemm.bundle.prompt import (
    check_length,
    drawing_prompt,
    image_prompt,
    negative_drawing_prompt,
    picture_prompt,
    unconditional_prompt,
)
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.errors import BundleError, InputError, UsageError
from edgemm.runtimes import schedule
from edgemm.runtimes.adapters import read_tensors
from edgemm.runtimes.backend.engine import Arrays, check_finite
from edgemm.runtimes.cache_budget import CacheBudget
from edgemm.runtimes.codes_loop import CodesClock, CodesEngines, CodesRequest, draw_codes
from edgemm.runtimes.denoise_loop import DrawClock, DrawEngines, DrawRequest, Prompts, check_noise, draw
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
        loop, clock, text = loops.denoise, DrawClock(), loops.text
        if options.image is None:
            request = options.denoise_request(prompt, loop, limits, self._tokenizer)
            return lambda cancelled: self._denoise(request, [], loop, cancelled, clock)
        assert text is not None  # manifest.py saw to it
        picture, edit = open_picture(options.image, limits.max_image_pixels), loop.editing
        options = options.sized_as(picture.height, picture.width, edit)
        seen = [self._sight.picture(picture, text)]
        if edit.picture_words is not None:
            size = options.size(edit)
            seen.append(load_stretched(picture, *size, text.background, limits.max_image_pixels))
        read = (text.image_token_count, text.joined, text.around)
        edited = options.denoise_request(prompt, edit, limits, self._tokenizer, *read)
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

    def _seen(self, picture: np.ndarray, clock: DrawClock) -> np.ndarray:
        """The picture that is edited, as image tokens."""
        clock.load_s += self._engines.timed(("image_encoder",))[1]
        start, text = time.perf_counter(), self._manifest.loops.text
        assert text is not None
        tokens = self._sight.encode([picture], text)
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
    width: int | None = None  # of the picture, in pixels, where the model draws several sizes
    height: int | None = None
    image_guidance_scale: float | None = None  # towards the picture that is edited, where the model knows such a thing

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_whole("num_images", self.num_images, 1, MOST_PICTURES)

    def denoise_request(
        self,
        prompt: str,
        loop: DenoiseLoop,
        limits: Limits,
        tokenizer: Tokenizer,
        picture: int = 0,
        causal: bool = False,
        around: tuple[str, str] = ("", ""),
    ) -> DrawRequest:
        """What the denoise loop wants, or UsageError.

        `picture` is how many tokens the one to edit takes, `causal` whether they see only those before them, `around`
        the words of their block.
        """
        self._refuse("draws by denoising", "temperature", "top_k", "top_p")
        steps = loop.num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        points = int(loop.counts == "points")
        check_whole("num_inference_steps", steps, 1 + points, limits.max_steps)
        height, width = self.size(loop)
        scale = self._guidance(loop.guidance_scale)
        prompts = self._prompts(prompt, loop, tokenizer, (picture, (height, width), causal, around), scale)
        before = math.prod(loop.state_shape(height, width)[1:]) + (loop.picture_words or 0)  # slots, as latents
        before = before if picture and loop.picture_words is not None else 0
        check_length(before + max(len(read) for _, read, _ in prompts.rows), limits)
        if self.noise is None:
            shape = loop.state_shape(height, width)
            noises = tuple(schedule.initial_noise(each, *shape) for each in self._seeds)
        else:
            noises = check_noise(self.noise, self.num_images, loop, height, width)
        sizes = (height, width, self._image_guidance(loop))
        return DrawRequest(prompts, steps - points, scale, self._seeds, noises, self.preview, *sizes)

    def _prompts(
        self,
        prompt: str,
        loop: DenoiseLoop,
        tokenizer: Tokenizer,
        pictured: tuple[int, tuple[int, int], bool, tuple[str, str]],  # tokens of the picture to edit, size of the
        # drawn one, causal, words of the block
        scale: float,
    ) -> Prompts:
        """What is read: the prompt, what guidance leads away from, and the prompt without the picture it edits."""
        if self.negative_prompt is not None and scale == 1:
            raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
        edits, size = pictured[0] > 0, pictured[1]
        template = (loop.edit_template if edits else None) or loop.template
        tokens = drawing_prompt(prompt, template, tokenizer, *pictured)
        by_picture = edits and loop.image_guidance_scale is not None
        guided = scale != 1 or (by_picture and self._image_guidance(loop) != 1)
        negative, alone = None, None
        if by_picture and guided:
            if self.negative_prompt is None and loop.unconditional == "empty":
                negative = picture_prompt(tokenizer, pictured[0], pictured[3])
            else:
                negative = negative_drawing_prompt(self.negative_prompt or "", template, tokenizer, *pictured)
            if self._image_guidance(loop) != 1:
                alone = drawing_prompt(prompt, loop.template, tokenizer, size=size)
        elif scale != 1 and (self.negative_prompt is not None or loop.unconditional == "prompt"):
            text = loop.negative_prompt if self.negative_prompt is None else self.negative_prompt
            around = loop.negative_template or loop.template
            negative = negative_drawing_prompt(text, around, tokenizer, size=size)
        return Prompts(tokens, negative, alone, guided=guided)

    def sized_as(self, height: int, width: int, loop: DenoiseLoop) -> DrawingOptions:
        """A picture to edit says how large the new one is, where nobody else does and the model draws several sizes."""
        if loop.latents is None or self.height is not None or self.width is not None:
            return self
        height, width = loop.latents.nearest(height, width)
        return replace(self, height=height, width=width)

    def size(self, loop: DenoiseLoop) -> tuple[int, int]:
        """Height and width in pixels."""
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, 2**24)
        height, width = self.height or loop.height, self.width or loop.width
        if problem := loop.problem(int(height), int(width)):
            raise UsageError(problem)
        return int(height), int(width)

    def _image_guidance(self, loop: DenoiseLoop) -> float:
        if loop.image_guidance_scale is None:
            self._refuse("does not guide by the picture it edits", "image_guidance_scale")
            return 1.0
        own = loop.image_guidance_scale if self.image is not None else 1.0
        return self._scale("image_guidance_scale", own)

    def codes_request(self, prompt: str, loop: ImageTokensLoop, limits: Limits, tokenizer: Tokenizer) -> CodesRequest:
        """What the image_tokens loop wants."""
        self._refuse(
            "draws token by token", "num_inference_steps", "noise", "preview", "width", "height", "image_guidance_scale"
        )
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
        return self._scale("guidance_scale", default)

    def _scale(self, name: str, default: float) -> float:
        scale = default if getattr(self, name) is None else getattr(self, name)
        if not (math.isfinite(scale) and 0 <= scale <= LARGEST_GUIDANCE):
            raise UsageError(f"{name} is {scale}, expected 0 to {LARGEST_GUIDANCE:g}")
        return float(scale)

    def _refuse(self, how: str, *names: str) -> None:
        """Options that mean nothing to this bundle's way of drawing."""
        given = [name for name in names if getattr(self, name) is not None and getattr(self, name) is not False]
        if given:
            raise UsageError(f"{', '.join(given)}: this bundle {how} and has no such option")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
