"""Videos as the pictures a model reads: which frames are taken, and how strangers' files end."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemm.errors import InputError, MissingError, UsageError
from edgemm.runtimes import video
from edgemm.runtimes.clip import Clip
from edgemm.runtimes.video import EvenFrames, read_video
from tests.runtimes.tiny_bundle import text_loop

LOOP, MOST = text_loop(), 1_000_000
LEVELS = [0, 30, 60, 90, 120, 150, 180, 210]


def still(level: int, size: int = 24) -> Image.Image:
    """Grey, with a corner that says which way is up."""
    picture = Image.new("RGB", (size, size), (level,) * 3)
    picture.paste((255, 0, 0), (0, 0, size // 2, size // 2))
    return picture


def animation(kind: str, frame_ms: int = 100, **how) -> bytes:
    stream, frames = io.BytesIO(), [still(level) for level in LEVELS]
    how |= {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=frame_ms, loop=0, **how)
    return stream.getvalue()


def levels(frames: list[np.ndarray]) -> list[int]:
    """Which of LEVELS each frame is, by its grey corner."""
    greys = [int(frame[-2, -2].mean()) for frame in frames]
    return [min(LEVELS, key=lambda level: abs(level - grey)) for grey in greys]


def read(source, fps=None, most=16) -> list[np.ndarray]:
    return read_video(source, LOOP, fps, most, MOST)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_are_taken_at_even_times(kind, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(animation(kind))
    assert levels(read(path, fps=10)) == LEVELS
    assert levels(read(path, fps=5)) == LEVELS[::2]
    assert levels(read(path, fps=20)) == [level for level in LEVELS for _ in range(2)]
    assert levels(read(path)) == [LEVELS[0], LEVELS[5]]  # 2 a second
    assert levels(read(path, fps=10, most=3)) == [LEVELS[0], LEVELS[4], LEVELS[7]]
    assert levels(read(path, fps=10, most=1)) == [LEVELS[0]]


def test_a_file_gives_what_its_frames_give_one_by_one():
    data = animation("PNG")
    frames = [still(level) for level in LEVELS]
    wanted = read(frames)
    assert all(np.array_equal(one, other) for one, other in zip(read(data, fps=10), wanted, strict=True))
    assert all(np.array_equal(one, other) for one, other in zip(read(io.BytesIO(data), fps=10), wanted, strict=True))
    assert all(np.array_equal(one, other) for one, other in zip(read(iter(frames)), wanted, strict=True))
    stacked = np.stack([np.asarray(frame) for frame in frames])
    assert all(np.array_equal(one, other) for one, other in zip(read(stacked), wanted, strict=True))


@pytest.mark.parametrize("rate", [7, 12, 15, 24, 25, 29.97, 30, 49, 60])
@pytest.mark.parametrize("stamped", ["exactly", "in milliseconds"])
def test_a_film_read_at_its_own_rate_gives_each_frame_once(rate, stamped):
    """However its times were rounded: Matroska and GIF count in milliseconds or hundredths, k / 30 is no double."""
    starts = [k / rate if stamped == "exactly" else round(1000 * k / rate) / 1000 for k in range(301)]
    even = EvenFrames(1 / rate, 300)
    for index, (start, end) in enumerate(itertools.pairwise(starts)):
        even.push(start, end, lambda index=index: np.array(index))
    assert [int(kept) for kept in even.frames()] == list(range(300))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_of_25_frames_a_second_gives_each_once(kind, tmp_path):
    stream, frames = io.BytesIO(), [still(8 * index) for index in range(30)]
    how = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=40, **how)
    greys = [int(frame[-2, -2].mean()) for frame in read(stream.getvalue(), fps=25, most=64)]
    assert len(greys) == 30 and np.abs(np.diff(greys) - 8).max() <= 2


def test_numbers_of_numpy_are_numbers(model):
    wanted = model.generate_text("x", video=animation("GIF"), fps=5, max_frames=3, max_new_tokens=2)
    found = model.generate_text(
        "x", video=animation("GIF"), fps=np.float32(5), max_frames=np.int64(3), max_new_tokens=2
    )
    assert found.token_ids == wanted.token_ids


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_broken_end_of_an_animation_leaves_the_frames_before_it(kind):
    whole = animation(kind)
    found = levels(read(whole[: 2 * len(whole) // 3], fps=10))
    assert 2 <= len(found) < len(LEVELS) and found == LEVELS[: len(found)]


def test_an_apng_that_tells_of_more_frames_than_it_has_ends_with_its_last():
    data = animation("PNG")
    head = data.index(b"acTL")
    told = chunk(b"acTL", struct.pack(">II", 900_000, 0))
    assert levels(read(data[: head - 4] + told + data[head + 16 :], fps=10)) == LEVELS


def test_the_picture_for_who_shows_no_apng_is_no_frame():
    """The APNG specification: without an fcTL before its data the default image is not part of the animation."""
    stream, frames = io.BytesIO(), [still(level) for level in LEVELS]
    still(255).save(stream, "PNG", save_all=True, append_images=frames, duration=100, default_image=True)
    assert levels(read(stream.getvalue(), fps=10)) == LEVELS


def test_an_animation_of_too_many_frames_is_refused_and_not_cut(tmp_path, monkeypatch):
    """In this process: the child's constants are its own."""
    (tmp_path / "x").write_bytes(animation("GIF"))
    squares = video._Squares(16, (255, 255, 255), "pad", "bicubic", 1, MOST)
    monkeypatch.setattr(video, "MOST_DECODED", len(LEVELS))
    assert len(video._decoded(tmp_path / "x", "x", squares, 10, 16)) == len(LEVELS)
    monkeypatch.setattr(video, "MOST_DECODED", len(LEVELS) - 1)
    with pytest.raises(InputError, match="x: more than 7 frames; cut it"):
        video._decoded(tmp_path / "x", "x", squares, 10, 16)


