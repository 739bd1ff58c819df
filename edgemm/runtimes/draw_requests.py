"""A prompt and its options as what the drawing loops want; what they cannot mean to a bundle is refused here."""

from __future__ import annotations

import math
from dataclasses import replace

from edgemm.bundle.denoise import DenoiseLoop
from edgemm.bundle.loops import ImageTokensLoop, Limits, TextLoop
from edgemm.bundle.prompt import (
    check_length,
    drawing_prompt,
    image_prompt,
    negative_drawing_prompt,
    picture_prompt,
    unconditional_prompt,
)
from edgemm.bundle.tokenizer import Tokenizer
from edgemm.errors import UsageError
from edgemm.runtimes import schedule
from edgemm.runtimes.codes_loop import CodesRequest
from edgemm.runtimes.denoise_loop import DrawRequest, Prompts, check_noise
from edgemm.runtimes.options import DrawingOptions, check_whole
from edgemm.runtimes.sampling import Sampling

__all__ = ["codes_request", "denoise_request", "sized_as"]

LARGEST_GUIDANCE = 100.0
LARGEST_SIDE = 2**24  # pixels; the bundle's own limits are narrower
BY_DENOISING = ("num_inference_steps", "noise", "preview", "image_guidance_scale", "width", "height")
BY_TOKENS = ("temperature", "top_k", "top_p")


def denoise_request(
    options: DrawingOptions,
    prompt: str,
    loop: DenoiseLoop,
    limits: Limits,
    tokenizer: Tokenizer,
    reads: TextLoop | None = None,
) -> DrawRequest:
    """What the denoise loop wants, or UsageError; `reads` is how a picture to edit is read, None without one."""
    _refuse(options, "draws by denoising", *BY_TOKENS)
    steps = loop.num_inference_steps if options.num_inference_steps is None else options.num_inference_steps
    points = int(loop.counts == "points")
    check_whole("num_inference_steps", steps, 1 + points, limits.max_steps)
    height, width = _size(options, loop)
    scale = _scale(options, "guidance_scale", loop.guidance_scale)
    prompts = _prompts(options, prompt, loop, tokenizer, (height, width), reads, scale)
    latents = 0  # slots of a picture that is read as latents, too
    if reads is not None and loop.picture_words is not None:
        latents = math.prod(loop.state_shape(height, width)[1:]) + loop.picture_words
    check_length(latents + max(len(read) for _, read, _ in prompts.rows), limits)
    if options.noise is None:
        shape = loop.state_shape(height, width)
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
        image_guidance_scale=_image_guidance(options, loop),
    )


def _prompts(
    options: DrawingOptions,
    prompt: str,
    loop: DenoiseLoop,
    tokenizer: Tokenizer,
    size: tuple[int, int],  # of the picture that is drawn
    reads: TextLoop | None,
    scale: float,
) -> Prompts:
    """What is read: the prompt, what guidance leads away from, and the prompt without the picture it edits."""
    if options.negative_prompt is not None and scale == 1:
        raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
    edits = reads is not None
    pictured: tuple[int, tuple[int, int], bool, tuple[str, str]] = (0, size, False, ("", ""))
    if reads is not None:
        pictured = (reads.image_token_count, size, reads.joined, reads.around)
    template = (loop.edit_template if edits else None) or loop.template
    tokens = drawing_prompt(prompt, template, tokenizer, *pictured)
    by_picture = edits and loop.image_guidance_scale is not None
    guided = scale != 1 or (by_picture and _image_guidance(options, loop) != 1)
    negative, alone = None, None
    if by_picture and guided:
        if reads is not None and reads.block and options.negative_prompt is None:
            negative = picture_prompt(tokenizer, pictured[0], pictured[3])
        else:
            wrong = options.negative_prompt or ""
            negative = negative_drawing_prompt(wrong, template, tokenizer, *pictured)
        if _image_guidance(options, loop) != 1:
            alone = drawing_prompt(prompt, loop.template, tokenizer, size=size)
    elif scale != 1 and (options.negative_prompt is not None or loop.unconditional == "prompt"):
        text = loop.negative_prompt if options.negative_prompt is None else options.negative_prompt
        negative = negative_drawing_prompt(text, loop.negative_template or loop.template, tokenizer, size=size)
    return Prompts(tokens, negative, alone, guided=guided)


def sized_as(options: DrawingOptions, height: int, width: int, loop: DenoiseLoop) -> DrawingOptions:
    """A picture to edit says how large the new one is, where the caller does not and the model draws several sizes."""
    if loop.latents is None or options.height is not None or options.width is not None:
        return options
    height, width = loop.latents.nearest(height, width)
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
        _refuse(options, "does not guide by the picture it edits", "image_guidance_scale")
        return 1.0
    return _scale(options, "image_guidance_scale", 1.0 if options.image is None else loop.image_guidance_scale)


def codes_request(
    options: DrawingOptions, prompt: str, loop: ImageTokensLoop, limits: Limits, tokenizer: Tokenizer
) -> CodesRequest:
    """What the image_tokens loop wants."""
    _refuse(options, "draws token by token", *BY_DENOISING)
    scale = _scale(options, "guidance_scale", loop.guidance_scale)
    tokens = image_prompt(prompt, loop, tokenizer)
    blank = None if scale == 1 else unconditional_prompt(tokens, options.negative_prompt, loop, tokenizer)
    check_length(max(len(tokens), len(blank or ())) + loop.length, limits)
    sampling = Sampling(
        loop.temperature if options.temperature is None else options.temperature,
        loop.top_k if options.top_k is None else options.top_k,
        loop.top_p if options.top_p is None else options.top_p,
    )
    return CodesRequest(tokens, blank, scale, sampling, options.seeds)


def _scale(options: DrawingOptions, name: str, default: float) -> float:
    scale = default if getattr(options, name) is None else getattr(options, name)
    if not (math.isfinite(scale) and 0 <= scale <= LARGEST_GUIDANCE):
        raise UsageError(f"{name} is {scale}, expected 0 to {LARGEST_GUIDANCE:g}")
    return float(scale)


def _refuse(options: DrawingOptions, how: str, *names: str) -> None:
    """Options that mean nothing to this bundle's way of drawing."""
    given = [name for name in names if getattr(options, name) is not None and getattr(options, name) is not False]
    if given:
        raise UsageError(f"{', '.join(given)}: this bundle {how} and has no such option")
