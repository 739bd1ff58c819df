"""Clips: a drawing that plain arithmetic sets in motion (motion.py), or frames that a model drew; and their files.

It knows pixels and file formats, never models or prompts.  Nothing heavy is imported: `--help` reads the options here.
Axes: H, W of a picture; frames are Pillow's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from edgemm.bundle.files import library, pillow, write_whole
from edgemm.errors import InputError, UsageError
from edgemm.options import option

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

__all__ = [
    "CLIP_FORMATS",
    "MESSENGERS",
    "Clip",
    "Messenger",
    "SavingKeywords",
    "SavingOptions",
    "check_clip_path",
    "check_size",
]

FRAME_MS = 40  # of a motion: 25 frames a second, and whole hundredths, which is what GIF counts
LOOP_MS = 1000
SHORTEST_MS = 20  # what browsers show a GIF's frame for, at least; shorter ones become 100 ms
LARGEST_SIDE = 2048


@dataclass(frozen=True)
class SavingOptions:
    """How a clip becomes a file."""

    size: int | None = option(None, "pixels of the longer side in the file (default: as drawn)", metavar="PIXELS")
    messenger: Literal["telegram", "whatsapp"] | None = option(
        None, "a sticker for it: its size, length and most bytes; quality falls until it fits", flag="--for"
    )


class SavingKeywords(TypedDict, total=False):
    """SavingOptions for type checkers."""

    size: int | None
    messenger: Literal["telegram", "whatsapp"] | None


@dataclass(frozen=True)
class Messenger:
    """What a messenger takes for an animated sticker."""

    name: str
    ending: str
    side: int  # pixels, both sides
    shortest_ms: float  # of a frame
    longest_ms: int  # of all
    most_bytes: int


MESSENGERS = {
    # https://core.telegram.org/stickers/webm-vp9-encoding: VP9, 512 pixels, 3 s, 256 KB, 30 frames a second
    "telegram": Messenger("Telegram", ".webm", 512, 1000 / 30, 3_000, 256_000),
    # https://github.com/WhatsApp/stickers: 512 x 512 pixels, 500 KB, 10 s, 8 ms a frame or more
    "whatsapp": Messenger("WhatsApp", ".webp", 512, 8, 10_000, 500_000),
}


# Clips


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames float32 (3, H, W) in [0, 1], each shown for `frame_ms`; or one drawing and what moves it."""

    pixels: tuple[np.ndarray, ...]
    frame_ms: int = FRAME_MS
    motion: str | None = None

    def __repr__(self) -> str:
        return f"Clip({self.count} frames of {self.frame_ms} ms{', ' + self.motion if self.motion else ''})"

    @property
    def count(self) -> int:
        return LOOP_MS // self.frame_ms if self.motion else len(self.pixels)

    def frames(self, size: int | None = None) -> list[Image]:
        """Every frame, RGBA where something of it is transparent and else RGB; `size` pixels on the longer side."""
        sides, resample = self.sides(size), pillow().Resampling.LANCZOS
        if self.motion is None:
            stills = [pillow().fromarray(_bytes(pixels)) for pixels in self.pixels]
            return [still if still.size == sides else still.resize(sides, resample) for still in stills]
        from edgemm.runtimes.motion import in_motion

        return in_motion(_bytes(self.pixels[0]), self.motion, self.count, max(sides))

    @property
    def stands_still(self) -> bool:
        """Whether all frames are alike: GIF, WebP and PNG keep one of them, and the file is a still picture."""
        return len({frame.tobytes() for frame in self.frames()}) == 1

    def sides(self, size: int | None = None) -> tuple[int, int]:
        """Width and height of a drawing, as it is or with `size` pixels on the longer side."""
        height, width = self.pixels[0].shape[1:]
        scale = 1.0 if size is None else _checked_side(size) / max(height, width)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def encoded(self, ending: str, quality: int | None = None) -> bytes:
        """The file that ends so, one of CLIP_FORMATS, as large as drawn; `quality` is 0 to 100."""
        return CLIP_FORMATS[ending](self.frames(), self.frame_ms, BEST if quality is None else quality)

    def save(self, path: str | os.PathLike[str], options: SavingOptions = SavingOptions()) -> None:
        """Writes the file whole or not at all; the kind follows from the name: CLIP_FORMATS.

        InputError of what a messenger does not take.  What `stands_still` is one frame in the file.
        """
        path = Path(path)
        messenger = check_clip_path(path, options)
        write = CLIP_FORMATS[path.suffix.lower()]
        if messenger is None:
            write_whole(path, write(self.frames(options.size), self.frame_ms, BEST))
            return
        if self.count * self.frame_ms > messenger.longest_ms:
            found = self.count * self.frame_ms / 1e3
            raise InputError(
                f"{path}: {found:g} s long, {messenger.name} takes {messenger.longest_ms / 1e3:g} s at most"
            )
        if self.frame_ms < messenger.shortest_ms:
            raise InputError(
                f"{path}: {1e3 / self.frame_ms:g} frames a second, {messenger.name} takes "
                f"{1e3 / messenger.shortest_ms:g} at most"
            )
        if self.stands_still:
            raise InputError(f"{path}: all {self.count} frames are alike, {messenger.name} takes what moves")
        frames = [_squared(frame) for frame in self.frames(messenger.side)]
        write_whole(path, _within(path, messenger, lambda quality: write(frames, self.frame_ms, quality)))


