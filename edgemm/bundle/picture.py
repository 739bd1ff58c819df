"""Any picture to the square of numbers that the image encoder reads; training and the runtime both use this one.

The size in the header is checked before a pixel is decoded.  Then: EXIF orientation, transparency laid on the
background, the longer side resized to S with Pillow's antialiased bicubic filter, the rest filled with the background:
nothing of the picture is cut off, nothing is squeezed.  Models that others trained may want the middle square, or all
of it squeezed, or another filter: `fit` and `resample`.  It knows pixels, never models: Pillow and numpy only.
Axes: S side of the square; H, W of the picture as given.
"""

from __future__ import annotations

import base64
import io
import os
import urllib.parse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Union, cast

import numpy as np

from edgemm.bundle.files import check_is_file, pillow, reading
from edgemm.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MAX_PIXELS",
    "PictureSource",
    "PictureSources",
    "fit_square",
    "load_picture",
    "load_stretched",
    "open_picture",
    "seeded_picture",
]

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # plain decoders only: no PostScript, no plugins
WHITE = (255, 255, 255)

BITS_PER_SAMPLE = 258  # a tag of TIFF
AT_ONCE = 1_000_000  # wide numbers: each takes 30 bytes while it becomes one
WIDE, LOWER = "RGB;16B", "RGB;16L"  # how a PNG stores colors of 16 bits; what reads the lower eight of such bytes
GREY_STEPS = {"L;2": 85, "L;4": 17}  # how a PNG stores grey -> from one grey to the next, of 255


class AsPil(Protocol):
    """A picture of ours: Picture and ImageResult of runtimes/image_call.py."""

    def to_pil(self) -> Image: ...


PictureSource = Union[str, "os.PathLike[str]", "Image", np.ndarray, bytes, bytearray, IO[bytes], AsPil]
PictureSources = PictureSource | Sequence[PictureSource]  # one is a list of one
SOURCES = ("a path", "a PIL image", "an array", "bytes", "a file opened with mode 'rb'", "a data: URL", "our Picture")


def load_picture(
    source: PictureSource,
    size: int,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
    fit: str = "pad",
    resample: str = "bicubic",
    least: int = 1,
) -> np.ndarray:
    """Any of SOURCES; an array is (H, W), (H, W, 3) or (H, W, 4) -> float32 (3, S, S) in [0, 1]."""
    square = fit_square(open_picture(source, max_pixels), size, background, fit, resample, least)
    pixels = np.asarray(square, dtype=np.float32) / np.float32(255)  # (S, S, 3)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def load_stretched(
    source: PictureSource,
    height: int,
    width: int,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The same, squeezed to so many pixels: float32 (3, height, width) in [0, 1]."""
    pil = pillow()
    flat = _flat(open_picture(source, max_pixels), background)
    if flat.size != (width, height):
        flat = flat.resize((width, height), pil.Resampling.BICUBIC)
    pixels = np.asarray(flat, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_picture(source: PictureSource, max_pixels: int = MAX_PIXELS) -> Image:
    """The picture decoded and turned upright, in mode RGB or RGBA."""
    pil = pillow()
    if hasattr(source, "to_pil"):  # a Picture or an ImageResult of ours: a model reads what it drew
        source = cast(Any, source).to_pil()
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, pil.Image):
        picture, name = cast("Image", source), "the picture"
        _check_pixels(name, picture.width, picture.height, max_pixels)
        return _upright(picture, name)
    opened, name = _as_file(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pil.DecompressionBombWarning)  # the limit here is stricter and is an error
        try:
            with reading(name, "damaged picture"), pil.open(opened, formats=FORMATS) as picture:
                _check_pixels(name, picture.width, picture.height, max_pixels)
                return _upright(picture, name)
        except InputError as error:
            if isinstance(error.__cause__, pil.UnidentifiedImageError):
                known = ", ".join(FORMATS)
                raise InputError(f"{name}: not a picture that edgemm reads; it reads {known}") from error
            if isinstance(error.__cause__, pil.DecompressionBombError):
                raise InputError(f"{name}: more than the {max_pixels} pixels that are allowed: {error}") from error
            raise


def _as_file(source: Any) -> tuple[Path | io.BytesIO, str]:
    """What Pillow opens, and what errors call it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), "the picture"
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "the picture"))
        with reading(name):
            content = source.read()
        if not isinstance(content, bytes):
            raise InputError(f"{name}: opened as text, expected a file opened with mode 'rb'")
        return io.BytesIO(content), name
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"a picture is {type(source).__name__}, expected {', '.join(SOURCES)}")
    words = os.fspath(source)
    if not words:  # Path("") would be the folder where one stands
        raise InputError("a picture's path is empty, expected a file")
    if isinstance(words, str) and words[:5].lower() == "data:":
        return io.BytesIO(_of_data_url(words)), f"{words[:24]}..."
    if isinstance(words, str) and words.lower().startswith(("http://", "https://", "ftp://")):
        raise InputError(f"{words:.100}: nothing is fetched from a network; download it and give its path")
    with reading(words):
        return check_is_file(Path(os.fsdecode(words)).expanduser(), "a picture"), str(words)


