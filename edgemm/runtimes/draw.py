"""How one model draws: by denoising, or token by token, whichever its bundle has a loop for.

A prompt and its options become what that loop wants (denoise_loop.py, codes_loop.py); what they cannot mean to the
bundle is refused here, before anything runs.  Text is in text.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgemm.bundle.drawing import DenoiseLoop, DenoiseTemplate, ImageTokensLoop
from edgemm.bundle.manifest import UNCONDITIONAL, Limits, TextLoop
from edgemm.bundle.node_link import read_graph
from edgemm.bundle.prompt import (
    GraphBlock,
    PictureTokens,
    Prompt,
    Tokenizer,
    check_length,
    drawing_prompt,
    negative_drawing_prompt,
    picture_prompt,
)
from edgemm.errors import InputError, UsageError
from edgemm.options import check_type
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import Arrays, check_finite
from edgemm.runtimes.clip import Clip
from edgemm.runtimes.denoise_loop import DrawEngines, DrawRequest, Prompts, check_noise, draw
from edgemm.runtimes.engines import Engines
from edgemm.runtimes.image_call import DenoiseProgress, DrawingClock, DrawingOptions, ImageResult, check_whole

if TYPE_CHECKING:
    from edgemm.runtimes.adapters import Adapter
    from edgemm.runtimes.image_encoder import ImageReader

__all__ = ["Drawn", "ImageGenerator", "denoise_request"]

PARTS = ("transformer", "conditioner", "denoiser", "image_decoder")
LARGEST_SIDE = 2**24  # pixels; the bundle's own limits are narrower
BY_TOKENS = ("temperature", "top_k", "top_p")
Cancelled = Callable[[], bool]
Drawn = Iterator[DenoiseProgress | ImageResult]


class ImageGenerator:
    """The drawing half of a model."""

    def __init__(self, engines: Engines, tokenizer: Tokenizer) -> None:
        self._engines, self._tokenizer = engines, tokenizer
        self._manifest = engines.bundle.manifest

    @property
    def adapter(self) -> Adapter | None:
        """The one that a drawing takes which begins now."""
        return self._engines.adapter

    def start(
        self, prompt: str, options: DrawingOptions, adapter: Adapter | None = None
    ) -> Callable[[Cancelled], Drawn]:
        """What draws, given a `cancelled`; prompt and options are checked now.  Without an adapter it takes the one
        that is active when it begins."""
        begin = self._start(prompt, options, adapter)
        return begin if options.motion is None else lambda cancelled: _set_in_motion(begin(cancelled), options.motion)

    def _start(self, prompt: str, options: DrawingOptions, adapter: Adapter | None) -> Callable[[Cancelled], Drawn]:
        self._check_frames(options)
        name, loops = self._manifest.name, self._manifest.loops
        graph = None
        if options.graph is not None:
            prompt, graph = self._told(prompt, options)
        edits = loops.denoise is not None and loops.denoise.edits
        if options.image is not None and not edits:
            raise InputError(
                f"bundle {name} does not edit pictures: its model was trained to draw from words alone; "
                "leave `image` out, or ask about the picture with generate_text"
            )
        if loops.image_tokens is not None:
            return self._start_codes(prompt, options, loops.image_tokens, adapter)
        if loops.denoise is None:
            raise InputError(f"bundle {name} does not draw: it has no denoise loop and no image_tokens loop")
        loop, clock = loops.denoise, DrawingClock()
        if graph is not None:
            return self._start_graph(prompt, options, loop, graph, clock, adapter)
        if options.one_call:
            return self._start_one_call(prompt, options, loop, clock)
        if options.image is not None:
            return self._start_edit(prompt, options, loop.editing, clock, adapter)
        request = denoise_request(options, prompt, loop, self._manifest.limits, self._tokenizer)
        return lambda cancelled: self._denoise(request, [], loop, cancelled, clock, adapter)

    def _told(self, prompt: str, options: DrawingOptions) -> tuple[str, GraphBlock | None]:
        """A graph to draw as the model reads it: as a block of rows, or in words before the prompt's."""
        graph, text = read_graph(options.graph), self._manifest.loops.text
        check_type("prompt", prompt, str)
        if text is not None and text.graph is not None and not options.one_call:
            options.refuse("reads a graph as rows", "image")
            return prompt, (graph, text.graph, PictureTokens.of(text))
        shown = [node.id for node in graph.nodes if node.image is not None]
        if shown:
            raise InputError(
                f"bundle {self._manifest.name} draws from words alone: node {shown[0]!r} of the graph is a picture, "
                "give it a text"
            )
        return f"{graph.to_text()}{prompt}".strip(), None

    def _start_graph(
        self,
        prompt: str,
        options: DrawingOptions,
        loop: DenoiseLoop,
        graph: GraphBlock,
        clock: DrawingClock,
        adapter: Adapter | None,
    ) -> Callable[[Cancelled], Drawn]:
        text = self._manifest.loops.text
        assert text is not None
        request = denoise_request(options, prompt, loop, self._manifest.limits, self._tokenizer, graph=graph)
        seen = [self._reader.picture(picture, text) for picture in graph[0].pictures]

        def begin(cancelled: Cancelled) -> Drawn:
            tokens = self._reader.read(request.prompts.prompt, seen, text)[1]
            read = replace(request, prompts=replace(request.prompts, image_tokens=tokens))
            return self._denoise(read, [], loop, cancelled, clock, adapter)

        return begin

    def _check_frames(self, options: DrawingOptions) -> None:
        name, loop = self._manifest.name, self._manifest.loops.denoise
        frames = loop.frames if loop else 1
        if options.frames is not None and options.frames != frames:
            draws = f"clips of {frames} frames" if frames > 1 else "still pictures; motion sets one in motion"
            raise UsageError(f"frames is {options.frames}, bundle {name} draws {draws}")
        if frames > 1 and options.motion is not None:
            raise UsageError(f"motion is for still pictures, bundle {name} draws clips of {frames} frames")

    def _start_one_call(
        self, prompt: str, options: DrawingOptions, loop: DenoiseLoop, clock: DrawingClock
    ) -> Callable[[Cancelled], Drawn]:
        from edgemm.runtimes.one_call import as_the_graph_has_it, draw_in_one_call

        options = as_the_graph_has_it(options, self._engines.one_call("draw"))
        request = denoise_request(options, prompt, loop, self._manifest.limits, self._tokenizer)
        return lambda cancelled: draw_in_one_call(request, loop, self._engines, cancelled, clock)

    def _start_codes(
        self, prompt: str, options: DrawingOptions, loop: ImageTokensLoop, adapter: Adapter | None
    ) -> Callable[[Cancelled], Drawn]:
        from edgemm.runtimes.codes_loop import codes_request, draw_codes, open_codes

        clock = DrawingClock()
        request = codes_request(options, prompt, loop, self._manifest.limits, self._tokenizer)
        return lambda cancelled: draw_codes(
            request, loop, open_codes(self._engines, loop, clock, adapter), cancelled, clock
        )

    def _start_edit(
        self,
        prompt: str,
        options: DrawingOptions,
        loop: DenoiseLoop,
        clock: DrawingClock,
        adapter: Adapter | None,
    ) -> Callable[[Cancelled], Drawn]:
        from edgemm.bundle.picture import load_stretched, open_picture

        text, limits = self._manifest.loops.text, self._manifest.limits
        assert text is not None and options.image is not None  # manifest.py saw to it
        picture = open_picture(options.image, limits.max_image_pixels)
        options = _sized_as(options, picture.height, picture.width, loop)
        request = denoise_request(options, prompt, loop, limits, self._tokenizer, text)
        seen = [self._reader.picture(picture, text)]
        if loop.picture_words is not None:
            seen.append(
                load_stretched(picture, request.height, request.width, text.background, limits.max_image_pixels)
            )
        return lambda cancelled: self._denoise(request, seen, loop, cancelled, clock, adapter)

    def _denoise(
        self,
        request: DrawRequest,
        picture: Sequence[np.ndarray],  # the one to edit: (3, S, S), and (3, H, W) where it is read as latents too
        loop: DenoiseLoop,
        cancelled: Cancelled,
        clock: DrawingClock,
        adapter: Adapter | None,
    ) -> Drawn:
        adapter = adapter or self._engines.adapter
        loaded, clock.load_s = self._engines.timed(PARTS, adapter)
        prompts, from_file = request.prompts, loop.unconditional == "file"
        if picture:
            prompts = replace(prompts, image_tokens=self._seen(picture[0], clock))
        if len(picture) > 1:
            prompts = replace(prompts, latents=self._latents(picture[1], loop, clock))
        adapted = adapter is not None and "transformer" in adapter.touched
        if adapted and from_file and prompts.negative is None:  # the file was made without it
            prompts = replace(prompts, negative=negative_drawing_prompt("", loop.template, self._tokenizer))
        request = replace(request, prompts=prompts)
        engines = DrawEngines(
            **loaded,
            unconditional=self._unconditional if from_file else {},
            max_context=self._manifest.limits.max_context,
            budget=self._engines.budget,
        )
        yield from draw(request, loop, engines, cancelled, clock)

    def _seen(self, picture: np.ndarray, clock: DrawingClock) -> np.ndarray:
        """The picture that is edited, as image tokens."""
        clock.load_s += self._engines.timed(("image_encoder",))[1]
        start, text = time.perf_counter(), self._manifest.loops.text
        assert text is not None
        tokens = self._reader.encode([picture], text)
        clock.image_encode_s = time.perf_counter() - start
        return tokens

    def _latents(self, pixels: np.ndarray, loop: DenoiseLoop, clock: DrawingClock) -> np.ndarray:
        """The picture that is edited, (3, H, W), as latents (1, c, h, w) drawn from what its encoder gives."""
        loaded, seconds = self._engines.timed(("latent_encoder",))
        clock.load_s += seconds
        start, shape = time.perf_counter(), loop.state_shape(*pixels.shape[1:])
        found = {name: np.zeros((1, *shape), dtype=np.float32) for name in ("mean", "deviation")}
        loaded["latent_encoder"].bind({"pixels": pixels[None]}, found).run()
        for name, array in found.items():
            check_finite(array, f"latent_encoder, {name}")
        clock.image_encode_s += time.perf_counter() - start
        return found["mean"] + found["deviation"] * schedule.picture_noise(*shape)

    @cached_property
    def _reader(self) -> ImageReader:
        from edgemm.runtimes.image_encoder import ImageReader

        return ImageReader(self._engines)

    @cached_property
    def _unconditional(self) -> Arrays:
        return self._engines.bundle.tensors(UNCONDITIONAL)


