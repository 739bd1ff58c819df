"""The loop that turns noise into pictures, step by step, over a constant prefix.

The prompt is read once by the transformer, adapted once by the conditioner (prompt_prefix.py), and then only the
denoiser runs.  It knows latents and time, never strings, files or devices: see prompt.py and draw.py.  What is denoised
is x: tokens (n, p), or latents (c, h, w); the mathematics is in schedule.py.
Axes: b batch (row 0 the prompt, 1 unconditional, 2 the prompt without the picture it edits).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.bundle.drawing import DenoiseLoop
from edgemm.bundle.files import reading
from edgemm.errors import InputError
from edgemm.runtimes import schedule
from edgemm.runtimes.backend.engine import Binding, Engine, check_finite
from edgemm.runtimes.clip import Clip
from edgemm.runtimes.image_call import DenoiseProgress, DrawingClock, ImageResult, Picture
from edgemm.runtimes.kv_cache import PrefillCancelled
from edgemm.runtimes.prompt_prefix import DrawEngines, PromptPrefix, Prompts, read_prompts
from edgemm.runtimes.schedule import Trajectory

__all__ = ["DrawEngines", "DrawRequest", "Prompts", "check_noise", "draw"]


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """A prompt and how it is to be drawn; checked by draw.py."""

    prompts: Prompts
    steps: int
    guidance_scale: float
    seeds: tuple[int, ...]  # one a picture
    noises: tuple[np.ndarray, ...]  # float32, shaped as x, one a picture
    preview: bool | Sequence[int]  # after every step, or after these
    height: int  # of the picture, in pixels
    width: int
    image_guidance_scale: float = 1.0


def draw(
    request: DrawRequest, loop: DenoiseLoop, engines: DrawEngines, cancelled: Callable[[], bool], clock: DrawingClock
) -> Iterator[DenoiseProgress | ImageResult]:
    """Progress after every step, then one ImageResult with every picture.

    When it is cancelled the picture in the making becomes a last, unfinished one, if it has had a step.
    """
    pictures: list[Picture] = []
    tokens = len(request.prompts.prompt)
    try:
        if cancelled():
            raise PrefillCancelled
        prefix = read_prompts(request.prompts, loop, engines, clock, cancelled)
    except PrefillCancelled:
        yield ImageResult((), "cancelled", clock.metrics(tokens))
        return
    denoiser = _Denoiser(engines.denoiser, prefix, loop, request)
    decoder = _Decoder(engines.image_decoder, loop, request, clock)
    finished = True
    for index, (seed, noise) in enumerate(zip(request.seeds, request.noises)):
        x, expected, way = noise, None, Trajectory(request.steps, loop)
        for k in range(request.steps):
            if cancelled():
                finished = False
                break
            start = time.perf_counter()
            prediction = denoiser.predict(x, way.now, way.later)
            check_finite(prediction, f"denoiser, step {k + 1} of {request.steps}")
            expected = way.clean(x, prediction)
            x = way.step(x, prediction, expected)
            clock.steps_s.append(time.perf_counter() - start)
            last = k + 1 == request.steps
            shown = not last and (request.preview is True or (request.preview and k + 1 in request.preview))
            preview = decoder.picture(expected, seed) if shown else None
            yield DenoiseProgress(k + 1, request.steps, way.done, index, preview, x)
        if expected is not None:
            pictures.append(decoder.picture(x if finished else expected, seed))
        if not finished:
            break
    yield ImageResult(tuple(pictures), "stop" if finished else "cancelled", clock.metrics(tokens))


class _Denoiser:
    """Bindings of the denoiser: every row with guidance, row 0 alone without."""

    def __init__(self, engine: Engine, prefix: PromptPrefix, loop: DenoiseLoop, request: DrawRequest) -> None:
        self.engine, self.prefix, self.loop, self.request = engine, prefix, loop, request
        self.rows = 2 if request.prompts.without_picture is None else 3
        self.name = "latents" if "latents" in engine.inputs else "noisy_tokens"
        self.x = np.zeros((self.rows, *loop.state_shape(request.height, request.width)), dtype=np.float32)
        self.time = np.zeros(self.rows, dtype=np.float32)
        self.step_size = np.zeros(self.rows, dtype=np.float32)
        self.prediction = np.zeros_like(self.x)
        self._bindings: dict[int, Binding] = {}

    def predict(self, x: np.ndarray, now: float, later: float) -> np.ndarray:
        """What the denoiser says of x, guided."""
        interval, scale = self.loop.guidance_interval, self.request.guidance_scale
        guided = schedule.is_guided(now, scale, interval)
        if self.rows == 3:
            guided = guided or schedule.is_guided(now, self.request.image_guidance_scale, interval)
        self.x[:] = x
        self.time[:] = schedule.told(now, self.loop)
        self.step_size[:] = later - now
        self._binding(self.rows if guided else 1).run()
        return self._guided() if guided else self.prediction[0].copy()

    def _guided(self) -> np.ndarray:
        """Away from the unconditional row, then towards the picture that is edited, then no longer than before."""
        renorm, least = self.loop.renorm, self.loop.renorm_min
        conditional, unconditional = self.prediction[:2]
        found = schedule.guide(conditional, unconditional, self.request.guidance_scale)
        if renorm == "text_token":
            found = schedule.renormed(found, conditional, least, each=True)
        if self.request.image_guidance_scale != 1:
            # of a prompt that edits nothing, the row without its picture is the prompt itself
            found = schedule.guide(
                found, self.prediction[2 if self.rows == 3 else 0], self.request.image_guidance_scale
            )
        if renorm in ("global", "token"):
            found = schedule.renormed(found, conditional, least, each=renorm == "token")
        return found

    def _binding(self, b: int) -> Binding:
        if b not in self._bindings:
            inputs = {self.name: self.x[:b], "time": self.time[:b], **self.prefix.first(b)}
            if "step_size" in self.engine.inputs:
                inputs["step_size"] = self.step_size[:b]
            self._bindings[b] = self.engine.bind(inputs, {"prediction": self.prediction[:b]})
        return self._bindings[b]


class _Decoder:
    """Tokens or latents to pixels (3, H, W), of a clip frame by frame."""

    def __init__(self, engine: Engine, loop: DenoiseLoop, request: DrawRequest, clock: DrawingClock) -> None:
        self.clock, self.frames, self.frame_ms = clock, loop.frames, loop.frame_ms
        first, *rest = loop.state_shape(request.height, request.width)
        self.x = np.zeros((1, first // self.frames, *rest), dtype=np.float32)
        self.pixels = np.zeros((1, 3, request.height, request.width), dtype=np.float32)
        self.binding = engine.bind(
            {"latents" if "latents" in engine.inputs else "tokens": self.x}, {"pixels": self.pixels}
        )

    def picture(self, x: np.ndarray, seed: int) -> Picture:
        """A still picture, or a clip whose first frame it shows."""
        frames = tuple(self._decode(part) for part in np.split(x, self.frames))
        return Picture(frames[0], seed, Clip(frames, self.frame_ms) if self.frames > 1 else None)

    def _decode(self, x: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        self.x[0] = x
        self.binding.run()
        check_finite(self.pixels, "image_decoder, pixels")
        self.clock.decode_s += time.perf_counter() - start
        return self.pixels[0].clip(0, 1)


def check_noise(noise: np.ndarray, count: int, loop: DenoiseLoop, height: int, width: int) -> tuple[np.ndarray, ...]:
    """A caller's own noise as one array a picture: shaped as x, for several pictures with their number before it.

    Axes of one may be there or not.  Of latents the rows of a grid will do, too: (h * w, c) for (c, h, w).
    """
    with reading("noise", "expected float32 numbers"):
        array, shape = np.ascontiguousarray(noise, dtype=np.float32), loop.state_shape(height, width)
    found = _told(array.shape)
    if not np.isfinite(array).all():
        raise InputError("noise holds NaN or infinity, expected finite numbers")
    if found == _told((count, *shape)):
        return tuple(array.reshape(count, *shape))
    rows = (count, math.prod(shape[1:]), shape[0])
    if loop.latents is not None and found == _told(rows):
        return tuple(np.ascontiguousarray(array.reshape(rows).transpose(0, 2, 1)).reshape(count, *shape))
    raise InputError(f"noise has shape {array.shape}, expected {(count, *shape)} of finite numbers")


def _told(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
