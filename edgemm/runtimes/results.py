"""What a call gives back: text or pictures, why it ended, and what it took.

It holds values only; the loops make them.  Times are wall clock; loading an engine on first use is told apart.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgemm.bundle.files import write_whole
from edgemm.bundle.picture import pillow
from edgemm.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FinishReason",
    "ImageMetrics",
    "ImageResult",
    "Picture",
    "TextMetrics",
    "TextResult",
    "TokenLogprob",
    "DenoiseProgress",
    "TextChunk",
    "clipped",
]

MOST_SHOWN = 60  # characters of a text in a repr
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TextMetrics:
    prompt_tokens: int  # slots that the prompt took, pictures included
    new_tokens: int
    image_encode_ms: float
    prefill_ms: float
    time_to_first_token_ms: float  # from the call to the first token: pictures, tokenizing and prefill
    decode_tokens_per_s: float  # after the first token; 0 when there was no second
    load_ms: float  # engines that this call had to load first; no part of the other times
    total_ms: float


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, before temperature and filters: the natural logarithm of its probability."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (id, text, logprob) of the likeliest, best first, when asked for


@dataclass(frozen=True)
class TextResult:
    text: str
    token_ids: tuple[int, ...]  # without the stop token
    finish_reason: FinishReason
    seed: int | None  # what makes this reply come again; None when nothing was drawn at random
    metrics: TextMetrics
    logprobs: tuple[TokenLogprob, ...] | None = None  # one a token, when asked for

    def __repr__(self) -> str:
        return f"TextResult({clipped(self.text)}, {len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})"


def clipped(text: str) -> str:
    """A text as an error or a repr shows it: its beginning, on one line."""
    return repr(text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}...")


@dataclass(frozen=True)
class ImageMetrics:
    prompt_tokens: int
    prefill_ms: float
    conditioner_ms: float  # once a prompt
    steps: int  # steps done, over all pictures
    step_ms: float  # mean
    decode_ms: float  # over all pictures
    load_ms: float
    total_ms: float
    image_encode_ms: float = 0.0  # of the picture that was edited


@dataclass(frozen=True, eq=False)
class Picture:
    """One drawn picture; pixels are float32 (3, H, W) in [0, 1]."""

    pixels: np.ndarray
    seed: int

    def __repr__(self) -> str:
        height, width = self.pixels.shape[1:]
        return f"Picture({width} x {height}, seed={self.seed})"

    def to_array(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return np.rint(self.pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()

    def to_pil(self) -> Image:
        return pillow().fromarray(self.to_array())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file whole or not at all; the kind follows from the name (.png, .jpg, .webp, ...)."""
        stream = io.BytesIO()
        kind = picture_format(Path(path))
        try:
            self.to_pil().save(stream, format=kind)
        except OSError as error:  # a format that holds no colours, say
            raise InputError(f"{path}: cannot be written: {error}") from error
        write_whole(path, stream.getvalue())


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
        if not self.images:
            raise UsageError("no picture: the call was cancelled before the first step was done")
        return self.images[0]

    @property
    def pixels(self) -> np.ndarray:
        """(3, H, W) float32 of the first picture."""
        return self.image.pixels

    def to_pil(self) -> Image:
        """The first picture."""
        return self.image.to_pil()


# What a stream gives out while a model works: pieces of text, and progress of a picture.
#
# The last event of a text stream carries the whole result; a stream of drawing ends with an ImageResult (results.py).


@dataclass(frozen=True)
class TextChunk:
    """Some tokens and the text that they completed; joined, the texts are the whole reply."""

    token_ids: tuple[int, ...]
    text: str  # always whole characters; may be empty while one is still being spelled
    finished: bool = False
    finish_reason: FinishReason | None = None  # set on the last chunk
    result: TextResult | None = None  # set on the last chunk, unless the reason is "error"
    logprobs: tuple[TokenLogprob, ...] = ()  # of these tokens, when asked for


@dataclass(frozen=True)
class DenoiseProgress:
    """One denoising step is done."""

    step: int  # 1 to steps
    steps: int
    time: float  # t after the step: 1 is the finished picture
    index: int  # which picture of the prompt, from 0
    preview: Picture | None = None  # what the picture is expected to become, when asked for
    latents: np.ndarray | None = None  # what is denoised, after the step: (n, p), or (c, h, w)
