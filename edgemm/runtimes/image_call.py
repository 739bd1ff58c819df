"""How a picture is asked for, and what comes back: pictures, why they ended, and what they took.

Names, defaults and meaning of every option are said once, in DrawingOptions: Model's methods take them as keyword
arguments, `edgemm draw` as flags, docs/embedding.md has them as a table, and inside of the runtime they are passed
whole.  DrawingKeywords says the same to type checkers; tests/runtimes/test_options.py holds both to one another.
Times are wall clock; loading an engine on first use is told apart.  Nothing heavy is imported: `--help` reads this.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from edgemm.bundle.files import pillow, write_whole
from edgemm.errors import InputError, UsageError
from edgemm.options import check_type, from_keywords, option
from edgemm.runtimes.text_call import FinishReason

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from typing_extensions import Unpack

    from edgemm.bundle.node_link import GraphSource
    from edgemm.bundle.picture import PictureSource
    from edgemm.runtimes.clip import Clip, SavingKeywords, SavingOptions

__all__ = [
    "MOST_PICTURES",
    "DenoiseProgress",
    "DrawingClock",
    "DrawingKeywords",
    "DrawingOptions",
    "ImageMetrics",
    "ImageResult",
    "Picture",
    "check_still_path",
    "check_whole",
    "picture_format",
]

LARGEST_GUIDANCE = 100.0
MOST_PICTURES = 64  # of one prompt in one call
Motion = Literal["bounce", "spin", "pulse", "slide"]  # motion.py


@dataclass(frozen=True, eq=False)
class DrawingOptions:
    """The options of generate_image and stream_image; what is None is the bundle's own default."""

    num_inference_steps: int | None = option(None, "denoising steps (default: the bundle's own)", metavar="N")
    guidance_scale: float | None = option(None, "1 switches guidance off (default: the bundle's own)", metavar="W")
    seed: int = option(0, "the same seed gives the same picture; the next pictures have the next seeds")
    num_images: int = option(1, "pictures of the prompt, from 1 to 64", metavar="N")
    noise: np.ndarray | None = option(
        None,
        "float32, shaped as what is denoised, (n, p) or (c, h, w), for several pictures with their number before it; "
        "in the place of the seeds' noise",
        flag=False,
    )
    preview: bool | Sequence[int] = option(
        False, "each step, or these, counted from 1, show what they expect the picture to become", flag=False
    )
    timeout_s: float | None = option(None, "give up after so many seconds", metavar="S")
    temperature: float | None = option(
        None, "of models that draw token by token: 0 takes the likeliest (default: the bundle's own)", metavar="T"
    )
    top_k: int | None = option(None, "of the same: keep the K likeliest tokens", metavar="K")
    top_p: float | None = option(None, "of the same: keep the likeliest tokens of this probability", metavar="P")
    negative_prompt: str | None = option(
        None, "what guidance leads away from, in the place of the empty prompt", metavar="TEXT"
    )
    image: PictureSource | None = option(
        None, "a picture to edit, for bundles whose model was taught to", metavar="FILE", type=str
    )
    image_guidance_scale: float | None = option(
        None, "how closely the picture that is edited is kept, for models that know such a thing", metavar="W"
    )
    width: int | None = option(None, "of the picture, for models that draw several sizes", metavar="PIXELS")
    height: int | None = option(None, "the same", metavar="PIXELS")
    graph: GraphSource | None = option(
        None, "a graph to draw: node-link JSON as networkx writes it, a dict or a file", metavar="FILE", type=str
    )
    one_call: bool = option(False, "by the bundle's graph of the whole loop; needs `edgemm export --one-call draw`")
    frames: int | None = option(
        None, "of a clip, for models that learned to draw some (default: the bundle's own)", metavar="N"
    )
    motion: Motion | None = option(None, "a clip of one second: the drawing, set in motion by plain arithmetic")

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_whole("num_images", self.num_images, 1, MOST_PICTURES)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a picture."""
        return tuple(int(self.seed) + index for index in range(self.num_images))

    def scale(self, name: str, default: float) -> float:
        """A guidance scale, or the bundle's own."""
        scale = default if getattr(self, name) is None else getattr(self, name)
        if not (math.isfinite(scale) and 0 <= scale <= LARGEST_GUIDANCE):
            raise UsageError(f"{name} is {scale}, expected 0 to {LARGEST_GUIDANCE:g}")
        return float(scale)

    def refuse(self, how: str, *names: str) -> None:
        """Options that mean nothing to a bundle's way of drawing."""
        given = [name for name in names if getattr(self, name) is not None and getattr(self, name) is not False]
        if given:
            raise UsageError(f"{', '.join(given)}: this bundle {how} and has no such option")


class DrawingKeywords(TypedDict, total=False):
    """DrawingOptions for type checkers."""

    num_inference_steps: int | None
    guidance_scale: float | None
    seed: int
    num_images: int
    noise: np.ndarray | None
    preview: bool | Sequence[int]
    timeout_s: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    negative_prompt: str | None
    image: PictureSource | None
    image_guidance_scale: float | None
    width: int | None
    height: int | None
    graph: GraphSource | None
    one_call: bool
    frames: int | None
    motion: Motion | None


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {low} to {high}")


