"""A video as the pictures that a model reads: some of its frames, each the square that the image encoder takes.

    python -m edgemm.runtimes.video REQUEST    decodes one file, in a process of its own, and prints one JSON object

Files are decoded in a child with limits of time and memory, because decoders of strangers' files crash and swell:
GIF, WebP and APNG by Pillow, everything else by PyAV (FFmpeg) in the containers of CONTAINERS, which fetch nothing.
Frames are taken at even times, `fps` a second; where those are more than `max_frames`, as evenly over the whole.
Axes: S side of the square.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

import numpy as np

from edgemm.bundle.files import OF_ANYBODY, check_is_file, library, pillow, reading
from edgemm.bundle.manifest import TextLoop
from edgemm.bundle.picture import PictureSource, fit_square, open_picture
from edgemm.device.child import ask, die_with_parent
from edgemm.errors import EdgemmError, InputError, MissingError, UsageError, ran_out_of_memory

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FPS", "MOST_FRAMES", "EvenFrames", "VideoSource", "read_video"]

VideoSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Iterable[PictureSource]]  # a file, or its frames
FPS = 2.0  # of a file, where nobody says otherwise
MOST_FRAMES = 256  # that a prompt may hold
SPARE = 8  # the more are held, the more even are those that are taken at last
MOST_DECODED = 100_000  # frames of a file, and of an iterator
TIMEOUT_S = 60.0
MEMORY_BYTES = 1 << 30
SLACK_S = 0.75e-3  # files round times to milliseconds: a frame begins so much before it says, and ends so
UNTIMED_MS = 100  # of a frame that says nothing, or 10 ms and less: as browsers show it
ANIMATIONS = ("GIF", "WEBP", "PNG")
# Of FFmpeg's, those that hold pictures themselves: no playlist, which would name other files or hosts.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,h264,hevc,ivf,rawvideo"


def read_video(
    source: VideoSource, loop: TextLoop, fps: float | None, max_frames: int, max_pixels: int
) -> list[np.ndarray]:
    """uint8 (S, S, 3) each.  InputError of what is no video, or takes too much; MissingError where PyAV lacks."""
    if isinstance(max_frames, bool) or not 1 <= max_frames <= MOST_FRAMES:
        raise UsageError(f"max_frames is {max_frames!r}, expected a whole number from 1 to {MOST_FRAMES}")
    if fps is not None and not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UsageError(f"fps is {fps!r}, expected above 0, up to 1000")
    max_frames, rate = int(max_frames), FPS if fps is None else float(fps)  # numpy's numbers too
    squares = _Squares(
        loop.image_size, loop.background, loop.image_fit, loop.image_resample, loop.image_least, max_pixels
    )
    if isinstance(source, (str, os.PathLike)):
        with reading(source):  # ~ of nobody
            path = check_is_file(Path(os.fsdecode(source)).expanduser(), "a video")
        return _in_a_child(path, str(source), squares, rate, max_frames)
    if isinstance(source, (bytes, bytearray)) or hasattr(source, "read"):
        return _of_bytes(source, squares, rate, max_frames)
    if fps is not None:
        raise UsageError("fps is for files: frames that are given one by one have no times; leave it out")
    if isinstance(source, np.ndarray) and source.ndim == 3 and source.shape[2] in (1, 3, 4):
        raise UsageError(f"video is one picture of shape {source.shape}, expected several: (frames, H, W, 3)")
    if not isinstance(source, Iterable):
        raise UsageError(f"video is {type(source).__name__}, expected a path, bytes, an open file, or frames")
    return _given(source, squares, max_frames)


@dataclass(frozen=True)
class _Squares:
    """How the image encoder wants a frame; load_picture's arguments."""

    size: int
    background: tuple[int, int, int]
    fit: str
    resample: str
    least: int
    max_pixels: int

    def of(self, frame: PictureSource) -> np.ndarray:
        """uint8 (S, S, 3)"""
        picture = open_picture(frame, self.max_pixels)
        square = fit_square(picture, self.size, self.background, self.fit, self.resample, self.least)
        return np.asarray(square, dtype=np.uint8)


