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
        ({"video": 7}, "video is int, expected a path, bytes, an open file, or frames"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        model.generate_text("x", **options)


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
        (animation("GIF")[:300], "damaged video|could not be decoded|holds no frame"),
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


def film(path: Path, rate: int = 10, codec: str = "mpeg4", **stamps) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
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