@dataclass(frozen=True)
class ImageMetrics:
    """What a call's pictures took together, by the wall clock."""

    prompt_tokens: int
    prefill_ms: float
    conditioner_ms: float  # once a prompt
    steps: int  # steps done, over all pictures
    step_ms: float  # mean
    decode_ms: float  # over all pictures
    load_ms: float
    total_ms: float
    image_encode_ms: float = 0.0  # of the picture that was edited


@dataclass
class DrawingClock:
    """What a call took so far; seconds."""

    began: float = field(default_factory=time.perf_counter)
    load_s: float = 0.0
    image_encode_s: float = 0.0
    prefill_s: float = 0.0
    conditioner_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    decode_s: float = 0.0

    def metrics(self, prompt_tokens: int) -> ImageMetrics:
        return ImageMetrics(
            prompt_tokens=prompt_tokens,
            prefill_ms=1e3 * self.prefill_s,
            conditioner_ms=1e3 * self.conditioner_s,
            steps=len(self.steps_s),
            step_ms=1e3 * sum(self.steps_s) / max(len(self.steps_s), 1),
            decode_ms=1e3 * self.decode_s,
            load_ms=1e3 * self.load_s,
            total_ms=1e3 * (time.perf_counter() - self.began - self.load_s),
            image_encode_ms=1e3 * self.image_encode_s,
        )


@dataclass(frozen=True, eq=False)
class Picture:
    """One drawn picture; pixels are float32 (3, H, W) in [0, 1]."""

    pixels: np.ndarray
    seed: int
    clip: Clip | None = None  # of a picture that moves; `pixels` are its first frame, or what is set in motion

    def __repr__(self) -> str:
        height, width = self.pixels.shape[1:]
        return f"Picture({width} x {height}, seed={self.seed}{f', {self.clip}' if self.clip else ''})"

    @property
    def frames(self) -> list[Image]:
        """Of a picture that moves, each for clip.frame_ms; a still picture is one frame."""
        return self.clip.frames() if self.clip else [self.to_pil()]

    def to_array(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        import numpy as np

        return np.rint(self.pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()

    def to_pil(self) -> Image:
        """An RGB image of 8 bits a channel."""
        return pillow().fromarray(self.to_array())

    def save(self, path: str | os.PathLike[str], **options: Unpack[SavingKeywords]) -> None:
        """Writes the file whole or not at all; the kind follows from the name (.png, .jpg, .webp, ...).

        A picture that moves goes into .gif, .webp, .png or .webm; `options` are SavingOptions' fields (clip.py).
        """
        from edgemm.runtimes.clip import Clip, SavingOptions

        check_type("path", path, str | os.PathLike)
        chosen = from_keywords(SavingOptions, "save()", options, ("path",))
        if self.clip is not None:
            return self.clip.save(path, chosen)
        check_still_path(Path(path), chosen)
        stream, still = io.BytesIO(), Clip((self.pixels,)).frames(chosen.size)[0]
        try:
            still.save(stream, format=picture_format(Path(path)))
        except (OSError, ValueError) as error:  # a format that holds no colours, say
            raise InputError(f"{path}: cannot be written: {error}") from error
        write_whole(path, stream.getvalue())


def check_still_path(path: Path, options: SavingOptions) -> None:
    """UsageError of a file name and options that a picture which does not move cannot have."""
    if options.messenger:
        raise UsageError(f"{path}: {options.messenger} is for pictures that move; give motion, bounce for example")
    from edgemm.runtimes.clip import check_size

    picture_format(path)
    check_size(options)


def picture_format(path: Path) -> str:
    """Pillow's name of the format that this file name asks for."""
    pil = pillow()
    known = {ending: kind for ending, kind in pil.registered_extensions().items() if kind in pil.SAVE}
    if path.suffix.lower() not in known:
        raise UsageError(f"{path}: no picture format ends in {path.suffix!r}; use .png")
    return known[path.suffix.lower()]


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Every picture of one prompt; none when it was cancelled before a step was done."""

    images: tuple[Picture, ...]
    finish_reason: FinishReason  # "stop" when all were finished, "cancelled" when the last one is a preview
    metrics: ImageMetrics

    def __repr__(self) -> str:
        return f"ImageResult({list(self.images)}, finish_reason={self.finish_reason!r})"

    @property
    def image(self) -> Picture:
        """The first picture; UsageError where there is none."""
        if not self.images:
            raise UsageError("no picture: the call was cancelled before the first step was done")
        return self.images[0]

    @property
    def pixels(self) -> np.ndarray:
        """(3, H, W) float32 of the first picture."""
        return self.image.pixels

    @property
    def frames(self) -> list[Image]:
        """Of the first picture."""
        return self.image.frames

    def save(self, path: str | os.PathLike[str], **options: Unpack[SavingKeywords]) -> None:
        """Writes the first picture, as Picture.save does."""
        self.image.save(path, **options)

    def to_pil(self) -> Image:
        """The first picture."""
        return self.image.to_pil()


@dataclass(frozen=True)
class DenoiseProgress:
    """One denoising step is done."""

    step: int  # 1 to steps
    steps: int
    time: float  # t after the step: 1 is the finished picture
    index: int  # which picture of the prompt, from 0
    preview: Picture | None = None  # what the picture is expected to become, when asked for
    latents: np.ndarray | None = None  # what is denoised, after the step: (n, p), or (c, h, w)