class EvenFrames:
    """Takes frames at even times as they come, and holds no more than SPARE times `most`."""

    def __init__(self, step_s: float, most: int) -> None:
        self._step_s, self._most = step_s, most
        self._kept: list[tuple[int, np.ndarray]] = []  # number of the time, and the frame shown then
        self._next, self._stride = 0, 1

    def push(self, start_s: float, end_s: float, frame: Callable[[], np.ndarray]) -> None:
        """A frame that is shown from `start_s` to before `end_s`; it is made only where one of the times falls in."""
        made: np.ndarray | None = None
        while self._next * self._step_s < end_s - SLACK_S or not self._kept:
            made = frame() if made is None else made
            self._kept.append((self._next, made))
            self._next += self._stride
            if len(self._kept) > SPARE * self._most:
                self._stride *= 2
                self._kept = [(number, kept) for number, kept in self._kept if number % self._stride == 0]
                self._next = -(-self._next // self._stride) * self._stride

    def frames(self) -> list[np.ndarray]:
        """At most `most`, as even as can be; the first one is always there."""
        count = min(self._most, len(self._kept))
        return [self._kept[row][1] for row in np.linspace(0, len(self._kept) - 1, count).round().astype(int)]


def _given(frames: Iterable[PictureSource], squares: _Squares, most: int) -> list[np.ndarray]:
    even = EvenFrames(1.0, most)
    for index, frame in enumerate(frames):
        if index >= MOST_DECODED:
            raise InputError(f"the video has more than {MOST_DECODED} frames; take some of them")
        even.push(index, index + 1, lambda frame=frame: squares.of(frame))
    if not (found := even.frames()):
        raise InputError("the video has no frame")
    return found


# A file, in a child


def _of_bytes(source: Any, squares: _Squares, fps: float, most: int) -> list[np.ndarray]:
    with tempfile.NamedTemporaryFile(prefix="edgemm-video-") as file:
        with reading("the video"):
            content = source if isinstance(source, (bytes, bytearray)) else source.read()
            file.write(content)
            file.flush()
        return _in_a_child(Path(file.name), "the video", squares, fps, most)


def _in_a_child(path: Path, name: str, squares: _Squares, fps: float, most: int) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="edgemm-video-") as folder:
        frames = Path(folder) / "frames.npy"
        request = {"path": str(path), "name": name, "frames": str(frames), "fps": fps, "most": most, **asdict(squares)}
        answer = ask(__name__, [json.dumps(request)], TIMEOUT_S, MEMORY_BYTES)
        if answer.value is None:
            raise InputError(f"{name}: could not be decoded: {answer.problem}")
        if problem := answer.value.get("problem"):
            raise (MissingError if answer.value["lacking"] else InputError)(problem)
        return list(np.load(frames, allow_pickle=False))


def main(request: str) -> None:
    """In the child."""
    told: dict[str, Any] = json.loads(request)
    path, name, target, fps, most = (told.pop(key) for key in ("path", "name", "frames", "fps", "most"))
    pillow().MAX_IMAGE_PIXELS = None  # of this process: the limit is max_pixels
    squares = _Squares(**{**told, "background": tuple(told["background"])})
    try:
        found = _decoded(Path(path), name, squares, fps, most)
    except EdgemmError as error:
        print(json.dumps({"problem": str(error), "lacking": isinstance(error, MissingError)}))
        return
    np.save(target, np.stack(found), allow_pickle=False)
    print(json.dumps({"frames": len(found)}))


Shown = tuple[float, float, Callable[[], Any]]  # from, to, and what makes a picture of it


def _decoded(path: Path, name: str, squares: _Squares, fps: float, most: int) -> list[np.ndarray]:
    even = EvenFrames(1 / fps, most)
    with reading(name, "damaged video"), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken metadata
        animated = _animation(file, name, squares.max_pixels)
        shown = _film(file, name, squares.max_pixels) if animated is None else _played(animated)
        try:
            for number, (start_s, end_s, picture) in enumerate(shown):
                if number >= MOST_DECODED:
                    raise InputError(f"{name}: more than {MOST_DECODED} frames; cut it")
                even.push(start_s, end_s, lambda picture=picture: squares.of(picture()))
        except Exception as error:  # decoders raise nearly anything at a broken end
            if isinstance(error, (EdgemmError, *OF_ANYBODY)) or ran_out_of_memory(error) or not even.frames():
                raise
    if not (found := even.frames()):
        raise InputError(f"{name}: holds no frame")
    return found


def _check_size(name: str, width: int, height: int, most: int) -> None:
    if not 0 < width * height <= most:
        raise InputError(f"{name}: {width} x {height} = {width * height} pixels a frame, at most {most} are allowed")