def _of_data_url(url: str) -> bytes:
    """The bytes in a data: URL (RFC 2397)."""
    head, comma, content = url.partition(",")
    if not comma:
        raise InputError(f"{url[:24]}...: a data: URL without a comma")
    with reading(f"{url[:24]}...", "not the data: URL that was expected"):
        raw = urllib.parse.unquote_to_bytes(content)
        return base64.b64decode(b"".join(raw.split()), validate=True) if head.lower().endswith(";base64") else raw


def fit_square(
    picture: Image,
    size: int,
    background: tuple[int, int, int] = WHITE,
    fit: str = "pad",
    resample: str = "bicubic",
    least: int = 1,
) -> Image:
    """An RGB square of side `size`: all of it on the background, its middle ("crop"), or squeezed ("stretch").

    On the background the shorter side has `least` pixels or more; "pad_cut" cuts it to whole pixels, "pad" rounds.
    """
    pil = pillow()
    flat = _flat(picture, background)
    if fit == "pad_first":  # and resized then
        side = max(flat.size)
        whole = pil.new("RGB", (side, side), background)
        whole.paste(flat, ((side - flat.width) // 2, (side - flat.height) // 2))
        flat, fit = whole, "stretch"
    width, height = _sides(*picture.size, size, fit, least)
    if fit == "crop":
        return _middle(flat, width, height, size, pil.Resampling[resample.upper()])
    if (width, height) != flat.size:
        flat = flat.resize((width, height), pil.Resampling[resample.upper()])
    if width == height:
        return flat
    square = pil.new("RGB", (size, size), background)
    square.paste(flat, ((size - width) // 2, (size - height) // 2))
    return square


def _flat(picture: Image, background: tuple[int, int, int]) -> Image:
    """What is transparent shows the background."""
    flat = pillow().new("RGB", picture.size, background)
    flat.paste(picture, mask=picture if picture.mode == "RGBA" else None)
    return flat


def _middle(flat: Image, width: int, height: int, size: int, resample: Any) -> Image:
    """The middle square of what a resize to (width, height) gives; without the rest of it where that is large: a strip
    of 60,000 x 1 pixels would be one of 20 million x 336.  The last bit may differ then."""
    left, top = (width - size) // 2, (height - size) // 2
    if width * height <= MAX_PIXELS:
        whole = flat if (width, height) == flat.size else flat.resize((width, height), resample)
        return whole.crop((left, top, left + size, top + size))
    x, y = flat.width / width, flat.height / height
    return flat.resize((size, size), resample, (left * x, top * y, (left + size) * x, (top + size) * y))


def _sides(width: int, height: int, size: int, fit: str, least: int = 1) -> tuple[int, int]:
    """Width and height after the resize."""
    if fit == "stretch":
        return size, size
    if fit == "crop":  # the longer side is cut to whole pixels, as image processors do
        shorter = min(width, height)
        return size * width // shorter, size * height // shorter
    longer = max(width, height)
    whole = int if fit == "pad_cut" else round
    return max(least, whole(width * size / longer)), max(least, whole(height * size / longer))


def _check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width} x {height} = {width * height} pixels, at most {max_pixels} are allowed; make it smaller"
        )
    if not width * height:
        raise InputError(f"{name}: {width} x {height} pixels, expected at least 1 x 1")


def _upright(picture: Image, name: str) -> Image:
    from PIL import ImageOps

    white, key = _white(picture), _transparent_color(picture)
    with reading(name, "damaged picture"):  # a damaged file makes decoders raise nearly anything
        if isinstance(key, tuple) and (_stored(picture) == WIDE or max(key) > 255):
            picture, key = _cut_out(picture, key, name), None
        picture.load()
        if _has_whole_exif(picture):
            picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):  # Pillow's own conversion clips them to 0 to 255
            return _of_wide_numbers(np.asarray(picture), white, key, name)
        if key is not None and key != picture.info.get("transparency"):
            picture = picture.copy()
            picture.info["transparency"] = key
        if picture.mode == "La":  # knows one way to another mode
            picture = picture.convert("LA")
        see_through = "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
        return picture.convert("RGBA" if see_through else "RGB")


def _has_whole_exif(picture: Image) -> bool:
    """What is broken turns nothing."""
    try:
        picture.getexif()
    except MemoryError:
        raise
    except Exception:
        return False
    return True


def _transparent_color(picture: Image) -> int | tuple[int, ...] | bytes | None:
    """The color of a PNG that is see-through, as decoded pixels have it: Pillow scales grey of 2 and 4 bits to 8, but
    not the color beside them, which then is no pixel's.  Of colors of 16 bits it is as it stands in the file."""
    key, stored = picture.info.get("transparency"), _stored(picture)
    return key * GREY_STEPS[stored] if stored in GREY_STEPS and isinstance(key, int) else key


def _stored(picture: Image) -> str | None:
    """What Pillow calls the samples of a PNG that is not decoded yet."""
    tiles = getattr(picture, "tile", None)
    return tiles[0][3] if tiles and picture.format == "PNG" else None


def _cut_out(picture: Image, key: tuple[int, ...], name: str) -> Image:
    """RGBA of a PNG whose colors have 16 bits, without what has exactly the color `key`.  Pillow keeps the upper eight,
    which neighbours of that color share; the lower ones are decoded from the file beside them."""
    tiles, fp = getattr(picture, "tile", None), getattr(picture, "fp", None)
    if not tiles or fp is None:
        raise InputError(
            f"{name}: its see-through color has 16 bits, and its decoded pixels have 8; give the file itself"
        )
    at = fp.tell()
    fp.seek(0)
    content = io.BytesIO(fp.read())
    fp.seek(at)
    with pillow().open(content, formats=("PNG",)) as lower:
        lower.tile = [(*tiles[0][:3], LOWER)]
        same = (np.asarray(lower) == [part & 255 for part in key]).all(axis=2)
    cut = picture.copy()
    same &= (np.asarray(cut) == [part >> 8 for part in key]).all(axis=2)
    del cut.info["transparency"]
    cut.putalpha(pillow().fromarray(np.where(same, np.uint8(0), np.uint8(255))))
    return cut


def _white(picture: Image) -> int | None:
    """The number that means white in a grey picture of more than 8 bits; None where its file does not say."""
    if picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
        return 2**bits - 1 if 8 < bits <= 16 else 65_535
    return 65_535 if picture.mode == "I" and picture.format in ("PPM", "PNG") else None


def _of_wide_numbers(grey: np.ndarray, white: int | None, key: Any, name: str) -> Image:
    """Grey numbers (H, W) as RGB, or RGBA where the number `key` is see-through.  Where nobody says what white is, it
    is the least of 1 (floats), 255, 65,535 and the largest of 32 bits that no number exceeds."""
    most = grey.max()
    if not (np.isfinite(most) and grey.min() >= 0):  # NaN is a whole picture's most and least
        raise InputError(f"{name}: holds numbers below 0 or none at all, expected 0 (black) and above")
    if white is None:
        known = (1, 255, 65_535) if grey.dtype.kind == "f" else (255, 65_535, 2**31 - 1)
        white = next((number for number in known if most <= number), None)
    if white is None:
        raise InputError(f"{name}: numbers up to {most:g}, and nothing says which one is white")
    levels, rows = np.empty(grey.shape, dtype=np.uint8), max(1, AT_ONCE // grey.shape[1])
    for first in range(0, len(grey), rows):
        numbers = grey[first : first + rows].astype(np.float64)
        levels[first : first + rows] = np.rint(numbers / white * 255).clip(0, 255)
    picture = pillow().fromarray(levels).convert("RGB")
    if isinstance(key, int):
        picture.putalpha(pillow().fromarray(np.where(grey == key, np.uint8(0), np.uint8(255))))
    return picture


def _from_array(array: np.ndarray, max_pixels: int) -> Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(f"a picture array of shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4)")
    _check_pixels("the picture array", array.shape[1], array.shape[0], max_pixels)
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"a picture array of {array.dtype}, expected uint8 or numbers in [0, 1]")
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError("a picture array of floats outside [0, 1]")
        array = np.rint(array * 255).astype(np.uint8)
    picture = pillow().fromarray(np.ascontiguousarray(array))
    return picture if array.ndim == 3 else picture.convert("RGB")


def seeded_picture(seed: int, size: int) -> np.ndarray:
    """uint8 (size, size, 3): coloured blocks, the same on every machine."""
    blocks = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    nearest = np.arange(size) * 4 // size
    return blocks[nearest][:, nearest]
