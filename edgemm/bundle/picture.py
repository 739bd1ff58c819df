"""Any picture to the square of numbers that the image encoder reads; training and the runtime both use this one.

The size in the header is checked before a pixel is decoded.  Then: EXIF orientation, transparency laid on the
background, the longer side resized to S with Pillow's antialiased bicubic filter, the rest filled with the background:
nothing of the picture is cut off, nothing is squeezed.  Models that others trained may want the middle square, or all
of it squeezed, or another filter: `fit` and `resample`.  It knows pixels, never models: Pillow and numpy only.
Axes: S side of the square; H, W of the picture as given.
"""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from edgemm.errors import InputError, MissingError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MAX_PIXELS",
    "PictureSource",
    "fit_square",
    "load_picture",
    "load_stretched",
    "open_picture",
    "pillow",
    "seeded_picture",
]

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # plain decoders only: no PostScript, no plugins
WHITE = (255, 255, 255)

PictureSource = Union[str, "os.PathLike[str]", "Image", np.ndarray]


def load_picture(
    source: PictureSource,
    size: int,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
    fit: str = "pad",
    resample: str = "bicubic",
    least: int = 1,
) -> np.ndarray:
    """A path, a PIL image or an array (H, W), (H, W, 3) or (H, W, 4) -> float32 (3, S, S) in [0, 1]."""
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
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, pil.Image):
        picture = cast("Image", source)
        _check_pixels("the picture", picture.width, picture.height, max_pixels)
        return _upright(picture, "the picture")
    path = Path(cast("str | os.PathLike[str]", source))
    _check_is_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pil.DecompressionBombWarning)  # the limit here is stricter and is an error
        try:
            with pil.open(path, formats=FORMATS) as picture:
                _check_pixels(str(path), picture.width, picture.height, max_pixels)
                return _upright(picture, str(path))
        except InputError:
            raise
        except pil.UnidentifiedImageError as error:
            known = ", ".join(FORMATS)
            raise InputError(f"{path}: not a picture that edgemm reads; it reads {known}") from error
        except pil.DecompressionBombError as error:
            raise InputError(f"{path}: more than the {max_pixels} pixels that are allowed: {error}") from error
        except Exception as error:  # a hostile header makes decoders raise nearly anything
            raise InputError(f"{path}: damaged picture: {error}") from error


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
    if (width, height) != flat.size:
        flat = flat.resize((width, height), pil.Resampling[resample.upper()])
    if width == height:
        return flat
    if fit == "crop":
        left, top = (width - size) // 2, (height - size) // 2
        return flat.crop((left, top, left + size, top + size))
    square = pil.new("RGB", (size, size), background)
    square.paste(flat, ((size - width) // 2, (size - height) // 2))
    return square


def _flat(picture: Image, background: tuple[int, int, int]) -> Image:
    """What is transparent shows the background."""
    flat = pillow().new("RGB", picture.size, background)
    flat.paste(picture, mask=picture if picture.mode == "RGBA" else None)
    return flat


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


def pillow() -> Any:
    """PIL.Image, or how to get it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingError("pictures need Pillow: pip install 'edgemm[ort]'") from error
    return Image


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a file; expected a picture")


def _check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width} x {height} = {width * height} pixels, at most {max_pixels} are allowed; make it smaller"
        )
    if not width * height:
        raise InputError(f"{name}: {width} x {height} pixels, expected at least 1 x 1")


def _upright(picture: Image, name: str) -> Image:
    from PIL import ImageOps

    try:
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise InputError(f"{name}: damaged picture: {error}") from error
    if picture.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips it to white
        grey = np.asarray(picture).astype(np.int64).clip(0, 65_535) // 257
        return pillow().fromarray(grey.astype(np.uint8)).convert("RGB")
    see_through = "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
    return picture.convert("RGBA" if see_through else "RGB")


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