def test_long_videos_are_thinned_in_little_memory():
    made = []

    def frame(index):
        return lambda: made.append(index) or np.full((2, 2, 3), index % 256, dtype=np.uint8)

    even = EvenFrames(1.0, 4)
    for index in range(1000):
        even.push(index, index + 1, frame(index))
        assert len(even._kept) <= 32
    numbers = [number for number, _ in even._kept]
    assert len(even.frames()) == 4 and len(set(np.diff(numbers))) == 1 and numbers[-1] > 800
    assert len(made) < 200  # what is not wanted is not made
    even = EvenFrames(0.001, 4)
    even.push(0, 1e9, frame(1))  # thirty years of one picture
    assert len(even.frames()) == 4


def test_a_reply_to_a_video_is_the_reply_to_its_frames(model, tmp_path):
    (tmp_path / "x.gif").write_bytes(animation("PNG"))
    frames = [still(level) for level in LEVELS[::2]]
    wanted = model.generate_text("What moves?", images=frames, max_new_tokens=4)
    assert wanted.token_ids != model.generate_text("What moves?", images=frames[:1], max_new_tokens=4).token_ids
    for source, fps in ((tmp_path / "x.gif", 5), (frames, None), ((frame for frame in frames), None)):
        found = model.generate_text("What moves?", video=source, fps=fps, max_new_tokens=4)
        assert found.token_ids == wanted.token_ids
        assert found.metrics.prompt_tokens == wanted.metrics.prompt_tokens
    with model.session() as chat:
        assert chat.generate_text("What moves?", video=iter(frames), max_new_tokens=4).token_ids == wanted.token_ids