def _animation(file: IO[bytes], name: str, max_pixels: int) -> Image | None:
    """What Pillow reads; None where it is something else."""
    pil = pillow()
    try:
        opened = pil.open(file, formats=ANIMATIONS)
    except pil.UnidentifiedImageError:
        file.seek(0)
        return None
    _check_size(name, opened.width, opened.height, max_pixels)
    return opened


def _played(opened: Any) -> Iterator[Shown]:
    """Up to the last frame that is there, however many the file says there are."""
    now_ms = 0.0
    for index in itertools.count(int(getattr(opened, "default_image", False))):  # an APNG's, for who shows no animation
        opened.disposal_method = 0  # of a GIF: where a frame names none, Pillow takes that of a frame before it
        try:
            opened.seek(index)
        except EOFError:
            return
        before = opened._prev_im if opened.format == "PNG" else None
        before = before and before.copy()
        opened.load()
        if before:  # Pillow 13 draws the frame into it, and then takes the frame away by it
            opened._prev_im = before
        shown_ms = float(opened.info.get("duration") or 0)
        end_ms = now_ms + (shown_ms if shown_ms > 10 else UNTIMED_MS)
        yield now_ms / 1000, end_ms / 1000, opened.copy
        now_ms = end_ms


def _film(file: IO[bytes], name: str, max_pixels: int) -> Iterator[Shown]:
    """What FFmpeg reads, one frame behind: each is shown until the next one."""
    av = library("av", f"{name}: neither GIF, WebP nor APNG; other videos need PyAV: pip install 'edgemm[video]'")
    with av.open(file, options={"format_whitelist": CONTAINERS, "protocol_whitelist": ""}) as container:
        if not container.streams.video:
            raise InputError(f"{name}: holds no video")
        stream = container.streams.best("video")
        if stream.codec_context is None:
            raise InputError(f"{name}: its video is damaged, or of a kind that PyAV does not decode")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        _check_size(name, stream.codec_context.width, stream.codec_context.height, max_pixels)
        lasts_s, first_s, before = _frame_s(stream), None, None
        for number, frame in enumerate(_decoded_frames(container, stream)):
            _check_size(name, frame.width, frame.height, max_pixels)
            time_s = number * lasts_s if frame.time is None else float(frame.time)
            first_s = time_s if first_s is None else first_s
            if before is not None:
                yield before[0], max(before[0], time_s - first_s), before[1]
            before = time_s - first_s, lambda frame=frame: _upright(frame)
        if before is not None:
            yield before[0], before[0] + lasts_s, before[1]


def _decoded_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Of all packets but the damaged ones, as players show them."""
    av, decoder = library("av", ""), stream.codec_context
    whole = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(decoder.name)  # FFmpeg's own decoders drop what is transparent
    if stream.metadata.get("alpha_mode") == "1" and whole in av.codecs_available:
        decoder = av.CodecContext.create(whole, "r")
        decoder.thread_count = 1
    some, damage = False, None
    packets = container.demux(stream)  # the last one is empty, and lets go of what the decoder still holds
    while True:
        try:
            found = decoder.decode(next(packets))
        except StopIteration:
            break
        except av.error.InvalidDataError as error:
            found, damage = [], error
        except OSError as error:  # the file ends where a packet should be
            found, damage = decoder.decode(None), error
        some |= bool(found)
        yield from found
    if damage is not None and not some:
        raise damage


def _frame_s(stream: Any) -> float:
    """How long a frame lasts, where only the rate says it; rates of nonsense are 25 a second."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return 1 / rate if 0.01 <= rate <= 1000 else 1 / 25


def _upright(frame: Any) -> Any:
    """A phone held upright films lying down, and one that films its owner mirrors; both say so."""
    flips = pillow().Transpose
    alpha = any(component.is_alpha for component in frame.format.components)
    picture = pillow().fromarray(frame.to_ndarray(format="rgba")) if alpha else frame.to_image()
    said = frame.side_data.get("DISPLAYMATRIX")
    if said is None:
        return picture
    a, b, _, c, d, *_ = np.frombuffer(said, dtype=np.int32)  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, a, d = picture.transpose(flips.TRANSPOSE), c, b
    picture = picture.transpose(flips.FLIP_LEFT_RIGHT) if a < 0 else picture
    return picture.transpose(flips.FLIP_TOP_BOTTOM) if d < 0 else picture


if __name__ == "__main__":
    die_with_parent()
    main(sys.argv[1])
