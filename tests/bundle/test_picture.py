"""Any picture to a square of numbers: what is kept, what is refused, and that refusals come before decoding."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edgemm.bundle.picture import load_picture
from edgemm.errors import InputError

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def png_header(width, height):
    """A PNG that promises so many pixels and holds none."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_square_of_the_right_size_is_only_scaled_to_one():
    pixels = load_picture(COLOURS, 24)
    assert (pixels.dtype, pixels.shape) == (np.float32, (3, 24, 24))
    assert np.array_equal(pixels, COLOURS.transpose(2, 0, 1) / np.float32(255))
    assert pixels.flags.c_contiguous


def test_path_pil_and_array_are_the_same_picture(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    given = [COLOURS, Image.fromarray(COLOURS), tmp_path / "a.png", str(tmp_path / "a.png"), COLOURS / 255.0]
    first, *others = [load_picture(source, 16) for source in given]
    for other in others:
        assert np.array_equal(first, other)


def test_a_wide_picture_is_padded_and_nothing_is_cut_off():
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    pixels = load_picture(wide, 20, background=(255, 0, 255))
    dark = (pixels == 0).all(axis=0)
    assert np.flatnonzero(dark.any(axis=1)).tolist() == list(range(7, 12))
    assert dark[7:12].all()
    assert pixels[:, 0, 0].tolist() == [1, 0, 1]


def test_transparency_shows_the_background():
    half = np.zeros((8, 8, 4), dtype=np.uint8)
    half[:4, :, 3] = 255  # black above, transparent below
    pixels = load_picture(half, 8, background=(0, 255, 0))
    assert pixels[:, 0, 0].tolist() == [0, 0, 0]
    assert pixels[:, 7, 7].tolist() == [0, 1, 0]


def test_palettes_and_grey_with_transparency_are_understood(tmp_path):
    grey = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "p.gif", transparency=0)
    for source in (grey, tmp_path / "p.gif"):
        assert load_picture(source, 4, background=(255, 0, 0))[:, 0, 0].tolist() == [1, 0, 0]


def test_a_turned_photograph_stands_upright(tmp_path):
    lying = np.zeros((8, 8, 3), dtype=np.uint8)
    lying[:, :4] = 255
    photograph = Image.fromarray(lying)
    exif = photograph.getexif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it right
    photograph.save(tmp_path / "turned.png", exif=exif)
    upright = load_picture(tmp_path / "turned.png", 8)
    assert upright[0, :4].min() == 1 and upright[0, 4:].max() == 0


def test_sixteen_bits_are_not_clipped_to_white():
    grey = Image.fromarray(np.full((4, 4), 32_768, dtype=np.uint16))
    assert abs(load_picture(grey, 4).max() - 0.5) < 0.01


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(load_picture(stripes, 8) - 0.5).max() < 0.02  # every second column alone would be black or white


def test_a_hundred_megapixels_are_refused_with_both_numbers(tmp_path):
    (tmp_path / "big.png").write_bytes(png_header(10_000, 10_000))
    message = r"big\.png: 10000 x 10000 = 100000000 pixels, at most 50000000 are allowed"
    with pytest.raises(InputError, match=message):
        load_picture(tmp_path / "big.png", 16)


@pytest.mark.filterwarnings("error")
def test_what_pillow_calls_a_bomb_is_refused_without_a_warning(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    with pytest.raises(InputError, match=r"bomb\.png: more than the 1000 pixels .*3600000000"):
        load_picture(tmp_path / "bomb.png", 16, max_pixels=1000)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", png_header(0, 5)])
def test_what_is_no_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.png"):
        load_picture(tmp_path / "odd.png", 16)


def test_a_picture_that_is_cut_off_is_refused_by_name(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.png: damaged picture"):
        load_picture(tmp_path / "cut.png", 16)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (("", "not a file"), ("pipe.png", "not a file"), ("none.png", "cannot be read: No such file")):
        with pytest.raises(InputError, match=message):
            load_picture(tmp_path / name, 16)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), dtype=np.uint8),
        np.zeros((1, 3, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.int64),
        np.full((4, 4, 3), 255.0),
        np.full((4, 4, 3), np.nan),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
    ids=["two channels", "four axes", "integers", "0 to 255 as floats", "NaN", "nothing"],
)
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(InputError, match="picture"):
        load_picture(array, 16)