def _set_in_motion(drawn: Drawn, motion: str | None) -> Drawn:
    """The same events; every finished picture moves."""
    for event in drawn:
        if isinstance(event, ImageResult):
            moved = (replace(picture, clip=Clip((picture.pixels,), motion=motion)) for picture in event.images)
            event = replace(event, images=tuple(moved))
        yield event


def denoise_request(
    options: DrawingOptions,
    prompt: str,
    loop: DenoiseLoop,
    limits: Limits,
    tokenizer: Tokenizer,
    reads: TextLoop | None = None,
    graph: GraphBlock | None = None,
) -> DrawRequest:
    """What the denoise loop wants, or UsageError; `reads` is how a picture to edit is read, None without one."""
    options.refuse("draws by denoising", *BY_TOKENS)
    steps = loop.num_inference_steps if options.num_inference_steps is None else options.num_inference_steps
    points = int(loop.counts == "points")
    check_whole("num_inference_steps", steps, 1 + points, limits.max_steps)
    for step in () if isinstance(options.preview, bool) else options.preview:
        check_whole("a step of preview", step, 1, steps - points)
    height, width = size = _size(options, loop)
    shape = loop.state_shape(height, width)
    scale, towards_picture = options.scale("guidance_scale", loop.guidance_scale), _image_guidance(options, loop)
    prompts = _Asked(options, prompt, loop, tokenizer, reads, size, graph).prompts(scale, towards_picture)
    latents = 0  # slots of a picture that is read as latents, too
    if reads is not None and loop.picture_words is not None:
        latents = math.prod(shape[1:]) + loop.picture_words
    check_length(latents + max(len(read) for _, read, _ in prompts.rows), limits)
    if options.noise is None:
        noises = tuple(schedule.initial_noise(seed, *shape) for seed in options.seeds)
    else:
        noises = check_noise(options.noise, options.num_images, loop, height, width)
    return DrawRequest(
        prompts,
        steps - points,
        scale,
        seeds=options.seeds,
        noises=noises,
        preview=options.preview,
        height=height,
        width=width,
        image_guidance_scale=towards_picture,
    )