def test_more_frames_than_fit_are_refused_with_the_number_that_does_not(model):
    with pytest.raises(InputError, match=r"with 200 frames, this bundle holds at most 600; give a smaller"):
        model.generate_text("What moves?", video=[still(0)] * 200, max_frames=200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 2.0}, "fps is for videos, and there is none"),
        ({"video": [still(0)], "fps": 2.0}, "fps is for files: frames that are given one by one have no times"),
        ({"video": [still(0)], "max_frames": 0}, "max_frames is 0, expected a whole number from 1 to 256"),
        ({"video": b"x", "fps": 0.0}, "fps is 0.0, expected above 0, up to 1000"),
        ({"video": b"x", "fps": float("nan")}, "fps is nan, expected above 0"),
        ({"video": np.zeros((24, 24, 3), np.uint8)}, r"video is one picture of shape \(24, 24, 3\), expected several"),
        ({"video": still(0)}, "video is Image, expected a path, bytes, an open file, or frames"),
        ({"video": 7}, "video is int, expected a path, bytes, an open file, or frames"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        model.generate_text("x", **options)


def test_a_path_of_nobodys_home_and_an_iterator_that_fails_say_why():
    with pytest.raises(InputError, match=r"~nobody-has-this-name/x\.mp4: "):
        read("~nobody-has-this-name/x.mp4")

    def camera():
        yield still(0)
        raise ConnectionError("the camera is gone")

    with pytest.raises(ConnectionError, match="the camera is gone"):
        read(camera())


@pytest.mark.parametrize("frames", [[], iter(())])
def test_no_frame_is_no_video(frames):
    with pytest.raises(InputError, match="the video has no frame"):
        read(frames)


def test_frames_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(video, "MOST_DECODED", 50)
    with pytest.raises(InputError, match="the video has more than 50 frames"):
        read(itertools.repeat(still(0)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(), "60000 x 60000 = 3600000000 pixels a frame, at most 1000000 are allowed"),
        (animation("GIF")[:60], "damaged video|could not be decoded|holds no frame"),
        (animation("WEBP")[:200], "damaged video|could not be decoded|PyAV"),
        (b"", "damaged video|PyAV"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n", "damaged video|PyAV"),
        (bytes(10_000), "damaged video|PyAV"),
    ],
)
def test_a_bomb_a_broken_file_and_a_playlist_are_one_line(data, message):
    with pytest.raises((InputError, MissingError), match=message) as told:
        read(data)
    assert "\n" not in str(told.value)


def test_what_takes_too_long_or_too_much_is_the_files_fault(monkeypatch):
    monkeypatch.setattr(video, "TIMEOUT_S", 0.05)
    with pytest.raises(InputError, match=r"the video: could not be decoded: gave no answer within 0\.05 s"):
        read(animation("GIF"))
    monkeypatch.setattr(video, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(video, "MEMORY_BYTES", 1 << 20)
    with pytest.raises(InputError, match="could not be decoded: grew past 1 MiB of memory"):
        read(animation("GIF"))


def test_chat_takes_a_video_and_ends_with_3_at_a_broken_one(bundle_path, tmp_path):
    (tmp_path / "x.gif").write_bytes(animation("GIF"))
    (tmp_path / "broken.gif").write_bytes(bomb())
    for name, code in (("x.gif", 0), ("broken.gif", 3), ("absent.gif", 3)):
        words = [
            "chat",
            bundle_path,
            "--prompt",
            "x",
            "--video",
            tmp_path / name,
            "--max-new-tokens",
            2,
            "--threads",
            1,
        ]
        ran = subprocess.run([sys.executable, "-m", "edgemm", *map(str, words)], capture_output=True, text=True)
        assert ran.returncode == code, ran.stderr
        assert code == 0 or len(ran.stderr.strip().splitlines()) == 1


# What PyAV reads


def random_apng(seed: int) -> bytes:
    """Frames that are parts of the canvas, with every way to be blended in and taken away."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(6, 20, 2).tolist()
    count, number = 6, itertools.count()
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"acTL", struct.pack(">II", count, 0))
    for index in range(count):
        w, h = (width, height) if index == 0 else (int(rng.integers(1, most + 1)) for most in (width, height))
        x, y, taken, blended = (int(rng.integers(most)) for most in (width - w + 1, height - h + 1, 3, 2))
        pixels = rng.integers(0, 256, (h, w, 4), dtype=np.uint8)
        pixels[..., 3] = rng.choice([0, 255], (h, w))
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
        data += chunk(b"fcTL", struct.pack(">5I2H2B", next(number), w, h, x, y, 1, 10, taken, blended))
        data += chunk(b"IDAT", rows) if index == 0 else chunk(b"fdAT", struct.pack(">I", next(number)) + rows)
    return data + chunk(b"IEND", b"")


def random_gif(seed: int) -> bytes:
    """The same, by Pillow's own writer: a way to be taken away a frame, none of them among these."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(6):
        pixels = np.zeros((12, 12, 4), dtype=np.uint8)
        x, y = rng.integers(0, 8, 2)
        pixels[y : y + 5, x : x + 5] = (40 * index + 20, 90, 200, 255)
        frames.append(Image.fromarray(pixels))
    stream, ways = io.BytesIO(), rng.integers(0, 3, 6).tolist()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=100, disposal=ways)
    return stream.getvalue()


@pytest.mark.parametrize("made", [random_apng, random_gif])
def test_frames_lie_over_one_another_as_ffmpeg_has_them(made, tmp_path):
    av = pytest.importorskip("av")
    for seed in range(12):
        path = tmp_path / f"{seed}"
        path.write_bytes(made(seed))
        with av.open(str(path)) as container, open(path, "rb") as file:
            wanted = [frame.to_ndarray(format="rgba") for frame in container.decode(video=0)]
            opened = video._animation(file, "x", MOST)
            found = [np.asarray(picture().convert("RGBA")) for _, _, picture in video._played(opened)]
        assert len(found) == len(wanted) == 6
        for index, (one, other) in enumerate(zip(found, wanted)):
            seen = one[..., 3] > 0
            assert np.array_equal(seen, other[..., 3] > 0), (seed, index)
            assert np.array_equal(one[seen], other[seen]), (seed, index)


def film(path: Path, rate: int = 10, codec: str = "mpeg4", **how) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=how) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for level in LEVELS:
            container.mux(stream.encode(av.VideoFrame.from_image(still(level, 64))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
def test_a_film_is_read_as_its_frames(name, tmp_path):
    path = film(tmp_path / name)
    assert levels(read(path, fps=10)) == LEVELS
    assert levels(read(path, fps=5)) == LEVELS[::2]
    corner = read(path, fps=10)[0]
    assert corner[1, 1, 0] > 180 > corner[1, 1, 1]  # red is red, above and left


def test_a_cut_film_gives_the_frames_before_or_one_line(tmp_path):
    whole = film(tmp_path / "x.mkv").read_bytes()
    found = read(whole[: 2 * len(whole) // 3], fps=10)
    assert levels(found) == LEVELS[: len(found)]
    with pytest.raises(InputError, match=r"^the video: "):
        read(whole[:200])


@pytest.mark.parametrize("damaged", ["middle", "end"])
def test_packets_that_are_damaged_are_left_out(damaged, tmp_path):
    """FFmpeg conceals what is wrong inside of a frame; the frames around are right, and at their times."""
    data = bytearray(film(tmp_path / "x.mp4", movflags="faststart").read_bytes())
    start = data.index(b"mdat")
    middle = (start + len(data)) // 2
    end = middle + 60 if damaged == "middle" else len(data)
    data[middle:end] = bytes(end - middle)
    found = levels(read(bytes(data), fps=10))
    assert found[:3] == LEVELS[:3] and len(found) <= len(LEVELS)
    assert damaged == "end" or (len(found) == len(LEVELS) and found[-3:] == LEVELS[-3:])


ONE = 1 << 16  # in the 16.16 numbers of a QuickTime matrix (a, b, u, c, d, v, x, y, w)


@pytest.mark.parametrize(
    ("turn", "matrix", "corner"),
    [
        ("as it is", (ONE, 0, 0, ONE), (0, 0)),
        ("a quarter clockwise", (0, ONE, -ONE, 0), (0, -1)),
        ("half around", (-ONE, 0, 0, -ONE), (-1, -1)),
        ("a quarter back", (0, -ONE, ONE, 0), (-1, 0)),
        ("mirrored", (-ONE, 0, 0, ONE), (0, -1)),
        ("upside down", (ONE, 0, 0, -ONE), (-1, 0)),
    ],
)
def test_a_film_is_turned_and_mirrored_as_its_matrix_says(turn, matrix, corner, tmp_path):
    """ISO/IEC 14496-12: x' = a x + c y + tx, y' = b x + d y + ty; the red corner is above and left before."""
    data = bytearray(film(tmp_path / "x.mp4").read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = matrix
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 64 * (a + c < 0), 64 * (b + d < 0), 1 << 30)
    frame = read(bytes(data), fps=10)[0]
    corners = {(y, x): frame[y * 3 + 1, x * 3 + 1] for y in (0, -1) for x in (0, -1)}
    assert [place for place, (red, green, _) in corners.items() if red > 180 > green] == [corner], turn


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def test_a_cover_before_the_film_is_no_film(tmp_path):
    """iTunes' tags, where a file has them before its track."""
    film_, cover = film(tmp_path / "x.mp4").read_bytes(), io.BytesIO()
    still(255, 32).save(cover, "PNG")
    tag = box(b"ilst", box(b"covr", box(b"data", struct.pack(">II", 14, 0) + cover.getvalue())))
    tags = box(b"udta", box(b"meta", bytes(4) + box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9)) + tag))
    moov, track = film_.index(b"moov") - 4, film_.index(b"trak") - 4
    (size,) = struct.unpack(">I", film_[moov : moov + 4])
    data = film_[:moov] + struct.pack(">I", size + len(tags)) + film_[moov + 4 : track] + tags + film_[track:]
    (tmp_path / "y.mp4").write_bytes(data)
    with pytest.importorskip("av").open(str(tmp_path / "y.mp4")) as container:
        assert [stream.width for stream in container.streams.video] == [32, 64]
    assert levels(read(data, fps=10)) == LEVELS


@pytest.mark.parametrize("ending", ["webm", "webp"])
def test_what_is_transparent_in_a_sticker_shows_the_background(ending, tmp_path):
    pytest.importorskip("av")
    disc = np.ones((3, 64, 64), dtype=np.float32)
    disc[1:, 20:52, 16:48] = 0
    Clip((disc,), motion="slide").save(tmp_path / f"x.{ending}")
    frames = read(tmp_path / f"x.{ending}", fps=25, most=64)
    assert len(frames) == 25
    assert all(frame[0].min() > 240 and frame[4, 4, 0] > 200 > 60 > frame[4, 4, 1] for frame in frames)


def test_a_film_needs_pyav(tmp_path, monkeypatch):
    path = film(tmp_path / "x.mp4")
    (tmp_path / "av.py").write_text("raise ImportError('no av here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edgemm.device.child.environment", lambda: dict(__import__("os").environ))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(video.__file__).parents[2]}")
    with pytest.raises(MissingError, match=r"x\.mp4: neither GIF, WebP nor APNG; other videos need PyAV: pip install"):
        read(path)


def test_a_stream_of_a_bundle_that_says_nothing_of_its_keys_is_read_anew(model):
    with model.watch(window=3, max_new_tokens=4) as stream:
        for level in LEVELS:
            stream.push(still(level))
        assert not stream.turns and stream.frames == 3
        wanted = model.generate_text("What moves?", images=[still(level) for level in LEVELS[-3:]], max_new_tokens=4)
        assert stream.ask("What moves?").token_ids == wanted.token_ids
        assert stream.ask("What moves?").token_ids == wanted.token_ids