def check_clip_path(path: Path, options: SavingOptions) -> Messenger | None:
    """UsageError of a file name or a size that this clip cannot have; the messenger that it is for."""
    messenger = MESSENGERS.get(options.messenger or "")
    if messenger and path.suffix.lower() != messenger.ending:
        raise UsageError(f"{path}: {messenger.name} takes {messenger.ending}, name the file so")
    if messenger and options.size not in (None, messenger.side):
        raise UsageError(f"size is {options.size}, {messenger.name} takes {messenger.side}; leave it out")
    if path.suffix.lower() not in CLIP_FORMATS:
        raise UsageError(f"{path}: no moving picture ends in {path.suffix!r}; use {', '.join(CLIP_FORMATS)}")
    check_size(options)
    if path.suffix.lower() == ".webm":
        _pyav()
    return messenger


def check_size(options: SavingOptions) -> None:
    """UsageError of a size that no file has."""
    if options.size is not None:
        _checked_side(options.size)


def _squared(frame: Image) -> Image:
    """The frame in the middle of a square, the rest transparent."""
    if frame.width == frame.height:
        return frame
    side = max(frame.size)
    square = pillow().new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(frame, ((side - frame.width) // 2, (side - frame.height) // 2))
    return square


def _checked_side(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, Integral) or not 1 <= size <= LARGEST_SIDE:
        raise UsageError(f"size is {size!r}, expected a whole number from 1 to {LARGEST_SIDE}")
    return int(size)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    import numpy as np

    return np.rint(pixels * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


# Files

BEST = 90
QUALITIES = (BEST, 75, 60, 45, 30, 20, 10, 5, 1)  # tried in turn where a file must not be larger


def _within(path: Path, messenger: Messenger, write: Callable[[int], bytes]) -> bytes:
    """The file in the best quality in which it is small enough."""
    size = 0
    for quality in QUALITIES:
        written = write(quality)
        size = len(written)
        if size <= messenger.most_bytes:
            return written
    raise InputError(
        f"{path}: {size} bytes in the lowest quality, {messenger.name} takes {messenger.most_bytes}; "
        "draw something plainer, or fewer frames"
    )


def _gif(frames: Sequence[Image], frame_ms: int, quality: int) -> bytes:
    """One palette for all frames; half transparent is either.  Times are rounded to hundredths so that their sum is."""
    pil = pillow()
    flat = [frame.convert("RGB") for frame in frames]
    strip = pil.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for index, frame in enumerate(flat):
        strip.paste(frame, (0, index * frame.height))
    palette = strip.quantize(colors=255, method=pil.Quantize.FASTOCTREE, dither=pil.Dither.NONE)
    drawn = [frame.quantize(palette=palette, dither=pil.Dither.NONE) for frame in flat]
    clear = {}
    if any(frame.mode == "RGBA" for frame in frames):
        clear = {"transparency": 255, "disposal": 2}
        for frame, own in zip(frames, drawn):
            own.paste(255, mask=frame.convert("RGBA").getchannel("A").point([255] * 128 + [0] * 128))
    ends = [round(index * max(frame_ms, SHORTEST_MS) / 10) * 10 for index in range(len(frames) + 1)]
    times = [end - start for start, end in pairwise(ends)]
    return _animated(drawn, "GIF", duration=times, optimize=False, **clear)


def _webp(frames: Sequence[Image], frame_ms: int, quality: int) -> bytes:
    return _animated(frames, "WEBP", duration=frame_ms, quality=quality, alpha_quality=quality, method=4)


def _png(frames: Sequence[Image], frame_ms: int, quality: int) -> bytes:
    return _animated(frames, "PNG", duration=frame_ms)


def _animated(frames: Sequence[Image], kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    frames[0].save(stream, format=kind, save_all=True, append_images=frames[1:], loop=0, **how)
    return stream.getvalue()


def _webm(frames: Sequence[Image], frame_ms: int, quality: int) -> bytes:
    """VP9 with its transparency beside it, as Telegram wants it."""
    from fractions import Fraction

    import numpy as np

    av, stream = _pyav(), io.BytesIO()
    with av.open(stream, "w", format="webm") as container:
        how = {"crf": str(round(63 - 0.5 * quality)), "b": "0", "auto-alt-ref": "0", "row-mt": "0"}
        video = container.add_stream("libvpx-vp9", rate=Fraction(1000, frame_ms), options=how)
        video.width, video.height, video.pix_fmt = *frames[0].size, "yuva420p"
        for frame in frames:
            array = np.asarray(frame.convert("RGBA"))
            container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgba")))
        container.mux(video.encode())
    return stream.getvalue()


def _pyav() -> Any:
    return library("av", "WebM needs PyAV: pip install 'edgemm[video]'; .gif, .webp and .png need nothing more")


CLIP_FORMATS: dict[str, Callable[[Sequence[Image], int, int], bytes]] = {
    ".gif": _gif,
    ".webp": _webp,
    ".png": _png,
    ".apng": _png,
    ".webm": _webm,
}