@dataclass(frozen=True)
class _Asked:
    """A prompt, and what it becomes a row of."""

    options: DrawingOptions
    prompt: str
    loop: DenoiseLoop
    tokenizer: Tokenizer
    reads: TextLoop | None
    size: tuple[int, int]  # of the picture that is drawn
    graph: GraphBlock | None = None

    def prompts(self, scale: float, towards_picture: float) -> Prompts:
        """What is read: the prompt, what guidance leads away from, and the prompt without the picture it edits."""
        options, loop, reads = self.options, self.loop, self.reads
        if options.negative_prompt is not None and scale == 1:
            raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
        tokens = drawing_prompt(self.prompt, self.template, self.tokenizer, self.picture, self.size, self.graph)
        by_picture = reads is not None and loop.image_guidance_scale is not None
        guided = scale != 1 or (by_picture and towards_picture != 1)
        negative, alone = None, None
        if by_picture and guided:
            negative = self.picture_alone()
            if towards_picture != 1:
                alone = drawing_prompt(self.prompt, loop.template, self.tokenizer, size=self.size)
        elif scale != 1 and (options.negative_prompt is not None or loop.unconditional == "prompt"):
            text = loop.negative_prompt if options.negative_prompt is None else options.negative_prompt
            template = loop.negative_template or loop.template
            negative = negative_drawing_prompt(text, template, self.tokenizer, size=self.size)
        return Prompts(tokens, negative, alone, guided=guided)

    @property
    def template(self) -> DenoiseTemplate:
        return (self.loop.edit_template if self.reads is not None else None) or self.loop.template

    @property
    def picture(self) -> PictureTokens | None:
        """How the picture to edit is read."""
        reads = self.reads
        return None if reads is None else PictureTokens(reads.image_token_count, reads.joined, reads.around)

    def picture_alone(self) -> Prompt:
        """The picture to edit without the prompt, or before what the caller does not want."""
        wrong = self.options.negative_prompt
        if self.picture and self.reads and self.reads.block and wrong is None:
            return picture_prompt(self.tokenizer, self.picture)
        return negative_drawing_prompt(wrong or "", self.template, self.tokenizer, self.picture, self.size)


