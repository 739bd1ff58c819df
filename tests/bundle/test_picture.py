"""Any picture to a square of numbers: what is kept, what is refused, and that refusals come before decoding."""

from __future__ import annotations

import base64
import io
import os
import resource
import struct
import tracemalloc
import urllib.parse
import zlib

import numpy as np
import pytest
from PIL import Image

from edgemm.bundle.picture import fit_square, load_picture, open_picture
from edgemm.errors import InputError, UsageError
from edgemm.runtimes.image_call import ImageMetrics, ImageResult, Picture

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def png(width, height, rows=b"", depth=8, kind=2, see_through=b""):
    """Rows as a PNG stores them, each behind its filter; `kind` is 0 for grey, 2 for colors."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    chunks += [chunk(b"tRNS", see_through)] if see_through else []
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def png_header(width, height):
    """A PNG that promises so many pixels and holds none."""
    return png(width, height)


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


@pytest.mark.parametrize(
    ("depth", "kind", "rows", "color"),
    [
        (1, 0, bytes([0b01000000]), [1]),
        (2, 0, bytes([0b00010000]), [1]),
        (4, 0, bytes([0x05]), [5]),
        (8, 0, bytes([4, 5]), [5]),
        (16, 0, struct.pack(">2H", 999, 1000), [1000]),
        (8, 2, bytes([5, 6, 8, 5, 6, 7]), [5, 6, 7]),
        (16, 2, struct.pack(">6H", 0, 2000, 3000, 1000, 2000, 3000), [1000, 2000, 3000]),
    ],
)
def test_the_one_color_of_a_png_that_is_see_through_shows_the_background(depth, kind, rows, color):
    """The right pixel has it, the left one nearly; tRNS counts as the samples do (PNG, section 11.3.2.1)."""
    content = png(2, 1, b"\0" + rows, depth, kind, struct.pack(f">{len(color)}H", *color))
    left, right = load_picture(content, 2, background=(0, 255, 0), fit="stretch")[:, 0].T
    assert right.tolist() == [0, 1, 0]
    assert left.tolist() != [0, 1, 0] and left.max() < 0.05


def test_colors_that_share_their_upper_bits_with_the_one_that_is_see_through_stay():
    """Pillow keeps eight of sixteen bits; what lost the others is no file any more."""
    rows, key = struct.pack(">6H", *[0x1234] * 3, *[0x12FF] * 3), struct.pack(">3H", *[0x1234] * 3)
    content = png(2, 1, b"\0" + rows, 16, 2, key)
    assert np.asarray(open_picture(content)).tolist() == [[[0x12] * 3 + [0], [0x12] * 3 + [255]]]
    with Image.open(io.BytesIO(content)) as opened:
        assert np.asarray(open_picture(opened))[..., 3].tolist() == [[0, 255]]
        opened.load()
        with pytest.raises(InputError, match="its see-through color has 16 bits"):
            open_picture(opened)


def test_exif_that_is_broken_turns_nothing():
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG", exif=b"no EXIF at all")
    assert np.array_equal(load_picture(file.getvalue(), 24), load_picture(COLOURS, 24))


@pytest.mark.parametrize("mode", ["La", "RGBa", "LA", "PA", "CMYK", "YCbCr", "HSV", "LAB", "1", "P", "RGBX"])
def test_every_mode_of_pillow_is_read(mode):
    black = Image.new(mode, (4, 4), {"CMYK": (0, 0, 0, 255), "YCbCr": (0, 128, 128), "LAB": (0, 128, 128)}.get(mode))
    see_through = mode in ("La", "RGBa", "LA", "PA")
    pixel = load_picture(black, 4, background=(255, 0, 0))[:, 0, 0]
    assert np.abs(pixel - [float(see_through), 0, 0]).max() <= 1 / 255 + 1e-6  # LAB's black is rounded


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


RAMP = np.linspace(0, 1, 256, dtype=np.float64).reshape(16, 16)


def levels(source):
    """Pixels of a picture of 16 x 16, from 0 to 255."""
    return load_picture(source, 16)[0] * 255


def test_floats_in_a_tiff_have_the_brightness_that_they_say(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    assert Image.open(tmp_path / "float.tif").mode == "F"
    assert np.abs(levels(tmp_path / "float.tif") - RAMP * 255).max() <= 0.5001
    Image.fromarray((RAMP * 255).astype(np.float32)).save(tmp_path / "wide.tif")  # as Image.convert("F") has them
    assert np.abs(levels(tmp_path / "wide.tif") - RAMP * 255).max() <= 0.5001


@pytest.mark.parametrize(
    ("kind", "white"), [(np.uint16, 65_535), (np.int32, 2**31 - 1), (np.int32, 65_535), (np.int32, 255)]
)
@pytest.mark.parametrize("file", [None, "grey.tif"])
def test_whole_numbers_of_16_and_32_bits_have_theirs(tmp_path, kind, white, file):
    picture = source = Image.fromarray(np.rint(RAMP * white).astype(kind))
    if file:
        picture.save(tmp_path / file)
        source = tmp_path / file
    assert np.abs(levels(source) - RAMP * 255).max() <= 0.5001


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.rint(RAMP * 250).astype(np.uint16)).save(tmp_path / "dark.png")
    assert levels(tmp_path / "dark.png").max() == 1
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 2 65535\n" + struct.pack(">4H", 0, 0, 0, 250))
    assert load_picture(tmp_path / "dark.pgm", 2).max() * 255 == pytest.approx(1)


def twelve_bits():
    """A TIFF of 2 x 1 pixels of 12 bits, packed: 0x800 and 0xFFF."""
    pixels = bytes([0x80, 0x0F, 0xFF])
    tags = [(256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 1)]
    tags.append((279, 4, len(pixels)))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 12) + pixels + b"\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def test_twelve_bits_are_not_a_sixteenth_of_the_light():
    assert Image.open(io.BytesIO(twelve_bits())).mode == "I;16"
    left, right = load_picture(twelve_bits(), 2, fit="stretch")[0, 0]
    assert (left * 255, right * 255) == (pytest.approx(0x800 / 4095 * 255, abs=0.51), pytest.approx(255))


def test_wide_numbers_take_little_memory_on_their_way():
    """A few kilobytes of a PNG may be 50 million of them."""
    grey = Image.fromarray(np.arange(4_000_000, dtype=np.uint32).astype(np.uint16).reshape(2_000, 2_000))
    tracemalloc.start()
    try:
        wide = open_picture(grey)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 60e6  # all numbers at once took 104 MB
    assert np.array_equal(np.asarray(wide)[..., 0], np.rint(np.asarray(grey) / 65_535 * 255))


@pytest.mark.parametrize("number", [-1.0, np.nan, 1e9, np.inf])
def test_numbers_that_are_no_light_are_refused(tmp_path, number):
    Image.fromarray(np.full((4, 4), number, dtype=np.float32)).save(tmp_path / "odd.tif")
    with pytest.raises(InputError, match=r"odd\.tif: "):
        load_picture(tmp_path / "odd.tif", 4)


@pytest.mark.parametrize("shape", [(37, 23), (23, 37), (224, 300), (48, 48), (100, 999), (5, 8), (3, 400)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("most", "apart"), [(50_000_000, 0), (1, 1)])  # 1: the last bit of a filter's weights
def test_a_crop_is_the_middle_of_the_resized_whole(monkeypatch, shape, resample, most, apart):
    """Pillow's resize of all of it, cut after: what image processors do."""
    height, width = shape
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    size, shorter = 48, min(shape)
    whole = picture.resize((size * width // shorter, size * height // shorter), Image.Resampling[resample.upper()])
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    wanted = np.asarray(whole.crop((left, top, left + size, top + size)), dtype=int)
    monkeypatch.setattr("edgemm.bundle.picture.MAX_PIXELS", most)
    found = np.asarray(fit_square(picture, size, fit="crop", resample=resample), dtype=int)
    assert np.abs(found - wanted).max() <= apart


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_the_crop_of_a_strip_never_holds_the_whole_resized(shape):
    strip = np.zeros((*shape, 3), dtype=np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    square = load_picture(strip, 336, fit="crop")
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert square.shape == (3, 336, 336) and grown_kb < 100_000


def test_every_source_is_the_same_picture(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    drawn = Picture((COLOURS.transpose(2, 0, 1) / 255).astype(np.float32), 7)
    result = ImageResult((drawn,), "stop", ImageMetrics(*[0] * 8))
    url = "data:image/png;base64," + base64.b64encode(whole).decode()
    with open(tmp_path / "a.png", "rb") as stream:
        given = [tmp_path / "a.png", "~/a.png", whole, bytearray(whole), io.BytesIO(whole), stream, url]
        given += [
            "data:image/png," + urllib.parse.quote(whole),
            url.replace("data", "DATA").replace("base64", "Base64"),
        ]
        given += [drawn, result, Image.fromarray(COLOURS)]
        for source in given:
            assert np.array_equal(load_picture(source, 24), load_picture(COLOURS, 24)), source


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("http://example.org/a.png", InputError, "http://example.org/a.png: nothing is fetched"),
        ("HTTPS://example.org/a.png", InputError, "nothing is fetched"),
        ("data:image/png;base64,!!!", InputError, "data:image/png;base64,!!...: not the data: URL"),
        ("data:image/png", InputError, "without a comma"),
        ("a\0b.png", InputError, "cannot be read"),
        (b"hello", InputError, "the picture: not a picture"),
        (io.StringIO("hello"), InputError, "opened as text"),
        (7, UsageError, "a picture is int, expected a path, a PIL image"),
        ({"image": "x"}, UsageError, "a picture is dict"),
    ],
)
def test_what_is_no_source_is_refused_by_name(source, kind, message):
    with pytest.raises(kind, match=message):
        load_picture(source, 16)


def test_an_empty_path_is_not_the_folder_where_one_stands():
    with pytest.raises(InputError, match="a picture's path is empty"):
        open_picture("")