def _sized_as(options: DrawingOptions, height: int, width: int, loop: DenoiseLoop) -> DrawingOptions:
    """A picture to edit says how large the new one is, where the caller does not and the model draws several sizes:
    both sides, or the one that is left."""
    grid = loop.latents
    if grid is None or (options.height is not None and options.width is not None):
        return options
    if options.height is None and options.width is None:
        height, width = grid.nearest(height, width)
    elif not grid.free:
        return options
    elif options.width is not None:
        height, width = grid.beside(options.width, width, height), options.width
    elif options.height is not None:
        height, width = options.height, grid.beside(options.height, height, width)
    return replace(options, height=height, width=width)


def _size(options: DrawingOptions, loop: DenoiseLoop) -> tuple[int, int]:
    """Height and width in pixels."""
    for name in ("height", "width"):
        if getattr(options, name) is not None:
            check_whole(name, getattr(options, name), 1, LARGEST_SIDE)
    height, width = int(options.height or loop.height), int(options.width or loop.width)
    if problem := loop.problem(height, width):
        raise UsageError(problem)
    return height, width


def _image_guidance(options: DrawingOptions, loop: DenoiseLoop) -> float:
    if loop.image_guidance_scale is None:
        options.refuse("does not guide by the picture it edits", "image_guidance_scale")
        return 1.0
    return options.scale("image_guidance_scale", 1.0 if options.image is None else loop.image_guidance_scale)
